"""Whose a place of large arrays is: one store's alone.

A store deletes the arrays that its own tables do not name, so two stores in one place would delete each other's. The
first one to write there leaves its id, which is created and never overwritten; others are refused.
"""

from __future__ import annotations

import contextlib
import uuid

from sqlalchemy import Connection, Engine, inspect, select
from sqlalchemy.exc import DBAPIError

from ..inference.errors import InvalidInput, StoreUnavailable
from .connections import unavailable_as_such
from .database import blobs, identity, lock_blobs, models
from .places import OWNER, Place

__all__ = ["Owner"]


class Owner:
    """A store as the one that owns a place.

    Args:
        place: of its large arrays.
        engine: of writers.
        reader: of readers.
    """

    def __init__(self, place: Place, engine: Engine, reader: Engine) -> None:
        self._place, self._engine, self._reader = place, engine, reader
        self._id: str | None = None
        self._holds = False

    def check(self) -> None:
        """Refuse a place that is another store's, and claim one with arrays that are this store's.

        A store that can only be read, or whose place can't be reached now, is opened as it is.

        Raises:
            InvalidInput: the place belongs to another store.
        """
        with unavailable_as_such("the store's id"), self._reader.connect() as connection:
            is_new = connection.execute(select(models.c.id).limit(1)).first() is None
            outside = select(blobs.c.sha256).where(blobs.c.data.is_(None)).limit(1)
            has_arrays = connection.execute(outside).first() is not None
            self._id = _id_in(connection)
        with contextlib.suppress(DBAPIError, StoreUnavailable):
            self._identify()
        with contextlib.suppress(OSError, DBAPIError, StoreUnavailable):
            owner = self._place.owner()
            if owner is not None:
                self._compare(owner)
            elif is_new and self._place.names():
                raise InvalidInput(_refusal(self._place, "it has arrays, and this store is new"))
            elif has_arrays:
                self.hold()

    def hold(self) -> None:
        """Claim the place, if that is not done; to be called before anything in it is written or deleted.

        Raises:
            InvalidInput: it belongs to another store.
            OSError: it can't be reached or written.
        """
        if not self._holds:
            self._compare(self._place.claim(self._identify()))
            self._holds = True

    def _compare(self, owner: str) -> None:
        if owner != self._id:
            raise InvalidInput(_refusal(self._place, f"as {OWNER!r} there says"))

    def _identify(self) -> str:
        """The store's id, drawn when it is first opened by one who may write to it."""
        if self._id is None:
            with unavailable_as_such("the store's id"), self._engine.begin() as connection:
                lock_blobs(connection)
                identity.create(connection, checkfirst=True)
                self._id = _id_in(connection)
                if self._id is None:
                    self._id = uuid.uuid4().hex
                    connection.execute(identity.insert().values(id=self._id))
        return self._id


def _id_in(connection: Connection) -> str | None:
    if not inspect(connection).has_table(identity.name):
        return None
    return connection.execute(select(identity.c.id)).scalar()


def _refusal(place: Place, why: str) -> str:
    return (
        f"blobs must be a place of the store's own, got {place}, which is another store's ({why}): give each store "
        "a place of its own, and remove what is left of a store that is gone"
    )
