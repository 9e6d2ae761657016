"""Configuration: one file, overrides, and one line for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from pidistill.core.errors import PidistillError
from pidistill.training.config import DistillConfig, TeacherConfig
from pidistill.training.config_file import dump_yaml, load_config, parse_yaml, preset_names
from tests.names import NAMES


@pytest.mark.parametrize("model, name", [(m, n) for m in (DistillConfig, TeacherConfig) for n in preset_names(m)])
def test_every_preset_loads_and_survives_writing(model, name, tmp_path):
    config = load_config(model, name)
    (tmp_path / "config.yaml").write_text(dump_yaml(config))
    assert load_config(model, tmp_path / "config.yaml") == config


def test_presets_are_those_of_the_folder():
    assert {"default", "digits"} <= set(preset_names(DistillConfig)) and "digits" in preset_names(TeacherConfig)


def test_null_switches_an_option_off():
    assert load_config(DistillConfig, "digits").optimizer.clip == 1.0
    assert load_config(DistillConfig, "digits", ["optimizer.clip=null"]).optimizer.clip is None


def test_the_default_preset_is_table_6():
    """CIFAR-10 column and text: batch 512, 2e-4 constant, RAdam, no clipping, EMA 0.99995, N = 250."""
    c = load_config(DistillConfig, "default")
    assert (c.train.batch, c.optimizer.name, c.optimizer.lr, c.optimizer.decay, c.optimizer.clip, c.ema, c.grid.points) == (
        512, "radam", 2e-4, "constant", None, (0.99995,), 250)


def test_overrides_win_and_keep_the_rest():
    config = load_config(DistillConfig, "default", ["train.steps=7", "optimizer.lr=1e-3", "out=x", "objective.distance=l1",
                                                    "student={init: random, net: mlp}", "student.net.width=5",
                                                    "objective.distance.c=2"])
    base = load_config(DistillConfig, "default")
    assert config.train.steps == 7 and config.train.batch == base.train.batch
    assert config.optimizer.lr == 0.001 and base.optimizer.lr == 2e-4
    assert config.objective == {"name": "pid", "distance": {"name": "l1", "c": 2}}
    assert config.student.net == {"name": "mlp", "width": 5} and config.out == "x"


def test_a_name_replaces_a_member_and_its_options_follow():
    config = load_config(DistillConfig, "default", {"objective.distance": {"name": "pseudo_huber", "c": 0.1}})
    assert config.objective["distance"] == {"name": "pseudo_huber", "c": 0.1}


@pytest.mark.parametrize("override, words", [
    ("train.stesp=3",
     "did you mean 'train.steps'.*choices: train.batch, train.microbatch, train.recompute, train.seed, train.skip_limit, "
     "train.steps"),
    ("tain.steps=3", "did you mean 'train'"),
    ("train.steps=0", "train.steps should be greater than or equal to 1, got 0"), ("train.steps=abc", "got 'abc'"),
    ("train.steps=1.5", "train.steps .*got 1.5"), ("grid.points=1", "grid.points .*got 1"),
    ("ema=1", r"ema\S* .*less than 1, got 1 "),
    ("ema=-0.1", "ema"), ("optimizer.lr=0", "optimizer.lr"), ("optimizer.lr=.nan", "optimizer.lr"),
    ("optimizer.lr=.inf", "optimizer.lr"), ("optimizer.name=sgd", "'radam' or 'adam'"), ("optimizer.decay=step", "cosine"),
    ("optimizer.clip=0", "optimizer.clip"), ("optimizer.betas=[0.9]", "optimizer.betas"),
    ("optimizer.betas=[1.5, 0.9]", "optimizer.betas"), ("optimizer.betas=[0.9, 1]", "optimizer.betas"),
    ("student.net=3", "student.net"),
    ("objective={distance: l1}", "objective must be a name"),
    ("train=3", "train"), ("train.batch=", "train.batch"), ("train.seed=-1", "train.seed"), ("log.every=0", "log.every"),
    ("train.seed=99999999999999999999999", "train.seed"), ("checkpoint.keep=0", "checkpoint.keep"), ("preview=3", "preview"),
    ("train.steps", "key=value"), ("=3", "key=value"), ("a b=3", "key=value"), ("out=[", "cannot read the value"),
    ("teacher.x=3", "teacher"), ("ema.x=3", "cannot set ema.x")])
def test_bad_overrides_are_one_line(override, words):
    with pytest.raises(PidistillError, match=words) as caught:
        load_config(DistillConfig, "default", [override])
    assert len(str(caught.value).splitlines()) == 1


def test_missing_keys_are_named(tmp_path):
    (tmp_path / "a.yaml").write_text("train: {steps: 1}\nout: x\n")
    with pytest.raises(PidistillError, match=r"train.batch .*is required"):
        load_config(DistillConfig, tmp_path / "a.yaml")


@pytest.mark.parametrize("text, words", [
    ("a: [", "line 2: not valid YAML"), ("- 1\n- 2", "got list"), ("", "got NoneType"),
    ("!!python/object:os.system {}", "not valid YAML"),
    ("\x00", "not valid YAML")])
def test_bad_files_are_one_line(tmp_path, text, words):
    path = tmp_path / "a.yaml"
    path.write_text(text + "\n")
    with pytest.raises(PidistillError, match=words):
        load_config(DistillConfig, path)


@pytest.mark.parametrize("source, words", [
    ("digit", "did you mean 'digits'.*default"), ("/nowhere/a.yaml", "does not exist"),
    ("a.json", "choices: cifar10, .*cifar10_corrected, .*default"),
    ("../digits", "choices: cifar10, .*cifar10_corrected, .*default"), ("digits\0", "choices: cifar10")])
def test_unknown_sources_are_one_line(source, words):
    with pytest.raises(PidistillError, match=words):
        load_config(DistillConfig, source)


def test_not_utf8_is_one_line(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(PidistillError, match="cannot read the configuration"):
        load_config(DistillConfig, tmp_path / "a.yaml")


def test_scientific_notation_is_a_number():
    for text, value in (("1e-3", 1e-3), ("2E5", 2e5), ("1.5e+2", 150.0), ("3.e-1", 0.3)):
        assert load_config(DistillConfig, "default", [f"optimizer.lr={text}"]).optimizer.lr == value


def test_the_written_file_is_plain_yaml():
    config = load_config(DistillConfig, "default", ["objective.distance=l1"])
    values = YAML(typ="safe").load(dump_yaml(config))
    assert values["objective"] == {"name": "pid", "distance": "l1"} and values["optimizer"]["betas"] == [0.9, 0.999]


# any text ------------------------------------------------------------------------------------------------------------


def write_and_read(text: str) -> None:
    config = load_config(DistillConfig, "default", [("teacher", text), ("objective.distance", {"name": text})])
    assert config.teacher == config.objective["distance"]["name"] == text
    written = dump_yaml(config).encode()  # UTF-8
    values = parse_yaml(written.decode())
    assert values["teacher"] == values["objective"]["distance"]["name"] == text


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_the_same_after_writing_and_reading(name, tmp_path):
    write_and_read(name)
    config = load_config(DistillConfig, "default", {"out": name, "data": name, "evaluate.reference": name})
    assert config.out == config.data == config.evaluate.reference == name
    (tmp_path / "config.yaml").write_bytes(dump_yaml(config).encode())
    assert load_config(DistillConfig, tmp_path / "config.yaml") == config


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(st.text(st.characters(), max_size=60)
       | st.text(st.sampled_from(" \n\t\x85\u2028\\'\"#:-?!&*|>%@`{}[],~ae0x1.\xa0\udc80"), max_size=40))
def test_any_text_is_the_same_after_writing_and_reading(text):
    write_and_read(text)


@pytest.mark.parametrize("name", NAMES)
def test_a_word_of_set_is_the_text_that_it_is(name):
    """Unless YAML has quotes for it, or cannot read it, which is said."""
    text = name.strip()
    for model, key in ((TeacherConfig, "data"), (DistillConfig, "out"), (DistillConfig, "student.init"),
                       (DistillConfig, "teacher"), (DistillConfig, "evaluate.reference")):
        preset = "digits" if model is TeacherConfig else "default"
        try:
            config = load_config(model, preset, [f"{key}={name}"])
        except PidistillError as error:
            assert f"--set {key}: cannot read the value" in str(error) or (text == "" and "valid string" in str(error))
            continue
        found = config
        for part in key.split("."):
            found = getattr(found, part)
        if text[:1] in ("'", '"', "!") and isinstance(parse_yaml(text), str):
            assert found == parse_yaml(text)
        elif key == "evaluate.reference" and text in ("", "~", "null", "Null"):
            assert found is None
        else:
            assert found == text


@pytest.mark.parametrize("word, expected", [
    ("out='a: b'", "a: b"), ('out="a\\tb"', "a\tb"), ("out=' a '", " a "), ("out=runs/1 #2", "runs/1 #2"),
    ("out= runs/x ", "runs/x"),
    ("out=1e3", "1e3"), ("out=null", "null"), ("out=true", "true"), ("out=a\\b", "a\\b"), ("out=a: b", "a: b"),
    ("out=[a]", "[a]"), ("out=a\nb", "a\nb"), ("out=!!str 5", "5"), ("out=!!int 5", "!!int 5")])
def test_paths_on_the_command_line(word, expected):
    assert load_config(DistillConfig, "default", [word]).out == expected


@pytest.mark.parametrize("out", ["", "a\0b", "\ud800", "\udc00"])
def test_what_no_file_system_takes_is_no_folder(out):
    with pytest.raises(PidistillError, match="out must be the name of a folder"):
        load_config(DistillConfig, "default", {"out": out})


def test_options_of_members_keep_their_text_and_their_numbers():
    config = load_config(DistillConfig, "default", ["objective.distance={name: features, c: 1e-3}",
                                                    "objective.distance.network=my net #2.pt", "objective.balance=0.5"])
    assert config.objective["distance"] == {"name": "features", "c": 1e-3, "network": "my net #2.pt"}
    assert config.objective["balance"] == 0.5
    assert load_config(DistillConfig, "default", ["precision=bf16 # half", "train.steps=7 # few"]).precision == "bf16"


def test_paths_from_python_are_their_text():
    config = load_config(DistillConfig, "default", {"student.init": Path("runs/a #1"), "out": Path("x\\y")})
    assert config.student.init == "runs/a #1" and config.out == "x\\y"
