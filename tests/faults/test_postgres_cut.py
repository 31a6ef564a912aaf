"""PostgreSQL killed, and its sessions cut off, in the middle of a stream: what was acknowledged is there, once.

BAYESMLP_SERVER_CUTS sets how many times (half of them kills of the server).
"""

from __future__ import annotations

import importlib.util
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from postgres import HOW, Cluster, find_programs
from store_cases import administration, small_model, stream

import bayesmlp as bm
from bayesmlp.inference.errors import StoreUnavailable


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A server of its own, to be killed."""
    programs = find_programs()
    if programs is None or importlib.util.find_spec("psycopg") is None:
        pytest.skip(f"needs psycopg and PostgreSQL's programs ({HOW.partition(',')[0]})")
    made = Cluster(programs)
    yield made
    made.remove()


def interfere(cluster: Cluster, kill: bool) -> None:
    """Kill the server and start it again, or end all sessions but this one."""
    if kill:
        cluster.stop("immediate")
        time.sleep(0.2)
        cluster.start()
        return
    with administration(cluster.url) as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'bayesmlp'"
        )


@pytest.mark.slow
def test_a_server_that_is_killed_and_cut_off(cluster: Cluster) -> None:
    cuts = int(os.environ.get("BAYESMLP_SERVER_CUTS", "8"))
    events = 15 * cuts
    x, y = stream(events)
    rng = np.random.default_rng(0)
    moments = set(rng.choice(events, size=cuts, replace=False).tolist())
    refused = made = 0
    with bm.open_store(cluster.url) as store:
        store.publish("m", small_model())
        with bm.OnlineUpdater(store, "m", engine="numpy", snapshot_every=20) as updater:
            for i in range(events):
                thread = None
                if i in moments:
                    thread = threading.Thread(target=interfere, args=(cluster, made % 2 == 0))
                    thread.start()
                    made += 1
                    time.sleep(0.3 * float(rng.random()))
                for _ in range(200):
                    try:
                        updater.observe(x[i], y[i], event_id=f"e{i}")
                        break
                    except StoreUnavailable:
                        refused += 1
                        time.sleep(0.05)
                else:
                    raise AssertionError("the writer did not recover")
                if thread is not None:
                    thread.join()
            found = Counter(entry.event_id for entry in updater.history() if entry.kind == "event")
            digest = updater.digest()
        assert found == Counter({f"e{i}": 1 for i in range(events)})
        assert store.verify() == []
        calm = small_model()
        store.publish("calm", calm)
        with bm.OnlineUpdater(store, "calm", engine="numpy") as updater:
            updater.observe_many(x, y)
            assert updater.digest() == digest
    print(f"\nserver killed or cut off {made} times, {refused} sends refused, {events} events there once")
