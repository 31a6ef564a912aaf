"""Fixed nodes for expectations under normal distributions of a few dimensions, and under gamma distributions."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

__all__ = ["log_gamma_nodes", "normal_nodes"]


@lru_cache
def normal_nodes(dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes (S, dimension) and weights (S,) for expectations under a standard normal distribution.

    In one dimension: the trapezium rule on ±8, 321 nodes, exponentially accurate for smooth integrands (a Gauss-Hermite
    rule is not, where a logistic function is steep beside the distribution). In more: an additive-recurrence
    quasi-random sequence (Roberts 2018, the generalised golden ratio) through the inverse normal distribution function,
    made symmetric and whitened, so that mean, covariance and all odd moments are exact. Deterministic: no seed.
    """
    from scipy.special import ndtri

    if dimension == 1:
        nodes = np.linspace(-8, 8, 321)
        weights = np.exp(-0.5 * nodes**2)
        return nodes[:, None], weights / weights.sum()
    half = max(64, 8 * dimension)
    ratio = 2.0
    for _ in range(64):  # the root of x^(d+1) = x + 1, by fixed-point iteration
        ratio = (1 + ratio) ** (1 / (dimension + 1))
    steps = ratio ** -np.arange(1.0, dimension + 1)
    uniforms = (0.5 + np.arange(1, half + 1)[:, None] * steps) % 1.0
    nodes = ndtri(uniforms)
    root = np.linalg.cholesky(nodes.T @ nodes / half)
    nodes = np.linalg.solve(root, nodes.T).T
    return np.concatenate([nodes, -nodes]), np.full(2 * half, 0.5 / half)


@lru_cache
def log_gamma_nodes(shape: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes (S,) for log λ and logarithms of their weights (S,), for λ ~ Gamma(shape) of mean 1.

    The trapezium rule on log λ = sinh(t) / √shape, whose spacing follows the distribution's width where it has mass; it
    reaches down to λ = e⁻⁷⁵, where the extremes of a scale mixture have theirs.
    """
    width = shape**-0.5
    most = np.log1p(800 / shape) + 40 * width
    steps = np.linspace(np.arcsinh(-75 / width), np.arcsinh(most / width), 161)
    nodes = width * np.sinh(steps)
    log_weights = shape * (nodes - np.expm1(nodes)) + np.log(np.cosh(steps))
    largest = log_weights.max()
    return nodes, log_weights - largest - np.log(np.exp(log_weights - largest).sum())
