"""Comparisons: a network of the difference of two utilities, in every structure and method."""

from __future__ import annotations

import dense
import numpy as np
import pytest
from cases import NUM_INPUTS, STRUCTURES, make_inputs, on, random_arrays
from scipy import special

import bayesmlp as bm
from bayesmlp.inference.engines import Engine, get_engine
from bayesmlp.inference.errors import InvalidInput
from bayesmlp.inference.filtering import FilterModel, Posterior

NETWORK = bm.PairwiseMLP(hidden=(4, 3), activation="tanh")
SHAPES = NETWORK.shapes(2 * NUM_INPUTS, 1)
EXACT = 1e-10


def pairs(rows: int, seed: int) -> np.ndarray:
    return np.concatenate([make_inputs(rows, seed), make_inputs(rows, seed + 1)], axis=1)


def difference(function: str, layers: list[np.ndarray], x: np.ndarray) -> np.ndarray:
    """Outputs or Jacobian of both halves, subtracted, by brute force."""
    first, second = (getattr(dense, function)("tanh", layers, half) for half in np.split(x, 2, axis=1))
    return first - second


@pytest.mark.parametrize("framework", on("numpy", "torch", "jax"))
def test_outputs_and_factors_are_differences(framework: str) -> None:
    engine = get_engine(framework, "float64")
    layers, x = list(NETWORK.initialise(2 * NUM_INPUTS, 1, seed=0)), pairs(3, seed=1)
    with engine.scope():
        weights = tuple(map(engine.asarray, layers))
        outputs, factors = NETWORK.factors(engine, weights, engine.asarray(x))
        jacobian = np.concatenate([engine.to_numpy(factor.dense(engine)) for factor in factors], axis=2)
        applied = NETWORK.apply(engine, weights, engine.asarray(x))
        utility = NETWORK.apply(engine, weights, engine.asarray(x[:, :NUM_INPUTS]))
    np.testing.assert_allclose(engine.to_numpy(outputs), difference("outputs", layers, x), rtol=EXACT, atol=EXACT)
    np.testing.assert_allclose(engine.to_numpy(applied), engine.to_numpy(outputs), rtol=EXACT, atol=EXACT)
    np.testing.assert_allclose(jacobian, difference("jacobian", layers, x), rtol=EXACT, atol=EXACT)
    expected = dense.outputs("tanh", layers, x[:, :NUM_INPUTS])
    np.testing.assert_allclose(engine.to_numpy(utility), expected, rtol=EXACT)


@pytest.mark.parametrize("framework", on("numpy", "torch"))
@pytest.mark.parametrize("name", STRUCTURES)
def test_a_step_on_pairs_is_the_dense_one(name: str, framework: str) -> None:
    structure, engine = STRUCTURES[name].resolve(NETWORK.num_layers), get_engine(framework, "float64")
    before = random_arrays(structure, SHAPES, seed=2)
    x, y, weight = pairs(3, seed=3), np.array([[1.0], [0.0], [1.0]]), np.array([1.0, 0.5, 2.0])
    model = FilterModel(NETWORK, bm.BradleyTerry(), structure, step=bm.LaplaceStep())
    step = model.compile(engine)
    arguments = (engine.asarray(array) for array in (x, y, weight, np.float64(1.0)))
    after, info = step(Posterior(structure.from_arrays(engine, before), ()), None, *arguments)
    assert bool(info.ok)
    arrays = structure.to_arrays(engine, after.weights)
    start = dense.mean(structure, before, SHAPES)
    layers = dense.split(start, SHAPES)
    f, jacobian = difference("outputs", layers, x), difference("jacobian", layers, x)
    prior = dense.precision(structure, before, SHAPES)
    moved, precision = dense.linearised_posterior(bm.Bernoulli(), f, jacobian, prior, y, weight)
    np.testing.assert_allclose(dense.mean(structure, arrays, SHAPES) - start, moved, rtol=EXACT, atol=EXACT)
    if structure == bm.Kronecker():  # it holds the partial traces of what was added, each half as a row of its own
        _, fisher = dense.score_and_fisher(bm.Bernoulli(), f + jacobian @ moved, y)
        halves = np.concatenate([dense.jacobian("tanh", layers, half) for half in np.split(x, 2, axis=1)])
        added = np.einsum("nkp,nkl,nlq->pq", halves, np.tile(weight[:, None, None] * fisher, (2, 1, 1)), halves)
        for layer in range(len(SHAPES)):
            where = np.ix_(*[dense.weight_indices(SHAPES, [layer])] * 2)
            expected = dense.kronecker_sums(before, layer, added[where])
            for side, exact in zip(("input", "output"), expected, strict=True):
                np.testing.assert_allclose(arrays[f"{side}_sum.{layer}"], exact, rtol=EXACT, atol=EXACT)
        return
    got = np.diag(dense.precision(structure, arrays, SHAPES))
    np.testing.assert_allclose(got, np.diag(precision), rtol=EXACT, atol=EXACT)


