"""`edm:`: sizes of the published networks, the forms of a weights file, and what is refused."""

from __future__ import annotations

import argparse
import os
import pickle
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pidistill.core.errors import PidistillError
from pidistill.files.edm_pickle import EDMPickle
from pidistill.files.reading import sha256
from pidistill.models.student_init import make_student
from pidistill.models.teachers.base import load_teacher
from pidistill.models.teachers.edm import ADDRESS, CHECKPOINTS, EDM2, interpret
from pidistill.nets.base import build_net
from tests.edm_pickles import Persistent, dumps, network, write
from tests.helpers import CLASSES, NET, SHAPE, tiny_teacher

SIZES = {  # parameters without map_augment; with it CIFAR-10's have 55,733,891 and 56,397,827
    "cifar10-32x32-uncond-vp": 55_732_739, "cifar10-32x32-cond-vp": 55_734_147,
    "cifar10-32x32-uncond-ve": 56_395_523, "cifar10-32x32-cond-ve": 56_398_339,
    "ffhq-64x64-uncond-vp": 61_804_419, "ffhq-64x64-uncond-ve": 62_758_787,
    "afhqv2-64x64-uncond-vp": 61_804_419, "afhqv2-64x64-uncond-ve": 62_758_787,
    "imagenet-64x64-cond-adm": 295_899_267,
    "edm2-img64-s": 280_209_253, "edm2-img64-m": 497_803_045, "edm2-img64-l": 777_492_197, "edm2-img64-xl": 1_119_276_709,
}
LATENT_SIZES = {  # published: 125, 280, 498, 778, 1119 and 1523 million
    "edm2-img512-xs": 124_713_125, "edm2-img512-s": 280_212_709, "edm2-img512-m": 497_807_653,
    "edm2-img512-l": 777_497_957, "edm2-img512-xl": 1_119_283_621, "edm2-img512-xxl": 1_523_164_645,
}
DROPOUT = {"cifar10": 0.13, "ffhq": 0.05, "afhqv2": 0.25, "imagenet": 0.1, "edm2": 0.1}


def offline(*_, **__):
    raise OSError("no network")


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path):
    """A published network small enough for tests, an empty cache folder, and weights for it."""
    monkeypatch.setitem(CHECKPOINTS, "tiny", {"shape": SHAPE, "num_classes": CLASSES, "net": NET})
    monkeypatch.setenv("PIDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pidistill.files.downloads.download", offline)
    (tmp_path / "cache").mkdir()
    return tiny_teacher()


def same(a, b) -> bool:
    x, y = torch.randn(3, *SHAPE), torch.arange(3)
    return torch.equal(a(x, 2.0, y), b(x, 2.0, y))


@pytest.mark.parametrize("name", SIZES)
def test_published_networks_have_their_size_and_need_no_memory(name):
    load_teacher("edm:tiny", weights=False)  # torch imports sympy with the first tensor on meta, which takes 2 s
    began = time.process_time()
    teacher = load_teacher(f"edm:{name}", weights=False)
    assert time.process_time() - began < 2
    assert {tensor.device.type for tensor in (*teacher.parameters(), *teacher.buffers())} == {"meta"}
    assert sum(p.numel() for p in teacher.parameters()) == SIZES[name]
    size = 32 if "32x32" in name else 64
    assert teacher.shape == (3, size, size) and (teacher.num_classes > 0) == ("-cond-" in name or "edm2" in name)
    assert (teacher.t_min, teacher.t_max, teacher.sigma_data, teacher.rho) == (0.002, 80, 0.5, 7)
    assert teacher.net_spec["dropout"] == (0 if name.endswith("-s") else DROPOUT[name.split("-")[0]])
    student = make_student(teacher)  # a dry run goes on to here
    assert student.net_spec["dropout"] == 0 and {m.dropout for m in student.modules() if hasattr(m, "dropout")} == {0}


@pytest.mark.parametrize("name", LATENT_SIZES)
def test_edm2s_latent_networks_have_their_size(name):
    with torch.device("meta"):
        net = build_net(EDM2[name]["net"], EDM2[name]["shape"], EDM2[name]["num_classes"])
    assert sum(p.numel() for p in net.parameters()) == LATENT_SIZES[name]
    assert {m.dropout for m in net.modules() if hasattr(m, "dropout")} == {0.0 if name.endswith(("-s", "-xs")) else 0.1}
    assert net.emb_label.weight.shape[1] == 1000 and net.out_conv.weight.shape[0] == 4


