"""What became in a parent of the events of a branch that merges by replay brought it.

Such a merge says of each event where it is in the branch and where in the parent, for an id can't: the names of models
may hold what stands between name and id. Merges of earlier versions of the library say only up to which version of the
branch they went; their events are found by their ids. A merge that was rolled back tells as much as one that counts:
what it brought may still be there, or have been retracted, for good.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .branches import mark_of, merges_of
from .database import records
from .fold import Fold
from .log import Log

__all__ = ["Note", "branch_event_id", "fates", "new_ids", "replay_notes"]

_LONGEST_ID = 200


class Note(NamedTuple):
    """What a merge by replay says of one branch.

    Attributes:
        offset: of the merge in the parent's log.
        said: name, version, chain and mark of the branch; and, but for earlier versions of the library, ``events``: of
            each event that it brought its offset in the branch and that in the parent.
    """

    offset: int
    said: Mapping[str, Any]


def replay_notes(parent: Log) -> list[Note]:
    """What all merges by replay of a log say, whether they still count or not, oldest first."""
    merges = parent.stored(records.c.kind == "merge")
    return [Note(row.offset, one) for row in merges if row.body["how"] == "replay" for one in row.body["branches"]]


def fates(parent: Log, theirs: Fold, log: Log, own: Fold, notes: Sequence[Note]) -> dict[int, str]:
    """What became in a parent of the events of a branch's line that merges by replay brought it.

    Args:
        parent: log of the parent.
        theirs: its fold.
        log: of the branch.
        own: its fold.
        notes: of the parent's log.

    Returns:
        By the offset of what was observed, in the branch: ``"live"``; ``"retracted"``; ``"gone"``: rolled back or
        superseded; or ``"mixed"``: a merge by posteriors has brought it too, and counts. Of events that never were
        brought one by one, nothing.
    """
    mark = (None, mark_of(log, own.line[0].offset))
    of_it = [note for note in notes if note.said["name"] == log.name and note.said.get("mark") in mark]
    if not of_it:
        return {}
    places: dict[int, list[int]] = {}
    for note in of_it:
        for offset, place in note.said.get("events", ()):
            places.setdefault(offset, []).append(place)
    for offset, found in _found_by_id(parent, log, own, [n for n in of_it if "events" not in n.said]).items():
        places.setdefault(offset, []).extend(found)
    merges = merges_of(theirs, own, log)
    became = {}
    for record in own.line:
        if record.learned in places:
            covering = next((merge for merge, said in merges if said["version"] >= record.offset), None)
            is_mixed = covering is not None and covering.is_mixed
            became[record.learned] = "mixed" if is_mixed else _fate(theirs, places[record.learned])
    return became


def _fate(theirs: Fold, places: Sequence[int]) -> str:
    statuses = {theirs.status.get(place) for place in places}
    return next((status for status in ("live", "retracted") if status in statuses), "gone")


def _found_by_id(parent: Log, log: Log, own: Fold, notes: Sequence[Note]) -> dict[int, list[int]]:
    """Where the events are that merges brought which do not say it."""
    if not notes:
        return {}
    until = max(note.said["version"] for note in notes)
    merged = {record.learned for record in own.line if record.learned is not None and record.offset <= until}
    rows = log.rows([records.c.offset, records.c.event_id], records.c.event_id.is_not(None), last=until)
    ids = {branch_event_id(log.name, row.event_id): row.offset for row in rows if row.offset in merged}
    places = [(ids[event_id], offset) for event_id, offset in parent.known_offsets(list(ids)).items()]
    again = records.c.event_id.like("%@%")  # as an event is called that was rolled back, and merged once more
    for row in parent.rows([records.c.offset, records.c.event_id], again, last=max(note.offset for note in notes)):
        first = re.sub(r"@\d+$", "", row.event_id)
        if first != row.event_id and first in ids:
            places.append((ids[first], row.offset))
    found: dict[int, list[int]] = {}
    for offset, place in places:
        found.setdefault(offset, []).append(place)
    return found


def branch_event_id(name: str, event_id: str) -> str:
    """The id of a branch's event in its parent, unless another has it."""
    return _fitting(f"{name}:{event_id}")


def new_ids(log: Log, wanted: Sequence[str]) -> list[str]:
    """Ids that no event of a log has, and all different: those that are wanted, where one is taken with a number."""
    head = log.head()
    numbered = [_fitting(f"{event_id}@{head + 1}") for event_id in wanted]
    taken, ids = set(log.known_offsets([*wanted, *numbered])), []
    for event_id in wanted:
        for number in itertools.count(head):
            new = event_id if number == head else _fitting(f"{event_id}@{number}")
            if new not in taken and (number <= head + 1 or not log.known_offsets([new])):
                break
        taken.add(new)
        ids.append(new)
    return ids


def _fitting(event_id: str) -> str:
    return event_id if len(event_id) <= _LONGEST_ID else hashlib.sha256(event_id.encode()).hexdigest()
