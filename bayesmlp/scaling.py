"""Standardisation of inputs and targets: part of a model, set once, never re-estimated in mid-stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from .inference.errors import InvalidInput
from .validation import MAX_MAGNITUDE

__all__ = ["Scaling"]


class Scaling(NamedTuple):
    """Attributes:
    input_mean: subtracted from inputs, (num_inputs,).
    input_scale: inputs are divided by it; a standard deviation, (num_inputs,).
    target_mean: subtracted from numeric targets, (num_targets,).
    target_scale: numeric targets are divided by it, (num_targets,).
    """

    input_mean: np.ndarray
    input_scale: np.ndarray
    target_mean: np.ndarray
    target_scale: np.ndarray

    @classmethod
    def identity(cls, num_inputs: int, num_targets: int) -> Scaling:
        """Leaves everything as it is."""
        return cls(np.zeros(num_inputs), np.ones(num_inputs), np.zeros(num_targets), np.ones(num_targets))

    @classmethod
    def estimate(
        cls,
        x: np.ndarray,
        y: np.ndarray,
        *,
        inputs: bool,
        targets: bool,
        one_target_scale: bool,
        num_targets: int,
        inputs_per_row: int = 1,
        weight: np.ndarray | None = None,
    ) -> Scaling:
        """Means and standard deviations of the columns; a constant column keeps scale 1.

        Args:
            x: inputs.
            y: targets.
            inputs: whether to scale inputs.
            targets: whether to scale targets.
            one_target_scale: whether all targets get the same scale.
            num_targets: number of targets.
            inputs_per_row: how many inputs of one kind a row holds side by side; they are scaled alike.
            weight: of each row, not 0 everywhere; None for 1 each.
        """
        scaling = cls.identity(x.shape[1], num_targets)
        if inputs:
            each = x.reshape(len(x) * inputs_per_row, -1)
            moments = _moments(each, None if weight is None else np.repeat(weight, inputs_per_row))
            mean, deviation = (np.tile(values, inputs_per_row) for values in moments)
            scaling = scaling._replace(input_mean=mean, input_scale=deviation)
        if targets:
            mean, deviation = _moments(y, weight)
            shared = np.full_like(deviation, np.sqrt(np.mean(deviation**2)))
            scaling = scaling._replace(target_mean=mean, target_scale=shared if one_target_scale else deviation)
        return scaling

    def inputs(self, x: np.ndarray, argument: str = "X") -> np.ndarray:
        """Scaled inputs, the first of each row or all; raises :class:`InvalidInput` where they are too large."""
        width = x.shape[1]
        with np.errstate(over="ignore"):
            scaled = (x - self.input_mean[:width]) / self.input_scale[:width]
        small = np.abs(scaled) <= MAX_MAGNITUDE
        if not small.all():
            row, column = np.argwhere(~small)[0]
            raise InvalidInput(
                f"{argument} must be at most {MAX_MAGNITUDE:g} in magnitude after scaling, "
                f"got {x[row, column]:g} in row {row}, column {column}"
            )
        return np.asarray(scaled)

    def targets(self, y: np.ndarray, argument: str = "y") -> np.ndarray:
        """Scaled numeric targets; class labels pass through."""
        if y.dtype.kind != "f":
            return y
        with np.errstate(over="ignore"):
            scaled = (y - self.target_mean) / self.target_scale
        small = np.abs(scaled) <= MAX_MAGNITUDE
        if not small.all():
            raise InvalidInput(
                f"{argument} must be at most {MAX_MAGNITUDE:g} in magnitude after scaling, got {y[~small][0]:g}"
            )
        return np.asarray(scaled)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Scaling:
        """From the fields by name."""
        return cls(**{field: arrays[field] for field in cls._fields})


def _moments(values: np.ndarray, weight: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean and standard deviation of each column; the deviation of a constant column is 1."""
    mean = np.average(values, axis=0, weights=weight)
    deviation = np.sqrt(np.average((values - mean) ** 2, axis=0, weights=weight))
    return mean, np.where(deviation > 1e-12 * np.abs(mean) + 1e-30, deviation, 1.0)
