"""Batch methods against closed forms: the objective they minimise, the optimum, and the curvature they add."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dense
import numpy as np
import pytest
from cases import (
    LIKELIHOODS,
    LINEAR,
    NETWORK,
    STRUCTURES,
    make_inputs,
    make_targets,
    needs,
    on,
    relative_error,
    shapes_of,
)
from scipy import linalg

import bayesmlp as bm
from bayesmlp.inference.errors import InvalidInput
from bayesmlp.inference.likelihoods import Likelihood
from bayesmlp.inference.methods import Method
from bayesmlp.inference.training import learning_rate_schedule

ROWS = 200
"""More than one chunk of the curvature's sum for three outputs, and no multiple of it."""
EXACT = 1e-10
STILL = bm.TrainingOptions(epochs=1, batch_size=ROWS, learning_rate=1e-30)
"""One step that moves nothing, on all rows at once: the objective and the curvature at a known point."""


def fit(
    network: bm.MLP,
    likelihood: Likelihood,
    method: Method,
    *,
    structure: Any = None,
    engine: str = "torch",
    weight: Any = None,
    seed: int = 0,
) -> tuple[bm.BayesianMLP, np.ndarray, np.ndarray]:
    """A float64 model fitted to the usual rows, unscaled, and the rows."""
    x = make_inputs(ROWS, seed=110)
    y = make_targets(likelihood, x, seed=111)
    model = bm.BayesianMLP(
        network,
        likelihood,
        structure=structure or bm.Full(),
        engine=engine,
        dtype="float64",
        standardize=False,
        seed=seed,
    )
    return model.fit(x, y, method=method, weight=weight), x, likelihood.prepare(y)


def prior_precision(network: bm.MLP, likelihood: Likelihood) -> np.ndarray:
    return dense.flatten(bm.NormalPrior().precision(shapes_of(likelihood, network)))


def posterior_precision(model: bm.BayesianMLP) -> np.ndarray:
    structure = model.structure.resolve(model.network.num_layers)
    arrays = structure.to_arrays(model.engine, model.posterior.weights)
    return dense.precision(structure, arrays, shapes_of(model.likelihood, model.network))


def dispersion(model: bm.BayesianMLP) -> float:
    return float(model.likelihood.dispersion(model.posterior.likelihood))


