"""Forward mode through the networks: the limit of finite differences, in value and in gradient."""

from __future__ import annotations

import pytest
import torch

from pidistill.models.student_init import make_student
from pidistill.objectives.pid import pid_residual
from pidistill.objectives.schemes.autodiff import Autodiff
from pidistill.objectives.schemes.central import Central
from tests.helpers import CLASSES, MLP, NET, SHAPE, exact_network, gaussian64, grid_of, network, start, tiny_teacher

NCSNPP = {"embedding": "fourier", "encoder": "residual", "channel_mult_noise": 2, "resample_filter": [1, 3, 3, 1]}
NETS = {"mlp": MLP, "song_unet": NET, "ncsnpp": NET | NCSNPP}


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("time", [79.0, 3.0, 0.01])
def test_value_and_gradient_are_the_limit_of_a_central_difference(kind, time):
    """Three points within 1e-6 of t, in float64: errors of truncation and of rounding are both below 1e-8."""
    student = make_student(tiny_teacher(NETS[kind])).double().eval()
    z, y = start(SHAPE, 3), torch.arange(3) % CLASSES
    t = torch.tensor([1 + 1e-6, 1, 1 - 1e-6], dtype=torch.float64) * time
    answers = []
    for scheme in (Autodiff(), Central()):
        student.zero_grad()
        prediction = scheme(network(student, z, y), z, torch.ones(3, dtype=torch.int64), t, 80.0).prediction
        (prediction - 0.3).square().mean().backward()
        answers.append((prediction.detach(), {name: p.grad.clone() for name, p in student.named_parameters()}))
    (value, gradient), (limit, expected) = answers
    torch.testing.assert_close(value, limit, rtol=1e-5, atol=1e-6)
    for name, g in gradient.items():
        assert bool(g.isfinite().all()) and g.abs().sum() > 0, name
        assert (g - expected[name]).norm() < 1e-4 * expected[name].norm() + 1e-9, name


def test_another_grid_is_another_sampling_of_the_same_function():
    """No neighbour is used: the prediction at a time does not depend on the other points, as upwind's does."""
    student = make_student(gaussian64(), "random", MLP).double()
    z, i = start((2,), 3), torch.ones(3, dtype=torch.int64)
    grids = [torch.tensor([80.0, 3.0, u], dtype=torch.float64) for u in (2.0, 0.002)]
    a, b = (Autodiff()(network(student, z), z, i, t, 80.0).prediction for t in grids)
    assert torch.equal(a, b)


def test_the_residual_of_the_exact_trajectory_has_no_error_of_discretisation():
    """On two grid points too; the finite differences have 0.04 and more there."""
    gaussian = gaussian64(std=40.0)
    z, t = start((2,), 2), grid_of(gaussian, 2).t
    x, times, prediction = Autodiff()(exact_network(gaussian, z), z, torch.arange(2), t, 80.0)
    torch.testing.assert_close(prediction, gaussian(x, times), rtol=1e-12, atol=1e-12)


def test_under_training_the_attention_has_a_derivative():
    """pid_residual with gradients, float32, attention at both resolutions."""
    student = make_student(tiny_teacher(NET | {"attn_resolutions": [8, 4]})).train()
    prediction, target = pid_residual(student, tiny_teacher(), start(SHAPE, 4, dtype=torch.float32), torch.arange(4),
                                      grid_of(student, 4), Autodiff(), torch.arange(4) % CLASSES)
    assert prediction.requires_grad and not target.requires_grad and prediction.dtype == torch.float32
    (prediction - target).square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in student.parameters())
