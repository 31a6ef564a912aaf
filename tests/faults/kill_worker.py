"""Runs under the shim: forks processes that learn from a stream and die by kill -9, at an exact change of a file or
at a random moment; each goes on from what was acknowledged to the one before, and sends a fifth of the events twice.

python kill_worker.py FOLDER KILLS SEED
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import shim
from store_cases import published, stream
from worker import sends

import bayesmlp as bm
from bayesmlp.store import blobs, snapshots


def child(folder: Path, order: list[int], first: int, place: int | None, out: int) -> None:
    """Send the stream from a place on, and say what was acknowledged."""
    x, y = stream(max(order) + 1)
    if place is not None:
        shim.arm(shim.KILL, place)
    with (
        bm.open_store(folder / "store.db") as store,
        bm.OnlineUpdater(store, "m", engine="numpy", snapshot_every=20) as updater,
    ):
        for number in range(first, len(order)):
            updater.observe(x[order[number]], y[order[number]], event_id=f"e{order[number]}")
            os.write(out, f"{number}\n".encode())


def one_process(folder: Path, order: list[int], first: int, place: int | None, after: float | None) -> tuple[bool, int]:
    """Whether it was killed, and from where to go on."""
    incoming, outgoing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(incoming)
        try:
            child(folder, order, first, place, outgoing)
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
            os._exit(1)
        os._exit(0)
    os.close(outgoing)
    if after is not None:
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)
    with open(incoming, encoding="ascii") as lines:
        whole = [line for line in lines if line.endswith("\n")]
    status = os.waitpid(pid, 0)[1]
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status):
        raise SystemExit("a process could not go on after a kill")
    return os.WIFSIGNALED(status), int(whole[-1]) + 1 if whole else first


def warm_up(folder: Path) -> None:
    """Import here, once, what every child would: most of the time of its life."""
    folder.mkdir()
    published(folder).close()
    out = os.open(os.devnull, os.O_WRONLY)
    for first in (0, 25):
        child(folder, list(range(30)), first, None, out)
    os.close(out)


def main(folder: Path, kills: int, seed: int) -> None:
    blobs.INLINE_BYTES = snapshots.PART_BYTES = 1500
    warm_up(folder.with_name("warm"))
    rng = np.random.default_rng(seed)
    order = sends(12 * kills)  # a process learns up to sixteen before it dies
    first = exact = at_random = 0
    while first < len(order):
        place = after = None
        if exact + at_random < kills:
            if rng.random() < 0.7:
                place = int(rng.integers(0, 160))  # opening, storing events, or the snapshot that follows
            else:
                after = 0.02 + 0.1 * float(rng.random())
        killed, first = one_process(folder, order, first, place, after)
        exact += killed and place is not None
        at_random += killed and after is not None
    print(json.dumps({"exact": exact, "at random": at_random, "sends": len(order)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