def curvature(model: bm.BayesianMLP, x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Σ w Jᵀ F J at the fitted mean, by brute force."""
    layers = model.mean_weights()
    f = dense.outputs("tanh", layers, x)
    jac = dense.jacobian("tanh", layers, x)
    _, fisher = dense.score_and_fisher(model.likelihood, f, y)
    return np.einsum("nkp,nkl,nlq,n->pq", jac, fisher, jac, weight, optimize=True)


# -- curvature --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("engine", on("torch", "jax"))
@pytest.mark.parametrize("name", ["gaussian", "categorical"])
def test_laplace_adds_the_curvature_of_every_row(name: str, engine: str) -> None:
    assert_laplace(LIKELIHOODS[name], bm.Full(), engine)


@pytest.mark.parametrize("name", ["gaussian_known", "bernoulli"])
@pytest.mark.parametrize("structure", ["diagonal", "full"])
def test_laplace_adds_what_the_structure_can_hold(name: str, structure: str) -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install 'bayesmlp[torch]'")
    assert_laplace(LIKELIHOODS[name], STRUCTURES[structure], "torch")


@pytest.mark.parametrize("engine", on("torch", "jax"))
def test_kronecker_laplace_keeps_the_partial_traces_of_the_curvature(engine: str) -> None:
    likelihood = LIKELIHOODS["categorical"]
    weight = np.random.default_rng(112).uniform(0.0, 2.0, ROWS)
    method = bm.Laplace(STILL)
    model, x, y = fit(NETWORK, likelihood, method, structure=bm.Kronecker(), engine=engine, weight=weight)
    shapes, whole = shapes_of(likelihood), curvature(model, x, y, weight)
    blocks = []
    for layer, shape in enumerate(shapes):
        where = dense.weight_indices(shapes, [layer])
        added = whole[np.ix_(where, where)]
        tensor = added.reshape(*shape, *shape)
        blocks.append(np.kron(np.einsum("iojo->ij", tensor), np.einsum("ioip->op", tensor)) / np.trace(added))
    expected = np.diag(prior_precision(NETWORK, likelihood)) + linalg.block_diag(*blocks)
    assert relative_error(posterior_precision(model), expected) < EXACT


@pytest.mark.parametrize("engine", on("torch", "jax"))
def test_kronecker_is_the_exact_curvature_of_one_row(engine: str) -> None:
    """One row's curvature is a Kronecker product already."""
    likelihood = LIKELIHOODS["categorical"]
    weight = np.eye(ROWS)[7]
    model, x, y = fit(NETWORK, likelihood, bm.Laplace(STILL), structure=bm.Kronecker(), engine=engine, weight=weight)
    shapes, whole = shapes_of(likelihood), curvature(model, x, y, weight)
    got = posterior_precision(model)
    for layer in range(len(shapes)):
        where = np.ix_(*2 * [dense.weight_indices(shapes, [layer])])
        expected = np.diag(prior_precision(NETWORK, likelihood))[where] + whole[where]
        assert relative_error(got[where], expected) < EXACT


def assert_laplace(likelihood: Likelihood, structure: Any, engine: str) -> None:
    weight = np.random.default_rng(112).uniform(0.0, 2.0, ROWS)
    model, x, y = fit(NETWORK, likelihood, bm.Laplace(STILL), structure=structure, engine=engine, weight=weight)
    expected = np.diag(prior_precision(NETWORK, likelihood)) * dispersion(model) + curvature(model, x, y, weight)
    if structure == bm.Diagonal():
        expected = np.diag(np.diag(expected))
    assert relative_error(posterior_precision(model), expected) < EXACT
    if isinstance(likelihood, bm.Gaussian) and likelihood.learns_noise:
        shape = float(model.posterior.likelihood.shape)
        np.testing.assert_allclose(shape, likelihood.prior_shape + 0.5 * weight.sum(), rtol=EXACT)


@pytest.mark.parametrize("name", ["gaussian", "gaussian_known", "categorical"])
def test_the_empirical_fisher_is_the_sum_of_squared_gradients(name: str) -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install 'bayesmlp[torch]'")
    likelihood = LIKELIHOODS[name]
    weight = np.random.default_rng(115).uniform(0.0, 2.0, ROWS)
    model, x, y = fit(NETWORK, likelihood, bm.Laplace(STILL, curvature="empirical_fisher"), weight=weight)
    layers, phi = model.mean_weights(), dispersion(model)
    score, _ = dense.score_and_fisher(likelihood, dense.outputs("tanh", layers, x), y)
    gradients = np.einsum("nkp,nk->np", dense.jacobian("tanh", layers, x), score / phi)
    precision = np.diag(prior_precision(NETWORK, likelihood)) + gradients.T @ (weight[:, None] * gradients)
    assert relative_error(posterior_precision(model), phi * precision) < EXACT


def test_laplace_refuses_an_unknown_curvature() -> None:
    with pytest.raises(InvalidInput, match=r"Laplace\.curvature must be one of ggn, empirical_fisher, got 'hessian'"):
        bm.Laplace(curvature="hessian")


@pytest.mark.parametrize("engine", on("torch", "jax"))
def test_per_layer_adds_curvature_to_the_laplace_layers_alone(engine: str) -> None:
    likelihood = LIKELIHOODS["categorical"]
    method = bm.PerLayer(hidden=bm.Variational(STILL, initial_deviation=0.1), last=bm.Laplace(STILL))
    structure = bm.LastLayer(bm.Full(), bm.Full())
    model, x, y = fit(NETWORK, likelihood, method, structure=structure, engine=engine)
    prior = prior_precision(NETWORK, likelihood)
    shapes = shapes_of(likelihood)
    hidden, last = (dense.weight_indices(shapes, layers) for layers in ((0, 1), (2,)))
    expected = np.zeros((len(prior), len(prior)))
    expected[hidden, hidden] = prior[hidden] / 0.1**2
    added = curvature(model, x, y, np.ones(ROWS))
    expected[np.ix_(last, last)] = np.diag(prior[last]) + added[np.ix_(last, last)]
    assert relative_error(posterior_precision(model), expected) < EXACT


@pytest.mark.parametrize("engine", on("torch", "jax"))
@pytest.mark.parametrize("likelihood", [bm.Gaussian(), bm.Gaussian(noise_variance=0.3)], ids=["learned", "known"])
def test_variational_deviations_are_those_of_the_weights(likelihood: Likelihood, engine: str) -> None:
    """Whatever the dispersion, at whose unit the posterior is held."""
    model, _, _ = fit(LINEAR, likelihood, bm.Variational(STILL, initial_deviation=0.1), engine=engine)
    expected = 0.1**2 / prior_precision(LINEAR, likelihood)
    np.testing.assert_allclose(dense.flatten(model.weight_variances()), expected, rtol=EXACT)


# -- the objective ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("engine", on("torch", "jax"))
@pytest.mark.parametrize("name", ["gaussian", "categorical"])
def test_laplace_minimises_the_negative_log_posterior(name: str, engine: str) -> None:
    """Up to a constant; so that differences between two points are compared."""
    likelihood = LIKELIHOODS[name]
    weight = np.random.default_rng(113).uniform(0.0, 2.0, ROWS)
    got, expected = [], []
    for seed in (0, 1):
        model, x, y = fit(NETWORK, likelihood, bm.Laplace(STILL), engine=engine, weight=weight, seed=seed)
        layers = model.mean_weights()
        density = dense.log_prob(likelihood, dense.outputs("tanh", layers, x), y)
        if isinstance(likelihood, bm.Gaussian):  # the noise starts at its prior's mode, φ = rate/shape
            phi = likelihood.prior_rate / likelihood.prior_shape
            error = (y - dense.outputs("tanh", layers, x))[:, 0]
            density = -0.5 * error**2 / phi - 0.5 * np.log(2 * np.pi * phi)
        penalty = 0.5 * prior_precision(NETWORK, likelihood) @ dense.flatten(layers) ** 2
        got.append(ROWS * model.history[0])
        expected.append(penalty - weight @ density)
    np.testing.assert_allclose(got[0] - got[1], expected[0] - expected[1], rtol=EXACT)


@pytest.mark.parametrize("engine", on("torch", "jax"))
def test_variational_minimises_the_negative_evidence_lower_bound(engine: str) -> None:
    """On a linear model with known noise the bound is a closed form; its noise is averaged over epochs."""
    likelihood, deviation, epochs = bm.Gaussian(noise_variance=0.3), 0.7, 400
    method = bm.Variational(
        bm.TrainingOptions(epochs=epochs, batch_size=ROWS, learning_rate=1e-30), initial_deviation=deviation
    )
    model, x, y = fit(LINEAR, likelihood, method, structure=bm.Diagonal(), engine=engine)
    precision, mean = prior_precision(LINEAR, likelihood), dense.flatten(model.mean_weights())
    rows = np.concatenate([x, np.ones((ROWS, 1))], axis=1)
    squares = ((y[:, 0] - rows @ mean) ** 2 + rows**2 @ (deviation**2 / precision)).sum()
    negative_fit = 0.5 * squares / 0.3 + 0.5 * ROWS * np.log(2 * np.pi * 0.3)
    divergence = 0.5 * (len(mean) * (deviation**2 - 1 - 2 * np.log(deviation)) + precision @ mean**2)
    values = ROWS * np.array(model.history)
    assert len(values) == epochs
    assert values.std() > 0
    assert abs(values.mean() - negative_fit - divergence) < 5 * values.std() / epochs**0.5
    np.testing.assert_allclose(np.diag(posterior_precision(model)), precision / deviation**2, rtol=EXACT)


# -- the optimum ------------------------------------------------------------------------------------------------------
LONG = bm.TrainingOptions(epochs=1500, batch_size=ROWS, learning_rate=0.03)


def ridge(likelihood: bm.Gaussian, x: np.ndarray, y: np.ndarray, phi: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and precision of the linear model's posterior, the noise variance given."""
    rows = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    precision = np.diag(prior_precision(LINEAR, likelihood)) + rows.T @ rows / phi
    return np.linalg.solve(precision, rows.T @ y[:, 0] / phi), precision


@pytest.mark.parametrize("engine", on("torch", "jax"))
def test_laplace_finds_the_mode_of_a_linear_model(engine: str) -> None:
    """To a hundredth of the posterior's standard deviation, which is all that an optimizer need do."""
    likelihood = bm.Gaussian(noise_variance=0.3)
    model, x, y = fit(LINEAR, likelihood, bm.Laplace(LONG), engine=engine)
    mean, precision = ridge(likelihood, x, y, 0.3)
    deviation = np.sqrt(np.diag(np.linalg.inv(precision)))
    np.testing.assert_array_less(np.abs(dense.flatten(model.mean_weights()) - mean), 0.01 * deviation)
    assert relative_error(posterior_precision(model), precision) < EXACT


@pytest.mark.parametrize("engine", on("torch", "jax"))
def test_learned_noise_is_at_its_mode(engine: str) -> None:
    likelihood = bm.Gaussian(prior_shape=3.0, prior_rate=2.0)
    model, x, y = fit(LINEAR, likelihood, bm.Laplace(LONG), engine=engine)
    phi = dispersion(model)
    mean, precision = ridge(likelihood, x, y, phi)
    deviation = np.sqrt(np.diag(np.linalg.inv(precision)))
    np.testing.assert_array_less(np.abs(dense.flatten(model.mean_weights()) - mean), 0.01 * deviation)
    error = y - dense.outputs("tanh", model.mean_weights(), x)
    mode = (2.0 + 0.5 * (error**2).sum()) / (3.0 + 0.5 * ROWS)
    spread = phi * np.sqrt(2 / ROWS)  # about its posterior's standard deviation
    assert abs(phi - mode) < 0.01 * spread
    assert relative_error(posterior_precision(model), precision * phi) < EXACT


@pytest.mark.parametrize("engine", on("torch", "jax"))
def test_variational_finds_the_mean_field_optimum_of_a_linear_model(engine: str) -> None:
    """There the means are the exact ones, and each precision is the diagonal of the exact precision.

    The gradients are random, so that the optimizer's own spread is what limits the answer: a quarter of a standard
    deviation for the means, a quarter for the deviations.
    """
    likelihood = bm.Gaussian(noise_variance=0.3)
    model, x, y = fit(LINEAR, likelihood, bm.Variational(LONG), structure=bm.Diagonal(), engine=engine)
    mean, precision = ridge(likelihood, x, y, 0.3)
    deviation = 1 / np.sqrt(np.diag(precision))
    np.testing.assert_array_less(np.abs(dense.flatten(model.mean_weights()) - mean), 0.25 * deviation)
    got = 1 / np.sqrt(np.diag(posterior_precision(model)))
    np.testing.assert_allclose(got, deviation, rtol=0.25)


# -- the schedule -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("steps", [1, 7, 400])
def test_the_learning_rate_warms_up_and_ends_near_zero(steps: int) -> None:
    rates = learning_rate_schedule(steps, 0.02)
    assert rates.shape == (steps,)
    assert (rates > 0).all()
    assert rates.max() <= 0.02
    if steps == 400:
        assert (np.diff(rates[:20]) > 0).all()
        np.testing.assert_allclose(rates[19:21], 0.02, rtol=1e-12)
        assert (np.diff(rates[21:]) < 0).all()
        assert rates[-1] < 1e-4 * rates.max()


@pytest.mark.parametrize("engine", [pytest.param("torch", marks=needs("torch"))])
def test_steps_become_epochs_and_every_epoch_is_reported(engine: str) -> None:
    seen: list[Sequence[float]] = []
    x = make_inputs(ROWS, seed=114)
    model = bm.BayesianMLP(LINEAR, bm.Gaussian(), engine=engine)
    method = bm.Laplace(bm.TrainingOptions(steps=10, batch_size=64))  # three steps an epoch, so four epochs
    model.fit(x, x[:, 0], method=method, on_epoch=lambda *report: seen.append(report))
    assert [report[:2] for report in seen] == [(epoch, 4) for epoch in range(4)]
    assert [report[2] for report in seen] == model.history
