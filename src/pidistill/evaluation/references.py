"""References: what the data looks like to a feature network. Read from statistics, or made from images."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pidistill.core.console import console, track
from pidistill.core.errors import PidistillError, first_line
from pidistill.core.seeds import stream
from pidistill.core.tensors import dequantise, device_of, quantise
from pidistill.evaluation.metrics.base import Batch, Reference
from pidistill.evaluation.metrics.frechet import Frechet
from pidistill.files.archives import open_archive, read_arrays
from pidistill.files.datasets import load_images, open_images
from pidistill.files.downloads import published
from pidistill.files.folders import ASSETS, cache_folder
from pidistill.files.pickle_machine import Bad, Bounded, Machine, Record
from pidistill.files.reading import open_file
from pidistill.files.weights import read_tensors
from pidistill.nets.features.base import check_shape

FID_REFERENCES = "https://nvlabs-fi-cdn.nvidia.com/edm/fid-refs/"  # EDM's: NPZ with `mu` and `sigma`
STORED_FEATURES = 10_000  # features that KID and precision and recall compare with
REFERENCE_CACHE: dict[tuple[str, str, str | None], Reference] = {}  # of images, by this program: a run measures more than once
PICKLE_KEYS = {"fid": "inception", "fd_dinov2": "dinov2"}  # EDM2's files hold both


def load_reference(name: str | None, features: str, net: Any, fingerprint: str | None = None) -> Reference:
    """The reference called `name`, in the features of a network.

    name: a file NAME.npz of statistics (`mu`, `sigma`: ours, EDM's, ADM's, clean-fid's), EDM2's .pkl (not unpickled), the
    name of one that EDM published, such as `cifar10-32x32`, which is fetched; or images: a folder, a .zip, an .npz. None:
    what is bundled with the features. fingerprint: of the network; a reference that another network made is refused.
    Raises PidistillError in one line.
    """
    if name is None:
        return read_bundled_reference(features)
    path = Path(name)
    if path.suffix == ".pkl":
        found = read_pickle(path, features)
    elif path.is_dir() or path.suffix == ".zip" or (path.suffix == ".npz" and path.is_file() and not has_statistics(path)):
        key = (str(path.resolve()), features, fingerprint)
        if key not in REFERENCE_CACHE:
            console.print(f"making statistics of {name}; `pidistill reference {name} --out ref.npz` keeps them",
                          soft_wrap=True)
            REFERENCE_CACHE[key] = make_reference(name, net, features, fingerprint)
        return REFERENCE_CACHE[key]
    elif path.suffix == ".npz":
        found = read_npz(path)
    elif not re.fullmatch(r"[\w-]+", name, re.ASCII):
        raise PidistillError(f"{name} does not exist" if not path.exists() else
                             f"{name} is no reference: a folder or .zip of images, an .npz, or EDM2's .pkl was expected")
    else:
        found = read_npz(published(f"{FID_REFERENCES}{name}.npz", f"the reference {name}", "evaluate.reference=FILE.npz",
                                   cache_folder() / "fid-refs"))
    if found.network and fingerprint and found.network != fingerprint:
        raise PidistillError(f"{name} was made with another feature network ({found.network[:12]}, this one is "
                             f"{fingerprint[:12]}); distances between the two mean nothing")
    return found


def read_bundled_reference(features: str) -> Reference:
    path = ASSETS / features / "features" / "reference.safetensors"
    if not path.exists():
        raise PidistillError(f"there are no reference statistics for {features!r}; name them with evaluate.reference, such "
                             "as cifar10-32x32 or FILE.npz")
    tensors = read_tensors(path)
    return Reference(tensors["mean"], tensors["covariance"], tensors.get("features"), source=f"bundled:{features}")


def has_statistics(path: Path) -> bool:
    try:
        return bool({"mu.npy", "sigma.npy"} & open_archive(path)[1].keys())
    except PidistillError:
        return True  # and read_npz says what is wrong


def read_npz(path: Path) -> Reference:
    """Mean and covariance, and what `write_reference` adds to them, from an NPZ file, in which no pickle is read."""
    if not path.exists():
        raise PidistillError(f"{path} does not exist")
    try:
        found = read_arrays(path, ("mu", "sigma", "features", "network", "num"))
        mean, covariance = (torch.from_numpy(np.asarray(found[key], dtype=np.float64)) for key in ("mu", "sigma"))
        features = torch.from_numpy(np.asarray(found["features"], dtype=np.float32)) if "features" in found else None
        network = str(found["network"])[:64] if "network" in found else None
        num = int(found["num"]) if "num" in found else None
    except PidistillError as error:
        raise PidistillError(f"cannot read mu and sigma from {error}") from None
    except Exception as error:  # arrays of another kind
        raise PidistillError(f"cannot read {path} as an NPZ file with mu and sigma ({first_line(error)})") from None
    check_statistics(path, mean, covariance)
    if features is not None and (features.ndim != 2 or features.shape[1] != len(mean) or not features.isfinite().all()):
        raise PidistillError(f"{path}: its features must be finite, of shape (N, {len(mean)}), got {tuple(features.shape)}")
    return Reference(mean, covariance, features, network or None, num, str(path))


def check_statistics(path: Path, mean: Tensor, covariance: Tensor) -> None:
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or not (mean.isfinite().all()
                                                                             and covariance.isfinite().all()):
        raise PidistillError(f"{path}: mu and sigma must be finite, (d,) and (d, d), got {tuple(mean.shape)} and "
                             f"{tuple(covariance.shape)}")


def read_pickle(path: Path, features: str) -> Reference:
    """EDM2's {"fid": {"mu", "sigma"}, "fd_dinov2": {...}}, by the stack machine that imports and calls nothing."""
    kinds = [key for key, kind in PICKLE_KEYS.items() if features.partition(":")[0] == kind]
    if not kinds:
        raise PidistillError(f"{path}: EDM2's references are of inception or dinov2, not of {features!r}")
    try:
        with open_file(path) as file:
            root = Machine(Bounded(file, path.stat().st_size)).run()
        part = root.get(kinds[0]) if isinstance(root, dict) else None
        if not isinstance(part, dict):
            raise Bad(f"it holds no statistics under `{kinds[0]}`")
        mean, covariance = (rebuild_array(part.get(key)) for key in ("mu", "sigma"))
    except FileNotFoundError:
        raise PidistillError(f"{path} does not exist") from None
    except Bad as error:
        raise PidistillError(f"cannot read {path}: {error}") from None
    except Exception as error:  # damaged bytes can end in almost any of them
        raise PidistillError(f"cannot read {path}: damaged, or no reference of EDM2 ({type(error).__name__})") from None
    check_statistics(path, mean, covariance)
    return Reference(mean, covariance, source=str(path))


def rebuild_array(record: Any) -> Tensor:
    """A numpy array of float32 or float64 out of a pickle's description of it, as float64."""
    state = record.state.get("array") if isinstance(record, Record) and record.name == "numpy.ndarray" else None
    if not isinstance(state, tuple) or len(state) != 5:
        raise Bad("an array was expected in it")
    _, shape, dtype, fortran, data = state
    code = dtype.args[0] if isinstance(dtype, Record) and dtype.name == "numpy.dtype" else None
    if code not in ("f4", "f8") or not isinstance(data, bytes) or dtype.state.get("order", "<") not in ("<", "="):
        raise Bad("an array in it is not of floating point numbers")
    if not all(type(n) is int and n >= 0 for n in shape) or math.prod(shape) * int(code[1]) != len(data):
        raise Bad("an array in it does not have the bytes that its shape needs")
    values = np.frombuffer(data, dtype=f"<{code}").reshape(shape, order="F" if fortran else "C")
    return torch.from_numpy(values.astype(np.float64))


def make_reference(data: str, net: Any, features: str, fingerprint: str | None = None, *, keep: int = STORED_FEATURES,
                   batch: int = 250) -> Reference:
    """From images: `digits`, a folder, a .zip (EDM's data sets) or an .npz. keep: how many images' features are kept."""
    num, shape, batches = open_batches(data, batch)
    width = check_shape(net, shape, features)
    if num < 2:
        raise PidistillError(f"{data} holds one image; statistics need two or more")
    warn_if_few(num, width, data)
    device, sums = device_of(net), Frechet(num, width, None, device=device_of(net))
    rows = np.sort(stream(0, 1).choice(num, min(keep, num), replace=False))
    kept, start = [torch.empty(0, width)], 0
    with torch.inference_mode():
        for _ in track(range(-(-num // batch)), f"features of {data}"):
            images = dequantise(next(batches).to(device))
            f = net.features(images)
            sums.add(Batch(images, range(start, start + len(f)), f))
            inside = rows[(rows >= start) & (rows < start + len(f))] - start
            kept.append(f[torch.from_numpy(inside).to(device)].float().cpu())
            start += len(f)
    mean, covariance = sums.fit_gaussian()
    check_statistics(Path(data), mean, covariance)
    return Reference(mean, covariance, torch.cat(kept) if keep else None, fingerprint, num, data)


def open_batches(data: str, batch: int) -> tuple[int, tuple[int, ...], Iterator[Tensor]]:
    """Number, shape (C, H, W) and uint8 batches of a data set of images."""
    if data == "digits":
        images = quantise(load_images("digits").images)
        return len(images), tuple(images.shape[1:]), iter(images.split(batch))
    found = open_images(Path(data))
    return len(found), found.shape, found.batches(batch)


def write_reference(path: Path, reference: Reference) -> None:
    """NPZ with mu, sigma (as EDM's), num, network (the feature network's SHA-256) and features."""
    kept: dict[str, Any] = {} if reference.features is None else {"features": reference.features.numpy()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp.npz")
        np.savez(temporary, mu=reference.mean.numpy(), sigma=reference.covariance.numpy(), num=reference.num or 0,
                 network=np.array(reference.network or ""), **kept)
        temporary.replace(path)
    except OSError as error:
        raise PidistillError(f"cannot write {path}: {error.strerror or error}") from None


def warn_if_few(num: int, width: int, what: str) -> None:
    """Say it where a covariance cannot have full rank: its distances are far from those of more images."""
    if num <= width:
        console.print(f"warning: {num} images of {what} for {width} features: their covariance is singular, and distances "
                      f"are biased; use more than {width}, better 10 times as many", soft_wrap=True)
