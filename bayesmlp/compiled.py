"""Compiled steps that models of one kind share: many branches of a model, of which each is open for a moment."""

from __future__ import annotations

import json

from .inference.engines.last_used import LastUsed
from .model import BayesianMLP
from .stepper import Steps

__all__ = ["CompiledSteps"]


class CompiledSteps:
    """What was compiled for the models that were used last, by what it depends on: spec, scaling and engine.

    Args:
        size: for how many kinds of model it is kept.
    """

    def __init__(self, size: int = 32) -> None:
        self._steps = LastUsed(size)

    def steps_of(self, model: BayesianMLP) -> Steps:
        """The steps of a model, to be used and added to."""
        scales = tuple(array.tobytes() for array in model.scaling)
        key = json.dumps(model.spec(), sort_keys=True), scales, model.engine
        steps: Steps = self._steps.get(key, dict)
        return steps
