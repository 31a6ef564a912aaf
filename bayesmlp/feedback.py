"""The kinds of feedback, and their checks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from .inference.errors import InvalidInput
from .kinds import check_items, observed_kind, scaled_items
from .masking import check_labels_possible, check_output_mask, fill_unobserved
from .model import BayesianMLP
from .validation import as_host_array, check_weights, with_row_axis

__all__ = ["Observation", "check_event_id", "check_time", "is_time"]

_MAX_ID_LENGTH = 200
_LARGEST_TIME = 1e11  # the year 5138


def check_event_id(event_id: Any, argument: str = "event_id") -> str:
    """An event id as it is stored.

    Raises:
        InvalidInput: not a string of 1 to 200 printable characters.
    """
    if not isinstance(event_id, str) or not 0 < len(event_id) <= _MAX_ID_LENGTH or not event_id.isprintable():
        raise InvalidInput(
            f"{argument} must be a string of 1 to {_MAX_ID_LENGTH} printable characters, got {event_id!r}"
        )
    return event_id


def is_time(value: Any) -> bool:
    """Whether a value is a number that can be a time, in seconds since the epoch."""
    return not isinstance(value, bool) and abs(_as_float(value)) <= _LARGEST_TIME


def check_time(time: Any) -> None:
    """Raises :class:`InvalidInput` unless the argument ``time`` is a number that can be a time: a wrong unit, or an
    infinite time, would leave the dynamics no later event.
    """
    if not is_time(time):
        raise InvalidInput(
            f"time must be seconds since the epoch, at most {_LARGEST_TIME:g} in magnitude, got {time!r:.60}"
        )


def _as_float(value: Any) -> float:
    """A number as a float: infinite where it is too large for one, NaN if it is no number."""
    try:
        return float(value) if isinstance(value, Real) else math.nan
    except OverflowError:
        return math.inf


class Observation(NamedTuple):
    """Inputs and what was seen for them, in the user's units.

    Attributes:
        x: (rows, inputs), float64.
        y: as the likelihood prepared it, (rows, ...).
        weight: of each row, (rows,).
        time: of the event in seconds since the epoch, if the sender gave one.
        output_mask: the outputs that each row tells of, (rows, K); None for all.
        kind: of the feedback, where it is not the model's first.
        propensity: with which probability the action that led to it was taken, if the sender gave one; it is kept for
            off-policy estimates and is no part of what is learned.
        source: who sent it; it stands beside the body in the log.
    """

    x: np.ndarray
    y: np.ndarray
    weight: np.ndarray
    time: float | None = None
    output_mask: np.ndarray | None = None
    kind: str | None = None
    propensity: float | None = None
    source: str | None = None

    @classmethod
    def check(
        cls,
        x: Any,
        y: Any,
        weight: Any,
        time: Any,
        output_mask: Any = None,
        kind: str | None = None,
        propensity: Any = None,
        *,
        model: BayesianMLP,
    ) -> Observation:
        """An observation, checked against the model it is for; one row may come without its row axis.

        Raises:
            InvalidInput: names the argument, what was expected and what came.
        """
        network, scaling = model.network, model.scaling
        observed = observed_kind(model.kinds, kind)
        inputs = check_items(with_row_axis(x, "x", network), observed, model.num_inputs, "x", network)
        likelihood = model.likelihood
        if observed is not None:
            likelihood = observed.model_of(observed.items_of(inputs.shape[1], model.num_inputs))
        targets = as_host_array(y, "y")
        if targets.ndim == 0 or (targets.ndim == 1 and len(inputs) == 1 and len(targets) == likelihood.num_targets > 1):
            targets = targets[None]
        mask = check_output_mask(output_mask, len(inputs), likelihood)
        blank = scaling.target_mean if observed is None else np.zeros(1)
        targets = likelihood.prepare(fill_unobserved(targets, mask, blank), "y")
        if len(targets) != len(inputs):
            raise InvalidInput(f"y must have as many rows as x ({len(inputs)}), got {len(targets)}")
        check_labels_possible(targets, mask)
        weights = check_weights(weight, len(inputs))
        if time is not None:
            check_time(time)
        scaled_items(scaling, inputs, "x")
        if observed is None:
            scaling.targets(targets, "y")
        if propensity is not None and not 0 < _as_float(propensity) <= 1:
            raise InvalidInput(f"propensity must be a probability above 0, got {propensity!r}")
        return cls(
            inputs,
            targets,
            weights,
            None if time is None else float(time),
            mask,
            None if observed is None else kind,
            None if propensity is None else float(propensity),
        )

    @property
    def clock_time(self) -> float | None:
        """Its time for the clock of the dynamics: none where all of it weighs nothing."""
        return self.time if self.weight.any() else None

    def to_body(self) -> dict[str, Any]:
        """As JSON values; every number survives the way there and back."""
        body: dict[str, Any] = {"x": self.x.tolist(), "y": self.y.tolist()}
        if not (self.weight == 1).all():
            body["weight"] = self.weight.tolist()
        if self.time is not None:
            body["time"] = self.time
        if self.output_mask is not None:
            body["output_mask"] = self.output_mask.tolist()
        body |= {
            name: value for name, value in (("kind", self.kind), ("propensity", self.propensity)) if value is not None
        }
        return body

    @classmethod
    def from_body(cls, body: Mapping[str, Any], model: BayesianMLP, source: str | None = None) -> Observation:
        """The inverse of :meth:`to_body`, for the model that the event was sent to; of a weight, what was granted (see
        :mod:`.admission`).
        """
        x = np.asarray(body["x"], dtype=np.float64)
        weight = np.asarray(body.get("weight", np.ones(len(x))), dtype=np.float64)
        mask = np.asarray(body["output_mask"]) if "output_mask" in body else None
        kind = body.get("kind")
        likelihood = model.likelihood
        if kind is not None:
            likelihood = model.kinds[kind].model_of(x.shape[1] // model.num_inputs)
        targets = likelihood.prepare(np.asarray(body["y"]))
        observation = cls(x, targets, weight, body.get("time"), mask, kind, body.get("propensity"), source)
        return observation.granted(body.get("granted", 1.0))

    def granted(self, share: float) -> Observation:
        """The observation with that share of its weight."""
        return self if share == 1 else self._replace(weight=share * self.weight)

    def row(self, index: int) -> Observation:
        """One of its rows."""
        own = slice(index, index + 1)
        mask = None if self.output_mask is None else self.output_mask[own]
        return self._replace(x=self.x[own], y=self.y[own], weight=self.weight[own], output_mask=mask)
