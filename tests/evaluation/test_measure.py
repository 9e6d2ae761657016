"""Measuring models: constant memory, going on after an interruption, several processes, checkpoints, comparisons."""

from __future__ import annotations

import pytest
import torch

from pidistill.core import processes
from pidistill.core.errors import PidistillError
from pidistill.evaluation import side_by_side
from pidistill.evaluation.evaluate import evaluate, evaluate_repeats
from pidistill.evaluation.measure import Measure, metric_names
from pidistill.evaluation.results import Evaluation, Measurement
from pidistill.evaluation.side_by_side import measure_models
from pidistill.evaluation.subject import Subject
from pidistill.evaluation.tables import tabulate, tabulate_repeats
from pidistill.models import batch_size as memory
from pidistill.models.denoiser import FunctionDenoiser
from pidistill.models.samplers.base import Sampler, sample_teacher
from pidistill.models.student_init import make_student
from pidistill.models.teachers.gaussian import gaussian
from tests.helpers import MLP

SHAPE = (1, 16, 16)
ALL = ["frechet", "inception_score", "kid", "precision_recall", "trajectory_rmse"]


@pytest.fixture
def teacher():
    return gaussian("1x16x16,mean=-0.5,std=0.4")


@pytest.fixture
def student(teacher):
    torch.manual_seed(0)
    return make_student(teacher, "random", MLP).eval()


def test_metric_names():
    assert metric_names("fid,is,kid,pr") == ["frechet", "inception_score", "kid", "precision_recall"]
    assert metric_names("fid, fd,frechet") == ["frechet"]
    with pytest.raises(PidistillError, match="unknown metric 'fidd'; did you mean 'fid'"):
        metric_names("fidd")


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


class Stop(Exception):
    pass


def test_an_interrupted_measurement_goes_on(teacher, student, tmp_path, monkeypatch):
    monkeypatch.setattr(side_by_side, "SAVE_EVERY", 0.0)
    options = {"num": 30, "batch": 7, "features": "digits", "metrics": ALL, "steps": 3}
    expected = evaluate(teacher, student, **options).record()
    drawn: list[int] = []
    plain = Subject.run

    def failing(self, seeds, labels):
        if len(drawn) == 5:  # two whole turns of both, and the teacher's third
            raise Stop
        drawn.append(seeds[0])
        return plain(self, seeds, labels)

    monkeypatch.setattr(Subject, "run", failing)
    with pytest.raises(Stop):
        evaluate(teacher, student, keep=tmp_path, **options)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2 and drawn == [0, 0, 7, 7, 14]
    again: list[int] = []
    monkeypatch.setattr(Subject, "run", lambda self, seeds, labels: again.append(seeds[0]) or plain(self, seeds, labels))
    results = evaluate(teacher, student, keep=tmp_path, **options).record()
    assert again == [14, 21, 21, 28, 28]  # the teacher's third is drawn again for the student, and counted once
    for name in ("teacher", "student"):
        for key, value in expected[name].items():
            if isinstance(value, float) and key not in ("images_per_s", "seconds"):
                assert results[name][key] == pytest.approx(value, rel=1e-6), key
        assert results[name]["nfe"] == expected[name]["nfe"]
    assert not list(tmp_path.glob("*.safetensors")) and len(list(tmp_path.glob("*.json"))) == 2
    again.clear()
    assert evaluate(teacher, student, keep=tmp_path, **options).record()["student"] == results["student"] and again == []
    evaluate(teacher, student, keep=tmp_path, **options | {"steps": 4})
    assert len(again) == 5  # another sampler is another measurement; the student's is still there


def test_memory_that_does_not_suffice_halves_the_batch(teacher, student):
    sizes: list[int] = []

    def draw(seeds, labels, at_once):
        sizes.append(at_once)
        if at_once > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return student.sample(seeds, labels, batch_size=at_once, clip=False)

    subject = Subject(student.net, draw, {}, student)
    subject.at_once = 10
    images = subject.run(range(10), None)
    assert sizes == [10, 5, 3] and subject.at_once == 3 and subject.measurement({}, {}).nfe == 1
    torch.testing.assert_close(images, student.sample(range(10), clip=False))
    subject.run(range(10, 14), None)
    assert sizes[3:] == [3]
    with pytest.raises(PidistillError, match="does not hold a single image"):
        Subject(student.net, lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("x")), {}).run(range(2), None)


def test_batch_that_fits_follows_the_free_memory(student, monkeypatch):
    per_image = memory.bytes_per_image(student, SHAPE, torch.device("cpu"))
    assert per_image > 4 * 2 * 256  # the state that comes out, and the network's output

    class Free:
        available = 40 * per_image

    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: Free)
    assert memory.fitting_batch(student, torch.device("cpu")) == 20
    Free.available = 10**15
    assert memory.fitting_batch(student, torch.device("cpu")) == 250
    monkeypatch.setattr(memory, "CPU_WORKING_SET", 30.5 * per_image)
    assert memory.fitting_batch(student, torch.device("cpu")) == 30
    monkeypatch.setattr(memory, "CPU_WORKING_SET", per_image)
    assert memory.fitting_batch(student, torch.device("cpu")) == 8
    Free.available = 0
    assert memory.fitting_batch(student, torch.device("cpu")) == 1


def test_repeats_take_disjoint_seeds_and_show_minimum_and_mean(teacher):
    options = {"teacher": teacher, "students": None, "batch": 20, "features": "digits", "sampler": Sampler("ddim", 2)}
    repeats = evaluate_repeats(3, 20, 5, **options)
    summary = repeats.record()
    spans = [result["teacher"]["seeds"] for result in summary["repeats"]]
    assert spans == ["5-24", "25-44", "45-64"]
    values = [result["teacher"]["fd"] for result in summary["repeats"]]
    assert len(set(values)) == 3 and summary["minimum"]["teacher"]["fd"] == min(values)
    assert summary["mean"]["teacher"]["fd"] == pytest.approx(sum(values) / 3)
    rows = tabulate_repeats(repeats, spans)
    assert [row[0] for row in rows[1:]] == ["teacher, seeds 5-24", "teacher, seeds 25-44", "teacher, seeds 45-64",
                                            "teacher, minimum", "teacher, mean"]
    assert rows[4][2] == f"{min(values):.2f}"


def test_table_shows_every_metric():
    head, row = tabulate(Evaluation({"student": Measurement(1, 9.6, metrics={
        "fid": 2.5, "is": 9.0, "kid": 0.00123, "precision": 0.5, "recall": 0.25})}))
    assert head == ["", "evaluations", "FID", "IS", "KID x 1000", "precision", "recall", "images/s"]
    assert row == ["student", "1", "2.50", "9.00", "1.23", "0.500", "0.250", "10"]


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
    assert (processes.rank(), processes.size()) == (0, 1)
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
    assert measure_models({"t": Subject.of(model)}, Measure("digits", None, SHAPE, "cuda"), range(40))["t"]["fd"] > 0
