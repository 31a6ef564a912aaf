"""Samplers: against closed forms, against each other, and as posteriors that predict, are stored and go on learning."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bayesmlp as bm
from bayesmlp.inference.engines import get_engine
from bayesmlp.inference.errors import InvalidInput, NumericalFailure
from bayesmlp.inference.network import Network
from bayesmlp.inference.pairwise import PairwiseMLP
from bayesmlp.inference.sampling.chains import check_memory
from bayesmlp.inference.sampling.effective import effective_sample_size, split_rhat
from bayesmlp.inference.sampling.microcanonical import Phase, integrate, turn, unit_vectors
from bayesmlp.inference.sampling.projection import function_distance
from bayesmlp.inference.structures.particles import effective_size
from bayesmlp.sampled import resampled

LANGUAGES = {"jax": "numpyro", "torch": "pyro"}
NETWORK = bm.MLP((4,), "tanh")
NO_DATA: Any = ()
QUICK = bm.MCLMC(num_warmup=120, num_samples=40, num_chains=4, thinning=4, climb=60)


every_likelihood = pytest.mark.parametrize(
    "likelihood",
    [
        bm.Gaussian(2), bm.HeteroscedasticGaussian(), bm.StudentT(), bm.Categorical(3), bm.Bernoulli(), bm.Poisson(),
        bm.Ordinal(4),
    ],
    ids=lambda v: type(v).__name__,
)  # fmt: skip


def targets_for(likelihood: Any, rng: np.random.Generator, rows: int) -> np.ndarray:
    numeric = {"Gaussian": (rows, 2), "HeteroscedasticGaussian": (rows,)}
    shape = numeric.get(type(likelihood).__name__)
    return rng.integers(0, 2, rows) if shape is None else rng.standard_normal(shape)


def linear_data(rows: int = 40, inputs: int = 9) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, inputs))
    return x, x @ rng.standard_normal(inputs) + 0.3 + 0.5 * rng.standard_normal(rows)


@pytest.fixture(params=list(LANGUAGES))
def engine(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(LANGUAGES[request.param], reason=f"pip install 'bayesmlp[{request.param}]' to enable")
    return str(request.param)


def linear_model(engine: str, dtype: str = "float64") -> bm.BayesianMLP:
    likelihood = bm.Gaussian(noise_variance=0.25)
    return bm.BayesianMLP(bm.MLP(()), likelihood, engine=engine, standardize=False, structure=bm.Full(), dtype=dtype)


def small_model(engine: str, likelihood: Any = None, **options: Any) -> bm.BayesianMLP:
    return bm.BayesianMLP(NETWORK, likelihood or bm.Gaussian(), engine=engine, **options)


SAMPLERS = {
    "MCLMC": bm.MCLMC(num_warmup=400, num_samples=300, num_chains=4, thinning=4, climb=100, energy_error=1e-4),
    "AdjustedMCLMC": bm.AdjustedMCLMC(num_warmup=400, num_samples=300, num_chains=4, climb=100),
    "MEADS": bm.MEADS(num_warmup=600, num_samples=25, num_chains=64, thinning=15, climb=50),
    "SGHMC": bm.SGHMC(num_warmup=100, num_samples=1500, batch_size=40, step_size=0.02, climb=50),
    "SGLD": bm.SGLD(num_warmup=300, num_samples=3000, batch_size=40, step_size=0.06, climb=50),
    "HMC": bm.HMC(num_warmup=300, num_samples=400, num_chains=2),
    "NUTS": bm.NUTS(num_warmup=150, num_samples=250, num_chains=2, max_tree_depth=5),
}


@pytest.mark.parametrize(
    ("engine", "name"),
    [
        pytest.param(engine, name, marks=pytest.mark.slow if engine == "torch" and name != "MCLMC" else ())
        for engine in LANGUAGES
        for name in SAMPLERS
    ],
)
def test_samplers_find_the_posterior_of_a_linear_model(engine: str, name: str) -> None:
    """Against the closed form; tolerance: 5 Monte Carlo standard errors, and 2% of a deviation for a step's bias."""
    pytest.importorskip(LANGUAGES[engine], reason=f"pip install 'bayesmlp[{engine}]' to enable")
    x, y = linear_data()
    model = linear_model(engine).fit(x, y, method=SAMPLERS[name])
    design = np.hstack([x, np.ones((len(x), 1))])
    precision = np.diag(model.prior.precision(((10, 1),))[0][:, 0]) + design.T @ design / 0.25
    exact_mean = np.linalg.solve(precision, design.T @ y / 0.25)
    exact_deviation = np.sqrt(np.diag(np.linalg.inv(precision)))
    form = model.particles
    assert form is not None
    draws = model.engine.to_numpy(model.posterior.weights.draws[0]).reshape(form.chains, form.draws, 10)
    size = effective_sample_size(draws)
    assert size.min() > 100
    assert split_rhat(draws).max() < 1.1
    error = (draws.mean((0, 1)) - exact_mean) / exact_deviation
    assert np.all(np.abs(error) < 5 / np.sqrt(size) + 0.02)
    ratio = draws.reshape(-1, 10).std(0) / exact_deviation
    assert np.all(np.abs(ratio - 1) < 5 / np.sqrt(2 * size) + 0.04)
    # For a linear model the Gaussian beside the draws is the posterior itself, but for the draws' own error.
    error = (np.ravel(model.mean_weights()[0]) - exact_mean) / exact_deviation
    assert np.all(np.abs(error) < 5 / np.sqrt(size) + 0.05)
    ratio = np.sqrt(np.ravel(model.weight_variances()[0])) / exact_deviation
    assert np.all(np.abs(ratio - 1) < 5 / np.sqrt(2 * size.min()) + 0.04)


