"""What durability costs: the store against the floor of the same disk, measured side by side.

``python benchmarks/store.py`` (about ten minutes; ``--quick`` for one). Every figure is a ratio to a floor measured in
the same process, in turns with it:

- one durable event at a time against SQLite's own insert and commit (limit 1.5);
- 64 callers at once, threads and asyncio tasks, against inserts of 64 rows in a commit (limit 0.6 of their rate);
- a snapshot of 100 MB against writing, flushing and renaming a file of that size (limit 1.3);
- opening a posterior of 100 MB, and its first answer (limit 0.2 s);
- folding the log again against learning the stream (at least as fast);
- a retraction in a long log: how long, and what goes on meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sqlite3
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np

import bayesmlp as bm
from bayesmlp.replay import replay
from bayesmlp.store.connections import wal_is_safe

INPUTS = 8


def linear_model() -> bm.BayesianMLP:
    """A small model, so that the store is what is measured."""
    model = bm.BayesianMLP(
        bm.MLP(()), bm.Gaussian(noise_variance=0.1), structure=bm.Full(), engine="numpy", standardize=False
    )
    model.start_from_prior(INPUTS)
    return model


def wide_model(megabytes: float) -> bm.BayesianMLP:
    """A model whose means and precisions take so much room."""
    width = int((megabytes * 1e6 / 8) ** 0.5)
    model = bm.BayesianMLP(
        bm.MLP((width, width)), bm.Gaussian(), structure=bm.Diagonal(), engine="torch", standardize=False
    )
    model.start_from_prior(INPUTS)
    return model


class Floor:
    """SQLite itself, with the pragmas and a row like those of the store.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA synchronous=EXTRA")
        safe = wal_is_safe(sqlite3.sqlite_version_info[:3])
        self.journal = self._connection.execute(f"PRAGMA journal_mode={'WAL' if safe else 'TRUNCATE'}").fetchone()[0]
        self._connection.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, event_id TEXT UNIQUE, body TEXT)")

    def insert(self, bodies: list[str]) -> None:
        """One commit."""
        self._connection.execute("BEGIN IMMEDIATE")
        rows = [(uuid.uuid4().hex, body) for body in bodies]
        self._connection.executemany("INSERT INTO events (event_id, body) VALUES (?, ?)", rows)
        self._connection.execute("COMMIT")


def seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def rows(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, INPUTS))
    return x, x[:, 0] + 0.3 * rng.standard_normal(count)


def say(what: str, value: float, limit: str) -> None:
    print(f"{what:<64} {value:8.2f}   {limit}", flush=True)


def one_at_a_time(updater: bm.OnlineUpdater, floor: Floor, rounds: int) -> None:
    x, y = rows(20 * rounds)
    body = json.dumps({"x": x[:1].tolist(), "y": y[:1].tolist()})
    raw, durable, applied = [], [], []
    for start in range(0, 20 * rounds, 20):
        block = range(start, start + 20)
        raw += [seconds(lambda: floor.insert([body])) for _ in block]
        durable += [seconds(lambda i=i: updater.observe(x[i], y[i], wait="durable")) for i in block]  # type: ignore[misc]
        applied += [seconds(lambda i=i: updater.observe(x[i], y[i])) for i in block]  # type: ignore[misc]
    print(f"SQLite {sqlite3.sqlite_version}, {floor.journal}: {1e3 * np.median(raw):.2f} ms for an insert and a commit")
    say("one durable event, ratio of medians to insert + commit", np.median(durable) / np.median(raw), "limit 1.5")
    say("one event, durable and learned", np.median(applied) / np.median(raw), "")


