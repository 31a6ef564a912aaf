"""Expected class probabilities where the logits are normal: closed forms beside the fixed nodes.

E[softmax(f)] under f ~ N(mean, covariance) has no closed form; these are its classical approximations. Both take as
many operations as the covariance has entries.
"""

from __future__ import annotations

import math

from jaxtyping import Float

from .engines.base import Array, Engine

__all__ = ["CLOSED_FORMS", "laplace_bridge", "probit"]


def probit(engine: Engine, mean: Float[Array, "N C"], covariance: Float[Array, "N C C"]) -> Float[Array, "N C"]:
    """E[σ(d)] ≈ σ(E[d] / √(1 + π/8 Var[d])) for each difference d of two logits.

    For two classes it is MacKay (1992), "The evidence framework applied to classification networks", equation 14; for
    more, 1/p_k = Σ_j exp(-κ_kj (m_k - m_j)), normalised (Daunizeau 2017, "Semi-analytical approximations to statistical
    moments of sigmoid and softmax mappings of normal variables"). It does not depend on what all logits share.
    """
    xp = engine.xp
    variance = xp.sum(covariance * engine.eye(mean.shape[-1], mean), axis=-1)
    of_difference = variance[:, :, None] + variance[:, None, :] - covariance - covariance.mT
    difference = mean[:, :, None] - mean[:, None, :]
    scaled = difference / xp.sqrt(1 + (math.pi / 8) * xp.clip(of_difference, 0.0, None))
    logarithm = -engine.logsumexp(-scaled, axis=-1)
    return xp.exp(logarithm - engine.logsumexp(logarithm, axis=-1)[:, None])


def laplace_bridge(engine: Engine, mean: Float[Array, "N C"], covariance: Float[Array, "N C C"]) -> Float[Array, "N C"]:
    """Mean of the Dirichlet distribution whose Laplace approximation in the softmax basis has these moments.

    α_k = (1 - 2/C + exp(μ_k) Σ_l exp(-μ_l) / C²) / Σ_kk for logits that sum to 0 (Hobbhahn, Kristiadi and Hennig 2022,
    "Fast predictive uncertainty for classification with Bayesian deep networks"). The logits are projected on that
    plane, which leaves their softmax as it is, where the paper conditions on it. Exact for logits with the moments
    Σ_kk = (1 - 2/C) / α_k + Σ_l 1 / (α_l C²) of a Dirichlet; for others the mean does not follow the size of the
    variances, only their ratios: for two classes it is the softmax of the means.
    """
    xp = engine.xp
    size = mean.shape[-1]
    centred = mean - xp.mean(mean, axis=-1, keepdims=True)
    rows = xp.mean(covariance, axis=-1)
    variance = xp.sum(covariance * engine.eye(size, mean), axis=-1) - 2 * rows + xp.mean(rows, axis=-1, keepdims=True)
    exponent = centred + engine.logsumexp(-centred, axis=-1)[:, None] - 2 * math.log(size)
    if size > 2:
        constant = math.log(1 - 2 / size)
        largest = xp.where(exponent > constant, exponent, constant)
        exponent = largest + xp.log(xp.exp(exponent - largest) + xp.exp(constant - largest))
    logarithm = exponent - xp.log(xp.clip(variance, 1e-30, None))
    return xp.exp(logarithm - engine.logsumexp(logarithm, axis=-1)[:, None])


CLOSED_FORMS = {"probit": probit, "bridge": laplace_bridge}
"""By the name that ``predict(approximation=...)`` takes."""
