"""Outputs on a logarithmic scale, kept within bounds."""

from __future__ import annotations

import math

from ..engines.base import Array, Engine

__all__ = ["bend", "bounded", "log_sigmoid", "sigmoid"]


def sigmoid(engine: Engine, values: Array) -> Array:
    """1 / (1 + exp(-values))."""
    return 0.5 * (1 + engine.xp.tanh(0.5 * values))


def log_sigmoid(engine: Engine, values: Array) -> Array:
    """The logarithm of :func:`sigmoid`, exact far below 0."""
    xp = engine.xp
    return 0.5 * (values - xp.abs(values)) - xp.log1p(xp.exp(-xp.abs(values)))


def bounded(engine: Engine, values: Array, low: float, high: float) -> tuple[Array, Array]:
    """Values brought smoothly between two bounds, and the derivative.

    ``low + softplus(values - low) - softplus(values - high)``: increasing, and the identity but for exp(-distance) of
    the nearest bound.
    """
    inside = low - log_sigmoid(engine, low - values) + log_sigmoid(engine, high - values)
    slope = sigmoid(engine, values - low) * sigmoid(engine, high - values) * (1 - math.exp(low - high))
    return engine.xp.clip(inside, low, high), slope


def bend(engine: Engine, values: Array, low: float, high: float) -> Array:
    """Second derivative of :func:`bounded`."""
    of_low, of_high = (sigmoid(engine, values - end) for end in (low, high))
    return of_low * (1 - of_low) - of_high * (1 - of_high)
