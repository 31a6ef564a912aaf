"""The evidence framework where it is exact: models linear in their weights, with normal noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cases import LINEAR, NETWORK, make_inputs, make_targets, on
from scipy import optimize, stats

import bayesmlp as bm
from bayesmlp.inference.assembly import assembler
from bayesmlp.inference.engines import get_engine
from bayesmlp.inference.filtering import Posterior
from bayesmlp.inference.likelihoods import NoiseState
from bayesmlp.inference.marginal_likelihood import evidence, evidence_update
from bayesmlp.inference.methods import FitProblem
from bayesmlp.inference.objective import Parameters

ROWS = 50
EXACT = 1e-10
NOISE = 0.3
X = make_inputs(ROWS, seed=130)
DESIGN = np.concatenate([X, np.ones((ROWS, 1))], axis=1)
Y = make_targets(bm.Gaussian(), X, seed=131)
SHORT = bm.TrainingOptions(epochs=200, batch_size=ROWS, learning_rate=0.03)


def linear_problem(
    engine: str, likelihood: bm.Gaussian, prior: bm.NormalPrior, weight: np.ndarray | None = None
) -> FitProblem:
    chosen = get_engine(engine, "float64")
    return FitProblem(
        engine=chosen,
        network=LINEAR,
        likelihood=likelihood,
        structure=bm.Full().resolve(1),
        prior=prior,
        x=chosen.asarray(X),
        y=chosen.asarray(Y[:, None]),
        weight=np.ones(ROWS) if weight is None else weight,
        seed=0,
    )


def exact_posterior(problem: FitProblem, state: NoiseState | tuple[()] = ()) -> tuple[Posterior, np.ndarray]:
    """The posterior around the exact mode, and its covariance by hand."""
    engine, phi = problem.engine, float(problem.likelihood.dispersion(state)) if state else NOISE
    prior = problem.prior_precision[0]
    covariance = np.linalg.inv(np.diag(prior[:, 0]) + DESIGN.T @ (problem.weight[:, None] * DESIGN) / phi)
    mode = covariance @ DESIGN.T @ (problem.weight * Y) / phi
    parameters = Parameters((engine.asarray(mode[:, None]),), (), ())
    return assembler(problem, [False])(parameters, problem.prior_precision, None, state), covariance


def exact_log_evidence(prior: np.ndarray, phi: float) -> float:
    """Log density of all targets together, the weights integrated out."""
    return float(stats.multivariate_normal.logpdf(Y, None, phi * np.eye(ROWS) + DESIGN / prior[:, 0] @ DESIGN.T))


@pytest.mark.parametrize("engine", on("torch", "jax"))
def test_the_evidence_of_a_linear_model_is_exact(engine: str) -> None:
    problem = linear_problem(engine, bm.Gaussian(noise_variance=NOISE), bm.NormalPrior(scale=0.7, bias_scale=0.4))
    posterior, covariance = exact_posterior(problem)
    known = evidence(problem, posterior)
    prior = problem.prior_precision[0]
    np.testing.assert_allclose(known.log_marginal_likelihood, exact_log_evidence(prior, NOISE), rtol=EXACT)
    determined = np.trace(covariance @ DESIGN.T @ DESIGN) / NOISE
    np.testing.assert_allclose(known.effective_parameters, [determined], rtol=EXACT)


@pytest.mark.parametrize("engine", on("torch"))
def test_with_learned_noise_it_is_exact_at_the_estimate(engine: str) -> None:
    """Which holds the weights at unit dispersion, and is discounted."""
    likelihood = bm.Gaussian()
    fitted = likelihood.state_from_fit([np.log(0.2)], ROWS)
    state = likelihood.discount(fitted, 2.5)
    problem = linear_problem(engine, likelihood, bm.NormalPrior(scale=0.7))
    posterior, covariance = exact_posterior(problem, state)
    known, phi = evidence(problem, posterior), float(likelihood.dispersion(state))
    np.testing.assert_allclose(
        known.log_marginal_likelihood, exact_log_evidence(problem.prior_precision[0], phi), rtol=EXACT
    )
    determined = np.trace(covariance @ DESIGN.T @ DESIGN) / phi
    np.testing.assert_allclose(known.effective_parameters, [determined], rtol=EXACT)


@pytest.mark.parametrize("engine", on("torch"))
def test_a_row_of_weight_two_counts_as_two(engine: str) -> None:
    weight = np.where(np.arange(ROWS) < 10, 2.0, 1.0)
    problem = linear_problem(engine, bm.Gaussian(noise_variance=NOISE), bm.NormalPrior(), weight)
    known = evidence(problem, exact_posterior(problem)[0])
    rows, targets = (np.concatenate([array[:10], array]) for array in (DESIGN, Y))
    spread = NOISE * np.eye(len(rows)) + rows / problem.prior_precision[0][:, 0] @ rows.T
    expected = stats.multivariate_normal.logpdf(targets, None, spread)
    np.testing.assert_allclose(known.log_marginal_likelihood, expected, rtol=EXACT)


@pytest.mark.parametrize("engine", on("torch"))
@pytest.mark.parametrize("start", [0.05, 1.0, 30.0])
def test_the_fixed_point_maximises_the_exact_evidence(engine: str, start: float) -> None:
    """From either side; the bias keeps its scale."""

    def negative(log_scale: float) -> float:
        prior = bm.NormalPrior(scale=float(np.exp(log_scale))).precision(LINEAR.shapes(2, 1))
        return -exact_log_evidence(prior[0], NOISE)

    best = optimize.minimize_scalar(negative, bounds=(-4, 4), method="bounded", options={"xatol": 1e-9})
    problem = linear_problem(engine, bm.Gaussian(noise_variance=NOISE), bm.NormalPrior(scale=start))
    for _ in range(200):
        problem = replace(problem, prior=evidence_update(problem, exact_posterior(problem)[0], [True]))
    assert problem.prior.bias_scale == 1.0
    np.testing.assert_allclose(np.log(problem.prior.scales(1)[0]), best.x, atol=1e-6)


@pytest.mark.parametrize("engine", on("torch"))
def test_a_layer_that_is_not_to_be_learned_keeps_its_scale(engine: str) -> None:
    problem = linear_problem(engine, bm.Gaussian(noise_variance=NOISE), bm.NormalPrior(scale=0.7))
    assert evidence_update(problem, exact_posterior(problem)[0], [False]) == replace(problem.prior, scale=(0.7,))


def test_residuals_are_divided_by_the_degrees_of_freedom_that_are_left() -> None:
    """φ = Σ r² / (N - γ), with the prior's two observations and sum of squares."""
    likelihood = bm.Gaussian(prior_shape=1.0, prior_rate=0.1)
    state = likelihood.state_from_fit([np.log(0.2)], ROWS)
    got = likelihood.dispersion(likelihood.discount(state, 7.0))
    np.testing.assert_allclose(got, 2 * float(state.rate) / (ROWS + 2 - 7.0), rtol=EXACT)
    least = likelihood.discount(state, 1e6)
    assert float(least.shape) == likelihood.prior_shape + 1.0
    known = bm.Gaussian(noise_variance=NOISE)
    assert known.discount((), 7.0) == ()


