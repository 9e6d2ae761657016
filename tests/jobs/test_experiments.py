"""The table of the paper's experiments: all are there, and say nothing that the presets say already."""

from __future__ import annotations

import pytest

from pidistill.jobs.experiments import CURVES, EXPERIMENTS
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config


def test_the_issue_s_experiments_are_there():
    assert list(EXPERIMENTS) == ["table3", "table7", *(f"figure{n}" for n in range(3, 9)), "samples"]
    assert {curve for experiment in EXPERIMENTS.values() for curve in experiment.paper} <= CURVES.keys()


def test_no_curve_is_left_out_and_every_experiment_has_the_base():
    assert {curve for experiment in EXPERIMENTS.values() for curve in experiment.paper} == CURVES.keys()
    assert all("base" in experiment.paper for experiment in EXPERIMENTS.values())
    assert CURVES["base"].overrides == {} and CURVES["base"].paper_steps == 800_000


@pytest.mark.parametrize("preset", ["digits_paper", "cifar10"])
@pytest.mark.parametrize("curve", [curve for curve in CURVES if curve != "base"])
def test_every_override_changes_the_preset(preset, curve):
    plain, changed = (load_config(DistillConfig, preset, overrides).model_dump()
                      for overrides in ({}, CURVES[curve].overrides))
    for key, value in CURVES[curve].overrides.items():
        section, name = key.split(".")
        assert changed[section][name] != plain[section].get(name), key
        assert changed[section][name] in (value, {"name": value})
    sections = {key.split(".")[0] for key in CURVES[curve].overrides}
    assert {key: value for key, value in changed.items() if key not in sections} == {
        key: value for key, value in plain.items() if key not in sections}
