"""Which records of a log count: one pure function.

The posterior is a fold over the *live* records of its log, in order:

==========  =============================================================================================
publish     starts a new line: the posterior is the one published; what came before is superseded
event       one row, one Bayes step
batch       several rows, one Bayes step
quarantine  an event or a batch that is kept, but not learned
release     one Bayes step: learns a quarantined record here, if it is still in quarantine
retract     takes events out, whenever they came; for good, also across a later rollback
rollback    goes back to the line as it was after an earlier offset; what came since is rolled back
handover    the line goes on under another fingerprint (framework, processor); carries a snapshot
branch      starts a new line, as a publish does: the posterior is that of another model, the parent, at a version
merge       what branches have learned joins the line: as a posterior, which is a snapshot, or event by event before it
pull        what the parent has learned joins the line of its branch; carries a snapshot
==========  =============================================================================================

A merge and a pull that carry a snapshot were made of the posterior before them: they count only as long as all of it
does. If an event before one is retracted later, it falls away with it, to be made again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from ..inference.errors import CorruptStore
from .digest import extend_chain

__all__ = ["BROUGHT", "STARTS", "Fold", "Record", "effective"]

STARTS = ("publish", "branch")
"""Kinds that start a line."""

BROUGHT = (*STARTS, "handover", "merge", "pull")
"""Kinds that bring a snapshot, but for a merge event by event."""


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
        """Whether it brings a posterior that was made of the one before it and others."""
        return self.kind == "pull" or (self.kind == "merge" and self.body.get("how") != "replay")


@dataclass(frozen=True)
class Fold:
    """What is live.

    Attributes:
        line: live records that make the posterior, in order; the first is a publish.
        status: of each record with an observation, by offset: ``live``, ``quarantined``, ``released``, ``retracted``,
            ``rolled back`` or ``superseded``; and of a merge or a pull that fell away: ``retracted``.
        head: offset of the newest record of the log.
    """

    line: tuple[Record, ...]
    status: Mapping[int, str]
    head: int

    @cached_property
    def covers(self) -> dict[str, int]:
        """How many records of the line are behind each chain hash, in order."""
        chain, covers = "", {}
        for number, record in enumerate(self.line, start=1):
            chain = extend_chain(chain, [record.offset])
            covers[chain] = number
        return covers

    @property
    def fingerprint(self) -> dict[str, str]:
        """Under which the line goes on: that of its last publish or handover."""
        marks = [record for record in self.line if "fingerprint" in record.body]
        return dict(marks[-1].body["fingerprint"])

    @cached_property
    def least_covered(self) -> int:
        """How many records of the line a snapshot must cover at least: up to the last that can't be folded again."""
        return max((i for i, record in enumerate(self.line, start=1) if record.is_mixed), default=0)

    @property
    def parent(self) -> str | None:
        """Name of the model that it is a branch of; None for a model of its own."""
        return self.line[0].body["parent"] if self.line and self.line[0].kind == "branch" else None

    @cached_property
    def chain(self) -> str:
        """The chain hash after the whole line."""
        return next(reversed(self.covers), "")


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
    undone: dict[int, int] = {}
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
        elif record.kind in BROUGHT:
            tip = (record, tip)
        elif record.kind == "retract":
            retracted = dict.fromkeys(record.body["event_ids"], head) | retracted
            undone = dict.fromkeys(record.body.get("merges", ()), head) | undone
        elif record.kind == "rollback":
            if tips.get(record.body["version"]) is None:
                raise CorruptStore(f"record {head} rolls back to version {record.body['version']}, which is not there")
            tip = tips[record.body["version"]]
        else:
            raise CorruptStore(f"record {head} is of kind {record.kind!r}, which this version does not know")
        tips[head] = tip
    chain: list[Record] = []
    while tip is not None:
        record, tip = tip
        chain.append(record)
    chain.reverse()
    start = chain[0].offset if chain else head + 1
    line: list[Record] = []
    waiting = {record.offset for record in chain if record.kind == "quarantine"}
    status.update((offset, "superseded") for offset in status if offset < start)
    status.update((offset, "quarantined") for offset in waiting)
    last_gap = 0  # the newest offset at which something before on the chain was taken out
    for record in chain:
        source = record.learned
        if record.is_mixed and (record.offset in undone or last_gap > record.offset):
            last_gap = max(last_gap, undone.get(record.offset, 0))
            status[record.offset] = "retracted"
            continue
        if record.kind == "release":
            if source not in waiting or events[source] in retracted:
                last_gap = max(last_gap, retracted.get(events.get(source or 0) or "", 0))
                status[record.offset] = "retracted"
                continue
            waiting.remove(source)
            status[source] = "released"
        elif record.kind == "quarantine":
            continue
        elif source is not None and record.event_id in retracted:
            last_gap = max(last_gap, retracted[str(record.event_id)])
            continue
        if source is not None:
            status[record.offset] = "live"
        line.append(record)
    status.update((offset, "retracted") for offset, event_id in events.items() if event_id in retracted)
    return Fold(tuple(line), status, head)
