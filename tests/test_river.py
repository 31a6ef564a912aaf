"""River's interface: dictionaries of features, a warm-up, then one Bayesian update for each row."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cases import on

import bayesmlp as bm
from bayesmlp.inference.errors import InvalidInput, NotFitted

SMALL: dict[str, Any] = {"hidden_layer_sizes": (6,), "random_state": 0}


def stream(rows: int, seed: int = 0) -> list[tuple[dict[str, float], float]]:
    """Rows of y = 3 + 2a - b with little noise."""
    rng = np.random.default_rng(seed)
    a, b = 5 + rng.standard_normal(rows), 0.1 * rng.standard_normal(rows)
    y = 3 + 2 * a - b + 0.01 * rng.standard_normal(rows)
    return [({"a": float(i), "b": float(j)}, float(k)) for i, j, k in zip(a, b, y, strict=True)]


def regressor(framework: str = "numpy", warm_up: int = 10) -> bm.RiverRegressor:
    return bm.RiverRegressor(bm.BayesianMLPRegressor(**SMALL, engine=framework), warm_up=warm_up)


def classifier(classes: Any = None, warm_up: int = 10) -> bm.RiverClassifier:
    return bm.RiverClassifier(bm.BayesianMLPClassifier(**SMALL, engine="numpy"), classes=classes, warm_up=warm_up)


@pytest.mark.parametrize("framework", on("numpy", "torch", "jax"))
def test_rows_are_learned_one_by_one(framework: str) -> None:
    """The model's own updates, with the scaling of the warm-up."""
    rows = stream(15)
    model = regressor(framework)
    for x, y in rows:
        model.learn_one(x, y)
    table, targets = np.array([[x["a"], x["b"]] for x, _ in rows]), np.array([y for _, y in rows])
    reference = bm.BayesianMLP(
        bm.MLP((6,)),
        bm.Gaussian(),
        prior=bm.NormalPrior(1.0),
        structure=bm.Full(),
        engine=framework,
        dtype="float64",
        seed=model.estimator.model_.seed,
    )
    reference.start_from_prior(2, reference.estimate_scaling(table[:10], targets[:10]))
    for i in range(15):
        reference.update(table[i : i + 1], targets[i : i + 1])
    assert model.predict_one(rows[0][0]) == reference.predict(table[:1]).mean[0]


def test_scores_stand_beside_the_features() -> None:
    """As if they had been computed before: each row's among those that were learned before it."""
    rows = stream(30)
    model = bm.RiverRegressor(bm.BayesianMLPRegressor(**SMALL, engine="numpy"), warm_up=10, normal_scores=8)
    table, targets = np.array([[x["a"], x["b"]] for x, _ in rows]), np.array([y for _, y in rows])
    inputs = np.hstack([table, bm.NormalScores(8).observe(table)])
    for x, y in rows[:20]:
        model.learn_one(x, y)
    reference = bm.RiverRegressor(bm.BayesianMLPRegressor(**SMALL, engine="numpy"), warm_up=10)
    for row, y in zip(inputs[:20], targets[:20], strict=True):
        reference.learn_one(dict(enumerate(row)), y)
    for index in range(20, 30):
        x, y = rows[index]
        assert model.predict_one(x) == model.predict_one(x) == reference.predict_one(dict(enumerate(inputs[index])))
        with pytest.raises(InvalidInput):
            model.learn_one(x, "much")
        model.learn_one(x, y)
        reference.learn_one(dict(enumerate(inputs[index])), y)
    assert model.features == ["a", "b"]
    again = pickle.loads(pickle.dumps(model))
    assert again.predict_one(rows[0][0]) == model.predict_one(rows[0][0])


def test_a_fitted_estimator_has_no_inputs_for_scores() -> None:
    rows = stream(20)
    table = pd.DataFrame([x for x, _ in rows])
    fitted = bm.BayesianMLPRegressor(**SMALL, engine="torch", epochs=2).fit(table, [y for _, y in rows])
    with pytest.raises(InvalidInput, match="normal_scores must be None, as a fitted estimator"):
        bm.RiverRegressor(fitted, normal_scores=100)
    with pytest.raises(InvalidInput, match="normal_scores must be an integer of at least 1, got 0"):
        bm.RiverClassifier(normal_scores=0)


def test_it_learns_the_function() -> None:
    model = regressor(warm_up=20)
    for x, y in stream(200):
        model.learn_one(x, y)
    errors = [model.predict_one(x) - y for x, y in stream(50, seed=1)]
    assert np.sqrt(np.mean(np.square(errors))) < 0.5  # the targets' deviation is 2


