"""The log on disk: durable, exactly once, replayable, reversible; one writer."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_cases import Places, published, small_model, stream

import bayesmlp as bm
from bayesmlp import errors
from bayesmlp.stepper import Stepper
from bayesmlp.store.connections import wal_is_safe
from bayesmlp.store.digest import posterior_digest

ENGINES = ["numpy", "torch", "jax"]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    if request.param != "numpy":
        pytest.importorskip(request.param, reason=f"pip install 'bayesmlp[{request.param}]' to enable")
    return str(request.param)


def test_receipts_say_what_an_event_did(places: Places, engine: str) -> None:
    x, y = stream(30)
    with places.published(engine) as store, bm.OnlineUpdater(store, "m", engine=engine) as updater:
        receipts = [updater.observe(a, b, event_id=f"e{i}") for i, (a, b) in enumerate(zip(x, y, strict=True))]
        assert [r.version for r in receipts] == list(range(2, 32))
        assert {r.status for r in receipts} == {"applied"}
        assert all(r.information is not None and r.information > 0 for r in receipts)
        first = small_model(engine).predict(x[:1]).log_prob(y[:1])[0]
        assert receipts[0].surprise == pytest.approx(-first, abs=1e-5)
        history = store.history("m")
    assert [entry.kind for entry in history] == ["publish"] + ["event"] * 30


def test_the_log_folds_to_what_updates_in_memory_give(places: Places, engine: str) -> None:
    x, y = stream(40)
    model = small_model(engine)
    with places.published(engine) as store, bm.OnlineUpdater(store, "m", engine=engine) as updater:
        for a, b in zip(x, y, strict=True):
            updater.observe(a, b)
            model.update(a[None], [b])
        mine = updater.model.to_arrays()
    theirs = model.to_arrays()
    for name, array in mine.items():  # in place and pure steps may differ in the last bits
        np.testing.assert_allclose(array, theirs[name], rtol=2e-4, atol=2e-5, err_msg=name)


def test_reopened_it_is_the_same_to_the_bit(places: Places, engine: str) -> None:
    x, y = stream(60)
    store = places.published(engine)
    with bm.OnlineUpdater(store, "m", engine=engine, snapshot_every=7) as updater:
        for a, b in zip(x[:30], y[:30], strict=True):
            updater.observe(a, b)
    with bm.OnlineUpdater(store, "m", engine=engine) as updater:
        for a, b in zip(x[30:], y[30:], strict=True):
            updater.observe(a, b)
        interrupted = updater.digest()
    with places.published(engine, name="other") as fresh, bm.OnlineUpdater(fresh, "m", engine=engine) as updater:
        updater.observe_many(x, y)  # one commit instead of sixty changes nothing either
        assert updater.digest() == interrupted
    loaded = bm.load(places.location(), "m", engine=engine)
    assert posterior_digest(loaded.spec(), loaded.to_arrays()) == interrupted


def test_replay_without_a_snapshot_is_byte_equal(places: Places, engine: str) -> None:
    x, y = stream(50)
    store = places.published(engine)
    with bm.OnlineUpdater(store, "m", engine=engine, snapshot_every=10) as updater:
        updater.observe_many(x, y)
        live = updater.digest()
    with places.sql() as connection:
        connection.exec_driver_sql('DELETE FROM parts WHERE "offset" > 1')
    with bm.OnlineUpdater(store, "m", engine=engine) as updater:
        assert updater.digest() == live


def test_an_event_is_applied_exactly_once(places: Places) -> None:
    x, y = stream(3)
    with places.published() as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        first = updater.observe(x[0], y[0], event_id="a")
        digest = updater.digest()
        again = updater.observe(x[0], y[0], event_id="a")
        assert again == first._replace(repeated=True)
        assert updater.digest() == digest
        with pytest.raises(errors.ConflictingEvent, match=r"event 'a' was sent before with another body \(version 2\)"):
            updater.observe(x[1], y[1], event_id="a")
        assert updater.digest() == digest
        batch = updater.observe_many(x, y, event_ids=["a", "b", "b2"])
        assert [r.repeated for r in batch] == [True, False, False]


def test_a_conflict_in_a_group_stores_none_of_it(places: Places) -> None:
    x, y = stream(3)
    with places.published() as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        updater.observe(x[0], y[0], event_id="a")
        before = updater.digest(), len(updater.history())
        with pytest.raises(errors.ConflictingEvent):
            updater.observe_many(x[1:], y[1:], event_ids=["new", "a"])
        with pytest.raises(errors.ConflictingEvent, match="event 'new' was sent twice at once, with two bodies"):
            updater.observe_many(x[1:], y[1:], event_ids=["new", "new"])
        assert (updater.digest(), len(updater.history())) == before


def test_waiting_for_durable_only_applies_later(places: Places) -> None:
    x, y = stream(10)
    with places.published() as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        receipts = [updater.observe(a, b, wait="durable") for a, b in zip(x, y, strict=True)]
        assert {r.status for r in receipts} == {"pending"}
        assert updater.version == 11
        assert {entry.status for entry in updater.history() if entry.kind == "event"} == {"applied"}


def test_feedback_on_an_answer(places: Places) -> None:
    x, y = stream(5)
    with places.published() as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        answer = updater.predict(x[0])
        assert answer.version == 1
        receipt = updater.feedback(str(answer.prediction_id), y[0])
        assert updater.feedback(str(answer.prediction_id), y[0]).repeated
        several = updater.predict(x)
        assert updater.feedback(str(several.prediction_id), y).version == receipt.version + 1
    with places.published(name="other") as fresh, bm.OnlineUpdater(fresh, "m", engine="numpy") as updater:
        updater.observe(x[0], y[0])
        updater.observe_batch(x, y)
        expected = updater.digest()
    with bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        assert updater.digest() == expected


def test_feedback_on_an_unknown_or_expired_answer(places: Places) -> None:
    x, y = stream(1)
    with places.published() as store:
        with bm.OnlineUpdater(store, "m", engine="numpy", answer_time_to_live=1e-3) as updater:
            digest = updater.digest()
            with pytest.raises(errors.UnknownPrediction, match="gave no answer with prediction id 'nonsense'"):
                updater.feedback("nonsense", y[0])
            answer = updater.predict(x[0])
            time.sleep(0.01)
            with pytest.raises(errors.ExpiredPrediction, match="expired"):
                updater.feedback(str(answer.prediction_id), y[0])
            assert updater.digest() == digest
        store.publish("other", small_model())
        with (
            bm.OnlineUpdater(store, "other", engine="numpy") as updater,
            pytest.raises(errors.UnknownPrediction, match="'other'"),
        ):
            updater.feedback(str(answer.prediction_id), y[0])


@pytest.mark.parametrize("where", ["early", "late"])
def test_retraction_equals_a_stream_that_never_held_the_events(
    places: Places, engine: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = stream(80)
    bad = set(range(5, 65)) if where == "early" else set(range(20, 80))
    with places.published(engine) as store, bm.OnlineUpdater(store, "m", engine=engine, snapshot_every=9) as updater:
        for i, (a, b) in enumerate(zip(x, y, strict=True)):
            updater.observe(a, b, event_id=f"e{i}", source="spam" if i in bad else None)
        steps = _count_steps(monkeypatch)
        taken = updater.retract([f"e{i}" for i in bad])
        retracted = updater.digest()
        assert (taken.events, len(steps)) == (60, taken.replayed)
        assert taken.replayed <= 20  # one fold of what is left, not one for each id
        statuses = [entry.status for entry in updater.history() if entry.kind == "event"]
        assert statuses.count("retracted") == 60
        assert updater.observe(x[min(bad)], y[min(bad)], event_id=f"e{min(bad)}").status == "retracted"
    with places.published(engine, name="other") as fresh, bm.OnlineUpdater(fresh, "m", engine=engine) as updater:
        for i, (a, b) in enumerate(zip(x, y, strict=True)):
            if i not in bad:
                updater.observe(a, b)
        assert updater.digest() == retracted
    with bm.OnlineUpdater(store, "m", engine=engine) as updater:
        assert updater.digest() == retracted


def _count_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every step that is taken from now on appends to the list; the steps are real."""
    calls: list[int] = []
    apply = Stepper.apply

    def counted(stepper: Stepper, observation: Any) -> Any:
        calls.append(1)
        return apply(stepper, observation)

    monkeypatch.setattr(Stepper, "apply", counted)
    return calls


