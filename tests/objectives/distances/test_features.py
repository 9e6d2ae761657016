"""LPIPS's form over bundled networks and the user's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pidistill.core.errors import PidistillError
from pidistill.models.student_init import make_student
from pidistill.nets.features.base import load_features
from pidistill.objectives.distances.features import Features
from tests.helpers import pid_of, tiny_teacher


class Net(nn.Module):
    """Two maps and a vector, from images of any size and 2 channels."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1)

    def forward(self, x):
        first = torch.relu(self.a(x))
        second = torch.tanh(self.b(first))
        return first, second, second.mean((2, 3))


def pair(shape=(1, 16, 16)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(4, *shape, generator=generator) * 2 - 1 for _ in range(2))
    return a.requires_grad_(), b


def plain(maps_a, maps_b, normalize: bool) -> torch.Tensor:
    total = 0
    for f, g in zip(maps_a, maps_b):
        if normalize:
            f, g = (m / (m.norm(dim=1, keepdim=True) + 1e-10) for m in (f, g))
        e = (f - g).square().sum(1)
        total = total + (e.mean((1, 2)) if e.ndim == 3 else e)
    return total


@pytest.mark.parametrize("normalize", [True, False])
def test_bundled_network(normalize):
    a, b = pair()
    net = load_features("digits_perceptual")
    d = Features(net="digits_perceptual", normalize=normalize)(a, b)
    torch.testing.assert_close(d, plain(net.layers(a), net.layers(b), normalize))
    assert len(net.layers(a)) == 4 and d.requires_grad


@pytest.fixture
def specs(tmp_path, monkeypatch) -> dict[str, str]:
    """The same network as TorchScript, as an exported program, and as a factory."""
    torch.manual_seed(0)
    net = Net().eval()
    example = torch.zeros(2, 2, 8, 8)
    torch.jit.trace(net, example, check_trace=False).save(str(tmp_path / "net.ts"))
    torch.export.save(torch.export.export(net, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},)),
                      tmp_path / "net.pt2")
    (tmp_path / "mine_features.py").write_text(
        "import torch\nfrom tests.objectives.distances.test_features import Net\n\n"
        "def make():\n    torch.manual_seed(0)\n    return Net().eval()\n")
    monkeypatch.chdir(tmp_path)
    return {"ts": "net.ts", "pt2": "net.pt2", "python": "python:mine_features:make"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["ts", "pt2", "python"])
def test_network_of_the_user(specs, kind):
    a, b = pair((2, 8, 8))
    torch.manual_seed(0)
    net = Net().eval()
    distance = Features(net=specs[kind])
    distance.check((2, 8, 8))
    d = distance(a, b)
    torch.testing.assert_close(d, plain(net(a), net(b), True))
    gradient, = torch.autograd.grad(d.sum(), a)
    expected, = torch.autograd.grad(plain(net(a), net(b), True).sum(), a)
    torch.testing.assert_close(gradient, expected)
    assert not any(p.requires_grad for p in distance.parameters())
    assert load_features(specs[kind]).features(b).shape == (4, 6)
    with pytest.raises(PidistillError, match=r"cannot take images of shape \(3, 8, 8\)") as error:
        distance.check((3, 8, 8))
    assert "\n" not in str(error.value)


def test_a_network_that_does_not_fit_is_refused_when_the_run_is_built():
    teacher = tiny_teacher()  # 8x8
    with pytest.raises(PidistillError, match=r"images of shape \(1, 16, 16\)"):
        pid_of(make_student(teacher), teacher, 5, distance={"name": "features", "net": "digits"})


@pytest.mark.parametrize("net, words", [("digit", "did you mean 'digits'"), ("none.ts", "does not exist"),
                                        ("python:os:nothing", "has no nothing"), ("python:no_such_module_x:f", "No module")])
def test_unknown_networks_are_one_line(net, words):
    with pytest.raises(PidistillError, match=words):
        Features(net=net)


def test_damaged_files_are_one_line(tmp_path):
    for name in ("a.ts", "a.pt2"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 nothing")
        with pytest.raises(PidistillError, match="cannot read") as error:
            Features(net=str(tmp_path / name))
        assert "\n" not in str(error.value)


def test_what_is_no_feature_network_is_refused(tmp_path, monkeypatch):
    (tmp_path / "bad_features.py").write_text("def make():\n    return lambda x: ['a']\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PidistillError, match="must give tensors"):
        Features(net="python:bad_features:make").check((1, 8, 8))
