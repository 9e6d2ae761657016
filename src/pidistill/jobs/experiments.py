"""Experiments: which runs each compares, what differs in them, and the numbers that the paper reports.

A curve is what one setting gives; it differs from the scale's preset in the keys given here and in nothing else, so that
experiments share it. A method of table 1 has a preset of its own, and is trained whole. Of a preset that trains in
stages (`objective.first`) a curve is one stage: those of the last start, seed by seed, from the students of one curve of
the first, `SHARED_START`, which is trained once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from pidistill.core.errors import PidistillError
from pidistill.core.registry import suggest_choices
from pidistill.objectives.base import find_objective
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config
from pidistill.training.log import read_metrics


@dataclass(frozen=True)
class Setting:
    """One curve: its label, and what differs from the preset.

    paper_steps, steps: how far it is trained at the paper's scale (the end of its figure's axis) and at that of the digits,
        if not as far as the preset says.
    first: the curve is the preset's first stage, instead of its last.
    presets: by the scale's name, the curve's own presets, of which it is all stages.
    """

    label: str
    overrides: dict[str, Any] = field(default_factory=dict)
    paper_steps: int | None = None
    steps: int | None = None
    first: bool = False
    presets: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Scale:
    """How large an experiment is repeated, and how its runs are measured."""

    name: str         # bundled or paper
    preset: str
    metric: str       # key in the records of a run
    unit: str         # the metric's name in tables
    seeds: int        # training seeds of every curve
    paper_steps: bool  # train as long as the paper, instead of as long as the preset says
    settings: tuple[str, ...] = ()  # beside the preset's
    metrics: tuple[str, ...] = ()   # files of `metrics/` that finished students are measured by, beside the Frechet distance


@dataclass(frozen=True)
class Experiment:
    """An experiment of a paper.

    kind: a table of last values, curves over iterations, trajectories, sample grids, or methods with what they cost.
    """

    title: str
    source: str            # a section of PID's paper, or another paper
    kind: Literal["table", "curves", "trajectories", "samples", "methods"]
    paper: dict[str, str]  # by curve: what the paper reports of it
    finding: str           # the paper's, to be read against ours
    scales: dict[str, Scale] = field(default_factory=dict)  # by name, if not `SCALES`


def set_correction(label: str, share: float, correction: str = "distribution_matching", **setting: Any) -> Setting:
    """Describe a curve of the preset's correction, whose row says which one it is and its share, whatever the preset says.

    setting: more of `Setting`; its overrides come beside these.
    """
    overrides = {"objective.share": share, "objective.correction": correction, "objective.balanced": False}
    if share < 1:
        overrides["objective.weight"] = 40.0  # beside PID's loss the correction of weight 1 is lost, docs/correction.md
    return Setting(label, overrides | setting.pop("overrides", {}), **setting)


PAPER_TEACHER = "2.04"  # EDM on CIFAR-10, Tables 1 and 7

SHARED_START = "pid-start"  # the curve from whose students those of a last stage start

CORRECTIONS = {
    SHARED_START: Setting("PID, from whose student the others start", first=True),
    # As many operations as SHARED_START and a corrected curve have together, which a test counts.
    "pid": Setting("PID alone, for as long as with a correction", paper_steps=1_000_000, steps=2340, first=True),
    "corrected": set_correction("correction alone", 1.0),
    "joint": set_correction("PID and correction, half of the batch each", 0.5),
    "joint-quarter": set_correction("PID and correction, a quarter of the batch corrected", 0.25),
    "joint-low-noise": set_correction("PID and correction, half each, noise up to t = 1", 0.5,
                                      overrides={"objective.level_max": 1.0}),
    "joint-all-noise": set_correction("PID and correction, half each, all of the noise", 0.5,
                                      overrides={"objective.level_max": None}),
    "sid": set_correction("score identity alone", 1.0, "score_identity"),
    "joint-sid": set_correction("PID and score identity, half of the batch each", 0.5, "score_identity"),
    "corrected-from-teacher": set_correction("correction alone, from the teacher's weights, for as long",
                                             1.0, overrides={"objective.first": None}, paper_steps=1_000_000, steps=585),
}

# The presets of a method are called digits_NAME and cifar10_NAME; PID's own are `digits_pid` and `cifar10`.
METHODS = {"method-pid": Setting("PID", presets={"bundled": "digits_pid", "paper": "cifar10"}),
           "method-corrected": Setting("PID and the correction", presets={"bundled": "digits_corrected_short",
                                                                          "paper": "cifar10_corrected"})} | {
    f"method-{name}": Setting(label, presets={"bundled": f"digits_{name}", "paper": f"cifar10_{name}"})
    for name, label in {
        "knowledge": "Knowledge Distillation",
        "progressive": "Progressive Distillation", "consistency": "Consistency Distillation",
        "consistency_training": "Consistency training", "ctm": "Consistency Trajectory Model", "boot": "BOOT",
        "rectified_flow": "2-Rectified Flow, distilled",
        "dsno": "DSNO", "diff_instruct": "Diff-Instruct", "sid": "Score identity Distillation",
        "equilibrium": "Generative Equilibrium Transformer"}.items()}

CURVES = {
    # First order, N = 250, teacher's weights, perceptual distance.
    "base": Setting("PID as in the paper (N = 250)", paper_steps=800_000),
    "midpoint": Setting("2nd order, two evaluations", {"objective.scheme": "midpoint"}, 800_000),
    "central": Setting("2nd order, three evaluations", {"objective.scheme": "central"}, 800_000),
    "small": Setting("half the channels, random start", {"student.init": "random", "student.width": 0.5}, 800_000),
    "autodiff": Setting("automatic differentiation", {"objective.scheme": "autodiff"}, 50_000),
    "random": Setting("random start", {"student.init": "random"}, 200_000),
    "no-stop-gradient": Setting("without stop-gradient", {"objective.stop_gradient": False}, 200_000),
    "l2": Setting("L2", {"objective.distance": "l2"}, 800_000),
    **{f"N{n}": Setting(f"N = {n}", {"grid.points": n}, 200_000) for n in (35, 80, 120, 200, 500, 1000)},
    **CORRECTIONS,
    **METHODS,
}

FID_OF_CIFAR10 = ("evaluate.every=10000", "evaluate.features=inception", "evaluate.reference=cifar10-32x32")

SCALES = {
    "bundled": Scale("bundled", "digits_paper", "fd", "FD %", 2, False),
    "paper": Scale("paper", "cifar10", "fid", "FID", 1, True, FID_OF_CIFAR10),
}

CORRECTION_SCALES = {
    "bundled": Scale("bundled", "digits_corrected", "fd", "FD %", 2, False,
                     ("evaluate.every=70", "objective.first.evaluate.every=500"), ("precision_recall",)),
    "paper": Scale("paper", "cifar10_corrected", "fid", "FID", 1, True,
                   (*FID_OF_CIFAR10, "objective.first.evaluate.every=10000")),
}

METHOD_SCALES = {
    "bundled": Scale("bundled", "digits", "fd", "FD %", 2, False, metrics=("precision_recall",)),
    "paper": Scale("paper", "cifar10", "fid", "FID", 1, False, FID_OF_CIFAR10[1:]),
}

EXPERIMENTS = {
    "table1": Experiment("Ways to a one-step student", "Tables 1 and 4", "methods", {
        "method-pid": "3.92", "method-corrected": "", "method-knowledge": "", "method-progressive": "8.34",
        "method-consistency": "3.55", "method-consistency_training": "", "method-ctm": "", "method-boot": "4.38",
        "method-rectified_flow": "4.85", "method-dsno": "3.78", "method-diff_instruct": "4.12", "method-sid": "",
        "method-equilibrium": "6.91"},
        "PID is competitive: of these, DSNO, which needs trajectories, and consistency distillation, which needs data, are "
        "better", METHOD_SCALES),
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
    "correction": Experiment("PID and the correction, alone and together", "FreeFlow, CVPR 2026", "curves",
                             dict.fromkeys(CORRECTIONS, ""),
                             "prediction alone stalls, the correction alone collapses, and without high noise it fails",
                             CORRECTION_SCALES),
}


@dataclass(frozen=True)
class Run:
    """One curve with one training seed. start: the run from whose student it starts, if that is one of the experiment's."""

    curve: str
    seed: int
    config: DistillConfig
    start: Run | None = None

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


