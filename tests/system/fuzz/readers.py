"""Every reader of files from outside: what valid files look like, how they are read, and what a sound result is."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn

from pidistill.core.seeds import pair_labels
from pidistill.evaluation.references import read_npz, read_pickle
from pidistill.files.datasets import open_images
from pidistill.files.edm_pickle import read_edm_pickle
from pidistill.files.manifest import serialise_manifest
from pidistill.files.onnx_file import check_onnx
from pidistill.files.pairs import FORMAT, VERSION, PairSettings, open_pairs
from pidistill.files.reading import read_json, sha256
from pidistill.files.safetensors_header import read_header
from pidistill.files.selection import choose_weights
from pidistill.files.weights import read_contents, read_state_dict, read_tensors
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import dump_yaml, load_config, read_yaml
from pidistill.training.log import read_metrics
from tests.edm_pickles import Persistent, dumps

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (3, 6, 8, 3), dtype=np.uint8)
WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.float16), "n": torch.tensor(1.5)}
LINEAR = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}
STATISTICS = {"mu": np.arange(3.0), "sigma": np.eye(3)}
SIDES = {"images": (3, 6, 8), "arr_0": (3, 6, 8)}


@dataclass
class Reader:
    """name: of the file that it is given. valid: contents that it reads. sound: whether a result may stand for one."""

    name: str
    read: Callable[[Path], Any]
    valid: list[bytes]
    sound: Callable[[Any], bool]


def encoded(form: str, image: np.ndarray = PIXELS[0], **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, form, **options)
    return stream.getvalue()


def saved(value: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def npz(compressed: bool = False, **arrays: Any) -> bytes:
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, **arrays)
    return stream.getvalue()


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


def network() -> Persistent:
    outer, inner = Persistent("EDMPrecond", img_resolution=8, sigma_data=0.5), Persistent("SongUNet", {"model_channels": 8})
    inner._parameters["weight"] = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    outer.add_module("model", inner)
    return outer


def onnx_model(external: str | None = None) -> bytes:
    """D = x + w with one weight of two numbers, here or in another file; in protocol buffers by hand."""

    def field(number: int, value: bytes | str | int) -> bytes:
        if isinstance(value, int):
            return bytes([number << 3, value])
        value = value.encode() if isinstance(value, str) else value
        assert number < 16 and len(value) < 2**14
        return bytes([number << 3 | 2, len(value) & 127 | 128, len(value) >> 7]) + value

    def declared(name: str, *shape: int) -> bytes:
        dims = b"".join(field(1, field(1, n)) for n in shape)
        return field(1, name) + field(2, field(1, field(1, 1) + field(2, dims)))

    place = field(13, field(1, "location") + field(2, external)) + field(14, 1) if external else b""
    weight = field(1, 2) + field(2, 1) + field(8, "w") + (place or field(9, np.float32([1, 2]).tobytes()))
    graph = (field(1, field(1, "x") + field(1, "w") + field(2, "D") + field(4, "Add")) + field(2, "g") + field(5, weight)
             + field(11, declared("x", 1, 2)) + field(11, declared("t", 1)) + field(12, declared("D", 1, 2)))
    return field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 17))


def tensors(state: dict[str, Tensor]) -> bool:
    return all(isinstance(value, Tensor) and value.nbytes < 10**4 for value in state.values())


def picture(form: str) -> Reader:
    """A folder of one image."""
    def read(path: Path) -> Any:
        return next(open_images(path.parent).read_batches(1))

    return Reader(f"one/a.{form}", read, [encoded(form), encoded(form, PIXELS[0, :, :, 0].copy())],
                  lambda x: x.dtype == torch.uint8 and x.shape[1] in (1, 3) and x.nbytes < 10**7)


def images(path: Path) -> Tensor:
    return torch.cat(list(open_images(path).read_batches(2)))


def own(found: Tensor) -> bool:
    """Every image of an archive, which has checksums, is one of ours; an NPZ's may be read with other axes."""
    ours = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
    return found.dtype == torch.uint8 and (found.shape[1:] != ours.shape[1:] or all(
        any(torch.equal(x, y) for y in ours) for x in found))


PAIRS = PairSettings("a", None, 1.0, "heun:2", 0, 3, (2, 1, 1), 2, 80.0, (1.0, 0.0))
SHARD = save({"x": torch.ones(3, 2, 1, 1), "labels": pair_labels(0, range(3), 2), "states": torch.ones(3, 2, 2, 1, 1)})