def test_all_published_names_are_there():
    assert SIZES.keys() | LATENT_SIZES.keys() >= EDM2.keys()
    assert SIZES.keys() == CHECKPOINTS.keys() - {"tiny"}


@pytest.mark.parametrize("ending", ["safetensors", "pt", "pth", "ckpt"])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_weights_are_read_from_plain_state_dictionaries(tiny, tmp_path, ending, prefix):
    path = tmp_path / f"a,b.{ending}"  # a comma in the name is no separator
    state = {prefix + key: value for key, value in tiny.model.state_dict().items()}
    save_file(state, path) if ending == "safetensors" else torch.save(state, path)
    assert same(load_teacher(f"edm:tiny,weights={path}"), tiny)


@pytest.mark.parametrize("key", ["ema", "model", "state_dict"])
def test_weights_may_lie_under_a_key_beside_others(tiny, tmp_path, key):
    torch.save({key: tiny.state_dict(), "step": 3, "args": {"lr": 0.1}}, tmp_path / "w.pt")
    assert same(load_teacher(f"edm:tiny,weights={tmp_path / 'w.pt'}"), tiny)


def drawn(state, seed):
    """Other weights of the same names; constants stay."""
    generator = torch.Generator().manual_seed(seed)
    return {name: value if "filter" in name else torch.rand(value.shape, generator=generator)
            for name, value in state.items()}


def ddp(state):
    return {f"module.{name}": value for name, value in state.items()}


@pytest.mark.parametrize("form, label", [
    ("model_ema", "model_ema"), ("ema of DiT", "ema"), ("shadow_params", "ema.shadow_params"), ("LitEma", "model_ema"),
    ("shadow_params alone", "shadow_params"), ("augmented", "ema.shadow_params"), ("lucidrains", "ema.ema_model.model"),
    ("rates", "ema_0.9999")])
def test_the_average_is_taken_said_and_recorded(tiny, tmp_path, capsys, form, label):
    state = dict(tiny.model.state_dict())
    raw, average = drawn(state, 1), drawn(state, 2)
    parameters = [average[name] for name, _ in tiny.model.named_parameters()]
    contents = {
        "model_ema": {"model": raw, "model_ema": average},
        "ema of DiT": {"model": raw, "ema": average, "opt": {"state": {0: raw}}, "args": argparse.Namespace(lr=0.1, n=[1])},
        "shadow_params": {"model": ddp(raw), "ema": {"shadow_params": parameters, "num_updates": 3}, "step": 3},
        "shadow_params alone": {"shadow_params": parameters},
        "LitEma": {**{f"model.{name}": value for name, value in raw.items()},
                   **{f"model_ema.{name.replace('.', '')}": average[name] for name, _ in tiny.model.named_parameters()}},
        "augmented": {"model": {"map_augment.weight": torch.ones(8, 9), **raw},
                      "ema": {"shadow_params": [torch.ones(8, 9), *parameters]}},
        "lucidrains": {"model": {f"model.{name}": value for name, value in raw.items()}, "ema": {
            "initted": torch.tensor(True), **{f"online_model.model.{name}": value for name, value in raw.items()},
            **{f"ema_model.model.{name}": value for name, value in average.items()}}},
        "rates": {"ema_0.999": raw, "ema_0.9999": average}}[form]
    torch.save(contents, tmp_path / "w.pt")
    teacher = load_teacher(f"edm:tiny,weights={tmp_path / 'w.pt'}{',entry=ema_0.9999' if form == 'rates' else ''}")
    assert all(torch.equal(value, average[name]) for name, value in teacher.model.state_dict().items())
    said = capsys.readouterr().err
    assert said.startswith(f"w.pt: weights are taken from {label}, an average")
    assert teacher.origin["entry"] == label and said == "".join(f"w.pt: {s}\n" for s in teacher.origin["left_out"])


