"""A model in service: it answers, and learns from feedback, durably and exactly once.

Three things go on side by side, each in the order of the log: what callers send is committed in groups
(:mod:`.store.commits`), what is committed is applied to the posterior (:mod:`.line`), and the posterior is stored now
and then (:mod:`.keeping`). Whoever needs two locks takes the right to commit first, then the posterior's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from .admission import Admission, Quarantined, excess_surprise
from .branching import refuse_merged
from .consolidation import Consolidate, Consolidation, consolidate_log
from .events import parse_event
from .feedback import Observation, check_event_id, check_time
from .inference.engines import Engine
from .inference.errors import ConflictingEvent, InvalidInput, StoreError, StoreUnavailable, UnknownEvent
from .inference.host import as_host_array
from .inference.kinds import Choice
from .inference.likelihoods import BradleyTerry
from .keeping import Keeper, Retention, SnapshotPolicy
from .kinds import check_items, comparing_kind, observed_kind
from .line import Line, Waiting
from .masking import check_output_mask
from .model import BayesianMLP
from .predictive import Predictive
from .prequential import Prequential
from .receipts import Purge, Receipt, Retraction
from .replay import Replay, replay
from .stepper import Effect, step_fingerprint
from .store.answers import Keeping
from .store.commits import GroupCommit
from .store.database import records
from .store.digest import posterior_digest
from .store.history import Entry
from .store.log import NewRecord, StoredEvent
from .store.store import PosteriorStore
from .tasks import Tasks
from .validation import check_inputs, check_weights, with_row_axis
from .watching import Watch

__all__ = ["OnlineUpdater", "Purge", "Receipt", "Retraction"]

WAITS = ("applied", "durable")
AT_ONCE = 16


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


class _Group(NamedTuple):
    """What one call sends: stored together or not at all."""

    records: list[NewRecord]
    observations: list[Observation]


class OnlineUpdater:
    """The one writer of a model in a store.

    Methods may be called from many threads, whose events are then committed together. Use it as a context manager, or
    call :meth:`close`.

    Args:
        store: where the model is.
        name: of the model.
        engine: to run on; the framework's default where None. Another one than before is recorded as a handover.
        network: for a model whose network is the user's own module: the module, or what ``bayesianize`` made of it. Its
            weights come from the store.
        snapshot_every: when to store the posterior: a number of events, or a :class:`SnapshotPolicy`; also at
            :meth:`close`. Of the older snapshots those stay whose ages are spaced geometrically.
        answer_time_to_live: how long answers with a prediction id wait for feedback, in seconds.
        keep_inputs: whether inputs of answers are kept for their feedback; if not, :meth:`feedback` must bring them.
        answer_quota: how many answers may wait; the oldest expire. None: no limit.
        admission: limits on what one source and one event may do; None for none.
        probe: inputs, (rows, inputs), whose predictions are compared before and after every event; None for none. It
            costs a prediction of them for each event.
        calibration: whether to note how each event of one row was predicted, for :meth:`prequential`. It costs a
            prediction for each event.
        retention: for how long payloads stay in the log; None: for good.
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
        snapshot_every: int | SnapshotPolicy = 1000,
        answer_time_to_live: float = 30 * 86400.0,
        keep_inputs: bool = True,
        answer_quota: int | None = None,
        admission: Admission | None = None,
        probe: Any = None,
        calibration: bool = False,
        retention: Retention | None = None,
        take_over: bool = False,
    ) -> None:
        whole = snapshot_every if isinstance(snapshot_every, SnapshotPolicy) else SnapshotPolicy(snapshot_every)
        policy = whole.check()
        self._keeping = Keeping(answer_time_to_live, keep_inputs, answer_quota).check()
        if not isinstance(admission, Admission | None):
            raise InvalidInput(f"admission must be an Admission or None, got {admission!r}")
        if not isinstance(retention, Retention | None):
            raise InvalidInput(f"retention must be a Retention or None, got {retention!r}")
        retention = (retention or Retention()).check()
        self.store = store
        self.name = name
        self.admission = admission or Admission()
        self._lock = threading.RLock()
        self._folded = threading.Condition(self._lock)
        self._folding = self._closed = self._broken = self._uncertain = False
        self._one_at_a_time = threading.RLock()
        self._commits: GroupCommit[_Group, list[StoredEvent]] = GroupCommit(self._commit)
        self._tasks: Tasks[_Group, list[Receipt]] | None = None
        # In order, so that what a group adds to the index of ids lies together in it.
        self._ids = map(f"{uuid.uuid4().hex[:16]}{{:016x}}".format, itertools.count())
        self._spent: dict[str, float] = {}
        self._writer = store.writer(name, take_over=take_over)
        try:
            result = replay(store, name, engine=engine, network=network)
            self._line = Line(result, Watch(result.model, probe, calibration), self._not_stored)
            self._keeper = Keeper(self._writer, self._line, result.fold, policy, retention)
            self._hand_over()
        except BaseException:
            self._writer.release()
            raise

    def __repr__(self) -> str:
        return f"OnlineUpdater({self.name!r}, version {self._line.head}, {self.model.engine.name})"

    def __enter__(self) -> OnlineUpdater:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- state ----------------------------------------------------------------------------------------------------
    @property
    def model(self) -> BayesianMLP:
        """The live model. Its posterior is written in place: to keep it, take ``model.to_engine(...)``."""
        return self._line.stepper.model

    @property
    def version(self) -> int:
        """Offset of the newest record that is applied."""
        with self._applied() as line:
            return line.head

    def digest(self) -> str:
        """SHA-256 of the posterior; equal digests mean equal posteriors, to the last bit."""
        with self._applied() as line:
            return posterior_digest(self.model.spec(), line.stepper.to_arrays(copy=False))

    def history(self) -> list[Entry]:
        """Every record of the log; see :meth:`PosteriorStore.history`."""
        with self._applied():
            self._append([])
            return self.store.history(self.name)

    def prequential(self) -> Prequential:
        """How every event was predicted before it was learned; see :meth:`PosteriorStore.prequential`."""
        with self._applied():
            self._append([])
            return self.store.prequential(self.name)

    @contextlib.contextmanager
    def _applied(self) -> Iterator[Line]:
        """The posterior, held still, once all that was committed is in it."""
        with self._lock:
            while self._folding:
                self._folded.wait()
            self._apply_waiting()
            yield self._line

    @contextlib.contextmanager
    def _alone(self) -> Iterator[Line]:
        """As :meth:`_applied`, and nothing is committed by others meanwhile."""
        with self._one_at_a_time, self._commits.alone(), self._applied() as line:
            self._require_open()
            if self._uncertain:
                self._enqueue_unacknowledged(self._writer.log.head() + 1)
                self._apply_waiting()
                self._uncertain = False
            yield line

    def _not_stored(self, effects: dict[int, Effect]) -> dict[int, Effect]:
        """Effects of records that were folded again, but for those whose own effect is stored and says more."""
        stored = self._writer.log.effects_since(min(effects)) if effects else {}
        return {
            offset: effect
            for offset, effect in effects.items()
            if offset not in stored or stored[offset][:3] != effect[:3]
        }

    def _hand_over(self) -> None:
        """Record that the line goes on under another fingerprint."""
        fingerprint, line = step_fingerprint(self.model.engine), self._line
        if line.fingerprint != fingerprint:
            body = {"fingerprint": fingerprint}
            offset, chain = self._writer.append_snapshot(
                "handover", body, self.model.spec(), line.stepper.to_arrays(), line.chain
            )
            line.hand_over(offset, chain, fingerprint)

    def _require_open(self) -> None:
        if self._closed:
            raise StoreError(f"this updater of model {self.name!r} is closed")
        if self._broken:
            raise StoreError(f"a fold of model {self.name!r} failed; close this updater and open a new one")

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
        rows, network = with_row_axis(x, "x", self.model.network), self.model.network
        observed = observed_kind(self.model.kinds, kind)
        if observed is None:
            inputs = check_inputs(rows, self.model.num_inputs, "x", network)
        else:
            inputs = check_items(rows, observed, self.model.num_inputs, "x", network)
        with self._lock:
            self._require_open()
            if not self._folding:
                self._apply_waiting()
            elapsed = 0.0 if time is None else self.model.elapsed_until(self._known_time(time))
            answer = self.model.predict(inputs, method=method, elapsed=elapsed, output_mask=output_mask, kind=kind)
            version, stale = self._line.head, self._folding
        kept = self.store.answers.keep(self.name, version, inputs, self._keeping)
        return dataclasses.replace(answer, prediction_id=kept, version=version, stale=stale)

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
        told = _Told(inputs, y, chosen, weight, time, output_mask, kind, propensity)
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
        return self._learn("event", [_Told(**fields)], source, wait)[0]

    async def observe_async(self, x: Any, y: Any, *, wait: str = "applied", **options: Any) -> Receipt:
        """As :meth:`observe`, for asyncio: what many tasks send is committed together.

        Args:
            x: see :meth:`observe`.
            y: see :meth:`observe`.
            wait: see :meth:`observe`.
            options: the others of :meth:`observe`.
        """
        source = options.pop("source", None)
        group = self._group("event", [_Told(x, y, **options)], source, wait)
        return (await self._own_tasks().submit(group, wait))[0]

    def _own_tasks(self) -> Tasks[_Group, list[Receipt]]:
        with self._lock:
            self._require_open()
            if self._tasks is None:
                self._tasks = Tasks(self._commits, self._receipts)
            return self._tasks

    def _learn(self, record: str, events: Sequence[_Told], source: str | None, wait: str) -> list[Receipt]:
        group = self._group(record, events, source, wait)
        return self._receipts(group, self._commits.submit(group), wait)

    def _group(self, record: str, events: Sequence[_Told], source: str | None, wait: str) -> _Group:
        """Checked events; what is bad is refused here, before anything is stored."""
        if wait not in WAITS:
            raise InvalidInput(f"wait must be one of {', '.join(WAITS)}, got {wait!r}")
        if source is not None:
            check_event_id(source, "source")
        self._require_open()
        ids = [next(self._ids) if told.event_id is None else check_event_id(told.event_id) for told in events]
        observations = [self._check(record, told)._replace(source=source) for told in events]
        new = [
            NewRecord(record, i, o.to_body(), source, is_first=told.event_id is None)
            for i, o, told in zip(ids, observations, events, strict=True)
        ]
        return _Group(new, observations)

    def _receipts(self, group: _Group, stored: Sequence[StoredEvent], wait: str) -> list[Receipt]:
        ids = [str(record.event_id) for record in group.records]
        if wait == "applied":
            with self._applied():
                return [self._receipt(i, event) for i, event in zip(ids, stored, strict=True)]
        if not any(event.repeated for event in stored):
            return [
                Receipt(i, event.offset, "pending", None, None, False) for i, event in zip(ids, stored, strict=True)
            ]
        with self._lock:
            return [self._receipt(i, event) for i, event in zip(ids, stored, strict=True)]

    def _commit(self, groups: Sequence[_Group]) -> list[list[StoredEvent] | Exception]:
        """Store groups in one commit and queue them to be applied.

        Where something is decided of events, each call is judged with those before it in the posterior: one by one.
        """
        if self.admission != Admission():
            return [result for group in groups for result in self._commit_together([group])]
        return self._commit_together(groups)

    def _commit_together(self, groups: Sequence[_Group]) -> list[list[StoredEvent] | Exception]:
        with self._lock:
            self._require_open()
            decided = [self._admit(group) for group in groups]
            done = dict(self._line.done)
        with self._unsure():
            results = self._writer.append_groups(decided, done)  # the disk is waited for with the posterior free
        with self._lock:
            self._line.stored(done)
            for new, group, result in zip(decided, groups, results, strict=True):
                if not isinstance(result, ConflictingEvent):
                    for event, record, observation in zip(result, new, group.observations, strict=True):
                        self._enqueue(event, record, observation)
        return list(results)

    def _check(self, record: str, told: _Told) -> Observation:
        x, y, _, *rest = told
        checked = Observation.check(x, y, *rest, model=self.model)
        if record == "event" and len(checked.x) != 1:
            raise InvalidInput(f"x must be one row, got {len(checked.x)}: use observe_many or observe_batch")
        return checked

    def _admit(self, group: _Group) -> list[NewRecord]:
        """The records with what :attr:`admission` decides of each; all are judged by the posterior before the call."""
        if self.admission.quarantine_above is not None and not self._folding:
            self._apply_waiting()
        spent: dict[str, float] = {}
        decided = []
        for record, observation in zip(group.records, group.observations, strict=True):
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
                for row in self._writer.log.stored(records.c.source == source)
                if self._line.status.get(row.offset) in ("live", "quarantined", "released")
            ]
            self._spent[source] = sum(float(observation.weight.sum()) for observation in kept)
        return self._spent[source]

    def _enqueue(self, event: StoredEvent, record: NewRecord, observation: Observation) -> None:
        line = self._line
        if event.offset <= line.known:
            return  # a repeat
        self._enqueue_unacknowledged(event.offset)
        granted = observation.granted(record.granted)
        if self.admission.source_cap is not None and record.source is not None:
            self._spent[record.source] = self._spent_by(record.source) + float(granted.weight.sum())
        line.waiting.append(Waiting(event.offset, granted if record.excess_surprise is None else None))

    def _enqueue_unacknowledged(self, offset: int) -> None:
        """The records before an offset that this updater stored in a commit that reported an error, if any."""
        first = self._line.known + 1
        if first < offset:
            columns = [records.c.offset, records.c.kind]
            kinds = {row.offset: row.kind for row in self._writer.log.rows(columns, first=first, last=offset - 1)}
            if set(kinds.values()) - {"event", "batch", "quarantine"}:
                raise StoreError(f"model {self.name!r} has records this updater did not write; open a new updater")
            for row in self._writer.log.at(list(kinds)):
                learned = Observation.from_body(row.body, self.model, row.source)
                self._line.waiting.append(Waiting(row.offset, None if kinds[row.offset] == "quarantine" else learned))

    def _apply_waiting(self, most: int | None = None) -> None:
        for _ in itertools.count() if most is None else range(most):
            if not self._line.waiting:
                return
            self._line.apply_next()
            if self._keeper.is_due():  # apart from what it follows: if it can't be stored, what was learned is learned
                self._keeper.store()

    def _append(self, new: list[NewRecord]) -> list[StoredEvent]:
        """Append records, and with them the effects that are not stored yet, in one commit.

        Effects are derived from the log: a crash loses none. They are forgotten here only once they are stored.
        """
        done = dict(self._line.done)
        with self._unsure():
            stored = self._writer.append(new, done)
        self._line.stored(done)
        return stored

    @contextlib.contextmanager
    def _unsure(self) -> Iterator[None]:
        """A commit that reports an error may have been done."""
        try:
            yield
        except StoreUnavailable:
            self._uncertain = True
            raise

    def _receipt(self, event_id: str, event: StoredEvent) -> Receipt:
        status = self._line.status.get(event.offset, "pending")
        effect = Effect("pending", None, None)
        if status == "live":
            effect = self._line.done.get(event.offset) or self._writer.log.effect(event.offset) or effect
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
        with self._applied() as line:
            found = []
            for row in self._writer.log.stored(records.c.kind == "quarantine"):
                if line.status.get(row.offset) == "quarantined":
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
        with self._alone() as line:
            ids = list(dict.fromkeys(_checked_ids(event_ids)))
            waiting = {event.event_id: event.version for event in self.quarantined()}
            missing = [event_id for event_id in ids if event_id not in waiting]
            if missing:
                raise UnknownEvent(f"model {self.name!r} has no event {missing[0]!r} in quarantine")
            sources = [waiting[event_id] for event_id in ids]
            rows = list(self._writer.log.at(sources))
            stored = self._append([NewRecord("release", None, {"offset": source}) for source in sources])
            for event, row in zip(stored, rows, strict=True):
                line.learn(event.offset, Observation.from_body(row.body, self.model, row.source))
                line.status[row.offset] = "released"
            if self._keeper.is_due():
                self._keeper.store()
            return [self._receipt(event_id, event) for event_id, event in zip(ids, stored, strict=True)]

    # -- taking back ----------------------------------------------------------------------------------------------
    def retract(
        self,
        event_ids: Iterable[str] | None = None,
        *,
        source: str | None = None,
        since: float | None = None,
        estimate: bool = False,
    ) -> Retraction:
        """Take events out as if they had never come, in one fold; for good.

        While it folds, other threads go on: answers come from the posterior as it was and say that they are ``stale``;
        new events are durable at once and learned once the fold is done. What the model was published with can't be
        retracted: it was learned before the log began.

        Args:
            event_ids: of the events; or
            source: all events of a source; and/or
            since: all events stored at or after a time, seconds since the epoch.
            estimate: only say what it would fold, and how long that would take.

        Raises:
            InvalidInput: nothing or everything was named.
            UnknownEvent: an id that is not in the log, or nothing from that source; nothing is retracted.
            Purged: payloads that it would fold again were erased; nothing is retracted.
            StoreError: the model is a branch, and the events were merged into its parent; nothing is retracted.
        """
        with self._one_at_a_time:
            self._require_open()
            ids = self._chosen(event_ids, source, since)
            if estimate:
                with self._applied() as line:
                    again = self._to_fold_again(ids)
                    return Retraction(line.head, len(ids), len(again), self._seconds_to_fold(again))
            started = time.perf_counter()
            if self._line.parent is not None:
                refuse_merged(self.store, self.name, self._line.parent, self._writer.log.offsets_of(ids).values())
            if self._keeper.has_erased:
                self._to_fold_again(ids)
            with self._alone():
                self._begin_fold(self._append([NewRecord("retract", None, {"event_ids": ids})])[0].offset)
            replayed = self._fold_again(forget=True)
            return Retraction(self._line.head, len(ids), replayed, time.perf_counter() - started)

    def _chosen(self, event_ids: Iterable[str] | None, source: str | None, since: float | None) -> list[str]:
        by_query = {key: value for key, value in (("source", source), ("since", since)) if value is not None}
        if (event_ids is None) == (not by_query):
            raise InvalidInput("retract takes either event_ids, or source and/or since")
        if event_ids is None:
            found = self._writer.log.event_ids(by_query)
            if not found:
                raise UnknownEvent(f"model {self.name!r} has no event with {by_query}")
            return found
        ids = _checked_ids(event_ids)
        self._writer.log.offsets_of(ids)
        return sorted(set(ids))

    def _to_fold_again(self, ids: Sequence[str]) -> list[int]:
        """Offsets of the records that taking events out would fold again.

        Raises:
            Purged: the payload of one of them, or of one of the events, was erased.
        """
        chosen = set(self._writer.log.offsets_of(ids).values())
        return self._keeper.after_taking_out(chosen)

    def _seconds_to_fold(self, offsets: Sequence[int]) -> float:
        """What steps took when they were first taken; for those that are not known, as the others on average."""
        if not offsets:
            return 0.0
        known = {**self._writer.log.effects_since(min(offsets)), **self._line.done}
        times = [known[o].seconds or 0.0 for o in offsets if o in known and known[o].seconds is not None]
        return float(np.mean(times) * len(offsets)) if times else 0.0

    def purge(
        self, event_ids: Iterable[str] | None = None, *, source: str | None = None, since: float | None = None
    ) -> Purge:
        """Retract events, and erase their payloads, the inputs kept with their answers, and the snapshots that depended
        on them. Their ids, sources and times stay in the history.

        Args:
            event_ids: see :meth:`retract`.
            source: see :meth:`retract`.
            since: see :meth:`retract`.

        Raises:
            UnknownEvent: see :meth:`retract`.
            Purged: see :meth:`retract`.
        """
        with self._one_at_a_time:
            self._require_open()
            ids = self._chosen(event_ids, source, since)
            offsets = self._writer.log.offsets_of(ids)
            with self._applied() as line:
                live = [i for i, offset in offsets.items() if line.status.get(offset) != "retracted"]
            before = self._number_of_snapshots()
            if live:
                self.retract(live)
            with self._alone() as line:
                erased = [o for o in offsets.values() if o not in set(self._writer.log.purged_among(offsets.values()))]
                self._writer.erase(erased)
                self._keeper.adopt(self._writer.log.fold(), forget=True)
                self.store.answers.erase(self.name, answers_of(ids))
                return Purge(line.head, len(erased), max(0, before - self._number_of_snapshots()))

    def _number_of_snapshots(self) -> int:
        with self.store.read() as connection:
            return len(self.store.snapshots.chains(connection, self._writer.model_id))

    def rollback(self, version: int) -> int:
        """Go back to an earlier version; see :meth:`PosteriorStore.rollback`."""
        with self._one_at_a_time:
            with self._alone():
                self._append([])
                self._begin_fold(self._writer.append_rollback(version))
            self._fold_again()
            return self._line.head

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
            Purged: the payload of an event since the last time was erased.
            NumericalFailure: the fit diverged; the model is as it was.
        """
        with self._alone():
            self._append([])
            fold, engine, network = self._writer.log.fold(), self.model.engine, self.model.network
        found = consolidate_log(self.store, self.name, fold, engine, network, method)
        if found is None:
            raise InvalidInput(f"consolidate needs at least two events since the last time; model {self.name!r}")
        model, done = found
        with self._one_at_a_time:
            with self._alone() as line:
                if not done.replaced or not self._writer.log.fold().goes_on_from(fold):
                    return done._replace(replaced=False, version=line.head)
                self._append([])
                body = {"until": fold.head, "fingerprint": step_fingerprint(engine), "seed": model.seed}
                body |= {"method": (method or Consolidate()).describe()}
                self._begin_fold(
                    self._writer.append_snapshot("consolidate", body, model.spec(), model.to_arrays(), fold.chain)[0]
                )
            self._fold_again()
            return done._replace(version=self._line.head)

    # -- folding again --------------------------------------------------------------------------------------------
    def _begin_fold(self, offset: int) -> None:
        """From here on the posterior is stale: a record at that offset says so."""
        self._line.head = offset
        self._folding = True

    def _fold_again(self, *, forget: bool = False) -> int:
        """Fold the log up to the head in memory of its own, then take over what came out of it."""
        try:
            result = replay(
                self.store,
                self.name,
                engine=self.model.engine,
                network=self.model.network,
                version=self._line.head,
                stepper=self._line.stepper.fork(),
            )
            self._take_over(result, forget)
        except BaseException:
            self._broken = True
            raise
        finally:
            with self._lock:
                self._folding = False
                self._folded.notify_all()
        return result.replayed

    def _take_over(self, result: Replay, forget: bool) -> None:
        """Swap the posterior, learn what has come meanwhile, then let the callers that wait for it go on."""
        with self._commits.alone(), self._lock:
            self._line.adopt(result)
            self._spent = {}
            self._keeper.adopt(result.fold, forget=forget)
            if result.replayed:
                self._keeper.store()
        for _ in range(0, len(self._line.waiting), AT_ONCE):
            with self._lock:  # let go in between: who commits or asks need not wait for all of it
                self._apply_waiting(AT_ONCE)
        with self._commits.alone(), self._lock:
            self._folding = False
            self._apply_waiting()
            self._hand_over()

    # -- keeping --------------------------------------------------------------------------------------------------
    def snapshot(self) -> None:
        """Store the posterior, so that opening the model need not fold what came before."""
        with self._applied():
            self._keeper.store()

    def close(self) -> None:
        """Learn what waits, store a snapshot, and give the model free for another updater."""
        with self._one_at_a_time:
            with self._lock:
                if self._closed:
                    return
            try:
                if not self._broken:
                    with self._alone() as line:
                        if line.since_snapshot or line.done:
                            self._keeper.store()
            finally:
                self._closed = True
                if self._tasks is not None:
                    self._tasks.close()
                self._writer.release()


def answers_of(event_ids: Iterable[str]) -> list[str]:
    """Prediction ids of the answers that events were feedback on, where their ids tell."""
    return [event_id.split("-")[1] for event_id in event_ids if event_id.startswith("feedback-")]


def _as_list(values: Any, argument: str) -> list[Any]:
    """One value for each row."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable) or getattr(values, "ndim", 1) == 0:
        raise InvalidInput(f"{argument} must be a sequence, one for each row, got {values!r:.60}")
    return list(values)


def _checked_ids(event_ids: Any) -> list[str]:
    """Ids of at least one event."""
    if isinstance(event_ids, str) or not isinstance(event_ids, Iterable):
        raise InvalidInput(f"event_ids must be a collection of ids, got {event_ids!r}")
    ids = list(event_ids)
    if not all(isinstance(event_id, str) for event_id in ids):
        raise InvalidInput(f"event_ids must be strings, got {ids[:5]!r}")
    if not ids:
        raise InvalidInput("event_ids must name at least one event")
    for event_id in ids:
        check_event_id(event_id, "event_ids")
    return ids
