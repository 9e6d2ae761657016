"""`pidistill distill`: train a student (Algorithm 1), then measure it against its teacher."""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pidistill.core import processes
from pidistill.core.console import console
from pidistill.core.errors import PidistillError
from pidistill.core.provenance import find_commit, list_versions
from pidistill.core.registry import build, suggest_choices
from pidistill.core.seeds import labels_of, parse_integers
from pidistill.evaluation.evaluate import Evaluator, evaluate
from pidistill.evaluation.measure import Measure
from pidistill.evaluation.pictures import drawable, write_comparison
from pidistill.evaluation.results import Evaluation
from pidistill.files.datasets import ImageSet, open_images
from pidistill.files.folders import write_bytes, write_json
from pidistill.files.reading import read_json
from pidistill.jobs.best import FIRST_SEED, BestStudent
from pidistill.jobs.stages import is_stage, list_stages, load_earlier, name_own_net, start_anew
from pidistill.models.denoiser import Denoiser, as_denoiser
from pidistill.models.grid import Grid
from pidistill.models.load import read_own_net
from pidistill.models.samplers.base import sample_teacher
from pidistill.models.student import Student, load_student
from pidistill.models.student_init import lend_net, make_student
from pidistill.models.teachers.base import load_teacher
from pidistill.objectives.base import Objective, Setup, check_contract, find_objective
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import find_differences, flatten, given_keys, load_config, read_yaml
from pidistill.training.recompute import find_recomputable_blocks
from pidistill.training.run_folder import check_run, claim
from pidistill.training.sharding import is_fsdp_launch
from pidistill.training.trainer import Averages, StepTaken, Watcher, exhaust, take_steps, wait_for_all

PICTURE = "teacher-student.png"  # of a run: the newest preview


def distill(teacher: Any = "bundled:digits", *, preset: str | Path | None = None, out: str | Path | None = None,
            overrides: dict[str, Any] | None = None, force: bool = False, resume: bool = False) -> Student:
    """Distil a teacher into a one-step student (Algorithm 1); returns the averaged student.

    teacher: a spec such as `bundled:digits`, a Denoiser, or any callable with a denoiser's attributes.
    preset: a preset's name or a YAML file; `digits` for the bundled teacher, else `default`.
    out: the run's folder.
    overrides: configuration keys, such as {"train.steps": 2000}.
    force: a run that is in the folder already is replaced, instead of refused.
    resume: it is continued; the overrides alone may differ from its settings.
    """
    return exhaust(steps(teacher, preset=preset, out=out, overrides=overrides, force=force, resume=resume))


def steps(teacher: Any = "bundled:digits", *, preset: str | Path | None = None, out: str | Path | None = None,
          overrides: dict[str, Any] | None = None, force: bool = False,
          resume: bool = False) -> Generator[StepTaken, None, Student]:
    """Distil a teacher as `distill` does, step by step: yields each step once it is taken, so that a loop's body is a hook.

    A step tells its number, its losses and, on demand, the averaged student; `step.stop()` ends the run (of a distillation
    in stages the stage) there, and the student is saved and measured as ever. A loop that is left by `break` leaves an
    unfinished run, which goes on from its newest checkpoint with resume=True. Parameters and value: `distill`.
    """
    values = dict(overrides or {})
    spec = teacher if isinstance(teacher, str) else getattr(teacher, "spec", None)
    values["teacher"] = spec or f"object:{type(teacher).__name__}"
    if out is not None:
        values["out"] = str(out)
    config = load_config(DistillConfig, preset or default_preset(values.get("teacher")), values)
    denoiser = load_teacher(config.teacher) if isinstance(teacher, str) else as_denoiser(teacher)
    yield from distil_in_steps(config, denoiser.eval().requires_grad_(False), force=force, resume=resume,
                               given=given_keys(overrides))
    own = read_own_net(Path(config.out) / "student")
    return load_student(config.out, net=own and (name_own_net(list_stages(config).values()) or lend_net(denoiser, own)))


def default_preset(teacher: str | None) -> str:
    """Choose the preset of a teacher for which none is named."""
    return "digits" if teacher == "bundled:digits" else "default"


@dataclass(frozen=True)
class DistillationResult:
    """What a distillation has made: the run's folder, the student at each EMA rate, their evaluation, seconds in all."""

    folder: Path
    students: dict[float, Student]
    evaluation: Evaluation
    seconds: float