@pytest.mark.parametrize("name", LANGUAGES)
@every_likelihood
def test_the_density_is_that_of_the_probabilistic_program(name: str, likelihood: Any) -> None:
    """Up to a constant; the program's site for a Gaussian's noise is the precision 1/φ, ours log φ."""
    from bayesmlp.inference.sampling.target import data_of, target_of

    pytest.importorskip(LANGUAGES[name], reason=f"pip install 'bayesmlp[{name}]' to enable")
    rng = np.random.default_rng(1)
    x = rng.standard_normal((20, 2))
    y = targets_for(likelihood, rng, 20)
    model = small_model(name, likelihood, dtype="float64")
    problem = model.fit_problem(x, y)
    target, engine = target_of(problem), model.engine
    make = model.to_numpyro if name == "jax" else model.to_pyro
    program, density = make(2, model.estimate_scaling(x, y)), target.log_density(data_of(problem))
    ours, theirs = [], []
    for position in rng.standard_normal((3, target.size)):
        weights, parameters = target.networks(position)
        sites = {f"layer_{i}": engine.asarray(weight) for i, weight in enumerate(weights)}
        change = 0.0
        if isinstance(likelihood, bm.Gaussian):
            sites["noise_precision"], change = engine.asarray(np.exp(-parameters[0])), -float(parameters[0])
        else:
            sites |= {f"likelihood_{i}": engine.asarray(value) for i, value in enumerate(parameters)}
        with engine.scope():
            ours.append(float(density(engine.asarray(position))))
            theirs.append(_log_joint(name, program, problem, sites) + change)
    np.testing.assert_allclose(np.diff(ours), np.diff(theirs), rtol=1e-9)


def _log_joint(name: str, program: Any, problem: Any, sites: Any) -> float:
    if name == "jax":
        import numpyro

        return float(numpyro.infer.util.log_density(program, (problem.x, problem.y), {}, sites)[0])
    from pyro import poutine

    conditioned = poutine.condition(program, data=sites)
    return float(poutine.trace(conditioned).get_trace(problem.x, problem.y).log_prob_sum())


PAIRS = PairwiseMLP((4,), "tanh")


@pytest.mark.parametrize("network", [NETWORK, bm.MLP((5, 4), "gelu"), bm.MLP((), "relu"), PAIRS], ids=repr)
def test_pullbacks_in_closed_form(network: Any, engine: str) -> None:
    """Against the engine's own vector-Jacobian product, of three networks at once."""
    own, rng = get_engine(engine, "float64"), np.random.default_rng(5)
    for outputs in (1, 3):
        shapes = network.shapes(4, outputs)
        with own.scope():
            weights = tuple(own.asarray(rng.standard_normal((3, *shape))) for shape in shapes)
            x, cotangent = own.asarray(rng.standard_normal((6, 4))), own.asarray(rng.standard_normal((3, 6, outputs)))
            (values, pull), (known, by_tape) = (
                pullback(network, own, weights, x) for pullback in (type(network).pullback, Network.pullback)
            )
            np.testing.assert_allclose(own.to_numpy(values), own.to_numpy(known), atol=1e-12)
            for ours, theirs in zip(pull(cotangent), by_tape(cotangent), strict=True):
                np.testing.assert_allclose(own.to_numpy(ours), own.to_numpy(theirs), atol=1e-12)


