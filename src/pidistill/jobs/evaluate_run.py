"""`pidistill evaluate`: measure a student against its teacher, and the checkpoints of a run as a curve."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pidistill.core import processes
from pidistill.core.errors import PidistillError
from pidistill.core.profiles import Average
from pidistill.core.provenance import collect_provenance
from pidistill.evaluation.evaluate import evaluate, evaluate_repeats
from pidistill.evaluation.measure import Measure, parse_metric_names
from pidistill.evaluation.plots import Curve, plot_curves
from pidistill.evaluation.side_by_side import measure_models
from pidistill.evaluation.subject import Subject
from pidistill.evaluation.tables import UNITS, format_metric, order_metrics, tabulate, tabulate_repeats
from pidistill.files.folders import check_free, write_json
from pidistill.files.weights import load_weights, read_tensors
from pidistill.jobs.build_objective import make_objective_student, open_data
from pidistill.jobs.stages import PREVIOUS, is_stage, name_own_net
from pidistill.models.denoiser import Denoiser
from pidistill.models.load import find_student_folder, load_model, load_pair, read_teacher_spec
from pidistill.models.samplers.base import parse_single_sampler
from pidistill.models.student import Student, load_student
from pidistill.models.teachers.base import load_teacher
from pidistill.nets.base import Own
from pidistill.objectives.base import find_objective
from pidistill.training.checkpoint import list_checkpoints
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config
from pidistill.training.run_folder import check_run


@dataclass(frozen=True)
class Protocol:
    """How models are measured.

    num, first_seed: images of the seeds first_seed ... first_seed + num - 1.
    repeats: how often, each time with the seeds after those before.
    batch: images at a time; None: what the memory holds.
    metrics: `fid,is,...`; None: the Frechet distance and the distance to the teacher's solutions.
    features, reference: as `load_features` and `load_reference` take them; `auto` and `none` are features too.
    command: what the user typed, for the record.
    """

    num: int = 5000
    first_seed: int = 0
    repeats: int = 1
    batch: int | None = None
    metrics: str | None = None
    features: str = "auto"
    reference: str | None = None
    device: str = "auto"
    command: str = ""

    def record(self) -> dict[str, Any]:
        """Record what must be known to repeat the numbers."""
        return collect_provenance(self.num, self.first_seed, self.repeats) | {"command": self.command}


@dataclass(frozen=True)
class Report:
    """The part of an evaluation that is printed: a table, and a line below it."""

    table: list[list[str]]
    note: str = ""


def evaluate_model(spec: str, protocol: Protocol, *, teacher: str | None = None, rates: Sequence[Average | None] = (None,),
                   sampler: str = "heun", steps: int = 18, out: Path | None = None, force: bool = False,
                   net: Own | None = None) -> Report | None:
    """Measure a student against its teacher, or a teacher alone; None on all but the main process.

    spec: of a student, a run or a teacher.
    protocol: how.
    teacher: of the student, if not the one that it was made from. It is drawn unless `metrics` are named without rms.
    rates: EMA rates of the student, or widths of profiles, a row each; None: the first of its run.
    sampler, steps: of the teacher, as `parse_single_sampler` takes them.
    out: a JSON file.
    force: what is there is replaced.
    net: of the student, as `load_student` takes it.
    """
    if out:
        check_free(out, force)
    names = parse_metric_names(protocol.metrics or "frechet,trajectory_rmse")
    solver = parse_single_sampler(sampler, steps)
    processes.join()
    device = processes.choose_device(protocol.device)
    features = pick_features(protocol.features, spec, teacher)
    if protocol.metrics and not features and names != ["trajectory_rmse"]:
        raise PidistillError(f"--metrics {protocol.metrics} needs a feature network: --features inception, dinov2, "
                             "or a file")
    with_teacher = not protocol.metrics or bool(teacher) or "trajectory_rmse" in names
    denoiser, students = load_subjects(spec, teacher, rates, device, with_teacher, net)
    options: dict[str, Any] = {"teacher": denoiser, "students": students, "batch": protocol.batch, "features": features,
                               "reference": protocol.reference, "metrics": names, "sampler": solver}
    about = protocol.record()
    evaluation: Any
    if protocol.repeats == 1:
        evaluation = evaluate(num=protocol.num, first_seed=protocol.first_seed, **options)
        table = tabulate(evaluation)
    else:
        evaluation = evaluate_repeats(protocol.repeats, protocol.num, protocol.first_seed, **options)
        table = tabulate_repeats(evaluation, about["seeds"])
    if not processes.is_main():
        return None
    if out:
        write_json(out, evaluation.record() | about)
    return Report(table)


def load_subjects(spec: str, teacher: str | None, rates: Sequence[Average | None], device: torch.device,
                  with_teacher: bool, net: Own | None = None) -> tuple[Denoiser | None, dict[str, Student]]:
    """Load the teacher, if there is one, and the students by name that a spec stands for.

    spec, teacher, rates, net: as `evaluate_model` takes them.
    device: where they go.
    with_teacher: whether a student's teacher is loaded beside it.
    """
    if find_student_folder(Path(spec)) is None:
        if len(rates) > 1:
            raise PidistillError(f"{spec} is no student; of a teacher one average is measured at a time")
        model = load_model(spec, rates[0], net)
        assert isinstance(model, Denoiser)
        return model.to(device), {}
    denoiser: Denoiser | None = None
    students: dict[str, Student] = {}
    for rate in rates:
        name = "student" if rate == rates[0] else f"student, EMA {rate}"
        if with_teacher:
            students[name], denoiser = load_pair(spec, teacher, rate, net)
            students[name].to(device)
        else:
            students[name] = load_student(find_student_folder(Path(spec)) or spec, rate, net).to(device)
    return denoiser.to(device) if denoiser else None, students


def evaluate_checkpoints(run: Path, protocol: Protocol, *, teacher: str | None = None, out: Path | None = None,
                         force: bool = False) -> Report | None:
    """Measure every checkpoint and EMA rate of a run; a JSON file and a plot. None on all but the main process.

    run: the folder of a distillation; what is finished lies in RUN/evaluation/ and is not measured again.
    protocol: how.
    teacher: another than the run's own.
    out: the JSON file, by default RUN/evaluation.json; the plot lies beside it.
    force: what is there is replaced.
    """
    if out:
        check_free(out, force)
    names = parse_metric_names(protocol.metrics or "frechet,trajectory_rmse")
    processes.join()
    device = processes.choose_device(protocol.device)
    features = pick_features(protocol.features, str(run), teacher)
    if protocol.metrics and not features and names != ["trajectory_rmse"]:
        raise PidistillError(f"--metrics {protocol.metrics} needs a feature network: --features inception, dinov2, "
                             "or a file")
    check_run(run)
    config = load_config(DistillConfig, run / "config.yaml")
    features = features or config.evaluate.features
    if not features:
        raise PidistillError("the checkpoints need a feature network: --features inception, dinov2, digits or a file")
    denoiser = load_teacher(teacher or read_first_teacher(run, config))
    measure = Measure(features, protocol.reference or config.evaluate.reference, denoiser.image_shape, device,
                      [name for name in names if name != "trajectory_rmse"])
    curves = measure_checkpoints(run, config, denoiser, measure, protocol)
    if not processes.is_main():
        return None
    key = order_metrics(curves[str(config.ema[0])].runs[:1])[0]
    path = out or run / "evaluation.json"
    write_json(path, {"curves": {rate: curve.record() for rate, curve in curves.items()}} | protocol.record())
    plot_curves(path.with_suffix(".png"), list(curves.values()), key, UNITS[key])
    rows = [[rate, str(step), ", ".join(format_metric(key, line[key][k][1]) for line in curve.runs)]
            for rate, curve in curves.items() for k, (step, _) in enumerate(curve.runs[0][key])]
    return Report([["EMA", "step", f"{UNITS[key]}, each set of seeds"], *rows],
                 f"numbers in {path}, curve in {path.with_suffix('.png')}")


def measure_checkpoints(run: Path, config: DistillConfig, teacher: Denoiser, measure: Measure,
                        protocol: Protocol) -> dict[str, Curve]:
    """Measure the checkpoints of a run as a curve for each EMA rate, by the rate; each set of seeds is a line of it.

    run, config: the folder and the settings of a distillation.
    teacher: of its students.
    measure: what is measured.
    protocol: on which seeds.
    """
    curves: dict[str, Curve] = {}
    for step, rate, student in load_checkpoints(run, config, teacher):
        student = student.to(measure.device)
        curve = curves.setdefault(str(rate), Curve(f"EMA {rate}", [{} for _ in range(protocol.repeats)]))
        for k, line in enumerate(curve.runs):
            start = protocol.first_seed + k * protocol.num
            name = f"step {step}, EMA {rate}"
            measured = measure_models({name: Subject.of(student)}, measure, range(start, start + protocol.num),
                                      batch=protocol.batch, num_classes=student.num_classes, keep=run / "evaluation",
                                      what=name)[name]
            for key in order_metrics([measured.metrics]):
                line.setdefault(key, []).append((step, measured.metrics[key]))
    return curves


def read_first_teacher(run: Path, config: DistillConfig) -> str:
    """Read the spec of the teacher that a run began with; a stage may have learned from the student of the one before."""
    if config.teacher != PREVIOUS:
        return config.teacher
    if not is_stage(run):
        raise PidistillError(f"{run} is a stage that learned from the one before, and is alone; name the first teacher with "
                             "--teacher")
    return load_config(DistillConfig, run.parent / "config.yaml").teacher


def load_checkpoints(run: Path, config: DistillConfig, teacher: Denoiser) -> Iterator[tuple[int, float, Student]]:
    """Load every checkpoint of a distillation's folder; yields (step, EMA rate, student)."""
    checkpoints = list_checkpoints(run / "checkpoints")
    if not checkpoints:
        raise PidistillError(f"{run} holds no checkpoints; checkpoint.every and checkpoint.keep say which are kept")
    before, net = find_previous(run, config)
    needs = find_objective(config.objective["name"]).needs
    data = open_data(config, teacher) if needs == "trajectories" else None
    for folder in checkpoints:
        for rate in config.ema:
            path = folder / f"student-ema-{rate}.safetensors"
            student = make_objective_student(config, teacher, data, before, net)
            load_weights(student, read_tensors(path), path)
            yield int(folder.name), rate, student.eval().requires_grad_(False)


