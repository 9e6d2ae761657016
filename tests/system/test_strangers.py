"""Models that raise, or whose answers are none, at every verb: one line with their name, their input and their own words."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import pidistill
from pidistill.core.errors import ForeignError
from pidistill.models.denoiser import FunctionDenoiser, name_teacher
from pidistill.models.student_init import make_student
from tests.cli.flags import SHORT
from tests.helpers import MLP, tiny_teacher

MODULE = """
import numpy
import torch


class Base(torch.nn.Module):
    shape, num_classes, t_min, t_max, sigma_data = (1, 8, 8), 3, 0.01, 20.0, 0.5

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, t, labels=None):
        return x * 0.25 / (0.25 + t[:, None, None, None] ** 2)


class Raises(Base):
    def forward(self, x, t, labels=None):
        raise ValueError("no such block:\\n  mid_block\\n\\nExpected one of these:\\n  down, up")


class Key(Base):
    def forward(self, x, t, labels=None):
        return {}["sample"]


class Late(Base):
    def forward(self, x, t, labels=None):
        if float(t.min()) < 5:
            raise RuntimeError("too small a t")
        return super().forward(x, t)


class Tuple(Base):
    def forward(self, x, t, labels=None):
        return super().forward(x, t), None


class Nothing(Base):
    def forward(self, x, t, labels=None):
        super().forward(x, t)


class Array(Base):
    def forward(self, x, t, labels=None):
        return super().forward(x, t).numpy()


class Integers(Base):
    def forward(self, x, t, labels=None):
        return (super().forward(x, t) * 127 + 128).to(torch.uint8)


class Average(Base):
    def forward(self, x, t, labels=None):
        return super().forward(x, t).mean(dim=0, keepdim=True)


class Double(Base):
    def __init__(self):
        super().__init__()
        self.layer = self.layer.double()

    def forward(self, x, t, labels=None):
        return self.layer(x)


class Memory(Base):
    def forward(self, x, t, labels=None):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")


class Full(Base):
    def forward(self, x, t, labels=None):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")


class Stopped(Base):
    def forward(self, x, t, labels=None):
        raise KeyboardInterrupt
