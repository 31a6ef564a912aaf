"""What an updater lets in: caps of sources, quarantine, release; all of it facts of the log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_cases import published, stream

import bayesmlp as bm
from bayesmlp.admission import excess_surprise

STRICT = bm.Admission(quarantine_above=3.0)


def learned(folder: Path, count: int = 60) -> bm.PosteriorStore:
    """A store whose model knows the stream a little."""
    store = published(folder)
    with bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        updater.observe_many(*stream(count))
    return store


def wrong_event(updater: bm.OnlineUpdater) -> tuple[np.ndarray, int]:
    """Inputs far from the boundaries, and the class that they surely are not of."""
    x = np.array([3.0, 3.0, 0.0, 0.0])
    return x, int(np.argmin(updater.model.predict(x[None]).probabilities[0]))


# -- decisions --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("weights", [[1.0] * 30, [0.5] * 60, [10.0, 20.0], [30.0]])
def test_what_a_source_is_granted_depends_on_what_it_asked_for_in_all(weights: list[float]) -> None:
    admission, spent = bm.Admission(source_cap=8.0), 0.0
    for weight in weights:
        spent += weight * admission.granted(weight, spent)
    assert spent == pytest.approx(8 * (1 - np.exp(-30 / 8)), rel=1e-12)


def test_the_first_events_count_in_full_and_no_cap_grants_all() -> None:
    assert bm.Admission(source_cap=1e6).granted(1.0, 0.0) == pytest.approx(1.0, abs=1e-6)
    assert bm.Admission().granted(5.0, 1e9) == 1.0
    assert bm.Admission(source_cap=2.0).granted(1.0, 2.0) == 0.0


def test_excess_surprise_is_half_the_squared_distance_where_the_predictive_is_normal() -> None:
    model = bm.BayesianMLP(bm.MLP(()), bm.Gaussian(noise_variance=0.5), engine="numpy", dtype="float64")
    model.start_from_prior(2)
    x, y = np.ones((3, 2)), np.array([[0.0], [1.0], [20.0]])
    answer = model.predict(x)
    distance = (y[:, 0] - answer.mean) / answer.std
    np.testing.assert_allclose(excess_surprise(answer, y), distance**2 / 2, rtol=1e-10)


@pytest.mark.parametrize("likelihood", [bm.Poisson(), bm.Ordinal(4), bm.Bernoulli(), bm.Categorical(3)])
def test_excess_surprise_of_the_expected_is_nothing(likelihood: Any) -> None:
    model = bm.BayesianMLP(bm.MLP(()), likelihood, engine="numpy", dtype="float64")
    model.start_from_prior(2)
    answer = model.predict(np.array([[0.4, -1.0]]))
    expected = (
        answer.mean.argmax(axis=1) if isinstance(likelihood, bm.Categorical) else np.rint(answer.mean).astype(int)
    )
    np.testing.assert_allclose(excess_surprise(answer, likelihood.prepare(expected)), 0, atol=1e-12)


@pytest.mark.parametrize("name", ["source_cap", "quarantine_above", "max_ahead"])
@pytest.mark.parametrize("value", [0, -1.0, float("inf"), float("nan"), "much"])
def test_bad_limits_are_refused(name: str, value: Any) -> None:
    with pytest.raises(bm.errors.InvalidInput, match=rf"Admission\.{name} must be positive and finite"):
        bm.Admission(**{name: value})


# -- caps -------------------------------------------------------------------------------------------------------------
def test_a_capped_source_learns_as_with_the_granted_weights(tmp_path: Path) -> None:
    x, y = stream(6, seed=1)
    admission = bm.Admission(source_cap=2.0)
    for folder in ("capped", "weighted"):
        (tmp_path / folder).mkdir()
    with bm.OnlineUpdater(published(tmp_path / "capped"), "m", engine="numpy", admission=admission) as updater:
        for a, b in zip(x, y, strict=True):
            updater.observe(a, b, source="s")
        capped = updater.digest()
    with bm.OnlineUpdater(published(tmp_path / "weighted"), "m", engine="numpy") as updater:
        spent = 0.0
        for a, b in zip(x, y, strict=True):
            share = admission.granted(1.0, spent)
            spent += share
            updater.observe(a, b, weight=share)
        assert updater.digest() == capped


def test_caps_survive_a_restart_ignore_repeats_and_fold_without_the_option(tmp_path: Path) -> None:
    x, y = stream(6, seed=1)
    store = published(tmp_path)
    admission = bm.Admission(source_cap=2.0)
    with bm.OnlineUpdater(store, "m", engine="numpy", admission=admission) as updater:
        for i in range(3):
            updater.observe(x[i], y[i], source="s", event_id=f"e{i}")
        assert updater.observe(x[2], y[2], source="s", event_id="e2").repeated
    with bm.OnlineUpdater(store, "m", engine="numpy", admission=admission) as updater:
        assert updater.observe(x[2], y[2], source="s", event_id="e2").repeated
        updater.observe_many(x[3:], y[3:], source="s", event_ids=["e3", "e4", "e5"])
        digest = updater.digest()
    (tmp_path / "other").mkdir()
    with bm.OnlineUpdater(published(tmp_path / "other"), "m", engine="numpy", admission=admission) as updater:
        updater.observe_many(x, y, source="s")
        assert updater.digest() == digest
    with bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        updater.rollback(1)
        updater.rollback(7)
        assert updater.digest() == digest


def test_retraction_gives_a_source_its_weight_back(tmp_path: Path) -> None:
    x, y = stream(4, seed=1)
    with bm.OnlineUpdater(published(tmp_path), "m", engine="numpy", admission=bm.Admission(source_cap=1.0)) as updater:
        updater.observe_many(x, y, source="s", event_ids=list("abcd"))
        assert updater._spent_by("s") == pytest.approx(1 - np.exp(-4))
        updater.retract(["a", "b", "c", "d"])
        assert updater._spent_by("s") == 0


def test_a_repeat_in_a_call_with_others_spends_nothing(tmp_path: Path) -> None:
    x, y = stream(3, seed=1)
    admission, digests = bm.Admission(source_cap=2.0), []
    for number, calls in enumerate(([[0, 1, 2]], [[0, 0, 1, 0, 2, 2]], [[0], [0, 1], [1, 0, 2]])):
        folder = tmp_path / str(number)
        folder.mkdir()
        with bm.OnlineUpdater(published(folder), "m", engine="numpy", admission=admission) as updater:
            for rows in calls:
                updater.observe_many(x[rows], y[rows], source="s", event_ids=[f"e{row}" for row in rows])
            digests.append(updater.digest())
            assert updater._spent_by("s") == pytest.approx(2 * (1 - np.exp(-3 / 2)))
    assert len(set(digests)) == 1


# -- quarantine -------------------------------------------------------------------------------------------------------
def test_quarantine_is_durable_and_not_learned(tmp_path: Path) -> None:
    store = learned(tmp_path)
    with bm.OnlineUpdater(store, "m", engine="numpy", admission=STRICT) as updater:
        before = updater.digest()
        x, y = wrong_event(updater)
        receipt = updater.observe(x, y, event_id="odd", source="s")
        assert receipt.status == "quarantined"
        assert updater.digest() == before
        (held,) = updater.quarantined()
        assert (held.event_id, held.version, held.source) == ("odd", receipt.version, "s")
        assert held.excess_surprise > 3
        np.testing.assert_array_equal(held.x[0], x)
        again = updater.observe(x, y, event_id="odd", source="s")
        assert again.repeated
        assert again.status == "quarantined"
        good = updater.observe(*(a[0] for a in stream(1, seed=5)))
        assert good.status == "applied"
        digest = updater.digest()
    with bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        assert updater.digest() == digest
        assert [event.event_id for event in updater.quarantined()] == ["odd"]
        assert updater.observe(x, y, event_id="odd", source="s").status == "quarantined"


def test_release_learns_at_that_point_and_replays_to_the_same_digest(tmp_path: Path) -> None:
    store = learned(tmp_path)
    with bm.OnlineUpdater(store, "m", engine="numpy", admission=STRICT) as updater:
        x, y = wrong_event(updater)
        updater.observe(x, y, event_id="odd")
        updater.observe(*(a[0] for a in stream(1, seed=5)))
        (receipt,) = updater.release(["odd"])
        assert receipt.status == "applied"
        assert receipt.surprise is not None
        assert not updater.quarantined()
        with pytest.raises(bm.errors.UnknownEvent, match="no event 'odd' in quarantine"):
            updater.release(["odd"])
        digest, version = updater.digest(), updater.version
        assert updater.observe(x, y, event_id="odd").status == "released"
        entries = {entry.version: entry for entry in updater.history()}
        assert (entries[receipt.version].kind, entries[receipt.version].status) == ("release", "applied")
    (tmp_path / "plain").mkdir()
    with bm.OnlineUpdater(learned(tmp_path / "plain"), "m", engine="numpy") as updater:
        updater.observe(*(a[0] for a in stream(1, seed=5)))
        updater.observe(x, y)
        assert updater.digest() == digest
    with bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        updater.rollback(version - 1)
        assert [event.event_id for event in updater.quarantined()] == ["odd"]
        updater.rollback(version)
        assert updater.digest() == digest
        updater.retract(["odd"])
        assert not updater.quarantined()
        assert updater.observe(x, y, event_id="odd").status == "retracted"


def test_a_retracted_event_is_refused_for_good(tmp_path: Path) -> None:
    with bm.OnlineUpdater(learned(tmp_path), "m", engine="numpy", admission=STRICT) as updater:
        before = updater.digest()
        x, y = wrong_event(updater)
        updater.observe(x, y, event_id="odd")
        updater.retract(["odd"])
        assert updater.digest() == before
        with pytest.raises(bm.errors.UnknownEvent):
            updater.release(["odd"])


def test_only_an_admission_is_taken(tmp_path: Path) -> None:
    with pytest.raises(bm.errors.InvalidInput, match="admission must be an Admission"):
        bm.OnlineUpdater(published(tmp_path), "m", engine="numpy", admission=3.0)
