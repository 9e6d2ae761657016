"""A user's own network lends itself to a student: distilled, saved, loaded, gone on with; whatever it consists of."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

import pidistill
from pidistill.core.errors import PidistillError
from pidistill.core.tensors import find_overlaps
from pidistill.files.reading import read_json
from pidistill.files.safetensors_header import read_header
from pidistill.files.weights import read_tensors
from pidistill.jobs.convert import convert
from pidistill.jobs.distill import resume_distillation
from pidistill.jobs.evaluate_run import load_checkpoints
from pidistill.jobs.inspect import describe
from pidistill.models.load import load_pair
from pidistill.models.student import load_student
from pidistill.models.student_init import make_student
from pidistill.models.teachers.base import load_teacher
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config
from tests.own_nets import (
    KINDS,
    SIDE,
    Counted,
    Dropped,
    Frozen,
    Normed,
    Plain,
    Sparse,
    Tied,
    TiedTwice,
    make_teacher,
    teacher_of,
)

HERE = "python:tests.own_nets:"
RUN = {"train.steps": 6, "train.batch": 8, "log.every": 2, "checkpoint.every": 3, "checkpoint.keep": 9, "optimizer.lr": 1e-2,
       "grid.points": 10, "evaluate.num": 8, "preview.every": 100, "ema": [0.9, 0.0]}
SEEDS = range(6)


def distill(teacher, folder, **changes):
    return pidistill.distill(teacher, preset="default", out=folder, overrides=RUN | changes)


def state_of(folder, step: int) -> dict[str, torch.Tensor]:
    files = sorted((folder / "checkpoints" / f"{step:06d}").glob("*.safetensors"))
    return {f"{path.stem}/{key}": value for path in files for key, value in read_tensors(path).items()}


def part_of(state: dict[str, torch.Tensor], file: str) -> dict[str, torch.Tensor]:
    """The network's own weights in one file of a checkpoint."""
    return {key.removeprefix(f"{file}/net."): value for key, value in state.items() if key.startswith(f"{file}/")}


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys() and [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of every kind of network, whose name the teacher knows, or not."""
    folder = tmp_path_factory.mktemp("own")
    for number, kind in enumerate(KINDS):
        torch.manual_seed(0)
        distill(teacher_of(kind, HERE + kind if number % 2 else None), folder / kind)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_is_lent_distilled_saved_and_loaded(runs, kind):
    """The student starts as the teacher, and what is loaded draws what the run's last average draws."""
    teacher, folder = teacher_of(kind), runs / kind
    start, z = make_student(teacher), torch.randn(4, 1, 4, 4)
    assert all(torch.equal(value, start.net.state_dict()[name]) for name, value in teacher.model.state_dict().items())
    students = [load_student(folder, net=net) for net in (KINDS[kind], HERE + kind, KINDS[kind](), teacher.model)]
    images = [student.sample(SEEDS) for student in students]
    assert all(torch.equal(x, images[0]) for x in images) and type(students[0].net) is KINDS[kind]
    assert not torch.equal(students[0](z, 1.0), start.eval()(z, 1.0))
    assert_equal(dict(students[0].net.state_dict()), part_of(state_of(folder, 6), "student-ema-0.9"))
    students[0].save(folder / "again")
    assert torch.equal(load_student(folder / "again", net=KINDS[kind]).sample(SEEDS), images[0])
    assert find_overlaps(dict(students[0].net.named_parameters())) == find_overlaps(dict(KINDS[kind]().named_parameters()))


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_file_names_is_not_imported(runs, kind):
    """One line says exactly what to do, and the rate of an average does not change that."""
    named = HERE + kind if list(KINDS).index(kind) % 2 else f"object:{kind}"
    assert read_json(runs / kind / "student" / "config.json")["net"] == {"name": named}
    for ema in (None, 0.0):
        with pytest.raises(PidistillError, match=f"own, {named}, which is code, and no file decides what runs; if you trust "
                                                 r"it, name it: --net python:\S+, or in Python load_student\(\.\.\., net="):
            load_student(runs / kind, ema)


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_run_is_the_same_run(runs, kind, tmp_path):
    """Bit for bit, with all that belongs to the state: moments, averages, statistics, counters."""
    shutil.copytree(runs / kind, tmp_path / "run")
    for name in ("student", "checkpoints/000006"):
        shutil.rmtree(tmp_path / "run" / name)
    torch.manual_seed(7)
    teacher = teacher_of(kind, HERE + kind if list(KINDS).index(kind) % 2 else None)
    student = pidistill.distill(teacher, preset="default", out=tmp_path / "run", overrides=RUN, resume=True)
    assert_equal(state_of(tmp_path / "run", 6), state_of(runs / kind, 6))
    assert torch.equal(student.sample(SEEDS), load_student(runs / kind, net=KINDS[kind]).sample(SEEDS))


# What networks consist of --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, changing", [
    ("Normed", {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}),
    ("Counted", {"size", "codes", "calls", "late", "table"})])
