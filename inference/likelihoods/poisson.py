"""Counts: the exponential of one output is their rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from ..engines.base import Array, Engine
from ..host import as_host_array
from .base import HOST, Likelihood, invalid_target
from .bounds import bounded

__all__ = ["LOG_RATE_BOUNDS", "Poisson"]

LOG_RATE_BOUNDS = (-20.0, 20.0)
"""Of the log rate: rates from 2·10⁻⁹ to 5·10⁸."""


@dataclass(frozen=True)
class Poisson(Likelihood):
    """p(y | f) = rate^y exp(-rate) / y!, with log rate f, brought smoothly between :data:`LOG_RATE_BOUNDS`.

    Targets are whole numbers from 0 to 10⁶, shape (rows,).
    """

    num_outputs = 1
    is_discrete = True

    def prepare(self, y: Any, argument: str = "y") -> np.ndarray:
        values = as_host_array(y, argument)
        if values.dtype.kind not in "iuf":
            raise invalid_target(argument, "counts", f"dtype {values.dtype}")
        if values.ndim == 1:
            values = values[:, None]
        if values.ndim != 2 or values.shape[1] != 1:
            raise invalid_target(argument, "one count for each row, shape (rows,)", f"shape {np.shape(y)}")
        values = values.astype(np.float64)
        wrong = ~((values >= 0) & (values <= 1e6)) | (np.floor(values) != values)
        if np.any(wrong):
            raise invalid_target(argument, "a whole number from 0 to 1e6", f"{values[wrong][0]:g}")
        return values

    def draw(self, rng: np.random.Generator, outputs: np.ndarray, state: Any) -> np.ndarray:
        return np.asarray(rng.poisson(self.mean(HOST, outputs)))

    def cdf(self, outputs: np.ndarray, y: np.ndarray, state: Any) -> np.ndarray:
        from scipy.special import pdtr

        return np.where(y < 0, 0.0, pdtr(np.maximum(y, 0), self.mean(HOST, outputs)))

    def unit_log_prob(
        self, engine: Engine, outputs: Float[Array, "*S N K"], y: Array, state: Any = ()
    ) -> Float[Array, "*S N"]:
        log_rate, _ = bounded(engine, outputs, *LOG_RATE_BOUNDS)
        return engine.xp.sum(y * log_rate - engine.xp.exp(log_rate) - engine.lgamma(y + 1), axis=-1)

    def unit_score(
        self, engine: Engine, outputs: Float[Array, "N K"], y: Array, state: Any = ()
    ) -> Float[Array, "N K"]:
        log_rate, slope = bounded(engine, outputs, *LOG_RATE_BOUNDS)
        return (y - engine.xp.exp(log_rate)) * slope

    def fisher_factor(self, engine: Engine, outputs: Float[Array, "N K"], state: Any = ()) -> Float[Array, "N K R"]:
        log_rate, slope = bounded(engine, outputs, *LOG_RATE_BOUNDS)
        return (engine.xp.exp(0.5 * log_rate) * slope)[:, :, None]

    def mean(self, engine: Engine, outputs: Float[Array, "*S N K"], state: Any = ()) -> Array:
        return engine.xp.exp(bounded(engine, outputs, *LOG_RATE_BOUNDS)[0])

    def variance(self, engine: Engine, outputs: Float[Array, "*S N K"], state: Any) -> Array:
        return self.mean(engine, outputs)

    def predictive_log_prob(
        self, engine: Engine, mean: Float[Array, "N K"], covariance: Float[Array, "N K K"] | None, y: Array, state: Any
    ) -> Float[Array, " N"]:
        """The trapezium rule around the integrand's mode, which may be narrow beside the outputs' spread.

        With f = mean + √c t and t standard normal the mode has c rate = w, where w + log w = log c + mean + c y; there
        t = (c y - w) / √c, with curvature 1 + w.
        """
        if covariance is None:
            return self.log_prob(engine, mean, y, state)
        xp = engine.xp
        variance = covariance[:, :, 0] + 1e-30
        level = xp.log(variance) + mean + variance * y
        log_w = xp.where(level > 1, xp.log(xp.where(level > 1, level, 1.0)), level)
        for _ in range(5):  # Newton's method, from above: quadratic, and monotone
            log_w = log_w - (xp.exp(log_w) + log_w - level) / (xp.exp(log_w) + 1)
        w, deviation = xp.exp(log_w), xp.sqrt(variance)
        spacing = 0.15 / xp.sqrt(1 + w)
        steps = engine.constant(np.arange(-160, 161)[:, None, None], mean)
        standard = (variance * y - w) / deviation + spacing * steps
        values = self.log_prob(engine, mean + deviation * standard, y, state)
        log_normal = xp.sum(xp.log(spacing) - 0.5 * standard * standard, axis=-1) - 0.5 * math.log(2 * math.pi)
        return engine.logsumexp(values + log_normal, axis=0)
