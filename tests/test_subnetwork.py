"""A subnetwork against the dense posterior of its own weights, the others held fixed."""

from __future__ import annotations

from typing import Any

import dense
import numpy as np
import pytest
from cases import LIKELIHOODS, NETWORK, make_inputs, make_targets, on, relative_error, shapes_of

import bayesmlp as bm
from bayesmlp.inference.engines import Engine, map_arrays
from bayesmlp.inference.errors import InvalidInput
from bayesmlp.inference.structures.subnetwork import SubnetworkState

EXACT = 1e-10
LIKELIHOOD = LIKELIHOODS["categorical"]
SHAPES = shapes_of(LIKELIHOOD)
SIZE = 9
TOTAL = sum(rows * columns for rows, columns in SHAPES)
STILL = bm.TrainingOptions(epochs=1, batch_size=60, learning_rate=1e-30)


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    """A random posterior of nine weights, spread over all layers."""
    rng = np.random.default_rng(130)
    means = {f"mean.{i}": 0.7 * rng.standard_normal(shape) for i, shape in enumerate(SHAPES)}
    root = np.diag(np.exp(0.3 * rng.standard_normal(SIZE))) + 0.2 * rng.standard_normal((SIZE, SIZE))
    return means | {"indices": np.sort(rng.permutation(TOTAL)[:SIZE]), "covariance_root": root}


def covariance_of(arrays: dict[str, np.ndarray]) -> np.ndarray:
    root = arrays["covariance_root"]
    return np.asarray(root @ root.T)


def test_primitives_are_those_of_the_dense_posterior(engine64: Engine, arrays: dict[str, np.ndarray]) -> None:
    structure, engine = bm.Subnetwork(SIZE), engine64
    x = make_inputs(3, seed=131)
    rng = np.random.default_rng(132)
    fisher, residual = rng.standard_normal((3, 3, 2)), rng.standard_normal((3, 3))
    growth = tuple(rng.uniform(0.1, 1.0, shape) for shape in SHAPES)
    other = arrays | {"covariance_root": 2 * arrays["covariance_root"], "mean.0": arrays["mean.0"] + 0.3}

    def answer(state: Any, other: Any, x: Any, fisher: Any, residual: Any, noise: Any, growth: Any) -> dict[str, Any]:
        _, factors = NETWORK.factors(engine, structure.mean(state), x)
        return {
            "covariance": structure.output_covariance(engine, state, factors, joint=True),
            "shifted": structure.shift(engine, state, factors, residual).mean,
            "learned": structure.add_precision(engine, state, factors, fisher).covariance_root,
            "transition": structure.transition(engine, state, other, 0.8, growth),
            "samples": structure.sample(engine, state, (noise,)),
            "variance": structure.marginal_variance(engine, state),
            "log_determinant": structure.log_determinant(engine, state),
            "kl": structure.kl(engine, state, other),
            "natural": structure.natural(engine, state),
        }

    states = [structure.from_arrays(engine, a) for a in (arrays, other)]
    rest = map_arrays(engine.asarray, (x, fisher, residual, np.eye(SIZE), growth))
    got = map_arrays(engine.to_numpy, engine.jit(answer)(*states, *rest))

    own, covariance = arrays["indices"], covariance_of(arrays)
    layers = [arrays[f"mean.{i}"] for i in range(3)]
    mean = dense.flatten(layers)
    jac = dense.jacobian("tanh", layers, x)[:, :, own].reshape(9, SIZE)
    assert relative_error(got["covariance"], jac @ covariance @ jac.T) < EXACT
    step = dense.flatten(got["shifted"]) - mean
    assert relative_error(step[own], covariance @ jac.T @ residual.reshape(-1)) < EXACT
    assert not np.delete(step, own).any()
    rows = np.einsum("nkr,nks->nrs", fisher, jac.reshape(3, 3, SIZE)).reshape(6, SIZE)
    learned = np.linalg.inv(np.linalg.inv(covariance) + rows.T @ rows)
    assert relative_error(got["learned"] @ got["learned"].T, learned) < EXACT
    relaxed = got["transition"]
    expected = 0.64 * covariance + np.diag(dense.flatten(growth)[own])
    assert relative_error(relaxed.covariance_root @ relaxed.covariance_root.T, expected) < EXACT
    other_mean = dense.flatten([other[f"mean.{i}"] for i in range(3)])
    moved = mean.copy()
    moved[own] = 0.8 * mean[own] + 0.2 * other_mean[own]
    assert relative_error(dense.flatten(relaxed.mean), moved) < EXACT
    deviations = np.stack([dense.flatten([layer[s] for layer in got["samples"]]) for s in range(SIZE)]) - mean
    assert relative_error((deviations.T @ deviations)[np.ix_(own, own)], covariance) < EXACT
    assert not np.delete(deviations, own, axis=1).any()
    variance = dense.flatten(got["variance"])
    assert relative_error(variance[own], np.diag(covariance)) < EXACT
    assert not np.delete(variance, own).any()
    precision = np.linalg.inv(covariance)
    np.testing.assert_allclose(got["log_determinant"], np.linalg.slogdet(precision)[1], rtol=EXACT)
    divergence = dense.gaussian_kl(mean[own], precision, other_mean[own], precision / 4)
    np.testing.assert_allclose(got["kl"], divergence, rtol=EXACT)
    shifted, (indices, own_precision) = got["natural"]
    assert relative_error(dense.flatten(shifted)[own], precision @ mean[own]) < EXACT
    np.testing.assert_array_equal(indices, own)
    assert relative_error(own_precision, precision) < EXACT


