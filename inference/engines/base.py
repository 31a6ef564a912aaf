"""What a framework must supply, and nothing else.

The mathematics of this package is written once over the array API standard (``engine.xp``).
An engine adds what the standard lacks or what frameworks do differently: random draws from a key,
compilation, control flow, decompositions that report failure, special functions, placement on a device
and the training loop. An engine is a small immutable value that is passed as an argument; there is no current engine.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar

import numpy as np

from ..errors import InvalidInput

__all__ = ["Array", "Engine", "Loss", "Tap", "TrainingHistory", "map_arrays"]

Array: TypeAlias = Any
"""An array of the engine's framework (numpy.ndarray, torch.Tensor or jax.Array)."""

Loss: TypeAlias = Callable[[Any, Sequence[Array], Any], Array]
"""``loss(parameters, batch, key) -> scalar``: what :meth:`Engine.minimise` minimises."""

Tap: TypeAlias = Callable[[Array], Array]
"""Marks a value inside a computation; see :meth:`Engine.vjp_at`."""

TrainingHistory: TypeAlias = list[float]
"""Mean loss of each epoch."""

State = TypeVar("State")


def map_arrays(function: Callable[[Any], Any], tree: Any) -> Any:
    """Apply ``function`` to every array of a tree of tuples, named tuples and dictionaries."""
    if isinstance(tree, tuple):
        mapped = (map_arrays(function, leaf) for leaf in tree)
        return type(tree)(*mapped) if hasattr(tree, "_fields") else tuple(mapped)
    if isinstance(tree, dict):
        return {name: map_arrays(function, leaf) for name, leaf in tree.items()}
    return None if tree is None else function(tree)


