"""Functions drawn from the posterior: their moments, and that they are functions."""

from __future__ import annotations

from typing import Any

import dense
import numpy as np
import pytest
from cases import LIKELIHOODS, NETWORK, STRUCTURES, make_inputs, make_targets, on, relative_error

import bayesmlp as bm
from bayesmlp.inference.errors import InvalidInput, NotFitted

DRAWS = 4000


def learned(likelihood: str, structure: Any, engine: str = "numpy") -> bm.BayesianMLP:
    """A model after one batch; numeric targets have units of their own."""
    model = bm.BayesianMLP(
        NETWORK, LIKELIHOODS[likelihood], structure=structure, engine=engine, dtype="float64", seed=4
    )
    x = make_inputs(12, seed=120)
    model.start_from_prior(x.shape[1])
    scales, size = model.likelihood.scales_targets, model.likelihood.num_targets
    units = model.scaling._replace(target_mean=np.full(size, 5.0), target_scale=np.full(size, 3.0)) if scales else None
    model._scaling = units or model.scaling
    model.update(x, make_targets(model.likelihood, x, seed=121))
    return model


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("likelihood", ["gaussian_known", "categorical"])
def test_linearized_functions_have_the_predictive_moments(likelihood: str, structure: str) -> None:
    model, x = learned(likelihood, STRUCTURES[structure]), make_inputs(3, seed=122)
    values = model.sample_functions(DRAWS, seed=1)(x)
    predictive = model.predict(x)
    scale, shift = model.scaling.target_scale, model.scaling.target_mean
    assert predictive.output_covariance is not None
    covariance = predictive.output_covariance[0] * scale[0] ** 2  # targets have one scale
    mean = predictive.output_mean[0] * scale + shift
    deviation = np.sqrt(np.einsum("nkk->nk", covariance))
    np.testing.assert_array_less(np.abs(values.mean(0) - mean), 5 * deviation / DRAWS**0.5)
    centred = values - mean
    got = np.einsum("snk,snl->nkl", centred, centred) / DRAWS
    products = deviation[:, :, None] * deviation[:, None, :]
    error = np.sqrt((covariance**2 + products**2) / DRAWS)  # of a product of normals
    np.testing.assert_array_less(np.abs(got - covariance), 5 * error)
    variance = model.output_variance(x)
    np.testing.assert_allclose(variance * scale[0] ** 2, deviation**2, rtol=1e-10)


def test_values_at_different_inputs_go_together() -> None:
    """Their covariance over the draws is J Λ⁻¹ J'ᵀ between the inputs too."""
    model, x = learned("gaussian_known", bm.Full()), make_inputs(2, seed=123)
    values = model.sample_functions(DRAWS, seed=2)(x)[:, :, 0]
    structure = model.structure
    arrays = structure.to_arrays(model.engine, model.posterior.weights)
    shapes = [matrix.shape for matrix in model.mean_weights()]
    jac = dense.jacobian("tanh", model.mean_weights(), x)[:, 0]
    exact = 9.0 * jac @ np.linalg.inv(dense.precision(structure, arrays, shapes)) @ jac.T
    got = np.cov(values.T)
    error = np.sqrt((exact**2 + np.outer(np.diag(exact), np.diag(exact))) / DRAWS)
    np.testing.assert_array_less(np.abs(got - exact), 5 * error)


def test_learned_noise_spreads_the_functions_as_a_student_t() -> None:
    model, x = learned("gaussian", bm.Full()), make_inputs(3, seed=124)
    values = model.sample_functions(20 * DRAWS, seed=3)(x)
    expected = model.predict(x).epistemic_variance
    np.testing.assert_allclose(values.var(0), expected, rtol=0.1)  # its fourth moment is large, its shape being 7


@pytest.mark.parametrize("engine", on("numpy", "torch", "jax"))
@pytest.mark.parametrize("method", ["linearized", "samples"])
def test_a_function_has_one_value_however_it_is_asked(method: str, engine: str) -> None:
    model, x = learned("categorical", bm.LastLayer(), engine), make_inputs(300, seed=125)
    functions = model.sample_functions(3, method=method, seed=5)
    assert len(functions) == 3
    whole = functions(x)
    assert whole.shape == (3, 300, 3)
    pieces = np.concatenate([functions(x[:7]), functions(x[7:])], axis=1)
    assert relative_error(pieces, whole) < 1e-12
    model.update(x[:5], make_targets(model.likelihood, x[:5], seed=126))
    np.testing.assert_array_equal(functions(x), whole)
    assert relative_error(model.sample_functions(3, method=method, seed=5)(x), whole) > 1e-3


def test_the_seed_decides() -> None:
    model, x = learned("gaussian_known", bm.Diagonal()), make_inputs(4, seed=127)
    first, again, other = (model.sample_functions(2, seed=seed)(x) for seed in (6, 6, 7))
    np.testing.assert_array_equal(first, again)
    assert relative_error(other, first) > 1e-3


def test_sampled_functions_are_networks_of_sampled_weights() -> None:
    model, x = learned("gaussian_known", bm.Diagonal()), make_inputs(4, seed=128)
    functions = model.sample_functions(2, method="samples", seed=8)
    values = functions(x)
    ((means, deviations, _),) = functions._groups
    for s in range(2):
        layers = [m + d[s] for m, d in zip(means, deviations, strict=True)]
        expected = dense.outputs("tanh", layers, x) * 3.0 + 5.0
        np.testing.assert_allclose(values[s], expected, rtol=1e-12)


def test_bad_arguments_are_named() -> None:
    model = learned("gaussian_known", bm.Diagonal())
    with pytest.raises(InvalidInput, match="method must be one of linearized, samples, got 'mean'"):
        model.sample_functions(1, method="mean")
    with pytest.raises(InvalidInput, match="num_functions must be an integer of at least 1, got 0"):
        model.sample_functions(0)
    with pytest.raises(InvalidInput, match="seed must be an integer of at least 0, got -1"):
        model.sample_functions(1, seed=-1)
    with pytest.raises(InvalidInput, match="X"):
        model.sample_functions(1)(np.zeros((2, 5)))
    with pytest.raises(NotFitted):
        bm.BayesianMLP(NETWORK, bm.Gaussian(), engine="numpy").sample_functions(1)
