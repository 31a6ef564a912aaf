"""Loops over independent weights, compiled by Numba where it is installed.

An eager framework passes over the weights once for every operation, and for large layers what an event costs is what it
moves through memory. These pass once for the covariance of the outputs and once to learn.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

__all__ = ["FusedLoops", "fused_loops"]

_log = logging.getLogger(__name__)


class FusedLoops(NamedTuple):
    """Arrays are NumPy's, in C order and of one floating-point type.

    Attributes:
        version: of Numba.
        divided_sum: ``(squares, divisor, total)``: writes ``Σ_i squares_i / divisor_ij`` into total, (j,).
        learn: ``(mean, precision, column, row, squared_column, squared_row)``: adds ``(column ⊗ row) / precision`` to
            the mean, (i, j), and ``squared_column ⊗ squared_row`` to the precision.
    """

    version: str
    divided_sum: Callable[..., None]
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
    return FusedLoops(numba.__version__, compiled(_divided_sum), compiled(_learn))


def _divided_sum(squares: Any, divisor: Any, total: Any) -> None:
    total[:] = 0
    for i in range(divisor.shape[0]):
        for j in range(divisor.shape[1]):
            total[j] += squares[i] / divisor[i, j]


def _learn(mean: Any, precision: Any, column: Any, row: Any, squared_column: Any, squared_row: Any) -> None:
    for i in range(mean.shape[0]):
        for j in range(mean.shape[1]):
            mean[i, j] += column[i] * row[j] / precision[i, j]
            precision[i, j] += squared_column[i] * squared_row[j]
