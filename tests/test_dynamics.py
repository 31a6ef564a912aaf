"""What happens between events: exact against dense algebra and brute force, composed, timed, stored and replayed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dense
import numpy as np
import pytest
from cases import LINEAR, NUM_INPUTS, STRUCTURES, make_inputs, on
from scipy import special, stats

import bayesmlp as bm
from bayesmlp.inference.dynamics import Dynamics
from bayesmlp.inference.errors import InvalidInput

NOISE = 0.3
LINEAR_SHAPES = [(NUM_INPUTS + 1, 1)]
CANDIDATES = (bm.Static(), bm.Forgetting(0.9), bm.RandomWalk(0.05))
DYNAMICS: dict[str, Dynamics] = {
    "forgetting": bm.Forgetting(0.9),
    "random_walk": bm.RandomWalk(0.05),
    "adaptive": bm.AdaptiveForgetting(CANDIDATES, share=0.02),
    "change_point": bm.ChangePoint(0.1, hypotheses=3),
}


def linear_model(dynamics: Dynamics, structure: Any = None, engine: str = "numpy") -> bm.BayesianMLP:
    """A linear model of known noise that knows its prior only."""
    model = bm.BayesianMLP(
        LINEAR,
        bm.Gaussian(noise_variance=NOISE),
        structure=structure or bm.Full(),
        dynamics=dynamics,
        engine=engine,
        dtype="float64",
    )
    model.start_from_prior(NUM_INPUTS)
    return model


def rows(count: int, seed: int, jump: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and noisy linear targets, of other weights from row ``jump`` on."""
    x = make_inputs(count, seed)
    slope = np.full(count, 2.0)
    if jump is not None:
        slope[jump:] = -2.0
    return x, slope * x[:, 0] + NOISE**0.5 * np.random.default_rng(seed + 1).standard_normal(count)


class Reference:
    """Dense conjugate Bayes for the linear model: mean, covariance and the log predictive density of each row."""

    def __init__(self) -> None:
        start = linear_model(bm.Static())
        self.prior_mean = dense.flatten(start.mean_weights())
        self.prior_covariance = np.diag(dense.flatten(start.weight_variances()))
        self.mean, self.covariance = self.prior_mean, self.prior_covariance

    def relax(self, retention: float, growth: float) -> None:
        self.mean = retention * self.mean + (1 - retention) * self.prior_mean
        self.covariance = retention**2 * self.covariance + growth * self.prior_covariance

    def learn(self, x: np.ndarray, y: float) -> float:
        row = np.append(x, 1.0)
        variance = row @ self.covariance @ row + NOISE
        error = y - row @ self.mean
        gain = self.covariance @ row / variance
        self.mean = self.mean + gain * error
        self.covariance = self.covariance - np.outer(gain, row @ self.covariance)
        return float(stats.norm.logpdf(error, scale=variance**0.5))


def assert_same_arrays(first: bm.BayesianMLP, second: bm.BayesianMLP, tolerance: float = 1e-9) -> None:
    expected = second.to_arrays()
    for name, array in first.to_arrays().items():
        np.testing.assert_allclose(array, expected[name], rtol=tolerance, atol=tolerance, err_msg=name)


# -- exact ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("engine", on("numpy", "torch", "jax"))
@pytest.mark.parametrize(("growth", "elapsed"), [(0.05, 1.0), (0.2, 2.5), (0.0, 3.0)])
def test_a_random_walk_is_the_kalman_filter(engine: str, growth: float, elapsed: float) -> None:
    model, reference = linear_model(bm.RandomWalk(growth), engine=engine), Reference()
    for x, y in zip(*rows(6, seed=1), strict=True):
        info = model.update(x[None], [y], elapsed=elapsed)
        reference.relax(1.0, growth * elapsed)
        np.testing.assert_allclose(info.log_predictive, reference.learn(x, y), rtol=1e-9)
    np.testing.assert_allclose(dense.flatten(model.mean_weights()), reference.mean, rtol=1e-9)
    np.testing.assert_allclose(dense.flatten(model.weight_variances()), np.diag(reference.covariance), rtol=1e-9)


def test_a_random_walk_of_independent_weights() -> None:
    model, static = (linear_model(one, bm.Diagonal()) for one in (bm.RandomWalk(0.2), bm.Static()))
    x, y = rows(5, seed=2)
    for one in (model, static):
        one.update(x, y, elapsed=0.0)
    prior = linear_model(bm.Static()).weight_variances()[0]
    walked = model.posterior_after(1.5)
    np.testing.assert_allclose(1 / walked.weights.precision[0], static.weight_variances()[0] + 0.3 * prior, rtol=1e-9)
    np.testing.assert_array_equal(walked.weights.mean[0], static.mean_weights()[0])


