"""`pidistill pairs`: draw pairs of noise and the teacher's solution into a folder, shard by shard.

A shard is a function of the settings, and of the batch up to rounding, alone; processes that are started together take
different shards, and a program that was interrupted draws those that are missing or damaged.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from pidistill.core import processes
from pidistill.core.errors import ForeignError, PidistillError, words_of
from pidistill.core.precision import set_float32_products
from pidistill.core.provenance import find_commit, list_versions
from pidistill.core.tensors import find_device
from pidistill.files.folders import write_bytes, write_text
from pidistill.files.manifest import read_manifest, serialise_manifest
from pidistill.files.pairs import (
    FORMAT,
    RECORD_NAME,
    VERSION,
    PairSet,
    PairSettings,
    PlannedPairs,
    check_shard,
    find_difference,
    is_pairs,
    locate_shard,
    open_pairs,
    read_settings,
)
from pidistill.jobs.pair_shards import choose_states, draw_shard, make_draw, merge_errors
from pidistill.models.batch_size import fit_batch_size
from pidistill.models.denoiser import Denoiser, name_teacher
from pidistill.models.samplers.base import STEPS, Sampler, parse_single_sampler
from pidistill.models.teachers.base import find_licence, load_teacher
from pidistill.nets.features.base import fingerprint
from pidistill.training.config import PairsConfig
from pidistill.training.trainer import wait_for_all

SMALLEST_SHARD, LARGEST_SHARD = 250, 1000  # in pairs
SHARDS = 16  # that a set has, if they are not too small or large, for several processes
SAY_EVERY = 5.0  # seconds between two lines of progress


def draw_pairs_of_spec(spec: str, out: Path, num: int, *, sampler: str = "heun:18", trajectory: int | None = None,
                       seed: int = 0, shard: int | None = None, half: bool = False, batch: int | None = None,
                       device: str = "auto", force: bool = False) -> str | None:
    """Load the teacher that a spec names and draw its pairs into a folder; gives a line on them, on the main process.

    device: as `choose_device` takes it. Other parameters: `draw_pairs`.
    """
    solver = parse_single_sampler(sampler, STEPS)
    target = processes.choose_device(device)
    set_float32_products("fp32")
    pairs = draw_pairs(load_teacher(spec).to(target), out, num, sampler=solver, trajectory=trajectory, seed=seed,
                       shard=shard, half=half, batch=batch, force=force)
    return describe_cost(pairs) if processes.is_main() else None


def draw_pairs(teacher: Denoiser, folder: Path, num: int, *, sampler: str | Sampler = "heun:18",
               trajectory: int | None = None, seed: int = 0, shard: int | None = None, half: bool = False,
               batch: int | None = None, force: bool = False) -> PairSet:
    """Draw pairs of the teacher, on its device, into a folder, or what is missing there; gives them.

    Latents stay latents. Raises PidistillError, in one line, for a folder of other pairs, a sampler that adds noise, and a
    teacher whose solutions are no numbers.

    num, seed: how many, and of which seed.
    sampler: of the ODE, deterministic.
    trajectory: M, how many of the sampler's states are kept besides the noise, the solution among them.
    shard: pairs of a shard; None: `choose_shard`.
    half: solutions and states are stored in float16.
    batch: pairs at a time; None: those with which the folder was begun, at first what the memory holds.
    force: pairs of other settings are replaced.
    """
    solver = sampler if isinstance(sampler, Sampler) else parse_single_sampler(sampler, STEPS)
    settings = PairSettings(
        teacher.spec or name_teacher(teacher), fingerprint(teacher), teacher.guide.guidance, str(solver), seed, num,
        teacher.shape, teacher.num_classes, teacher.t_max, choose_times(teacher, solver, trajectory),
        shard or choose_shard(num), "float16" if half else "float32")
    with processes.sharing():
        if processes.is_main():
            prepare_folder(folder, settings, teacher, solver, batch, force)
        meet()
        missing = find_missing(folder, settings)
        draw_shards(teacher, solver, folder, settings, missing)
        meet()
        if processes.is_main():
            add_up_records(folder, settings)
        meet()
    return open_pairs(folder)


def plan_pairs(teacher: Denoiser, config: PairsConfig, seed: int) -> PlannedPairs:
    """Plan the pairs of a run: noise and labels are there, solutions are zeros until `fill_pairs`.

    config: `pairs` of the run.
    seed: the run's, where the pairs have none of their own. Raises PidistillError for a sampler that gives no pairs.
    """
    with torch.device("cpu"):  # a dry run builds its objective on the meta device
        times = choose_times(teacher, parse_single_sampler(config.sampler, STEPS), config.trajectory)
    return PlannedPairs(config.num, teacher.shape, teacher.num_classes, teacher.t_max,
                        seed if config.seed is None else config.seed, times)


def fill_pairs(planned: PlannedPairs, teacher: Denoiser, config: PairsConfig, folder: Path) -> PairSet:
    """Draw the planned pairs, or what is missing of them, into a folder, from which they are read then.

    All processes of the run call this together, and meet before it returns. The teacher computes in float32, on the device
    that the run will use, and is back on its own then.
    """
    wait_for_all()  # accelerate chooses how processes speak before `sharing` could
    home = find_device(teacher)
    try:
        drawn = draw_pairs(teacher.to(processes.choose_device()), folder, len(planned), sampler=config.sampler,
                           trajectory=config.trajectory, seed=planned.seed, half=config.half)
    finally:
        teacher.to(home)
    planned.open(folder)
    return drawn


def choose_shard(num: int) -> int:
    """Choose how many of so many pairs a shard has; never by the number of processes, on which no file may depend."""
    return min(max(-(-num // SHARDS), SMALLEST_SHARD), LARGEST_SHARD)


def choose_times(teacher: Denoiser, sampler: Sampler, trajectory: int | None) -> tuple[float, ...]:
    """Choose the times of a trajectory's states (M,), evenly among those that the sampler comes by; () without.

    Raises PidistillError for a sampler that adds noise, and more states than it comes by.
    """
    trace = sampler.trace(teacher)
    if trace.stochastic:
        raise PidistillError(f"{sampler} adds noise, so that its result is no function of z, and there are no pairs; take "
                             "heun:18, or another without churn and eta")
    if trace.times[-1] != 0 or list(trace.times) != sorted({*trace.times}, reverse=True):
        raise PidistillError(f"{sampler} gives states at {', '.join(f'{t:.4g}' for t in trace.times[-3:])} at its end; "
                             "pairs need descending times that end in 0")
    if trajectory is not None and not 2 <= trajectory <= len(trace.times):
        raise PidistillError(f"a trajectory of {sampler} has 2 to {len(trace.times)} states, got {trajectory}; more steps "
                             "have more")
    return tuple(trace.times[k] for k in choose_states(len(trace.times), trajectory)) if trajectory else ()


# The folder ---------------------------------------------------------------------------------------------------------------


def prepare_folder(folder: Path, settings: PairSettings, teacher: Denoiser, sampler: Sampler, batch: int | None,
                   force: bool) -> None:
    """Write pairs.json into a new folder, or see that the pairs there are those that are asked for.

    Raises PidistillError, in one line, if they are not, and for a folder with something else in it.
    """
    record: dict[str, Any] = {}
    if is_pairs(folder):
        difference: str | None = None
        try:
            there, record = read_settings(folder)
            difference = find_difference(there, settings)
        except PidistillError as error:
            difference = str(error)
        if difference and not force:
            raise PidistillError(f"{folder} holds other pairs: {difference}; choose another folder with --out, or replace "
                                 "them with --force")
        if difference:
            record = {}
            for path in folder.iterdir():
                if re.fullmatch(r"\d{5,}\.(safetensors|json)", path.name):
                    path.unlink()
    elif folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise PidistillError(f"{folder} is not empty and holds no pairs; choose another folder with --out")
    batch = batch or (size if type(size := record.get("batch")) is int and size > 0 else None) or min(
        fit_batch_size(teacher, find_device(teacher)), settings.shard)
    if record.get("batch") != batch:
        write_record(folder, settings, record or describe_origin(teacher, sampler), batch=batch)


def describe_origin(teacher: Denoiser, sampler: Sampler) -> dict[str, Any]:
    """Describe what pairs are of and from: evaluations a pair, licence, and provenance."""
    return {"evaluations": sampler.evaluations(teacher),
            "licence": f"drawn by {teacher.spec or name_teacher(teacher)}: {find_licence(teacher)}",
            "provenance": {"teacher_source": teacher.origin, "device": str(find_device(teacher)), "commit": find_commit(),
                           "versions": list_versions(), "threads": torch.get_num_threads()}}


def write_record(folder: Path, settings: PairSettings, record: dict[str, Any], **more: Any) -> None:
    """Write pairs.json: settings and all that is known besides."""
    write_text(folder / RECORD_NAME, serialise_manifest(
        {"format": FORMAT, "version": VERSION, "settings": asdict(settings)} | record | more))


def find_missing(folder: Path, settings: PairSettings) -> list[int]:
    """Find the shards that are not there whole; each process compares some of them, and all learn of all."""
    flags = torch.zeros(settings.shards, dtype=torch.int64)
    for shard in range(processes.get_rank(), settings.shards, processes.get_world_size()):
        try:
            check_shard(folder, shard, settings)
        except PidistillError:
            flags[shard] = 1
    processes.add_up([flags])
    missing: list[int] = flags.nonzero().flatten().tolist()
    if len(missing) < settings.shards:
        processes.say(f"{folder}: {settings.shards - len(missing)} of {settings.shards} shards are there")
    return missing


def add_up_records(folder: Path, settings: PairSettings) -> None:
    """Write what all shards took, and the error of float16, into pairs.json; remove what killed processes left behind."""
    records = [read_manifest(locate_shard(folder, shard).with_suffix(".json")) for shard in range(settings.shards)]
    _, known = read_settings(folder)
    seconds = round(sum(float(record["seconds"]) for record in records), 3)
    errors = merge_errors([record["half_error"] for record in records if record["half_error"]])
    write_record(folder, settings, known, seconds=seconds, half_error={
        name: {"largest": largest, "rms": math.sqrt(squares / count)} for name, (largest, squares, count) in errors.items()})
    for path in folder.glob(".[0-9]*.*.[0-9]*"):
        with suppress(OSError):
            path.unlink()


def meet() -> None:
    """Wait until every process is here."""
    processes.add_up([torch.zeros(1)])


def describe_cost(pairs: PairSet) -> str:
    """Say in a line what pairs there are, and what they took."""
    record, seconds = pairs.record, float(pairs.record["seconds"])
    line = (f"{len(pairs)} pairs in {pairs.folder}, {record['evaluations']} evaluations each, {seconds:.4g} s of all "
            f"processes, {len(pairs) / max(seconds, 1e-9):.4g} images/s")
    for name, called in (("x", "solutions"), ("states", "states")):
        if error := record["half_error"].get(name):
            line += f"; float16 of the {called}: error at most {error['largest']:.3g}, r.m.s. {error['rms']:.3g}"
    return line


def draw_shards(teacher: Denoiser, sampler: Sampler, folder: Path, settings: PairSettings, missing: list[int]) -> None:
    """Draw those of the missing shards that are this process's, and say how it goes on."""
    _, record = read_settings(folder)
    mine = missing[processes.get_rank()::processes.get_world_size()]
    began, said, done = time.perf_counter(), time.perf_counter(), 0
    draw = make_draw(teacher, sampler, len(settings.times) or None)
    try:
        for n, shard in enumerate(mine, 1):
            start = time.perf_counter()
            tensors, errors = draw_shard(draw, teacher, settings, shard, record["batch"])
            data = save(tensors)
            write_bytes(locate_shard(folder, shard), data)
            write_text(locate_shard(folder, shard).with_suffix(".json"), serialise_manifest({
                "settings": settings.digest(), "shard_sha256": hashlib.sha256(data).hexdigest(), "half_error": errors,
                "evaluations": record["evaluations"] * len(tensors["x"]), "seconds": time.perf_counter() - start}))
            done += len(tensors["x"])
            now = time.perf_counter()
            if now - said > SAY_EVERY:
                processes.say(f"{folder}: {n} of {len(mine)} shards of this process, "
                              f"{done / (now - began) * processes.get_world_size():.4g} images/s")
                said = now
    except KeyboardInterrupt:
        whole = len(list(folder.glob("[0-9]*.json")))  # the last that is written of a shard
        raise KeyboardInterrupt(f"{whole} of {settings.shards} shards stay in {folder}; the same command draws the "
                                "others\n") from None
    except torch.OutOfMemoryError as error:
        raise ForeignError(f"the memory does not hold {record['batch']} pairs at a time; set --batch to fewer "
                           f"({words_of(error)})") from error