def find_previous(run: Path, config: DistillConfig) -> tuple[Path | None, dict[str, Any] | None]:
    """Find the folder of the stage before, and its network if that is of the user's own, if a run starts from there.

    run, config: the folder and the settings of a distillation, or of a stage. Raises PidistillError for a stage alone.
    """
    if config.student.init != "previous":
        return None, None
    number = int(run.name.partition("-")[0]) if is_stage(run) else 0
    stages = {int(place.name.partition("-")[0]): place for place in run.parent.glob("[0-9]*-*") if is_stage(place)}
    before = stages.get(number - 1)
    if before is None or find_student_folder(before) is None:
        raise PidistillError(f"{run} is a stage whose student begins as that of the stage before, which is not beside it")
    earlier = [load_config(DistillConfig, stages[k] / "config.yaml") for k in sorted(stages) if k < number]
    return before, name_own_net(earlier)


def pick_features(name: str, *specs: str | None) -> str | None:
    """Pick the feature network that a name stands for, None for `none`.

    name: `none`, a network's name, or `auto`, which is `digits` for the bundled digits and their students, and else `none`.
    specs: of the models that are measured.
    """
    if name == "auto":
        return "digits" if any(spec and "bundled:digits" in (spec, read_teacher_spec(spec)) for spec in specs) else None
    return None if name == "none" else name
