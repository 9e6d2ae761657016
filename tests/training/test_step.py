"""One step: the gradient of a batch however it is split, its norm, and what a step that is not finite leaves."""

from __future__ import annotations

import pytest
import torch

from pidistill.training.batches import draw_batch
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config
from pidistill.training.optimizer import learning_rate
from pidistill.training.step import Step, Taken, place
from tests.runs import make_objective

CPU = torch.device("cpu")


def make_step(**changes) -> Step:
    config = load_config(DistillConfig, "default", {"train.steps": 10, "train.batch": 8, "optimizer.name": "adam",
                                                    "optimizer.lr": 1e-2, "ema": 0.0, **changes})
    return Step(make_objective(), config, CPU)


def flatten(tensors) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def draw(step: Step, number: int, ks: range) -> dict[str, torch.Tensor]:
    return draw_batch(step.phases["pid"].phase, 0, 0, number, ks, CPU)


def take(step: Step, number: int, *batches: dict[str, torch.Tensor], share: float | None = None) -> Taken:
    """Take a step of these microbatches; gives loss and norm of its only phase."""
    samples = sum(len(batch["z"]) for batch in batches)
    taken = step(number, lambda: [(0, batch) for batch in batches], share or samples)
    assert taken.keys() == {"pid"}
    return taken["pid"]


@pytest.mark.parametrize("split", [[range(8)], [range(3), range(3, 8)], [range(k, k + 1) for k in range(8)]])
def test_a_step_is_that_of_the_mean_loss_however_the_batch_is_split(split):
    """Loss, norm and weights are those of plain PyTorch."""
    step, objective = make_step(), make_objective()
    ours, weights = step.phases["pid"].parameters, [*objective.networks["student"].parameters()]
    optimizer = torch.optim.Adam(weights)
    for number in range(3):
        loss, norm, _ = take(step, number, *[draw(step, number, ks) for ks in split])
        expected = objective.loss(draw(step, number, range(8))).mean()
        optimizer.zero_grad()
        expected.backward()
        gradient = flatten(p.grad for p in weights)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step.phases["pid"].settings, number, 10)
        optimizer.step()
        assert step.phases["pid"].rate(number) == optimizer.param_groups[0]["lr"] > 0
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert norm.item() == pytest.approx(gradient.norm().item(), rel=1e-4)
        torch.testing.assert_close(flatten(ours), flatten(weights), rtol=0, atol=1e-5)
    assert torch.equal(flatten(step.ema.networks[0.0]["student"].parameters()), flatten(ours))


def test_the_share_divides_the_sum_of_the_losses():
    """With several processes of unlike numbers of samples, all divide by the mean number."""
    losses = [take(make_step(), 0, draw(make_step(), 0, range(6)), share=share).loss.item() for share in (None, 6, 4)]
    assert losses[0] == losses[1] and losses[2] == pytest.approx(1.5 * losses[0])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_that_is_not_finite_leaves_everything_as_it_is(precision):
    step = make_step(precision=precision)
    take(step, 0, draw(step, 0, range(8)))
    phase = step.phases["pid"]
    weights, moments = flatten(phase.parameters), flatten(state["exp_avg"] for state in phase.optimizer.state.values())
    batch = draw(step, 1, range(8))
    batch["z"][3] = float("nan")
    loss, norm, _ = take(step, 1, batch)
    assert loss.item() == 0 and not norm.isfinite() and phase.skipped.look() == [1, 1, 1]
    assert torch.equal(flatten(phase.parameters), weights)
    assert torch.equal(flatten(state["exp_avg"] for state in phase.optimizer.state.values()), moments)
    assert take(step, 2, draw(step, 2, range(8))).loss > 0 and phase.skipped.look() == [0, 1, 1]
    assert not torch.equal(flatten(phase.parameters), weights)


def test_gradients_are_exchanged_with_the_last_microbatch_alone():
    step, entered = make_step(), []

    class Recorder:
        def __enter__(self):
            entered.append(calls[0])

        def __exit__(self, *_):
            pass

    phase = step.phases["pid"]
    calls, unit = [0], phase.unit
    phase.no_sync = Recorder
    phase.unit = lambda batch, number, part: (calls.__setitem__(0, calls[0] + 1), unit(batch, number, part))[1]
    take(step, 0, *[draw(step, 0, ks) for ks in (range(3), range(3, 6), range(6, 8))])
    assert entered == [0, 1] and calls == [3]


def test_on_a_cpu_weights_stay_as_they_lie():
    net = torch.nn.Conv2d(3, 4, 3)
    place(net, CPU)
    assert net.weight.is_contiguous() and not net.weight.is_contiguous(memory_format=torch.channels_last)
