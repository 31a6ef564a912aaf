"""Connections that keep what they acknowledge, to SQLite and to PostgreSQL.

SQLite is opened with ``synchronous=EXTRA`` set before the journal mode. Versions before the fix of the WAL-reset bug
(3.51.3, 3.50.7 and 3.44.6) use a TRUNCATE journal, the others WAL.
"""

from __future__ import annotations

import contextlib
import sqlite3
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, MetaData, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    NoSuchTableError,
    OperationalError,
    SAWarning,
)
from sqlalchemy.pool import NullPool, QueuePool

from ..inference.errors import CorruptStore, InvalidInput, MissingDependency, StoreUnavailable

__all__ = [
    "connect_postgresql",
    "connect_sqlite",
    "is_postgresql",
    "postgresql_url",
    "unavailable_as_such",
    "wal_is_safe",
]

DURABILITIES = {"full": "EXTRA", "normal": "NORMAL"}
_DEAD_AFTER = "tcp_keepalives_idle=2 tcp_keepalives_interval=1 tcp_keepalives_count=2"


def wal_is_safe(version: tuple[int, int, int]) -> bool:
    """Whether this SQLite has the fix of the WAL-reset bug."""
    fixed = {(3, 44): 6, (3, 50): 7}
    return version >= (3, 51, 3) or version[2] >= fixed.get(version[:2], 10**6)


def check_durability(durability: str) -> None:
    """Raises :class:`InvalidInput` for an unknown one."""
    if durability not in DURABILITIES:
        raise InvalidInput(f"durability must be 'full' or 'normal', got {durability!r}")


def connect_sqlite(path: Path, schema: MetaData, *, durability: str, exclusive: bool) -> Engine:
    """An SQLAlchemy engine on an SQLite file; its tables exist.

    Args:
        path: of the file; made if absent.
        schema: tables to make.
        durability: ``"full"``: a commit survives power loss; ``"normal"``: it survives the death of the process.
        exclusive: whether every transaction takes the write lock at its start, as writers need.

    Raises:
        InvalidInput: an unknown durability.
    """
    check_durability(durability)
    synchronous = DURABILITIES[durability]
    journal = "WAL" if wal_is_safe(sqlite3.sqlite_version_info[:3]) else "TRUNCATE"
    pool = {"poolclass": QueuePool, "pool_size": 1, "max_overflow": 8} if exclusive else {"poolclass": NullPool}
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 30.0, "check_same_thread": False}, **pool)
    # Many rows in one statement: between statements the driver lets other threads run, and waits for them.
    engine.dialect.use_insertmanyvalues_wo_returning = True

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin where SQLAlchemy says so
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA synchronous={synchronous}")
        cursor.execute(f"PRAGMA journal_mode={journal}")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute("PRAGMA secure_delete=ON")  # what is erased is overwritten
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if exclusive else "BEGIN")

    if exclusive:
        schema.create_all(engine)
        with engine.begin() as connection:
            _add_what_came_later(connection, schema)
    return engine


def is_postgresql(path: str | Path) -> bool:
    """Whether it is the URL of a PostgreSQL database."""
    return str(path).partition("://")[0].partition("+")[0] in ("postgresql", "postgres")


def postgresql_url(url: str) -> URL:
    """A URL with its driver; raises :class:`InvalidInput` if it is none."""
    try:
        return make_url(url).set(drivername="postgresql+psycopg")
    except ArgumentError as error:
        raise InvalidInput(f"path must be a file or postgresql://user@host/database, got {url!r}") from error


def connect_postgresql(url: URL, schemas: Sequence[MetaData], *, durability: str, exclusive: bool) -> Engine:
    """An SQLAlchemy engine on a PostgreSQL database; its tables exist.

    Args:
        url: of the database.
        schemas: tables to make.
        durability: ``"full"``: a commit survives power loss; ``"normal"``: it survives the death of this process, but
            not always that of the server.
        exclusive: for writers; else transactions see one state of the database throughout.

    Raises:
        MissingDependency: psycopg is not installed.
        InvalidInput: an unknown durability.
    """
    check_durability(durability)
    synchronous = "on" if durability == "full" else "off"
    level = "READ COMMITTED" if exclusive else "REPEATABLE READ"
    # A server that can't reach this machine any more ends its session, and with it its locks, within 4 seconds.
    settings = " ".join(f"-c {setting}" for setting in [f"synchronous_commit={synchronous}", *_DEAD_AFTER.split()])
    try:
        engine = create_engine(
            url,
            isolation_level=level,
            poolclass=NullPool if exclusive else QueuePool,  # a writer keeps its session
            pool_pre_ping=True,
            connect_args={"options": settings, "connect_timeout": 5, "application_name": "bayesmlp"},
        )
    except ImportError as error:
        raise MissingDependency("psycopg", "postgres") from error
    if exclusive:
        with engine.begin() as connection:  # several processes may open a new store at once
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('bayesmlp schema'), 0)"))
            for schema in schemas:
                schema.create_all(connection)
                _add_what_came_later(connection, schema)
    return engine


@contextlib.contextmanager
def unavailable_as_such(what: str) -> Iterator[None]:
    """Raise :class:`StoreUnavailable` where the database can't be reached or written (disk full, server gone), and
    :class:`CorruptStore` where its bytes are none of a database, or of another one.
    """
    try:
        yield
    except UnicodeDecodeError as error:  # SQLite's own message quotes what it found
        raise CorruptStore(f"{what} can not be read as a store: {error}") from error
    except DBAPIError as error:
        if _is_rot(error):
            raise CorruptStore(f"{what} can not be read as a store: {error.orig}") from error
        if not isinstance(error, OperationalError | InterfaceError):  # a mistake in a statement
            raise
        raise StoreUnavailable(f"{what} can not be used now: {str(error.orig).strip()}") from error


def _is_rot(error: DBAPIError) -> bool:
    """Whether SQLite, on a statement that is known to be right, found other tables, keys or text than were written."""
    if not isinstance(error.orig, sqlite3.Error):
        return False
    if isinstance(error, OperationalError):
        return getattr(error.orig, "sqlite_errorcode", sqlite3.SQLITE_ERROR) == sqlite3.SQLITE_ERROR
    return not isinstance(error, InterfaceError)


def _add_what_came_later(connection: Connection, schema: MetaData) -> None:
    """Columns and indexes that came later, to the tables of an older store; the columns may be empty."""
    there = inspect(connection)
    for table in schema.sorted_tables:
        try:
            names = {column["name"] for column in there.get_columns(table.name)}
        except (NoSuchTableError, TypeError) as error:  # it was made just now: its definition can't be read
            raise CorruptStore(f"the definition of table {table.name} can not be read: {error}") from error
        known = set(table.columns.keys())
        if known - names and names - known:  # an older store lacks some, a later one has more; a damaged one, both
            raise CorruptStore(f"table {table.name} has the columns {sorted(names)}, expected {sorted(known)}")
        for column in table.columns:
            if column.name not in names:
                kind = column.type.compile(connection.dialect)
                connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind}")
        for index in table.indexes:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error", SAWarning)  # of an index that is another than was made
                    index.create(connection, checkfirst=True)
            except (TypeError, SAWarning) as error:  # an index is there, and its definition is not
                raise CorruptStore(f"the definition of index {index.name} can not be read: {error}") from error