def test_preferences_are_sampled() -> None:
    rng = np.random.default_rng(6)
    x = rng.standard_normal((60, 4))
    y = (x[:, 0] > x[:, 2]).astype(int)
    model = bm.BayesianMLP(PAIRS, bm.BradleyTerry(), engine="torch").fit(x, y, method=QUICK)
    p = np.ravel(model.predict(x).mean)
    assert np.mean((p > 0.5) == y) > 0.85


@pytest.mark.parametrize("name", LANGUAGES)
@every_likelihood
def test_gradients_of_the_density(name: str, likelihood: Any) -> None:
    """Against central differences, with several chains at once."""
    from bayesmlp.inference.sampling.target import data_of, target_of

    rng = np.random.default_rng(2)
    x = rng.standard_normal((7, 3))
    y = targets_for(likelihood, rng, 7)
    model = small_model(name, likelihood, dtype="float64")
    problem = model.fit_problem(x, y, weight=rng.random(7))
    target, data = target_of(problem), data_of(problem)
    positions = rng.standard_normal((2, target.size))
    evaluate = model.engine.jit(lambda z: target.gradient()(z, data, 1.5))
    _, gradient = evaluate(model.engine.asarray(positions))
    for index in rng.choice(target.size, 6, replace=False):
        step = np.zeros(target.size)
        step[index] = 1e-6
        up, down = (model.engine.to_numpy(evaluate(model.engine.asarray(positions + s))[0]) for s in (step, -step))
        difference = (up - down) / 2e-6
        np.testing.assert_allclose(model.engine.to_numpy(gradient)[:, index], difference, rtol=1e-5, atol=1e-6)


def test_effective_size_and_rhat_are_those_of_arviz() -> None:
    arviz = _arviz()
    rng = np.random.default_rng(3)
    chains = np.zeros((4, 500, 3))
    for t in range(1, 500):
        chains[:, t] = 0.8 * chains[:, t - 1] + rng.standard_normal((4, 3))
    chains[0, :, 2] += 2.0  # one chain elsewhere
    ours, rhat = effective_sample_size(chains), split_rhat(chains)
    for index in range(3):
        assert ours[index] == pytest.approx(float(arviz.ess(chains[:, :, index], method="mean")), rel=0.02)
        assert rhat[index] == pytest.approx(float(arviz.rhat(chains[:, :, index], method="split")), rel=1e-6)
    assert rhat[2] > 1.1


@pytest.mark.parametrize("name", ["numpy", *LANGUAGES])
def test_microcanonical_steps_keep_the_energy(name: str) -> None:
    """On a normal density: unit directions, and an energy error of third order in the step."""
    engine = get_engine(name, "float64")
    curvature = np.linspace(0.5, 3.0, 20)

    def gradient(z: Any, data: Any, factor: Any) -> Any:
        scale = engine.asarray(curvature)
        return -0.5 * engine.xp.sum(scale * z * z, axis=-1), -scale * z

    with engine.scope():
        key = engine.key(0)
        z = engine.normal(key, (3, 20))
        start = Phase(z, unit_vectors(engine, engine.fold_in(key, 1), (3, 20)), *gradient(z, None, 1.0))
        turned, _ = turn(engine, start.direction, start.gradient, engine.asarray(np.full(3, 0.7)))
        np.testing.assert_allclose(np.sum(engine.to_numpy(turned) ** 2, -1), 1.0, rtol=1e-12)
        errors = []
        for step in (0.02, 0.01):
            _, error = integrate(engine, gradient, start, NO_DATA, engine.asarray(np.full(3, step)), 1.0)
            errors.append(np.abs(engine.to_numpy(error)))
        back = integrate(engine, gradient, start, NO_DATA, engine.asarray(np.full(3, 0.2)), 1.0)[0]
        again, _ = integrate(
            engine, gradient, back._replace(direction=-back.direction), NO_DATA, engine.asarray(np.full(3, 0.2)), 1.0
        )
    assert np.all(errors[0] / errors[1] > 6)
    np.testing.assert_allclose(engine.to_numpy(again.position), engine.to_numpy(start.position), atol=1e-10)


