"""`pidistill train-teacher`: train a teacher with EDM's loss."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import torch

from pidistill.core.provenance import commit, versions
from pidistill.core.registry import build
from pidistill.core.seeds import labels_of, parse_integers
from pidistill.evaluation.pictures import drawable, write_grid
from pidistill.files.datasets import load_images
from pidistill.files.folders import write_folder
from pidistill.models.denoiser import Denoiser, Preconditioned
from pidistill.models.samplers.base import sample_teacher
from pidistill.models.teachers.base import teacher_config, teacher_tensors
from pidistill.nets.base import build_net
from pidistill.training import run_folder as runs
from pidistill.training.config import TeacherConfig
from pidistill.training.log import read_metrics
from pidistill.training.trainer import Averages, Watcher, train


def train_teacher(config: TeacherConfig, claim: runs.Claim, command: str) -> Path | None:
    """Run or continue the training in the folder that `claim` holds.

    Returns folder/teacher (None on all but the main process).
    """
    began = time.perf_counter()
    data = load_images(config.data)
    num_classes = data.num_classes if config.conditional else 0
    shape = tuple(data.images.shape[1:])
    torch.manual_seed(config.train.seed)  # initial weights
    net = build_net(config.net, shape, num_classes)
    denoiser = Preconditioned(net, shape, num_classes, net_spec=config.net, t_min=config.t_min, t_max=config.t_max,
                              sigma_data=config.sigma_data, rho=config.rho)
    options = dict(config.objective)
    objective = build("objectives", options.pop("name"), denoiser, data, **options)
    seeds = parse_integers(config.preview.seeds, "preview.seeds")

    def preview(averages: Averages, step: int, folder: Path) -> None:
        teacher = averages[config.ema[0]]["teacher"]
        assert isinstance(teacher, Denoiser)
        images = sample_teacher(teacher, seeds, labels_of(seeds, num_classes))
        write_grid(folder / "samples" / f"{step:06d}.png", images, columns=8)

    with ExitStack() as held:
        folder = held.enter_context(claim())  # only now: a mistake above must not leave, or replace, a run
        watchers = [Watcher(config.preview.every, preview)] if drawable(shape) else []
        averages, main = train(objective, config, folder, watchers)
        if not main:
            return None
        losses = [record["loss"] for record in read_metrics(folder) if "loss" in record][-50:]
        provenance = {"command": command, "commit": commit(), "seed": config.train.seed, "steps": config.train.steps,
                      "batch": config.train.batch, "final_loss": sum(losses) / len(losses), "data": config.data,
                      "data_images": len(data.images), "data_licence": data.licence, "versions": versions(),
                      "seconds": round(time.perf_counter() - began)}
        teacher = averages[config.ema[0]]["teacher"]
        assert isinstance(teacher, Preconditioned)
        write_folder(folder / "teacher", teacher_tensors(teacher),
                     {"config": teacher_config(teacher), "provenance": provenance})
        return folder / "teacher"
