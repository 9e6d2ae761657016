"""What a run's folder says of itself: settings, curves, previews, results. Files alone are read; no network is built."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pidistill.core.errors import PidistillError
from pidistill.files.reading import read_json
from pidistill.training.config_file import read_yaml
from pidistill.training.log import read_losses, read_metrics

PICTURE = "teacher-student.png"  # of a run: the newest preview
STAGE = re.compile(r"[1-9]\d*-\w+")


@dataclass(frozen=True)
class Stage:
    """A run of one objective, whole or a stage of a distillation.

    name: of its folder, or `run`. config: its config.yaml. records: of metrics.jsonl. previews: (step, picture), ascending.
    """

    name: str
    config: dict[str, Any]
    records: list[dict[str, Any]]
    previews: list[tuple[int, Path]]

    def curve(self, key: str) -> list[tuple[float, float]]:
        """Give (step, value) of a key of the records."""
        return [(record["step"], record[key]) for record in self.records if isinstance(record.get(key), int | float)]

    def list_keys(self) -> list[str]:
        """List the keys of all records, in the order in which they came."""
        return list(dict.fromkeys(key for record in self.records for key in record))

    def list_losses(self) -> list[str]:
        """List the keys of losses: `loss`, or one for each phase."""
        return list(dict.fromkeys(key for record in self.records for key in read_losses(record)))


@dataclass(frozen=True)
class RunFacts:
    """A run as its folder holds it.

    folder: the run's. config: its settings. stages: one, or those of a distillation in stages.
    results: results.json, {} while it goes on. provenance: of the student, {} while there is none.
    picture: teacher above student, if it is there.
    """

    folder: Path
    config: dict[str, Any]
    stages: list[Stage]
    results: dict[str, Any]
    provenance: dict[str, Any]
    picture: Path | None

    @property
    def name(self) -> str:
        return self.folder.absolute().name

    @property
    def done(self) -> bool:
        return bool(self.provenance)


def gather_run(folder: Path) -> RunFacts:
    """Read a run's folder. Raises PidistillError for one that holds no run."""
    if not (folder / "config.yaml").is_file():
        raise PidistillError(f"{folder} holds no run: config.yaml was expected there")
    places = sorted((path for path in folder.iterdir() if STAGE.fullmatch(path.name) and (path / "config.yaml").is_file()),
                    key=lambda path: int(path.name.partition("-")[0]))
    read = lambda path: read_json(path) if path.is_file() else {}
    stages = [gather_stage(path, path.name) for path in places] or [gather_stage(folder, "run")]
    pictures = (folder / PICTURE, *(place / PICTURE for place in reversed(places)))
    picture = next((path for path in pictures if path.is_file()), None)
    return RunFacts(folder, read_yaml(folder / "config.yaml"), stages, read(folder / "results.json"),
                    read(folder / "student" / "provenance.json"), picture)


def gather_stage(folder: Path, name: str) -> Stage:
    """Read the folder of a single run."""
    samples = folder / "samples"
    pictures = sorted(samples.glob("*.png")) if samples.is_dir() else []
    previews = sorted((int(path.stem), path) for path in pictures if path.stem.isdigit())
    return Stage(name, read_yaml(folder / "config.yaml"), read_metrics(folder), previews)
