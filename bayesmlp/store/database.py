"""The database: tables, and connections that keep what they acknowledge.

SQLite is opened with ``synchronous=EXTRA`` set before the journal mode. Versions before the fix of the WAL-reset bug
(3.51.3, 3.50.7 and 3.44.6) use a TRUNCATE journal, the others WAL.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Column,
    Engine,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    event,
)
from sqlalchemy.pool import NullPool, QueuePool

from ..inference.errors import InvalidInput

__all__ = [
    "FORMAT_VERSION",
    "answers",
    "answers_metadata",
    "blobs",
    "connect",
    "effects",
    "leases",
    "metadata",
    "models",
    "records",
]

FORMAT_VERSION = 1
DURABILITIES = {"full": "EXTRA", "normal": "NORMAL"}

metadata = MetaData()

models = Table(
    "models",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(255), nullable=False, unique=True),
    Column("format_version", Integer, nullable=False),
    Column("created", Float, nullable=False),
)

records = Table(
    "records",
    metadata,
    Column("model_id", ForeignKey("models.id"), primary_key=True),
    Column("offset", Integer, primary_key=True, autoincrement=False),
    Column("kind", String(16), nullable=False),
    Column("event_id", String(255)),
    Column("source", String(255)),
    Column("body", Text, nullable=False),
    Column("body_hash", String(64), nullable=False),
    Column("received", Float, nullable=False),
    UniqueConstraint("model_id", "event_id"),
)

effects = Table(
    "effects",
    metadata,
    Column("model_id", ForeignKey("models.id"), primary_key=True),
    Column("offset", Integer, primary_key=True, autoincrement=False),
    Column("outcome", String(16), nullable=False),
    Column("surprise", Float),
    Column("information", Float),
    Column("seconds", Float),
    Column("change", Float),
    Column("pit", Float),
    Column("confidence", Float),
    Column("hit", Float),
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("model_id", ForeignKey("models.id"), primary_key=True),
    Column("offset", Integer, primary_key=True, autoincrement=False),
    Column("chain", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("blob", String(64), nullable=False),
    Column("spec", Text, nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("created", Float, nullable=False),
)

blobs = Table(
    "blobs",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("data", LargeBinary),  # absent: the bytes are in a file beside the database
)

leases = Table(
    "leases",
    metadata,
    Column("model_id", ForeignKey("models.id"), primary_key=True),
    Column("epoch", Integer, nullable=False),
    Column("owner", Text),  # absent: released
)

answers_metadata = MetaData()

answers = Table(
    "answers",
    answers_metadata,
    Column("prediction_id", String(64), primary_key=True),
    Column("model", String(255), nullable=False),
    Column("version", Integer, nullable=False),
    Column("inputs", Text, nullable=False),
    Column("expires", Float, nullable=False),
)


def wal_is_safe(version: tuple[int, int, int]) -> bool:
    """Whether this SQLite has the fix of the WAL-reset bug."""
    fixed = {(3, 44): 6, (3, 50): 7}
    return version >= (3, 51, 3) or version[2] >= fixed.get(version[:2], 10**6)


def connect(path: Path, schema: MetaData, *, durability: str, exclusive: bool) -> Engine:
    """An SQLAlchemy engine on an SQLite file; its tables exist.

    Args:
        path: of the file; made if absent.
        schema: tables to make.
        durability: ``"full"``: a commit survives power loss; ``"normal"``: it survives the death of the process.
        exclusive: whether every transaction takes the write lock at its start, as writers need.

    Raises:
        InvalidInput: an unknown durability.
    """
    if durability not in DURABILITIES:
        raise InvalidInput(f"durability must be 'full' or 'normal', got {durability!r}")
    synchronous = DURABILITIES[durability]
    journal = "WAL" if wal_is_safe(sqlite3.sqlite_version_info[:3]) else "TRUNCATE"
    pool = {"poolclass": QueuePool, "pool_size": 1, "max_overflow": 8} if exclusive else {"poolclass": NullPool}
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 30.0, "check_same_thread": False}, **pool)

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin where SQLAlchemy says so
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA synchronous={synchronous}")
        cursor.execute(f"PRAGMA journal_mode={journal}")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if exclusive else "BEGIN")

    if exclusive:
        schema.create_all(engine)
        _add_missing_columns(engine, schema)
    return engine


def _add_missing_columns(engine: Engine, schema: MetaData) -> None:
    """Columns that came later, to the tables of an older store; they may be empty."""
    with engine.begin() as connection:
        for table in schema.sorted_tables:
            there = {row[1] for row in connection.exec_driver_sql(f"PRAGMA table_info({table.name})")}
            for column in table.columns:
                if column.name not in there:
                    kind = column.type.compile(engine.dialect)
                    connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind}")
