"""Power cuts at any moment of a stream of events, retractions, a rollback and snapshots: whatever the disk had not
flushed is lost, torn or out of order, and what was acknowledged is there, once, and sound.

BAYESMLP_CUTS sets how many cuts on the database; of the files of large arrays a quarter as many.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import shim
from power import Disk, Operation, read_trace
from store_cases import published

import bayesmlp as bm
from bayesmlp.inference.errors import BayesMLPError
from bayesmlp.store import blobs, snapshots

WORKER = Path(__file__).with_name("disk_worker.py")


@pytest.fixture
def small_blobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small arrays become files of their own too."""
    monkeypatch.setattr(blobs, "INLINE_BYTES", 1500)
    monkeypatch.setattr(snapshots, "PART_BYTES", 1500)


def recorded(folder: Path) -> list[Operation]:
    """The trace of a stream on a store in a folder, which stays as it was before."""
    (folder / "start").mkdir()
    published(folder / "start").close()
    shutil.copytree(folder / "start", folder / "disk")
    shim.run_under(folder / "disk", WORKER, "record", folder / "disk", folder / "trace")
    shutil.rmtree(folder / "disk")
    shutil.copytree(folder / "start", folder / "disk")
    return read_trace(folder / "trace")


def check(folder: Path, acknowledged: str, following: str | None, events: set[str]) -> bool:
    """Whether the operation that was under way is in the store; all that were acknowledged must be."""
    with bm.open_store(folder / "store.db") as store:
        with bm.OnlineUpdater(store, "m", engine="numpy", take_over=True) as updater:
            digest = updater.digest()
            found = Counter(e.event_id for e in updater.history() if e.kind == "event")
        assert digest in (acknowledged, following), "the posterior is another one"
        assert events <= set(found), f"lost {sorted(events - set(found))}"
        assert set(found.values()) <= {1}
        assert store.verify() == []
    return digest != acknowledged


def run(folder: Path, cuts: int, seed: int, *, files: bool, flushes: bool = True) -> tuple[int, int]:
    """Cuts that were made, and after how many of them the operation under way was done.

    Args:
        folder: to work in.
        cuts: how many.
        seed: of them.
        files: whether to cut while files of large arrays are written, or the database.
        flushes: whether flushes do anything.
    """
    trace = recorded(folder)
    marks = [i for i, operation in enumerate(trace) if operation.kind == "mark" and operation.more != "end"]
    places = [
        i for i in range(marks[0], len(trace)) if trace[i].kind != "mark" and (".blobs" in trace[i].path) == files
    ]
    rng = np.random.default_rng(seed)
    chosen = Counter(int(i) for i in rng.choice(places, size=cuts))
    disk = Disk(folder / "disk")
    digest, events, done = "", set(), 0
    for i, operation in enumerate(trace):
        if operation.kind == "mark" and operation.more != "end":
            _, digest, *ids = operation.more.split()
            events |= set(ids)
        if flushes or operation.kind != "sync":
            disk.follow(operation)
        following = next((trace[k].more.split()[1] for k in marks if k > i), None)
        for _ in range(chosen[i]):
            disk.cut(folder / "cut", rng)
            try:
                done += check(folder / "cut", digest, following, events)
            except (BayesMLPError, AssertionError) as error:
                error.add_note(f"cut after operation {i} of {len(trace)}, {operation[:3]}, seed {seed}")
                raise
            shutil.rmtree(folder / "cut")
    return cuts, done


@pytest.mark.usefixtures("small_blobs")
@pytest.mark.parametrize("files", [False, True])
@pytest.mark.parametrize("cuts", [8, pytest.param(None, marks=pytest.mark.slow)])
def test_power_cuts(tmp_path: Path, cuts: int | None, files: bool) -> None:
    cuts = cuts or int(os.environ.get("BAYESMLP_CUTS", "120"))
    made, done = run(tmp_path, max(5, cuts // 4) if files else cuts, seed=0, files=files)
    what = "files" if files else "the database"
    print(f"\n{made} power cuts on {what}: 0 lost, 0 corrupt; the operation under way was done after {done}")


@pytest.mark.usefixtures("small_blobs")
def test_a_disk_that_never_flushes_is_found_out(tmp_path: Path) -> None:
    """The harness sees a loss where there is one."""
    with pytest.raises((BayesMLPError, AssertionError)):
        run(tmp_path, 20, seed=1, files=False, flushes=False)
