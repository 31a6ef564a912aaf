"""Layer factors against the dense Jacobian; scores and Fisher information against derivatives of the log density."""

from __future__ import annotations

from typing import Any, NamedTuple

import dense
import numpy as np
import pytest
from cases import LIKELIHOODS, make_inputs, make_likelihood_state, make_targets, on
from scipy import stats

import bayesmlp as bm
from bayesmlp.inference.engines import Engine, NumpyEngine, get_engine, map_arrays
from bayesmlp.inference.factors import LayerFactors
from bayesmlp.inference.likelihoods import NoiseState

ROWS, OUTPUTS, RANK = 3, 2, 4


class Contractions(NamedTuple):
    """Everything that structures ask of a network's factors, and the arguments it was asked with."""

    layers: tuple[np.ndarray, ...]
    jacobians: list[np.ndarray]
    expected_outputs: np.ndarray
    left: np.ndarray
    residual: np.ndarray
    variances: list[np.ndarray]
    directions: list[np.ndarray]
    outputs: np.ndarray
    results: list[dict[str, Any]]


@pytest.fixture(params=["relu", "tanh", "gelu", "silu"], scope="module")
def contractions(request: pytest.FixtureRequest, engine64: Engine) -> Contractions:
    """All contractions of a three-layer network, for one engine and activation, compiled once."""
    network = bm.MLP(hidden=(4, 3), activation=request.param)
    rng = np.random.default_rng(0)
    shapes = network.shapes(2, OUTPUTS)
    layers = tuple(rng.standard_normal(shape) for shape in shapes)
    x = make_inputs(ROWS, seed=1)
    left = rng.standard_normal((ROWS, OUTPUTS, RANK))
    residual = rng.standard_normal((ROWS, OUTPUTS))
    variances = [rng.uniform(0.5, 2.0, shape) for shape in shapes]
    directions = [rng.standard_normal((RANK, *shape)) for shape in shapes]

    def contract(
        weights: Any, x: Any, left: Any, residual: Any, variances: Any, directions: Any
    ) -> tuple[Any, list[dict[str, Any]]]:
        outputs, factors = network.factors(engine64, weights, x)

        def all_of(f: LayerFactors, variance: Any, direction: Any) -> dict[str, Any]:
            return {
                "dense": f.dense(engine64),
                "left": f.left_multiply(left).dense(engine64),
                "pulled": f.pull_back(residual),
                "squares": f.squares(engine64),
                "gram": f.gram(engine64, variance, joint=False),
                "joint_gram": f.gram(engine64, variance, joint=True),
                "single_gram": LayerFactors(f.inputs[:1], f.rows[:1]).gram(engine64, variance, joint=True),
                "pushed": f.push_forward(engine64, direction),
            }

        return outputs, [all_of(*layer) for layer in zip(factors, variances, directions, strict=True)]

    arguments = map_arrays(engine64.asarray, (layers, x, left, residual, tuple(variances), tuple(directions)))
    outputs, results = engine64.jit(contract)(*arguments)
    jac = dense.jacobian(network.activation, layers, x)
    ends = np.cumsum([rows * columns for rows, columns in shapes])[:-1]
    return Contractions(
        layers,
        np.split(jac, ends, axis=2),
        dense.outputs(network.activation, layers, x),
        left,
        residual,
        variances,
        directions,
        engine64.to_numpy(outputs),
        [map_arrays(engine64.to_numpy, result) for result in results],
    )


def close(got: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)


def test_outputs_and_dense_rows_are_the_network_and_its_jacobian(contractions: Contractions) -> None:
    close(contractions.outputs, contractions.expected_outputs)
    for result, jac in zip(contractions.results, contractions.jacobians, strict=True):
        close(result["dense"], jac)


def test_left_multiply_takes_combinations_of_the_rows(contractions: Contractions) -> None:
    for result, jac in zip(contractions.results, contractions.jacobians, strict=True):
        close(result["left"], np.einsum("nkr,nkp->nrp", contractions.left, jac))


def test_pull_back_sums_to_the_transposed_product(contractions: Contractions) -> None:
    for result, jac, layer in zip(contractions.results, contractions.jacobians, contractions.layers, strict=True):
        columns, rows = result["pulled"]
        close(columns.T @ rows, np.einsum("nkp,nk->p", jac, contractions.residual).reshape(layer.shape))


def test_squares_sum_to_the_diagonal_of_the_gauss_newton_matrix(contractions: Contractions) -> None:
    for result, jac, layer in zip(contractions.results, contractions.jacobians, contractions.layers, strict=True):
        columns, rows = result["squares"]
        close(columns.T @ rows, (jac**2).sum(axis=(0, 1)).reshape(layer.shape))


