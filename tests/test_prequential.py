"""What every event did: prequential scores, calibration, drift and the change of a probe set, from the store alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import create_engine
from store_cases import published, stream

import bayesmlp as bm
from bayesmlp.metrics import expected_calibration_error
from bayesmlp.plots import prequential_figure
from bayesmlp.prequential import PER_EVENT


def record(surprise: Any, **columns: Any) -> bm.Prequential:
    """A stream with the given columns."""
    surprise = np.asarray(surprise, dtype=np.float64)
    empty = {name: np.full(len(surprise), np.nan) for name in PER_EVENT} | {"num_rows": np.ones(len(surprise))}
    return bm.Prequential(**(empty | {"version": np.arange(len(surprise)), "surprise": surprise} | columns))


def test_windows_are_means_with_their_standard_errors_and_differences_in_them() -> None:
    surprise = np.random.default_rng(0).standard_normal(300)
    surprise[200:] += 2
    first, second, third = record(surprise).windows(100)
    assert [w.events for w in (first, second, third)] == [100, 200, 300]
    assert second.log_score == pytest.approx(-surprise[100:200].mean())
    assert second.error == pytest.approx(surprise[100:200].std(ddof=1) / 10)
    assert third.cumulative == pytest.approx(-surprise.mean())
    assert third.drift == pytest.approx((third.log_score - second.log_score) / np.hypot(third.error, second.error))
    assert third.drift < -10
    assert np.isnan(first.drift)


def test_a_batch_counts_for_its_rows() -> None:
    """A window is scored as if its events were single rows: the mean of 100 singles and 5 batches of 20 likewise."""
    surprise = np.random.default_rng(1).standard_normal(200)
    batches = np.concatenate([surprise[:100], surprise[100:].reshape(5, 20).sum(axis=1)])
    done = record(batches, information=batches, num_rows=np.concatenate([np.ones(100), np.full(5, 20)]))
    assert done.log_score == pytest.approx(-surprise.mean())
    (window,) = done.windows(105)
    assert (window.log_score, window.cumulative) == (pytest.approx(-surprise.mean()),) * 2
    assert window.information == pytest.approx(surprise.mean())
    assert window.error == pytest.approx(surprise.std(ddof=1) / np.sqrt(200), rel=0.2)
    even = record(surprise.reshape(50, 4).sum(axis=1), num_rows=np.full(50, 4.0)).windows(50)[0]
    assert even.error == pytest.approx(surprise.reshape(50, 4).mean(axis=1).std(ddof=1) / np.sqrt(50))


def test_rows_that_count_are_read_from_the_log(tmp_path: Path) -> None:
    x, y = stream(12)
    store = published(tmp_path)
    admission = bm.Admission(quarantine_above=1e-6)
    with bm.OnlineUpdater(store, "m", engine="numpy", retention=bm.Retention(events=3)) as updater:
        updater.observe_batch(x[:3], y[:3], event_id="erased")
        updater.observe(x[3], y[3])
        updater.observe_batch(x[4:8], y[4:8], weight=[1, 0, 2, 0.5])
        updater.observe(x[8], y[8], weight=0.0)
        updater.observe(x[9], y[9], weight=0.5)
        seen = updater.prequential()
    np.testing.assert_array_equal(seen.num_rows, [3, 1, 3, 0, 1])
    assert seen.log_score == pytest.approx(-seen.surprise.sum() / 8)
    np.testing.assert_array_equal(store.prequential("m").num_rows, [np.nan, 1, 3, 0, 1])
    assert store.prequential("m").log_score == pytest.approx(-seen.surprise[1:].sum() / 5)
    with bm.OnlineUpdater(store, "m", engine="numpy", admission=admission) as updater:
        unlikely = np.argmin(updater.model.predict(x[10:12]).probabilities, axis=1)
        assert updater.observe_batch(x[10:12], unlikely, event_id="odd").status == "quarantined"
        updater.release(["odd"])
        assert updater.prequential().num_rows[-1] == 2


@pytest.mark.parametrize("count", [0, 1, 2, 99, 149, 150, 151, 1000])
def test_windows_cover_the_stream_once(count: int) -> None:
    windows = record(np.zeros(count)).windows(100)
    ends = [0, *(window.events for window in windows)]
    assert ends == sorted(set(ends))
    assert ends[-1] == (count if count >= 2 else 0)
    if count >= 100:
        assert min(b - a for a, b in zip(ends[:-1], ends[1:], strict=True)) >= 50


def test_coverage_of_uniform_transforms() -> None:
    pit = (np.arange(1000) + 0.5) / 1000
    assert record(np.zeros(1000), pit=pit).coverage == pytest.approx(0.9)
    assert record(np.zeros(1000), pit=0.5 + 0.05 * pit).coverage == 1.0


def test_classes_are_scored_as_they_were_predicted(tmp_path: Path) -> None:
    x, y = stream(40)
    store = published(tmp_path)
    probe = stream(8, seed=9)[0]
    model = bm.load(store, "m", engine="numpy")
    probabilities, changes, scores = [], [], []
    for a, b in zip(x, y, strict=True):
        probabilities.append(model.predict(a[None]).probabilities[0])
        before = model.predict(probe).probabilities
        scores.append(model.update(a[None], [b]).log_predictive)
        changes.append(np.abs(model.predict(probe).probabilities - before).max())
    with bm.OnlineUpdater(store, "m", engine="numpy", probe=probe, calibration=True) as updater:
        receipts = [updater.observe(a, b) for a, b in zip(x, y, strict=True)]
        live = updater.prequential()
    assert receipts[3].change == pytest.approx(changes[3], rel=1e-4)
    assert receipts[3].seconds is not None
    assert receipts[3].seconds > 0
    kept = store.prequential("m")  # as a process that opens the store later sees it
    for name in PER_EVENT:
        np.testing.assert_array_equal(getattr(kept, name), getattr(live, name))
    shares = np.array(probabilities)
    np.testing.assert_allclose(kept.surprise, -np.array(scores), rtol=1e-5)
    np.testing.assert_allclose(kept.change, changes, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(kept.confidence, shares.max(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(kept.hit, shares.argmax(axis=1) == y)
    assert kept.calibration_error == pytest.approx(expected_calibration_error(shares, y), rel=1e-4)


def test_numbers_have_their_probability_integral_transform(tmp_path: Path) -> None:
    model = bm.BayesianMLP(bm.MLP(()), bm.Gaussian(noise_variance=0.5), engine="numpy", dtype="float64")
    model.start_from_prior(2)
    answer = model.predict(np.ones((1, 2)))
    with bm.open_store(tmp_path / "s.db") as store:
        store.publish("m", model)
        with bm.OnlineUpdater(store, "m", engine="numpy", calibration=True) as updater:
            updater.observe([1.0, 1.0], float(answer.quantile(0.2)[0]))
            updater.observe_batch(np.ones((2, 2)), [0.1, 0.2])
        np.testing.assert_allclose(store.prequential("m").pit, [0.2, np.nan], rtol=1e-6)


def test_counts_take_the_middle_of_their_step() -> None:
    model = bm.BayesianMLP(bm.MLP(()), bm.Poisson(), engine="numpy", dtype="float64")
    model.start_from_prior(2)
    answer = model.predict(np.array([[0.1, 0.2]]))
    for count in (0, 1, 3):
        shares = [np.exp(answer.log_prob([k])[0]) for k in range(count + 1)]
        expected = sum(shares[:-1]) + 0.5 * shares[-1]
        assert answer.probability_integral_transform([count])[0, 0] == pytest.approx(expected, abs=1e-3)


def test_only_the_line_counts_and_a_crash_loses_nothing_that_was_stored(tmp_path: Path) -> None:
    x, y = stream(12)
    store = published(tmp_path)
    updater = bm.OnlineUpdater(store, "m", engine="numpy", calibration=True)
    updater.observe_many(x, y, event_ids=[f"e{i}" for i in range(12)])
    before = updater.prequential()
    updater._writer.release()  # the process dies: no snapshot was stored
    with bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        again = updater.prequential()
        np.testing.assert_array_equal(again.confidence, before.confidence)
        updater.retract(["e3"])
        assert len(updater.prequential()) == 11
        assert 5 not in updater.prequential().version


def test_a_store_of_before_these_columns_is_opened(tmp_path: Path) -> None:
    published(tmp_path).close()
    engine = create_engine(f"sqlite:///{tmp_path / 'store.db'}")
    with engine.begin() as connection:
        for column in ("seconds", "change", "pit", "confidence", "hit"):
            connection.exec_driver_sql(f"ALTER TABLE effects DROP COLUMN {column}")
    engine.dispose()
    with (
        bm.open_store(tmp_path / "store.db") as store,
        bm.OnlineUpdater(store, "m", engine="numpy", calibration=True) as updater,
    ):
        updater.observe(*(a[0] for a in stream(1)))
        assert np.isfinite(updater.prequential().confidence).all()


@pytest.mark.parametrize("column", ["pit", "hit"])
def test_table_and_picture(column: str) -> None:
    rng = np.random.default_rng(0)
    columns = {"pit": rng.random(300)} if column == "pit" else {"hit": np.ones(300), "confidence": np.full(300, 0.8)}
    done = record(rng.standard_normal(300), **columns)
    headers = [str(header.header) for header in done.table(100).columns]
    assert ("90% coverage" in headers) == (column == "pit")
    assert done.table(100).row_count == 3
    assert len(prequential_figure(done).axes) == 3


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(bm.errors.InvalidInput, match="size must be an integer of at least 2"):
        record(np.zeros(5)).windows(1)
    with pytest.raises(bm.errors.InvalidInput, match="probe"):
        bm.OnlineUpdater(published(tmp_path), "m", engine="numpy", probe=np.ones((2, 9)))
