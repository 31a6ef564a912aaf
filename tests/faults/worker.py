"""A process that learns from a stream and says what was acknowledged; made to be killed at any moment.

python worker.py STORE ENGINE START SENDS: sends the given slice of the fixed stream, a fifth of it twice, and prints
the id of every acknowledged event on a line of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from store_cases import stream

import bayesmlp as bm


def sends(events: int) -> list[int]:
    """The order in which events are sent: all of them, and a fifth a second time, soon after the first."""
    rng = np.random.default_rng(1)
    again = rng.random(events) < 0.2
    late = np.arange(events) + rng.integers(1, 6, events)
    order = [(float(i), i) for i in range(events)] + [(late[i] + 0.5, i) for i in range(events) if again[i]]
    return [i for _, i in sorted(order)]


def main() -> None:
    path, engine, first, events = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    x, y = stream(events)
    store = bm.open_store(path)
    with bm.OnlineUpdater(store, "m", engine=engine, snapshot_every=25) as updater:
        print("ready", flush=True)
        for number, i in enumerate(sends(events)):
            if number >= first:
                updater.observe(x[i], y[i], event_id=f"e{i}")
                print(number, flush=True)
    print("done", flush=True)


if __name__ == "__main__":
    main()
