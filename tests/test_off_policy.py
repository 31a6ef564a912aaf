"""Off-policy values: unbiased over all outcomes, by enumeration; and the log they are taken from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import NUM_INPUTS, make_inputs

import bayesmlp as bm
from bayesmlp.inference.errors import InvalidInput

LOGGING = np.array([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]])
TARGET = np.array([[0.1, 0.2, 0.7], [0.8, 0.1, 0.1]])
REWARDS = np.array([[1.0, -2.0, 4.0], [3.0, 0.5, -1.0]])
EXPECTED = np.array([[0.5, -1.0, 9.0], [2.0, 0.0, 7.0]])
VALUE = float(np.mean(np.sum(TARGET * REWARDS, axis=1)))


def logged(actions: Any) -> bm.LoggedDecisions:
    rows = np.arange(2)
    return bm.LoggedDecisions(np.zeros((2, 1)), np.asarray(actions), REWARDS[rows, actions], LOGGING[rows, actions])


@pytest.mark.parametrize(("method", "expected"), [("ips", None), ("dr", EXPECTED)])
def test_the_expectation_over_all_logs_is_the_value(method: str, expected: Any) -> None:
    total = 0.0
    for first in range(3):
        for second in range(3):
            probability = LOGGING[0, first] * LOGGING[1, second]
            total += (
                probability
                * bm.off_policy_value(logged([first, second]), TARGET, method=method, expected=expected).value
            )
    assert total == pytest.approx(VALUE, rel=1e-12)


def test_with_the_true_rewards_doubly_robust_is_the_value_of_any_log() -> None:
    estimate = bm.off_policy_value(logged([1, 0]), TARGET, method="dr", expected=REWARDS)
    assert estimate.value == pytest.approx(VALUE)


def test_normalised_weights_are_a_weighted_mean() -> None:
    decisions = logged([2, 1])
    weights = TARGET[[0, 1], [2, 1]] / decisions.propensities
    estimate = bm.off_policy_value(decisions, TARGET)
    assert estimate.value == pytest.approx(np.average(decisions.rewards, weights=weights))
    assert estimate.effective_samples == pytest.approx(weights.sum() ** 2 / np.sum(weights**2))
    shifted = decisions._replace(rewards=decisions.rewards + 5.0)
    assert bm.off_policy_value(shifted, TARGET).value == pytest.approx(estimate.value + 5.0)


def test_the_standard_error_is_that_of_a_mean() -> None:
    rng = np.random.default_rng(0)
    actions = rng.integers(2, size=400)
    rewards = rng.standard_normal(400) + actions
    decisions = bm.LoggedDecisions(np.zeros((400, 1)), actions, rewards, np.full(400, 0.5))
    policy = np.tile([0.25, 0.75], (400, 1))
    values = policy[np.arange(400), actions] / 0.5 * rewards
    estimate = bm.off_policy_value(decisions, policy, method="ips")
    assert estimate.standard_error == pytest.approx(values.std() / 20)
    assert bm.off_policy_value(decisions, policy).standard_error < estimate.standard_error


def test_decisions_come_back_from_the_log(tmp_path: Path) -> None:
    model = bm.BayesianMLP(bm.MLP((3,)), bm.Gaussian(2), engine="numpy")
    model.start_from_prior(NUM_INPUTS)
    x = make_inputs(4, seed=0)
    with bm.open_store(tmp_path / "store.db") as store:
        store.publish("arms", model)
        with pytest.raises(InvalidInput, match="has no event with a propensity"):
            bm.logged_decisions(store, "arms")
        with bm.OnlineUpdater(store, "arms", engine="numpy") as updater:
            for row, (action, reward) in enumerate([(0, 1.5), (1, -1.0), (1, 2.0)]):
                y = np.full(2, np.nan)
                y[action] = reward
                mask = np.arange(2) == action
                updater.observe(x[row], y, event_id=str(row), output_mask=mask, propensity=0.25 * (row + 1))
            updater.observe(x[3], [1.0, 2.0])
            updater.retract(["1"])
        decisions = bm.logged_decisions(store, "arms")
    np.testing.assert_array_equal(decisions.contexts, x[[0, 2]])
    np.testing.assert_array_equal(decisions.actions, [0, 1])
    np.testing.assert_array_equal(decisions.rewards, [1.5, 2.0])
    np.testing.assert_array_equal(decisions.propensities, [0.25, 0.75])


def test_off_policy_arguments_are_checked_by_name() -> None:
    decisions = logged([0, 1])
    for policy, options, message in (
        (TARGET, {"method": "best"}, "method must be one of ips, snips, dr"),
        (TARGET, {"expected": EXPECTED}, "expected rewards go with method 'dr'"),
        (TARGET, {"method": "dr"}, "expected rewards go with method 'dr'"),
        (TARGET[:, :1], {}, "policy must have a column for each action and 2 rows"),
        (TARGET, {"method": "dr", "expected": EXPECTED[:, :2]}, r"expected must have policy's shape \(2, 3\), got"),
        (2 * TARGET, {}, "policy must hold probabilities whose rows add up to 1"),
    ):
        with pytest.raises(InvalidInput, match=message):
            bm.off_policy_value(decisions, policy, **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": np.array([0, -1])}, "logged.actions must be at least 0, got -1"),
        ({"actions": np.zeros(2)}, "logged.actions must be integers, .* got shape .* float64"),
        ({"actions": np.array([], int)}, "logged.actions must be integers, .* at least one, got shape"),
        ({"rewards": np.ones(3)}, r"logged.rewards must be numbers, one for each decision .* got shape \(3,\)"),
        ({"rewards": np.array([1.0, np.nan])}, "logged.rewards must be finite"),
        ({"propensities": np.array([0.5, 1e-320])}, "logged.propensities must be above 0"),
        ({"propensities": np.array([0.5, np.nan])}, "logged.propensities must be above 0"),
    ],
)
def test_logged_decisions_are_checked_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        bm.off_policy_value(logged([0, 1])._replace(**changes), TARGET, method="ips")


def test_a_policy_that_takes_no_logged_action_has_a_value_by_a_model_alone() -> None:
    decisions, other = logged([0, 0]), np.array([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    for method in ("ips", "snips"):
        with pytest.raises(InvalidInput, match="policy must take some action that was logged"):
            bm.off_policy_value(decisions, other, method=method)
    by_model = bm.off_policy_value(decisions, other, method="dr", expected=EXPECTED)
    assert by_model.value == EXPECTED[:, 1].mean()
    assert by_model.effective_samples == 0


def test_one_decision_has_no_standard_error() -> None:
    one = bm.LoggedDecisions(np.ones((1, 2)), np.array([0]), np.array([2.0]), np.array([0.5]))
    for method in ("ips", "snips"):
        assert bm.off_policy_value(one, [[1.0, 0.0]], method=method).standard_error == np.inf
