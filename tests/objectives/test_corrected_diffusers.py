"""The correction with diffusers' teachers that predict noise, v or the velocity of a flow; each is trained here, as such.

The images are the digits at 8x8. FD is between features of the digits' classifier, of what the teacher draws (Heun, 18
steps) and of what a student draws, 1,000 each, from seeds that no training has.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from pidistill.evaluation.metrics.frechet import fit_gaussian, frechet_distance
from pidistill.files.datasets import load_digits
from pidistill.models.samplers.base import sample_teacher
from pidistill.models.teachers.base import load_teacher
from pidistill.nets.features.base import load_features
from tests.models.teachers.test_diffusers import ddim, save
from tests.runs import train_student

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("mlxtend")
SIZE, SEEDS = 8, range(10**6, 10**6 + 1000)
SCHEDULERS = {"epsilon": lambda: ddim(prediction_type="epsilon"),
              "v_prediction": lambda: ddim(prediction_type="v_prediction"),
              "flow": diffusers.FlowMatchEulerDiscreteScheduler}


def corrupt(y, noise, scheduler, kind):
    """The network's input, its clock and what it is to predict, as diffusers' own training scripts make them."""
    if kind == "flow":
        s = torch.rand(len(y))
        x = (1 - s[:, None, None, None]) * y + s[:, None, None, None] * noise
        return x, 1000 * s, noise - y
    t = torch.randint(scheduler.config.num_train_timesteps, (len(y),))
    target = noise if kind == "epsilon" else scheduler.get_velocity(y, noise, t)
    return scheduler.add_noise(y, noise, t), t, target


def train_pipeline(folder, kind: str, steps: int = 400, batch: int = 64) -> str:
    """A small UNet2DModel, trained on the digits for what `kind` says it predicts; gives the spec of its pipeline."""
    torch.manual_seed(0)
    data, scheduler = load_digits(), SCHEDULERS[kind]()
    images = F.avg_pool2d(torch.stack([torch.from_numpy(data.sample(k)["y"]) for k in range(len(data))]), 2)
    network = diffusers.UNet2DModel(
        sample_size=SIZE, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(16, 32), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), add_attention=False)
    optimizer = torch.optim.Adam(network.parameters(), lr=4e-3, fused=True)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        y = images[torch.randint(len(images), (batch,))]
        x, clock, target = corrupt(y, torch.randn_like(y), scheduler, kind)
        F.mse_loss(network(x, clock).sample, target).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        rate.step()
    return save(folder, scheduler, network.eval())


@torch.no_grad()
def features(images):
    larger = F.interpolate(images.clip(-1, 1), scale_factor=2.0, mode="bilinear")
    return fit_gaussian(load_features("digits").features(larger))


@pytest.mark.slow
@pytest.mark.parametrize("kind", SCHEDULERS)
def test_the_correction_lowers_fd_to_what_the_teacher_draws(tmp_path, kind):
    teacher = load_teacher(train_pipeline(tmp_path / "pipeline", kind))
    drawn = features(sample_teacher(teacher, SEEDS))
    common = {"teacher": teacher.spec, "grid.points": 100, "optimizer.clip": 1.0, "optimizer.decay": "cosine",
              "train.batch": 32}
    student = train_student(tmp_path / "pid", teacher, common | {"train.steps": 80, "optimizer.lr": 2e-3})
    before = frechet_distance(features(student.sample(SEEDS)), drawn)
    objective = {"name": "pid_corrected", "share": 1.0, "fake_steps": 3, "level_max": 14.0,
                 "fake_optimizer": {"lr": 2e-3, "betas": (0.9, 0.99), "decay": "constant", "warmup": 0}}
    student = train_student(tmp_path / "corrected", teacher, common | {
        "student.init": str(tmp_path / "pid" / "student"), "train.steps": 90, "optimizer.name": "adam",
        "optimizer.lr": 1e-3, "optimizer.warmup": 30, "objective": objective})
    after = frechet_distance(features(student.sample(SEEDS)), drawn)
    print(f"{kind}: FD to the teacher's images {before:.4f} with PID, {after:.4f} corrected")
    assert after < 0.8 * before
