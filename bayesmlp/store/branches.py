"""The rows of branches, and what of a branch its parent does not have yet."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import insert, select

from ..inference.errors import InvalidInput, StoreError
from .connections import unavailable_as_such
from .database import FORMAT_VERSION, models, records
from .digest import body_hash, canonical_json, extend_chain, row_checksum
from .fold import Fold, Record
from .log import Log, NewRecord
from .snapshots import Prepared
from .writer import record_row

if TYPE_CHECKING:
    from .store import PosteriorStore

__all__ = ["Base", "base_of", "insert_branches", "is_parent", "last_merge", "mark_of", "merges_of"]

CHUNK = 500


class Base(NamedTuple):
    """Where a branch and its parent last knew the same.

    Attributes:
        model: whose posterior that is.
        version: of it.
        since: the branch's records after this offset are news to the parent.
        chain: of the branch's line there, which that posterior is for; empty where it is the parent's.
    """

    model: str
    version: int
    since: int
    chain: str = ""

    def check_holds(self, own: Fold) -> None:
        """Raise :class:`StoreError` unless the branch has gone on from there."""
        if self.chain and self.chain not in own.covers:
            raise StoreError(
                f"{self.model!r} has since retracted, rolled back or consolidated what was merged of it by replay: "
                "merge it with how='replay'"
            )


def insert_branches(store: PosteriorStore, names: Sequence[str], body: Mapping[str, Any], prepared: Prepared) -> None:
    """Models whose logs start with a branch record and its snapshot, all in one commit.

    Raises:
        InvalidInput: a name is taken; then nothing is made.
    """
    text = canonical_json(body)
    row = record_row(1, NewRecord("branch", None, body), text, body_hash("branch", text), store.actor)
    chain = extend_chain("", [1])
    model = {"format_version": FORMAT_VERSION, "created": time.time()}
    with unavailable_as_such(store.path), store.engine.begin() as connection:
        for start in range(0, len(names), CHUNK):
            chunk = list(names[start : start + CHUNK])
            taken = connection.execute(select(models.c.name).where(models.c.name.in_(chunk))).scalars().first()
            if taken is not None:
                raise InvalidInput(f"name must be new, got {taken!r}: the store has a model of that name")
            connection.execute(insert(models), [{"name": name, **model} for name in chunk])
            ids = list(connection.execute(select(models.c.id).where(models.c.name.in_(chunk))).scalars())
            connection.execute(insert(records), [{"model_id": model_id, **row} for model_id in ids])
            store.snapshots.insert_for(connection, ids, 1, chain, prepared)


def mark_of(log: Log, version: int) -> str | None:
    """What tells a record from those of other models, in copies of its model too; None if there is no such version.

    It is made of all that is never erased: as a log only grows, who has the record has those before it.
    """
    columns = ("offset", "kind", "event_id", "source", "received", "actor")
    row = next(log.rows([records.c[name] for name in columns], first=version, last=version), None)
    if row is None:
        return None
    return row_checksum(row.offset, row.kind, row.event_id, row.source, "", row.received, row.actor)


def is_parent(log: Log, own: Fold) -> bool:
    """Whether a log is that of the model that a branch was made from, or of a copy of it.

    Args:
        log: of the model that has the parent's name.
        own: the branch; one that does not say which record it was made at is taken at its word.
    """
    fork = own.line[0].body
    return fork.get("mark") in (None, mark_of(log, fork["version"]))


def merges_of(parent: Fold, own: Fold, log: Log) -> list[tuple[Record, Mapping[str, Any]]]:
    """The merges on a line that name a branch, not another one that had its name, oldest first; and what they say."""
    its_own = (None, mark_of(log, own.line[0].offset))  # older merges say no mark
    return [
        (record, one)
        for record in parent.line
        for one in (record.body["branches"] if record.kind == "merge" else ())
        if one["name"] == log.name and one.get("mark") in its_own
    ]


def last_merge(parent: Fold, own: Fold, log: Log) -> tuple[Record, Mapping[str, Any]] | None:
    """The newest of :func:`merges_of`."""
    return next(reversed(merges_of(parent, own, log)), None)


def base_of(parent: Fold, own: Fold, parent_name: str, log: Log) -> Base:
    """Where a branch and its parent last knew the same: at the fork, at a merge or at a pull.

    Raises:
        StoreError: one of the two has since gone back behind it.
    """
    start = next(record for record in reversed(own.line) if record.kind in ("branch", "pull"))
    name, merged = log.name, last_merge(parent, own, log)
    known = {record.offset for record in parent.line}
    if start.kind == "pull" and start.body["merge"] not in (0, *known):
        raise StoreError(
            f"{name!r} was pulled (version {start.offset}) after the merge of version {start.body['merge']} of "
            f"{parent_name!r}, which no longer counts: take the pull out with store.unmerge({name!r}, {start.offset})"
        )
    if merged is not None and merged[1]["version"] > start.offset:
        if merged[0].is_mixed and merged[1]["chain"] not in own.covers:
            raise StoreError(
                f"version {merged[0].offset} of {parent_name!r} merged what {name!r} has since retracted, rolled "
                f"back or consolidated: take that merge out with store.unmerge({parent_name!r}, {merged[0].offset})"
            )
        return Base(name, merged[1]["version"], merged[1]["version"], merged[1]["chain"])
    if start.kind == "branch":
        return Base(name, start.offset, start.offset)
    return Base(parent_name, start.body["version"], start.body["since"])
