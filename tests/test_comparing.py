"""Replay under other settings, and differences between versions, against streams that had them from the start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import LINEAR, NUM_INPUTS, make_inputs
from store_cases import Places, stream

import bayesmlp as bm
from bayesmlp import errors
from bayesmlp.inference.dynamics import Dynamics
from bayesmlp.store.digest import posterior_digest


def linear_model(dynamics: Dynamics | None = None, **options: Any) -> bm.BayesianMLP:
    model = bm.BayesianMLP(
        LINEAR,
        bm.Gaussian(noise_variance=0.3),
        structure=bm.Full(),
        dynamics=dynamics,
        engine="numpy",
        dtype="float64",
        **options,
    )
    model.start_from_prior(NUM_INPUTS)
    return model


def learn(path: Path, model: bm.BayesianMLP) -> bm.PosteriorStore:
    x = make_inputs(30, 0)
    y = 2 * x[:, 0] + np.random.default_rng(1).standard_normal(30)
    store = bm.open_store(path)
    store.publish("m", model)
    with bm.OnlineUpdater(store, "m", engine="numpy", snapshot_every=7) as updater:
        updater.observe_many(x, y, event_ids=[f"e{i}" for i in range(30)])
        updater.retract(["e4"])
    return store


@pytest.mark.parametrize(
    "settings",
    [
        {"dynamics": bm.Forgetting(0.9)},
        {"dynamics": bm.RandomWalk(0.05)},
        {"dynamics": bm.AdaptiveForgetting((bm.Static(), bm.Forgetting(0.9)), share=0.02)},
        {"dynamics": bm.Static()},
        {"influence": bm.InverseMultiquadric()},
        {"step": bm.KalmanStep()},
        {},
    ],
    ids=str,
)
def test_other_settings_give_what_a_stream_with_them_gave(tmp_path: Path, settings: dict[str, Any]) -> None:
    store = learn(tmp_path / "s.db", linear_model())
    versions = len(store.history("m"))
    asked = bm.replay_with(store, "m", engine="numpy", **settings)
    had = bm.load(learn(tmp_path / "other.db", linear_model(**settings)), "m", engine="numpy")
    assert posterior_digest(asked.spec(), asked.to_arrays()) == posterior_digest(had.spec(), had.to_arrays())
    assert len(store.history("m")) == versions


def test_what_can_not_be_exchanged_is_said(tmp_path: Path) -> None:
    hypotheses = bm.AdaptiveForgetting((bm.Static(), bm.Forgetting(0.9)), share=0.02)
    store = learn(tmp_path / "s.db", linear_model(hypotheses))
    with pytest.raises(errors.InvalidInput, match="in place of hypotheses"):
        bm.replay_with(store, "m", engine="numpy", dynamics=bm.Static())
    with pytest.raises(errors.UnknownModel):
        bm.replay_with(store, "x", engine="numpy")
    for version in (999, 10**30):
        with pytest.raises(errors.UnknownModel, match=f"model 'm' has no version {version}"):
            bm.replay_with(store, "m", engine="numpy", version=version)


def test_a_difference_of_normal_predictions_is_the_closed_form(tmp_path: Path) -> None:
    store = learn(tmp_path / "s.db", linear_model())
    probe = make_inputs(5, 3)
    found = bm.diff(store, "m", 11, probe=probe, engine="numpy")
    old, new = (bm.load(store, "m", engine="numpy", version=v).predict(probe) for v in (11, 32))
    np.testing.assert_allclose(found.change, np.abs(new.mean - old.mean))
    expected = np.log(np.sqrt(old.variance / new.variance)) + (
        new.variance + (new.mean - old.mean) ** 2
    ) / (2 * old.variance) - 0.5  # fmt: skip
    np.testing.assert_allclose(found.kl_divergence, expected)
    assert found.largest(2).tolist() == np.argsort(-found.change)[:2].tolist()
    first = bm.load(store, "m", engine="numpy", version=11)
    shift = np.abs(bm.load(store, "m", engine="numpy").mean_weights()[0] - first.mean_weights()[0])
    assert found.weight_shift == (pytest.approx((shift / np.sqrt(first.weight_variances()[0])).max()),)
    assert "5 probes" in str(found)
    same = bm.diff(store, "m", 32, 32, probe=probe, engine="numpy")
    assert (same.change.max(), np.abs(same.kl_divergence).max(), same.weight_shift) == (0, 0, (0,))
    with pytest.raises(errors.InvalidInput, match="probe must"):
        bm.diff(store, "m", 11, probe=np.zeros((0, NUM_INPUTS)), engine="numpy")


def test_a_difference_of_classes_is_the_sum_over_them(places: Places) -> None:
    x, y = stream(20)
    with places.published() as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        updater.observe_many(x, y)
        found = bm.diff(store, "m", 1, probe=x, engine="numpy")
    p, q = found.new.probabilities, found.old.probabilities
    np.testing.assert_allclose(found.kl_divergence, (p * np.log(p / q)).sum(axis=1))
    np.testing.assert_allclose(found.change, np.abs(p - q).max(axis=1))
    assert found.kl_divergence.min() >= 0
