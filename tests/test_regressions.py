"""What once went wrong, and must not again."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import on
from store_cases import published, small_model, stream
from typer.testing import CliRunner

import bayesmlp as bm
from bayesmlp import errors
from bayesmlp.cli import app
from bayesmlp.store.digest import posterior_digest


def test_a_refused_conflict_keeps_the_effects_of_applied_events(tmp_path: Path) -> None:
    x, y = stream(3)
    with published(tmp_path) as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        first = updater.observe(x[0], y[0], event_id="a")
        with pytest.raises(errors.ConflictingEvent):
            updater.observe(x[1], y[1], event_id="a")
        assert updater.observe(x[0], y[0], event_id="a") == first._replace(repeated=True)
        assert updater.history()[-1].surprise == first.surprise


def test_rollback_to_a_publish_of_another_dtype_folds_in_its_own(tmp_path: Path) -> None:
    x, y = stream(4)
    with published(tmp_path, "numpy", dtype="float32") as store:
        store.publish("m", small_model("numpy", dtype="float64"))
        with bm.OnlineUpdater(store, "m", engine="numpy") as updater:
            updater.rollback(1)
            assert updater.model.engine.dtype == "float32"
            updater.observe(x[0], y[0])
            live = updater.digest()
            with_log = bm.load(store, "m", engine="numpy")
            assert posterior_digest(with_log.spec(), with_log.to_arrays()) == live
        with bm.OnlineUpdater(store, "m", engine="numpy") as updater:
            assert updater.digest() == live


def test_to_engine_keeps_the_dtype() -> None:
    double = small_model("numpy", dtype="float64")
    single = small_model("numpy", dtype="float32")
    moved = double.to_engine(single.engine)
    assert moved.spec() == double.spec()
    assert all(a.dtype == np.float64 for a in moved.to_arrays().values())


def test_a_failed_event_leaves_a_forgetting_posterior_too(tmp_path: Path) -> None:
    model = bm.BayesianMLP(
        bm.MLP((4,)),
        bm.Gaussian(noise_variance=1e-14),
        dynamics=bm.Forgetting(0.9),
        engine="numpy",
        standardize=False,
    )
    model.start_from_prior(2)
    with bm.open_store(tmp_path / "s.db") as store:
        store.publish("m", model)
        with bm.OnlineUpdater(store, "m", engine="numpy") as updater:
            before = updater.digest()
            assert updater.observe([1e6, -1e6], 1e6).status == "failed"
            assert updater.digest() == before


def test_a_lease_of_another_machine_can_be_taken_over(tmp_path: Path) -> None:
    with published(tmp_path) as store:
        bm.OnlineUpdater(store, "m", engine="numpy").close()
        owner = json.dumps({"host": "a-container-that-is-gone", "pid": 1, "started": "1"})
        with sqlite3.connect(tmp_path / "store.db") as connection:
            connection.execute("UPDATE leases SET owner = ?", (owner,))
        with pytest.raises(errors.LeaseHeld, match="take_over=True"):
            bm.OnlineUpdater(store, "m", engine="numpy")
        stale = bm.OnlineUpdater(store, "m", engine="numpy", take_over=True)
        with bm.OnlineUpdater(store, "m", engine="numpy", take_over=True), pytest.raises(errors.LeaseLost):
            stale.observe(np.zeros(4), 0)


@pytest.mark.parametrize("engine", ["torch", "jax"])
def test_inputs_too_large_to_square_are_refused_and_tiny_ones_are_scaled(engine: str) -> None:
    pytest.importorskip(engine, reason=f"pip install 'bayesmlp[{engine}]' to enable")
    x, _ = stream(20)
    y = x[:, 0]
    model = bm.BayesianMLP(bm.MLP((3,)), bm.Gaussian(), engine=engine)
    with pytest.raises(errors.InvalidInput, match=r"X must be at most 1e.30"):
        model.fit(x * 1e200, y)
    with pytest.raises(errors.InvalidInput, match=r"y must be at most 1e30"):
        model.fit(x, y * 1e200)
    quick = bm.Laplace(bm.TrainingOptions(steps=20))
    usual = model.fit(x, y, method=quick).predict(x)
    tiny = model.fit(x * 2.0**-50, y * 2.0**-50, method=quick).predict(x * 2.0**-50)
    np.testing.assert_allclose(tiny.std * 2.0**50, usual.std, rtol=1e-5)


def test_what_users_wrote_is_no_markup(tmp_path: Path) -> None:
    x, y = stream(2)
    with published(tmp_path, name="user[abc]") as store:
        with bm.OnlineUpdater(store, "user[abc]", engine="numpy") as updater:
            updater.observe(x[0], y[0], event_id="[/x]")
        path = str(tmp_path / "store.db")
    assert CliRunner().invoke(app, ["models", path]).output == "user[abc]\n"
    assert "[/x]" in CliRunner().invoke(app, ["history", path, "user[abc]"], env={"COLUMNS": "160"}).output


def test_a_file_that_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database, but long enough to look at" * 100)
    with pytest.raises(errors.CorruptStore, match="can not be read as a store"):
        bm.open_store(tmp_path / "notes.txt")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda u, s: u.observe_many(np.zeros(4), 1), "x must have shape"),
        (lambda u, s: u.observe_many([], []), "x must have shape"),
        (lambda u, s: u.observe_many(np.zeros((2, 4)), [0]), "x, y and event_ids must be equally long"),
        (lambda u, s: u.feedback(["a"], 1), "prediction_id must be a string"),
        (lambda u, s: u.retract(5), "event_ids must be a collection"),
        (lambda u, s: u.retract([None]), "event_ids must be strings"),
        (lambda u, s: u.retract(source="nobody"), "no event with"),
        (lambda u, s: u.rollback(True), "not True"),
        (lambda u, s: bm.load(s, "m", engine="numpy", version=True), "version must be a positive integer"),
        (lambda u, s: bm.load(s, "m", engine="numpy", version=10**30), "has no version"),
    ],
)
def test_bad_arguments_are_named(tmp_path: Path, call: Any, message: str) -> None:
    with published(tmp_path) as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        before = updater.digest(), len(updater.history())
        with pytest.raises(errors.BayesMLPError, match=message):
            call(updater, store)
        assert (updater.digest(), len(updater.history())) == before


def test_numpy_scalars_and_negative_zero(tmp_path: Path) -> None:
    with published(tmp_path) as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        updater.observe([0.0, 1, 2, 3], np.int64(1), event_id="a", time=np.int64(5))
        assert updater.observe([-0.0, 1, 2, 3], 1, event_id="a", time=5).repeated
        updater.model.to_engine("numpy").update(np.ones((1, 4)), [0], elapsed=np.float32(1))


def test_data_frames_are_rows(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="pip install pandas to enable")
    x, y = stream(4)
    with published(tmp_path) as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        updater.observe_many(pandas.DataFrame(x), pandas.Series(y))
        framed = updater.digest()
        updater.rollback(1)
        updater.observe_many(x, y)
        assert updater.digest() == framed


# -- fits ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("engine", on("torch"))
def test_small_noise_is_learned_whatever_the_steps(engine: str) -> None:
    """φ is at its mode given the residuals, where an optimiser's few steps would have left it far too large."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1000, 3))
    y = x @ [1.0, -2.0, 0.5] + 0.02 * rng.standard_normal(1000)
    likelihood = bm.Gaussian(prior_rate=1e-4)
    model = bm.BayesianMLP(bm.MLP(()), likelihood, structure=bm.Full(), engine=engine).fit(x, y)
    residuals = (y - model.predict(x, method="mean").mean) / model.scaling.target_scale[0]
    expected = (likelihood.prior_rate + 0.5 * np.sum(residuals**2)) / (likelihood.prior_shape + 500)
    np.testing.assert_allclose(likelihood.dispersion(model.posterior.likelihood), expected, rtol=1e-4)


