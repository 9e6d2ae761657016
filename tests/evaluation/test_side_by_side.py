"""Models take turns batch by batch, and an interrupted measurement goes on."""

from __future__ import annotations

import pytest

from pidistill.evaluation import side_by_side
from pidistill.evaluation.evaluate import evaluate
from pidistill.evaluation.measure import Measure
from pidistill.evaluation.side_by_side import measure_models
from pidistill.evaluation.subject import Subject
from pidistill.models.samplers.base import Sampler

ALL = ["frechet", "inception_score", "kid", "precision_recall", "trajectory_rmse"]


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


def test_models_take_turns_on_the_same_seeds(teacher, student, monkeypatch):
    turns: list[tuple[str, range]] = []
    run = Subject.run

    def record(self, seeds, labels):
        turns.append((names[self], seeds))
        return run(self, seeds, labels)

    monkeypatch.setattr(Subject, "run", record)
    subjects = {"teacher": Subject.of(teacher, Sampler("ddim", 3)), "student": Subject.of(student)}
    names = {subject: name for name, subject in subjects.items()}
    measure = Measure(None, None, teacher.shape, metrics=["trajectory_rmse"])
    measurements = measure_models(subjects, measure, range(10, 15), batch=2, solution="teacher")
    assert turns == [(name, range(k, min(k + 2, 15))) for k in (10, 12, 14) for name in ("teacher", "student")]
    assert measurements["teacher"].nfe == 3 and measurements["student"].nfe == 1
    images, solutions = student.sample(range(10, 15), clip=False), subjects["teacher"].draw(range(10, 15), None, 5)
    expected = (images - solutions).square().mean().sqrt().item()
    assert measurements["teacher"].metrics == {}
    assert measurements["student"].metrics == {"trajectory_rmse": pytest.approx(expected, rel=1e-5)}


def test_a_record_is_of_one_measurement_alone(teacher, tmp_path):
    """Its name depends on settings, seeds and reference; a finished one is read, and draws nothing."""
    measure = Measure("digits", None, teacher.shape)
    subject = Subject.of(teacher, Sampler("ddim", 2))
    first = measure_models({"a/b": subject}, measure, range(40), batch=20, keep=tmp_path)["a/b"]
    path, = tmp_path.iterdir()
    assert path.name.startswith("a_b-") and path.suffix == ".json"
    images = subject.images
    again = measure_models({"a/b": subject}, measure, range(40), batch=20, keep=tmp_path)["a/b"]
    assert again == first and subject.images == images == 40
    measure_models({"a/b": subject}, measure, range(41), batch=20, keep=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2 and subject.images == 81


@pytest.mark.parametrize("name", ["student " + "\U00020000" * 90, "student " + "語" * 90, "a\n/\\b\udcff", "x" * 300])
def test_a_record_fits_whatever_the_subject_is_called(teacher, tmp_path, name):
    """File systems take names of 255 bytes."""
    measure = Measure("digits", None, teacher.shape)
    measure_models({name: Subject.of(teacher, Sampler("ddim", 2))}, measure, range(4), batch=4, keep=tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]
