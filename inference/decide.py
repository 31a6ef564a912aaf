"""Which action to take, given draws of what each brings: Thompson sampling, upper confidence, information-directed.

All take rewards that are jointly drawn from the posterior, (S, N, A): S draws, N decisions, A actions. What is drawn is
the expected reward, without the noise of an observation.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

__all__ = ["draw_actions", "information_directed", "information_ratio_parts", "thompson", "upper_confidence"]


def thompson(rewards: Float[np.ndarray, "S N A"]) -> Float[np.ndarray, "N A"]:
    """Probability that each action is the best one, by the share of draws in which it is (Thompson 1933).

    An action drawn with these probabilities is the best action of one of the draws, all equally likely: Thompson
    sampling, whose propensities given the draws are exact.
    """
    best = rewards.argmax(axis=-1)
    return np.asarray((best[..., None] == np.arange(rewards.shape[-1])).mean(axis=0))


def upper_confidence(rewards: Float[np.ndarray, "S N A"], width: float) -> Float[np.ndarray, "N A"]:
    """Mean plus ``width`` standard deviations of each action's expected reward (Auer 2002, in its Bayesian form)."""
    return np.asarray(rewards.mean(axis=0) + width * rewards.std(axis=0))


def information_ratio_parts(
    rewards: Float[np.ndarray, "S N A"],
) -> tuple[Float[np.ndarray, "N A"], Float[np.ndarray, "N A"]]:
    """Expected regret Δ of each action, and v, the variance of its expected reward given which action is best.

    Δ(a) = E[max R] - E[R_a] and v(a) = Σ_b P(b is best) (E[R_a | b is best] - E[R_a])² (Russo and Van Roy 2018,
    "Learning to optimize via information-directed sampling", algorithm 4). v bounds the information that a's reward
    brings about the best action from below, up to a factor.
    """
    mean = rewards.mean(axis=0)
    regret = rewards.max(axis=-1).mean(axis=0)[:, None] - mean
    best = rewards.argmax(axis=-1)
    variance = np.zeros_like(mean)
    for action in range(rewards.shape[-1]):
        chosen = best == action
        count = chosen.sum(axis=0)[:, None]
        given = np.einsum("sn,sna->na", chosen, rewards) / np.maximum(count, 1)
        variance += count / len(rewards) * (given - mean) ** 2
    return np.maximum(regret, 0.0), variance


def information_directed(rewards: Float[np.ndarray, "S N A"]) -> Float[np.ndarray, "N A"]:
    """Probabilities π that minimise the information ratio (Σ π Δ)² / Σ π v of :func:`information_ratio_parts`.

    Some minimum has at most two actions (Russo and Van Roy 2018, proposition 6). For each pair the ratio is convex in
    the share of the first, with a closed-form minimum.
    """
    regret, variance = information_ratio_parts(rewards)
    of_first, of_second = regret[:, :, None], regret[:, None, :]
    v_first, v_second = variance[:, :, None], variance[:, None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = of_second / (of_first - of_second) - 2 * v_second / (v_first - v_second)
    # The derivative of (b + q (a - b))² / (d + q (c - d)) is 0 at q = b / (a - b) - 2 d / (c - d).
    candidates = np.stack([np.ones_like(share), np.clip(np.nan_to_num(share, posinf=1.0, neginf=0.0), 0.0, 1.0)])
    expected = candidates * of_first + (1 - candidates) * of_second
    learned = candidates * v_first + (1 - candidates) * v_second
    ratio = np.where(expected > 0, expected**2 / np.maximum(learned, 1e-300), 0.0)
    count = rewards.shape[-1]
    flat = np.moveaxis(ratio, 1, 0).reshape(len(regret), -1).argmin(axis=1)
    kind, first, second = np.unravel_index(flat, (2, count, count))
    rows = np.arange(len(regret))
    chosen = candidates[kind, rows, first, second]
    probabilities = np.zeros_like(regret)
    np.add.at(probabilities, (rows, first), chosen)
    np.add.at(probabilities, (rows, second), 1 - chosen)
    return probabilities


def draw_actions(probabilities: Float[np.ndarray, "N A"], rng: np.random.Generator) -> Int[np.ndarray, " N"]:
    """One action for each row of probabilities, by inversion; never one of probability 0."""
    cumulative = np.cumsum(probabilities, axis=1)
    uniform = rng.random(len(probabilities))[:, None] * cumulative[:, -1:]
    return np.asarray((cumulative <= uniform).sum(axis=1))
