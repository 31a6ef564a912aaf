"""How an updater stores what it is told and applies it, in the order of the log.

Three things go on side by side: what callers send is committed in groups (:mod:`..store.commits`), what is committed is
applied to the posterior (:mod:`..line`), and the posterior is stored now and then (:mod:`..keeping`). Whoever needs two
locks takes the right to commit first, then the posterior's.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, Self

from ..admission import Admission, excess_surprise
from ..feedback import Observation, check_event_id, check_time
from ..inference.engines import Engine
from ..inference.errors import ConflictingEvent, InvalidInput, StoreError
from ..keeping import Keeper, Retention, SnapshotPolicy
from ..line import Line, Waiting
from ..model import BayesianMLP
from ..modelling.clock import Clock
from ..receipts import Receipt
from ..replay import Replay, replay
from ..stepper import Effect, step_fingerprint
from ..store.answers import Keeping
from ..store.commits import GroupCommit
from ..store.database import records
from ..store.log import NewRecord, StoredEvent
from ..store.store import PosteriorStore
from ..tasks import WAITS, Tasks
from ..watching import Watch, expectation

__all__ = ["Committer", "Group", "Told"]

AT_ONCE = 16


class Told(NamedTuple):
    """What :meth:`Observation.check` takes, as it came, and the id of the event."""

    x: Any
    y: Any
    event_id: str | None = None
    weight: Any = 1.0
    time: Any = None
    output_mask: Any = None
    kind: str | None = None
    propensity: Any = None
    answer: str | None = None


class Group(NamedTuple):
    """What one call sends: stored together or not at all.

    Attributes:
        records: to store.
        observations: that they tell.
        model: that these were checked against.
    """

    records: list[NewRecord]
    observations: list[Observation]
    model: BayesianMLP


class Committer:
    """The one writer of a model, and its locks; :class:`~..updater.OnlineUpdater` is what users see."""

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
        self._folding = self._changing = self._closed = self._broken = self._uncertain = False
        self._one_at_a_time = threading.RLock()
        self._commits: GroupCommit[Group, list[StoredEvent]] = GroupCommit(self._commit)
        self._tasks: Tasks[Group, list[Receipt]] | None = None
        self._ids = map(partial(_fresh_id, secrets.token_hex(4), secrets.token_bytes(16)), itertools.count())
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def model(self) -> BayesianMLP:
        """The live model. Its posterior is written in place: to keep it, take ``model.to_engine(...)``."""
        return self._line.stepper.model

    @property
    def version(self) -> int:
        """Offset of the newest record that is applied."""
        with self._applied() as line:
            return line.head

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
            raise StoreError(f"a fold or step of model {self.name!r} failed; close this updater and open a new one")

    def _known_time(self, when: Any) -> float:
        check_time(when)
        if self.model.dynamics.time_unit is None:
            raise InvalidInput(f"time needs dynamics with a time_unit, and these count events: {self.model.dynamics}")
        return float(when)

    def _own_tasks(self) -> Tasks[Group, list[Receipt]]:
        if self._tasks is not None and not self._closed:  # an event loop must not wait for a step or a snapshot
            return self._tasks
        with self._lock:
            self._require_open()
            if self._tasks is None:
                self._tasks = Tasks(self._commits, self._receipts)
            return self._tasks

    def _learn(self, record: str, events: Sequence[Told], source: str | None, wait: str) -> list[Receipt]:
        group = self._group(record, events, source, wait)
        return self._receipts(group, self._commits.submit(group), wait)

    def _group(self, record: str, events: Sequence[Told], source: str | None, wait: str) -> Group:
        """Checked events; what is bad is refused here, before anything is stored."""
        if wait not in WAITS:
            raise InvalidInput(f"wait must be one of {', '.join(WAITS)}, got {wait!r}")
        if source is not None:
            check_event_id(source, "source")
        self._require_open()
        model = self.model
        ids = [next(self._ids) if told.event_id is None else check_event_id(told.event_id) for told in events]
        observations = [self._check(record, told, model)._replace(source=source) for told in events]
        new = [
            NewRecord(record, i, o.to_body(), source, answer=told.answer, is_first=told.event_id is None)
            for i, o, told in zip(ids, observations, events, strict=True)
        ]
        return Group(new, observations, model)

    def _receipts(self, group: Group, stored: Sequence[StoredEvent], wait: str) -> list[Receipt]:
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

    def _commit(self, groups: Sequence[Group]) -> list[list[StoredEvent] | Exception]:
        """Store groups in one commit and queue them to be applied.

        Where something is decided of events, each call is judged with those before it in the posterior: one by one.
        """
        if any(self._is_outdated(group) for group in groups):
            outdated = StoreError(f"model {self.name!r} went back to one of another kind meanwhile: send it again")
            return [outdated if self._is_outdated(group) else self._commit([group])[0] for group in groups]
        if self.admission.decides:
            return [result for group in groups for result in self._commit_together([group])]
        return self._commit_together(groups)

    def _is_outdated(self, group: Group) -> bool:
        """Whether what was sent was checked against a model that a rollback leaves, or has left, for another."""
        return self._changing or group.model is not self.model

    def _commit_together(self, groups: Sequence[Group]) -> list[list[StoredEvent] | Exception]:
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

    def _check(self, record: str, told: Told, model: BayesianMLP) -> Observation:
        x, y, _, *rest, _ = told
        checked = Observation.check(x, y, *rest, model=model)
        if record == "event" and len(checked.x) != 1:
            raise InvalidInput(f"x must be one row, got {len(checked.x)}: use observe_many or observe_batch")
        if model.dynamics.time_unit is not None:
            self.admission.check_time(checked.time, time.time())
        return checked

    def _admit(self, group: Group) -> list[NewRecord]:
        """The records with what :attr:`admission` decides of each; all are judged by the posterior before the call.

        Time passes between them: each is judged at its own, as those before it let it pass that are not in quarantine.
        """
        if not self.admission.decides:
            return group.records
        if self.admission.quarantine_above is not None and not self._folding:
            self._apply_waiting()
        clock = self.model.clock
        for one in self._line.waiting:  # behind a fold
            if one.observation is not None:
                clock.advance(one.observation.clock_time)
        spent: dict[str, float] = {}
        decided = []
        seen = self._stored_before(group)
        for record, observation in zip(group.records, group.observations, strict=True):
            if record.event_id not in seen:
                seen.add(record.event_id)
                record = self._judge(self._grant(record, observation, spent), observation, clock)
            decided.append(record)
        return decided

    def _grant(self, record: NewRecord, observation: Observation, spent: dict[str, float]) -> NewRecord:
        """A record with what its source is granted of its weight; ``spent`` is what each has spent, and is kept up."""
        source = record.source
        if self.admission.source_cap is None or source is None:
            return record
        weight = float(observation.weight.sum())
        before = spent.get(source, self._spent_by(source))
        granted = self.admission.granted(weight, before)
        spent[source] = before + granted * weight
        return record._replace(granted=granted)

    def _judge(self, record: NewRecord, observation: Observation, clock: Clock) -> NewRecord:
        """A record, in quarantine where it is too surprising; the clock goes on by it where it is not."""
        limit = self.admission.quarantine_above
        if limit is None:
            return record
        when = observation.granted(record.granted).clock_time
        told = observation.weight > 0
        if told.any():
            answer = expectation(self.model, observation, clock.until(when))
            excess = float(excess_surprise(answer, observation.y)[told].max())
            if excess > limit:
                return record._replace(excess_surprise=excess)
        clock.advance(when)
        return record

    def _stored_before(self, group: Group) -> set[str | None]:
        """Ids of a group's events that are in the log: a repeat spends nothing of what its source may weigh."""
        if len(group.records) == 1:  # nothing comes after it
            return set()
        return set(self._writer.log.known_offsets([str(r.event_id) for r in group.records if not r.is_first]))

    def _spent_by(self, source: str) -> float:
        """The total weight granted to a source's events, but for those that were taken out again, or erased."""
        if source not in self._spent:
            waiting = {one.offset for one in self._line.waiting}
            kept = [
                Observation.from_body(row.body, self.model)
                for row in self._writer.log.stored(records.c.source == source, records.c.purged.is_(None))
                if row.offset in waiting or self._line.status.get(row.offset) in ("live", "quarantined", "released")
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
            if self._broken:  # by a step that was interrupted: the posterior in memory may be half of it
                self._require_open()
            try:
                self._line.apply_next()
            except BaseException:
                self._broken = True
                raise
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
        """A commit that reports an error, or was interrupted, may have been done."""
        try:
            yield
        except BaseException:
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

    def _begin_fold(self, offset: int, *, changing: bool = False) -> None:
        """From here on the posterior is stale: a record at that offset says so; ``changing``: the model's kind too."""
        self._line.head = offset
        self._folding, self._changing = True, changing

    def _fold_again(self, *, forget: bool = False) -> int:
        """Fold the log up to the head in memory of its own, then take over what came out of it."""
        try:
            result = replay(
                self.store,
                self.name,
                engine=self.model.engine,
                version=self._line.head,
                stepper=self._line.stepper.fork(),
            )
            self._take_over(result, forget)
        except BaseException:
            self._broken = True
            raise
        finally:
            with self._lock:
                self._folding = self._changing = False
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

    def snapshot(self) -> None:
        """Store the posterior, so that opening the model need not fold what came before."""
        with self._applied():
            self._require_open()
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


def _fresh_id(first: str, secret: bytes, count: int) -> str:
    """An id for an event that came without one.

    In order, so that what a group adds to their index lies together in it; and not to be guessed, so that no sender can
    take it before.
    """
    return f"{first}{count:08x}{hashlib.blake2b(count.to_bytes(8), key=secret, digest_size=8).hexdigest()}"
