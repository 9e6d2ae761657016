"""Open families: unknown names and options list the choices."""

from __future__ import annotations

import pytest

from pidistill.core.errors import PidistillError
from pidistill.core.registry import build, find_member, list_members
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
