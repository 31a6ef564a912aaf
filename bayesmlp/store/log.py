"""The records of a model's log: what is appended, and how it is read.

The log only grows, so it is read page by page, each in a transaction of its own: a long read never holds a writer up.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from sqlalchemy import Connection, Engine, Row, case, func, select, text

from ..inference.errors import CorruptStore, Purged, UnknownEvent
from ..stepper import Effect
from .connections import unavailable_as_such
from .database import effects, records
from .digest import effect_checksum, row_checksum
from .fold import CARRIES_SNAPSHOT, Fold, Record, effective

__all__ = ["SCHEMA_VERSION", "Log", "NewRecord", "StoredEvent", "StoredRecord", "is_sound_effect", "is_version"]

SCHEMA_VERSION = 2
"""Of the bodies of records: raised when a field changes its meaning. Bodies without one are of version 1."""

PAGE = 5_000
_NEEDS_BODY = ("retract", "rollback", "release", *CARRIES_SNAPSHOT)
_ROW = (
    records.c.offset, records.c.kind, records.c.event_id, records.c.source, records.c.body, records.c.received,
    records.c.checksum, records.c.purged, records.c.actor,
)  # fmt: skip


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
        answer: prediction id of the answer that it is feedback on, where its own id does not tell.
        is_first: whether its id was drawn for it, so that it can't be a repeat.
    """

    kind: str
    event_id: str | None
    body: Mapping[str, Any]
    source: str | None = None
    granted: float = 1.0
    excess_surprise: float | None = None
    answer: str | None = None
    is_first: bool = False

    @property
    def stored_kind(self) -> str:
        """The kind it is stored as."""
        return self.kind if self.excess_surprise is None else "quarantine"

    @property
    def decided(self) -> dict[str, float | str]:
        """What the stored body says beside the body."""
        share: dict[str, float | str] = {} if self.granted == 1 else {"granted": self.granted}
        share |= {} if self.excess_surprise is None else {"excess_surprise": self.excess_surprise}
        return share if self.answer is None else share | {"answer": self.answer}


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


