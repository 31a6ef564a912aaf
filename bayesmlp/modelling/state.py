"""What a model is made of, and what it knows."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..answering import Answering
from ..inference.assembly import mixture_of
from ..inference.checks import check_count
from ..inference.dynamics import Dynamics, Hypotheses, Static
from ..inference.engines import Engine, get_engine, map_arrays
from ..inference.engines.base import stack_trees, take
from ..inference.errors import InvalidInput, MissingDependency, NotFitted
from ..inference.filtering import FilterModel, Posterior
from ..inference.influence import InverseMultiquadric
from ..inference.kinds import Choice, Kind, Place, view_of
from ..inference.likelihoods import Likelihood
from ..inference.likelihoods.masked import masked
from ..inference.memory import Memory, MemoryState
from ..inference.methods import state_arrays
from ..inference.network import Network
from ..inference.output_space import OutputStep
from ..inference.priors import NormalPrior
from ..inference.structures import LastLayer, Mixture, Structure
from ..inference.structures.particles import Particles, ParticlesState
from ..inference.variational_step import VariationalStep
from ..kinds import resolve_kinds
from ..scaling import Scaling
from .clock import Clock

__all__ = ["ModelState", "default_engine"]

_log = logging.getLogger(__name__)


class ModelState:
    """Settings, and the posterior in its forms; :class:`~..model.BayesianMLP` is what users see."""

    def __init__(
        self,
        network: Network,
        likelihood: Likelihood | None = None,
        *,
        feedback: Mapping[str, Kind | Likelihood | Choice] | None = None,
        prior: NormalPrior | None = None,
        structure: Structure | Mixture | None = None,
        dynamics: Dynamics | None = None,
        step: OutputStep | None = None,
        relinearizations: int = 0,
        influence: InverseMultiquadric | None = None,
        memory: Memory | None = None,
        engine: str | Engine | None = None,
        dtype: str | None = None,
        standardize: bool | None = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(network, Network):
            raise InvalidInput(
                f"network must be an MLP, or a module given to bayesmlp.layers' bayesianize, got {network!r}"
            )
        self.kinds, likelihood = resolve_kinds(network, likelihood, feedback)
        _check_parts(likelihood, prior, structure, dynamics, step, influence, memory)
        _check_counts(seed, relinearizations)
        self.network = network
        self.likelihood = likelihood
        self._total_outputs = max((max(kind.columns) + 1 for kind in self.kinds.values()), default=0)
        first = next(iter(self.kinds.values()), None)
        self._seen = network if first is None else view_of(network, first, self._total_outputs)
        self.prior = prior or NormalPrior()
        self.structure = structure or network.default_structure()
        self.dynamics = dynamics or Static()
        self.step = step or VariationalStep()
        self.relinearizations = relinearizations
        self.influence = influence
        self.memory = memory
        self.memory_state: MemoryState | None = None
        """What is remembered; None where nothing is."""
        if dtype is None and not isinstance(engine, Engine):
            dtype = "float32"
        self.engine = _engine_for(network, engine, dtype)
        if not isinstance(standardize, bool | np.bool_ | None):
            raise InvalidInput(f"standardize must be True, False or None, got {standardize!r}")
        self.standardize = network.standardize_by_default if standardize is None else bool(standardize)
        if self.standardize and network.num_tokens is not None:
            raise InvalidInput("standardize must be off for a network whose inputs are tokens")
        self.seed = seed
        self.history: list[float] = []
        """Mean objective per row for each epoch of the last fit."""
        self.fit_details: dict[str, Any] = {}
        """What the last fit's method has to say of itself: ``terms`` has objective, log likelihood and complexity per
        row for each epoch (for variational weights the terms of the negative ELBO); the rest depends on the method."""
        self._num_inputs: int | None = None
        self._scaling: Scaling | None = None
        self._posterior: Posterior | None = None
        self._prior_state: Any = None
        self.newest_time: float | None = None
        """Of the events so far, in seconds since the epoch; kept where the dynamics have a ``time_unit``."""
        self._compiled: dict[str, Any] = {}
        self._split: tuple[Any, list[Posterior]] = (None, [])
        self._resolved: Structure | Mixture | Particles = self._resolve(self.structure)
        self._fitted_prior = self.prior
        self._seen.check_prior(self.prior, network.inputs_per_row, likelihood.num_outputs)

    def __repr__(self) -> str:
        state = "no data yet" if self._posterior is None else f"{self._num_inputs} inputs"
        return f"BayesianMLP({self.network}, {self.likelihood}, {self.structure}, engine={self.engine.name!r}, {state})"

    @property
    def num_inputs(self) -> int:
        """Number of inputs; raises :class:`NotFitted` before any data."""
        if self._num_inputs is None:
            raise NotFitted("the model has seen no data: call fit or update first")
        return self._num_inputs

    @property
    def scaling(self) -> Scaling:
        """Standardisation of inputs and targets; raises :class:`NotFitted` before any data."""
        self.num_inputs  # noqa: B018 (raises)
        assert self._scaling is not None
        return self._scaling

    @property
    def known_scaling(self) -> Scaling | None:
        """:attr:`scaling`, or None before any data."""
        return self._scaling

    @property
    def posterior(self) -> Posterior:
        """The posterior, as an immutable value; raises :class:`NotFitted` before any data."""
        self.num_inputs  # noqa: B018 (raises)
        assert self._posterior is not None
        return self._posterior

    def _resolve(self, structure: Structure | Mixture) -> Structure | Mixture:
        """The structure over all of the network's arrays."""
        if isinstance(structure, Mixture):
            return replace(structure, of=self.network.resolve(structure.of))
        return self._of_hypotheses(self.network.resolve(structure))

    def _of_hypotheses(self, structure: Structure | Mixture) -> Structure | Mixture:
        """A mixture of the structure, one member for each hypothesis of the dynamics, where they have some."""
        if isinstance(structure, Mixture) or not isinstance(self.dynamics, Hypotheses):
            return structure
        return Mixture(structure, self.dynamics.num_hypotheses)

    @property
    def _form(self) -> Structure | Mixture | Particles:
        """The structure that was asked for, or the mixture or the particles that a method has made of it."""
        if isinstance(self._resolved, Particles):
            assert isinstance(self.structure, Structure)
            return replace(self._resolved, of=self.structure)
        if isinstance(self.structure, Mixture) or not isinstance(self._resolved, Mixture):
            return self.structure
        if isinstance(self.dynamics, Hypotheses):
            return self.structure
        return replace(self._resolved, of=self.structure)

    @property
    def _base(self) -> Structure:
        """Structure of one Gaussian: of a member, or beside draws."""
        return self._resolved.of if isinstance(self._resolved, Mixture | Particles) else self._resolved

    @property
    def prior_state(self) -> Any:
        """The structure's state that the dynamics relax to; None where the dynamics are static."""
        return self._prior_state

    def set_posterior(self, posterior: Posterior) -> None:
        """Take over a posterior of this very model."""
        self.num_inputs  # noqa: B018 (raises)
        self._posterior = posterior

    @property
    def clock(self) -> Clock:
        """A clock that starts at the posterior."""
        return Clock(self.dynamics.time_unit, self.newest_time)

    def elapsed_until(self, time: float | None) -> float:
        """Units of the dynamics that pass until an event: 1 where they count events, else by the time stamps.

        Args:
            time: of the event, in seconds since the epoch; see :class:`Clock`.
        """
        return self.clock.until(time)

    def note_time(self, time: float | None) -> None:
        """An event of that time was learned."""
        clock = self.clock
        clock.advance(time)
        self.newest_time = clock.newest

    @property
    def filter_model(self) -> FilterModel:
        """Everything about an update that is not an array."""
        return FilterModel(
            self._seen,
            self.scaled_likelihood,
            self._resolved.of if isinstance(self._resolved, Particles) else self._resolved,
            self.dynamics,
            self.step,
            self.relinearizations,
            self.influence,
            self._place(0),
        )

    def filter_model_of(self, kind: str | None = None, items: int = 1, has_mask: bool = False) -> FilterModel:
        """As :attr:`filter_model`, for a kind of feedback whose rows hold so many items."""
        index = 0 if kind is None else list(self.kinds).index(kind)
        if index == 0 and items == 1:
            plain = self.filter_model
            return replace(plain, likelihood=masked(plain.likelihood)) if has_mask else plain
        chosen = self.kinds[str(kind)]
        likelihood = chosen.model_of(items)
        network = view_of(self.network, chosen, self._total_outputs, items)
        if has_mask:
            likelihood = masked(likelihood)
        return replace(self.filter_model, network=network, likelihood=likelihood, place=self._place(index))

    def _place(self, index: int) -> Place | None:
        if not self.kinds:
            return None
        of_kind = list(self.kinds.values())[index].stateful
        scaled = self.scaled_likelihood
        return Place(index, scaled if index == 0 else of_kind, scaled)

    def _with_other_kinds(self, state: Any, members: int | None = None) -> Any:
        """The first kind's state, and with it the others' before any feedback; for each member of a mixture."""
        if not self.kinds:
            return state
        others = [kind.stateful.initial_state() for kind in [*self.kinds.values()][1:]]
        if members is not None:
            others = [map_arrays(lambda value: np.stack([value] * members), other) for other in others]
        return (state, *(state_arrays(self.engine, other) for other in others))

    @property
    def scaled_likelihood(self) -> Likelihood:
        """The likelihood in the units of the scaled targets; raises :class:`NotFitted` before any data."""
        return self.likelihood.in_units_of(self.scaling.target_scale)

    def mean_weights(self) -> tuple[np.ndarray, ...]:
        """Posterior mean of each layer's weights, (inputs + 1, outputs); the last row is the bias.

        A mixture has one for each member: (members, inputs + 1, outputs).
        """
        return self._of_each_member(lambda posterior: self._base.mean(posterior.weights))

    def weight_variances(self) -> tuple[np.ndarray, ...]:
        """Posterior variance of each weight, in the shapes of :meth:`mean_weights`."""
        engine, structure = self.engine, self._base

        def variances(posterior: Posterior) -> Any:
            dispersion = self._answering.dispersion(posterior)
            with engine.scope():
                return tuple(v * dispersion for v in structure.marginal_variance(engine, posterior.weights))

        return self._of_each_member(variances)

    def _of_each_member(self, function: Callable[[Posterior], Any]) -> tuple[np.ndarray, ...]:
        values = [map_arrays(self.engine.to_numpy, function(posterior)) for posterior in self._members()[0]]
        return tuple(np.stack(layers) if len(layers) > 1 else layers[0] for layers in zip(*values, strict=True))

    def _set(self, num_inputs: int, scaling: Scaling, posterior: Posterior) -> None:
        self._num_inputs, self._scaling, self._posterior = num_inputs, scaling, posterior
        self._prior_state = self.newest_time = self.memory_state = None
        self._compiled = {}  # a step closes over the likelihood in the units of the scaling
        if not self.dynamics.is_static:  # forgetting relaxes to where learning began, with the prior's variance
            self._prior_state = self._relaxed_state()

    def _gaussian(self, posterior: Posterior) -> Posterior:
        """The Gaussian that stands for draws; any other posterior as it is."""
        weights = posterior.weights
        return posterior._replace(weights=weights.gaussian) if isinstance(weights, ParticlesState) else posterior

    def posterior_after(self, elapsed: float) -> Posterior:
        """The posterior when so many units of the dynamics have passed without an event; the model stays as it is."""
        if elapsed == 0 or self.dynamics.is_static:
            return self.posterior
        pass_time = self._cached("pass time", lambda: self.filter_model.compile_passing(self.engine))
        span = self.engine.as_batch(np.asarray(elapsed, dtype=np.float64))
        return pass_time(self._gaussian(self.posterior), self._prior_state, span)

    def _members(self, posterior: Posterior | None = None) -> tuple[list[Posterior], np.ndarray]:
        """A posterior's Gaussians, one where it is no mixture, and the logarithms of their weights."""
        posterior = self._gaussian(posterior or self.posterior)
        if not isinstance(self._resolved, Mixture):
            return [posterior], np.zeros(1)
        if self._split[0] is not posterior:
            stacked = Posterior(posterior.weights.members, posterior.likelihood)
            with self.engine.scope():
                count = posterior.weights.log_weights.shape[0]
                self._split = posterior, [take(stacked, member) for member in range(count)]
        return self._split[1], self.engine.to_numpy(posterior.weights.log_weights)

    def _cached(self, name: str, build: Callable[[], Any]) -> Any:
        if name not in self._compiled:
            self._compiled[name] = build()
        return self._compiled[name]

    def _relaxed_state(self) -> Any:
        """What the dynamics relax to; for a mixture, each member's own, stacked."""
        states = []
        members = self._members()[0]
        scales = self._resolved.scales if isinstance(self._resolved, Mixture) else None
        if scales is None or len(scales) != len(members):  # as many as a fit has made
            scales = (1.0,) * len(members)
        for scale, posterior in zip(scales, members, strict=True):
            dispersion = self._answering.dispersion(posterior)
            weights = posterior.weights
            states.append(self._independent(self._base.mean(weights), self.num_inputs, dispersion, weights, scale))
        if not isinstance(self._resolved, Mixture):
            return states[0]
        with self.engine.scope():
            return stack_trees(self.engine.xp.stack, states)

    def project(self) -> float | None:
        """Put the Gaussian that stands for a sampler's draws in their place, as the first update does.

        Returns:
            Its distance from the draws: the Wasserstein distance between the outputs of both, linearised, averaged over
            the data and inputs near them, in scaled units. None where the posterior is no draws.
        """
        if not isinstance(self._resolved, Particles):
            return None
        posterior = self.posterior
        distance = float(self.engine.to_numpy(posterior.weights.distance))
        _log.info("the posterior's %d draws become a Gaussian at a distance of %.3g", self._resolved.size, distance)
        self._resolved = self._resolved.of
        self._posterior = self._gaussian(posterior)
        return distance

    def _under_hypotheses(self, posterior: Posterior) -> Posterior:
        """A posterior under every hypothesis of the dynamics, where they have some."""
        dynamics = self.dynamics
        if not isinstance(dynamics, Hypotheses):
            return posterior
        members = [posterior] * dynamics.num_hypotheses
        spread = mixture_of(self.engine, members, np.log(dynamics.initial_weights()))
        return spread._replace(dynamics=state_arrays(self.engine, dynamics.initial_state()))

    def _independent(self, mean: Any, num_inputs: int, dispersion: float, like: Any = None, scale: float = 1.0) -> Any:
        """A member's state with the prior's precision, at unit dispersion, around a mean."""
        engine, structure = self.engine, self._base
        own_prior = self._fitted_prior.times(scale)
        prior = self._seen.prior_precision(own_prior, num_inputs, self.likelihood.num_outputs)
        with engine.scope():
            means = tuple(engine.asarray(matrix) for matrix in mean)
            precisions = tuple(engine.asarray(p * dispersion) for p in prior)
            if like is None:
                return structure.initial(engine, means, precisions)
            return structure.initial_like(engine, like, means, precisions)

    @property
    def particles(self) -> Particles | None:
        """Chains and draws of a sampler's posterior; None for any other."""
        return self._resolved if isinstance(self._resolved, Particles) else None

    @property
    def _answering(self) -> Answering:
        return self._cached(
            "answering",
            lambda: Answering(self.engine, self._seen, self._base, self.scaled_likelihood, self._place(0)),
        )


