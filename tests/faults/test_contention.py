"""Many writers at once, and clocks that jump.

BAYESMLP_WRITERS_EVENTS sets how many events each of the four writers sends.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from store_cases import published, small_model, stream

import bayesmlp as bm
from bayesmlp.inference.errors import ExpiredPrediction
from bayesmlp.store.digest import posterior_digest

WRITERS = 4


def write_all(path: Path, name: str, events: int) -> str:
    """One process: its own model, its own events, each its own commit."""
    x, y = stream(events)
    with bm.open_store(path) as store, bm.OnlineUpdater(store, name, engine="numpy") as updater:
        for i in range(events):
            updater.observe(x[i], y[i], event_id=f"{name}-{i}")
        return updater.digest()


def number(events: int | None) -> int:
    return events or int(os.environ.get("BAYESMLP_WRITERS_EVENTS", "500"))


@pytest.mark.slow
def test_processes_on_models_of_one_store(tmp_path: Path) -> None:
    events = number(None)
    names = [f"m{i}" for i in range(WRITERS)]
    with bm.open_store(tmp_path / "store.db") as store:
        for name in names:
            store.publish(name, small_model())
    with ProcessPoolExecutor(WRITERS, mp_context=multiprocessing.get_context("spawn")) as pool:
        tasks = [pool.submit(write_all, tmp_path / "store.db", name, events) for name in names]
        digests = {task.result() for task in tasks}
    assert len(digests) == 1, "the same events, other posteriors"
    with bm.open_store(tmp_path / "store.db") as store:
        assert store.verify() == []
        for name in names:
            ids = [entry.event_id for entry in store.history(name) if entry.kind == "event"]
            assert ids == [f"{name}-{i}" for i in range(events)]
    print(f"\n{WRITERS} processes x {events} events: 0 errors, 0 lost")


@pytest.mark.parametrize("events", [100, pytest.param(None, marks=pytest.mark.slow)])
def test_threads_on_one_model(tmp_path: Path, events: int | None) -> None:
    events = number(events)
    x, y = stream(WRITERS * events)
    with published(tmp_path) as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:

        def send_all(writer: int) -> None:
            for i in range(writer, WRITERS * events, WRITERS):
                updater.observe(x[i], y[i], event_id=f"e{i}", wait="durable")

        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(send_all, range(WRITERS)))
        digest = updater.digest()
        found = Counter(entry.event_id for entry in updater.history() if entry.kind == "event")
    assert found == Counter({f"e{i}": 1 for i in range(WRITERS * events)})
    with bm.open_store(tmp_path / "store.db") as store:
        with store.engine.begin() as connection:  # without its snapshots, the log alone makes the same
            connection.exec_driver_sql('DELETE FROM parts WHERE "offset" > 1')
            connection.exec_driver_sql('DELETE FROM snapshots WHERE "offset" > 1')
        model = bm.load(store, "m", engine="numpy")
        assert posterior_digest(model.spec(), model.to_arrays()) == digest
    print(f"\n{WRITERS} threads x {events} events on one model: 0 errors, 0 lost")


def test_clocks_that_jump_change_nothing_but_what_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = stream(40)
    digests = []
    for jumps in (False, True):
        folder = tmp_path / str(jumps)
        folder.mkdir()
        rng = np.random.default_rng(0)
        with monkeypatch.context() as patched:
            if jumps:
                patched.setattr(time, "time", lambda rng=rng: float(rng.choice([0.0, 1.0, 1e9, 2e9, 9e10])))
            store = published(folder)
            for start in range(0, 40, 10):
                with bm.OnlineUpdater(store, "m", engine="numpy", snapshot_every=7) as updater:
                    for i in range(start, start + 10):
                        updater.observe(x[i], y[i], event_id=f"e{i}", time=1e9 + i)
                    updater.retract([f"e{start + 3}"])
            with bm.OnlineUpdater(store, "m", engine="numpy") as updater:
                digests.append(updater.digest())
            assert store.verify() == []
            store.close()
    assert digests[0] == digests[1]


def test_an_answer_expires_by_the_clock_and_waits_again_when_it_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = stream(2)
    now = [1e9]
    monkeypatch.setattr(time, "time", lambda: now[0])
    with published(tmp_path) as store, bm.OnlineUpdater(store, "m", engine="numpy", answer_time_to_live=60) as updater:
        given = updater.predict(x[0]).prediction_id
        assert given is not None
        now[0] += 1e8
        with pytest.raises(ExpiredPrediction):
            updater.feedback(given, y[0])
        now[0] = 9e8
        assert updater.feedback(given, y[0]).status == "applied"
