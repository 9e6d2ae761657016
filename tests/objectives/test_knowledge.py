"""Knowledge distillation against its equation, and on a mixture of Gaussians whose trajectories are known."""

from __future__ import annotations

import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.models.student import load_student
from pidistill.models.student_init import make_student
from pidistill.models.teachers.base import load_teacher
from pidistill.objectives.base import Setup
from pidistill.objectives.knowledge import Knowledge
from tests.helpers import draw, grid_of, shake, tiny_teacher
from tests.mixtures import SEEDS, SPEC, distil_mixture, draw_exactly, measure_start, sliced_wasserstein
from tests.pairs import solve_pairs


def make(teacher=None, **options) -> Knowledge:
    teacher = teacher or tiny_teacher()
    student = shake(make_student(teacher, **Knowledge.plan_student(teacher, options, None)), seed=1, scale=0.03)
    return Knowledge(Setup(student, teacher, grid_of(teacher, 10), solve_pairs(teacher, 8, 0, steps=3)), **options)


@pytest.mark.parametrize("distance, plain", [("l2", torch.square), ("l1", torch.abs)])
def test_the_loss_is_that_of_the_paper(distance, plain):
    """|F_student(x_T) - F_teacher(x_T)|, squared, of EDM's denoiser written out, with x_T of unit variance."""
    objective = make(distance=distance)
    student = objective.networks["student"].double()
    batch = {key: value.double() if value.is_floating_point() else value for key, value in
             draw(objective, range(6)).items()}
    x_T, s, T = batch["z"] / 80, 0.5, 80.0
    c_noise = torch.full((6,), torch.tensor(T).double().log() / 4, dtype=torch.float64)
    F = student.net(x_T * T / (T**2 + s**2) ** 0.5, c_noise, batch["labels"])
    image = s**2 / (T**2 + s**2) * x_T * T + T * s / (T**2 + s**2) ** 0.5 * F
    expected = plain(image - batch["y"]).flatten(1).mean(1)
    torch.testing.assert_close(objective.loss(batch), expected, rtol=1e-5, atol=0)


def test_a_student_draws_in_the_one_step_that_it_learned(tmp_path):
    objective = make()
    student = load_student(objective.networks["student"].save(tmp_path / "student"))
    assert student.times == (80.0, 0.0)
    with pytest.raises(PidistillError, match="trained to draw in 1 step; it can draw in 1, not in 2"):
        student.sample([0], steps=2)
    torch.testing.assert_close(objective.times(draw(objective, range(3))), torch.full((3,), 80.0))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_mixture_is_learned(tmp_path, seed):
    """Sliced Wasserstein distances from exact draws; of the pairs' own solutions it is below 0.01."""
    exact = draw_exactly(load_teacher(SPEC), 1)
    student = distil_mixture(tmp_path / "run", seed, {"objective": "knowledge", "pairs.num": 20_000, "train.steps": 1500,
                                                      "optimizer.lr": 1e-2})
    before, after = measure_start(seed, exact), sliced_wasserstein(student.sample(SEEDS), exact)
    print(f"sliced Wasserstein distance {before:.4f} at the start, {after:.4f} after")
    assert after < 0.03 and after < before / 15
