"""FID and its references, with random Inception weights, so that nothing is downloaded."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.core.tensors import quantise
from pidistill.evaluation.evaluate import evaluate
from pidistill.evaluation.measure import Measure
from pidistill.evaluation.metrics.frechet import fit_gaussian, frechet_distance
from pidistill.evaluation.references import load_reference
from pidistill.evaluation.tables import tabulate
from pidistill.jobs.distill import distill
from pidistill.models.teachers.gaussian import gaussian


@pytest.fixture
def reference(tmp_path) -> str:
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(100, 2048))
    np.savez(tmp_path / "ref.npz", mu=rows.mean(0), sigma=np.cov(rows.T))
    return str(tmp_path / "ref.npz")


def statistics_of(reference: str, spec: str):
    found = load_reference(reference, spec, None)
    return found.mean, found.covariance


def test_fid_is_the_frechet_distance_to_the_reference(inception_extractor, inception_spec, reference):
    measure = Measure(inception_spec, reference, (3, 16, 16))
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = frechet_distance(fit_gaussian(inception_extractor(quantise(images))[0]),
                                statistics_of(reference, inception_spec))
    assert measure(images) == {"fid": pytest.approx(expected, rel=1e-6)} and math.isfinite(expected)


def test_evaluate_shows_it(inception_spec, reference):
    results = evaluate(gaussian("3x8x8"), None, num=3, batch=3, features=inception_spec, reference=reference, steps=2)
    metrics = results.models["teacher"].metrics
    assert metrics["fid"] > 0 and "fd" not in metrics and tabulate(results)[0][2] == "FID"


def test_a_reference_of_another_network_is_refused(reference):
    with pytest.raises(PidistillError, match="2048 features, the network gives"):
        evaluate(gaussian("1x16x16"), None, num=3, features="digits", reference=reference, steps=2)


def test_offline_the_error_says_which_file_goes_where(tmp_path, monkeypatch):
    """And says it before a run begins."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setenv("PIDISTILL_CACHE", str(tmp_path / "cache"))

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("pidistill.files.downloads.download", offline)
    with pytest.raises(PidistillError, match=r"cannot download Inception v3 .*6726825d\.pth to .*inception:FILE"):
        distill(gaussian("3x8x8"), out=tmp_path / "run", overrides={
            "student.init": "random", "student.net": "mlp", "evaluate.features": "inception", "train.steps": 1})
    assert not (tmp_path / "run").exists()
    with pytest.raises(PidistillError, match=r"cifar10-32x32\.npz to .*fid-refs.*evaluate\.reference"):
        load_reference("cifar10-32x32", "inception", None)


@pytest.mark.parametrize("content", [{"mu": np.zeros(3)}, {"mu": np.zeros(3), "sigma": np.zeros((2, 2))},
                                     {"mu": np.full(2, np.nan), "sigma": np.zeros((2, 2))},
                                     {"mu": np.array([None]), "sigma": np.zeros((1, 1))}])
def test_bad_references_are_one_line(tmp_path, content):
    np.savez(tmp_path / "ref.npz", **content)
    with pytest.raises(PidistillError, match="mu and sigma") as error:
        load_reference(str(tmp_path / "ref.npz"), "inception", None)
    assert "\n" not in str(error.value)


def test_missing_files_are_one_line(tmp_path):
    with pytest.raises(PidistillError, match="does not exist"):
        load_reference(str(tmp_path / "no.npz"), "inception", None)
    with pytest.raises(PidistillError, match=r"evaluate\.reference"):
        load_reference(None, "inception", None)