@pytest.mark.parametrize("share", [0.0, 0.05])
@pytest.mark.parametrize("engine", on("numpy", "torch", "jax"))
def test_adaptive_forgetting_averages_kalman_filters(engine: str, share: float) -> None:
    model = linear_model(bm.AdaptiveForgetting(CANDIDATES, share=share), engine=engine)
    filters, log_weights = [Reference() for _ in CANDIDATES], np.full(3, -np.log(3))
    for x, y in zip(*rows(12, seed=3, jump=6), strict=True):
        for one, rates in zip(filters, [(1.0, 0.0), (0.9, 0.19), (1.0, 0.05)], strict=True):
            one.relax(*rates)
        log_weights = np.log((1 - share) * np.exp(log_weights) + share / 3)
        scored = log_weights + [one.learn(x, y) for one in filters]
        info = model.update(x[None], [y])
        np.testing.assert_allclose(info.log_predictive, special.logsumexp(scored), rtol=1e-9)
        log_weights = special.log_softmax(scored)
    np.testing.assert_allclose(model.to_arrays()["weights.log_weights"], log_weights, rtol=1e-8)
    for got, one in zip(model.mean_weights()[0], filters, strict=True):
        np.testing.assert_allclose(got[:, 0], one.mean, rtol=1e-8)


@pytest.mark.parametrize("engine", on("numpy", "torch", "jax"))
def test_change_points_are_the_run_length_recursion(engine: str) -> None:
    """Adams and MacKay (2007), algorithm 1, with every run kept: exact as long as there are as many hypotheses."""
    hazard, count = 0.1, 9
    model = linear_model(bm.ChangePoint(hazard, hypotheses=count + 1), engine=engine)
    runs: dict[int, tuple[float, Reference]] = {0: (1.0, Reference())}
    for x, y in zip(*rows(count, seed=4, jump=5), strict=True):
        total = sum(weight for weight, _ in runs.values())
        grown = {length: (weight * (1 - hazard), one) for length, (weight, one) in runs.items() if length}
        fresh = runs[0][0] * (1 - hazard) if 0 in runs else 0.0
        grown[0] = (fresh + total * hazard, Reference())
        joint = {length + 1: (weight * np.exp(one.learn(x, y)), one) for length, (weight, one) in grown.items()}
        evidence = sum(weight for weight, _ in joint.values())
        info = model.update(x[None], [y])
        np.testing.assert_allclose(info.log_predictive, np.log(evidence), rtol=1e-9)
        runs = {length: (weight / evidence, one) for length, (weight, one) in joint.items()}
    arrays = model.to_arrays()
    weights, lengths = np.exp(arrays["weights.log_weights"]), arrays["dynamics.0"]
    for length, (weight, _) in runs.items():
        np.testing.assert_allclose(weights[lengths == length].sum(), weight, rtol=1e-8, err_msg=str(length))


def test_few_hypotheses_find_the_change() -> None:
    dynamics = bm.ChangePoint(0.01, hypotheses=3)
    x, y = rows(80, seed=5, jump=60)
    model, static = linear_model(dynamics), linear_model(bm.Static())
    scores = np.array(
        [[one.update(x[i : i + 1], y[i : i + 1]).log_predictive for one in (model, static)] for i in range(len(x))]
    )
    arrays = model.to_arrays()
    assert arrays["dynamics.0"][arrays["weights.log_weights"].argmax()] in (19, 20, 21)
    assert scores[65:, 0].sum() > scores[65:, 1].sum() + 20
    assert scores[:60, 0].sum() > scores[:60, 1].sum() - 3


def test_the_rate_of_forgetting_follows_the_stream() -> None:
    """Retention rises while nothing changes, and falls after a jump."""
    dynamics = bm.AdaptiveForgetting((bm.Static(), bm.Forgetting(0.99), bm.Forgetting(0.8)), share=0.01)
    model = linear_model(dynamics)
    x, y = rows(220, seed=6, jump=200)
    rates = []
    for a, b in zip(x, y, strict=True):
        model.update(a[None], [b])
        rates.append(dynamics.average(np.exp(model.to_arrays()["weights.log_weights"])).retention)
    assert rates[0] < rates[50] < rates[199]
    assert rates[199] > 0.99
    assert min(rates[200:]) < 0.9


