"""An evaluation gives the measurements of every model on the same seeds, as values and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Measurement:
    """A measurement is what was measured of one model.

    nfe: how often its network is called for an image.
    images_per_s: how fast it drew. seconds: how long, over all images.
    metrics: its numbers, by the keys of `tables.UNITS` (and `is_std`, `kid_std`).
    settings: what makes the numbers what they are: weights, sampler, seeds, feature network, reference.
    """

    nfe: int
    images_per_s: float
    seconds: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Write the measurement as one flat mapping, for JSON."""
        seconds = {} if self.seconds is None else {"seconds": self.seconds}
        return {"nfe": self.nfe, "images_per_s": self.images_per_s, **seconds, **self.metrics, **self.settings}

    @classmethod
    def from_record(cls, record: dict[str, Any], settings: dict[str, Any]) -> Measurement:
        """Read the measurement that `record` wrote, whose settings are known. Raises KeyError for another kind of record."""
        fields = {"nfe", "images_per_s", "seconds", *settings}
        return cls(record["nfe"], record["images_per_s"], record["seconds"],
                   {key: value for key, value in record.items() if key not in fields}, settings)


@dataclass(frozen=True)
class Evaluation:
    """An evaluation holds measurements on the same seeds by model: `teacher`, `student`, `student, EMA 0.9`, ..."""

    models: dict[str, Measurement]

    @property
    def speedup(self) -> float | None:
        """The student's images per second over the teacher's; None unless both were measured."""
        if not {"teacher", "student"} <= self.models.keys():
            return None
        return self.models["student"].images_per_s / self.models["teacher"].images_per_s

    def record(self) -> dict[str, Any]:
        """Write the evaluation for JSON: a mapping by model, and `speedup`."""
        models: dict[str, Any] = {name: measurement.record() for name, measurement in self.models.items()}
        return models if self.speedup is None else models | {"speedup": self.speedup}


@dataclass(frozen=True)
class Repeats:
    """Repeats are evaluations of the same models on disjoint sets of seeds. EDM reports their minimum.

    keys: of the metrics that are summarised.
    """

    evaluations: Sequence[Evaluation]
    keys: Sequence[str]

    def summarise(self, statistic: Callable[[Iterable[float]], float]) -> Evaluation:
        """Reduce all evaluations to one: each metric of a model to a statistic of its values, its speed to the mean."""
        def reduce(name: str) -> Measurement:
            models = [evaluation.models[name] for evaluation in self.evaluations]
            return Measurement(models[0].nfe, statistics.fmean(model.images_per_s for model in models),
                               metrics={key: statistic([model.metrics[key] for model in models])
                                        for key in models[0].metrics if key in self.keys})

        return Evaluation({name: reduce(name) for name in self.evaluations[0].models})

    @property
    def minimum(self) -> Evaluation:
        """The smallest number of each model and metric."""
        return self.summarise(min)

    @property
    def mean(self) -> Evaluation:
        """The mean of each model and metric."""
        return self.summarise(statistics.fmean)

    def record(self) -> dict[str, Any]:
        """Write the evaluations for JSON: {"repeats": [...], "minimum": ..., "mean": ...}, the last two by model."""
        summary = {name: {model: measurement.record() for model, measurement in evaluation.models.items()}
                   for name, evaluation in (("minimum", self.minimum), ("mean", self.mean))}
        return {"repeats": [evaluation.record() for evaluation in self.evaluations], **summary}
