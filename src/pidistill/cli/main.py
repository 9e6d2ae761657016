"""The command line: parse, call one verb, print. torch is imported only once a verb runs."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from pidistill.cli.terminal import (
    command_line,
    finish,
    one_precision,
    one_sampler,
    parse_rates,
    print_facts,
    print_rows,
    said,
    spread,
    with_out,
)
from pidistill.core.errors import PidistillError

BEGAN = time.perf_counter()  # before torch: what the user waits for counts

app = typer.Typer(name="pidistill", add_completion=False, pretty_exceptions_enable=False,
                  rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]},
                  help="Distil a diffusion model into a one-step generator with Physics Informed Distillation.")

Preset = Annotated[str, typer.Option("--preset", "-p", help="Preset name, or a YAML file.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override a key: --set train.steps=100. Repeatable.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Where the result goes.")]
Model = Annotated[str, typer.Argument(help="A student or run folder, or a teacher spec such as bundled:digits.")]
Teacher = Annotated[str | None, typer.Option("--teacher", "-t", help="Teacher spec; default: the one the student had.")]
Seeds = Annotated[str, typer.Option("--seeds", help="Numbers and ranges: 0-63,70.")]
Labels = Annotated[str | None, typer.Option("--labels", help="Classes, repeated over the seeds: 3, or 0-9. "
                                            "Default: each seed's own.")]
Ema = Annotated[float | None, typer.Option("--ema", help="EMA rate of the student, of those that its run kept. "
                                           "Default: the first.")]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Images at a time.")]
Steps = Annotated[int, typer.Option("--steps", min=1, help="Steps of the teacher's sampler, where its name has none.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto: a GPU where there is one.")]
Precision = Annotated[str, typer.Option(help="Of the network's products: fp32, tf32, bf16 or fp16.")]
Metrics = Annotated[str | None, typer.Option(help="Of fid (fd), is, kid, pr, rms; comma-separated.")]
Features = Annotated[str, typer.Option(help="Feature network: auto, none, digits, inception[:FILE] (FID), dinov2[:FILE], a "
                                            "TorchScript or torch.export file, or python:MODULE:FACTORY.")]
Reference = Annotated[str | None, typer.Option(help="Statistics of the data (FILE.npz, EDM2's .pkl, one that EDM published, "
                                                    "such as cifar10-32x32), or images: a folder, .zip or .npz.")]
Num = Annotated[int, typer.Option("--num", "--images", min=2, help="Number of images. (Behind accelerate launch and "
                                                                   "torchrun, which take --num for theirs: --images.)")]
AutoBatch = Annotated[int | None, typer.Option("--batch", min=1, help="Images at a time; default: what memory holds.")]
Output = typer.Option("--out", "-o", help="Where the result goes.")
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run that is in --out, if one is there: the same line "
                                                       "starts a job and continues it.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]


@app.callback(invoke_without_command=True)
def options(context: typer.Context,
            version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        import pidistill

        print(pidistill.__version__)
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def distill(teacher: Annotated[str | None, typer.Option("--teacher", "-t", help="Spec KIND:REST, or a folder.")] = None,
            preset: Annotated[str | None, typer.Option("--preset", "-p", help="Preset name, or a YAML file.")] = None,
            override: Overrides = None, out: Out = None, force: Force = False, resume: Resume = False,
            dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what the run would need, and stop.")] = False,
            gpus: Annotated[int, typer.Option(min=1, help="GPUs that a dry run reckons with.")] = 1,
            memory: Annotated[float, typer.Option(min=0.1, help="GB of each of them.")] = 80) -> None:
    """Train a one-step student; without arguments, of the bundled digits teacher. Ends with a table."""
    from pidistill.jobs import distill as distillation
    from pidistill.jobs import dry_run as dryrun
    from pidistill.models.teachers.base import load_teacher
    from pidistill.training import run_folder as runs
    from pidistill.training.config import DistillConfig
    from pidistill.training.config_file import given_keys, load_config

    preset = preset or distillation.default_preset(teacher or "bundled:digits")
    given = [f"teacher={teacher!r}"] if teacher else []
    config = load_config(DistillConfig, preset, [*given, *with_out(override, out)])
    if dry_run:
        print_facts(dryrun.dry_run(config, gpus, memory))
        return
    denoiser = load_teacher(config.teacher)
    claim = lambda: runs.claim(config, force, resume, given_keys(override))
    finish(distillation.run(config, denoiser, claim, BEGAN), Path(config.out))


@app.command()
def resume(run: Annotated[Path, typer.Argument(help="The folder of an interrupted run.")], override: Overrides = None,
           step: Annotated[int | None, typer.Option(min=1, help="Of the checkpoint to go on from; default: the newest whole "
                                                                "one. Later ones are set aside.")] = None) -> None:
    """Continue an interrupted run from its newest whole checkpoint; --set changes its settings from there on."""
    from pidistill.jobs import distill as distillation
    from pidistill.jobs import train_teacher
    from pidistill.training import run_folder as runs
    from pidistill.training.config import TeacherConfig
    from pidistill.training.config_file import given_keys, load_config

    if runs.is_teachers(run):
        config = load_config(TeacherConfig, run / "config.yaml", override)
        claim = lambda: runs.reopen(run, config, given_keys(override), step)
        said(train_teacher.train_teacher(config, claim, command_line()))
    else:
        finish(distillation.resume(run, BEGAN, override or [], step), run)


@app.command()
def sample(model: Model, seeds: Seeds = "0-63", labels: Labels = None, ema: Ema = None,
           out: Annotated[Path, Output] = Path("samples.png"),
           columns: Annotated[int | None, typer.Option(min=1, help="Columns of the grid.")] = None,
           batch: AutoBatch = None,
           sampler: Annotated[str, typer.Option(help="Sampler of a teacher: heun:18, ddim,eta=1:50, deis3:10.")] = "heun",
           steps: Steps = 18, device: Device = "auto", precision: Precision = "fp32",
           compile: Annotated[bool, typer.Option("--compile", help="Compile the network first: a minute, for many images.")
                              ] = False, force: Force = False) -> None:
    """Draw images: a grid (x.png), arrays (x.npz) or a folder of PNGs (any other name)."""
    from pidistill.core.precision import set_float32_products
    from pidistill.core.processes import choose_device
    from pidistill.core.seeds import parse_integers
    from pidistill.files.folders import check_free
    from pidistill.jobs import sample as verb
    from pidistill.models.batch_size import fitting_batch
    from pidistill.models.load import load_model

    numbers = parse_integers(seeds)
    classes = None if labels is None else parse_integers(labels, "labels")
    chosen, rounding = one_sampler(sampler, steps), one_precision(precision)
    check_free(out, force)
    where = choose_device(device)
    set_float32_products(rounding)
    loaded = load_model(model, ema).to(where)
    verb.check_target(out, loaded.image_shape)
    at_once = min(batch or fitting_batch(loaded, where), len(numbers))
    call = verb.ready(loaded, rounding, at_once if compile else None)
    print(verb.sample(out, loaded, numbers, classes, columns=columns, batch_size=at_once, sampler=chosen, call=call))


@app.command()
def trajectory(student: Model, teacher: Teacher = None, seeds: Seeds = "0-3", labels: Labels = None, ema: Ema = None,
               columns: Annotated[int, typer.Option(min=2, max=100, help="Times from T to eps.")] = 10,
               out: Annotated[Path, Output] = Path("trajectory.png"), device: Device = "auto",
               force: Force = False) -> None:
    """Draw the student's states from T to eps above the teacher's, for the same noise (the paper's Figure 8)."""
    from pidistill.core.processes import choose_device
    from pidistill.core.seeds import parse_integers
    from pidistill.files.folders import check_free
    from pidistill.jobs.trajectory import draw_trajectory
    from pidistill.models.drawing import choose_labels
    from pidistill.models.load import load_pair

    numbers = parse_integers(seeds, most=100)
    classes = None if labels is None else parse_integers(labels, "labels")
    check_free(out, force)
    model, denoiser = load_pair(student, teacher, ema)
    where = choose_device(device)
    model, denoiser = model.to(where), denoiser.to(where)
    y = choose_labels(classes, model.num_classes, numbers)
    rms = draw_trajectory(out, model, denoiser, numbers, y, columns)
    print(f"{len(numbers)} trajectories in {out}; r.m.s. difference at eps {rms:.3f}")


@app.command()
def evaluate(model: Model, teacher: Teacher = None,
             num: Num = 5000,
             repeats: Annotated[int, typer.Option(min=1, max=100, help="Disjoint sets of seeds, in turn; shows all, "
                                                                       "their minimum and mean.")] = 1,
             first_seed: Annotated[int, typer.Option(min=0, max=10**18, help="Seeds run from here.")] = 0,
             batch: AutoBatch = None,
             ema: Annotated[str | None, typer.Option(help="EMA rates of the student, such as 0.999,0.9999; one row each. "
                                                     "Default: the first of its run.")] = None,
             metrics: Metrics = None, features: Features = "auto", reference: Reference = None,
             sampler: Annotated[str, typer.Option(help="Sampler of the teacher: heun:18, ddim:50, ...")] = "heun",
             steps: Steps = 18, device: Device = "auto",
             checkpoints: Annotated[bool, typer.Option("--checkpoints", help="Every checkpoint and EMA rate of a run, as a "
                                                                             "curve; goes on where it stopped.")] = False,
             out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file.")] = None,
             force: Force = False) -> None:
    """Measure a student against its teacher (or a teacher alone): FID, IS, KID, distance to its solutions, images/s.

    Without --metrics: the Frechet distance, where a feature network is there, and the distance to the teacher's solutions.
    With --metrics, the teacher is drawn only if rms is among them or --teacher names it.
    """
    from pidistill.core import processes as parallel
    from pidistill.evaluation import evaluate as verb
    from pidistill.evaluation.measure import metric_names
    from pidistill.files.folders import check_free, write_json
    from pidistill.models.load import load_model, load_pair
    from pidistill.models.student import Student

    if out:
        check_free(out, force)
    names = metric_names(metrics or "frechet,trajectory_rmse")
    chosen = one_sampler(sampler, steps)
    parallel.join()
    where = parallel.choose_device(device)
    network = verb.pick_features(features, model, teacher)
    if metrics and not network and names != ["trajectory_rmse"]:
        raise PidistillError(f"--metrics {metrics} needs a feature network: --features inception, dinov2, or a file")
    if checkpoints:
        evaluate_checkpoints(Path(model), teacher, network, reference, names, where, num, batch, first_seed, repeats, out)
        return
    rates: list[float | None] = parse_rates(ema) if ema else [None]
    subject, students = load_model(model, rates[0]), {}
    denoiser: Any = None
    if not isinstance(subject, Student):
        denoiser = subject.to(where)
    elif metrics and not teacher and "trajectory_rmse" not in names:
        for rate in rates:
            students[row_name(rate, rates)] = load_model(model, rate).to(where)
    else:
        for rate in rates:
            students[row_name(rate, rates)], denoiser = load_pair(model, teacher, rate)
            students[row_name(rate, rates)].to(where)
        denoiser.to(where)
    options = {"teacher": denoiser, "students": students, "batch": batch, "features": network, "reference": reference,
               "metrics": names, "sampler": chosen}
    about = verb.provenance(num, first_seed, repeats)
    if repeats == 1:
        results = verb.evaluate(num=num, first_seed=first_seed, **options)
        rows = verb.table(results)
    else:
        results = verb.evaluate_repeats(repeats, num, first_seed, **options)
        rows = verb.repeats_table(results, about["seeds"])
    if parallel.rank() == 0:
        print_rows(rows)
        if out:
            write_json(out, results | about | {"command": command_line()})


def row_name(rate: float | None, rates: list[float | None]) -> str:
    return "student" if rate == rates[0] else f"student, EMA {rate}"


def evaluate_checkpoints(run: Path, teacher: str | None, features: str | None, reference: str | None, names: list[str],
                         where: Any, num: int, batch: int | None, first_seed: int, repeats: int, out: Path | None) -> None:
    from pidistill.core import processes as parallel
    from pidistill.evaluation import evaluate as verb
    from pidistill.evaluation.measure import Measure
    from pidistill.evaluation.plots import plot_curves
    from pidistill.files.folders import write_json
    from pidistill.models.teachers.base import load_teacher
    from pidistill.training.config import DistillConfig
    from pidistill.training.config_file import load_config

    if not (run / "config.yaml").exists():
        raise PidistillError(f"{run} holds no run: config.yaml was expected there")
    config = load_config(DistillConfig, run / "config.yaml")
    options = config.evaluate
    features = features or options.features
    if not features:
        raise PidistillError("the checkpoints need a feature network: --features inception, dinov2, digits or a file")
    denoiser = load_teacher(teacher or config.teacher)
    measure = Measure(features, reference or options.reference, denoiser.image_shape, where,
                      [name for name in names if name != "trajectory_rmse"])
    record = verb.evaluate_checkpoints(run, denoiser, measure, num=num, batch=batch, first_seed=first_seed, repeats=repeats)
    if parallel.rank():
        return
    key = next(key for key in verb.UNITS if key in record["curves"][str(config.ema[0])]["runs"][0])
    path = out or run / "evaluation.json"
    write_json(path, record | verb.provenance(num, first_seed, repeats) | {"command": command_line()})
    plot_curves(path.with_suffix(".png"), record, key, verb.UNITS[key])
    print_rows([["EMA", "step", f"{verb.UNITS[key]}, each set of seeds"], *(
        [rate, str(step), ", ".join(verb.written(key, line[key][k][1]) for line in curve["runs"])]
        for rate, curve in record["curves"].items() for k, (step, _) in enumerate(curve["runs"][0][key]))])
    print(f"numbers in {path}, curve in {path.with_suffix('.png')}")


@app.command()
def reference(data: Annotated[str, typer.Argument(help="Images: a folder, a .zip (EDM's data sets), an .npz, or `digits`.")],
              out: Annotated[Path, typer.Option("--out", "-o", help="The .npz to write.")],
              features: Annotated[str, typer.Option(help="Feature network, as in evaluate.")] = "inception",
              keep: Annotated[int, typer.Option(min=0, help="Images whose features are kept, for KID, precision and "
                                                            "recall.")] = 10_000,
              batch: Batch = 250, device: Device = "auto", force: Force = False) -> None:
    """Make reference statistics of images, for evaluate and compare; the feature network's hash is in the file."""
    from pidistill.core.processes import choose_device
    from pidistill.evaluation.references import make_reference, write_reference
    from pidistill.files.folders import check_free
    from pidistill.nets.features.base import fingerprint, load_features

    if out.suffix != ".npz":
        raise PidistillError(f"--out must end in .npz, got {out}")
    check_free(out, force)
    if data != "digits" and not Path(data).exists():  # before a network is downloaded for it
        raise PidistillError(f"{data} does not exist")
    net = load_features(features).to(choose_device(device))
    found = make_reference(data, net, features, fingerprint(net), keep=keep, batch=batch)
    write_reference(out, found)
    kept = 0 if found.features is None else len(found.features)
    print(f"statistics of {found.num} images in {len(found.mean)} features of {features} in {out}; features of {kept} kept")


@app.command()
def compare(teacher: Annotated[str, typer.Option("--teacher", "-t", help="Teacher spec KIND:REST, or a folder.")],
            students: Annotated[list[str] | None, typer.Option(help="Folders of students or runs. Repeatable; several may "
                                                                    "follow.")] = None,
            samplers: Annotated[list[str] | None, typer.Option(help="NAME:STEPS,STEPS of the teacher: euler:250 heun:18 "
                                                                    "ddim:10,50. Repeatable; several may follow.")] = None,
            metrics: Metrics = None, features: Features = "auto", reference: Reference = None,
            num: Num = 5000,
            first_seed: Annotated[int, typer.Option(min=0, max=10**18, help="Seeds run from here.")] = 0,
            batch: AutoBatch = None,
            published: Annotated[str | None, typer.Option(help="Add the paper's rows: cifar10 or imagenet64.")] = None,
            device: Device = "auto",
            out: Annotated[Path, typer.Option("--out", "-o", help="Folder; a comparison there goes on.")] = Path("compare"),
            ) -> None:
    """Compare samplers of a teacher and its students in one table, as the paper's Table 1; with a plot and a picture."""
    from pidistill.core import processes as parallel
    from pidistill.evaluation.measure import metric_names
    from pidistill.jobs.compare import compare
    from pidistill.jobs.evaluate_run import pick_features
    from pidistill.models.teachers.base import load_teacher

    parallel.join()
    where = parallel.choose_device(device)
    network = pick_features(features, teacher)
    if metrics and not network:
        raise PidistillError(f"--metrics {metrics} needs a feature network: --features inception, dinov2, or a file")
    names = metric_names(metrics or "frechet,inception_score")
    if "trajectory_rmse" in names:
        raise PidistillError("rms is a metric of evaluate: compare has no one solution to measure from")
    made = compare(load_teacher(teacher).to(where), students or [], samplers or [], out, features=network,
                   reference=reference, metrics=names, num=num, first_seed=first_seed, batch=batch,
                   published=published, teacher_spec=teacher, command=command_line())
    for path in made:
        if path.suffix == ".md":
            print(path.read_text())
    for path in made:
        print(path)


@app.command()
def reproduce(
        experiment: Annotated[str, typer.Argument(help="table3, table7, figure3 to figure8, samples, or all.")],
        scale: Annotated[str, typer.Option(help="bundled: digits, minutes a run; paper: CIFAR-10, GPU-days.")] = "bundled",
        out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder; default runs/reproduce-SCALE.")] = None,
        seeds: Annotated[int | None, typer.Option(min=1, max=10, help="Training seeds of every run.")] = None,
        plan: Annotated[bool, typer.Option("--plan", help="Print what it would train and its cost, and stop.")] = False,
        override: Overrides = None) -> None:
    """Repeat an experiment of the paper; a table, a plot and the raw numbers. Goes on where it stopped."""
    from pidistill.jobs import reproduce
    from pidistill.jobs.experiments import EXPERIMENTS

    folder = out or Path(f"runs/reproduce-{scale}")
    names = list(EXPERIMENTS) if experiment == "all" else [experiment]
    print("\n".join(reproduce.cost(names, scale, folder, seeds, override or [])))
    if not plan:
        for name in names:
            for path in reproduce.reproduce(name, scale, folder, seeds=seeds, overrides=override or []):
                print(path)


@app.command("train-teacher")
def train_teacher(preset: Preset = "digits", override: Overrides = None, out: Out = None, force: Force = False,
                  resume: Resume = False) -> None:
    """Train a diffusion model (EDM loss) that can teach."""
    from pidistill.jobs import train_teacher
    from pidistill.training import run_folder as runs
    from pidistill.training.config import TeacherConfig
    from pidistill.training.config_file import given_keys, load_config

    config = load_config(TeacherConfig, preset, with_out(override, out))
    claim = lambda: runs.claim(config, force, resume, given_keys(override))
    said(train_teacher.train_teacher(config, claim, command_line()))


@app.command()
def inspect(model: Annotated[str, typer.Argument(help="Teacher spec, or folder or file of a teacher, student or run.")],
            check: Annotated[bool, typer.Option("--check", help="Ask a teacher whether it denoises, and say what is "
                                                                "wrong; exit code 1 if something is.")] = False) -> None:
    """Say what a teacher, a student or a run is; with --check, whether a teacher can teach."""
    from pidistill.jobs.inspect_files import describe_stored

    if check:
        from pidistill.jobs.check import check_teacher
        from pidistill.models.teachers.base import load_teacher

        checks = check_teacher(load_teacher(model))
        for each in checks:
            print(f"{each.verdict:<8} {each.name:<12} {each.says}")
        raise typer.Exit(1 if any(each.verdict == "wrong" for each in checks) else 0)
    facts = describe_stored(model)
    pickle = Path(model.removeprefix("edm:"))
    if pickle.suffix == ".pkl" and pickle.is_file():
        from pidistill.files.edm_pickle import describe_pickle

        facts = describe_pickle(pickle)
    elif facts is None:
        from pidistill.jobs.inspect import describe

        facts = describe(model)
    print_facts(facts)


@app.command()
def convert(teacher: Annotated[str, typer.Argument(help="Teacher spec KIND:REST, or a folder.")],
            out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")],
            dtype: Annotated[str, typer.Option(help="Of the weights in the file: fp32, fp16 or bf16.")] = "fp32",
            force: Force = False) -> None:
    """Write a teacher as config.json and safetensors, with the source's SHA-256; the folder is a teacher spec then."""
    from pidistill.files.folders import check_free
    from pidistill.jobs.convert import convert

    check_free(out, force)
    print(f"teacher in {convert(teacher, out, dtype=dtype, command=command_line())}")  # type: ignore[arg-type]


def fail(message: str) -> NoReturn:
    print("error: " + " ".join(message.split()), file=sys.stderr, flush=True)
    if "torch.distributed" in sys.modules and sys.modules["torch.distributed"].is_initialized():
        os._exit(2)  # the usual end would have NCCL wait for processes that are gone
    raise SystemExit(2)


def main() -> Any:
    # torch makes a million objects while it is imported, none of them rubbish: looking at them now and again, and once more
    # at the end, takes a sixth of the time of a short `sample`.
    gc.set_threshold(10_000)
    atexit.register(gc.freeze)
    try:
        arguments = sys.argv[1:]
        result = app(spread(arguments) if arguments[:1] == ["compare"] else arguments, standalone_mode=False)
    except PidistillError as error:
        fail(str(error))
    except KeyboardInterrupt as stopped:
        if str(stopped):
            print(stopped, end="", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's usage errors, whose home module differs between versions
            fail(f"{error.format_message()} (see pidistill --help)")
        raise
    sys.exit(result if isinstance(result, int) else 0)


if __name__ == "__main__":
    main()
