"""Draws are functions of integers alone, and seeds parse as written."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pidistill.core.errors import PidistillError
from pidistill.core.seeds import (
    LABEL,
    NOISE,
    PAIR_LABEL,
    PAIRS,
    TRAIN,
    labels_of,
    noise,
    pair_labels,
    pair_noise,
    parse_integers,
    stream,
)


def test_draws_do_not_depend_on_the_order():
    keys = [(seed, step, k) for seed in (0, 1) for step in (0, 1, 7) for k in (0, 1, 63)]
    forward = {key: stream(*key).standard_normal(5) for key in keys}
    for key in reversed(keys):
        np.testing.assert_array_equal(stream(*key).standard_normal(5), forward[key])
    assert len({tuple(values) for values in forward.values()}) == len(keys)


def test_the_generator_is_frozen():
    """Other values here mean that no published seed gives its image any more."""
    assert stream(0).integers(0, 2**32, 3).tolist() == [149215387, 49592932, 2628306354]
    assert stream(1, 2, 3, NOISE).integers(0, 2**32, 3).tolist() == [4234253551, 2939804247, 2686652144]


def test_streams_of_different_use_do_not_meet():
    domains = (TRAIN, NOISE, LABEL, PAIRS, PAIR_LABEL)
    draws = {domain: tuple(stream(5, domain=domain).standard_normal(4)) for domain in domains}
    assert len(set(draws.values())) == 5


def test_phases_of_a_step_have_streams_of_their_own():
    """That of the first is what it was before a step could have several phases."""
    draws = {phase: tuple(stream(5, 2, 7, phase=phase).standard_normal(4)) for phase in range(3)}
    assert len(set(draws.values())) == 3 and draws[0] == tuple(stream(5, 2, 7).standard_normal(4))
    before = np.random.Generator(np.random.Philox(key=[5, 2], counter=[0, 0, TRAIN, 7]))
    assert draws[0] == tuple(before.standard_normal(4))


def test_noise_of_a_seed_does_not_depend_on_its_neighbours():
    rows = noise(range(20), (1, 4, 4))
    assert rows.dtype == torch.float32 and rows.shape == (20, 1, 4, 4)
    assert torch.equal(noise([7], (1, 4, 4))[0], rows[7])
    assert torch.equal(noise([3, 7, 3], (1, 4, 4)), rows[[3, 7, 3]])
    assert torch.equal(noise([10**18 - 1], (2,)), noise([10**18 - 1], (2,)))
    assert noise([], (2,)).shape == (0, 2)


def test_noise_is_standard_normal():
    values = noise(range(400), (1, 8, 8))
    assert values.mean().abs() < 0.02 and (values.std() - 1).abs() < 0.02
    assert torch.corrcoef(values.flatten(1)[:2])[0, 1].abs() < 0.4


def test_labels_of_seeds():
    labels = labels_of(range(300), 3)
    assert labels.dtype == torch.int64 and torch.bincount(labels).tolist() == pytest.approx([100] * 3, abs=30)
    assert labels_of([17], 3).item() == labels[17]
    assert labels_of([1, 2], 0) is None


@pytest.mark.parametrize("text, values", [
    ("0", [0]), ("0-3", [0, 1, 2, 3]), ("0-1,7", [0, 1, 7]), (" 2 - 3 , 5", [2, 3, 5]), ("4,4", [4, 4]), ("6-6", [6])])
def test_parse_integers(text, values):
    assert parse_integers(text) == values


@pytest.mark.parametrize("text, words", [
    ("", "numbers and ranges"), ("a", "got 'a'"), ("1-", "got '1-'"), ("-1", "got '-1'"), ("1,,2", "got ''"), ("1.5", "1.5"),
    ("3-1", "write 1-3"), ("0-99999999999", "more than"), ("9" * 19, "numbers and ranges"), ("1 2", "1 2")])
def test_unparsable_seeds_are_one_line(text, words):
    with pytest.raises(PidistillError, match=words) as caught:
        parse_integers(text)
    assert "seeds" in str(caught.value) and "\n" not in str(caught.value)


def test_the_error_names_what_was_parsed():
    with pytest.raises(PidistillError, match=r"^labels"):
        parse_integers("x", "labels")
    with pytest.raises(PidistillError, match="more than 3"):
        parse_integers("0-1,5-6", most=3)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 10**12), st.integers(0, 20)), min_size=1, max_size=6))
def test_parsing_undoes_writing(ranges):
    text = ",".join(f"{a}-{a + n}" if n else str(a) for a, n in ranges)
    assert parse_integers(text) == [a + k for a, n in ranges for k in range(n + 1)]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text("0123456789-, .x", max_size=12))
def test_any_text_parses_or_is_refused_in_one_line(text):
    try:
        values = parse_integers(text, most=1000)
    except PidistillError as error:
        assert "\n" not in str(error)
    else:
        assert values and all(v >= 0 for v in values) and len(values) <= 1000


def test_noise_and_labels_are_those_of_each_seeds_own_stream():
    """One generator serves all seeds in turn: an odd number of draws before must leave nothing behind."""
    seeds = [5, 0, 2**63 - 1, 5, 7]
    for number, shape in ((0, (3, 5, 5)), (2, (1,)), (0, (3,))):
        expected = [stream(seed, number, domain=NOISE).standard_normal(shape, dtype=np.float32) for seed in seeds]
        np.testing.assert_array_equal(noise(seeds, shape, number).numpy(), np.stack(expected))
    assert labels_of(seeds, 10).tolist() == [int(stream(seed, domain=LABEL).integers(10)) for seed in seeds]


def test_the_noise_of_a_seed_is_frozen():
    """Other values here mean that no published seed gives its image any more."""
    assert noise([17], (4,))[0].tolist() == [-0.3643823266029358, 1.5763813257217407, -0.05545790120959282,
                                             -0.28679952025413513]


def test_pairs_have_streams_of_their_own_by_seed_and_number():
    numbers = [5, 0, 10**9, 5, 7]
    for shape in ((3, 5, 5), (1,)):  # an odd number of draws before must leave nothing behind
        expected = [stream(3, k=k, domain=PAIRS).standard_normal(shape, dtype=np.float32) for k in numbers]
        np.testing.assert_array_equal(pair_noise(3, numbers, shape).numpy(), np.stack(expected))
    assert pair_labels(3, numbers, 10).tolist() == [int(stream(3, k=k, domain=PAIR_LABEL).integers(10)) for k in numbers]
    assert pair_labels(3, numbers, 0) is None and pair_noise(3, [], (2,)).shape == (0, 2)
    assert not torch.equal(pair_noise(3, [1], (4,)), pair_noise(4, [1], (4,)))


def test_no_image_shares_its_noise_with_a_pair():
    pairs = {float(x) for seed in range(20) for x in pair_noise(seed, range(20), (1,))}
    others = {float(x) for number in range(3) for x in noise(range(300), (1,), number)}
    trained = {float(np.float32(stream(seed, step, k).standard_normal(dtype=np.float32)))
               for seed in range(4) for step in range(10) for k in range(10)}
    assert len(pairs) == 400 and not pairs & (others | trained)


def test_the_noise_of_a_pair_is_frozen():
    """Other values here mean that stored solutions are those of other noise."""
    assert pair_noise(17, [3], (3,))[0].tolist() == [-0.043476905673742294, 0.24063599109649658, -0.40303221344947815]
