"""What is seen of an event beside its step, where it is asked for: how it was predicted, and what it changed."""

from __future__ import annotations

from typing import Any

import numpy as np

from .feedback import Observation
from .model import BayesianMLP
from .predictive import Predictive
from .stepper import Effect, Stepper
from .validation import check_inputs

__all__ = ["Watch", "expectation"]


class Watch:
    """Applies observations through a stepper and completes their effects.

    Args:
        model: that the probe set is for.
        probe: inputs whose predictions are compared before and after each event, (rows, inputs); None for none.
        calibration: whether to note how each event of one row, of a weight above 0, was predicted.

    Raises:
        InvalidInput: a bad probe set.
    """

    def __init__(self, model: BayesianMLP, probe: Any = None, calibration: bool = False) -> None:
        self.probe = None if probe is None else check_inputs(probe, model.num_inputs, "probe", model.network)
        self.calibration = calibration
        self._before: np.ndarray | None = None

    def check(self, model: BayesianMLP) -> None:
        """Raise :class:`InvalidInput` unless the probe set is one for another model too."""
        if self.probe is not None:
            check_inputs(self.probe, model.num_inputs, "probe", model.network)

    def forget(self) -> None:
        """The posterior is another one: what is known of the probe set no longer holds."""
        self._before = None

    def apply(self, stepper: Stepper, observation: Observation) -> Effect:
        """Fold one observation."""
        model = stepper.model
        predicted: dict[str, Any] = {}
        if self.calibration and len(observation.x) == 1 and observation.weight.all():
            elapsed = model.elapsed_until(observation.clock_time)
            answer = expectation(model, observation, elapsed)
            predicted = _predicted(answer, observation.y, observation.output_mask)
        if self.probe is None:
            return stepper.apply(observation)._replace(**predicted)
        before = model.predict(self.probe).mean if self._before is None else self._before
        effect = stepper.apply(observation)
        self._before = model.predict(self.probe).mean
        return effect._replace(change=float(np.abs(self._before - before).max()), **predicted)


def expectation(model: BayesianMLP, observation: Observation, elapsed: float) -> Predictive:
    """How a model predicts an observation that comes after so many units of its dynamics, as its step will score it."""
    mask, kind = observation.output_mask, observation.kind
    return model.predict(observation.x, elapsed=elapsed, output_mask=mask, kind=kind)


def _predicted(answer: Predictive, y: np.ndarray, mask: np.ndarray | None) -> dict[str, Any]:
    """Confidence and hit of a class, their means over several yes or no, or the transform of a single number.

    Of several targets those count that were observed; for several numbers there is nothing.
    """
    likelihood = answer.likelihood
    if likelihood.has_logits or y.ndim == 1:
        probabilities = answer.probabilities[0]
        chosen = int(probabilities.argmax())
        return {"confidence": float(probabilities[chosen]), "hit": float(chosen == int(y.reshape(-1)[0]))}
    told = np.ones(likelihood.num_targets, dtype=bool) if mask is None else mask[0]
    if told.any() and len(told) > 1 and not likelihood.scales_targets:
        share = answer.mean[0, told]
        confidence, hit = np.maximum(share, 1 - share), (share > 0.5) == y[0, told]
        return {"confidence": float(confidence.mean()), "hit": float(hit.mean())}
    return {"pit": float(answer.probability_integral_transform(y)[0, told][0])} if told.sum() == 1 else {}