def fitted(structure: Any, engine: str) -> bm.BayesianMLP:
    x = make_inputs(60, seed=133)
    model = bm.BayesianMLP(
        NETWORK, LIKELIHOOD, structure=structure, engine=engine, dtype="float64", standardize=False, seed=2
    )
    return model.fit(x, make_targets(LIKELIHOOD, x, seed=134), method=bm.Laplace(STILL))


@pytest.mark.parametrize("engine", on("torch", "jax"))
def test_a_fit_chooses_by_a_diagonal_laplace_and_then_learns_every_correlation(engine: str) -> None:
    state: SubnetworkState = fitted(bm.Subnetwork(SIZE), engine).posterior.weights
    variances = dense.flatten(fitted(bm.Diagonal(), engine).weight_variances())
    own = np.sort(np.argsort(-variances, kind="stable")[:SIZE])
    np.testing.assert_array_equal(np.asarray(state.indices), own)
    full = fitted(bm.Full(), engine).posterior.weights
    precision = np.linalg.inv(np.asarray(full.covariance_root) @ np.asarray(full.covariance_root).T)
    root = np.asarray(state.covariance_root)
    assert relative_error(root @ root.T, np.linalg.inv(precision[np.ix_(own, own)])) < EXACT


@pytest.mark.parametrize("engine", on("torch", "jax"))
def test_a_subnetwork_of_every_weight_is_full(engine: str) -> None:
    whole, full = fitted(bm.Subnetwork(10_000), engine), fitted(bm.Full(), engine)
    x = make_inputs(4, seed=135)
    for model in (whole, full):
        model.update(x, [0, 1, 2, 0])
    assert relative_error(whole.predict(x).output_covariance, full.predict(x).output_covariance) < EXACT
    assert relative_error(whole.predict(x).output_mean, full.predict(x).output_mean) < EXACT


def test_forgetting_relaxes_the_chosen_weights_to_their_prior() -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install 'bayesmlp[torch]'")
    x = make_inputs(60, seed=136)
    structure = bm.Blocks(((bm.Subnetwork(4), (0, 1)), (bm.Diagonal(), (2,))))
    model = bm.BayesianMLP(NETWORK, LIKELIHOOD, structure=structure, dynamics=bm.Forgetting(0.9), engine="torch")
    model.fit(x, make_targets(LIKELIHOOD, x, seed=137), method=bm.Laplace(STILL))
    learned = [variance > 0 for variance in model.weight_variances()]
    assert sum(int(layer.sum()) for layer in learned[:2]) == 4
    model.update(x[:1], [0], weight=0.0, elapsed=1000.0)
    for variance, uncertain, prior in zip(
        model.weight_variances(), learned, model.prior.precision(SHAPES), strict=True
    ):
        np.testing.assert_allclose(variance, uncertain / prior, rtol=1e-5)


def test_a_stored_subnetwork_goes_on_elsewhere() -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install 'bayesmlp[torch]'")
    model, x = fitted(bm.Subnetwork(SIZE), "torch"), make_inputs(5, seed=138)
    there = model.to_engine("numpy")
    for each in (model, there):
        each.update(x, [0, 1, 2, 0, 1])
    assert relative_error(there.predict(x).probabilities, model.predict(x).probabilities) < 1e-10
    assert there.spec() == model.spec()


def test_a_size_below_one_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"Subnetwork\.size must be an integer of at least 1, got 0"):
        bm.Subnetwork(0)