@pytest.mark.slow
def test_pyro_and_numpyro_sample_the_same_posterior() -> None:
    """Mean function values of a network: within 4 Monte Carlo standard errors, of both runs together."""
    for language in LANGUAGES.values():
        pytest.importorskip(language, reason="pip install 'bayesmlp[torch,jax]' to enable")
    x, y = linear_data(40, 3)
    means, errors = [], []
    for name, method in (("jax", bm.NUTS(500, 1000, 4)), ("torch", bm.NUTS(200, 200, 2, max_tree_depth=7))):
        model = small_model(name, bm.Gaussian(noise_variance=0.25)).fit(x, y, method=method)
        form, outputs = model.particles, model.predict(x[:5]).output_mean[..., 0]
        assert form is not None
        each = outputs.reshape(form.chains, form.draws, 5)
        means.append(outputs.mean(0))
        errors.append(outputs.var(0) / effective_sample_size(each))
    assert np.all(np.abs(means[0] - means[1]) < 4 * np.sqrt(errors[0] + errors[1]))


def test_a_sampled_posterior_crosses_the_store_and_learns_on(tmp_path: Path) -> None:
    """Sampled on one engine, reopened on the other: the same answers; an update goes on from the Gaussian."""
    x, y = linear_data(300, 4)
    model = small_model("torch").fit(x[:40], y[:40], method=QUICK)
    before = model.predict(x[200:])
    assert before.method == "samples"
    assert len(before.log_weights) == 160
    with bm.open_store(tmp_path / "s.db") as store:
        store.publish("sampled", model)
        reopened = bm.load(store, "sampled", engine="jax")
        np.testing.assert_allclose(reopened.predict(x[200:]).mean, before.mean, rtol=1e-4, atol=1e-5)
        assert reopened.particles == model.particles
        with bm.OnlineUpdater(store, "sampled", engine="jax") as updater:
            np.testing.assert_allclose(updater.predict(x[200:]).mean, before.mean, rtol=1e-4, atol=1e-5)
            for row in range(40, 140):
                updater.observe(x[row], y[row], event_id=f"e-{row}")
            after = updater.predict(x[200:])
            updater.retract(["e-50"])
            digest = updater.digest()
        assert after.method == "linearized"
        assert after.log_prob(y[200:]).mean() > before.log_prob(y[200:]).mean()
        with bm.OnlineUpdater(store, "sampled", engine="jax") as updater:
            assert updater.digest() == digest


def test_reweighting_is_bayes_rule() -> None:
    """On a linear model with known noise, against the conjugate posterior of all rows; 5 standard errors."""
    x, y = linear_data(44)
    model = linear_model("torch").fit(x[:40], y[:40], method=SAMPLERS["MEADS"])
    form = model.particles
    assert form is not None
    size = model.reweight(x[40:], y[40:])
    answer, gaussian, exact = model.predict(x), model.predict(x, method="linearized"), _conjugate_mean(x, y)
    assert 0.1 * form.size < size < form.size
    spread = np.sqrt(np.ravel(gaussian.epistemic_variance))
    assert np.all(np.abs(np.ravel(answer.mean) - exact) < (5 / np.sqrt(size) + 0.02) * spread)
    assert np.all(np.abs(np.ravel(gaussian.mean) - exact) < (5 / np.sqrt(form.size) + 0.1) * spread)
    with pytest.raises(NumericalFailure, match="of 1600 draws only"):
        model.reweight(x, y + 5.0)
    np.testing.assert_array_equal(model.predict(x).mean, answer.mean)


def test_too_few_draws_are_moved_on_a_memory() -> None:
    """Resample and move, against the closed form of all rows; 5 standard errors."""
    x, y = linear_data(80)
    model = linear_model("torch").fit(x[:20], y[:20], method=SAMPLERS["MCLMC"])
    size = model.reweight(x[20:], y[20:], memory=(x[:20], y[:20]), method=SAMPLERS["MCLMC"])
    form = model.particles
    assert form is not None
    assert size < 0.1 * form.size
    answer, exact = model.predict(x), _conjugate_mean(x, y)
    effective = float(model.fit_details["effective_size"].min())
    spread = np.sqrt(np.ravel(answer.epistemic_variance))
    assert np.all(np.abs(np.ravel(answer.mean) - exact) < (5 / np.sqrt(effective) + 0.05) * spread)


