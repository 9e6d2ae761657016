"""What the correction does, in a picture: python examples/correction.py (under a minute)

PID's student of a mixture fills the space between the modes, where the true map from noise to data is nearly discontinuous.
The correction, which needs no data either, empties it. Writes correction.png.
"""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import pidistill

SPEC = "gaussian:2,modes=4,std=0.1"
COMMON = {"grid.points": 100, "optimizer.clip": 1.0, "optimizer.decay": "cosine", "log.every": 1000}

pid = pidistill.distill(SPEC, out="runs/plane-pid", force=True, overrides=COMMON | {
    "student": {"init": "random", "net": {"name": "mlp", "width": 64, "depth": 3}}, "train": {"steps": 600, "batch": 128},
    "optimizer.lr": 4e-3})
corrected = pidistill.distill(SPEC, out="runs/plane-corrected", force=True, overrides=COMMON | {
    "student.init": "runs/plane-pid/student", "train": {"steps": 2500, "batch": 256}, "ema": 0.98,
    "optimizer": {"name": "adam", "lr": 1e-2, "warmup": 300, "decay": "cosine", "clip": 1.0},
    "objective": {"name": "pid_corrected", "share": 1.0, "weighting": "none", "levels": "lognormal", "p_mean": -1.6,
                  "p_std": 0.7, "fake_steps": 2, "warmup": 100,
                  "fake": {"name": "mlp", "width": 64},    # of its own, since a closed form has no network to lend
                  "fake_optimizer": {"lr": 1e-2, "betas": [0.9, 0.99], "decay": "constant", "warmup": 0}}})

seeds = range(100_000, 102_000)    # no training draws them
clouds = {"teacher": pidistill.sample_teacher(pidistill.load_teacher(SPEC), seeds), "PID": pid.sample(seeds),
          "corrected": corrected.sample(seeds)}
figure, axes = plt.subplots(1, 3, figsize=(12, 4), sharex=True, sharey=True)
for axis, (name, x) in zip(axes, clouds.items()):
    axis.scatter(*x.T, s=2)
    axis.set_title(name)
    axis.set_aspect("equal")
figure.savefig("correction.png", dpi=100)
print("correction.png")