@pytest.mark.parametrize("engine", on("torch", "jax"))
def test_pairs_are_predicted_with_the_default_structure(engine: str) -> None:
    rng = np.random.default_rng(1)
    pairs = rng.standard_normal((64, 6))
    first_wins = (pairs[:, 0] > pairs[:, 3]).astype(int)
    training = bm.TrainingOptions(steps=50)
    model = bm.BayesianMLP(bm.PairwiseMLP((4,)), bm.BradleyTerry(), engine=engine)
    model.fit(pairs, first_wins, method=bm.Laplace(training))
    full = bm.BayesianMLP(bm.PairwiseMLP((4,)), bm.BradleyTerry(), structure=bm.Full(), engine=engine)
    full.fit(pairs, first_wins, method=bm.Laplace(training))
    np.testing.assert_allclose(
        model.predict(pairs, method="mean").mean, full.predict(pairs, method="mean").mean, atol=1e-5
    )
    assert np.isfinite(model.predict(pairs).log_prob(first_wins)).all()


@pytest.mark.parametrize("engine", on("torch"))
def test_rows_of_weight_zero_choose_neither_prior_nor_epoch(engine: str) -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((64, 3))
    y = x @ [1.0, -2.0, 0.5] + 0.2 * rng.standard_normal(64)
    spoiled, weight = y.copy(), np.ones(64)
    spoiled[32:], weight[32:] = 1000.0, 0.0
    training = bm.TrainingOptions(steps=300, validation=0.3)
    fits = []
    for targets in (y, spoiled):
        model = bm.BayesianMLP(bm.MLP((4,)), bm.Gaussian(), engine=engine)
        model.fit(x, targets, weight=weight, method=bm.Laplace(training))
        plain = bm.Stacking(bm.Laplace(bm.TrainingOptions(steps=300)), members=2)
        stacked = bm.BayesianMLP(bm.MLP((4,)), bm.Gaussian(), engine=engine)
        stacked.fit(x, targets, weight=weight, method=plain)
        fits.append((model.predict(x).mean, stacked.fit_details["held_out_log_predictive"]))
    for got, expected in zip(*fits, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 1.5}, {"epochs": True}, {"steps": None}, {"batch_size": 8.5}, {"batch_size": "8"},
        {"learning_rate": float("inf")},
    ],
)  # fmt: skip
def test_training_options_are_checked_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(errors.InvalidInput, match=f"TrainingOptions.{next(iter(options))} must be a positive"):
        bm.TrainingOptions(**options)