def test_retraction_by_source_and_time(places: Places) -> None:
    x, y = stream(9)
    with places.published() as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        updater.observe_many(x[:3], y[:3], event_ids=["a", "b", "c"], source="alice")
        clean = updater.digest()
        updater.observe_many(x[3:6], y[3:6], source="bob")
        assert updater.retract(source="bob").events == 3
        assert updater.digest() == clean
        now = time.time()
        updater.observe_many(x[6:], y[6:], source="alice")
        assert updater.retract(source="alice", since=now).events == 3
        assert updater.digest() == clean
        bad: list[dict[str, Any]] = [{}, {"event_ids": ["a"], "source": "bob"}, {"event_ids": []}, {"event_ids": "a"}]
        for arguments in bad:
            with pytest.raises(errors.InvalidInput, match=r"retract takes|event_ids must"):
                updater.retract(**arguments)
        with pytest.raises(errors.UnknownEvent, match="no event 'nobody'"):
            updater.retract(["a", "nobody"])
        assert updater.digest() == clean


def test_rollback_and_what_it_leaves(places: Places, engine: str) -> None:
    x, y = stream(20)
    with places.published(engine) as store:
        with bm.OnlineUpdater(store, "m", engine=engine) as updater:
            digests = {1: updater.digest()}
            for i, (a, b) in enumerate(zip(x, y, strict=True)):
                version = updater.observe(a, b, event_id=f"e{i}").version
                digests[version] = updater.digest()
            updater.rollback(8)
            assert updater.digest() == digests[8]
            assert updater.observe(x[19], y[19], event_id="e19").status == "rolled back"
            with pytest.raises(errors.UnknownModel, match="versions 1 to 22, not 99"):
                updater.rollback(99)
        store.rollback("m", 15)
        with bm.OnlineUpdater(store, "m", engine=engine) as updater:
            assert updater.digest() == digests[15]
        old = bm.load(store, "m", engine=engine, version=12)
        assert posterior_digest(old.spec(), old.to_arrays()) == digests[12]