def pair(path: Path) -> Any:
    """The last of three pairs, of which the file at `path` may be damaged; a shard is signed as it is."""
    with TemporaryDirectory() as name:
        folder, shard = Path(name), Path(name) / "00000.safetensors"
        for other, data in (("00000.safetensors", SHARD), ("pairs.json", record_of_pairs())):
            if path.name == other:
                (folder / other).symlink_to(path.absolute())  # it may be a pipe
            else:
                (folder / other).write_bytes(data)
        record = {"settings": PAIRS.digest(), "shard_sha256": sha256(shard) if shard.is_file() else ""}
        shard.with_suffix(".json").write_text(serialise_manifest(record))
        return open_pairs(folder).sample(2)


def record_of_pairs() -> bytes:
    return serialise_manifest({"format": FORMAT, "version": VERSION, "settings": asdict(PAIRS)}).encode()


PNGS = {f"{k}.png": encoded("png", image) for k, image in enumerate(PIXELS)}
LABELS = json.dumps({"labels": [[name, k] for k, name in enumerate(PNGS)]}).encode()
NETWORK = network()
READERS = {
    "safetensors header": Reader("a.safetensors", read_header, [save(WEIGHTS), save(WEIGHTS, {"format": "pt"})],
                                 lambda header: isinstance(header, dict)),
    "safetensors": Reader("a.safetensors", read_tensors, [save(WEIGHTS), save({"x": torch.ones(2)})], tensors),
    "state dictionary": Reader("a.pt", read_state_dict, [
        saved(WEIGHTS), saved({"ema": WEIGHTS}), saved(WEIGHTS, _use_new_zipfile_serialization=False)], tensors),
    "checkpoint": Reader("a.pt", lambda path: choose_weights(nn.Linear(3, 2), read_contents(path), path, "it").tensors, [
        saved({"model": LINEAR, "ema": {"shadow_params": [*LINEAR.values()], "decay": 0.9}, "args": Namespace(lr=0.1)}),
        saved({f"module.{name}": value for name, value in LINEAR.items()})], lambda state: {
            name: value.shape for name, value in state.items()} == {"weight": (2, 3), "bias": (2,)}),
    "edm pickle": Reader("a.pkl", lambda path: read_edm_pickle(path).tensors, [
        dumps({"ema": NETWORK}), dumps(NETWORK)], tensors),
    "reference pickle": Reader("a.pkl", lambda path: read_pickle(path, "inception"), [
        pickle.dumps({"fid": STATISTICS}, protocol) for protocol in (3, 4)], lambda found: found.mean.isfinite().all()),
    "reference": Reader("a.npz", read_npz, [
        npz(**STATISTICS), npz(True, **STATISTICS, features=np.ones((2, 3)), num=5, network=np.array("ab"))],
        lambda found: found.mean.isfinite().all()),
    "data": Reader("a.npz", lambda path: open_images(path).sample(0), [
        npz(images=PIXELS, labels=np.arange(3)), npz(True, images=PIXELS[..., 0])],
        lambda sample: sample["y"].dtype == np.float32 and sample.get("labels", 0) >= 0),
    "images npz": Reader("a.npz", images, [npz(images=PIXELS), npz(True, arr_0=PIXELS, arr_1=np.arange(3))], own),
    "images zip": Reader("a.zip", images, [zipped(PNGS | {"dataset.json": LABELS}), zipped(PNGS, zipfile.ZIP_STORED)], own),
    "labels": Reader("one/dataset.json", lambda path: open_images(path.parent).labels, [
        json.dumps({"labels": [["a.png", 3]]}).encode(), b'{"labels": null}'], lambda y: y is None or y.tolist()[0] >= 0),
    **{form: picture(form) for form in ("png", "jpeg", "webp", "bmp")},
    "yaml": Reader("a.yaml", read_yaml, [
        dump_yaml(load_config(DistillConfig, "digits")).encode(), b"a: {b: [1, 2.5, null], c: 1e-3}\nd: 'x'\ne: |\n  y\n"],
        lambda values: isinstance(values, dict)),
    "configuration": Reader("a.yaml", lambda path: load_config(DistillConfig, path), [
        dump_yaml(load_config(DistillConfig, name)).encode() for name in ("digits", "default")],
        lambda config: isinstance(config, DistillConfig)),
    "json": Reader("a.json", read_json, [b'{"a": [1, {"b": null}], "c": "x", "d": 1.5e3}', b"{}"],
                   lambda record: isinstance(record, dict)),
    "metrics": Reader("metrics.jsonl", lambda path: read_metrics(path.parent), [b'{"step": 1}\n{"step": 2}\n'],
                      lambda records: all(isinstance(record, dict) for record in records)),
    **{f"pairs: {name}": Reader(f"one/{name}", pair, [data], lambda found: found["y"].shape == (2, 1, 1)
                                and found["states"].shape == (2, 2, 1, 1))
       for name, data in (("pairs.json", record_of_pairs()), ("00000.safetensors", SHARD))},
    "onnx structure": Reader("a.onnx", check_onnx, [onnx_model(), onnx_model("a.onnx")], lambda nothing: nothing is None),
}
