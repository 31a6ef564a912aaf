"""Every byte of a store against what was written: rows by their checksums, snapshots by digest, blobs by hash."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import select

from ..inference.errors import CorruptStore
from .database import effects, models, records, snapshots
from .digest import body_hash, canonical_json, sha256_of
from .log import Log, is_sound_effect

if TYPE_CHECKING:
    from .store import PosteriorStore

__all__ = ["Problem", "lost_consolidations", "unsound_snapshots", "verify"]


class Problem(NamedTuple):
    """Something that is not as it was written.

    Attributes:
        model: whose; empty for the database itself.
        version: of the record or the snapshot; 0 for the model as a whole.
        what: is wrong.
        lost: whether it can't be made again from the rest: a record; a snapshot can, as long as an older one is sound,
            but for that of a consolidation, which the posterior can go on without.
    """

    model: str
    version: int
    what: str
    lost: bool


def verify(store: PosteriorStore, name: str | None = None) -> list[Problem]:
    """What is wrong with a model, or with all of them and the database.

    Args:
        store: to read.
        name: of a model; None for all.
    """
    problems: list[Problem] = []
    if name is None:
        problems += [Problem("", 0, what, True) for what in _database_problems(store)]
        with store.read() as connection:
            names = list(connection.execute(select(models.c.name).order_by(models.c.name)).scalars())
        strays = [] if store.kept_answers is None else store.kept_answers.strays(names)
        problems += [Problem("", 0, f"answer {i} is of no model that there is", True) for i in strays]
    else:
        names = [name]
    for each in names:
        log = store.log(each)
        of_log = list(_log_problems(log))
        problems += of_log
        unsound = dict(unsound_snapshots(store, log.model_id))
        problems += [Problem(each, offset, what, False) for offset, what in unsound.items()]
        problems += _effect_problems(store, log)
        problems += _answer_problems(store, each)
        problems += [] if of_log else _fold_problems(store, log, list(unsound))
    return problems


def _database_problems(store: PosteriorStore) -> list[str]:
    with store.read() as connection:
        if connection.dialect.name != "sqlite":
            return []
        found = [row[0] for row in connection.exec_driver_sql("PRAGMA integrity_check(20)")]
    of_answers = [] if store.kept_answers is None else store.kept_answers.integrity()
    return [what for what in [*found, *of_answers] if what != "ok"]


def _log_problems(log: Log) -> Iterator[Problem]:
    try:
        yield from _record_problems(log)
    except CorruptStore as error:  # the pages of the log can't be followed
        yield Problem(log.name, 0, str(error), True)


def _record_problems(log: Log) -> Iterator[Problem]:
    expected = 1
    for row in log.rows(list(records.c), last=log.head()):
        if row.offset != expected:
            yield Problem(log.name, expected, f"records {expected} to {row.offset - 1} are not there", True)
        expected = row.offset + 1
        try:
            body = log.body_of(row)
        except CorruptStore as error:
            yield Problem(log.name, row.offset, str(error), True)
            continue
        if row.purged is None and not _has_its_hash(row, body):
            yield Problem(log.name, row.offset, "its body does not have its hash", True)


def _has_its_hash(row: Any, body: dict[str, Any]) -> bool:
    meaning = {
        key: value for key, value in body.items() if key not in ("schema", "granted", "excess_surprise", "answer")
    }
    kinds = ("event", "batch") if row.kind == "quarantine" else (row.kind,)
    return any(body_hash(kind, canonical_json(meaning)) == row.body_hash for kind in kinds)


def unsound_snapshots(store: PosteriorStore, model_id: int) -> Iterator[tuple[int, str]]:
    """Offsets of a model's snapshots that are not as they were written, and why."""
    with store.read() as connection:
        offsets = list(store.snapshots.chains(connection, model_id))
        of_model = select(snapshots.c.offset).where(snapshots.c.model_id == model_id)
        strange = [offset for offset in connection.execute(of_model).scalars() if not isinstance(offset, int)]
    yield from ((0, f"a snapshot has version {offset!r}") for offset in strange)
    for offset in offsets:
        try:
            with store.read() as connection:
                store.snapshots.read(connection, model_id, offset)
                for blob in store.snapshots.blobs_of(connection, model_id, offset):
                    if sha256_of([store.snapshots.blobs.read(connection, blob)]) != blob:
                        yield offset, f"blob {blob} does not have its hash"
        except (CorruptStore, json.JSONDecodeError) as error:
            yield offset, str(error)


def _effect_problems(store: PosteriorStore, log: Log) -> list[Problem]:
    with store.read() as connection:
        rows = connection.execute(select(effects).where(effects.c.model_id == log.model_id)).all()
    return [
        Problem(log.name, row.offset, "its effect is not as it was", False) for row in rows if not is_sound_effect(row)
    ]


def _answer_problems(store: PosteriorStore, name: str) -> list[Problem]:
    unsound = [] if store.kept_answers is None else store.kept_answers.unsound(name)
    return [Problem(name, 0, f"answer {i} is not as it was kept", True) for i in unsound]


def lost_consolidations(store: PosteriorStore, log: Log, unsound: Collection[int]) -> list[int]:
    """Offsets of the consolidations that count, or that a rollback may bring back, but have no sound snapshot.

    Args:
        store: to read.
        log: of the model.
        unsound: offsets of the model's snapshots that are not sound.
    """
    fold = log.fold()
    with store.read() as connection:
        sound = set(store.snapshots.chains(connection, log.model_id)) - set(unsound)
    made = log.rows([records.c.offset], records.c.kind == "consolidate", last=fold.head)
    return [row.offset for row in made if row.offset not in fold.fallen | sound]


def _fold_problems(store: PosteriorStore, log: Log, unsound: Collection[int]) -> list[Problem]:
    """Whether the newest posterior, and what any retraction leads to, can be made."""
    try:
        store.nearest_snapshot(log.model_id, log.fold())
        lost = lost_consolidations(store, log, unsound)
    except CorruptStore as error:
        return [Problem(log.name, 0, str(error), True)]
    what = "the consolidation has no sound snapshot: repair takes it off the line, unless payloads were erased"
    return [Problem(log.name, offset, what, False) for offset in lost]