class Log:
    """Reads a model's log.

    Args:
        engine: of readers.
        model_id: of the model.
        name: of the model, for messages.
    """

    def __init__(self, engine: Engine, model_id: int, name: str) -> None:
        self._engine, self.model_id, self.name = engine, model_id, name

    @contextlib.contextmanager
    def _connect(self) -> Iterator[Connection]:
        with unavailable_as_such(f"the store of model {self.name!r}"), self._engine.connect() as connection:
            yield connection

    def head(self) -> int:
        """Offset of the newest record; 0 for an empty log."""
        with self._connect() as connection:
            query = select(func.max(records.c.offset)).where(records.c.model_id == self.model_id)
            newest = connection.execute(query).scalar() or 0
        if not isinstance(newest, int):
            raise CorruptStore(f"a record of model {self.name!r} has number {newest!r}")
        return newest

    def fold(self, version: int | None = None) -> Fold:
        """The live records up to a version; None: to the newest."""
        last = self._checked_head() if version is None else version
        body = case((records.c.kind.in_(_NEEDS_BODY), records.c.body)).label("body")
        columns = (*(column for column in _ROW if column is not records.c.body), body)
        fold = effective(
            Record(row.offset, row.kind, row.event_id, {} if row.body is None else self.body_of(row))
            for row in self._contiguous(self.rows(columns, last=last))
        )
        if version is None and fold.head != last:
            raise CorruptStore(f"record {fold.head + 1} of model {self.name!r} is not in the store")
        return fold

    def _checked_head(self) -> int:
        """The newest offset, by one index; every record is in the other one too, or a record was lost."""
        with self._connect() as connection:
            if connection.dialect.name != "sqlite":  # the server looks after its pages
                return self.head()
            counted = "SELECT count(*) FROM records INDEXED BY sqlite_autoindex_records_2 WHERE model_id = :model"
            newest = 'SELECT max("offset") FROM records INDEXED BY sqlite_autoindex_records_1 WHERE model_id = :model'
            query = text(f"SELECT ({newest}) AS newest, ({counted}) AS counted")
            row = connection.execute(query, {"model": self.model_id}).one()
        if (row.newest or 0) != row.counted:
            raise CorruptStore(f"model {self.name!r} has {row.counted} records, the newest has number {row.newest}")
        return int(row.counted)

    def _contiguous(self, rows: Iterable[Row[Any]]) -> Iterator[Row[Any]]:
        """Rows of the log from its first on; raises :class:`CorruptStore` where one is missing."""
        for expected, row in enumerate(rows, start=1):
            if row.offset != expected:
                raise CorruptStore(f"record {expected} of model {self.name!r} is not in the store")
            yield row

    def rows(self, columns: Sequence[Any], *where: Any, first: int = 1, last: int) -> Iterator[Row[Any]]:
        """Rows of the log in order of offset, page by page.

        Args:
            columns: to read; the offset among them.
            where: more conditions.
            first: lowest offset.
            last: highest offset.

        Raises:
            CorruptStore: an offset is no number.
        """
        while first <= last:
            query = select(*columns).where(records.c.model_id == self.model_id, records.c.offset >= first, *where)
            query = query.where(records.c.offset <= last).order_by(records.c.offset).limit(PAGE)
            with self._connect() as connection:
                page = connection.execute(query).all()
            for row in page:
                if not isinstance(row.offset, int):
                    raise CorruptStore(f"a record of model {self.name!r} has number {row.offset!r}")
                yield row
            if len(page) < PAGE:
                return
            first = page[-1].offset + 1

    def stored(self, *where: Any) -> list[StoredRecord]:
        """Rows of the log, in order.

        Args:
            where: conditions on :data:`.database.records`.
        """
        rows = self.rows(_ROW, *where, last=self.head())
        return [self._stored(row) for row in rows]

    def at(self, offsets: Sequence[int]) -> Iterator[StoredRecord]:
        """Some records, in the order given.

        Raises:
            Purged: one of them was erased.
        """
        for start in range(0, len(offsets), 500):
            chunk = list(offsets[start : start + 500])
            query = select(*_ROW).where(records.c.model_id == self.model_id, records.c.offset.in_(chunk))
            with self._connect() as connection:
                found = {row.offset: row for row in connection.execute(query)}
            for offset in chunk:
                if offset not in found:
                    raise CorruptStore(f"record {offset} of model {self.name!r} is not in the store")
                if found[offset].purged is not None:
                    raise Purged(f"the payload of version {offset} of model {self.name!r} was erased")
                yield self._stored(found[offset])

    def purged_among(self, offsets: Iterable[int]) -> list[int]:
        """Those of some records whose payload was erased."""
        wanted = set(offsets)
        rows = self.rows([records.c.offset], records.c.purged.is_not(None), last=self.head())
        return [row.offset for row in rows if row.offset in wanted]

    def event_ids(self, where: Mapping[str, Any]) -> list[str]:
        """Ids of the events from a source (``source=``), or stored at or after a time (``since=``)."""
        conditions = [records.c.event_id.is_not(None)]
        if "source" in where:
            conditions.append(records.c.source == where["source"])
        if "since" in where:
            conditions.append(records.c.received >= where["since"])
        rows = self.rows([records.c.offset, records.c.event_id], *conditions, last=self.head())
        return [row.event_id for row in rows]

    def offsets_of(self, event_ids: Iterable[str]) -> dict[str, int]:
        """Offsets of events; raises :class:`UnknownEvent` naming those that are not there."""
        wanted = list(dict.fromkeys(event_ids))
        found = self.known_offsets(wanted)
        missing = [event_id for event_id in wanted if event_id not in found]
        if missing:
            raise UnknownEvent(f"model {self.name!r} has no event {', '.join(map(repr, missing[:5]))}")
        return found

    def known_offsets(self, event_ids: Sequence[str]) -> dict[str, int]:
        """Offsets of those of some events that are there."""
        found: dict[str, int] = {}
        with self._connect() as connection:
            for start in range(0, len(event_ids), 500):
                part = event_ids[start : start + 500]
                query = select(records.c.event_id, records.c.offset)
                query = query.where(records.c.model_id == self.model_id, records.c.event_id.in_(part))
                found |= {row.event_id: row.offset for row in connection.execute(query)}
        return found

    def effect(self, offset: int) -> Effect | None:
        """The stored effect of a record."""
        where = (effects.c.model_id == self.model_id) & (effects.c.offset == offset)
        with self._connect() as connection:
            row = connection.execute(select(effects).where(where)).first()
        return None if row is None or not is_sound_effect(row) else _effect(row)

    def effects_since(self, offset: int) -> dict[int, Effect]:
        """The stored effects of the records from an offset on; one that is not as it was written is as good as none."""
        where = (effects.c.model_id == self.model_id) & (effects.c.offset >= offset)
        with self._connect() as connection:
            rows = connection.execute(select(effects).where(where))
            return {row.offset: _effect(row) for row in rows if is_sound_effect(row)}

    def _stored(self, row: Any) -> StoredRecord:
        return StoredRecord(row.offset, row.event_id, row.source, row.received, self.body_of(row))

    def body_of(self, row: Any) -> dict[str, Any]:
        """The body of a row; raises :class:`CorruptStore` if it is not what was written."""
        said = (row.offset, row.kind, row.event_id, row.source, row.body)
        whole = row_checksum(*said, row.received, row.actor, row.purged)
        if row.checksum not in (None, whole, row_checksum(*said)):
            raise CorruptStore(f"version {row.offset} of model {self.name!r} does not have its checksum")
        try:
            body = json.loads(row.body)
        except (ValueError, TypeError, RecursionError) as error:
            raise CorruptStore(
                f"the body of version {row.offset} of model {self.name!r} is no JSON: {error}"
            ) from error
        if not isinstance(body, dict):
            raise CorruptStore(f"the body of version {row.offset} of model {self.name!r} is no JSON object")
        if body.get("schema", 1) > SCHEMA_VERSION:
            raise CorruptStore(
                f"version {row.offset} of model {self.name!r} has schema {body['schema']}, "
                f"this version of bayesmlp reads up to {SCHEMA_VERSION}"
            )
        return dict(body)


def is_sound_effect(row: Any) -> bool:
    """Whether a row of effects is as it was written; one without a checksum, at least of the types that it was."""
    outcome, *numbers = _effect(row)
    if row.checksum is None:
        return isinstance(outcome, str) and all(isinstance(number, float | int | None) for number in numbers)
    return bool(row.checksum == effect_checksum(row.offset, outcome, *numbers))


def _effect(row: Any) -> Effect:
    return Effect(*(getattr(row, field) for field in Effect._fields))
