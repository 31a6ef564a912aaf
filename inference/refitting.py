"""Learning a stretch of a stream again, all of it at once: Laplace's approximation around an earlier posterior.

The mean is the mode of the rows' likelihood times the normal posterior N(m₀, Λ₀⁻¹) from before them, found by gradient
descent, and the precision is Λ₀ plus the rows' Gauss-Newton curvature there: online Laplace (Ritter, Botev and Barber
2018, "Online structured Laplace approximations for overcoming catastrophic forgetting"). What is remembered of the
time before adds its divergence from what was known of it then (:mod:`.remembering`), and no curvature: Λ₀ has that::

    θ* = argmin  -Σ log p(y | θ)  +  λ ½ (θ - m₀)ᵀ Λ₀ (θ - m₀)  +  Σ_remembered  w D(θ)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .engines.base import Array, Engine, map_arrays
from .errors import InvalidInput, NumericalFailure
from .likelihoods.base import Likelihood
from .likelihoods.masked import MaskedTargets, masked
from .network import Network
from .remembering import divergence
from .structures.base import Layers, Structure, chunk_rows
from .training import TrainingOptions, batch_plan

__all__ = ["Refit", "RefitRows"]


class RefitRows(NamedTuple):
    """Scaled rows on the host.

    Attributes:
        x: inputs, (N, I).
        y: targets, as the likelihood prepared them.
        weight: of each, (N,).
        mask: which outputs each tells of, (N, K); None for all.
        outputs: that are remembered, (N, K); None where the rows are learned.
    """

    x: np.ndarray
    y: np.ndarray
    weight: np.ndarray
    mask: np.ndarray | None = None
    outputs: np.ndarray | None = None


class _State(NamedTuple):
    """What the training loop carries: means, the posterior before and the likelihood's state, Adam's moments."""

    mean: Layers
    before: Any
    moments: Any


@dataclass(frozen=True)
class Refit:
    """A fit of rows that starts from what was known before them.

    Args:
        engine: runs it.
        network: the network.
        likelihood: the observation model of whole rows.
        structure: of the posterior, resolved.
        training: how long and how fast.
        tether: λ, the share of the earlier posterior's pull that the mean is held by, in (0, 1].
        seed: of the order of the rows.
    """

    engine: Engine
    network: Network
    likelihood: Likelihood
    structure: Structure
    training: TrainingOptions
    tether: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.engine.has_gradients:
            raise InvalidInput(f"engine {self.engine.name!r} has no gradients: consolidate with 'torch' or 'jax'")
        if self.training.validation or self.training.kl_warmup:
            raise InvalidInput("training must be without validation and kl_warmup for a consolidation")
        if not 0 < self.tether <= 1:
            raise InvalidInput(f"tether must be in (0, 1], got {self.tether!r}")

    def run(self, before: Any, state: Any, start: Layers, rows: RefitRows, remembered: RefitRows | None) -> Any:
        """The structure's state after the rows.

        Args:
            before: the structure's state before the rows.
            state: of the likelihood, at which it is held.
            start: means to start from.
            rows: to learn.
            remembered: of the time before; None where nothing is.

        Raises:
            NumericalFailure: the fit diverged.
        """
        has_mask = any(part is not None and part.mask is not None for part in (rows, remembered))
        likelihood = masked(self.likelihood) if has_mask else self.likelihood
        data = self._data(rows, remembered, has_mask)
        count = 0 if remembered is None else len(remembered.x)
        mean = self._train(likelihood, data, len(rows.x), count, _State(start, (before, state), None))
        with self.engine.scope():
            around = self.structure.replace_mean(before, mean)
        learned = self._add_curvature(likelihood, around, state, data, len(rows.x))
        arrays = self.structure.to_arrays(self.engine, learned)
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise NumericalFailure(f"the consolidation diverged; lower learning_rate ({self.training.peak_rate})")
        return learned

    def _data(self, rows: RefitRows, remembered: RefitRows | None, has_mask: bool) -> tuple[Array, ...]:
        """Rows to learn, and remembered ones after them: inputs, targets, weights, remembered outputs, masks."""
        size = self.likelihood.num_outputs
        parts = [part for part in (rows, remembered) if part is not None]
        blank = [np.zeros((len(part.x), size)) if part.outputs is None else part.outputs for part in parts]
        columns = [[part.x for part in parts], [part.y for part in parts], [part.weight for part in parts], blank]
        if has_mask:
            whole = [np.ones((len(part.x), size), dtype=bool) if part.mask is None else part.mask for part in parts]
            columns.append(whole)
        return tuple(self.engine.as_batch(np.concatenate(column)) for column in columns)

    def _train(
        self, likelihood: Likelihood, data: tuple[Array, ...], num_rows: int, num_remembered: int, start: _State
    ) -> Layers:
        engine = self.engine
        _, plan = batch_plan(self.training, np.arange(num_rows), self.seed)
        first, *rest = plan
        batch_size = first[0].shape[-1]
        share = min(2 * batch_size, num_remembered)  # they stand for more rows than the others
        step = self._step(likelihood, batch_size, num_rows, num_remembered / num_rows)
        rng = np.random.default_rng([self.seed, 1])

        def epochs() -> Any:
            for batches, numbers in (first, *rest):
                drawn = num_rows + rng.integers(0, max(1, num_remembered), (len(batches), share))
                yield np.concatenate([batches, drawn], axis=1), numbers

        state = start._replace(moments=engine.adam_moments(start.mean))
        state, history = engine.train(step, state, data, epochs(), self.seed)
        if not np.isfinite(history[-1]).all():
            raise NumericalFailure(f"the consolidation diverged; lower learning_rate ({self.training.peak_rate})")
        return tuple(state.mean)

    def _step(
        self, likelihood: Likelihood, batch_size: int, num_rows: int, per_row: float
    ) -> Callable[[_State, Sequence[Array], Any, Array], tuple[_State, Array]]:
        """A step of Adam. The pull of the posterior before is taken as it is, not differentiated through."""
        engine, xp, structure = self.engine, self.engine.xp, self.structure

        def objective(mean: Layers, before: Any, batch: Sequence[Array]) -> tuple[Array, Array]:
            prior, state = before
            x, y, weight, then, *mask = batch
            outputs = self.network.apply(engine, mean, x)
            own = map_arrays(lambda array: xp.astype(array, outputs.dtype), state)
            new, old = slice(0, batch_size), slice(batch_size, None)

            def targets(chosen: slice) -> Any:
                return MaskedTargets(y[chosen], mask[0][chosen]) if mask else y[chosen]

            fit = xp.sum(weight[new] * likelihood.unit_log_prob(engine, outputs[new], targets(new), own)) / batch_size
            steps = tuple(now - was for now, was in zip(mean, structure.mean(prior), strict=True))
            held = structure.replace_mean(prior, map_arrays(engine.stop_gradient, steps))
            pull = engine.cast(tuple(structure.natural(engine, held)[0]))
            tether = self.tether / num_rows * sum(xp.sum(p * s) for p, s in zip(pull, steps, strict=True))
            forgotten = 0.0 * fit
            if x.shape[0] > batch_size:
                beyond = divergence(engine, likelihood, outputs[old], then[old], targets(old), own)
                forgotten = per_row * xp.sum(weight[old] * beyond) / (x.shape[0] - batch_size)
            complexity = 0.5 * tether + forgotten
            return tether + forgotten - fit, xp.stack([complexity - fit, fit, complexity])

        gradient_of = engine.value_and_grad(objective, has_aux=True)

        def step(state: _State, batch: Sequence[Array], key: Any, numbers: Array) -> tuple[_State, Array]:
            (_, report), gradient = gradient_of(state.mean, state.before, batch)
            mean, moments = engine.adam(state.mean, gradient, state.moments, numbers[0])
            return _State(mean, state.before, moments), report

        return step

    def _add_curvature(
        self, likelihood: Likelihood, weights: Any, state: Any, data: tuple[Array, ...], num_rows: int
    ) -> Any:
        """The precision with the Gauss-Newton curvature of the rows, at the mean."""
        engine, structure, network = self.engine, self.structure, self.network
        needed = structure.uses_factors(network.num_layers)

        def add(now: Any, own: Any, first: Array, own_weight: Array, arrays: tuple[Array, ...]) -> Any:
            x, y, _, _, *mask = (engine.slice_rows(array, first, own_weight.shape[0]) for array in arrays)
            targets = MaskedTargets(y, mask[0]) if mask else y

            def directions(outputs: Array) -> Array:
                given = map_arrays(lambda array: engine.xp.astype(array, outputs.dtype), own)
                factor = likelihood.unit_terms(engine, outputs, targets, given)[2]
                return engine.xp.sqrt(own_weight)[:, None, None] * factor

            _, factors = network.factors(engine, structure.mean(now), x, directions, needed)
            return structure.add_precision(engine, now, factors, None)

        step, weight = engine.jit(add), engine.to_numpy(data[2])
        size = min(chunk_rows(likelihood.num_outputs, structure.chunk_columns), num_rows)
        for start in range(0, num_rows, size):  # the last chunk reaches back, where its rows have weight 0
            first = min(start, num_rows - size)
            own = np.where(np.arange(first, first + size) < start, 0.0, weight[first : first + size])
            weights = step(weights, state, engine.asarray(first, "int32"), engine.asarray(own), data)
        return weights
