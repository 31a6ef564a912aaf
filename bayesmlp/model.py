"""A Bayesian network: fit, update, predict."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from .answering import Answering
from .checkpoint import FileCheckpoint, fit_digest
from .functions import FUNCTION_METHODS, FunctionSamples
from .inference.assembly import AsMarked, LayerMethod, mixture_of
from .inference.dynamics import Dynamics, Hypotheses, Static
from .inference.engines import Engine, get_engine, map_arrays
from .inference.engines.base import stack_trees, take
from .inference.ensemble import Ensemble
from .inference.errors import InvalidInput, MissingDependency, NotFitted, NumericalFailure
from .inference.filtering import FilterModel, Posterior, UpdateInfo
from .inference.influence import InverseMultiquadric
from .inference.kinds import Choice, Kind, Place, view_of
from .inference.likelihoods import Likelihood
from .inference.likelihoods.masked import MaskedTargets, masked
from .inference.memory import Memory, MemoryState
from .inference.methods import FitProblem, FitResult, Method, state_arrays
from .inference.network import Network
from .inference.output_space import OutputStep
from .inference.priors import NormalPrior
from .inference.sampling.base import Sampler
from .inference.spec import from_spec, to_spec
from .inference.stacking import Stacking
from .inference.structured_variational import StructuredVariational
from .inference.structures import LastLayer, Mixture, Structure
from .inference.structures.base import chunk_rows
from .inference.structures.mixture import MixtureState
from .inference.structures.particles import Particles, ParticlesState
from .inference.variational_step import VariationalStep
from .inference_data import inference_data
from .kinds import check_items, observed_kind, resolve_kinds, scaled_items
from .layers.conversion import restore_network
from .masking import check_labels_possible, check_output_mask, fill_unobserved
from .predictive import APPROXIMATIONS, JointOutputs, Predictive
from .programs import Program, program_of
from .progress import fit_progress
from .rehearsal import learn_by_heart, offer
from .reweighting import reweighted, thinned
from .sampled import SampledAnswers
from .scaling import Scaling
from .validation import as_host_array, check_inputs, check_weights

if TYPE_CHECKING:
    from .consolidation import Consolidate, Consolidation

__all__ = ["BayesianMLP", "default_engine"]

_log = logging.getLogger(__name__)

_ROWS_OF_A_FOLD = 128
PREDICTION_METHODS = ("linearized", "samples", "mean")


def default_engine() -> str:
    """``"torch"`` where it is installed, else ``"jax"``."""
    for framework in ("torch", "jax"):
        if importlib.util.find_spec(framework) is not None:
            return framework
    raise MissingDependency("torch or jax", "torch")


class BayesianMLP:
    """A multi-layer perceptron, or a network of the user's own, with a posterior over its weights.

    The posterior comes from :meth:`fit`, or grows from the prior by :meth:`update` alone; either way :meth:`update`
    goes on from it. NumPy in, NumPy out; torch tensors, JAX arrays and data frames are accepted.

    Args:
        network: sizes and activation; or a module with Bayesian layers (:mod:`bayesmlp.layers`).
        likelihood: what the outputs mean: ``Gaussian()``, ``Categorical(10)``, ``Bernoulli()``.
        feedback: in place of a likelihood, several kinds of feedback by name, each an observation model of the first
            outputs, or of those that a :class:`Kind` names: ``{"label": Categorical(10), "rating": Kind(Ordinal(5),
            outputs=10), "preference": Kind(BradleyTerry(), outputs=10)}``. The first is the one that :meth:`fit` takes,
            whose targets are scaled, and that is meant where no kind is named.
        prior: of the weights.
        structure: form of the posterior; None for the network's own default: for an ``MLP`` a ``LastLayer()``.
        dynamics: what happens to the posterior before each update.
        step: how an update takes an observation in: ``VariationalStep()`` (default), ``LaplaceStep()`` (at the mode) or
            ``KalmanStep()`` (a single step); for normal noise they are one.
        relinearizations: how often an update takes its batch in again, with the network linearised at the mean that the
            batch led to; at least 0.
        influence: how much any one event may do to the posterior: ``InverseMultiquadric()`` bounds it, against outliers
            and poison; None: as much as the likelihood says. It is for updates; a fit takes its data as they are.
        memory: rows that are kept from the past, so that updates and consolidations do not forget; None: none.
        engine: ``"torch"``, ``"jax"``, ``"numpy"`` (no fitting), with a device: ``"torch:cuda"``, ``"jax:gpu"``;
            None for the network's own, or the one that is installed.
        dtype: ``"float32"`` (default) or ``"float64"``.
        standardize: scale inputs, and numeric targets, to mean 0 and variance 1 with the statistics of the data given
            to :meth:`fit`. A model that only updates does not scale, unless :meth:`start_from_prior` is told how. None:
            only where the network is an ``MLP``.
        seed: of initialisation, mini-batches and noise.

    Raises:
        InvalidInput: arguments that do not go together.
        MissingDependency: the engine's framework is not installed.
        DeviceUnavailable: the engine's device is not on this machine.
    """

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
        if memory is not None and (isinstance(structure, Mixture) or isinstance(dynamics, Hypotheses)):
            raise InvalidInput(f"memory is for a posterior of one Gaussian, not for {structure}, {dynamics}")
        if not isinstance(seed, int | np.integer) or seed < 0:
            raise InvalidInput(f"seed must be an integer of at least 0, got {seed!r}")
        if not isinstance(relinearizations, int) or relinearizations < 0:
            raise InvalidInput(f"relinearizations must be an integer of at least 0, got {relinearizations!r}")
        if isinstance(dynamics, Hypotheses) and isinstance(structure, Mixture):
            raise InvalidInput(f"structure must be of one Gaussian: {dynamics} makes a mixture of its own of it")
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
        self.standardize = network.standardize_by_default if standardize is None else standardize
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

    # -- what is known --------------------------------------------------------------------------------------------
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

    def elapsed_until(self, time: float | None) -> float:
        """Units of the dynamics that pass until an event: 1 where they count events, else by the time stamps.

        Args:
            time: of the event, in seconds since the epoch. Late events, those without a time and the first one with a
                time let nothing pass.
        """
        unit = self.dynamics.time_unit
        if unit is None:
            return 1.0
        if time is None or self.newest_time is None:
            return 0.0
        return max(0.0, time - self.newest_time) / unit

    def note_time(self, time: float | None) -> None:
        """An event of that time was learned."""
        if time is not None and self.dynamics.time_unit is not None:
            self.newest_time = time if self.newest_time is None else max(time, self.newest_time)

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

    # -- learning -------------------------------------------------------------------------------------------------
    def fit(
        self,
        X: Any,  # noqa: N803
        y: Any,
        *,
        method: Method | None = None,
        weight: Any = None,
        on_epoch: Callable[[int, int, float], None] | None = None,
        progress: bool | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_seconds: float = 30.0,
    ) -> BayesianMLP:
        """Fit the posterior to a data set, from scratch.

        Args:
            X: inputs, (rows, inputs).
            y: targets, as the likelihood takes them.
            method: ``Laplace()``, ``Variational()``, ``StructuredVariational()``, ``PerLayer(...)``; None:
                ``AsMarked()``, which is Laplace unless a module of the user's own marks layers otherwise.
            weight: of each row, at least 0.
            on_epoch: called with the epoch, the number of epochs and the mean objective per row.
            progress: whether to show a progress bar; None for one on a terminal if the fit takes over a second.
            checkpoint: a file that holds the state of the fit until it ends. If the fit is interrupted, the same fit
                with the same file goes on from there, to the result it would have had.
            checkpoint_seconds: between two writes of it, at least 0; it is written at the end of an epoch.

        Returns:
            The model itself.

        Raises:
            InvalidInput: bad data, an engine without gradients, or a checkpoint of another fit.
            NumericalFailure: the fit diverged; the model is as it was.
        """
        if method is not None and not isinstance(method, Method):
            raise InvalidInput(f"method must be Laplace(), Variational() or PerLayer(...), got {method!r}")
        if isinstance(self.structure, Mixture) and isinstance(method, StructuredVariational):
            raise InvalidInput(f"StructuredVariational fits one Gaussian, not the members of {self.structure}")
        if isinstance(self.dynamics, Hypotheses) and isinstance(method, Ensemble | Stacking | Sampler):
            raise InvalidInput(f"method must fit one Gaussian for {self.dynamics}, got {method!r}")
        if self.memory is not None and isinstance(method, Ensemble | Stacking | Sampler):
            raise InvalidInput(f"method must fit one Gaussian for a model with a memory, got {method!r}")
        if isinstance(self.structure, Mixture) and isinstance(method, Sampler):
            raise InvalidInput(f"structure must be of one Gaussian for {type(method).__name__}, got {self.structure}")
        x, targets, scaling, weights = self._training_data(X, y, weight)
        problem = self._problem(x, targets, scaling, weights)
        method = method or AsMarked()
        if isinstance(self.structure, Mixture) and isinstance(method, LayerMethod):
            method = Ensemble(method, self.structure.members, self.structure.scales)
        kept = (
            None
            if checkpoint is None
            else self._checkpoint(checkpoint, checkpoint_seconds, method, x, targets, weights)
        )
        with fit_progress(progress, on_epoch) as report:
            result = method.fit(replace(problem, on_epoch=report, checkpoint=kept))
        arrays = result.structure.to_arrays(self.engine, result.posterior.weights)
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise NumericalFailure("the fitted posterior is not finite; lower the learning rate")
        self.history = [float(value) for value in result.history[:, 0]]
        self.fit_details = {"terms": result.history, **result.details}
        self._fitted_prior = result.prior
        own = result.structure
        self._resolved = own if isinstance(own, Particles) else self._of_hypotheses(own)
        asked = self.structure
        if isinstance(asked, Mixture) and asked.members == getattr(result.structure, "members", None):
            self._resolved = self._resolve(asked)  # with what it says of pruning
        posterior = result.posterior
        if self.kinds:
            members = result.structure.members if isinstance(result.structure, Mixture) else None
            posterior = posterior._replace(likelihood=self._with_other_kinds(posterior.likelihood, members))
        self._set(x.shape[1], scaling, self._under_hypotheses(posterior))
        if self.memory is not None:
            offer(self, x, targets, weights)
        if kept is not None:
            kept.remove()
        return self

    def fit_problem(self, X: Any, y: Any, *, weight: Any = None) -> FitProblem:  # noqa: N803
        """What :meth:`fit` would give a method, for methods of one's own; nothing is learned.

        Args:
            X: inputs, (rows, inputs).
            y: targets.
            weight: of each row, at least 0.

        Raises:
            InvalidInput: bad data, or an engine without gradients.
        """
        return self._problem(*self._training_data(X, y, weight))

    def _problem(self, x: np.ndarray, targets: np.ndarray, scaling: Scaling, weight: np.ndarray) -> FitProblem:
        return FitProblem(
            engine=self.engine,
            network=self._seen,
            likelihood=self.likelihood.in_units_of(scaling.target_scale),
            structure=self._base,
            prior=self.prior,
            x=self.engine.asarray(x),
            y=self.engine.asarray(targets),
            weight=weight,
            seed=self.seed,
        )

    def _checkpoint(
        self, path: str | os.PathLike[str], seconds: float, method: Method, *data: np.ndarray
    ) -> FileCheckpoint:
        """The file of this very fit."""
        if not isinstance(seconds, Real) or not float(seconds) >= 0:
            raise InvalidInput(f"checkpoint_seconds must be a number of at least 0, got {seconds!r}")
        asked = {"prior": to_spec(self.prior), "structure": to_spec(self.structure), "num_inputs": None}
        described = {**self.spec(), **asked, "method": repr(method), "engine": self.engine.fingerprint()}
        return FileCheckpoint(path, fit_digest(described, data), float(seconds))

    def _training_data(
        self,
        X: Any,  # noqa: N803
        y: Any,
        weight: Any = None,
    ) -> tuple[np.ndarray, np.ndarray, Scaling, np.ndarray]:
        """Checked, scaled inputs and targets, the scaling, and the checked weights."""
        x, targets, weights = self._checked(X, y, weight)
        if not weights.any():
            raise InvalidInput("weight must be positive for at least one row, got 0 for all")
        if not self.engine.has_gradients:
            raise InvalidInput(f"engine {self.engine.name!r} has no gradients: fit with 'torch' or 'jax'")
        scaling = self._estimate_scaling(x, targets, weights)
        return scaling.inputs(x), scaling.targets(targets), scaling, weights

    def _checked(self, X: Any, y: Any, weight: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # noqa: N803
        x = check_inputs(X, None, network=self.network)
        return x, self._prepare(y, len(x)), check_weights(weight, len(x))

    def estimate_scaling(self, X: Any, y: Any, *, weight: Any = None) -> Scaling:  # noqa: N803
        """The standardisation that :meth:`fit` would take from a data set; nothing is learned.

        Args:
            X: inputs, (rows, inputs).
            y: targets.
            weight: of each row, at least 0.

        Raises:
            InvalidInput: bad data.
        """
        return self._estimate_scaling(*self._checked(X, y, weight))

    def _estimate_scaling(self, x: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> Scaling:
        return Scaling.estimate(
            x,
            targets,
            inputs=self.standardize,
            targets=self.standardize and self.likelihood.scales_targets,
            one_target_scale=self.likelihood.shares_target_scale,
            num_targets=self.likelihood.num_targets,
            inputs_per_row=self.network.inputs_per_row,
            weight=weights if weights.any() else None,  # rows that weigh nothing still have a scale
        )

    def update(
        self,
        X: Any,  # noqa: N803
        y: Any,
        *,
        weight: Any = None,
        elapsed: float = 1.0,
        output_mask: Any = None,
        kind: str | None = None,
        source: str | None = None,
    ) -> UpdateInfo:
        """One online Bayes step, in memory; a model without data starts from its prior.

        Large batches are taken in chunks of about 512 output directions, one Bayes step each.

        Args:
            X: inputs, (rows, inputs).
            y: targets.
            weight: of each row, at least 0; a row of weight 2 counts as two.
            elapsed: time since the last update, in the unit of the dynamics.
            output_mask: booleans (rows, K), or (K,) for all rows: for ``Categorical`` the classes that were possible,
                for ``Gaussian`` and ``Bernoulli`` the outputs that were observed; what y holds for others is ignored.
            kind: of the feedback, for a model that hears several; None for the first. Where it compares items, a row
                of X holds those of all items, one after the other, and y says whether the first won, or the place of
                the chosen one.
            source: who sent the rows, for a ``memory``, whose sources share it.

        Returns:
            What the update did, as plain numbers, summed over the chunks.

        Raises:
            InvalidInput: bad data; the model is as it was.
            NotFitted: a kind of feedback other than the first, and the model has seen no data.
            NumericalFailure: the step would not have been finite; the model is as it was.
        """
        observed = observed_kind(self.kinds, kind)
        if observed is not None:
            x = check_items(X, observed, self.num_inputs, "X", self.network)
            likelihood = observed.model_of(observed.items_of(x.shape[1], self.num_inputs))
        else:
            x, likelihood = check_inputs(X, self._num_inputs, network=self.network, whole=True), self.likelihood
        mask = check_output_mask(output_mask, len(x), likelihood)
        targets = self._prepare(y, len(x), mask, likelihood)
        weights = check_weights(weight, len(x))
        _check_elapsed(elapsed)
        with self._all_or_nothing(x.shape[1]):
            x = scaled_items(self.scaling, x)
            targets = targets if observed else self.scaling.targets(targets)
            return self._update_in_chunks(x, targets, weights, elapsed, mask, kind if observed else None, source)

    def update_each(
        self,
        X: Any,  # noqa: N803
        y: Any,
        *,
        weight: Any = None,
        elapsed: float = 1.0,
        source: str | None = None,
    ) -> np.ndarray:
        """As :meth:`update` of one row after the other, but many rows in one dispatch where the engine compiles.

        With a ``memory``, which the host keeps, each row is a dispatch of its own.

        Args:
            X: inputs, (rows, inputs), in the order of the stream.
            y: targets.
            weight: of each row, at least 0.
            elapsed: time before each row, in the unit of the dynamics.
            source: see :meth:`update`.

        Returns:
            The log predictive density of each row before it was learned, (rows,): the prequential scores.

        Raises:
            InvalidInput: bad data; the model is as it was.
            NumericalFailure: a step would not have been finite; the model is as it was.
        """
        x = check_inputs(X, self._num_inputs, network=self.network, whole=True)
        targets = self._prepare(y, len(x))
        weights = check_weights(weight, len(x))
        _check_elapsed(elapsed)
        with self._all_or_nothing(x.shape[1]):
            x, targets = self.scaling.inputs(x), self.scaling.targets(targets)
            return self._fold(x, targets, weights, float(elapsed), source)

    def consolidate(
        self,
        X: Any,  # noqa: N803
        y: Any,
        *,
        newest: tuple[Any, Any],
        base: BayesianMLP | None = None,
        method: Consolidate | None = None,
        weight: Any = None,
        output_mask: Any = None,
        newest_output_mask: Any = None,
        source: str | None = None,
    ) -> Consolidation:
        """Learn again, all at once, what updates have learned one after the other, if that predicts better.

        The rows are fitted anew from what was known before them. Both posteriors then learn the newest rows, and the
        one that predicts them better, each before it is learned, is the model's from now on.

        Args:
            X: inputs that the model has learned since ``base``, (rows, inputs).
            y: their targets.
            newest: inputs and targets that it has not learned yet; it has after, either way.
            base: a copy of the model, as :meth:`duplicate` makes it, from before it learned the rows; None: its prior.
            method: how.
            weight: of each row, at least 0.
            output_mask: of the rows, see :meth:`update`.
            newest_output_mask: of the newest rows.
            source: who sent all of them, see :meth:`update`.

        Raises:
            InvalidInput: bad data, or a model that can't be consolidated: a mixture, dynamics that are not static, a
                bounded influence, an engine without gradients.
            NotFitted: the model has seen no data.
            NumericalFailure: the fit diverged; the model is as it was.
        """
        from .consolidation import consolidate  # the stepper and feedback are built on the model

        if not isinstance(newest, tuple) or len(newest) != 2:
            raise InvalidInput(f"newest must be a pair of inputs and targets, got {newest!r}")
        told = (X, y, weight, output_mask), (*newest, None, newest_output_mask)
        return consolidate(self, base, *told, method, source)

    @contextlib.contextmanager
    def _all_or_nothing(self, num_inputs: int) -> Iterator[None]:
        """A model without data starts from its prior; whatever is raised leaves the model as it was."""
        before = (self._num_inputs, self._scaling, self._posterior, self._prior_state, self._resolved)
        remembered = self.memory_state
        if self._posterior is None:
            self.start_from_prior(num_inputs)
        self.project()
        try:
            yield
        except BaseException:
            self._num_inputs, self._scaling, self._posterior, self._prior_state, self._resolved = before
            self.memory_state = remembered
            raise

    def _fold(self, x: np.ndarray, y: np.ndarray, weight: np.ndarray, elapsed: float, source: str | None) -> np.ndarray:
        fold = self._cached("fold", lambda: self.filter_model.compile_fold(self.engine))
        whole = len(x) - len(x) % _ROWS_OF_A_FOLD if self.memory is None else 0
        convert, scores = self.engine.as_batch, []
        for start in range(0, whole, _ROWS_OF_A_FOLD):
            rows = slice(start, start + _ROWS_OF_A_FOLD)
            times = np.full(_ROWS_OF_A_FOLD, elapsed)
            batches = (convert(a) for a in (x[rows, None], y[rows, None], weight[rows, None], times))
            posterior, infos = fold(self.posterior, self._prior_state, *batches)
            infos = self.engine.fetch(infos)
            if not np.all(infos.ok):
                raise NumericalFailure("the update would not be finite and positive definite; nothing was learned")
            self._posterior = posterior
            self.prune()
            scores.append(np.asarray(infos.log_predictive))
        for row in range(whole, len(x)):
            one = slice(row, row + 1)
            info = self._update_in_chunks(x[one], y[one], weight[one], elapsed, None, None, source)
            scores.append(np.array([info.log_predictive]))
        return np.concatenate(scores)

    def _update_in_chunks(
        self,
        x: np.ndarray,
        y: np.ndarray,
        weight: np.ndarray,
        elapsed: float,
        mask: np.ndarray | None,
        kind: str | None,
        source: str | None,
    ) -> UpdateInfo:
        what = (kind, x.shape[1] // self.num_inputs if kind else 1, mask is not None)
        step = self._cached(f"step {what}", lambda: self.filter_model_of(*what).compile(self.engine))
        size = chunk_rows(max(self.likelihood.num_outputs, what[1]))
        totals = np.zeros(3)
        for start in range(0, len(x), size):
            rows = slice(start, start + size)
            time = float(elapsed) if start == 0 else 0.0
            batch = self.batch(x[rows], y[rows], weight[rows], time, None if mask is None else mask[rows])
            posterior, info = step(self.posterior, self._prior_state, *batch)
            info = UpdateInfo(*(float(value) for value in self.engine.fetch(info)))
            if not info.ok:
                raise NumericalFailure("the update would not be finite and positive definite; nothing was learned")
            self._posterior = posterior
            self.prune()
            if kind is None:
                self.remember(x[rows], y[rows], weight[rows], None if mask is None else mask[rows], source)
            totals += [info.log_predictive, info.information, info.iterations]
        return UpdateInfo(float(totals[0]), float(totals[1]), float(totals[2]), True)

    def remember(
        self, x: np.ndarray, y: np.ndarray, weight: np.ndarray, mask: np.ndarray | None, source: str | None
    ) -> None:
        """What a memory does after an update of scaled rows: it rehearses some of its own, and takes in the new ones.

        Rows of other kinds of feedback than the first are not remembered.
        """
        if self.memory is not None:
            learn_by_heart(self, x, y, weight, mask, source)

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

    def prune(self) -> None:
        """Drop the members of a mixture that predicted too badly to count; see :class:`Mixture`."""
        mixture, posterior = self._resolved, self.posterior
        if not isinstance(mixture, Mixture) or mixture.prune_below is None or len(posterior.weights.log_weights) == 1:
            return
        log_weights = self.engine.to_numpy(posterior.weights.log_weights)
        kept = mixture.worth_keeping(log_weights)
        if len(kept) == len(log_weights):
            return
        with self.engine.scope():
            pick = lambda tree: map_arrays(lambda array: array[kept], tree)  # noqa: E731
            rest = log_weights[kept] - np.logaddexp.reduce(log_weights[kept])
            weights = MixtureState(pick(posterior.weights.members), self.engine.asarray(rest, "float64"))
            self._posterior = Posterior(weights, pick(posterior.likelihood))
            if self._prior_state is not None:
                self._prior_state = pick(self._prior_state)

    def batch(
        self, x: np.ndarray, y: np.ndarray, weight: np.ndarray, elapsed: float, mask: np.ndarray | None = None
    ) -> tuple[Any, ...]:
        """Scaled host rows as the engine's arrays, padded with rows of weight 0 to the next power of two."""
        missing = (1 << (len(x) - 1).bit_length()) - len(x)
        if missing and mask is not None:
            mask = np.concatenate([mask, np.repeat(mask[:1], missing, axis=0)])
        if missing:
            x = np.concatenate([x, np.repeat(x[:1], missing, axis=0)])
            y = np.concatenate([y, np.repeat(y[:1], missing, axis=0)])
            weight = np.concatenate([weight, np.zeros(missing)])
        convert = self.engine.as_batch
        if np.all(weight == 1):
            weights = self._cached(f"ones {len(x)}", lambda: convert(np.ones(len(x))))
        else:
            weights = convert(weight)
        if elapsed == 1:
            time = self._cached("one event", lambda: convert(np.ones(())))
        else:
            time = convert(np.asarray(elapsed, dtype=np.float64))
        targets = convert(y) if mask is None else MaskedTargets(convert(y), convert(mask))
        return convert(x), targets, weights, time

    def start_from_prior(self, num_inputs: int | None = None, scaling: Scaling | None = None) -> None:
        """Set the posterior to the prior: normal weights around the network's initialisation, nothing learned.

        Args:
            num_inputs: number of inputs; None for a network that knows it.
            scaling: of inputs and targets from now on, as :meth:`estimate_scaling` takes it from the first rows of a
                stream; None to leave them as they are.

        Raises:
            InvalidInput: the network has not that many inputs, or none were given.
        """
        shape = self.network.input_shape
        known = None if shape is None else math.prod(shape)
        num_inputs = known if num_inputs is None else num_inputs
        if num_inputs is None or known not in (None, num_inputs):
            raise InvalidInput(f"num_inputs must be {known or 'given'}, got {num_inputs}")
        members = []
        mixture = self.structure if isinstance(self.structure, Mixture) else None
        for member in range(mixture.members if mixture else 1):
            start = self._seen.initialise(num_inputs, self.likelihood.num_outputs, self.seed + member)
            scale, factor = mixture.start(member) if mixture else (1.0, 1.0)
            state = self.likelihood.with_dispersion(self.likelihood.initial_state(), factor)
            dispersion = float(self.likelihood.dispersion(state))
            weights = self._independent(start, num_inputs, dispersion, scale=scale)
            members.append(Posterior(weights, self._with_other_kinds(state_arrays(self.engine, state))))
        scaling = scaling or Scaling.identity(num_inputs, self.likelihood.num_targets)
        if scaling.input_mean.shape != (num_inputs,):
            raise InvalidInput(f"scaling must be of {num_inputs} inputs, got {scaling.input_mean.shape[0]}")
        even = np.full(len(members), -np.log(len(members)))
        posterior = mixture_of(self.engine, members, even) if mixture else members[0]
        self._set(num_inputs, scaling, self._under_hypotheses(posterior))

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

    def _set(self, num_inputs: int, scaling: Scaling, posterior: Posterior) -> None:
        self._num_inputs, self._scaling, self._posterior = num_inputs, scaling, posterior
        self._prior_state = self.newest_time = self.memory_state = None
        self._compiled = {}  # a step closes over the likelihood in the units of the scaling
        if not self.dynamics.is_static:  # forgetting relaxes to where learning began, with the prior's variance
            self._prior_state = self._relaxed_state()

    def _relaxed_state(self) -> Any:
        """What the dynamics relax to; for a mixture, each member's own, stacked."""
        states = []
        mixture = self._resolved if isinstance(self._resolved, Mixture) else None
        for member, posterior in enumerate(self._members()[0]):
            scale = mixture.start(member)[0] if mixture else 1.0
            dispersion = self._answering.dispersion(posterior)
            weights = posterior.weights
            states.append(self._independent(self._base.mean(weights), self.num_inputs, dispersion, weights, scale))
        if not isinstance(self._resolved, Mixture):
            return states[0]
        with self.engine.scope():
            return stack_trees(self.engine.xp.stack, states)

    def _prepare(
        self, y: Any, rows: int, mask: np.ndarray | None = None, likelihood: Likelihood | None = None
    ) -> np.ndarray:
        likelihood = likelihood or self.likelihood
        is_scaled = self._scaling is not None and likelihood is self.likelihood
        mean = self.scaling.target_mean if is_scaled else np.zeros(1)
        targets = likelihood.prepare(fill_unobserved(as_host_array(y, "y"), mask, mean))
        if len(targets) != rows:
            raise InvalidInput(f"y must have as many rows as X ({rows}), got {len(targets)}")
        check_labels_possible(targets, mask)
        return targets

    # -- sampling -------------------------------------------------------------------------------------------------
    def to_numpyro(self, num_inputs: int | None = None, scaling: Scaling | None = None) -> Program:
        """The model as a NumPyro program ``program(x, y=None)`` of scaled inputs: any kernel or guide works on it.

        Args:
            num_inputs: number of inputs, for a model that has seen no data.
            scaling: of the data that the program will be given; the model's own if it has one.

        Raises:
            InvalidInput: the engine is not jax.
            MissingDependency: NumPyro is not installed.
        """
        return program_of(self, "jax", "numpyro", num_inputs, scaling)

    def to_pyro(self, num_inputs: int | None = None, scaling: Scaling | None = None) -> Program:
        """The model as a Pyro program; see :meth:`to_numpyro`. The engine must be torch."""
        return program_of(self, "torch", "pyro", num_inputs, scaling)

    def to_arviz(self, X: Any, y: Any = None, *, num_samples: int = 1000, seed: int | None = None) -> Any:  # noqa: N803
        """The posterior as ArviZ takes it, whatever method it is of; see :mod:`bayesmlp.inference_data`.

        Args:
            X: inputs at which to look at function values.
            y: targets there, for the log likelihood; None for none.
            num_samples: draws of a posterior in closed form.
            seed: of these; the model's own if None.

        Raises:
            InvalidInput: bad data.
            NotFitted: the model has seen no data.
            MissingDependency: ArviZ is not installed.
        """
        return inference_data(self, X, y, num_samples=num_samples, seed=seed)

    def thin(self, draws: int, *, stored: str = "float32") -> BayesianMLP:
        """Keep fewer draws of each chain, evenly spaced; what a store then holds.

        Args:
            draws: of each chain.
            stored: how weights are stored: ``"float16"`` halves the bytes and rounds every weight to a relative 5e-4.

        Returns:
            The model itself.

        Raises:
            InvalidInput: the posterior is no draws, or has fewer.
        """
        self._resolved, self._posterior = thinned(self, draws, stored)
        return self

    @property
    def particles(self) -> Particles | None:
        """Chains and draws of a sampler's posterior; None for any other."""
        return self._resolved if isinstance(self._resolved, Particles) else None

    @property
    def sample_statistics(self) -> dict[str, np.ndarray]:
        """What the last fit's sampler said of each draw, (chains, draws), by name; empty for another method."""
        return dict(self.fit_details.get("sample_stats", {}))

    def weight_draws(self, num_samples: int, seed: int) -> tuple[tuple[np.ndarray, ...], Any]:
        """Weights drawn from a posterior in closed form, (S, ...) of each layer, and the likelihood's state with each.

        Of a mixture every member gives its share.
        """
        members, log_weights = self._members()
        counts = np.random.default_rng(seed).multinomial(num_samples, np.exp(log_weights))
        chosen = [(m, p, int(n)) for m, (p, n) in enumerate(zip(members, counts, strict=True)) if n]
        parts = [self._answering.weight_draws(posterior, n, seed + member) for member, posterior, n in chosen]
        weights = tuple(np.concatenate(layers) for layers in zip(*(weights for weights, _ in parts), strict=True))
        return weights, stack_trees(np.concatenate, [states for _, states in parts])

    def network_outputs(self, weights: tuple[np.ndarray, ...], x: np.ndarray) -> np.ndarray:
        """Outputs (S, N, K), in scaled units, of networks given by their weights (S, ...) at scaled inputs."""
        return self.sampled_answers.outputs_of(tuple(self.engine.asarray(layer) for layer in weights), x)

    def prepared_targets(self, y: Any, rows: int) -> np.ndarray:
        """Checked targets, in the user's units."""
        return self._prepare(y, rows)

    def reweight(
        self,
        X: Any,  # noqa: N803
        y: Any,
        *,
        weight: Any = None,
        least: float = 0.1,
        memory: tuple[Any, Any] | None = None,
        method: Sampler | None = None,
    ) -> float:
        """Learn rows by weighing a sampler's draws with their likelihood: Bayes' rule, exact up to the draws' number.

        The Gaussian beside the draws learns the rows too, as by :meth:`update`.

        Args:
            X: inputs.
            y: targets.
            weight: of each row, at least 0.
            least: smallest effective sample size that is let pass, as a share of the draws.
            memory: inputs and targets of all rows that the posterior has learned. With them, where too few draws would
                count, chains go on from draws that do, on these rows and the new ones (resample and move).
            method: that moves them; ``MCLMC(num_warmup=300)`` if None.

        Returns:
            The effective sample size before any move.

        Raises:
            InvalidInput: bad data, or the posterior is no draws.
            NumericalFailure: too few draws would count; the model is as it was. Sample anew, or :meth:`update`.
        """
        size, form, outcome = reweighted(self, (X, y, weight), least, memory, method)
        if isinstance(outcome, FitResult):
            self.fit_details = {"terms": outcome.history, **outcome.details}
            own = outcome.posterior
            others = self.posterior.likelihood[1:] if self.kinds else ()
            outcome = own._replace(likelihood=(own.likelihood, *others)) if self.kinds else own
        self._resolved, self._posterior = form, outcome
        return size

    def scaled_rows(self, X: Any, y: Any, weight: Any = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # noqa: N803
        """Checked inputs and targets in scaled units, and weights."""
        check_inputs(X, self.num_inputs, network=self.network)
        x, targets, weights = self._checked(X, y, weight)
        return self.scaling.inputs(x), self.scaling.targets(targets), weights

    def scaled_problem(self, x: np.ndarray, targets: np.ndarray, weight: np.ndarray) -> FitProblem:
        """What a method is given for rows in the units of this model, under its prior."""
        return replace(self._problem(x, targets, self.scaling, weight), prior=self._fitted_prior)

    @property
    def sampled_answers(self) -> SampledAnswers:
        """Answers of the drawn networks."""
        return self._cached("sampled", lambda: SampledAnswers(self.engine, self._seen, self.scaled_likelihood))

    # -- answering ------------------------------------------------------------------------------------------------
    def predict(
        self,
        X: Any,  # noqa: N803
        *,
        method: str | None = None,
        num_samples: int = 100,
        seed: int | None = None,
        approximation: str = "nodes",
        elapsed: float = 0.0,
        output_mask: Any = None,
        kind: str | None = None,
    ) -> Predictive:
        """The predictive distribution of y.

        Args:
            X: inputs, (rows, inputs).
            method: ``"linearized"``: the network linearised at the mean, closed form or fixed nodes; ``"samples"``:
                sampled networks; ``"mean"``: the mean weights alone, no epistemic uncertainty. None: linearised; for
                a sampler's posterior the mixture of all its draws, beside which the Gaussian that stands for them
                answers by the other ways.
            num_samples: of ``"samples"`` and of ``"monte_carlo"``.
            seed: of ``"samples"`` and of ``"monte_carlo"``; the model's own if None.
            approximation: how ``"linearized"`` averages class probabilities over normal logits: ``"nodes"``: fixed
                nodes; ``"monte_carlo"``: random draws; or a closed form, ``"probit"`` or ``"bridge"`` (see
                :mod:`.inference.logit_normal`), for Categorical and Bernoulli. A closed form gives the probabilities
                and what follows from them; the epistemic parts of variance and entropy are still by fixed nodes.
            elapsed: units of the dynamics that have passed since the last update; the model stays as it is.
            output_mask: as for :meth:`update`: the classes that are possible, others have probability 0; or the outputs
                that ``Predictive.log_prob`` is of, which changes nothing else.
            kind: of what is predicted, for a model that hears several; None for the first. Where it compares items,
                rows are as for :meth:`update`.

        Raises:
            InvalidInput: bad inputs, an unknown method, or an approximation where there is nothing to approximate.
            NotFitted: the model has seen no data.
        """
        stands_still = elapsed == 0 or self.dynamics.is_static
        is_first = kind is None or observed_kind(self.kinds, kind) is None
        has_draws = self.particles is not None and method is None and stands_still and is_first
        method = ("samples" if has_draws else "linearized") if method is None else method
        if method not in PREDICTION_METHODS:
            raise InvalidInput(f"method must be one of {', '.join(PREDICTION_METHODS)}, got {method!r}")
        for name, value, least in (("num_samples", num_samples, 1), ("seed", 0 if seed is None else seed, 0)):
            if not isinstance(value, int | np.integer) or value < least:
                raise InvalidInput(f"{name} must be an integer of at least {least}, got {value!r}")
        _check_elapsed(elapsed)
        observed = observed_kind(self.kinds, kind)
        if observed is None:
            x = self.scaling.inputs(check_inputs(X, self.num_inputs, network=self.network))
            answering, likelihood, scaling = self._answering, self.scaled_likelihood, self.scaling
        else:
            x = scaled_items(self.scaling, check_items(X, observed, self.num_inputs, "X", self.network))
            answering, likelihood = self._answering_of(str(kind), observed.items_of(x.shape[1], self.num_inputs))
            scaling = Scaling.identity(self.num_inputs, likelihood.num_targets)
        self._check_approximation(approximation, method, likelihood)
        mask = check_output_mask(output_mask, len(x), likelihood)
        if mask is not None and approximation == "bridge":
            raise InvalidInput("approximation 'bridge' takes no output_mask: it needs every logit")
        own_seed = self.seed if seed is None else seed
        options: dict[str, Any] = {"approximation": approximation}
        if approximation == "monte_carlo":
            options["standard_normal"] = np.random.default_rng(own_seed).standard_normal(
                (num_samples, likelihood.num_outputs)
            )
        if has_draws:
            state, drawn = self.posterior.weights, self.sampled_answers
            mixture = drawn.log_weights(state), drawn.outputs(state, x), None, drawn.likelihood_states(state)
            answer = Predictive(method, likelihood, scaling, *mixture)
            return answer if mask is None else answer.masked(mask)
        members, log_weights = self._members(self.posterior_after(elapsed))
        parts = []
        for member, posterior in enumerate(members):
            if method == "samples":
                count = -(-num_samples // len(members))
                outputs, states = answering.sampled(posterior, x, count, own_seed + member)
                even = np.full(count, -np.log(count))
                parts.append(Predictive(method, likelihood, scaling, even, outputs, likelihood_state=states))
                continue
            if method == "mean":
                mean, covariance = answering.outputs(posterior, x), None
            else:
                mean, covariance = answering.linearized(posterior, x, member=member)
            state = answering.likelihood_state(posterior)
            parts.append(Predictive.single(method, likelihood, scaling, mean, covariance, state, **options))
        answer = Predictive.mixture(parts, log_weights) if len(parts) > 1 else parts[0]
        return answer if mask is None else answer.masked(mask)

    @property
    def _answering(self) -> Answering:
        return self._cached(
            "answering",
            lambda: Answering(self.engine, self._seen, self._base, self.scaled_likelihood, self._place(0)),
        )

    def posterior_after(self, elapsed: float) -> Posterior:
        """The posterior when so many units of the dynamics have passed without an event; the model stays as it is."""
        if elapsed == 0 or self.dynamics.is_static:
            return self.posterior
        pass_time = self._cached("pass time", lambda: self.filter_model.compile_passing(self.engine))
        span = self.engine.as_batch(np.asarray(elapsed, dtype=np.float64))
        return pass_time(self._gaussian(self.posterior), self._prior_state, span)

    def _gaussian(self, posterior: Posterior) -> Posterior:
        """The Gaussian that stands for draws; any other posterior as it is."""
        weights = posterior.weights
        return posterior._replace(weights=weights.gaussian) if isinstance(weights, ParticlesState) else posterior

    def _answering_of(self, kind: str, items: int) -> tuple[Answering, Likelihood]:
        """Answers of a kind of feedback other than the first, and its likelihood."""
        model = self.filter_model_of(kind, items)
        build = lambda: Answering(self.engine, model.network, self._base, model.likelihood, model.place)  # noqa: E731
        return self._cached(f"answering {kind} {items}", build), model.likelihood

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

    def _check_approximation(self, approximation: str, method: str, likelihood: Likelihood) -> None:
        if approximation not in APPROXIMATIONS:
            raise InvalidInput(f"approximation must be one of {', '.join(APPROXIMATIONS)}, got {approximation!r}")
        if approximation == "nodes":
            return
        if method != "linearized":
            raise InvalidInput(f"approximation {approximation!r} is for method 'linearized', not for {method!r}")
        if not likelihood.has_logits:
            raise InvalidInput(f"approximation {approximation!r} is for class logits, not for {likelihood}")

    def output_variance(self, X: Any) -> np.ndarray:  # noqa: N803
        """Variance of each output due to the weights, linearised at the mean, (N, K), in scaled units.

        Where only this is wanted, it takes less than :meth:`predict`. For a mixture, the members' average plus the
        variance of their means.

        Args:
            X: inputs, (rows, inputs).

        Raises:
            InvalidInput: bad inputs.
            NotFitted: the model has seen no data.
        """
        x = self.scaling.inputs(check_inputs(X, self.num_inputs, network=self.network))
        if self.particles is not None:
            return self.sampled_answers.variance(self.posterior.weights, x)
        members, log_weights = self._members()
        moments = [self._answering.linearized(one, x, "variance", member) for member, one in enumerate(members)]
        means, variances = (np.stack(values) for values in zip(*moments, strict=True))
        shares = np.exp(log_weights)[:, None, None]
        average = np.sum(shares * means, axis=0)
        return np.asarray(np.sum(shares * (variances + (means - average) ** 2), axis=0))

    def joint_outputs(self, X: Any) -> JointOutputs:  # noqa: N803
        """Outputs of several rows, linearised at the mean, with the covariances between the rows.

        Args:
            X: inputs, (rows, inputs); memory grows with the square of their number.

        Raises:
            InvalidInput: bad inputs.
            NotFitted: the model has seen no data.
        """
        x = self.scaling.inputs(check_inputs(X, self.num_inputs, network=self.network))
        members, log_weights = self._members()
        if self.particles is not None:
            mean, covariance = self.sampled_answers.joint_moments(self.posterior.weights, x)
            state = map_arrays(lambda array: array[None], self._answering.likelihood_state(members[0]))
            return JointOutputs(self.scaled_likelihood, self.scaling, log_weights, mean[None], covariance[None], state)
        mean, covariance = (np.stack(a) for a in zip(*(self._answering.joint(p, x) for p in members), strict=True))
        states = [self._answering.likelihood_state(posterior) for posterior in members]
        state = stack_trees(np.stack, states)
        return JointOutputs(self.scaled_likelihood, self.scaling, log_weights, mean, covariance, state)

    def sample_functions(
        self, num_functions: int, *, method: str | None = None, seed: int | None = None
    ) -> FunctionSamples:
        """Functions drawn from the posterior: callable on any inputs, with the same weights for every call.

        Args:
            num_functions: how many; their weights are kept.
            method: ``"linearized"`` or ``"samples"``, as for :meth:`predict`; None: linearised, or a sampler's own.
            seed: of the draws; the model's own if None.

        Raises:
            InvalidInput: fewer than one, a seed below 0 or an unknown method.
            NotFitted: the model has seen no data.
        """
        has_draws = self.particles is not None and method is None
        method = ("samples" if has_draws else "linearized") if method is None else method
        if method not in FUNCTION_METHODS:
            raise InvalidInput(f"method must be one of {', '.join(FUNCTION_METHODS)}, got {method!r}")
        for name, value, least in (("num_functions", num_functions, 1), ("seed", 0 if seed is None else seed, 0)):
            if not isinstance(value, int | np.integer) or value < least:
                raise InvalidInput(f"{name} must be an integer of at least {least}, got {value!r}")
        seed = self.seed if seed is None else seed
        members, log_weights = self._members()
        if has_draws:
            group = self.sampled_answers.deviations(
                self.posterior.weights, self._base.mean(members[0].weights), num_functions, seed
            )
            return FunctionSamples(self.engine, self._seen, self.scaling, self.num_inputs, method, [group])
        counts = np.random.default_rng(seed).multinomial(num_functions, np.exp(log_weights))
        groups = [
            (*self._answering.weight_deviations(posterior, int(count), seed + member), int(count))
            for member, (posterior, count) in enumerate(zip(members, counts, strict=True))
            if count
        ]
        return FunctionSamples(self.engine, self._seen, self.scaling, self.num_inputs, method, groups)

    def _cached(self, name: str, build: Callable[[], Any]) -> Any:
        if name not in self._compiled:
            self._compiled[name] = build()
        return self._compiled[name]

    # -- moving ---------------------------------------------------------------------------------------------------
    def to_engine(self, engine: str | Engine) -> BayesianMLP:
        """The same model and posterior on another engine or device; this one is left as it is.

        Args:
            engine: a name as for the constructor.
        """
        return BayesianMLP.from_parts(self.spec(), self.to_arrays(), engine, self.network)

    def duplicate(self) -> BayesianMLP:
        """The same model and posterior on the same engine, with what was compiled for it."""
        copy = self.to_engine(self.engine)
        copy._compiled = {name: kept for name, kept in self._compiled.items() if not name.startswith("answering")}
        return copy

    def with_settings(
        self,
        *,
        dynamics: Dynamics | None = None,
        step: OutputStep | None = None,
        influence: InverseMultiquadric | None = None,
    ) -> BayesianMLP:
        """The same posterior, which learns in another way from here on; None leaves a setting as it is.

        Args:
            dynamics: what happens between events. The posterior as it is now is what they relax to.
            step: of the update.
            influence: of an event.

        Raises:
            InvalidInput: the dynamics are hypotheses, whose posteriors are of no use to others.
            NotFitted: the model has seen no data.
        """
        if self.particles is not None:  # what learns on is the Gaussian beside them
            projected = self.to_engine(self.engine)
            projected.project()
            return projected.with_settings(dynamics=dynamics, step=step, influence=influence)
        changes = {"dynamics": dynamics, "step": step, "influence": influence}
        spec = self.spec() | {name: to_spec(value) for name, value in changes.items() if value is not None}
        if dynamics is None:
            return BayesianMLP.from_parts(spec, self.to_arrays(), self.engine, self.network)
        if isinstance(self.dynamics, Hypotheses):
            raise InvalidInput(f"dynamics can't be put in place of hypotheses, {self.dynamics}")
        other = BayesianMLP.from_parts(spec, {}, self.engine, self.network)
        copied = self.to_engine(self.engine)
        other._set(self.num_inputs, self.scaling, other._under_hypotheses(copied.posterior))
        other.newest_time = self.newest_time
        return other

    def spec(self) -> dict[str, Any]:
        """Everything about the model that is not an array and not the engine, as JSON values."""
        kinds = [[name, to_spec(kind)] for name, kind in self.kinds.items()]
        return {
            **({"feedback": kinds} if kinds else {}),
            **({} if self.influence is None else {"influence": to_spec(self.influence)}),
            **({} if self.memory is None else {"memory": to_spec(self.memory)}),
            "network": to_spec(self.network),
            "likelihood": to_spec(self.likelihood),
            "prior": to_spec(self._fitted_prior),
            "structure": to_spec(self._form),
            "dynamics": to_spec(self.dynamics),
            "step": to_spec(self.step),
            "relinearizations": self.relinearizations,
            "dtype": self.engine.dtype,
            "standardize": self.standardize,
            "seed": self.seed,
            "num_inputs": self._num_inputs,
        }

    def to_arrays(self, *, copy: bool = True) -> dict[str, np.ndarray]:
        """The posterior and the scaling as named host arrays; empty before any data.

        Args:
            copy: whether they are the caller's to keep; else the next update may write into them.
        """
        if self._posterior is None:
            return {}
        engine = self.engine if copy else replace(self.engine, lends=True)
        arrays = {**self.posterior_arrays(self._posterior, engine), **self.constant_arrays(engine)}
        if self.newest_time is not None:
            arrays["clock.newest"] = np.asarray(self.newest_time, dtype=np.float64)
        if self.memory_state is not None:
            arrays |= {f"memory.{name}": array for name, array in self.memory_state.to_arrays().items()}
        return arrays

    def posterior_arrays(self, posterior: Posterior, engine: Engine | None = None) -> dict[str, np.ndarray]:
        """A posterior of this model as named host arrays."""
        engine = engine or self.engine
        arrays = {f"weights.{k}": v for k, v in self._resolved.to_arrays(engine, posterior.weights).items()}
        states = {"likelihood": posterior.likelihood, "dynamics": posterior.dynamics}
        if self.kinds:
            each = zip(self.kinds, posterior.likelihood, strict=True)
            states = {f"likelihood.{name}": state for name, state in each} | {"dynamics": posterior.dynamics}
        named = [(f"{name}.{i}", value) for name, state in states.items() for i, value in enumerate(state)]
        return arrays | {name: engine.to_numpy(value) for name, value in named}

    def constant_arrays(self, engine: Engine | None = None) -> dict[str, np.ndarray]:
        """What updates do not change: the scaling, and the prior where the dynamics need it."""
        arrays = {f"scaling.{field}": value for field, value in self.scaling._asdict().items()}
        if self._prior_state is not None:
            prior = self._base.to_arrays(engine or self.engine, self._prior_state)
            arrays |= {f"prior.{name}": value for name, value in prior.items()}
        return arrays

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over what :meth:`to_arrays` of this very model gave: its posterior, and the time it had seen."""
        self.set_posterior(self.posterior_from_arrays(arrays))
        if prior := _under("prior", arrays):  # a mixture's, whose members may have been fewer
            self._prior_state = self._base.from_arrays(self.engine, prior)
        remembered = _under("memory", arrays)
        self.memory_state = MemoryState.from_arrays(remembered) if remembered else None
        newest = arrays.get("clock.newest")
        self.newest_time = None if newest is None else float(newest)

    @classmethod
    def from_parts(
        cls,
        spec: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray],
        engine: str | Engine | None,
        network: Any = None,
    ) -> BayesianMLP:
        """The model from :meth:`spec` and :meth:`to_arrays`, on any engine.

        Args:
            spec: of the model.
            arrays: its posterior.
            engine: as for the constructor.
            network: the user's own module, where the spec describes one.

        Raises:
            InvalidInput: the network is needed, or is not the one that the spec describes.
        """
        form = from_spec(spec["structure"])
        model = cls(
            restore_network(spec["network"], network),
            None if "feedback" in spec else from_spec(spec["likelihood"]),
            feedback={name: from_spec(kind) for name, kind in spec["feedback"]} if "feedback" in spec else None,
            prior=from_spec(spec["prior"]),
            structure=form.of if isinstance(form, Particles) else form,
            dynamics=from_spec(spec["dynamics"]),
            step=from_spec(spec["step"]),
            relinearizations=spec["relinearizations"],
            influence=from_spec(spec.get("influence")),
            memory=from_spec(spec.get("memory")),
            engine=engine,
            dtype=spec["dtype"],
            standardize=spec["standardize"],
            seed=spec["seed"],
        )
        if arrays:
            model._num_inputs = int(spec["num_inputs"])
            model._scaling = Scaling.from_arrays(_under("scaling", arrays))
            if isinstance(form, Particles):
                model._resolved = replace(form, of=model._base)
            model.restore(arrays)
            if prior := _under("prior", arrays):
                model._prior_state = model._base.from_arrays(model.engine, prior)
        return model

    def posterior_from_arrays(self, arrays: Mapping[str, np.ndarray]) -> Posterior:
        """The inverse of :meth:`posterior_arrays`."""
        weights = self._resolved.from_arrays(self.engine, _under("weights", arrays))
        parts = _under("likelihood", arrays)

        def in_order(parts: Mapping[str, np.ndarray]) -> list[Any]:
            return [self.engine.asarray(parts[str(i)], "float64") for i in range(len(parts))]

        dynamics = in_order(_under("dynamics", arrays))
        own = self.dynamics.restore_state(dynamics) if isinstance(self.dynamics, Hypotheses) else ()
        if not self.kinds:
            return Posterior(weights, self.likelihood.restore_state(in_order(parts)), own)
        states = (kind.stateful.restore_state(in_order(_under(name, parts))) for name, kind in self.kinds.items())
        return Posterior(weights, tuple(states), own)


def _engine_for(network: Network, engine: str | Engine | None, dtype: str | None) -> Engine:
    """The engine, if the network runs on it."""
    chosen = get_engine((network.engine_name or default_engine()) if engine is None else engine, dtype)
    if network.engine_name not in (None, chosen.name.partition(":")[0]):
        raise InvalidInput(f"engine must be {network.engine_name!r} for {network!r}, got {chosen.name!r}")
    return chosen


def _check_elapsed(elapsed: Any) -> None:
    if not isinstance(elapsed, Real) or not 0 <= float(elapsed) < np.inf:
        raise InvalidInput(f"elapsed must be a number of at least 0, got {elapsed!r}")


def _under(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays whose names start with ``prefix.``, without it."""
    return {name[len(prefix) + 1 :]: array for name, array in arrays.items() if name.startswith(f"{prefix}.")}
