"""Ensembles, stacking and mixtures against what their members are alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import FRAMEWORKS, LIKELIHOODS, make_inputs, make_targets, needs, on, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import optimize, special, stats
from store_cases import NUM_INPUTS, stream

import bayesmlp as bm
from bayesmlp.inference.errors import InvalidInput, NumericalFailure
from bayesmlp.inference.methods import Method
from bayesmlp.inference.stacking import apportion, long_training, stacking_weights

ROWS = 40
NETWORK = bm.MLP((4,), "tanh")
WHOLE = bm.TrainingOptions(epochs=30, batch_size=ROWS, learning_rate=0.02)
"""All rows in one batch, so that members differ in their start alone."""
EXACT = 1e-10


def fit(method: Method, *, likelihood: str = "gaussian", engine: str = "torch", seed: int = 0, **options: Any) -> Any:
    model = bm.BayesianMLP(NETWORK, LIKELIHOODS[likelihood], engine=engine, dtype="float64", seed=seed, **options)
    x = make_inputs(ROWS, seed=150)
    return model.fit(x, make_targets(model.likelihood, x, seed=151), method=method)


def member_arrays(model: bm.BayesianMLP, member: int) -> dict[str, np.ndarray]:
    """The posterior of one member, under the names that it would have alone."""
    return {
        name.replace("weights.members.", "weights."): array[member]
        for name, array in model.to_arrays().items()
        if name.startswith(("weights.members.", "likelihood."))
    }


def assert_same_posterior(got: dict[str, np.ndarray], alone: bm.BayesianMLP, tolerance: float) -> None:
    expected = {name: array for name, array in alone.to_arrays().items() if name in got}
    assert expected.keys() == got.keys()
    for name, array in expected.items():
        assert relative_error(got[name], array) < tolerance, name


# -- fits -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("engine", "likelihood"),
    [
        pytest.param("torch", "gaussian", marks=needs("torch")),
        pytest.param("torch", "categorical", marks=needs("torch")),
        pytest.param("jax", "categorical", marks=needs("jax")),
    ],
)
def test_members_are_what_they_are_alone(engine: str, likelihood: str) -> None:
    """Trained together under vmap, from the starts of seeds 5 and 6."""
    method, structure = bm.Laplace(WHOLE), bm.LastLayer()
    together = fit(bm.Ensemble(method, 2), likelihood=likelihood, engine=engine, seed=5, structure=structure)
    np.testing.assert_allclose(together.to_arrays()["weights.log_weights"], -np.log(2), rtol=1e-15)
    for member in range(2):
        alone = fit(method, likelihood=likelihood, engine=engine, seed=5 + member, structure=structure)
        assert_same_posterior(member_arrays(together, member), alone, 1e-8)
    assert relative_error(together.mean_weights()[0][1], alone.mean_weights()[0]) < 1e-8


def test_members_learn_their_own_priors() -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install 'bayesmlp[torch]'")
    method = bm.Laplace(WHOLE, marginal_likelihood="after")
    together = fit(bm.Ensemble(method, 2), structure=bm.Full())
    for member in range(2):
        alone = fit(method, seed=member, structure=bm.Full())
        assert_same_posterior(member_arrays(together, member), alone, 1e-6)
        np.testing.assert_allclose(
            together.fit_details["priors"][member].scale, alone.spec()["prior"]["scale"], rtol=1e-6
        )


def test_a_mixture_structure_is_fitted_as_an_ensemble() -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install 'bayesmlp[torch]'")
    asked = fit(bm.Laplace(WHOLE), structure=bm.Mixture(bm.Diagonal(), 2))
    made = fit(bm.Ensemble(bm.Laplace(WHOLE), 2), structure=bm.Diagonal())
    for name, array in made.to_arrays().items():
        np.testing.assert_array_equal(asked.to_arrays()[name], array, err_msg=name)
    assert asked.spec()["structure"] == made.spec()["structure"]


def test_an_ensemble_of_points_has_no_variance_within() -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install 'bayesmlp[torch]'")
    model = fit(bm.Ensemble(bm.Laplace(WHOLE), 3), structure=bm.Point(), likelihood="gaussian")
    predictive = model.predict(make_inputs(5, seed=152))
    assert not predictive.output_covariance.any()
    between = predictive.output_mean[:, :, 0].var(axis=0) * model.scaling.target_scale[0] ** 2
    np.testing.assert_allclose(predictive.epistemic_variance, between, rtol=EXACT)


# -- stacking ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(3))
def test_stacking_weights_maximise_their_objective(seed: int) -> None:
    """Against a general optimiser; and where every weight is inside, all derivatives are one multiplier."""
    log_densities = np.random.default_rng(seed).normal(size=(4, 30)) - 2

    def negative(logits: np.ndarray) -> float:
        weights = special.softmax(np.append(logits, 0.0))
        return -float(np.log(weights @ np.exp(log_densities)).sum() + np.log(weights).sum())

    best = optimize.minimize(negative, np.zeros(3), method="BFGS", options={"gtol": 1e-9})
    weights = stacking_weights(log_densities)
    np.testing.assert_allclose(weights, special.softmax(np.append(best.x, 0.0)), atol=1e-6)
    densities = np.exp(log_densities)
    slope = (densities / (weights @ densities)).sum(axis=1) + 1 / weights
    np.testing.assert_allclose(slope, 30 + 4, rtol=1e-9)


def test_candidates_of_no_density_get_no_weight() -> None:
    log_densities = np.random.default_rng(3).normal(size=(4, 30))
    failed = log_densities.copy()
    failed[1] = -np.inf
    weights = stacking_weights(failed)
    assert weights[1] == 0
    np.testing.assert_allclose(np.delete(weights, 1), stacking_weights(np.delete(log_densities, 1, 0)), rtol=1e-12)


def test_densities_that_underflow_are_weighed_all_the_same() -> None:
    log_densities = np.random.default_rng(4).normal(size=(3, 20))
    shifted = log_densities + np.random.default_rng(5).normal(size=20) * 1e4
    np.testing.assert_allclose(stacking_weights(shifted), stacking_weights(log_densities), rtol=1e-6)


@given(
    weights=arrays(np.float64, st.integers(1, 12), elements=st.floats(0, 1e3)).filter(lambda w: w.sum() > 1e-3),
    seats=st.integers(1, 40),
)
@settings(deadline=None)
def test_seats_follow_the_weights(weights: np.ndarray, seats: int) -> None:
    """They add up; each has its share rounded down or up; none without weight; more weight, no fewer seats."""
    counts = apportion(weights, seats)
    ideal = weights / weights.sum() * seats
    assert counts.sum() == seats
    assert (counts >= np.floor(ideal - 1e-9)).all()
    assert (counts <= np.ceil(ideal + 1e-9)).all()
    assert not counts[weights == 0].any()
    order = np.argsort(weights, kind="stable")
    heavier = np.diff(weights[order]) > 0
    assert (np.diff(counts[order])[heavier] >= 0).all()


def test_stacking_fits_every_member_under_the_prior_it_stands_for() -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install 'bayesmlp[torch]'")
    method = bm.Stacking(bm.Laplace(WHOLE), scales=(0.1, 1.0, 5.0), members=4, folds=2)
    model = fit(method, structure=bm.Diagonal())
    weights, candidates = model.fit_details["weights"], model.fit_details["candidates"]
    log_weights = model.to_arrays()["weights.log_weights"]
    assert [candidate.scale for candidate in candidates] == [0.1, 1.0, 5.0]
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-12)
    np.testing.assert_allclose(np.exp(log_weights).sum(), 1, rtol=1e-12)
    counts = apportion(weights, 4)
    chosen = np.repeat(np.arange(3), counts)
    np.testing.assert_allclose(np.exp(log_weights), weights[chosen] / counts[chosen], rtol=1e-12)
    for member, candidate in enumerate(chosen):
        alone = fit(bm.Laplace(WHOLE), structure=bm.Diagonal(), seed=member, prior=candidates[candidate])
        assert_same_posterior(member_arrays(model, member), alone, 1e-8)


@pytest.mark.parametrize("when", [None, "after"])
def test_a_prior_under_which_the_fit_fails_gets_no_weight(when: str | None) -> None:
    """A scale so small that its precision is infinite."""
    pytest.importorskip("torch", reason="torch is not installed: pip install 'bayesmlp[torch]'")
    method = bm.Stacking(bm.Laplace(WHOLE, marginal_likelihood=when), scales=(1e-160, 1.0), members=2, folds=2)
    model = fit(method, structure=bm.Diagonal())
    np.testing.assert_array_equal(model.fit_details["weights"], [0.0, 1.0])
    with pytest.raises(NumericalFailure, match="objective became nan"):
        fit(bm.Stacking(bm.Laplace(WHOLE), scales=(1e-160,), members=2, folds=2), structure=bm.Diagonal())


def test_rows_without_weight_are_not_held_out() -> None:
    """Five of the rows weigh something, so that other folds than theirs would be of no weight at all."""
    pytest.importorskip("torch", reason="torch is not installed: pip install 'bayesmlp[torch]'")
    x, weight = np.random.default_rng(0).normal(size=(20, 2)), np.zeros(20)
    weight[[1, 4, 9, 13, 18]] = 1.0
    method = bm.Stacking(bm.Laplace(bm.TrainingOptions(steps=5)), scales=(1.0, 2.0), members=2)
    both = [
        bm.BayesianMLP(bm.MLP((3,)), bm.Gaussian(), structure=bm.Diagonal(), engine="torch", standardize=False).fit(
            x[rows], x[rows, 0], weight=weight[rows], method=method
        )
        for rows in (np.arange(20), np.flatnonzero(weight))
    ]
    scores = [model.fit_details["held_out_log_predictive"] for model in both]
    np.testing.assert_allclose(scores[0], scores[1], rtol=0.2)  # the same folds; the order of the mini-batches differs
    weight[1] = 0
    with pytest.raises(InvalidInput, match=r"X must have at least 5 rows of weight above 0 for Stacking.* got 4"):
        both[0].fit(x, x[:, 0], weight=weight, method=method)


def test_stacking_does_not_take_a_scale_for_each_layer() -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install 'bayesmlp[torch]'")
    with pytest.raises(InvalidInput, match=r"NormalPrior.scale must be one number for Stacking.* got \(1.0, 3.0\)"):
        fit(bm.Stacking(bm.Laplace(WHOLE), members=2), structure=bm.Diagonal(), prior=bm.NormalPrior((1.0, 3.0)))


def test_more_rows_are_trained_for_longer() -> None:
    options = [long_training(rows) for rows in (100, 5_000, 20_000, 10**6)]
    assert [each.steps for each in options] == [12_000, 12_000, 48_000, 96_000]
    assert [each.batch_size for each in options] == [32, 32, 125, 256]
    assert bm.Stacking().method_for(20_000).training == options[2]


def test_dispersion_outputs_have_candidates_of_their_own() -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install 'bayesmlp[torch]'")
    short = bm.Laplace(bm.TrainingOptions(epochs=2, batch_size=ROWS))
    method = bm.Stacking(short, scales=(1.0,), output_scales=(0.1, 1.0), members=2, folds=1)
    model = fit(method, likelihood="heteroscedastic", structure=bm.Diagonal())
    assert [prior.output_scale for prior in model.fit_details["candidates"]] == [(1.0, 0.1), (1.0, 1.0)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bm.Ensemble("laplace"), "Ensemble.method must be Laplace"),
        (lambda: bm.Ensemble(bm.Laplace(), 0), "Ensemble.members must be an integer of at least 1, got 0"),
        (lambda: bm.Stacking(bm.Laplace(), members=0), "Stacking.members must be an integer of at least 1, got 0"),
        (lambda: bm.Stacking(bm.Laplace(), scales=()), "Stacking.scales must be positive numbers, got"),
        (lambda: bm.Stacking(bm.Laplace(), output_scales=(0.0,)), "Stacking.output_scales must be positive numbers"),
        (lambda: bm.Stacking(bm.Laplace(), folds=0), "Stacking.folds must be an integer of at least 1, got 0"),
        (lambda: bm.Mixture(bm.Laplace()), "Mixture.of must be a structure"),
        (lambda: bm.Mixture(bm.Full(), 0), "Mixture.members must be an integer of at least 1, got 0"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(call: Any, message: str) -> None:
    with pytest.raises(InvalidInput) as error:
        call()
    assert message in str(error.value)


# -- mixtures ---------------------------------------------------------------------------------------------------------
MEMBERS = 3
STRUCTURE = bm.LastLayer(hidden=bm.LowRank(3))


def mixture(engine: str, likelihood: str = "categorical", dtype: str = "float64", **options: Any) -> bm.BayesianMLP:
    """A mixture that knows its prior alone."""
    model = bm.BayesianMLP(
        NETWORK, LIKELIHOODS[likelihood], structure=bm.Mixture(STRUCTURE, MEMBERS), engine=engine, dtype=dtype,
        standardize=False, seed=1, **options,
    )  # fmt: skip
    model.start_from_prior(NUM_INPUTS)
    return model


class Filters:
    """Its members as models of their own, whose step is compiled once."""

    def __init__(self, engine: str, likelihood: str = "categorical", **options: Any) -> None:
        self.models = [
            bm.BayesianMLP(
                NETWORK, LIKELIHOODS[likelihood], structure=STRUCTURE, engine=engine, dtype="float64",
                standardize=False, seed=1 + member, **options,
            )
            for member in range(MEMBERS)
        ]  # fmt: skip
        for model in self.models:
            model.start_from_prior(NUM_INPUTS)
        self._step = self.models[0].filter_model.compile(self.models[0].engine)

    def update(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log predictive density and information of each."""
        infos = []
        for model in self.models:
            batch = model.batch(x, model.likelihood.prepare(y), np.ones(len(x)), 1.0)
            posterior, info = self._step(model.posterior, model.prior_state, *batch)
            model.set_posterior(posterior)
            infos.append(model.engine.fetch(info))
        return np.array([info.log_predictive for info in infos]), np.array([info.information for info in infos])


