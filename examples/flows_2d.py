"""The flow of a teacher in the plane, and its student's, side by side: python examples/flows_2d.py (under a minute)

The teacher is a mixture of six Gaussians, whose denoiser is known exactly. It takes noise (open circles) to data in many
small steps; the student was never shown a trajectory, and gives the state at every time in one call. Writes flows_2d.png.
"""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

import pidistill
from pidistill.core.seeds import noise

SPEC = "gaussian:2,modes=6,std=0.1"
teacher = pidistill.load_teacher(SPEC)
student = pidistill.distill(SPEC, out="runs/flows", force=True, overrides={
    "student.init": "random", "student.net": "mlp", "train.steps": 3000, "train.batch": 256, "optimizer.lr": 2e-3,
    "optimizer.decay": "cosine", "optimizer.clip": 1.0, "ema": 0.99, "log.every": 500})

z = noise(range(60), teacher.shape) * teacher.t_max    # (60, 2), the noises of seeds 0 to 59
sampler = pidistill.Sampler("heun", 40)
with torch.inference_mode():
    flow = [(teacher.t_max, z), *sampler.integrate(teacher, z, sampler.times(teacher))]
    ways = {"teacher, 79 calls": [x for _, x in flow],
            "student, one call a point": [student(z, max(t, teacher.t_min)) for t, _ in flow]}

figure, axes = plt.subplots(1, 2, figsize=(10, 5), sharex=True, sharey=True)
for axis, (name, states) in zip(axes, ways.items()):
    # A state at time t has a standard deviation of about (t^2 + s^2)^1/2; scaled to the data's it stays in the picture.
    scales = [teacher.sigma_data / (t**2 + teacher.sigma_data**2) ** 0.5 for t, _ in flow]
    path = torch.stack([x * scale for x, scale in zip(states, scales)])    # (times, 60, 2)
    axis.plot(path[:, :, 0], path[:, :, 1], color="tab:blue", linewidth=0.6)
    axis.scatter(*path[0].T, s=14, facecolors="none", edgecolors="grey")
    axis.scatter(*path[-1].T, s=14, color="tab:red")
    axis.set_title(name)
    axis.set_aspect("equal")
figure.savefig("flows_2d.png", dpi=100)
print("flows_2d.png")
