"""What images are measured by: metrics over one feature network, in constant memory, over several processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pidistill.core import processes
from pidistill.core.errors import PidistillError
from pidistill.core.registry import choices, member, names
from pidistill.core.tensors import dequantise, quantise
from pidistill.evaluation.metrics.base import Batch, Metric, Reference
from pidistill.evaluation.references import load_reference, warn_if_few
from pidistill.nets.features.base import check_shape, fingerprint, load_features

SHORT_NAMES = {"fid": "frechet", "fd": "frechet", "fd_dinov2": "frechet", "is": "inception_score", "pr": "precision_recall",
         "rms": "trajectory_rmse"}


def parse_metric_names(text: str) -> list[str]:
    """`fid,is,kid,pr` or files' names -> files' names, each once."""
    found = [SHORT_NAMES.get(part.strip(), part.strip()) for part in text.split(",")]
    for name in found:
        if name not in names("metrics"):
            raise choices("metric", name, sorted([*names("metrics"), *SHORT_NAMES]))
    return list(dict.fromkeys(found))


class Measure:
    """A feature network, a reference, and the metrics to take.

    features: see `load_features`; without one there are no metrics but the distance to the teacher's solutions. reference:
    see `load_reference`. shape: (C, H, W) of the images. metrics: files of `metrics/`.
    """

    def __init__(self, features: str | None, reference: str | None, shape: Sequence[int],
                 device: torch.device | str = "cpu", metrics: Sequence[str] = ("frechet",)):
        self.names = [name for name in metrics if features or member("metrics", name).needs == "solutions"]
        self.features, self.device = features, torch.device(device)
        self.net: Any = None
        self.reference: Reference | None = None
        self.hash, self.key, self.widths = None, "fd", {"features": 0, "logits": 0, "stored": 0, "solutions": 0}
        if features is None:
            return
        self.net = load_features(features).to(device)
        width = check_shape(self.net, shape, features)
        self.hash, self.key = fingerprint(self.net), getattr(self.net, "distance", "fd")
        self.widths |= {"features": width, "stored": width}
        needs = {name: member("metrics", name).needs for name in self.names}
        if "logits" in needs.values():
            if not hasattr(self.net, "classify"):
                raise PidistillError(f"the Inception Score needs a network with classes; {features!r} gives features alone")
            with torch.inference_mode():
                self.widths["logits"] = self.net.classify(torch.zeros(2, width, device=device)).shape[1]
        if needs.keys() & {"frechet", "kid", "precision_recall"}:
            found = load_reference(reference, features, self.net, self.hash)
            if len(found.mean) != width:
                raise PidistillError(f"the reference is of {len(found.mean)} features, the network gives {width}: it is "
                                     "that of another network")
            stored = [name for name, kind in needs.items() if kind == "stored"]
            if stored and (found.features is None or len(found.features) < 2):
                raise PidistillError(f"{' and '.join(stored)} needs features of the data, which {found.source} does not "
                                     "hold; make a reference with them: pidistill reference DATA --out ref.npz")
            self.reference = found

    def start(self, num: int, solutions: bool = False) -> Tally:
        """A tally of `num` images; solutions: whether each batch comes with the teacher's images."""
        return Tally(self, num, solutions)

    def __call__(self, images: Tensor, solutions: Tensor | None = None, batch: int = 500) -> dict[str, float]:
        """The numbers of images (N, C, H, W) that are there already."""
        tally = self.start(len(images), solutions is not None)
        for k in range(0, len(images), batch):
            rows = range(k, min(k + batch, len(images)))
            tally.add(images[k:k + batch], rows, None, None if solutions is None else solutions[k:k + batch])
        return tally.result(join=False)


class Tally:
    """The metrics of one set of images while it is drawn."""

    def __init__(self, measure: Measure, num: int, solutions: bool):
        self.measure, self.num = measure, num
        self.metrics: dict[str, Metric] = {}
        for name in measure.names:
            make = member("metrics", name)
            if make.needs != "solutions" or solutions:
                self.metrics[name] = make(num, measure.widths[make.needs], measure.reference, measure.key, measure.device)
        needs = {metric.needs for metric in self.metrics.values()}
        self.stored = torch.zeros(num, measure.widths["stored"]) if "stored" in needs else None
        self.network = bool(needs - {"solutions"})
        if "frechet" in self.metrics:
            warn_if_few(num, measure.widths["features"], "the model")

    @torch.inference_mode()
    def add(self, images: Tensor, rows: Sequence[int], seeds: Sequence[int] | None = None,
            solutions: Tensor | None = None) -> None:
        """images (B, C, H, W) in [-1, 1], quantised to uint8 first for the network, as files would be.

        rows: their places in the set; seeds: for errors, which name the image that is not finite.
        """
        bad = ~images.flatten(1).isfinite().all(dim=1)
        if bad.any():
            first = int(bad.nonzero()[0])
            which = f"number {rows[first]}" if seeds is None else f"that of seed {seeds[first]}"
            raise PidistillError(f"{int(bad.sum())} images are not finite; the first is {which}")
        features = logits = None
        if self.network:
            features = self.measure.net.features(dequantise(quantise(images.to(self.measure.device))))
            if any(metric.needs == "logits" for metric in self.metrics.values()):
                logits = self.measure.net.classify(features)
            if self.stored is not None:
                self.stored[rows[0]:rows[-1] + 1] = features.float().cpu()
        batch = Batch(images, rows, features, logits, solutions)
        for metric in self.metrics.values():
            metric.add(batch)

    def state(self) -> dict[str, Tensor]:
        """All sums, by METRIC.NAME: what an interrupted program, or another process, has added."""
        sums = {f"{name}.{key}": value for name, metric in self.metrics.items() for key, value in metric.state.items()}
        return sums if self.stored is None else sums | {"stored": self.stored}

    def load(self, state: dict[str, Tensor]) -> None:
        own = self.state()
        if {key: value.shape for key, value in own.items()} != {key: value.shape for key, value in state.items()}:
            raise PidistillError("kept sums are of another measurement; delete them, or choose another folder")
        for key, value in own.items():
            value.copy_(state[key])

    def result(self, join: bool = True) -> dict[str, float]:
        """The numbers. join: add up what other processes have; all must call it."""
        if join and processes.size() > 1:
            own = self.state()
            moved = [value.cpu() for value in own.values()]
            processes.add_up(moved)
            for value, total in zip(own.values(), moved):
                value.copy_(total)
        numbers: dict[str, float] = {}
        for metric in self.metrics.values():
            numbers |= metric.result(self.stored)
        return numbers
