"""The evidence framework: prior scales and noise by Laplace's approximation of the marginal likelihood.

MacKay (1992), "A practical Bayesian framework for backpropagation networks", section 4; during training, Immer et al.
(2021), "Scalable marginal likelihood estimation for model selection in deep learning". Everything here is written over
a structure's own primitives, so that any structure serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from .engines.base import map_arrays
from .filtering import Posterior
from .methods import FitProblem
from .priors import NormalPrior

__all__ = ["Evidence", "evidence", "evidence_update"]

_LARGEST_CHANGE = 10.0  # of a prior precision in one update: far from the optimum the fixed point overshoots


class Evidence(NamedTuple):
    """Attributes:
    log_marginal_likelihood: log p(y | prior), by Laplace's approximation, in nats.
    effective_parameters: γ of each layer: how many of its weights the data determine, between 0 and their number.
    """

    log_marginal_likelihood: float
    effective_parameters: np.ndarray


def evidence(problem: FitProblem, posterior: Posterior) -> Evidence:
    """Log p(y | θ*) + log p(θ*) + ½ P log 2π - ½ log det Λ, and γ_l = Σ_i (1 - p_i v_i) over a layer's weights.

    p_i is a weight's prior precision and v_i its posterior variance (MacKay 1992, equations 4.7 and 4.8).

    Args:
        problem: with the prior that the posterior was assembled under.
        posterior: in the problem's structure.
    """
    engine, structure = problem.engine, problem.structure
    dispersion = _dispersion(problem, posterior)
    with engine.scope():
        means = [engine.to_numpy(m).astype(np.float64) for m in structure.mean(posterior.weights)]
        variances = [
            engine.to_numpy(v).astype(np.float64) * dispersion
            for v in structure.marginal_variance(engine, posterior.weights)
        ]
        log_determinant = float(structure.log_determinant(engine, posterior.weights))
    precisions, kinds = problem.prior_precision, problem.network.layer_methods
    bayesian = [p for p, kind in zip(precisions, kinds, strict=True) if kind is not None]
    log_determinant -= sum(p.size for p in bayesian) * np.log(dispersion)
    log_prior = 0.5 * sum(float(np.sum(np.log(p))) for p in bayesian)
    log_prior -= 0.5 * sum(float(np.sum(p * m * m)) for p, m in zip(precisions, means, strict=True))
    determined = np.array([float(np.sum(1 - p * v)) for p, v in zip(precisions, variances, strict=True)])
    return Evidence(_log_likelihood(problem, posterior) + log_prior - 0.5 * log_determinant, determined)


def _dispersion(problem: FitProblem, posterior: Posterior) -> float:
    return float(problem.likelihood.dispersion(map_arrays(problem.engine.to_numpy, posterior.likelihood)))


def _log_likelihood(problem: FitProblem, posterior: Posterior) -> float:
    """Σ weight · log p(y | θ*), the noise at its estimate."""
    engine, likelihood = problem.engine, problem.likelihood

    def total(posterior: Posterior) -> object:
        outputs = problem.network.apply(engine, problem.structure.mean(posterior.weights), problem.x)
        state = likelihood.estimated_state(posterior.likelihood)
        values = likelihood.log_prob(engine, outputs, problem.y, state)
        return engine.xp.sum(engine.asarray(problem.weight, "float64") * values)

    with engine.scope():
        return float(engine.to_numpy(total(posterior)))


def evidence_update(problem: FitProblem, posterior: Posterior, layers: Sequence[bool]) -> NormalPrior:
    """One step of MacKay's fixed point for the prior scale of each layer: τ_l = γ_l / Σ_i p_i m_i².

    Biases keep their scale, and take no part. The scale is divided by √τ_l, where τ_l is kept within a factor of 10.

    Args:
        problem: with the prior that the posterior was assembled under.
        posterior: in the problem's structure.
        layers: for each layer, whether its scale is to be learned.
    """
    engine, structure = problem.engine, problem.structure
    dispersion = _dispersion(problem, posterior)
    with engine.scope():
        means = [engine.to_numpy(m).astype(np.float64) for m in structure.mean(posterior.weights)]
        variances = [
            engine.to_numpy(v).astype(np.float64) for v in structure.marginal_variance(engine, posterior.weights)
        ]
    scales = []
    known = iter(problem.prior.scales(sum(kind is not None for kind in problem.network.layer_methods)))
    for kind, precision, mean, variance, learned in zip(
        problem.network.layer_methods, problem.prior_precision, means, variances, layers, strict=True
    ):
        if kind is None:
            continue
        scale = next(known)
        p, m, v = (values[:-1] for values in (precision, mean, dispersion * variance))
        determined, energy = float(np.sum(1 - p * v)), float(np.sum(p * m * m))
        change = np.clip(determined / max(energy, 1e-300), 1 / _LARGEST_CHANGE, _LARGEST_CHANGE)
        scales.append(float(scale / np.sqrt(change)) if learned else float(scale))
    return replace(problem.prior, scale=tuple(scales))