def test_the_mean_target_is_the_prediction_of_the_warm_up() -> None:
    model = regressor()
    assert model.predict_one({"a": 1.0}) == 0.0
    model.learn_one({"a": 1.0}, 2)
    model.learn_one({"a": 2.0}, 5.0)
    assert model.predict_one({"a": 7.0}) == 3.5
    with pytest.raises(NotFitted, match="the warm-up is at row 2 of 10"):
        model.predictive_one({"a": 7.0})


def test_missing_features_are_at_their_mean_and_unknown_ones_are_ignored() -> None:
    model = regressor()
    rows = stream(12)
    for x, y in rows:
        model.learn_one(x, y)
    assert model.features == ["a", "b"]
    mean = float(np.mean([x["b"] for x, _ in rows[:10]]))
    expected = model.predict_one({"a": 5.5, "b": mean})
    same: list[dict[str, Any]] = [{"a": 5.5}, {"a": 5.5, "b": None}, {"a": 5.5, "b": math.nan}, {"c": 3.0, "a": 5.5}]
    assert [model.predict_one(x) for x in same] == [expected] * 4
    model.learn_one({"a": 5.0, "new": 1.0}, 13.0)
    assert model.features == ["a", "b"]


def test_a_feature_that_the_warm_up_saw_once_is_one() -> None:
    model = regressor(warm_up=3)
    model.learn_one({"a": 1.0}, 1.0)
    model.learn_one({"a": 2.0, "b": True, "c": None}, 2.0)
    model.learn_one({"b": 0}, 3.0)
    assert model.features == ["a", "b"]
    np.testing.assert_allclose(model.estimator.model_.scaling.input_mean, [1.5, (0.5 + 1 + 0) / 3])


def test_labels_are_learned_in_the_warm_up() -> None:
    model = classifier(warm_up=4)
    assert model.predict_proba_one({"a": 0.0}) == {}
    assert model.predict_one({"a": 0.0}) is None
    for i in range(6):  # the warm-up goes on until there are two classes
        model.learn_one({"a": float(i)}, "low")
    assert not model.is_ready
    assert model.predict_proba_one({"a": 0.0}) == {"low": 1.0}
    model.learn_one({"a": 9.0}, "high")
    assert model.is_ready
    for i in range(40):
        model.learn_one({"a": float(i % 10)}, "low" if i % 10 < 5 else "high")
    assert [model.predict_one({"a": value}) for value in (0.0, 9.0)] == ["low", "high"]
    assert sum(model.predict_proba_one({"a": 4.0}).values()) == pytest.approx(1.0)
    with pytest.raises(InvalidInput, match=r"y must be one of the classes \['high', 'low'\], got 'new'"):
        model.learn_one({"a": 1.0}, "new")


def test_announced_labels_are_there_from_the_start() -> None:
    model = classifier(classes=[3, 1, 2], warm_up=2)
    assert model.predict_proba_one({}) == {label: pytest.approx(1 / 3) for label in (1, 2, 3)}
    model.learn_one({"a": 1.0}, 2)
    assert model.predict_proba_one({}) == {1: 0.25, 2: 0.5, 3: 0.25}
    model.learn_one({"a": 2.0}, 2)
    assert model.is_ready
    assert list(model.predict_proba_one({"a": 0.0})) == [1, 2, 3]
    with pytest.raises(InvalidInput, match="y must be one of the classes"):
        model.learn_one({"a": 1.0}, 4)


def test_labels_that_have_no_order_are_refused_at_once() -> None:
    with pytest.raises(InvalidInput, match="classes must be all strings or all numbers"):
        classifier(classes=[1, "a"])
    model = classifier(warm_up=3)
    with pytest.raises(InvalidInput, match=r"y must be a label, a string or a number, got \(1,\)"):
        model.learn_one({"a": 1.0}, (1,))
    model.learn_one({"a": 1.0}, "yes")
    with pytest.raises(InvalidInput, match="y must be a label of the same kind as 'yes', got 2"):
        model.learn_one({"a": 1.0}, 2)


def test_the_warm_up_lasts_until_there_is_a_feature() -> None:
    model = classifier(warm_up=2)
    for label in (True, False, True):
        model.learn_one({}, label)
    assert not model.is_ready
    model.learn_one({"a": 1.0}, False)
    assert model.is_ready
    assert model.features == ["a"]


