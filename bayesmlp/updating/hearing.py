"""Feedback in all its forms, on its way into the log."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import numpy as np

from ..events import parse_event
from ..feedback import check_event_id
from ..inference.errors import InvalidInput
from ..inference.host import as_host_array
from ..inference.kinds import Choice
from ..inference.likelihoods import BradleyTerry
from ..kinds import check_items, comparing_kind, observed_kind
from ..masking import check_output_mask
from ..receipts import Receipt
from ..validation import check_inputs, check_weights, with_row_axis
from .committing import Committer, Told

__all__ = ["Hearer"]


class Hearer(Committer):
    """What an updater can be told."""

    def observe(
        self,
        x: Any,
        y: Any,
        *,
        event_id: str | None = None,
        weight: float = 1.0,
        source: str | None = None,
        time: float | None = None,
        output_mask: Any = None,
        kind: str | None = None,
        propensity: float | None = None,
        wait: str = "applied",
    ) -> Receipt:
        """Learn from one observation. When it returns, the event is durable.

        Args:
            x: inputs of one row, in the user's units.
            y: what was seen.
            event_id: chosen by the sender; sent again, it is not learned again. None: this event can't be repeated.
            weight: 2 counts as two observations, 0.5 as half of one.
            source: who sent it, for :meth:`retract`.
            time: of the event, in seconds since the epoch; kept with it. Where the dynamics have a ``time_unit`` they
                let the time pass since the newest event so far, none for one that comes late, says no time or weighs
                nothing; without one, every event is a unit.
            output_mask: the outputs that y tells of, see :meth:`BayesianMLP.update`; kept with the event.
            kind: of the feedback, for a model that hears several; None for the first.
            propensity: probability of the action that led to y, above 0; kept in the log for off-policy estimates, no
                part of what is learned.
            wait: ``"applied"``: return when it is learned; ``"durable"``: when it is stored.

        Raises:
            InvalidInput: names what is wrong; nothing is stored or learned.
            ConflictingEvent: the id was sent before with another body; the first one stands.
            LeaseLost: another updater took over; nothing is stored.
        """
        told = Told(x, y, event_id, weight, time, output_mask, kind, propensity)
        return self._learn("event", [told], source, wait)[0]

    def prefer(
        self,
        better: Any,
        worse: Any,
        *,
        kind: str | None = None,
        event_id: str | None = None,
        weight: float = 1.0,
        source: str | None = None,
        time: float | None = None,
        wait: str = "applied",
    ) -> Receipt:
        """Learn that one of two was preferred: an event as by :meth:`observe`, of a ``BradleyTerry`` kind.

        Args:
            better: inputs of the preferred one.
            worse: inputs of the other.
            kind: its name; None where the model hears one such kind.
            event_id: see :meth:`observe`.
            weight: see :meth:`observe`.
            source: see :meth:`observe`.
            time: see :meth:`observe`.
            wait: see :meth:`observe`.

        Raises:
            InvalidInput: names what is wrong; nothing is stored or learned.
        """
        name = comparing_kind(self.model.kinds, BradleyTerry, kind)
        pair = self._items([better, worse], ("better", "worse"))
        return self._learn("event", [Told(pair, [1], event_id, weight, time, kind=name)], source, wait)[0]

    def choose(
        self,
        shown: Any,
        chosen: int,
        *,
        propensity: float | None = None,
        kind: str | None = None,
        event_id: str | None = None,
        weight: float = 1.0,
        source: str | None = None,
        time: float | None = None,
        wait: str = "applied",
    ) -> Receipt:
        """Learn which of several that were shown was chosen: an event as by :meth:`observe`, of a ``Choice`` kind.

        Args:
            shown: inputs of the items, (items, inputs), at least two.
            chosen: place of the chosen one, from 0.
            propensity: probability with which these were shown; kept in the log, no part of what is learned.
            kind: its name; None where the model hears one such kind.
            event_id: see :meth:`observe`.
            weight: see :meth:`observe`.
            source: see :meth:`observe`.
            time: see :meth:`observe`.
            wait: see :meth:`observe`.

        Raises:
            InvalidInput: names what is wrong; nothing is stored or learned.
        """
        name = comparing_kind(self.model.kinds, Choice, kind)
        items = as_host_array(shown, "shown")
        if items.ndim < 2 or len(items) < 2:
            raise InvalidInput(f"shown must be at least two items, (items, inputs), got shape {items.shape}")
        if not isinstance(chosen, Integral) or isinstance(chosen, bool) or not 0 <= chosen < len(items):
            raise InvalidInput(f"chosen must be a place among those shown, from 0 to {len(items) - 1}, got {chosen!r}")
        together = self._items(list(items), tuple(f"shown[{i}]" for i in range(len(items))))
        told = Told(together, [chosen], event_id, weight, time, kind=name, propensity=propensity)
        return self._learn("event", [told], source, wait)[0]

    def _items(self, items: list[Any], names: tuple[str, ...]) -> np.ndarray:
        """Inputs of several items, one after the other in one row."""
        network, size = self.model.network, self.model.num_inputs
        named = list(zip(items, names, strict=True))
        checked = [check_inputs(with_row_axis(item, name, network), size, name, network) for item, name in named]
        for rows, name in zip(checked, names, strict=True):
            if len(rows) != 1:
                raise InvalidInput(f"{name} must be one item, got {len(rows)} rows")
        return np.concatenate(checked, axis=1)

    def observe_many(
        self,
        x: Any,
        y: Any,
        *,
        event_ids: Sequence[str] | None = None,
        weight: Any = None,
        source: str | None = None,
        times: Sequence[float] | None = None,
        output_mask: Any = None,
        kind: str | None = None,
        wait: str = "applied",
    ) -> list[Receipt]:
        """Several events, each its own Bayes step, stored in one commit: as :meth:`observe` in a loop, but faster.

        Args:
            x: inputs, (rows, inputs).
            y: what was seen, one for each row.
            event_ids: one for each row.
            weight: of each row, or one for all.
            source: who sent them.
            times: of each row, see :meth:`observe`.
            output_mask: see :meth:`observe`; one for all rows (K,), or for each (rows, K).
            kind: see :meth:`observe`.
            wait: see :meth:`observe`.

        Raises:
            InvalidInput: one of them is bad; none is stored.
        """
        observed = observed_kind(self.model.kinds, kind)
        x = check_items(x, observed, self.model.num_inputs, "x", self.model.network)
        y = as_host_array(y, "y")
        ids = [None] * len(x) if event_ids is None else _as_list(event_ids, "event_ids")
        if y.ndim == 0 or not len(x) == len(y) == len(ids):
            raise InvalidInput(f"x, y and event_ids must be equally long, got {len(x)}, {y.shape} and {len(ids)}")
        likelihood = self.model.likelihood
        if observed is not None:
            likelihood = observed.model_of(observed.items_of(x.shape[1], self.model.num_inputs))
        mask = check_output_mask(output_mask, len(x), likelihood)
        masks = [None] * len(x) if mask is None else list(mask)
        rows = zip(x, y, ids, masks, strict=True)
        weights = check_weights(weight, len(x))
        when = [None] * len(x) if times is None else _as_list(times, "times")
        if len(when) != len(x):
            raise InvalidInput(f"times must be one for each of the {len(x)} rows, got {len(when)}")
        told = [
            Told(a, b, c, w, t, output_mask=d, kind=kind)
            for (a, b, c, d), w, t in zip(rows, weights, when, strict=True)
        ]
        return self._learn("event", told, source, wait)

    def observe_batch(
        self,
        x: Any,
        y: Any,
        *,
        event_id: str | None = None,
        weight: Any = None,
        source: str | None = None,
        time: float | None = None,
        output_mask: Any = None,
        kind: str | None = None,
    ) -> Receipt:
        """Several rows as one event and one Bayes step.

        Args:
            x: inputs, (rows, inputs).
            y: what was seen, one for each row.
            event_id: of the whole batch.
            weight: of each row.
            source: see :meth:`observe`.
            time: see :meth:`observe`.
            output_mask: see :meth:`observe`; one for all rows (K,), or for each (rows, K).
            kind: see :meth:`observe`.
        """
        told = Told(x, y, event_id, weight, time, output_mask, kind)
        return self._learn("batch", [told], source, "applied")[0]

    def feedback(
        self,
        prediction_id: str,
        y: Any,
        *,
        x: Any = None,
        event_id: str | None = None,
        weight: Any = None,
        source: str | None = None,
        time: float | None = None,
        output_mask: Any = None,
        kind: str | None = None,
        propensity: float | None = None,
        wait: str = "applied",
    ) -> Receipt:
        """Late feedback on an answer of :meth:`predict`, by its prediction id.

        Args:
            prediction_id: of the answer.
            y: what was seen, one for each row of the answer.
            x: the inputs of the answer, where they were not kept.
            event_id: by default it follows from the prediction id and the kind, so that feedback sent twice is learned
                once.
            weight: of each row, or one for all.
            source: see :meth:`observe`.
            time: see :meth:`observe`.
            output_mask: see :meth:`observe`; one for all rows (K,), or for each (rows, K).
            kind: see :meth:`observe`.
            propensity: see :meth:`observe`.
            wait: see :meth:`observe`.

        Raises:
            UnknownPrediction: the model gave no such answer.
            ExpiredPrediction: the answer's time to live has passed.
            InvalidInput: the inputs are needed, or are there already.
        """
        if not isinstance(prediction_id, str):
            raise InvalidInput(f"prediction_id must be a string, got {prediction_id!r}")
        check_event_id(prediction_id, "prediction_id")
        inputs = self.store.answers.inputs(self.name, prediction_id)
        if (inputs is None) == (x is None):
            kept = "were kept: leave x out" if x is not None else "were not kept: x must be given"
            raise InvalidInput(f"the inputs of the answer {prediction_id!r} {kept}")
        if inputs is None:
            inputs = with_row_axis(x, "x", self.model.network)
        record = "event" if len(inputs) == 1 else "batch"
        of_kind = "" if kind is None else f"-{kind}"
        chosen = f"feedback-{prediction_id}{of_kind}" if event_id is None else event_id
        answer = None if event_id is None else prediction_id
        told = Told(inputs, y, chosen, weight, time, output_mask, kind, propensity, answer)
        return self._learn(record, [told], source, wait)[0]

    def observe_json(self, text: str | bytes, *, wait: str = "applied") -> Receipt:
        """Learn from one event as JSON text, see :mod:`.events`; as :meth:`observe` of its fields.

        Args:
            text: the event.
            wait: see :meth:`observe`.

        Raises:
            InvalidInput: names what is wrong; nothing is stored or learned.
        """
        fields = parse_event(text)
        source = fields.pop("source", None)
        return self._learn("event", [Told(**fields)], source, wait)[0]

    async def observe_async(self, x: Any, y: Any, *, wait: str = "applied", **options: Any) -> Receipt:
        """As :meth:`observe`, for asyncio: what many tasks send is committed together.

        Args:
            x: see :meth:`observe`.
            y: see :meth:`observe`.
            wait: see :meth:`observe`.
            options: the others of :meth:`observe`.
        """
        source = options.pop("source", None)
        group = self._group("event", [Told(x, y, **options)], source, wait)
        return (await self._own_tasks().submit(group, wait))[0]


def _as_list(values: Any, argument: str) -> list[Any]:
    """One value for each row."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable) or getattr(values, "ndim", 1) == 0:
        raise InvalidInput(f"{argument} must be a sequence, one for each row, got {values!r:.60}")
    return list(values)
