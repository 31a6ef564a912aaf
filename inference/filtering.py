"""The online Bayes step: how a posterior takes in one more batch.

One step linearises the network at the mean, takes the observation in among the outputs (:mod:`.output_space`), moves
every block of weights with its old precision and then adds what was learned to the precision. With a
:class:`.KalmanStep` it is the extended Kalman filter, with a :class:`.LaplaceStep` online Gauss-Newton Laplace, and
with a :class:`.VariationalStep` the recursive variational Gaussian approximation of the linearised model, or Bayesian
online natural gradient (Jones, Chang and Murphy 2024, "Bayesian online natural gradient"; Ollivier 2018, "Online
natural gradient as a Kalman filter").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from jaxtyping import Bool, Float

from .dynamics import Dynamics, Static
from .engines.base import Array, Engine, map_arrays, take
from .kinds import Place
from .likelihoods.base import Likelihood
from .network import Network
from .output_space import OutputSolution, OutputStep, solve_at_another_dispersion
from .structures.base import Structure
from .structures.mixture import Mixture, MixtureState
from .variational_step import VariationalStep

__all__ = ["FilterModel", "Posterior", "UpdateInfo", "filter_step"]

_LARGEST_STEP = {"float32": 1e20, "float64": 1e200}


class Posterior(NamedTuple):
    """What is known.

    Attributes:
        weights: state of the structure, at unit dispersion.
        likelihood: state of the likelihood.
    """

    weights: Any
    likelihood: Any


class UpdateInfo(NamedTuple):
    """What one step did.

    Attributes:
        log_predictive: log predictive density of the batch before it was learned, in nats (the prequential score).
        information: information gained, in nats; see :class:`~.output_space.OutputSolution`.
        iterations: taken in output space.
        ok: False if the step would not have been finite; then the posterior is the one before.
    """

    log_predictive: Float[Array, ""]
    information: Float[Array, ""]
    iterations: Float[Array, ""]
    ok: Bool[Array, ""]


@dataclass(frozen=True)
class FilterModel:
    """Everything about a step that is not an array: network, likelihood, structure, dynamics.

    Args:
        network: the network.
        likelihood: the observation model.
        structure: form of the posterior, resolved for the network.
        dynamics: what happens to the weights before each step.
        step: how the outputs take an observation in.
        relinearizations: how often a batch is taken in again, with the network linearised at the mean that it led to
            (the iterated extended Kalman filter; Bell and Cathey 1993).
        place: of the likelihood, where the posterior's likelihood state is a tuple of those of several kinds.
    """

    network: Network
    likelihood: Likelihood
    structure: Structure | Mixture
    dynamics: Dynamics = Static()
    step: OutputStep = VariationalStep()
    relinearizations: int = 0
    place: Place | None = None

    @property
    def of_member(self) -> Structure:
        """The structure of one posterior: of a mixture's members."""
        return self.structure.of if isinstance(self.structure, Mixture) else self.structure

    def compile(self, engine: Engine) -> Callable[..., tuple[Posterior, UpdateInfo]]:
        """``step(posterior, prior, x, y, weight, elapsed)``: pure, compiled where the engine can."""
        return engine.jit(lambda *args: self._step(engine, *args))

    def compile_in_place(self, engine: Engine) -> Callable[..., tuple[Posterior, UpdateInfo]]:
        """As :meth:`compile`, but the step takes over the memory of the posterior it is given."""
        return engine.jit(lambda *args: self._step(engine.owning(), *args), donate=(0,))

    def _step(self, engine: Engine, *args: Any) -> tuple[Posterior, UpdateInfo]:
        if isinstance(self.structure, Mixture):
            return mixture_step(engine, self, *args)
        return filter_step(engine, self, *args)


