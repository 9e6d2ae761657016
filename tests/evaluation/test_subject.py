"""A subject draws images, counts its network's calls, and lives with the memory that there is."""

from __future__ import annotations

import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.evaluation.subject import Subject
from pidistill.models.samplers.base import Sampler, sample_teacher
from pidistill.models.student import Student
from pidistill.nets.features.base import fingerprint


def test_memory_that_does_not_suffice_halves_the_batch(teacher, student):
    sizes: list[int] = []

    def draw(seeds, labels, batch_size):
        sizes.append(batch_size)
        if batch_size > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return student.sample(seeds, labels, batch_size=batch_size, clip=False)

    subject = Subject(student.net, draw, {}, student)
    subject.batch_size = 10
    images = subject.run(range(10), None)
    assert sizes == [10, 5, 3] and subject.batch_size == 3 and subject.make_measurement({}, {}).nfe == 1
    torch.testing.assert_close(images, student.sample(range(10), clip=False))
    subject.run(range(10, 14), None)
    assert sizes[3:] == [3]
    with pytest.raises(PidistillError, match="does not hold a single image"):
        Subject(student.net, lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("x")), {}).run(range(2), None)


def test_a_subject_draws_what_its_model_draws(teacher, student):
    assert torch.equal(Subject.of(student).draw(range(5), None, 2), student.sample(range(5), batch_size=2, clip=False))
    sampler = Sampler("euler", 4)
    images = Subject.of(teacher, sampler).draw(range(5), None, 2)
    assert torch.equal(images, sample_teacher(teacher, range(5), sampler=sampler, batch_size=2))


def test_settings_tell_weights_forms_and_samplers_apart(teacher, student):
    assert Subject.of(student).settings == {"weights": fingerprint(student.net)}
    other = Student(student.net, student.net_spec, student.facts(), form="direct")
    assert Subject.of(other).settings == {"weights": fingerprint(student.net), "form": "direct"}
    settings = [Subject.of(teacher, sampler).settings for sampler in (None, Sampler("ddim", 3))]
    assert [setting["sampler"] for setting in settings] == ["heun:18", "ddim:3"]
    assert settings[0]["weights"] == settings[1]["weights"] != fingerprint(student.net)


def test_calls_and_seconds_add_up_and_go_on_from_their_state(teacher):
    subject = Subject.of(teacher, Sampler("heun", 3))
    subject.run(range(4), None)
    subject.run(range(4, 6), None)
    seconds, calls, batches, images = subject.state().tolist()
    assert (calls, batches, images) == (10, 2, 6) and seconds > 0  # 2 * 3 - 1 calls a batch
    other = Subject.of(teacher, Sampler("heun", 3))
    other.load(subject.state())
    measurement = other.make_measurement({"fd": 1.0}, {"seeds": "0-5"})
    assert measurement.nfe == 5 and measurement.images_per_s == pytest.approx(6 / seconds)
    assert measurement.seconds == seconds and measurement.metrics == {"fd": 1.0} and measurement.settings == {"seeds": "0-5"}
