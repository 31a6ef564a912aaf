"""What a posterior knew at some inputs, kept up as a prior on functions.

Of a row whose outputs were once f₀, the tangent of its log likelihood there is all that the posterior has of it. What
the row says beyond the tangent is a Bregman divergence of the outputs f from f₀::

    D(f) = log p(y | f₀) - log p(y | f) + s₀ᵀ (f - f₀),    s₀ = ∇ log p(y | f₀)

It is 0 with slope 0 at f₀, whatever y is: a prediction that has not changed pulls at nothing. For exponential families
in their natural outputs (normal, classes, counts) it is the KL divergence of the prediction now from the one then.
Where the log likelihood is not concave (Student-t noise, predicted noise) it may cross its tangent, and D would fall
without bound. There that KL divergence is taken to second order::

    D(f) = ½ |Lᵀ (f - f₀)|²

with L Lᵀ the Fisher information then or now, whichever is smaller: a prediction that was best may have been too sure.
Pan et al. (2020), "Continual deep learning by functional regularisation of memorable past"; Khan and Swaroop (2021),
"Knowledge-adaptation priors".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from jaxtyping import Float

from .engines.base import Array, Engine
from .filtering import FilterModel, Posterior
from .influence import InverseMultiquadric
from .laplace_step import LaplaceStep
from .likelihoods.base import Likelihood
from .output_space import OutputProblem, own_covariance
from .structures.mixture import Mixture

__all__ = ["Outlook", "RememberedRows", "divergence", "outlook", "outlook_of", "rehearse"]

_LARGEST_MOVE = 1e10  # of a squared norm, in standard deviations of the outputs


class RememberedRows(NamedTuple):
    """Attributes:
    x: inputs, (M, I).
    y: targets, as the likelihood prepared them.
    outputs: f₀, (M, K); of the members of a mixture (M, members, K).
    weight: how many rows each stands for, (M,); 0 for padding.
    """

    x: Float[Array, "M I"]
    y: Array
    outputs: Float[Array, "M *members K"]
    weight: Float[Array, " M"]


class Outlook(NamedTuple):
    """How a posterior sees rows.

    Attributes:
        outputs: at the mean, (N, K); of the members of a mixture (N, members, K).
        log_prob: of y given these, at unit dispersion, (N,) or (N, members).
        leverage: tr(LᵀCL), what a row like it would tell on average, twice in nats to second order, (N,).
        surprise: sᵀCs, what this very row would tell; its average is the leverage, (N,).

    Leverage and surprise of a mixture are its members' averages. Where influence is bounded, a row counts for a share
    w of its log likelihood: its information is w L Lᵀ, its score w s. What is far from all that was expected then tells
    next to nothing.
    """

    outputs: Float[Array, "N *members K"]
    log_prob: Float[Array, "N ..."]
    leverage: Float[Array, " N"]
    surprise: Float[Array, " N"]


def divergence(
    engine: Engine, likelihood: Likelihood, outputs: Array, then: Array, y: Array, state: Any
) -> Float[Array, " M"]:
    """D of each row at unit dispersion; see the module.

    Args:
        engine: of the arrays.
        likelihood: the observation model.
        outputs: f, (M, K).
        then: f₀, (M, K).
        y: targets, as the likelihood prepared them.
        state: of the likelihood.
    """
    if not likelihood.is_concave:
        root = _least_root(engine, likelihood, then, engine.stop_gradient(outputs), y, state)
        return -_Remembered(then, root).log_prob(engine, outputs)
    tangent = likelihood.unit_score(engine, then, y, state)
    beyond = likelihood.unit_log_prob(engine, then, y, state) - likelihood.unit_log_prob(engine, outputs, y, state)
    return beyond + engine.xp.sum(tangent * (outputs - then), axis=-1)


def outlook_of(
    engine: Engine,
    likelihood: Likelihood,
    outputs: Array,
    covariance: Float[Array, "N K K"],
    y: Array,
    state: Any,
    influence: InverseMultiquadric | None = None,
) -> Outlook:
    """How rows are seen, given their outputs and these outputs' unit-dispersion covariance C.

    L Lᵀ is the Fisher information of the outputs, s the score of y; ``influence`` bounds what a row may do.
    """
    xp = engine.xp
    log_prob, score, factor = likelihood.unit_terms(engine, outputs, y, state)
    leverage = xp.sum(factor * (covariance @ factor), axis=(-2, -1))
    dispersion = likelihood.dispersion(state)
    surprise = xp.sum(score[:, None, :] @ covariance @ score[:, :, None], axis=(-2, -1)) / dispersion
    if influence is not None:
        share = influence.row_factors(engine, likelihood, outputs, covariance * dispersion, y, state).weight
        leverage, surprise = share * leverage, share * share * surprise
    return Outlook(outputs, log_prob, leverage, surprise)


def outlook(engine: Engine, model: FilterModel, posterior: Posterior, x: Array, y: Array) -> Outlook:
    """How a posterior sees rows."""
    if isinstance(model.structure, Mixture):
        members = Posterior(posterior.weights.members, posterior.likelihood)
        each = engine.batched(lambda member: outlook(engine, model.of_one, member, x, y))(members)
        return _averaged(engine, each, posterior.weights.log_weights)
    structure = model.of_member
    needed = structure.uses_factors(model.network.num_layers)
    outputs, factors = model.network.factors(engine, structure.mean(posterior.weights), x, needed=needed)
    covariance = structure.output_covariance(engine, posterior.weights, factors)

    def seen(wide: Engine, f: Array, c: Array, y: Array, state: Any) -> Outlook:
        return outlook_of(wide, model.likelihood, f, c, y, state, model.influence)

    return engine.in_float64(seen, outputs, covariance, y, _state(model, posterior))


def rehearse(
    engine: Engine, model: FilterModel, posterior: Posterior, rows: RememberedRows
) -> tuple[Posterior, Outlook]:
    """Move the mean by what brings remembered outputs back, in the posterior's metric; the precision stays.

    The mode of the posterior times exp(-Σ weight · D), with the network linearised at the mean: nothing new is learned,
    so that no precision is added, and where nothing was forgotten nothing moves.

    The members of a mixture rehearse each on its own, and keep their weights.

    Args:
        engine: of the arrays.
        model: network, likelihood and structure.
        posterior: of the weights and the likelihood.
        rows: that are remembered.

    Returns:
        The posterior, as it was where the move would not be finite; and how it saw the rows before.
    """
    if isinstance(model.structure, Mixture):
        return _rehearse_each(engine, model, posterior, rows)
    engine, structure = replace(engine, in_place=False), model.of_member
    needed = structure.uses_factors(model.network.num_layers)
    outputs, factors = model.network.factors(engine, structure.mean(posterior.weights), rows.x, needed=needed)
    covariance = structure.output_covariance(engine, posterior.weights, factors, joint=True)
    likelihood = model.likelihood

    def solve(wide: Engine, f: Array, c: Array, y: Array, then: Array, weight: Array, state: Any) -> Any:
        xp = wide.xp
        pull: Any = _Tilted(likelihood) if likelihood.is_concave else _Quadratic()
        targets: Any
        if likelihood.is_concave:
            targets = _TiltedTargets(y, likelihood.unit_score(wide, then, y, state))
        else:
            targets = _Remembered(then, _least_root(wide, likelihood, then, f, y, state))
        residual = LaplaceStep().site(wide, pull, OutputProblem(f, c, targets, weight, state)).residual
        size = residual @ (c @ residual)
        ok = xp.isfinite(size) & (size <= _LARGEST_MOVE)
        before = outlook_of(wide, likelihood, f, own_covariance(wide, c, f), y, state, model.influence)
        return xp.reshape(residual, f.shape), ok, before

    state = _state(model, posterior)
    residual, ok, before = engine.in_float64(solve, outputs, covariance, rows.y, rows.outputs, rows.weight, state)

    def moved() -> Posterior:
        return posterior._replace(weights=structure.shift(engine, posterior.weights, factors, engine.cast(residual)))

    return engine.guarded(ok, moved, posterior), before


def _rehearse_each(
    engine: Engine, model: FilterModel, posterior: Posterior, rows: RememberedRows
) -> tuple[Posterior, Outlook]:
    mixture = posterior.weights

    def rehearsed(member: Posterior, outputs: Array) -> tuple[Posterior, Outlook]:
        return rehearse(engine, model.of_one, member, rows._replace(outputs=outputs))

    members = Posterior(mixture.members, posterior.likelihood)
    after, each = engine.batched(rehearsed)(members, engine.xp.moveaxis(rows.outputs, 1, 0))
    weights = mixture._replace(members=after.weights)
    return posterior._replace(weights=weights), _averaged(engine, each, mixture.log_weights)


def _averaged(engine: Engine, each: Outlook, log_weights: Float[Array, " members"]) -> Outlook:
    """The outlook of a mixture, from its members' with a leading axis."""
    xp, shares = engine.xp, engine.xp.exp(log_weights)
    outputs, log_prob = xp.moveaxis(each.outputs, 0, 1), xp.moveaxis(each.log_prob, 0, 1)
    return Outlook(outputs, log_prob, shares @ each.leverage, shares @ each.surprise)


