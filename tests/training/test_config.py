"""The settings themselves: bounds, forms of a member and of rates, and defaults of a run."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pidistill.training.config import DistillConfig, TeacherConfig

LEAST = {"train": {"steps": 1, "batch": 1}, "out": "x"}
TEACHER = {**LEAST, "data": "d", "net": "mlp"}


def test_steps_batch_and_folder_are_all_that_a_distillation_needs():
    config = DistillConfig.model_validate(LEAST)
    assert config.objective == {"name": "pid"} and config.ema == (0.999,) and config.teacher == "bundled:digits"
    for key in LEAST:
        with pytest.raises(ValidationError):
            DistillConfig.model_validate({name: value for name, value in LEAST.items() if name != key})


@pytest.mark.parametrize("value, member", [("l2", {"name": "l2"}), ({"name": "l2", "c": 1}, {"name": "l2", "c": 1})])
def test_a_member_is_a_name_or_a_mapping_with_one(value, member):
    assert DistillConfig.model_validate(LEAST | {"objective": value}).objective == member
    for wrong in ({"c": 1}, {"name": 3}, 3, [value]):
        with pytest.raises(ValidationError, match="must be a name"):
            DistillConfig.model_validate(LEAST | {"objective": wrong})


@pytest.mark.parametrize("value, rates", [(0.5, (0.5,)), ([0.5, 0.9], (0.5, 0.9)), ([0.9, 0], (0.9, 0.0))])
def test_rates_are_a_number_or_different_numbers(value, rates):
    assert DistillConfig.model_validate(LEAST | {"ema": value}).ema == rates


@pytest.mark.parametrize("value", [[], [0.5, 0.5], 1, -0.1, [0.5, 1.0], float("nan")])
def test_other_rates_are_refused(value):
    with pytest.raises(ValidationError):
        DistillConfig.model_validate(LEAST | {"ema": value})


def test_a_teacher_has_a_single_rate():
    assert TeacherConfig.model_validate(TEACHER | {"ema": 0.5}).ema == (0.5,)
    with pytest.raises(ValidationError):
        TeacherConfig.model_validate(TEACHER | {"ema": [0.5, 0.9]})


@pytest.mark.parametrize("section, key, value", [
    ("train", "steps", 0), ("train", "seed", -1), ("train", "microbatch", "all"), ("train", "skip_limit", 0),
    ("optimizer", "lr", float("inf")), ("optimizer", "name", "sgd"), ("checkpoint", "keep", 1), ("checkpoint", "minutes", 0),
    ("grid", "points", 1), ("evaluate", "num", 1), ("pairs", "num", 1), ("pairs", "trajectory", 1),
    ("student", "width", 0), ("log", "interval", 3)])
def test_values_out_of_bounds_and_unknown_keys_are_refused(section, key, value):
    with pytest.raises(ValidationError, match=rf"{section}\.{key}"):
        DistillConfig.model_validate(LEAST | {section: {**LEAST.get(section, {}), key: value}})


def test_settings_cannot_be_changed():
    config = DistillConfig.model_validate(LEAST)
    with pytest.raises(ValidationError, match="frozen"):
        config.out = "y"
