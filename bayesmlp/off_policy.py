"""Judging a policy by the decisions in a model's log."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .inference.errors import InvalidInput
from .inference.off_policy import PolicyValue, importance_values
from .store.store import PosteriorStore
from .validation import MAX_RAW_MAGNITUDE, as_host_array

__all__ = ["LoggedDecisions", "logged_decisions", "off_policy_value"]

METHODS = ("ips", "snips", "dr")
_LEAST_PROPENSITY = 1e-100  # whose weight can be squared


class LoggedDecisions(NamedTuple):
    """Attributes:
    contexts: inputs of the decisions, (N, inputs).
    actions: that were taken, (N,).
    rewards: that they brought, (N,).
    propensities: with which they were taken, (N,).
    """

    contexts: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    propensities: np.ndarray


def logged_decisions(store: PosteriorStore, name: str) -> LoggedDecisions:
    """The live events of a log that hold a propensity and the reward of one action: a mask with one output.

    Args:
        store: where the model is.
        name: of the model.

    Raises:
        UnknownModel: no such model.
        InvalidInput: its log has no such event.
    """
    found: list[tuple[Any, ...]] = []
    log = store.log(name)
    events = [record.offset for record in log.fold().line if record.kind == "event"]
    for _, _, _, _, body in log.at(events):
        mask = np.asarray(body.get("output_mask", [[]]))[0]
        if "propensity" in body and "kind" not in body and mask.sum() == 1 and isinstance(body["y"][0], list):
            action = int(mask.argmax())
            found.append((body["x"][0], action, body["y"][0][action], body["propensity"]))
    if not found:
        raise InvalidInput(f"model {name!r} has no event with a propensity and an output_mask of one output")
    contexts, actions, rewards, propensities = zip(*found, strict=True)
    return LoggedDecisions(np.array(contexts), np.array(actions), np.array(rewards), np.array(propensities))


def off_policy_value(
    logged: LoggedDecisions, policy: Any, *, method: str = "snips", expected: Any = None
) -> PolicyValue:
    """What a policy would have earned per decision, from logged decisions of another.

    Args:
        logged: decisions with their propensities.
        policy: probability of each action under the policy that is judged, (N, A); rows add up to 1.
        method: ``"ips"``: importance weights; ``"snips"``: the same, normalised; ``"dr"``: doubly robust.
        expected: for ``"dr"``, what a model expects of each action, (N, A).

    Raises:
        InvalidInput: names the argument, what was expected and what came.
    """
    if method not in METHODS:
        raise InvalidInput(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if (expected is not None) != (method == "dr"):
        raise InvalidInput(f"expected rewards go with method 'dr' and with no other, got method {method!r}")
    actions, rewards, propensities = _checked(logged)
    probabilities = _of_actions(policy, "policy", len(actions), actions)
    if (probabilities < 0).any() or not np.allclose(probabilities.sum(axis=1), 1.0, atol=1e-6):
        raise InvalidInput("policy must hold probabilities whose rows add up to 1")
    model = None if expected is None else _of_actions(expected, "expected", len(actions), actions)
    if model is not None and model.shape != probabilities.shape:
        raise InvalidInput(f"expected must have policy's shape {probabilities.shape}, got {model.shape}")
    if model is None and not probabilities[np.arange(len(actions)), actions].any():
        raise InvalidInput(
            "policy must take some action that was logged: of one that never does, only method 'dr' knows anything"
        )
    return importance_values(actions, rewards, propensities, probabilities, model, normalised=method == "snips")


def _checked(logged: LoggedDecisions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Actions, rewards and propensities, (N,) each, N at least 1."""
    actions, rewards, propensities = (
        as_host_array(getattr(logged, name), f"logged.{name}") for name in ("actions", "rewards", "propensities")
    )
    for name, array, kinds in (
        ("actions", actions, "iu"),
        ("rewards", rewards, "fiu"),
        ("propensities", propensities, "fiu"),
    ):
        if array.ndim != 1 or len(array) != len(actions) or not len(array) or array.dtype.kind not in kinds:
            expected = "integers" if kinds == "iu" else "numbers"
            raise InvalidInput(
                f"logged.{name} must be {expected}, one for each decision and at least one, "
                f"got shape {array.shape} and dtype {array.dtype}"
            )
    if (actions < 0).any():
        raise InvalidInput(f"logged.actions must be at least 0, got {actions.min()}")
    if not (np.abs(rewards) <= MAX_RAW_MAGNITUDE).all():
        raise InvalidInput(f"logged.rewards must be finite and at most {MAX_RAW_MAGNITUDE:g} in magnitude")
    if not ((propensities >= _LEAST_PROPENSITY) & (propensities <= 1)).all():
        raise InvalidInput(f"logged.propensities must be above 0 (at least {_LEAST_PROPENSITY:g}) and at most 1")
    return actions, rewards.astype(np.float64), propensities.astype(np.float64)


def _of_actions(values: Any, argument: str, count: int, actions: np.ndarray) -> np.ndarray:
    array = np.asarray(as_host_array(values, argument), np.float64)
    if array.ndim != 2 or len(array) != count or array.shape[1] <= int(np.max(actions)):
        raise InvalidInput(f"{argument} must have a column for each action and {count} rows, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise InvalidInput(f"{argument} must be finite")
    return array
