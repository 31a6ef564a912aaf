"""Consolidation: a refit is the mode around what was known before; it is put in place if it predicts better."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import STRUCTURES, on, relative_error
from dense import mean, precision
from store_cases import stream

import bayesmlp as bm
from bayesmlp import consolidation, errors
from bayesmlp.consolidation import refitted
from bayesmlp.feedback import Observation
from bayesmlp.store.fold import Record, effective

LONG = bm.TrainingOptions(steps=3000, batch_size=64, learning_rate=2e-2)
SHORT = bm.TrainingOptions(steps=200, learning_rate=1e-2)


# -- the fit ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("framework", on("torch", "jax"))
@pytest.mark.parametrize("name", ["diagonal", "full", "low_rank", "kronecker"])
def test_a_refit_of_a_linear_model_is_ridge_regression_around_the_posterior_before(name: str, framework: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 2))
    y = x @ np.array([1.0, -2.0]) + 0.3 + 0.5 * rng.standard_normal(64)
    model = bm.BayesianMLP(
        bm.MLP(()), bm.Gaussian(noise_variance=0.25), structure=STRUCTURES[name], engine=framework,
        dtype="float64", standardize=False,
    )  # fmt: skip
    base = model.to_engine(framework)
    base.update(x[:20] + 1.0, y[:20])  # another stretch, so that the precision before has correlations
    model = base.to_engine(framework)
    rows = Observation.check(x, y, None, None, model=model)
    model.update(x, y)
    found = refitted(base, model, [rows], bm.Consolidate(LONG))
    structure, shapes = base.filter_model.of_member, [(3, 1)]
    before, after = (structure.to_arrays(m.engine, m.posterior.weights) for m in (base, found))
    design = np.column_stack([x, np.ones(64)])
    start, dense = mean(structure, before, shapes), precision(structure, before, shapes)
    step = np.linalg.solve(dense + design.T @ design / 0.25, design.T @ (y - design @ start) / 0.25)
    assert relative_error(mean(structure, after, shapes) - start, step) < 1e-5
    gained = np.diag(precision(structure, after, shapes)) - np.diag(dense)
    if name != "kronecker":  # which keeps what its two factors can hold
        assert relative_error(gained, np.sum(design**2, axis=0) / 0.25) < 1e-9


def test_what_is_remembered_holds_the_mean_where_it_was() -> None:
    pytest.importorskip("torch")
    x, y = stream(60)
    model = bm.BayesianMLP(
        bm.MLP((8,), "tanh"), bm.Categorical(3), structure=bm.Diagonal(), engine="torch", standardize=False,
        memory=bm.Memory(30, rehearsed=0),
    )  # fmt: skip
    model.update(x, y)
    base = model.to_engine("torch")
    moved = Observation.check(x + 3.0, (y + 1) % 3, None, None, model=model)
    drifts = []
    for strength in (1e-6, 1e3):
        model.memory = base.memory = bm.Memory(30, rehearsed=0, strength=strength)
        found = refitted(base, model, [moved], bm.Consolidate(SHORT, tether=0.01))
        drifts.append(np.abs(found.predict(x).probabilities - base.predict(x).probabilities).max())
    assert drifts[1] < 0.3 * drifts[0], drifts


def test_masks_and_weights_go_into_the_fit() -> None:
    pytest.importorskip("torch")
    x, _ = stream(60)
    y, mask = (x[:, 0] > 0).astype(int), np.array([True, True, False])
    model = small("torch")
    model.update(x[:40], y[:40], output_mask=mask)
    whole = Observation.check(x[:40], y[:40], None, None, np.tile(mask, (40, 1)), model=model)
    found = refitted(small("torch"), model, [whole], bm.Consolidate(SHORT))
    answer = found.predict(x[40:], output_mask=np.tile(mask, (20, 1))).probabilities
    assert np.mean(answer.argmax(1) == y[40:]) > 0.8
    weighed = whole._replace(weight=np.where(np.arange(40) < 20, 1.0, 0.0))
    half = refitted(small("torch"), model, [weighed], bm.Consolidate(SHORT))
    gains = [sum(1 / v.sum() for v in m.weight_variances()) for m in (found, half)]
    assert gains[1] < gains[0]


def small(engine: str, **options: Any) -> bm.BayesianMLP:
    model = bm.BayesianMLP(
        bm.MLP((8,), "tanh"), bm.Categorical(3), structure=bm.Diagonal(), engine=engine, standardize=False, **options
    )
    model.start_from_prior(4)
    return model


# -- in memory --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("framework", on("torch", "jax"))
def test_the_one_that_predicts_the_newest_rows_better_stays(framework: str) -> None:
    x, y = stream(130)
    learned, newest = (x[:100], y[:100]), (x[100:], y[100:])
    model = small(framework)
    for row in range(100):
        model.update(x[row : row + 1], y[row : row + 1])
    filtered = model.to_engine(framework)
    filtered.update_each(*newest)
    good, bad = model.to_engine(framework), model.to_engine(framework)
    done = good.consolidate(*learned, newest=newest, method=bm.Consolidate(bm.TrainingOptions(steps=1000)))
    assert done.replaced
    assert done.log_score > done.log_score_before
    x_test, y_test = stream(500, seed=7)
    assert good.predict(x_test).log_prob(y_test).mean() > filtered.predict(x_test).log_prob(y_test).mean()
    hasty = bm.Consolidate(bm.TrainingOptions(steps=3, learning_rate=10.0))
    done = bad.consolidate(*learned, newest=newest, method=hasty)
    assert not done.replaced
    for got, expected in zip(bad.mean_weights(), filtered.mean_weights(), strict=True):
        assert relative_error(got, expected) < 1e-5


def test_what_cannot_be_consolidated_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    x, y = stream(20)

    def refused(message: str, model: bm.BayesianMLP, **options: Any) -> None:
        model.update(x[:10], y[:10])
        before = model.to_arrays()
        with pytest.raises(errors.InvalidInput, match=message):
            model.consolidate(x[:10], y[:10], **{"newest": (x[10:], y[10:])} | options)
        assert all(np.array_equal(before[name], array) for name, array in model.to_arrays().items())

    refused("no gradients", small("numpy"))
    refused("Static", small("torch", dynamics=bm.Forgetting(0.9)))
    refused("influence", small("torch", influence=bm.InverseMultiquadric()))
    refused("base must be", small("torch"), base=small("torch", memory=bm.Memory()))
    refused("method must be", small("torch"), method=bm.Laplace())
    refused("newest must be a pair", small("torch"), newest=x[10:])
    refused("x must", small("torch"), newest=(x[:0], y[:0]))
    for options in ({"held_back": 0.0}, {"tether": 2.0}, {"training": bm.TrainingOptions(validation=0.1)}):
        with pytest.raises(errors.InvalidInput, match=f"Consolidate.{next(iter(options))}"):
            bm.Consolidate(**options)


# -- the fold ---------------------------------------------------------------------------------------------------------
def event(offset: int) -> Record:
    return Record(offset, "event", f"e{offset}", {})


def retract(offset: int, *events: int) -> Record:
    return Record(offset, "retract", None, {"event_ids": [f"e{event}" for event in events]})


def line(*records: Record) -> list[int]:
    return [record.offset for record in effective(records).line]


START = Record(1, "publish", None, {})


def test_a_consolidation_stands_after_what_it_has_learned() -> None:
    records = [START, event(2), event(3), event(4), Record(5, "consolidate", None, {"until": 3}), event(6)]
    assert line(*records) == [1, 2, 3, 5, 4, 6]
    assert line(*records, Record(7, "consolidate", None, {"until": 6})) == [1, 2, 3, 5, 4, 6, 7]


def test_a_consolidation_falls_away_with_anything_that_it_has_learned() -> None:
    records = [START, event(2), retract(3, 2), event(4), Record(5, "consolidate", None, {"until": 4}), event(6)]
    assert line(*records) == [1, 4, 5, 6]
    assert line(*records, retract(7, 6)) == [1, 4, 5]
    later = [*records, Record(7, "consolidate", None, {"until": 6})]
    assert line(*later) == [1, 4, 5, 6, 7]
    assert line(*later, retract(8, 4)) == [1, 6]
    assert line(*later, retract(8, 6)) == [1, 4, 5]


def test_a_rollback_takes_a_consolidation_back_and_forth() -> None:
    records = [START, event(2), Record(3, "consolidate", None, {"until": 2}), event(4)]
    back = [*records, Record(5, "rollback", None, {"version": 2})]
    assert line(*back) == [1, 2]
    assert line(*back, Record(6, "rollback", None, {"version": 4})) == [1, 2, 3, 4]


# -- in a store -------------------------------------------------------------------------------------------------------
METHOD = bm.Consolidate(SHORT, held_back=0.2)
FRAMEWORK = on("torch")


def ids(first: int, last: int) -> list[str]:
    return [f"e{row}" for row in range(first, last)]


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts every consolidation in place, so that what follows does not depend on how well it predicts."""
    compete = consolidation.compete

    def won(before: Any, candidate: Any, *rest: Any) -> Any:
        model, done = compete(candidate, candidate, *rest)
        return model, done._replace(replaced=True)

    monkeypatch.setattr(consolidation, "compete", won)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("framework", FRAMEWORK)
