"""Flipout against the sampled weights it stands for."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from bayesmlp.inference.engines import Engine
from bayesmlp.inference.flipout import flipout_dense

N, T, I, O = 3, 4, 2, 5  # noqa: E741


def case(bias: bool, seed: int = 0) -> Any:
    """Inputs, means, deviations, draws, and signs of inputs and outputs."""
    rng = np.random.default_rng(seed)
    size = (I + bias, O)
    signs = [rng.choice([-1.0, 1.0], (N, width)) for width in (I + bias, O)]
    first = (
        rng.standard_normal((N, T, I)),
        rng.standard_normal(size),
        rng.uniform(0.1, 1, size),
        rng.standard_normal(size),
    )
    return *first, *signs


@pytest.mark.parametrize("bias", [True, False])
def test_every_row_has_weights_of_its_own(engine64: Engine, bias: bool) -> None:
    """z of row n is a (M + r sᵀ S E), at all of its positions."""
    arrays = case(bias)
    x, mean, deviation, draw, r, s = arrays
    with engine64.scope():
        on_engine = [engine64.asarray(a) for a in arrays]
        got = engine64.to_numpy(flipout_dense(engine64.xp, *on_engine, bias=bias))  # type: ignore[misc]
    extended = np.concatenate([x, np.ones((N, T, 1))], axis=2) if bias else x
    for row in range(N):
        weights = mean + np.outer(r[row], s[row]) * deviation * draw
        np.testing.assert_allclose(got[row], extended[row] @ weights, rtol=1e-12)


def test_a_row_without_positions() -> None:
    x, mean, deviation, draw, r, s = case(True)
    alone, first = (flipout_dense(np, a, mean, deviation, draw, r, s) for a in (x[:, 0], x[:, :1]))
    np.testing.assert_allclose(alone, first[:, 0], rtol=1e-12)


def test_rows_may_lie_in_any_axis() -> None:
    x, mean, deviation, draw, r, s = case(True)
    first = flipout_dense(np, x, mean, deviation, draw, r, s)
    second = flipout_dense(np, np.moveaxis(x, 0, 1), mean, deviation, draw, r, s, row_axis=1)
    np.testing.assert_allclose(np.moveaxis(second, 1, 0), first, rtol=1e-12)


def test_moments_over_all_signs() -> None:
    """Averaged over all signs, E[z] = a M; two rows are uncorrelated, two positions of a row covary as a S²E² bᵀ."""
    rng = np.random.default_rng(1)
    x, mean = rng.standard_normal((2, 2, 2)), rng.standard_normal((2, 1))
    deviation, draw = rng.uniform(0.1, 1, (2, 1)), rng.standard_normal((2, 1))
    patterns = np.array(list(itertools.product([-1.0, 1.0], repeat=6)))
    z = np.stack(
        [flipout_dense(np, x, mean, deviation, draw, p[:4].reshape(2, 2), p[4:, None], False)[..., 0] for p in patterns]
    )
    np.testing.assert_allclose(z.mean(0), (x @ mean)[..., 0], atol=1e-14)
    moved = z - z.mean(0)
    np.testing.assert_allclose((moved[:, 0, 0] * moved[:, 1, 0]).mean(), 0, atol=1e-14)
    expected = (x[0, 0] * x[0, 1] * (deviation * draw)[:, 0] ** 2).sum()
    np.testing.assert_allclose((moved[:, 0, 0] * moved[:, 0, 1]).mean(), expected, rtol=1e-12)
