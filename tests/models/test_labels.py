"""The null label: never drawn, the way to guidance, for teachers of every kind."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from pidistill.core.errors import PidistillError
from pidistill.core.seeds import labels_of
from pidistill.files.folders import write_folder
from pidistill.jobs.convert import convert
from pidistill.jobs.inspect import describe
from pidistill.models.denoiser import Denoiser, FunctionDenoiser, Preconditioned
from pidistill.models.labels import count_classes, count_labels, number_labels, split_spec
from pidistill.models.student import load_student
from pidistill.models.student_init import make_student
from pidistill.models.teachers.base import collect_tensors, describe_teacher, load_teacher
from tests.cli.flags import SHORT
from tests.edm_pickles import write
from tests.helpers import NET, SHAPE, draw, pid_of, shake, tiny_teacher
from tests.own_nets import Plain

LABELS = 11  # ten classes and the null label
X, T = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1)) * 2, torch.tensor([0.3, 1.0, 2.0, 9.0])
Y = torch.tensor([0, 3, 9, 4])


def folder(path):
    """A teacher's folder around EDM's network, and its spec."""
    teacher = tiny_teacher(classes=LABELS)
    write_folder(path, collect_tensors(teacher), {"config": describe_teacher(teacher), "provenance": {}})
    return str(path), teacher


def pickle_of(path, **kwargs):
    net = tiny_teacher(classes=LABELS)
    write(path, net.model, "EDMPrecond", kwargs={k: v for k, v in NET.items() if k != "name"} | kwargs, img_resolution=8,
          img_channels=1, label_dim=LABELS, sigma_data=0.5)
    return f"edm:{path}", net


def unet(path, embeds=LABELS):
    diffusers = pytest.importorskip("diffusers")
    from tests.models.teachers.test_diffusers import ddim, save
    from tests.models.teachers.test_diffusers import unet as make

    network = shake(make(classes=embeds), scale=0.1)
    assert isinstance(network, diffusers.UNet2DModel)
    return save(path, ddim(), network), network


@pytest.mark.parametrize("null", range(LABELS))
def test_classes_skip_the_null_label(null):
    numbers = number_labels(torch.arange(LABELS - 1), null).tolist()
    assert numbers == [k for k in range(LABELS) if k != null]
    assert count_classes(LABELS, null) == 10 and count_labels(10, null) == LABELS


def test_a_unet_of_ten_classes_and_null_never_draws_it(tmp_path):
    spec, network = unet(tmp_path / "p")
    assert load_teacher(spec).num_classes == LABELS  # nothing says that one of them is none
    teacher = load_teacher(f"{spec},null=10,guidance=3")
    assert teacher.num_classes == 10 and teacher.facts()["num_classes"] == 10
    assert set(labels_of(range(5000), teacher.num_classes).tolist()) == set(range(10))
    student = make_student(teacher)
    drawn = draw(pid_of(student, teacher, 10), range(500))["labels"]
    assert set(drawn.tolist()) == set(range(10))

    def output(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            step = (teacher.times - t).abs().argmin()
            return x - t * network(x / (1 + t**2).sqrt(), step, class_labels=y).sample

    t = teacher.times[400].float()
    c, u = output(X, t, Y), output(X, t, torch.full_like(Y, 10))
    torch.testing.assert_close(teacher(X, t.expand(4), Y), u + 3 * (c - u), rtol=1e-4, atol=1e-4)
    assert (c - u).abs().max() > 1e-2
    torch.testing.assert_close(teacher(X, t.expand(4)), u, rtol=1e-4, atol=1e-4)  # no label is no class


def edm_spec(path, null):
    spec, net = pickle_of(path / "net.pkl")
    return f"{spec},null={null}", net


def folder_spec(path, null):
    spec, net = folder(path / "t")
    return f"{spec},null={null}", net


def unet_spec(path, null):
    spec, _ = unet(path / "p")
    return f"{spec},null={null}", load_teacher(spec)


def python_spec(path, null):
    return f"python:tests.models.test_labels:Own,null={null}", load_teacher("python:tests.models.test_labels:Own")


def network_spec(path, null):
    return f"python:tests.models.test_labels:make_network,null={null}", make_network()


def onnx_spec(path, null):
    pytest.importorskip("onnxruntime")
    from tests.models.teachers.test_onnx import graph

    spec = graph(path / "g.onnx", classes=LABELS, shape=SHAPE) + f",classes={LABELS}"
    return f"{spec},null={null}", load_teacher(spec)


class Own(nn.Module):
    """A black box of the user's own; its attribute `guidance` is its own, too, and no business of the package."""

    shape, num_classes, t_min, t_max, sigma_data, guidance = SHAPE, LABELS, 0.01, 20.0, 0.5, 7.5

    def forward(self, x, t, labels=None):
        mean = 0.05 * labels[:, None, None, None] - 0.2
        return mean + (x - mean) * 0.09 / (0.09 + t[:, None, None, None] ** 2)


