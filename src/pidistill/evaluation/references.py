"""A reference is what the data looks like to a feature network: mean and covariance of its features, and some of them.

It is read from a file of statistics, or made from images.
"""

from __future__ import annotations

import math
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pidistill.core import processes
from pidistill.core.console import track
from pidistill.core.errors import PidistillError, words_of
from pidistill.core.foreign import call_foreign
from pidistill.core.seeds import stream
from pidistill.core.tensors import dequantise, find_device
from pidistill.evaluation.metrics.base import ImageBatch, Reference
from pidistill.evaluation.metrics.frechet import Frechet, describe_few, has_variance
from pidistill.files.archives import open_archive, read_arrays
from pidistill.files.datasets import open_images
from pidistill.files.downloads import fetch_published
from pidistill.files.folders import ASSETS, find_cache_folder
from pidistill.files.image_set import ImageSet
from pidistill.files.pickle_machine import BoundedReader, Machine, MalformedPickle, Record
from pidistill.files.reading import open_file
from pidistill.files.weights import read_tensors
from pidistill.nets.features.base import check_shape

FID_REFERENCES = "https://nvlabs-fi-cdn.nvidia.com/edm/fid-refs/"  # EDM's: NPZ with `mu` and `sigma`
STORED_FEATURES = 10_000  # features that KID and precision and recall compare with
# Made of images by this program, since a run measures more than once; by path, features and the network's fingerprint.
REFERENCE_CACHE: dict[tuple[str, str, str | None], Reference] = {}
SYMMETRY = 1e-4  # of the largest entry of a covariance; those of files in float32 are within 1e-6
PICKLE_KEYS = {"fid": "inception", "fd_dinov2": "dinov2"}  # key -> feature network, of EDM2's files, which hold both


def load_reference(name: str | None, features: str, net: Any, fingerprint: str | None = None) -> Reference:
    """Load the reference called `name`, in the features of a network. Raises PidistillError in one line.

    name: a file NAME.npz of statistics (`mu`, `sigma`: ours, EDM's, ADM's, clean-fid's), EDM2's .pkl (not unpickled), the
        name of one that EDM published, such as `cifar10-32x32`, which is fetched; or images: a folder, a .zip, an .npz,
        `hf:NAME`.
        None: what is bundled with the features.
    features: as `load_features` takes it. net: the network of them.
    fingerprint: of the network; a reference that another network made is refused.
    """
    if name is None:
        return read_bundled_reference(features)
    if not name:  # which would be the current folder
        raise PidistillError("the reference has no name; leave it out, or name a file of statistics or a folder of images")
    path, kind = Path(name), Path(name).suffix.lower()
    if kind == ".pkl":
        reference = read_pickle(path, features)
    elif name.startswith("hf:") or path.is_dir() or kind == ".zip" or (
            kind == ".npz" and path.is_file() and not has_statistics(path)):
        key = (str(path.resolve()), features, fingerprint)
        if key not in REFERENCE_CACHE:
            processes.say(f"making statistics of {name}; `pidistill reference {shlex.quote(name)} --out ref.npz` keeps them")
            images = open_images(name if name.startswith("hf:") else path)  # a folder may be called `digits`
            REFERENCE_CACHE[key] = make_reference(images, name, net, features, fingerprint)
        return REFERENCE_CACHE[key]
    elif kind == ".npz":
        reference = read_npz(path)
    elif not re.fullmatch(r"[\w-]+", name, re.ASCII):
        raise PidistillError(f"{name} does not exist" if not path.exists() else
                             f"{name} is no reference: a folder or .zip of images, an .npz, or EDM2's .pkl was expected")
    else:
        reference = read_npz(fetch_published(f"{FID_REFERENCES}{name}.npz", f"the reference {name}",
                                             "evaluate.reference=FILE.npz",
                                       find_cache_folder() / "fid-refs"))
    if reference.network and fingerprint and reference.network != fingerprint:
        raise PidistillError(f"{name} was made with another feature network ({reference.network[:12]}, this one is "
                             f"{fingerprint[:12]}); distances between the two mean nothing")
    return reference


