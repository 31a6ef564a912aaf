"""A model as one file, which is itself a store: its log, its snapshots, and all of its arrays.

What is copied is checked on the way; a model that is not sound is not copied.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Table, insert, select

from ..inference.errors import CorruptStore, InvalidInput
from .connections import unavailable_as_such
from .database import FORMAT_VERSION, effects, models, parts, records, snapshots
from .digest import sha256_of
from .verify import verify

if TYPE_CHECKING:
    from .store import PosteriorStore

__all__ = ["copy_model", "export_model", "import_model"]

PAGE = 1000


def export_model(store: PosteriorStore, name: str, path: str | Path) -> None:
    """Write a model to a file of its own; it appears whole or not at all."""
    target = _checked(path).absolute()
    if not target.parent.is_dir():
        raise InvalidInput(f"path must be in an existing folder, got {str(path)!r}")
    if target.exists():
        raise InvalidInput(f"path must be a new file, got {str(path)!r}, which is there")
    store.log(name)  # raises before any work
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as folder:
        aside = Path(folder) / "model.db"
        with type(store)(aside) as other:
            copy_model(store, other, name, name, inline=True)
        _make_single_file(aside)
        os.replace(aside, target)
        handle = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def import_model(store: PosteriorStore, path: str | Path, name: str | None = None) -> str:
    """Take in a model from a file of :func:`export_model`, under its name or another."""
    source = _checked(path)
    if not source.is_file():
        raise InvalidInput(f"path must be an exported model, got {str(path)!r}, which is not there")
    with tempfile.TemporaryDirectory() as folder:  # opening a store may bring its tables up to date: not in the file
        copy = Path(folder) / "model.db"
        copy.write_bytes(source.read_bytes())
        with type(store)(copy) as other:
            names = other.names()
            if len(names) != 1:
                raise InvalidInput(f"path must hold one model, got {str(path)!r}, which holds {len(names)}")
            new = names[0] if name is None else name
            copy_model(other, store, names[0], new)
    return new


def _checked(path: Any) -> Path:
    if not isinstance(path, str | Path):
        raise InvalidInput(f"path must be that of a file, got {path!r}")
    return Path(path)


def copy_model(source: PosteriorStore, target: PosteriorStore, name: str, new: str, *, inline: bool = False) -> None:
    """Copy a model with its log and snapshots into another store, in one commit there.

    Args:
        source: where it is.
        target: where it goes.
        name: of the model.
        new: its name there, where there is none of that name.
        inline: whether all of its arrays go into the database.

    Raises:
        InvalidInput: the name is taken.
        CorruptStore: it is not sound.
    """
    problems = verify(source, name)
    if problems:
        raise CorruptStore(f"model {name!r} is not sound: version {problems[0].version}: {problems[0].what}")
    log = source.log(name)
    last = log.head()
    with unavailable_as_such(target.path), target.engine.begin() as to:
        new_id = _new_model(to, new)
        for table in (records, effects):
            _copy_rows(source, to, table, log.model_id, new_id, last)
        with source.read() as connection:
            offsets = [offset for offset in source.snapshots.chains(connection, log.model_id) if offset <= last]
        for offset in offsets:
            with source.read() as connection:
                _copy_snapshot(source, target, connection, to, (log.model_id, new_id), offset, inline)


def _new_model(to: Connection, name: str) -> int:
    """Its id. A name without a log, of a publishing that failed, is taken over."""
    of_that_name = select(models.c.id).where(models.c.name == name)
    new_id = to.execute(of_that_name).scalar()
    if new_id is None:
        to.execute(insert(models).values(name=name, format_version=FORMAT_VERSION, created=time.time()))
        return int(to.execute(of_that_name).scalar_one())
    if to.execute(select(records.c.offset).where(records.c.model_id == new_id).limit(1)).first() is not None:
        raise InvalidInput(f"name must be new, got {name!r}: the store has a model of that name")
    return int(new_id)


def _copy_rows(source: PosteriorStore, to: Connection, table: Table, model_id: int, new_id: int, last: int) -> None:
    first = 1
    while first <= last:
        query = select(table).where(table.c.model_id == model_id, table.c.offset >= first, table.c.offset <= last)
        with source.read() as connection:
            page = connection.execute(query.order_by(table.c.offset).limit(PAGE)).mappings().all()
        if page:
            to.execute(insert(table), [{**row, "model_id": new_id} for row in page])
        if len(page) < PAGE:
            return
        first = page[-1]["offset"] + 1


def _copy_snapshot(
    source: PosteriorStore,
    target: PosteriorStore,
    connection: Connection,
    to: Connection,
    ids: tuple[int, int],
    offset: int,
    inline: bool,
) -> None:
    names = source.snapshots.blobs_of(connection, ids[0], offset)
    where = (snapshots.c.model_id == ids[0]) & (snapshots.c.offset == offset)
    row: dict[str, Any] = dict(connection.execute(select(snapshots).where(where)).mappings().one())
    to.execute(insert(snapshots), [{**row, "model_id": ids[1]}])
    for number, name in enumerate(names):
        data = source.snapshots.blobs.read(connection, name)
        if sha256_of([data]) != name:
            raise CorruptStore(f"blob {name} does not have its hash")
        written = (name, bytes(data)) if inline else target.snapshots.blobs.write([data])[0]
        target.snapshots.blobs.insert(to, *written)
        if not row["blob"]:
            to.execute(insert(parts), [{"model_id": ids[1], "offset": offset, "number": number, "blob": name}])


def _make_single_file(path: Path) -> None:
    """Without a write-ahead log beside it, and flushed to disk."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    with open(path, "rb") as file:
        os.fsync(file.fileno())