def make_network() -> Preconditioned:
    return tiny_teacher(classes=LABELS)


KINDS = [edm_spec, folder_spec, unet_spec, python_spec, network_spec, onnx_spec]


@pytest.mark.parametrize("null", [10, 0, 4])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_guidance_of_every_kind(tmp_path, kind, null):
    spec, plain = kind(tmp_path, null)
    teacher, guided = load_teacher(spec), load_teacher(spec + ",guidance=2.5")
    assert teacher.num_classes == guided.num_classes == 10 and plain.num_classes == LABELS and guided.spec.endswith("2.5")
    t = plain.times[[100, 300, 500, 900]].float() if plain.times is not None else T
    numbers = number_labels(Y, null)
    c, u = plain(X, t, numbers), plain(X, t, torch.full_like(Y, null))
    assert torch.equal(teacher(X, t, Y), c)
    torch.testing.assert_close(guided(X, t, Y), u + 2.5 * (c - u), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(guided(X, t), u, rtol=1e-5, atol=1e-5)
    assert (c - u).abs().max() > 1e-3
    python = load_teacher(spec.rpartition(",null")[0], null=null, guidance=2.5)
    assert torch.equal(python(X, t, Y), guided(X, t, Y)) and python.spec == guided.spec


@pytest.mark.parametrize("by", ["pickle", "word"])
@torch.no_grad()
def test_edm_with_label_dropout_is_guided_without_labels(tmp_path, by):
    """NVIDIA drops labels by zeros in the one-hot rows, with which a network is called without labels."""
    spec, plain = pickle_of(tmp_path / "net.pkl", **({"label_dropout": 0.1} if by == "pickle" else {}))
    guided = load_teacher(spec + (",guidance=2" if by == "pickle" else ",null=none,guidance=2"))
    c, u = plain(X, T, Y), plain(X, T)
    torch.testing.assert_close(guided(X, T, Y), 2 * c - u, rtol=1e-5, atol=1e-5)
    assert guided.num_classes == LABELS and (c - u).abs().max() > 1e-3
    again = load_teacher(str(convert(guided.spec, tmp_path / "folder")))
    assert torch.equal(again(X, T, Y), guided(X, T, Y))
    if by == "pickle":
        assert load_teacher(spec).null_label == "none"
    else:
        with pytest.raises(PidistillError, match="name it with null=N"):
            load_teacher(spec + ",guidance=2")


@pytest.mark.parametrize("null", [10, 0, 4])
@pytest.mark.parametrize("kind", [edm_spec, unet_spec, network_spec])
@torch.no_grad()
def test_students_folders_and_conversions_keep_it(tmp_path, kind, null):
    spec, plain = kind(tmp_path, null)
    guided = load_teacher(spec + ",guidance=2")
    again = load_teacher(str(convert(guided.spec, tmp_path / "folder")))
    t = plain.times[[100, 300, 500, 900]].float() if plain.times is not None else T
    assert torch.equal(again(X, t, Y), guided(X, t, Y)) and again.guide == guided.guide and again.facts() == guided.facts()
    assert describe(str(tmp_path / "folder"))["null label"] == null
    student, whole = make_student(guided).eval(), make_student(plain).eval()
    assert torch.equal(student(X, t, Y), whole(X, t, number_labels(Y, null)))
    student.save(tmp_path / "s")
    loaded = load_student(tmp_path / "s")
    assert torch.equal(loaded(X, t, Y), student(X, t, Y)) and loaded.num_classes == 10
    for start in ("s", "folder"):  # begin from what lies there
        other = make_student(guided, str(tmp_path / start)).eval()
        torch.testing.assert_close(other(X, t, Y), student(X, t, Y), rtol=0, atol=0)
    with pytest.raises(PidistillError, match="outside the classes 0-9"):
        loaded.sample(range(2), labels=10)


def test_a_student_of_another_network_has_no_null_label():
    guided = make_network().set_guidance(2, null=4)
    student = make_student(guided, "random", net={"name": "mlp", "width": 8})
    assert student.null_label is None and student.net.num_classes == 10
    assert make_student(guided, "random").null_label == 4


def test_a_dit_has_its_null_label_after_its_classes(tmp_path):
    pytest.importorskip("diffusers")
    from tests.models.teachers.test_diffusers import ddim, dit, save, vae

    spec = save(tmp_path / "p", ddim(), dit(), vae(), "DiTPipeline")
    teacher = load_teacher(spec)
    assert teacher.num_classes == 5 and teacher.null_label == 5 and load_teacher(spec + ",null=5").num_classes == 5
    fewer = load_teacher(spec + ",null=2,guidance=2")  # trained with a null label among the classes
    assert fewer.num_classes == 4
    student = make_student(fewer)
    student.save(tmp_path / "s")
    assert load_student(tmp_path / "s").sample(range(2), decode=False).shape == (2, 4, 8, 8)


def test_a_folder_of_an_earlier_version_counts_it_among_the_classes(tmp_path):
    spec, _ = folder(tmp_path / "t")
    config = json.loads((tmp_path / "t" / "config.json").read_text())
    (tmp_path / "t" / "config.json").write_text(json.dumps(config | {"guidance": 2.0, "null_label": 10}))
    teacher = load_teacher(spec)
    assert teacher.num_classes == 10 and teacher.guide == (10, 2)
    assert make_student(teacher, spec).num_classes == 10


REFUSED = [
    ("null=11", "knows the labels 0-10"), ("null=-1", "null must be"), ("null=ten", "null must be"),
    ("null=", "null must be"), ("null=1.0", "null must be"), ("null=3,null=4", "null stands twice"),
    ("guidance=0", "positive number"), ("guidance=-1", "positive number"), ("guidance=nan", "positive number"),
    ("guidance=many", "positive number"), ("guidance=3", "name it with null=N"),
    ("guidance=2,guidance=3", "stands twice"), ("null=99999999999", "null must be")]


@pytest.mark.parametrize("option, words", REFUSED)
def test_what_means_nothing_is_one_line(tmp_path, option, words):
    spec, _ = folder(tmp_path / "t")
    with pytest.raises(PidistillError, match=words) as caught:
        load_teacher(f"{spec},{option}")
    assert "\n" not in str(caught.value)


def test_more_that_means_nothing(tmp_path):
    cases = {"gaussian:2,null=0": "knows no classes", "gaussian:2,guidance=2": "needs a teacher with classes",
             "bundled:digits,guidance=2": "name it with null=N", "bundled:digits,null=10": "knows the labels 0-9"}
    for spec, words in cases.items():
        with pytest.raises(PidistillError, match=words):
            load_teacher(spec)
    for kind in (unet_spec, onnx_spec):
        spec, _ = kind(tmp_path, "none")
        with pytest.raises(PidistillError, match="cannot be called without labels"):
            load_teacher(spec)
    for value in (True, 2.0, -1, [3]):
        with pytest.raises(PidistillError, match="null must be"):
            Preconditioned(tiny_teacher(classes=4).model, SHAPE, 4, null_label=value)
    with pytest.raises(PidistillError, match="has the null label 4 already"):
        make_network().set_guidance(null=4).set_guidance(null=5)
    with pytest.raises(PidistillError, match="null is given twice"):
        load_teacher("bundled:digits,null=3", null=3)


def test_a_folder_whose_name_has_commas_is_itself(tmp_path):
    spec, _ = folder(tmp_path / "a,null=3")
    assert load_teacher(spec).num_classes == LABELS and load_teacher(f"folder:{spec}").num_classes == LABELS
    assert load_teacher(f"{spec},null=3").num_classes == 10
    assert split_spec("onnx:a.onnx,null=1,classes=3,guidance=2") == ("onnx:a.onnx,classes=3", {"null": "1", "guidance": "2"})


def test_only_the_null_label_is_left_of_one():
    """A network of one label that stands for no class is an unconditional teacher."""
    teacher = tiny_teacher(classes=1).set_guidance(null=0)
    assert teacher.num_classes == 0 and torch.equal(teacher(X, T), tiny_teacher(classes=1)(X, T, torch.zeros(4).long()))
    with pytest.raises(PidistillError, match="needs a teacher with classes"):
        teacher.set_guidance(2)


def test_black_boxes_in_python_are_guided_too():
    calls = []

    def function(x, t, labels=None):
        calls.append((len(x), None if labels is None else labels.tolist()))
        return x * (0 if labels is None else 0.1 * labels[:, None, None, None])

    for null, expected in ((2, [(8, [0, 1, 3, 1, 2, 2, 2, 2])]), ("none", [(4, [0, 1, 2, 1]), (4, None)])):
        calls.clear()
        FunctionDenoiser(function, SHAPE, 4, null_label=null, guidance=2)(X, 1.0, torch.tensor([0, 1, 2, 1]))
        assert calls == expected

    class Mine(Denoiser):
        """A subclass with a `guidance` and `null_label` of its own use."""

        def __init__(self):
            super().__init__(SHAPE, 3)
            self.guidance, self.null_label = 7.5, 2

        def denoise(self, x, t, labels=None):
            return x * labels[:, None, None, None]

    y = torch.tensor([0, 1, 2, 1])
    assert torch.equal(Mine()(X, 1.0, y), X * y[:, None, None, None]) and Mine().num_classes == 3


@pytest.mark.parametrize("answer", ["tuple", "one channel", "one sample"])
def test_a_guided_answer_of_another_shape_is_one_line(answer):
    given = {"tuple": lambda x: (x, x), "one channel": lambda x: x[:, :, :1], "one sample": lambda x: x[:1]}[answer]
    for null in (2, "none"):
        teacher = FunctionDenoiser(lambda x, t, y: given(x), SHAPE, 4, null_label=null, guidance=2)
        with pytest.raises(PidistillError, match="must give D as a tensor of the shape of x"):
            teacher(X, 1.0, torch.tensor([0, 1, 2, 1]))


def test_a_module_of_ones_own_takes_labels_as_its_factory_says(tmp_path):
    """`num_classes` of a factory are the labels that the network knows, the null label among them."""
    seen = []

    class Conditional(Plain):
        def __init__(self, num_classes):
            super().__init__()
            self.embed = nn.Embedding(num_classes, 16)
            seen.append(num_classes)

        def forward(self, x, c_noise, labels=None):
            return super().forward(x + self.embed(labels).reshape(x.shape), c_noise)

    teacher = Preconditioned(Conditional(4), (1, 4, 4), 4, null_label=3, guidance=2)
    student = make_student(teacher)
    student.save(tmp_path / "s")
    again = load_student(tmp_path / "s", net=lambda num_classes: Conditional(num_classes))
    assert seen == [4, 4] and again.num_classes == 3
    assert torch.equal(again.sample(range(3)), student.eval().sample(range(3)))


def test_the_commands_take_it(tmp_path, cli):
    spec, _ = folder(tmp_path / "t")
    guided, run = f"{spec},null=4,guidance=1.5", tmp_path / "run"
    assert "null label" in cli("inspect", guided).out
    result = cli("distill", "--teacher", guided, *SHORT, "--out", run)
    assert result.code == 0, result.err
    config = json.loads((run / "student" / "config.json").read_text())
    assert config["num_classes"] == 10 and config["null"] == 4
    assert json.loads((run / "student" / "provenance.json").read_text())["teacher"] == guided
    for command in (["sample", run, "--seeds", "0-2", "--out", tmp_path / "images"], ["inspect", run]):
        result = cli(*command)
        assert result.code == 0, result.err
    refused = cli("sample", run, "--seeds", "0", "--labels", "10", "--out", tmp_path / "more")
    assert "outside the classes 0-9" in refused.error()
