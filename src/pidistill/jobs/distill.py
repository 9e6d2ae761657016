"""`pidistill distill`: train a student (Algorithm 1), then measure it against its teacher."""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Sequence
from pathlib import Path
from typing import Any

from pidistill.core import processes
from pidistill.core.console import console
from pidistill.core.errors import PidistillError
from pidistill.evaluation.evaluate import Evaluator
from pidistill.files.folders import write_bytes
from pidistill.jobs.build_objective import build_objective
from pidistill.jobs.distillation import Distillation, DistillationResult
from pidistill.jobs.report.gather import PICTURE
from pidistill.jobs.stages import find_own_net, is_stage, list_stages, load_earlier, name_own_net, start_anew
from pidistill.models.denoiser import Denoiser, as_denoiser
from pidistill.models.student import Student, load_student
from pidistill.models.teachers.base import load_teacher
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import find_differences, flatten, given_keys, load_config, read_yaml
from pidistill.training.run_folder import check_run, claim
from pidistill.training.trainer import StepTaken, exhaust, wait_for_all


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
    return load_student(config.out, net=find_own_net(Path(config.out) / "student", list_stages(config).values(), denoiser))


def default_preset(teacher: str | None) -> str:
    """Choose the preset of a teacher for which none is named."""
    return "digits" if teacher == "bundled:digits" else "default"


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
    stages, job = plan_distillation(config, teacher)
    with claim(config, force, resume, given, step) as folder:
        job, students = yield from train_all(stages, job, folder)
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


def plan_distillation(config: DistillConfig, teacher: Denoiser) -> tuple[dict[str, DistillConfig], Distillation]:
    """Plan the stages of a distillation, and prepare the first one: mistakes in the settings of all are found here."""
    stages = list_stages(config)
    first, *later = start_anew(stages).values()
    for stage in later:
        build_objective(stage, teacher, "meta")
    return stages, Distillation(first, teacher)


def train_all(stages: dict[str, DistillConfig], job: Distillation, folder: Path,
              evaluator: Evaluator | None = None) -> Generator[
                  StepTaken, None, tuple[Distillation, dict[float, Student] | None]]:
    """Train the stages of a distillation that are not finished, one after the other; gives the last one, and its students.

    stages: as `list_stages` gives them.
    job: of the first stage.
    folder: of the distillation, where the last student is saved too.
    evaluator: as `Distillation.train_in_steps` takes it.
    """
    if len(stages) == 1:
        students = yield from job.train_in_steps(folder, evaluator)
        return job, students
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
            students = yield from job.train_in_steps(place, evaluator)
    if students is not None:
        job.save(folder, students)
        if (place / PICTURE).exists():
            write_bytes(folder / PICTURE, (place / PICTURE).read_bytes())
    wait_for_all()
    return job, students
