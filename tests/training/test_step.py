"""One step: the gradient of a batch however it is split, its norm, and what a step that is not finite leaves."""

from __future__ import annotations

import pytest
import torch

from pidistill.models.student_init import make_student
from pidistill.models.teachers.gaussian import gaussian
from pidistill.objectives.pid import PID
from pidistill.training.batches import draw_batch
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config
from pidistill.training.optimizer import learning_rate
from pidistill.training.step import Step, place
from tests.helpers import MLP, grid_of

CPU = torch.device("cpu")


def make_step(**changes) -> Step:
    torch.manual_seed(0)
    teacher = gaussian("2,modes=4,std=0.2")
    objective = PID(make_student(teacher, "random", MLP), teacher, grid_of(teacher, 10))
    config = load_config(DistillConfig, "default", {"train.steps": 10, "train.batch": 8, "optimizer.name": "adam",
                                                    "optimizer.lr": 1e-2, "ema": 0.0, **changes})
    return Step(objective, config, CPU)


def flatten(tensors) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def draw(step: Step, number: int, ks: range) -> dict[str, torch.Tensor]:
    return draw_batch(step.model, 0, number, ks, CPU)


@pytest.mark.parametrize("split", [[range(8)], [range(3), range(3, 8)], [range(k, k + 1) for k in range(8)]])
def test_a_step_is_that_of_the_mean_loss_however_the_batch_is_split(split):
    """Loss, norm and weights are those of plain PyTorch."""
    step, plain = make_step(), make_step()
    for number in range(3):
        loss, norm = step(number, [draw(step, number, ks) for ks in split], 8)
        expected = plain.model(draw(plain, number, range(8))).mean()
        plain.optimizer.zero_grad()
        expected.backward()
        gradient = flatten(p.grad for p in plain.parameters)
        for group in plain.optimizer.param_groups:
            group["lr"] = learning_rate(plain.config.optimizer, number, 10)
        plain.optimizer.step()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert norm.item() == pytest.approx(gradient.norm().item(), rel=1e-4)
        torch.testing.assert_close(flatten(step.parameters), flatten(plain.parameters), rtol=0, atol=1e-5)
    assert torch.equal(flatten(step.ema.networks[0.0]["student"].parameters()), flatten(step.parameters))


def test_the_share_divides_the_sum_of_the_losses():
    """With several processes of unlike numbers of samples, all divide by the mean number."""
    losses = [make_step()(0, [draw(make_step(), 0, range(6))], 6, share)[0].item() for share in (None, 6, 4)]
    assert losses[0] == losses[1] and losses[2] == pytest.approx(1.5 * losses[0])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_that_is_not_finite_leaves_everything_as_it_is(precision):
    step = make_step(precision=precision)
    step(0, [draw(step, 0, range(8))], 8)
    weights, moments = flatten(step.parameters), flatten(state["exp_avg"] for state in step.optimizer.state.values())
    batch = draw(step, 1, range(8))
    batch["z"][3] = float("nan")
    loss, norm = step(1, [batch], 8)
    assert loss.item() == 0 and not norm.isfinite() and step.skipped.look() == [1, 1, 1]
    assert torch.equal(flatten(step.parameters), weights)
    assert torch.equal(flatten(state["exp_avg"] for state in step.optimizer.state.values()), moments)
    assert step(2, [draw(step, 2, range(8))], 8)[0] > 0 and step.skipped.look() == [0, 1, 1]
    assert not torch.equal(flatten(step.parameters), weights)


def test_gradients_are_exchanged_with_the_last_microbatch_alone():
    step, entered = make_step(), []

    class Recorder:
        def __enter__(self):
            entered.append(calls[0])

        def __exit__(self, *_):
            pass

    calls, model = [0], step.model
    step.no_sync = Recorder
    step.model = lambda batch: (calls.__setitem__(0, calls[0] + 1), model(batch))[1]
    step(0, [draw_batch(model, 0, 0, ks, CPU) for ks in (range(3), range(3, 6), range(6, 8))], 8)
    assert entered == [0, 1] and calls == [3]


def test_on_a_cpu_weights_stay_as_they_lie():
    net = torch.nn.Conv2d(3, 4, 3)
    place(net, CPU)
    assert net.weight.is_contiguous() and not net.weight.is_contiguous(memory_format=torch.channels_last)