def test_one_writer_at_a_time(places: Places) -> None:
    with places.published() as store:
        updater = bm.OnlineUpdater(store, "m", engine="numpy")
        with pytest.raises(errors.LeaseHeld, match="being written by process"):
            bm.OnlineUpdater(store, "m", engine="numpy")
        with pytest.raises(errors.LeaseHeld):
            store.publish("m", small_model())
        updater.close()
        updater.close()
        with pytest.raises(errors.StoreError, match="closed"):
            updater.observe(np.zeros(4), 0)
        bm.OnlineUpdater(store, "m", engine="numpy").close()


def test_a_superseded_writer_can_not_commit(places: Places) -> None:
    x, y = stream(2)
    with places.published() as store:
        stale = bm.OnlineUpdater(store, "m", engine="numpy")
        places.end_writers()
        with bm.OnlineUpdater(store, "m", engine="numpy") as successor:
            successor.observe(x[0], y[0], event_id="a")
            digest = successor.digest()
            if places.server is not None:
                with pytest.raises(errors.StoreUnavailable):  # its session is gone; it opens another one
                    stale.observe(x[1], y[1], event_id="b")
            with pytest.raises(errors.LeaseLost, match="another updater took over"):
                stale.observe(x[1], y[1], event_id="b")
            assert successor.digest() == digest
            assert len(successor.history()) == 2
        with contextlib.suppress(errors.LeaseLost):
            stale.close()


def test_a_writer_that_may_be_alive_can_be_superseded(places: Places) -> None:
    x, y = stream(3)
    with places.published() as store:
        first = bm.OnlineUpdater(store, "m", engine="numpy")
        with bm.OnlineUpdater(store, "m", engine="numpy", take_over=True) as second:
            second.observe(x[0], y[0])
            with pytest.raises(errors.LeaseLost):
                first.observe(x[1], y[1])
            with pytest.raises(errors.LeaseHeld):
                bm.OnlineUpdater(store, "m", engine="numpy")
            second.observe(x[2], y[2])
            assert len(second.history()) == 3
        with contextlib.suppress(errors.LeaseLost):
            first.close()


