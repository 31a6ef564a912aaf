"""What is let into a model's learning, and how much of it: decided before an event is stored, and stored with it.

A decision is a fact of the log: the weight that an event was granted, or that it was put into quarantine. So the fold
of the log needs neither the options nor the history that the decision was made by.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import NamedTuple

import numpy as np

from .inference.errors import InvalidInput
from .predictive import Predictive

__all__ = ["Admission", "Quarantined", "excess_surprise"]


@dataclass(frozen=True)
class Admission:
    """Limits on what one source, and one event, may do.

    Where time passes by time stamps (``time_unit``), an event whose time is more than ``max_ahead`` seconds after the
    clock of the machine that is to store it is refused: one from the far future would leave nothing of what was
    learned, and later events no time to pass. It is not stored, so that a replay knows nothing of it. Any time of the
    past is let in.

    A source that has asked for a total weight of W has been granted c (1 - exp(-W/c)), with c the cap: its first events
    count in full, all of them together never more than c, and how they are split into calls makes no difference. Events
    that name no source are not capped.

    An event goes into quarantine if it is less likely than the most expected outcome (the predictive mean, the
    likeliest class) by more than ``quarantine_above`` nats: half the squared distance in standard deviations where the
    predictive is normal. It is judged by the predictive at its own time, by which its step would score it. A model that
    knows little expects little, so that hardly anything is quarantined early. Of several rows the least likely decides;
    those of weight 0 say nothing.

    Args:
        source_cap: c, the largest total weight of a source; None for no cap.
        quarantine_above: in nats; 12.5 is five standard deviations; None for no quarantine. It costs one prediction
            for each event.
        max_ahead: in seconds; None lets any time in, as for a simulated stream that runs ahead of the clock, or
            where the clock is not kept.

    Raises:
        InvalidInput: a limit that is not positive and finite.
    """

    source_cap: float | None = None
    quarantine_above: float | None = None
    max_ahead: float | None = 86400.0

    def __post_init__(self) -> None:
        for name in ("source_cap", "quarantine_above", "max_ahead"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, Real) and 0 < float(value) < math.inf):
                raise InvalidInput(f"Admission.{name} must be positive and finite, or None, got {value!r}")

    @property
    def decides(self) -> bool:
        """Whether anything is decided of an event that is stored."""
        return self.source_cap is not None or self.quarantine_above is not None

    def check_time(self, time: float | None, now: float) -> None:
        """Raises :class:`InvalidInput` for an event from the future.

        Args:
            time: of the event, in seconds since the epoch; None for none.
            now: likewise.
        """
        if time is not None and self.max_ahead is not None and time > now + self.max_ahead:
            raise InvalidInput(
                f"time must be at most Admission.max_ahead ({self.max_ahead:g} s) after the clock, "
                f"got {time!r}, {time - now:.6g} s after it"
            )

    def granted(self, weight: float, spent: float) -> float:
        """The share of its weight that an event is granted, in [0, 1].

        Args:
            weight: that it asks for, at least 0.
            spent: granted to its source before.
        """
        if self.source_cap is None or weight == 0:
            return 1.0
        left = max(0.0, 1 - spent / self.source_cap)
        return min(1.0, -left * self.source_cap * math.expm1(-weight / self.source_cap) / weight)


class Quarantined(NamedTuple):
    """An event in quarantine.

    Attributes:
        event_id: its id, for ``release`` or ``retract``.
        version: its place in the log.
        source: who sent it.
        received: when it was stored, seconds since the epoch.
        excess_surprise: for which it was not learned, in nats.
        x: inputs, (rows, inputs).
        y: what was said to have been seen, (rows, ...).
    """

    event_id: str
    version: int
    source: str | None
    received: float
    excess_surprise: float
    x: np.ndarray
    y: np.ndarray


_LARGEST_COUNT = 1e6  # that a likelihood of counts takes


def excess_surprise(answer: Predictive, y: np.ndarray) -> np.ndarray:
    """How much less likely y is than the most expected outcome, in nats, (N,).

    Args:
        answer: the predictive distribution.
        y: targets, as the likelihood prepared them.
    """
    expected = answer.mean
    if not answer.likelihood.scales_targets:
        labels = expected.ndim == 2 and y.ndim == 1
        expected = expected.argmax(axis=1) if labels else np.rint(np.minimum(expected, _LARGEST_COUNT)).astype(np.int64)
    return np.asarray(answer.log_prob(expected) - answer.log_prob(y))
