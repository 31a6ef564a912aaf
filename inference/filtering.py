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
from functools import partial
from typing import Any, NamedTuple

from jaxtyping import Bool, Float

from .dynamics import Dynamics, Hypotheses, Rates, Static
from .engines.base import Array, Engine, map_arrays, map_trees, take
from .influence import InverseMultiquadric
from .kinds import Place
from .likelihoods.base import Likelihood
from .network import Network
from .output_space import OutputSolution, OutputStep, own_covariance
from .structures.base import Structure
from .structures.mixture import Mixture, MixtureState
from .variational_step import VariationalStep

__all__ = ["FilterModel", "Posterior", "UpdateInfo", "filter_step", "pass_time"]

_HOPELESS = -1e10  # log predictive density of a member whose step would not be finite
_LARGEST_STEP = {"float32": 1e20, "float64": 1e200}


class Posterior(NamedTuple):
    """What is known.

    Attributes:
        weights: state of the structure, at unit dispersion.
        likelihood: state of the likelihood.
        dynamics: state of the dynamics; ``()`` where they have none.
    """

    weights: Any
    likelihood: Any
    dynamics: Any = ()


class UpdateInfo(NamedTuple):
    """What one step did.

    Attributes:
        log_predictive: Σ over the rows of the log predictive density before the batch was learned, in nats (the
            prequential score), whatever they weigh.
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
        influence: how much any one row may do; None: as much as the likelihood says.
        place: of the likelihood, where the posterior's likelihood state is a tuple of those of several kinds.
    """

    network: Network
    likelihood: Likelihood
    structure: Structure | Mixture
    dynamics: Dynamics = Static()
    step: OutputStep = VariationalStep()
    relinearizations: int = 0
    influence: InverseMultiquadric | None = None
    place: Place | None = None

    @property
    def of_member(self) -> Structure:
        """The structure of one posterior: of a mixture's members."""
        return self.structure.of if isinstance(self.structure, Mixture) else self.structure

    @property
    def of_one(self) -> FilterModel:
        """The same for one posterior alone: for a member of a mixture."""
        return replace(self, structure=self.of_member)

    def compile(self, engine: Engine) -> Callable[..., tuple[Posterior, UpdateInfo]]:
        """``step(posterior, prior, x, y, weight, elapsed)``: pure, compiled where the engine can."""
        return engine.jit(lambda *args: filter_step(engine, self, *args))

    def compile_in_place(self, engine: Engine) -> Callable[..., tuple[Posterior, UpdateInfo]]:
        """As :meth:`compile`, but the step takes over the memory of the posterior it is given."""
        return engine.jit(lambda *args: filter_step(engine.owning(), self, *args), donate=(0,))

    def compile_fold(self, engine: Engine) -> Callable[..., tuple[Posterior, UpdateInfo]]:
        """``fold(posterior, prior, x, y, weight, elapsed)``: many batches, one step each, in one dispatch.

        Every array has a leading axis of the batches, and so have the infos.
        """

        def fold(posterior: Posterior, prior: Any, *batches: Any) -> tuple[Posterior, UpdateInfo]:
            return engine.scan(lambda now, batch: filter_step(engine, self, now, prior, *batch), posterior, batches)

        return engine.jit(fold)

    def compile_passing(self, engine: Engine) -> Callable[..., Posterior]:
        """``pass_time(posterior, prior, elapsed)``: what :func:`pass_time` does, compiled where the engine can."""
        return engine.jit(lambda *args: pass_time(engine, self, *args))


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
    """One Bayes step on a batch: time passes, then the batch is learned.

    Args:
        engine: of the arrays; an owning engine writes into the posterior's memory.
        model: network, likelihood, structure and dynamics.
        posterior: before the batch.
        prior: state of the structure that the dynamics relax to; stacked for a mixture.
        x: inputs.
        y: targets, as the likelihood prepared them.
        weight: of each row, at least 0; rows of weight 0 are padding.
        elapsed: time since the last step, in the dynamics' unit; used only if the dynamics are not static.

    Returns:
        The posterior after the batch, and what the step did. Where it would not have been finite, the posterior is the
        one before, dynamics included, and ``info.ok`` is False.
    """
    learn = _learn_in_mixture if isinstance(model.structure, Mixture) else _learn_in_one
    return learn(engine, model, posterior, prior, (x, y, weight), elapsed)


