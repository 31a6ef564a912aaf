"""Checks at the public edge, once, before any work."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import numpy as np

from .inference.errors import InvalidInput
from .inference.host import as_host_array
from .inference.network import Network

__all__ = [
    "MAX_MAGNITUDE",
    "as_host_array",
    "check_elapsed",
    "check_inputs",
    "check_source",
    "check_weights",
    "is_positive",
    "with_row_axis",
]

MAX_RAW_MAGNITUDE = 1e30
"""Largest magnitude of an input in the user's units; the square of a larger one is no longer safe in any unit."""

MAX_MAGNITUDE = 1e6
"""Largest magnitude of an input after scaling; beyond it float32 products are no longer safe."""


def check_inputs(
    values: Any, num_inputs: int | None, argument: str = "X", network: Network | None = None, *, whole: bool = False
) -> np.ndarray:
    """Inputs as float64, shape (rows, num_inputs); where a network takes several inputs a row, also one of them.

    Args:
        values: the inputs; for a network with an input shape of its own, (rows, *input_shape) or flat rows.
        num_inputs: None for any.
        argument: their name, for the error.
        network: that they are for.
        whole: whether a row must hold all of its inputs, as what is learned must.

    Raises:
        InvalidInput: not numeric, of another shape, empty, not finite, or not tokens that the network knows.
    """
    array = as_host_array(values, argument)
    shape = None if network is None else network.input_shape
    if shape is not None:
        num_inputs = math.prod(shape)
        if array.shape[1:] == shape:
            array = array.reshape(len(array), num_inputs)
    per_row = 1 if network is None or whole else network.inputs_per_row
    widths = () if num_inputs is None else tuple(dict.fromkeys((num_inputs, num_inputs // per_row)))
    if array.ndim != 2 or (widths and array.shape[1] not in widths) or array.shape[1] == 0:
        width = " or ".join(map(str, widths)) or "inputs" if shape is None else ", ".join(map(str, shape))
        raise InvalidInput(f"{argument} must have shape (rows, {width}), got shape {array.shape}")
    if array.shape[0] == 0:
        raise InvalidInput(f"{argument} must have at least one row, got shape {array.shape}")
    array = array.astype(np.float64)
    _check_values(array, argument)
    if network is not None and network.num_tokens is not None:
        _check_tokens(array, network.num_tokens, argument)
    return array + 0.0  # -0.0 is 0.0


def _check_values(array: np.ndarray, argument: str) -> None:
    if (np.abs(array) <= MAX_RAW_MAGNITUDE).all():
        return
    finite = np.isfinite(array)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise InvalidInput(f"{argument} must be finite, got {array[row, column]} in row {row}, column {column}")
    too_large = np.abs(array) > MAX_RAW_MAGNITUDE
    raise InvalidInput(f"{argument} must be at most {MAX_RAW_MAGNITUDE:g} in magnitude, got {array[too_large][0]:g}")


def _check_tokens(array: np.ndarray, num_tokens: int, argument: str) -> None:
    wrong = (array != np.floor(array)) | (array < 0) | (array >= num_tokens)
    if wrong.any():
        raise InvalidInput(f"{argument} must hold integers from 0 to {num_tokens - 1}, got {array[wrong][0]:g}")


def with_row_axis(values: Any, argument: str, network: Network) -> np.ndarray:
    """Inputs on the host; those of one row may come without their row axis."""
    array = as_host_array(values, argument)
    return array[None] if array.ndim == 1 or array.shape == network.input_shape else array


def check_weights(values: Any, rows: int, argument: str = "weight") -> np.ndarray:
    """Weights of rows as float64, shape (rows,); None means 1 each, a number the same for all.

    Raises:
        InvalidInput: of another length, negative, not finite, or above 10⁶.
    """
    if values is None or (type(values) is float and 0 <= values <= MAX_MAGNITUDE):
        return np.full(rows, 1.0 if values is None else values)
    array = np.asarray(as_host_array(values, argument), dtype=np.float64)
    array = np.full(rows, array) if array.ndim == 0 else array
    if array.shape != (rows,):
        raise InvalidInput(f"{argument} must be a number or have shape ({rows},), got shape {array.shape}")
    wrong = ~((array >= 0) & (array <= MAX_MAGNITUDE))
    if wrong.any():
        raise InvalidInput(f"{argument} must be from 0 to {MAX_MAGNITUDE:g}, got {array[wrong][0]}")
    return array


def check_source(source: Any) -> None:
    """Raise :class:`InvalidInput` unless ``source`` is a name, or None."""
    if not isinstance(source, str | None):
        raise InvalidInput(f"source must be a string or None, got {source!r:.60}")


def check_elapsed(elapsed: Any) -> None:
    """Raise :class:`InvalidInput` unless ``elapsed`` is a number of at least 0."""
    if not isinstance(elapsed, Real) or not 0 <= float(elapsed) < np.inf:
        raise InvalidInput(f"elapsed must be a number of at least 0, got {elapsed!r}")


def is_positive(value: Any) -> bool:
    """Whether a setting is a number above 0."""
    return isinstance(value, Real) and not isinstance(value, bool) and float(value) > 0