def test_readers_in_another_process_see_what_was_acknowledged(places: Places) -> None:
    x, y = stream(10)
    with places.published() as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        updater.observe_many(x, y)
        code = (
            "import sys, bayesmlp as bm\n"
            "from bayesmlp.store.digest import posterior_digest\n"
            "m = bm.load(sys.argv[1], 'm', engine='numpy')\n"
            "print(posterior_digest(m.spec(), m.to_arrays()))"
        )
        command = [sys.executable, "-c", code, places.location()]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert printed.strip() == updater.digest()


def test_many_threads_share_an_updater(places: Places) -> None:
    x, y = stream(80)
    with places.published() as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:

        def send(part: int) -> None:
            for i in range(part, 80, 4):
                updater.observe(x[i], y[i], event_id=f"e{i}")

        threads = [threading.Thread(target=send, args=(part,)) for part in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        history = updater.history()
        assert sorted(entry.event_id or "" for entry in history[1:]) == sorted(f"e{i}" for i in range(80))
        live = updater.digest()
    with bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        assert updater.digest() == live


def test_large_posteriors_go_to_files_and_rot_is_found(tmp_path: Path) -> None:
    x, y = stream(6)
    store = published(tmp_path, structure=bm.Full(), dtype="float64")
    wide = bm.BayesianMLP(bm.MLP((32,)), bm.Categorical(3), structure=bm.Full(), engine="numpy", standardize=False)
    wide.start_from_prior(4)
    store.publish("wide", wide)
    with bm.OnlineUpdater(store, "wide", engine="numpy", snapshot_every=3) as updater:
        updater.observe_many(x, y)
        live = updater.digest()
    files = sorted((tmp_path / "store.db.blobs").rglob("*.safetensors"), key=lambda f: f.stat().st_mtime)
    assert len(files) == 3
    assert not list((tmp_path / "store.db.blobs").rglob("*.tmp"))
    damaged = bytearray(files[-1].read_bytes())
    damaged[len(damaged) // 2] ^= 1
    files[-1].write_bytes(damaged)
    with bm.OnlineUpdater(store, "wide", engine="numpy") as updater:  # an older snapshot and the log make it again
        assert updater.digest() == live
    for file in files:
        file.write_bytes(b"")
    with pytest.raises(errors.CorruptStore, match="no sound snapshot"):
        bm.OnlineUpdater(store, "wide", engine="numpy")
    bm.OnlineUpdater(store, "m", engine="numpy").close()


def test_unknown_models_and_paths(tmp_path: Path) -> None:
    with published(tmp_path) as store:
        assert store.names() == ["m"]
        with pytest.raises(errors.UnknownModel, match=r"no model 'x' in .*; it holds \['m'\]"):
            bm.OnlineUpdater(store, "x")
        with pytest.raises(errors.UnknownModel, match="no version 5"):
            bm.load(store, "m", engine="numpy", version=5)
        with pytest.raises(errors.InvalidInput, match="name must be"):
            store.publish("", small_model())
    with pytest.raises(errors.InvalidInput, match="not there"):
        bm.load(tmp_path / "nothing.db", "m")
    with pytest.raises(errors.InvalidInput, match="existing folder"):
        bm.open_store(tmp_path / "no" / "folder.db")
    with pytest.raises(errors.InvalidInput, match="durability must be"):
        bm.open_store(tmp_path / "store.db", durability="eternal")
    with pytest.raises(errors.NotFitted):
        bm.open_store(tmp_path / "a.db").publish("m", bm.BayesianMLP(bm.MLP(), bm.Gaussian(), engine="numpy"))


def test_the_journal_is_safe(tmp_path: Path) -> None:
    assert [wal_is_safe(v) for v in ((3, 40, 1), (3, 44, 6), (3, 50, 6), (3, 50, 7), (3, 51, 2), (3, 51, 3))] == [
        False, True, False, True, False, True,
    ]  # fmt: skip
    with published(tmp_path) as store, store.read() as connection:
        mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar()
        assert mode == ("wal" if wal_is_safe(sqlite3.sqlite_version_info[:3]) else "truncate")
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 3  # EXTRA


BAD_EVENTS = {
    "nan": (lambda x: (np.where(np.arange(4) == 2, np.nan, x), 0), "x must be finite, got nan in row 0, column 2"),
    "infinity": (lambda x: (x * np.inf, 0), "x must be finite"),
    "huge": (lambda x: (x * 0 + 1e300, 0), "x must be at most 1e.30 in magnitude"),
    "shape": (lambda x: (x[:3], 0), r"x must have shape \(rows, 4\), got shape \(1, 3\)"),
    "rank": (lambda x: (x[None, None], 0), r"x must have shape \(rows, 4\)"),
    "strings": (lambda x: (["a", "b", "c", "d"], 0), "x must hold real numbers, got dtype"),
    "complex": (lambda x: (x + 1j, 0), "x must hold real numbers, got dtype complex128"),
    "objects": (lambda x: ([None] * 4, 0), "x must hold real numbers, got dtype object"),
    "unknown class": (lambda x: (x, 3), "y must be a class from 0 to 2, got 3"),
    "negative class": (lambda x: (x, -1), "y must be a class from 0 to 2, got -1"),
    "float class": (lambda x: (x, 1.0), "y must be integer class labels, got dtype float64"),
    "two rows": (lambda x: (np.stack([x, x]), [0, 1]), "x must be one row, got 2"),
    "two labels": (lambda x: (x, [0, 1]), r"y must have as many rows as x \(1\), got 2"),
    "empty": (lambda x: (np.zeros((0, 4)), np.zeros(0, dtype=int)), "x must have at least one row"),
}


@pytest.mark.parametrize("case", BAD_EVENTS)
def test_a_bad_event_is_refused_and_changes_nothing(places: Places, case: str) -> None:
    make, message = BAD_EVENTS[case]
    x, y = stream(5)
    with places.published() as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        updater.observe_many(x, y)
        before = updater.digest(), len(updater.history())
        bad_x, bad_y = make(x[0])
        with pytest.raises(errors.InvalidInput, match=message):
            updater.observe(bad_x, bad_y)
        assert (updater.digest(), len(updater.history())) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1.0}, "weight must be from 0"),
        ({"weight": np.nan}, "weight must be from 0"),
        ({"event_id": ""}, "event_id must be a string"),
        ({"event_id": 7}, "event_id must be a string"),
        ({"source": "x" * 300}, "source must be a string"),
        ({"time": np.inf}, "time must be seconds"),
        ({"wait": "forever"}, "wait must be one of"),
    ],
)
def test_bad_options_are_refused(places: Places, options: dict[str, object], message: str) -> None:
    x, y = stream(1)
    with places.published() as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        before = updater.digest()
        with pytest.raises(errors.InvalidInput, match=message):
            updater.observe(x[0], y[0], **options)
        assert updater.digest() == before


def test_empty_batch_is_refused(places: Places) -> None:
    with places.published() as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        before = updater.digest()
        with pytest.raises(errors.InvalidInput, match="at least one row"):
            updater.observe_batch(np.zeros((0, 4)), np.zeros(0, dtype=int))
        assert updater.digest() == before


def test_a_failed_step_leaves_the_posterior_and_is_said(places: Places, engine: str) -> None:
    """An event whose arithmetic overflows in float32 is durable, marked failed, and the stream goes on."""
    model = bm.BayesianMLP(bm.MLP((4,)), bm.Gaussian(noise_variance=1e-14), engine=engine, standardize=False)
    model.start_from_prior(2)
    with places.open() as store:
        store.publish("m", model)
        with bm.OnlineUpdater(store, "m", engine=engine) as updater:
            before = updater.digest()
            receipt = updater.observe([1e6, -1e6], 1e6, event_id="explosive")
            assert (receipt.status, receipt.surprise, receipt.information) == ("failed", None, None)
            assert updater.digest() == before
            assert updater.observe([1e-3, 0.0], 0.0, event_id="quiet").status == "applied"
            live = updater.digest()
        with bm.OnlineUpdater(store, "m", engine=engine) as updater:
            assert updater.digest() == live
