"""Which records of a log count: one pure function.

The posterior is a fold over the *live* records of its log, in order:

===========  =========================================================================================================
publish      starts a new line: the posterior is the one published; what came before is superseded
event        one row, one Bayes step
batch        several rows, one Bayes step
quarantine   an event or a batch that is kept, but not learned
release      one Bayes step: learns a quarantined record here, if it is still in quarantine
retract      takes events out, whenever they came, or consolidations; for good, also across a later rollback
rollback     goes back to the line as it was after an earlier offset; what came since is rolled back
handover     the line goes on under another fingerprint (framework, processor); carries a snapshot
consolidate  puts a refit of everything up to an earlier record in its place; carries a snapshot; it falls away when
             anything that it has learned is retracted, or it itself is
branch       starts a new line, as a publish does: the posterior is that of another model, the parent, at a version
merge        what branches have learned joins the line: as a posterior, with a snapshot, or event by event before it
pull         what the parent has learned joins the line of its branch; carries a snapshot
===========  =========================================================================================================

A merge and a pull with a snapshot were made of the posterior before them: they count only as long as all of it does. If
an event before one is retracted later, it falls away with it, and so does what was made of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from ..inference.errors import CorruptStore
from .digest import extend_chain

__all__ = ["CARRIES_SNAPSHOT", "STARTS", "Fold", "Record", "effective"]

STARTS = ("publish", "branch")
"""Kinds that start a line."""

CARRIES_SNAPSHOT = (*STARTS, "handover", "consolidate", "merge", "pull")
"""Kinds that bring a snapshot; a merge only if it :attr:`~Record.is_mixed`."""


class Record(NamedTuple):
    """One record of a log.

    Attributes:
        offset: its place, from 1.
        kind: see the module's table.
        event_id: of an event, a batch or a quarantined record.
        body: what it says.
    """

    offset: int
    kind: str
    event_id: str | None
    body: Mapping[str, Any]

    @property
    def learned(self) -> int | None:
        """Offset of the record whose observation it learns; None if it learns none."""
        if self.kind == "release":
            return int(self.body["offset"])
        return self.offset if self.kind in ("event", "batch") else None

    @property
    def is_mixed(self) -> bool:
        """Whether it brings a posterior that was made of the one before it and those of other models."""
        return self.kind == "pull" or (self.kind == "merge" and self.body.get("how") != "replay")


@dataclass(frozen=True)
class Fold:
    """What is live.

    Attributes:
        line: live records that make the posterior, in order; the first is a publish.
        status: of each record with an observation, by offset: ``live``, ``quarantined``, ``released``, ``retracted``,
            ``rolled back`` or ``superseded``; and of a merge or a pull that fell away: ``retracted``.
        head: offset of the newest record of the log.
        fallen: offsets of the consolidations, merges and pulls that fell away, for good.
    """

    line: tuple[Record, ...]
    status: Mapping[int, str]
    head: int
    fallen: frozenset[int] = frozenset()

    @cached_property
    def covers(self) -> dict[str, int]:
        """How many records of the line are behind each chain hash, in order."""
        chain, covers = "", {}
        for number, record in enumerate(self.line, start=1):
            chain = extend_chain(chain, [record.offset])
            covers[chain] = number
        return covers

    @property
    def marks(self) -> list[Record]:
        """The records of the line that brought a snapshot of their own."""
        kinds = CARRIES_SNAPSHOT
        return [r for r in self.line if r.kind in kinds and (r.kind != "merge" or r.is_mixed)]

    @property
    def fingerprint(self) -> dict[str, str]:
        """Under which the line goes on: that of the last record that brought a snapshot."""
        return dict(self.marks[-1].body["fingerprint"])

    @property
    def parent(self) -> str | None:
        """Name of the model that it is a branch of; None for a model of its own."""
        return self.line[0].body["parent"] if self.line and self.line[0].kind == "branch" else None

    @cached_property
    def chain(self) -> str:
        """The chain hash after the whole line."""
        return next(reversed(self.covers), "")

    def goes_on_from(self, earlier: Fold) -> bool:
        """Whether nothing but records that came since follows an earlier line, and no consolidation of it."""
        length = len(earlier.line)
        consolidated = len(self.line) > length and self.line[length].kind == "consolidate"
        return self.line[:length] == earlier.line and not consolidated


def effective(records: Iterable[Record]) -> Fold:
    """The live records of a log.

    Args:
        records: of one model, in order of offset.

    Raises:
        CorruptStore: a record of unknown kind, or a rollback to where no posterior was.
    """
    tip: tuple[Record, Any] | None = None  # a linked list, newest first
    tips: dict[int, tuple[Record, Any] | None] = {}
    status: dict[int, str] = {}
    events: dict[int, str | None] = {}
    retracted: dict[str, int] = {}
    named: dict[int, int] = {}
    made: list[tuple[Record, Any]] = []
    head = 0
    for record in records:
        head = record.offset
        if record.kind in STARTS:
            tip = (record, None)
        elif record.kind in ("event", "batch", "quarantine"):
            status[head] = "rolled back"
            events[head] = record.event_id
            tip = (record, tip)
        elif record.kind == "release":
            status[head] = "rolled back"
            tip = (record, tip)
        elif record.kind in CARRIES_SNAPSHOT:
            tip = (record, tip)
            made += [tip] if record.kind == "consolidate" or record.is_mixed else []
        elif record.kind == "retract":
            for offset in (*record.body.get("consolidations", ()), *record.body.get("merges", ())):
                named.setdefault(offset, head)
            for event_id in record.body["event_ids"]:
                retracted.setdefault(event_id, head)
        elif record.kind == "rollback":
            if tips.get(record.body["version"]) is None:
                raise CorruptStore(f"record {head} rolls back to version {record.body['version']}, which is not there")
            tip = tips[record.body["version"]]
        else:
            raise CorruptStore(f"record {head} is of kind {record.kind!r}, which this version does not know")
        tips[head] = tip
    fallen = dict(named)
    for each in made:
        causes = [named.get(each[0].offset, 0), *_gaps_in(each, events, retracted, fallen)]
        if later := [cause for cause in causes if cause > each[0].offset]:
            fallen[each[0].offset] = min(later)
    chain = list(_back_from(tip))[::-1]
    start = chain[0].offset if chain else head + 1
    line: list[Record] = []
    waiting = {record.offset for record in chain if record.kind == "quarantine"}
    status.update((offset, "superseded") for offset in status if offset < start)
    status.update((offset, "quarantined") for offset in waiting)
    for record in chain:
        source = record.learned
        if record.kind == "release":
            if source not in waiting or events[source] in retracted:
                status[record.offset] = "retracted"
                continue
            waiting.remove(source)
            status[source] = "released"
        elif record.kind == "quarantine" or (source is not None and record.event_id in retracted):
            continue
        if record.is_mixed and record.offset in fallen:
            status[record.offset] = "retracted"
            continue
        if record.kind == "consolidate":
            if record.offset not in fallen:
                _insert(line, record)
            continue
        if source is not None:
            status[record.offset] = "live"
        line.append(record)
    status.update((offset, "retracted") for offset, event_id in events.items() if event_id in retracted)
    return Fold(tuple(line), status, head, frozenset(fallen))


def _back_from(tip: tuple[Record, Any] | None) -> Iterator[Record]:
    """The records of a linked list, newest first."""
    while tip is not None:
        record, tip = tip
        yield record


def _gaps_in(
    made: tuple[Record, Any],
    events: Mapping[int, str | None],
    retracted: Mapping[str, int],
    fallen: Mapping[int, int],
) -> Iterator[int]:
    """Offsets at which something was taken out that a record with a posterior was made of."""
    until = made[0].body.get("until", made[0].offset)
    for record in _back_from(made[1]):
        if record.offset <= until and record.learned is not None:
            yield retracted.get(str(events.get(record.learned)), 0)
        elif record.offset <= until and record.is_mixed:
            yield fallen.get(record.offset, 0)


def _insert(line: list[Record], consolidation: Record) -> None:
    """Put a consolidation after the last record that it has learned."""
    until = consolidation.body["until"]
    later = (i for i, record in enumerate(line) if record.kind != "consolidate" and record.offset > until)
    line.insert(next(later, len(line)), consolidation)