def dispersion(model: bm.BayesianMLP) -> float:
    arrays = model.to_arrays()
    return float(arrays["likelihood.1"] / arrays["likelihood.0"])


def rows_for(likelihood: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    x, labels = stream(count)
    return x, labels if likelihood == "categorical" else np.sin(2 * x[:, 0]) + 0.1 * x[:, 1]


FAST = ("gaussian", bm.Forgetting(0.95))
FILTERED = [
    pytest.param(engine, likelihood, dynamics, marks=[needs(engine), *slow])
    for engine in FRAMEWORKS
    for likelihood in ("gaussian", "categorical")
    for dynamics in (bm.Static(), bm.Forgetting(0.95))
    for slow in [[pytest.mark.slow] if engine == "jax" and (likelihood, dynamics) != FAST else []]
]
"""JAX takes seconds to compile a case: one of them, and the rest are slow."""


@pytest.mark.parametrize(("engine", "likelihood", "dynamics"), FILTERED)
def test_members_filter_apart_and_are_weighed_by_their_predictions(
    engine: str, likelihood: str, dynamics: bm.Static | bm.Forgetting
) -> None:
    x, y = rows_for(likelihood, 30)
    model, alone = mixture(engine, likelihood, dynamics=dynamics), Filters(engine, likelihood, dynamics=dynamics)
    total = np.zeros(MEMBERS)
    size = 1 if likelihood == "gaussian" else 3  # a block of numbers counts by its joint density: test_evidence.py
    for start in range(0, 30, size):
        rows = slice(start, start + size)
        log_densities, information = alone.update(x[rows], y[rows])
        info = model.update(x[rows], y[rows])
        old, new = special.log_softmax(total), special.log_softmax(total + log_densities)
        np.testing.assert_allclose(info.log_predictive, special.logsumexp(old + log_densities), rtol=EXACT)
        np.testing.assert_allclose(info.information, np.exp(new) @ (information + new - old), rtol=1e-8)
        total += log_densities
    np.testing.assert_allclose(model.to_arrays()["weights.log_weights"], special.log_softmax(total), rtol=0, atol=1e-9)
    for member, one in enumerate(alone.models):
        assert_same_posterior(member_arrays(model, member), one, 1e-8)


@pytest.mark.parametrize("likelihood", ["gaussian", "categorical"])
@pytest.mark.parametrize("engine", on("numpy", "torch"))
def test_the_predictive_is_the_weighted_mixture(engine: str, likelihood: str) -> None:
    x, y = rows_for(likelihood, 24)
    model, alone = mixture(engine, likelihood), Filters(engine, likelihood).models
    for one in (model, *alone):
        one.update(x[:12], y[:12])
    weights = np.exp(model.to_arrays()["weights.log_weights"])
    predictive, parts = model.predict(x[12:]), [one.predict(x[12:]) for one in alone]
    densities = weights @ np.exp([part.log_prob(y[12:]) for part in parts])
    np.testing.assert_allclose(predictive.log_prob(y[12:]), np.log(densities), rtol=1e-8)
    means = np.stack([part.mean for part in parts])
    mean = np.tensordot(weights, means, 1)
    np.testing.assert_allclose(predictive.mean, mean, rtol=1e-8)
    within = np.tensordot(weights, [part.variance for part in parts], 1)
    np.testing.assert_allclose(predictive.variance, within + np.tensordot(weights, (means - mean) ** 2, 1), rtol=1e-8)
    spreads, outputs = [one.output_variance(x[12:]) for one in alone], [part.output_mean[0] for part in parts]
    between = (np.stack(outputs) - np.tensordot(weights, outputs, 1)) ** 2
    np.testing.assert_allclose(model.output_variance(x[12:]), np.tensordot(weights, spreads + between, 1), rtol=1e-8)
    if likelihood == "categorical":
        probabilities = np.tensordot(weights, [part.probabilities for part in parts], 1)
        np.testing.assert_allclose(predictive.probabilities, probabilities, rtol=1e-8)
    else:
        lower = predictive.quantile(0.3)
        spread = [np.sqrt(one.output_variance(x[12:])[:, 0] + dispersion(one)) for one in alone]
        freedom = 2 * float(alone[0].to_arrays()["likelihood.0"])
        below = [stats.t.cdf(lower, freedom, part.mean, s) for part, s in zip(parts, spread, strict=True)]
        np.testing.assert_allclose(np.tensordot(weights, below, 1), 0.3, atol=1e-6)


@pytest.mark.parametrize("engine", on("numpy", "torch", "jax"))
def test_a_failed_step_leaves_every_member_and_weight(engine: str) -> None:
    network = bm.MLP((4, 4, 4), activation="relu")
    model = bm.BayesianMLP(
        network, bm.Gaussian(), structure=bm.Mixture(bm.LowRank(2), 2), engine=engine, dtype="float32"
    )
    x, y = make_inputs(2, seed=89), np.array([0.1, -0.2])
    model.update(x, y)
    before, posterior = model.to_arrays(), model.posterior
    with pytest.raises(NumericalFailure, match="nothing was learned"):
        model.update(np.full((2, 2), 1e6), y * 1e6, weight=1e6)
    assert model.posterior is posterior
    for name, array in model.to_arrays().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


@pytest.mark.parametrize(
    ("writer", "reader"),
    [
        pytest.param("numpy", "torch", marks=needs("torch")),
        pytest.param("torch", "jax", marks=[needs("torch"), needs("jax")]),
        pytest.param("jax", "numpy", marks=[needs("jax"), pytest.mark.slow]),
    ],
)
def test_a_mixture_lives_in_the_store(tmp_path: Path, writer: str, reader: str) -> None:
    """Published and learned by one framework, read and learned on by the other; its log folds to the same digest."""
    x, y = stream(30)
    store = bm.open_store(tmp_path / "store.db")
    store.publish("m", mixture(writer, dtype="float32", dynamics=bm.Forgetting(0.99)))
    with bm.OnlineUpdater(store, "m", engine=writer) as updater:
        receipts = [updater.observe(a, b) for a, b in zip(x[:20], y[:20], strict=True)]
        assert {receipt.status for receipt in receipts} == {"applied"}
        digest = updater.digest()
    with bm.OnlineUpdater(store, "m", engine=writer) as updater:
        assert updater.digest() == digest
    here, there = (bm.load(store, "m", engine=name) for name in (writer, reader))
    assert isinstance(there.structure, bm.Mixture)
    log_weights = here.to_arrays()["weights.log_weights"]
    np.testing.assert_array_equal(there.to_arrays()["weights.log_weights"], log_weights)
    assert log_weights.std() > 0
    for model in (here, there):
        model.update(x[20:], y[20:])
    np.testing.assert_allclose(there.predict(x).probabilities, here.predict(x).probabilities, atol=1e-5)
    np.testing.assert_allclose(
        there.to_arrays()["weights.log_weights"], here.to_arrays()["weights.log_weights"], atol=1e-4
    )


def test_forgetting_returns_every_member_to_its_own_prior() -> None:
    """After a long time without events each member is its own start again; the evidence so far is not forgotten."""
    x, y = stream(20)
    model = mixture("numpy", dynamics=bm.Forgetting(0.9))
    start = [member_arrays(model, member) for member in range(MEMBERS)]
    model.update(x, y)
    weights = model.to_arrays()["weights.log_weights"]
    model.update(x[:1], y[:1], weight=0.0, elapsed=1000.0)
    for member in range(MEMBERS):
        for name, array in member_arrays(model, member).items():
            if "mean" in name:
                assert relative_error(array, start[member][name]) < EXACT, name
    np.testing.assert_allclose(model.to_arrays()["weights.log_weights"], weights, rtol=EXACT)
    variances = mixture("numpy", dynamics=bm.Forgetting(0.9)).weight_variances()
    for got, expected in zip(model.weight_variances(), variances, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-8)


# -- priors chosen by the stream's evidence ---------------------------------------------------------------------------
def noisy_line(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 2))
    return x, x @ np.array([1.0, -0.5]) + 0.1 * rng.standard_normal(rows)


