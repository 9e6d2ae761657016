"""Open families: unknown names and options list the choices; of some a user may bring members."""

from __future__ import annotations

import sys

import pytest

from pidistill.core.errors import PidistillError
from pidistill.core.registry import HOMES, OPEN_TO_PYTHON, build, find_member, list_members
from pidistill.models.teachers.gaussian import gaussian


def test_names_are_the_files():
    assert {"l1", "l2", "pseudo_huber"} <= set(list_members("distances"))
    assert list_members("samplers") == sorted(list_members("samplers")) and "__init__" not in list_members("nets")


def test_a_member_is_the_object_named_like_the_file():
    from pidistill.nets.song_unet import SongUNet
    from pidistill.objectives.distances.pseudo_huber import PseudoHuber

    assert find_member("distances", "pseudo_huber") is PseudoHuber and find_member("nets", "song_unet") is SongUNet
    assert find_member("teachers", "gaussian") is gaussian  # and not the class Gaussian, which differs in case only


def test_unknown_member_lists_the_choices():
    with pytest.raises(PidistillError, match=r"unknown distance 'l22'; did you mean 'l2'\? \(choices: features, l1, l2"):
        find_member("distances", "l22")


def test_unknown_option_lists_the_options():
    with pytest.raises(PidistillError, match=r"option of distances/pseudo_huber 'k' \(choices: c\)"):
        build("distances", "pseudo_huber", k=1)
    with pytest.raises(PidistillError, match=r"nets/mlp 'widht'; did you mean 'width'"):
        build("nets", "mlp", (2,), widht=3)


def test_missing_and_doubled_arguments_are_one_line():
    with pytest.raises(PidistillError, match="nets/mlp: missing a required argument: 'shape'"):
        build("nets", "mlp")
    with pytest.raises(PidistillError, match="nets/mlp: multiple values"):
        build("nets", "mlp", (2,), shape=(2,))


def test_options_reach_the_member():
    assert build("distances", "pseudo_huber", c=0.25).c == 0.25


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of the user's own, in the current folder."""
    (tmp_path / "pidistill_mine.py").write_text("class Far:\n    def __init__(self, *, scale: float = 1.0):\n        "
                                                "self.scale = scale\n\nNUMBER = 3\n")
    monkeypatch.chdir(tmp_path)
    yield "python:pidistill_mine"
    sys.modules.pop("pidistill_mine", None)


@pytest.mark.parametrize("family", OPEN_TO_PYTHON)
def test_a_user_brings_members_of_some_families(mine, family):
    path = [*sys.path]
    assert find_member(family, f"{mine}:Far") is sys.modules["pidistill_mine"].Far and sys.path == path
    assert build(family, f"{mine}:Far").scale == 1 and build(family, f"{mine}:Far", scale="2.5").scale == 2.5
    with pytest.raises(PidistillError, match=f"option of {family}/{mine}:Far 'scael'; did you mean 'scale'"):
        build(family, f"{mine}:Far", scael=2)
    with pytest.raises(PidistillError, match=f"{family}/{mine}:Far: scale: .*got 'much'"):
        build(family, f"{mine}:Far", scale="much")


def test_families_that_files_name_run_no_code_of_theirs(mine):
    """Networks come with weights from anywhere, whose configuration must not import a module."""
    assert {*OPEN_TO_PYTHON} == {"schemes", "distances", "samplers", "objectives"}
    for family in HOMES.keys() - {*OPEN_TO_PYTHON}:
        with pytest.raises(PidistillError, match=rf"unknown {family.removesuffix('s')} '{mine}:Far'.*\(choices: "):
            find_member(family, f"{mine}:Far")
    assert "pidistill_mine" not in sys.modules


@pytest.mark.parametrize("name, words", [
    ("python:pidistill_mine", "a python distance is python:MODULE:NAME, got python:pidistill_mine"),
    ("python:a b:Far", "python:MODULE:NAME"), ("python:pidistill_mine:Far:x", "python:MODULE:NAME"),
    ("python:pidistill_mien:Far", "No module named 'pidistill_mien'"),
    ("python:pidistill_mine:Fra", "the module pidistill_mine has no Fra"),
    ("python:pidistill_mine:NUMBER", "no class and no function")])
def test_what_a_module_does_not_have_is_one_line(mine, name, words):
    with pytest.raises(PidistillError, match=words) as caught:
        find_member("distances", name)
    assert "\n" not in str(caught.value)
