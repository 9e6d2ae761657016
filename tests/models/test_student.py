"""The one-step student: boundary condition, seeds, saving."""

from __future__ import annotations

import json

import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.core.seeds import labels_of, noise
from pidistill.models.denoiser import FunctionDenoiser
from pidistill.models.preconditioning import c_in
from pidistill.models.student import load_student
from pidistill.models.student_init import make_student
from tests.helpers import MLP, SHAPE, gaussian64, start, tiny_teacher

SEEDS = list(range(100, 120))


@pytest.fixture
def student():
    return make_student(tiny_teacher()).eval().requires_grad_(False)


@pytest.mark.parametrize("t_max", [80.0, 14.6, 157.41, 0.1, 49.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_boundary_condition_holds_bit_for_bit(t_max, dtype):
    student = make_student(tiny_teacher(t_max=t_max)).to(dtype)
    z = start(SHAPE, 4, t_max, dtype)
    for t in (t_max, torch.full((4,), t_max, dtype=torch.float64)):
        assert torch.equal(student(z, t, torch.tensor([0, 1, 2, 0])), z)


def test_state_is_equation_7(student):
    z, t, y = start(SHAPE, 3, dtype=torch.float32), torch.tensor([0.002, 1.0, 60.0]), torch.tensor([0, 1, 2])
    s = (t / 80)[:, None, None, None]
    F = student.net(z / (0.5**2 + 80**2) ** 0.5, t.log() / 4, y)
    torch.testing.assert_close(student(z, t, y), s * z + (1 - s) * F, rtol=1e-5, atol=1e-5)
    assert F.std() > 0.05


def test_the_teachers_facts_scale_the_input():
    student = make_student(tiny_teacher(t_max=10, sigma_data=0.3))
    z = start(SHAPE, 2, 10, torch.float32)
    scale = c_in(torch.tensor(10.0), 0.3)
    torch.testing.assert_close(student.F(z, torch.ones(2)), student.net(scale * z, torch.zeros(2)))


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_images_do_not_depend_on_the_batch_size(student, batch_size):
    images = student.sample(SEEDS, batch_size=250)
    assert images.shape == (20, *SHAPE) and images.dtype == torch.float32 and images.abs().max() <= 1
    torch.testing.assert_close(student.sample(SEEDS, batch_size=batch_size), images, rtol=0, atol=1e-5)
    assert (images[0] - images[1]).abs().max() > 0.01


def test_an_image_depends_on_its_seed_and_label_alone(student):
    images, y = student.sample(SEEDS), labels_of(SEEDS, 3)
    torch.testing.assert_close(student.sample([SEEDS[7]]), images[7:8], rtol=0, atol=1e-5)
    torch.testing.assert_close(student.sample(SEEDS, y), images, rtol=0, atol=0)
    one = student.sample(SEEDS, 1)
    same = y == 1
    torch.testing.assert_close(one[same], images[same], rtol=0, atol=1e-5)
    assert (one[~same] - images[~same]).abs().max() > 1e-3


def test_samples_start_from_the_noise_of_their_seeds(student):
    z = noise(SEEDS[:3], SHAPE) * student.t_max
    with torch.no_grad():
        expected = student(z, student.t_min, labels_of(SEEDS[:3], 3))
    torch.testing.assert_close(student.sample(SEEDS[:3], clip=False), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(student.sample(SEEDS[:3]), expected.clip(-1, 1), rtol=0, atol=1e-6)


def test_no_seeds_give_no_images(student):
    assert student.sample([]).shape == (0, *SHAPE)


def test_labels_outside_the_classes_are_refused(student):
    with pytest.raises(PidistillError, match="label 3 is outside the classes 0-2"):
        student.sample([0, 1], [0, 3])


def test_trajectory_starts_at_the_noise_and_ends_at_the_sample(student):
    z, y = noise(SEEDS[:2], SHAPE) * student.t_max, labels_of(SEEDS[:2], 3)
    states = student.trajectory(z, torch.tensor([80.0, 1.0, 0.002], dtype=torch.float64), y)
    assert states.shape == (3, 2, *SHAPE) and torch.equal(states[0], z)
    torch.testing.assert_close(states[2], student.sample(SEEDS[:2], clip=False), rtol=0, atol=1e-6)


def test_saving_and_loading_changes_nothing(student, tmp_path):
    student.save(tmp_path / "run" / "student", {"teacher": "x"})
    for path in (tmp_path / "run" / "student", tmp_path / "run", str(tmp_path / "run")):
        loaded = load_student(path)
        assert loaded.facts() == student.facts() and loaded.net_spec == student.net_spec and not loaded.training
        torch.testing.assert_close(loaded.sample(SEEDS), student.sample(SEEDS), rtol=0, atol=0)
    assert json.loads((tmp_path / "run" / "student" / "provenance.json").read_text()) == {"teacher": "x"}
    assert {path.suffix for path in (tmp_path / "run" / "student").iterdir()} == {".json", ".safetensors"}  # no pickle


def test_students_that_cannot_be_loaded_are_one_line(student, tmp_path):
    with pytest.raises(PidistillError, match="does not exist"):
        load_student(tmp_path / "nowhere")
    folder = student.save(tmp_path / "s")
    config = json.loads((folder / "config.json").read_text())
    for change, words in (({"format": "pidistill-teacher"}, "not a pidistill-student"), ({"net": "mlp"}, "incomplete"),
                          ({"t_max": None}, "incomplete"), ({"num_classes": 5}, "shape")):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(PidistillError, match=words) as caught:
            load_student(folder)
        assert "\n" not in str(caught.value)


def test_a_new_student_is_the_teachers_network():
    teacher = tiny_teacher()
    student = make_student(teacher)
    assert student.facts() == teacher.facts()
    for (name, p), q in zip(student.net.named_parameters(), teacher.model.parameters(), strict=True):
        assert torch.equal(p, q) and p.data_ptr() != q.data_ptr() and p.requires_grad, name


def test_dropout_is_off_in_a_student():
    teacher = tiny_teacher({**tiny_teacher().net_spec, "dropout": 0.3})
    student = make_student(teacher).train()
    z = start(SHAPE, 2, dtype=torch.float32)
    assert torch.equal(student(z, 1.0), student(z, 1.0)) and student.net_spec["dropout"] == 0.0


def test_random_students():
    student = make_student(gaussian64(), "random", MLP)
    assert student.net_spec == MLP and student.shape == (2,)
    torch.manual_seed(5)
    other = make_student(tiny_teacher(), "random")  # the teacher's form with other weights
    assert not torch.equal(next(other.net.parameters()), next(tiny_teacher().model.parameters()))


@pytest.mark.parametrize("init, net, words", [
    ("teacher", None, "set student.init=random and student.net"), ("random", None, "student.net must name a network"),
    ("teacher", MLP, "set student.init=random")])
def test_black_boxes_need_a_network(init, net, words):
    teacher = FunctionDenoiser(lambda x, t, y: x, (2,))
    with pytest.raises(PidistillError, match=words):
        make_student(teacher, init, net)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_and_cpu_draw_the_same_images(student):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    images = student.sample(SEEDS)
    torch.testing.assert_close(student.cuda().sample(SEEDS), images, rtol=0, atol=1e-4)
    z = start(SHAPE, 4, dtype=torch.float32).cuda()
    assert torch.equal(student(z, student.t_max), z)
