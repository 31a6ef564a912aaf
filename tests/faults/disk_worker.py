"""Runs under the shim: a stream that learns, forgets and stores, on a disk that fails or is watched.

python disk_worker.py fail FOLDER STEP: fails every STEP-th change of a file, once and for good, with EIO and ENOSPC.
python disk_worker.py record FOLDER TRACE: notes every change of a file, with a mark before and after each operation.
"""

from __future__ import annotations

import errno
import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import shim
from store_cases import published, stream

import bayesmlp as bm
from bayesmlp.inference.errors import StoreUnavailable
from bayesmlp.store import blobs, snapshots

EVENTS = 7
X, Y = stream(60)


def observe_all(updater: bm.OnlineUpdater, first: int = 0) -> None:
    for i in range(first, EVENTS):
        updater.observe(X[i], Y[i], event_id=f"e{i}")


def digest_and_ids(folder: Path) -> tuple[str, list[str]]:
    with bm.open_store(folder / "store.db") as store:
        assert store.verify() == []
        with bm.OnlineUpdater(store, "m", engine="numpy") as updater:
            return updater.digest(), [str(e.event_id) for e in updater.history() if e.kind == "event"]


def one_failure(folder: Path, how: int, place: int, error: int) -> tuple[bool, int]:
    """Whether the failure was met, and how many sends it refused. What was acknowledged must stand, once."""
    store = bm.open_store(folder / "store.db")
    updater = bm.OnlineUpdater(store, "m", engine="numpy", snapshot_every=3)
    shim.arm(how, place, error)
    acknowledged, refused = [], 0
    for i in range(EVENTS):
        try:
            updater.observe(X[i], Y[i], event_id=f"e{i}")
        except StoreUnavailable:
            refused += 1
            if how == shim.FOR_GOOD:
                break
            updater.observe(X[i], Y[i], event_id=f"e{i}")  # sent again, as a sender does
        acknowledged.append(f"e{i}")
    met = shim.count() > place
    if refused and how == shim.FOR_GOOD:  # read-only: every further event is refused, answers still come
        for i in range(EVENTS):
            if f"e{i}" not in acknowledged:
                try:
                    updater.observe(X[i], Y[i], event_id=f"e{i}")
                    raise AssertionError("acknowledged on a disk that fails")
                except StoreUnavailable:
                    refused += 1
        updater.model.predict(X[:1])
    copy = folder.with_name("copy")  # what a process would find that was killed here
    shim.disarm()
    shutil.copytree(folder, copy)
    with bm.open_store(copy / "store.db") as other, bm.OnlineUpdater(other, "m", take_over=True) as survivor:
        found = [e.event_id for e in survivor.history() if e.kind == "event"]
        assert set(acknowledged) <= set(found), "a false acknowledgement"
        assert len(set(found)) == len(found)
    shutil.rmtree(copy)
    observe_all(updater)  # space is back: all of it is sent again
    updater.close()
    store.close()
    return met, refused


def fail(base: Path, step: int) -> None:
    blobs.INLINE_BYTES = snapshots.PART_BYTES = 1500
    (base / "made").mkdir(parents=True)
    published(base / "made").close()
    shutil.copytree(base / "made", base / "sound")
    with (
        bm.open_store(base / "sound" / "store.db") as store,
        bm.OnlineUpdater(store, "m", engine="numpy", snapshot_every=3) as updater,
    ):
        shim.disarm()
        observe_all(updater)
        places = shim.count()
    expected = digest_and_ids(base / "sound")
    met = refused = runs = 0
    for how in (shim.ONCE, shim.FOR_GOOD):
        for error in (errno.EIO, errno.ENOSPC):
            for place in range(0, places, step):
                shutil.copytree(base / "made", base / "run")
                what = f"change {place} of {places}, {errno.errorcode[error]}, {'once' if how == 1 else 'for good'}"
                try:
                    was_met, count = one_failure(base / "run", how, place, error)
                    assert digest_and_ids(base / "run") == expected, "an event was lost or learned twice"
                except BaseException as problem:
                    problem.add_note(what)
                    raise
                runs, met, refused = runs + 1, met + was_met, refused + count
                shutil.rmtree(base / "run")
    print(json.dumps({"places": places, "runs": runs, "met": met, "refused": refused}))


def record(folder: Path, trace: Path) -> None:
    blobs.INLINE_BYTES = snapshots.PART_BYTES = 1500
    store = bm.open_store(folder / "store.db")
    with bm.OnlineUpdater(store, "m", engine="numpy", snapshot_every=4) as updater:
        shim.trace_to(trace)
        shim.mark(f"done {updater.digest()}")
        for i in range(40):
            updater.observe(X[i], Y[i], event_id=f"e{i}")
            shim.mark(f"done {updater.digest()} e{i}")
            if i % 10 == 9:
                updater.retract([f"e{i - 3}"])
                shim.mark(f"done {updater.digest()}")
            if i == 25:
                updater.rollback(updater.version - 3)
                shim.mark(f"done {updater.digest()}")
    shim.mark("end")
    store.close()


if __name__ == "__main__":
    if sys.argv[1] == "fail":
        fail(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        record(Path(sys.argv[2]), Path(sys.argv[3]))
