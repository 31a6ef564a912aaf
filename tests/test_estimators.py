"""scikit-learn's own checks of the estimators, and what it does not check: uncertainty, online learning, weights."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cases import on, relative_error
from sklearn.base import clone
from sklearn.datasets import load_iris, make_regression
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import bayesmlp as bm
from bayesmlp.inference.errors import InvalidInput, NumericalFailure

QUICK: dict[str, Any] = {"hidden_layer_sizes": (8,), "epochs": 40, "learning_rate": 0.03, "random_state": 0}
LINEAR: dict[str, Any] = {"hidden_layer_sizes": (), "structure": bm.Full(), "random_state": 0}


def both(engine: str) -> list[Any]:
    """Both estimators with a training that takes a moment."""
    unseeded = QUICK | {"random_state": None, "engine": engine}
    return [bm.BayesianMLPRegressor(**unseeded), bm.BayesianMLPClassifier(**unseeded)]


@parametrize_with_checks(both("torch"))
def test_scikit_learn_checks_on_torch(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks(both("jax"))
def test_scikit_learn_checks_on_jax(estimator: Any, check: Any) -> None:
    check(estimator)


def regression(rows: int = 60, targets: int = 1) -> tuple[np.ndarray, np.ndarray]:
    x, y = make_regression(rows, 3, n_targets=targets, noise=5.0, random_state=1)
    return x, y


def test_online_bayesian_linear_regression_is_the_conjugate_answer() -> None:
    """Means of (XᵀX/φ + Λ₀)⁻¹(Xᵀy/φ + Λ₀m₀), with known noise; rows come in batches of any size."""
    x, y = regression()
    prior = bm.NormalPrior(scale=2.0)
    estimator = bm.BayesianMLPRegressor(
        **LINEAR, likelihood=bm.Gaussian(noise_variance=4.0), standardize=False, engine="numpy", prior_scale=2.0
    )
    for rows in (slice(0, 1), slice(1, 20), slice(20, 60)):
        estimator.partial_fit(x[rows], y[rows])
    extended = np.column_stack([x, np.ones(len(x))])
    precision = prior.precision([(4, 1)])[0][:, 0]
    start = bm.MLP(()).initialise(3, 1, estimator.model_.seed)[0][:, 0]
    covariance = np.linalg.inv(extended.T @ extended / 4.0 + np.diag(precision))
    mean = covariance @ (extended.T @ y / 4.0 + precision * start)
    predicted, deviation = estimator.predict(x, return_std=True)
    assert relative_error(predicted, extended @ mean) < 1e-10
    assert relative_error(deviation, np.sqrt(np.einsum("ni,ij,nj->n", extended, covariance, extended) + 4)) < 1e-10


def test_partial_fit_is_the_update_of_the_model_behind_it() -> None:
    x, y = regression()
    estimator = bm.BayesianMLPRegressor(**QUICK, engine="numpy").partial_fit(x[:30], y[:30])
    model = bm.BayesianMLP(
        bm.MLP((8,)),
        bm.Gaussian(),
        prior=bm.NormalPrior(1.0),
        structure=bm.Full(),
        engine="numpy",
        dtype="float64",
        seed=estimator.model_.seed,
    )
    model.start_from_prior(3, model.estimate_scaling(x[:30], y[:30]))
    for rows in (slice(0, 30), slice(30, 45), slice(45, 60)):
        model.update(x[rows], y[rows])
    estimator.partial_fit(x[30:45], y[30:45]).partial_fit(x[45:], y[45:])
    np.testing.assert_array_equal(estimator.predict(x), model.predict(x).mean)


def test_the_first_batch_fixes_the_scaling() -> None:
    x, y = regression()
    estimator = bm.BayesianMLPRegressor(**QUICK, engine="numpy").partial_fit(x[:20], y[:20])
    estimator.partial_fit(100 + x[20:], y[20:])
    scaling = estimator.model_.scaling
    np.testing.assert_allclose(scaling.input_mean, x[:20].mean(0), rtol=1e-12)
    np.testing.assert_allclose(scaling.input_scale, x[:20].std(0), rtol=1e-12)
    np.testing.assert_allclose(scaling.target_mean, y[:20].mean(), rtol=1e-12)


def test_partial_fit_goes_on_from_fit() -> None:
    x, y = regression()
    estimator = bm.BayesianMLPRegressor(**QUICK, engine="torch").fit(x[:40], y[:40])
    model = estimator.model_.to_engine("torch")
    model.update(x[40:], y[40:])
    estimator.partial_fit(x[40:], y[40:])
    np.testing.assert_array_equal(estimator.predict(x, return_std=True)[1], model.predict(x).std)
    assert estimator.score(x, y) > 0.8


@pytest.mark.parametrize("framework", on("torch", "jax"))
def test_weights_are_repeated_rows_in_any_order(framework: str) -> None:
    x, y = regression(20)
    weight = np.random.default_rng(0).integers(0, 4, len(x))
    repeated = np.random.default_rng(1).permutation(np.repeat(np.arange(len(x)), weight))
    estimator = bm.BayesianMLPRegressor(**QUICK, engine=framework)
    weighted = clone(estimator).fit(x, y, sample_weight=weight).predict(x, return_std=True)
    same = clone(estimator).fit(x[repeated], y[repeated]).predict(x, return_std=True)
    np.testing.assert_array_equal(weighted, same)


@pytest.mark.parametrize("framework", on("torch", "jax"))
def test_several_targets(framework: str) -> None:
    x, y = regression(targets=2)
    estimator = bm.BayesianMLPRegressor(**QUICK, engine=framework).fit(x, y)
    mean, deviation = estimator.predict(x, return_std=True)
    low, high = estimator.predict_interval(x, 0.9)
    assert mean.shape == deviation.shape == low.shape == high.shape == y.shape
    assert estimator.n_outputs_ == 2
    assert estimator.sample_y(x, 7).shape == (60, 2, 7)
    assert np.mean((low <= y) & (y <= high)) > 0.75
    with pytest.raises(InvalidInput, match=r"y must be of shape \(rows, 2\)"):
        estimator.partial_fit(x, y[:, 0])


def test_samples_have_the_predictive_moments() -> None:
    x, y = regression()
    estimator = bm.BayesianMLPRegressor(**QUICK, engine="numpy").partial_fit(x, y)
    mean, deviation = estimator.predict(x[:5], return_std=True)
    draws = estimator.sample_y(x[:5], 4000, random_state=3)
    assert np.all(np.abs(draws.mean(1) - mean) < 5 * deviation / np.sqrt(4000))
    np.testing.assert_array_equal(draws, estimator.sample_y(x[:5], 4000, random_state=3))


@pytest.mark.parametrize("labels", [["no", "yes"], ["a", "b", "c"], [-1, 1], [10, 20, 30]])
def test_classes_by_any_name(labels: list[Any]) -> None:
    x, positions = load_iris(return_X_y=True)
    rows = np.random.default_rng(0).permutation(np.flatnonzero(positions < len(labels)))
    x, y = x[rows], np.array(labels)[positions[rows]]
    estimator = bm.BayesianMLPClassifier(**QUICK, engine="numpy").partial_fit(x[:1], y[:1], classes=labels)
    for start in range(1, len(x), 10):
        estimator.partial_fit(x[start : start + 10], y[start : start + 10])
    assert estimator.classes_.tolist() == labels
    assert estimator.score(x, y) > 0.8
    probabilities, decision = estimator.predict_proba(x), estimator.decision_function(x)
    np.testing.assert_allclose(np.exp(estimator.predict_log_proba(x)), probabilities)
    if len(labels) == 2:
        np.testing.assert_allclose(1 / (1 + np.exp(-decision)), probabilities[:, 1])
    assert set(np.unique(estimator.sample_y(x, 20))) <= set(labels)
    unknown = "?" if isinstance(labels[0], str) else 99
    with pytest.raises(InvalidInput, match=rf"y must be one of the classes .*, got {re.escape(repr(unknown))}"):
        estimator.partial_fit(x[:1], [unknown])
    with pytest.raises(InvalidInput, match="classes must be what they were"):
        estimator.partial_fit(x[:1], y[:1], classes=labels[1:])


def test_classes_must_be_announced_to_a_stream() -> None:
    with pytest.raises(InvalidInput, match="classes must be passed to the first call of partial_fit"):
        bm.BayesianMLPClassifier(engine="numpy").partial_fit([[0.0], [1.0]], [0, 1])


def test_a_refused_first_batch_leaves_no_model() -> None:
    estimator = bm.BayesianMLPClassifier(engine="numpy")
    with pytest.raises(InvalidInput, match="y must be one of the classes"):
        estimator.partial_fit([[0.0], [1.0]], [0, 5], classes=[0, 1])
    with pytest.raises(NotFittedError):
        estimator.predict([[0.0]])


@pytest.mark.parametrize(
    ("labels", "parameters"), [("xyz", {"activation": "bad"}), ("x", {}), ("xyz", {"learning_rate": 1e300})]
)
def test_a_refused_fit_leaves_the_fitted_estimator(labels: str, parameters: dict[str, Any]) -> None:
    x, y = np.linspace(-1, 1, 12)[:, None], np.repeat(["a", "b"], 6)
    estimator = bm.BayesianMLPClassifier(**QUICK, engine="torch").fit(x, y)
    before, expected = dict(vars(estimator)), estimator.predict(x)
    estimator.set_params(**parameters)
    with pytest.raises((InvalidInput, NumericalFailure)):
        estimator.fit(np.ones((12, 2)) * x, np.resize(list(labels), 12))
    fitted = [name for name in before if name.endswith("_")]
    assert all(vars(estimator)[name] is before[name] for name in fitted)
    np.testing.assert_array_equal(estimator.predict(x), expected)


@pytest.mark.parametrize("framework", on("numpy", "torch", "jax"))
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda estimator: pickle.loads(pickle.dumps(estimator))])
def test_a_copied_estimator_learns_on_alike(copied: Any, framework: str) -> None:
    x, y = regression()
    estimator = bm.BayesianMLPRegressor(**LINEAR, dynamics=bm.Forgetting(0.99), engine=framework)
    estimator.partial_fit(x[:30], y[:30])
    other = copied(estimator)
    for either in (estimator, other):
        either.partial_fit(x[30:], y[30:])
    np.testing.assert_array_equal(estimator.predict(x), other.predict(x))


def test_pipelines_searches_and_data_frames() -> None:
    x, y = load_iris(return_X_y=True, as_frame=True)
    estimator = bm.BayesianMLPClassifier(**QUICK | {"epochs": 60}, engine="torch")
    pipeline = make_pipeline(StandardScaler(), estimator)
    search = GridSearchCV(pipeline, {"bayesianmlpclassifier__prior_scale": [1.0, 3.0]})
    assert search.fit(x, y).best_score_ > 0.85
    estimator.fit(x, y)
    assert estimator.feature_names_in_.tolist() == x.columns.tolist()
    with pytest.raises(ValueError, match="feature names should match"):
        estimator.predict(x[x.columns[::-1]])
    assert cross_val_score(estimator, x, y, cv=3).mean() > 0.85


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((20,), bm.Full), ((300,), bm.Blocks), ((3000,), bm.Diagonal)],
)
def test_automatic_structure(shape: tuple[int, ...], expected: type) -> None:
    estimator = bm.BayesianMLPRegressor(shape, engine="numpy").partial_fit([[0.0, 1.0, 2.0]], [1.0])
    assert isinstance(estimator.model_.structure, expected)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"structure": "best"}, "structure must be 'auto' or a Structure, got 'best'"),
        ({"method": bm.Laplace(), "epochs": 3}, "epochs can't go with a method that has a training of its own"),
        ({"engine": "numpy"}, "engine 'numpy' has no gradients"),
        ({"activation": "step"}, "activation must be one of"),
        ({"likelihood": "gaussian"}, "likelihood must be a Likelihood, got 'gaussian'"),
        ({"prior_scale": "wide"}, "NormalPrior.scale must be positive and finite, got 'wide'"),
        ({"standardize": "yes"}, "standardize must be True, False or None, got 'yes'"),
    ],
)
def test_bad_parameters_are_refused_by_fit(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        bm.BayesianMLPRegressor(**{"engine": "torch"} | parameters).fit([[0.0], [1.0]], [0.0, 1.0])


def test_other_observation_models_and_a_mixture() -> None:
    x, _ = regression()
    counts = np.random.default_rng(2).poisson(np.exp(1 + 0.5 * x[:, 0]))
    regressor = bm.BayesianMLPRegressor(
        **QUICK, engine="numpy", likelihood=bm.Poisson(), structure=bm.Mixture(bm.Diagonal(), 2)
    )
    classifier = bm.BayesianMLPClassifier(**QUICK, engine="torch", likelihood=bm.Ordinal(3))
    levels = np.array(["bad", "fair", "good"])[np.digitize(x[:, 0], [-0.5, 0.5])]
    regressor.partial_fit(x, counts)
    classifier.fit(x, levels)
    assert np.all(regressor.predict(x) > 0)
    assert set(np.unique(regressor.sample_y(x, 50) % 1)) == {0}
    assert classifier.score(x, levels) > 0.7
    for estimator in (regressor, classifier):
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(estimator)).predict(x), estimator.predict(x))


def test_a_missing_scikit_learn_is_named_with_its_extra() -> None:
    program = "import sys; sys.modules['sklearn'] = None; import bayesmlp as bm; bm.BayesianMLPRegressor"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "MissingDependency: scikit-learn is not installed" in done.stderr
    assert "bayesmlp[sklearn]" in done.stderr


def test_pandas_targets_and_weights() -> None:
    x, y = regression()
    frame, series = pd.DataFrame(x, columns=["a", "b", "c"]), pd.Series(y)
    estimator = bm.BayesianMLPRegressor(**QUICK, engine="numpy")
    estimator.partial_fit(frame, series, sample_weight=pd.Series(np.ones(len(y))))
    plain = clone(estimator).partial_fit(x, y)
    np.testing.assert_array_equal(estimator.predict(frame), plain.predict(x))