def test_an_entry_of_the_cache_folder_s_file(tiny, tmp_path):
    torch.save({"model": tiny.model.state_dict(), "ema": drawn(tiny.model.state_dict(), 1)}, tmp_path / "cache" / "tiny.pt")
    assert same(load_teacher("edm:tiny,entry=model"), tiny) and not same(load_teacher("edm:tiny"), tiny)


@pytest.mark.parametrize("persistent", [argparse.Namespace(path=Path("x")), Path("x")])
def test_objects_beside_weights_are_named(tiny, tmp_path, persistent):
    torch.save({"ema": tiny.model.state_dict(), "args": persistent}, tmp_path / "w.pt")
    with pytest.raises(PidistillError, match=r"a pathlib\.\w+, whose code is not run\); save state_dict\(\) alone"):
        load_teacher(f"edm:tiny,weights={tmp_path / 'w.pt'}")


def test_half_precision_weights_become_float32(tiny, tmp_path):
    torch.save({key: value.half() for key, value in tiny.state_dict().items()}, tmp_path / "w.pt")
    teacher = load_teacher(f"edm:tiny,weights={tmp_path / 'w.pt'}")
    assert {p.dtype for p in teacher.parameters()} == {torch.float32}


@pytest.mark.parametrize("prefix", ["", "model."])
def test_the_augmentation_layer_is_left_out_and_said_so(tiny, tmp_path, capsys, prefix):
    state = {prefix + key: value for key, value in tiny.model.state_dict().items()}
    torch.save(state | {f"{prefix}map_augment.weight": torch.ones(8, 9)}, tmp_path / "w.pt")
    assert same(load_teacher(f"edm:tiny,weights={tmp_path / 'w.pt'}"), tiny)
    assert capsys.readouterr().err == "w.pt: map_augment is left out, since sampling never augments\n"


def test_edm2s_loss_weights_are_left_out_and_said_so(tmp_path, monkeypatch, capsys):
    """The published files are in half precision, with `unet.` before the network's names."""
    net = {"name": "edm2_unet", "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
    own = tiny_teacher(net)
    monkeypatch.setitem(CHECKPOINTS, "tiny2", {"shape": SHAPE, "num_classes": CLASSES, "net": net})
    state = {f"unet.{key}": value.half() for key, value in own.model.state_dict().items()}
    extra = {"logvar_fourier.freqs": torch.ones(128), "logvar_fourier.phases": torch.ones(128),
             "logvar_linear.weight": torch.ones(1, 128)}
    torch.save(state | extra, tmp_path / "w.pt")
    teacher = load_teacher(f"edm:tiny2,weights={tmp_path / 'w.pt'}")
    assert same(teacher, own.half().float())
    assert capsys.readouterr().err == "w.pt: logvar is left out, since it weighs the training loss alone\n"


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_the_cache_folder_is_searched(tiny, tmp_path, ending):
    path = tmp_path / "cache" / f"tiny.{ending}"
    save_file(tiny.state_dict(), path) if ending == "safetensors" else torch.save(tiny.state_dict(), path)
    assert same(load_teacher("edm:tiny"), tiny)


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def damaged(kind: str, tiny, path, marker) -> None:
    """Write one of the files that must be refused."""
    state = dict(tiny.model.state_dict())
    first = next(iter(state))
    if kind == "zip with code":
        torch.save(state | {"x": Evil(marker)}, path)
    elif kind == "pickle with code":
        path.write_bytes(pickle.dumps({"ema": Evil(marker)}))
    elif kind == "module":
        torch.save({"ema": tiny.model}, path)
    elif kind == "cut":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:3000])
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        bad = {"missing": {k: v for k, v in state.items() if k != first}, "surplus": state | {"a": torch.ones(1)},
               "misshapen": state | {first: torch.ones(2)}, "integer": state | {first: state[first].long()},
               "number": state | {first: 3}, "sparse": state | {first: torch.eye(3).to_sparse()},
               "meta": state | {first: state[first].to("meta")}, "list": [1], "nothing": {},
               "mixed": state | {"model.x": torch.ones(1)}, "keys": {1: torch.ones(1)},
               "lines": state | {"a\nb": torch.ones(1)}}
        torch.save(bad[kind], path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind, words", [
    ("zip with code", "more than a state dictionary"), ("pickle with code", "more than a state dictionary"),
    ("module", "more than a state dictionary"), ("cut", "damaged"), ("empty", "damaged"),
    ("missing", "fit the network of edm:tiny: weights 1 missing"), ("surplus", "1 unknown"), ("mixed", "1 unknown"),
    ("misshapen", "shape"), ("integer", "int64"), ("number", "no weight .int"), ("sparse", "no weight"),
    ("meta", "no weight"), ("list", "but a list"), ("nothing", "but nothing"), ("keys", "no weight"),
    ("lines", "no weight")])
