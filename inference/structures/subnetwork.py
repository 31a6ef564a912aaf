"""A few weights with all their correlations; the others stay points.

Daxberger et al. (2021), "Bayesian deep learning via subnetwork inference": the weights that a diagonal Laplace
approximation leaves the most uncertain carry most of the network's uncertainty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ..checks import is_count
from ..engines.base import Array, Engine
from ..errors import InvalidInput
from .base import Factors, Grown, Layers, Structure, flatten_layers, split_layers
from .diagonal import Diagonal
from .full import root_kl, root_log_determinant, root_merged, root_transition, root_update

__all__ = ["Subnetwork", "SubnetworkState"]


class SubnetworkState(NamedTuple):
    """Attributes:
    mean: (I, O) for each layer.
    indices: of the uncertain weights among all layers' flattened one after the other, ascending, (S,).
    covariance_root: a square root of the covariance of those weights, (S, S); not triangular.
    """

    mean: Layers
    indices: Int[Array, " S"]
    covariance_root: Float[Array, "S S"]


@dataclass(frozen=True)
class Subnetwork(Structure):
    """All correlations between the ``size`` weights with the largest marginal variance; the others are points.

    A batch fit takes the curvature twice: of every weight alone, to choose, and of the chosen. Before a fit the weights
    are chosen by their prior variances.

    Args:
        size: number of uncertain weights, at least 1; all of them where the network has fewer.
    """

    size: int = 1000

    state_type = SubnetworkState

    def __post_init__(self) -> None:
        if not is_count(self.size):
            raise InvalidInput(f"Subnetwork.size must be an integer of at least 1, got {self.size!r}")

    @property
    def survey(self) -> Structure:
        return Diagonal()

    def initial(self, engine: Engine, mean: Layers, precision: Layers) -> SubnetworkState:
        return self.chosen(engine, tuple(1 / p for p in precision), mean, precision)

    def chosen(self, engine: Engine, variance: Layers, mean: Layers, precision: Layers) -> SubnetworkState:
        xp = engine.xp
        order = xp.argsort(-flatten_layers(engine, variance), stable=True)
        return self._independent(engine, xp.sort(order[: self.size]), mean, precision)

    def initial_like(self, engine: Engine, state: SubnetworkState, mean: Layers, precision: Layers) -> SubnetworkState:
        return self._independent(engine, state.indices, mean, precision)

    def _independent(self, engine: Engine, indices: Array, mean: Layers, precision: Layers) -> SubnetworkState:
        xp = engine.xp
        deviations = 1 / xp.sqrt(xp.take(flatten_layers(engine, precision), indices, axis=0))
        return SubnetworkState(tuple(mean), indices, deviations[:, None] * engine.eye(deviations.shape[0], deviations))

    def scaled(self, engine: Engine, state: SubnetworkState, factor: float) -> SubnetworkState:
        return state._replace(covariance_root=state.covariance_root / factor**0.5)

    def output_covariance(
        self, engine: Engine, state: SubnetworkState, factors: Factors, *, joint: bool = False
    ) -> Array:
        rooted = _rows(engine, state, factors) @ state.covariance_root
        if joint:
            rooted = engine.xp.reshape(rooted, (-1, rooted.shape[2]))
        return rooted @ rooted.mT

    def shift(
        self, engine: Engine, state: SubnetworkState, factors: Factors, residual: Float[Array, "N K"]
    ) -> SubnetworkState:
        rows = _rows(engine, state, factors)
        gradient = engine.xp.reshape(residual, (-1,)) @ engine.xp.reshape(rows, (-1, rows.shape[2]))
        step = state.covariance_root @ (gradient @ state.covariance_root)
        return state._replace(mean=_moved(engine, state, step))

    def add_precision(
        self, engine: Engine, state: SubnetworkState, factors: Factors, fisher_factor: Float[Array, "N K R"] | None
    ) -> SubnetworkState:
        rows = _rows(engine, state, [factor.left_multiply(fisher_factor) for factor in factors])
        root = root_update(engine, state.covariance_root, rows @ state.covariance_root)
        return state._replace(covariance_root=root)

    def transition(
        self, engine: Engine, state: SubnetworkState, prior: SubnetworkState, retention: Array, growth: Layers
    ) -> SubnetworkState:
        """Points stay where they are."""
        xp = engine.xp
        own_growth = xp.take(flatten_layers(engine, growth), state.indices, axis=0)
        step = flatten_layers(engine, prior.mean) - flatten_layers(engine, state.mean)
        moved = _moved(engine, state, (1 - retention) * xp.take(step, state.indices, axis=0))
        return SubnetworkState(
            moved, state.indices, root_transition(engine, state.covariance_root, retention, own_growth)
        )

    def noise_shapes(self, state: SubnetworkState) -> tuple[tuple[int, ...], ...]:
        return ((state.covariance_root.shape[1],),)

    def sample(self, engine: Engine, state: SubnetworkState, noise: Sequence[Array]) -> Layers:
        return _moved(engine, state, noise[0] @ state.covariance_root.mT)

    def marginal_variance(self, engine: Engine, state: SubnetworkState) -> Layers:
        """0 for points."""
        root = state.covariance_root
        own = engine.xp.sum(root * root, axis=1)
        return split_layers(engine, _scatter(engine, state, own), state.mean)

    def log_determinant(self, engine: Engine, state: SubnetworkState) -> Array:
        """Of the uncertain weights' precision."""
        return root_log_determinant(engine, state.covariance_root)

    def kl(self, engine: Engine, new: SubnetworkState, old: SubnetworkState) -> Array:
        """Between posteriors of the same weights."""
        step = flatten_layers(engine, new.mean) - flatten_layers(engine, old.mean)
        own = engine.xp.take(step, new.indices, axis=0)
        return root_kl(engine, new.covariance_root, old.covariance_root, own)

    def natural(self, engine: Engine, state: SubnetworkState) -> tuple[Layers, Any]:
        """For points, whose precision is infinite, the points themselves."""
        xp = engine.xp
        precision = xp.linalg.inv(state.covariance_root @ state.covariance_root.mT)
        own = xp.take(flatten_layers(engine, state.mean), state.indices, axis=0)
        return _moved(engine, state, precision @ own - own), (state.indices, precision)

    def merged(self, engine: Engine, now: SubnetworkState, grown: Grown, gradient: Layers) -> SubnetworkState:
        """Of posteriors of the same weights."""
        xp = engine.xp
        if not all(xp.all(state.indices == now.indices) for pair in grown for state in pair):
            raise InvalidInput("subnetworks of different weights can't be merged by what they have learned")
        own = xp.take(flatten_layers(engine, gradient), now.indices, axis=0)
        roots = [(end.covariance_root, start.covariance_root) for end, start in grown]
        root, step = root_merged(engine, now.covariance_root, roots, own)
        return SubnetworkState(_moved(engine, now, step), now.indices, root)