def _state(model: FilterModel, posterior: Posterior) -> Any:
    return posterior.likelihood if model.place is None else model.place.state(posterior.likelihood)


class _TiltedTargets(NamedTuple):
    """Targets, and the tangent that is taken off their log probability."""

    y: Array
    tangent: Float[Array, "N K"]


@dataclass(frozen=True)
class _Tilted:
    """What a :class:`LaplaceStep` asks of a likelihood, for exp(-D)."""

    likelihood: Likelihood

    def unit_terms(self, engine: Engine, outputs: Array, y: _TiltedTargets, state: Any) -> tuple[Array, Array, Array]:
        log_prob, score, factor = self.likelihood.unit_terms(engine, outputs, y.y, state)
        return log_prob - engine.xp.sum(y.tangent * outputs, axis=-1), score - y.tangent, factor

    def observed_information(self, engine: Engine, outputs: Array, y: _TiltedTargets, state: Any) -> Array | None:
        return self.likelihood.observed_information(engine, outputs, y.y, state)


class _Remembered(NamedTuple):
    """Outputs f₀ that are to come back, (M, K), and a root L of the information that weighs them, (M, K, R)."""

    outputs: Array
    root: Array

    def error(self, engine: Engine, outputs: Array) -> Float[Array, "M R"]:
        """Lᵀ (f₀ - f)."""
        return engine.xp.sum(self.root * (self.outputs - outputs)[:, :, None], axis=1)

    def log_prob(self, engine: Engine, outputs: Array) -> Float[Array, " M"]:
        """-½ |Lᵀ (f₀ - f)|²."""
        error = self.error(engine, outputs)
        return -0.5 * engine.xp.sum(error * error, axis=-1)


def _least_root(
    engine: Engine, likelihood: Likelihood, then: Array, now: Array, y: Array, state: Any
) -> Float[Array, "M K R"]:
    """L of the smaller Fisher information of a row, then or now."""
    roots = [likelihood.unit_terms(engine, outputs, y, state)[2] for outputs in (then, now)]
    sizes = [engine.xp.sum(root * root, axis=(1, 2), keepdims=True) for root in roots]
    return engine.xp.where(sizes[0] <= sizes[1], *roots)


class _Quadratic:
    """What a :class:`LaplaceStep` asks of a likelihood, for exp(-D) to second order."""

    def unit_terms(self, engine: Engine, outputs: Array, y: _Remembered, state: Any) -> tuple[Array, Array, Array]:
        score = engine.xp.sum(y.root * y.error(engine, outputs)[:, None, :], axis=-1)
        return y.log_prob(engine, outputs), score, y.root

    def observed_information(self, engine: Engine, outputs: Array, y: _Remembered, state: Any) -> None:
        """Fisher's."""