def grid_model(structure: Any, engine: str = "numpy", seed: int = 0) -> bm.BayesianMLP:
    return bm.BayesianMLP(
        bm.MLP(()),
        bm.Gaussian(),
        prior=bm.NormalPrior(0.5),
        structure=structure,
        engine=engine,
        dtype="float64",
        seed=seed,
    )


@pytest.mark.parametrize("engine", on("numpy", "torch", "jax"))
def test_evidence_is_the_product_of_each_members_predictions(engine: str) -> None:
    """Against single filters with the very prior and starting noise of each member."""
    x, y = noisy_line(12, seed=1)
    scales, dispersions = (0.5, 2.0, 1.0), (1.0, 0.1, 0.01)
    mixture = grid_model(bm.Mixture(bm.Full(), scales=scales, dispersions=dispersions), engine)
    mixture.update(x, y)
    evidence = []
    for member, (scale, dispersion) in enumerate(zip(scales, dispersions, strict=True)):
        alone = bm.BayesianMLP(
            bm.MLP(()),
            bm.Gaussian(prior_rate=0.1 * dispersion),
            prior=bm.NormalPrior(0.5 * scale),
            structure=bm.Full(),
            engine=engine,
            dtype="float64",
            seed=member,
        )
        evidence.append(sum(alone.update(x[i : i + 1], y[i : i + 1]).log_predictive for i in range(len(x))))
    log_weights = mixture.engine.to_numpy(mixture.posterior.weights.log_weights)
    np.testing.assert_allclose(log_weights, np.array(evidence) - np.logaddexp.reduce(evidence), rtol=1e-9)