def test_damaged_and_hostile_files_are_one_line_and_run_nothing(tiny, tmp_path, capsys, kind, words):
    damaged(kind, tiny, tmp_path / "w.pt", tmp_path / "marker")
    with pytest.raises(PidistillError, match=words) as caught:
        load_teacher(f"edm:tiny,weights={tmp_path / 'w.pt'}")
    assert "\n" not in str(caught.value) and "w.pt" in str(caught.value)
    assert not (tmp_path / "marker").exists() and capsys.readouterr() == ("", "")


@pytest.mark.parametrize("spec, words", [
    ("edm:cifar10-32x32-uncond", "did you mean 'cifar10-32x32-uncond-v[pe]'.*choices: .*imagenet-64x64-cond-adm"),
    ("edm:", "unknown edm network"), ("edm:tiny,file=x.pt", "weights=FILE"), ("edm:tiny,weights=", "weights=FILE"),
    ("edm:tiny,", r"download edm:tiny .no network.; put the file from https://.*edm-tiny\.pkl to .*cache/edm-tiny\.pkl"),
    ("edm:tiny", "or name it with edm:tiny,weights=FILE or edm:FILE.pkl"), ("edm:nowhere.pkl", "nowhere.pkl does not exist"),
    ("edm:edm2-img64-s", "or name NVIDIA's pickle"),
    ("edm:tiny,weights=nowhere.pt", "nowhere.pt does not exist"), ("edm:tiny,weights=no.safetensors", "does not exist"),
    ("edm:tiny,weights=edm-cifar.pkl", "edm-cifar.pkl does not exist"), ("edm:tiny,weights=x.bin", "got .bin"),
    ("edm:tiny,weights=x", "without an ending"), ("edm:tiny,entry=", "weights=FILE"),
    ("edm:a.pkl,entry=ema", "weights=FILE"), ("edm:tiny,weights=x.pt,entry=", "FILE,entry=NAME"),
    ("edm:tiny,weights=x.pkl,entry=a", "leave entry=a out")])
def test_what_cannot_be_meant_is_one_line(spec, words):
    with pytest.raises(PidistillError, match=words) as caught:
        load_teacher(spec)
    assert "\n" not in str(caught.value)


def test_the_published_pickle_is_downloaded_once_and_remembered(tiny, tmp_path, monkeypatch):
    """Into the cache folder, said on the terminal; what it was lies in the teacher's origin."""
    kwargs = {key: NET[key] for key in ("model_channels", "channel_mult", "num_blocks", "attn_resolutions")}
    source = write(tmp_path / "source.pkl", tiny.model, kwargs=kwargs, img_resolution=8, img_channels=1, label_dim=CLASSES,
                   sigma_data=0.5)
    calls = []

    def download(url, path, expected):
        calls.append(url)
        shutil.copy(source, path)

    monkeypatch.setattr("pidistill.files.downloads.download", download)
    for _ in range(2):
        teacher = load_teacher("edm:tiny")
        assert same(teacher, tiny) and "NVIDIA" in teacher.origin["licence"]
    assert calls == [ADDRESS.format("tiny")]
    assert teacher.origin["sha256"] == sha256(source) and (tmp_path / "cache" / "edm-tiny.pkl").exists()


@pytest.mark.parametrize("change, words", [
    ({"class_name": "MyPrecond"}, "unknown preconditioning 'MyPrecond'"),
    ({"network_class": "MyNet"}, "unknown network 'MyNet'"),
    ({"img_resolution": 10**9}, "image size is impossible"), ({"img_resolution": "8"}, "image size is impossible"),
    ({"label_dim": None}, "image size is impossible"), ({"kwargs": {"model_channels": 16}}, "does not fit|has shape"),
    ({"kwargs": {"model_chanels": 8}}, "cannot build the network"),
    ({"kwargs": {"model_channels": -1}}, "cannot build|cannot be")])
