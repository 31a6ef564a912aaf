"""Signals, forks and other ends of a call in the middle: nothing is half learned, nobody waits for ever."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from store_cases import published, stream

import bayesmlp as bm
from bayesmlp import errors
from bayesmlp.store.commits import GroupCommit

X, Y = stream(60)


def interrupted(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose call is followed by what a signal's handler may raise."""

    def called(*args: Any, **kwargs: Any) -> Any:
        function(*args, **kwargs)
        raise KeyboardInterrupt

    return called


def test_a_step_that_was_interrupted_never_reaches_a_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with published(tmp_path) as store:
        updater = bm.OnlineUpdater(store, "m", engine="numpy")
        updater.observe(X[0], Y[0], event_id="e0")
        with monkeypatch.context() as patched:
            patched.setattr(updater._line.stepper, "apply", interrupted(updater._line.stepper.apply))
            with pytest.raises(KeyboardInterrupt):
                updater.observe(X[1], Y[1], event_id="e1")
        for asked in (lambda: updater.observe(X[2], Y[2]), updater.snapshot, lambda: updater.predict(X[:1])):
            with pytest.raises(errors.StoreError, match="failed; close this updater"):
                asked()
        updater.close()
        with bm.OnlineUpdater(store, "m", engine="numpy") as again:
            assert [entry.event_id for entry in again.history()][1:] == ["e0", "e1"]
            digest = again.digest()
    (tmp_path / "calm").mkdir()
    with published(tmp_path / "calm") as calm, bm.OnlineUpdater(calm, "m", engine="numpy") as other:
        for row in range(2):
            other.observe(X[row], Y[row], event_id=f"e{row}")
        assert other.digest() == digest


def test_a_commit_that_was_interrupted_is_folded_in_before_the_next_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with published(tmp_path) as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        with monkeypatch.context() as patched:
            patched.setattr(updater._writer, "append_groups", interrupted(updater._writer.append_groups))
            with pytest.raises(KeyboardInterrupt):
                updater.observe(X[0], Y[0], event_id="e0")
        updater.observe(X[1], Y[1], event_id="e1")
        assert updater.observe(X[0], Y[0], event_id="e0").repeated
        digest = updater.digest()
        assert updater.rollback(3) == 4
        assert updater.digest() == digest


def test_who_stops_waiting_for_a_commit_holds_nobody_up() -> None:
    done: list[list[int]] = []

    def commit(items: Sequence[int]) -> list[int]:
        done.append(list(items))
        return list(items)

    commits: GroupCommit[int, int] = GroupCommit(commit)
    leader, gone = commits.add(1), commits.add(2)
    commits._abandon(gone)
    commits._abandon(leader)  # it was called to lead, and left before it did
    assert commits.submit(3) == 3
    with commits.alone():
        queued = commits.add(4)
    commits._abandon(queued)
    assert commits.submit(5) == 5
    assert done == [[3], [5]]


def test_an_interrupted_leader_is_interrupted_alone() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def commit(items: Sequence[int]) -> list[int]:
        if 2 in items:
            raise KeyboardInterrupt
        begun.set()
        assert go_on.wait(10)
        return list(items)

    commits: GroupCommit[int, int] = GroupCommit(commit)
    found: dict[int, BaseException | int] = {}

    def submit(item: int) -> None:
        try:
            found[item] = commits.submit(item)
        except BaseException as error:
            found[item] = error

    threads = [threading.Thread(target=submit, args=(1,))]
    threads[0].start()
    assert begun.wait(10)
    for item in (2, 3):
        threads.append(threading.Thread(target=submit, args=(item,)))
        threads[-1].start()
        while len(commits._queue) < item - 1:
            pass
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert found[1] == 1
    assert isinstance(found[2], KeyboardInterrupt)
    assert isinstance(found[3], errors.StoreUnavailable)
    begun.clear()
    assert commits.submit(4) == 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that forks processes, as Linux")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