def test_noise_of_both_halves_is_that_of_common_weights(engine64: Engine) -> None:
    """Moments of a linear model, whose output is normal: variance (a - b)² S² without the bias."""
    network, draws = bm.PairwiseMLP(hidden=()), 20_000
    x = np.repeat(pairs(1, seed=5), draws, axis=0)
    rng = np.random.default_rng(6)
    mean, deviation = rng.standard_normal((NUM_INPUTS + 1, 1)), rng.uniform(0.5, 1, (NUM_INPUTS + 1, 1))
    (shape,) = network.noise_shapes(draws, (mean,))
    with engine64.scope():
        arrays = (engine64.asarray(a) for a in (mean, deviation**2, x, rng.standard_normal(shape)))
        matrix, spread, rows, noise = arrays
        got = engine64.to_numpy(network.apply_with_noise(engine64, (matrix,), (spread,), rows, (noise,)))[:, 0]
    gap = x[0, :NUM_INPUTS] - x[0, NUM_INPUTS:]
    variance = float(gap**2 @ deviation[:-1, 0] ** 2)
    assert abs(got.mean() - gap @ mean[:-1, 0]) < 5 * (variance / draws) ** 0.5
    assert abs(got.var() - variance) < 5 * variance * (2 / draws) ** 0.5


@pytest.mark.parametrize("engine", on("numpy", "torch"))
def test_preferences_teach_a_utility(engine: str) -> None:
    rng = np.random.default_rng(7)
    x = pairs(600, seed=8)
    utility = lambda items: 2 * np.sin(items[:, 0]) + items[:, 1]  # noqa: E731
    gap = utility(x[:, :2]) - utility(x[:, 2:])
    y = (rng.uniform(size=600) < special.expit(gap)).astype(int)
    model = bm.BayesianMLP(bm.PairwiseMLP((20,), "tanh"), bm.BradleyTerry(), structure=bm.Full(), engine=engine, seed=1)
    if engine == "torch":
        model.fit(x[:400], y[:400], method=bm.Laplace(bm.TrainingOptions(epochs=100)))
    for start in range(0 if engine == "numpy" else 400, 600, 10):
        model.update(x[start : start + 10], y[start : start + 10])
    items = make_inputs(200, seed=9)
    got = model.predict(items)
    assert np.corrcoef(got.average_output[:, 0], utility(items))[0, 1] > 0.9
    # antisymmetric: the other order has the other probability
    forth, back = (model.predict(order).mean for order in (x[:20], np.roll(x[:20], 2, axis=1)))
    np.testing.assert_allclose(forth + back, 1, atol=1e-6)
    again = bm.BayesianMLP.from_parts(model.spec(), model.to_arrays(), "numpy")
    np.testing.assert_allclose(again.predict(items).average_output, got.average_output, atol=1e-5)


def test_both_halves_of_a_pair_are_scaled_alike() -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install 'bayesmlp[torch]'")
    x = np.concatenate([make_inputs(30, seed=10) * 5 + 2, make_inputs(30, seed=11)], axis=1)
    model = bm.BayesianMLP(bm.PairwiseMLP((3,)), bm.BradleyTerry(), engine="torch")
    model.fit(x, np.arange(30) % 2, method=bm.Laplace(bm.TrainingOptions(epochs=2)))
    both = x.reshape(60, 2)
    np.testing.assert_allclose(model.scaling.input_mean, np.tile(both.mean(0), 2), rtol=1e-12)
    np.testing.assert_allclose(model.scaling.input_scale, np.tile(both.std(0), 2), rtol=1e-12)


def test_what_is_no_pair_is_refused() -> None:
    model = bm.BayesianMLP(bm.PairwiseMLP((3,)), bm.BradleyTerry(), engine="numpy")
    with pytest.raises(InvalidInput, match="X must hold pairs, an even number of columns, got 3"):
        model.update(np.zeros((2, 3)), [0, 1])
    model.update(pairs(2, seed=12), [0, 1])
    with pytest.raises(InvalidInput, match=r"X must have shape \(rows, 4\), got shape \(2, 2\)"):
        model.update(np.zeros((2, 2)), [0, 1])
    with pytest.raises(InvalidInput, match=r"X must have shape \(rows, 4 or 2\), got shape \(2, 3\)"):
        model.predict(np.zeros((2, 3)))
    with pytest.raises(InvalidInput, match="y must be 0 or 1, got 2"):
        model.update(pairs(2, seed=12), [0, 2])
