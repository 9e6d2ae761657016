"""The number of images at a time follows the free memory."""

from __future__ import annotations

import pytest
import torch

from pidistill.models import batch_size as memory
from pidistill.models.student_init import make_student
from pidistill.models.teachers.gaussian import gaussian
from tests.helpers import MLP

SHAPE = (1, 16, 16)


@pytest.fixture
def student():
    return make_student(gaussian("1x16x16,mean=-0.5,std=0.4"), "random", MLP).eval()


def test_batch_that_fits_follows_the_free_memory(student, monkeypatch):
    per_image = memory.count_bytes_per_image(student, SHAPE, torch.device("cpu"))
    assert per_image > 4 * 2 * 256  # the state that comes out, and the network's output

    class Free:
        available = 40 * per_image

    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: Free)
    assert memory.fit_batch_size(student, torch.device("cpu")) == 20
    Free.available = 10**15
    assert memory.fit_batch_size(student, torch.device("cpu")) == 250
    monkeypatch.setattr(memory, "CPU_WORKING_SET", 30.5 * per_image)
    assert memory.fit_batch_size(student, torch.device("cpu")) == 30
    monkeypatch.setattr(memory, "CPU_WORKING_SET", per_image)
    assert memory.fit_batch_size(student, torch.device("cpu")) == 8
    Free.available = 0
    assert memory.fit_batch_size(student, torch.device("cpu")) == 1


def test_a_network_of_other_inputs_gets_the_fastest_batch():
    for device, images in (("cpu", 250), ("cuda", 1024), ("mps", 250)):
        assert memory.fit_batch_size(torch.nn.Linear(2, 2), torch.device(device)) == images
