"""`evaluate.keep_best`: the best student of a run, by one metric, is kept in RUN/best while the run goes on.

It is chosen on seeds of its own: chosen on those that a report measures, it would look better there than it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pidistill.evaluation.evaluate import Evaluator
from pidistill.files.reading import read_json
from pidistill.models.student import Student, load_student
from pidistill.nets.base import Own

FIRST_SEED = 2_000_000  # of the images that students are chosen by
LARGER_IS_BETTER = ("is", "precision", "recall")


class BestStudent:
    """Measures students, and keeps the best so far, of all EMA rates.

    evaluator: on seeds from FIRST_SEED on. key: of the metric, such as `fd`.
    provenance: what the kept student's provenance.json says beside its step, rate and metric.
    """

    def __init__(self, evaluator: Evaluator, key: str, provenance: dict[str, Any]):
        self.evaluator, self.key, self.provenance = evaluator, key, provenance

    def __call__(self, students: dict[float, Student], step: int, folder: Path) -> dict[str, float]:
        """Measure students by EMA rate after so many steps; gives the numbers, as `Evaluator.compare`."""
        numbers = self.evaluator.compare(students)
        first, *others = students
        values = {first: numbers[self.key]} | {rate: numbers[f"{self.key}@{rate}"] for rate in others}
        rate = (max if self.key in LARGER_IS_BETTER else min)(values, key=lambda rate: values[rate])
        known = self.read(folder)
        # One of a later step is of a run that has gone back since.
        if known is None or known["steps"] >= step or self.is_better(values[rate], known["value"]):
            students[rate].save(folder / "best", self.provenance | {"steps": step, "ema": rate, "metric": self.key,
                                                                    "value": values[rate]})
        return numbers

    def is_better(self, value: float, than: float) -> bool:
        return value > than if self.key in LARGER_IS_BETTER else value < than

    def read(self, folder: Path) -> dict[str, Any] | None:
        """Read what is known of the best student of a run; None if there is none by this metric."""
        path = folder / "best" / "provenance.json"
        record = read_json(path) if path.exists() else {}
        return record if record.get("metric") == self.key else None

    @staticmethod
    def load(folder: Path, net: Own | None = None) -> dict[float, Student]:
        """Load the best student of a finished run, by its EMA rate. net: as `load_student` takes it."""
        record = read_json(folder / "best" / "provenance.json")
        return {record["ema"]: load_student(folder / "best", net=net)}
