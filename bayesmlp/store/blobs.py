"""Bytes by content: named by their SHA-256, small ones in the database, large ones in a place of their own."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from sqlalchemy import Connection, Engine, select
from sqlalchemy.exc import DBAPIError

from ..inference.errors import CorruptStore, StoreUnavailable
from .arrays import Buffer
from .database import blobs, lock_blobs, parts, snapshots
from .digest import sha256_of
from .ownership import Owner
from .places import Place

__all__ = ["BlobGone", "Blobs"]

INLINE_BYTES = 100_000


class Blobs:
    """Content-addressed bytes of a store.

    Args:
        place: of the large ones; None: all of them are in the database.
        owner: the store, which claims the place before it changes anything there.
    """

    def __init__(self, place: Place | None, owner: Owner | None = None) -> None:
        self.place, self._owner = place, owner
        self._seen: set[bytes] = set()
        self._outside_garbage: set[str] = set()

    def forget(self) -> None:
        """Do not trust what was written before: write all of it again."""
        self._seen.clear()

    def write(self, *contents: Sequence[Buffer]) -> list[tuple[str, bytes | None]]:
        """Keep bytes, those that are large; their rows are still to be written.

        Args:
            contents: each in pieces.

        Returns:
            Of each, the hash, and the bytes to keep in the row, or None if they are elsewhere.

        Raises:
            StoreUnavailable: they can't be written (disk full, no connection).
            InvalidInput: the place belongs to another store.
        """
        written = [self._if_kept(pieces) for pieces in contents]
        new = [i for i, found in enumerate(written) if found is None]
        if self.place is not None and new:
            try:
                self._hold()
                names = self.place.put(*(contents[i] for i in new))
            except OSError as error:
                raise StoreUnavailable(f"a large array can not be stored now: {error}") from error
            for i, name in zip(new, names, strict=True):
                self._seen.add(_sample(contents[i]))  # only now: a file whose folder was not flushed is written again
                written[i] = (name, None)
        return [found for found in written if found is not None]

    def _hold(self) -> None:
        if self._owner is not None:
            self._owner.hold()

    def _if_kept(self, pieces: Sequence[Buffer]) -> tuple[str, bytes | None] | None:
        """As :meth:`write`, of bytes that are small or elsewhere already; None for those to be put elsewhere."""
        if self.place is None or sum(len(piece) for piece in pieces) <= INLINE_BYTES:
            return sha256_of(pieces), b"".join(pieces)
        if _sample(pieces) in self._seen and self.place.has(name := sha256_of(pieces)):
            return name, None
        return None

    def insert(self, connection: Connection, name: str, data: bytes | None) -> None:
        """The row of a blob, if it is not there yet.

        Raises:
            BlobGone: it was collected as garbage since it was written: write it again.
        """
        lock_blobs(connection)
        if data is None and self.place is not None and not self.place.has(name):
            raise BlobGone(name)
        if connection.execute(select(blobs.c.sha256).where(blobs.c.sha256 == name)).first() is None:
            connection.execute(blobs.insert().values(sha256=name, data=data))

    def read(self, connection: Connection, name: str) -> Buffer:
        """The bytes, as they are found: who uses them checks a hash or a digest.

        Raises:
            CorruptStore: absent.
        """
        row = connection.execute(select(blobs.c.data).where(blobs.c.sha256 == name)).first()
        if row is None:
            raise CorruptStore(f"blob {name} is not in the store")
        if row.data is not None:
            return row.data
        if self.place is None:
            raise CorruptStore(f"blob {name} is not in the database: open the store with its blobs=")
        try:
            return self.place.get(name)
        except OSError as error:
            raise CorruptStore(f"blob {name} can not be read: {error}") from error

    def collect(self, connection: Connection, names: Iterable[str] | None = None) -> int:
        """Delete blobs that no snapshot names, in the caller's transaction; returns how many.

        What is outside of the database goes by :meth:`sweep`, once the transaction is committed: a crash in between
        leaves bytes that nothing names, never a name without its bytes.

        Args:
            connection: of a transaction that writes.
            names: those that may have become garbage; None for all.
        """
        lock_blobs(connection)
        named = select(parts.c.blob).where(parts.c.blob == blobs.c.sha256).exists()
        alone = select(snapshots.c.blob).where(snapshots.c.blob == blobs.c.sha256, snapshots.c.blob != "").exists()
        query = select(blobs.c.sha256, blobs.c.data.is_(None).label("outside")).where(~named, ~alone)
        if names is not None:
            query = query.where(blobs.c.sha256.in_(list(names)))
        garbage = connection.execute(query).all()
        for row in garbage:
            connection.execute(blobs.delete().where(blobs.c.sha256 == row.sha256))
            if row.outside and self.place is not None:
                self._outside_garbage.add(row.sha256)
        return len(garbage)

    def sweep(self, engine: Engine, *, everything: bool = False) -> int:
        """Delete what is outside of the database without a row, as far as it can be reached now; returns how many.

        Args:
            engine: of writers.
            everything: look at all that is there, interrupted writes too, not only at what was collected here.
        """
        swept = 0
        if self.place is None or not (everything or self._outside_garbage):
            return swept
        with contextlib.suppress(OSError, DBAPIError, StoreUnavailable):
            found = {*self._outside_garbage, *(self.place.names() if everything else ())}
            if found:
                self._hold()
            swept += self.place.tidy() if everything else 0
            with engine.begin() as connection:
                lock_blobs(connection)
                for name in sorted(found - set(connection.execute(select(blobs.c.sha256)).scalars())):
                    self.place.delete(name)
                    swept += 1
            self._outside_garbage -= found
        return swept


class BlobGone(Exception):
    """A blob was collected between its bytes and its row."""


def _sample(pieces: Iterable[Buffer]) -> bytes:
    """A quick guess whether bytes were seen before: hashing all of them first is worth it only then."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(np.frombuffer(piece, dtype=np.uint8)[::4093].tobytes())
    return digest.digest()
