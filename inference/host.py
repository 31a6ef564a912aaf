"""Data of users on the host: from any framework to NumPy, checked."""

from __future__ import annotations

from typing import Any

import numpy as np

from .errors import InvalidInput

__all__ = ["as_host_array"]


def as_host_array(values: Any, argument: str) -> np.ndarray:
    """NumPy, torch, JAX or pandas data, or nested lists of numbers, as a NumPy array.

    Args:
        values: the data.
        argument: its name, for the error.

    Raises:
        InvalidInput: ragged, masked, or not real numbers.
    """
    if hasattr(values, "detach"):  # a torch tensor, perhaps on a GPU, with gradients, or in half precision
        values = values.detach().cpu()
        values = (values.double() if values.is_floating_point() else values).numpy()
    if getattr(values, "_mask", None) is not None and np.ma.is_masked(values):
        raise InvalidInput(f"{argument} must hold a number in every place, got masked values")
    try:
        array = np.asarray(values)
    except (TypeError, OverflowError) as error:  # None among numbers; an integer that no number of NumPy holds
        raise InvalidInput(f"{argument} must hold real numbers: {error}") from error
    except ValueError as error:
        raise InvalidInput(f"{argument} must be an array of numbers, got a ragged {type(values).__name__}") from error
    if array.dtype.kind == "O" and hasattr(values, "dtypes"):  # a data frame whose columns are of several types
        try:
            array = values.to_numpy(dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"{argument} must hold real numbers, got columns of {set(values.dtypes)}") from error
    if array.dtype.kind not in "biuf":
        raise InvalidInput(f"{argument} must hold real numbers, got dtype {array.dtype}")
    return array
