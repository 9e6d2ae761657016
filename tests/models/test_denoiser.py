"""EDM's preconditioning, wrappers for teachers of one's own, and the choice of labels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pidistill.core.errors import PidistillError
from pidistill.core.tensors import find_device
from pidistill.models.denoiser import Denoiser, FunctionDenoiser, Preconditioned, as_denoiser
from pidistill.nets.base import build_net
from tests.helpers import MLP, SHAPE, tiny_teacher


class Recorder(nn.Module):
    """A network that gives a constant and remembers its input."""

    def forward(self, x, c_noise, labels=None):
        self.seen = (x, c_noise, labels)
        return torch.full_like(x, 3.0)


def test_preconditioning_is_table_1():
    net, sd = Recorder(), 0.4
    teacher = Preconditioned(net, (1, 2, 2), 5, sigma_data=sd)
    x, t, y = torch.randn(3, 1, 2, 2), torch.tensor([0.01, 1.0, 70.0]), torch.tensor([1, 2, 4])
    D, u = teacher(x, t, y), t[:, None, None, None]
    expected = sd**2 / (u**2 + sd**2) * x + u * sd / (sd**2 + u**2).sqrt() * 3.0
    torch.testing.assert_close(D, expected)
    torch.testing.assert_close(net.seen[0], x / (sd**2 + u**2).sqrt())
    torch.testing.assert_close(net.seen[1], t.log() / 4)
    assert net.seen[2] is y


def test_a_clean_image_stays_as_it_is():
    teacher, x = tiny_teacher(), torch.rand(2, *SHAPE)
    errors = [(teacher(x, t) - x).abs().max().item() for t in (1e-1, 1e-2, 1e-4)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-3


def test_a_number_serves_all_samples():
    teacher, x = tiny_teacher(), torch.randn(3, *SHAPE)
    torch.testing.assert_close(teacher(x, 0.7), teacher(x, torch.full((3,), 0.7)), rtol=0, atol=0)


def test_facts_are_what_a_student_inherits():
    teacher = tiny_teacher(t_min=0.01, t_max=50, sigma_data=0.3, rho=5)
    assert teacher.facts() == {"shape": SHAPE, "num_classes": 3, "t_min": 0.01, "t_max": 50.0, "sigma_data": 0.3, "rho": 5.0}


@pytest.mark.parametrize("t_min, t_max", [(0, 1), (-1, 1), (2, 1), (1, 1)])
def test_impossible_noise_ranges_are_refused(t_min, t_max):
    with pytest.raises(PidistillError, match="0 < t_min < t_max"):
        FunctionDenoiser(lambda x, t, y: x, (1,), t_min=t_min, t_max=t_max)


@pytest.mark.parametrize("facts", [{"rho": 0}, {"rho": -7}, {"sigma_data": 0}, {"sigma_data": float("nan")},
                                   {"t_max": float("inf")}], ids=str)
def test_facts_that_no_grid_has_are_refused(facts):
    with pytest.raises(PidistillError, match=f"a denoiser's {next(iter(facts))} must be a positive number"):
        FunctionDenoiser(lambda x, t, y: x, (1,), **facts)


class Own:
    """A black box that keeps the protocol without the base class."""

    shape, num_classes, t_min, t_max, sigma_data = (2,), 0, 0.01, 10.0, 0.7

    def __call__(self, x, t, labels=None):
        return x / (1 + t[:, None])


def test_any_callable_that_states_its_facts_is_a_teacher():
    wrapped = as_denoiser(Own())
    assert isinstance(wrapped, Denoiser)
    assert (wrapped.t_max, wrapped.sigma_data, wrapped.shape, wrapped.rho) == (10.0, 0.7, (2,), 7.0)
    torch.testing.assert_close(wrapped(torch.ones(2, 2), 1.0), torch.full((2, 2), 0.5))
    assert as_denoiser(wrapped) is wrapped


def test_what_a_teacher_lacks_is_named():
    with pytest.raises(PidistillError, match="missing: shape, num_classes"):
        as_denoiser(lambda x, t: x)


def test_build_net_and_device():
    net = build_net(MLP, (2,), 0)
    assert find_device(net) == torch.device("cpu") and find_device(Recorder()) == torch.device("cpu")
    with pytest.raises(PidistillError, match=r"choices: .*mlp"):
        build_net({"name": "mpl"}, (2,), 0)


# shapes that would be broadcast by accident -----------------------------------------------------------------------------


class Gives(nn.Module):
    """A network, or a teacher's own function, that gives its input changed."""

    def __init__(self, change):
        super().__init__()
        self.change, self.scale = change, nn.Parameter(torch.ones(()))

    def forward(self, x, t, labels=None):
        return self.change(x * self.scale)


CHANGES = {"one channel": lambda x: x[:, :1], "two of three": lambda x: x[:, :2], "a pixel": lambda x: x[:, :, :1, :1],
           "a row": lambda x: x[:, :, :1], "one sample": lambda x: x[:1], "no batch": lambda x: x[0],
           "three times": lambda x: x.repeat(1, 3, 1, 1), "a number": lambda x: x.mean(),
           "an object": lambda x: {"sample": x}}


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("change", CHANGES)
def test_a_network_of_other_shapes_is_one_line(change, guidance):
    teacher = Preconditioned(Gives(CHANGES[change]), (3, 4, 4), 3, guidance=guidance, null_label=3)
    with pytest.raises(PidistillError, match="as many channels as it takes, or twice"):
        teacher(torch.randn(5, 3, 4, 4), 1.0, torch.zeros(5, dtype=torch.int64))


@pytest.mark.parametrize("change", CHANGES)
def test_a_function_of_other_shapes_is_one_line(change):
    teacher = FunctionDenoiser(Gives(CHANGES[change]), (3, 4, 4))
    with pytest.raises(PidistillError, match=r"must give D as a tensor of the shape of x, \(5, 3, 4, 4\)"):
        teacher(torch.randn(5, 3, 4, 4), 1.0)


def test_twice_the_channels_are_a_network_s_alone():
    """Of D itself there is no variance."""
    twice, x = Gives(lambda x: torch.cat([x, -x], dim=1)), torch.randn(5, 3, 4, 4)
    once = Preconditioned(Gives(lambda x: x), (3, 4, 4))
    torch.testing.assert_close(Preconditioned(twice, (3, 4, 4))(x, 1.0), once(x, 1.0))
    with pytest.raises(PidistillError, match=r"gives \(5, 6, 4, 4\)"):
        FunctionDenoiser(twice, (3, 4, 4))(x, 1.0)


def test_what_is_said_once_is_said_once(capsys):
    teacher = tiny_teacher()
    for _ in range(3):
        teacher.say_once("a message")
    teacher.say_once("another")
    assert capsys.readouterr().err == "a message\nanother\n"


def test_a_function_that_changes_its_input_changes_a_copy():
    """In place, as `x *= c_in` does: samplers and schemes go on to use x."""
    def halve(x, t, labels=None):
        return x.mul_(0.5)

    x = torch.rand(2, 1, 4, 4)
    before = x.clone()
    D = FunctionDenoiser(halve, (1, 4, 4))(x, 1.0)
    assert torch.equal(x, before) and torch.equal(D, before / 2)