def filter_step(
    engine: Engine,
    model: FilterModel,
    posterior: Posterior,
    prior: Any,
    x: Float[Array, "N I"],
    y: Array,
    weight: Float[Array, " N"],
    elapsed: Float[Array, ""],
) -> tuple[Posterior, UpdateInfo]:
    """One Bayes step on a batch.

    Args:
        engine: of the arrays; an owning engine writes into the posterior's memory.
        model: network, likelihood, structure (of one member, if it is a mixture) and dynamics.
        posterior: before the batch.
        prior: state of the structure that the dynamics relax to.
        x: inputs.
        y: targets, as the likelihood prepared them.
        weight: of each row, at least 0; rows of weight 0 are padding.
        elapsed: time since the last step, in the dynamics' unit; used only if the dynamics are not static.

    Returns:
        The posterior after the batch, and what the step did. Where it would not have been finite, the posterior is the
        one before, dynamics included, and ``info.ok`` is False.
    """
    structure = model.of_member
    weights = posterior.weights
    if not model.dynamics.is_static:
        weights = _relax(engine, model, weights, prior, elapsed)
    mean = structure.mean(weights)
    place, state, ratio = model.place, posterior.likelihood, None
    if place is not None:
        state, ratio = place.state(posterior.likelihood), place.relative_dispersion(posterior.likelihood)
    own_ratio = () if ratio is None else (ratio,)

    def small(small_engine: Engine, *arrays: Any) -> Any:
        step, largest = model.step, _LARGEST_STEP[engine.dtype]
        if ratio is None:
            return step.solve(small_engine, model.likelihood, largest, *arrays)
        return solve_at_another_dispersion(step, small_engine, model.likelihood, largest, *arrays)

    def taken_in(at: Any) -> tuple[Any, OutputSolution]:
        """The batch, with the network linearised around ``at``."""
        outputs, factors = _linearised(engine, model, x, mean, at)
        covariance = structure.output_covariance(engine, weights, factors, joint=True)
        return factors, engine.in_float64(small, *own_ratio, outputs, covariance, y, weight, state)

    factors, solution = taken_in(None)
    log_predictive = solution.log_predictive
    for _ in range(model.relinearizations):
        own = replace(engine, in_place=False)
        moved = structure.shift(own, weights, factors, engine.cast(solution.residual))
        factors, solution = taken_in(structure.mean(moved))
    solution = solution._replace(log_predictive=log_predictive)
    info = UpdateInfo(solution.log_predictive, solution.information, solution.iterations, solution.ok)

    def learned() -> Posterior:
        moved = structure.shift(engine, weights, factors, engine.cast(solution.residual))
        sharpened = structure.add_precision(engine, moved, factors, engine.cast(solution.fisher_factor))
        states = solution.state if place is None else place.replaced(posterior.likelihood, solution.state)
        return Posterior(sharpened, states)

    return engine.guarded(solution.ok, learned, posterior), info


def mixture_step(
    engine: Engine,
    model: FilterModel,
    posterior: Posterior,
    prior: Any,
    x: Float[Array, "N I"],
    y: Array,
    weight: Float[Array, " N"],
    elapsed: Float[Array, ""],
) -> tuple[Posterior, UpdateInfo]:
    """One Bayes step of every member of a mixture; a member's weight is multiplied by its predictive density.

    Arguments as in :func:`filter_step`; ``prior`` is stacked. The reported information
    is the members' average plus the KL divergence of the new weights from the old.
    """
    xp = engine.xp
    log_weights = posterior.weights.log_weights
    if log_weights.shape[0] == 1:  # in place, as for a single posterior
        alone = posterior._replace(weights=posterior.weights.members)
        rest = None if prior is None else take(prior, 0)
        one, info = filter_step(engine, model, take(alone, 0), rest, x, y, weight, elapsed)
        stacked = map_arrays(lambda array: array[None], one)
        return stacked._replace(weights=MixtureState(stacked.weights, log_weights)), info
    own = replace(engine, in_place=False)  # a member may fail after others were written

    def step(member: Posterior, relaxed: Any) -> tuple[Posterior, UpdateInfo]:
        return filter_step(own, model, member, relaxed, x, y, weight, elapsed)

    members = posterior._replace(weights=posterior.weights.members)
    learned, infos = engine.batched(step)(members, prior)
    scored = log_weights + infos.log_predictive
    log_predictive = engine.logsumexp(scored, axis=0)
    after = scored - log_predictive
    shares = xp.exp(after)
    information = xp.sum(shares * (infos.information + after - log_weights))
    info = UpdateInfo(log_predictive, information, xp.max(infos.iterations), xp.all(infos.ok))
    new = learned._replace(weights=MixtureState(learned.weights, after))
    return engine.guarded(info.ok, lambda: new, posterior), info


def _linearised(engine: Engine, model: FilterModel, x: Array, mean: Any, at: Any) -> tuple[Array, Any]:
    """Outputs at the mean of the network linearised around ``at``, f + J (m - at), and its factors; None: the mean."""
    needed = model.of_member.uses_factors(model.network.num_layers)
    outputs, factors = model.network.factors(engine, mean if at is None else at, x, needed=needed)
    if at is None:
        return outputs, factors
    back = (m - a for m, a in zip(mean, at, strict=True))
    moves = (f.push_forward(engine, b[None])[:, :, 0] for f, b in zip(factors, back, strict=True) if f is not None)
    return sum(moves, start=outputs), factors


def _relax(engine: Engine, model: FilterModel, weights: Any, prior: Any, elapsed: Array) -> Any:
    """The dynamics' transition."""
    retention = model.dynamics.retention(elapsed)
    variances = model.of_member.marginal_variance(engine, prior)
    growth = tuple((1 - retention * retention) * variance for variance in variances)
    return model.of_member.transition(engine, weights, prior, retention, growth)