# -- time -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("structure", [name for name in STRUCTURES if name != "blocks"])  # which has three layers
@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_two_spans_of_time_are_one(dynamics: str, structure: str) -> None:
    network = bm.MLP((4,), "tanh")
    once, twice = (
        bm.BayesianMLP(
            network, bm.Bernoulli(), structure=STRUCTURES[structure], dynamics=DYNAMICS[dynamics],
            engine="numpy", dtype="float64",
        )
        for _ in range(2)
    )  # fmt: skip
    x, _ = rows(7, seed=7)
    for model in (once, twice):
        for row in x:
            model.update(row[None], [row[0] > 0])
    before = once.to_arrays()
    once.set_posterior(once.posterior_after(3.5))
    twice.set_posterior(twice.posterior_after(1.25))
    twice.set_posterior(twice.posterior_after(2.25))
    probed = make_inputs(6, seed=8)
    np.testing.assert_allclose(once.predict(probed).probabilities, twice.predict(probed).probabilities, rtol=1e-8)
    np.testing.assert_allclose(once.output_variance(probed), twice.output_variance(probed), rtol=1e-8)
    if dynamics != "change_point":  # which of two equal hypotheses stands in which place is free
        assert any(not np.array_equal(before[name], array) for name, array in once.to_arrays().items())


@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_an_answer_after_some_time_changes_nothing_and_is_what_the_update_scores(dynamics: str) -> None:
    model = linear_model(DYNAMICS[dynamics])
    x, y = rows(8, seed=9)
    model.update(x[:7], y[:7])
    before = model.to_arrays()
    said = model.predict(x[7:], elapsed=2.0).log_prob(y[7:])
    for name, array in model.to_arrays().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    np.testing.assert_allclose(model.update(x[7:], y[7:], elapsed=2.0).log_predictive, said[0], rtol=1e-9)


@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_no_time_is_no_change(dynamics: str) -> None:
    model = linear_model(DYNAMICS[dynamics])
    model.update(*rows(5, seed=10))
    before = model.predict(make_inputs(3, seed=14))
    pass_time = model.filter_model.compile_passing(model.engine)
    model.set_posterior(pass_time(model.posterior, model.prior_state, np.zeros(())))
    after = model.predict(make_inputs(3, seed=14))
    np.testing.assert_allclose(after.mean, before.mean, rtol=1e-12)
    np.testing.assert_allclose(after.variance, before.variance, rtol=1e-12)


@pytest.mark.parametrize("engine", on("numpy", "torch"))
@pytest.mark.parametrize("dynamics", ["adaptive", "change_point"])
def test_after_a_very_long_time_nothing_is_known_of_the_hypotheses(dynamics: str, engine: str) -> None:
    model = linear_model(DYNAMICS[dynamics], engine=engine)
    model.update(*rows(5, seed=15))
    model.set_posterior(model.posterior_after(1e6))
    weights = np.exp(model.to_arrays()["weights.log_weights"])
    expected = [1 / 3] * 3 if dynamics == "adaptive" else [0, 0, 1]
    np.testing.assert_allclose(np.sort(weights), expected, atol=1e-12)
    info = model.update(*rows(5, seed=16))
    assert np.isfinite([info.log_predictive, info.information]).all()


# -- the updater ------------------------------------------------------------------------------------------------------
TIMED: dict[str, Dynamics] = {
    "forgetting": bm.Forgetting(0.9, time_unit=60.0),
    "random_walk": bm.RandomWalk(0.05, time_unit=60.0),
    "adaptive": bm.AdaptiveForgetting(CANDIDATES, share=0.02, time_unit=60.0),
    "change_point": bm.ChangePoint(0.1, hypotheses=3, time_unit=60.0),
}
TIMES = (1000.0, 1060.0, 1030.0, None, 1240.0, 1240.0, 1300.0, 1100.0)
ELAPSED = (0.0, 1.0, 0.0, 0.0, 3.0, 0.0, 1.0, 0.0)


@pytest.mark.parametrize("engine", on("numpy", "torch"))
@pytest.mark.parametrize("dynamics", TIMED)
def test_events_decay_by_their_time_stamps_and_replay_to_the_same_digest(
    tmp_path: Path, dynamics: str, engine: str
) -> None:
    x, y = rows(len(TIMES), seed=11)
    store = bm.open_store(tmp_path / "store.db")
    store.publish("m", linear_model(TIMED[dynamics], engine=engine))
    direct = linear_model(TIMED[dynamics], engine=engine)
    with bm.OnlineUpdater(store, "m", engine=engine, snapshot_every=3) as updater:
        for i, time in enumerate(TIMES):
            updater.observe(x[i], y[i], event_id=str(i), time=time)
            direct.update(x[i : i + 1], y[i : i + 1], elapsed=ELAPSED[i])
        digest, version = updater.digest(), updater.version
        assert_same_arrays(direct, updater.model, 1e-12)
        assert updater.model.newest_time == 1300.0
        later = updater.predict(x[0], time=1420.0)
        np.testing.assert_allclose(later.variance, direct.predict(x[:1], elapsed=2.0).variance, rtol=1e-9)
        assert updater.predict(x[0], time=900.0).variance == updater.predict(x[0]).variance
        assert (updater.digest(), updater.version) == (digest, version)
        updater.retract(["6"])
        without = updater.digest()
    with bm.OnlineUpdater(store, "m", engine=engine) as updater:
        assert updater.digest() == without
        assert updater.model.newest_time == 1240.0
    assert bm.load(store, "m", engine=engine, version=version).newest_time == 1300.0


