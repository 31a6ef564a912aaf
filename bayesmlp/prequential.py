"""How a model did over its stream: every event was predicted before it was learned (Dawid 1984, "prequential")."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from rich.table import Table

from .inference.errors import InvalidInput
from .metrics import binned_calibration_error

__all__ = ["Prequential", "Window"]

INTERVAL = 0.9
"""Probability of the intervals whose coverage is given."""


class Window(NamedTuple):
    """A stretch of the stream.

    Attributes:
        events: number of events up to its end.
        log_score: mean log predictive density or probability of what came, in nats per row.
        error: standard error of that mean.
        cumulative: mean log score of all rows up to its end.
        drift: change of the log score since the window before, in standard errors of the difference: far below 0,
            the world has moved away from the model.
        accuracy: share of right classes; NaN for numbers.
        calibration_error: expected calibration error of the predicted classes; NaN for numbers.
        coverage: share of numbers within their central 90% intervals; NaN for classes.
        information: gained, in nats per row.
        change: the largest change of a prediction on the probe set.
        seconds: of a step, mean.
    """

    events: int
    log_score: float
    error: float
    cumulative: float
    drift: float
    accuracy: float
    calibration_error: float
    coverage: float
    information: float
    change: float
    seconds: float


@dataclass(frozen=True, eq=False)
class Prequential:
    """What each event of a model's line did, in the order of learning; NaN where it was not asked for.

    Attributes:
        version: offset of the record.
        surprise: minus the log predictive density before the event was learned, in nats, at the scale of the
            standardised targets.
        information: gained, in nats.
        seconds: of the step.
        change: largest change of the predictions on the updater's probe set: of a mean, or of a class's probability.
        pit: probability integral transform P(Y < y) + ½ P(Y = y) of the one number that was observed; uniform where the
            model is calibrated.
        confidence: probability of the predicted class; of several yes or no, the mean over those observed.
        hit: 1 where that was the class, else 0; of several yes or no, the share that was right.
        num_rows: of the event that count, those of a weight above 0: a batch is one event, of whose rows surprise and
            information are sums. NaN where they went with an erased payload: means over rows leave such an event out.
    """

    version: np.ndarray
    surprise: np.ndarray
    information: np.ndarray
    seconds: np.ndarray
    change: np.ndarray
    pit: np.ndarray
    confidence: np.ndarray
    hit: np.ndarray
    num_rows: np.ndarray

    def __len__(self) -> int:
        return len(self.version)

    @property
    def log_score(self) -> float:
        """Mean log score of the stream, in nats per row."""
        return -_per_row(self.surprise, self.num_rows)

    @property
    def coverage(self) -> float:
        """Share of the numbers within their central 90% intervals."""
        return _mean(_covered(self.pit))

    @property
    def calibration_error(self) -> float:
        """Expected calibration error of the predicted classes."""
        return _calibration_error(self.confidence, self.hit)

    def windows(self, size: int = 100) -> list[Window]:
        """The stream in stretches of ``size`` events; the last is of half to one and a half times as many.

        Raises:
            InvalidInput: a size below 2.
        """
        if not isinstance(size, int | np.integer) or size < 2:
            raise InvalidInput(f"size must be an integer of at least 2, got {size!r}")
        if len(self) < 2:
            return []
        ends = list(range(size, len(self) - size // 2 + 1, size))
        ends = [*ends, len(self)] if not ends or len(self) - ends[-1] >= max(2, size // 2) else [*ends[:-1], len(self)]
        found: list[Window] = []
        for start, stop in zip([0, *ends[:-1]], ends, strict=True):
            found.append(self._window(slice(start, stop), found[-1] if found else None))
        return found

    def _window(self, part: slice, before: Window | None) -> Window:
        mean, error = (
            -_per_row(self.surprise[part], self.num_rows[part]),
            _error(self.surprise[part], self.num_rows[part]),
        )
        spread = np.hypot(error, before.error) if before else 0.0
        return Window(
            events=part.stop,
            log_score=mean,
            error=error,
            cumulative=-_per_row(self.surprise[: part.stop], self.num_rows[: part.stop]),
            drift=float((mean - before.log_score) / spread) if before and spread > 0 else float("nan"),
            accuracy=_mean(self.hit[part]),
            calibration_error=_calibration_error(self.confidence[part], self.hit[part]),
            coverage=_mean(_covered(self.pit[part])),
            information=_per_row(self.information[part], self.num_rows[part]),
            change=float(np.nanmax(self.change[part])) if np.isfinite(self.change[part]).any() else float("nan"),
            seconds=_mean(self.seconds[part]),
        )

    def table(self, size: int = 100) -> Table:
        """The windows as a table; columns that hold nothing are left out."""
        windows = self.windows(size)
        shown = {
            "log_score": ("log score (nats)", "{:+.3f}"),
            "error": ("± error", "{:.3f}"),
            "cumulative": ("cumulative", "{:+.3f}"),
            "drift": ("drift (sd)", "{:+.1f}"),
            "accuracy": ("accuracy", "{:.3f}"),
            "calibration_error": ("calibration error", "{:.3f}"),
            "coverage": ("90% coverage", "{:.3f}"),
            "information": ("information", "{:.4f}"),
            "change": ("largest change", "{:.3g}"),
            "seconds": ("s per step", "{:.1e}"),
        }
        kept = [name for name in shown if any(np.isfinite(getattr(window, name)) for window in windows)]
        table = Table("events", *(shown[name][0] for name in kept), title=f"{len(self)} events in windows of {size}")
        for window in windows:
            values = [getattr(window, name) for name in kept]
            cells = [shown[n][1].format(v) if np.isfinite(v) else "" for n, v in zip(kept, values, strict=True)]
            table.add_row(str(window.events), *cells)
        return table


PER_EVENT = tuple(field.name for field in fields(Prequential))
"""Names of the columns."""


def _covered(pit: np.ndarray) -> np.ndarray:
    tail = 0.5 * (1 - INTERVAL)
    return np.where(np.isfinite(pit), (pit >= tail) & (pit <= 1 - tail), np.nan)


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _per_row(totals: np.ndarray, rows: np.ndarray) -> float:
    """Mean over the rows of events, given what is summed over those of each."""
    known = np.isfinite(totals) & (rows > 0)
    return float(totals[known].sum() / rows[known].sum()) if known.any() else float("nan")


def _error(totals: np.ndarray, rows: np.ndarray) -> float:
    """Standard error of that mean, a ratio of two sums over events; of single rows it is that of a mean."""
    known = np.isfinite(totals) & (rows > 0)
    count, beyond = int(known.sum()), (totals - _per_row(totals, rows) * rows)[known]
    return float(np.sqrt(count / (count - 1) * (beyond @ beyond)) / rows[known].sum()) if count > 1 else float("nan")


def _calibration_error(confidence: np.ndarray, hit: np.ndarray) -> float:
    known = np.isfinite(confidence)
    return binned_calibration_error(confidence[known], hit[known]) if known.any() else float("nan")
