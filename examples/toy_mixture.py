"""A one-step generator of a mixture of eight Gaussians in the plane, in about a minute: python examples/toy_mixture.py

The teacher is exact (a closed-form denoiser), the student a small MLP with random weights. Writes toy_mixture.png: the
teacher's samples (35 evaluations), the student's (1), and lines between the two for the same noise. Bridges between modes
shrink with `train.steps`: there the true map from noise to image is nearly discontinuous.
"""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import pidistill

SPEC = "gaussian:2,modes=8,std=0.1"
student = pidistill.distill(SPEC, out="runs/toy", force=True, overrides={
    "student.init": "random", "student.net": "mlp", "train.steps": 4000, "train.batch": 256, "optimizer.lr": 2e-3,
    "optimizer.decay": "cosine", "optimizer.clip": 1.0, "ema": 0.99, "checkpoint.every": 4000})
seeds = range(1000)
teacher = pidistill.sample_teacher(pidistill.load_teacher(SPEC), seeds)
ours = student.sample(seeds)

figure, axes = plt.subplots(1, 3, figsize=(12, 4), sharex=True, sharey=True)
axes[0].scatter(*teacher.T, s=2)
axes[0].set_title("teacher, 35 evaluations")
axes[1].scatter(*ours.T, s=2)
axes[1].set_title("student, 1 evaluation")
for a, b in zip(teacher[:300], ours[:300]):
    axes[2].plot([a[0], b[0]], [a[1], b[1]], "k-", linewidth=0.5)
axes[2].set_title("same noise")
figure.savefig("toy_mixture.png", dpi=100)
print("toy_mixture.png")