def _rows(engine: Engine, state: SubnetworkState, factors: Factors) -> Float[Array, "N K S"]:
    """The Jacobian's columns of the uncertain weights: products of an input and a row entry each."""
    xp = engine.xp
    if any(factor.inputs.ndim > 2 for factor in factors):  # weights at several positions have no such product
        return xp.take(xp.concat([factor.dense(engine) for factor in factors], axis=2), state.indices, axis=2)
    input_of, output_of, inputs_before, outputs_before = [], [], 0, 0
    for mean in state.mean:
        num_inputs, num_outputs = mean.shape
        input_of.append(inputs_before + np.repeat(np.arange(num_inputs), num_outputs))
        output_of.append(outputs_before + np.tile(np.arange(num_outputs), num_inputs))
        inputs_before, outputs_before = inputs_before + num_inputs, outputs_before + num_outputs

    def own(table: list[np.ndarray]) -> Array:
        return xp.take(engine.constant(np.concatenate(table), state.indices), state.indices, axis=0)

    inputs = xp.take(xp.concat([factor.inputs for factor in factors], axis=1), own(input_of), axis=1)
    rows = xp.take(xp.concat([factor.rows for factor in factors], axis=2), own(output_of), axis=2)
    return inputs[:, None, :] * rows


def _scatter(engine: Engine, state: SubnetworkState, values: Float[Array, "*N S"]) -> Float[Array, "*N P"]:
    """Values of the uncertain weights among those of all; 0 for points."""
    xp = engine.xp
    count = sum(mean.shape[0] * mean.shape[1] for mean in state.mean)
    positions = engine.constant(np.arange(count), state.indices)
    place = xp.clip(xp.searchsorted(state.indices, positions), 0, state.indices.shape[0] - 1)
    found = xp.take(state.indices, place, axis=0) == positions
    return xp.take(values, place, axis=values.ndim - 1) * found


def _moved(engine: Engine, state: SubnetworkState, step: Float[Array, "*N S"]) -> Layers:
    """Weights whose uncertain ones moved from the mean."""
    steps = split_layers(engine, _scatter(engine, state, step), state.mean)
    return tuple(mean + move for mean, move in zip(state.mean, steps, strict=True))
