"""What happened to a model: every record of its log, what became of it, who sent it and when."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
from sqlalchemy import Engine, and_, case, or_, select

from ..prequential import PER_EVENT, Prequential
from .connections import unavailable_as_such
from .database import effects, records
from .fold import Fold
from .log import Log, is_sound_effect

__all__ = ["Entry", "history_of", "prequential_of"]


class Entry(NamedTuple):
    """One line of a model's history.

    Attributes:
        version: offset of the record; the model's version after it.
        kind: of the record, see :mod:`.fold`.
        event_id: of an event or a batch, quarantined or not.
        status: of these: ``applied``, ``failed``, ``pending``, ``quarantined``, ``released``, ``retracted``,
            ``rolled back``, ``superseded``; else empty.
        surprise: minus the log predictive density before it was learned, in nats.
        information: gained, in nats.
        received: when it was stored, seconds since the epoch.
        note: what a retraction, a release, a rollback, a branch, a merge or a pull names; up to which version a
            consolidation has learned, and that it fell away; that a payload was erased.
        actor: who appended it; empty in stores of format 1.
        source: who sent the event, if the sender said.
    """

    version: int
    kind: str
    event_id: str | None
    status: str
    surprise: float | None
    information: float | None
    received: float
    note: str
    actor: str = ""
    source: str | None = None


_TELLING = ("retract", "release", "rollback", "consolidate", "branch", "merge", "pull")


def history_of(log: Log) -> list[Entry]:
    """Every record of a model's log, oldest first."""
    fold = log.fold()
    done = log.effects_since(1)
    body = case((records.c.kind.in_(_TELLING), records.c.body)).label("body")
    columns = [column for column in records.c if column is not records.c.body]
    entries = []
    for row in log.rows([*columns, body], last=fold.head):
        status = fold.status.get(row.offset, "")
        effect = done.get(row.offset) if status in ("live", "quarantined", "released") else None
        if status == "live":
            status = "pending" if effect is None else effect.outcome
        entries.append(
            Entry(
                row.offset,
                row.kind,
                row.event_id,
                status,
                None if effect is None else effect.surprise,
                None if effect is None else effect.information,
                row.received,
                _note(row, fold),
                row.actor or "",
                row.source,
            )
        )
    return entries


def _note(row: Any, fold: Fold) -> str:
    if row.purged is not None:
        return "payload erased"
    if row.kind not in _TELLING:
        return ""
    body = json.loads(row.body)
    if row.kind == "consolidate":
        return f"up to version {body['until']}" + (", no longer" if row.offset in fold.fallen else "")
    if row.kind == "retract":
        gone = "".join(f", the consolidation at version {offset}" for offset in body.get("consolidations", ()))
        gone += "".join(f", the merge at version {offset}" for offset in body.get("merges", ()))
        return f"{len(body['event_ids'])} events{gone}"
    if row.kind == "merge":
        branches = ", ".join(f"{one['name']} at version {one['version']}" for one in body["branches"])
        return f"by {body['how']}, {branches}"
    if row.kind in ("branch", "pull"):
        return f"of {body['parent']} at version {body['version']}"
    return f"of version {body['offset']}" if row.kind == "release" else f"to version {body['version']}"


def prequential_of(engine: Engine, log: Log) -> Prequential:
    """How the events of a model's line were predicted before they were learned; raises :class:`CorruptStore`."""
    learned = {record.offset: record.learned for record in log.fold().line if record.learned is not None}
    query = select(effects).where(effects.c.model_id == log.model_id, effects.c.outcome == "applied")
    with unavailable_as_such("the store"), engine.connect() as connection:
        rows = {row.offset: row for row in connection.execute(query) if is_sound_effect(row)}
    done = [rows[offset] for offset in learned if offset in rows]
    numbers = [name for name in PER_EVENT if name not in ("version", "num_rows")]
    columns = {name: np.array([getattr(row, name) for row in done], dtype=np.float64) for name in numbers}
    counts = _rows_that_count(log)
    columns["num_rows"] = np.array([counts.get(learned[row.offset], 1.0) for row in done])
    return Prequential(version=np.array([row.offset for row in done], dtype=np.int64), **columns)


def _rows_that_count(log: Log) -> dict[int, float]:
    """How many rows of a record have a weight above 0, by offset, where that is not one; NaN of an erased batch."""
    has_weight = or_(*(records.c.body.contains(f'"{name}"') for name in ("weight", "granted")))
    where = or_(records.c.kind.in_(("batch", "quarantine")), and_(records.c.kind == "event", has_weight))
    counts: dict[int, float] = {}
    for row in log.rows(list(records.c), where, last=log.head()):
        if row.purged is not None:
            counts[row.offset] = float("nan")
            continue
        body = log.body_of(row)
        weight = np.asarray(body.get("weight", np.ones(len(body["x"])))) * body.get("granted", 1.0)
        counts[row.offset] = float(np.count_nonzero(weight))
    return counts