def pass_time(engine: Engine, model: FilterModel, posterior: Posterior, prior: Any, elapsed: Array) -> Posterior:
    """The posterior after time without an event; nothing is learned. Arguments as for :func:`filter_step`."""
    if model.dynamics.is_static:
        return posterior
    if not isinstance(model.structure, Mixture):
        rates = model.dynamics.rates(engine, elapsed)
        return posterior._replace(weights=_transition(engine, model, posterior.weights, prior, rates))
    began, shared, each = _begin(engine, model, posterior, prior, elapsed)

    def relax(member: Any, own_prior: Any, own: Rates | None) -> Any:
        return _transition(engine, model, member, own_prior, own or shared)

    members = engine.batched(relax)(began.weights.members, prior, each)
    return began._replace(weights=began.weights._replace(members=members))


def _learn_in_one(
    engine: Engine, model: FilterModel, posterior: Posterior, prior: Any, batch: tuple[Array, ...], elapsed: Array
) -> tuple[Posterior, UpdateInfo]:
    """The step of a single Gaussian."""
    rates = None if model.dynamics.is_static else model.dynamics.rates(engine, elapsed)
    learned, info, _ = _learn(
        engine, model, posterior, _transition(engine, model, posterior.weights, prior, rates), batch
    )
    return learned, info


def _learn(
    engine: Engine,
    model: FilterModel,
    before: Posterior,
    weights: Any,
    batch: tuple[Array, ...],
    compared: bool = False,
) -> tuple[Posterior, UpdateInfo, Array]:
    """Learn a batch from weights that time has passed for; if it can't be learned, the posterior is the one before.

    The third result is the batch's evidence, where the posterior is compared with others.
    """
    alone = len(batch[0]) == 1 and model.network.engine_name is None
    if not alone or not model.of_member.is_light(weights):
        return _learned(engine, model, compared, before, weights, batch)
    passed = () if weights is before.weights else (weights,)

    def learned(own: Engine, now: Posterior, rows: tuple[Array, ...], *relaxed: Any) -> Any:
        return _learned(own, model, compared, now, relaxed[0] if relaxed else now.weights, rows)

    return engine.lightly(learned, before, batch, *passed)


def _learned(
    engine: Engine, model: FilterModel, compared: bool, before: Posterior, weights: Any, batch: tuple[Array, ...]
) -> tuple[Posterior, UpdateInfo, Array]:
    """As :func:`_learn`, by this very engine."""
    x, y, weight = batch
    structure = model.of_member
    mean = structure.mean(weights)
    solve = partial(_solve, model, _LARGEST_STEP[engine.dtype], compared)
    place, state = model.place, before.likelihood
    ratio: tuple[Any, ...] = ()
    if place is not None:
        state, other = place.state(before.likelihood), place.relative_dispersion(before.likelihood)
        ratio = () if other is None else (other,)

    def taken_in(at: Any) -> tuple[Any, Any, OutputSolution]:
        """The batch, with the network linearised around ``at``."""
        outputs, factors = _linearised(engine, model, x, mean, at)
        covariance, cross = structure.joint_covariances(engine, weights, factors)
        return factors, cross, engine.in_float64(solve, outputs, covariance, y, weight, state, *ratio)

    factors, cross, solution = taken_in(None)
    log_predictive, evidence = solution.log_predictive, solution.evidence
    for _ in range(model.relinearizations):
        own = replace(engine, in_place=False)
        moved = structure.shift(own, weights, factors, engine.cast(solution.residual))
        factors, cross, solution = taken_in(structure.mean(moved))
    solution = solution._replace(log_predictive=log_predictive)
    info = UpdateInfo(solution.log_predictive, solution.information, solution.iterations, solution.ok)

    def learned(own: Engine) -> Any:
        residual, fisher_factor = own.cast((solution.residual, solution.fisher_factor))
        return structure.learn(own, weights, factors, cross, residual, fisher_factor)

    if structure.learns_by_blocks and weights is before.weights:
        after = engine.guarded_blocks(solution.ok, learned, weights)
    else:
        after = engine.guarded(solution.ok, lambda: learned(engine), before.weights)

    def likelihood_after() -> Any:
        return solution.state if place is None else place.replaced(before.likelihood, solution.state)

    states = engine.guarded(solution.ok, likelihood_after, before.likelihood)
    return before._replace(weights=after, likelihood=states), info, evidence


