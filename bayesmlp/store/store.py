"""Posteriors and their logs, by name."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sqlalchemy import Connection, func, insert, select
from sqlalchemy.exc import DatabaseError

from ..inference.errors import ConflictingEvent, CorruptStore, InvalidInput, UnknownEvent, UnknownModel
from ..model import BayesianMLP
from ..prequential import PER_EVENT, Prequential
from ..stepper import Effect, step_fingerprint
from . import leases
from .answers import Answers
from .blobs import BlobFolder
from .database import FORMAT_VERSION, connect, effects, metadata, models, records, snapshots
from .digest import body_hash, canonical_json, posterior_digest
from .fold import Fold, Record, effective

__all__ = ["Entry", "NewRecord", "PosteriorStore", "Snapshot", "StoredEvent", "StoredRecord", "Writer", "open_store"]

_log = logging.getLogger(__name__)


class Entry(NamedTuple):
    """One line of a model's history.

    Attributes:
        version: offset of the record; the model's version after it.
        kind: ``publish``, ``event``, ``batch``, ``quarantine``, ``release``, ``retract``, ``rollback``,
            ``handover`` or ``consolidate``.
        event_id: of an event or a batch, quarantined or not.
        status: of these: ``applied``, ``failed``, ``pending``, ``quarantined``, ``released``, ``retracted``,
            ``rolled back``, ``superseded``; else empty.
        surprise: minus the log predictive density before it was learned, in nats.
        information: gained, in nats.
        received: when it was stored, seconds since the epoch.
        note: what a retraction, a release or a rollback names.
    """

    version: int
    kind: str
    event_id: str | None
    status: str
    surprise: float | None
    information: float | None
    received: float
    note: str


class Snapshot(NamedTuple):
    """A stored posterior: its place in the log, its spec, its arrays and their digest."""

    offset: int
    spec: dict[str, Any]
    arrays: dict[str, np.ndarray]
    digest: str


class NewRecord(NamedTuple):
    """A record to append; its body is plain JSON.

    A repeat is recognised by kind and body; what an updater decided of it is stored too, and may differ.

    Attributes:
        kind: see :mod:`.fold`.
        event_id: of an event or a batch.
        body: what it says.
        source: who sent it.
        granted: share of its weight that it is granted.
        excess_surprise: for which it goes into quarantine, in nats; None if it does not.
    """

    kind: str
    event_id: str | None
    body: Mapping[str, Any]
    source: str | None = None
    granted: float = 1.0
    excess_surprise: float | None = None

    @property
    def stored_kind(self) -> str:
        """The kind it is stored as."""
        return self.kind if self.excess_surprise is None else "quarantine"

    @property
    def decided(self) -> dict[str, float]:
        """What the stored body says beside the body."""
        share = {} if self.granted == 1 else {"granted": self.granted}
        return share if self.excess_surprise is None else share | {"excess_surprise": self.excess_surprise}


class StoredRecord(NamedTuple):
    """A row of the log."""

    offset: int
    event_id: str | None
    source: str | None
    received: float
    body: dict[str, Any]


class StoredEvent(NamedTuple):
    """Where a record ended up, and whether it had been there before."""

    offset: int
    repeated: bool


def is_version(value: Any) -> bool:
    """Whether a value may be a version: a positive integer."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 1)


def open_store(path: str | Path, *, durability: str = "full") -> PosteriorStore:
    """Open a store, making it if it is not there.

    Args:
        path: an SQLite file. Large arrays go to a folder beside it (``<path>.blobs``), answers to ``<path>.answers``.
        durability: ``"full"``: what was acknowledged survives power loss; ``"normal"``: the death of the process.

    Raises:
        InvalidInput: a URL of another database, or an unknown durability.
        CorruptStore: the file is no SQLite database, or can not be opened.
    """
    return PosteriorStore(path, durability=durability)


