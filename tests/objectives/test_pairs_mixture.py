"""What is learned from pairs, on mixtures of four Gaussians, whose denoiser has a closed form.

The runs draw their own pairs. Distances are to exact draws, 20,000 each; two such sets are less than 0.01 apart.
"""

from __future__ import annotations

import pytest

import pidistill
from pidistill.models.teachers.base import load_teacher
from tests.mixtures import QUICK, SEEDS, SPEC, draw_exactly, sliced_wasserstein

IMAGES = "gaussian:1x2x2,modes=4,std=0.1"
EQUILIBRIUM = {"name": "equilibrium", "patch": 1, "width": 32, "heads": 2, "injection": 1, "equilibrium": 2, "expansion": 2,
               "iterations": 4, "unroll": 4}
RUNS = {"dsno": (SPEC, {"pairs.trajectory": 4, "train.steps": 800}, 0.06),
        "equilibrium": (IMAGES, {"student.net": EQUILIBRIUM, "optimizer.lr": 2e-3, "train.steps": 800}, 0.06)}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", RUNS)
def test_the_student_draws_the_mixture(tmp_path, name, seed):
    spec, options, bound = RUNS[name]
    teacher, found = load_teacher(spec), {}
    exact = draw_exactly(teacher, 1)
    assert sliced_wasserstein(draw_exactly(teacher, 2), exact) < 0.01
    for steps in (1, options["train.steps"]):  # at a rate of next to nothing, the first is as it begins
        student = pidistill.distill(spec, preset="default", out=tmp_path / str(steps), overrides=QUICK | options | {
            "objective": name, "pairs.num": 4000, "pairs.sampler": "heun:18", "train.batch": 64, "ema": 0.98,
            "train.seed": seed, "train.steps": steps, "evaluate.num": 100, "log.every": 1000, "preview.every": 10**6}
            | ({"optimizer.lr": 1e-12} if steps == 1 else {}))
        found[steps] = sliced_wasserstein(student.sample(SEEDS), exact)
    before, after = found.values()
    print(f"{name}, seed {seed}: sliced Wasserstein distance {before:.4f} at the start, {after:.4f} trained")
    assert after < bound and after < before / 8
