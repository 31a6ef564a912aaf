"""IVON against its published equations, and on losses whose posterior is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bayesmlp.inference import ivon
from bayesmlp.inference.engines import Engine

NUM_ROWS = 50.0
PRIOR = (np.array([[0.5, 2.0], [1.0, 4.0]]), np.array([3.0, 0.1]))


def started(engine: Engine, deviation: float = 0.1) -> tuple[ivon.IvonState, Any]:
    """A state around fixed means, and the prior's precision."""
    mean = (engine.asarray(np.array([[0.3, -1.2], [0.0, 2.0]])), engine.asarray(np.array([-0.4, 0.7])))
    prior = tuple(engine.asarray(p) for p in PRIOR)
    scale = tuple(engine.asarray(np.full(p.shape, deviation)) for p in PRIOR)
    with engine.scope():
        return ivon.init(engine.xp, mean, scale, prior, NUM_ROWS, engine.asarray(np.float64(0))), prior


def published(
    m: np.ndarray, h: np.ndarray, g: np.ndarray, t: int, gradient: np.ndarray, theta: np.ndarray, delta: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Algorithm 1 line by line, with learning rate 0.3, β₁ = 0.8 and β₂ = 0.95."""
    variance = 1 / (NUM_ROWS * (h + delta))
    f = gradient * (theta - m) / variance
    g = 0.8 * g + 0.2 * gradient
    new_h = 0.95 * h + 0.05 * f + 0.5 * 0.05**2 * (h - f) ** 2 / (h + delta)
    new_m = m - 0.3 * (g / (1 - 0.8**t) + delta * m) / (new_h + delta)
    return new_m, new_h, g


def test_steps_follow_the_published_algorithm(engine64: Engine) -> None:
    rng = np.random.default_rng(0)
    state, prior = started(engine64)
    expected = [
        (engine64.to_numpy(m), 1 / (0.1**2 * NUM_ROWS) - p / NUM_ROWS, np.zeros(p.shape))
        for m, p in zip(state.mean, PRIOR, strict=True)
    ]
    for t in range(1, 4):
        noise = [rng.standard_normal(p.shape) for p in PRIOR]
        gradient = [rng.standard_normal(p.shape) for p in PRIOR]
        with engine64.scope():
            noise_arrays = tuple(engine64.asarray(e) for e in noise)
            theta = ivon.sample(engine64.xp, state, prior, NUM_ROWS, noise_arrays)
            gradients = tuple(engine64.asarray(g) for g in gradient)
            rate = engine64.asarray(np.float64(0.3))
            state = ivon.update(
                engine64.xp, state, gradients, noise_arrays, prior, NUM_ROWS, rate,
                momentum_decay=0.8, curvature_decay=0.95,
            )  # fmt: skip
        expected = [
            published(m, h, g, t, step, engine64.to_numpy(weights), p / NUM_ROWS)
            for (m, h, g), step, weights, p in zip(expected, gradient, theta, PRIOR, strict=True)
        ]
        for layer, (m, h, g) in enumerate(expected):
            np.testing.assert_allclose(engine64.to_numpy(state.mean[layer]), m, rtol=1e-12)
            np.testing.assert_allclose(engine64.to_numpy(state.curvature[layer]), h, rtol=1e-12)
            np.testing.assert_allclose(engine64.to_numpy(state.momentum[layer]), g, rtol=1e-12)


def test_the_posterior_starts_where_it_is_told(engine64: Engine) -> None:
    state, prior = started(engine64, deviation=0.25)
    with engine64.scope():
        for scale in ivon.deviation(engine64.xp, state, prior, NUM_ROWS):
            np.testing.assert_allclose(engine64.to_numpy(scale), 0.25, rtol=1e-12)


@pytest.mark.parametrize("seed", [0, 1])
def test_on_a_quadratic_the_curvature_and_the_posterior_are_exact(seed: int) -> None:
    """The loss ½ a (θ - b)² has second derivative a: posterior precision N a + p and mean N a b / (N a + p)."""
    rng = np.random.default_rng(seed)
    a, b, p = np.array([0.5, 1.0, 4.0]), np.array([1.0, -2.0, 0.3]), np.array([5.0, 1.0, 20.0])
    state = ivon.init(np, (np.zeros(3),), (np.full(3, 0.05),), (p,), NUM_ROWS, np.float64(0))
    steps, mean, curvature = 6000, [], []
    for step in range(steps):
        noise = (rng.standard_normal(3),)
        (theta,) = ivon.sample(np, state, (p,), NUM_ROWS, noise)
        gradient = (a * (theta - b),)
        state = ivon.update(np, state, gradient, noise, (p,), NUM_ROWS, np.float64(0.02), curvature_decay=0.998)
        if step >= steps // 2:
            mean.append(state.mean[0])
            curvature.append(state.curvature[0])
    exact = NUM_ROWS * a * b / (NUM_ROWS * a + p)
    # f has standard deviation a√2 or so per step, and about 3000 steps are averaged
    np.testing.assert_allclose(np.mean(curvature, axis=0), a, rtol=4 * np.sqrt(2 / (steps / 2)))
    np.testing.assert_allclose(np.mean(mean, axis=0), exact, atol=4 / np.sqrt(NUM_ROWS * a.min() * steps / 2))
    state = state._replace(curvature=(np.mean(curvature, axis=0),))
    (scale,) = ivon.deviation(np, state, (p,), NUM_ROWS)
    np.testing.assert_allclose(scale**-2, NUM_ROWS * a + p, rtol=0.1)


def test_no_gradient_can_make_the_precision_negative() -> None:
    rng = np.random.default_rng(0)
    p = np.full(1000, 2.0)
    state = ivon.init(np, (np.zeros(1000),), (np.full(1000, 0.1),), (p,), NUM_ROWS, np.float64(0))
    for _ in range(20):
        noise = (rng.standard_normal(1000),)
        gradient = (1e3 * rng.standard_normal(1000),)
        state = ivon.update(np, state, gradient, noise, (p,), NUM_ROWS, np.float64(0.1), curvature_decay=0.9)
        assert np.all(state.curvature[0] + p / NUM_ROWS > 0)
