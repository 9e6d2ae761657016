"""Which files the weights of a model of diffusers are read from, when there are several, or only a variant."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.models.teachers._diffusers_weights import STEM, choose_weight_files, lacks_weights, parse_variant
from pidistill.models.teachers.base import load_teacher
from tests.models.teachers.test_diffusers import SIZE, close, ddim, dit, save, unet, vae

pytest.importorskip("diffusers")


@pytest.mark.parametrize("name, variant", [
    (f"{STEM}.safetensors", ""), (f"{STEM}.bin", ""), (f"{STEM}.fp16.safetensors", "fp16"),
    (f"{STEM}.non_ema.bin", "non_ema"), (f"{STEM}-00001-of-00002.safetensors", ""),
    (f"{STEM}.fp16-00001-of-00002.safetensors", "fp16"),
    (f"{STEM}-00001-of-00002.bf16.bin", "bf16")])
def test_names_of_files(tmp_path, name, variant):
    assert parse_variant(tmp_path / name) == variant


def only(folder, variant, network, safe=True, shard=None) -> None:
    """Write the network's weights as this variant alone."""
    for path in folder.glob(f"{STEM}*"):
        path.unlink()
    network.save_pretrained(folder, variant=variant, safe_serialization=safe, **({"max_shard_size": shard} if shard else {}))


@pytest.mark.parametrize("variant", ["fp16", "bf16", "ema", "non_ema"])
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
@torch.no_grad()
def test_a_variant_alone_is_read_and_named(tmp_path, capsys, variant, safe):
    """Hugging Face's advice to save disk; the library's own message asks for a file that is not there."""
    spec, network = save(tmp_path / "p", ddim()), unet()
    network = network.half() if variant == "fp16" else network
    only(tmp_path / "p" / "unet", variant, network, safe)
    teacher, name = load_teacher(spec), f"{STEM}.{variant}.{'safetensors' if safe else 'bin'}"
    assert f"its weights are there only as {name}: those are read" in capsys.readouterr().err
    assert {p.dtype for p in teacher.parameters()} == {torch.float32} and [*teacher.origin["sha256"]] == [name]
    x, t = torch.randn(2, 1, SIZE, SIZE), torch.full((2,), 300.0)
    close(teacher.model(x, t), network.float()(x, t).sample, 1e-6)


@torch.no_grad()
def test_a_variant_in_parts_is_read(tmp_path, capsys):
    spec, network = save(tmp_path / "p", ddim()), unet()
    only(tmp_path / "p" / "unet", "fp16", network, shard="30KB")
    parts = sorted(path.name for path in (tmp_path / "p" / "unet").glob("*.safetensors"))
    assert len(parts) > 1 and [*load_teacher(spec).origin["sha256"]] == parts
    x, t = torch.randn(2, 1, SIZE, SIZE), torch.full((2,), 300.0)
    close(load_teacher(spec).model(x, t), network(x, t).sample, 1e-6)
    index, = (tmp_path / "p" / "unet").glob("*.index*.json")
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "../other"}}))
    with pytest.raises(PidistillError, match="names of files in the same folder"):
        load_teacher(spec)


def test_every_component_chooses_for_itself(tmp_path, capsys):
    spec = save(tmp_path / "p", ddim(), dit(), vae(), "DiTPipeline")
    only(tmp_path / "p" / "vae", "fp16", vae().half())
    assert load_teacher(spec).decoder is not None
    said = capsys.readouterr().err
    assert f"AutoencoderKL of {tmp_path / 'p'}: its weights are there only as" in said and "DiTTransformer" not in said


def test_files_without_a_variant_come_first_and_alone(tmp_path, capsys):
    """As in diffusers; and their names are those that the origin has."""
    folder = tmp_path / "m"
    unet().save_pretrained(folder)
    for name in (f"{STEM}.fp16.safetensors", f"{STEM}.non_ema.safetensors"):
        shutil.copy(folder / f"{STEM}.safetensors", folder / name)
    torch.save({}, folder / f"{STEM}.bin")
    found = choose_weight_files(folder, "a network")
    assert [path.name for path in found.files] == [f"{STEM}.safetensors"] and (found.variant, found.safe) == (None, True)
    (folder / f"{STEM}.safetensors").unlink()
    found = choose_weight_files(folder, "a network")
    assert [path.name for path in found.files] == [f"{STEM}.bin"] and not capsys.readouterr().err
    (folder / f"{STEM}.bin").unlink()
    assert choose_weight_files(folder, "a network").variant == "fp16"  # an average is named fp16, a raw one non_ema


def test_what_is_there_instead_is_named(tmp_path):
    folder = tmp_path / "m"
    unet().save_pretrained(folder)
    weights = folder / f"{STEM}.safetensors"
    for name in ("one", "two"):
        shutil.copy(weights, folder / f"{STEM}.{name}.safetensors")
    weights.unlink()
    with pytest.raises(PidistillError, match="has weights only as one, two; rename those that you want"):
        choose_weight_files(folder, "a network")
    for path in folder.glob("*.safetensors"):
        path.unlink()
    (folder / "diffusion_flax_model.msgpack").write_bytes(b"")
    with pytest.raises(PidistillError, match=r"cannot read a network: .* has no .*, only diffusion_flax_model\.msgpack"):
        choose_weight_files(folder, "a network")


def test_a_repository_with_variants_alone_is_downloaded_again_with_them(tmp_path, monkeypatch):
    import huggingface_hub

    spec = save(tmp_path / "p", ddim())
    whole, empty, asked = spec.removeprefix("diffusers:"), tmp_path / "empty", []
    shutil.copytree(whole, empty)
    (empty / "unet" / f"{STEM}.safetensors").unlink()
    only(tmp_path / "p" / "unet", "fp16", unet())

    def download(name, ignore_patterns=(), local_files_only=False, **_):
        if local_files_only:
            raise OSError("not in the cache")
        asked.append("*.fp16.*" in ignore_patterns)
        return str(empty) if asked[-1] else whole

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_teacher("diffusers:someone/something").origin["sha256"].keys() == {f"{STEM}.fp16.safetensors"}
    assert asked == [True, False] and lacks_weights(empty) and not lacks_weights(tmp_path / "p")