def test_a_forked_child_has_no_updater(tmp_path: Path) -> None:
    with published(tmp_path) as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        updater.observe(X[0], Y[0])
        child = os.fork()
        if not child:
            try:
                updater.observe(X[1], Y[1])
            except errors.StoreError as error:
                os._exit(0 if "belongs to the process that opened it" in str(error) else 2)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert updater.observe(X[1], Y[1]).version == 3


def test_a_rollback_behind_erased_payloads_is_refused(tmp_path: Path) -> None:
    with published(tmp_path) as store:
        options: Any = {"engine": "numpy", "snapshot_every": 10, "retention": bm.Retention(events=5)}
        with bm.OnlineUpdater(store, "m", **options) as updater:
            for row in range(60):
                updater.observe(X[row], Y[row])
            with pytest.raises(errors.Purged, match="can't be folded again: the payload of version"):
                updater.rollback(15)
            version = updater.version
        with pytest.raises(errors.Purged, match="can't be folded again"):
            store.rollback("m", 15)
        with bm.OnlineUpdater(store, "m", engine="numpy") as updater:
            assert updater.version == version


def test_ids_of_events_without_one_can_not_be_guessed(tmp_path: Path) -> None:
    with published(tmp_path) as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        ids = [updater.observe(X[row], Y[row]).event_id for row in range(4)]
    assert len({one[16:] for one in ids}) == 4
    assert ids == sorted(ids)


def test_a_cap_counts_what_waits_for_a_retraction(tmp_path: Path) -> None:
    with published(tmp_path) as store:
        admission = bm.Admission(source_cap=6.0)
        with bm.OnlineUpdater(store, "m", engine="numpy", admission=admission) as updater:
            for row in range(4):
                updater.observe(X[row], Y[row], event_id=f"e{row}", source="s")
            with updater._lock:
                offset = updater._line.head
                group = updater._group("event", [], "s", "durable")
            assert group.records == []
            assert updater._spent_by("s") == pytest.approx(sum(_granted(updater)))
            updater._spent = {}
            updater._line.status.pop(offset)
            updater._line.waiting.append(_waiting(offset))
            assert updater._spent_by("s") == pytest.approx(sum(_granted(updater)))
            updater._line.waiting.clear()


def _granted(updater: bm.OnlineUpdater) -> list[float]:
    from bayesmlp.feedback import Observation
    from bayesmlp.store.database import records

    rows = updater._writer.log.stored(records.c.source == "s")
    return [float(Observation.from_body(row.body, updater.model).weight.sum()) for row in rows]


def _waiting(offset: int) -> Any:
    from bayesmlp.line import Waiting

    return Waiting(offset, None)


def test_purge_erases_the_inputs_of_answers_whatever_the_events_are_called(tmp_path: Path) -> None:
    with published(tmp_path) as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        answers = [updater.predict(X[row : row + 1]).prediction_id for row in range(2)]
        updater.feedback(answers[0], Y[0], event_id="mine")
        updater.feedback(answers[1], Y[1])
        assert store.verify("m") == []
        updater.purge(["mine", f"feedback-{answers[1]}"])
        for prediction_id in answers:
            with pytest.raises(errors.StoreError):
                store.answers.inputs("m", prediction_id)


def test_settings_of_another_type_are_named(tmp_path: Path) -> None:
    settings: list[tuple[dict[str, Any], str]] = [
        ({"answer_time_to_live": "x"}, "answer_time_to_live must be a positive number, got 'x'"),
        ({"answer_quota": True}, "answer_quota must be a positive integer"),
        ({"retention": bm.Retention(events="a")}, "Retention.events must be positive or None, got 'a'"),
    ]
    with published(tmp_path) as store:
        for options, message in settings:
            with pytest.raises(errors.InvalidInput, match=message):
                bm.OnlineUpdater(store, "m", engine="numpy", **options)
        updater = bm.OnlineUpdater(store, "m", engine="numpy")
        with updater, pytest.raises(errors.InvalidInput, match="since must be a time"):
            updater.retract(since="x")