def run_distillation(config: DistillConfig, teacher: Denoiser | None = None, **options: Any) -> DistillationResult | None:
    """Train (or continue) a run to its end. Parameters and value: `distil_in_steps`."""
    return exhaust(distil_in_steps(config, teacher, **options))


def distil_in_steps(config: DistillConfig, teacher: Denoiser | None = None, *, force: bool = False, resume: bool = False,
                    given: Collection[str] = (), step: int | None = None,
                    began: float | None = None) -> Generator[StepTaken, None, DistillationResult | None]:
    """Train (or continue) a run in the folder `config.out`, save the student, evaluate it at every EMA rate.

    config: of the run.
    teacher: the one that `config.teacher` names, if it is loaded already.
    force, resume, given, step: see `claim`, which gives the run its folder.
    began: `time.perf_counter()` from which the run's seconds are counted.

    Yields every step that was taken. Returns None on all but the main process.
    """
    began = time.perf_counter() if began is None else began
    teacher = load_teacher(config.teacher) if teacher is None else teacher
    stages = list_stages(config)
    first, *later = start_anew(stages).values()
    for stage in later:  # mistakes of all are found before the first is trained
        build_objective(stage, teacher, "meta")
    job = Distillation(first, teacher)
    with claim(config, force, resume, given, step) as folder:
        if len(stages) == 1:
            students = yield from job.train_in_steps(folder)
        else:
            job, students = yield from train_stages(stages, job, folder)
        if students is None:
            return None
        console.print(f"evaluating {config.evaluate.num} images of teacher and student")
        return job.evaluate(folder, students, began, load_earlier(folder, stages, teacher))


def resume_distillation(folder: Path, overrides: Sequence[str] = (), step: int | None = None,
                        began: float | None = None) -> DistillationResult | None:
    """Continue a distillation from its newest whole checkpoint, or from that of `step`; later ones are set aside then.

    folder: of the run, which may have been moved.
    overrides: `key=value`; these settings may differ from those that the run has had.
    began: as in `distil_in_steps`.
    """
    check_run(folder)
    if is_stage(folder):
        raise PidistillError(f"{folder} is a stage of the run {folder.parent}: resume that one")
    config = load_config(DistillConfig, folder / "config.yaml", [*overrides])
    return run_distillation(config.model_copy(update={"out": str(folder)}), resume=True, given=given_keys([*overrides]),
                            step=step, began=began)


def train_stages(stages: dict[str, DistillConfig], job: Distillation, folder: Path) -> Generator[
        StepTaken, None, tuple[Distillation, dict[float, Student] | None]]:
    """Train the stages of a distillation that are not finished, one after the other; gives the last one, and its students.

    stages: as `list_stages` gives them.
    job: of the first stage.
    folder: of the distillation, where the last student is saved too.
    """
    teacher, *_, last = job.teacher, *stages
    for number, (name, config) in enumerate(stages.items()):
        place, previous = folder / name, folder / list(stages)[number - 1] if number else None
        finished, begun = (place / "student" / "config.json").exists(), (place / "config.yaml").exists()
        if finished and name != last:
            if changed := find_differences(read_yaml(place / "config.yaml"), config):
                raise PidistillError(f"{place} is finished with other settings ({', '.join(changed)}); to train it again "
                                     "choose another folder with --out, or begin again with --force")
            continue
        net = name_own_net([*stages.values()][:number])
        job = job if number == 0 else Distillation(config, teacher, previous, net)
        if processes.is_main():
            console.print(f"stage {number + 1} of {len(stages)}: {name}", soft_wrap=True)
        with claim(config.model_copy(update={"out": str(place)}), resume=begun, given=list(flatten(config.model_dump()))):
            students = yield from job.train_in_steps(place)
    if students is not None:
        job.save(folder, students)
        if (place / PICTURE).exists():
            write_bytes(folder / PICTURE, (place / PICTURE).read_bytes())
    wait_for_all()
    return job, students


