"""The exact posterior, by NumPyro and by Pyro; ArviZ reads it."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import bayesmlp as bm
from bayesmlp.inference.errors import InvalidInput

ENGINES = {"jax": "numpyro", "torch": "pyro"}


def linear_data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30, 2))
    return x, x @ [1.0, -0.5] + 0.3 + 0.5 * rng.standard_normal(30)


@pytest.fixture(params=list(ENGINES))
def engine(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(ENGINES[request.param], reason=f"pip install 'bayesmlp[{request.param}]' to enable")
    return str(request.param)


def test_nuts_finds_the_posterior_of_a_linear_model(engine: str) -> None:
    """Against the closed form; tolerance: 5 Monte Carlo standard errors, by ArviZ's effective sample size."""
    x, y = linear_data()
    likelihood = bm.Gaussian(noise_variance=0.25)
    model = bm.BayesianMLP(
        bm.MLP(()), likelihood, engine=engine, standardize=False, structure=bm.Full(), dtype="float64"
    )
    sampled = model.sample(x, y, method=bm.NUTS(num_warmup=150, num_samples=250, num_chains=2, max_tree_depth=5))
    design = np.hstack([x, np.ones((30, 1))])
    precision = np.diag(model.prior.precision(((3, 1),))[0][:, 0]) + design.T @ design / 0.25
    exact_mean = np.linalg.solve(precision, design.T @ y / 0.25)
    exact_deviation = np.sqrt(np.diag(np.linalg.inv(precision)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # ArviZ announces its next version when it is imported
        warnings.simplefilter("ignore", UserWarning)  # and warns of a Pareto shape that few rows bring about
        import arviz

        data = sampled.to_arviz()
        size = arviz.ess(data, var_names=["layer_0"])["layer_0"].values[:, 0]
        rhat = float(arviz.rhat(data, var_names=["outputs"])["outputs"].max())
        loo = arviz.loo(data, var_name="y")
    draws = sampled.weights()[0][..., 0].reshape(-1, 3)
    assert np.all(size > 50)
    assert np.all(np.abs(draws.mean(0) - exact_mean) < 5 * exact_deviation / np.sqrt(size))
    assert np.all(np.abs(draws.std(0) / exact_deviation - 1) < 5 / np.sqrt(2 * size))
    assert rhat < 1.05
    assert np.isfinite(loo.elpd_loo)
    assert data.posterior["outputs"].shape == (2, 250, 30, 1)
    assert data.log_likelihood["y"].shape == (2, 250, 30)
    answer = sampled.predict(x)
    spread = np.sqrt(np.einsum("nd,de,ne->n", design, np.linalg.inv(precision), design))
    assert np.all(np.abs(answer.mean - design @ exact_mean) < 5 * spread / np.sqrt(size.min()))


def test_the_program_is_an_ordinary_one() -> None:
    numpyro = pytest.importorskip("numpyro", reason="pip install 'bayesmlp[jax]' to enable")
    x, y = linear_data()
    model = bm.BayesianMLP(bm.MLP((4,)), bm.Gaussian(), engine="jax")
    trace = numpyro.handlers.trace(numpyro.handlers.seed(model.to_numpyro(2), 0)).get_trace(
        x.astype("float32"), y[:, None].astype("float32")
    )
    assert set(trace) >= {"layer_0", "layer_1", "noise_precision", "y"}
    assert trace["layer_0"]["value"].shape == (3, 4)
    with pytest.raises(InvalidInput, match="pyro runs on torch: use to_engine"):
        model.to_pyro(2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "likelihood", [bm.Gaussian(), bm.Categorical(2), bm.Bernoulli()], ids=lambda v: type(v).__name__
)
def test_a_network_is_sampled_for_every_likelihood(engine: str, likelihood: bm.Gaussian) -> None:
    x, y = linear_data()
    targets = y if isinstance(likelihood, bm.Gaussian) else (y > 0).astype(int)
    model = bm.BayesianMLP(bm.MLP((3,), "tanh"), likelihood, engine=engine)
    sampled = model.sample(x, targets, method=bm.NUTS(num_warmup=60, num_samples=40, num_chains=1, max_tree_depth=4))
    answer = sampled.predict(x)
    assert np.all(np.isfinite(answer.log_prob(targets)))
    prior_only = bm.BayesianMLP(bm.MLP((3,), "tanh"), likelihood, engine=engine)
    prior_only.start_from_prior(2)
    assert answer.log_prob(targets).mean() > prior_only.predict(x).log_prob(targets).mean()
    again = model.sample(x, targets, method=bm.NUTS(num_warmup=60, num_samples=40, num_chains=1, max_tree_depth=4))
    np.testing.assert_array_equal(again.weights()[0], sampled.weights()[0])