def test_whole_numbers_are_integers() -> None:
    assert bm.TrainingOptions(batch_size=16.0) == bm.TrainingOptions(batch_size=16)
    assert isinstance(bm.TrainingOptions(epochs=np.float64(2)).epochs, int)


def _fit(checkpoint: Any) -> Any:
    model = bm.BayesianMLP(bm.MLP((2,)), bm.Gaussian())
    return model.fit(np.ones((4, 1)), np.ones(4), method=bm.Laplace(bm.TrainingOptions(steps=1)), checkpoint=checkpoint)


UNTYPED: Any = bm


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: UNTYPED.BayesianMLP(bm.MLP(), bm.Gaussian(), engine=3), "engine must be 'numpy', .*got 3"),
        (lambda: UNTYPED.BayesianMLP(bm.MLP(), bm.Gaussian(), standardize=3), "standardize must be True, .*got 3"),
        (lambda: UNTYPED.NormalPrior("x"), "NormalPrior.scale must be positive and finite, got 'x'"),
        (lambda: UNTYPED.NormalPrior(1.0, None), "NormalPrior.bias_scale must be positive and finite, got None"),
        (lambda: UNTYPED.TrainingOptions(validation="x"), r"TrainingOptions.validation must be in \[0, 1\), got 'x'"),
        (lambda: UNTYPED.TrainingOptions(kl_warmup="x"), r"TrainingOptions.kl_warmup must be in \[0, 1\], got 'x'"),
        (lambda: UNTYPED.Laplace("x"), "Laplace.training must be TrainingOptions, got 'x'"),
        (lambda: UNTYPED.Laplace(None), "Laplace.training must be TrainingOptions, got None"),
        (lambda: UNTYPED.Variational(bm.Laplace()), r"Variational.training must be TrainingOptions, got Laplace\("),
        (lambda: UNTYPED.AsMarked("x"), "AsMarked.training must be TrainingOptions, got 'x'"),
        (lambda: UNTYPED.StructuredVariational("x"), "StructuredVariational.training must be TrainingOptions, got 'x'"),
        (lambda: UNTYPED.LastLayer("x"), "LastLayer.last must be a structure, got 'x'"),
        (lambda: UNTYPED.LastLayer(hidden=3), "LastLayer.hidden must be a structure, got 3"),
        (lambda: UNTYPED.Stacking(folds=1.5), "Stacking.folds must be an integer of at least 1, got 1.5"),
        (lambda: UNTYPED.open_store(3), "path must be an SQLite file or a postgresql:// URL, got '?3"),
        (lambda: _fit("/nonexistent/x"), "checkpoint must be a file in an existing folder, got '/nonexistent/x'"),
        (lambda: _fit(3), "checkpoint must be a file in an existing folder, got 3"),
    ],
)  # fmt: skip
def test_arguments_of_another_kind_are_named(call: Any, message: str) -> None:
    with pytest.raises(errors.InvalidInput, match=message):
        call()


def test_what_is_published_is_a_model_under_a_name(tmp_path: Path) -> None:
    with bm.open_store(tmp_path / "store.db") as store:
        with pytest.raises(errors.InvalidInput, match="name must be a string of 1 to 200 printable characters, got ''"):
            store.publish("", small_model())
        with pytest.raises(errors.InvalidInput, match="model must be a BayesianMLP, got 3"):
            store.publish("m", 3)