class Distillation:
    """A distillation that is ready to be run: mistakes in its settings, and missing files, were found when it was made.

    config, teacher: of the run.
    previous: the folder of the stage before, for `student.init=previous`.
    net: its student's network, if that is of the user's own.
    """

    def __init__(self, config: DistillConfig, teacher: Denoiser, previous: Path | None = None,
                 net: dict[str, Any] | None = None):
        self.config, self.teacher = config, teacher
        self.objective = build_objective(config, teacher, previous=previous, net=net)
        self.steps = config.train.steps
        measure = Measure(config.evaluate.features, config.evaluate.reference, teacher.image_shape,  # finds missing files
                          metrics=("frechet", "trajectory_rmse"))
        self.check_best(measure)
        self.best, self.chosen = config.evaluate.keep_best, dict[str, Any]()
        self.seeds = parse_integers(config.preview.seeds, "preview.seeds", most=1000)

    def train(self, folder: Path, evaluator: Evaluator | None = None) -> dict[float, Student] | None:
        """Train (or continue) in a folder to the end. Parameters and value: `train_in_steps`."""
        return exhaust(self.train_in_steps(folder, evaluator))

    def train_in_steps(self, folder: Path, evaluator: Evaluator | None = None) -> Generator[
            StepTaken, None, dict[float, Student] | None]:
        """Train (or continue) in a folder and save the student there; gives it at each EMA rate (main process only).

        evaluator: measures the student every `evaluate.every` steps; without it a new one does.
        """
        trained = yield from take_steps(self.objective, self.config, folder, self.make_watchers(evaluator))
        self.steps = trained.steps
        students = select_students(trained.averages) if trained.main else None
        if students is not None and self.best and (folder / "best").is_dir():
            own = read_own_net(folder / "best")
            students = BestStudent.load(folder, own and (name_own_net([self.config]) or lend_net(self.teacher, own)))
            best = read_json(folder / "best" / "provenance.json")
            self.chosen = {key: best[key] for key in ("steps", "metric", "value")}
        if students is not None:
            self.save(folder, students)
        wait_for_all()  # the others go on to read the student
        return students

    def save(self, folder: Path, students: dict[float, Student]) -> None:
        """Save the students, by EMA rate, as FOLDER/student."""
        provenance = self.describe() | {"steps": self.steps} | self.chosen
        next(iter(students.values())).save(folder / "student", provenance, students)

    def describe(self) -> dict[str, Any]:
        """Describe where a student is from, for its provenance.json."""
        source = {"teacher_source": self.teacher.origin} if self.teacher.origin else {}
        return {"teacher": self.config.teacher, **source, "seed": self.config.train.seed, "commit": find_commit(),
                "versions": list_versions()}

    def check_best(self, measure: Measure) -> None:
        """Refuse to keep the best student by a metric that is not measured. measure: what is."""
        plan, known = self.config.evaluate, [*([measure.key] if measure.net else []), "trajectory_rmse"]
        if plan.keep_best and not plan.every:
            raise PidistillError(f"evaluate.keep_best={plan.keep_best} chooses among the measurements of evaluate.every, "
                                 "which is not set")
        if plan.keep_best and plan.keep_best not in known:
            raise suggest_choices("metric of evaluate.keep_best", plan.keep_best, known)

    def make_watchers(self, evaluator: Evaluator | None) -> list[Watcher]:
        """Make what looks at the student while it is trained: previews, and with `evaluate.every` measurements."""
        config, watchers = self.config, []
        if drawable(self.teacher.image_shape):
            watchers.append(Watcher(config.preview.every, Preview(self.teacher, self.seeds)))
        if type(self.objective).diagnose is not Objective.diagnose and not is_fsdp_launch():
            watchers.append(Watcher(config.preview.every, lambda averages, *_: self.objective.diagnose(
                next(iter(select_students(averages).values())))))
        if config.evaluate.every and not processes.is_main():
            watchers.append(Watcher(config.evaluate.every, lambda *_: None))
        elif config.evaluate.every:
            plan = config.evaluate
            given = None if plan.keep_best else evaluator  # whose seeds are the report's
            measure = given or Evaluator(self.teacher, num=plan.num, batch=plan.batch, features=plan.features,
                                             reference=plan.reference, first_seed=FIRST_SEED if plan.keep_best else 0)
            best = BestStudent(measure, plan.keep_best, self.describe()) if plan.keep_best else None
            watchers.append(Watcher(config.evaluate.every, lambda averages, step, folder: best(
                select_students(averages), step, folder) if best else measure.compare(select_students(averages))))
        return watchers

    def evaluate(self, folder: Path, students: dict[float, Student], began: float,
                 earlier: dict[str, Student]) -> DistillationResult:
        """Measure teacher and students on the same seeds and write results.json.

        folder, students: of the run, as `train` gives them.
        began: as in `distil_in_steps`.
        earlier: students of the stages before, by the names of their rows.
        """
        config = self.config
        first, *others = students
        named = earlier | {"student": students[first]} | {f"student, EMA {rate}": students[rate] for rate in others}
        evaluation = evaluate(self.teacher, named, num=config.evaluate.num, batch=config.evaluate.batch,
                              features=config.evaluate.features, reference=config.evaluate.reference)
        seconds = round(time.perf_counter() - began, 1)
        write_json(folder / "results.json", evaluation.record() | {
            "seconds": seconds, "seeds": f"0-{config.evaluate.num - 1}", "ema": list(students),
            "train_seed": config.train.seed, "steps": self.steps, "batch": config.train.batch,
            "threads": torch.get_num_threads(), "commit": find_commit(), "versions": list_versions()})
        return DistillationResult(folder, students, evaluation, seconds)