class PosteriorStore:
    """An append-only log and immutable snapshots for each model, in one SQLite file. See :func:`open_store`."""

    def __init__(self, path: str | Path, *, durability: str = "full") -> None:
        if "://" in str(path):
            raise InvalidInput(f"path must be that of an SQLite file, got {str(path)!r}")
        self.path = Path(path).absolute()
        if not self.path.parent.is_dir():
            raise InvalidInput(f"path must be in an existing folder, got {str(path)!r}")
        try:
            self._writer = connect(self.path, metadata, durability=durability, exclusive=True)
        except DatabaseError as error:
            raise CorruptStore(f"{self.path} can not be opened as a store: {error.orig}") from error
        self._reader = connect(self.path, metadata, durability=durability, exclusive=False)
        self._blobs = BlobFolder(self.path.with_name(f"{self.path.name}.blobs"))
        self._answers: Answers | None = None

    def __repr__(self) -> str:
        return f"PosteriorStore({str(self.path)!r})"

    def __enter__(self) -> PosteriorStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._writer.dispose()
        self._reader.dispose()
        if self._answers is not None:
            self._answers.close()

    @property
    def answers(self) -> Answers:
        """Answers given with a prediction id, kept beside the log."""
        if self._answers is None:
            self._answers = Answers(self.path.with_name(f"{self.path.name}.answers"))
        return self._answers

    # -- models ---------------------------------------------------------------------------------------------------
    def publish(self, name: str, model: BayesianMLP) -> int:
        """Store a model's posterior under a name; under a name that is there, it starts a new line.

        Args:
            name: of the model.
            model: fitted, or started from its prior.

        Returns:
            The version.

        Raises:
            InvalidInput: a name that is not 1 to 200 printable characters.
            NotFitted: the model has no posterior.
            LeaseHeld: an updater is writing to the model.
        """
        if not isinstance(name, str) or not 0 < len(name) <= 200 or not name.isprintable():
            raise InvalidInput(f"name must be a string of 1 to 200 printable characters, got {name!r}")
        model.num_inputs  # noqa: B018 (raises before any work)
        with self._writer.begin() as connection:
            row = connection.execute(select(models).where(models.c.name == name)).first()
            if row is None:
                values = {"name": name, "format_version": FORMAT_VERSION, "created": time.time()}
                connection.execute(insert(models).values(**values))
        fingerprint = step_fingerprint(model.engine)
        with self.write(name) as writer:
            return writer.append_snapshot("publish", {"fingerprint": fingerprint}, model.spec(), model.to_arrays())

    def names(self) -> list[str]:
        """Names of the models."""
        with self._reader.connect() as connection:
            return list(connection.execute(select(models.c.name).order_by(models.c.name)).scalars())

    def history(self, name: str) -> list[Entry]:
        """Every record of a model's log, oldest first, with what became of it."""
        with self._reader.connect() as connection:
            model_id = self.model_id(connection, name)
            fold = self.fold(connection, model_id)
            query = (
                select(records, effects.c.outcome, effects.c.surprise, effects.c.information)
                .join_from(
                    records,
                    effects,
                    (effects.c.model_id == records.c.model_id) & (effects.c.offset == records.c.offset),
                    isouter=True,
                )
                .where(records.c.model_id == model_id)
                .order_by(records.c.offset)
            )
            entries = []
            for row in connection.execute(query):
                status = fold.status.get(row.offset, "")
                live = status in ("live", "quarantined", "released")
                note = ""
                if row.kind == "retract":
                    note = f"{len(json.loads(row.body)['event_ids'])} events"
                elif row.kind == "release":
                    note = f"of version {json.loads(row.body)['offset']}"
                elif row.kind == "rollback":
                    note = f"to version {json.loads(row.body)['version']}"
                elif row.kind == "consolidate":
                    live_now = any(record.offset == row.offset for record in fold.line)
                    note = f"up to version {json.loads(row.body)['until']}" + ("" if live_now else ", no longer")
                entries.append(
                    Entry(
                        row.offset,
                        row.kind,
                        row.event_id,
                        (row.outcome or "pending") if status == "live" else status,
                        row.surprise if live else None,
                        row.information if live else None,
                        row.received,
                        note,
                    )
                )
            return entries

    def prequential(self, name: str) -> Prequential:
        """How the model predicted the events of its line before it learned them, from what was stored of each.

        Raises:
            UnknownModel: no such model.
        """
        with self._reader.connect() as connection:
            model_id = self.model_id(connection, name)
            learned = [record.offset for record in self.fold(connection, model_id).line if record.learned is not None]
            query = select(effects).where(effects.c.model_id == model_id, effects.c.outcome == "applied")
            rows = {row.offset: row for row in connection.execute(query)}
        done = [rows[offset] for offset in learned if offset in rows]
        columns = {
            name: np.array([getattr(row, name) for row in done], dtype=np.float64)
            for name in PER_EVENT
            if name != "version"
        }
        return Prequential(version=np.array([row.offset for row in done], dtype=np.int64), **columns)

    def rollback(self, name: str, version: int) -> int:
        """Go back to an earlier version; the records since stay in the log, rolled back.

        A retraction is never undone by a rollback.

        Returns:
            The new version.

        Raises:
            UnknownModel: no such model or version.
            LeaseHeld: an updater is writing to the model: use its own ``rollback``.
        """
        with self.write(name) as writer:
            return writer.append_rollback(version)

    # -- reading --------------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A consistent view of the store."""
        with self._reader.connect() as connection:
            yield connection

    def model_id(self, connection: Connection, name: str) -> int:
        """Raises :class:`UnknownModel`, naming the models there are."""
        row = connection.execute(select(models).where(models.c.name == name)).first()
        if row is None:
            known = list(connection.execute(select(models.c.name).order_by(models.c.name).limit(20)).scalars())
            raise UnknownModel(f"no model {name!r} in {self.path}; it holds {known or 'none'}")
        if row.format_version > FORMAT_VERSION:
            raise CorruptStore(
                f"model {name!r} has format {row.format_version}, this version of bayesmlp reads up to {FORMAT_VERSION}"
            )
        return int(row.id)

    def fold(self, connection: Connection, model_id: int, version: int | None = None) -> Fold:
        """The live records up to a version."""
        query = select(records.c.offset, records.c.kind, records.c.event_id, records.c.body)
        query = query.where(records.c.model_id == model_id).order_by(records.c.offset)
        if version is not None:
            query = query.where(records.c.offset <= version)
        needs_body = ("retract", "rollback", "release", "publish", "handover", "consolidate")
        return effective(
            Record(row.offset, row.kind, row.event_id, json.loads(row.body) if row.kind in needs_body else {})
            for row in connection.execute(query)
        )

    def body(self, connection: Connection, model_id: int, offset: int) -> dict[str, Any]:
        """The body of one record."""
        where = (records.c.model_id == model_id) & (records.c.offset == offset)
        return dict(json.loads(connection.execute(select(records.c.body).where(where)).scalar_one()))

    def source(self, connection: Connection, model_id: int, offset: int) -> str | None:
        """Who sent a record."""
        where = (records.c.model_id == model_id) & (records.c.offset == offset)
        return connection.execute(select(records.c.source).where(where)).scalar_one()

    def nearest_snapshot(
        self, connection: Connection, model_id: int, fold: Fold, no_later_than: int | None = None
    ) -> tuple[int, Snapshot]:
        """The newest sound snapshot on a fold's line.

        Args:
            connection: from :meth:`read`.
            model_id: of the model.
            fold: the line to find it on.
            no_later_than: highest allowed position on the line.

        Returns:
            The number of records of the line that it covers, and the snapshot.

        Raises:
            CorruptStore: none is sound.
        """
        covers = {chain: position + 1 for position, chain in enumerate(fold.chains())}
        rows = connection.execute(select(snapshots).where(snapshots.c.model_id == model_id)).all()
        usable = sorted(((covers[row.chain], row) for row in rows if row.chain in covers), key=lambda pair: -pair[0])
        for position, row in usable:
            if no_later_than is not None and position > no_later_than:
                continue
            try:
                arrays = self._blobs.read(connection, row.blob)
                spec = json.loads(row.spec)
                if posterior_digest(spec, arrays) != row.digest:
                    raise CorruptStore(f"the snapshot at version {row.offset} does not have its digest")
            except CorruptStore as error:
                _log.warning("snapshot at version %d is not sound, an older one is used: %s", row.offset, error)
                continue
            return position, Snapshot(row.offset, spec, arrays, row.digest)
        raise CorruptStore(f"no sound snapshot of model {model_id} is left for its version {fold.head}")

    # -- writing --------------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def write(self, name: str) -> Iterator[Writer]:
        """The right to write to a model, for the duration of the block."""
        writer = self.writer(name)
        try:
            yield writer
        finally:
            writer.release()

    def writer(self, name: str, *, take_over: bool = False) -> Writer:
        """Take the model's lease; raises :class:`LeaseHeld` while another writer has it, unless ``take_over``."""
        with self._writer.begin() as connection:
            model_id = self.model_id(connection, name)
            epoch = leases.acquire(connection, model_id, name, take_over=take_over)
        return Writer(self, name, model_id, epoch)


