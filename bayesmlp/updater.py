"""A model in service: it answers, and learns from feedback, durably and exactly once."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .admission import Admission, Quarantined, excess_surprise
from .consolidation import Consolidate, Consolidation, consolidate_log
from .feedback import Observation, check_event_id, check_time
from .inference.engines import Engine
from .inference.errors import InvalidInput, StoreError, UnknownEvent
from .inference.host import as_host_array
from .inference.kinds import Choice
from .inference.likelihoods import BradleyTerry
from .kinds import check_items, comparing_kind, observed_kind
from .masking import check_output_mask
from .model import BayesianMLP
from .predictive import Predictive
from .prequential import Prequential
from .replay import Replay, replay
from .stepper import Effect, step_fingerprint
from .store.database import records
from .store.digest import extend_chain, posterior_digest
from .store.store import Entry, NewRecord, PosteriorStore, StoredEvent
from .validation import check_inputs, check_weights, with_row_axis
from .watching import Watch

__all__ = ["OnlineUpdater", "Receipt", "Retraction"]

WAITS = ("applied", "durable")
CARRIES_SNAPSHOT = ("publish", "handover", "consolidate")


class Receipt(NamedTuple):
    """What became of an event.

    Attributes:
        event_id: its id.
        version: its place in the log: the model's version after it.
        status: ``applied``; ``pending``: durable, not yet applied; ``failed``: durable, but its step would not
            have been finite, so the posterior is as it was; ``quarantined``: durable, not learned, see
            :class:`Admission`; or, for a repeated event, ``released``, ``retracted``, ``rolled back``, ``superseded``.
        surprise: minus the log predictive density of the observation before it was learned, in nats.
        information: gained, in nats.
        repeated: whether the event had been there before; then nothing was done.
        change: the largest change of the predictions on the updater's probe set.
        seconds: that the step took.
    """

    event_id: str
    version: int
    status: str
    surprise: float | None
    information: float | None
    repeated: bool
    change: float | None = None
    seconds: float | None = None


class Retraction(NamedTuple):
    """What a retraction did.

    Attributes:
        version: the model's version after it.
        events: how many events it named.
        replayed: how many records were folded again, in one pass.
        seconds: that took.
    """

    version: int
    events: int
    replayed: int
    seconds: float


class _Told(NamedTuple):
    """What :meth:`Observation.check` takes, as it came, and the id of the event."""

    x: Any
    y: Any
    event_id: str | None = None
    weight: Any = 1.0
    time: Any = None
    output_mask: Any = None
    kind: str | None = None
    propensity: Any = None


class OnlineUpdater:
    """The one writer of a model in a store.

    Methods may be called from several threads; each call is atomic. Use it as a context manager, or call :meth:`close`.

    Args:
        store: where the model is.
        name: of the model.
        engine: to run on; the framework's default where None. Another one than before is recorded as a handover.
        network: for a model whose network is the user's own module: the module, or what ``bayesianize`` made of it. Its
            weights come from the store.
        snapshot_every: records between snapshots; also one at :meth:`close`.
        answer_time_to_live: how long answers with a prediction id wait for feedback, in seconds.
        admission: limits on what one source and one event may do; None for none.
        probe: inputs, (rows, inputs), whose predictions are compared before and after every event; None for none. It
            costs a prediction of them for each event.
        calibration: whether to note how each event of one row was predicted, for :meth:`prequential`. It costs a
            prediction for each event.
        take_over: supersede another updater even if it may be alive, as after a crash on a machine of another name; the
            other one can't commit any more.

    Raises:
        UnknownModel: no such model.
        InvalidInput: the network is needed, or is not the one that was stored.
        LeaseHeld: another updater is writing to it.
    """

    def __init__(
        self,
        store: PosteriorStore,
        name: str,
        *,
        engine: str | Engine | None = None,
        network: Any = None,
        snapshot_every: int = 1000,
        answer_time_to_live: float = 30 * 86400.0,
        admission: Admission | None = None,
        probe: Any = None,
        calibration: bool = False,
        take_over: bool = False,
    ) -> None:
        if snapshot_every < 1:
            raise InvalidInput(f"snapshot_every must be at least 1, got {snapshot_every!r}")
        if not answer_time_to_live > 0:
            raise InvalidInput(f"answer_time_to_live must be positive, got {answer_time_to_live!r}")
        if not isinstance(admission, Admission | None):
            raise InvalidInput(f"admission must be an Admission or None, got {admission!r}")
        self.store = store
        self.name = name
        self.admission = admission or Admission()
        self.snapshot_every = snapshot_every
        self.answer_time_to_live = answer_time_to_live
        self._lock = threading.RLock()
        self._waiting: list[tuple[int, Observation | None]] = []  # None: nothing to learn
        self._spent: dict[str, float] = {}
        self._done: dict[int, Effect] = {}
        self._closed = False
        self._writer = store.writer(name, take_over=take_over)
        try:
            result = replay(store, name, engine=engine, network=network)
            self._watch = Watch(result.model, probe, calibration)
            self._adopt(result)
            self._hand_over()
        except BaseException:
            self._writer.release()
            raise

    def __repr__(self) -> str:
        return f"OnlineUpdater({self.name!r}, version {self._head}, {self.model.engine.name})"

    def __enter__(self) -> OnlineUpdater:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- state ----------------------------------------------------------------------------------------------------
    @property
    def model(self) -> BayesianMLP:
        """The live model. Its posterior is written in place: to keep it, take ``model.to_engine(...)``."""
        return self._stepper.model

    @property
    def version(self) -> int:
        """Offset of the newest record that is applied."""
        with self._lock:
            self._apply_waiting()
            return self._head

    def digest(self) -> str:
        """SHA-256 of the posterior; equal digests mean equal posteriors, to the last bit."""
        with self._lock:
            self._apply_waiting()
            return posterior_digest(self.model.spec(), self._stepper.to_arrays())

    def history(self) -> list[Entry]:
        """Every record of the log; see :meth:`PosteriorStore.history`."""
        with self._lock:
            self._apply_waiting()
            self._append([])
            return self.store.history(self.name)

    def prequential(self) -> Prequential:
        """How every event was predicted before it was learned; see :meth:`PosteriorStore.prequential`."""
        with self._lock:
            self._apply_waiting()
            self._append([])
            return self.store.prequential(self.name)

    def _adopt(self, result: Replay) -> None:
        marks = [record for record in result.fold.line if record.kind in CARRIES_SNAPSHOT]
        self._fingerprint = dict(marks[-1].body["fingerprint"])
        self._stepper = result.stepper
        self._head = result.fold.head
        self._status = dict(result.fold.status)
        self._chain = result.fold.chains()[-1]
        self._done |= self._not_stored(result.effects)
        self._spent = {}
        self._watch.forget()
        self._since_snapshot = result.replayed

    def _not_stored(self, effects: dict[int, Effect]) -> dict[int, Effect]:
        """Effects of records that were folded again, but for those whose own effect is stored and says more."""
        stored = self._writer.effects_since(min(effects)) if effects else {}
        return {
            offset: effect
            for offset, effect in effects.items()
            if offset not in stored or stored[offset][:3] != effect[:3]
        }

    def _hand_over(self) -> None:
        """Record that the line goes on under another fingerprint."""
        fingerprint = step_fingerprint(self.model.engine)
        if self._fingerprint != fingerprint:
            arrays = self._stepper.to_arrays()
            self._head = self._writer.append_snapshot(
                "handover", {"fingerprint": fingerprint}, self.model.spec(), arrays
            )
            self._chain = extend_chain(self._chain, [self._head])
            self._fingerprint = fingerprint
            self._since_snapshot = 0

    def _require_open(self) -> None:
        if self._closed:
            raise StoreError(f"this updater of model {self.name!r} is closed")

    # -- answering ------------------------------------------------------------------------------------------------
    def predict(
        self,
        x: Any,
        *,
        method: str | None = None,
        time: float | None = None,
        output_mask: Any = None,
        kind: str | None = None,
    ) -> Predictive:
        """Answer, and keep the inputs so that feedback may name the answer.

        Args:
            x: inputs of one row (inputs,) or of several (rows, inputs).
            method: see :meth:`BayesianMLP.predict`.
            time: for which to answer, in seconds since the epoch: with what is then still known if no event comes
                before. Nothing is changed by it. None: the time of the newest event. It needs dynamics with a
                ``time_unit``.
            output_mask: see :meth:`BayesianMLP.predict`; feedback on the answer names its own.
            kind: see :meth:`BayesianMLP.predict`; likewise.

        Returns:
            The predictive distribution, with its ``prediction_id`` and the ``version`` that answered.

        Raises:
            InvalidInput: bad inputs, or a time that is no time or that the dynamics do not know.
        """
        with self._lock:
            self._require_open()
            rows, network = with_row_axis(x, "x", self.model.network), self.model.network
            observed = observed_kind(self.model.kinds, kind)
            if observed is None:
                inputs = check_inputs(rows, self.model.num_inputs, "x", network)
            else:
                inputs = check_items(rows, observed, self.model.num_inputs, "x", network)
            self._apply_waiting()
            elapsed = 0.0 if time is None else self.model.elapsed_until(self._known_time(time))
            answer = self.model.predict(inputs, method=method, elapsed=elapsed, output_mask=output_mask, kind=kind)
            kept = self.store.answers.keep(self.name, self._head, inputs, self.answer_time_to_live)
            return dataclasses.replace(answer, prediction_id=kept, version=self._head)

    def _known_time(self, time: Any) -> float:
        check_time(time)
        if self.model.dynamics.time_unit is None:
            raise InvalidInput(f"time needs dynamics with a time_unit, and these count events: {self.model.dynamics}")
        return float(time)

    # -- learning -------------------------------------------------------------------------------------------------
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
                let the time pass since the newest event so far, none for one that comes late or says no time;
                without one, every event is a unit.
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
        told = _Told(x, y, event_id, weight, time, output_mask, kind, propensity)
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
        return self._learn("event", [_Told(pair, [1], event_id, weight, time, kind=name)], source, wait)[0]

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
        together = self._items(list(items), tuple(f"shown[{i}]" for i in range(len(items))))
        told = _Told(together, [chosen], event_id, weight, time, kind=name, propensity=propensity)
        return self._learn("event", [told], source, wait)[0]

    def _items(self, items: list[Any], names: tuple[str, ...]) -> np.ndarray:
        """Inputs of several items, one after the other in one row."""
        network, size = self.model.network, self.model.num_inputs
        named = list(zip(items, names, strict=True))
        checked = [check_inputs(with_row_axis(item, name, network), size, name, network) for item, name in named]
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
        ids = [None] * len(x) if event_ids is None else list(event_ids)
        if y.ndim == 0 or not len(x) == len(y) == len(ids):
            raise InvalidInput(f"x, y and event_ids must be equally long, got {len(x)}, {y.shape} and {len(ids)}")
        likelihood = self.model.likelihood
        if observed is not None:
            likelihood = observed.model_of(observed.items_of(x.shape[1], self.model.num_inputs))
        mask = check_output_mask(output_mask, len(x), likelihood)
        masks = [None] * len(x) if mask is None else list(mask)
        rows = zip(x, y, ids, masks, strict=True)
        weights = check_weights(weight, len(x))
        when = [None] * len(x) if times is None else list(times)
        if len(when) != len(x):
            raise InvalidInput(f"times must be one for each of the {len(x)} rows, got {len(when)}")
        told = [
            _Told(a, b, c, w, t, output_mask=d, kind=kind)
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
        told = _Told(x, y, event_id, weight, time, output_mask, kind)
        return self._learn("batch", [told], source, "applied")[0]

    def feedback(
        self,
        prediction_id: str,
        y: Any,
        *,
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
        """
        if not isinstance(prediction_id, str):
            raise InvalidInput(f"prediction_id must be a string, got {prediction_id!r}")
        inputs = self.store.answers.inputs(self.name, prediction_id)
        record = "event" if len(inputs) == 1 else "batch"
        of_kind = "" if kind is None else f"-{kind}"
        chosen = f"feedback-{prediction_id}{of_kind}" if event_id is None else event_id
        told = _Told(inputs, y, chosen, weight, time, output_mask, kind, propensity)
        return self._learn(record, [told], source, wait)[0]

    def _learn(self, record: str, events: Sequence[_Told], source: str | None, wait: str) -> list[Receipt]:
        if wait not in WAITS:
            raise InvalidInput(f"wait must be one of {', '.join(WAITS)}, got {wait!r}")
        if source is not None:
            check_event_id(source, "source")
        with self._lock:
            self._require_open()
            ids, observations = [], []
            for told in events:
                ids.append(check_event_id(told.event_id))
                observations.append(self._check(record, told)._replace(source=source))
            new = [NewRecord(record, i, o.to_body(), source) for i, o in zip(ids, observations, strict=True)]
            new = self._admit(new, observations)
            stored = self._append(new)
            for event, admitted, observation in zip(stored, new, observations, strict=True):
                self._enqueue(event, admitted, observation)
            if wait == "applied":
                self._apply_waiting()
            return [self._receipt(i, event) for i, event in zip(ids, stored, strict=True)]

    def _check(self, record: str, told: _Told) -> Observation:
        x, y, _, *rest = told
        checked = Observation.check(x, y, *rest, model=self.model)
        if record == "event" and len(checked.x) != 1:
            raise InvalidInput(f"x must be one row, got {len(checked.x)}: use observe_many or observe_batch")
        return checked

    def _admit(self, new: list[NewRecord], observations: list[Observation]) -> list[NewRecord]:
        """The records with what :attr:`admission` decides of each; all are judged by the posterior before the call."""
        if self.admission.quarantine_above is not None:
            self._apply_waiting()
        spent: dict[str, float] = {}
        decided = []
        for record, observation in zip(new, observations, strict=True):
            if self.admission.source_cap is not None and (source := record.source) is not None:
                weight = float(observation.weight.sum())
                before = spent.get(source, self._spent_by(source))
                record = record._replace(granted=self.admission.granted(weight, before))
                spent[source] = before + record.granted * weight
            if self.admission.quarantine_above is not None:
                answer = self.model.predict(observation.x, output_mask=observation.output_mask, kind=observation.kind)
                excess = float(excess_surprise(answer, observation.y).max())
                if excess > self.admission.quarantine_above:
                    record = record._replace(excess_surprise=excess)
            decided.append(record)
        return decided

    def _spent_by(self, source: str) -> float:
        """The total weight granted to a source's events, but for those that were taken out again."""
        if source not in self._spent:
            kept = [
                Observation.from_body(row.body, self.model)
                for row in self._writer.stored(records.c.source == source)
                if self._status.get(row.offset) in ("live", "quarantined", "released")
            ]
            self._spent[source] = sum(float(observation.weight.sum()) for observation in kept)
        return self._spent[source]

    def _enqueue(self, event: StoredEvent, record: NewRecord, observation: Observation) -> None:
        known = self._head + len(self._waiting)
        if event.offset <= known:
            return  # a repeat
        # A repeat beyond what is known was stored by a commit that reported an error: it is learned now.
        if event.offset != known + 1:
            raise StoreError(f"model {self.name!r} has records this updater did not write; open a new updater")
        granted = observation.granted(record.granted)
        if self.admission.source_cap is not None and record.source is not None:
            self._spent[record.source] = self._spent_by(record.source) + float(granted.weight.sum())
        self._waiting.append((event.offset, granted if record.excess_surprise is None else None))

    def _apply_waiting(self) -> None:
        while self._waiting:
            offset, observation = self._waiting[0]
            if observation is None:
                self._waiting.pop(0)
                self._head, self._status[offset] = offset, "quarantined"
            else:
                self._learn_as(offset, observation)
                self._waiting.pop(0)
                self._snapshot_if_due()

    def _learn_as(self, offset: int, observation: Observation) -> None:
        """One Bayes step, as the record at an offset."""
        self._done[offset] = self._watch.apply(self._stepper, observation)
        self._head = offset
        self._status[offset] = "live"
        self._chain = extend_chain(self._chain, [offset])
        self._since_snapshot += 1

    def _snapshot_if_due(self) -> None:
        """Apart from what it follows: if it can't be stored, what was learned is learned."""
        if self._since_snapshot >= self.snapshot_every:
            self.snapshot()

    def _append(self, new: list[NewRecord]) -> list[StoredEvent]:
        """Append records, and with them the effects that are not stored yet, in one commit.

        Effects are derived from the log: a crash loses none. They are forgotten here only once they are stored.
        """
        stored = self._writer.append(new, self._done)
        self._done = {}
        return stored

    def _receipt(self, event_id: str, event: StoredEvent) -> Receipt:
        status = self._status.get(event.offset, "pending")
        effect = Effect("pending", None, None)
        if status == "live":
            effect = self._done.get(event.offset) or self._writer.effect(event.offset) or effect
            status = effect.outcome
        return Receipt(
            event_id,
            event.offset,
            status,
            effect.surprise,
            effect.information,
            event.repeated,
            effect.change,
            effect.seconds,
        )

    # -- quarantine -----------------------------------------------------------------------------------------------
    def quarantined(self) -> list[Quarantined]:
        """The events in quarantine, oldest first: durable, not learned. See :class:`Admission`."""
        with self._lock:
            self._apply_waiting()
            found = []
            for row in self._writer.stored(records.c.kind == "quarantine"):
                if self._status.get(row.offset) == "quarantined":
                    x, y, *_ = Observation.from_body(row.body, self.model)
                    found.append(
                        Quarantined(
                            str(row.event_id), row.offset, row.source, row.received, row.body["excess_surprise"], x, y
                        )
                    )
            return found

    def release(self, event_ids: Iterable[str]) -> list[Receipt]:
        """Learn events that are in quarantine, now, in the order given, each as a record of its own.

        To refuse them instead, :meth:`retract` them.

        Args:
            event_ids: of the events.

        Raises:
            UnknownEvent: an id that is not in quarantine; nothing is released.
        """
        with self._lock:
            self._require_open()
            ids = list(dict.fromkeys(_checked_ids(event_ids)))
            waiting = {event.event_id: event.version for event in self.quarantined()}
            missing = [event_id for event_id in ids if event_id not in waiting]
            if missing:
                raise UnknownEvent(f"model {self.name!r} has no event {missing[0]!r} in quarantine")
            sources = [waiting[event_id] for event_id in ids]
            rows = {row.offset: row for row in self._writer.stored(records.c.offset.in_(sources))}
            stored = self._append([NewRecord("release", None, {"offset": source}) for source in sources])
            for event, source in zip(stored, sources, strict=True):
                row = rows[source]
                self._learn_as(event.offset, Observation.from_body(row.body, self.model, row.source))
                self._status[source] = "released"
            self._snapshot_if_due()
            return [self._receipt(event_id, event) for event_id, event in zip(ids, stored, strict=True)]

    # -- taking back ----------------------------------------------------------------------------------------------
    def retract(
        self, event_ids: Iterable[str] | None = None, *, source: str | None = None, since: float | None = None
    ) -> Retraction:
        """Take events out as if they had never come, in one fold; for good.

        What the model was published with can't be retracted: it was learned before the log began.

        Args:
            event_ids: of the events; or
            source: all events of a source; and/or
            since: all events stored at or after a time, seconds since the epoch.

        Raises:
            InvalidInput: nothing or everything was named.
            UnknownEvent: an id that is not in the log, or nothing from that source; nothing is retracted.
        """
        with self._lock:
            self._require_open()
            ids = self._chosen(event_ids, source, since)
            self._apply_waiting()
            started = time.perf_counter()
            self._append([NewRecord("retract", None, {"event_ids": ids})])
            replayed = self._fold_again()
            return Retraction(self._head, len(ids), replayed, time.perf_counter() - started)

    def _chosen(self, event_ids: Iterable[str] | None, source: str | None, since: float | None) -> list[str]:
        by_query = {key: value for key, value in (("source", source), ("since", since)) if value is not None}
        if (event_ids is None) == (not by_query):
            raise InvalidInput("retract takes either event_ids, or source and/or since")
        if event_ids is None:
            found = self._writer.event_ids(by_query)
            if not found:
                raise UnknownEvent(f"model {self.name!r} has no event with {by_query}")
            return found
        ids = _checked_ids(event_ids)
        self._writer.offsets_of(ids)
        return sorted(set(ids))

    def rollback(self, version: int) -> int:
        """Go back to an earlier version; see :meth:`PosteriorStore.rollback`."""
        with self._lock:
            self._require_open()
            self._apply_waiting()
            self._append([])
            self._writer.append_rollback(version)
            self._fold_again()
            return self._head

    # -- consolidation --------------------------------------------------------------------------------------------
    def consolidate(self, *, method: Consolidate | None = None) -> Consolidation:
        """Learn again, all at once, the events since the last consolidation, if that predicts the newest ones better.

        The fit runs on a copy: other threads go on answering and learning meanwhile, and what they learned is folded
        again after it. What is put in place is a record of the log with a snapshot. It falls away when an event that it
        has learned is retracted: then the log is folded as if it had never been made.

        Args:
            method: how.

        Returns:
            How it compares; not ``replaced`` also where what it has learned was changed meanwhile.

        Raises:
            InvalidInput: a model that can't be consolidated, see :meth:`BayesianMLP.consolidate`, or fewer than two
                events since the last time.
            NumericalFailure: the fit diverged; the model is as it was.
        """
        with self._lock:
            self._require_open()
            self._apply_waiting()
            self._append([])
            fold, engine, network = self._writer.fold(), self.model.engine, self.model.network
        found = consolidate_log(self.store, self.name, fold, engine, network, method)
        if found is None:
            raise InvalidInput(f"consolidate needs at least two events since the last time; model {self.name!r}")
        model, done = found
        with self._lock:
            self._require_open()
            self._apply_waiting()
            known = self._writer.fold().line[: len(fold.line)]
            if not done.replaced or known != fold.line:
                return done._replace(replaced=False, version=self._head)
            self._append([])
            body = {"until": fold.head, "fingerprint": step_fingerprint(engine), "seed": model.seed}
            body |= {"method": (method or Consolidate()).describe()}
            self._writer.append_snapshot("consolidate", body, model.spec(), model.to_arrays())
            self._fold_again()
            return done._replace(version=self._head)

    def _fold_again(self) -> int:
        result = replay(
            self.store, self.name, engine=self.model.engine, network=self.model.network, stepper=self._stepper
        )
        self._adopt(result)
        self._hand_over()
        if result.replayed:
            self.snapshot()
        return result.replayed

    # -- keeping --------------------------------------------------------------------------------------------------
    def snapshot(self) -> None:
        """Store the posterior, so that opening the model need not fold what came before."""
        with self._lock:
            fingerprint = step_fingerprint(self.model.engine)
            arrays = self._stepper.to_arrays()
            self._writer.snapshot(self._head, self._chain, self.model.spec(), arrays, fingerprint, self._done)
            self._done = {}
            self._since_snapshot = 0

    def close(self) -> None:
        """Learn what waits, store a snapshot, and give the model free for another updater."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                self._apply_waiting()
                if self._since_snapshot or self._done:
                    self.snapshot()
            finally:
                self._writer.release()


def _checked_ids(event_ids: Any) -> list[str]:
    """Ids of at least one event."""
    if isinstance(event_ids, str) or not isinstance(event_ids, Iterable):
        raise InvalidInput(f"event_ids must be a collection of ids, got {event_ids!r}")
    ids = list(event_ids)
    if not all(isinstance(event_id, str) for event_id in ids):
        raise InvalidInput(f"event_ids must be strings, got {ids[:5]!r}")
    if not ids:
        raise InvalidInput("event_ids must name at least one event")
    return ids
