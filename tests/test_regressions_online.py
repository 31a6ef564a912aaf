"""What a reader of the online updater once broke, and must not break again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import needs, on
from scipy import integrate, optimize, special

import bayesmlp as bm
from bayesmlp.inference.engines import NumpyEngine
from bayesmlp.inference.influence import squared_distance
from bayesmlp.inference.likelihoods.masked import MaskedTargets, masked


def published(folder: Path, model: bm.BayesianMLP, num_inputs: int = 2) -> bm.PosteriorStore:
    model.start_from_prior(num_inputs)
    store = bm.open_store(folder / "store.db")
    store.publish("m", model)
    return store


def model_of(likelihood: Any = None, **options: Any) -> bm.BayesianMLP:
    return bm.BayesianMLP(bm.MLP((4,)), likelihood or bm.Categorical(3), engine="numpy", standardize=False, **options)


def test_large_counts_are_learned_by_the_default_step() -> None:
    model = bm.BayesianMLP(
        bm.MLP(()), bm.Poisson(), structure=bm.Full(), engine="numpy", dtype="float64", standardize=False
    )
    model.update([[1.0, 1.0]], [3000])
    assert 2000 < float(model.predict([[1.0, 1.0]], method="mean").mean[0]) < 4000


def test_a_rating_is_learned_by_the_nearest_normal_distribution() -> None:
    """Against numerical minimisation of the divergence: levels have an observed information that is not Fisher's."""
    likelihood, variance = bm.Ordinal(4), 5.0
    engine = NumpyEngine()
    state = likelihood.initial_state()
    found = bm.VariationalStep(1e-8, 500).solve(
        engine, likelihood, 1e200, np.zeros((1, 1)), np.array([[variance]]), np.array([1]), np.ones(1), state
    )

    def divergence(parameters: np.ndarray) -> float:
        mean, log_deviation = parameters
        deviation = np.exp(log_deviation)

        def weighted(z: float) -> float:
            log_prob = likelihood.log_prob(engine, np.array([[mean + deviation * z]]), np.array([1]), state)
            return float(log_prob[0]) * np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)

        fit = integrate.quad(weighted, -10, 10, epsabs=1e-11)[0]
        return 0.5 * (deviation**2 + mean**2) / variance - log_deviation - fit

    best = optimize.minimize(divergence, [0.0, 0.5], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-12}).x
    information = float((found.fisher_factor @ found.fisher_factor.swapaxes(1, 2))[0, 0, 0])
    np.testing.assert_allclose(variance * found.residual[0, 0], best[0], atol=1e-4)
    np.testing.assert_allclose(1 / (1 / variance + information), np.exp(2 * best[1]), rtol=1e-4)


@pytest.mark.parametrize(
    ("likelihood", "y", "mask"),
    [
        (bm.Categorical(3), 1, [True, True, False]),
        (bm.Gaussian(2), [0.3, 0.0], [True, False]),
        (bm.Bernoulli(2), [1, 0], [True, False]),
    ],
    ids=["categorical", "gaussian", "bernoulli"],
)
def test_influence_is_bounded_of_rows_that_tell_of_some_outputs(
    tmp_path: Path, likelihood: Any, y: Any, mask: list[bool]
) -> None:
    with published(tmp_path, model_of(likelihood, influence=bm.InverseMultiquadric())) as store:
        with bm.OnlineUpdater(store, "m", calibration=True) as updater:
            assert updater.observe([0.0, 1.0], y, output_mask=mask).status == "applied"
            digest = updater.digest()
        with bm.OnlineUpdater(store, "m") as again:
            assert again.digest() == digest


def test_of_a_mask_only_what_was_possible_counts_for_influence() -> None:
    """Two of three classes possible: as a model of two classes."""
    rng = np.random.default_rng(0)
    f, root = rng.standard_normal((1, 3)), rng.standard_normal((3, 3))
    given = MaskedTargets(np.array([1]), np.array([[True, True, False]]))
    engine = NumpyEngine()
    likelihood = masked(bm.Categorical(3))
    square, _ = squared_distance(engine, likelihood, f, 1e-12 * root @ root.T[None], given, ())
    share = special.softmax(f[0, :2])[1]
    np.testing.assert_allclose(square, [1 / share - 1], rtol=1e-5)