def test_averages_have_the_buffers_of_the_network(runs, kind, changing):
    """At every rate, in checkpoints, in the student and in its averages; the weights of rate 0 are the raw ones."""
    state, start = state_of(runs / kind, 6), KINDS[kind]().state_dict()
    raw, mean, newest = (part_of(state, name) for name in ("student", "student-ema-0.9", "student-ema-0.0"))
    assert_equal(raw, newest)
    buffers = [name for name, _ in KINDS[kind]().named_buffers() if name in raw] + (["late"] if kind == "Counted" else [])
    assert {name for name in buffers if name not in start or not torch.equal(raw[name], start[name])} == changing
    assert all(torch.equal(raw[name], mean[name]) for name in buffers)
    assert not torch.equal(raw["first.weight"], mean["first.weight"])
    for ema, expected in ((None, mean), (0.0, raw)):
        assert_equal(dict(load_student(runs / kind, ema, KINDS[kind]).net.state_dict()), expected)


@pytest.mark.parametrize("kind, names", [
    ("Tied", {"last.weight"}), ("TiedTwice", {"last.weight", "again.weight", "again.bias"}), ("Transposed", set()),
    ("Sliced", set())])
def test_what_is_shared_is_saved_once_and_stays_shared(runs, kind, names):
    for path in (runs / kind / "student" / "model.safetensors", runs / kind / "student" / "ema-0.0.safetensors",
                 *(runs / kind / "checkpoints" / "000006").glob("student*.safetensors")):
        assert {name.removeprefix("net.") for name in read_header(path).get("__metadata__", {})} == names
    net = load_student(runs / kind, net=KINDS[kind]).net
    if kind == "Transposed":
        assert torch.equal(net.last.weight, net.second.weight.T)
    elif names:
        assert net.last.weight is net.second.weight


def test_no_dropout_is_left_in_a_student():
    student = make_student(teacher_of("Dropped")).train()
    z = torch.randn(4, 1, 4, 4)
    assert torch.equal(student(z, 1.0), student(z, 1.0)) and isinstance(student.net, Dropped)


def test_what_a_user_does_not_train_stays(runs, capsys):
    state = state_of(runs / "Frozen", 6)
    torch.manual_seed(3)
    start = Frozen().state_dict()
    assert torch.equal(state["student/net.second.weight"], start["second.weight"])
    assert not torch.equal(state["student/net.first.weight"], start["first.weight"])
    make_student(teacher_of("Frozen").requires_grad_(False))
    assert "1 of the network's 6 weights are not trained, as requires_grad says of them: second.weight" in " ".join(
        capsys.readouterr().err.split())
    assert all(p.requires_grad for p in make_student(teacher_of(Plain().requires_grad_(False))).parameters())


def test_a_step_that_is_left_out_leaves_no_trace_in_statistics(tmp_path, monkeypatch):
    from pidistill.training import batches

    plain = batches.draw_batch

    def draw_batch(phase, number, seed, step, ks, device):
        batch = plain(phase, number, seed, step, ks, device)
        return batch | {"z": batch["z"] * float("nan")} if step == 4 else batch

    monkeypatch.setattr(batches, "draw_batch", draw_batch)
    distill(make_teacher(), tmp_path / "run", **{"checkpoint.every": 1})
    before, after, last = (state_of(tmp_path / "run", step) for step in (4, 5, 6))
    assert read_json(tmp_path / "run/checkpoints/000006/state.json")["phases"]["pid"]["skipped"] == 1
    assert_equal(part_of(before, "student"), part_of(after, "student"))
    assert last["student/net.norm.num_batches_tracked"] == 5


@pytest.mark.parametrize("net, words", [
    (Sparse(), "the network 'student' cannot be saved: its net.graph is sparse_coo"),
    (torch.nn.Identity(), "Identity, has no parameters to train")])
