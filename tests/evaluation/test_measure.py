"""Measuring models: constant memory, going on after an interruption, several processes, checkpoints, comparisons."""

from __future__ import annotations

import pytest
import torch

from pidistill.core import processes
from pidistill.core.errors import PidistillError
from pidistill.evaluation.evaluate import evaluate
from pidistill.evaluation.measure import Measure, parse_metric_names
from pidistill.evaluation.side_by_side import measure_models
from pidistill.evaluation.subject import Subject
from pidistill.models.denoiser import FunctionDenoiser
from pidistill.models.samplers.base import sample_teacher

SHAPE = (1, 16, 16)
ALL = ["frechet", "inception_score", "kid", "precision_recall", "trajectory_rmse"]


def test_metric_names():
    assert parse_metric_names("fid,is,kid,pr") == ["frechet", "inception_score", "kid", "precision_recall"]
    assert parse_metric_names("fid, fd,frechet") == ["frechet"]
    with pytest.raises(PidistillError, match="unknown metric 'fidd'; did you mean 'fid'"):
        parse_metric_names("fidd")


def test_batches_as_one(teacher, student):
    """The numbers of all metrics are those of the images at once, whatever the batch."""
    results = [evaluate(teacher, student, num=40, batch=batch, features="digits", metrics=ALL, steps=3).record()
               for batch in (40, 7)]
    solutions, images = sample_teacher(teacher, range(40), steps=3), student.sample(range(40), clip=False)
    whole = Measure("digits", None, SHAPE, metrics=ALL)(images, solutions)
    assert {"fd", "is", "is_std", "kid", "kid_std", "precision", "recall", "trajectory_rmse"} == whole.keys()
    for result in results:
        assert {key: result["student"][key] for key in whole} == pytest.approx(whole, rel=1e-4)
        assert "trajectory_rmse" not in result["teacher"] and result["teacher"]["nfe"] == 5
    assert results[0]["student"]["seeds"] == "0-39" and len(results[0]["student"]["weights"]) == 64


def test_what_is_not_finite_names_its_seed():
    broken = FunctionDenoiser(lambda x, t, y: x * float("nan"), SHAPE)
    with pytest.raises(PidistillError, match="4 images are not finite; the first is that of seed 60"):
        evaluate(broken, None, num=4, first_seed=60, batch=4, features="digits", steps=2)


def test_few_images_are_said(teacher, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    evaluate(teacher, None, num=10, features="digits", steps=2)
    said = capsys.readouterr().err
    assert "10 images" in said and "32 features" in said and said.count("\n") == 1
    evaluate(teacher, None, num=40, features="digits", steps=2)
    assert capsys.readouterr().err == ""


def test_metrics_that_lack_something_say_so(teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain_features.py").write_text("def make():\n    return lambda x: x.flatten(1)[:, :4]\n")
    with pytest.raises(PidistillError, match="needs a network with classes"):
        Measure("python:plain_features:make", None, SHAPE, metrics=["inception_score"])
    import numpy as np

    np.savez("ref.npz", mu=np.zeros(4), sigma=np.eye(4))
    with pytest.raises(PidistillError, match=r"kid needs features .* make a reference"):
        Measure("python:plain_features:make", "ref.npz", SHAPE, metrics=["kid"])
    assert Measure("python:plain_features:make", "ref.npz", SHAPE).hash is None


def test_alone_there_is_one_process():
    assert (processes.get_rank(), processes.get_world_size()) == (0, 1)
    total = torch.ones(2)
    processes.add_up([total])
    assert total.tolist() == [1, 1]
    assert processes.choose_device("cpu").type == "cpu"


@pytest.mark.gpu
def test_one_host_synchronisation_a_batch(teacher):
    """On a GPU: moving the images to the CPU is the only wait of a batch, for every kind of sampler."""
    model = teacher.to("cuda")
    for name in ("heun:3", "ddpm:3", "deis3:5", "unipc:5", "dpm_solver_fast:7"):
        from pidistill.models.samplers.base import parse_sampler

        sampler, = parse_sampler(name)
        sample_teacher(model, range(4), sampler=sampler)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with pytest.warns(UserWarning) as caught:
                sample_teacher(model, range(8), sampler=sampler, batch_size=4)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert len([w for w in caught if "synchroniz" in str(w.message)]) <= 2
    assert measure_models({"t": Subject.of(model)}, Measure("digits", None, SHAPE, "cuda"), range(40))["t"].metrics["fd"] > 0
