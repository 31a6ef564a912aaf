"""Checks at the public edge, once, before any work."""

from __future__ import annotations

from typing import Any

import numpy as np

from .inference.errors import InvalidInput
from .inference.host import as_host_array

__all__ = ["MAX_MAGNITUDE", "as_host_array", "check_inputs", "check_weights"]

MAX_RAW_MAGNITUDE = 1e30
"""Largest magnitude of an input in the user's units; the square of a larger one is no longer safe in any unit."""

MAX_MAGNITUDE = 1e6
"""Largest magnitude of an input after scaling; beyond it float32 products are no longer safe."""


def check_inputs(
    values: Any, num_inputs: int | None, argument: str = "X", inputs_per_row: int | None = None
) -> np.ndarray:
    """Inputs as float64, shape (rows, num_inputs); with ``inputs_per_row`` a row may also hold one of its inputs.

    Raises:
        InvalidInput: not numeric, not two-dimensional, empty, of another width, or not finite.
    """
    array = as_host_array(values, argument)
    widths = () if num_inputs is None else tuple(dict.fromkeys((num_inputs, num_inputs // (inputs_per_row or 1))))
    if array.ndim != 2 or (widths and array.shape[1] not in widths) or array.shape[1] == 0:
        width = " or ".join(map(str, widths)) or "inputs"
        raise InvalidInput(f"{argument} must have shape (rows, {width}), got shape {array.shape}")
    if array.shape[0] == 0:
        raise InvalidInput(f"{argument} must have at least one row, got shape {array.shape}")
    array = array.astype(np.float64)
    finite = np.isfinite(array)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise InvalidInput(f"{argument} must be finite, got {array[row, column]} in row {row}, column {column}")
    too_large = np.abs(array) > MAX_RAW_MAGNITUDE
    if too_large.any():
        raise InvalidInput(
            f"{argument} must be at most {MAX_RAW_MAGNITUDE:g} in magnitude, got {array[too_large][0]:g}"
        )
    return array + 0.0  # -0.0 is 0.0


def check_weights(values: Any, rows: int, argument: str = "weight") -> np.ndarray:
    """Weights of rows as float64, shape (rows,); None means 1 each, a number the same for all.

    Raises:
        InvalidInput: of another length, negative, not finite, or above 10⁶.
    """
    array = np.ones(rows) if values is None else np.asarray(as_host_array(values, argument), dtype=np.float64)
    array = np.full(rows, array) if array.ndim == 0 else array
    if array.shape != (rows,):
        raise InvalidInput(f"{argument} must be a number or have shape ({rows},), got shape {array.shape}")
    wrong = ~((array >= 0) & (array <= MAX_MAGNITUDE))
    if wrong.any():
        raise InvalidInput(f"{argument} must be from 0 to {MAX_MAGNITUDE:g}, got {array[wrong][0]}")
    return array
