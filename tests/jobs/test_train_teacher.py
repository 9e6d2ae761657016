"""A teacher's training: it is prepared before its folder is claimed, and goes on as if it had not been interrupted."""

from __future__ import annotations

import shutil

import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.files.reading import read_json
from pidistill.jobs.train_teacher import TeacherTraining, resume_teacher_training, run_teacher_training
from pidistill.models.teachers.base import load_teacher
from pidistill.training.config import TeacherConfig
from tests.helpers import MLP


def configure(images_npz, folder, **changes) -> TeacherConfig:
    return TeacherConfig.model_validate({"data": str(images_npz), "net": MLP, "train": {"steps": 4, "batch": 4}, "ema": 0.9,
                                         "checkpoint": {"every": 2}, "log": {"every": 1}, "preview": {"seeds": "0-1"},
                                         "sigma_data": 0.4, "out": str(folder)} | changes)


def flatten(teacher) -> torch.Tensor:
    return torch.cat([p.flatten() for p in teacher.parameters()])


def test_a_resumed_training_ends_with_the_same_teacher(images_npz, tmp_path):
    teacher = load_teacher(str(run_teacher_training(configure(images_npz, tmp_path / "a"), "typed")))
    assert (teacher.shape, teacher.num_classes, teacher.sigma_data) == ((1, 8, 8), 3, 0.4)
    provenance = read_json(tmp_path / "a" / "teacher" / "provenance.json")
    assert (provenance["command"], provenance["data_images"], provenance["steps"]) == ("typed", 24, 4)
    assert sorted(path.name for path in (tmp_path / "a" / "samples").iterdir()) == ["000004.png"]
    for path in (tmp_path / "a" / "teacher", tmp_path / "a" / "checkpoints" / "000004"):
        shutil.rmtree(path)
    (tmp_path / "a").rename(tmp_path / "b")  # a run may be moved
    folder = resume_teacher_training(tmp_path / "b", [], None, "typed")
    assert folder == tmp_path / "b" / "teacher" and torch.equal(flatten(load_teacher(str(folder))), flatten(teacher))
    with pytest.raises(PidistillError, match="holds another run"):
        run_teacher_training(configure(images_npz, tmp_path / "b"), "typed")


def test_what_is_saved_is_the_average(images_npz, tmp_path):
    teachers = [load_teacher(str(run_teacher_training(configure(images_npz, tmp_path / str(ema), ema=ema), "")))
                for ema in (0.0, 0.9)]
    assert not torch.equal(*map(flatten, teachers))


def test_without_conditions_there_are_no_classes(images_npz, tmp_path):
    job = TeacherTraining(configure(images_npz, tmp_path / "a", conditional=False))
    assert job.num_classes == 0 and job.denoiser.num_classes == 0
    assert TeacherTraining(configure(images_npz, tmp_path / "a")).num_classes == 3


@pytest.mark.parametrize("changes", [{"data": "nowhere.npz"}, {"objective": {"name": "emd"}}, {"net": {"name": "song_net"}},
                                     {"preview": {"seeds": "a"}}])
def test_mistakes_are_found_before_a_folder_is_made(images_npz, tmp_path, changes):
    with pytest.raises(PidistillError) as caught:
        run_teacher_training(configure(images_npz, tmp_path / "a", **changes), "")
    assert "\n" not in str(caught.value) and not (tmp_path / "a").exists()
