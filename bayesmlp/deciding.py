"""Decisions of a model: which action to take, and which question to ask."""

from __future__ import annotations

from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from .inference.acquire import condition, expected_information_gain, expected_predictive_information_gain
from .inference.decide import draw_actions, information_directed, thompson, upper_confidence
from .inference.errors import InvalidInput
from .model import BayesianMLP
from .validation import check_inputs

__all__ = ["Acquisition", "Decision", "acquire", "decide"]

STRATEGIES = ("thompson", "upper_confidence", "information_directed")


class Decision(NamedTuple):
    """An action, or one for each row.

    Attributes:
        action: index of the chosen action; (N,) where there was one decision for each row.
        propensity: probability with which it was chosen, in the shape of ``action``; None for a strategy that does not
            randomise. Keep it with the event: off-policy estimates need it.
        probabilities: of every action, (..., A); None as above.
        expected_reward: of every action, (..., A), in the units of the targets.
    """

    action: Any
    propensity: Any
    probabilities: np.ndarray | None
    expected_reward: np.ndarray


def decide(
    model: BayesianMLP,
    X: Any,  # noqa: N803
    *,
    strategy: str = "thompson",
    actions: str = "outputs",
    width: float = 2.0,
    num_samples: int = 1000,
    seed: int,
) -> Decision:
    """The action to take, by the joint posterior of what each would bring.

    The reward of an action is the expected target: a mean, a probability, a level.

    Args:
        model: whose targets are rewards.
        X: where ``actions`` is ``"outputs"``, one context for each decision, (N, inputs), and the targets are the arms'
            rewards; where it is ``"rows"``, one row for each action, (A, inputs), and there is one decision. Rewards of
            rows are jointly drawn.
        strategy: ``"thompson"``: the best action of a draw (Thompson 1933); ``"upper_confidence"``: the largest mean
            plus ``width`` standard deviations; ``"information_directed"``: the smallest ratio of squared expected
            regret to information about which action is best, the variance-based one (Russo and Van Roy 2018).
        actions: ``"outputs"`` or ``"rows"``; see there.
        width: of the upper confidence bound, in standard deviations.
        num_samples: draws of the posterior, from which probabilities are shares.
        seed: of the draws and of the choice.

    Raises:
        InvalidInput: an unknown strategy, an argument out of range, or a model whose targets are not one reward for
            each action.
        NotFitted: the model has seen no data.
    """
    if strategy not in STRATEGIES:
        raise InvalidInput(f"strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r}")
    if actions not in ("outputs", "rows"):
        raise InvalidInput(f"actions must be 'outputs' or 'rows', got {actions!r}")
    if not isinstance(width, Real) or not 0 <= float(width) < np.inf:
        raise InvalidInput(f"width must be a number of at least 0, got {width!r}")
    _check_counts(num_samples=(num_samples, 1), seed=(seed, 0))
    rewards = _rewards(model, X, actions, num_samples, seed)
    mean = rewards.mean(axis=0)
    if strategy == "upper_confidence":
        chosen, probabilities = upper_confidence(rewards, float(width)).argmax(axis=1), None
    else:
        probabilities = thompson(rewards) if strategy == "thompson" else information_directed(rewards)
        chosen = draw_actions(probabilities, np.random.default_rng([seed, 1]))
    propensity = None if probabilities is None else probabilities[np.arange(len(chosen)), chosen]
    if actions == "outputs":
        return Decision(chosen, propensity, probabilities, mean)
    only = None if probabilities is None else probabilities[0]
    return Decision(int(chosen[0]), None if propensity is None else float(propensity[0]), only, mean[0])


def _rewards(model: BayesianMLP, X: Any, actions: str, num_samples: int, seed: int) -> np.ndarray:  # noqa: N803
    """Draws of expected rewards, (S, N, A)."""
    if actions == "outputs":
        rewards = model.predict(X).sample_mean(num_samples, seed=seed)
        if rewards.ndim != 3:
            raise InvalidInput(f"actions 'outputs' needs a model with a target for each action, not {model.likelihood}")
        return rewards
    rewards = model.joint_outputs(X).sample_mean(num_samples, seed=seed)
    if rewards.shape[2] != 1:
        raise InvalidInput(f"actions 'rows' needs a model with one target, not {model.likelihood}")
    return rewards[:, None, :, 0]


def _check_counts(**counts: tuple[Any, int]) -> None:
    for name, (value, least) in counts.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise InvalidInput(f"{name} must be an integer of at least {least}, got {value!r}")


class Acquisition(NamedTuple):
    """Attributes:
    rows: the chosen candidates, in the order of their choice, (size,).
    gains: information in nats that each brings, given that those before it will be answered, (size,).
    scores: information in nats that each candidate would bring alone, (N,).
    """

    rows: np.ndarray
    gains: np.ndarray
    scores: np.ndarray


def acquire(
    model: BayesianMLP,
    X: Any,  # noqa: N803
    *,
    targets: Any = None,
    size: int = 1,
    num_samples: int = 1000,
    seed: int = 0,
) -> Acquisition:
    """Which inputs to ask an answer for next.

    Without targets, those whose answers tell most about the weights (Houlsby et al. 2011, "BALD"); with targets, those
    that tell most about the answers there (Bickford Smith et al. 2023, "EPIG"). Several are chosen one after the other,
    each given that those before it will be answered, by the outputs' joint covariance: they do not ask the same.

    Args:
        model: that asks.
        X: candidates, (N, inputs).
        targets: inputs whose answers matter, (T, inputs); None for the weights.
        size: how many to choose, from 1 to N.
        num_samples: draws of the outputs, for classes with targets.
        seed: of these draws.

    Raises:
        InvalidInput: an argument out of range, or bad inputs.
        NotFitted: the model has seen no data.
    """
    _check_counts(size=(size, 1), num_samples=(num_samples, 1), seed=(seed, 0))
    candidates = check_inputs(X, model.num_inputs, network=model.network)
    count = len(candidates)
    if size > count:
        raise InvalidInput(f"size must be at most the number of candidates ({count}), got {size}")
    others = None if targets is None else check_inputs(targets, model.num_inputs, "targets", model.network)
    joint = model.joint_outputs(candidates if others is None else np.concatenate([candidates, others]))
    mean, covariance, state = joint.moments()
    likelihood, num_outputs = joint.likelihood, mean.shape[1]
    noise = np.random.default_rng(seed).standard_normal((num_samples, len(covariance)))

    def scores() -> np.ndarray:
        if others is not None:
            return expected_predictive_information_gain(likelihood, mean, covariance, len(others), state, noise)
        blocks = covariance.reshape(count, num_outputs, count, num_outputs)
        return expected_information_gain(likelihood, mean, np.einsum("nknl->nkl", blocks), state)

    rows: list[int] = []
    gains: list[float] = []
    first = now = scores()
    while True:
        open_ones = np.where(np.isin(np.arange(count), rows), -np.inf, now)
        rows.append(int(open_ones.argmax()))
        gains.append(float(now[rows[-1]]))
        if len(rows) == size:
            return Acquisition(np.asarray(rows), np.asarray(gains), first)
        covariance = condition(likelihood, mean, covariance, rows[-1], state)
        now = scores()
