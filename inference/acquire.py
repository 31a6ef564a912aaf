"""Which question to ask next: what an answer would tell about the weights, or about other answers.

Outputs are jointly normal, as those of the linearised network are. Information is in nats.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from .likelihoods.base import HOST, Likelihood, covariance_root

__all__ = ["condition", "expected_information_gain", "expected_predictive_information_gain"]


def expected_information_gain(
    likelihood: Likelihood, mean: Float[np.ndarray, "N K"], covariance: Float[np.ndarray, "N K K"], state: Any
) -> Float[np.ndarray, " N"]:
    """Information that each answer would bring about the weights, I(y; weights) (Houlsby et al. 2011, "BALD").

    For classes H(E[p]) - E[H(p)] by the likelihood's nodes; else ½ log det(I + Lᵀ C L) with L Lᵀ the Fisher information
    at the mean, which is exact for normal noise of known variance.
    """
    if likelihood.has_classes:
        outputs, weights = likelihood.output_nodes(HOST, mean, covariance)
        probabilities = np.asarray(likelihood.class_probabilities(HOST, outputs, state))
        expected = np.tensordot(weights, _entropy(probabilities), axes=1)
        return np.maximum(_entropy(np.tensordot(weights, probabilities, axes=1)) - expected, 0.0)
    factor = _factor(likelihood, mean, state)
    gram = factor.mT @ covariance @ factor
    return np.asarray(0.5 * np.linalg.slogdet(np.eye(gram.shape[-1]) + gram)[1])


def expected_predictive_information_gain(
    likelihood: Likelihood,
    mean: Float[np.ndarray, "M K"],
    covariance: Float[np.ndarray, "M*K M*K"],
    num_targets: int,
    state: Any,
    standard_normal: Float[np.ndarray, "S M*K"],
) -> Float[np.ndarray, " M-T"]:
    """Information that each answer would bring about the answers at target inputs, averaged over these (Bickford Smith
    et al. 2023, "Prediction-oriented Bayesian active learning", equation 5).

    For classes by draws of the joint outputs; else by the joint normal distribution of two answers, which is exact for
    normal noise of known variance and one output, and the linearised answer otherwise.

    Args:
        likelihood: the observation model.
        mean: outputs of the candidates, then of the targets.
        covariance: of all of them, jointly.
        num_targets: T.
        state: of the likelihood.
        standard_normal: the draws, for classes.
    """
    rows, size = mean.shape
    count = rows - num_targets
    if likelihood.has_classes:
        root = covariance_root(HOST, covariance[None])[0]
        outputs = mean + (standard_normal @ root.T).reshape(-1, rows, size)
        probabilities = np.asarray(likelihood.class_probabilities(HOST, outputs, state))
        return _predictive_information(probabilities[:, :count], probabilities[:, count:])
    factor = _factor(likelihood, mean, state)
    blocks = covariance.reshape(rows, size, rows, size)
    scaled = np.einsum("nkr,nkml,mls->nmrs", factor, blocks, factor, optimize=True)
    identity = np.eye(factor.shape[-1])
    own = np.einsum("nnrs->nrs", scaled) + identity
    across = scaled[:count, count:]
    explained = across.mT @ np.linalg.solve(own[:count, None], across)
    remaining = np.linalg.slogdet(own[None, count:] - explained)[1]
    return np.asarray(0.5 * (np.linalg.slogdet(own[count:])[1] - remaining).mean(axis=1))


def condition(
    likelihood: Likelihood,
    mean: Float[np.ndarray, "M K"],
    covariance: Float[np.ndarray, "M*K M*K"],
    row: int,
    state: Any,
) -> Float[np.ndarray, "M*K M*K"]:
    """The joint covariance once the answer at a row will be known: C - C_i L (I + Lᵀ C_ii L)⁻¹ Lᵀ C_iᵀ.

    It does not depend on what the answer will be, only on its Fisher information at the mean.
    """
    size = mean.shape[1]
    factor = _factor(likelihood, mean[row : row + 1], state)[0]
    columns = covariance[:, row * size : (row + 1) * size] @ factor
    inner = np.eye(factor.shape[-1]) + factor.T @ columns[row * size : (row + 1) * size]
    return np.asarray(covariance - columns @ np.linalg.solve(inner, columns.T))


def _factor(likelihood: Likelihood, mean: np.ndarray, state: Any) -> np.ndarray:
    """L with L Lᵀ the Fisher information in the outputs' own units."""
    dispersion = np.asarray(likelihood.dispersion(state))
    return np.asarray(likelihood.fisher_factor(HOST, mean, state)) / np.sqrt(dispersion)


def _predictive_information(
    candidates: Float[np.ndarray, "S N C"], targets: Float[np.ndarray, "S T C"]
) -> Float[np.ndarray, " N"]:
    """Mutual information of two classes whose joint distribution is the average of products, averaged over targets."""
    draws = len(candidates)
    independent = _entropy(candidates.mean(axis=0))[:, None] + _entropy(targets.mean(axis=0))
    joint = np.stack([np.einsum("sc,std->tcd", one, targets) / draws for one in candidates.transpose(1, 0, 2)])
    return np.asarray(np.maximum(independent - _entropy(joint.reshape(*joint.shape[:2], -1)), 0.0).mean(axis=1))


def _entropy(probabilities: Float[np.ndarray, "*S C"]) -> Float[np.ndarray, "*S"]:
    return np.asarray(-np.sum(probabilities * np.log(np.maximum(probabilities, 1e-300)), axis=-1))
