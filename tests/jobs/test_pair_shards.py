"""A shard's tensors are the teacher's solutions, whatever the batch; float16 states its error."""

from __future__ import annotations

import math

import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.core.seeds import pair_labels, pair_noise
from pidistill.files.pairs import PairSettings
from pidistill.jobs.pair_shards import choose_states, draw_shard, make_draw, measure_error, merge_errors
from pidistill.models.denoiser import FunctionDenoiser
from pidistill.models.samplers.base import Sampler
from pidistill.models.teachers.gaussian import gaussian
from tests.helpers import tiny_teacher


def settings_of(teacher, times=(), **changes) -> PairSettings:
    values = {"teacher": "t", "weights": None, "guidance": 1.0, "sampler": "heun:18", "seed": 5, "num": 23,
              "shape": teacher.shape, "num_classes": teacher.num_classes, "t_max": teacher.t_max, "times": times,
              "shard": 10}
    return PairSettings(**values | changes)


@pytest.mark.parametrize("count, trajectory, chosen", [
    (18, None, [17]), (18, 2, [8, 17]), (18, 18, list(range(18))), (5, 3, [1, 2, 4]), (2, 2, [0, 1])])
def test_states_are_chosen_evenly_and_end_with_the_solution(count, trajectory, chosen):
    assert choose_states(count, trajectory) == chosen


def test_solutions_and_states_converge_to_the_closed_form():
    """A Gaussian's trajectory is known: x(t) - mu = (z - mu) sqrt((s^2 + t^2)/(s^2 + T^2))."""
    teacher, sampler = gaussian("1x4x4,mean=0.3,std=0.5"), Sampler("heun", 120)
    times = sampler.trace(teacher).times
    kept = tuple(times[k] for k in choose_states(len(times), 4))
    settings = settings_of(teacher, kept)
    tensors, errors = draw_shard(make_draw(teacher, sampler, 4), teacher, settings, 2, batch=2)
    z = pair_noise(5, range(20, 23), teacher.shape) * teacher.t_max
    assert tensors["x"].shape == (3, 1, 4, 4) and tensors["states"].shape == (3, 4, 1, 4, 4) and errors is None
    assert torch.equal(tensors["states"][:, -1], tensors["x"]) and set(tensors) == {"x", "states"}
    for k, t in enumerate(kept):
        torch.testing.assert_close(tensors["states"][:, k], teacher.exact(z, t), rtol=2e-3, atol=2e-3)


def test_the_batch_changes_rounding_alone_and_labels_are_the_pairs_own():
    teacher, sampler = tiny_teacher(), Sampler("heun", 3)
    settings = settings_of(teacher)
    draw = make_draw(teacher, sampler, None)
    (a, _), (b, _) = (draw_shard(draw, teacher, settings, 1, batch) for batch in (3, 10))
    assert torch.equal(a["labels"], b["labels"]) and torch.equal(a["labels"], pair_labels(5, range(10, 20), 3))
    torch.testing.assert_close(a["x"], b["x"], rtol=1e-4, atol=1e-4)
    *_, (_, x) = sampler.integrate(teacher, pair_noise(5, range(10, 20), teacher.shape) * teacher.t_max,
                                   sampler.times(teacher), a["labels"])
    torch.testing.assert_close(b["x"], x, rtol=1e-5, atol=1e-5)


def test_half_is_rounded_and_its_error_is_that_of_the_rounding():
    teacher, sampler = gaussian("2,modes=4,std=0.2"), Sampler("heun", 4)
    times = sampler.trace(teacher).times
    draw = make_draw(teacher, sampler, 4)
    full, _ = draw_shard(draw, teacher, settings_of(teacher, times), 0, batch=4)
    half, errors = draw_shard(draw, teacher, settings_of(teacher, times, dtype="float16"), 0, batch=4)
    for name in ("x", "states"):
        assert half[name].dtype == torch.float16 and torch.equal(half[name], full[name].half())
        error = (full[name].double() - half[name].double()).abs()
        largest, squares, count = errors[name]
        assert largest == error.max() > 0 and count == error.numel()
        assert squares == pytest.approx(float(error.square().sum()), rel=1e-9)


def test_errors_are_joined():
    assert merge_errors([]) == {}
    assert merge_errors([{"x": (1.0, 2.0, 3)}, {"x": (0.5, 1.0, 2)}]) == {"x": (1.0, 3.0, 5)}
    assert measure_error(torch.tensor([1.0, 1 + 2**-12])) == (2**-12, 2**-24, 2)


@pytest.mark.parametrize("value, dtype, words", [
    (math.nan, "float32", "solution of pair 1[0-9] is not finite; `pidistill inspect"),
    (1e5, "float16", "is not finite in float16; store float32")])
def test_what_is_no_number_is_one_line(value, dtype, words):
    teacher = FunctionDenoiser(lambda x, t, labels=None: torch.full_like(x, value), (2,))
    settings = settings_of(teacher, dtype=dtype)
    with pytest.raises(PidistillError, match=words) as caught:
        draw_shard(make_draw(teacher, Sampler("euler", 2), None), teacher, settings, 1, batch=4)
    assert "\n" not in str(caught.value)
