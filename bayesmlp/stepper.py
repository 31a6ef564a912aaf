"""The one place that folds observations into a posterior's own memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from .feedback import Observation
from .inference.engines import Engine
from .inference.filtering import Posterior
from .kinds import scaled_items
from .model import BayesianMLP

__all__ = ["Effect", "Stepper", "Steps", "step_fingerprint"]

STEP_VERSION = 12
"""Raised whenever a change of the code changes the bits of a step."""


Steps = dict[tuple[Any, ...], Callable[..., Any]]


class Effect(NamedTuple):
    """What folding one record did.

    Attributes:
        outcome: ``"applied"``, or ``"failed"``: the step would not have been finite, the posterior is as it was.
        surprise: minus the log predictive density of the observation before it was learned, in nats.
        information: gained, in nats.
        seconds: that it took.
        change, pit, confidence, hit: see :class:`~.prequential.Prequential`; None where they were not asked for.
    """

    outcome: str
    surprise: float | None
    information: float | None
    seconds: float | None = None
    change: float | None = None
    pit: float | None = None
    confidence: float | None = None
    hit: float | None = None


def step_fingerprint(engine: Engine) -> dict[str, str]:
    """What the bits of a step may depend on: within one fingerprint, the same log gives the same digest."""
    return {**engine.fingerprint(), "dtype": engine.dtype, "step": str(STEP_VERSION)}


class Stepper:
    """Applies observations one after the other, each one Bayes step, in memory that nobody else holds.

    Args:
        model: whose posterior to start from; the model itself is not touched again, :attr:`model` is a copy.
        own: whether the model is nobody else's, and need not be copied.
        steps: what was compiled for this model before, and where to put what still is to be; None for nothing yet.
    """

    def __init__(self, model: BayesianMLP, *, own: bool = False, steps: Steps | None = None) -> None:
        self.model = model if own else model.to_engine(model.engine)
        self._steps: Steps = {} if steps is None else steps

    def fork(self) -> Stepper:
        """Another one, with memory of its own; what is compiled is shared."""
        return Stepper(self.model, steps=self._steps)

    def _step_for(self, *what: Any) -> Callable[..., Any]:
        """The step of a kind, a number of items, and whether there is a mask; compiled when first needed."""
        if what not in self._steps:
            self._steps[what] = self.model.filter_model_of(*what).compile_in_place(self.model.engine)
        return self._steps[what]

    @property
    def posterior(self) -> Posterior:
        """The current posterior; its memory is written by the next step."""
        return self.model.posterior

    def is_for(self, spec: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bool:
        """Whether a stored posterior is one of its model: of the same spec, in the same units."""
        scaling = self.model.scaling._asdict()
        return self.model.spec() == spec and all(np.array_equal(v, arrays[f"scaling.{k}"]) for k, v in scaling.items())

    def reset(self, arrays: dict[str, np.ndarray]) -> None:
        """Go on from another posterior of the same model."""
        self.model.restore(arrays)

    def apply(self, observation: Observation) -> Effect:
        """Fold one observation."""
        started = time.perf_counter()
        model = self.model
        model.project()
        x = scaled_items(model.scaling, observation.x)
        y = observation.y if observation.kind else model.scaling.targets(observation.y)
        elapsed = model.elapsed_until(observation.clock_time)
        batch = model.batch(x, y, observation.weight, elapsed, observation.output_mask)
        items = x.shape[1] // model.num_inputs if observation.kind else 1
        step = self._step_for(observation.kind, items, observation.output_mask is not None)
        posterior, info = step(model.posterior, model.prior_state, *batch)
        model.set_posterior(posterior)
        model.prune()
        info = model.engine.fetch(info)
        seconds = time.perf_counter() - started
        if not bool(info.ok):
            return Effect("failed", None, None, seconds)
        if not observation.kind:
            model.remember(x, y, observation.weight, observation.output_mask, observation.source)
            seconds = time.perf_counter() - started
        model.note_time(observation.clock_time)
        return Effect("applied", -float(info.log_predictive), float(info.information), seconds)

    def to_arrays(self, *, copy: bool = True) -> dict[str, np.ndarray]:
        """The posterior and what goes with it, on the host; without ``copy`` the next step may write into it."""
        return self.model.to_arrays(copy=copy)
