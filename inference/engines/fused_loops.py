"""Loops over a layer's weights, compiled by Numba where it is installed.

An eager framework passes over the weights once for every operation, and for large layers what an event costs is what it
moves through memory. These pass once for the outputs, once for their covariance and once to learn, and leave out the
weights of inputs that are 0: of pixels without ink, and of units that are off.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

__all__ = ["WORTH_A_LOOP", "FusedLoops", "fused_loops", "loops_for"]

_log = logging.getLogger(__name__)

WORTH_A_LOOP = 2**15
"""Numbers of a matrix from which one pass in a compiled loop saves more than it costs to enter."""
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


class FusedLoops(NamedTuple):
    """Arrays are NumPy's, in C order and of one floating-point type.

    Attributes:
        version: of Numba.
        product: ``(row, matrix, total)``: writes ``row @ matrix`` into total, (j,).
        divided_sum: ``(column, divisor, total)``: writes ``Σ_i column_i² / divisor_ij`` into total, (j,).
        add_outer: ``(matrix, column, row)``: adds ``column ⊗ row`` to the matrix, (i, j).
        learn: ``(mean, precision, column, step, gain)``: adds ``(column ⊗ step) / precision`` to the mean, (i, j), and
            ``column² ⊗ gain`` to the precision.
    """

    version: str
    product: Callable[..., None]
    divided_sum: Callable[..., None]
    add_outer: Callable[..., None]
    learn: Callable[..., None]


@cache
def fused_loops() -> FusedLoops | None:
    """The loops, or None without Numba; each is compiled when it is first called, in less than a second.

    Without fast-math: every number is that of the loop as it is written, on whatever processor.
    """
    try:
        import numba
    except ModuleNotFoundError:
        return None
    except ImportError as error:  # one that does not know the NumPy that is here
        _log.warning("numba does not load, so that large layers take longer: %s", error)
        return None
    compiled = numba.njit(error_model="numpy", nogil=True)
    loops = (_product, _divided_sum, _add_outer, _learn)
    return FusedLoops(numba.__version__, *(compiled(loop) for loop in loops))


def loops_for(matrix: np.ndarray, *others: np.ndarray) -> FusedLoops | None:
    """The loops, where they are there, the matrix is worth them and they take these arrays."""
    if matrix.size < WORTH_A_LOOP or matrix.dtype not in _FLOATS:
        return None
    alike = all(array.dtype == matrix.dtype and array.flags.c_contiguous for array in (matrix, *others))
    return fused_loops() if alike else None


def _product(row: Any, matrix: Any, total: Any) -> None:
    total[:] = 0
    for i in range(matrix.shape[0]):
        if row[i] == 0:
            continue
        for j in range(matrix.shape[1]):
            total[j] += row[i] * matrix[i, j]


def _divided_sum(column: Any, divisor: Any, total: Any) -> None:
    total[:] = 0
    for i in range(divisor.shape[0]):
        square = column[i] * column[i]
        if square == 0:
            continue
        for j in range(divisor.shape[1]):
            total[j] += square / divisor[i, j]


def _add_outer(matrix: Any, column: Any, row: Any) -> None:
    for i in range(matrix.shape[0]):
        if column[i] == 0:
            continue
        for j in range(matrix.shape[1]):
            matrix[i, j] += column[i] * row[j]


def _learn(mean: Any, precision: Any, column: Any, step: Any, gain: Any) -> None:
    for i in range(mean.shape[0]):
        if column[i] == 0:
            continue
        square = column[i] * column[i]
        for j in range(mean.shape[1]):
            mean[i, j] += column[i] * step[j] / precision[i, j]
            precision[i, j] += square * gain[j]