def test_pickles_of_other_networks_are_one_line(tiny, tmp_path, change, words):
    facts = {"img_resolution": 8, "img_channels": 1, "label_dim": CLASSES, "sigma_data": 0.5,
             "kwargs": {key: NET[key] for key in ("model_channels", "channel_mult", "num_blocks", "attn_resolutions")}}
    path = write(tmp_path / "a.pkl", tiny.model, **(facts | change))
    with pytest.raises(PidistillError, match=words) as caught:
        load_teacher(f"edm:{path}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key, words", [("ema", ", not from net"), ("model", ", which may be no average")])
def test_the_network_of_a_pickle_is_said_where_it_is_not_ema_alone(tiny, tmp_path, capsys, key, words):
    nets = {}
    for name, net in {key: tiny.model, **({"net": tiny_teacher().model} if key == "ema" else {})}.items():
        nets[name] = Persistent("EDMPrecond", **FACTS)
        nets[name].add_module("model", network(net, "SongUNet", KWARGS))
    (tmp_path / "a.pkl").write_bytes(dumps(dict(reversed(nets.items()))))
    teacher = load_teacher(f"edm:{tmp_path / 'a.pkl'}")
    assert same(teacher, tiny) and capsys.readouterr().err == f"a.pkl: weights are taken from {key}{words}\n"
    (tmp_path / "a.pkl").write_bytes(dumps({"a": nets[key], "b": nets[key]}))
    with pytest.raises(PidistillError, match="it holds several networks, a, b, and none of them under `ema`"):
        load_teacher(f"edm:{tmp_path / 'a.pkl'}")


def test_a_pickle_that_does_not_say_its_size_is_refused(tiny, tmp_path):
    path = write(tmp_path / "a.pkl", tiny.model, img_resolution=8, label_dim=0)
    with pytest.raises(PidistillError, match="does not say its img_channels"):
        load_teacher(f"edm:{path}")


FACTS = {"img_resolution": 8, "img_channels": 1, "label_dim": CLASSES, "sigma_data": 0.5}
KWARGS = {key: NET[key] for key in ("model_channels", "channel_mult", "num_blocks", "attn_resolutions")}


def test_attributes_of_a_fork_are_said(tiny, tmp_path, capsys):
    """They may change what the network means; those that are NVIDIA's, or None, are not worth a word."""
    path = write(tmp_path / "a.pkl", tiny.model, kwargs=KWARGS, **FACTS, use_fp16=True, epsilon_t=1e-5, predict_x0=True,
                 cfg_scale=None)
    assert same(load_teacher(f"edm:{path}"), tiny)
    said = capsys.readouterr().err
    assert said == "a.pkl: predict_x0=True of its EDMPrecond is not NVIDIA's, and is not read\n"


@pytest.mark.parametrize("kwargs, words", [
    ({"in_channels": 2}, "in_channels=2 for images of 1"), ({"out_channels": 3}, "out_channels=3 for images of 1"),
    ({"in_channels": 4, "out_channels": 1}, "in_channels=4"), ({"out_channels": 0}, "out_channels=0")])
def test_networks_of_other_channels_than_their_images_are_refused(tiny, tmp_path, kwargs, words):
    path = write(tmp_path / "a.pkl", tiny.model, kwargs=KWARGS | kwargs, **FACTS)
    with pytest.raises(PidistillError, match=words):
        load_teacher(f"edm:{path}")


def test_options_without_names_are_refused():
    network = {"class_name": "SongUNet", "args": (8, 1, 1, 3, 0, 64), "kwargs": {}}
    with pytest.raises(PidistillError, match="its SongUNet was given options without names"):
        interpret(EDMPickle("EDMPrecond", FACTS, network, {}, ()))
    assert interpret(EDMPickle("EDMPrecond", FACTS, network | {"args": (8, 1, 1, 3)}, {}, ()))[0]["shape"] == (1, 8, 8)
