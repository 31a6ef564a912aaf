"""River's learners on a stream, one row after the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from streams import Stream

__all__ = ["river_learners", "river_scores"]

_LEAST = 1e-6  # probability; a learner that rules out what happens is charged 13.8 nats, not infinity


def river_learners(stream: Stream) -> dict[str, tuple[Callable[[], Any], np.ndarray]]:
    """Each of River's learners for the stream's task, and the inputs it takes."""
    from river import forest, linear_model, optim, preprocessing, tree

    if stream.num_classes == 0:

        def linear() -> Any:
            return preprocessing.TargetStandardScaler(linear_model.LinearRegression(optim.Adam(0.01)))

        return {
            "ARFRegressor": (lambda: forest.ARFRegressor(seed=0), stream.columns),
            "HoeffdingAdaptiveTree": (lambda: tree.HoeffdingAdaptiveTreeRegressor(seed=0), stream.columns),
            "LinearRegression": (linear, stream.vectors),
        }

    def logistic() -> Any:
        if stream.num_classes == 2:
            return linear_model.LogisticRegression(optim.Adam(0.01))
        return linear_model.SoftmaxRegression(optim.Adam(0.01))

    return {
        "ARFClassifier": (lambda: forest.ARFClassifier(seed=0), stream.columns),
        "HoeffdingAdaptiveTree": (lambda: tree.HoeffdingAdaptiveTreeClassifier(seed=0), stream.columns),
        "LogisticRegression": (logistic, stream.vectors),
    }


def river_scores(make: Callable[[], Any], inputs: np.ndarray, stream: Stream) -> tuple[np.ndarray, np.ndarray]:
    """Prequential errors (0 or 1, or squared) and minus log densities, one for each row.

    A regressor predicts a number; its density is normal with the mean of its squared errors so far.
    """
    learner = make()
    errors, losses = np.zeros(len(stream.y)), np.zeros(len(stream.y))
    squares, count = 0.0, 0
    for row, (values, target) in enumerate(zip(inputs.tolist(), stream.y.tolist(), strict=True)):
        x = dict(enumerate(values))
        if stream.num_classes:
            said = learner.predict_proba_one(x)
            total = sum(said.values())
            share = said.get(target, 0.0) / total if total > 0 else 1 / stream.num_classes
            errors[row] = not said or max(said, key=said.get) != target
            losses[row] = -math.log(max(share, _LEAST))
        else:
            error = target - learner.predict_one(x)
            variance = (squares + 1.0) / (count + 1)
            losses[row] = 0.5 * (math.log(2 * math.pi * variance) + error**2 / variance)
            errors[row] = error**2
            squares, count = squares + error**2, count + 1
        learner.learn_one(x, target)
    return errors, losses
