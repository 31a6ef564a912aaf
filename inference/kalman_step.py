"""Kalman's step: one Newton step from the prior's mean, as the extended Kalman filter takes it."""

from __future__ import annotations

from dataclasses import dataclass

from .engines.base import Engine
from .likelihoods.base import Likelihood
from .output_space import OutputProblem, OutputStep, Site

__all__ = ["KalmanStep"]


@dataclass(frozen=True)
class KalmanStep(OutputStep):
    """Score and Fisher information at the prior's mean: r = (I + L Lᵀ C)⁻¹ score(f).

    The cheapest step, and exact for normal noise; elsewhere it overshoots on confident mistakes.
    """

    def site(self, engine: Engine, likelihood: Likelihood, problem: OutputProblem) -> Site:
        xp = engine.xp
        outputs, covariance, y, weight, state = problem
        num_rows, num_outputs = outputs.shape
        size = num_rows * num_outputs
        _, score, factor = likelihood.unit_terms(engine, outputs, y, state)
        factor = xp.sqrt(weight)[:, None, None] * factor
        seen = factor @ (factor.mT @ xp.reshape(covariance, (num_rows, num_outputs, size)))
        system = engine.eye(size, outputs) + xp.reshape(seen, (size, size))
        residual = engine.solve(system, xp.reshape(weight[:, None] * score, (size, 1)))[:, 0]
        return Site(residual, factor, engine.constant(1.0, outputs))