def test_grams_are_output_covariances(contractions: Contractions) -> None:
    cases = zip(contractions.results, contractions.jacobians, contractions.variances, strict=True)
    for result, jac, variance in cases:
        joint = np.einsum("nkp,p,mlp->nkml", jac, variance.reshape(-1), jac)
        close(result["gram"], np.einsum("nknl->nkl", joint))
        close(result["joint_gram"], joint.reshape(ROWS * OUTPUTS, ROWS * OUTPUTS))
        close(result["single_gram"], joint[0, :, 0])


def test_push_forward_is_the_product_with_directions(contractions: Contractions) -> None:
    cases = zip(contractions.results, contractions.jacobians, contractions.directions, strict=True)
    for result, jac, directions in cases:
        close(result["pushed"], np.einsum("nkp,rp->nkr", jac, directions.reshape(RANK, -1)))


def test_apply_takes_a_leading_axis_of_sampled_weights(engine64: Engine) -> None:
    network = bm.MLP(hidden=(4, 3), activation="gelu")
    rng = np.random.default_rng(2)
    sampled = tuple(rng.standard_normal((5, *shape)) for shape in network.shapes(2, OUTPUTS))
    x = make_inputs(ROWS, seed=3)
    with engine64.scope():
        got = network.apply(engine64, map_arrays(engine64.asarray, sampled), engine64.asarray(x))
    expected = [dense.outputs("gelu", [layer[s] for layer in sampled], x) for s in range(5)]
    close(engine64.to_numpy(got), np.stack(expected))


def test_local_reparametrisation_has_the_moments_of_the_weights(engine64: Engine) -> None:
    network = bm.MLP(hidden=(4,), activation="silu")
    rng = np.random.default_rng(4)
    means, deviations = ([rng.uniform(0.2, 1, shape) for shape in network.shapes(2, OUTPUTS)] for _ in range(2))
    x = make_inputs(ROWS, seed=5)
    noise = [rng.standard_normal((ROWS, width)) for width in (4, OUTPUTS)]
    hidden = x @ means[0][:-1] + means[0][-1]
    hidden = hidden + np.sqrt(x**2 @ deviations[0][:-1] ** 2 + deviations[0][-1] ** 2) * noise[0]
    hidden = dense.ACTIVATIONS["silu"](hidden)
    expected = hidden @ means[1][:-1] + means[1][-1]
    with engine64.scope():
        convert = engine64.asarray
        arguments = (
            [convert(m) for m in means],
            [convert(deviations[0] ** 2), None],
            convert(x),
            [convert(noise[0]), None],
        )
        close(engine64.to_numpy(network.apply_with_noise(engine64, *arguments)), expected)


# -- likelihoods ------------------------------------------------------------------------------------------------------
@pytest.fixture(params=LIKELIHOODS)
def likelihood(request: pytest.FixtureRequest) -> Any:
    """Each likelihood in turn."""
    return LIKELIHOODS[request.param]


CANONICAL = [name for name in LIKELIHOODS if name in ("gaussian", "gaussian_known", "categorical", "bernoulli")]
"""Their outputs are natural parameters: the Fisher information is minus the Hessian, whatever y."""


def random_outputs(likelihood: Any, rows: int = 5) -> tuple[np.ndarray, np.ndarray]:
    outputs = 2 * np.random.default_rng(6).standard_normal((rows, likelihood.num_outputs))
    return outputs, likelihood.prepare(make_targets(likelihood, make_inputs(rows, seed=7), seed=8))


def evaluated(engine: Engine, function: Any, likelihood: Any, *arrays: np.ndarray) -> np.ndarray:
    """``function(engine, *arrays, state)`` on an engine."""
    with engine.scope():
        state = make_likelihood_state(likelihood, engine)
        return engine.to_numpy(function(engine, *(engine.asarray(a) for a in arrays), state))


def test_unit_log_prob_is_the_density(engine64: Engine, likelihood: Any) -> None:
    outputs, y = random_outputs(likelihood)
    got = evaluated(engine64, likelihood.unit_log_prob, likelihood, outputs, y)
    close(got, dense.log_prob(likelihood, outputs, y, make_likelihood_state(likelihood, NumpyEngine())))


def test_score_is_the_gradient_of_the_log_density(gradient_engine64: Engine, likelihood: Any) -> None:
    engine = gradient_engine64
    outputs, y = (engine.asarray(a) for a in random_outputs(likelihood))
    state = make_likelihood_state(likelihood, engine)
    total = engine.value_and_grad(lambda f: engine.xp.sum(likelihood.unit_log_prob(engine, f, y, state)))
    _, gradient = engine.jit(total)(outputs)
    score = engine.jit(lambda f: likelihood.unit_score(engine, f, y, state))(outputs)
    close(engine.to_numpy(score), engine.to_numpy(gradient))


