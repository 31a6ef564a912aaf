"""What a batch fit minimises, and the fit: layers with point weights beside layers with variational ones.

The objective is E_q(v)[-log p(y | v, θ)] + KL(q(v) ‖ p(v)) - log p(θ) for variational layers v and point layers θ. With
no variational layer it is the negative log posterior, whose minimum a Laplace approximation expands; with no point
layer it is the negative evidence lower bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .engines.base import Array, Engine, TrainingHistory
from .errors import InvalidInput, NumericalFailure
from .likelihoods.base import Likelihood
from .network import Network

__all__ = ["BatchFit", "TrainingOptions", "fit_layers", "learning_rate_schedule"]


@dataclass(frozen=True)
class TrainingOptions:
    """How a batch fit is optimised: Adam on mini-batches.

    Args:
        epochs: passes over the data; None for as many as bring about ``steps`` steps.
        steps: least number of steps when ``epochs`` is None.
        batch_size: rows of a step.
        learning_rate: peak of the schedule (linear warm-up over 5% of the steps, then a cosine to 0).
    """

    epochs: int | None = None
    steps: int = 3000
    batch_size: int = 64
    learning_rate: float = 5e-3

    def __post_init__(self) -> None:
        for name in ("epochs", "steps", "batch_size", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidInput(f"TrainingOptions.{name} must be positive, got {value!r}")


@dataclass(frozen=True)
class BatchFit:
    """Attributes:
    mean: of each layer's weights.
    standard_deviation: of each variational layer's weights; None for point layers.
    likelihood_parameters: see :meth:`Likelihood.fit_parameters`.
    history: mean objective per row, for each epoch.
    """

    mean: tuple[Array, ...]
    standard_deviation: tuple[Array | None, ...]
    likelihood_parameters: tuple[Array, ...]
    history: TrainingHistory


def learning_rate_schedule(steps: int, peak: float) -> np.ndarray:
    """Linear warm-up over the first 5%, then a cosine to 0; shape (steps,)."""
    warm = max(1, steps // 20)
    progress = np.clip((np.arange(steps) - warm) / max(1, steps - warm), 0, 1)
    return peak * np.minimum(1, (np.arange(steps) + 1) / warm) * 0.5 * (1 + np.cos(math.pi * progress))


def fit_layers(
    engine: Engine,
    network: Network,
    likelihood: Likelihood,
    prior_precision: Sequence[np.ndarray],
    initial_deviations: Sequence[float | None],
    start: Sequence[np.ndarray],
    x: Array,
    y: Array,
    weight: Array,
    options: TrainingOptions,
    seed: int,
    on_epoch: Callable[[int, int, float], None] | None = None,
) -> BatchFit:
    """Minimise the objective.

    Args:
        engine: with gradients.
        network: the network.
        likelihood: the observation model.
        prior_precision: of each weight, one matrix per layer; the prior mean is 0.
        initial_deviations: for each layer with variational weights, their starting standard deviation relative to
            the prior's; None for layers with point weights.
        start: where the means start.
        x: inputs (N, I).
        y: prepared targets.
        weight: of each row (N,).
        options: of the optimiser.
        seed: of the mini-batches and of the noise.
        on_epoch: called with the epoch, their number and the epoch's mean objective per row.

    Raises:
        NumericalFailure: the objective became infinite or undefined.
    """
    xp = engine.xp
    num_rows = int(x.shape[0])
    precisions = [engine.asarray(precision) for precision in prior_precision]
    variational = [deviation is not None for deviation in initial_deviations]
    free = [
        np.log(deviation / np.sqrt(precision))
        for precision, deviation in zip(prior_precision, initial_deviations, strict=True)
        if deviation is not None
    ]
    parameters = (
        tuple(engine.asarray(matrix) for matrix in start),
        tuple(engine.asarray(log_deviation) for log_deviation in free),
        tuple(engine.asarray(np.float64(value)) for value in likelihood.fit_parameters()),
    )

    def deviations_of(log_deviations: Sequence[Array]) -> list[Array | None]:
        remaining = iter(log_deviations)
        return [xp.exp(next(remaining)) if flag else None for flag in variational]

    def loss(parameters: Any, batch: Sequence[Array], key: Any) -> Array:
        means, log_deviations, extra = parameters
        rows, targets, row_weight = batch
        deviations = deviations_of(log_deviations)
        if log_deviations:
            shapes = network.noise_shapes(rows.shape[0], means)
            noise = [
                engine.normal(engine.fold_in(key, i), shape) if flag else None
                for i, (shape, flag) in enumerate(zip(shapes, variational, strict=True))
            ]
            outputs = network.apply_with_noise(engine, means, deviations, rows, noise)
        else:
            outputs = network.apply(engine, means, rows)
        fit = xp.sum(row_weight * likelihood.fit_log_prob(engine, outputs, targets, extra)) / rows.shape[0]
        penalty = -likelihood.fit_log_prior(engine, extra)
        for mean, deviation, precision in zip(means, deviations, precisions, strict=True):
            penalty = penalty + 0.5 * xp.sum(precision * mean * mean)
            if deviation is not None:
                scaled = precision * deviation * deviation
                penalty = penalty + 0.5 * xp.sum(scaled - 1 - xp.log(scaled))
        return penalty / num_rows - fit

    batch_size = min(options.batch_size, num_rows)
    per_epoch = max(1, num_rows // batch_size)
    epochs = options.epochs or math.ceil(options.steps / per_epoch)
    rng = np.random.default_rng(seed)
    batches = np.stack([rng.permutation(num_rows)[: per_epoch * batch_size] for _ in range(epochs)])
    batches = batches.reshape(epochs, per_epoch, batch_size)
    rates = learning_rate_schedule(epochs * per_epoch, options.learning_rate).reshape(epochs, per_epoch)
    report = None if on_epoch is None else (lambda epoch, value: on_epoch(epoch, epochs, value))
    (means, log_deviations, extra), history = engine.minimise(
        loss, parameters, (x, y, weight), batches, rates, seed, report
    )
    if not np.isfinite(history[-1]):
        raise NumericalFailure(
            f"the objective became {history[-1]} in epoch {len(history)} of {epochs}; lower learning_rate "
            f"({options.learning_rate}), or standardise the inputs"
        )
    with engine.scope():
        return BatchFit(means, tuple(deviations_of(log_deviations)), extra, history)