def _learn_in_mixture(
    engine: Engine, model: FilterModel, posterior: Posterior, prior: Any, batch: tuple[Array, ...], elapsed: Array
) -> tuple[Posterior, UpdateInfo]:
    """The step of every member of a mixture; a member's weight is multiplied by its evidence, which is the batch's
    predictive density as far as the rows weigh and may do.

    The reported information is the members' average plus the KL divergence of the new weights from the old.
    """
    xp = engine.xp
    if posterior.weights.log_weights.shape[0] == 1 and not isinstance(model.dynamics, Hypotheses):
        return _learn_in_last_member(engine, model, posterior, prior, batch, elapsed)
    began, shared, each = _begin(engine, model, posterior, prior, elapsed)
    log_weights = began.weights.log_weights
    pure = replace(engine, in_place=False)  # a member may fail after others were written

    def step(member: Posterior, own_prior: Any, own: Rates | None) -> tuple[Posterior, UpdateInfo, Array]:
        relaxed = _transition(pure, model, member.weights, own_prior, own or shared)
        return _learn(pure, model, member, relaxed, batch, compared=True)

    members = Posterior(began.weights.members, began.likelihood)
    learned, infos, evidence = engine.batched(step)(members, prior, each)
    # What diverges is out, and keeps its posterior; it does not take the others along.
    densities, evidence = (xp.where(infos.ok, values, _HOPELESS) for values in (infos.log_predictive, evidence))
    gained = xp.where(infos.ok, infos.information, 0.0)
    assert isinstance(model.structure, Mixture)
    if model.structure.prune_below is not None:
        ok = xp.any(infos.ok)
    else:  # an event that most of the weight can't learn is refused, and nobody is out for it
        ok = xp.sum(xp.where(infos.ok, xp.exp(log_weights), 0.0)) > 0.5
    log_predictive = engine.logsumexp(log_weights + densities, axis=0)
    scored = log_weights + evidence
    after = scored - engine.logsumexp(scored, axis=0)
    shares = xp.exp(after)
    information = xp.sum(shares * (gained + after - log_weights))
    info = UpdateInfo(log_predictive, information, xp.max(infos.iterations), ok)
    dynamics = model.dynamics
    state = dynamics.after(engine, began.dynamics) if isinstance(dynamics, Hypotheses) else began.dynamics
    new = Posterior(MixtureState(learned.weights, after), learned.likelihood, state)
    return engine.guarded(info.ok, lambda: new, posterior), info


