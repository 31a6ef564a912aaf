"""kill -9 at random moments: nothing acknowledged is lost, nothing is applied twice, the posterior is the same to the
bit.

The sender goes on from the last event that was acknowledged to it, as a real one would; so what was stored but not yet
acknowledged is sent again too. BAYESMLP_KILLS sets how many kills (100 in .ci/run).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import shim
from store_cases import published, stream

import bayesmlp as bm

sys.path.insert(0, str(Path(__file__).parent))
from worker import sends

WORKER = Path(__file__).parent / "worker.py"


def run_with_kills(path: Path, engine: str, events: int, kills: int, seed: int) -> tuple[int, int]:
    """Send the whole stream through processes that are killed; returns the kills and the acknowledged sends."""
    rng = np.random.default_rng(seed)
    acknowledged, done = 0, 0
    total = len(sends(events))
    while acknowledged < total:
        command = [sys.executable, str(WORKER), str(path), engine, str(acknowledged), str(events)]
        # From within the first commits to well after a snapshot; some land inside a commit, some between two.
        target = int(rng.integers(0, max(2, total // (2 * kills)) + 1)) if done < kills else total + 1
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            for lines, line in enumerate(process.stdout, start=1):
                if line == "done\n" or not line.endswith("\n"):
                    continue
                acknowledged = int(line) + 1
                if lines == max(target, 1):  # what it acknowledges before it dies is still read
                    time.sleep(float(rng.random()) * 0.005)
                    process.kill()
                    done += 1
    return done, acknowledged


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "share"), [("numpy", 0.9), ("torch", 0.05), ("jax", 0.05)])
def test_kills(tmp_path: Path, engine: str, share: float) -> None:
    if engine != "numpy":
        pytest.importorskip(engine, reason=f"pip install 'bayesmlp[{engine}]' to enable")
    kills = max(2, round(int(os.environ.get("BAYESMLP_KILLS", "100")) * share))
    events = max(60, 24 * kills)  # a quick disk takes a dozen more before a kill arrives
    store = published(tmp_path, engine)
    done, acknowledged = run_with_kills(tmp_path / "store.db", engine, events, kills, seed=0)
    assert (done, acknowledged) == (kills, len(sends(events)))
    with bm.OnlineUpdater(store, "m", engine=engine) as updater:
        stored = Counter(e.event_id for e in updater.history() if e.kind == "event")
        survived = updater.digest()
    assert set(stored) == {f"e{i}" for i in range(events)}, "an acknowledged event was lost"
    assert set(stored.values()) == {1}, "an event was applied twice"
    other = tmp_path / "other"
    other.mkdir()
    x, y = stream(events)
    order = list(dict.fromkeys(sends(events)))
    with published(other, engine) as fresh, bm.OnlineUpdater(fresh, "m", engine=engine) as updater:
        for i in order:
            updater.observe(x[i], y[i], event_id=f"e{i}")
        assert updater.digest() == survived
    total = len(sends(events))
    print(f"\n{engine}: {done} kills, {total} sends of {events} events, digest {survived[:12]} as if never killed")


@pytest.mark.parametrize("kills", [8, pytest.param(None, marks=pytest.mark.slow)])
def test_kills_at_exact_changes_of_files(tmp_path: Path, kills: int | None) -> None:
    """Processes that die at a write, a flush, a rename; BAYESMLP_KILLS of them, BAYESMLP_FIRST_SEED which."""
    kills = kills or int(os.environ.get("BAYESMLP_KILLS", "100"))
    (tmp_path / "disk").mkdir()
    published(tmp_path / "disk").close()
    seed = int(os.environ.get("BAYESMLP_FIRST_SEED", "0"))
    done = shim.run_under(tmp_path / "disk", WORKER.with_name("kill_worker.py"), tmp_path / "disk", kills, seed)
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["exact"] + said["at random"] > 0.8 * kills
    events = 12 * kills
    x, y = stream(events)
    order = list(dict.fromkeys(sends(events)))
    (tmp_path / "calm").mkdir()
    with published(tmp_path / "calm") as calm, bm.OnlineUpdater(calm, "m", engine="numpy") as updater:
        updater.observe_many(x[order], y[order], event_ids=[f"e{i}" for i in order])
        expected = updater.digest()
    with bm.open_store(tmp_path / "disk" / "store.db") as store:
        assert store.verify() == []
        with bm.OnlineUpdater(store, "m", engine="numpy") as updater:
            stored = Counter(e.event_id for e in updater.history() if e.kind == "event")
            assert updater.digest() == expected, "the posterior is not that of a process that never died"
    assert stored == Counter({f"e{i}": 1 for i in range(events)}), "an event was lost, or is there twice"
    print(f"\nkills: {said}")
