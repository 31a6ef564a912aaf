"""Consolidation: what was learned event by event is learned again at once, and kept if it predicts better."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from .feedback import Observation
from .inference.checks import is_number
from .inference.dynamics import Hypotheses
from .inference.errors import InvalidInput, NumericalFailure
from .inference.refitting import Refit, RefitRows
from .inference.structures import Frozen, Mixture
from .inference.training import TrainingOptions
from .model import BayesianMLP
from .rehearsal import offer, see_again
from .replay import Replay, observed, replay
from .store.fold import STARTS, Fold
from .store.store import PosteriorStore
from .validation import check_source

__all__ = ["Consolidate", "Consolidation", "consolidate", "consolidate_log"]


@dataclass(frozen=True)
class Consolidate:
    """How a consolidation is done; see :class:`~.inference.refitting.Refit`.

    Args:
        training: how the mode is found.
        held_back: share of the events, the newest ones, that decide whether it is put in place, in (0, 1).
        tether: share of the earlier posterior's pull that the mean is held by, in (0, 1]; the curvature that is kept
            is all of it. None: 1 without a memory; with one, whose rows hold the same past by their predictions, 0.5.
    """

    training: TrainingOptions = field(default_factory=lambda: TrainingOptions(learning_rate=2e-3))
    held_back: float = 0.1
    tether: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.training, TrainingOptions):
            raise InvalidInput(f"Consolidate.training must be TrainingOptions, got {self.training!r}")
        if self.training.validation or self.training.kl_warmup:
            raise InvalidInput("Consolidate.training must be without validation and kl_warmup")
        if not is_number(self.held_back) or not 0 < self.held_back < 1:
            raise InvalidInput(f"Consolidate.held_back must be in (0, 1), got {self.held_back!r}")
        if self.tether is not None and not (is_number(self.tether) and 0 < self.tether <= 1):
            raise InvalidInput(f"Consolidate.tether must be in (0, 1] or None, got {self.tether!r}")

    def describe(self) -> dict[str, Any]:
        """As JSON values, for the log."""
        return asdict(self)

    def tether_for(self, model: BayesianMLP) -> float:
        """λ."""
        if self.tether is not None:
            return self.tether
        return _TETHER if model.memory_state is not None else 1.0


_TETHER = 0.5


class Consolidation(NamedTuple):
    """What a consolidation did.

    Attributes:
        replaced: whether it was put in place.
        log_score: mean log predictive density of the newest observations before each was learned, in nats, by the
            consolidated posterior.
        log_score_before: the same by the posterior as it was.
        newest: observations that decided.
        seconds: that it took.
        version: the model's version after it, in a store.
    """

    replaced: bool
    log_score: float
    log_score_before: float
    newest: int
    seconds: float
    version: int | None = None


def consolidate(
    model: BayesianMLP,
    base: BayesianMLP | None,
    told: tuple[Any, ...],
    newest: tuple[Any, ...],
    method: Consolidate | None,
    source: str | None,
) -> Consolidation:
    """See :meth:`BayesianMLP.consolidate`; rows are inputs, targets, weights and mask."""
    started, method = time.perf_counter(), _checked(model, method)
    check_source(source)
    if base is None:
        base = BayesianMLP.from_parts(model.spec(), {}, model.engine, model.network)
        base.start_from_prior(model.num_inputs, model.scaling)
    if not isinstance(base, BayesianMLP) or base.spec() != model.spec():
        raise InvalidInput(f"base must be an earlier copy of the same model, got {base!r}")
    learned, unseen = (
        Observation.check(x, y, weight, None, mask, model=model)._replace(source=source)
        for x, y, weight, mask in (told, newest)
    )
    rows = [unseen.row(index) for index in range(len(unseen.x))]
    candidate = refitted(base, model, [learned], method)
    winner, done = compete(model, candidate, rows, started)
    model.set_posterior(winner.posterior)
    model.memory_state = winner.memory_state
    return done


def consolidate_log(
    store: PosteriorStore, name: str, fold: Fold, engine: Any, network: Any, method: Consolidate | None
) -> tuple[BayesianMLP, Consolidation] | None:
    """Consolidate a model from its log, reading only; None where too few events came since the last time.

    Args:
        store: where it is.
        name: of the model.
        fold: its log so far.
        engine: to run on.
        network: see :func:`~.replay.load`.
        method: how.

    Returns:
        The consolidated model, which has learned all of the fold, and how it compares.
    """
    started = time.perf_counter()

    def at(length: int) -> Replay:
        return replay(store, name, engine=engine, network=network, version=fold.head, length=length)

    whole = (*STARTS, "consolidate")
    start = max(i for i, record in enumerate(fold.line) if record.kind in whole or record.is_mixed) + 1
    places = [i for i, record in enumerate(fold.line) if i >= start and record.learned is not None]
    base = at(start).model
    method = _checked(base, method)
    held_back = max(1, round(method.held_back * len(places)))
    if len(places) <= held_back:
        return None
    observations = list(observed(base, store.log(name), fold.line[start:]))
    before = at(places[-held_back]).model
    candidate = refitted(base, before, observations[:-held_back], method)
    return compete(before, candidate, observations[-held_back:], started)


def _checked(model: BayesianMLP, method: Consolidate | None) -> Consolidate:
    """The method; raises :class:`InvalidInput` for what it can't do."""
    if not isinstance(method, Consolidate | None):
        raise InvalidInput(f"method must be Consolidate(...) or None, got {method!r}")
    if (
        model.particles is not None
        or isinstance(model.filter_model.structure, Mixture)
        or isinstance(model.dynamics, Hypotheses)
    ):
        raise InvalidInput("consolidate is for a posterior of one Gaussian, not for a mixture or for draws")
    if any(isinstance(part, Frozen) for part, _ in getattr(model.filter_model.structure, "parts", ())):
        raise InvalidInput("consolidate fits all layers, and some of this model are frozen")
    if not model.dynamics.is_static:
        raise InvalidInput(
            f"consolidate needs Static() dynamics, under which all rows count alike, not {model.dynamics}"
        )
    if model.influence is not None:
        raise InvalidInput("consolidate does not bound the influence of a row: it needs a model without influence")
    if not model.engine.has_gradients:
        raise InvalidInput(f"engine {model.engine.name!r} has no gradients: consolidate with 'torch' or 'jax'")
    return method or Consolidate()


