"""The table of the experiments: all are there, and say nothing that the presets say already."""

from __future__ import annotations

import pytest

from pidistill.jobs.experiments import CORRECTIONS, CURVES, EXPERIMENTS, METHODS, SCALES, SHARED_START, find_experiment
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config


def test_the_issue_s_experiments_are_there():
    assert list(EXPERIMENTS) == ["table1", "table3", "table7", *(f"figure{n}" for n in range(3, 9)), "samples",
                                 "correction"]
    assert {curve for experiment in EXPERIMENTS.values() for curve in experiment.paper} <= CURVES.keys()


def test_no_curve_is_left_out_and_every_experiment_has_what_it_compares_with():
    assert {curve for experiment in EXPERIMENTS.values() for curve in experiment.paper} == CURVES.keys()
    for name, experiment in EXPERIMENTS.items():
        assert {"correction": {SHARED_START, "pid"}, "table1": {"method-pid"}}.get(name, {"base"}) <= experiment.paper.keys()
    assert CURVES["base"].overrides == {} and CURVES["base"].paper_steps == 800_000


def test_an_experiment_may_have_scales_of_its_own():
    assert find_experiment("figure7", "bundled")[1] is SCALES["bundled"]
    assert find_experiment("correction", "bundled")[1].preset == "digits_corrected"
    assert all(experiment.scales.keys() in ({*SCALES}, set()) for experiment in EXPERIMENTS.values())


@pytest.mark.parametrize("preset", ["digits_paper", "cifar10"])
@pytest.mark.parametrize("curve", [curve for curve in CURVES if curve not in {"base", *CORRECTIONS, *METHODS}])
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
