"""`pidistill train-teacher`: train a teacher with EDM's loss (Karras et al., 2022, Eq. 2)."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from pidistill.core.errors import PidistillError
from pidistill.core.provenance import find_commit, list_versions
from pidistill.core.registry import build
from pidistill.core.seeds import labels_of, parse_integers
from pidistill.evaluation.pictures import drawable, write_grid
from pidistill.files.datasets import open_images
from pidistill.files.folders import write_folder
from pidistill.models.denoiser import Denoiser, Preconditioned
from pidistill.models.samplers.base import sample_teacher
from pidistill.models.teachers.base import collect_tensors, describe_teacher
from pidistill.nets.base import build_net
from pidistill.objectives.base import Objective, TeacherSetup, find_objective
from pidistill.training.config import TeacherConfig
from pidistill.training.config_file import given_keys, load_config
from pidistill.training.log import read_losses, read_metrics
from pidistill.training.run_folder import claim
from pidistill.training.trainer import Averages, Watcher, train


def run_teacher_training(config: TeacherConfig, command: str, *, force: bool = False, resume: bool = False,
                         given: Collection[str] = (), step: int | None = None) -> Path | None:
    """Train (or continue) a teacher in the folder `config.out`; gives FOLDER/teacher (main process only).

    config: of the training.
    command: what the user typed, for the teacher's provenance.
    force, resume, given, step: see `claim`, which gives the run its folder.
    """
    job = TeacherTraining(config)
    with claim(config, force, resume, given, step) as folder:
        return job.train(folder, command)


def resume_teacher_training(folder: Path, overrides: Sequence[str], step: int | None, command: str) -> Path | None:
    """Continue a teacher's training; gives FOLDER/teacher (main process only).

    folder, overrides, step: as `resume_distillation` takes them.
    command: as `run_teacher_training` takes it.
    """
    config = load_config(TeacherConfig, folder / "config.yaml", [*overrides])
    return run_teacher_training(config.model_copy(update={"out": str(folder)}), command, resume=True,
                                given=given_keys([*overrides]), step=step)


class TeacherTraining:
    """A teacher's training that is ready to be run: mistakes in its settings and data were found when it was made."""

    def __init__(self, config: TeacherConfig):
        self.config, self.began = config, time.perf_counter()
        self.data = open_images(config.data)
        self.num_classes = self.data.num_classes if config.conditional else 0
        shape = self.data.shape
        torch.manual_seed(config.train.seed)  # initial weights
        net = build_net(config.net, shape, self.num_classes, own=True)
        if getattr(net, "timeless", False) is True:
            raise PidistillError(f"net={config.net['name']} does not look at the noise level, and a teacher has to; take "
                                 "another, such as song_unet")
        self.denoiser = Preconditioned(net, shape, self.num_classes, net_spec=config.net, t_min=config.t_min,
                                       t_max=config.t_max, sigma_data=config.sigma_data, rho=config.rho)
        options = dict(config.objective)
        name = options.pop("name")
        find_objective(name, TeacherSetup)  # is it one that trains a teacher?
        self.objective: Objective = build("objectives", name, TeacherSetup(self.denoiser, self.data), **options)
        self.seeds = parse_integers(config.preview.seeds, "preview.seeds")

    def train(self, folder: Path, command: str) -> Path | None:
        """Train (or continue) in a folder and save the averaged teacher there, with its provenance.

        Gives FOLDER/teacher, on the main process alone. command: as `run_teacher_training` takes it.
        """
        config = self.config
        watchers = [Watcher(config.preview.every, self.preview)] if drawable(self.denoiser.shape) else []
        trained = train(self.objective, config, folder, watchers)
        if not trained.main:
            return None
        losses = [read_losses(record) for record in read_metrics(folder) if read_losses(record)][-50:]
        final = {key: sum(line[key] for line in losses if key in line) / sum(key in line for line in losses)
                 for key in dict.fromkeys(key for line in losses for key in line)}
        provenance = {"command": command, "commit": find_commit(), "seed": config.train.seed, "steps": config.train.steps,
                      "batch": config.train.batch, "final_loss": final.get("loss", final), "data": config.data,
                      "data_images": len(self.data), "data_licence": self.data.licence, "versions": list_versions(),
                      "seconds": round(time.perf_counter() - self.began)}
        teacher = trained.averages[config.ema[0]]["teacher"]
        assert isinstance(teacher, Preconditioned)
        write_folder(folder / "teacher", collect_tensors(teacher),
                     {"config": describe_teacher(teacher), "provenance": provenance})
        return folder / "teacher"

    def preview(self, averages: Averages, step: int, folder: Path) -> None:
        """Draw a grid of the averaged teacher's images into FOLDER/samples, as a watcher of the training."""
        teacher = averages[self.config.ema[0]]["teacher"]
        assert isinstance(teacher, Denoiser)
        images = sample_teacher(teacher, self.seeds, labels_of(self.seeds, self.num_classes))
        write_grid(folder / "samples" / f"{step:06d}.png", images, columns=8)
