"""What a policy would have earned, from decisions that another policy took and logged with their propensities.

Rewards are of the actions that were taken; the propensity is the probability with which the logging policy took them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

__all__ = ["PolicyValue", "importance_values"]


class PolicyValue(NamedTuple):
    """Attributes:
    value: estimated reward per decision.
    standard_error: of the estimate; infinite for a single decision, which says nothing of it.
    effective_samples: (Σ w)² / Σ w² of the importance weights; far below the number of decisions, the policies are too
        unlike for a sound estimate.
    """

    value: float
    standard_error: float
    effective_samples: float


def importance_values(
    actions: Int[np.ndarray, " N"],
    rewards: Float[np.ndarray, " N"],
    propensities: Float[np.ndarray, " N"],
    policy: Float[np.ndarray, "N A"],
    expected: Float[np.ndarray, "N A"] | None = None,
    *,
    normalised: bool = False,
) -> PolicyValue:
    """The value of a policy by importance weights w = π(a | x) / propensity.

    Without ``expected`` mean(w r) (Horvitz and Thompson 1952); ``normalised`` Σ w r / Σ w, which is slightly biased and
    varies less (Swaminathan and Joachims 2015); with ``expected`` rewards q the doubly robust
    mean(Σ_a π q + w (r - q_a)), unbiased whatever q is (Dudík, Langford and Li 2011).

    Args:
        actions: that were taken.
        rewards: that they brought.
        propensities: of the actions, positive.
        policy: probabilities of all actions under the policy that is judged.
        expected: what a model expects of all actions, fitted to other data or before each decision.
        normalised: whether the weights are made to add up to N.
    """
    rows = np.arange(len(actions))
    weights = policy[rows, actions] / propensities
    effective = float(weights.sum() ** 2 / max(float(np.sum(weights**2)), 1e-300))
    if normalised:
        weights = weights * (len(weights) / max(float(weights.sum()), 1e-300))
    residual = rewards if expected is None else rewards - expected[rows, actions]
    values = weights * residual
    if expected is not None:
        values = values + np.sum(policy * expected, axis=1)
    value = float(values.mean())
    spread = weights * (rewards - value) if normalised and expected is None else values - value
    error = float(np.sqrt(np.sum(spread**2)) / len(spread)) if len(spread) > 1 else math.inf
    return PolicyValue(value, error, effective)