def build_objective(config: DistillConfig, teacher: Denoiser, device: str = "cpu",
                    previous: Path | None = None, net: dict[str, Any] | None = None) -> Objective:
    """Build the objective over a new student of the teacher.

    device: `meta` for a dry run, else `cpu`.
    previous: the folder of the stage before, for `student.init=previous`.
    net: its student's network, if that is of the user's own.

    Raises PidistillError for settings that cannot be had together.
    """
    torch.manual_seed(config.train.seed)  # initial weights, where they are random
    grid = Grid(teacher.grid_times(config.grid.points))
    if grid.points < config.grid.points:
        console.print(f"grid.points={config.grid.points}: {grid.points} different ones among the teacher's noise levels")
    options = dict(config.objective)
    name = options.pop("name")
    member = find_objective(name)
    init, named, width = config.student.init, config.student.net, config.student.width
    if previous and init == "previous":  # with that one's network
        init, named, width = str(previous), net, 1.0
    with torch.device(device):
        student = make_student(teacher, init, named, width, member.form)
        setup = Setup(student, teacher, grid, open_data(config.data, member, name, teacher), config.train.recompute)
        objective: Objective = build("objectives", name, setup, **options)
    check_contract(objective)
    if "student" not in objective.averaged:
        raise PidistillError(f"the objective {name} must average its `student`: that is what a distillation draws and saves")
    if config.train.recompute:
        find_recomputable_blocks(objective.networks.values())
    return objective


def open_data(data: str | None, member: type[Objective], name: str, teacher: Denoiser) -> ImageSet | None:
    """Open the images that an objective needs; None if it needs none. Raises PidistillError if they do not suit the teacher.

    data: as `open_images` takes it.
    member, name: the objective's class, and its name for errors.
    """
    if member.needs == "noise":
        if data is not None:
            raise PidistillError(f"the objective {name} needs no images; leave `data` out")
        return None
    if data is None:
        raise PidistillError(f"the objective {name} needs images: data=..., a folder, a .zip, an .npz or `digits`")
    if teacher.decoder:
        raise PidistillError(f"the objective {name} needs images, and this teacher draws latents: there is no encoder here")
    images = open_images(data)
    if images.shape != teacher.shape:
        raise PidistillError(f"{data} has images of shape {images.shape}, the teacher's are {teacher.shape}")
    if teacher.num_classes and not 0 < images.num_classes <= teacher.num_classes:
        raise PidistillError(f"{data} has {images.num_classes or 'no'} classes, the teacher {teacher.num_classes}")
    return images


def select_students(averages: Averages) -> dict[float, Student]:
    """Select the averaged students, by EMA rate."""
    return {rate: student for rate, networks in averages.items() if isinstance(student := networks["student"], Student)}


class Preview:
    """Draws teacher and student for the same fixed seeds, the teacher once; the last picture is also the run's own."""

    def __init__(self, teacher: Denoiser, seeds: list[int]):
        self.teacher, self.seeds = teacher, seeds
        self.labels = labels_of(seeds, teacher.num_classes)
        self.images: torch.Tensor | None = None

    def __call__(self, averages: Averages, step: int, folder: Path) -> None:
        student = next(iter(select_students(averages).values()))
        if self.images is None:
            self.images = sample_teacher(self.teacher, self.seeds, self.labels)
        for path in (folder / "samples" / f"{step:06d}.png", folder / PICTURE):
            write_comparison(path, self.images, student.sample(self.seeds, self.labels))
