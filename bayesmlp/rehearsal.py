"""What a model's memory does: after an update it rehearses some rows and takes in the new ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .inference.likelihoods.masked import MaskedTargets
from .inference.memory import MemoryState, NewRows, keep, source_key
from .inference.remembering import Outlook, RememberedRows, outlook, rehearse

if TYPE_CHECKING:
    from .modelling.fitting import FittedModel

__all__ = ["learn_by_heart", "offer", "outlook_on", "see_again"]


def learn_by_heart(
    model: FittedModel, x: np.ndarray, y: np.ndarray, weight: np.ndarray, mask: np.ndarray | None, source: str | None
) -> None:
    """After an update of scaled rows: rehearse some of the memory's rows, then offer it the new ones."""
    memory, state = model.memory, model.memory_state
    assert memory is not None
    if state is not None and state.num_rows and memory.rehearsed:
        _rehearse(model, state, state.turn(memory.rehearsed))
    offer(model, x, y, weight, mask, source)
    assert model.memory_state is not None
    updates = model.memory_state.counts + np.array([0, 1])
    model.memory_state = model.memory_state._replace(counts=updates)


def _rehearse(model: FittedModel, state: MemoryState, rows: np.ndarray) -> None:
    memory, engine = model.memory, model.engine
    assert memory is not None
    has_mask = not state.mask.all()
    step = _compiled(model, "rehearse", rehearse, has_mask)
    padding = (1 << (len(rows) - 1).bit_length()) - len(rows)
    padded = np.concatenate([rows, np.repeat(rows[:1], padding)])
    weight = memory.strength * state.stands_for[padded] * (np.arange(len(padded)) < len(rows))
    x, y, outputs, weights = (
        engine.as_batch(a) for a in (state.x[padded], state.y[padded], state.outputs[padded], weight)
    )
    targets = MaskedTargets(y, engine.as_batch(state.mask[padded])) if has_mask else y
    posterior, seen = step(model.posterior, RememberedRows(x, targets, outputs, weights))
    model.set_posterior(posterior)
    seen = Outlook(*(np.asarray(values)[: len(rows)] for values in engine.fetch(seen)))
    worth = memory.worth(seen.leverage, seen.surprise)
    model.memory_state = state.seen_again(rows, seen.outputs, seen.log_prob, worth)


def offer(
    model: FittedModel,
    x: np.ndarray,
    y: np.ndarray,
    weight: np.ndarray,
    mask: np.ndarray | None = None,
    source: str | None = None,
) -> None:
    """Offer scaled rows to a model's memory, as its posterior sees them."""
    memory = model.memory
    assert memory is not None
    seen = outlook_on(model, x, y, mask)
    whole = np.ones((len(x), seen.outputs.shape[-1]), dtype=bool) if mask is None else mask
    worth = memory.worth(seen.leverage, seen.surprise)
    rows = NewRows(x, y, whole, weight, seen.outputs, seen.log_prob, worth)
    model.memory_state = keep(memory, model.memory_state, rows, source_key(source))


def see_again(model: FittedModel) -> None:
    """All rows of a model's memory, as its posterior sees them now."""
    memory, state = model.memory, model.memory_state
    if memory is None or state is None or not state.num_rows:
        return
    seen = outlook_on(model, state.x, state.y, None if state.mask.all() else state.mask)
    worth = memory.worth(seen.leverage, seen.surprise)
    model.memory_state = state.seen_again(np.arange(state.num_rows), seen.outputs, seen.log_prob, worth)


def outlook_on(model: FittedModel, x: np.ndarray, y: np.ndarray, mask: np.ndarray | None = None) -> Outlook:
    """How a model's posterior sees scaled rows, on the host."""
    engine, parts = model.engine, []
    step = _compiled(model, "outlook", outlook, mask is not None)
    for start in range(0, len(x), _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, len(x))
        size = 1 << (stop - start - 1).bit_length()
        rows = np.minimum(np.arange(start, start + size), stop - 1)
        targets = engine.as_batch(y[rows])
        if mask is not None:
            targets = MaskedTargets(targets, engine.as_batch(mask[rows]))
        seen = engine.fetch(step(model.posterior, engine.as_batch(x[rows]), targets))
        parts.append([np.asarray(values)[: stop - start] for values in seen])
    return Outlook(*(np.concatenate(values) for values in zip(*parts, strict=True)))


_ROWS_AT_ONCE = 256


def _compiled(model: FittedModel, name: str, function: Callable[..., Any], has_mask: bool) -> Callable[..., Any]:
    def build() -> Callable[..., Any]:
        engine, own = model.engine, model.filter_model_of(None, 1, has_mask)
        return engine.jit(lambda *args: function(engine, own, *args))

    return model._cached(f"{name} {has_mask}", build)
