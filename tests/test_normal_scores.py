"""Normal scores of a stream's columns."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from scipy.stats import norm, rankdata

import bayesmlp as bm
from bayesmlp import normal_scores


@pytest.fixture
def stream() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.column_stack([rng.standard_cauchy(60), rng.integers(0, 3, 60)])


def by_definition(before: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Mid-ranks of the row among the ones before it and itself, less a half."""
    return norm.ppf((rankdata(np.vstack([before, row]), axis=0)[-1] - 0.5) / (len(before) + 1))


def test_a_row_is_ranked_among_the_window_before_it(stream: np.ndarray) -> None:
    scores = bm.NormalScores(window=20).observe(stream)
    for index, row in enumerate(stream):
        expected = by_definition(stream[max(0, index - 20) : index], row)
        np.testing.assert_allclose(scores[index], expected, rtol=1e-12, atol=1e-15)


def test_batches_are_singles_and_asking_teaches_nothing(stream: np.ndarray) -> None:
    whole, single = bm.NormalScores(window=20), bm.NormalScores(window=20)
    together = whole.observe(stream)
    for index, row in enumerate(stream):
        asked = single.transform(stream[:7])
        np.testing.assert_array_equal(single.transform(stream[:7]), asked)
        np.testing.assert_array_equal(single.observe(row[None])[0], together[index])
    np.testing.assert_array_equal(whole.transform(stream), single.transform(stream))


@pytest.mark.parametrize("cut", [0, 1, 8, 20, 33])
def test_another_goes_on_from_its_rows(stream: np.ndarray, cut: int) -> None:
    first = bm.NormalScores(window=20)
    if cut:
        first.observe(stream[:cut])
        np.testing.assert_array_equal(first.last_rows, stream[max(0, cut - 20) : cut])
    second = bm.NormalScores(window=20, last_rows=first.last_rows)
    np.testing.assert_array_equal(second.last_rows, first.last_rows)
    whole = bm.NormalScores(window=20).observe(stream)
    np.testing.assert_array_equal(second.observe(stream[cut:]), whole[cut:])


def test_a_monotone_change_of_a_column_changes_nothing(stream: np.ndarray) -> None:
    changed = np.column_stack([np.arctan(stream[:, 0]), 5 * stream[:, 1] + 1000])
    np.testing.assert_array_equal(bm.NormalScores().observe(changed), bm.NormalScores().observe(stream))


def test_bad_input_names_its_argument_and_nothing_joins(stream: np.ndarray) -> None:
    with pytest.raises(bm.errors.InvalidInput, match="window must be an integer of at least 1, got 0"):
        bm.NormalScores(window=0)
    with pytest.raises(bm.errors.InvalidInput, match="window must be at most 1,000,000, got 10000000000"):
        bm.NormalScores(window=10**10)
    with pytest.raises(bm.errors.InvalidInput, match=r"last_rows must have shape \(rows, inputs\), got shape \(\)"):
        bm.NormalScores(last_rows=5.0)
    with pytest.raises(bm.errors.InvalidInput, match="last_rows must be finite, got nan"):
        bm.NormalScores(last_rows=[[np.nan]])
    scores = bm.NormalScores()
    scores.observe(stream[:5])
    broken = stream[5:10].copy()
    broken[3, 1] = np.inf
    with pytest.raises(bm.errors.InvalidInput, match="X must be finite, got inf in row 3, column 1"):
        scores.observe(broken)
    with pytest.raises(bm.errors.InvalidInput, match=r"X must have shape \(rows, 2\), got shape \(1, 3\)"):
        scores.transform([[1.0, 2.0, 3.0]])
    np.testing.assert_array_equal(scores.last_rows, stream[:5])


def test_the_example_says_what_it_prints() -> None:
    results = doctest.testmod(normal_scores)
    assert results.attempted > 0
    assert results.failed == 0
