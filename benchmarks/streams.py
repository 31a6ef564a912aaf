"""The streams of ``drift.py``: rows in time order, made ready without looking ahead.

Every learner is offered the same knowledge before each row: its columns, and the label before it. Trees take columns as
they are (categories as codes) and use nothing but their order. Learners on vectors take categories one-hot, all columns
standardised by the running mean and variance of all rows so far, this one's inputs included, and clipped to five
standard deviations; and beside them the numeric columns' order, as normal scores among the last 1,000 rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

import bayesmlp as bm

__all__ = ["STREAMS", "Stream", "load_stream"]

STREAMS = ("elec2", "noaa_weather", "outdoor", "keystroke", "bike_hourly", "bank_marketing")
_CATEGORICAL = {"elec2": ("day",), "bike_hourly": ("season", "mnth", "hr", "weekday", "weathersit")}
_DROPPED = {"bank_marketing": ("duration",)}  # known only after the call whose outcome is predicted
_CLIP = 5.0


@dataclass(frozen=True)
class Stream:
    """Rows of one stream.

    Attributes:
        name: of the stream.
        columns: for trees, (rows, columns): numbers and codes, and the label before.
        vectors: for the others, (rows, inputs).
        y: class labels, or numbers.
        num_classes: 0 for regression.
    """

    name: str
    columns: np.ndarray
    vectors: np.ndarray
    y: np.ndarray
    num_classes: int

    def first(self, rows: int) -> Stream:
        """The stream's first rows."""
        return Stream(self.name, self.columns[:rows], self.vectors[:rows], self.y[:rows], self.num_classes)


def load_stream(folder: Path, name: str, *, scores: bool = True) -> Stream:
    """A stream of the data folder, its vectors with normal scores or without."""
    data = np.load(folder / "streams" / f"{name}.npz")
    x = data["X"].astype(np.float64)
    names = [str(n) for n in data["feature_names"]] if "feature_names" in data else [str(i) for i in range(x.shape[1])]
    categorical = data["categorical"] if "categorical" in data else np.isin(names, _CATEGORICAL.get(name, ()))
    kept = ~np.isin(names, _DROPPED.get(name, ()))
    x, categorical = x[:, kept], categorical[kept]
    y = data["y"].astype(np.float64 if name == "bike_hourly" else np.int64)
    num_classes = 0 if name == "bike_hourly" else int(y.max()) + 1
    before = np.concatenate([y[:1] * 0, y[:-1]])
    columns = np.column_stack([x, before])
    parts = [_one_hot(x[:, j]) if categorical[j] else x[:, j : j + 1] for j in range(x.shape[1])]
    parts.append(_one_hot(before) if num_classes > 2 else before[:, None])
    vectors = _standardised(np.concatenate(parts, axis=1))
    if scores:
        numeric = columns[:, np.append(~categorical, num_classes == 0)]
        vectors = np.hstack([vectors, bm.NormalScores().observe(numeric)])
    return Stream(name, columns, vectors, y, num_classes)


def _one_hot(codes: np.ndarray) -> np.ndarray:
    return (codes[:, None] == np.unique(codes)).astype(np.float64)


def _standardised(x: np.ndarray) -> np.ndarray:
    """By the mean and variance of the rows up to each one."""
    count = np.arange(1, len(x) + 1)[:, None]
    origin = x[0]
    mean = np.cumsum(x - origin, axis=0) / count
    variance = np.maximum(np.cumsum((x - origin) ** 2, axis=0) / count - mean**2, 0)
    scale = np.sqrt(variance)
    scaled = (x - origin - mean) / np.where(scale > 1e-9, scale, 1.0)
    return np.clip(scaled, -_CLIP, _CLIP)