def plan_runs(experiment: Experiment, scale: Scale, out: Path, seeds: int | None = None, overrides: Sequence[str] = (),
              only: Sequence[str] = ()) -> list[Run]:
    """Plan the runs of an experiment, those first that others share or start from.

    experiment, scale: what is compared, and how large.
    out: the folder of the results.
    seeds: training seeds of every curve, if not the scale's.
    overrides: `key=value` for all runs.
    only: patterns such as `joint-seed0` or `*-seed1`; the runs that are called so, and those that they start from.
    """
    runs: dict[tuple[str, int], Run] = {}
    for curve in sorted(experiment.paper, key=lambda name: name not in ("base", SHARED_START)):
        for seed in range(seeds or scale.seeds):
            config = configure(CURVES[curve], scale, seed, out / "curves" / f"{curve}-seed{seed}", overrides)
            start = runs[SHARED_START, seed] if config.student.init == "previous" else None
            if start:  # by its folder, so that the run is an ordinary one
                student = config.student.model_copy(update={"init": str(start.folder / "student")})
                config = config.model_copy(update={"student": student})
            runs[curve, seed] = Run(curve, seed, config, start)
    return select_runs([*runs.values()], only)


def configure(setting: Setting, scale: Scale, seed: int, folder: Path, overrides: Sequence[str]) -> DistillConfig:
    """Give the settings of a run: the scale's preset, what `overrides` say, and at last what makes it this curve.

    setting, scale: of the curve.
    seed: of its training.
    folder: where it is trained.
    """
    if setting.presets:
        return load_config(DistillConfig, setting.presets[scale.name], [
            *scale.settings, *overrides, *setting.overrides.items(), ("train.seed", seed), ("out", str(folder))])
    steps = setting.paper_steps if scale.paper_steps else setting.steps
    key = "objective.first.train.steps" if setting.first else "train.steps"
    config = load_config(DistillConfig, scale.preset, [
        *scale.settings, *([f"{key}={steps}"] if steps else []), *overrides, *setting.overrides.items(),
        ("train.seed", seed), ("out", str(folder))])
    stages: list[DistillConfig] = find_objective(config.objective["name"]).stages(config)
    if setting.first and len(stages) == 1:
        raise PidistillError(f"{folder.name} is the run of objective.first, which {scale.preset} must have and the settings "
                             "must not take away")
    return stages[0 if setting.first else -1]


def select_runs(runs: list[Run], only: Sequence[str]) -> list[Run]:
    """Select the runs whose folders' names match one of the patterns, and those that they start from; without any, all.

    Raises PidistillError for a pattern that matches none.
    """
    names = [run.folder.name for run in runs]
    for pattern in only:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise suggest_choices("run", pattern, names)
    asked = [run for run in runs if not only or any(fnmatchcase(run.folder.name, pattern) for pattern in only)]
    needed = [run.start for run in asked if run.start]
    return [run for run in runs if run in asked or run in needed]


def find_experiment(name: str, scale_name: str) -> tuple[Experiment, Scale]:
    """Find an experiment and a scale of it by their names. Raises PidistillError for unknown ones."""
    if name not in EXPERIMENTS:
        raise suggest_choices("experiment", name, list(EXPERIMENTS))
    if scale_name not in SCALES:
        raise suggest_choices("scale", scale_name, list(SCALES))
    return EXPERIMENTS[name], (SCALES | EXPERIMENTS[name].scales)[scale_name]
