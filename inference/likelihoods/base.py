"""The contract of an observation model: what turns the network's outputs into a distribution of y.

Outputs are natural inputs: mean, logits, log rate, utility. All methods are array mathematics over ``engine.xp`` and
broadcast over leading axes of ``outputs``. A likelihood may carry state beside the weights: the noise of
:class:`~.gaussian.Gaussian`, the thresholds of :class:`~.ordinal.Ordinal`. Where the state has a dispersion φ, the
weights' posterior is held at *unit dispersion*, that is θ | φ ~ N(m, φ Λ⁻¹), and ``dispersion(state)`` estimates φ;
elsewhere φ = 1 and the two views are one.

A state's arrays may have leading axes, which broadcast against those of the outputs without their last, (..., N): one
state for all rows, or one for each. "Predictive" is what is integrated over outputs ~ N(mean, covariance); a covariance
of None stands for outputs that are known.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ..engines.base import Array, Engine
from ..engines.numpy_engine import NumpyEngine
from ..errors import InvalidInput
from ..host import as_host_array
from ..quadrature import normal_nodes

__all__ = [
    "HOST",
    "Likelihood",
    "PredictiveMoments",
    "covariance_root",
    "invalid_target",
    "node_offsets",
    "numeric_targets",
    "per_row",
]

HOST = NumpyEngine()
"""For what is computed on the host alone."""


class PredictiveMoments(NamedTuple):
    """Mean of y and the two parts of its variance, elementwise: (N, T) for T targets, (N, C) for C classes.

    Attributes:
        mean: E[y].
        epistemic: Var[E[y | outputs]].
        aleatoric: E[Var[y | outputs]].
    """

    mean: Float[Array, "N T"]
    epistemic: Float[Array, "N T"]
    aleatoric: Float[Array, "N T"]


def invalid_target(argument: str, expected: str, got: object) -> InvalidInput:
    """The error for a target that is not what the likelihood expects."""
    return InvalidInput(f"{argument} must be {expected}, got {got}")


def numeric_targets(y: Any, num_targets: int, argument: str) -> np.ndarray:
    """Real targets as float64, shape (rows, num_targets); one target may come without its axis.

    Raises:
        InvalidInput: names the argument, what was expected and what came.
    """
    values = as_host_array(y, argument)
    if values.dtype.kind not in "fiu":
        raise invalid_target(argument, "numbers", f"dtype {values.dtype}")
    values = values.astype(np.float64)
    if values.ndim == 1 and num_targets == 1:
        values = values[:, None]
    if values.ndim != 2 or values.shape[1] != num_targets:
        raise invalid_target(argument, f"of shape (rows, {num_targets})", f"shape {np.shape(y)}")
    small = np.abs(values) <= 1e30
    if not small.all():
        if not np.isfinite(values).all():
            raise invalid_target(argument, "finite", f"{values[~np.isfinite(values)][0]}")
        raise invalid_target(argument, "at most 1e30 in magnitude", f"{values[~small][0]:g}")
    return values + 0.0  # -0.0 is 0.0


def covariance_root(engine: Engine, covariance: Float[Array, "N K K"]) -> Float[Array, "N K K"]:
    """Lower Cholesky factor of matrices that may be singular: a little is added to their diagonals."""
    xp = engine.xp
    jitter = 1e-10 if covariance.dtype == xp.float64 else 1e-6
    scale = xp.sum(covariance * covariance, axis=(-2, -1), keepdims=True)
    floor = (jitter * xp.sqrt(scale + jitter)) * engine.eye(covariance.shape[-1], covariance)
    factor, ok = engine.cholesky(covariance + floor)
    # A covariance of deficient rank that float32 has rounded is indefinite beyond float64's floor.
    return engine.guarded(~ok, lambda: engine.cholesky(covariance + floor * (1e-6 / jitter))[0], factor)


def node_offsets(engine: Engine, nodes: Float[Array, "S K"], root: Float[Array, "N K K"]) -> Float[Array, "S N K"]:
    """Standard normal nodes as those of normals with these roots; in memory the nodes come last, which suits sums."""
    return engine.xp.permute_dims(root @ nodes.mT, (2, 0, 1))


def per_row(values: Any, count: int) -> Any:
    """One number for each row, (..., N), with ``count`` axes after it; plain numbers stay as they are."""
    return values[(..., *[None] * count)] if hasattr(values, "shape") else values


class Likelihood(ABC):
    """An observation model p(y | outputs)."""

    num_outputs: int

    scales_targets: bool = False
    """Whether targets are numbers that may be standardised."""

    dispersion_outputs: tuple[int, ...] = ()
    """Indices of the outputs that stand for the spread of y rather than its location."""

    is_discrete: bool = False
    """Whether y is a whole number."""

    has_classes: bool = False
    """Whether y is a class or level with a probability: :meth:`class_probabilities`."""

    has_logits: bool = False
    """Whether class probabilities are the softmax of :meth:`logits`."""

    is_concave: bool = True
    """Whether the log density is concave in the outputs, so that none of its tangents is ever crossed."""

    averaged_by_nodes: bool = False
    """Whether :meth:`expected_terms` is to be used: the log density is smooth, concave and of bounded score in the
    outputs (an exponential's average outgrows all nodes)."""

    @property
    def information_rank(self) -> int:
        """R, the most columns that a root L of the outputs' information F = L Lᵀ needs: the Cholesky factor's first."""
        return self.num_outputs

    @property
    def num_targets(self) -> int:
        """Number of target scales: the outputs' number, unless a target has several outputs."""
        return self.num_outputs

    @property
    def shares_target_scale(self) -> bool:
        """Whether all targets must be scaled alike."""
        return False

    def in_units_of(self, target_scale: np.ndarray) -> Likelihood:
        """The same observation model for targets that are divided by ``target_scale``, (T,)."""
        return self

    # -- the edge: NumPy ------------------------------------------------------------------------------------------
    @abstractmethod
    def prepare(self, y: Any, argument: str = "y") -> np.ndarray:
        """Targets as the array that the other methods take, checked.

        Raises:
            InvalidInput: names the argument, what was expected and what came.
        """

    @abstractmethod
    def draw(self, rng: np.random.Generator, outputs: np.ndarray, state: Any) -> np.ndarray:
        """One y for each row of outputs (..., K)."""

    def estimated_state(self, state: Any) -> Any:
        """What the state is uncertain of, at its estimate: a state without that uncertainty."""
        return state

    def draw_state(self, rng: np.random.Generator, state: Any) -> Any:
        """What the state is uncertain of, drawn: a state without that uncertainty, of the same leading axes."""
        return state

    def cdf(self, outputs: np.ndarray, y: np.ndarray, state: Any) -> np.ndarray:
        """P(Y ≤ y | outputs) for each target, (..., N, T).

        Raises:
            InvalidInput: y has no order.
        """
        raise InvalidInput(f"quantile is for numeric targets, not for {type(self).__name__}")

    def predictive_cdf(self, mean: np.ndarray, covariance: np.ndarray | None, y: np.ndarray, state: Any) -> np.ndarray:
        """P(Y ≤ y) for each target, (N, T), by the nodes of :meth:`output_nodes`."""
        outputs, weights = self.output_nodes(HOST, mean, covariance)
        return np.tensordot(weights, self.cdf(outputs, y, state), axes=1)

    # -- state ----------------------------------------------------------------------------------------------------
    def initial_state(self) -> Any:
        """State before any data, as a named tuple of float64 arrays; ``()`` where there is none."""
        return ()

    def with_dispersion(self, state: Any, factor: float) -> Any:
        """A state before any data whose dispersion is multiplied, where there is one to learn."""
        return state

    def state_from_fit(self, parameters: Sequence[Any], num_rows: float) -> Any:
        """State after a batch fit that ended at ``parameters`` (see :meth:`fit_parameters`)."""
        return ()

    def state_at_mode(self, state: Any, outputs: np.ndarray, y: np.ndarray, weight: np.ndarray) -> Any | None:
        """The fitted state with what has a closed form at its mode given the outputs (N, K); None where nothing has."""
        return None

    def discount(self, state: Any, effective_parameters: float) -> Any:
        """A fitted state that knows how many degrees of freedom the weights have taken from the data."""
        return state

    def restore_state(self, arrays: Sequence[Any]) -> Any:
        """State from its arrays, in order."""
        return tuple(arrays)

    def merged_state(self, now: Any, grown: Sequence[tuple[Any, Any]], surplus: float) -> Any:
        """A state with what others have learned; see :mod:`..merging`.

        Args:
            now: the state.
            grown: of each of the others, what its state has become and what it grew from.
            surplus: half the squares, at unit dispersion, by which the merged weights miss what was learned apart.
        """
        return now

    def dispersion(self, state: Any) -> Any:
        """φ: the factor between unit-dispersion covariances and covariances in the units of the outputs."""
        return 1.0

    def update_state(
        self,
        engine: Engine,
        state: Any,
        outputs: Array,
        covariance: Array,
        y: Array,
        weight: Array,
        influence: Any = None,
    ) -> Any:
        """State after observing a batch, given the outputs' unit-dispersion covariance (N K, N K) before it.

        Where the rows' influence is bounded, ``influence`` has their factors (see :mod:`..influence`).
        """
        return state

    def held(self, engine: Engine, state: Any) -> Any:
        """What updates hold of a state that a fit has found."""
        return state

    @property
    def streams_add_up(self) -> bool:
        """Whether what separate streams have taught the state is, added up, what one stream of all of them has."""
        return True

    def prior_share(self, state: Any) -> Any:
        """Share of what the state is certain of that was its prior's, in (0, 1]; 0 where updates do not learn it."""
        return 0.0

    def state_information(self, engine: Engine, new: Any, old: Any) -> Any:
        """Information (nats) gained by the state itself."""
        return 0.0

    def log_evidence(
        self,
        engine: Engine,
        densities: Float[Array, " N"],
        outputs: Float[Array, "N K"],
        covariance: Float[Array, "M M"],
        y: Array,
        weight: Float[Array, " N"],
        state: Any,
    ) -> Float[Array, ""]:
        """What a batch says of the model that predicts it, in nats: log E[Π p(y | outputs)^weight].

        The rows' log predictive densities are added up, each as often as it weighs: that is a bound where a row weighs
        less than 1, and leaves out what rows of a batch have in common. Override it where there is a closed form.

        Args:
            engine: of float64 arrays.
            densities: log predictive density of each row.
            outputs: at the mean.
            covariance: of all rows' outputs, at unit dispersion, M = N K.
            y: targets, as :meth:`prepare` made them.
            weight: of each row, at least 0, with what its influence is bounded to.
            state: before the batch.
        """
        return engine.xp.sum(engine.xp.where(weight > 0, weight * densities, 0.0))

    # -- densities ------------------------------------------------------------------------------------------------
    @abstractmethod
    def unit_log_prob(
        self, engine: Engine, outputs: Float[Array, "*S N K"], y: Array, state: Any = ()
    ) -> Float[Array, "*S N"]:
        """Log p(y | outputs, state) at unit dispersion."""

    @abstractmethod
    def unit_score(
        self, engine: Engine, outputs: Float[Array, "N K"], y: Array, state: Any = ()
    ) -> Float[Array, "N K"]:
        """Gradient of :meth:`unit_log_prob` with respect to the outputs."""

    @abstractmethod
    def fisher_factor(self, engine: Engine, outputs: Float[Array, "N K"], state: Any = ()) -> Float[Array, "N K R"]:
        """L with L Lᵀ the (expected) Fisher information of the outputs at unit dispersion."""

    def unit_terms(
        self, engine: Engine, outputs: Float[Array, "N K"], y: Array, state: Any = ()
    ) -> tuple[Float[Array, " N"], Float[Array, "N K"], Float[Array, "N K R"]]:
        """Log probability, score and Fisher factor at unit dispersion; override it where they share work."""
        return (
            self.unit_log_prob(engine, outputs, y, state),
            self.unit_score(engine, outputs, y, state),
            self.fisher_factor(engine, outputs, state),
        )

    def expected_terms(
        self, engine: Engine, outputs: Float[Array, "S N K"], weights: Float[Array, " S"], y: Array, state: Any = ()
    ) -> tuple[Float[Array, "N K"], Float[Array, "N K K"]]:
        """Score and information at unit dispersion, averaged over S weighted nodes of the outputs.

        The information is minus the second derivative: Fisher's where that is the same, else the observed one.
        """
        xp = engine.xp
        num_nodes, num_rows, num_outputs = outputs.shape
        flat = xp.reshape(outputs, (num_nodes * num_rows, num_outputs))
        repeated = xp.reshape(xp.broadcast_to(y, (num_nodes, *y.shape)), (num_nodes * num_rows, *y.shape[1:]))
        _, scores, factors = self.unit_terms(engine, flat, repeated, state)
        score = xp.sum(weights[:, None, None] * xp.reshape(scores, outputs.shape), axis=0)
        observed = self.observed_information(engine, flat, repeated, state)
        if observed is not None:
            curvatures = xp.reshape(observed, (*outputs.shape, num_outputs))
            return score, xp.sum(weights[:, None, None, None] * curvatures, axis=0)
        weighted = xp.sqrt(weights)[:, None, None, None] * xp.reshape(factors, (*outputs.shape, -1))
        joined = xp.reshape(xp.permute_dims(weighted, (1, 2, 0, 3)), (num_rows, num_outputs, -1))
        return score, joined @ joined.mT

    def observed_information(
        self, engine: Engine, outputs: Float[Array, "N K"], y: Array, state: Any = ()
    ) -> Float[Array, "N K K"] | None:
        """Minus the second derivative of :meth:`unit_log_prob`, which may be indefinite; None where it is the Fisher
        information (or close to it).
        """
        return None

    def log_prob(self, engine: Engine, outputs: Float[Array, "*S N K"], y: Array, state: Any) -> Float[Array, "*S N"]:
        """Log p(y | outputs, state)."""
        return self.unit_log_prob(engine, outputs, y, state)

    @abstractmethod
    def mean(self, engine: Engine, outputs: Float[Array, "*S N K"], state: Any = ()) -> Array:
        """E[y | outputs]: for classes, their probabilities."""

    @abstractmethod
    def variance(self, engine: Engine, outputs: Float[Array, "*S N K"], state: Any) -> Array:
        """Var[y | outputs], elementwise: for classes, that of the indicators."""

    def class_probabilities(
        self, engine: Engine, outputs: Float[Array, "*S N K"], state: Any = ()
    ) -> Float[Array, "*S N C"]:
        """Probability of each class given the outputs.

        Raises:
            InvalidInput: y is not a class.
        """
        raise InvalidInput(f"class probabilities are for Categorical, Bernoulli and Ordinal, not for {self}")

    # -- fitting --------------------------------------------------------------------------------------------------
    def fit_parameters(self) -> tuple[float, ...]:
        """Starting values of what is fitted beside the weights."""
        return ()

    def fit_log_prob(self, engine: Engine, outputs: Float[Array, "N K"], y: Array, parameters: Any) -> Array:
        """Log p(y | outputs, parameters), shape (N,)."""
        return self.unit_log_prob(engine, outputs, y)

    def fit_log_prior(self, engine: Engine, parameters: Any) -> Any:
        """Log p(parameters)."""
        return 0.0

    # -- predictive -----------------------------------------------------------------------------------------------
    def output_nodes(
        self,
        engine: Engine,
        mean: Float[Array, "N K"],
        covariance: Float[Array, "N K K"] | None,
        standard: np.ndarray | None = None,
    ) -> tuple[Float[Array, "S N K"], Float[Array, " S"]]:
        """Nodes and weights for expectations under outputs ~ N(mean, covariance).

        Args:
            engine: the arrays' engine.
            mean: of the outputs.
            covariance: of each row's outputs; None for a single node at the mean.
            standard: equally likely draws of a standard normal distribution, (S, K), in place of the fixed nodes.
        """
        if covariance is None:
            return mean[None], engine.constant(np.ones(1), mean)
        host_nodes, host_weights = normal_nodes(mean.shape[-1])
        if standard is not None:
            host_nodes, host_weights = standard, np.full(len(standard), 1 / len(standard))
        nodes = engine.constant(host_nodes, mean)
        weights = engine.constant(host_weights, mean)
        factor = covariance_root(engine, covariance)
        return mean + node_offsets(engine, nodes, factor), weights

    def predictive_log_prob(
        self, engine: Engine, mean: Float[Array, "N K"], covariance: Float[Array, "N K K"] | None, y: Array, state: Any
    ) -> Float[Array, " N"]:
        """Log ∫ p(y | outputs) N(outputs; mean, covariance), by the nodes of :meth:`output_nodes`."""
        outputs, weights = self.output_nodes(engine, mean, covariance)
        log_weights = engine.xp.log(weights)[:, None]
        return engine.logsumexp(log_weights + self.log_prob(engine, outputs, y, state), axis=0)

    def predictive_moments(
        self, engine: Engine, mean: Float[Array, "N K"], covariance: Float[Array, "N K K"] | None, state: Any
    ) -> PredictiveMoments:
        """Moments of y under outputs ~ N(mean, covariance), by the nodes of :meth:`output_nodes`."""
        outputs, weights = self.output_nodes(engine, mean, covariance)
        weights = weights[:, None, None]
        means = self.mean(engine, outputs, state)
        average = engine.xp.sum(weights * means, axis=0)
        epistemic = engine.xp.sum(weights * (means - average) ** 2, axis=0)
        aleatoric = engine.xp.sum(weights * self.variance(engine, outputs, state), axis=0)
        return PredictiveMoments(average, epistemic, aleatoric)

    def logits(
        self, engine: Engine, mean: Float[Array, "N K"], covariance: Float[Array, "N K K"]
    ) -> tuple[Float[Array, "N C"], Float[Array, "N C C"]]:
        """Mean and covariance of the logits whose softmax are the class probabilities.

        Raises:
            InvalidInput: the class probabilities are no softmax.
        """
        raise InvalidInput(f"closed forms of class probabilities are for Categorical and Bernoulli, not for {self}")