def read_bundled_reference(features: str) -> Reference:
    """Read the reference that comes with the features. Raises PidistillError if there is none."""
    path = ASSETS / features / "features" / "reference.safetensors"
    if not path.exists():
        raise PidistillError(f"there are no reference statistics for {features!r}; name them with evaluate.reference, such "
                             "as cifar10-32x32 or FILE.npz")
    tensors = read_tensors(path)
    return Reference(tensors["mean"], tensors["covariance"], tensors.get("features"), source=f"bundled:{features}")


def has_statistics(path: Path) -> bool:
    """Tell whether an .npz holds `mu` or `sigma`, or cannot be read, which `read_npz` explains."""
    try:
        return bool({"mu.npy", "sigma.npy"} & open_archive(path)[1].keys())
    except PidistillError:
        return True


def read_npz(path: Path) -> Reference:
    """Read mean and covariance, and what `write_reference` adds to them, from an NPZ file, in which no pickle is read.

    Raises PidistillError in one line.
    """
    if not path.exists():
        raise PidistillError(f"{path} does not exist")
    try:
        arrays = read_arrays(path, ("mu", "sigma", "features", "network", "num"))
        if strange := [key for key in ("mu", "sigma") if arrays[key].dtype.kind not in "fiu"]:  # a root's complex numbers
            raise PidistillError(f"{path}: {strange[0]} must be real numbers, not {arrays[strange[0]].dtype}")
        mean, covariance = (torch.from_numpy(np.asarray(arrays[key], dtype=np.float64)) for key in ("mu", "sigma"))
        features = torch.from_numpy(np.asarray(arrays["features"], dtype=np.float32)) if "features" in arrays else None
        network = str(arrays["network"])[:64] if "network" in arrays else None
        num = int(arrays["num"]) if "num" in arrays else None
    except PidistillError as error:
        raise PidistillError(f"cannot read mu and sigma from {error}") from None
    except Exception as error:  # arrays of another kind
        raise PidistillError(f"cannot read {path} as an NPZ file with mu and sigma ({words_of(error)})") from None
    check_statistics(path, mean, covariance)
    if features is not None and (features.ndim != 2 or features.shape[1] != len(mean) or not features.isfinite().all()):
        raise PidistillError(f"{path}: its features must be finite, of shape (N, {len(mean)}), got {tuple(features.shape)}")
    return Reference(mean, covariance, features, network or None, num, str(path))


def check_statistics(path: Path, mean: Tensor, covariance: Tensor) -> None:
    """Refuse, with the path's name, all but the finite mean (d,) and covariance (d, d) of features that vary."""
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise PidistillError(f"{path}: mu and sigma must be (d,) and (d, d), got {tuple(mean.shape)} and "
                             f"{tuple(covariance.shape)}")
    if bad := int((~mean.isfinite() | ~covariance.isfinite().all(dim=1)).sum()):
        raise PidistillError(f"{path}: mu and sigma must be finite, and are not for {bad} of {len(mean)} features")
    if not has_variance(mean, covariance):
        raise PidistillError(f"{path}: its images all look the same to the feature network (no variance): distances to them "
                             "mean nothing")
    largest = covariance.abs().max()
    if (covariance - covariance.T).abs().max() > SYMMETRY * largest or covariance.diagonal().min() < -SYMMETRY * largest:
        raise PidistillError(f"{path}: sigma is no covariance: it is not symmetric, or has negative variances")
    shifted = covariance + SYMMETRY * largest * torch.eye(len(mean), dtype=covariance.dtype)
    if torch.linalg.cholesky_ex(shifted).info:
        raise PidistillError(f"{path}: sigma is no covariance: it has negative eigenvalues")


