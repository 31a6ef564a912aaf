"""Many branches over one shared posterior of 270,000 weights: what one takes, and what it takes to use it.

``python benchmarks/branches.py`` (100,000 branches; ``--quick`` for 1,000). Every branch learns the last layer only
(``learn="last"``). At each number of branches some are opened, learn one event and are closed again, each by an updater
of its own, in random order. A floor is measured beside them: one row into a table of SQLite's own, with the same
pragmas, in as many commits as such a visit makes.

Columns: bytes of a new branch, and of one that was visited; milliseconds (median, 99th percentile) until the event is
learned, until the branch is closed, and of the floor.
"""

from __future__ import annotations

import argparse
import sqlite3
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import bayesmlp as bm
from bayesmlp.store.connections import wal_is_safe

INPUTS, HIDDEN, CLASSES = 64, (484, 484), 10
CHUNK = 1_000
COMMITS = 4
"""Of a visit: take the lease, the event, the snapshot, give the lease back."""


def parent(engine: str) -> bm.BayesianMLP:
    """A classifier of 8 x 8 images that has learned a few."""
    model = bm.BayesianMLP(
        bm.MLP(HIDDEN), bm.Categorical(CLASSES), structure=bm.LastLayer(bm.Diagonal()), engine=engine, standardize=False
    )
    model.start_from_prior(INPUTS)
    model.update(*events(32, np.random.default_rng(0)))
    return model


def events(rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Images of 17 grey levels, as in the digits data, and their classes."""
    return rng.integers(0, 17, (rows, INPUTS)) / 16, rng.integers(0, CLASSES, rows)


def size_of(folder: Path) -> int:
    """Bytes of all files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def visit(store: bm.PosteriorStore, name: str, engine: str, event: tuple[np.ndarray, int]) -> tuple[float, float]:
    """Seconds to open a branch and learn, and to close it too."""
    started = time.perf_counter()
    with bm.OnlineUpdater(store, name, engine=engine) as updater:
        updater.observe(*event)
        learned = time.perf_counter() - started
    return learned, time.perf_counter() - started


def floor(folder: Path, rows: int) -> np.ndarray:
    """Seconds of as many commits as a visit makes, by SQLite itself."""
    connection = sqlite3.connect(folder / "floor.db", isolation_level=None)
    connection.execute("PRAGMA synchronous=EXTRA")
    connection.execute(f"PRAGMA journal_mode={'WAL' if wal_is_safe(sqlite3.sqlite_version_info[:3]) else 'TRUNCATE'}")
    connection.execute("CREATE TABLE IF NOT EXISTS events (body TEXT)")
    taken = []
    for _ in range(rows):
        started = time.perf_counter()
        for _ in range(COMMITS):
            connection.execute("INSERT INTO events VALUES (?)", ["x" * 500])
        taken.append(time.perf_counter() - started)
    connection.close()
    (folder / "floor.db").unlink()
    return np.array(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1,000 branches")
    parser.add_argument("--engine", default="torch")
    parser.add_argument("--visits", type=int, default=300, help="at each number of branches")
    options = parser.parse_args()
    sizes = [100, 1_000] if options.quick else [100, 1_000, 10_000, 100_000]
    console, rng = Console(width=110), np.random.default_rng(1)
    table = Table("branches", "bytes: new", "visited", "ms: create", "learned", "p99", "closed", "p99", "floor", "p99")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with bm.open_store(folder / "store.db") as store:
            model = parent(options.engine)
            store.publish("parent", model)
            console.print(f"{sum(mean.size for mean in model.mean_weights()):,} weights, {size_of(folder):,} bytes")
            store.branch("parent", "warm", learn="last")
            visit(store, "warm", options.engine, tuple(part[0] for part in events(1, rng)))
            there = 0
            for size in sizes:
                before, started = size_of(folder), time.perf_counter()
                for start in range(there, size, CHUNK):
                    stop = min(size, start + CHUNK)
                    store.branch("parent", [f"parent/{i}" for i in range(start, stop)], learn="last")
                created = (time.perf_counter() - started) / (size - there)
                new = (size_of(folder) - before) / (size - there)
                chosen = there + rng.choice(size - there, min(options.visits, size - there), replace=False)
                there, before = size, size_of(folder)
                x, y = events(len(chosen), rng)
                times = np.array(
                    [visit(store, f"parent/{i}", options.engine, (a, b)) for i, a, b in zip(chosen, x, y, strict=True)]
                )
                grown = (size_of(folder) - before) / len(chosen)
                numbers = [f"{1e3 * np.quantile(t, q):.1f}" for t in (*times.T, floor(folder, 50)) for q in (0.5, 0.99)]
                table.add_row(f"{size:,}", f"{new:,.0f}", f"{new + grown:,.0f}", f"{1e3 * created:.2f}", *numbers)
    console.print(table)


if __name__ == "__main__":
    main()
