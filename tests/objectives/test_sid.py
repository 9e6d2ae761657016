"""SiD against a plain transcription of its paper; its levels; teachers without gradients. The rest: `test_one_step.py`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pidistill.core.errors import PidistillError
from tests.helpers import draw, tiny_teacher
from tests.objectives.test_one_step import compare, draw_plainly, in_float64, one_step


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_the_loss_and_its_gradient_are_those_of_sid(alpha):
    """Zhou et al. (2024), Eq. 23, both networks differentiated, w = C / |x_g - f|_1: sums over an image, divided by C."""
    objective = one_step("sid", alpha=alpha)
    batch = in_float64(objective, 1)
    t, y, losses = batch["t"], batch["labels"], []
    x_g = draw_plainly(objective, batch, 2.5)
    x_t = x_g + t[:, None, None, None] * batch["n"]
    f_phi, f_psi = objective.calls["teacher"](x_t, t, y), objective.networks["fake"](x_t, t, y)
    for image, f, g in zip(x_g, f_phi, f_psi, strict=True):
        C = image.numel()
        w = C / (image - f).detach().abs().sum()
        losses.append(((1 - alpha) * w * ((f - g) ** 2).sum() + w * ((f - g) * (g - image)).sum()) / C)
    plain = torch.stack(losses)
    torch.testing.assert_close(objective.correct(batch), plain, rtol=1e-9, atol=1e-12)
    compare(objective, objective.correct(batch).sum(), plain.sum())


def test_sid_s_levels_are_uniform_in_karras_s_time():
    objective = one_step("sid")
    t = draw(objective, range(2000), number=1)["t"].double().numpy()
    ends = 0.002 ** (1 / 7), 80 ** (1 / 7)
    u = (t ** (1 / 7) - ends[0]) / (ends[1] - ends[0])
    assert t.max() == pytest.approx(24.4, rel=0.03)
    assert np.abs(np.histogram(u, 8, (0, 0.8))[0] - 250).max() < 60
    ln_t = np.log(draw(objective, range(2000), number=0)["t"].double().numpy())
    assert abs(ln_t.mean() + 1.2) < 0.1 and abs(ln_t.std() - 1.2) < 0.1


def test_a_network_without_gradients_is_refused_at_the_first_step():
    teacher = tiny_teacher()
    objective = one_step("sid", teacher)
    objective.calls["teacher"] = lambda x, t, y: teacher(x, t, y).detach()
    with pytest.raises(PidistillError, match="objective sid needs a teacher that can be differentiated; this one gives no"):
        objective.correct(draw(objective, range(3), number=1))
