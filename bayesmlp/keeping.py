"""When a posterior is stored, which of its snapshots are kept, and when payloads are erased."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from .inference.errors import InvalidInput, Purged
from .line import Line
from .stepper import step_fingerprint
from .store.database import records
from .store.fold import STARTS, Fold
from .store.snapshots import thinned
from .store.writer import Writer
from .validation import is_positive

__all__ = ["Keeper", "Retention", "SnapshotPolicy"]

_HAS_PAYLOAD = (records.c.kind.in_(("event", "batch", "quarantine")), records.c.purged.is_(None))


class SnapshotPolicy(NamedTuple):
    """When the posterior is stored, by whichever comes first; also when an updater closes.

    Attributes:
        events: learned since the last snapshot.
        seconds: since the last snapshot, if anything was learned; None: time alone makes no snapshot.
        replay_seconds: that learning them took, and so folding them again would take.
    """

    events: int = 1000
    seconds: float | None = None
    replay_seconds: float | None = 30.0

    def check(self) -> SnapshotPolicy:
        """Itself; raises :class:`InvalidInput` if it can't be."""
        if not isinstance(self.events, int) or self.events < 1:
            raise InvalidInput(f"snapshot_every must be at least 1, got {self.events!r}")
        for name, value in (("seconds", self.seconds), ("replay_seconds", self.replay_seconds)):
            if value is not None and not is_positive(value):
                raise InvalidInput(f"SnapshotPolicy.{name} must be positive or None, got {value!r}")
        return self


class Retention(NamedTuple):
    """For how long payloads (inputs, targets, weights) stay in the log. What they taught stays in the posterior.

    An event whose payload is gone can't be retracted any more, nor released from quarantine, and no fold can begin
    before it. Rows that a :class:`~.inference.memory.Memory` has chosen are part of the posterior, and stay there.

    Attributes:
        seconds: since an event was stored; None: no limit.
        events: how many of the newest records keep their payload; None: no limit.
    """

    seconds: float | None = None
    events: int | None = None

    def check(self) -> Retention:
        """Itself; raises :class:`InvalidInput` if it can't be."""
        for name, value in self._asdict().items():
            if value is not None and not is_positive(value):
                raise InvalidInput(f"Retention.{name} must be positive or None, got {value!r}")
        return self


