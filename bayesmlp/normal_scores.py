"""Inputs by their ranks among the rows before them, for streams: what no monotone change of a column changes."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri

from .inference.checks import check_count
from .inference.errors import InvalidInput
from .validation import as_host_array, check_inputs

__all__ = ["NormalScores"]

_LARGEST_WINDOW = 1_000_000


class NormalScores:
    """Normal scores of each column: the standard normal quantile of a value's rank among the last rows of a stream.

    A network sees a heavy-tailed column as a few large numbers and many that hardly differ, and a column whose unit
    drifts as one that it has not learned; its ranks have neither fault. Beside the standardised columns they tell a
    network what a tree sees. A value's score is Φ⁻¹((b + e/2 + 1/2) / (n + 1)), where b of the n rows are below it and
    e equal it (Van der Waerden 1952, "Order tests for the two-sample problem and their power", with mid-ranks and the
    value counted among its own); among 1,000 rows it is at most 3.3 in magnitude.

    A row's scores are fixed when it comes: learn from them and store them, so that a replay sees what was seen. Threads
    that share an object bring a lock.

    Args:
        window: how many rows a value is ranked among; 1 to a million.
        last_rows: that came before, oldest first, (n, num_inputs), of which the window keeps the last: those of another
            one of the same window, to go on from where it was.

    Raises:
        InvalidInput: another window, or last_rows that are not finite numbers of at most 10³⁰ in magnitude.

    Example:
        >>> scores = NormalScores(window=3)
        >>> [float(scores.observe([[value]])[0, 0].round(2)) for value in (1.0, 2.0, 3.0, 1e6)]
        [0.0, 0.67, 0.97, 1.15]
    """

    def __init__(self, window: int = 1000, last_rows: Any = None) -> None:
        check_count("window", window)
        if window > _LARGEST_WINDOW:
            raise InvalidInput(f"window must be at most {_LARGEST_WINDOW:,}, got {window}")
        self.window = int(window)
        self._seen = 0
        self._ring: np.ndarray | None = None
        if last_rows is not None and as_host_array(last_rows, "last_rows").shape[:1] != (0,):
            self._add(check_inputs(last_rows, None, "last_rows"))

    @property
    def last_rows(self) -> Float[np.ndarray, "n num_inputs"]:
        """The rows of the window, oldest first; with them another one goes on from here. Empty before the first row."""
        if self._ring is None:
            return np.empty((0, 0))
        return np.roll(self._ring, -(self._seen % self.window), axis=0)[-min(self._seen, self.window) :]

    def transform(self, X: Any) -> Float[np.ndarray, "rows num_inputs"]:  # noqa: N803
        """Scores of rows that are asked about: each among the window's rows, none of which they join.

        Raises:
            InvalidInput: not (rows, num_inputs), not finite, or above 10³⁰ in magnitude.
        """
        return np.stack([self._scores(row) for row in self._checked(X)])

    def observe(self, X: Any) -> Float[np.ndarray, "rows num_inputs"]:  # noqa: N803
        """Scores of rows that have come, in their order: each among those before it, which it then joins.

        Raises:
            InvalidInput: not (rows, num_inputs), not finite, or above 10³⁰ in magnitude; then no row has joined.
        """
        scores = []
        for row in self._checked(X):
            scores.append(self._scores(row))
            self._add(row[None])
        return np.stack(scores)

    def _checked(self, values: Any) -> np.ndarray:
        return check_inputs(values, None if self._ring is None else self._ring.shape[1])

    def _scores(self, row: np.ndarray) -> np.ndarray:
        if self._ring is None:
            return np.zeros(len(row))
        held = self._ring[: self._seen]
        below, equal = np.count_nonzero(held < row, axis=0), np.count_nonzero(held == row, axis=0)
        return np.asarray(ndtri((below + 0.5 * equal + 0.5) / (len(held) + 1)))

    def _add(self, rows: np.ndarray) -> None:
        if self._ring is None:
            self._ring = np.empty((self.window, rows.shape[1]))
        for row in rows:
            self._ring[self._seen % self.window] = row
            self._seen += 1
