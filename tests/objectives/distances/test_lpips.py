"""LPIPS against the packages lpips and piq, with random VGG16 weights, so that nothing is downloaded."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch.nn import functional as F

from pidistill.core.errors import PidistillError
from pidistill.core.registry import build
from pidistill.models.student_init import make_student
from pidistill.objectives.distances import lpips as ours
from pidistill.objectives.distances.lpips import LPIPS, find_heads
from tests.helpers import SHAPE, grid_of, pid_of, shake, start, tiny_teacher, vgg_weights
from tests.rounding import float32_bound

warnings_of_torchvision = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def weights() -> Path:
    return vgg_weights()


@pytest.fixture(scope="module")
def state(weights) -> dict[str, torch.Tensor]:
    return torch.load(weights, weights_only=True)


def bare_vgg16() -> torch.nn.Sequential:
    """torchvision's VGG16 without the classifier, whose 124 million parameters take seconds to make."""
    return torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"], batch_norm=False)


def pair(batch: int = 3, channels: int = 3, size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    a, b = (torch.rand(batch, channels, size, size, generator=generator) * 2 - 1 for _ in range(2))
    return (0.7 * a + 0.3 * b).requires_grad_(), a


def value_and_gradient(distance, prediction, target) -> tuple[torch.Tensor, torch.Tensor]:
    d = distance(prediction, target)
    gradient, = torch.autograd.grad(d.sum(), prediction)
    return d.detach().flatten(), gradient


def close(ours, theirs, rtol=1e-5):
    for a, b in zip(ours, theirs):
        assert (a - b).norm() <= rtol * b.norm() and b.norm() > 0, ((a - b).norm() / b.norm()).item()


@warnings_of_torchvision
def test_max_pooling_is_the_package_lpips(weights, state, monkeypatch):
    """The published LPIPS: VGG16 as it was trained. In float64, since rounding decides which of two equal pixels wins."""
    import lpips

    monkeypatch.setattr(torchvision.models, "vgg16", lambda *args, **kwargs: SimpleNamespace(features=bare_vgg16()))
    theirs = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
    plain = {name.removeprefix("features."): value for name, value in state.items() if name.startswith("features.")}
    for module in (theirs.net.slice1, theirs.net.slice2, theirs.net.slice3, theirs.net.slice4, theirs.net.slice5):
        module.load_state_dict({name: plain[name] for name in module.state_dict()})
    a, b = (x.detach().double() for x in pair())
    a.requires_grad_()
    ours = LPIPS(pool="max", size=None, weights=str(weights)).double()
    close(value_and_gradient(ours, a, b), value_and_gradient(theirs.double(), a, b))


@warnings_of_torchvision
def test_average_pooling_is_piq_with_replaced_pooling(weights, state, monkeypatch, plain_kernels):
    """What the reference implementation of PID uses, on images in [0, 1]."""
    import piq

    heads = torch.load(find_heads(), map_location="cpu", weights_only=True)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *args, **kwargs: list(heads.values()))
    monkeypatch.setattr(torchvision.models, "vgg16", lambda *args, **kwargs: SimpleNamespace(features=bare_vgg16()))
    monkeypatch.setattr(piq.perceptual, "vgg16", torchvision.models.vgg16, raising=False)
    theirs = piq.LPIPS(replace_pooling=True, reduction="none")
    convs = [name for name in state if name.startswith("features.")]
    theirs.model.load_state_dict({name.removeprefix("features."): state[name] for name in convs}, strict=False)
    a, b = pair()
    close(value_and_gradient(LPIPS(size=None, weights=str(weights)), a, b),
          value_and_gradient(lambda x, y: theirs((x + 1) / 2, (y + 1) / 2), a, b))


@pytest.fixture(scope="module")
def make(weights):
    return lambda **options: build("distances", "lpips", weights=str(weights), **{"size": 32, **options})


def test_size_is_a_bilinear_resize(make):
    a, b = pair(size=24)
    resized = [F.interpolate(x, (32, 32), mode="bilinear", align_corners=False) for x in (a, b)]
    torch.testing.assert_close(make(size=32)(a, b), make(size=None)(*resized))
    assert make().size == 32 and LPIPS.__init__.__kwdefaults__["size"] == 224


def test_grey_images_are_three_equal_channels(make):
    a, b = pair(channels=1)
    distance = make()
    torch.testing.assert_close(distance(a, b), distance(a.repeat(1, 3, 1, 1), b.repeat(1, 3, 1, 1)))


