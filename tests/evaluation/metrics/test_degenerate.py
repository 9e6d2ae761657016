"""Each metric refuses, or says, where its value means nothing; no number that is not finite or no distance leaves.

Through `Measure`, which every verb uses, for all metrics over all degenerate sets; and metric by metric.
"""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.core.registry import find_member, list_members
from pidistill.evaluation.measure import Measure
from pidistill.evaluation.metrics.base import ImageBatch, Reference
from pidistill.evaluation.metrics.frechet import fit_gaussian, frechet_distance, has_variance, relative_frechet
from pidistill.evaluation.references import load_reference, make_reference, read_npz
from pidistill.files.image_set import ImageSet
from pidistill.nets.features.base import load_features

SHAPE = (1, 16, 16)
METRICS = [name for name in list_members("metrics") if find_member("metrics", name).needs != "solutions"]


def draw(num: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(num, *SHAPE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# Sets of which metrics can mean little or nothing, by name.
SETS = {"equal": draw(1).expand(120, *SHAPE), "black": torch.full((120, *SHAPE), -1.0), "grey": torch.zeros(40, *SHAPE),
        "two": draw(2), "three": draw(3), "five": draw(5), "two, repeated": draw(2).repeat(60, 1, 1, 1),
        "one that differs": torch.cat([draw(1).expand(119, *SHAPE), draw(1, 1)]), "thirty": draw(30)}
EQUAL = ("equal", "black", "grey")


def save(path, images: torch.Tensor) -> str:
    np.savez(path, images=((images + 1) * 127.5).round().to(torch.uint8).movedim(1, -1).numpy())
    return str(path)


@pytest.mark.parametrize("data", SETS)
def test_every_metric_of_degenerate_sets_is_finite_and_said_or_refused(data, tmp_path, capsys):
    """The contract: a line that refuses, or finite numbers in their range, with a warning where a set is degenerate."""
    name = save(tmp_path / "data.npz", SETS[data])
    for metric in METRICS:
        try:
            measure = Measure("digits", name, SHAPE, metrics=[metric])
        except PidistillError as error:
            assert "all look the same" in str(error) and data in EQUAL and metric != "inception_score"
            continue
        assert data not in EQUAL or metric == "inception_score"  # which compares with no data
        for model in ("equal", "two", "two, repeated", "thirty"):
            capsys.readouterr()
            measure.said.clear()
            numbers = measure(SETS[model])
            assert all(math.isfinite(value) for value in numbers.values()), numbers
            assert all(numbers.get(key, 0) >= 0 for key in ("fd", "kid_std", "is_std")) and numbers.get("is", 1) > 1 - 1e-9
            assert all(0 <= numbers.get(key, 0) <= 1 for key in ("precision", "recall"))
            smallest = len(SETS[model]) if metric == "inception_score" else min(len(SETS[model]), len(SETS[data]))
            doubtful = smallest < {"frechet": 33, "inception_score": 100}.get(metric, 1000) or (
                metric == "frechet" and data in ("two, repeated", "one that differs"))
            assert ("warning: " in capsys.readouterr().err) == doubtful, (metric, model, numbers)


@pytest.mark.parametrize("name", EQUAL)
@pytest.mark.parametrize("batch", [7, 50, 120])
def test_a_reference_of_equal_pictures_is_refused(name, batch, tmp_path):
    """Whatever rounding the batches leave; FD % of it was -132454389091442864 once."""
    with pytest.raises(PidistillError, match="data: its images all look the same"):
        make_reference(ImageSet.of(SETS[name].contiguous()), "data", load_features("digits"), "digits", batch=batch)
    with pytest.raises(PidistillError, match=r"a\.npz: its images all look the same"):
        load_reference(save(tmp_path / "a.npz", SETS[name]), "digits", load_features("digits"))


@pytest.mark.parametrize("verb", ["evaluate", "reference", "compare", "distill"])
def test_every_verb_refuses_it_before_it_draws(verb, cli, tmp_path):
    data, out = save(tmp_path / "a.npz", SETS["equal"]), tmp_path / "out.npz"
    where = ["--features", "digits", "--reference", data, "--num", 40]
    line = {"evaluate": ["gaussian:1x16x16", *where], "reference": [data, "--features", "digits", "--out", out],
            "compare": ["--teacher", "gaussian:1x16x16", "--samplers", "heun:2", *where, "--out", out],
            "distill": ["--teacher", "gaussian:1x16x16", "--set", "student={init: random, net: mlp}", "--out", out,
                        "--set", "evaluate.features=digits", "--set", f"evaluate.reference={data}"]}[verb]
    result = cli(verb, *line)
    assert result.code == 2 and "all look the same" in result.err.splitlines()[-1] and not out.exists()


RNG = np.random.default_rng(0)
SPREAD = np.cov(RNG.normal(size=(50, 6)).T)


@pytest.mark.parametrize("mu, sigma, words", [
    (np.ones(6), np.zeros((6, 6)), "no variance"), (np.zeros(6), np.zeros((6, 6)), "no variance"),
    (np.full(6, 1e3), 1e-9 * SPREAD, "no variance"), (np.ones(6), -SPREAD, "negative variances"),
    (np.ones(6), np.triu(SPREAD), "not symmetric"),
    (np.ones(6), SPREAD - 3 * np.eye(6) * SPREAD.max(), "negative variances"),
    (np.ones(6), np.ones((6, 6)) * 2 - np.eye(6), "negative eigenvalues"), (np.ones(6), np.full((6, 6), np.inf), "finite")])
def test_statistics_that_are_none_are_refused(tmp_path, mu, sigma, words):
    np.savez(tmp_path / "ref.npz", mu=mu, sigma=sigma)
    with pytest.raises(PidistillError, match=rf"ref\.npz: .*{words}"):
        read_npz(tmp_path / "ref.npz")


def test_statistics_in_float32_are_read(tmp_path):
    """As others write them, with features that are always 0: eigenvalues are negative by rounding then."""
    features = RNG.normal(size=(400, 40)) * (np.arange(40) > 5) @ RNG.normal(size=(40, 40)) * 100 + 30
    np.savez(tmp_path / "ref.npz", mu=features.mean(0).astype(np.float32), sigma=np.cov(features.T).astype(np.float32))
    found = read_npz(tmp_path / "ref.npz")
    assert torch.linalg.eigvalsh(found.covariance)[0] < 0
    assert frechet_distance((found.mean, found.covariance), (found.mean, found.covariance)) < 1e-2
    assert has_variance(found.mean, found.covariance)


def test_a_distance_is_no_less_than_zero():
    for seed in range(20):
        x = torch.randn(9, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 10.0 ** (seed - 10)
        both = fit_gaussian(x), fit_gaussian(x + 0)
        assert 0 <= frechet_distance(*both) <= 1e-10 * both[0][1].trace()
    zero = torch.zeros(5, dtype=torch.float64), torch.zeros(5, 5, dtype=torch.float64)
    assert frechet_distance(zero, zero) == 0
    for collapsed in (torch.ones(5, 5, dtype=torch.float64) * -1e-13, torch.eye(5, dtype=torch.float64) * -1e-13):
        assert frechet_distance((zero[0] + 3, collapsed), both[1]) > 0  # rounding in place of a covariance
    with pytest.raises(PidistillError, match="it has none"):
        relative_frechet(both[0], zero)
    with pytest.raises(PidistillError, match="negative eigenvalues"):
        frechet_distance((both[0][0], both[0][1] - 2 * both[0][1].trace() * torch.eye(5)), both[1])


@pytest.mark.parametrize("name", list_members("metrics"))
def test_too_few_images_are_refused_by_name(name):
    measure = Measure("digits", None, SHAPE, metrics=[name])
    least = find_member("metrics", name).least
    if name == "trajectory_rmse":
        assert measure(draw(1), draw(1, 1))["trajectory_rmse"] > 0
        return
    with pytest.raises(PidistillError, match=f"the metric {name} needs {least} images or more, got 1"):
        measure(draw(1))
    assert all(map(math.isfinite, measure(draw(least)).values()))


@pytest.mark.parametrize("name, num, words", [
    ("inception_score", 5, "5 images means nothing"), ("inception_score", 19, "means nothing"),
    ("inception_score", 20, "parts there are 2 for 10 classes; use 100"), ("inception_score", 99, "9 for 10 classes"),
    ("inception_score", 100, None), ("kid", 5, "KID of 5 images is noisy"), ("kid", 999, "999 images"), ("kid", 1000, None),
    ("precision_recall", 2, "none of them has a third neighbour"), ("precision_recall", 3, "third neighbour"),
    ("precision_recall", 4, "4 images are noisy"), ("precision_recall", 1000, None),
    ("frechet", 10, "10 images of the model"), ("frechet", 11, None)])
def test_what_so_few_images_mean_is_said(name, num, words):
    reference = Reference(torch.zeros(10), torch.eye(10), torch.zeros(2000, 10), num=2000, source="data")
    said = find_member("metrics", name)(num, 10, reference, "fd").doubts()
    assert len(said) == (words is not None) and (not words or words in said[0])
    if name in ("kid", "precision_recall") and words:  # as few of the data
        reference = Reference(reference.mean, reference.covariance, torch.zeros(num, 10), num=2000)
        assert find_member("metrics", name)(2000, 10, reference, "fd").doubts() == said
    if name == "frechet":
        reference = Reference(reference.mean, reference.covariance, num=num, source="data")
        doubts = find_member("metrics", name)(2000, 10, reference, "fd").doubts()
        assert len(doubts) == len(said) and all("images of data" in line for line in doubts)


def test_a_warning_is_said_once_for_all_models(capsys):
    measure = Measure("digits", None, SHAPE, metrics=METRICS)
    for _ in range(3):
        measure(draw(6))
    assert capsys.readouterr().err.count("warning: ") == 4


def test_a_reference_of_unknown_number_that_varies_in_few_directions(tmp_path, capsys):
    for rank, said in ((3, True), (16, True), (17, False), (31, False)):
        features = np.random.default_rng(rank).normal(size=(rank + 1, 32))
        np.savez(tmp_path / "ref.npz", mu=features.mean(0), sigma=np.cov(features.T))
        assert Measure("digits", str(tmp_path / "ref.npz"), SHAPE)(draw(40))["fd"] > 0
        assert (f"varies in {rank} of 32 directions" in capsys.readouterr().err) == said


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_features_that_are_not_finite_end_in_one_line(bad, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd_features.py").write_text(
        "import torch\n\nclass Net(torch.nn.Module):\n    def features(self, x):\n        f = x.flatten(1)[:, :4].clone()\n"
        f"        f[x[:, 0, 0, 0] > 0.9] = float('{bad}')\n        return f\n\n"
        "    def classify(self, f):\n        return f\n")
    np.savez("ref.npz", mu=np.zeros(4), sigma=np.eye(4), features=np.random.default_rng(0).normal(size=(9, 4)))
    measure = Measure("python:odd_features:Net", "ref.npz", SHAPE, metrics=METRICS)
    images = draw(30).clamp(max=0.8)
    assert len(measure(images)) == 7
    images[7, 0, 0, 0] = 1
    with pytest.raises(PidistillError, match=r"no metrics: .* python:odd_features:Net .* not finite \(frechet\.") as caught:
        measure(images)
    assert "\n" not in str(caught.value)


def test_a_number_that_is_not_finite_never_leaves(monkeypatch):
    measure = Measure("digits", None, SHAPE)
    monkeypatch.setattr(find_member("metrics", "frechet"), "result", lambda self, stored=None: {"fd": float("nan")})
    with pytest.raises(PidistillError, match="no metrics: fd = nan of 40 images"):
        measure(draw(40))


def test_a_collapsed_model_is_measured():
    """It is what a failed training gives, and a run must not end because of it."""
    numbers = Measure("digits", None, SHAPE, metrics=METRICS)(SETS["equal"])
    assert numbers["fd"] > 10 and numbers["recall"] == 0 and numbers["is"] == pytest.approx(1)


def test_rows_of_a_batch_count_once():
    """The sums of a metric that is refused are none: what was added before does not matter."""
    metric = find_member("metrics", "frechet")(4, 3, Reference(torch.zeros(3).double(), torch.eye(3).double()), "fd")
    metric.add(ImageBatch(torch.zeros(4, 1), range(4), torch.zeros(4, 3)))
    assert metric.result()["fd"] == pytest.approx(100)  # of a point in the middle: tr(Sigma) / tr(Sigma)


ODD = """
import torch


class Net(torch.nn.Module):
    def __init__(self, change=lambda f: f, classify=lambda f: f):
        super().__init__()
        self.change, self.classify = change, classify

    def features(self, x):
        return self.change(x.flatten(1)[:, :4])


def late(f):
    if len(f) > 2:
        raise ValueError("no more than two")
    return f


Fine, Maps, Empty = Net, lambda: Net(lambda f: f[:, :, None, None]), lambda: Net(lambda f: f[:, :0])
Late, Hot = lambda: Net(late), lambda: Net(lambda f: f.where(f < 0.5, float("inf")))
One, Flat, Pair = lambda: Net(classify=lambda f: f[:, :1]), lambda: Net(classify=lambda f: f[:, 0]), \
    lambda: Net(classify=lambda f: (f, f))
"""


@pytest.fixture
def odd(tmp_path, monkeypatch):
    """A module of feature networks, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "odd_networks", raising=False)
    (tmp_path / "odd_networks.py").write_text(ODD)
    return "python:odd_networks:"


@pytest.mark.parametrize("name, words", [
    ("Maps", r"must give features \(B, d\) of an image, got \(2, 4, 1, 1\) of two; flatten"),
    ("Empty", r"got \(2, 0\) of two"),
    ("Late", "Late failed on x .30, 1, 16, 16. float32: ValueError: no more than two"),
    ("Hot", "data: no statistics: .*Hot gives"),
    ("Flat", r"classify must give logits \(B, K\) of two images, got \(2,\)"), ("Pair", "of two images, got tuple")])
def test_feature_networks_that_give_something_else_are_one_line(odd, name, words):
    with pytest.raises(PidistillError, match=words):
        net = load_features(odd + name)
        make_reference(ImageSet.of(draw(30)), "data", net, odd + name)
        Measure(odd + name, save("data.npz", draw(30)), SHAPE, metrics=["inception_score"])


def test_a_score_of_one_class_is_said_to_mean_nothing(odd, capsys):
    for name, said in (("One", True), ("Fine", False)):
        measure = Measure(odd + name, None, SHAPE, metrics=["inception_score"])
        assert (measure(draw(80))["is"] == 1) == ("has one class" in capsys.readouterr().err) == said


@pytest.mark.parametrize("data, said", [
    (SETS["two, repeated"], True), (draw(4).repeat(3, 1, 1, 1), False), (draw(30), False)])
def test_data_of_copies_have_no_precision(tmp_path, capsys, data, said):
    """All radii are 0, and so is the precision of whatever is no copy."""
    numbers = Measure("digits", save(tmp_path / "data.npz", data), SHAPE, metrics=["precision_recall"])(draw(30, 5))
    assert ("equal their third neighbour" in " ".join(capsys.readouterr().err.split())) == said
    assert not said or numbers["precision"] == 0


@pytest.mark.parametrize("changes, words", [
    ({"mu": np.ones(6) * 1j}, "mu must be real numbers, not complex128"),
    ({"sigma": SPREAD > 0}, "sigma must be real numbers, not bool"),
    ({"mu": np.full(6, np.nan)}, "must be finite, and are not for 6 of 6 features"),
    ({"mu": np.ones(5)}, r"must be \(d,\) and \(d, d\)")])
def test_statistics_of_other_numbers_are_refused(tmp_path, changes, words):
    np.savez(tmp_path / "ref.npz", **{"mu": np.ones(6), "sigma": SPREAD} | changes)
    with pytest.raises(PidistillError, match=words):
        read_npz(tmp_path / "ref.npz")
