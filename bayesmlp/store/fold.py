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
consolidate puts a refit of everything up to an earlier record in its place; carries a snapshot; it falls away when
            anything that it has learned is retracted
==========  =============================================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..inference.errors import CorruptStore
from .digest import extend_chain

__all__ = ["Fold", "Record", "effective"]


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


@dataclass(frozen=True)
class Fold:
    """What is live.

    Attributes:
        line: live records that make the posterior, in order; the first is a publish.
        status: of each record with an observation, by offset: ``live``, ``quarantined``, ``released``, ``retracted``,
            ``rolled back`` or ``superseded``.
        head: offset of the newest record of the log.
    """

    line: tuple[Record, ...]
    status: Mapping[int, str]
    head: int

    def chains(self) -> list[str]:
        """The chain hash after each record of the line."""
        chain, chains = "", []
        for record in self.line:
            chain = extend_chain(chain, [record.offset])
            chains.append(chain)
        return chains


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
    head = 0
    for record in records:
        head = record.offset
        if record.kind == "publish":
            tip = (record, None)
        elif record.kind in ("event", "batch", "quarantine"):
            status[head] = "rolled back"
            events[head] = record.event_id
            tip = (record, tip)
        elif record.kind == "release":
            status[head] = "rolled back"
            tip = (record, tip)
        elif record.kind in ("handover", "consolidate"):
            tip = (record, tip)
        elif record.kind == "retract":
            for event_id in record.body["event_ids"]:
                retracted.setdefault(event_id, head)
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
        if record.kind == "consolidate":
            sources = [earlier.learned for earlier in chain if earlier.offset <= record.body["until"]]
            learned = [events[known] for known in sources if known is not None]
            if all(retracted.get(str(event_id), 0) < record.offset for event_id in learned):
                _insert(line, record)
            continue
        if source is not None:
            status[record.offset] = "live"
        line.append(record)
    status.update((offset, "retracted") for offset, event_id in events.items() if event_id in retracted)
    return Fold(tuple(line), status, head)


def _insert(line: list[Record], consolidation: Record) -> None:
    """Put a consolidation after the last record that it has learned."""
    until = consolidation.body["until"]
    later = (i for i, record in enumerate(line) if record.kind != "consolidate" and record.offset > until)
    line.insert(next(later, len(line)), consolidation)