def test_what_could_not_be_saved_or_trained_is_refused_before_it_is_trained(tmp_path, net, words):
    with pytest.raises(PidistillError, match=words):
        distill(teacher_of(net), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_finished_student_is_there_though_no_checkpoint_could_be_written(tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise RuntimeError("Some tensors share memory")

    monkeypatch.setattr("pidistill.training.checkpoint_writer.write_folder", fail)
    student = distill(teacher_of("Tied"), tmp_path / "run")
    assert torch.equal(load_student(tmp_path / "run", net=Tied).sample(SEEDS), student.sample(SEEDS))
    assert "waiting cannot mend that" in " ".join(capsys.readouterr().err.split())


# By name: configurations, the command line ---------------------------------------------------------------------------------


def test_a_network_of_one_s_own_may_be_another_than_the_teacher_s(tmp_path):
    """`student.net=python:...` with options, at random; later a start from it."""
    teacher, net = "gaussian:1x4x4,std=0.3", {"name": HERE + "make_wide", "width": 20}
    first = distill(teacher, tmp_path / "a", **{"student.init": "random", "student.net": net})
    assert first.net.second.weight.shape == (20, 20) and first.net_spec == net
    start = {"student.init": str(tmp_path / "a"), "student.net": {"name": HERE + "make_wide"}}
    second = distill(teacher, tmp_path / "b", **start, **{"optimizer.lr": 1e-12, "ema": 0.0})
    assert torch.allclose(first.sample(SEEDS), second.sample(SEEDS), atol=1e-5) and second.net_spec == net
    with pytest.raises(PidistillError, match=r"name it: student\.net=python:tests\.own_nets:make_wide"):
        distill(teacher, tmp_path / "c", **{"student.init": str(tmp_path / "a")})
    with pytest.raises(PidistillError, match=r"leave student\.net and student\.width out"):
        distill(teacher, tmp_path / "d", **start, **{"student.width": 2.0})


def test_a_student_of_the_teacher_s_network_may_begin_as_an_earlier_one(runs):
    teacher = teacher_of("Normed", HERE + "Normed")
    student = make_student(teacher, str(runs / "Normed"))
    assert_equal(dict(student.net.state_dict()), dict(load_student(runs / "Normed", net=Normed).net.state_dict()))
    assert student.net_spec == {"name": HERE + "Normed"} and all(p.requires_grad for p in student.parameters())
    with pytest.raises(PidistillError, match=r"name it: student\.net=python:tests\.own_nets:Normed"):
        make_student(teacher_of("Tied"), str(runs / "Normed"))


def test_random_students_of_a_network_by_its_name(runs):
    student = make_student(teacher_of("Tied", HERE + "Tied"), "random")
    assert type(student.net) is Tied and not torch.equal(student.net.first.weight, teacher_of("Tied").model.first.weight)
    with pytest.raises(PidistillError, match=r"student\.net must name a network, .* \(net_spec of Preconditioned would"):
        make_student(teacher_of("Tied"), "random")
    with pytest.raises(PidistillError, match=r"student\.width: python:tests\.own_nets:Tied may call them anything"):
        make_student(teacher_of("Tied", HERE + "Tied"), "random", width=0.5)


FLAGS = [flag for key, value in (RUN | {"train.steps": 3}).items() for flag in ("--set", f"{key}={value}")]


@pytest.mark.parametrize("teacher, net", [("make_teacher", "Normed"), ("make_nameless_teacher", "Tied")])
def test_the_command_line_takes_it_from_the_teacher_to_its_pictures(tmp_path, monkeypatch, cli, teacher, net):
    monkeypatch.chdir(tmp_path)
    name, code = HERE + teacher, ["--net", HERE + net]
    assert cli("distill", "--teacher", name, *FLAGS, "--out", "run").code == 0
    shutil.rmtree("run/student")
    assert cli("resume", "run").code == 0
    recorded = HERE + net if teacher == "make_teacher" else f"object:{net}"
    shown = cli("inspect", "run")
    assert shown.code == 0 and recorded in shown.out and "trained" not in shown.err
    assert recorded in cli("inspect", "run/student").out
    assert f"{recorded}, which is code" in cli("sample", "run", "--out", "x.npz").error()
    assert cli("sample", "run", *code, "--seeds", "0-3", "--out", "x.npz").code == 0
    assert cli("trajectory", "run", *code, "--teacher", name, "--out", "t.png").code == 0
    assert cli("evaluate", "run", "--num", "8", "--teacher", name).code == 0  # the teacher's network serves
    assert cli("evaluate", "run", "--num", "8", "--teacher", "gaussian:1x4x4", *code).code == 0
    assert f"{recorded}, which is code" in cli("evaluate", "run", "--num", "8", "--teacher", "gaussian:1x4x4").error()
    done = cli("compare", "--teacher", name, "--students", "run", "--samplers", "euler:2", "--num", "8", "--out", "c")
    assert done.code == 0, done.err
    assert "is no folder; only a folder's network is named" in cli("sample", "gaussian:2", *code, "--out", "y.npz").error()


def test_checkpoints_of_a_run_are_measured_with_its_own_network(runs):
    config = load_config(DistillConfig, "default", RUN | {"out": str(runs / "Normed")})
    found = [(step, rate, student.net.norm.num_batches_tracked.item())
             for step, rate, student in load_checkpoints(runs / "Normed", config, make_teacher())]
    assert found == [(step, rate, step) for step in (3, 6) for rate in (0.9, 0.0)]


def test_stages_start_from_the_own_network_of_the_stage_before(tmp_path, monkeypatch, images_of_the_size):
    """The folder between the stages names code, and the settings of the run have named it."""
    student = {"init": "random", "net": {"name": HERE + "make_wide"}}
    config = {"objective": {"name": "python:tests.adversary:Staged"}, "data": str(images_of_the_size), "student": student}
    done = distill("gaussian:1x4x4,std=0.3", tmp_path / "run", **config)
    assert done.net.second.in_features == 24
    stage = tmp_path / "run" / "2-Staged"
    settings = load_config(DistillConfig, stage / "config.yaml")
    students = [student for _, _, student in load_checkpoints(stage, settings, load_teacher("gaussian:1x4x4,std=0.3"))]
    assert settings.student.init == "previous" and torch.equal(students[-2].sample(SEEDS), done.sample(SEEDS))
    shutil.copytree(stage, tmp_path / "alone")
    with pytest.raises(PidistillError, match=r"alone is a stage .* the stage before, which is not beside it"):
        next(load_checkpoints(tmp_path / "alone", settings, make_teacher()))
    shutil.rmtree(tmp_path / "run" / "2-Staged" / "student")
    assert resume_distillation(tmp_path / "run") is not None


@pytest.fixture
def images_of_the_size(tmp_path):
    import numpy as np

    np.savez(tmp_path / "images.npz", images=np.random.default_rng(0).integers(0, 256, (12, 4, 4), dtype=np.uint8))
    return tmp_path / "images.npz"


# Teachers in folders -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("teacher, kind", [("make_teacher", "Normed"), ("make_nameless_teacher", "Tied")])
def test_a_teacher_of_one_s_own_network_is_converted(tmp_path, teacher, kind, dtype):
    folder, whole = convert(HERE + teacher, tmp_path / "t", dtype=dtype), load_teacher(HERE + teacher)
    x, t = torch.randn(3, 1, 4, 4), torch.tensor([0.1, 1.0, 10.0])
    specs = [f"folder:{folder},net={HERE}{kind}", f"{folder},net={HERE}{kind}"]
    teachers = [load_teacher(spec) for spec in specs]
    teachers += [load_teacher(str(folder), net=net) for net in (KINDS[kind], whole.model)]
    for read in teachers:
        torch.testing.assert_close(read(x, t), whole(x, t), rtol=0, atol=1e-6 if dtype == "fp32" else 0.1)
    assert make_student(teachers[0], "random").net_spec == {"name": HERE + kind}  # as the user calls it
    assert teachers[2].net_spec is None
    assert load_teacher(specs[0], weights=False).model.first.weight.is_meta
    shared = read_header(folder / "model.safetensors").get("__metadata__", {})
    assert shared == ({"model.last.weight": "model.second.weight"} if kind == "Tied" else {})
    for spec in (str(folder), f"folder:{folder}"):
        with pytest.raises(PidistillError, match=r"is code, .*: folder:PATH,net=python:\S+, or in Python load_teacher"):
            load_teacher(spec)


def test_train_teacher_trains_a_network_of_one_s_own(tmp_path, cli, images_of_the_size):
    flags = ["--set", f"net={HERE}Counted", "--set", f"data={images_of_the_size}", "--set", "train={steps: 4, batch: 4}",
             "--set", "preview.seeds=0-3", "--set", "ema=0.5"]
    done = cli("train-teacher", *flags, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    teacher = load_teacher(str(tmp_path / "run"), net=Counted)
    assert teacher.model.calls == 4 and teacher.model.late is not None
    student = distill(teacher, tmp_path / "student", **{"train.steps": 2, "checkpoint.every": 2})
    assert student.net.calls == 6  # counted on from the teacher's


@pytest.mark.parametrize("recorded", ["python:evil:run", "folder:t,net=python:evil:run", "x,net=python:evil:run"])
def test_a_record_does_not_name_what_runs(runs, tmp_path, monkeypatch, recorded):
    """Of the teacher, wherever the name of the code stands."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("open('executed', 'w')")
    shutil.copytree(runs / "Plain" / "student", tmp_path / "s")
    (tmp_path / "s" / "provenance.json").write_text(json.dumps({"teacher": recorded}))
    with pytest.raises(PidistillError, match="which is code; if you trust it, say --teacher"):
        load_pair("s", net=Plain)
    assert not (tmp_path / "executed").exists()


def test_what_does_not_fit_is_one_line(runs):
    for net, words in ((Normed, r"5 missing, first norm\.bias, norm\.num_batches_tracked, norm\.\w+; the file has first\."),
                       (TiedTwice, "second.weight and last.weight share their memory there, and do not agree"),
                       (lambda: Plain(20), r"has shape \(16, 17\), the network \(20, 17\)")):
        with pytest.raises(PidistillError, match=words):
            load_student(runs / "Plain", net=net)


def test_inspect_does_not_make_what_it_describes(runs, monkeypatch):
    monkeypatch.setattr("pidistill.nets.base.import_from_python", lambda *_: pytest.fail("imported"))
    for kind in ("Normed", "Tied"):
        facts = describe(str(runs / kind))
        assert facts["shape"] == "1x4x4" and facts["steps done"] == 6


# What is not what it looks like --------------------------------------------------------------------------------------------


class Listed(Plain):
    """Layers in a list, a dictionary and a tuple of lists: not one of them is a part of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.known = [self.first]
        self.layers, self.more = [torch.nn.Linear(2, 2)], {"a": torch.nn.Parameter(torch.ones(2))}
        self.deep = ([torch.nn.Linear(2, 2)], 3)


class Cached(Plain):
    """A buffer that is made when the network is called."""

    def forward(self, x, c_noise, labels=None):
        if "cache" not in self._buffers:
            self.register_buffer("cache", torch.ones(3))
        return super().forward(x, c_noise, labels)


class Growing(Plain):
    """A buffer that grows with every call in training."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(0))

    def forward(self, x, c_noise, labels=None):
        self.seen = torch.cat([self.seen, torch.ones(1)]) if self.training else self.seen
        return super().forward(x, c_noise, labels)


class Constant(Plain):
    """The authors' code of sampling, without gradients."""

    @torch.no_grad()
    def forward(self, x, c_noise, labels=None):
        return super().forward(x, c_noise, labels)


class Borrowing(Plain):
    """A function that keeps the first layer of the network that it was made for, of which a copy is no part."""

    def __init__(self) -> None:
        super().__init__()
        first = self.first
        self.call_first = lambda x: first(x)

    def forward(self, x, c_noise, labels=None):
        kept, self._modules["first"] = self.first, Call(self.call_first)
        try:
            return super().forward(x, c_noise, labels)
        finally:
            self._modules["first"] = kept


class Call(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Lazy(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.LazyLinear(SIDE)

    def forward(self, x, c_noise, labels=None):
        return self.layer(x)


@pytest.mark.parametrize("make, words", [
    (Cached, "other values to save once it is called .net.cache is made"),
    (Growing, "net.seen is made, or changes its shape"),
    (Constant, "the loss of pid does not depend on what it trains, student"),
    (lambda: torch.jit.script(torch.nn.Sequential(torch.nn.Linear(2, 2))), "Sequential is TorchScript's, which may teach"),
    (Lazy, "lazy layers without weights as yet .layer.weight.; call it once")])
def test_networks_that_could_not_be_loaded_again_are_refused_at_the_first_step(tmp_path, make, words):
    with pytest.raises(PidistillError, match=words):
        distill(teacher_of(make()), tmp_path / "run", **{"train.steps": 1})
    assert not (tmp_path / "run" / "student").exists()


def test_weights_that_are_no_part_of_the_network_are_said(capsys):
    make_student(teacher_of(Listed()))
    said = " ".join(capsys.readouterr().err.split())
    assert "Listed has weights in plain lists or dictionaries (deep, layers, more): they are neither trained nor" in said
    make_student(teacher_of(Plain()))
    assert "plain lists" not in capsys.readouterr().err


def test_weights_without_gradients_are_said(tmp_path, capsys):
    distill(teacher_of(Borrowing()), tmp_path / "run", **{"train.steps": 1})
    assert "2 of 6 weights get no gradient from pid, and stay as they are: net.first.weight, net.first.bias" in \
        " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("wrap", [torch.nn.DataParallel, torch.compile])
def test_a_factory_may_wrap_the_network(runs, wrap):
    """What is saved has the network's own names."""
    student = load_student(runs / "Plain", net=lambda: wrap(Plain()))
    assert torch.equal(student.sample(SEEDS), load_student(runs / "Plain", net=Plain).sample(SEEDS))
