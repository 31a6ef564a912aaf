"""The training loop of batch methods: mini-batches, for one network or for several at once.

Members of an ensemble (or candidates of a search) have a leading axis: each has its own start, prior, mini-batches,
noise and weights of rows, and all of them take a step together under vmap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from .engines.base import Array, map_arrays, map_trees
from .errors import InvalidInput, NumericalFailure
from .methods import FitProblem
from .objective import Parameters, Terms, WeightPrior
from .resuming import from_leaves, to_leaves
from .steps import Adam, Optimizer, Step, StepState

__all__ = [
    "Trained",
    "TrainingOptions",
    "batch_plan",
    "batch_size_for",
    "check_training",
    "learning_rate_schedule",
    "minimise",
    "share_of",
    "start_parameters",
    "train",
    "weight_prior",
]

_PASSES = 75
_LOOKS = 100  # at the held-out rows, spread over the epochs
_START_ROWS = 10_000  # that say how large a layer's inputs are
_ROWS_AT_ONCE = 500


@dataclass(frozen=True)
class TrainingOptions:
    """How a batch fit is optimised on mini-batches.

    Args:
        epochs: passes over the data; None for as many as bring about ``steps`` steps.
        steps: least number of steps when ``epochs`` is None.
        batch_size: rows of a step; None for as many, from 32 to 256, as bring about 75 passes in ``steps`` steps.
        learning_rate: peak of the schedule (linear warm-up over 5% of the steps, then a cosine to 0); None for the
            optimizer's own: 0.005 for Adam, 0.5 for IVON, which counts in Newton steps.
        validation: share of the rows (of those of weight above 0) to hold out, in [0, 1); the weights of the epoch that
            predicts them best, by their mean log probability at the mean weights, are the ones kept.
        patience: how many looks at the held-out rows (at most 100 over a fit) may pass without an improvement before
            training ends; None: never.
        kl_warmup: share of the steps over which the weight of the KL term rises from 0 to 1, in [0, 1].
    """

    epochs: int | None = None
    steps: int = 3000
    batch_size: int | None = None
    learning_rate: float | None = None
    validation: float = 0.0
    patience: int | None = None
    kl_warmup: float = 0.0

    def __post_init__(self) -> None:
        for name in ("epochs", "steps", "batch_size", "learning_rate", "patience"):
            value = getattr(self, name)
            if value is None and name != "steps":
                continue
            number = _is_number(value) and math.isfinite(value) and value > 0
            if not number or (name != "learning_rate" and value != int(value)):
                kind = "a positive number" if name == "learning_rate" else "a positive integer"
                raise InvalidInput(f"TrainingOptions.{name} must be {kind}, got {value!r}")
            if name != "learning_rate":
                object.__setattr__(self, name, int(value))
        if not _is_number(self.validation) or not 0 <= self.validation < 1:
            raise InvalidInput(f"TrainingOptions.validation must be in [0, 1), got {self.validation!r}")
        if not _is_number(self.kl_warmup) or not 0 <= self.kl_warmup <= 1:
            raise InvalidInput(f"TrainingOptions.kl_warmup must be in [0, 1], got {self.kl_warmup!r}")
        if self.patience is not None and not self.validation:
            raise InvalidInput("TrainingOptions.patience needs held-out rows: set validation, for instance to 0.1")

    @property
    def peak_rate(self) -> float:
        """The learning rate; that of Adam where it is not told."""
        return Adam.learning_rate if self.learning_rate is None else self.learning_rate


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def check_training(method: Any) -> None:
    """Raise :class:`InvalidInput` unless a method's ``training`` is :class:`TrainingOptions`."""
    if not isinstance(method.training, TrainingOptions):
        raise InvalidInput(f"{type(method).__name__}.training must be TrainingOptions, got {method.training!r}")


class Trained(NamedTuple):
    """Attributes:
    parameters: the fitted parameters, in the form that the first step was given; with members, their arrays have a
        leading axis.
    history: :class:`Terms` of each epoch, shape (epochs, 3), averaged over members.
    validation: epoch and mean log probability of the held-out rows at each look, averaged over members.
    """

    parameters: Any
    history: np.ndarray
    validation: list[tuple[int, float]]


