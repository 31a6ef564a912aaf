"""Outputs of a model's network under its posterior, on the host; what was compiled or prepared for them is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .batches import fixed_size_chunks
from .inference.engines import Engine, map_arrays
from .inference.filtering import Posterior
from .inference.kinds import Place
from .inference.likelihoods import Likelihood
from .inference.network import Network
from .inference.structures import Structure

__all__ = ["Answering"]

_SAMPLES_AT_ONCE = 16


class Answering:
    """Answers for one network, structure and likelihood; the posterior is an argument.

    Args:
        engine: of the arrays.
        network: the network.
        structure: of one posterior.
        likelihood: in the units of the scaled targets.
        place: of the likelihood among those of several kinds of feedback.
    """

    def __init__(
        self,
        engine: Engine,
        network: Network,
        structure: Structure,
        likelihood: Likelihood,
        place: Place | None = None,
    ) -> None:
        self._engine, self._network, self._structure, self._likelihood = engine, network, structure, likelihood
        self._place = place
        self._compiled: dict[str, Callable[..., Any]] = {}
        self._prepared: dict[int, tuple[Any, Any, int]] = {}

    def likelihood_state(self, posterior: Posterior) -> Any:
        """The likelihood's state on the host."""
        states = posterior.likelihood
        return map_arrays(self._engine.to_numpy, states if self._place is None else self._place.state(states))

    def dispersion(self, posterior: Posterior) -> float:
        """Of the weights: the first kind's, at its estimate."""
        if self._place is None:
            return float(self._likelihood.dispersion(self.likelihood_state(posterior)))
        first = map_arrays(self._engine.to_numpy, posterior.likelihood[0])
        return float(self._place.first.dispersion(first))

    def outputs(self, posterior: Posterior, x: np.ndarray) -> np.ndarray:
        """Outputs at the mean weights, (N, K), float64."""
        engine, network = self._engine, self._network
        apply = self._cached("outputs", lambda mean, rows: network.apply(engine, mean, rows))
        mean = self._structure.mean(posterior.weights)
        return self._collect([(apply(mean, rows),) for rows in fixed_size_chunks(engine, x)], len(x))[0]

    def linearized(
        self, posterior: Posterior, x: np.ndarray, what: str = "covariance", member: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Outputs of the network linearised at the mean: their mean (N, K), and their spread due to the weights.

        Args:
            posterior: of one network.
            x: scaled inputs.
            what: ``"covariance"``, (N, K, K), or its diagonal, ``"variance"``, (N, K).
            member: under which number to keep what is prepared of the posterior.
        """
        engine, structure, network = self._engine, self._structure, self._network
        needed = structure.uses_factors(network.num_layers)
        spread_of = structure.predictive_variance if what == "variance" else structure.predictive_covariance

        def moments(mean: Any, prepared: Any, rows: Any) -> Any:
            outputs, factors = network.factors(engine, mean, rows, needed=needed)
            return outputs, spread_of(engine, prepared, factors)

        compiled = self._cached(what, moments)
        mean, prepared = structure.mean(posterior.weights), self._prepare(posterior.weights, len(x), member)
        parts = [compiled(mean, prepared, rows) for rows in fixed_size_chunks(engine, x)]
        outputs, spread = self._collect(parts, len(x))
        return outputs, spread * self.dispersion(posterior)

    def joint(self, posterior: Posterior, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`linearized`, with the covariance between all rows: (N, K) and (N·K, N·K)."""
        engine, structure, network = self._engine, self._structure, self._network
        padded = x[np.minimum(np.arange(1 << (len(x) - 1).bit_length()), len(x) - 1)]

        def moments(weights: Any, rows: Any) -> Any:
            outputs, factors = network.factors(engine, structure.mean(weights), rows)
            return outputs, structure.output_covariance(engine, weights, factors, joint=True)

        parts = self._cached("joint", moments)(posterior.weights, engine.asarray(padded))
        outputs, covariance = (engine.to_numpy(part).astype(np.float64) for part in parts)
        size = len(x) * outputs.shape[1]
        return outputs[: len(x)], covariance[:size, :size] * self.dispersion(posterior)

    def _prepare(self, weights: Any, rows: int, member: int) -> Any:
        """The posterior, or what its structure makes of it once so many rows were asked that this pays."""
        engine, structure, last = self._engine, self._structure, self._network.output_layer
        known, prepared, asked = self._prepared.get(member, (None, None, 0))
        if known is not weights:
            prepared, asked = weights, 0
        asked += rows
        least = structure.rows_worth_preparing(weights, last)
        if prepared is weights and least is not None and asked >= least:
            prepared = self._cached("prepare", lambda state: structure.prepare(engine, state, last))(weights)
        self._prepared[member] = (weights, prepared, asked)
        return prepared

    def sampled(self, posterior: Posterior, x: np.ndarray, num_samples: int, seed: int) -> tuple[np.ndarray, Any]:
        """Outputs of sampled networks (S, N, K), and the likelihood's state drawn with each."""
        engine, network = self._engine, self._network

        def outputs_of(weights: Any, noise: Any, scale: Any, rows: Any) -> Any:
            mean, deviations = self._draw(weights, noise, scale)
            drawn = tuple(m + step for m, step in zip(mean, deviations, strict=True))
            return network.apply(engine, drawn, rows)

        compiled = self._cached("samples", outputs_of)
        states, spread = self._draw_states(posterior, num_samples, seed)
        key = engine.key(seed)
        columns = []
        for start in range(0, num_samples, _SAMPLES_AT_ONCE):
            size = min(_SAMPLES_AT_ONCE, num_samples - start)
            with engine.scope():
                noise = self._noise(engine.fold_in(key, start), posterior, size)
            scale = engine.asarray(spread[start : start + size])
            chunks = fixed_size_chunks(engine, x)
            parts = [engine.to_numpy(compiled(posterior.weights, noise, scale, rows)) for rows in chunks]
            columns.append(np.concatenate(parts, axis=1)[:, : len(x)])
        return np.concatenate(columns).astype(np.float64), states

    def weight_deviations(self, posterior: Posterior, num_samples: int, seed: int) -> tuple[Any, Any]:
        """The mean weights, and deviations from them of as many draws, (S, ...) for each layer."""
        engine = self._engine
        _, spread = self._draw_states(posterior, num_samples, seed)
        with engine.scope():
            noise = self._noise(engine.key(seed), posterior, num_samples)
            return self._draw(posterior.weights, noise, engine.asarray(spread))

    def weight_draws(self, posterior: Posterior, num_samples: int, seed: int) -> tuple[tuple[np.ndarray, ...], Any]:
        """Drawn weights (S, ...) of each layer, and the likelihood's state with each, on the host."""
        mean, deviations = self.weight_deviations(posterior, num_samples, seed)
        with self._engine.scope():
            drawn = [m + step for m, step in zip(mean, deviations, strict=True)]
        host = [self._engine.to_numpy(layer) for layer in drawn]
        spread = [
            layer if layer.ndim > m.ndim else np.broadcast_to(layer, (num_samples, *layer.shape))
            for layer, m in zip(host, mean, strict=True)
        ]
        return tuple(spread), self._draw_states(posterior, num_samples, seed)[0]

    def _draw(self, weights: Any, noise: Any, scale: Any) -> tuple[Any, Any]:
        mean = self._structure.mean(weights)
        drawn = self._structure.sample(self._engine, weights, noise)
        return mean, tuple(  # points have no axis of draws
            d - m if d.ndim == m.ndim else scale[(..., *[None] * m.ndim)] * (d - m)
            for m, d in zip(mean, drawn, strict=True)
        )

    def _noise(self, key: Any, posterior: Posterior, size: int) -> tuple[Any, ...]:
        engine, shapes = self._engine, self._structure.noise_shapes(posterior.weights)
        return tuple(engine.normal(engine.fold_in(key, i), (size, *shape)) for i, shape in enumerate(shapes))

    def _draw_states(self, posterior: Posterior, num_samples: int, seed: int) -> tuple[Any, np.ndarray]:
        """The likelihood's state drawn for each sample, and the square roots of their dispersions."""
        state = self.likelihood_state(posterior)
        repeated = map_arrays(lambda array: np.stack([array] * num_samples), state)
        states = self._likelihood.draw_state(np.random.default_rng(seed), repeated)
        if self._place is None or self._place.index == 0:
            return states, np.broadcast_to(np.sqrt(self._likelihood.dispersion(states)), num_samples)
        return states, np.full(num_samples, np.sqrt(self.dispersion(posterior)))

    def _collect(self, parts: list[tuple[Any, ...]], rows: int) -> list[np.ndarray]:
        to_numpy = self._engine.to_numpy
        pieces = [np.concatenate([to_numpy(p) for p in part])[:rows] for part in zip(*parts, strict=True)]
        return [piece.astype(np.float64) for piece in pieces]

    def _cached(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        if name not in self._compiled:
            self._compiled[name] = self._engine.jit(function)
        return self._compiled[name]