@pytest.mark.parametrize("engine", on("numpy", "torch", "jax"))
def test_members_that_predict_badly_are_dropped_for_good(engine: str) -> None:
    x, y = noisy_line(60, seed=2)
    model = grid_model(bm.EvidenceGrid(bm.Full(), scales=(0.01, 1.0), prune_below=-5.0), engine)
    whole = grid_model(bm.Mixture(bm.Full(), scales=(0.01, 1.0), dispersions=(1.0, 1.0)), engine)
    for row in range(60):
        model.update(x[row : row + 1], y[row : row + 1])
        whole.update(x[row : row + 1], y[row : row + 1])
    assert model.posterior.weights.log_weights.shape == (1,)
    np.testing.assert_allclose(model.predict(x).mean, whole.predict(x).mean, atol=1e-3)
    again = model.to_engine(engine)
    np.testing.assert_array_equal(again.predict(x).mean, model.predict(x).mean)
    again.update(x, y)


def test_a_candidate_that_diverges_does_not_take_the_others_along() -> None:
    x, y = noisy_line(5, seed=3)
    model = grid_model(bm.EvidenceGrid(bm.Full(), scales=(1.0, 1e120)))
    for row in range(5):
        model.update(x[row : row + 1], y[row : row + 1])
    assert np.isfinite(model.predict(x).mean).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scales": (1.0, 0.0)}, "scales"),
        ({"dispersions": ()}, "dispersions"),
        ({"scales": (1.0,), "dispersions": (1.0, 2.0)}, "equally long"),
        ({"prune_below": 1.0}, "prune_below"),
    ],
)
def test_bad_grids_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        bm.Mixture(bm.Full(), **arguments)


