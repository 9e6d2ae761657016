"""The paper's experiments: which runs each compares, what differs in them, and the numbers that the paper reports.

A curve is what one setting gives; it differs from the scale's preset in the keys given here and in nothing else, so that
experiments share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pidistill.core.registry import suggest_choices
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config
from pidistill.training.log import read_metrics


@dataclass(frozen=True)
class Setting:
    """One curve: its label, what differs from the preset, and how far the paper trains it (the end of its figure's axis)."""

    label: str
    overrides: dict[str, Any] = field(default_factory=dict)
    paper_steps: int = 200_000


@dataclass(frozen=True)
class Experiment:
    """An experiment of the paper. kind: a table of last values, curves over iterations, trajectories, or sample grids."""

    title: str
    section: str
    kind: Literal["table", "curves", "trajectories", "samples"]
    paper: dict[str, str]  # by curve: what the paper reports of it
    finding: str           # the paper's, to be read against ours


@dataclass(frozen=True)
class Scale:
    """How large an experiment is repeated, and how its runs are measured."""

    preset: str
    metric: str       # key in the records of a run
    unit: str         # the metric's name in tables
    seeds: int        # training seeds of every curve
    paper_steps: bool  # train as long as the paper, instead of as long as the preset says
    settings: tuple[str, ...] = ()  # beside the preset's


PAPER_TEACHER = "2.04"  # EDM on CIFAR-10, Tables 1 and 7

CURVES = {
    # First order, N = 250, teacher's weights, perceptual distance.
    "base": Setting("PID as in the paper (N = 250)", paper_steps=800_000),
    "midpoint": Setting("2nd order, two evaluations", {"objective.scheme": "midpoint"}, 800_000),
    "central": Setting("2nd order, three evaluations", {"objective.scheme": "central"}, 800_000),
    "small": Setting("half the channels, random start", {"student.init": "random", "student.width": 0.5}, 800_000),
    "autodiff": Setting("automatic differentiation", {"objective.scheme": "autodiff"}, 50_000),
    "random": Setting("random start", {"student.init": "random"}),
    "no-stop-gradient": Setting("without stop-gradient", {"objective.stop_gradient": False}),
    "l2": Setting("L2", {"objective.distance": "l2"}, 800_000),
    **{f"N{n}": Setting(f"N = {n}", {"grid.points": n}) for n in (35, 80, 120, 200, 500, 1000)},
}

EXPERIMENTS = {
    "table3": Experiment("Order of the difference scheme", "Table 3, Section 6.1", "table",
                         {"base": "3.92", "midpoint": "3.68", "central": "-"},
                         "the second order is slightly better at the same cost"),
    "table7": Experiment("A smaller student", "Table 7, Appendix A.3", "table", {"base": "3.93", "small": "8.29"},
                         "with a quarter of the parameters the student is worse, but still decent"),
    "figure3": Experiment("Automatic against numerical differentiation", "Figure 3, Section 6.2", "curves",
                          {"base": "low", "autodiff": "poor, high contrast"},
                          "automatic differentiation converges to unrealistic images"),
    "figure4": Experiment("Random start against the teacher's weights", "Figure 4, Section 6.3", "curves",
                          {"base": "lower", "random": "higher"}, "a random start ends in a worse local optimum"),
    "figure5": Experiment("With and without stop-gradient", "Figure 5, Section 6.4", "curves",
                          {"base": "lower", "no-stop-gradient": "higher"},
                          "backpropagation through the teacher degrades the images"),
    "figure6": Experiment("Number of time points N", "Figure 6, Section 6.6", "curves",
                          {"N35": "worst", "N80": "", "N120": "", "N200": "", "base": "plateau", "N500": "plateau",
                           "N1000": "plateau"},
                          "more time points are better, up to a plateau at about 250, at no cost"),
    "figure7": Experiment("L2 against the perceptual distance", "Figure 7, Section 6.5", "curves",
                          {"base": "3.92", "l2": "5.85"}, "the perceptual distance converges faster, and to a better value"),
    "figure8": Experiment("Trajectories of student and teacher", "Figure 8, Appendix A.5", "trajectories", {"base": ""},
                          "the student's states follow the teacher's at every time, not only at its end"),
    "samples": Experiment("Samples of the same noise", "Figures 9 and 10, Appendix A.6", "samples",
                          {"base": "", "small": ""}, "the student's images are the teacher's, image for image"),
}

SCALES = {
    "bundled": Scale("digits_paper", "fd", "FD %", 2, False),
    "paper": Scale("cifar10", "fid", "FID", 1, True, (
        "evaluate.every=10000", "evaluate.features=inception", "evaluate.reference=cifar10-32x32")),
}


@dataclass(frozen=True)
class Run:
    """One curve with one training seed."""

    curve: str
    seed: int
    config: DistillConfig

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.config.out)

    @property
    def done(self) -> bool:
        """Whether the run is finished: its student is saved."""
        return (self.folder / "student" / "config.json").exists()

    def records(self, metric: str) -> list[tuple[int, float]]:
        """Read (step, value) of every evaluation from the run's metrics."""
        return [(record["step"], record[metric]) for record in read_metrics(self.folder) if metric in record]


def plan_runs(experiment: Experiment, scale: Scale, out: Path, seeds: int | None = None,
         overrides: Sequence[str] = ()) -> list[Run]:
    """Plan the runs of an experiment, those first that other experiments share.

    experiment, scale: what is compared, and how large.
    out: the folder of the results.
    seeds: training seeds of every curve, if not the scale's.
    overrides: `key=value` for all runs.
    """
    runs = []
    for curve in sorted(experiment.paper, key=lambda name: name != "base"):
        for seed in range(seeds or scale.seeds):
            folder = out / "curves" / f"{curve}-seed{seed}"
            steps = [f"train.steps={CURVES[curve].paper_steps}"] if scale.paper_steps else []
            values = {**CURVES[curve].overrides, "train.seed": seed, "out": str(folder)}
            runs.append(Run(curve, seed, load_config(DistillConfig, scale.preset,
                                                     [*scale.settings, *steps, *overrides, *values.items()])))
    return runs


def find_experiment(name: str, scale_name: str) -> tuple[Experiment, Scale]:
    """Find an experiment and a scale by their names. Raises PidistillError for unknown ones."""
    if name not in EXPERIMENTS:
        raise suggest_choices("experiment", name, list(EXPERIMENTS))
    if scale_name not in SCALES:
        raise suggest_choices("scale", scale_name, list(SCALES))
    return EXPERIMENTS[name], SCALES[scale_name]