def test_calibration_is_of_the_kind_and_the_mask_that_came(tmp_path: Path) -> None:
    model = bm.BayesianMLP(
        bm.MLP((4,)),
        feedback={"label": bm.Categorical(3), "preference": bm.Kind(bm.BradleyTerry(), outputs=3)},
        engine="numpy",
        standardize=False,
    )
    with published(tmp_path, model) as store, bm.OnlineUpdater(store, "m", calibration=True) as updater:
        assert updater.prefer(better=[0.0, 1.0], worse=[1.0, 0.0]).status == "applied"
        assert updater.observe([0.0, 1.0], 1, output_mask=[False, True, False]).status == "applied"
        seen = updater.prequential()
        assert 0.5 <= seen.confidence[0] < 1
        np.testing.assert_allclose([seen.confidence[1], seen.hit[1]], 1)  # one class was possible, and it came


@pytest.mark.parametrize("structure", [bm.Diagonal(), bm.Full()], ids=["diagonal", "full"])
def test_a_retraction_reaches_back_before_members_were_dropped(tmp_path: Path, structure: Any) -> None:
    rng = np.random.default_rng(1)
    grid = bm.EvidenceGrid(structure, scales=(0.01, 0.1, 1.0, 4.0), prune_below=-3.0)
    x = rng.standard_normal((40, 2))
    y = (x[:, 0] > 0).astype(int)
    model = model_of(structure=grid, dynamics=bm.Forgetting(0.999))
    with published(tmp_path, model) as store, bm.OnlineUpdater(store, "m", engine="numpy") as updater:
        for row in range(40):
            updater.observe(x[row], y[row], event_id=f"e{row}")
        assert len(updater.model.posterior.weights.log_weights) < 4
        updater.retract(["e1"])
        digest = updater.digest()
        updater.observe(x[0], y[0])
    with bm.open_store(tmp_path / "plain.db") as plain:
        fresh = model_of(structure=grid, dynamics=bm.Forgetting(0.999))
        fresh.start_from_prior(2)
        plain.publish("m", fresh)
        with bm.OnlineUpdater(plain, "m", engine="numpy") as updater:
            for row in range(40):
                if row != 1:
                    updater.observe(x[row], y[row], event_id=f"e{row}")
            assert updater.digest() == digest


def test_an_event_whose_snapshot_fails_is_learned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(2).standard_normal((4, 2))
    with published(tmp_path, model_of()) as store:
        with bm.OnlineUpdater(store, "m", snapshot_every=2) as updater:
            whole, failures = updater._writer.snapshot, [OSError("disk full")]

            def snapshot(*arguments: Any) -> Any:
                if failures:
                    raise failures.pop()
                return whole(*arguments)

            monkeypatch.setattr(updater._writer, "snapshot", snapshot)
            updater.observe(x[0], 0)
            with pytest.raises(OSError, match="disk full"):
                updater.observe(x[1], 1)
            assert updater.observe(x[2], 2).status == "applied"
            digest = updater.digest()
        assert bm.load(store, "m", engine="numpy").to_arrays().keys()
        with bm.OnlineUpdater(store, "m") as again:
            assert again.digest() == digest


def test_surprise_is_measured_against_counts_that_there_can_be(tmp_path: Path) -> None:
    model, admission = model_of(bm.Poisson(), prior=bm.NormalPrior(30.0)), bm.Admission(quarantine_above=12.5)
    with published(tmp_path, model) as store, bm.OnlineUpdater(store, "m", admission=admission) as updater:
        for value in (6.0, -6.0, 50.0):
            assert updater.observe([value, -value], 2).status in ("applied", "quarantined")


def test_two_kinds_of_feedback_on_one_answer_are_two_events(tmp_path: Path) -> None:
    model = bm.BayesianMLP(
        bm.MLP((4,)),
        feedback={"label": bm.Categorical(3), "rating": bm.Kind(bm.Ordinal(5), outputs=3)},
        engine="numpy",
        standardize=False,
    )
    with published(tmp_path, model) as store, bm.OnlineUpdater(store, "m") as updater:
        answer = updater.predict([0.0, 1.0])
        assert not updater.feedback(answer.prediction_id, 1).repeated
        assert not updater.feedback(answer.prediction_id, 4, kind="rating", weight=0.5).repeated
        assert updater.feedback(answer.prediction_id, 1).repeated


def test_many_events_have_weights_and_times(tmp_path: Path) -> None:
    x = np.random.default_rng(3).standard_normal((3, 2))
    digests = []
    for name in ("many", "one by one"):
        folder = tmp_path / name
        folder.mkdir()
        dynamics = bm.Forgetting(0.9, time_unit=60.0)
        with published(folder, model_of(dynamics=dynamics)) as store, bm.OnlineUpdater(store, "m") as updater:
            if name == "many":
                updater.observe_many(x, [0, 1, 2], weight=[1.0, 0.5, 2.0], times=[0.0, 60.0, 180.0])
                with pytest.raises(bm.errors.InvalidInput, match="times"):
                    updater.observe_many(x, [0, 1, 2], times=[0.0])
            else:
                for row, (weight, time) in enumerate([(1.0, 0.0), (0.5, 60.0), (2.0, 180.0)]):
                    updater.observe(x[row], row, weight=weight, time=time)
            digests.append(updater.digest())
    assert digests[0] == digests[1]


