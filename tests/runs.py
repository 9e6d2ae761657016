"""Tiny training runs, interrupted and compared."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import torch

from pidistill.files.weights import read_tensors
from pidistill.jobs.build_objective import build_objective
from pidistill.models.student import Student
from pidistill.models.student_init import make_student
from pidistill.models.teachers.base import load_teacher
from pidistill.models.teachers.gaussian import gaussian
from pidistill.objectives.base import Setup
from pidistill.objectives.pid import PID
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config
from pidistill.training.trainer import take_steps, train
from tests.helpers import MLP, grid_of, tiny_teacher

VOLATILE = ("seconds", "images_per_s")


def make_objective(spec: str = "2,modes=4,std=0.2", points: int = 10, seed: int = 0) -> PID:
    """PID of a small network, with the weights of a seed, that a Gaussian mixture teaches."""
    torch.manual_seed(seed)
    teacher = gaussian(spec)
    return PID(Setup(make_student(teacher, "random", MLP), teacher, grid_of(teacher, points)))


def make_image_objective(member: type[PID] = PID) -> PID:
    """PID of the tiny network for images, which is its own teacher at the start."""
    teacher = tiny_teacher()
    return member(Setup(make_student(teacher), teacher, grid_of(teacher, 10)))


def make_run(folder, overrides=None, images=False):
    """Give objective, configuration and folder of a run, always from the same start."""
    folder.mkdir(exist_ok=True)
    values = {"train.steps": 6, "train.batch": 4, "log.every": 2, "checkpoint.every": 3, "optimizer.lr": 1e-2, "out": "x",
              "optimizer.clip": None, "ema": 0.9} | (overrides or {})
    config = load_config(DistillConfig, "default", values)
    return make_image_objective() if images else make_objective(), config, folder


def start_run(folder, overrides=None, watchers=(), images=False):
    """Train in `folder` from the same start; returns (weights, average at each EMA rate ...), flat."""
    objective, config, folder = make_run(folder, overrides, images)
    trained = train(objective, config, folder, watchers)
    assert trained.main and trained.steps == config.train.steps
    return flatten(objective, trained.averages)


def flatten(objective, averages):
    """Flatten the weights and the average at each EMA rate."""
    nets = [objective.networks["student"], *(networks["student"] for networks in averages.values())]
    return [torch.cat([p.detach().flatten() for p in net.parameters()]) for net in nets]


def loop(steps, body):
    """Run a loop over the steps of a run; gives what the generator returns."""
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            return end.value
        body(step)


def metrics(folder) -> list[dict]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in VOLATILE} for record in records]


def cut(source, target, step: int):
    """The folder as an interruption after checkpoint `step` leaves it: later lines are there, later checkpoints not."""
    shutil.copytree(source, target)
    for path in (target / "checkpoints").iterdir():
        if int(path.name) > step:
            shutil.rmtree(path)


def run_verb(*args: object, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """Run `pidistill ARGS` as a process of its own, or as several that torchrun starts."""
    launch = [] if processes == 1 else ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
    return subprocess.run([sys.executable, "-m", *launch, "pidistill.cli", *map(str, args)], capture_output=True, text=True,
                          timeout=200, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)


def train_student(folder, teacher, values: dict) -> Student:
    """Train a student in a new folder, and save its average there, so that another run can start from it."""
    config = load_config(DistillConfig, "default", {"ema": 0.95, "log.every": 1000, "out": str(folder)} | values)
    folder.mkdir(parents=True)
    averages = train(build_objective(config, teacher), config, folder).averages
    student = averages[config.ema[0]]["student"]
    student.save(folder / "student")
    return student


def check_resumption(folder, values: dict) -> None:
    """A short run that is left after its third step, and goes on, is equal to one that is not: every bit.

    values: settings, such as {"objective": {...}}.
    """
    common = {"teacher": "gaussian:2,modes=4,std=0.1,classes", "student": {"init": "random", "net": MLP}, "grid.points": 10,
              "train.steps": 6, "train.batch": 8, "log.every": 3, "checkpoint.every": 2, "checkpoint.keep": 9, "ema": 0.9,
              "optimizer.lr": 1e-3, "evaluate.num": 8, "preview.every": 100}
    for name, last in (("whole", 6), ("left", 3), ("left", 6)):
        config = load_config(DistillConfig, "default", common | {"out": str(folder / name)} | values)
        (folder / name).mkdir(exist_ok=True)
        for step in take_steps(build_objective(config, load_teacher(config.teacher)), config, folder / name):
            if step.number == last < config.train.steps:
                break
    files = {name: sorted((folder / name / "checkpoints" / "000006").glob("*.safetensors")) for name in ("whole", "left")}
    assert [path.name for path in files["whole"]] == [path.name for path in files["left"]]
    for one, other in zip(*files.values(), strict=True):
        a, b = read_tensors(one), read_tensors(other)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), one.name
    assert metrics(folder / "whole") == metrics(folder / "left")
