"""Events are judged as they are scored: by the predictive at their own time, by what counts of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bayesmlp as bm

NOISE = 0.1
WALK = bm.RandomWalk(1e-4, time_unit=1.0)


def opened(folder: Path, dynamics: Any, **options: Any) -> bm.OnlineUpdater:
    """An updater of a linear model of known noise."""
    model = bm.BayesianMLP(
        bm.MLP(()),
        bm.Gaussian(noise_variance=NOISE),
        structure=bm.Full(),
        dynamics=dynamics,
        engine="numpy",
        dtype="float64",
        standardize=False,
    )
    model.start_from_prior(2)
    store = bm.open_store(folder / "store.db")
    store.publish("m", model)
    return bm.OnlineUpdater(store, "m", engine="numpy", **options)


def wandering(rows: int, walk: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of a linear model whose weights take steps of ``walk`` times their prior's variance."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 2))
    steps = np.sqrt(walk * np.array([2.0, 2.0, 1.0])) * rng.standard_normal((rows, 3))
    weights = np.cumsum(steps, axis=0)
    return x, np.sum(weights[:, :2] * x, axis=1) + weights[:, 2] + np.sqrt(NOISE) * rng.standard_normal(rows)


# -- time -------------------------------------------------------------------------------------------------------------
def test_calibration_is_of_the_predictive_that_was_scored(tmp_path: Path) -> None:
    x, y = wandering(400, walk=1.0)
    with opened(tmp_path, bm.RandomWalk(1.0), calibration=True) as updater:
        updater.observe_many(x, y)
        seen = updater.prequential()
    assert 0.86 < seen.coverage < 0.94
    direct = bm.load(tmp_path / "store.db", "m", engine="numpy", version=1)
    for row in range(20):
        one = slice(row, row + 1)
        answer = direct.predict(x[one], elapsed=1.0)
        np.testing.assert_allclose(seen.pit[row], answer.probability_integral_transform(y[one])[0, 0])
        np.testing.assert_allclose(seen.surprise[row], -answer.log_prob(y[one])[0])
        direct.update(x[one], y[one])


def test_calibration_goes_by_time_stamps(tmp_path: Path) -> None:
    x, y = wandering(4, walk=1.0)
    times = (1000.0, 1001.0, None, 1500.0)
    with opened(tmp_path, bm.RandomWalk(1.0, time_unit=1.0), calibration=True) as updater:
        for row, time in enumerate(times):
            updater.observe(x[row], y[row], time=time)
        pit = updater.prequential().pit
    direct = bm.load(tmp_path / "store.db", "m", engine="numpy", version=1)
    for row, elapsed in enumerate((0.0, 1.0, 0.0, 499.0)):
        one = slice(row, row + 1)
        answer = direct.predict(x[one], elapsed=elapsed)
        np.testing.assert_allclose(pit[row], answer.probability_integral_transform(y[one])[0, 0])
        direct.update(x[one], y[one], elapsed=elapsed)


def test_what_is_likely_after_a_long_time_is_not_quarantined(tmp_path: Path) -> None:
    x, y = wandering(60, walk=0.0)
    limit = bm.Admission(quarantine_above=12.5)
    with opened(tmp_path, bm.RandomWalk(1.0, time_unit=1.0), admission=limit) as updater:
        updater.observe_many(x, y, times=1000 + 0.001 * np.arange(60))
        later = updater.predict(x[0], time=2000.0)
        far = float(later.mean[0] + 0.3 * later.std[0])
        assert updater.observe(x[0], far, time=1000.06).status == "quarantined"
        assert updater.observe(x[0], far, time=2000.0).status == "applied"
        digest = updater.digest()
    with bm.open_store(tmp_path / "store.db") as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        assert updater.digest() == digest
        updater.rollback(30)
        updater.rollback(63)
        assert updater.digest() == digest


@pytest.mark.parametrize("dynamics", [bm.RandomWalk(1.0), bm.RandomWalk(1.0, time_unit=1.0)], ids=["events", "time"])
def test_of_several_in_one_call_each_is_judged_at_its_time(tmp_path: Path, dynamics: Any) -> None:
    x, y = np.ones((102, 2)), np.zeros(102)
    with opened(tmp_path, dynamics, admission=bm.Admission(quarantine_above=2.0)) as updater:
        updater.observe_many(x[:50], y[:50], times=np.zeros(50))
        after = [updater.model.predict(x[:1], elapsed=elapsed).std[0] for elapsed in (1.0, 3.0)]
        between = 2 * float(np.mean(after))  # two deviations are two nats: unlikely after one unit, likely after three
        told = [between, 0.0, 0.0, between]
        receipts = updater.observe_many(x[:4], told, times=[1.0, 1.0, 2.0, 3.0])
    assert [receipt.status for receipt in receipts] == ["quarantined", "applied", "applied", "applied"]


# -- several targets --------------------------------------------------------------------------------------------------
def calibrated(folder: Path, likelihood: Any, *events: tuple[list[float], list[bool] | None]) -> bm.Prequential:
    """What is noted of events at one input, each by the prior: nothing is learned in between."""
    model = bm.BayesianMLP(bm.MLP((4,)), likelihood, engine="numpy", dtype="float64", standardize=False)
    model.start_from_prior(2)
    with bm.open_store(folder / "store.db") as store:
        store.publish("m", model)
        for number, (y, mask) in enumerate(events):
            with bm.OnlineUpdater(store, "m", engine="numpy", calibration=True) as updater:
                updater.observe([1.0, -0.5], y, output_mask=mask, event_id=str(number), weight=1e-9)
        return store.prequential("m")


def test_the_one_number_that_was_observed_is_calibrated(tmp_path: Path) -> None:
    y = [0.3, -0.7]
    seen = calibrated(tmp_path, bm.Gaussian(2), (y, None), (y, [True, False]), (y, [False, True]))
    prior = bm.load(tmp_path / "store.db", "m", engine="numpy", version=1).predict([[1.0, -0.5]])
    first, second = prior.probability_integral_transform([y])[0]
    np.testing.assert_allclose(seen.pit, [np.nan, first, second], rtol=1e-6)


def test_of_several_yes_or_no_the_share_that_was_right_counts(tmp_path: Path) -> None:
    mask = [True, False, True]
    seen = calibrated(tmp_path, bm.Bernoulli(3), ([1, 0, 1], None), ([1, 0, 1], mask), ([0, 1, 0], mask))
    share = bm.load(tmp_path / "store.db", "m", engine="numpy", version=1).predict([[1.0, -0.5]]).mean[0]
    right, confidence = (share > 0.5) == np.array([1, 0, 1]), np.maximum(share, 1 - share)
    told = np.array(mask)
    np.testing.assert_allclose(seen.hit, [right.mean(), right[told].mean(), 1 - right[told].mean()])
    np.testing.assert_allclose(seen.confidence, [confidence.mean(), *2 * [confidence[told].mean()]], rtol=1e-6)


def test_an_event_of_weight_0_is_no_part_of_the_calibration(tmp_path: Path) -> None:
    with opened(tmp_path, bm.Static(), calibration=True) as updater:
        updater.observe([1.0, 1.0], 0.3, weight=0.0)
        updater.observe([1.0, 1.0], 0.3, weight=0.5)
        np.testing.assert_array_equal(np.isfinite(updater.prequential().pit), [False, True])


# -- weight 0 ---------------------------------------------------------------------------------------------------------
def test_rows_of_weight_0_are_not_judged(tmp_path: Path) -> None:
    with opened(tmp_path, bm.Static(), admission=bm.Admission(quarantine_above=12.5)) as updater:
        x = np.ones((3, 2))
        assert updater.observe_batch(x, [0.1, -0.2, 1e6], weight=[1, 1, 0]).status == "applied"
        assert updater.observe_batch(x, [0.1, -0.2, 1e6], weight=[1, 0, 1]).status == "quarantined"
        assert updater.observe(x[0], 1e6, weight=0.0).status == "applied"


@pytest.mark.parametrize("dynamics", [bm.Forgetting(0.999, time_unit=1.0), bm.ChangePoint(time_unit=1.0)], ids=repr)
def test_an_event_of_weight_0_does_not_move_the_clock(tmp_path: Path, dynamics: Any) -> None:
    x, y = wandering(3, walk=0.0)
    with opened(tmp_path, dynamics) as updater:
        updater.observe_many(x, y, times=[0.0, 1.0, 2.0])
        before = updater.model.predict(x).std
        assert updater.observe(x[0], 0.0, weight=0.0, time=1e6, source="evil").status == "applied"
        assert updater.model.newest_time == 2.0
        np.testing.assert_allclose(updater.model.predict(x).std, before, rtol=1e-12)


# -- the future -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("weight", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize("dynamics", [bm.Forgetting(0.999, time_unit=1.0), bm.ChangePoint(time_unit=1.0)], ids=repr)
def test_an_event_of_the_future_is_refused(tmp_path: Path, dynamics: Any, weight: float) -> None:
    x, y = wandering(3, walk=0.0)
    with opened(tmp_path, dynamics) as updater:
        updater.observe_many(x, y, times=[0.0, 1.0, 2.0])  # counted from 0
        digest, version = updater.digest(), updater.version
        with pytest.raises(bm.errors.InvalidInput, match=r"at most Admission\.max_ahead \(86400 s\) after"):
            updater.observe(x[0], y[0], weight=weight, time=1e11, source="evil")
        with pytest.raises(bm.errors.InvalidInput, match="time must be at most"):
            updater.observe_many(x, y, times=[3.0, 4.0, 1e11])
        assert (updater.digest(), updater.version) == (digest, version)
        assert updater.observe(x[0], y[0], time=3.0).status == "applied"
        assert updater.model.newest_time == 3.0


def test_how_far_ahead_is_for_a_team_to_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1e9)
    for ahead, times in ((60.0, [0.0, 1e9, 1e9 + 60]), (None, [1e9 + 61, 1e11])):
        folder = tmp_path / str(ahead)
        folder.mkdir()
        with opened(folder, WALK, admission=bm.Admission(max_ahead=ahead)) as updater:
            updater.observe_many(np.ones((len(times), 2)), np.zeros(len(times)), times=times)
            if ahead is not None:
                with pytest.raises(bm.errors.InvalidInput, match="60 s"):
                    updater.observe([1.0, 1.0], 0.0, time=1e9 + 61)
