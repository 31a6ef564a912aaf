"""Rows that tell of some outputs only: classes that were possible, targets that were observed.

A masked likelihood takes :class:`MaskedTargets` where the plain one takes y, so that the step of whole rows knows
nothing of masks. Discrete outcomes are masked through their outputs, and the plain likelihood does the rest: a class
whose logit is -∞ has probability 0, and a yes that was certain says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from jaxtyping import Bool, Float

from ..engines.base import Array, Engine
from ..errors import InvalidInput
from .base import Likelihood
from .bernoulli import Bernoulli
from .categorical import Categorical
from .gaussian import Gaussian

__all__ = ["CERTAIN", "MaskedTargets", "masked"]

CERTAIN = 1e30
"""Stands for an infinite logit: beside it every other one vanishes, and sums with it stay finite."""


class MaskedTargets(NamedTuple):
    """Attributes:
    y: targets, as the likelihood prepared them; what stands for outputs that are not observed is finite.
    mask: which outputs the row tells of, at least one.
    """

    y: Array
    mask: Bool[Array, "N K"]


def masked(likelihood: Likelihood) -> Likelihood:
    """The same observation model for :class:`MaskedTargets`.

    Raises:
        InvalidInput: the likelihood has no outputs that could be taken apart.
    """
    variant = _VARIANTS.get(type(likelihood))
    if variant is None:
        known = ", ".join(plain.__name__ for plain in _VARIANTS)
        raise InvalidInput(f"output_mask is for {known}, not for {likelihood}")
    return variant(**{field.name: getattr(likelihood, field.name) for field in fields(likelihood)})  # type: ignore[arg-type]


@dataclass(frozen=True)
class _MaskedCategorical(Categorical):
    """p(y = k | outputs) = exp(outputsₖ) / Σ exp over the possible classes."""

    def unit_log_prob(
        self, engine: Engine, outputs: Float[Array, "*S N K"], y: MaskedTargets, state: Any = ()
    ) -> Float[Array, "*S N"]:
        return super().unit_log_prob(engine, _possible(engine, outputs, y.mask), y.y)

    def unit_score(
        self, engine: Engine, outputs: Float[Array, "N K"], y: MaskedTargets, state: Any = ()
    ) -> Float[Array, "N K"]:
        return super().unit_score(engine, _possible(engine, outputs, y.mask), y.y)

    def unit_terms(
        self, engine: Engine, outputs: Float[Array, "N K"], y: MaskedTargets, state: Any = ()
    ) -> tuple[Float[Array, " N"], Float[Array, "N K"], Float[Array, "N K R"]]:
        return super().unit_terms(engine, _possible(engine, outputs, y.mask), y.y)

    def expected_terms(
        self,
        engine: Engine,
        outputs: Float[Array, "S N K"],
        weights: Float[Array, " S"],
        y: MaskedTargets,
        state: Any = (),
    ) -> tuple[Float[Array, "N K"], Float[Array, "N K K"]]:
        return super().expected_terms(engine, _possible(engine, outputs, y.mask), weights, y.y)

    def predictive_log_prob(
        self,
        engine: Engine,
        mean: Float[Array, "N K"],
        covariance: Float[Array, "N K K"] | None,
        y: MaskedTargets,
        state: Any,
    ) -> Float[Array, " N"]:
        """By nodes that only the possible classes' logits move along."""
        if covariance is not None:
            both = y.mask[:, :, None] & y.mask[:, None, :]
            covariance = engine.xp.where(both, covariance, 0.0)
        return super().predictive_log_prob(engine, mean, covariance, y, state)


def _possible(engine: Engine, logits: Array, mask: Array) -> Array:
    return engine.xp.where(mask, logits, -CERTAIN)


@dataclass(frozen=True)
class _MaskedBernoulli(Bernoulli):
    """The product over the observed outputs."""

    def unit_log_prob(
        self, engine: Engine, outputs: Float[Array, "*S N K"], y: MaskedTargets, state: Any = ()
    ) -> Float[Array, "*S N"]:
        return super().unit_log_prob(engine, *_uninformative(engine, outputs, y))

    def unit_score(
        self, engine: Engine, outputs: Float[Array, "N K"], y: MaskedTargets, state: Any = ()
    ) -> Float[Array, "N K"]:
        return super().unit_score(engine, *_uninformative(engine, outputs, y))

    def unit_terms(
        self, engine: Engine, outputs: Float[Array, "N K"], y: MaskedTargets, state: Any = ()
    ) -> tuple[Float[Array, " N"], Float[Array, "N K"], Float[Array, "N K R"]]:
        outputs, targets = _uninformative(engine, outputs, y)
        factor = self.fisher_factor(engine, outputs)
        return super().unit_log_prob(engine, outputs, targets), super().unit_score(engine, outputs, targets), factor

    def expected_terms(
        self,
        engine: Engine,
        outputs: Float[Array, "S N K"],
        weights: Float[Array, " S"],
        y: MaskedTargets,
        state: Any = (),
    ) -> tuple[Float[Array, "N K"], Float[Array, "N K K"]]:
        outputs, targets = _uninformative(engine, outputs, y)
        return Bernoulli(self.num_outputs).expected_terms(engine, outputs, weights, targets)


def _uninformative(engine: Engine, logits: Array, y: MaskedTargets) -> tuple[Array, Array]:
    """Where nothing was observed, a yes that was certain."""
    where = engine.xp.where
    return where(y.mask, logits, CERTAIN), where(y.mask, y.y, 1.0)


@dataclass(frozen=True)
class _MaskedGaussian(Gaussian):
    """The marginal of the observed outputs; the shared noise variance learns from as many."""

    def _error(self, engine: Engine, outputs: Array, y: MaskedTargets) -> tuple[Array, Array]:
        xp = engine.xp
        return xp.where(y.mask, y.y - outputs, 0.0), xp.sum(xp.astype(y.mask, outputs.dtype), axis=-1)

    def _weights(self, engine: Engine, y: MaskedTargets, weight: Array) -> tuple[Array, Array]:
        xp = engine.xp
        each = weight[:, None] * xp.astype(y.mask, weight.dtype)
        return xp.reshape(each, (-1,)), xp.sum(each)

    def _observed(self, engine: Engine, covariance: Array, y: MaskedTargets) -> Array:
        """The covariance of what was observed, beside an identity."""
        xp = engine.xp
        both = y.mask[:, :, None] & y.mask[:, None, :]
        return xp.where(both, covariance, engine.eye(self.num_outputs, covariance))

    def unit_terms(
        self, engine: Engine, outputs: Float[Array, "N K"], y: MaskedTargets, state: Any = ()
    ) -> tuple[Float[Array, " N"], Float[Array, "N K"], Float[Array, "N K R"]]:
        log_prob, score, factor = super().unit_terms(engine, outputs, y, state)
        return log_prob, score, engine.xp.where(y.mask[:, :, None], factor, 0.0)


_VARIANTS: dict[type[Likelihood], type[Likelihood]] = {
    Categorical: _MaskedCategorical,
    Gaussian: _MaskedGaussian,
    Bernoulli: _MaskedBernoulli,
}