class Keeper:
    """Stores a line's posterior.

    Args:
        writer: of the model.
        line: the posterior.
        fold: that it comes from.
        policy: when to store it.
        retention: of payloads.
    """

    def __init__(self, writer: Writer, line: Line, fold: Fold, policy: SnapshotPolicy, retention: Retention) -> None:
        self._writer, self._line = writer, line
        self.policy, self.retention = policy, retention
        self._newest = time.monotonic()
        self.adopt(fold)

    def adopt(self, fold: Fold, *, forget: bool = False) -> int:
        """Look up which snapshots are on a line.

        Args:
            fold: the line.
            forget: whether to delete those that are not, as after a retraction they will never be; those that a publish
                brought stay, and those of consolidations that a rollback may bring back.

        Returns:
            How many were deleted.
        """
        store, model_id = self._writer.store, self._writer.model_id
        with store.read() as connection:
            chains = store.snapshots.chains(connection, model_id)
        self._offsets = [offset for offset, chain in chains.items() if chain in fold.covers]
        erased = set(self._writer.log.purged_among(r.learned for r in fold.line if r.learned is not None))
        self._floor = max((record.offset for record in fold.line if record.learned in erased), default=0)
        self._first_kept = 1
        off_line = set(chains) - set(self._offsets)
        if not forget or not off_line:
            return 0
        here = (records.c.offset.in_(off_line), records.c.kind.in_((*STARTS, "consolidate", "merge", "pull")))
        needed = {row.offset for row in self._writer.log.rows([records.c.offset], *here, last=fold.head)}
        gone = sorted(off_line - (needed - fold.fallen))
        with self._writer.transaction() as connection:
            store.snapshots.delete(connection, model_id, gone)
        return len(gone)

    @property
    def has_erased(self) -> bool:
        """Whether the payload of a live record was erased."""
        return self._floor > 0

    def after_taking_out(self, chosen: set[int]) -> list[int]:
        """Offsets of the records that are to be folded again if some are taken out.

        Raises:
            Purged: the payload of one of them, or of one of those taken out, was erased.
        """
        log = self._writer.log
        fold = log.fold()
        touched = (place for place, record in enumerate(fold.line) if record.learned in chosen)
        first = next(touched, len(fold.line))
        start = max((place for place in self._places(fold) if place <= first), default=0)
        again = [r for r in fold.line[start:] if r.learned is not None and r.learned not in chosen]
        needed = {int(record.learned or 0) for record in again}
        learned = {offset for offset in chosen if fold.status.get(offset) not in ("retracted", "quarantined")}
        erased = log.purged_among(needed | learned)
        if erased:
            raise Purged(f"model {log.name!r} can't be folded again: the payload of version {erased[0]} was erased")
        return [record.offset for record in again]

    def _places(self, fold: Fold) -> list[int]:
        """How many records of a line are behind each of its snapshots."""
        store = self._writer.store
        with store.read() as connection:
            chains = store.snapshots.chains(connection, self._writer.model_id)
        return [fold.covers[chain] for chain in chains.values() if chain in fold.covers]

    def is_due(self) -> bool:
        """Whether the posterior is to be stored now."""
        line, policy = self._line, self.policy
        if line.since_snapshot == 0:
            return False
        return (
            line.since_snapshot >= policy.events
            or (policy.seconds is not None and time.monotonic() - self._newest >= policy.seconds)
            or (policy.replay_seconds is not None and line.seconds_since_snapshot >= policy.replay_seconds)
        )

    def store(self) -> None:
        """Store the posterior; older snapshots are thinned, payloads past their time erased."""
        line, writer = self._line, self._writer
        model = line.stepper.model
        if line.head in line.marks:  # a version has one snapshot, and this one's record brought it
            self._store_effects()
            return
        arrays = line.stepper.to_arrays(copy=False)  # who stores holds the posterior still
        prepared = writer.store.snapshots.prepare(model.spec(), arrays, step_fingerprint(model.engine))
        done = dict(line.done)
        drop = self._to_drop(line.head)
        writer.snapshot(line.head, line.chain, prepared, done, drop)
        line.stored(done)
        self._offsets = [offset for offset in self._offsets if offset not in drop and offset != line.head]
        self._offsets.append(line.head)
        line.since_snapshot, line.seconds_since_snapshot = 0, 0.0
        self._newest = time.monotonic()
        self._erase_old()

    def _store_effects(self) -> None:
        done = dict(self._line.done)
        self._writer.append([], done)
        self._line.stored(done)

    def _to_drop(self, head: int) -> list[int]:
        """Snapshots that may go: never those that a record brought, nor the first behind the last erased payload."""
        kept = set(self._line.marks)
        if self._floor:
            behind = (offset for offset in self._offsets if offset >= self._floor and offset not in kept)
            kept.add(min(behind, default=0))
        return [offset for offset in thinned([*self._offsets, head], head) if offset not in kept and offset != head]

    def _erase_old(self) -> None:
        due = self.due(self._line.head)
        if due:
            self._writer.erase(list(due))
            self._floor = max(self._floor, *self._learned_at(due))
            kept = self._writer.log.rows(
                [records.c.offset], *_HAS_PAYLOAD, first=self._first_kept, last=self._line.head
            )
            self._first_kept = next((row.offset for row in kept), self._line.head + 1)

    def _learned_at(self, offsets: Mapping[int, str]) -> Iterator[int]:
        """Where on the line observations were learned, given where they are and of which kind."""
        released: dict[int, int] = {}
        if "quarantine" in offsets.values():
            releases = self._writer.log.stored(records.c.kind == "release")
            released = {int(release.body["offset"]): release.offset for release in releases}
        yield from (released.get(offset, offset) for offset in offsets)

    def due(self, head: int) -> dict[int, str]:
        """Offsets and kinds of the records up to a version whose payload is past its time."""
        if self.retention == Retention():
            return {}
        limit = head if self.retention.events is None else head - self.retention.events
        where: list[Any] = [*_HAS_PAYLOAD]
        if self.retention.seconds is not None:  # by each record's own time: the clock may have been put back
            where.append(records.c.received < time.time() - self.retention.seconds)
        rows = self._writer.log.rows([records.c.offset, records.c.kind], *where, first=self._first_kept, last=limit)
        return {row.offset: row.kind for row in rows}