def refitted(
    base: BayesianMLP, before: BayesianMLP, observations: Sequence[Observation], method: Consolidate
) -> BayesianMLP:
    """A copy of a model whose posterior has learned observations at once.

    Args:
        base: before them.
        before: after them, as the filter learned them; it gives the start and the likelihood's state.
        observations: to learn, of the first kind of feedback.
        method: how.

    Raises:
        InvalidInput: feedback of another kind among them.
        NumericalFailure: the fit diverged.
    """
    if any(observation.kind is not None for observation in observations):
        raise InvalidInput("consolidate refits feedback of the model's first kind only")
    rows = _joined(base, observations)
    model, filtered = before.duplicate(), before.filter_model
    kept, remembered = base.memory_state, None
    if kept is not None:
        assert base.memory is not None
        weight = base.memory.strength * kept.stands_for
        remembered = RefitRows(kept.x, kept.y, weight, None if kept.mask.all() else kept.mask, kept.outputs)
    refit = Refit(
        model.engine,
        filtered.network,
        filtered.likelihood,
        filtered.of_member,
        method.training,
        method.tether_for(base),
        model.seed,
    )
    state = model.posterior.likelihood if filtered.place is None else filtered.place.state(model.posterior.likelihood)
    start = filtered.of_member.mean(model.posterior.weights)
    weights = refit.run(base.posterior.weights, state, start, rows, remembered)
    model.set_posterior(model.posterior._replace(weights=weights))
    if model.memory is not None:
        updates = None if model.memory_state is None else model.memory_state.counts
        model.memory_state = kept
        see_again(model)
        _remember(model, observations)
        if updates is not None and model.memory_state is not None:
            model.memory_state = model.memory_state._replace(counts=updates)
    return model


def _joined(model: BayesianMLP, observations: Sequence[Observation]) -> RefitRows:
    """Scaled rows of all observations."""
    scaling, size = model.scaling, model.likelihood.num_outputs
    mask = None
    if any(observation.output_mask is not None for observation in observations):
        whole = [
            np.ones((len(o.x), size), dtype=bool) if o.output_mask is None else o.output_mask for o in observations
        ]
        mask = np.concatenate(whole)
    return RefitRows(
        scaling.inputs(np.concatenate([o.x for o in observations])),
        scaling.targets(np.concatenate([o.y for o in observations])),
        np.concatenate([o.weight for o in observations]),
        mask,
    )


def _remember(model: BayesianMLP, observations: Sequence[Observation]) -> None:
    """Offer a model's memory the observations, source by source."""
    for source in dict.fromkeys(observation.source for observation in observations):
        rows = _joined(model, [observation for observation in observations if observation.source == source])
        offer(model, rows.x, rows.y, rows.weight, rows.mask, source)


def compete(
    before: BayesianMLP, candidate: BayesianMLP, newest: Sequence[Observation], started: float
) -> tuple[BayesianMLP, Consolidation]:
    """Two posteriors learn the newest observations; the one that predicts them better before it does so wins.

    Args:
        before: as it was; left as it is.
        candidate: the consolidated one.
        newest: which neither has learned.
        started: when the consolidation began, by ``time.perf_counter``.

    Returns:
        The winner after the newest observations, and how they compare.
    """
    contestants = before.duplicate(), candidate.duplicate()
    scores = [sum(_score(model, observation) for observation in newest) / len(newest) for model in contestants]
    better = bool(scores[1] > scores[0])
    seconds = time.perf_counter() - started
    return contestants[better], Consolidation(better, scores[1], scores[0], len(newest), seconds)


def _score(model: BayesianMLP, observation: Observation) -> float:
    """Log predictive density before it is learned."""
    x, y, weight, _, mask, kind, _, source = observation
    try:
        return model.update(x, y, weight=weight, output_mask=mask, kind=kind, source=source).log_predictive
    except NumericalFailure:
        return -np.inf
