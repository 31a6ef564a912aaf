"""Loops that pass over the weights once, compiled by Numba where it is installed.

An eager framework passes over them once for every operation, and for large layers what an event costs is what it moves
through memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import metadata
from typing import Any, NamedTuple

__all__ = ["FusedLoops", "fused_loops", "numba_version"]


class FusedLoops(NamedTuple):
    """Arrays are NumPy's, in C order and of one floating-point type.

    Attributes:
        divided_sum: ``(squares, divisor, total)``: writes ``Σ_i squares_i / divisor_ij`` into total, (j,).
        learn: ``(mean, precision, column, row, squared_column, squared_row)``: adds ``(column ⊗ row) / precision`` to
            the mean, (i, j), and ``squared_column ⊗ squared_row`` to the precision.
    """

    divided_sum: Callable[..., None]
    learn: Callable[..., None]


@cache
def numba_version() -> str | None:
    """Of what is installed; None for nothing."""
    try:
        return metadata.version("numba")
    except metadata.PackageNotFoundError:
        return None


@cache
def fused_loops() -> FusedLoops | None:
    """The loops, or None without Numba; each is compiled when it is first called, in less than a second."""
    if numba_version() is None:
        return None
    import numba

    compiled = numba.njit(error_model="numpy", fastmath={"contract"}, nogil=True)
    return FusedLoops(compiled(_divided_sum), compiled(_learn))


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