@dataclass(frozen=True)
class Engine(ABC):
    """A framework on a device, with the floating-point type of the posterior.

    Args:
        device: the framework's own device handle.
        dtype: ``"float32"`` or ``"float64"``.
        in_place: whether :meth:`add_outer` and its kin may write into their first argument. Only a private
            stepper that owns its buffers sets it.
    """

    device: Any = None
    dtype: str = "float32"
    in_place: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "float64"):
            raise InvalidInput(f"dtype must be 'float32' or 'float64', got {self.dtype!r}")

    # -- identity -------------------------------------------------------------------------------------------------
    @property
    @abstractmethod
    def name(self) -> str:
        """``"numpy"``, ``"torch"`` or ``"jax"``, with the device where it is not the CPU: ``"torch:cuda"``."""

    @property
    @abstractmethod
    def xp(self) -> Any:
        """The framework's array API namespace."""

    @property
    @abstractmethod
    def has_gradients(self) -> bool:
        """Whether :meth:`value_and_grad` and :meth:`minimise` are there."""

    @abstractmethod
    def fingerprint(self) -> dict[str, str]:
        """What the bits of a result may depend on: framework version, device, processor features, threads."""

    # -- arrays ---------------------------------------------------------------------------------------------------
    @property
    def float_dtype(self) -> Any:
        """The framework's own floating-point type of the posterior."""
        return getattr(self.xp, self.dtype)

    @abstractmethod
    def asarray(self, values: Any, dtype: str | None = None) -> Array:
        """A fresh, aligned array on the device; floating-point values take the engine's dtype unless told."""

    @abstractmethod
    def to_numpy(self, array: Array) -> np.ndarray:
        """The values on the host; never a view that a later step could overwrite."""

    def as_batch(self, values: np.ndarray) -> Array:
        """Host values as an argument of a compiled step: as :meth:`asarray`, by the quickest way."""
        return self.asarray(values)

    def fetch(self, tree: Any) -> Any:
        """Every array of a tree on the host, in one transfer."""
        return map_arrays(self.to_numpy, tree)

    def constant(self, values: Any, like: Array) -> Array:
        """Host values as an array of the dtype and on the device of ``like``."""
        return self.xp.asarray(values, dtype=like.dtype, device=like.device)

    def eye(self, size: int, like: Array) -> Array:
        """The identity matrix, in the dtype and on the device of ``like``."""
        return self.xp.eye(size, dtype=like.dtype, device=like.device)

    def widen(self, tree: Any) -> Any:
        """Every array of a tree in float64, where it is: for accumulations that float32 does not carry."""
        return map_arrays(lambda a: self.xp.astype(a, self.xp.float64), tree)

    def cast(self, tree: Any) -> Any:
        """Every array of a tree in the engine's floating-point type."""
        return map_arrays(lambda a: self.xp.astype(a, self.float_dtype), tree)

    # -- scopes and transformations -------------------------------------------------------------------------------
    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Everything the core computes runs inside this scope: no gradients, float64 permitted, one thread."""
        yield

    @abstractmethod
    def jit(self, function: Callable[..., Any], donate: tuple[int, ...] = ()) -> Callable[..., Any]:
        """Compile where the framework can; the result enters :meth:`scope` at every call.

        Args:
            function: a pure function of arrays and trees of arrays.
            donate: positions of arguments whose memory the result may take over.
        """

    @abstractmethod
    def in_float64(self, function: Callable[..., Any], *arrays: Any) -> Any:
        """``function(engine, *arrays)`` for small systems; floating-point arrays go in and come out as float64.

        The engine passed to ``function`` is the one that runs it: for torch on the CPU this is NumPy, whose calls
        cost a fraction of torch's at these sizes.
        """

    @abstractmethod
    def while_loop(self, condition: Callable[[State], Array], body: Callable[[State], State], state: State) -> State:
        """Repeat ``body`` while ``condition`` holds."""

    @abstractmethod
    def guarded(self, ok: Array, update: Callable[[], State], old: State) -> State:
        """``update()`` where ``ok`` holds, else ``old``; eager engines then never begin the update."""

    @abstractmethod
    def scan(self, body: Callable[[State, Any], tuple[State, Any]], state: State, sequence: Any) -> tuple[State, Any]:
        """Fold ``body`` over the leading axis of ``sequence``; per-step results are stacked."""

    @abstractmethod
    def vmap(self, function: Callable[..., Any], in_axes: Any = 0) -> Callable[..., Any]:
        """Map ``function`` over a leading axis of its arguments."""

    @abstractmethod
    def value_and_grad(self, function: Callable[..., Array]) -> Callable[..., tuple[Array, Any]]:
        """Value and gradient with respect to the first argument, a tree of arrays."""

    @abstractmethod
    def vjp_at(self, function: Callable[[Tap], tuple[Array, Any]]) -> tuple[Array, Any, Callable[[Array], list[Array]]]:
        """Vector-Jacobian products with respect to values inside a computation.

        Args:
            function: ``function(tap) -> (outputs, extras)``, which passes each value of interest through ``tap`` and
                goes on with what that returns.

        Returns:
            The outputs; the extras; and a function that takes R cotangents (R, *outputs.shape) to the gradients with
            respect to every tapped value, in the order of the taps, each with a leading axis of R.
        """

    @abstractmethod
    def stop_gradient(self, array: Array) -> Array:
        """The array as a constant of every gradient."""

    @abstractmethod
    def minimise(
        self,
        loss: Loss,
        parameters: Any,
        data: Sequence[Array],
        batches: np.ndarray,
        learning_rates: np.ndarray,
        seed: int,
        on_epoch: Callable[[int, float], None] | None = None,
    ) -> tuple[Any, TrainingHistory]:
        """Adam over mini-batches.

        Args:
            loss: see :data:`Loss`.
            parameters: tree of arrays; not written to.
            data: arrays whose first axis is the rows.
            batches: row indices, shape (epochs, steps, batch size).
            learning_rates: one per step, shape (epochs, steps).
            seed: of the keys handed to ``loss``.
            on_epoch: called with the epoch's number and its mean loss.
        """

    # -- randomness -----------------------------------------------------------------------------------------------
    @abstractmethod
    def key(self, seed: int) -> Any:
        """A key; the same seed gives the same draws within one framework and device."""

    @abstractmethod
    def fold_in(self, key: Any, data: int) -> Any:
        """A new key from a key and an integer."""

    @abstractmethod
    def normal(self, key: Any, shape: tuple[int, ...]) -> Array:
        """Standard normal draws in the engine's dtype."""

    # -- linear algebra and special functions ---------------------------------------------------------------------
    @abstractmethod
    def cholesky(self, matrix: Array) -> tuple[Array, Array]:
        """Lower factor of symmetric matrices (..., n, n), and whether all of them were positive definite."""

    @abstractmethod
    def solve(self, matrix: Array, right: Array) -> Array:
        """Solution of ``matrix @ x = right`` for matrices; not finite where the matrix is singular."""

    @abstractmethod
    def solve_triangular(self, factor: Array, right: Array, *, lower: bool = True, transpose: bool = False) -> Array:
        """Solve ``factor @ x = right``, or with the transposed factor; right is (..., n, m)."""

    @abstractmethod
    def logsumexp(self, array: Array, axis: int) -> Array:
        """Log Σ exp along an axis."""

    @abstractmethod
    def lgamma(self, array: Array) -> Array:
        """Logarithm of the gamma function."""

    @abstractmethod
    def digamma(self, array: Array) -> Array:
        """Derivative of :meth:`lgamma`."""

    @abstractmethod
    def erf(self, array: Array) -> Array:
        """Error function."""

    # -- the writes of a filter step; the only places where memory may be taken over ------------------------------
    def add_outer(self, matrix: Array, column: Array, row: Array) -> Array:
        """``matrix + columnᵀ @ row`` for stacked columns (n, i) and rows (n, j)."""
        return matrix + column.T @ row

    def add_outer_over(self, matrix: Array, column: Array, row: Array, divisor: Array) -> Array:
        """``matrix + (columnᵀ @ row) / divisor``, elementwise division."""
        return matrix + (column.T @ row) / divisor

    def subtract_product(self, matrix: Array, left: Array, right: Array) -> Array:
        """``matrix - left @ right``."""
        return matrix - left @ right

    def owning(self) -> Engine:
        """This engine with permission to write into the state it is given."""
        return replace(self, in_place=True)