def test_a_row_of_weight_two_counts_as_two() -> None:
    double, twice = regressor(warm_up=1), regressor(warm_up=1)
    for model in (double, twice):
        model.estimator.set_params(hidden_layer_sizes=(), likelihood=bm.Gaussian(noise_variance=1.0))
        model.learn_one({"a": 1.0}, 1.0)
    double.learn_one({"a": 2.0}, 4.0, w=2.0)
    for _ in range(2):
        twice.learn_one({"a": 2.0}, 4.0)
    assert double.predict_one({"a": 3.0}) == pytest.approx(twice.predict_one({"a": 3.0}), rel=1e-12)


def test_an_estimator_fitted_on_a_data_frame_needs_no_warm_up() -> None:
    rows = stream(30)
    frame, y = pd.DataFrame([x for x, _ in rows]), [y for _, y in rows]
    estimator = bm.BayesianMLPRegressor(**SMALL, engine="numpy").partial_fit(frame, y)
    model = bm.RiverRegressor(estimator)
    assert model.predict_one({"b": 0.1, "a": 5.0}) == estimator.predict(pd.DataFrame([{"a": 5.0, "b": 0.1}]))[0]
    before = estimator.predict(frame)
    model.learn_one({"a": 5.0, "b": 0.1}, 99.0)
    np.testing.assert_array_equal(estimator.predict(frame), before)  # a copy learns
    with pytest.raises(InvalidInput, match="estimator was fitted without feature names"):
        bm.RiverRegressor(bm.BayesianMLPRegressor(**SMALL, engine="numpy").partial_fit(frame.to_numpy(), y))


@pytest.mark.parametrize("learned", [5, 20])
def test_a_pickled_model_learns_on_alike(learned: int) -> None:
    model, rows = regressor(), stream(30)
    for x, y in rows[:learned]:
        model.learn_one(x, y)
    other = pickle.loads(pickle.dumps(model))
    for either in (model, other):
        for x, y in rows[learned:]:
            either.learn_one(x, y)
    assert model.predict_one(rows[0][0]) == other.predict_one(rows[0][0])


@pytest.mark.parametrize(
    ("x", "y", "w", "message"),
    [
        ({"a": "red"}, 1.0, 1.0, r"x\['a'\] must be a finite number, got 'red'"),
        ({"a": math.inf}, 1.0, 1.0, r"x\['a'\] must be a finite number, got inf"),
        ([1.0], 1.0, 1.0, "x must map names of features to numbers, got list"),
        ({"a": 1.0}, math.nan, 1.0, "y must be a finite number, got nan"),
        ({"a": 1.0}, "tall", 1.0, "y must be a finite number, got 'tall'"),
        ({"a": 1.0}, 1.0, -1.0, "w must be a number from 0 to 1e\\+06, got -1.0"),
        ({"a": 1.0}, 1.0, 1e7, "w must be a number from 0 to 1e\\+06, got 10000000.0"),
        ({"a": 1e40}, 1.0, 1.0, r"x\['a'\] must be at most 1e\+30 in magnitude, got 1e\+40"),
        ({"a": 1.0}, -1e40, 1.0, r"y must be at most 1e\+30 in magnitude, got -1e\+40"),
    ],
)
def test_bad_rows_are_refused(x: Any, y: Any, w: float, message: str) -> None:
    model = regressor(warm_up=2)
    for learned in range(3):
        with pytest.raises(InvalidInput, match=message):
            model.learn_one(x, y, w)
        model.learn_one({"a": float(learned)}, 1.0)
    assert model.is_ready


def test_what_is_not_scaled_must_be_smaller() -> None:
    plain = bm.RiverRegressor(bm.BayesianMLPRegressor(**SMALL, engine="numpy", standardize=False), warm_up=2)
    for x, y, message in [(1e7, 1.0, r"x\['a'\] must be at most 1e\+06"), (1.0, 1e7, r"y must be at most 1e\+06")]:
        with pytest.raises(InvalidInput, match=message):
            plain.learn_one({"a": x}, y)
    scaled = regressor(warm_up=2)
    for model, large in ((plain, 1e6), (scaled, 1e30)):
        model.learn_one({"a": large}, large, 1e6)
        model.learn_one({"a": 1.0}, 1.0)
        assert model.is_ready


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(InvalidInput, match="warm_up must be an integer of at least 1, got 0"):
        bm.RiverRegressor(warm_up=0)
    with pytest.raises(InvalidInput, match="classes must be at least two labels"):
        bm.RiverClassifier(classes=["only"])
