"""The outputs that a row tells of, checked at the edge."""

from __future__ import annotations

from typing import Any

import numpy as np

from .inference.errors import InvalidInput
from .inference.likelihoods import Likelihood
from .inference.likelihoods.masked import masked
from .validation import as_host_array

__all__ = ["check_labels_possible", "check_output_mask", "fill_unobserved"]


def check_output_mask(mask: Any, rows: int, likelihood: Likelihood, argument: str = "output_mask") -> np.ndarray | None:
    """A mask as booleans (rows, K); None where it leaves everything in.

    Args:
        mask: (rows, K), or (K,) for all rows; None for no mask.
        rows: how many there are.
        likelihood: whose outputs are masked.
        argument: its name, for the error.

    Raises:
        InvalidInput: not boolean, of another shape, without a single output in a row, or for a likelihood whose outputs
            can't be taken apart.
    """
    if mask is None:
        return None
    masked(likelihood)  # raises
    array = as_host_array(mask, argument)
    size = likelihood.num_outputs
    if array.dtype != np.bool_:
        raise InvalidInput(f"{argument} must be boolean, got dtype {array.dtype}")
    if array.shape not in ((rows, size), (size,)):
        raise InvalidInput(f"{argument} must have shape ({rows}, {size}) or ({size},), got shape {array.shape}")
    array = np.array(np.broadcast_to(array, (rows, size)))
    empty = ~array.any(axis=1)
    if empty.any():
        raise InvalidInput(f"{argument} must leave at least one output in, got none in row {int(np.argmax(empty))}")
    return None if array.all() else array


def fill_unobserved(y: np.ndarray, mask: np.ndarray | None, value: np.ndarray) -> np.ndarray:
    """Targets of several numbers with ``value`` (K,) where nothing was observed, whatever stood there; labels stay."""
    if mask is None or y.shape != mask.shape or y.dtype.kind not in "biuf":
        return y
    return np.where(mask, y, value)


def check_labels_possible(y: np.ndarray, mask: np.ndarray | None) -> None:
    """Labels must be among the classes that were possible.

    Raises:
        InvalidInput: names the first that is not.
    """
    if mask is None or y.ndim != 1:
        return
    impossible = ~mask[np.arange(len(y)), y]
    if impossible.any():
        row = int(np.argmax(impossible))
        raise InvalidInput(f"y must be a class that output_mask leaves in, got {y[row]} in row {row}")
