"""train.microbatch=auto: the largest that the memory holds, and the same run."""

from __future__ import annotations

import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.models.denoiser import FunctionDenoiser
from pidistill.models.student_init import make_student
from pidistill.objectives.base import Setup
from pidistill.objectives.pid import PID
from pidistill.training import microbatch
from pidistill.training.batches import draw_batch
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config
from pidistill.training.footprint import ACTIVATIONS, Rehearsal
from pidistill.training.microbatch import find_microbatch, fit_microbatch, halve_until_it_runs
from tests.helpers import SHAPE, grid_of, tiny_teacher
from tests.own_nets import make_teacher
from tests.runs import make_image_objective, metrics, start_run

CPU = torch.device("cpu")


def steps(fixed: float, each: float, gradients: float = 0):
    """A step whose activations are `each` a sample, and the sizes that were asked for."""
    asked: list[tuple[int, bool]] = []

    def rehearse(micro: int, accumulate: bool) -> dict[str, float]:
        asked.append((micro, accumulate))
        return {"weights": fixed, "gradients": gradients * accumulate, f"{ACTIVATIONS} of the teacher": each * micro}

    return rehearse, asked


@pytest.mark.parametrize("share, room, expected", [(512, 1e9, 512), (512, 306, 256), (512, 305, 171), (512, 70, 20),
                                                   (10, 60, 10), (10, 59, 5), (7, 53.9, 3), (512, 51, 1), (512, 10, 1)])
def test_as_few_equal_parts_as_the_memory_allows(share, room, expected):
    """50 for the weights and 1 for every sample."""
    rehearse, asked = steps(50, 1)
    micro, found = fit_microbatch(rehearse, share, room)
    assert micro == expected and found[f"{ACTIVATIONS} of the teacher"] == micro
    assert asked[0] == (share, False) and len(asked) <= 3


def test_gradients_of_earlier_parts_count_and_what_is_there_does_not():
    rehearse, asked = steps(50, 1, gradients=30)
    assert fit_microbatch(rehearse, 100, 149)[0] == 50 and asked[1:] == [(50, True)]
    assert fit_microbatch(rehearse, 100, 90, there=("weights",))[0] == 50
    assert fit_microbatch(steps(50, 1, gradients=60)[0], 100, 149)[0] == 34


def objective_and_config(**changes):
    config = load_config(DistillConfig, "digits", {"train.microbatch": "auto", **changes})
    return make_image_objective(), config


def found(objective, config, share=64):
    return find_microbatch(objective, config, share, CPU, 1)


def test_on_this_machine_a_small_run_goes_through_at_once():
    micro, why = found(*objective_and_config())
    assert micro == 64 and why.startswith("microbatches of 64 of 64 (0.0") and "GiB free" in why


def test_little_memory_gives_small_microbatches_that_fit(monkeypatch):
    objective, config = objective_and_config()
    whole = sum(Rehearsal(objective, config, gpu=False)(64, False).values())
    monkeypatch.setattr(microbatch, "free_memory", lambda device: 0.4 * whole)
    micro, _ = found(objective, config)
    assert 1 < micro < 32
    needed = Rehearsal(objective, config, gpu=False)(micro, True)
    assert sum(size for label, size in needed.items() if label not in ("weights", "teacher", "EMA")) < 0.4 * whole


def test_a_teacher_that_computes_outside_of_pytorch():
    """Nothing can be predicted of it; on the CPU all goes through at once."""
    plain = tiny_teacher()
    teacher = FunctionDenoiser(lambda x, t, labels: torch.from_numpy(x.numpy() * 0.5), SHAPE, 3, t_min=0.002, t_max=80.0,
                               sigma_data=0.5)
    objective = PID(Setup(make_student(plain), teacher, grid_of(plain, 10)))
    micro, why = found(objective, objective_and_config()[1])
    assert micro == 64 and "no prediction" in why and "\n" not in why