def test_pooling_and_precision_change_the_value_and_channels_last_does_not(make):
    a, b = pair()
    plain = make()(a, b)
    assert ((make(pool="max")(a, b) - plain).abs() > 0.01 * plain).all()
    half = make(precision="bf16")(a, b)
    assert half.dtype == torch.float32 and (half - plain).abs().max() > 0
    torch.testing.assert_close(half, plain, rtol=0.05, atol=0)
    last = make(channels_last=True)
    torch.testing.assert_close(last(a, b), plain, rtol=1e-5, atol=1e-6)
    weight = last.convs["5"].weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    assert last.compute_maps(a)[0].is_contiguous(memory_format=torch.channels_last)


def test_nothing_is_trained_and_training_mode_changes_nothing(make):
    distance = make().train()
    assert not distance.training and not any(p.requires_grad for p in distance.parameters())
    assert sum(p.numel() for p in distance.parameters()) == 14_714_688  # VGG16 without its classifier


@pytest.mark.parametrize("shape, words", [((2,), "images"), ((4, 32, 32), "grey or RGB")])
def test_samples_that_are_no_images_are_refused(make, shape, words):
    with pytest.raises(PidistillError, match=words):
        make().check(shape)
    make().check((1, 8, 8))  # resized
    with pytest.raises(PidistillError, match="at least 16"):
        make(size=None).check((1, 8, 8))


def test_size_below_what_vgg_halves_is_refused(make):
    with pytest.raises(PidistillError, match="size must be at least 16"):
        make(size=8)


def algorithm_1(student, teacher, z, i, y, grid, state, heads):
    """The paper's lines 5 to 7 and LPIPS as it is described, with one pass a time and states subtracted: (B,)."""
    def vgg(x):
        mean, std = (torch.tensor(v, dtype=x.dtype).reshape(3, 1, 1) for v in (ours.IMAGENET_MEAN, ours.IMAGENET_STD))
        x, maps = (F.interpolate(x.repeat(1, 3, 1, 1), (32, 32), mode="bilinear") / 2 + 0.5 - mean) / std, []
        for stage in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)):
            x = F.avg_pool2d(x, 2) if maps else x
            for place in stage:
                x = F.relu(F.conv2d(x, state[f"features.{place}.weight"].to(x.dtype),
                                    state[f"features.{place}.bias"].to(x.dtype), padding=1))
            maps.append(x / x.norm(dim=1, keepdim=True))
        return maps

    wide = lambda v: v[:, None, None, None]
    t, u = grid.t[i], grid.t[torch.where(i < len(grid.t) - 1, i + 1, i - 1)]
    x, x_u = student(z, t, y), student(z, u, y)
    with torch.no_grad():
        target = vgg(teacher(x, t, y))
    prediction = vgg(x - wide(t) * (x - x_u) / wide(t - u))
    return sum((head.to(x.dtype) * (a - b).square()).sum(1).mean((1, 2)) for head, a, b in zip(heads, prediction, target))


def test_loss_and_gradient_are_those_of_algorithm_1(weights, state):
    """Ours in float64 against the plain form, and in float32 as near to it as the order of its sums allows."""
    teacher = tiny_teacher()
    student = shake(make_student(teacher), seed=3, scale=0.03)
    batch = {"z": start(SHAPE, 5, dtype=torch.float32), "i": torch.tensor([0, 40, 120, 248, 249]),
             "labels": torch.tensor([0, 1, 2, 0, 1])}
    heads = [head.reshape(1, -1, 1, 1) for head in torch.load(find_heads(), map_location="cpu", weights_only=True).values()]

    def both(student, loss):
        student.zero_grad()
        values = loss()
        values.mean().backward()
        return values.detach().double(), torch.cat([p.grad.flatten() for p in student.parameters()]).double()

    distance = {"name": "lpips", "weights": str(weights), "size": 32}
    float32 = both(student, lambda: pid_of(student, teacher, 250, distance=distance).loss(batch))
    student, teacher = student.double(), teacher.double()
    z, i, y = batch["z"].double(), batch["i"], batch["labels"]
    plain = both(student, lambda: algorithm_1(student, teacher, z, i, y, grid_of(teacher, 250), state, heads))
    exact = pid_of(student, teacher, 250, distance=distance)
    exact.calls["distance"].double()
    ours = lambda: both(student, lambda: exact.loss(batch | {"z": z}))
    error = lambda a, b: max(((x - y).norm() / y.norm()).item() for x, y in zip(a, b, strict=True))
    assert error(ours(), plain) < 1e-6 and error(float32, plain) < float32_bound(ours, error) < 1e-2


