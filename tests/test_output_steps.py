"""The steps in output space: what each promises of r and L, in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import optimize, special

import bayesmlp as bm
from bayesmlp.inference.engines import NumpyEngine
from bayesmlp.inference.likelihoods import Likelihood
from bayesmlp.inference.output_space import OutputSolution, OutputStep
from bayesmlp.inference.quadrature import normal_nodes

EXACT = bm.VariationalStep(tolerance=1e-9, max_iterations=2000)
STEPS = {"variational": bm.VariationalStep(), "laplace": bm.LaplaceStep(), "kalman": bm.KalmanStep()}


def solve(
    step: OutputStep, likelihood: Likelihood, f: Any, covariance: Any, y: Any, weight: Any = None, state: Any = ()
) -> OutputSolution:
    weight = np.ones(len(f)) if weight is None else weight
    return step.solve(NumpyEngine(), likelihood, math.inf, f, covariance, y, weight, state)


def test_one_logit_has_the_normal_distribution_of_least_divergence() -> None:
    """Against numerical optimisation of mean and variance, with the integral by quadrature."""
    nodes, weights = normal_nodes(1)

    def bound(parameters: np.ndarray, f: float, c: float, y: float) -> float:
        mean, log_variance = parameters
        variance = math.exp(log_variance)
        at = mean + math.sqrt(variance) * nodes[:, 0]
        fit = weights @ (y * at - np.logaddexp(0, at))
        return -float(fit - 0.5 * (variance / c + (mean - f) ** 2 / c - 1 - log_variance + math.log(c)))

    for f, c, y in [(0.3, 1.0, 1.0), (-2.0, 9.0, 1.0), (3.0, 30.0, 0.0), (4.0, 4.0, 1.0)]:
        best = optimize.minimize(
            bound,
            [f, math.log(c)],
            args=(f, c, y),
            method="Nelder-Mead",
            options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 4000},
        ).x
        found = solve(EXACT, bm.Bernoulli(), np.array([[f]]), np.array([[c]]), np.array([[y]]))
        mean = f + c * found.residual[0, 0]
        variance = 1 / (1 / c + found.fisher_factor[0, 0, 0] ** 2)
        np.testing.assert_allclose([mean, variance], [best[0], math.exp(best[1])], rtol=1e-5)


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_row_of_weight_zero_changes_nothing_however_little_is_known_of_it(step: OutputStep) -> None:
    """Its outputs vary with the others', and a million times as much."""
    rng = np.random.default_rng(9)
    likelihood = bm.Categorical(3)
    root = rng.standard_normal((9, 9)) * np.repeat([1.0, 1.0, 1e6], 3)[:, None]
    f, covariance, y = rng.standard_normal((3, 3)), root @ root.T, np.array([1, 0, 2])
    padded = solve(step, likelihood, f, covariance, y, np.array([1.0, 1.0, 0.0]))
    alone = solve(step, likelihood, f[:2], covariance[:6, :6], y[:2])
    np.testing.assert_allclose(padded.residual[:2], alone.residual, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(padded.fisher_factor[:2], alone.fisher_factor, rtol=1e-8, atol=1e-10)
    assert not np.any(padded.residual[2])
    assert not np.any(padded.fisher_factor[2])


@pytest.mark.parametrize("weight", [1.0, 100.0, 1e4])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_heavy_rows_that_are_certain_are_learned(weight: float, scale: float) -> None:
    """Their information is a difference of probabilities: all rounding, which grows with the weight."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        size, classes = int(rng.choice([2, 8, 33])), int(rng.choice([2, 3, 10]))
        root = rng.standard_normal((size * classes, size * classes))
        f = 10 ** rng.uniform(0, 2.5) * rng.standard_normal((size, classes))
        covariance = scale * root @ root.T / (size * classes)
        found = solve(bm.VariationalStep(), bm.Categorical(classes), f, covariance, f.argmax(1), np.full(size, weight))
        assert found.ok


@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("kind", ["categorical", "bernoulli"])
def test_score_and_information_are_those_expected_under_the_answer(kind: str, scale: float) -> None:
    rng = np.random.default_rng(5)
    likelihood: Likelihood = {"categorical": bm.Categorical(3), "bernoulli": bm.Bernoulli(3)}[kind]
    size = likelihood.num_outputs
    nodes, node_weights = normal_nodes(size)
    for _ in range(10):
        f = rng.standard_normal((2, size))
        root = scale * rng.standard_normal((2 * size, 2 * size)) / size
        covariance = root @ root.T
        y = {
            "categorical": rng.integers(3, size=2),
            "bernoulli": rng.integers(2, size=(2, size)) * 1.0,
        }[kind]
        weight = np.array([1.0, 0.5])
        found = solve(EXACT, likelihood, f, covariance, y, weight)
        assert bool(found.ok)
        rank = size - 1 if kind == "categorical" else size  # probabilities add up to 1
        assert found.fisher_factor.shape == (2, size, rank)
        information = found.fisher_factor @ found.fisher_factor.swapaxes(1, 2)
        whole = np.zeros((2 * size, 2 * size))
        for row in range(2):
            whole[row * size :, row * size :][:size, :size] = information[row]
        spread = np.linalg.inv(np.linalg.inv(covariance) + whole)
        moved = f + (covariance @ found.residual.reshape(-1)).reshape(2, size)
        for row in range(2):
            own = spread[row * size :, row * size :][:size, :size]
            drawn = moved[row] + nodes @ np.linalg.cholesky(own).T
            targets = np.repeat(y[row : row + 1], len(drawn), axis=0)
            score = node_weights @ likelihood.unit_score(NumpyEngine(), drawn, targets)
            factor = likelihood.fisher_factor(NumpyEngine(), drawn)
            fisher = np.einsum("s,skr,slr->kl", node_weights, factor, factor)
            np.testing.assert_allclose(found.residual[row], weight[row] * score, atol=1e-6)
            np.testing.assert_allclose(information[row], weight[row] * fisher, atol=1e-6)


def test_an_event_that_is_right_narrows_what_is_wide() -> None:
    """At the mode the information is nearly 0; on average over the outputs it is not."""
    f, covariance = np.array([[8.0, 0.0]]), 25 * np.eye(2)
    sharpened = {
        name: float(np.sum(solve(step, bm.Categorical(2), f, covariance, np.array([0])).fisher_factor ** 2))
        for name, step in STEPS.items()
    }
    assert sharpened["laplace"] < 1e-3 < 0.02 < sharpened["variational"]


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_normal_noise_makes_all_steps_one(step: OutputStep) -> None:
    rng = np.random.default_rng(3)
    root = rng.standard_normal((6, 6))
    f, y, weight = rng.standard_normal((3, 2)), rng.standard_normal((3, 2)), np.array([1.0, 2.0, 0.0])
    found = solve(step, bm.Gaussian(2, noise_variance=0.3), f, root @ root.T, y, weight)
    precision = np.diag(np.repeat(weight, 2)) / 0.3
    expected = precision @ np.linalg.solve(np.eye(6) + root @ root.T @ precision, (y - f).reshape(-1))
    np.testing.assert_allclose(found.residual.reshape(-1), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_row_of_weight_zero_changes_nothing(step: OutputStep) -> None:
    rng = np.random.default_rng(4)
    root = rng.standard_normal((6, 6))
    f, y = rng.standard_normal((2, 3)), np.array([1, 2])
    both = solve(step, bm.Categorical(3), f, root @ root.T, y, np.array([1.0, 0.0]))
    one = solve(step, bm.Categorical(3), f[:1], (root @ root.T)[:3, :3], y[:1])
    np.testing.assert_allclose(both.residual[0], one.residual[0], atol=1e-9)
    np.testing.assert_allclose(both.fisher_factor[0], one.fisher_factor[0], atol=1e-7)
    assert not both.residual[1].any()
    assert not both.fisher_factor[1].any()


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
def test_hopeless_surprises_stay_finite(scale: float) -> None:
    """Wide logits and a label that was thought impossible."""
    rng = np.random.default_rng(6)
    for _ in range(20):
        root = scale * rng.standard_normal((10, 10))
        f = scale * rng.standard_normal((1, 10))
        found = solve(bm.VariationalStep(), bm.Categorical(10), f, root @ root.T, np.array([int(np.argmin(f))]))
        assert bool(found.ok)
        moved = f[0] + root @ root.T @ found.residual[0]
        assert special.log_softmax(moved)[np.argmin(f)] > special.log_softmax(f[0]).min()


@pytest.mark.parametrize(
    ("name", "structure"),
    [
        ("variational", bm.LowRank(3)),
        ("variational", bm.LastLayer()),
        ("laplace", bm.Diagonal()),
        ("kalman", bm.Diagonal()),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_engines_agree(framework: str, name: str, structure: Any) -> None:
    rng = np.random.default_rng(7)
    x, y = rng.standard_normal((12, 4)), rng.integers(3, size=12)
    models = []
    for engine in ("numpy", framework):
        model = bm.BayesianMLP(
            bm.MLP((5,), "tanh"),
            bm.Categorical(3),
            structure=structure,
            step=STEPS[name],
            engine=engine,
            dtype="float64",
        )
        for row in range(8):
            model.update(x[row : row + 1], y[row : row + 1])
        models.append(model.update(x[8:], y[8:]) and model)
    ours, theirs = (model.predict(x).probabilities for model in models)
    np.testing.assert_allclose(theirs, ours, rtol=1e-8)


def test_a_step_survives_the_way_through_a_description() -> None:
    model = bm.BayesianMLP(bm.MLP((3,)), bm.Categorical(3), step=bm.VariationalStep(tolerance=0.3), engine="numpy")
    model.update(np.zeros((1, 2)), [0])
    assert model.to_engine("numpy").step == bm.VariationalStep(tolerance=0.3)


@pytest.mark.parametrize("arguments", [{"tolerance": 0.0}, {"tolerance": float("nan")}, {"max_iterations": 0}])
def test_bad_options_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(bm.errors.InvalidInput, match=next(iter(arguments))):
        bm.VariationalStep(**arguments)