def hessian(engine: Engine, likelihood: Any, outputs: Any, y: Any) -> np.ndarray:
    """Second derivatives of the log density, (N, K, K), by gradients of gradients."""
    state = make_likelihood_state(likelihood, engine)

    def rows(f: Any) -> list[Any]:
        def gradient_sum(f: Any, k: int) -> Any:
            inner = engine.value_and_grad(lambda g: engine.xp.sum(likelihood.unit_log_prob(engine, g, y, state)))
            return engine.xp.sum(inner(f)[1][:, k])

        return [engine.value_and_grad(lambda g, k=k: gradient_sum(g, k))(f)[1] for k in range(likelihood.num_outputs)]

    return np.stack([engine.to_numpy(row) for row in engine.jit(rows)(outputs)], axis=1)


@pytest.mark.parametrize("framework", on("jax"))  # whose gradients nest
@pytest.mark.parametrize("name", CANONICAL)
def test_fisher_factor_squares_to_minus_the_hessian(framework: str, name: str) -> None:
    engine, likelihood = get_engine(framework, "float64"), LIKELIHOODS[name]
    outputs, y = (engine.asarray(a) for a in random_outputs(likelihood))
    factor = engine.to_numpy(engine.jit(lambda f: likelihood.fisher_factor(engine, f))(outputs))
    close(factor @ factor.mT, -hessian(engine, likelihood, outputs, y))
    assert likelihood.observed_information(engine, outputs, y) is None


@pytest.mark.parametrize("framework", on("jax"))
@pytest.mark.parametrize("name", ["heteroscedastic", "student_t", "student_t_of_two", "ordinal"])
def test_observed_information_is_minus_the_hessian(framework: str, name: str) -> None:
    engine = get_engine(framework, "float64")
    likelihood = bm.StudentT(2, scale=0.7) if name == "student_t_of_two" else LIKELIHOODS[name]
    outputs, y = random_outputs(likelihood)
    got = evaluated(engine, likelihood.observed_information, likelihood, outputs, y)
    close(got, -hessian(engine, likelihood, engine.asarray(outputs), engine.asarray(y)))


def test_confident_logits_stay_finite(engine64: Engine) -> None:
    for likelihood, y in ((bm.Categorical(2), np.array([0, 1])), (bm.Bernoulli(2), np.array([[0.0, 1.0], [1.0, 0.0]]))):
        outputs = np.array([[700.0, -700.0], [700.0, -700.0]])
        with engine64.scope():
            f, targets = engine64.asarray(outputs), engine64.asarray(y)
            got = engine64.to_numpy(likelihood.unit_log_prob(engine64, f, targets))
            score = engine64.to_numpy(likelihood.unit_score(engine64, f, targets))
            factor = engine64.to_numpy(likelihood.fisher_factor(engine64, f))
        close(got, dense.log_prob(likelihood, outputs, y))
        close(score, dense.score_and_fisher(likelihood, outputs, y)[0])
        assert np.isfinite(factor).all()


def test_noise_integrated_out_is_a_multivariate_student_t(engine64: Engine) -> None:
    likelihood = bm.Gaussian(num_outputs=2)
    outputs, y = random_outputs(likelihood)
    state = NoiseState(engine64.asarray(np.float64(1.7)), engine64.asarray(np.float64(0.6)))
    with engine64.scope():
        got = likelihood.log_prob(engine64, engine64.asarray(outputs), engine64.asarray(y), state)
    expected = [
        stats.multivariate_t.logpdf(target, f, 0.6 / 1.7 * np.eye(2), df=2 * 1.7)
        for target, f in zip(y, outputs, strict=True)
    ]
    close(engine64.to_numpy(got), np.array(expected))


def test_draws_have_the_stated_moments(likelihood: Any) -> None:
    outputs, _ = random_outputs(likelihood, rows=2)
    engine, draws = NumpyEngine(), 40_000
    state: Any = make_likelihood_state(likelihood, engine)
    state = NoiseState(np.float64(6.0), np.float64(3.0)) if isinstance(state, NoiseState) else state
    if isinstance(likelihood, bm.StudentT):  # with a fourth moment, by which the variance is judged
        likelihood = bm.StudentT(degrees_of_freedom=9.0)
    y = likelihood.draw(np.random.default_rng(9), np.broadcast_to(outputs, (draws, *outputs.shape)), state)
    y = np.eye(likelihood.num_outputs)[y] if isinstance(likelihood, bm.Categorical) else y
    y = y[..., None] if isinstance(likelihood, bm.Ordinal) else y
    mean, variance = likelihood.mean(engine, outputs, state), likelihood.variance(engine, outputs, state)
    np.testing.assert_array_less(np.abs(y.mean(0) - mean), 5 * np.sqrt(variance / draws))
    fourth = ((y - y.mean(0)) ** 4).mean(0)
    standard_error = np.sqrt((fourth - y.var(0) ** 2) / draws)
    np.testing.assert_array_less(np.abs(y.var(0) - variance), 5 * standard_error + 1e-12)
