"""The reference engine: NumPy on the host. It filters and predicts; it has no gradients."""

from __future__ import annotations

import contextlib
import platform
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np

from ..errors import InvalidInput
from .base import Engine, Tap, leading_length, map_arrays, stack_trees, take
from .fused_loops import fused_loops, loops_for

__all__ = ["NumpyEngine", "one_blas_thread", "processor"]

_SMALL = 128
"""Rows of a matrix up to which what surrounds the arithmetic counts."""
_LEAST_TRIANGULAR = 64
"""Rows from which LAPACK's triangular solve makes good what it costs to call it."""


def processor() -> str:
    """The processor's architecture and the vector extensions that numerical libraries dispatch on."""
    extensions = {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "fma", "sve", "asimd"}
    features: set[str] = set()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith(("flags", "Features")):
                features = extensions & set(line.split(":", 1)[1].split())
                break
    return " ".join([platform.machine(), *sorted(features)])


@dataclass(frozen=True)
class NumpyEngine(Engine):
    """NumPy, float64 unless told otherwise."""

    dtype: str = "float64"

    @property
    def name(self) -> str:
        return "numpy"

    @property
    def xp(self) -> Any:
        return np

    @property
    def has_gradients(self) -> bool:
        return False

    def fingerprint(self) -> dict[str, str]:
        return {"engine": self.name, "processor": processor(), **self.libraries()}

    @staticmethod
    def libraries(*, large: bool = True) -> dict[str, str]:
        """Versions of what computes, ``large`` layers too, and the number of its threads."""
        import scipy

        versions = {"numpy": np.__version__, "scipy": scipy.__version__, "threads": "1"}
        loops = fused_loops() if large else None
        return versions if loops is None else {**versions, "numba": loops.version}

    def asarray(self, values: Any, dtype: str | None = None) -> np.ndarray:
        array = np.array(values, dtype=dtype)
        return array.astype(self.dtype) if dtype is None and array.dtype.kind == "f" else array

    def to_numpy(self, array: Any) -> np.ndarray:
        return np.asarray(array) if self.lends else np.array(array)

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        with np.errstate(all="ignore"), one_blas_thread():  # failures are reported by flags, not by warnings
            yield

    def jit(self, function: Callable[..., Any], donate: tuple[int, ...] = ()) -> Callable[..., Any]:
        def scoped(*args: Any) -> Any:
            with self.scope():
                return function(*args)

        return scoped

    def in_float64(self, function: Callable[..., Any], *arrays: Any) -> Any:
        def widen(array: Any) -> np.ndarray:
            array = np.asarray(array)
            return array.astype(np.float64) if array.dtype == np.float32 else array

        return function(_REFERENCE, *(map_arrays(widen, array) for array in arrays))

    def while_loop(self, condition: Callable[[Any], Any], body: Callable[[Any], Any], state: Any) -> Any:
        while condition(state):
            state = body(state)
        return state

    def guarded(self, ok: Any, update: Callable[[], Any], old: Any) -> Any:
        return update() if bool(ok) else old

    def scan(self, body: Callable[[Any, Any], tuple[Any, Any]], state: Any, sequence: Any) -> tuple[Any, Any]:
        return python_scan(np.stack, body, state, sequence)

    def vmap(self, function: Callable[..., Any], in_axes: Any = 0) -> Callable[..., Any]:
        def mapped(*args: Any) -> Any:
            axes = in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(args)
            size = next(leading_length(arg) for arg, axis in zip(args, axes, strict=True) if axis == 0)
            rows = [
                function(*(arg if axis is None else take(arg, i) for arg, axis in zip(args, axes, strict=True)))
                for i in range(size)
            ]
            return stack_trees(np.stack, rows)

        return mapped

    def value_and_grad(self, function: Callable[..., Any], *, has_aux: bool = False) -> Any:
        raise InvalidInput(_NO_GRADIENTS)

    def vjp(self, function: Callable[[Any], Any], point: Any) -> tuple[Any, Callable[[Any], Any]]:
        raise InvalidInput(_NO_GRADIENTS)

    def vjp_at(self, function: Callable[[Tap], tuple[Any, Any]]) -> tuple[Any, Any, Callable[[Any], list[Any]]]:
        raise InvalidInput(_NO_GRADIENTS)

    def stop_gradient(self, array: np.ndarray) -> np.ndarray:
        return array

    def train(self, *args: Any, **kwargs: Any) -> Any:
        raise InvalidInput(_NO_GRADIENTS)

    def key(self, seed: int) -> np.random.SeedSequence:
        return np.random.SeedSequence(seed)

    def fold_in(self, key: np.random.SeedSequence, data: int) -> np.random.SeedSequence:
        return np.random.SeedSequence(entropy=key.entropy, spawn_key=(*key.spawn_key, data))

    def uniform(self, key: np.random.SeedSequence, shape: tuple[int, ...]) -> np.ndarray:
        return np.random.default_rng(key).random(shape).astype(self.dtype)

    def normal(self, key: np.random.SeedSequence, shape: tuple[int, ...]) -> np.ndarray:
        return np.random.default_rng(key).standard_normal(shape).astype(self.dtype)

    def eye(self, size: int, like: np.ndarray) -> np.ndarray:
        """Read-only, so that the small ones of a filter step need not be made anew."""
        return _identity(size, like.dtype) if size <= _SMALL else np.eye(size, dtype=like.dtype)

    def cholesky(self, matrix: np.ndarray) -> tuple[np.ndarray, Any]:
        if _is_one(matrix):
            upper, info = _lapack().dpotrf(matrix.reshape(matrix.shape[-2:]).T, clean=True)  # of the lower triangle
            return upper.T.reshape(matrix.shape), np.bool_(info == 0)
        try:
            return np.linalg.cholesky(matrix), np.True_
        except np.linalg.LinAlgError:
            return np.full_like(matrix, np.nan), np.False_

    def solve(self, matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
        if _is_one(matrix) and matrix.ndim == right.ndim == 2:
            *_, solution, info = _lapack().dgesv(matrix, right)
            return solution if info == 0 else np.full_like(right, np.nan)
        try:
            return np.linalg.solve(matrix, right)
        except np.linalg.LinAlgError:
            return np.full_like(right, np.nan)

    def solve_triangular(self, factor: Any, right: Any, *, lower: bool = True, transpose: bool = False) -> Any:
        if factor.ndim > 2 or factor.shape[-1] < _LEAST_TRIANGULAR:
            # LAPACK's triangular solve has no batches in NumPy; a general solve is exact here and as accurate.
            return self.solve(factor.mT if transpose else factor, right)
        from scipy.linalg import LinAlgError, solve_triangular

        try:
            return solve_triangular(factor, right, trans=int(transpose), lower=lower, check_finite=False)
        except LinAlgError:
            return np.full_like(right, np.nan)

    def logsumexp(self, array: np.ndarray, axis: int) -> np.ndarray:
        peak = np.max(array, axis=axis, keepdims=True)
        return np.squeeze(peak, axis=axis) + np.log(np.sum(np.exp(array - peak), axis=axis))

    def lgamma(self, array: np.ndarray) -> np.ndarray:
        from scipy.special import gammaln

        return np.asarray(gammaln(array))

    def digamma(self, array: np.ndarray) -> np.ndarray:
        from scipy.special import digamma

        return np.asarray(digamma(array))

    def erf(self, array: np.ndarray) -> np.ndarray:
        from scipy.special import erf

        return np.asarray(erf(array))

    def relu(self, array: np.ndarray) -> np.ndarray:
        return np.maximum(array, 0)

    def products(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        if left.ndim == 3 and len(left) == 1 and right.ndim == 2:  # with the large matrix first, in two thirds
            return (right.mT @ left[0].mT).mT[None]
        loops = loops_for(right, left) if left.ndim == right.ndim == 2 and len(left) == 1 else None
        if loops is None:
            return left @ right
        product = np.empty((1, right.shape[1]), right.dtype)
        loops.product(left[0], right, product[0])
        return product

    def add_outer(self, matrix: np.ndarray, column: np.ndarray, row: np.ndarray) -> np.ndarray:
        loops = loops_for(matrix, column, row) if len(column) == 1 and self.in_place else None
        if loops is None:
            return self._plus(matrix, _outer(column, row))
        loops.add_outer(matrix, column[0], row[0])
        return matrix

    def add_outer_over(self, matrix: Any, column: Any, row: Any, divisor: Any) -> np.ndarray:
        return self._plus(matrix, _outer(column, row) / divisor)

    def add_scaled(self, matrix: np.ndarray, scale: np.ndarray, row: np.ndarray) -> np.ndarray:
        return self._plus(matrix, scale * row)

    def subtract_product(self, matrix: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return np.subtract(matrix, left @ right, out=matrix if self.in_place else None)

    def _plus(self, matrix: np.ndarray, change: np.ndarray) -> np.ndarray:
        return np.add(matrix, change, out=matrix if self.in_place else None)

    def spread_over(self, row: np.ndarray, precision: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        loops = loops_for(precision, row)
        if loops is None:
            return super().spread_over(row, precision)
        spread = np.empty((1, precision.shape[1]), precision.dtype)
        loops.divided_sum(row[0], precision, spread[0])
        return spread, None

    def learn_independent(
        self, mean: Any, precision: Any, column: Any, step: Any, gain: Any, cross: Any = None
    ) -> tuple[np.ndarray, np.ndarray]:
        loops = loops_for(mean, precision, column, step, gain)
        if loops is None:
            return super().learn_independent(mean, precision, column, step, gain, cross)
        if not self.in_place:
            mean, precision = mean.copy(), precision.copy()
        loops.learn(mean, precision, column[0], step[0], gain[0])
        return mean, precision


def _outer(column: np.ndarray, row: np.ndarray) -> np.ndarray:
    return column.T * row if len(column) == 1 else column.T @ row


class _BlasThreads:
    """One thread for the products of NumPy and SciPy: with several, small ones take longer, and bits may depend on it.

    The number is the process's: it is lowered when the first of the program's threads comes in, and put back when the
    last has left. What others multiply meanwhile has one thread too.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: list[tuple[Any, int]] = []

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        with self._lock:
            if not self._inside:
                self._before = [(library, library.get_num_threads()) for library in _blas()]
                _set_threads([(library, 1) for library, count in self._before if count != 1])
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    _set_threads([(library, count) for library, count in self._before if count != 1])


def _set_threads(counts: list[tuple[Any, int]]) -> None:
    """From whichever thread: who came in first may leave first, and newer threadpoolctl obeys one thread alone."""
    for library, count in counts:
        release = getattr(library, "clear_controlling_thread", lambda **_: None)  # older: not there
        release(force=True)
        library.set_num_threads(count)
        release()


@cache
def _blas() -> list[Any]:
    from threadpoolctl import ThreadpoolController

    _lapack()  # which brings a library of its own
    return list(ThreadpoolController().select(user_api="blas").lib_controllers)


one_blas_thread = _BlasThreads().one


def _is_one(matrix: np.ndarray) -> bool:
    """Whether this is a single matrix, not empty and so small that NumPy's own preparations take longer than LAPACK."""
    return matrix.dtype == np.float64 and 0 < matrix.shape[-1] <= _SMALL and matrix.size == matrix.shape[-1] ** 2


@cache
def _lapack() -> Any:
    from scipy.linalg import lapack

    return lapack


@lru_cache
def _identity(size: int, dtype: Any) -> np.ndarray:
    identity = np.eye(size, dtype=dtype)
    identity.flags.writeable = False
    return identity


_REFERENCE = NumpyEngine()
_NO_GRADIENTS = (
    "engine 'numpy' has no gradients: it filters and predicts only; "
    "fit with engine='torch' or engine='jax' and convert with to_engine('numpy')"
)


def python_scan(
    stack: Callable[[list[Any]], Any], body: Callable[[Any, Any], tuple[Any, Any]], state: Any, sequence: Any
) -> tuple[Any, Any]:
    """:meth:`Engine.scan` for frameworks that run eagerly."""
    rows = []
    for i in range(leading_length(sequence)):
        state, row = body(state, take(sequence, i))
        rows.append(row)
    return state, stack_trees(stack, rows)