@needs("torch")
def test_a_fitted_grid_prunes_as_it_says() -> None:
    rng = np.random.default_rng(4)
    x = rng.standard_normal((30, 2))
    y = (x[:, 0] > 0).astype(int)
    model = bm.BayesianMLP(
        bm.MLP((4,)), bm.Categorical(2), structure=bm.EvidenceGrid(bm.Diagonal(), scales=(0.5, 1.0)), engine="torch"
    )
    model.fit(x, y, method=bm.Laplace(bm.TrainingOptions(steps=50)))
    assert model.to_engine("torch").spec() == model.spec()
    assert model._resolved.prune_below == -12.0


@pytest.mark.parametrize("engine", ["numpy", pytest.param("torch", marks=needs("torch"))])
@pytest.mark.parametrize("buffer", [0, 1])
@pytest.mark.parametrize("scale", [1e3, 1e4, 1e6])
def test_rounding_of_large_directions_takes_nothing_of_what_was_known(engine: str, buffer: int, scale: float) -> None:
    """In float32 the squares of what an event tells have roundings as large as a prior's precision."""
    for seed in range(4):
        x = np.sign(np.random.default_rng(seed).standard_normal((2, 3))) * scale
        model = bm.BayesianMLP(
            bm.MLP((5,)), bm.Gaussian(noise_variance=0.1), structure=bm.LowRank(3, buffer), engine=engine,
            standardize=False,
        )  # fmt: skip
        model.start_from_prior(3)
        prior = model.weight_variances()
        for row in x:
            model.update(row[None], [1.0])
        ratios = [after / before for after, before in zip(model.weight_variances(), prior, strict=True)]
        assert all((ratio > 0).all() and (ratio < 1 + 2 / 16).all() for ratio in ratios)


@pytest.mark.parametrize("engine", on("numpy", "torch", "jax"))
def test_a_hypothesis_that_diverges_does_not_refuse_events_for_the_others(engine: str) -> None:
    """After a gap of decades random walks have variances of 10⁷; the static hypothesis predicts well all along."""
    rng = np.random.default_rng(0)
    model = bm.BayesianMLP(
        bm.MLP((20,)), bm.Categorical(2), structure=bm.Diagonal(), dynamics=bm.AdaptiveForgetting(time_unit=1.0),
        engine=engine,
    )  # fmt: skip
    model.start_from_prior(2)
    right = []
    for i in range(220):
        x = rng.standard_normal((1, 2))
        label = int(x[0, 0] > 0)
        right.append(int(np.argmax(model.predict(x).probabilities)) == label)
        info = model.update(x, [label], elapsed=1.7e9 if i == 150 else 1.0)
        assert np.isfinite([info.log_predictive, info.information]).all()
    assert np.mean(right[150:]) > 0.9
    np.testing.assert_allclose(model.predict(np.zeros((1, 2))).probabilities.sum(), 1.0, atol=1e-6)


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_a_mixture_learns_what_most_of_it_can_learn(share: float) -> None:
    """A member that can't is out; were it most of the mixture, one event would put the best members out for good."""
    model = bm.BayesianMLP(
        bm.MLP((4,)), bm.Gaussian(), structure=bm.Mixture(bm.Diagonal(), 2), engine="numpy", dtype="float64"
    )
    model.update(np.zeros((1, 2)), [0.1])
    posterior = model.posterior
    mean = tuple(np.stack([1e300 * layer[0], layer[1]]) for layer in posterior.weights.members.mean)
    members = posterior.weights.members._replace(mean=mean)
    weights = posterior.weights._replace(members=members, log_weights=np.log([share, 1 - share]))
    model.set_posterior(posterior._replace(weights=weights))
    if share > 0.5:
        with pytest.raises(bm.errors.NumericalFailure, match="nothing was learned"):
            model.update(np.ones((1, 2)), [0.5])
        np.testing.assert_array_equal(model.posterior.weights.log_weights, np.log([share, 1 - share]))
        return
    info = model.update(np.ones((1, 2)), [0.5])
    assert np.isfinite([info.log_predictive, info.information]).all()
    after = model.posterior.weights
    np.testing.assert_array_equal(np.exp(after.log_weights), [0.0, 1.0])
    for now, before in zip(after.members.mean, mean, strict=True):
        np.testing.assert_array_equal(now[0], before[0])
        assert np.any(now[1] != before[1])