def read_pickle(path: Path, features: str) -> Reference:
    """Read EDM2's {"fid": {"mu", "sigma"}, "fd_dinov2": {...}} by the stack machine that imports and calls nothing.

    features: as `load_features` takes it; inception or dinov2. Raises PidistillError in one line.
    """
    keys = [key for key, network in PICKLE_KEYS.items() if features.partition(":")[0] == network]
    if not keys:
        raise PidistillError(f"{path}: EDM2's references are of inception or dinov2, not of {features!r}")
    try:
        with open_file(path) as file:
            root = Machine(BoundedReader(file, path.stat().st_size)).run()
        statistics = root.get(keys[0]) if isinstance(root, dict) else None
        if not isinstance(statistics, dict):
            raise MalformedPickle(f"it holds no statistics under `{keys[0]}`")
        mean, covariance = (rebuild_array(statistics.get(key)) for key in ("mu", "sigma"))
    except PidistillError:
        raise
    except FileNotFoundError:
        raise PidistillError(f"{path} does not exist") from None
    except MalformedPickle as error:
        raise PidistillError(f"cannot read {path}: {error}") from None
    except Exception as error:  # damaged bytes can end in almost any of them
        raise PidistillError(f"cannot read {path}: damaged, or no reference of EDM2 ({type(error).__name__})") from None
    check_statistics(path, mean, covariance)
    return Reference(mean, covariance, source=str(path))


def rebuild_array(record: Any) -> Tensor:
    """Rebuild a numpy array of float32 or float64 from a pickle's description of it, as float64. Raises Bad."""
    state = record.state.get("array") if isinstance(record, Record) and record.name == "numpy.ndarray" else None
    if not isinstance(state, tuple) or len(state) != 5:
        raise MalformedPickle("an array was expected in it")
    _, shape, dtype, fortran, data = state
    code = dtype.args[0] if isinstance(dtype, Record) and dtype.name == "numpy.dtype" else None
    if code not in ("f4", "f8") or not isinstance(data, bytes) or dtype.state.get("order", "<") not in ("<", "="):
        raise MalformedPickle("an array in it is not of floating point numbers")
    if not all(type(n) is int and n >= 0 for n in shape) or math.prod(shape) * int(code[1]) != len(data):
        raise MalformedPickle("an array in it does not have the bytes that its shape needs")
    values = np.frombuffer(data, dtype=f"<{code}").reshape(shape, order="F" if fortran else "C")
    return torch.from_numpy(values.astype(np.float64))


def make_reference(data: ImageSet, name: str, net: Any, features: str, fingerprint: str | None = None, *,
                   keep: int = STORED_FEATURES, batch: int = 250) -> Reference:
    """Make a reference of images. Raises PidistillError in one line.

    data: the images.
    name: of the data, for messages and the record.
    net: the feature network. features: its name, as `load_features` takes it. fingerprint: of the network, for the record.
    keep: number of images, drawn at random, whose features are kept.
    batch: images at a time.
    """
    num, width, batches = len(data), check_shape(net, data.shape, features), data.read_batches(batch)
    if num < 2:
        raise PidistillError(f"{name} holds one image; statistics need two or more")
    if few := describe_few(num, width, name):
        processes.say(f"warning: {few}")
    device, sums = find_device(net), Frechet(num, width, None, device=find_device(net))
    rows = np.sort(stream(0, 1).choice(num, min(keep, num), replace=False))
    pieces, start = [torch.empty(0, width)], 0
    with torch.inference_mode():
        for _ in track(range(-(-num // batch)), f"features of {name}"):
            images = dequantise(next(batches).to(device))
            f = call_foreign(net.features, f"the feature network {features}", images)
            sums.add(ImageBatch(images, range(start, start + len(f)), f))
            inside = rows[(rows >= start) & (rows < start + len(f))] - start
            pieces.append(f[torch.from_numpy(inside).to(device)].float().cpu())
            start += len(f)
    mean, covariance = sums.fit_gaussian()
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise PidistillError(f"{name}: no statistics: what the feature network {features} gives for some images is not "
                             "finite")
    check_statistics(Path(name), mean, covariance)
    return Reference(mean, covariance, torch.cat(pieces) if keep else None, fingerprint, num, name)


def write_reference(path: Path, reference: Reference) -> None:
    """Write an NPZ with mu, sigma (as EDM's), num, network (the feature network's SHA-256) and features.

    Raises PidistillError if the file cannot be written.
    """
    features: dict[str, Any] = {} if reference.features is None else {"features": reference.features.numpy()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp.npz")
        np.savez(temporary, mu=reference.mean.numpy(), sigma=reference.covariance.numpy(), num=reference.num or 0,
                 network=np.array(reference.network or ""), **features)
        temporary.replace(path)
    except OSError as error:
        raise PidistillError(f"cannot write {path}: {error.strerror or error}") from None
