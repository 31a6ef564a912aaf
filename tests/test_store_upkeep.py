"""What keeps a store small, sound and movable: snapshots, verify, repair, export, old formats, purging."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors
from store_cases import HAS_WAL, Places, printed_by_a_reader, published, small_model, stream

import bayesmlp as bm
from bayesmlp import errors
from bayesmlp.keeping import Retention, SnapshotPolicy
from bayesmlp.scaling import Scaling
from bayesmlp.stepper import Stepper
from bayesmlp.store.arrays import ALIGNMENT, decode, encode
from bayesmlp.store.blobs import Blobs
from bayesmlp.store.digest import posterior_digest, posterior_digest_of_format_1
from bayesmlp.store.places import ABANDONED_AFTER, Folder, ObjectStore
from bayesmlp.store.snapshots import thinned
from bayesmlp.updating.committing import Told

GOLDEN = Path(__file__).parent / "golden"


def wide_model(structure: object = None) -> bm.BayesianMLP:
    """A model whose covariance is a large array."""
    model = bm.BayesianMLP(
        bm.MLP((64,)),
        bm.Categorical(3),
        structure=structure or bm.LastLayer(),
        engine="numpy",
        dtype="float64",
        standardize=False,
    )
    model.start_from_prior(300)
    return model


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"), key=lambda file: file.stat().st_mtime_ns)


# -- arrays ---------------------------------------------------------------------------------------------------------
def test_arrays_are_safetensors_whose_data_is_aligned() -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "weights.0": rng.standard_normal((5, 3)),
        "b": np.array(2.5),
        "c": np.arange(7, dtype=np.int8),
        "empty": np.zeros((0, 3), dtype=np.float32),
        "d": rng.standard_normal((3, 4)).astype(np.float32).T,
    }
    data = b"".join(encode(arrays))
    assert (8 + int.from_bytes(data[:8], "little")) % ALIGNMENT == 0
    theirs = save_safetensors({name: array.copy() for name, array in arrays.items()})
    for read in (decode(data), load_safetensors(data), decode(theirs)):
        assert read.keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(read[name], array)
            assert read[name].dtype == array.dtype


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 7,
        b"\xff" * 64,
        (5).to_bytes(8, "little") + b"[1,2]",
        (2).to_bytes(8, "little") + b"{}"[:1],
        (3).to_bytes(8, "little") + b'{"a',
        (len(header := b'{"a":{"dtype":"F64","shape":[9],"data_offsets":[0,8]}}')).to_bytes(8, "little") + header,
        (len(header := b'{"a":{"dtype":"X","shape":[1],"data_offsets":[0,8]}}')).to_bytes(8, "little") + header,
    ],
)
def test_what_is_no_safetensors_file_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(errors.CorruptStore):
        decode(data)


# -- snapshots ------------------------------------------------------------------------------------------------------
@given(st.sets(st.integers(1, 3000), min_size=1, max_size=80), st.integers(0, 500))
@settings(max_examples=200, deadline=None)
def test_thinned_snapshots_are_spaced_geometrically(offsets: set[int], newer: int) -> None:
    head = max(offsets) + newer
    kept = sorted(offsets - set(thinned(offsets, head)), reverse=True)
    assert {max(offsets), min(offsets)} <= set(kept)
    for offset in offsets:  # from anywhere, the fold begins at most twice as far back as it might have
        before = max(o for o in kept if o <= offset)
        assert head - before + 1 <= 2 * (head - offset + 1) or before == max(o for o in offsets if o <= offset)


def test_old_snapshots_are_thinned_and_the_log_stays(places: Places) -> None:
    x, y = stream(200)
    with places.published() as store, bm.OnlineUpdater(store, "m", engine="numpy", snapshot_every=5) as updater:
        for start in range(0, 200, 5):
            updater.observe_many(x[start : start + 5], y[start : start + 5])
        live = updater.digest()
        with store.read() as connection:
            kept = store.snapshots.chains(connection, 1)
        assert len(kept) < 14
        assert 1 in kept
    with places.sql() as connection:
        for table in ("parts", "snapshots"):
            connection.exec_driver_sql(f'DELETE FROM {table} WHERE "offset" > 1')
    with bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        assert updater.digest() == live


def test_arrays_that_did_not_change_are_stored_once(tmp_path: Path) -> None:
    """The hidden layer of a last-layer model is a point: every snapshot shares it."""
    model = wide_model(bm.LastLayer(hidden=bm.Point()))
    rng = np.random.default_rng(0)
    with bm.open_store(tmp_path / "s.db") as store:
        store.publish("m", model)
        with bm.OnlineUpdater(store, "m", engine="numpy") as updater:
            for _ in range(3):
                updater.observe(rng.standard_normal(300), 1)
                updater.snapshot()
            digest = updater.digest()
        with store.read() as connection:
            kept = store.snapshots.chains(connection, 1)
            used = [store.snapshots.blobs_of(connection, 1, offset) for offset in kept]
        assert len(kept) > 2
        assert len({blobs[0] for blobs in used}) == len(kept)  # the small arrays
        assert len({blobs[1] for blobs in used}) == 1  # the hidden layer
        assert len(files_of(tmp_path / "s.db.blobs")) == 1 + len(kept)  # and a precision for each
        loaded = bm.load(store, "m", engine="numpy")
        assert posterior_digest(loaded.spec(), loaded.to_arrays()) == digest


def test_a_snapshot_is_taken_by_time_and_by_what_replay_would_cost(tmp_path: Path) -> None:
    x, y = stream(2)
    with published(tmp_path) as store:
        for policy in (SnapshotPolicy(10**6, seconds=1e-9), SnapshotPolicy(10**6, replay_seconds=1e-9)):
            with bm.OnlineUpdater(store, "m", engine="numpy", snapshot_every=policy) as updater:
                version = updater.observe(x[0], y[0]).version
                with store.read() as connection:
                    assert version in store.snapshots.chains(connection, 1)
    with pytest.raises(errors.InvalidInput, match="seconds must be positive"):
        SnapshotPolicy(seconds=0).check()


def test_what_no_snapshot_names_is_collected(tmp_path: Path) -> None:
    with bm.open_store(tmp_path / "s.db") as store:
        store.publish("m", wide_model())
        blobs, files = store.snapshots.blobs, set(files_of(tmp_path / "s.db.blobs"))
        with store.engine.begin() as connection:
            blobs.insert(connection, *blobs.write([b"x" * 200_000])[0])
        assert len(files_of(tmp_path / "s.db.blobs")) == len(files) + 1
        assert store.collect_garbage() == 1
        assert set(files_of(tmp_path / "s.db.blobs")) == files
        assert store.verify() == []


def test_bytes_go_after_the_commit_that_forgets_them(tmp_path: Path) -> None:
    with bm.open_store(tmp_path / "s.db") as store:
        store.publish("m", wide_model())
        files = set(files_of(tmp_path / "s.db.blobs"))
        with store.write("m") as writer:
            cut = contextlib.suppress(KeyboardInterrupt)
            with cut, writer.transaction() as connection:
                store.snapshots.delete(connection, writer.model_id, [1])
                raise KeyboardInterrupt
            assert set(files_of(tmp_path / "s.db.blobs")) == files, "a snapshot that stayed lost its bytes"
            assert store.verify() == []
            with writer.transaction() as connection:
                store.snapshots.delete(connection, writer.model_id, [1])
            assert not files_of(tmp_path / "s.db.blobs")


def test_what_a_crash_left_over_is_collected(tmp_path: Path) -> None:
    with bm.open_store(tmp_path / "s.db") as store:
        store.publish("m", wide_model())
        files = set(files_of(tmp_path / "s.db.blobs"))
        store.snapshots.blobs.write([b"x" * 200_000])  # its row was never written
        assert len(files_of(tmp_path / "s.db.blobs")) == len(files) + 1
        assert store.collect_garbage() == 1
        assert set(files_of(tmp_path / "s.db.blobs")) == files


def test_what_interrupted_writes_left_over_is_removed_once_no_writer_can_be_at_it(tmp_path: Path) -> None:
    with bm.open_store(tmp_path / "s.db") as store:
        store.publish("m", wide_model())
        left = [tmp_path / "s.db.blobs" / f"1-2-{i}.tmp" for i in range(3)]
        now = time.time()
        for file, age in zip(left, (ABANDONED_AFTER + 60, ABANDONED_AFTER - 60, -60), strict=True):
            file.write_bytes(b"half of it")
            os.utime(file, (now - age, now - age))
        assert store.collect_garbage() == 1
        assert [file.exists() for file in left] == [False, True, True]
        assert store.verify() == []


def test_of_several_files_none_is_left_behind_where_one_can_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, flush = Folder(tmp_path / "blobs"), os.fsync
    place.put([b"before"])
    calls = iter(range(100))

    def full(handle: int) -> None:
        if next(calls) == 1:
            raise OSError("disk full")
        flush(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        place.put([b"one"], [b"two"], [b"three"])
    assert len(place.names()) == 1
    assert [file.suffix for file in place.path.rglob("*") if file.is_file()] == [".safetensors"]


# -- places of large arrays -----------------------------------------------------------------------------------------
def test_objects_are_created_once_and_read_back(tmp_path: Path) -> None:
    obstore = pytest.importorskip("obstore.store", reason="pip install 'bayesmlp[objects]' to enable")
    for place in (ObjectStore(obstore.MemoryStore()), Folder(tmp_path / "blobs")):
        assert len(place.put([b"abc"], [b"abc"], [b""])) == 3
        for name in place.names():
            place.delete(name)
        [name] = place.put([b"abc", b"def"])
        assert place.put([b"abcdef"]) == [name]
        assert bytes(place.get(name)) == b"abcdef"
        assert place.has(name)
        place.delete(name)
        place.delete(name)
        assert not place.has(name)
        with pytest.raises(OSError, match=name):
            place.get(name)


def test_large_arrays_go_where_the_url_says(places: Places, tmp_path: Path) -> None:
    with places.open(blobs=f"file://{tmp_path}/else where") as store:
        store.publish("m", wide_model())
        assert files_of(tmp_path / "else where")
        assert not list(tmp_path.glob("*.blobs"))
        digest = posterior_digest(wide_model().spec(), wide_model().to_arrays())
        loaded = bm.load(store, "m", engine="numpy")
        assert posterior_digest(loaded.spec(), loaded.to_arrays()) == digest
    for bad in ("folder", "nonsense://x"):
        with pytest.raises(errors.InvalidInput, match="blobs must be a URL"):
            places.open(blobs=bad)


def test_without_a_place_everything_is_in_the_database(places: Places) -> None:
    with places.open() as store:
        store.snapshots.blobs = Blobs(None)
        store.publish("m", wide_model())
        assert bm.load(store, "m", engine="numpy").num_inputs == 300
        assert store.verify() == []


# -- verify, repair, export -----------------------------------------------------------------------------------------
def test_every_damage_is_found(places: Places) -> None:
    x, y = stream(6)
    with places.published() as store:
        with bm.OnlineUpdater(store, "m", engine="numpy") as updater:
            updater.observe_many(x, y, event_ids=[f"e{i}" for i in range(6)])
        assert store.verify() == store.verify("m") == []
    for statement in (
        "UPDATE records SET body = replace(body, '0.', '1.') WHERE \"offset\" = 3",
        "UPDATE records SET event_id = 'other' WHERE \"offset\" = 3",
        "UPDATE records SET kind = 'batch' WHERE \"offset\" = 3",
        'DELETE FROM records WHERE "offset" = 3',
    ):
        with places.sql() as connection:
            connection.exec_driver_sql(statement)
        with places.open() as store:
            assert [problem.version for problem in store.verify("m") if problem.lost] == [3], statement


@pytest.mark.skipif(HAS_WAL, reason="SQLite opens a database with a write-ahead log only where it may write")
@pytest.mark.parametrize("answered", [False, True])
def test_a_store_that_can_only_be_read_is_verified(tmp_path: Path, answered: bool) -> None:
    (tmp_path / "folder").mkdir()
    x, y = stream(3)
    with published(tmp_path / "folder") as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        updater.observe_many(x, y)
        if answered:
            updater.predict(x)
    code = (
        f"import bayesmlp as bm; store = bm.open_store({str(tmp_path / 'folder' / 'store.db')!r})\n"
        "print(store.verify(), store.verify('m'))"
    )
    assert printed_by_a_reader(tmp_path / "folder", code) == "[] []"
    assert (tmp_path / "folder" / "store.db.answers").exists() == answered


def test_a_damaged_body_is_never_learned(places: Places) -> None:
    x, y = stream(6)
    with places.published() as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        updater.observe_many(x, y)
    with places.sql() as connection:
        connection.exec_driver_sql('DELETE FROM parts WHERE "offset" > 1')
        connection.exec_driver_sql("UPDATE records SET body = replace(body, '0.', '1.') WHERE \"offset\" = 3")
    with pytest.raises(errors.CorruptStore, match="version 3 of model 'm' does not have its checksum"):
        bm.load(store, "m", engine="numpy")


def test_repair_makes_a_damaged_snapshot_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with bm.open_store(tmp_path / "s.db") as store:
        store.publish("m", wide_model(bm.Diagonal()))
        with bm.OnlineUpdater(store, "m", engine="numpy") as updater:
            updater.observe_many(rng.standard_normal((3, 300)), [0, 1, 2])
            live = updater.digest()
        newest = files_of(tmp_path / "s.db.blobs")[-1]
        damaged = bytearray(newest.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        newest.write_bytes(damaged)
        assert {problem.lost for problem in store.verify()} == {False}
        assert store.repair("m", engine="numpy") == 1
        assert store.repair("m", engine="numpy") == 0
        assert store.verify() == []
        loaded = bm.load(store, "m", engine="numpy")
        assert posterior_digest(loaded.spec(), loaded.to_arrays()) == live
        for file in files_of(tmp_path / "s.db.blobs"):
            file.write_bytes(b"")
        with pytest.raises(errors.CorruptStore, match="no sound snapshot"):
            store.repair("m")


def test_a_model_moves_as_one_file(places: Places, tmp_path: Path) -> None:
    x, y = stream(12)
    file = tmp_path / "m.bayesmlp"
    with places.published() as store:
        store.publish("wide", wide_model())
        with bm.OnlineUpdater(store, "m", engine="numpy", snapshot_every=5) as updater:
            updater.observe_many(x, y, event_ids=[f"e{i}" for i in range(12)])
            updater.retract(["e3"])
        history = store.history("m")
        store.export("m", file)
        with pytest.raises(errors.InvalidInput, match="must be a new file"):
            store.export("m", file)
        store.export("wide", tmp_path / "wide")
    assert sorted(path.name for path in tmp_path.iterdir() if "m.bayes" in path.name) == ["m.bayesmlp"]
    whole = bm.load(file, "m", engine="numpy")
    with places.open("other") as other:
        assert other.import_(file, name="copy") == "copy"
        assert other.import_(tmp_path / "wide") == "wide"
        assert other.history("copy") == history
        assert other.verify() == []
        copy = bm.load(other, "copy", engine="numpy")
        assert posterior_digest(copy.spec(), copy.to_arrays()) == posterior_digest(whole.spec(), whole.to_arrays())
        with bm.OnlineUpdater(other, "copy", engine="numpy") as updater:
            assert updater.observe(x[0], y[0], event_id="e0").repeated
            updater.retract(["e5"])
        with pytest.raises(errors.InvalidInput, match="has a model of that name"):
            other.import_(file, name="copy")


def test_a_damaged_file_is_not_taken_in(tmp_path: Path) -> None:
    x, y = stream(3)
    with published(tmp_path) as store:
        with bm.OnlineUpdater(store, "m", engine="numpy") as updater:
            updater.observe_many(x, y)
        store.export("m", tmp_path / "file")
        with sqlite3.connect(tmp_path / "file") as connection:
            connection.execute("UPDATE records SET body = replace(body, '0.', '1.') WHERE offset = 2")
        with pytest.raises(errors.CorruptStore, match="model 'm' is not sound: version 2"):
            store.import_(tmp_path / "file", name="new")
        assert store.names() == ["m"]


def test_of_an_import_that_fails_nothing_remains(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    with places.published() as store:
        store.export("m", file)
        with monkeypatch.context() as patched:
            patched.setattr(Blobs, "insert", lambda *_: (_ for _ in ()).throw(errors.StoreUnavailable("disk full")))
            with pytest.raises(errors.StoreUnavailable, match="disk full"):
                store.import_(file, name="new")
        with pytest.raises(errors.InvalidInput, match="name must be"):
            store.import_(file, name="\n")
        assert store.names() == ["m"]
        store.add_name("new")  # as a publishing that failed leaves it
        assert store.import_(file, name="new") == "new"
        assert store.history("new") == store.history("m")
        assert store.verify() == []


@pytest.mark.parametrize("folder", sorted(GOLDEN.glob("format-*")), ids=lambda folder: folder.name)
def test_every_released_format_is_read_and_goes_on(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    expected = json.loads((folder / "expected.json").read_text())
    x, y = stream(30)
    with bm.open_store(tmp_path / "copy" / "store.db") as store:
        assert store.verify() == []
        for name, model in expected.items():
            loaded = bm.load(store, name, engine="numpy")
            digest = posterior_digest_of_format_1 if folder.name == "format-1" else posterior_digest
            assert digest(loaded.spec(), loaded.to_arrays()) == model["digest"]
            np.testing.assert_allclose(loaded.predict(x[25:]).probabilities, model["probabilities"], rtol=1e-4)
            assert [[entry.kind, entry.status] for entry in store.history(name)] == model["history"]
            with bm.OnlineUpdater(store, name, engine="numpy") as updater:
                assert updater.observe(x[25], y[25], event_id="last", weight=2.0).repeated
                assert updater.observe(x[26], y[26]).status == "applied"
                updater.retract(["last"])
        assert store.verify() == []


# -- erasing --------------------------------------------------------------------------------------------------------
def test_purge_leaves_no_trace_of_what_was_said(places: Places) -> None:
    x, y = stream(30)
    secret = 0.123456789
    with places.published() as store, bm.OnlineUpdater(store, "m", engine="numpy", snapshot_every=4) as updater:
        updater.observe_many(x[:10], y[:10], event_ids=[f"e{i}" for i in range(10)])
        before = updater.digest()
        answer = updater.predict(np.full(4, secret))
        updater.feedback(str(answer.prediction_id), 1, source="s")
        updater.observe(np.full(4, secret), 2, event_id="x", source="s")
        updater.observe_many(x[10:20], y[10:20])
        purge = updater.purge(source="s")
        assert (purge.events, purge.snapshots > 0) == (2, True)
        with pytest.raises(errors.UnknownPrediction):
            updater.feedback(str(answer.prediction_id), 1)
        assert updater.observe(np.full(4, secret), 2, event_id="x").status == "retracted"
        notes = [entry.note for entry in updater.history() if entry.source == "s"]
        assert notes == ["payload erased"] * 2
        purged = updater.digest()
        assert store.verify() == []
    with places.published(name="other") as fresh, bm.OnlineUpdater(fresh, "m", engine="numpy") as updater:
        updater.observe_many(x[:10], y[:10])
        assert updater.digest() == before
        updater.observe_many(x[10:20], y[10:20])
        assert updater.digest() == purged
    store.close()
    if places.server is None:
        for file in places.folder.glob("store.db*"):
            if file.is_file():
                assert str(secret).encode() not in file.read_bytes(), file


def test_payloads_past_their_time_are_erased_and_what_they_taught_stays(places: Places) -> None:
    x, y = stream(40)
    with (
        places.published() as store,
        bm.OnlineUpdater(store, "m", engine="numpy", snapshot_every=10, retention=Retention(events=12)) as updater,
    ):
        ids = [f"e{i}" for i in range(40)]
        for start in range(0, 40, 10):
            updater.observe_many(x[start : start + 10], y[start : start + 10], event_ids=ids[start : start + 10])
        digest = updater.digest()
        assert [entry.note for entry in updater.history()[1:]].count("payload erased") == 28
        with pytest.raises(errors.Purged, match="the payload of version 2 was erased"):
            updater.retract(["e1"])
        assert updater.digest() == digest
        updater.retract(["e35"])
    with places.published(name="other") as fresh, bm.OnlineUpdater(fresh, "m", engine="numpy") as updater:
        updater.observe_many(np.delete(x, 35, axis=0), np.delete(y, 35))
        without = updater.digest()
    with bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        assert updater.digest() == without
    with pytest.raises(errors.InvalidInput, match=r"Retention\.seconds must be positive"):
        bm.OnlineUpdater(store, "m", engine="numpy", retention=Retention(seconds=-1.0))


def erased_ids(store: bm.PosteriorStore) -> list[str]:
    return [str(entry.event_id) for entry in store.history("m") if entry.note == "payload erased"]


def test_retention_erases_what_is_or_was_in_quarantine(places: Places) -> None:
    x, y = stream(12)
    options: Any = {"engine": "numpy", "snapshot_every": 1, "admission": bm.Admission(quarantine_above=1e-9)}
    with places.published() as store:
        with bm.OnlineUpdater(store, "m", engine="numpy") as updater:
            updater.observe_many(x[:6], y[:6])
        with bm.OnlineUpdater(store, "m", **options) as updater:
            classes = updater.predict(x[6:]).probabilities.argmin(axis=1)  # the least expected
            updater.observe_many(x[6:9], classes[:3], event_ids=["kept", "released", "refused"], source="s")
            assert len(updater.quarantined()) == 3
            updater.release(["released"])
        with bm.OnlineUpdater(store, "m", retention=Retention(events=1), **options) as updater:
            updater.observe(x[0], updater.predict(x[0]).probabilities.argmax(), event_id="expected")
            assert erased_ids(store)[-3:] == ["kept", "released", "refused"]
            assert updater.quarantined() == []
            digest = updater.digest()
            with pytest.raises(
                errors.Purged, match="event 'kept' of model 'm' can't be released: its payload was erased"
            ):
                updater.release(["kept"])
            with pytest.raises(errors.Purged, match="can't be folded again"):
                updater.retract(["released"])
            updater.retract(["refused"])
            assert updater.digest() == digest
            updater.retract(["expected"])
            without = updater.digest()
        with bm.OnlineUpdater(store, "m", **options) as updater:
            assert updater.digest() == without
        assert store.verify() == []


def test_the_payload_of_an_event_from_before_the_clock_was_put_back_is_erased(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = stream(3)
    now, shift = time.time, 1000.0
    monkeypatch.setattr(time, "time", lambda: now() + shift)
    options: Any = {"engine": "numpy", "snapshot_every": 1, "retention": Retention(seconds=50.0)}
    with published(tmp_path) as store, bm.OnlineUpdater(store, "m", **options) as updater:
        updater.observe(x[0], y[0], event_id="ahead")
        shift = 0.0
        updater.observe(x[1], y[1], event_id="back")
        shift = 100.0
        updater.observe(x[2], y[2], event_id="later")
        assert erased_ids(store) == ["back"]
        shift = 1100.0
        updater.observe(x[2], y[2], event_id="last")
        assert erased_ids(store) == ["ahead", "back", "later"]


def test_a_source_whose_events_were_erased_is_heard_again(tmp_path: Path) -> None:
    x, y = stream(6)
    options: Any = {"engine": "numpy", "snapshot_every": 1, "admission": bm.Admission(source_cap=2.0)}
    with published(tmp_path) as store:
        with bm.OnlineUpdater(store, "m", retention=Retention(events=1), **options) as updater:
            updater.observe_many(x[:5], y[:5], source="s")
        with bm.OnlineUpdater(store, "m", **options) as updater:
            assert updater.observe(x[5], y[5], source="s").status == "applied"


# -- while a retraction folds ---------------------------------------------------------------------------------------
def test_readers_and_new_events_go_on_during_a_retraction(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = stream(30)
    folding, may_go_on = threading.Event(), threading.Event()
    apply = Stepper.apply

    with places.published() as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        updater.observe_many(x[:20], y[:20], event_ids=[f"e{i}" for i in range(20)])
        live = updater._line.stepper

        def slow(stepper: Stepper, observation: object) -> object:
            if stepper is not live:
                folding.set()
                assert may_go_on.wait(30)
            return apply(stepper, observation)  # type: ignore[arg-type]

        monkeypatch.setattr(Stepper, "apply", slow)
        estimate = updater.retract(["e2"], estimate=True)
        assert (estimate.events, estimate.replayed, estimate.version) == (1, 19, 21)
        assert estimate.seconds > 0
        before = updater.model.predict(x[:1]).probabilities
        done: list[object] = []
        retracting = threading.Thread(target=lambda: done.append(updater.retract(["e2"])))
        retracting.start()
        assert folding.wait(30)
        answer = updater.predict(x[0])
        assert answer.stale
        np.testing.assert_array_equal(answer.probabilities, before)
        assert [updater.observe(x[i], y[i], wait="durable").status for i in range(20, 25)] == ["pending"] * 5
        waiting = threading.Thread(target=lambda: done.append(updater.observe(x[25], y[25])))
        waiting.start()
        time.sleep(0.2)
        assert done == []
        may_go_on.set()
        retracting.join()
        waiting.join()
        assert not updater.predict(x[0]).stale
        digest = updater.digest()
        assert {entry.status for entry in updater.history()[20:] if entry.kind == "event"} == {"applied"}
    rows = [i for i in range(26) if i != 2]
    with places.published(name="other") as fresh, bm.OnlineUpdater(fresh, "m", engine="numpy") as updater:
        updater.observe_many(x[rows], y[rows])
        assert updater.digest() == digest
    with bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        assert updater.digest() == digest


def a_model(activation: str = "tanh", inputs: int = 4, unit: float = 1.0) -> bm.BayesianMLP:
    """Of classes; with inputs in units of their own."""
    model = bm.BayesianMLP(bm.MLP((5,), activation), bm.Categorical(3), engine="numpy", standardize=False)
    plain = Scaling.identity(inputs, 3)
    model.start_from_prior(inputs, plain._replace(input_scale=plain.input_scale * unit))
    return model


@pytest.mark.parametrize("other", [{"activation": "relu"}, {"unit": 3.0}, {"inputs": 5}], ids=str)
def test_an_updater_goes_back_to_a_model_of_another_kind(places: Places, other: dict[str, Any]) -> None:
    x, y = stream(10)
    with places.open() as store:
        store.publish("m", a_model())
        with bm.OnlineUpdater(store, "m", engine="numpy") as updater:
            updater.observe_many(x[:5], y[:5])
            version, before = updater.version, updater.digest()
        store.publish("m", a_model(**other))
        with bm.OnlineUpdater(store, "m", engine="numpy") as updater:
            updater.rollback(version)
            assert updater.digest() == before
            updater.observe_many(x[5:], y[5:])
            live, answer = updater.digest(), updater.predict(x).probabilities
        loaded = bm.load(store, "m", engine="numpy")
        assert posterior_digest(loaded.spec(), loaded.to_arrays()) == live
        np.testing.assert_array_equal(loaded.predict(x).probabilities, answer)
        assert store.verify() == []


def test_what_is_sent_to_a_model_that_goes_back_to_another_kind_is_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = stream(3)
    with bm.open_store(tmp_path / "s.db") as store:
        for inputs in (5, 4):
            store.publish("m", a_model(inputs=inputs))
        with bm.OnlineUpdater(store, "m", engine="numpy") as updater:
            checked = updater._group("event", [Told(x[0], y[0])], None, "durable")
            fold = updater._fold_again

            def meanwhile(**options: bool) -> int:
                with pytest.raises(errors.StoreError, match="back to one of another kind meanwhile: send it again"):
                    updater.observe(x[1], y[1], wait="durable")
                return fold(**options)

            monkeypatch.setattr(updater, "_fold_again", meanwhile)
            assert updater.rollback(1) == 3
            with pytest.raises(errors.StoreError, match="send it again"):
                updater._commits.submit(checked)
            assert updater.observe(np.zeros(5), y[2]).status == "applied"
        assert [entry.kind for entry in store.history("m")] == ["publish", "publish", "rollback", "event"]
        assert bm.load(store, "m", engine="numpy").num_inputs == 5


def test_a_rollback_to_where_the_updater_can_not_go_on_is_not_stored(tmp_path: Path) -> None:
    x, y = stream(2)
    with bm.open_store(tmp_path / "s.db") as store:
        store.publish("m", a_model(inputs=5))
        store.publish("m", a_model())
        with bm.OnlineUpdater(store, "m", engine="numpy", probe=x) as updater:
            with pytest.raises(errors.InvalidInput, match="probe must have shape"):
                updater.rollback(1)
            assert updater.observe(x[0], y[0]).status == "applied"
        assert [entry.kind for entry in store.history("m")] == ["publish", "publish", "event"]


def test_a_fold_that_fails_stops_the_updater(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = stream(5)
    with published(tmp_path) as store:
        updater = bm.OnlineUpdater(store, "m", engine="numpy")
        updater.observe_many(x, y, event_ids=list("abcde"))
        with monkeypatch.context() as patched:
            patched.setattr(Stepper, "reset", lambda *_: (_ for _ in ()).throw(MemoryError()))
            with pytest.raises(MemoryError):
                updater.retract(["a"])
        with pytest.raises(errors.StoreError, match="open a new one"):
            updater.observe(x[0], y[0])
        updater.close()
        with bm.OnlineUpdater(store, "m", engine="numpy") as again:
            assert [entry.status for entry in again.history()[1:6]] == ["retracted", *["applied"] * 4]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        *((lambda s, u, v=v: bm.replay_with(s, "m", version=v), "version must be") for v in (1.5, "x", [1], True, 0)),
        *((lambda s, u, v=v: s.branch("m", "b", version=v), "version must be") for v in (1.5, "x", [1])),
        *((lambda s, u, n=n: s.verify(n), "name must be a string") for n in ([1], "\ud800")),
        *((lambda s, u, n=n: s.history(n), "name must be a string") for n in ([1], "\ud800")),
        *((lambda s, u, n=n: s.rollback(n, 1), "name must be a string") for n in ([1], "\ud800")),
        *((lambda s, u, n=n: bm.load(s, n), "name must be a string") for n in ([1], "\ud800")),
        *((lambda s, u, v=v: u.retract(source=v), "source must be a string") for v in (["a"], "\ud800")),
        *((lambda s, u, t=t: u.retract(since=t), "since must be a time") for t in (10**400, "x", float("nan"), True)),
        (lambda s, u: u.purge(source=["a"]), "source must be a string"),
        *((lambda s, u, n=n: s.branch("m", n), "name must be") for n in (5, None, [5])),
        *((lambda s, u, n=n: s.export("m", n), "path must be that of a file") for n in (5, None)),
        *((lambda s, u, n=n: s.import_(n), "path must be that of a file") for n in (5, None)),
    ],
)
def test_arguments_that_name_nothing_are_refused_by_name(tmp_path: Path, call: Any, says: str) -> None:
    with published(tmp_path) as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        with pytest.raises(errors.InvalidInput, match=says):
            call(store, updater)
        assert [entry.kind for entry in store.history("m")] == ["publish"]


@pytest.mark.parametrize("branches", [None, 5, [5], [None], "b"])
def test_branches_and_versions_to_unmerge_are_checked(tmp_path: Path, branches: Any) -> None:
    with published(tmp_path) as store:
        with pytest.raises(errors.InvalidInput, match="branches must be a list of names"):
            store.merge("m", branches)
        with pytest.raises(errors.InvalidInput, match="version must be of a merge"):
            store.unmerge("m", branches)


def test_who_appended_is_in_the_history(places: Places) -> None:
    x, y = stream(2)
    with places.open(actor="ada") as store:
        store.publish("m", small_model())
        with bm.OnlineUpdater(store, "m", engine="numpy") as updater:
            updater.observe(x[0], y[0], source="a form")
    with places.open(actor="bob") as store:
        store.rollback("m", 1)
        entries = store.history("m")
    assert [(entry.kind, entry.actor, entry.source) for entry in entries] == [
        ("publish", "ada", None),
        ("event", "ada", "a form"),
        ("rollback", "bob", None),
    ]
    assert all(abs(entry.received - time.time()) < 60 for entry in entries)
    with pytest.raises(errors.InvalidInput, match="actor must be a string"):
        places.open(actor="")