# -- in a fit ---------------------------------------------------------------------------------------------------------
def fitted(engine: str, when: str | None, scale: float) -> bm.BayesianMLP:
    model = bm.BayesianMLP(
        NETWORK, bm.Gaussian(), prior=bm.NormalPrior(scale=scale), structure=bm.Full(), engine=engine, dtype="float64"
    )
    return model.fit(X, Y, method=bm.Laplace(SHORT, marginal_likelihood=when))


@pytest.mark.parametrize("engine", on("torch"))
@pytest.mark.parametrize("scale", [0.2, 20.0])
def test_learning_the_prior_raises_the_evidence(engine: str, scale: float) -> None:
    """The kept prior is the best of those tried, and during training it ends above the first round's."""
    after, during = (fitted(engine, when, scale).fit_details["log_marginal_likelihood"] for when in ("after", "during"))
    assert max(after) > after[0] + 1
    assert max(during) > max(after)


@pytest.mark.parametrize("engine", on("torch"))
def test_the_learned_prior_is_stored_with_the_model(engine: str) -> None:
    model = fitted(engine, "during", 20.0)
    stored = model.spec()["prior"]["scale"]
    assert len(stored) == NETWORK.num_layers
    assert max(stored) < 20.0
    assert model.prior.scale == 20.0
    again = bm.BayesianMLP.from_parts(model.spec(), model.to_arrays(), "numpy")
    assert again.prior.scale == tuple(stored)
    model.start_from_prior(2)
    np.testing.assert_allclose(model.weight_variances()[0][0], stored[0] ** 2 / 2, rtol=EXACT)
