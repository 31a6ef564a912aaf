"""The tables: the same in SQLite and PostgreSQL.

Format 1 kept each snapshot in one blob (``snapshots.blob``); format 2 keeps it in ``parts``, so that snapshots share
the arrays that did not change. Both are read; what is written is format 2.
"""

from __future__ import annotations

from sqlalchemy import (
    Column,
    Connection,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

__all__ = [
    "FORMAT_VERSION",
    "answers",
    "answers_metadata",
    "blobs",
    "effects",
    "identity",
    "leases",
    "lock_blobs",
    "metadata",
    "models",
    "parts",
    "records",
    "snapshots",
]

FORMAT_VERSION = 2

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
    Column("checksum", String(16)),  # of the row; absent in format 1
    Column("actor", String(255)),  # who appended it
    Column("purged", Float),  # when its body was erased
    UniqueConstraint("model_id", "event_id"),
)

Index(
    "records_purged",
    records.c.model_id,
    records.c.offset,
    sqlite_where=records.c.purged.is_not(None),
    postgresql_where=records.c.purged.is_not(None),
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
    Column("checksum", String(16)),  # of the row; absent in older stores
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("model_id", ForeignKey("models.id"), primary_key=True),
    Column("offset", Integer, primary_key=True, autoincrement=False),
    Column("chain", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("blob", String(64), nullable=False),  # empty: its arrays are in parts
    Column("spec", Text, nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("created", Float, nullable=False),
    Column("checksum", String(16)),  # of the row; absent in older stores
)

Index(
    "snapshots_blob",
    snapshots.c.blob,
    sqlite_where=snapshots.c.blob != "",
    postgresql_where=snapshots.c.blob != "",
)

parts = Table(
    "parts",
    metadata,
    Column("model_id", Integer, primary_key=True),
    Column("offset", Integer, primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("blob", String(64), nullable=False, index=True),
    ForeignKeyConstraint(["model_id", "offset"], ["snapshots.model_id", "snapshots.offset"], ondelete="CASCADE"),
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

identity = Table(  # made by who may write: an older store is opened without it by who may only read
    "identity",
    MetaData(),
    Column("id", String(32), primary_key=True),
)

answers_metadata = MetaData()

answers = Table(
    "answers",
    answers_metadata,
    Column("prediction_id", String(64), primary_key=True),
    Column("model", String(255), nullable=False),
    Column("version", Integer, nullable=False),
    Column("inputs", Text, nullable=False),  # empty: not kept
    Column("expires", Float, nullable=False, index=True),
    Column("given", Float),
    Column("checksum", String(16)),  # of the row until it expires; absent in older stores
)


def lock_blobs(connection: Connection) -> None:
    """Until the transaction ends, nobody else adds or collects blobs; SQLite's writers are alone as it is."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('bayesmlp blobs'), 0)"))