def learning_rate_schedule(steps: int, peak: float) -> np.ndarray:
    """Linear warm-up over the first 5%, then a cosine to 0; shape (steps,)."""
    warm = max(1, steps // 20)
    progress = np.clip((np.arange(steps) - warm) / max(1, steps - warm), 0, 1)
    return peak * np.minimum(1, (np.arange(steps) + 1) / warm) * 0.5 * (1 + np.cos(math.pi * progress))


def share_of(options: TrainingOptions, rounds: int) -> TrainingOptions:
    """The options of one of several rounds, which share the steps of a training."""
    if rounds == 1:
        return options
    epochs = None if options.epochs is None else max(1, options.epochs // rounds)
    return replace(options, epochs=epochs, steps=max(1, options.steps // rounds))


def start_parameters(
    problem: FitProblem, deviations: Sequence[float | None], seed: int, curvature: float = 0.0
) -> Parameters:
    """Where one network starts.

    The standard deviation s of a variational weight is given by 1/s² = p/d² + κ Σ a², for the prior's precision p and
    the sum over all rows of the squares of the layer's input a that the weight multiplies, with the means as they
    start: what the data can't tell, such as the weight of an input that is always 0, starts at d of the prior's.

    Args:
        problem: what to fit.
        deviations: d of each variational layer; None for point layers.
        seed: of the means.
        curvature: κ.
    """
    engine = problem.engine
    means = tuple(engine.asarray(matrix) for matrix in problem.start(seed))
    squares = _input_squares(problem, means) if curvature else [np.zeros(1)] * len(deviations)
    free = [
        -0.5 * np.log(precision / deviation**2 + curvature * np.reshape(total, (-1, 1)))
        for precision, deviation, total in zip(problem.prior_precision, deviations, squares, strict=True)
        if deviation is not None
    ]
    return Parameters(
        means,
        tuple(engine.asarray(log_deviation) for log_deviation in free),
        tuple(engine.asarray(np.float64(value)) for value in problem.likelihood.fit_parameters()),
    )


def _input_squares(problem: FitProblem, means: tuple[Array, ...]) -> list[np.ndarray]:
    """Σ a² over the rows, estimated from some of them, for each input of each layer."""
    engine, network = problem.engine, problem.network
    chosen = np.unique(np.linspace(0, len(problem.weight) - 1, _START_ROWS).astype(int))

    def squares(x: Array, weight: Array) -> tuple[Array, ...]:
        _, factors = network.factors(engine, means, x)
        return tuple(
            engine.xp.zeros_like(weight[:1]) if factor is None else _weighted_squares(engine.xp, factor.inputs, weight)
            for factor in factors
        )

    compiled = engine.jit(squares)
    totals: list[Any] = [0.0] * len(means)
    for rows in np.array_split(chosen, max(1, len(chosen) // _ROWS_AT_ONCE)):
        with engine.scope():
            parts = compiled(problem.x[rows], engine.asarray(problem.weight[rows]))
        totals = [total + engine.to_numpy(part) for total, part in zip(totals, parts, strict=True)]
    return [total * len(problem.weight) / len(chosen) for total in totals]


def _weighted_squares(xp: Any, inputs: Array, weight: Array) -> Array:
    """Over all axes of the inputs but the last; the first is the rows."""
    shape = (-1,) + (1,) * (inputs.ndim - 1)
    return xp.sum(xp.reshape(weight, shape) * inputs * inputs, axis=tuple(range(inputs.ndim - 1)))


def train(
    problem: FitProblem,
    start: Parameters,
    prior_precision: tuple[Array, ...],
    variational: Sequence[bool],
    options: TrainingOptions,
    optimizer: Optimizer,
    rows: np.ndarray,
) -> Trained:
    """Minimise the objective.

    Args:
        problem: what to fit.
        start: from :func:`start_parameters`; for several members, stacked.
        prior_precision: of each weight, in the form of the means.
        variational: for each layer, whether its weights are variational.
        options: how long, how fast, with what rows held out.
        optimizer: what steps are taken.
        rows: indices of the rows to learn from, (n,), or (members, n) for several.

    Raises:
        NumericalFailure: the objective became infinite or undefined, for several members that of every one.
    """
    prior = weight_prior(problem, prior_precision, variational, rows)
    memory = optimizer.memory(problem, start, prior_precision, variational)
    if options.learning_rate is None:
        options = replace(options, learning_rate=optimizer.learning_rate)
    return minimise(
        problem,
        lambda chosen: optimizer.step(problem, variational, chosen),
        StepState(start, prior, memory),
        options,
        rows,
        lambda parameters: parameters.mean,
    )


def minimise(
    problem: FitProblem,
    step_on: Callable[[np.ndarray], Step],
    start: StepState,
    options: TrainingOptions,
    rows: np.ndarray,
    mean_of: Callable[[Any], tuple[Array, ...]],
) -> Trained:
    """Repeat a step over mini-batches.

    Args:
        problem: what to fit.
        step_on: the step, given the indices of the rows that are learned from.
        start: what the first step is given.
        options: how long, how fast, with what rows held out.
        rows: as for :func:`train`.
        mean_of: the mean weights of parameters, which held-out rows are predicted with.

    Raises:
        InvalidInput: too few rows to hold any out.
        NumericalFailure: as for :func:`train`.
    """
    engine = problem.engine
    rows, held_out = _hold_out(rows, problem.weight, options.validation, problem.seed)
    num_epochs, plan = batch_plan(options, rows, problem.seed)
    watch = _Watch(problem, held_out, num_epochs, options.patience, mean_of)
    state = watch.resume(start)
    if not watch.ended:
        state, _ = engine.train(
            step_on(rows),
            state,
            (problem.x, problem.y, engine.asarray(problem.weight)),
            islice(plan, len(watch.reports), None),
            problem.seed,
            watch.on_epoch,
            len(watch.reports),
        )
    reports = np.stack(watch.reports)
    last = reports[-1].reshape(len(Terms._fields), -1)
    if not np.isfinite(last).all(axis=0).any():  # of several, those that failed do so for whoever asks for them
        raise NumericalFailure(
            f"the objective became {last[0, 0]} in epoch {len(reports)} of {num_epochs}; lower learning_rate "
            f"({options.peak_rate}), or standardise the inputs"
        )
    history = reports.reshape(*reports.shape[:2], -1).mean(axis=-1)
    return Trained(watch.best or state.parameters, history, watch.looks)


def weight_prior(
    problem: FitProblem, precision: tuple[Array, ...], variational: Sequence[bool], rows: np.ndarray
) -> WeightPrior:
    """The prior with what its divergences have in common; of several members, whose rows have an axis, for each."""
    xp, leading = problem.engine.xp, rows.shape[:-1]
    with problem.engine.scope():
        layers = [xp.reshape(p, (*leading, -1)) for p in precision]
        logarithms = [xp.log(p) if flag else xp.zeros_like(p) for p, flag in zip(layers, variational, strict=True)]
        shared = tuple(_shared_by_columns(xp, p) for p in precision)
        return WeightPrior(shared, tuple(xp.sum(values, axis=-1) for values in logarithms))


def _shared_by_columns(xp: Any, precision: Array) -> Array:
    """One column where all are equal, as those of :class:`NormalPrior` are: so much less to read in every step."""
    first = precision[..., :1]
    return xp.asarray(first, copy=True) if precision.ndim > 1 and bool(xp.all(precision == first)) else precision


def batch_size_for(num_rows: int, steps: int) -> int:
    """Rows of a step, from 32 to 256, that bring about 75 passes in so many steps."""
    return int(np.clip(math.ceil(_PASSES * num_rows / steps), 32, 256))


def _hold_out(rows: np.ndarray, weight: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to learn from, and rows to look at: the same number of each member's rows, of those that weigh something."""
    if not share:
        return rows, rows[..., :0]
    count = (weight[rows] > 0).sum(axis=-1).min()
    held = min(round(share * count), count - 1)
    if held < 1:
        raise InvalidInput(
            f"TrainingOptions.validation must hold out at least one row of weight above 0 and leave one, "
            f"got {share!r} of {count}"
        )
    shuffled = np.random.default_rng(seed).permuted(rows, axis=-1)
    weighs = weight[shuffled] > 0
    chosen = weighs & (np.cumsum(weighs, axis=-1) <= held)
    leading = rows.shape[:-1]
    return shuffled[~chosen].reshape(*leading, -1), shuffled[chosen].reshape(*leading, -1)


def batch_plan(
    options: TrainingOptions, rows: np.ndarray, seed: int
) -> tuple[int, Iterator[tuple[np.ndarray, np.ndarray]]]:
    """How many epochs there are, and row indices (steps, batch) or (steps, members, batch) of each, with learning rate
    and β of each step.

    Args:
        options: how long and how fast.
        rows: as for :func:`train`.
        seed: of the order of the rows.
    """
    batch_size = min(options.batch_size or batch_size_for(rows.shape[-1], options.steps), rows.shape[-1])
    per_epoch = max(1, rows.shape[-1] // batch_size)
    num_epochs = options.epochs or math.ceil(options.steps / per_epoch)
    rates = learning_rate_schedule(num_epochs * per_epoch, options.peak_rate)
    warm = max(1.0, options.kl_warmup * len(rates))
    kl_weights = np.minimum(1.0, (np.arange(len(rates)) + 1) / warm)
    schedule = np.stack([rates, kl_weights], axis=1).reshape(num_epochs, per_epoch, 2)

    def epochs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        rng = np.random.default_rng(seed)
        for epoch in range(num_epochs):
            order = rng.permuted(rows, axis=-1)[..., : per_epoch * batch_size]
            batches = order.reshape(*rows.shape[:-1], per_epoch, batch_size)
            yield np.moveaxis(batches, -2, 0), schedule[epoch]

    return num_epochs, epochs()


class _Watch:
    """Reports epochs, looks at the held-out rows and keeps the parameters that predicted them best."""

    def __init__(
        self,
        problem: FitProblem,
        held_out: np.ndarray,
        num_epochs: int,
        patience: int | None,
        mean_of: Callable[[Any], tuple[Array, ...]],
    ) -> None:
        self.reports: list[np.ndarray] = []
        self.ended = False
        self.looks: list[tuple[int, float]] = []
        self.best: Any = None
        self._best_scores: Any = None
        self._since = 0
        self._problem, self._num_epochs, self._patience = problem, num_epochs, patience
        self._every = max(1, num_epochs // _LOOKS)
        data = (problem.x, problem.y, problem.engine.asarray(problem.weight))
        self._rows = tuple(array[held_out] for array in data) if held_out.shape[-1] else None
        self._score = self._compile(held_out.ndim == 2, mean_of)

    def _compile(self, members: bool, mean_of: Callable[[Any], tuple[Array, ...]]) -> Callable[..., Any]:
        engine, network, likelihood = self._problem.engine, self._problem.network, self._problem.likelihood

        def score(parameters: Any, x: Array, y: Array, weight: Array) -> Array:
            outputs = network.apply(engine, mean_of(parameters), x)
            values = likelihood.fit_log_prob(engine, outputs, y, parameters.likelihood)
            return engine.xp.sum(weight * values) / (engine.xp.sum(weight) + 1e-30)

        return engine.jit(engine.vmap(score) if members else score)

    def resume(self, state: StepState) -> StepState:
        """The state to go on from: what a checkpoint has kept of this training, or the given one."""
        problem = self._problem
        saved = None if problem.checkpoint is None else problem.checkpoint.begin()
        if saved is None:
            return state
        self.reports, self.ended = list(saved["reports"]), bool(saved["ended"])
        self.looks = [(int(epoch), float(score)) for epoch, score in saved["looks"]]
        self._since = int(saved["since"])
        if "best_scores" in saved:
            self._best_scores = saved["best_scores"]
            self.best = from_leaves(problem.engine, "best", saved, state.parameters)
        return from_leaves(problem.engine, "state", saved, state)

    def _to_arrays(self, state: StepState) -> dict[str, np.ndarray]:
        engine = self._problem.engine
        arrays = {
            "reports": np.stack(self.reports),
            "ended": np.array(self.ended),
            "looks": np.array(self.looks, np.float64).reshape(-1, 2),
            "since": np.array(self._since),
        }
        if self.best is not None:
            arrays |= {"best_scores": self._best_scores, **to_leaves(engine, "best", self.best)}
        return arrays | to_leaves(engine, "state", state)

    def on_epoch(self, epoch: int, report: np.ndarray, state: StepState) -> bool:
        """Whether to stop."""
        self.reports.append(report)
        stop = self._look(epoch, state)
        self.ended = stop or epoch + 1 == self._num_epochs
        checkpoint = self._problem.checkpoint
        if checkpoint is not None and (self.ended or checkpoint.due()):
            checkpoint.keep(self._to_arrays(state))
        if self._problem.on_epoch is not None:
            self._problem.on_epoch(epoch, self._num_epochs, float(np.mean(report[0])))
        return stop

    def _look(self, epoch: int, state: StepState) -> bool:
        """Whether the held-out rows say that it is time to stop."""
        if self._rows is None or ((epoch + 1) % self._every and epoch + 1 < self._num_epochs):
            return False
        engine = self._problem.engine
        scores = engine.to_numpy(self._score(state.parameters, *self._rows)).astype(np.float64)
        self.looks.append((epoch, float(scores.mean())))
        better = scores > (-np.inf if self._best_scores is None else self._best_scores)
        self._since = 0 if better.any() else self._since + 1
        if better.any():
            self.best = self._keep(state.parameters, better)
            self._best_scores = scores if better.all() else np.where(better, scores, self._best_scores)
        return self._patience is not None and self._since >= self._patience

    def _keep(self, parameters: Any, better: np.ndarray) -> Any:
        """A copy of the parameters of the members that are better, beside the best of the others."""
        engine, xp = self._problem.engine, self._problem.engine.xp
        if self.best is None or better.all():
            return map_arrays(lambda new: xp.asarray(new, copy=True), parameters)

        def choose(new: Array, old: Array) -> Array:
            mask = xp.reshape(engine.asarray(better), (-1,) + (1,) * (new.ndim - 1))
            return xp.where(mask, new, old)

        with engine.scope():
            return map_trees(choose, parameters, self.best)
