"""DINOv2 at small sizes. With the same weights, timm's vision transformer gives the same bits at its own grid."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from pidistill.core.errors import PidistillError
from pidistill.nets.features.base import load_features
from pidistill.nets.features.dinov2 import Dinov2, load_dinov2


@pytest.fixture
def net() -> Dinov2:
    torch.manual_seed(0)
    net = Dinov2(width=128, depth=2, grid=4).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return net


def test_number_of_parameters_is_that_of_vit_l_14():
    with torch.device("meta"):
        assert sum(p.numel() for p in Dinov2().parameters()) == 304_368_640


def test_names_are_those_of_the_published_file():
    block = ["norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "attn.proj.bias",
             "ls1.gamma", "norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias",
             "ls2.gamma"]
    names = set(Dinov2(width=64, depth=1, grid=2).state_dict())
    assert names == {"cls_token", "pos_embed", "mask_token", "patch_embed.proj.weight", "patch_embed.proj.bias",
                     "norm.weight", "norm.bias", *(f"blocks.0.{name}" for name in block)}


@torch.no_grad()
def test_a_block_written_out(net):
    """Two heads of 64 channels, by loops over the formula."""
    s = {key.removeprefix("blocks.0."): value.double() for key, value in net.state_dict().items() if "blocks.0." in key}
    x = torch.randn(1, 5, 128, generator=torch.Generator().manual_seed(1)).double()

    def norm(x, name):
        scaled = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()
        return scaled * s[f"{name}.weight"] + s[f"{name}.bias"]

    y = norm(x, "norm1")[0] @ s["attn.qkv.weight"].T + s["attn.qkv.bias"]
    heads = []
    for h in range(2):
        q, k, v = (y[:, part * 128 + h * 64:part * 128 + (h + 1) * 64] for part in range(3))
        heads.append((q @ k.T / 8).softmax(-1) @ v)
    z = x + s["ls1.gamma"] * (torch.cat(heads, -1) @ s["attn.proj.weight"].T + s["attn.proj.bias"])
    hidden = norm(z, "norm2") @ s["mlp.fc1.weight"].T + s["mlp.fc1.bias"]
    hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
    expected = z + s["ls2.gamma"] * (hidden @ s["mlp.fc2.weight"].T + s["mlp.fc2.bias"])
    torch.testing.assert_close(net.double().blocks[0](x), expected, rtol=1e-12, atol=1e-12)


def test_positions_are_stretched_as_the_original_does(net):
    assert torch.equal(net.stretch_positions(4), net.pos_embed)
    maps = net.pos_embed[:, 1:].reshape(1, 4, 4, 128).permute(0, 3, 1, 2)
    for side in (3, 16):
        scale = (side + 0.1) / 4
        expected = F.interpolate(maps, scale_factor=(scale, scale), mode="bicubic", antialias=False)
        expected = torch.cat([net.pos_embed[:, :1], expected.permute(0, 2, 3, 1).reshape(1, side * side, 128)], 1)
        assert torch.equal(net.stretch_positions(side), expected)


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 12), (300, 300)])
def test_preprocessing_is_that_of_edm2(net, size):
    """EDM2's: resize the bytes, then divide by 255 and normalise. The features are the normalised class token."""
    pixels = torch.randint(0, 256, (2, 3, *size), generator=torch.Generator().manual_seed(0))
    x = F.interpolate(pixels.float(), (224, 224), mode="bicubic", antialias=True) / 255
    x = (x - torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)
    seen: list[torch.Tensor] = []
    net.patch_embed["proj"].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    net.norm.register_forward_hook(lambda _, args, out: seen.append(out))
    features = net.features((pixels + 0.4 - 128) / 127.5)  # truncated to the pixels
    torch.testing.assert_close(seen[0], x, rtol=0, atol=1e-4)
    assert torch.equal(features, seen[1][:, 0]) and torch.equal(net.layers(pixels / 127.5 - 1)[0], features)


@torch.no_grad()
def test_features_of_any_image(net):
    images = torch.rand(3, 1, 8, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    features = net.features(images)
    assert features.shape == (3, 128) and bool(features.isfinite().all())
    torch.testing.assert_close(net.features(images.expand(-1, 3, -1, -1)), features)
    torch.testing.assert_close(net.features(images[1:2]), features[1:2], rtol=1e-4, atol=1e-5)


def test_loading(net, tmp_path):
    path = tmp_path / "vit.pth"
    torch.save(net.state_dict(), path)
    loaded = load_features(f"dinov2:{path}")
    assert loaded.distance == "fd_dinov2" and loaded.grid == 4 and len(loaded.blocks) == 2
    assert not load_dinov2(path).training
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), net.state_dict().values()))


def test_a_checkpoint_of_several(net, tmp_path):
    """Of training: a student beside its average. One of another size is a question for the user."""
    path, state = tmp_path / "vit.pth", net.state_dict()
    zeros = {f"module.{name}": 0 * value for name, value in state.items()}
    average = {f"module.{name}": value for name, value in state.items()}
    torch.save({"model": zeros, "ema": average, "opt": {"x": zeros}}, path)
    assert all(torch.equal(a, b) for a, b in zip(load_dinov2(path).state_dict().values(), state.values()))
    assert not any(value.any() for value in load_features(f"dinov2:{path},entry=model").state_dict().values())
    torch.save({"a": state, "b": Dinov2(width=64, depth=1, grid=2).state_dict()}, path)
    with pytest.raises(PidistillError, match="holds networks of several sizes; name one with ,entry=NAME"):
        load_dinov2(path)
    assert load_dinov2(path, "b").grid == 2


@pytest.mark.parametrize("change, words", [
    (lambda s: s.pop("norm.bias"), "weights 1 missing, first norm.bias"), (lambda s: s.pop("cls_token"), "no DINOv2"),
    (lambda s: s.update(extra=torch.zeros(2)), "1 unknown"),
    (lambda s: s.update({"blocks.0.mlp.w12.weight": torch.zeros(2)}), "ViT-g"),
    (lambda s: s.update(pos_embed=torch.zeros(1, 18, 128)), "17 positions"),
    (lambda s: s.update(pos_embed=torch.zeros(1, 0, 128)), "-1 positions"),
    (lambda s: [s.pop(name) for name in list(s) if name.startswith("blocks.")], "0 blocks")])
def test_other_files_are_one_line(net, tmp_path, change, words):
    state = net.state_dict()
    change(state)
    torch.save(state, tmp_path / "vit.pth")
    with pytest.raises(PidistillError, match=words) as error:
        load_dinov2(tmp_path / "vit.pth")
    assert "\n" not in str(error.value)


def test_offline_the_error_says_which_file_goes_where(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("pidistill.files.downloads.download", offline)
    with pytest.raises(PidistillError, match=r"dinov2_vitl14_pretrain\.pth to .*dinov2:FILE"):
        load_features("dinov2")