def _check_parts(
    likelihood: Any, prior: Any, structure: Any, dynamics: Any, step: Any, influence: Any, memory: Any
) -> None:
    """Raise :class:`InvalidInput` for a part of another kind, and for parts that do not go together."""
    parts: tuple[tuple[str, Any, Any], ...] = (
        ("likelihood", likelihood, Likelihood),
        ("prior", prior or NormalPrior(), NormalPrior),
        ("structure", structure or LastLayer(), Structure | Mixture),
        ("dynamics", dynamics or Static(), Dynamics),
        ("step", step or VariationalStep(), OutputStep),
    )
    for name, value, kind in parts:
        if not isinstance(value, kind):
            raise InvalidInput(f"{name} must be a {getattr(kind, '__name__', 'Structure')}, got {value!r}")
    if not isinstance(influence, InverseMultiquadric | None):
        raise InvalidInput(f"influence must be an InverseMultiquadric or None, got {influence!r}")
    if not isinstance(memory, Memory | None):
        raise InvalidInput(f"memory must be a Memory or None, got {memory!r}")
    if memory is not None and isinstance(dynamics, Hypotheses):
        raise InvalidInput(f"memory is for static dynamics or one rate of forgetting, not for {dynamics}")
    if isinstance(dynamics, Hypotheses) and isinstance(structure, Mixture):
        raise InvalidInput(f"structure must be of one Gaussian: {dynamics} makes a mixture of its own of it")


def _check_counts(seed: Any, relinearizations: Any) -> None:
    check_count("seed", seed, 0)
    check_count("relinearizations", relinearizations, 0)


def _engine_for(network: Network, engine: str | Engine | None, dtype: str | None) -> Engine:
    """The engine, if the network runs on it."""
    chosen = get_engine((network.engine_name or default_engine()) if engine is None else engine, dtype)
    if network.engine_name not in (None, chosen.name.partition(":")[0]):
        raise InvalidInput(f"engine must be {network.engine_name!r} for {network!r}, got {chosen.name!r}")
    return chosen


def default_engine() -> str:
    """``"torch"`` where it is installed, else ``"jax"``."""
    for framework in ("torch", "jax"):
        if importlib.util.find_spec(framework) is not None:
            return framework
    raise MissingDependency("torch or jax", "torch")