def many_callers(updater: bm.OnlineUpdater, floor: Floor, rounds: int) -> None:
    each, callers = 8, 64
    x, y = rows(callers * each)
    body = json.dumps({"x": x[:1].tolist(), "y": y[:1].tolist()})

    def raw() -> None:
        for _ in range(each):
            floor.insert([body] * callers)

    def threads(wait: str) -> None:
        def send(caller: int) -> None:
            for i in range(caller * each, (caller + 1) * each):
                updater.observe(x[i], y[i], wait=wait)

        running = [threading.Thread(target=send, args=(caller,)) for caller in range(callers)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()

    async def send_async(caller: int) -> None:
        for i in range(caller * each, (caller + 1) * each):
            await updater.observe_async(x[i], y[i], wait="durable")

    async def tasks() -> None:
        await asyncio.gather(*(send_async(caller) for caller in range(callers)))

    runs: dict[str, Callable[[], object]] = {
        "raw": raw,
        "durable, 64 threads": lambda: threads("durable"),
        "durable, 64 asyncio tasks": lambda: asyncio.run(tasks()),
        "durable and learned, 64 threads": lambda: threads("applied"),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(run))
    base = float(np.median(times.pop("raw")))
    print(f"{callers * each / base:.0f} events/s in raw inserts of {callers} rows a commit")
    for name, taken in times.items():
        say(f"{name}: rate over the raw one", base / float(np.median(taken)), "limit 0.6" if name[8:9] != "a" else "")


def single_events(folder: Path, rounds: int, many: int) -> None:
    floor = Floor(folder / "floor.db")
    with bm.open_store(folder / "store.db") as store:
        store.publish("m", linear_model())
        with bm.OnlineUpdater(store, "m", engine="numpy") as updater:
            one_at_a_time(updater, floor, rounds)
            many_callers(updater, floor, many)


def large_snapshots(folder: Path, megabytes: float, rounds: int) -> None:
    model = wide_model(megabytes)
    x, y = rows(rounds + 1)
    data = [array.reshape(-1).view(np.uint8).data for array in model.to_arrays().values()]
    size = sum(len(piece) for piece in data)

    def write() -> None:
        aside = folder / "aside"
        with open(aside, "wb") as file:
            for piece in data:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, folder / "whole")

    with bm.open_store(folder / "wide.db") as store:
        store.publish("wide", model)
        raw: list[float] = []
        ours: list[float] = []
        opened: list[float] = []
        with bm.OnlineUpdater(store, "wide", engine="torch") as updater:
            for i in range(rounds):
                updater.observe(x[i], y[i])
                for function, times in ((write, raw), (updater.snapshot, ours)):
                    np.ones(4 * size, np.uint8)  # a virtual machine that gave memory back is slow to get it again
                    times.append(seconds(function))
        print(f"{size / 1e6:.0f} MB: {1e3 * np.median(raw):.0f} ms to write, flush and rename")
        say("snapshot, ratio of medians to write + fsync + rename", np.median(ours) / np.median(raw), "limit 1.3")
        for _ in range(rounds):
            opened.append(seconds(lambda: bm.load(store, "wide", engine="torch").predict(x[:1], method="mean")))
        say("open it and answer once, by the mean weights, s", float(np.median(opened)), "limit 0.2")
        say("open it and answer once, with its uncertainty, s",
            float(np.median([seconds(lambda: bm.load(store, "wide", engine="torch").predict(x[:1]))
                             for _ in range(rounds)])), "")  # fmt: skip


def replays(folder: Path, events: int) -> None:
    x, y = rows(events)
    with bm.open_store(folder / "replay.db") as store:
        store.publish("m", linear_model())
        with bm.OnlineUpdater(store, "m", engine="numpy", snapshot_every=10**9) as updater:
            streamed = seconds(lambda: updater.observe_many(x, y))
            live = updater.digest()
            again = seconds(lambda: replay(store, "m", engine="numpy"))
            digest = updater.digest()
        assert digest == live
    print(f"{events / streamed:.0f} events/s learned from a stream in one commit")
    say("fold the log again: rate over the streaming one", streamed / again, "at least 1")


def retraction(folder: Path, events: int, late: int) -> None:
    with bm.open_store(folder / "long.db") as store:
        store.publish("m", linear_model())
        with bm.OnlineUpdater(store, "m", engine="numpy", snapshot_every=events // 100) as updater:
            building = time.perf_counter()
            for start in range(0, events, 10_000):
                x, y = rows(min(10_000, events - start), start)
                ids = [f"e{i}" for i in range(start, start + len(x))]
                updater.observe_many(x, y, event_ids=ids)
            print(f"{events} events learned in {time.perf_counter() - building:.0f} s")
            named = [f"e{events - late + i}" for i in range(100)]
            estimate = updater.retract(named, estimate=True)
            print(f"estimate: {estimate.replayed} events to fold again, {estimate.seconds:.1f} s")
            done = threading.Event()
            taken: list[bm.Retraction] = []

            def retract() -> None:
                taken.append(updater.retract(named))
                done.set()

            thread = threading.Thread(target=retract)
            thread.start()
            answers, sent, i = [], [], 0
            while not done.is_set():
                answers.append(seconds(lambda: updater.predict(x[0])))
                sent.append(seconds(lambda: updater.observe(x[i % 100], y[i % 100], wait="durable")))  # noqa: B023
                i += 1
            thread.join()
            print(f"retraction of 100 events {late} before the head: {taken[0].seconds:.1f} s")
            for what, times in (("answers", answers), ("durable events", sent)):
                print(f"  meanwhile {len(times)} {what}: median {1e3 * np.median(times):.1f} ms, "
                      f"longest {1e3 * max(times):.0f} ms")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--events", type=int, help="length of the log of the retraction")
    parser.add_argument("--only", choices=("events", "snapshots", "replay", "retraction"), help="one part")
    options = parser.parse_args()
    quick, events = options.quick, options.events or (5_000 if options.quick else 1_000_000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts: dict[str, Callable[[], None]] = {
            "events": lambda: single_events(folder, 3 if quick else 15, 2 if quick else 7),
            "snapshots": lambda: large_snapshots(folder, 100, 2 if quick else 7),
            "replay": lambda: replays(folder, 2_000 if quick else 20_000),
            "retraction": lambda: retraction(folder, events, events // 10),
        }
        for part in parts if options.only is None else [options.only]:
            parts[part]()


if __name__ == "__main__":
    main()
