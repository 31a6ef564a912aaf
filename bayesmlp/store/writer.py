"""The one that may append to a model's log."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import Connection, bindparam, func, insert, select
from sqlalchemy.exc import DBAPIError

from ..inference.errors import ConflictingEvent, Purged, StoreError, StoreUnavailable, UnknownModel
from ..stepper import Effect
from . import leases
from .connections import unavailable_as_such
from .database import FORMAT_VERSION, effects, models, records
from .digest import body_hash, canonical_json, effect_checksum, extend_chain, row_checksum
from .log import SCHEMA_VERSION, Log, NewRecord, StoredEvent, is_version
from .snapshots import Prepared, Snapshot

if TYPE_CHECKING:
    from .store import PosteriorStore

__all__ = ["Writer", "record_row"]

# Made once: SQLAlchemy takes longer to build a statement than SQLite to do it.
_INSERT = insert(records)
_EARLIER = select(records.c.event_id, records.c.offset, records.c.body_hash).where(
    records.c.model_id == bindparam("model"), records.c.event_id.in_(bindparam("ids", expanding=True))
)


class Writer:
    """Appends to a model's log while it holds the model's lease.

    Args:
        store: of the model.
        name: of the model.
        take_over: supersede another writer.
    """

    def __init__(self, store: PosteriorStore, name: str, *, take_over: bool = False) -> None:
        self.store, self.name, self._process = store, name, os.getpid()
        self._mutex = threading.Lock()
        self._session: Connection | None = None
        self._next: int | None = None  # nobody else appends while the lease is held
        self._effects_end: int | None = None  # no effects are stored from this offset on
        self._held = True
        self._in_doubt = False  # whether what can be read may not be on disk, as after a flush that failed
        with self._mutex, self._begin() as connection:
            self.model_id = store.model_id(connection, name)
            self.epoch = leases.acquire(connection, self.model_id, name, take_over=take_over)
            upgraded = models.update().where(models.c.id == self.model_id, models.c.format_version < FORMAT_VERSION)
            connection.execute(upgraded.values(format_version=FORMAT_VERSION))
        self.log = Log(store.reader, self.model_id, name)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction that commits only while the lease is held.

        Raises:
            LeaseLost: another writer took over.
            StoreUnavailable: the database can't be reached or written; nothing is acknowledged.
        """
        if os.getpid() != self._process:
            raise StoreError(f"the updater of {self.name!r} belongs to the process that opened it: open one here")
        try:
            with self._mutex, self._begin() as connection:
                leases.check(connection, self.model_id, self.epoch, self.name)
                if not self._held:
                    self._held = leases.hold(connection, self.model_id, self.epoch)
                if self._in_doubt:  # a repeat writes nothing, and is acknowledged: what it repeats is flushed by this
                    leases.touch(connection, self.model_id, self.epoch)
                yield connection
            self._in_doubt = False
        except BaseException:  # it may have been committed, or not
            self._next = self._effects_end = None
            self._in_doubt = True
            raise
        self.store.snapshots.blobs.sweep(self.store.engine)

    @contextlib.contextmanager
    def _begin(self) -> Iterator[Connection]:
        """A transaction; on PostgreSQL in the session that holds the lease's lock, opened again if it was lost."""
        with unavailable_as_such(str(self.store)):
            if self.store.engine.dialect.name != "postgresql":
                with self.store.engine.begin() as connection:
                    yield connection
                return
            if self._session is None:
                self._session = self.store.engine.connect()
            try:
                with self._session.begin():
                    yield self._session
            except DBAPIError as error:
                if error.connection_invalidated:
                    self._session.close()
                    self._session, self._held = None, False
                raise

    def release(self) -> None:
        """Give the lease back, if the database can be reached; else its session's end does."""
        with self._mutex:
            with contextlib.suppress(StoreUnavailable), self._begin() as connection:
                leases.release(connection, self.model_id, self.epoch)
            if self._session is not None:
                self._session.close()
                self._session = None

    # -- appending ------------------------------------------------------------------------------------------------
    def append(self, new: Sequence[NewRecord], done: Mapping[int, Effect] | None = None) -> list[StoredEvent]:
        """Append records in one commit; when it returns they are durable.

        An event id that is there already is not stored again.

        Args:
            new: the records.
            done: effects of earlier records, to be written along.

        Raises:
            ConflictingEvent: an id that is there already with another body; then nothing is stored.
        """
        result = self.append_groups([new], done)[0]
        if isinstance(result, ConflictingEvent):
            raise result
        return result

    def append_groups(
        self, groups: Sequence[Sequence[NewRecord]], done: Mapping[int, Effect] | None = None
    ) -> list[list[StoredEvent] | ConflictingEvent]:
        """Append several groups of records in one commit; of a group with a conflict nothing is stored."""
        with self.transaction() as connection:
            self._write_effects(connection, done or {})
            offset = self._next_offset(connection)
            sent = [r.event_id for group in groups for r in group if r.event_id is not None and not r.is_first]
            known = self._earlier(connection, sent)
            rows: list[dict[str, Any]] = []
            results: list[list[StoredEvent] | ConflictingEvent] = []
            for group in groups:
                try:
                    stored, added, new = self._placed(group, known, offset + len(rows))
                except ConflictingEvent as error:
                    results.append(error)
                    continue
                results.append(stored)
                rows += added
                known |= new
            if rows:
                connection.execute(_INSERT, rows)
            self._next = offset + len(rows)
            return results

    def _placed(
        self, group: Sequence[NewRecord], known: Mapping[str, tuple[int, str]], offset: int
    ) -> tuple[list[StoredEvent], list[dict[str, Any]], dict[str, tuple[int, str]]]:
        """Where the records of a group end up, the rows that are new, and the ids that are new."""
        new: dict[str, tuple[int, str]] = {}
        stored, rows = [], []
        for record in group:
            body = canonical_json(record.body)
            digest = body_hash(record.kind, body)
            before = None if record.event_id is None else new.get(record.event_id) or known.get(record.event_id)
            if before is None:
                rows.append(self._row(offset, record, body, digest))
                stored.append(StoredEvent(offset, repeated=False))
                if record.event_id is not None:
                    new[record.event_id] = (offset, digest)
                offset += 1
            elif before[1] in (digest, _PURGED):
                stored.append(StoredEvent(before[0], repeated=True))
            else:
                when = f"before with another body (version {before[0]})"
                if record.event_id in new:
                    when = "twice at once, with two bodies"
                raise ConflictingEvent(
                    f"event {record.event_id!r} was sent {when}; a correction needs an id of its own"
                )
        return stored, rows, new

    def append_rollback(self, version: int, check: Callable[[Snapshot], None] | None = None) -> int:
        """Append a rollback record; see :meth:`PosteriorStore.rollback`.

        Args:
            version: to go back to.
            check: raises if the model can't go on from the snapshot that it would be folded from.

        Raises:
            UnknownModel: there is no such version.
            Purged: payloads on the way to it from the newest snapshot before were erased.
        """
        head = self.log.head()
        whole = is_version(version) and version <= head
        fold = self.log.fold(int(version)) if whole else None
        if fold is None or not fold.line:
            raise UnknownModel(f"model {self.name!r} has versions 1 to {head}, not {version!r}")
        covered, snapshot = self.store.nearest_snapshot(self.model_id, fold)
        status = self.log.fold().status  # what was retracted since stays out
        learned = [int(r.learned) for r in fold.line[covered:] if r.learned is not None]
        erased = self.log.purged_among([offset for offset in learned if status.get(offset) != "retracted"])
        if erased:
            raise Purged(f"model {self.name!r} can't be folded again: the payload of version {erased[0]} was erased")
        if check is not None:
            check(snapshot)
        return self.append([NewRecord("rollback", None, {"version": int(version)})])[0].offset

    def append_snapshot(
        self,
        kind: str,
        body: Mapping[str, Any],
        spec: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray],
        chain: str = "",
    ) -> tuple[int, str]:
        """Append a record that brings its own snapshot (publish, handover, consolidate), in one commit.

        Args:
            kind: of the record.
            body: of the record, with its fingerprint.
            spec: of the posterior.
            arrays: of the posterior.
            chain: of the line that it goes on with; empty for a new one.

        Returns:
            The offset, and the chain after it.
        """
        prepared = self.store.snapshots.prepare(spec, arrays, body["fingerprint"])
        text = canonical_json(body)
        with self.transaction() as connection:
            offset = self._next_offset(connection)
            row = self._row(offset, NewRecord(kind, None, body), text, body_hash(kind, text))
            connection.execute(insert(records), [row])
            chain = extend_chain(chain, [offset])
            self.store.snapshots.insert(connection, self.model_id, offset, chain, prepared)
            self._next = offset + 1
            return offset, chain

    def snapshot(
        self, offset: int, chain: str, prepared: Prepared, done: Mapping[int, Effect], drop: Sequence[int] = ()
    ) -> None:
        """Store the posterior at an offset, and the effects of the records before it, in one commit.

        Args:
            offset: of the newest record that is in it.
            chain: after that record.
            prepared: the posterior.
            done: effects.
            drop: offsets of snapshots that go.
        """
        with self.transaction() as connection:
            self._write_effects(connection, done)
            self.store.snapshots.insert(connection, self.model_id, offset, chain, prepared)
            self.store.snapshots.delete(connection, self.model_id, drop)

    def erase(self, offsets: Sequence[int]) -> None:
        """Erase the payloads of records, for good; their places in the log stay."""
        with self.transaction() as connection:
            for offset in offsets:
                where = (records.c.model_id == self.model_id) & (records.c.offset == offset)
                row, now = connection.execute(select(records).where(where)).one(), time.time()
                said = (offset, row.kind, row.event_id, row.source, _SCHEMA)
                checksum = row_checksum(*said, row.received, row.actor, now)
                values = {"body": _SCHEMA, "body_hash": _PURGED, "checksum": checksum, "purged": now}
                connection.execute(records.update().where(where).values(**values))

    # -- rows -----------------------------------------------------------------------------------------------------
    def _next_offset(self, connection: Connection) -> int:
        if self._next is not None:
            return self._next
        query = select(func.max(records.c.offset)).where(records.c.model_id == self.model_id)
        return int(connection.execute(query).scalar() or 0) + 1

    def _earlier(self, connection: Connection, event_ids: Sequence[str]) -> dict[str, tuple[int, str]]:
        """Offset and body hash of the events that are there, by id."""
        found: dict[str, tuple[int, str]] = {}
        for start in range(0, len(event_ids), 500):
            these = {"model": self.model_id, "ids": list(event_ids[start : start + 500])}
            found |= {row.event_id: (row.offset, row.body_hash) for row in connection.execute(_EARLIER, these)}
        return found

    def _row(self, offset: int, record: NewRecord, body: str, digest: str) -> dict[str, Any]:
        return {"model_id": self.model_id, **record_row(offset, record, body, digest, self.store.actor)}

    def _write_effects(self, connection: Connection, done: Mapping[int, Effect]) -> None:
        if not done:
            return
        offsets = sorted(done)
        if self._effects_end is None:
            query = select(func.max(effects.c.offset)).where(effects.c.model_id == self.model_id)
            self._effects_end = int(connection.execute(query).scalar() or 0) + 1
        again = [offset for offset in offsets if offset < self._effects_end]
        for start in range(0, len(again), 500):
            stale = (effects.c.model_id == self.model_id) & effects.c.offset.in_(again[start : start + 500])
            connection.execute(effects.delete().where(stale))
        rows = [
            {"model_id": self.model_id, "offset": o, **effect._asdict(), "checksum": effect_checksum(o, *effect)}
            for o, effect in done.items()
        ]
        connection.execute(insert(effects), rows)
        self._effects_end = max(offsets[-1] + 1, self._effects_end)


def record_row(offset: int, record: NewRecord, body: str, digest: str, actor: str) -> dict[str, Any]:
    """The row of a record, but for its model."""
    decided = record.decided
    extras = canonical_json({**decided, "schema": SCHEMA_VERSION}) if decided else _SCHEMA
    whole = extras if body == "{}" else f"{body[:-1]},{extras[1:]}"
    kind, now = record.stored_kind, time.time()
    said = (offset, kind, record.event_id, record.source, whole)
    return {
        "offset": offset,
        "kind": kind,
        "event_id": record.event_id,
        "source": record.source,
        "body": whole,
        "body_hash": digest,
        "checksum": row_checksum(*said, now, actor, None),
        "received": now,
        "actor": actor,
    }


_SCHEMA = canonical_json({"schema": SCHEMA_VERSION})
_PURGED = "purged"
"""In place of the body's hash, which could tell a guesser what the body was."""