# weight files --------------------------------------------------------------------------------------------------------


def test_safetensors_and_bare_names_are_read_too(make, state, tmp_path):
    a, b = pair()
    save_file({name.removeprefix("features."): value for name, value in state.items()}, tmp_path / "vgg.safetensors")
    torch.testing.assert_close(LPIPS(weights=str(tmp_path / "vgg.safetensors"), size=32)(a, b), make()(a, b), rtol=0, atol=0)


def test_weights_in_a_checkpoint(make, state, tmp_path, capsys):
    a, b = pair()
    zeros = {name: 0 * value for name, value in state.items()}
    torch.save({"model": zeros, "ema": state}, tmp_path / "vgg.pth")
    torch.testing.assert_close(LPIPS(weights=str(tmp_path / "vgg.pth"), size=32)(a, b), make()(a, b), rtol=0, atol=0)
    said = capsys.readouterr().err
    assert "vgg.pth: weights are taken from ema.features, an average; model.features would fit too" in said
    other = LPIPS(weights=f"{tmp_path / 'vgg.pth'},entry=model", size=32)
    assert not any(value.any() for value in other.convs.state_dict().values())


class Bomb:
    def __reduce__(self):
        import os
        return os.system, ("touch exploded",)


def test_bad_files_are_one_line_and_run_nothing(state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({k: v for k, v in state.items() if not k.startswith("features.28")}, "missing.pth")
    torch.save({**state, "features.28.bias": torch.zeros(3)}, "shape.pth")
    torch.save(state, "vgg16-00000000.pth")
    whole = Path("missing.pth").read_bytes()
    Path("short.pth").write_bytes(whole[:len(whole) // 2])
    Path("bomb.pth").write_bytes(pickle.dumps({"features.0.weight": Bomb()}))
    for name, words in (("missing.pth", "28.bias"), ("shape.pth", "28.bias"), ("vgg16-00000000.pth", "SHA-256"),
                        ("short.pth", "cannot read"), ("bomb.pth", "cannot read"), ("none.pth", "does not exist")):
        with pytest.raises(PidistillError, match=words) as error:
            LPIPS(weights=name)
        assert "\n" not in str(error.value)
    assert not Path("exploded").exists()


def test_offline_the_error_says_which_file_goes_where(tmp_path, monkeypatch):
    from urllib.error import URLError

    def offline(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("pidistill.files.downloads.download", offline)
    with pytest.raises(PidistillError) as error:
        LPIPS()
    text = str(error.value)
    assert ours.VGG16 in text and str(tmp_path / "hub/checkpoints/vgg16-397923af.pth") in text
    assert "objective.distance.weights" in text and "\n" not in text


def test_cached_file_is_used_and_its_hash_checked(state, weights, tmp_path, monkeypatch):
    import hashlib

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    content = weights.read_bytes()
    name = f"vgg16-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    monkeypatch.setattr(ours, "VGG16", f"https://example.invalid/{name}")
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content)
    torch.testing.assert_close(LPIPS(size=32).convs["0"].weight, state["features.0.weight"])
    (folder / name).write_bytes(content[:1000] + b"x" + content[1001:])
    with pytest.raises(PidistillError, match="delete it"):
        LPIPS()


def test_download_is_checked_and_leaves_no_half_file(weights, tmp_path, monkeypatch, server):
    """The real download code."""
    import hashlib

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    content = server.content = weights.read_bytes()
    good = f"vgg16-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    monkeypatch.setattr(ours, "VGG16", f"{server.url}/{good}")
    assert LPIPS(size=32)(*pair()).shape == (3,)
    monkeypatch.setattr(ours, "VGG16", f"{server.url}/vgg16-0123abcd.pth")
    with pytest.raises(PidistillError, match="cannot download"):
        LPIPS()
    left = {path.name for path in (tmp_path / "home/hub/checkpoints").iterdir() if not path.name.endswith(".lock")}
    assert left == {good}


def test_it_costs_nothing_where_it_is_not_chosen():
    """No VGG16 and no package lpips in a run with another distance."""
    code = ("import sys; from pidistill.jobs.build_objective import build_objective; "
            "from pidistill.models.teachers.base import load_teacher; "
            "from pidistill.training.config_file import DistillConfig, load_config; "
            "build_objective(load_config(DistillConfig, 'digits'), load_teacher('bundled:digits')); "
            "print(sorted({'lpips', 'torchvision', 'pidistill.objectives.distances.lpips'} & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
