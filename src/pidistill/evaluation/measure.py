"""Images are measured by metrics over one feature network, in constant memory, by one process or several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pidistill.core import processes
from pidistill.core.errors import PidistillError
from pidistill.core.foreign import call_foreign
from pidistill.core.registry import find_member, list_members, suggest_choices
from pidistill.core.tensors import dequantise, quantise
from pidistill.evaluation.metrics.base import ImageBatch, Metric, Reference
from pidistill.evaluation.references import load_reference
from pidistill.nets.features.base import check_shape, fingerprint, load_features

SHORT_NAMES = {"fid": "frechet", "fd": "frechet", "fd_dinov2": "frechet", "is": "inception_score", "pr": "precision_recall",
         "rms": "trajectory_rmse"}


def parse_metric_names(text: str) -> list[str]:
    """Parse `fid,is,kid,pr`, or names of files of `metrics/`, into names of files, each once.

    Raises PidistillError for unknown names.
    """
    metrics = [SHORT_NAMES.get(name.strip(), name.strip()) for name in text.split(",")]
    for name in metrics:
        if name not in list_members("metrics"):
            raise suggest_choices("metric", name, sorted([*list_members("metrics"), *SHORT_NAMES]))
    return list(dict.fromkeys(metrics))


class Measure:
    """A measure takes metrics of sets of images, with a feature network and a reference.

    features: as `load_features` takes it; None: no metric is taken but the distance to the teacher's solutions.
    reference: as `load_reference` takes it.
    shape: (C, H, W) of the images.
    device: where the feature network runs.
    metrics: names of files of `metrics/`.
    """

    def __init__(self, features: str | None, reference: str | None, shape: Sequence[int],
                 device: torch.device | str = "cpu", metrics: Sequence[str] = ("frechet",)):
        self.names = [name for name in metrics if features or find_member("metrics", name).needs == "solutions"]
        self.features, self.device = features, torch.device(device)
        self.said: set[str] = set()
        self.net: Any = None
        self.reference: Reference | None = None
        self.hash, self.key, self.widths = None, "fd", {"features": 0, "logits": 0, "stored": 0, "solutions": 0}
        if features is None:
            return
        self.net = load_features(features).to(device)
        width = check_shape(self.net, shape, features)
        self.hash, self.key = fingerprint(self.net), getattr(self.net, "distance", "fd")
        self.widths |= {"features": width, "stored": width}
        needs = {name: find_member("metrics", name).needs for name in self.names}
        if "logits" in needs.values():
            if not hasattr(self.net, "classify"):
                raise PidistillError(f"the Inception Score needs a network with classes; {features!r} gives features alone")
            with torch.inference_mode():
                logits = call_foreign(self.net.classify, f"the feature network {features}, asked for classes,",
                                      torch.zeros(2, width, device=device))
            if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 2:
                raise PidistillError(f"the feature network {features}: classify must give logits (B, K) of two images, got "
                                     f"{tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__}")
            self.widths["logits"] = logits.shape[1]
        if needs.keys() & {"frechet", "kid", "precision_recall"}:
            data = load_reference(reference, features, self.net, self.hash)
            if len(data.mean) != width:
                raise PidistillError(f"the reference is of {len(data.mean)} features, the network gives {width}: it is "
                                     "that of another network")
            stored = [name for name, kind in needs.items() if kind == "stored"]
            if stored and (data.features is None or len(data.features) < 2):
                raise PidistillError(f"{' and '.join(stored)} needs features of the data, which {data.source} does not "
                                     "hold; make a reference with them: pidistill reference DATA --out ref.npz")
            self.reference = data

    def warn(self, sentences: Sequence[str]) -> None:
        """Print warnings, each once."""
        for sentence in sentences:
            if sentence not in self.said:
                processes.say(f"warning: {sentence}")
        self.said.update(sentences)

    def start(self, num: int, solutions: bool = False) -> Tally:
        """Start a tally of `num` images, and say which metrics mean little of so many; refuse what means nothing.

        solutions: whether each batch comes with the teacher's images.
        """
        return Tally(self, num, solutions)

    def __call__(self, images: Tensor, solutions: Tensor | None = None, batch: int = 500) -> dict[str, float]:
        """Measure images (N, C, H, W) in [-1, 1] that are there already: numbers by key.

        solutions: the teacher's images (N, C, H, W) for the same noise, for the distance to them.
        batch: images at a time.
        """
        tally = self.start(len(images), solutions is not None)
        for k in range(0, len(images), batch):
            rows = range(k, min(k + batch, len(images)))
            tally.add(images[k:k + batch], rows, None, None if solutions is None else solutions[k:k + batch])
        return tally.result(join=False)


class Tally:
    """A tally adds up the metrics of one set of images while it is drawn. Made by `Measure.start`."""

    def __init__(self, measure: Measure, num: int, solutions: bool):
        self.measure, self.num = measure, num
        self.metrics: dict[str, Metric] = {}
        for name in measure.names:
            kind = find_member("metrics", name)
            if kind.needs != "solutions" or solutions:
                self.metrics[name] = kind(num, measure.widths[kind.needs], measure.reference, measure.key, measure.device)
        needs = {metric.needs for metric in self.metrics.values()}
        self.stored = torch.zeros(num, measure.widths["stored"]) if "stored" in needs else None
        self.network = bool(needs - {"solutions"})
        for name, metric in self.metrics.items():
            if num < metric.least:
                raise PidistillError(f"the metric {name} needs {metric.least} images or more, got {num}")
            measure.warn(metric.doubts())

    @torch.inference_mode()
    def add(self, images: Tensor, rows: Sequence[int], seeds: Sequence[int] | None = None,
            solutions: Tensor | None = None) -> None:
        """Add images (B, C, H, W) in [-1, 1], which are quantised to uint8 for the network, as files would be.

        rows: their places in the set.
        seeds: for errors, which name the image that is not finite.
        solutions: the teacher's images (B, C, H, W) for the same noise.
        """
        bad = ~images.flatten(1).isfinite().all(dim=1)
        if bad.any():
            first = int(bad.nonzero()[0])
            which = f"number {rows[first]}" if seeds is None else f"that of seed {seeds[first]}"
            raise PidistillError(f"{int(bad.sum())} images are not finite; the first is {which}")
        features = logits = None
        if self.network:
            features = call_foreign(self.measure.net.features, f"the feature network {self.measure.features}",
                                    dequantise(quantise(images.to(self.measure.device))))
            if any(metric.needs == "logits" for metric in self.metrics.values()):
                logits = self.measure.net.classify(features)
            if self.stored is not None:
                self.stored[rows[0]:rows[-1] + 1] = features.float().cpu()
        batch = ImageBatch(images, rows, features, logits, solutions)
        for metric in self.metrics.values():
            metric.add(batch)

    def state(self) -> dict[str, Tensor]:
        """Give all sums, by METRIC.NAME: what an interrupted program, or another process, has added."""
        sums = {f"{name}.{key}": value for name, metric in self.metrics.items() for key, value in metric.state.items()}
        return sums if self.stored is None else sums | {"stored": self.stored}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from the sums that `state` gave. Raises PidistillError for those of another measurement."""
        sums = self.state()
        if {key: value.shape for key, value in sums.items()} != {key: value.shape for key, value in state.items()}:
            raise PidistillError("kept sums are of another measurement; delete them, or choose another folder")
        for key, value in sums.items():
            value.copy_(state[key])

    def result(self, join: bool = True) -> dict[str, float]:
        """Compute the numbers, by key, all finite. join: add up what other processes have; all must call it.

        Raises PidistillError where there is no such number.
        """
        if join and processes.get_world_size() > 1:
            sums = self.state()
            totals = [value.cpu() for value in sums.values()]
            processes.add_up(totals)
            for value, total in zip(sums.values(), totals):
                value.copy_(total)
        if bad := [name for name, value in self.state().items() if not value.isfinite().all()]:
            raise PidistillError(f"no metrics: what the feature network {self.measure.features} or the teacher gives for "
                                 f"some images is not finite ({', '.join(bad)})")
        numbers: dict[str, float] = {}
        for metric in self.metrics.values():
            numbers |= metric.result(self.stored)
            self.measure.warn(metric.remarks)
        if wrong := [f"{key} = {value}" for key, value in numbers.items() if not math.isfinite(value)]:
            raise PidistillError(f"no metrics: {', '.join(wrong)} of {self.num} images")
        return numbers