@dataclass
class Writer:
    """The one that may append to a model's log."""

    store: PosteriorStore
    name: str
    model_id: int
    epoch: int

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction that commits only while the lease is held."""
        with self.store._writer.begin() as connection:
            leases.check(connection, self.model_id, self.epoch, self.name)
            yield connection

    def release(self) -> None:
        """Give the lease back."""
        with self.store._writer.begin() as connection:
            leases.release(connection, self.model_id, self.epoch)

    def append(self, new: Sequence[NewRecord], done: Mapping[int, Effect] | None = None) -> list[StoredEvent]:
        """Append records in one commit; when it returns they are durable.

        An event id that is there already is not stored again.

        Args:
            new: the records.
            done: effects of earlier records, to be written along.

        Raises:
            ConflictingEvent: an id that is there already with another body; then nothing is stored.
        """
        with self.transaction() as connection:
            self._write_effects(connection, done or {})
            offset = self._next_offset(connection)
            stored = []
            for record in new:
                body = canonical_json(record.body)
                digest = body_hash(record.kind, body)
                earlier = self._earlier(connection, record.event_id)
                if earlier is not None:
                    if earlier[1] != digest:
                        raise ConflictingEvent(
                            f"event {record.event_id!r} was sent before with another body (version {earlier[0]}); "
                            "a correction needs an id of its own"
                        )
                    stored.append(StoredEvent(earlier[0], repeated=True))
                    continue
                decided = record.decided
                whole = canonical_json({**record.body, **decided}) if decided else body
                self._insert(connection, offset, record, whole, digest)
                stored.append(StoredEvent(offset, repeated=False))
                offset += 1
            return stored

    def append_rollback(self, version: int) -> int:
        """Append a rollback record; see :meth:`PosteriorStore.rollback`."""
        with self.transaction() as connection:
            head = self._next_offset(connection) - 1
            whole = is_version(version) and version <= head
            if not whole or not self.store.fold(connection, self.model_id, int(version)).line:
                raise UnknownModel(f"model {self.name!r} has versions 1 to {head}, not {version!r}")
            return self._append_one(connection, NewRecord("rollback", None, {"version": int(version)}))

    def append_snapshot(
        self, kind: str, body: Mapping[str, Any], spec: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
    ) -> int:
        """Append a record that brings its own snapshot (publish, handover, consolidate), in one commit."""
        name, data = self.store._blobs.write(arrays)
        with self.transaction() as connection:
            offset = self._append_one(connection, NewRecord(kind, None, body))
            fold = self.store.fold(connection, self.model_id)
            place = [record.offset for record in fold.line].index(offset)
            at = body.get("until", offset)  # of a consolidation, what came since follows it on the line
            chain = fold.chains()[place]
            self._insert_snapshot(connection, at, chain, spec, arrays, name, data, body["fingerprint"])
            return offset

    def snapshot(
        self,
        offset: int,
        chain: str,
        spec: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray],
        fingerprint: Mapping[str, str],
        done: Mapping[int, Effect],
    ) -> None:
        """Store the posterior at an offset, and the effects of the records before it, in one commit."""
        name, data = self.store._blobs.write(arrays)
        with self.transaction() as connection:
            self._write_effects(connection, done)
            self._insert_snapshot(connection, offset, chain, spec, arrays, name, data, fingerprint)

    # -- rows -----------------------------------------------------------------------------------------------------
    def _next_offset(self, connection: Connection) -> int:
        query = select(func.max(records.c.offset)).where(records.c.model_id == self.model_id)
        return int(connection.execute(query).scalar() or 0) + 1

    def _earlier(self, connection: Connection, event_id: str | None) -> tuple[int, str] | None:
        """Offset and body hash of the event of that id."""
        if event_id is None:
            return None
        where = (records.c.model_id == self.model_id) & (records.c.event_id == event_id)
        row = connection.execute(select(records.c.offset, records.c.body_hash).where(where)).first()
        return None if row is None else (row.offset, row.body_hash)

    def _append_one(self, connection: Connection, record: NewRecord) -> int:
        offset = self._next_offset(connection)
        body = canonical_json(record.body)
        self._insert(connection, offset, record, body, body_hash(record.kind, body))
        return offset

    def _insert(self, connection: Connection, offset: int, record: NewRecord, body: str, digest: str) -> None:
        connection.execute(
            insert(records).values(
                model_id=self.model_id,
                offset=offset,
                kind=record.stored_kind,
                event_id=record.event_id,
                source=record.source,
                body=body,
                body_hash=digest,
                received=time.time(),
            )
        )

    def _write_effects(self, connection: Connection, done: Mapping[int, Effect]) -> None:
        if not done:
            return
        offsets = list(done)
        stale = (effects.c.model_id == self.model_id) & effects.c.offset.in_(offsets)
        connection.execute(effects.delete().where(stale))
        rows = [{"model_id": self.model_id, "offset": offset, **effect._asdict()} for offset, effect in done.items()]
        connection.execute(insert(effects), rows)

    def _insert_snapshot(
        self,
        connection: Connection,
        offset: int,
        chain: str,
        spec: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray],
        blob: str,
        data: bytes | None,
        fingerprint: Mapping[str, str],
    ) -> None:
        self.store._blobs.insert(connection, blob, data)
        stale = (snapshots.c.model_id == self.model_id) & (snapshots.c.offset == offset)
        connection.execute(snapshots.delete().where(stale))
        connection.execute(
            insert(snapshots).values(
                model_id=self.model_id,
                offset=offset,
                chain=chain,
                digest=posterior_digest(spec, arrays),
                blob=blob,
                spec=canonical_json(spec),
                fingerprint=canonical_json(fingerprint),
                created=time.time(),
            )
        )

    # -- queries of the updater -----------------------------------------------------------------------------------
    def fold(self) -> Fold:
        """The live records."""
        with self.store.read() as connection:
            return self.store.fold(connection, self.model_id)

    def event_ids(self, where: Mapping[str, Any]) -> list[str]:
        """Ids of the events from a source (``source=``), or stored at or after a time (``since=``)."""
        query = select(records.c.event_id).where(records.c.model_id == self.model_id, records.c.event_id.is_not(None))
        if "source" in where:
            query = query.where(records.c.source == where["source"])
        if "since" in where:
            query = query.where(records.c.received >= where["since"])
        with self.store.read() as connection:
            return list(connection.execute(query.order_by(records.c.offset)).scalars())

    def stored(self, *where: Any) -> list[StoredRecord]:
        """Rows of the log, in order.

        Args:
            where: conditions on :data:`.database.records`.
        """
        query = select(records).where(records.c.model_id == self.model_id, *where).order_by(records.c.offset)
        with self.store.read() as connection:
            return [StoredRecord(r.offset, r.event_id, r.source, r.received, json.loads(r.body))
                    for r in connection.execute(query)]  # fmt: skip

    def effect(self, offset: int) -> Effect | None:
        """The stored effect of a record."""
        where = (effects.c.model_id == self.model_id) & (effects.c.offset == offset)
        with self.store.read() as connection:
            row = connection.execute(select(effects).where(where)).first()
        return None if row is None else _effect(row)

    def effects_since(self, offset: int) -> dict[int, Effect]:
        """The stored effects of the records from an offset on."""
        where = (effects.c.model_id == self.model_id) & (effects.c.offset >= offset)
        with self.store.read() as connection:
            return {row.offset: _effect(row) for row in connection.execute(select(effects).where(where))}

    def offsets_of(self, event_ids: Iterable[str]) -> dict[str, int]:
        """Offsets of events; raises :class:`UnknownEvent` naming those that are not there."""
        wanted = list(dict.fromkeys(event_ids))
        found: dict[str, int] = {}
        with self.store.read() as connection:
            for start in range(0, len(wanted), 500):
                part = wanted[start : start + 500]
                query = select(records.c.event_id, records.c.offset)
                query = query.where(records.c.model_id == self.model_id, records.c.event_id.in_(part))
                found |= {row.event_id: row.offset for row in connection.execute(query)}
        missing = [event_id for event_id in wanted if event_id not in found]
        if missing:
            raise UnknownEvent(f"model {self.name!r} has no event {', '.join(map(repr, missing[:5]))}")
        return found


def _effect(row: Any) -> Effect:
    return Effect(*(getattr(row, field) for field in Effect._fields))