def _solve(
    model: FilterModel,
    largest: float,
    compared: bool,
    engine: Engine,
    f: Array,
    c: Array,
    y: Array,
    weight: Array,
    state: Any,
    ratio: Array | None = None,
) -> OutputSolution:
    """The output step, with the rows' influence bounded where that is asked for; the engine is of float64 arrays.

    Where the weights are held at ``ratio`` times the likelihood's dispersion, C is ``ratio`` times as large in the
    likelihood's units; in the weights', what was learned weighs ``ratio`` times as much: Λ⁻¹ Jᵀ (ratio · r) moves them,
    and (ratio · L Lᵀ) sharpens them. Both dispersions are at their estimates.
    """
    c = c if ratio is None else ratio * c
    bounds = None
    if model.influence is not None:
        own = own_covariance(engine, c, f) * model.likelihood.dispersion(state)
        bounds = model.influence.row_factors(engine, model.likelihood, f, own, y, state)
    solved = model.step.solve(
        engine, model.likelihood, largest, f, c, y, weight, state, influence=bounds, compared=compared
    )
    if ratio is None:
        return solved
    factor = engine.xp.sqrt(ratio) * solved.fisher_factor
    return solved._replace(residual=ratio * solved.residual, fisher_factor=factor)


def _linearised(engine: Engine, model: FilterModel, x: Array, mean: Any, at: Any) -> tuple[Array, Any]:
    """Outputs at the mean of the network linearised around ``at``, f + J (m - at), and its factors; None: the mean."""
    needed = model.of_member.uses_factors(model.network.num_layers)
    outputs, factors = model.network.factors(engine, mean if at is None else at, x, needed=needed)
    if at is None:
        return outputs, factors
    back = (m - a for m, a in zip(mean, at, strict=True))
    moves = (f.push_forward(engine, b[None])[:, :, 0] for f, b in zip(factors, back, strict=True) if f is not None)
    return sum(moves, start=outputs), factors


def _learn_in_last_member(
    engine: Engine, model: FilterModel, posterior: Posterior, prior: Any, batch: tuple[Array, ...], elapsed: Array
) -> tuple[Posterior, UpdateInfo]:
    """The step of a mixture of which one member is left: in its own memory, as for a single Gaussian."""
    only = take(Posterior(posterior.weights.members, posterior.likelihood), 0)
    learned, info = _learn_in_one(engine, model, only, None if prior is None else take(prior, 0), batch, elapsed)
    stacked = map_arrays(lambda array: array[None], learned)
    weights = MixtureState(stacked.weights, posterior.weights.log_weights)
    return posterior._replace(weights=weights, likelihood=stacked.likelihood), info


def _begin(
    engine: Engine, model: FilterModel, posterior: Posterior, prior: Any, elapsed: Array
) -> tuple[Posterior, Rates | None, Rates | None]:
    """What time does to the weights of hypotheses, who begins again at the prior; shared rates, or every member's."""
    dynamics = model.dynamics
    if not isinstance(dynamics, Hypotheses):
        return posterior, None if dynamics.is_static else dynamics.rates(engine, elapsed), None
    members, log_weights = posterior.weights
    passed = dynamics.before(engine, log_weights, posterior.dynamics, elapsed)
    likelihood = posterior.likelihood
    if passed.restarted is not None:
        likeliest = engine.xp.argmax(log_weights)
        members = _where(engine, passed.restarted, prior, members)
        kept = map_arrays(lambda values: values[likeliest], likelihood)
        likelihood = _where(engine, passed.restarted, kept, likelihood)
    began = Posterior(MixtureState(members, passed.log_weights), likelihood, passed.state)
    return began, None, dynamics.rates(engine, elapsed)


def _where(engine: Engine, chosen: Array, replacement: Any, members: Any) -> Any:
    """Stacked trees, with some members replaced."""

    def each(old: Array, new: Array) -> Array:
        return engine.xp.where(engine.xp.reshape(chosen, (-1,) + (1,) * (old.ndim - 1)), new, old)

    return map_trees(each, members, replacement)


def _transition(engine: Engine, model: FilterModel, weights: Any, prior: Any, rates: Rates | None) -> Any:
    """The dynamics' transition of one Gaussian; where there are no rates its weights stay."""
    if rates is None:
        return weights
    variances = model.of_member.marginal_variance(engine, prior)
    growth = tuple(rates.growth * variance for variance in variances)
    return model.of_member.transition(engine, weights, prior, rates.retention, growth)
