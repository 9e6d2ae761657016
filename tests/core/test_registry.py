"""Open families: unknown names and options list the choices; of some a user may bring members."""

from __future__ import annotations

import sys

import pytest

from pidistill.core.errors import PidistillError
from pidistill.core.registry import HOMES, OPEN_TO_PYTHON, build, find_member, list_members
from pidistill.models.teachers.base import load_teacher
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
    ("python:pidistill_mine:Far.Near", "the module pidistill_mine has no Far.Near"),
    ("python:pidistill_mine.py:Far", "a module is named without .py: python:pidistill_mine:Far"),
    ("python:pidistill_mine:NUMBER", "no class and no function")])
def test_what_a_module_does_not_have_is_one_line(mine, name, words):
    with pytest.raises(PidistillError, match=words) as caught:
        find_member("distances", name)
    assert "\n" not in str(caught.value)


# Code of the user's that raises --------------------------------------------------------------------------------------------

MODULES = {
    "raises while it is imported": ("1 / 0", "python:mine:Make cannot be imported: ZeroDivisionError: division by zero"),
    "ends the program while it is imported": ("import sys\nsys.exit(0)",
                                              "python:mine:Make cannot be imported: SystemExit: 0"),
    "has a factory that ends the program": ("def Make():\n    raise SystemExit",
                                            "the teacher python:mine:Make cannot be made: SystemExit"),
    "has an attribute that raises": (
        "class Make:\n    @property\n    def shape(self):\n        raise OSError('no header\\nyet')",
        "Make cannot be asked for a teacher's attributes: OSError: no header yet"),
    "states half a class": (
        "class Make:\n    shape, num_classes, t_min, t_max, sigma_data = (1, 4, 4), 2.5, 0.1, 2, 1\n"
        "    def __call__(self, *_):\n        return _[0]", "2.5 is no whole number"),
    "is no Python": ("def Make(:", "python:mine:Make cannot be imported: SyntaxError"),
    "imports what is not there": ("import nothing_of_this_name", "No module named 'nothing_of_this_name'"),
    "imports a name that is not there": ("from math import tau2", "ImportError: cannot import name 'tau2'"),
    "has a factory that raises": ("def Make():\n    raise OSError('no weights\\nin this folder')",
                                  "the teacher python:mine:Make cannot be made: OSError: no weights in this folder"),
    "has a factory that wants more": ("def Make(path):\n    pass", "cannot be made: TypeError: Make() missing 1 required"),
    "forgets the base's constructor": (
        "import pidistill\nclass Make(pidistill.Denoiser):\n    def __init__(self):\n        self.shape = (1, 4, 4)\n"
        "        self.net = __import__('torch').nn.Linear(1, 1)", "before Module.__init__() call"),
    "states a shape that is none": (
        "import pidistill\nclass Make(pidistill.Denoiser):\n    def __init__(self):\n        super().__init__('abc')",
        "Make: shape must be whole numbers"),
    "states no facts at all": ("class Make:\n    pass", "missing: shape"),
    "is no teacher": ("def Make():\n    return None", "NoneType is no teacher"),
}


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module `mine` into the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return lambda text: (tmp_path / "mine.py").write_text(text)


@pytest.mark.parametrize("kind", MODULES)
def test_a_module_that_raises_is_one_line(module, kind):
    text, words = MODULES[kind]
    module(text)
    with pytest.raises(PidistillError) as caught:
        load_teacher("python:mine:Make")
    assert words in str(caught.value) and str(caught.value).isprintable()
    sys.modules.pop("mine", None)


def test_members_of_the_user_s_own_that_cannot_be_made_are_one_line(module):
    module("class Make:\n    def __init__(self, *, c: float = 1.0):\n        raise ValueError(f'{c} is too\\nlarge')")
    with pytest.raises(PidistillError, match=r"the distance python:mine:Make cannot be made: ValueError: 3\.0 is too large"):
        build("distances", "python:mine:Make", c=3)
    sys.modules.pop("mine", None)


def test_a_factory_may_lie_in_a_class(module):
    module("class Holder:\n    class Make:\n        shape, num_classes, t_min, t_max, sigma_data = (1, 4, 4), 0, 0.1, 2, 1\n"
           "        def __call__(self, *_):\n            return _[0]")
    assert load_teacher("python:mine:Holder.Make").shape == (1, 4, 4)
    sys.modules.pop("mine", None)


def test_ctrl_c_in_a_factory_passes(module):
    module("def Make():\n    raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load_teacher("python:mine:Make")
    sys.modules.pop("mine", None)
