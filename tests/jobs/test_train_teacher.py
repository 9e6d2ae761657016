"""A teacher's training: it is prepared before its folder is claimed, and goes on as if it had not been interrupted."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.files.reading import read_json
from pidistill.jobs.train_teacher import TeacherTraining, resume_teacher_training, run_teacher_training
from pidistill.models.teachers.base import load_teacher
from pidistill.training.config import TeacherConfig
from tests.helpers import MLP
from tests.image_files import COLOUR, GREY, LABELS, NAMES, RECORD, encode, make_folder, make_npz, make_zip


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


@pytest.mark.parametrize("make", [make_folder, make_zip])
def test_a_folder_and_a_zip_train_the_teacher_of_their_pixels(tmp_path, make):
    data = make(tmp_path / "a.zip", {name: encode(image) for name, image in zip(NAMES, COLOUR)}, RECORD)
    npz = make_npz(tmp_path / "a.npz", images=COLOUR, labels=np.array(LABELS))
    run_teacher_training(configure(npz, tmp_path / "a"), "")
    run_teacher_training(configure(data, tmp_path / "b"), "")
    a, b = (load_teacher(str(tmp_path / name / "teacher")) for name in "ab")
    assert (b.shape, b.num_classes) == ((3, 6, 8), 3) and torch.equal(flatten(a), flatten(b))
    assert read_json(tmp_path / "b" / "teacher" / "provenance.json")["data_images"] == 5


def test_every_kind_of_labelled_images_trains_the_same_conditional_teacher(tmp_path):
    """Folders of classes, in a folder, a ZIP and a ZIP of macOS; `arr_0` and channels first in an NPZ."""
    order = np.argsort(LABELS, kind="stable")
    files = {f"{'abc'[LABELS[i]]}/{k}.png": encode(COLOUR[i]) for k, i in enumerate(order)}
    sets = [make_npz(tmp_path / "a.npz", arr_0=np.moveaxis(COLOUR[order], -1, 1), arr_1=np.array(LABELS)[order]),
            make_folder(tmp_path / "b", files), make_zip(tmp_path / "c.zip", files),
            make_zip(tmp_path / "d.zip", {f"x/{name}": data for name, data in files.items()} | {"__MACOSX/x/._a": b"1"})]
    teachers = [load_teacher(str(run_teacher_training(configure(data, tmp_path / f"run{k}"), "")))
                for k, data in enumerate(sets)]
    assert all(teacher.shape == (3, 6, 8) and teacher.num_classes == 3 for teacher in teachers)
    assert all(torch.equal(flatten(teachers[0]), flatten(teacher)) for teacher in teachers)
    assert TeacherTraining(configure(sets[1], tmp_path / "e", conditional=False)).num_classes == 0


def test_channels_first_are_channels(tmp_path):
    """What 200 x 3 x 16 x 16 was taken for once: 16 channels of 16x3."""
    data = make_npz(tmp_path / "a.npz", images=COLOUR[:, None, :, :, 0].repeat(3, 1))
    job = TeacherTraining(configure(data, tmp_path / "a"))
    assert job.denoiser.shape == (3, 6, 8) and job.num_classes == 0


def test_a_broken_image_ends_the_training_in_one_line(tmp_path):
    data = make_folder(tmp_path / "images", {"0.png": encode(GREY[0]), "1.png": b"broken"})
    with pytest.raises(PidistillError, match=r"1\.png: cannot be read") as caught:
        run_teacher_training(configure(data, tmp_path / "a"), "")
    assert "\n" not in str(caught.value)


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


def test_a_network_that_does_not_look_at_the_noise_level_is_refused(images_npz, tmp_path):
    net = {"name": "equilibrium", "width": 16, "heads": 2, "injection": 1, "equilibrium": 1, "expansion": 2}
    with pytest.raises(PidistillError, match="net=equilibrium does not look at the noise level, and a teacher has to"):
        run_teacher_training(configure(images_npz, tmp_path / "a", net=net), "")
    assert not (tmp_path / "a").exists()
