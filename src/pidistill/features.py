"""Feature networks that images are compared in, and the reference statistics of data in their features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from pidistill.downloads import check_hash, published
from pidistill.errors import PidistillError
from pidistill.files import cache_folder, load_weights, read_json, read_state_dict, read_tensors
from pidistill.plugins import build, choices, from_python
from pidistill.tensors import quantise

ASSETS = Path(__file__).parent / "assets"
FID_REFERENCES = "https://nvlabs-fi-cdn.nvidia.com/edm/fid-refs/"  # EDM's: NPZ with `mu` and `sigma`


class FeatureFunction(nn.Module):
    """A user's network: images (B, C, H, W) in [-1, 1] -> maps (B, c, ...), one or several.

    `features` gives (B, d) for metrics: the last map's mean over positions. `layers` gives all maps, for distances.
    Bundled networks have the same two methods.
    """

    def __init__(self, function: Callable[[Tensor], Any]):
        super().__init__()
        self.function = function

    def layers(self, x: Tensor) -> list[Tensor]:
        maps = self.function(x)
        return list(maps) if isinstance(maps, (list, tuple)) else [maps]

    def features(self, x: Tensor) -> Tensor:
        last = self.layers(x)[-1]
        return last.flatten(2).mean(dim=2) if last.ndim > 2 else last


class Inception(nn.Module):
    """The Inception v3 of 2015-12-05 that FID is defined with, ported by torch-fidelity: images (B, C, H, W) -> (B, 2048).

    weights: torch-fidelity's file; by default from torch.hub's cache, or fetched there.
    """

    def __init__(self, weights: str | None = None):
        super().__init__()
        from torch_fidelity import feature_extractor_inceptionv3 as inception

        path = Path(weights) if weights else published(inception.URL_INCEPTION_V3, "Inception v3",
                                                       "evaluate.features=inception:FILE")
        check_hash(path)
        state = read_state_dict(path)
        try:  # its constructor reads the weights itself, and a path that it is given with weights_only=False
            with patch.object(inception, "load_state_dict_from_url", lambda *_, **__: state):
                self.net = inception.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
        except RuntimeError as error:
            raise PidistillError(f"{path} does not fit Inception v3: {first_line(error)}") from None

    def layers(self, x: Tensor) -> list[Tensor]:
        return [self.features(x)]

    def features(self, x: Tensor) -> Tensor:
        return self.net(quantise(x).expand(-1, 3, -1, -1))[0]  # grey images: three equal channels


def load_features(spec: str) -> Any:
    """A feature network in evaluation mode, with `features` and `layers`.

    spec: a bundled name (`digits`, `digits_perceptual`), `inception[:FILE]`, a TorchScript file (.ts, .pt, .pth), a
    torch.export file (.pt2), or python:MODULE:FACTORY. The last three run what they hold: the user's module, a program,
    and, inside PyTorch's own reader of .pt2, pickles. Name only what you made. Raises PidistillError in one line.
    """
    known = sorted(path.parent.name for path in ASSETS.glob("*/features"))
    path = Path(spec)
    kind, _, rest = spec.partition(":")
    net: nn.Module
    if kind == "inception":
        net = Inception(rest or None)
    elif kind == "python":
        made = from_python(rest, "feature network")
        net = FeatureFunction(made.eval() if isinstance(made, nn.Module) else made)
    elif path.suffix in (".ts", ".pt", ".pth", ".pt2"):
        net = FeatureFunction(read_program(path))
    elif spec not in known:
        raise choices("feature network", spec, [*known, "inception", "FILE.ts", "FILE.pt2", "python:MODULE:FACTORY"])
    else:
        folder = ASSETS / spec / "features"
        config = read_json(folder / "config.json")
        net = build("nets", config["net"].pop("name"), **config["net"])
        load_weights(net, read_tensors(folder / "model.safetensors"), folder)
        net.eval()
    return net.requires_grad_(False)


def read_program(path: Path) -> Callable[[Tensor], Any]:
    if not path.is_file():
        raise PidistillError(f"{path} does not exist, or is no file")
    try:
        # An exported program has no modes: it was put in evaluation mode, or not, when it was exported.
        return torch.export.load(path).module() if path.suffix == ".pt2" else torch.jit.load(path, map_location="cpu").eval()
    except Exception as error:  # a damaged file can end in almost any of them
        kind = "torch.export" if path.suffix == ".pt2" else "TorchScript"
        raise PidistillError(f"cannot read {path} as a {kind} file ({first_line(error)})") from None


def first_line(error: Exception) -> str:
    """What went wrong, short enough for one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def check_shape(net: Any, shape: Sequence[int], name: str) -> None:
    """Refuse images of a shape (C, H, W) that the network cannot take."""
    wanted = getattr(net, "shape", None)
    if wanted is not None:
        if tuple(shape) != tuple(wanted):
            raise PidistillError(f"the features {name!r} are of images of shape {tuple(wanted)}, the model's have "
                                 f"{tuple(shape)}")
        return
    try:
        with torch.no_grad():
            maps = net.layers(torch.zeros(2, *shape))
    except Exception as error:  # whatever the user's network raises
        raise PidistillError(f"the feature network {name!r} cannot take images of shape {tuple(shape)}: "
                             f"{first_line(error)}") from None
    if not all(isinstance(f, Tensor) and f.ndim >= 2 and len(f) == 2 and f.is_floating_point() for f in maps):
        raise PidistillError(f"the feature network {name!r} must give tensors (B, c, ...), one or a list of them, got "
                             f"{[tuple(f.shape) if isinstance(f, Tensor) else type(f).__name__ for f in maps]}")


def load_reference(features: str, reference: str | None = None) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d), float64, of the data in these features.

    reference: a file NAME.npz with `mu` and `sigma`, or the name of one that EDM published, such as `cifar10-32x32`, which
    is fetched; by default what is bundled with the features. Raises PidistillError in one line.
    """
    if reference is not None:
        return read_npz(Path(reference) if reference.endswith(".npz") else published(
            f"{FID_REFERENCES}{reference}.npz", f"the reference {reference}", "evaluate.reference=FILE.npz",
            cache_folder() / "fid-refs"))
    path = ASSETS / features / "features" / "reference.safetensors"
    if not path.exists():
        raise PidistillError(f"there are no reference statistics for {features!r}; name them with evaluate.reference, such "
                             "as cifar10-32x32 or FILE.npz")
    tensors = read_tensors(path)
    return tensors["mean"], tensors["covariance"]


def read_npz(path: Path) -> tuple[Tensor, Tensor]:
    """Mean and covariance from an NPZ file, in which no pickle is read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            mean, covariance = (torch.from_numpy(np.asarray(file[key], dtype=np.float64)) for key in ("mu", "sigma"))
    except FileNotFoundError:
        raise PidistillError(f"{path} does not exist") from None
    except Exception as error:  # a damaged file can end in almost any of them
        raise PidistillError(f"cannot read {path} as an NPZ file with mu and sigma ({first_line(error)})") from None
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or not (mean.isfinite().all()
                                                                             and covariance.isfinite().all()):
        raise PidistillError(f"{path}: mu and sigma must be finite, (d,) and (d, d), got {tuple(mean.shape)} and "
                             f"{tuple(covariance.shape)}")
    return mean, covariance