def test_a_stream_without_its_event_is_a_stream_that_never_had_it(tmp_path: Path) -> None:
    x, y = rows(len(TIMES), seed=12)
    digests = []
    for name, left_out in (("with", None), ("without", 4)):
        store = bm.open_store(tmp_path / f"{name}.db")
        store.publish("m", linear_model(TIMED["adaptive"]))
        with bm.OnlineUpdater(store, "m", snapshot_every=2, engine="numpy") as updater:
            for i, time in enumerate(TIMES):
                if i != left_out:
                    updater.observe(x[i], y[i], event_id=str(i), time=time)
            if left_out is None:
                updater.retract(["4"])
            digests.append(updater.digest())
    assert digests[0] == digests[1]


def test_dynamics_that_count_events_know_no_time(tmp_path: Path) -> None:
    store = bm.open_store(tmp_path / "store.db")
    store.publish("m", linear_model(bm.Forgetting(0.9)))
    with bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        updater.observe([0.0, 1.0], 0.5, time=1000.0)
        assert "clock.newest" not in updater.model.to_arrays()
        with pytest.raises(InvalidInput, match="time needs dynamics with a time_unit"):
            updater.predict([0.0, 1.0], time=2000.0)


def test_a_static_model_stores_what_it_always_did() -> None:
    model = linear_model(bm.Static())
    model.update(*rows(3, seed=17))
    kinds = {name.partition(".")[0] for name in model.to_arrays()}
    assert kinds == {"weights", "scaling"}
    assert model.spec()["dynamics"] == {"type": "Static"}


# -- refusals ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: bm.RandomWalk(-1.0), "RandomWalk.growth must be finite and at least 0, got -1.0"),
        (lambda: bm.Forgetting(0.9, time_unit=0), "Forgetting.time_unit must be a positive number of seconds"),
        (lambda: bm.AdaptiveForgetting((bm.Static(),)), "candidates must be at least two of"),
        (lambda: bm.AdaptiveForgetting((bm.Static(), bm.Forgetting(0.9, time_unit=1.0))), "must have no time_unit"),
        (lambda: bm.AdaptiveForgetting(share=1.0), r"share must be in \[0, 1\), got 1.0"),
        (lambda: bm.ChangePoint(0.0), r"hazard must be in \(0, 1\), got 0.0"),
        (lambda: bm.ChangePoint(hypotheses=1), "hypotheses must be an integer of at least 2, got 1"),
        (lambda: linear_model(bm.ChangePoint(), bm.Mixture(bm.Full(), 2)), "makes a mixture of its own"),
        (
            lambda: linear_model(bm.ChangePoint(), engine="numpy").fit([[0.0, 1.0]], [0.0], method=bm.Ensemble()),
            "method must fit one Gaussian for ChangePoint",
        ),
        (lambda: linear_model(bm.Static()).predict([[0.0, 1.0]], elapsed=-1), "elapsed must be a number of at least 0"),
    ],
)
def test_what_makes_no_sense_is_refused(build: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        build()


@pytest.mark.parametrize("dynamics", ["adaptive", "change_point"])
@pytest.mark.parametrize("framework", on("torch"))
def test_a_fitted_model_goes_on_under_every_hypothesis(dynamics: str, framework: str) -> None:
    model = bm.BayesianMLP(LINEAR, bm.Gaussian(), structure=bm.Full(), dynamics=DYNAMICS[dynamics], engine=framework)
    x, y = rows(40, seed=13)
    model.fit(x[:30], y[:30], method=bm.Laplace(bm.TrainingOptions(steps=50)))
    said = model.predict(x[30:])
    alone = bm.BayesianMLP(LINEAR, bm.Gaussian(), structure=bm.Full(), engine=framework)
    alone.fit(x[:30], y[:30], method=bm.Laplace(bm.TrainingOptions(steps=50)))
    np.testing.assert_allclose(said.mean, alone.predict(x[30:]).mean, rtol=1e-6)
    model.update(x[30:], y[30:])
    again = bm.BayesianMLP.from_parts(model.spec(), model.to_arrays(), framework)
    np.testing.assert_allclose(again.predict(x).mean, model.predict(x).mean, rtol=1e-6)
    assert again.structure == bm.Full()