"""
WORDS = {
    "Raises": "ValueError: no such block: mid_block Expected one of these: down, up", "Key": "KeyError: 'sample'",
    "Tuple": "it gives a tuple of 2: return D alone", "Nothing": "it gives None", "Array": "it gives numpy.ndarray",
    "Integers": "it gives (1, 1, 8, 8) uint8", "Late": "RuntimeError: too small a t", "Double": "RuntimeError: ",
    "Memory": "RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB",
    "Full": "OutOfMemoryError: CUDA out of memory. Tried to allocate 3.00 GiB"}
INPUT = "(1, 1, 8, 8) float32"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder with the module."""
    (tmp_path / "strangers.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("strangers", None)


@pytest.mark.parametrize("kind", WORDS)
def test_a_teacher_that_does_not_answer_is_one_line(cli, here, kind):
    line = cli("sample", f"python:strangers:{kind}", "--seeds", "0", "--out", "a.png").error()
    assert f"the teacher python:strangers:{kind} " in line and INPUT in line and WORDS[kind] in line


def test_lack_of_memory_says_what_to_set(cli, here, monkeypatch):
    line = cli("sample", "python:strangers:Full", "--seeds", "0-3", "--batch", "2", "--out", "a.png").error()
    assert "the memory does not hold 2 images at a time; set --batch to fewer" in line and WORDS["Full"] in line
    line = cli("evaluate", "python:strangers:Full", "--num", "4", "--batch", "4").error()
    assert "the memory does not hold a single image" in line and WORDS["Full"] in line


def test_one_whose_answer_depends_on_the_batch_is_one_line(cli, here):
    """Alone it would do; of two images it gives one, which would be broadcast."""
    assert cli("sample", "python:strangers:Average", "--seeds", "0", "--out", "a.png").code == 0
    line = cli("sample", "python:strangers:Average", "--seeds", "0-1", "--out", "b.png").error()
    assert "of the shape of x, (2, 1, 8, 8) float32; it gives (1, 1, 8, 8) float32" in line


RANDOM = ["--set", "student.init=random", "--set", "student.net={name: mlp, width: 8, depth: 1}"]
VERBS = {
    "inspect": ["python:strangers:Raises"], "sample": ["python:strangers:Raises", "--out", "a.png"],
    "distill": ["--teacher", "python:strangers:Raises", *RANDOM, *SHORT, "--out", "run"],
    "evaluate": ["python:strangers:Raises", "--num", "4"],
    "compare": ["--teacher", "python:strangers:Raises", "--samplers", "euler:2", "--num", "4", "--out", "out"],
    "trajectory": ["student", "--teacher", "python:strangers:Raises", "--seeds", "0", "--out", "a.png"]}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_says_it_in_one_line(cli, here, verb):
    make_student(tiny_teacher(), "random", MLP).save("student")
    line = cli(verb, *VERBS[verb]).error()
    assert "the teacher python:strangers:Raises failed on x " in line and "1, 8, 8) float32" in line
    assert WORDS["Raises"] in line and "PIDISTILL_TRACEBACK=1 shows where" in line


def test_plain_inspect_prints_the_facts_and_then_the_failure(cli, here):
    result = cli("inspect", "python:strangers:Raises")
    assert result.code == 2 and "1x8x8" in result.out and "it works" not in result.out and "failed on x" in result.err
    result = cli("inspect", "python:strangers:Base")
    assert result.code == 0 and "it works" in result.out


def test_the_check_says_it_too(cli, here):
    for kind, words in (WORDS | {"Double": "RuntimeError: "}).items():
        result = cli("inspect", f"python:strangers:{kind}", "--check")
        assert result.code == 1 and result.err == "" and "wrong " in result.out, kind
        if kind not in ("Tuple", "Nothing", "Array", "Integers"):  # which are told by its own questions
            assert words in result.out and f"the teacher python:strangers:{kind} failed on x" in result.out


def test_the_whole_traceback_is_shown_on_demand(cli, here, monkeypatch):
    for value, shown in (("1", True), ("0", False), ("", False)):
        monkeypatch.setenv("PIDISTILL_TRACEBACK", value)
        for args in (["sample", "--out", "a.png"], ["inspect", "--check"]):
            result = cli(*args, "python:strangers:Raises")
            assert ("strangers.py" in result.err and "Traceback" in result.err) == shown, result.err
            assert ("Expected one of these:\n" in result.err) == shown
        (here / "no.onnx").write_bytes(b"no")
        assert ("Malformed" in cli("inspect", "onnx:no.onnx").err) == shown  # what a reader's line hides


def test_ctrl_c_inside_a_teacher_is_ctrl_c(cli, here):
    for args in (["sample", "--out", "a.png"], ["inspect", "--check"], ["inspect"]):
        assert cli(*args, "python:strangers:Stopped").code == 130


def test_lack_of_memory_outside_a_teacher_is_one_line(cli, here, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("Tried to allocate\n4 GiB")

    monkeypatch.setattr("pidistill.objectives.distances.l2.L2.__call__", fail)
    line = cli("distill", "--teacher", "python:strangers:Base", *RANDOM, *SHORT, "--out", "run").error()
    assert "the memory does not hold it (Tried to allocate 4 GiB)" in line and "train.microbatch=auto" in line


def test_in_python_the_exception_is_the_cause(here):
    def denoise(x, t, labels):
        raise LookupError("far away")

    teacher = FunctionDenoiser(denoise, (1, 4, 4), t_min=0.1, t_max=9.0, sigma_data=0.5)
    with pytest.raises(ForeignError, match=r"denoise failed on x \(3, 1, 4, 4\) float32, t = 9") as caught:
        pidistill.sample_teacher(teacher, range(3))
    assert isinstance(caught.value.__cause__, LookupError) and isinstance(caught.value, pidistill.PidistillError)


def test_names(here):
    assert name_teacher(tiny_teacher()) == "the teacher's network song_unet"
    assert name_teacher(pidistill.load_teacher("gaussian:2")) == "the teacher gaussian:2"
    assert name_teacher(FunctionDenoiser(max, (1,))) == "the teacher max"


def test_a_denoiser_with_a_forward_of_its_own_is_heard_as_well():
    class Own(pidistill.Denoiser):
        def forward(self, x, t, labels=None):
            return x[:1] if len(x) > 1 else {}[t]

    teacher = Own((1, 4, 4))
    with pytest.raises(ForeignError, match=r"the teacher Own failed on x \(1, 1, 4, 4\) float32, t = 2: KeyError: 2"):
        teacher(torch.zeros(1, 1, 4, 4), 2.0)
    with pytest.raises(ForeignError, match=r"the teacher Own must give D .* it gives \(1, 1, 4, 4\)"):
        teacher(torch.zeros(2, 1, 4, 4), 2.0)


@pytest.mark.parametrize("change, dtype", [(torch.Tensor.half, torch.float32), (torch.Tensor.double, torch.float32),
                                           (torch.Tensor.bfloat16, torch.float32)])
def test_decimal_numbers_of_another_size_become_those_of_x(change, dtype):
    teacher = FunctionDenoiser(lambda x, t, y: change(x), (1, 4, 4), t_min=0.1, t_max=9.0, sigma_data=0.5)
    x = torch.randn(2, 1, 4, 4)
    assert teacher(x, 1.0).dtype == dtype and torch.equal(teacher(x, 1.0), change(x).to(dtype))


# Networks of libraries ----------------------------------------------------------------------------------------------------


def pipeline(folder: Path, size: int, **options) -> str:
    """A pipeline whose network halves its input twice."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(sample_size=size, in_channels=1, out_channels=1, block_out_channels=(8,) * 3, **options,
                                layers_per_block=1, down_block_types=("DownBlock2D",) * 3, norm_num_groups=4,
                                up_block_types=("UpBlock2D",) * 3)
    diffusers.DDPMPipeline(net, diffusers.DDPMScheduler()).save_pretrained(folder)
    return f"diffusers:{folder}"


@pytest.mark.parametrize("size, options, words", [
    (26, {}, "RuntimeError: Sizes of tensors must match except in dimension 1. Expected size 14 but got size 13"),
    (9, {}, "RuntimeError: Sizes of tensors must match")])
def test_networks_of_diffusers_that_cannot_run(cli, tmp_path, monkeypatch, size, options, words):
    monkeypatch.setattr(socket.socket, "connect", None)
    spec = pipeline(tmp_path / "p", size, **options)
    for args in (["inspect", spec], ["sample", spec, "--seeds", "0", "--out", tmp_path / "a.png"],
                 ["distill", "--teacher", spec, *SHORT, "--out", tmp_path / "run"]):
        line = cli(*args).error()
        assert f"the teacher {spec} failed on x" in line and f"1, {size}, {size}) float32" in line and words in line
    result = cli("inspect", spec, "--check")
    assert result.code == 1 and words in result.out


@pytest.mark.parametrize("kind", ["timestep", "identity"])
def test_networks_of_diffusers_that_are_refused_by_name(cli, tmp_path, kind):
    spec = pipeline(tmp_path / "p", 8, class_embed_type=kind)
    for args in (["inspect", spec], ["sample", spec, "--seeds", "0", "--out", tmp_path / "a.png"],
                 ["distill", "--teacher", spec, *SHORT, "--out", tmp_path / "run"]):
        assert f"UNet2DModel: class_embed_type={kind} is not understood" in cli(*args).error()


def test_a_decoder_of_other_latents(cli, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    net = diffusers.DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8,
                                          num_layers=1, sample_size=8, patch_size=2, num_embeds_ada_norm=5)
    vae = diffusers.AutoencoderKL(block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
                                  up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=3)
    diffusers.DiTPipeline(net, vae, diffusers.DDIMScheduler()).save_pretrained(tmp_path / "p")
    for args in (["inspect"], ["sample", "--seeds", "0", "--sampler", "euler:2", "--out", tmp_path / "a.png"]):
        line = cli(*args, f"diffusers:{tmp_path / 'p'}").error()
        assert "its network works on 4 channels, its AutoencoderKL on 3" in line


def test_a_feature_network_that_raises(cli, here):
    (here / "features.py").write_text(
        "import torch\n\ndef make():\n    def f(x):\n        if len(x) > 2:\n            raise ValueError('at most\\ntwo')\n"
        "        return x\n    return f\n")
    np.savez("ref.npz", mu=np.zeros(1), sigma=np.eye(1))
    line = cli("evaluate", "python:strangers:Base", "--num", "4", "--features", "python:features:make", "--metrics", "fid",
               "--reference", "ref.npz").error()
    assert "the feature network python:features:make failed on x (4, 1, 8, 8) float32: ValueError: at most two" in line


def test_a_network_that_cannot_be_trained_is_one_line(cli, tmp_path, images_npz):
    pytest.importorskip("diffusers")
    blocks = {end: f"[{', '.join([f'{end}Block2D'] * 5)}]" for end in ("Down", "Up")}  # 8x8 cannot be halved so often
    net = ("{name: diffusers_net, config: {sample_size: 8, in_channels: 1, out_channels: 1, layers_per_block: 1, "
           "block_out_channels: [8, 8, 8, 8, 8], norm_num_groups: 4, "
           f"down_block_types: {blocks['Down']}, up_block_types: {blocks['Up']}}}}}")
    line = cli("train-teacher", "--set", f"data={images_npz}", "--set", f"net={net}", "--set", "train={steps: 2, batch: 4}",
               "--set", "conditional=false", "--out", tmp_path / "t").error()
    assert "the teacher's network diffusers_net failed on x (4, 1, 8, 8) float32" in line and "RuntimeError: " in line
