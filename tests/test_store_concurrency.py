"""Many callers at once: one commit for all of them, in one order; asyncio; commits that report an error."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_cases import Places, published, stream

import bayesmlp as bm
from bayesmlp import errors
from bayesmlp.stepper import Stepper
from bayesmlp.store.commits import GroupCommit, Ticket
from bayesmlp.store.writer import Writer
from bayesmlp.updating.committing import Told


def lead(commits: GroupCommit[int, int], ticket: Ticket[int, int]) -> None:
    ticket.wait()
    commits.lead(ticket)


def test_what_queues_up_during_a_commit_is_committed_together() -> None:
    groups: list[list[int]] = []
    first_began, first_may_end = threading.Event(), threading.Event()

    def commit(items: Sequence[int]) -> list[int | Exception]:
        groups.append(list(items))
        if items == [0]:
            first_began.set()
            assert first_may_end.wait(10)
        return [ValueError(str(item)) if item == 3 else 10 * item for item in items]

    commits = GroupCommit(commit)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(commits.submit, 0)
        assert first_began.wait(10)
        queued = [commits.add(item) for item in range(1, 6)]
        leading = [pool.submit(lead, commits, ticket) for ticket in queued]
        first_may_end.set()
        last = pool.submit(commits.submit, 6)
        assert (first.result(), last.result()) == (0, 60)
        assert [queued[i].outcome() for i in (0, 1, 3, 4)] == [10, 20, 40, 50]
        with pytest.raises(ValueError, match="3"):
            queued[2].outcome()
        assert [future.result() for future in leading] == [None] * 5
    assert groups[0] == [0]
    assert [item for group in groups for item in group] == list(range(7))
    assert len(groups) <= 3


def test_a_commit_that_fails_is_said_to_all_it_was_for() -> None:
    def commit(items: Sequence[int]) -> list[int | Exception]:
        raise OSError("disk full")

    commits: GroupCommit[int, int] = GroupCommit(commit)
    tickets = [commits.add(1), commits.add(2)]
    for ticket in tickets:
        lead(commits, ticket)
        with pytest.raises(OSError, match="disk full"):
            ticket.outcome()
    with pytest.raises(OSError, match="disk full"):
        commits.submit(2)
    with commits.alone():
        pass


def test_many_threads_share_commits_and_one_may_conflict(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = stream(64)
    commits: list[int] = []
    whole = Writer.append_groups

    def counted(writer: Writer, groups: Any, done: Any = None) -> Any:
        commits.append(len(groups))
        return whole(writer, groups, done)

    with places.published() as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        updater.observe(x[0], y[0], event_id="taken")
        monkeypatch.setattr(Writer, "append_groups", counted)
        start = threading.Barrier(32)

        def send(part: int) -> list[str]:
            start.wait()
            if part == 7:
                with pytest.raises(errors.ConflictingEvent):
                    updater.observe(x[1], y[1], event_id="taken")
                return []
            return [updater.observe(x[i], y[i], event_id=f"e{i}").status for i in (part, part + 32)]

        with ThreadPoolExecutor(32) as pool:
            statuses = [status for part in pool.map(send, range(32)) for status in part]
        assert statuses == ["applied"] * 62
        assert len(commits) < 63
        assert max(commits) > 1
        order = [entry.event_id for entry in updater.history()[1:]]
        assert sorted(order) == sorted(["taken", *(f"e{i}" for i in range(64) if i not in (7, 39))])
        live = updater.digest()
    with places.published(name="other") as fresh, bm.OnlineUpdater(fresh, "m", engine="numpy") as updater:
        for event_id in order:  # one by one in that order: the same bits
            i = 0 if event_id == "taken" else int(str(event_id)[1:])
            updater.observe(x[i], y[i])
        assert updater.digest() == live


def test_the_same_event_from_two_threads_is_learned_once(places: Places) -> None:
    x, y = stream(1)
    with places.published() as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        with ThreadPoolExecutor(16) as pool:
            receipts = list(pool.map(lambda _: updater.observe(x[0], y[0], event_id="e"), range(16)))
        assert sorted(receipt.repeated for receipt in receipts) == [False] + [True] * 15
        assert {receipt.version for receipt in receipts} == {2}
        assert len(updater.history()) == 2


def test_asyncio_tasks_share_commits(places: Places) -> None:
    x, y = stream(40)

    async def send(updater: bm.OnlineUpdater) -> list[bm.Receipt]:
        with pytest.raises(errors.InvalidInput, match="x must be finite"):
            await updater.observe_async([np.nan] * 4, 0)
        first = updater.observe_async(x[0], y[0], event_id="e0", source="s", wait="durable")
        others = (updater.observe_async(x[i], y[i], event_id=f"e{i}") for i in range(1, 40))
        return list(await asyncio.gather(first, *others))

    with places.published() as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        receipts = asyncio.run(send(updater))
        assert {receipt.status for receipt in receipts[1:]} == {"applied"}
        assert sorted(receipt.version for receipt in receipts) == list(range(2, 42))
        assert [entry.source for entry in updater.history() if entry.event_id == "e0"] == ["s"]


def test_a_task_that_is_cancelled_takes_nothing_back(tmp_path: Path) -> None:
    x, y = stream(2)

    async def send(updater: bm.OnlineUpdater) -> None:
        task = asyncio.create_task(updater.observe_async(x[0], y[0], event_id="a"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await updater.observe_async(x[1], y[1], event_id="b")).status == "applied"

    with published(tmp_path) as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        asyncio.run(send(updater))
        assert [entry.status for entry in updater.history()[1:]] == ["applied", "applied"]


def test_a_durable_task_waits_for_no_retraction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = stream(4)
    folding, may_go_on = threading.Event(), threading.Event()

    async def send(updater: bm.OnlineUpdater) -> list[str]:
        applied = asyncio.create_task(updater.observe_async(x[2], y[2], event_id="applied"))
        while len(updater.store.history("m")) < 5:  # with the publishing and the retraction
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # whoever finishes it waits for the retraction now
        durable = updater.observe_async(x[3], y[3], event_id="durable", wait="durable")
        first = await asyncio.wait_for(durable, 10)
        assert not applied.done()
        may_go_on.set()
        return [first.status, (await applied).status]

    with published(tmp_path) as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        updater.observe_many(x[:2], y[:2], event_ids=["a", "b"])
        live, apply = updater._line.stepper, Stepper.apply

        def slow(stepper: Stepper, observation: Any) -> Any:
            if stepper is not live:
                folding.set()
                assert may_go_on.wait(30)
            return apply(stepper, observation)

        monkeypatch.setattr(Stepper, "apply", slow)
        retracting = threading.Thread(target=updater.retract, args=(["a"],))
        retracting.start()
        try:
            assert folding.wait(30)
            assert asyncio.run(send(updater)) == ["pending", "applied"]
        finally:
            may_go_on.set()
            retracting.join()


def test_tasks_hear_of_errors_and_of_an_updater_that_was_closed(tmp_path: Path) -> None:
    x, y = stream(3)

    async def send(updater: bm.OnlineUpdater) -> list[Any]:
        sent = [updater.observe_async(x[i], y[i], event_id="same", wait="durable") for i in range(2)]
        sent.append(updater.observe_async(x[2], y[2], event_id="other"))
        return await asyncio.gather(*sent, return_exceptions=True)

    with published(tmp_path) as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        first, conflict, other = asyncio.run(send(updater))  # two loops, one after the other
        assert (first.status, first.repeated, other.status) == ("pending", False, "applied")
        assert isinstance(conflict, errors.ConflictingEvent)
        assert [receipt.repeated for receipt in asyncio.run(send(updater)) if isinstance(receipt, bm.Receipt)] == [
            True, True,
        ]  # fmt: skip
        assert len(updater.history()) == 3
        late = updater._group("event", [Told(x[0], y[0])], None, "durable")
        tasks = updater._own_tasks()
    with pytest.raises(errors.StoreError, match="closed"):  # it was checked before, and sent after the closing
        asyncio.run(tasks.submit(late, "durable"))


def test_a_commit_that_reports_an_error_and_was_done(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = stream(4)
    whole, failures = Writer.append_groups, [1]

    def unsure(writer: Writer, groups: Any, done: Any = None) -> Any:
        stored = whole(writer, groups, done)
        if failures:
            failures.pop()
            raise errors.StoreUnavailable("the server went away")
        return stored

    with places.published() as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        updater.observe(x[0], y[0])
        monkeypatch.setattr(Writer, "append_groups", unsure)
        with pytest.raises(errors.StoreUnavailable):
            updater.observe(x[1], y[1], event_id="unsure")
        assert updater.observe(x[2], y[2]).version == 4  # its sender never comes back; others do
        assert updater.observe(x[1], y[1], event_id="unsure").repeated
        assert {entry.status for entry in updater.history()[1:]} == {"applied"}
        failures.append(1)
        with pytest.raises(errors.StoreUnavailable):
            updater.observe(x[3], y[3], event_id="unsure again")
        updater.retract(["unsure"])
        digest = updater.digest()
    with places.published(name="other") as fresh, bm.OnlineUpdater(fresh, "m", engine="numpy") as updater:
        updater.observe_many(x[[0, 2, 3]], y[[0, 2, 3]])
        assert updater.digest() == digest


def test_a_writer_that_was_killed_is_followed_within_seconds(places: Places) -> None:
    store = places.published()
    worker = Path(__file__).parent / "faults" / "worker.py"
    command = [sys.executable, str(worker), places.location(), "numpy", "0", "10000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        acknowledged = int(process.stdout.readline())
        with pytest.raises(errors.LeaseHeld):
            bm.OnlineUpdater(store, "m", engine="numpy")
        process.kill()
    started = time.monotonic()
    while True:
        try:
            updater = bm.OnlineUpdater(store, "m", engine="numpy")
            break
        except errors.LeaseHeld:
            time.sleep(0.05)
            assert time.monotonic() - started < 5
    with updater:
        assert updater.version > acknowledged + 1


@pytest.mark.parametrize("options", [{}, {"source_cap": 5.0}])
def test_a_server_that_is_restarted_loses_nothing(
    places: Places, postgresql_server: str, options: dict[str, float]
) -> None:
    if places.server is None:
        pytest.skip("SQLite has no server")
    x, y = stream(20)
    admission = bm.Admission(**options) if options else None
    with places.published() as store, bm.OnlineUpdater(store, "m", engine="numpy", admission=admission) as updater:
        for i in range(20):
            if i % 4 == 0:
                places.end_writers()
            for _ in range(3):
                try:
                    updater.observe(x[i], y[i], event_id=f"e{i}", source="s")
                    break
                except errors.StoreUnavailable:
                    continue
        assert sorted(e.event_id or "" for e in updater.history()[1:]) == sorted(f"e{i}" for i in range(20))
        live = updater.digest()
    loaded = bm.load(store, "m", engine="numpy")
    assert bm.store.digest.posterior_digest(loaded.spec(), loaded.to_arrays()) == live
