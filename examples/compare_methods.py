"""Four ways to a one-step student at one budget of steps, in the plane: python examples/compare_methods.py (about a minute)

Each name is a whole method; what it needs (pairs, the teacher's samples) it draws first. Prints the r.m.s. distance to the
teacher's solution for the same noise, and writes compare_methods.png. `pidistill reproduce table1` is the real thing.
"""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import pidistill

SPEC = "gaussian:2,modes=4,std=0.1"
COMMON = {"student.init": "random", "student.net": "mlp", "grid.points": 50, "train.steps": 1000, "train.batch": 256,
          "ema": 0.98, "optimizer": {"lr": 2e-3, "decay": "cosine", "clip": 1.0}, "log.every": 500, "evaluate.num": 100}
METHODS = {"pid": {}, "boot": {}, "knowledge": {"pairs.num": 4000}, "consistency": {"data": "teacher", "pairs.num": 4000}}

teacher, seeds = pidistill.load_teacher(SPEC), range(100_000, 101_000)    # seeds that no training draws
solutions = pidistill.sample_teacher(teacher, seeds)
figure, axes = plt.subplots(1, len(METHODS) + 1, figsize=(15, 3.2), sharex=True, sharey=True)
axes[0].scatter(*solutions.T, s=2)
axes[0].set_title("teacher, 35 calls")
for axis, (name, needs) in zip(axes[1:], METHODS.items()):
    student = pidistill.distill(SPEC, out=f"runs/methods/{name}", force=True, overrides=COMMON | {"objective": name} | needs)
    images = student.sample(seeds)
    rms = (images - solutions).square().mean().sqrt()
    print(f"{name:12} r.m.s. distance {rms:.3f}")
    axis.scatter(*images.T, s=2)
    axis.set_title(f"{name}, one call: {rms:.2f}")
figure.savefig("compare_methods.png", dpi=100)
print("compare_methods.png")
