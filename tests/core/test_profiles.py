"""Profiles have closed forms, and combinations of them an error that is known."""

from __future__ import annotations

import numpy as np
import pytest

from pidistill.core.errors import PidistillError
from pidistill.core.profiles import (
    WIDEST,
    Profile,
    Width,
    combine_profiles,
    multiply_profiles,
    parse_average,
    solve_gamma,
)


def integrate(p: Profile, steps: int) -> np.ndarray:
    """The profile's integral over each of so many steps: what a step's weights weigh."""
    edges = np.minimum(np.arange(steps + 1), p.t) / p.t
    return np.diff(edges ** (p.gamma + 1))


@pytest.mark.parametrize("width", [0.001, 0.05, 0.1, 0.2, 0.28, WIDEST])
def test_gamma_gives_the_width(width):
    """By the formula, and as the standard deviation of the profile itself, over its length."""
    gamma, t = solve_gamma(width), 200_000
    assert ((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) ** 0.5 == pytest.approx(width, rel=1e-12)
    weights, middle = integrate(Profile(gamma, t), t), (np.arange(t) + 0.5) / t
    mean = weights @ middle
    assert (weights @ (middle - mean) ** 2) ** 0.5 == pytest.approx(width, rel=1e-5)  # a step is no point


def test_the_papers_example():
    """Section 3.1: gamma 6.94 has the width 0.10, and 16.97 has 0.05; the widest is the mean of all weights so far."""
    assert [round(solve_gamma(width), 2) for width in (0.1, 0.05)] == [6.94, 16.97] and solve_gamma(WIDEST) < 1e-12


def test_inner_products_are_those_of_fine_steps():
    ps = [Profile(solve_gamma(width), t) for width in (0.05, 0.1, 0.25) for t in (30_000, 70_000, 100_000)]
    fine = np.array([integrate(p, 100_000) for p in ps])
    np.testing.assert_allclose(multiply_profiles(ps, ps), fine @ fine.T, rtol=1e-6, atol=1e-12)


def store(steps: int, every: int, widths=(0.05, 0.1)) -> list[Profile]:
    return [Profile(solve_gamma(width), t) for t in range(every, steps + 1, every) for width in widths]


@pytest.mark.parametrize("snapshots", [1, 2, 10, 200])
def test_weights_add_to_one_and_the_misfit_is_that_of_the_profiles(snapshots):
    """To the rounding of so large weights; and against profiles that are integrated over steps."""
    stored = store(20_000, 20_000 // snapshots)
    asked = [Profile(solve_gamma(width), 20_000) for width in (0.02, 0.05, 0.07, 0.12, 0.2, 0.28)]
    x, misfit = combine_profiles(stored, asked)
    assert (np.abs(x.sum(0) - 1) <= 1e-15 * np.abs(x).sum(0)).all()
    have, want = np.array([integrate(p, 20_000) for p in stored]), np.array([integrate(p, 20_000) for p in asked])
    found = np.linalg.norm(x.T @ have - want, axis=1) / np.linalg.norm(want, axis=1)
    np.testing.assert_allclose(misfit, found, rtol=2e-2, atol=1e-6)
    assert misfit[1] < 1e-6  # one that is stored


def test_no_other_weights_that_add_to_one_are_nearer():
    stored, asked = store(1000, 100), Profile(solve_gamma(0.12), 1000)
    x, misfit = combine_profiles(stored, [asked])
    gram, right = multiply_profiles(stored, stored), multiply_profiles(stored, [asked])
    generator, own = np.random.default_rng(0), multiply_profiles([asked], [asked]).item()
    for scale in (1e-3, 1e-2, 1e-1):
        other = generator.standard_normal((len(stored), 50)) * scale
        other += x - other.mean(0)
        squared = (other * (gram @ other - 2 * right)).sum(0) + own
        assert (squared > (1 - 1e-9) * misfit**2 * own).all()


def test_more_snapshots_fit_better():
    """The errors that docs/evaluation.md states, after snapshots at equal intervals."""
    asked = [Profile(solve_gamma(width), 1000) for width in (0.02, 0.03, 0.07, 0.15, 0.2, 0.25)]
    for snapshots, expected in ((1, [0.35, 0.18, 0.051, 0.25, 0.60, 1.0]), (8, [0.25, 0.10, 0.013, 0.033, 0.077, 0.18]),
                                (20, [0.087, 0.026, 0.0025, 0.0058, 0.015, 0.060]),
                                (50, [0.017, 0.0047, 0.0004, 0.00095, 0.0028, 0.020])):
        np.testing.assert_allclose(combine_profiles(store(1000, 1000 // snapshots), asked)[1], expected, rtol=0.05)


@pytest.mark.parametrize("part", [0.1, 0.2, 1.0])
def test_the_misfit_of_another_width(part):
    """Where gammas are large, with r of them over the other, (1 - r)^2 / (1 + r): 1/6 for one of twice the width."""
    narrow, wide = (Profile(solve_gamma(width), 1000) for width in (0.002, 0.002 * (1 + part)))
    for stored, asked, r in ((wide, narrow, 1 / (1 + part)), (narrow, wide, 1 + part)):
        x, misfit = combine_profiles([stored], [asked])
        assert x.item() == 1 and misfit.item() == pytest.approx(((1 - r) ** 2 / (1 + r)) ** 0.5, rel=0.01)


def test_averages_are_rates_or_widths():
    assert parse_average("0.999") == 0.999 and parse_average(" width:0.12") == Width(0.12)
    assert parse_average("width:0.12@3000") == Width(0.12, 3000) and str(Width(0.12, 3000)) == "width:0.12@3000"
    assert str(Width(0.12)) == "width:0.12" and parse_average(str(Width(0.123456))) == Width(0.123456)


@pytest.mark.parametrize("text", ["", "high", "width:", "width:wide", "width:0.1@", "width:0.1@1.5", "0.9,0.8",
                                  "width:0.1@" + "9" * 5000])
def test_what_is_neither_is_one_line(text):
    with pytest.raises(PidistillError, match="--ema takes rates such as"):
        parse_average(text)


@pytest.mark.parametrize("text", ["width:0", "width:-0.1", "width:0.3", "width:nan", "width:inf"])
def test_a_width_that_no_profile_has(text):
    with pytest.raises(PidistillError, match=r"width of a profile must be 0\.001 to 0\.2887, got"):
        parse_average(text)