def _conjugate_mean(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    design = np.hstack([x, np.ones((len(x), 1))])
    prior = bm.NormalPrior().precision(((10, 1),))[0][:, 0]
    return np.asarray(design @ np.linalg.solve(np.diag(prior) + design.T @ design / 0.25, design.T @ y / 0.25))


def test_a_narrow_posterior_is_explored_in_its_squares_too() -> None:
    """Many rows: the length over which directions are forgotten goes by the posterior's radius, not the prior's."""
    rng = np.random.default_rng(9)
    x = rng.standard_normal((3000, 9))
    y = x @ rng.standard_normal(9) + 0.5 * rng.standard_normal(3000)
    method = bm.MCLMC(num_warmup=400, num_samples=300, num_chains=4, thinning=4, climb=300)
    model = linear_model("torch").fit(x, y, method=method)
    assert model.fit_details["effective_size"].min() > 200
    assert model.fit_details["rhat"].max() < 1.05


def test_sampled_posteriors_learn_on_in_other_ways() -> None:
    x, y = linear_data(30, 3)
    model = small_model("torch").fit(x, y, method=QUICK)
    forgetting = model.with_settings(dynamics=bm.Forgetting(0.99))
    forgetting.update(x[:3], y[:3])
    assert forgetting.particles is None
    assert model.particles is not None
    with pytest.raises(InvalidInput, match="not for a mixture or for draws"):
        model.consolidate(x, y, newest=(x[:5], y[:5]), base=model.duplicate())
    kinds = bm.BayesianMLP(NETWORK, feedback={"value": bm.Gaussian(), "liked": bm.Bernoulli()}, engine="torch").fit(
        x, y, method=QUICK
    )
    assert kinds.predict(x, kind="value").method == "samples"
    kinds.reweight(x, y + 3.0, memory=(x, y), method=QUICK)
    again = bm.BayesianMLP.from_parts(kinds.spec(), kinds.to_arrays(), "torch")
    again.update(x[:2], [0, 1], kind="liked")
    assert np.isfinite(again.predict(x, kind="liked").probabilities).all()


def test_chains_that_stand_still_are_not_said_to_agree() -> None:
    stuck = np.repeat(np.array([[0.0], [1.0]])[:, None], 10, axis=1)
    assert np.isinf(split_rhat(stuck)[0])
    assert split_rhat(np.ones((2, 10, 1)))[0] == 1.0


def test_draws_may_be_thinned_and_stored_by_halves() -> None:
    x, y = linear_data(40, 3)
    model = small_model("torch").fit(x, y, method=QUICK)
    whole = sum(array.nbytes for array in model.to_arrays().values())
    full = model.predict(x)
    model.thin(10, stored="float16")
    arrays = model.to_arrays()
    assert arrays["weights.draws.0"].dtype == np.float16
    assert sum(array.nbytes for array in arrays.values()) < whole / 4
    again = bm.BayesianMLP.from_parts(model.spec(), arrays, "torch")
    np.testing.assert_allclose(again.predict(x).mean, model.predict(x).mean, atol=5e-3 * full.std.mean())
    assert len(model.predict(x).log_weights) == 40
    with pytest.raises(InvalidInput, match="draws must be from 1 to 10"):
        model.thin(11)
    with pytest.raises(InvalidInput, match="draws must be an integer"):
        model.thin(2.5)
    state = model.posterior.weights
    model.set_posterior(model.posterior._replace(weights=state._replace(draws=tuple(1e8 * d for d in state.draws))))
    with pytest.raises(InvalidInput, match="beyond float16"):
        model.thin(5, stored="float16")
    with pytest.raises(InvalidInput, match="not a sampler's"):
        small_model("torch").fit(x, y).thin(3)


@pytest.mark.parametrize("method", [bm.Laplace(), bm.Variational(), bm.Ensemble(members=2), QUICK], ids=repr)
def test_arviz_reads_every_method(method: Any) -> None:
    arviz = _arviz()
    x, y = linear_data(30, 3)
    model = small_model("torch").fit(x, y, method=method)
    data = model.to_arviz(x, y, num_samples=400)
    shape = data.posterior["function"].shape
    assert shape == ((4, 40, 30, 1) if method is QUICK else (4, 100, 30, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert float(arviz.ess(data, var_names=["function"])["function"].min()) > 5
        result = arviz.loo(data, var_name="y")
    assert np.isfinite(result.elpd if hasattr(result, "elpd") else result.elpd_loo)  # its name from ArviZ 1.0 on
    if method is QUICK:
        assert {"lp", "energy_error", "diverging"} <= set(data.sample_stats)
    answer = model.predict(x)
    deviation = np.ravel(answer.std)
    size = np.prod(shape[:2]) / (8 if method is QUICK else 1)
    drawn = data.posterior_predictive["y"].values
    assert np.all(np.abs(drawn.mean((0, 1))[:, 0] - np.ravel(answer.mean)) < (6 / np.sqrt(size) + 0.2) * deviation)


RESUMABLE: dict[str, tuple[str, Any, int]] = {
    "MCLMC": ("torch", QUICK, 11),
    "SGHMC": ("torch", bm.SGHMC(num_warmup=10, num_samples=20, num_chains=2, batch_size=10, climb=20), 17),
    "NumPyro": ("jax", bm.NUTS(num_warmup=30, num_samples=40, num_chains=2, max_tree_depth=4), 9),
    "Pyro": ("torch", bm.NUTS(num_warmup=5, num_samples=5, num_chains=3, max_tree_depth=3), 1),
}


@pytest.mark.parametrize("case", list(RESUMABLE))
def test_interrupted_chains_go_on_to_the_same_draws(case: str, tmp_path: Path) -> None:
    engine, method, last = RESUMABLE[case]
    pytest.importorskip(LANGUAGES[engine], reason=f"pip install 'bayesmlp[{engine}]' to enable")
    x, y = linear_data(30, 3)

    class Stop(Exception):
        pass

    def stop(piece: int, pieces: int, objective: float) -> None:
        if piece == last:
            raise Stop

    whole = small_model(engine).fit(x, y, method=method)
    file = tmp_path / "chains.safetensors"
    model = small_model(engine)
    with pytest.raises(Stop):
        model.fit(x, y, method=method, checkpoint=file, checkpoint_seconds=0.0, on_epoch=stop)
    seen: list[int] = []
    model.fit(
        x, y, method=method, checkpoint=file, checkpoint_seconds=0.0, on_epoch=lambda piece, *_: seen.append(piece)
    )
    assert seen[0] == (0 if case == "Pyro" else last)  # its chains that have ended are shown, not drawn, again
    np.testing.assert_array_equal(model.predict(x).output_mean, whole.predict(x).output_mean)
    assert not file.exists()


LIMITED: dict[str, tuple[str, Any]] = {
    "MCLMC": (
        "torch",
        bm.MCLMC(num_warmup=100, num_samples=4000, num_chains=2, thinning=20, climb=50, max_seconds=1e-9),
    ),
    "SGLD": ("torch", bm.SGLD(num_warmup=5, num_samples=4000, batch_size=10, climb=20, max_seconds=1e-9)),
    "NumPyro": (
        "jax",
        bm.NUTS(num_warmup=30, num_samples=4000, num_chains=2, max_tree_depth=4, max_seconds=1e-9),
    ),
    "Pyro": ("torch", bm.HMC(num_warmup=5, num_samples=4000, num_chains=2, max_seconds=1e-9)),
}


@pytest.mark.parametrize("case", list(LIMITED))
def test_a_time_limit_keeps_what_there_is(case: str) -> None:
    engine, limited = LIMITED[case]
    pytest.importorskip(LANGUAGES[engine], reason=f"pip install 'bayesmlp[{engine}]' to enable")
    x, y = linear_data(30, 3)
    model = small_model(engine).fit(x, y, method=limited)
    assert model.particles is not None
    assert 1 <= model.particles.draws < 4000


def test_programs_of_an_earlier_fit_are_given_the_data_of_this_one(engine: str) -> None:
    """Equal models on one engine share what was compiled: a fit draws the same with and without a fit before it."""
    x, y = linear_data(40, 3)
    tiny = bm.MCLMC(num_warmup=40, num_samples=10, num_chains=2, thinning=1, climb=20)
    model = small_model(engine, standardize=False)
    fresh = bm.BayesianMLP.from_parts(model.spec(), {}, replace(model.engine), model.network)
    model.fit(-2 * x, y**2, method=tiny)
    model.fit(x, y, method=tiny)
    fresh.fit(x, y, method=tiny)
    for method in ("samples", "linearized"):
        np.testing.assert_array_equal(model.predict(x, method=method).mean, fresh.predict(x, method=method).mean)


def test_the_same_seed_draws_the_same(engine: str) -> None:
    x, y = linear_data(30, 3)
    first, second, other = (
        small_model(engine, seed=seed).fit(x, y, method=QUICK).predict(x).output_mean for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


def test_functions_and_joint_outputs_are_those_of_the_draws() -> None:
    x, y = linear_data(30, 3)
    model = small_model("torch").fit(x, y, method=QUICK)
    answer = model.predict(x)
    functions = model.sample_functions(160, seed=1)
    assert functions.method == "samples"
    values = functions(x)
    np.testing.assert_allclose(values.mean(0), np.ravel(answer.mean), atol=1e-4)
    joint = model.joint_outputs(x)
    np.testing.assert_allclose(np.diag(joint.covariance[0]), np.ravel(model.output_variance(x)), rtol=1e-6)
    np.testing.assert_allclose(model.output_variance(x)[:, 0], answer.output_mean[:, :, 0].var(0), rtol=1e-6)


TINY = bm.MCLMC(num_warmup=40, num_samples=10, num_chains=2, thinning=2, climb=30)


@pytest.mark.parametrize(
    "structure", [bm.Diagonal(), bm.Kronecker(), bm.LowRank(3), bm.LastLayer(), bm.Full()], ids=repr
)
@every_likelihood
def test_every_likelihood_is_sampled_beside_every_structure(likelihood: Any, structure: Any) -> None:
    """Draws answer with finite densities, survive the way into arrays and back, and an update goes on from them."""
    rng = np.random.default_rng(6)
    x = rng.standard_normal((20, 3))
    y = targets_for(likelihood, rng, 20)
    model = small_model("torch", likelihood, structure=structure).fit(x, y, method=TINY)
    again = bm.BayesianMLP.from_parts(model.spec(), model.to_arrays(), "torch")
    np.testing.assert_array_equal(again.predict(x).log_prob(y), model.predict(x).log_prob(y))
    assert np.all(np.isfinite(model.predict(x).log_prob(y)))
    again.update(x[:4], y[:4])
    assert again.particles is None
    assert np.all(np.isfinite(again.predict(x).log_prob(y)))


def test_several_kinds_and_forgetting_go_on_from_draws() -> None:
    rng = np.random.default_rng(8)
    x, y = rng.standard_normal((20, 3)), rng.integers(0, 3, 20)
    model = bm.BayesianMLP(
        NETWORK,
        feedback={"label": bm.Categorical(3), "liked": bm.Kind(bm.Bernoulli(), outputs=1)},
        dynamics=bm.Forgetting(0.99),
        engine="torch",
    ).fit(x, y, method=TINY)
    assert model.predict(x, elapsed=3.0).method == "linearized"
    assert model.predict(x[:2], kind="liked").mean.shape == (2,)
    model.update(x[:2], [0, 1], kind="liked")
    again = bm.BayesianMLP.from_parts(model.spec(), model.to_arrays(), "torch")
    np.testing.assert_array_equal(again.predict(x).mean, model.predict(x).mean)


def test_a_module_of_ones_own_is_sampled() -> None:
    torch = pytest.importorskip("torch", reason="pip install 'bayesmlp[torch]' to enable")
    from bayesmlp.layers.torch import bayesianize

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    x, y = linear_data(30, 3)
    model = bm.BayesianMLP(bayesianize(module, (3,), layers="all"), bm.Gaussian()).fit(x, y, method=TINY)
    assert np.isfinite(model.predict(x).log_prob(y)).all()
    last = bm.BayesianMLP(bayesianize(module, (3,), layers="last"), bm.Gaussian())
    with pytest.raises(InvalidInput, match="no arrays without uncertainty"):
        last.fit(x, y, method=TINY)


def test_classes_are_sampled() -> None:
    x, y = linear_data(60, 3)
    labels = (y > y.mean()).astype(int)
    model = small_model("torch", bm.Categorical(2)).fit(x, labels, method=QUICK)
    prior_only = small_model("torch", bm.Categorical(2))
    prior_only.start_from_prior(3)
    assert model.predict(x).log_prob(labels).mean() > prior_only.predict(x).log_prob(labels).mean() + 0.1
    model.update(x[:5], labels[:5])
    assert model.particles is None


def test_bad_arguments_are_named() -> None:
    x, y = linear_data(30, 3)
    for build, message in [
        (lambda: bm.MCLMC(num_samples=0), "MCLMC.num_samples must be an integer of at least 1, got 0"),
        (lambda: bm.MCLMC(num_samples=20.0), "MCLMC.num_samples must be an integer"),
        (lambda: bm.MCLMC(energy_error=-1), "MCLMC.energy_error must be a positive number"),
        (lambda: bm.AdjustedMCLMC(target_accept=1.5), "AdjustedMCLMC.target_accept"),
        (lambda: bm.MEADS(num_chains=6), "MEADS.num_chains must be a multiple of 4"),
        (lambda: bm.SGHMC(friction=2.0), "SGHMC.friction"),
        (lambda: bm.SGLD(cycles=0), "SGLD.cycles"),
        (lambda: bm.NUTS(target_accept=1.0), "NUTS.target_accept"),
        (lambda: bm.HMC(trajectory_length=0.0), "HMC.trajectory_length"),
        (lambda: bm.Particles(bm.Diagonal(), 0, 3), "Particles.chains"),
        (lambda: small_model("numpy").fit(x, y, method=QUICK), "no gradients"),
        (lambda: small_model("jax", structure=bm.Mixture(bm.Full(), 2)).fit(x, y, method=QUICK), "one Gaussian"),
        (lambda: check_memory(1000, 10_000, 10_000, available=10**9), "chains of 10000 draws of 10000 numbers take"),
        (lambda: check_memory(2, 10, 10, 10**8, available=10**9), "take 0.8 GB, over half"),
        (lambda: small_model("jax").fit(x, y).reweight(x, y), "not a sampler's"),
        (lambda: bm.HMC(trajectory_length="a"), "HMC.trajectory_length must be a positive number, got 'a'"),
        (lambda: bm.NUTS(target_accept="a"), "NUTS.target_accept must be a positive number"),
        (lambda: bm.NUTS(target_accept=1.0), "NUTS.target_accept must be between 0 and 1"),
        (lambda: bm.SGHMC(friction=None), "SGHMC.friction must be a positive number"),
        (lambda: bm.SGLD(cycles=True), "SGLD.cycles must be an integer"),
    ]:
        with pytest.raises(InvalidInput, match=message):
            build()


def test_small_pieces_of_the_machinery() -> None:
    assert effective_size(np.log([0.25] * 4)) == pytest.approx(4)
    assert effective_size(np.array([0.0, -1e9])) == pytest.approx(1)
    counts = np.bincount(resampled(np.log([0.5, 0.3, 0.2]), 1000, 0), minlength=3)
    assert np.all(np.abs(counts - [500, 300, 200]) <= 1)
    rng = np.random.default_rng(5)
    draws = 2 + 3 * rng.standard_normal((20_000, 1, 1))
    assert function_distance(draws, np.full((1, 1), 2.0), np.full((1, 1), 9.0)) < 0.1
    assert function_distance(draws, np.full((1, 1), 3.0), np.full((1, 1), 9.0)) == pytest.approx(1.0, abs=0.1)


def test_cyclical_schedules() -> None:
    kept, rates = bm.SGHMC(num_samples=12, cycles=3, step_size=0.1).schedule(5)
    assert kept.sum() == 12
    assert rates.shape == (24, 5)
    assert rates[0, 0] == pytest.approx(0.1)
    assert rates[7, -1] < 0.001
    assert rates[8, 0] == pytest.approx(0.1)
    assert not kept[:4].any()
    assert kept[4:8].all()


def test_the_program_is_an_ordinary_one() -> None:
    numpyro = pytest.importorskip("numpyro", reason="pip install 'bayesmlp[jax]' to enable")
    x, y = linear_data(30, 2)
    model = small_model("jax")
    trace = numpyro.handlers.trace(numpyro.handlers.seed(model.to_numpyro(2), 0)).get_trace(
        x.astype("float32"), y[:, None].astype("float32")
    )
    assert set(trace) >= {"layer_0", "layer_1", "noise_precision", "y"}
    assert trace["layer_0"]["value"].shape == (3, 4)
    with pytest.raises(InvalidInput, match="pyro runs on torch: use to_engine"):
        model.to_pyro(2)


def _arviz() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # ArviZ announces its next version when it is imported
        return pytest.importorskip("arviz", reason="pip install 'bayesmlp[jax]' to enable")
