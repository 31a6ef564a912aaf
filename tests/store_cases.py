"""A small classification stream and stores that hold a model for it."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Connection, create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

import bayesmlp as bm
from bayesmlp.inference.structures import Structure
from bayesmlp.store.connections import wal_is_safe

NUM_INPUTS = 4
HAS_WAL = wal_is_safe(sqlite3.sqlite_version_info[:3])


def stream(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and one of three classes that depends on them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, NUM_INPUTS))
    return x, (x[:, 0] > 0).astype(int) + (x[:, 1] > 0)


def small_model(engine: str = "numpy", structure: Structure | None = None, dtype: str = "float32") -> bm.BayesianMLP:
    """A model that knows its prior only."""
    model = bm.BayesianMLP(
        bm.MLP((8,), "tanh"),
        bm.Categorical(3),
        structure=structure or bm.LastLayer(hidden=bm.LowRank(3)),
        engine=engine,
        dtype=dtype,
        standardize=False,
    )
    model.start_from_prior(NUM_INPUTS)
    return model


def published(folder: Path, engine: str = "numpy", name: str = "m", **options: Any) -> bm.PosteriorStore:
    """A store with :func:`small_model` in it."""
    store = bm.open_store(folder / "store.db")
    store.publish(name, small_model(engine, **options))
    return store


class Places:
    """Makes stores of one kind, each in a place of its own.

    Args:
        folder: for SQLite files.
        server: URL of a PostgreSQL server, for databases there; None for SQLite.
    """

    def __init__(self, folder: Path, server: str | None = None) -> None:
        self.folder, self.server = folder, server
        self._made: list[str] = []
        self._opened: list[bm.PosteriorStore] = []

    def location(self, name: str = "store") -> str:
        """Where the store of a name is."""
        if self.server is None:
            return str(self.folder / f"{name}.db")
        database = f"{self.folder.name}_{name}".replace("-", "_").lower()[-60:]
        if database not in self._made:
            self._made.append(database)
            with administration(self.server) as connection:
                connection.exec_driver_sql(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')
                connection.exec_driver_sql(f'CREATE DATABASE "{database}"')
        return make_url(self.server).set(database=database).render_as_string(hide_password=False)

    def open(self, name: str = "store", **options: Any) -> bm.PosteriorStore:
        """Open a store, or make it."""
        self._opened.append(bm.open_store(self.location(name), **options))
        return self._opened[-1]

    def published(
        self, engine: str = "numpy", model: str = "m", name: str = "store", **options: Any
    ) -> bm.PosteriorStore:
        """A store with :func:`small_model` in it."""
        store = self.open(name)
        store.publish(model, small_model(engine, **options))
        return store

    @contextlib.contextmanager
    def sql(self, name: str = "store") -> Iterator[Connection]:
        """Statements past the library, to break things."""
        location = self.location(name)
        if self.server is None:
            engine = create_engine(f"sqlite:///{location}", poolclass=NullPool)
        else:
            engine = create_engine(make_url(location).set(drivername="postgresql+psycopg"), poolclass=NullPool)
        with engine.begin() as connection:
            yield connection

    def end_writers(self) -> None:
        """As if the processes of all writers had ended."""
        with self.sql() as connection:
            if self.server is None:
                connection.exec_driver_sql("""UPDATE leases SET owner = json_set(owner, '$.started', '0')""")
            else:
                connection.exec_driver_sql(
                    "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' "
                    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
                )

    def clear(self) -> None:
        """Close the stores; remove the databases."""
        for store in self._opened:
            store.close()
        for database in self._made:
            with administration(str(self.server)) as connection:
                connection.exec_driver_sql(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')


UNPRIVILEGED = """
import ctypes, os, sys
if os.geteuid() == 0:  # may write whatever the permissions say, but for this
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        assert ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) == 0  # PR_CAPBSET_DROP
os.execv(sys.executable, [sys.executable, "-c", *sys.argv[1:]])
"""


def printed_by_a_reader(folder: Path, code: str) -> str:
    """What a program prints that may read what is in a folder, and change nothing there.

    Args:
        folder: without write permission for as long as the program runs.
        code: of the program.
    """
    bits = {path: path.stat().st_mode for path in (folder, *folder.rglob("*"))}
    for path in bits:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        command = [sys.executable, "-c", UNPRIVILEGED, code]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    finally:
        for path, mode in bits.items():
            path.chmod(mode)


@contextlib.contextmanager
def administration(server: str) -> Iterator[Connection]:
    """A connection outside transactions."""
    url = make_url(server).set(drivername="postgresql+psycopg")
    engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        yield connection