# -- a grid that was fitted with another number of members -----------------------------------------------------------
def test_a_grid_fitted_by_fewer_members_learns_on_as_its_copy_does() -> None:
    pytest.importorskip("torch")
    x, y = stream(80)
    grid = bm.EvidenceGrid(bm.Diagonal(), (0.1, 1.0, 3.0, 30.0), (1.0,), -2.0)
    model = bm.BayesianMLP(bm.MLP((8,)), bm.Categorical(3), structure=grid, engine="torch", standardize=False)
    model.fit(x[:40], y[:40], method=bm.Ensemble(bm.Laplace(bm.TrainingOptions(epochs=2)), 3))
    copy = bm.BayesianMLP.from_parts(model.spec(), model.to_arrays(), "torch")
    for one in (model, copy):
        one.update_each(x[40:], y[40:])
    first, second = model.to_arrays(), copy.to_arrays()
    assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("structure", [bm.Diagonal(), bm.EvidenceGrid(bm.Diagonal(), (0.5, 1.0))], ids=["one", "grid"])
def test_a_fitted_ensemble_may_start_again(structure: Any) -> None:
    pytest.importorskip("torch")
    x, y = stream(40)
    model = bm.BayesianMLP(bm.MLP((8,)), bm.Categorical(3), structure=structure, engine="torch", standardize=False)
    fresh = model.duplicate()
    model.fit(x, y, method=bm.Ensemble(bm.Laplace(bm.TrainingOptions(epochs=2)), 3))
    for one in (model, fresh):
        one.start_from_prior(4)
        one.update_each(x, y)
    first, second = model.to_arrays(), fresh.to_arrays()
    assert all(np.array_equal(first[name], second[name]) for name in first)