def test_a_consolidation_survives_a_restart_and_falls_away_with_a_retraction(tmp_path: Path, framework: str) -> None:
    x, y = stream(40)
    with bm.open_store(tmp_path / "s.db") as store:
        for name in ("m", "plain"):
            store.publish(name, small(framework, memory=bm.Memory(10, rehearsed=2)))
        with bm.OnlineUpdater(store, "plain", engine=framework) as plain:
            plain.observe_many(x[:30], y[:30], event_ids=ids(0, 30))
            plain.retract(["e7"])
            expected = plain.digest()
        with bm.OnlineUpdater(store, "m", engine=framework, snapshot_every=7) as updater:
            updater.observe_many(x[:29], y[:29], event_ids=ids(0, 29))
            filtered = updater.digest()
            done = updater.consolidate(method=METHOD)
            assert (done.replaced, done.newest, done.version) == (True, 6, 31)
            assert updater.history()[-1].kind == "consolidate"
            consolidated = updater.digest()
            assert consolidated != filtered
            updater.observe(x[29], y[29], event_id="e29")
            live = updater.digest()
        with bm.OnlineUpdater(store, "m", engine=framework) as updater:
            assert updater.digest() == live
            updater.retract(["e29"])
            assert updater.digest() == consolidated
            updater.rollback(30)
            assert updater.digest() == filtered
            updater.rollback(32)
            updater.retract(["e7"])
            assert updater.history()[30].note.endswith("no longer")
            updater.observe(x[29], y[29], event_id="again")
            assert updater.digest() == expected
            assert updater.consolidate(method=METHOD).replaced


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("framework", FRAMEWORK)
def test_what_comes_during_a_consolidation_is_folded_after_it(
    tmp_path: Path, framework: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = stream(30)
    digests = []
    for late in (True, False):
        with bm.open_store(tmp_path / f"{late}.db") as store:
            store.publish("m", small(framework))
            with bm.OnlineUpdater(store, "m", engine=framework) as updater:
                updater.observe_many(x[:20], y[:20], event_ids=ids(0, 20))
                original = consolidation.refitted

                def meanwhile(*arguments: Any, updater: Any = updater, fit: Any = original) -> Any:
                    thread = threading.Thread(target=updater.observe_many, args=(x[20:], y[20:]))
                    thread.start()
                    thread.join(timeout=60)
                    assert not thread.is_alive(), "a consolidation holds the updater's lock"
                    return fit(*arguments)

                with monkeypatch.context() as patch:
                    if late:
                        patch.setattr(consolidation, "refitted", meanwhile)
                    assert updater.consolidate(method=METHOD).replaced
                if not late:
                    updater.observe_many(x[20:], y[20:])
                digests.append(updater.digest())
            with bm.OnlineUpdater(store, "m", engine=framework) as updater:
                assert updater.digest() == digests[-1]
    assert digests[0] == digests[1]


@pytest.mark.usefixtures("always")
def test_a_consolidation_of_what_was_retracted_meanwhile_is_not_put_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    x, y = stream(20)
    with bm.open_store(tmp_path / "s.db") as store:
        store.publish("m", small("torch"))
        with bm.OnlineUpdater(store, "m", engine="torch") as updater:
            updater.observe_many(x, y, event_ids=ids(0, 20))
            fit = consolidation.refitted

            def meanwhile(*arguments: Any) -> Any:
                updater.retract(["e4"])
                return fit(*arguments)

            monkeypatch.setattr(consolidation, "refitted", meanwhile)
            assert not updater.consolidate(method=METHOD).replaced
            assert updater.history()[-1].kind == "retract"


def test_a_worse_consolidation_writes_nothing(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    x, y = stream(30)
    with bm.open_store(tmp_path / "s.db") as store:
        store.publish("m", small("torch"))
        with bm.OnlineUpdater(store, "m", engine="torch") as updater:
            with pytest.raises(errors.InvalidInput, match="at least two events"):
                updater.consolidate()
            updater.observe_many(x, y)
            before, version = updater.digest(), updater.version
            hasty = bm.Consolidate(bm.TrainingOptions(steps=3, learning_rate=10.0))
            done = updater.consolidate(method=hasty)
            assert not done.replaced
            assert (updater.digest(), updater.version) == (before, version)


@pytest.mark.usefixtures("always")
def test_a_consolidation_whose_snapshot_is_lost_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    x, y = stream(20)
    with bm.open_store(tmp_path / "s.db") as store:
        wide = bm.BayesianMLP(bm.MLP((64,)), bm.Categorical(3), structure=bm.Full(), engine="torch", standardize=False)
        wide.start_from_prior(4)
        store.publish("m", wide)
        with bm.OnlineUpdater(store, "m", engine="torch") as updater:
            updater.observe_many(x, y)
            updater.consolidate(method=METHOD)
    files = sorted((tmp_path / "s.db.blobs").rglob("*.safetensors"), key=lambda file: file.stat().st_mtime)
    files[-1].write_bytes(b"")
    with bm.open_store(tmp_path / "s.db") as store, pytest.raises(errors.CorruptStore, match="consolidation"):
        bm.OnlineUpdater(store, "m", engine="torch")