class Bounded(PID):
    """Memory for so many samples."""

    most, steps = 3, ()

    def loss(self, batch, step=0):
        self.steps = (*self.steps, step)
        if len(batch["z"]) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().loss(batch, step)


def test_what_the_device_cannot_bear_is_halved():
    _, config = objective_and_config()
    objective = make_image_objective(Bounded)
    assert halve_until_it_runs(objective, config, 20, CPU) == 3 and halve_until_it_runs(objective, config, 2, CPU) == 2
    assert all(p.grad is None for p in objective.networks["student"].parameters())
    objective.most = 0
    with pytest.raises(PidistillError, match=r"does not hold a step of one sample; set train.recompute=true") as caught:
        halve_until_it_runs(objective, config, 20, CPU)
    assert "\n" not in str(caught.value)


def test_a_run_says_its_microbatch_and_ends_with_the_same_weights(tmp_path, monkeypatch, capsys):
    plain = start_run(tmp_path / "a", {"train.batch": 16}, images=True)
    auto = start_run(tmp_path / "b", {"train.batch": 16, "train.microbatch": "auto"}, images=True)
    for a, b in zip(plain, auto, strict=True):
        assert torch.equal(a, b)
    assert "microbatches of 16 of 16" in capsys.readouterr().err.replace("\n", " ")
    monkeypatch.setattr(microbatch, "free_memory", lambda device: 3e6)
    split = start_run(tmp_path / "c", {"train.batch": 16, "train.microbatch": "auto"}, images=True)
    said = capsys.readouterr().err.replace("\n", " ")
    assert "microbatches of " in said and "microbatches of 16 " not in said
    for a, b in zip(plain, split, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    for a, b in zip(metrics(tmp_path / "a"), metrics(tmp_path / "c"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


@pytest.mark.parametrize("value", ["most", 0, -1, 1.5])
def test_other_values_are_refused(value):
    with pytest.raises(PidistillError, match=r"train\.microbatch"):
        load_config(DistillConfig, "digits", {"train.microbatch": value})


@pytest.mark.gpu
def test_a_gpu_that_is_nearly_full(tmp_path):
    """All but 2 GiB of the GPU is taken: a batch that needs more runs in parts."""
    taken = torch.empty(torch.cuda.mem_get_info()[0] - 2**31, dtype=torch.uint8, device="cuda")
    start_run(tmp_path / "a", {"train.batch": 32768, "train.microbatch": "auto", "train.steps": 1}, images=True)
    del taken


def test_a_gpu_tries_and_halves_in_place_of_a_prediction(monkeypatch):
    _, config = objective_and_config()
    objective, steps = make_image_objective(Bounded), set()
    monkeypatch.setattr(microbatch, "draw_batch", lambda phase, number, seed, step, ks, device: steps.add(step) or
                        draw_batch(phase, number, seed, step, ks, CPU))
    monkeypatch.setattr(microbatch, "free_memory", lambda device: 2**30)
    monkeypatch.setattr(microbatch, "Rehearsal", lambda *_, **__: pytest.fail("predicted"))
    micro, why = find_microbatch(objective, config, 20, torch.device("cuda"), 7)
    assert steps == {*objective.steps} == {7}  # the next step
    assert micro == 3 and why == "microbatches of 3 of 20 (tried, 1 GiB free)"


def test_what_is_tried_changes_no_statistics():
    """Of batch normalisation: a run whose microbatch was found is the run with that microbatch."""
    teacher = make_teacher()
    objective = PID(Setup(make_student(teacher), teacher, grid_of(teacher, 10)))
    student = objective.networks["student"].train()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    assert halve_until_it_runs(objective, objective_and_config()[1], 8, CPU) == 8
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    objective.loss(draw_batch(objective.phases()[0], 0, 0, 0, range(8), CPU)).sum()
    assert student.net.norm.num_batches_tracked == 1
