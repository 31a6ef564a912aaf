"""A low rank whose newest rows wait: exact until they are folded in, in one dispatch or several, stored or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dense
import numpy as np
import pytest
from cases import make_inputs, needs, on, relative_error

import bayesmlp as bm
from bayesmlp.inference import factors
from bayesmlp.inference.errors import InvalidInput
from bayesmlp.inference.filtering import FilterModel, Posterior
from bayesmlp.inference.spec import from_spec, to_spec
from bayesmlp.inference.structures import BufferedLowRank

NETWORK = bm.MLP((4, 3), "tanh")
LIKELIHOODS = {"classes": bm.Categorical(3), "numbers": bm.Gaussian(2, noise_variance=0.1)}


IN_JAX = pytest.param("jax", marks=[needs("jax"), pytest.mark.slow])
"""Where a step that folds takes seconds to compile, and another test has it."""


def stream(kind: str, rows: int) -> tuple[np.ndarray, np.ndarray]:
    x, rng = make_inputs(rows, seed=1), np.random.default_rng(2)
    return x, rng.integers(0, 3, rows) if kind == "classes" else rng.standard_normal((rows, 2))


def started(kind: str, structure: Any, engine: str, dtype: str = "float64", **options: Any) -> bm.BayesianMLP:
    model = bm.BayesianMLP(
        NETWORK, LIKELIHOODS[kind], structure=structure, engine=engine, dtype=dtype, standardize=False, **options
    )
    model.start_from_prior(2)
    return model


def learned(model: bm.BayesianMLP, kind: str, sizes: list[int]) -> bm.BayesianMLP:
    """The model after batches of some sizes."""
    x, y = stream(kind, sum(sizes))
    for stop, size in zip(np.cumsum(sizes), sizes, strict=True):
        model.update(x[stop - size : stop], y[stop - size : stop])
    return model


def answers(model: bm.BayesianMLP) -> np.ndarray:
    """What it says of new inputs: means and whole covariances of the outputs."""
    prediction = model.predict(make_inputs(7, seed=3))
    assert prediction.output_covariance is not None
    return np.concatenate([prediction.output_mean.ravel(), prediction.output_covariance.ravel()])


@pytest.mark.parametrize("engine", [*on("numpy", "torch"), IN_JAX])
@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_it_is_exact_while_rows_wait(kind: str, engine: str) -> None:
    """Whatever the rank; and not after a fold of so small a one."""
    exact, mine = (started(kind, structure, engine) for structure in (bm.Full(), bm.LowRank(1, buffer=6)))
    assert relative_error(answers(learned(mine, kind, [2, 2, 2])), answers(learned(exact, kind, [2, 2, 2]))) < 1e-9
    assert mine.to_arrays()["weights.waiting"] == 6
    x, y = make_inputs(2, seed=4), np.array([1, 2]) if kind == "classes" else np.ones((2, 2))
    for model in (exact, mine):
        model.update(x, y)
    assert mine.to_arrays()["weights.waiting"] == 0
    assert 1e-4 < relative_error(answers(mine), answers(exact)) < 1


@pytest.mark.parametrize("engine", on("numpy", "torch"))
@pytest.mark.parametrize("sizes", [[1] * 11, [2, 1, 3, 1, 1, 5, 1]], ids=str)
@pytest.mark.parametrize("options", [{}, {"relinearizations": 1}], ids=["once", "again"])
def test_nothing_is_lost_where_the_rank_is_large(options: Any, sizes: list[int], engine: str) -> None:
    """Over many folds, of rows one by one and of batches, some larger than the buffer."""
    exact, mine = (
        learned(started("classes", structure, engine, **options), "classes", sizes)
        for structure in (bm.Full(), bm.LowRank(40, buffer=3))
    )
    assert relative_error(answers(mine), answers(exact)) < 1e-9


@pytest.mark.parametrize("engine", on("torch", "jax"))
@pytest.mark.parametrize("hidden", [(4, 3), (40,)], ids=["small", "in blocks"])
def test_a_step_in_place_does_what_a_pure_step_does(hidden: tuple[int, ...], engine: str) -> None:
    """Before, at and after a fold; and a step that fails leaves all of it as it was."""
    model = bm.BayesianMLP(
        bm.MLP(hidden), bm.Categorical(3), structure=bm.LowRank(2, buffer=2), engine=engine, standardize=False
    )
    model.start_from_prior(2)
    filtered: FilterModel = model.filter_model
    x, y = stream("classes", 8)
    structure, own = filtered.structure, model.engine

    def fresh() -> Posterior:
        weights = {name.removeprefix("weights."): array for name, array in model.to_arrays().items()}
        return Posterior(structure.from_arrays(own, weights), ())

    posteriors = [fresh(), fresh()]
    steps = filtered.compile(own), filtered.compile_in_place(own)
    for row in range(8):
        batch = model.batch(x[row : row + 1], y[row : row + 1].astype(np.int32), np.ones(1), 1.0)
        posteriors = [step(now, None, *batch)[0] for step, now in zip(steps, posteriors, strict=True)]
        pure, owned = (structure.to_arrays(own, now.weights) for now in posteriors)
        assert pure["waiting"] == owned["waiting"] == (row + 1) % 3
        for name in ("mean.0", "diagonal.0", "inputs.0", "rows.0"):
            np.testing.assert_allclose(owned[name], pure[name], rtol=2e-4, atol=2e-5, err_msg=name)
    bad = model.batch(np.full((1, 2), np.inf, np.float32), np.zeros(1, np.int32), np.ones(1), 1.0)
    failed, info = steps[1](posteriors[1], None, *bad)
    assert not bool(info.ok)
    for name, array in structure.to_arrays(own, failed.weights).items():
        np.testing.assert_array_equal(array, owned[name], err_msg=name)


@pytest.mark.parametrize("engine", on("torch", "jax"))
def test_a_store_goes_on_where_rows_wait(engine: str, tmp_path: Path) -> None:
    """From a snapshot in the middle of a buffer, from the log, and on another engine."""
    store = bm.open_store(tmp_path / "store.db")
    store.publish("m", started("classes", bm.LowRank(2, buffer=4), engine, "float32"))
    x, y = stream("classes", 12)
    with bm.OnlineUpdater(store, "m", engine=engine, snapshot_every=7) as updater:
        for row in range(9):
            updater.observe(x[row], y[row], event_id=f"e-{row}")
    with bm.OnlineUpdater(store, "m", engine=engine) as updater:
        for row in range(9, 12):
            updater.observe(x[row], y[row], event_id=f"e-{row}")
    gone_on = bm.load(store, "m", engine=engine)
    assert gone_on.to_arrays()["weights.waiting"] == 2
    whole = learned(started("classes", bm.LowRank(2, buffer=4), engine, "float32"), "classes", [1] * 12)
    assert relative_error(answers(gone_on), answers(whole)) < 1e-5
    there = bm.load(store, "m", engine="numpy")
    assert relative_error(answers(there), answers(gone_on)) < 1e-4
    again = bm.load(store, "m", engine=engine).to_arrays()
    for name, array in gone_on.to_arrays().items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)


def test_shared_weights_are_folded_in_at_once() -> None:
    """Rows that pass a layer twice do not fit the buffer: the posterior is that of the rank alone."""
    pairs, choices = np.random.default_rng(5).standard_normal((6, 4)), np.array([0, 1, 1, 0, 1, 0])
    network, likelihood = bm.PairwiseMLP((4,)), bm.BradleyTerry()
    means = []
    for structure in (bm.LowRank(3), bm.LowRank(3, buffer=4)):
        model = bm.BayesianMLP(network, likelihood, structure=structure, engine="numpy", dtype="float64")
        model.start_from_prior(4)
        for pair, choice in zip(pairs, choices, strict=True):
            model.update(pair[None], np.array([choice]))
        means.append(model.to_arrays()["weights.mean.0"])
    assert model.to_arrays()["weights.waiting"] == 0
    np.testing.assert_allclose(means[1], means[0], rtol=1e-9)


@pytest.mark.parametrize("dynamics", [bm.Forgetting(0.9), bm.RandomWalk(0.01)], ids=repr)
def test_dynamics_fold_what_waits(dynamics: Any) -> None:
    plain, mine = (
        learned(started("classes", structure, "numpy", dynamics=dynamics), "classes", [1] * 5)
        for structure in (bm.LowRank(30), bm.LowRank(30, buffer=3))
    )
    assert relative_error(answers(mine), answers(plain)) < 1e-9


@pytest.mark.parametrize("engine", [*on("numpy", "torch"), IN_JAX])
def test_many_rows_in_one_dispatch_are_those_one_by_one(engine: str) -> None:
    one, many = (started("classes", bm.LowRank(2, buffer=2), engine) for _ in range(2))
    learned(one, "classes", [1] * 130)
    many.update_each(*stream("classes", 130))
    assert one.to_arrays()["weights.waiting"] == many.to_arrays()["weights.waiting"] == 1
    assert relative_error(answers(many), answers(one)) < 1e-9


@pytest.mark.parametrize("engine", [*on("numpy", "torch"), IN_JAX])
@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_rows_that_say_nothing_take_no_place(kind: str, engine: str) -> None:
    """Of weight 0, as padding is, alone or between others; what waits stays exact, and a full buffer full."""
    exact, mine = (started(kind, structure, engine) for structure in (bm.Full(), bm.LowRank(1, buffer=8)))
    x, y = stream(kind, 9)
    weight = np.array([1, 0, 1, 0, 2, 1, 0.5, 0, 1])
    for model in (exact, mine):
        for rows in (slice(0, 5), slice(5, 6), slice(6, 9)):  # in eight, one and four places
            model.update(x[rows], y[rows], weight=weight[rows])
    assert mine.to_arrays()["weights.waiting"] == np.count_nonzero(weight)
    learned(mine, kind, [1, 1])
    learned(exact, kind, [1, 1])
    assert mine.to_arrays()["weights.waiting"] == 8
    assert relative_error(answers(mine), answers(exact)) < 1e-9
    before = answers(mine)
    for _ in range(9):
        mine.update(x[:1], y[:1], weight=0)
    assert mine.to_arrays()["weights.waiting"] == 8
    np.testing.assert_array_equal(answers(mine), before)


def test_what_the_buffer_is_not_for() -> None:
    with pytest.raises(InvalidInput, match=r"LowRank\.buffer must be an integer of at least 0, got -1"):
        bm.LowRank(3, buffer=-1)
    with pytest.raises(InvalidInput, match=r"LowRank\.buffer must be 0 in Blocks and LastLayer"):
        bm.LastLayer(hidden=bm.LowRank(3, buffer=2)).resolve(3)
    assert bm.LowRank(3, buffer=2).resolve(3) == BufferedLowRank(bm.LowRank(3), 2)
    assert bm.LowRank(3).resolve(3) == bm.LowRank(3)


@pytest.mark.parametrize("at_once", [1, 50, 2**22])
def test_products_of_rows_with_others(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many units are taken at a time."""
    monkeypatch.setattr(factors, "_AT_ONCE", at_once)
    rng = np.random.default_rng(6)
    one, other = (
        factors.LayerFactors(rng.standard_normal((rows, 4)), rng.standard_normal((rows, outputs, 7)))
        for rows, outputs in ((5, 3), (6, 2))
    )
    variance = rng.random((4, 7))
    expected = np.einsum("ni,nko,io,bi,blo->nkbl", one.inputs, one.rows, variance, other.inputs, other.rows)
    np.testing.assert_allclose(one.gram_with(other, one.spread_with(other, variance)), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("engine", on("numpy", "torch"))
def test_the_root_is_of_the_rows_as_they_are_stored(engine: str) -> None:
    """In float32, of inputs that come again with noise of 10⁻⁷: nothing fails, and no variance is negative."""
    x = make_inputs(5, seed=7)
    y = np.sin(x @ np.random.default_rng(8).standard_normal((2, 2)))
    model = bm.BayesianMLP(
        bm.MLP((16, 16), "tanh"), bm.Gaussian(2, noise_variance=1e-7), structure=bm.LowRank(20, buffer=8),
        engine=engine, dtype="float32", standardize=False,
    )  # fmt: skip
    for event in range(60):
        model.update(x[event % 5 : event % 5 + 1], y[event % 5 : event % 5 + 1])
        covariance = model.predict(x).output_covariance
        assert covariance is not None
        assert np.diagonal(covariance, axis1=-2, axis2=-1).min() > 0
    arrays = {name.removeprefix("weights."): array.astype(np.float64) for name, array in model.to_arrays().items()}
    shapes = [arrays[f"mean.{i}"].shape for i in range(3)]
    directions = np.concatenate([dense.low_rank_columns(arrays, shapes).T, dense.waiting_rows(arrays, shapes)])
    scaled = directions / np.concatenate([arrays[f"diagonal.{i}"].reshape(-1) for i in range(3)])
    expected = np.eye(len(directions)) + scaled @ directions.T
    np.testing.assert_allclose(arrays["root"] @ arrays["root"].T, expected, rtol=1e-10, atol=1e-13 * expected.max())


def test_a_merge_is_by_replay_unless_it_is_told(tmp_path: Path) -> None:
    """A merge by differences drops what a stream still holds."""
    x, y = make_inputs(20, seed=9), np.random.default_rng(10).standard_normal(20)
    model = bm.BayesianMLP(
        bm.MLP(()), bm.Gaussian(noise_variance=0.1), structure=bm.LowRank(1, buffer=30), engine="numpy",
        dtype="float64", standardize=False,
    )  # fmt: skip
    model.start_from_prior(2)
    store = bm.open_store(tmp_path / "store.db")
    store.publish("m", model)
    store.branch("m", ["a", "b"])
    for name, rows in (("a", slice(0, 10)), ("b", slice(10, 20))):
        with bm.OnlineUpdater(store, name, engine="numpy") as updater:
            for row in range(rows.start, rows.stop):
                updater.observe(x[row], y[row])
    store.merge("m", ["a", "b"])
    for row in range(20):
        model.update(x[row : row + 1], y[row : row + 1])
    assert relative_error(answers(bm.load(store, "m", engine="numpy")), answers(model)) < 1e-12


def test_a_description_from_before_there_were_buffers_is_the_same() -> None:
    assert to_spec(bm.LowRank(3)) == {"type": "LowRank", "rank": 3}
    assert from_spec(to_spec(bm.LowRank(3, buffer=2))) == bm.LowRank(3, buffer=2)
    assert from_spec({"type": "LowRank", "rank": 3}) == bm.LowRank(3)
