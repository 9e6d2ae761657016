"""States along the way, student beside teacher."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from pidistill.core.errors import PidistillError
from pidistill.evaluation.pictures import ANIMATED, caption_grid, is_grey
from pidistill.jobs.trajectory import compute_trajectories, draw_trajectory, draw_trajectory_of_spec
from pidistill.models.grid import karras_times
from pidistill.models.student_init import make_student
from pidistill.models.teachers.gaussian import gaussian
from tests.helpers import MLP


def test_states_at_the_times_of_the_grid():
    teacher = gaussian("1x4x4,mean=0.2,std=0.5")
    student = make_student(teacher, "random", MLP).eval()
    ts, ours, theirs = compute_trajectories(student, teacher, [3, 4], None, columns=10, substeps=20)
    torch.testing.assert_close(ts, karras_times(10, 0.002, 80.0, 7.0))
    assert ours.shape == theirs.shape == (10, 2, 1, 4, 4)
    assert torch.equal(ours[0], theirs[0])  # both start at z
    for t, x in zip(ts.tolist(), theirs):
        torch.testing.assert_close(x, teacher.exact(theirs[0], t), rtol=1e-3, atol=5e-3)
    torch.testing.assert_close(ours[-1], student.sample([3, 4], clip=False), rtol=0, atol=1e-5)


def test_a_student_without_trajectories_is_refused_before_the_teacher_is_asked(monkeypatch):
    teacher = gaussian("1x4x4,mean=0.2,std=0.5")
    student = make_student(teacher, "random", MLP, form="consistency").eval()
    monkeypatch.setattr(type(teacher), "denoise", lambda *_: pytest.fail("the teacher was asked"))
    with pytest.raises(PidistillError, match="a student of the form consistency has no trajectory"):
        compute_trajectories(student, teacher, [3, 4], None, columns=10)


@pytest.mark.parametrize("ending", ANIMATED)
def test_an_animation_goes_from_noise_to_image(tmp_path, ending):
    """A picture for each time, the last of which is the end of the trajectories; grey stays grey, colours stay colours."""
    for shape in ("1x4x4", "3x4x4"):
        teacher = gaussian(f"{shape},mean=0.2,std=0.5")
        student = make_student(teacher, "random", MLP).eval()
        rms = draw_trajectory(tmp_path / f"{shape}{ending}", student, teacher, [3, 4], None, columns=6)
        assert rms == draw_trajectory(tmp_path / f"{shape}.png", student, teacher, [3, 4], None, columns=6)
        with Image.open(tmp_path / f"{shape}{ending}") as animation:
            assert animation.n_frames == 6 and animation.info["loop"] == 0
            durations, frames = [], []
            for k in range(6):
                animation.seek(k)
                frames.append(np.asarray(animation.convert("RGB")).astype(int))
                durations.append(animation.info["duration"])
        assert durations[1:5] == [90] * 4 and durations[0] > 90 and durations[5] > durations[0]
        assert is_grey(Image.fromarray(frames[-1].astype(np.uint8))) == (shape[0] == "1")
        _, _, theirs = compute_trajectories(student, teacher, [3, 4], None, columns=6)
        grid = np.asarray(caption_grid(theirs[-1], 2, [""], []))  # the upper of the two rows, below a line of words
        rows = grid.shape[0] - 8  # without the gaps at the edges
        shown = frames[-1][20 + 4:20 + 4 + rows, -grid.shape[1]:]
        assert np.abs(shown[:, 80:] - grid[4:4 + rows, 80:]).mean() < 6


@pytest.mark.parametrize("name", ["x.mp4", "x", "x.jpg"])
def test_a_picture_of_another_kind_is_refused(tmp_path, name):
    with pytest.raises(PidistillError, match=r"--out must end in \.png, or in \.gif or \.webp to move"):
        draw_trajectory_of_spec("runs/none", tmp_path / name, "0-3")
