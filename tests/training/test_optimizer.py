"""RAdam against PyTorch's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pidistill.core.errors import PidistillError
from pidistill.objectives.base import Phase
from pidistill.training.config import OptimizerConfig
from pidistill.training.optimizer import RAdam, for_phase, learning_rate, make_optimizer


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3)).double()


def run(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64) * 10.0 ** (step % 3 - 3)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 / (1 + step)
        optimizer.step()


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.99)])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_numbers_are_those_of_torch(betas, decay):
    """Both branches: rho_t passes 5 at the sixth step."""
    ours = net()
    theirs = copy.deepcopy(ours)
    a = RAdam(ours.parameters(), betas=betas, weight_decay=decay)
    b = torch.optim.RAdam(theirs.parameters(), betas=betas, weight_decay=decay)
    for steps in (range(5), range(5, 8), range(8, 40)):
        before = weights(ours).clone()
        run(ours, a, steps)
        run(theirs, b, steps)
        torch.testing.assert_close(weights(ours), weights(theirs), rtol=1e-7, atol=1e-9)
        assert (weights(ours) - before).abs().min() > 0


@pytest.mark.parametrize("at", [3, 20])
def test_state_goes_to_a_file_and_back(at):
    ours = net()
    a = RAdam(ours.parameters())
    run(ours, a, range(at))
    again = copy.deepcopy(ours)
    b = RAdam(again.parameters())
    b.load_state_dict(copy.deepcopy(a.state_dict()))
    for model, optimizer in ((ours, a), (again, b)):
        run(model, optimizer, range(at, at + 10))
    assert torch.equal(weights(ours), weights(again))


@pytest.mark.parametrize("at", [2, 30])
def test_found_inf_leaves_everything_as_it_is(at):
    """As if the step had not been: also what comes after it is the same."""
    skipped, plain = net(), None
    plain = copy.deepcopy(skipped)
    a, b = RAdam(skipped.parameters()), RAdam(plain.parameters())
    run(skipped, a, range(at))
    run(plain, b, range(at))
    for p in skipped.parameters():
        p.grad = torch.full_like(p, float("nan"))
    a.found_inf = torch.ones(())
    a.step()
    a.found_inf = torch.zeros(())
    for model, optimizer in ((skipped, a), (plain, b)):
        run(model, optimizer, range(at, at + 6))
    torch.testing.assert_close(weights(skipped), weights(plain), rtol=1e-7, atol=1e-9)
    assert [s["step"].item() for s in a.state.values()] == [at + 6] * 4


def test_gradscaler_hands_it_over():
    model = nn.Linear(3, 2)
    optimizer, scaler = RAdam(model.parameters(), lr=1e-2), torch.amp.GradScaler("cpu", init_scale=4.0)
    before = weights(model).clone()
    for value, moves in ((float("inf"), False), (1.0, True)):
        scaler.scale(model(torch.full((1, 3), value)).sum()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert bool((weights(model) != before).any()) == moves
    assert scaler.get_scale() == 2.0


def test_learning_rates():
    config = OptimizerConfig(lr=1.0, warmup=4)
    assert [learning_rate(config, step, 100) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    config = OptimizerConfig(lr=2.0, decay="cosine")
    assert learning_rate(config, 0, 100) == 2 and learning_rate(config, 50, 100) == pytest.approx(1)
    assert 0 < learning_rate(config, 99, 100) < 1e-3


def test_optimizers():
    p = [torch.nn.Parameter(torch.ones(2))]
    made = make_optimizer(OptimizerConfig(name="radam", lr=0.1, betas=(0.5, 0.6)), iter(p))
    assert isinstance(made, RAdam) and made.defaults["betas"] == (0.5, 0.6)
    assert made.defaults["weight_decay"] == 0
    assert isinstance(make_optimizer(OptimizerConfig(name="adam"), iter(p)), torch.optim.Adam)
    for name in ("radam", "adam"):
        assert make_optimizer(OptimizerConfig(name=name, weight_decay=0.2), iter(p)).defaults["weight_decay"] == 0.2


def phase_with(**settings) -> Phase:
    return Phase("critic", ("critic",), lambda rng, step: {}, lambda batch, step: batch["x"], optimizer=settings)


def test_a_phase_has_the_settings_of_the_run_but_its_own():
    config = OptimizerConfig(name="adam", lr=0.1, warmup=3, clip=1.0)
    assert for_phase(config, phase_with()) == config
    expected = config.model_copy(update={"lr": 1e-4, "betas": (0.0, 0.999), "clip": None})
    assert for_phase(config, phase_with(lr=1e-4, betas=(0.0, 0.999), clip=None)) == expected


@pytest.mark.parametrize("settings, words", [
    ({"lr": -1.0}, "the phase critic: optimizer.lr: "), ({"rate": 1.0}, "the phase critic: optimizer.rate: "),
    ({"betas": (0.5, 2.0)}, "the phase critic: optimizer.betas: "), ({"name": "sgd"}, "the phase critic: optimizer.name: ")])
def test_settings_of_a_phase_that_are_none_are_one_line(settings, words):
    with pytest.raises(PidistillError, match=words) as caught:
        for_phase(OptimizerConfig(), phase_with(**settings))
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
def test_on_a_gpu_nothing_comes_to_the_host():
    model = nn.Linear(64, 64).cuda()
    optimizer = RAdam(model.parameters())
    for step in range(10):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.found_inf = torch.zeros((), device="cuda")
        torch.cuda.set_sync_debug_mode("error" if step > 6 else "default")
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
