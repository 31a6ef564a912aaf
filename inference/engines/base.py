"""What a framework must supply, and nothing else.

The mathematics of this package is written once over the array API standard (``engine.xp``).
An engine adds what the standard lacks or what frameworks do differently: random draws from a key,
compilation, control flow, decompositions that report failure, special functions, placement on a device
and the training loop. An engine is a small immutable value that is passed as an argument; there is no current engine.
"""

from __future__ import annotations

import contextlib
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np

from ..errors import InvalidInput
from .last_used import LastUsed

__all__ = [
    "AdamMoments",
    "Array",
    "Engine",
    "OnEpoch",
    "Tap",
    "TrainingStep",
    "leading_length",
    "leaves_of",
    "map_arrays",
    "map_trees",
    "stack_trees",
    "take",
]

Array: TypeAlias = Any
"""An array of the engine's framework (numpy.ndarray, torch.Tensor or jax.Array)."""

TrainingStep: TypeAlias = Callable[[Any, Sequence[Array], Any, Array], tuple[Any, Array]]
"""``step(state, batch, key, schedule) -> (state, report)``: what :meth:`Engine.train` repeats."""

OnEpoch: TypeAlias = Callable[[int, np.ndarray, Any], bool | None]
"""Called with an epoch's number, its mean report and the state after it; True ends the training."""

Tap: TypeAlias = Callable[[Array], Array]
"""Marks a value inside a computation; see :meth:`Engine.vjp_at`."""

State = TypeVar("State")


def map_arrays(function: Callable[[Any], Any], tree: Any) -> Any:
    """Apply ``function`` to every array of a tree of tuples, named tuples and dictionaries."""
    if isinstance(tree, tuple):
        mapped = [map_arrays(function, leaf) for leaf in tree]
        return type(tree)(*mapped) if hasattr(tree, "_fields") else tuple(mapped)
    if isinstance(tree, dict):
        return {name: map_arrays(function, leaf) for name, leaf in tree.items()}
    return None if tree is None else function(tree)


def leaves_of(tree: Any) -> list[Any]:
    """The arrays of a tree, in order."""
    leaves: list[Any] = []
    map_arrays(leaves.append, tree)
    return leaves


def map_trees(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """Apply ``function`` to the corresponding arrays of trees of one form; the result has the form of the first."""
    rest = zip(*(leaves_of(other) for other in others), strict=True)
    return map_arrays(lambda leaf: function(leaf, *next(rest)), tree)


def leading_length(tree: Any) -> int:
    """The length of the first axis of a tree's arrays."""
    lengths: list[int] = []
    map_arrays(lambda a: lengths.append(a.shape[0]), tree)
    return lengths[0]


def take(tree: Any, index: int | slice) -> Any:
    """Row ``index`` of every array of a tree, or some of them."""
    return map_arrays(lambda a: a[index], tree)


def stack_trees(stack: Callable[[list[Any]], Any], trees: list[Any]) -> Any:
    """One tree whose arrays are the stacked arrays of ``trees``."""
    columns: list[list[Any]] = []
    for tree in trees:
        leaves: list[Any] = []
        map_arrays(leaves.append, tree)
        columns.append(leaves)
    stacked = iter([stack(list(leaves)) for leaves in zip(*columns, strict=True)])
    return map_arrays(lambda _: next(stacked), trees[0])


class AdamMoments(NamedTuple):
    """Attributes:
    first: running mean of the gradient, in the form of the parameters.
    second: running mean of its square.
    count: of the steps taken.
    """

    first: Any
    second: Any
    count: Array


_PROGRAMS = 32
"""Compiled programs that an engine keeps for later fits."""


@dataclass(frozen=True)
class Engine(ABC):
    """A framework on a device, with the floating-point type of the posterior.

    Args:
        device: the framework's own device handle.
        dtype: ``"float32"`` or ``"float64"``.
        in_place: whether :meth:`add_outer` and its kin may write into their first argument, and :meth:`map_blocks`
            into its arrays. Only a private stepper that owns its buffers sets it.
        lends: whether :meth:`to_numpy` may give views of the engine's own memory. Only who uses them up before the
            next step sets it.
    """

    device: Any = None
    dtype: str = "float32"
    in_place: bool = False
    lends: bool = False
    programs: LastUsed = field(default_factory=lambda: LastUsed(_PROGRAMS), init=False, compare=False, repr=False)

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
        """Whether :meth:`value_and_grad` and :meth:`train` are there."""

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
        """The values on the host; unless the engine lends, never a view that a later step could overwrite."""

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
        cost a fraction of torch's at these sizes; inside :meth:`value_and_grad` it is torch, and gradients pass.
        """

    def lightly(self, function: Callable[..., State], *trees: Any) -> State:
        """``function(engine, *trees)`` for many operations of little arithmetic, by the engine that is called quickest.

        For torch on a processor this is NumPy, on the same memory.
        """
        return function(self, *trees)

    @abstractmethod
    def while_loop(self, condition: Callable[[State], Array], body: Callable[[State], State], state: State) -> State:
        """Repeat ``body`` while ``condition`` holds."""

    def when(self, chosen: Array, change: Callable[[State], State], state: State) -> State:
        """``change(state)`` where ``chosen`` holds, else the state; compiled code skips the work too, unless mapped."""
        return change(state) if bool(chosen) else state

    @abstractmethod
    def guarded(self, ok: Array, update: Callable[[], State], old: State) -> State:
        """``update()`` where ``ok`` holds, else ``old``; eager engines then never begin the update."""

    def guarded_blocks(self, ok: Array, update: Callable[[Engine], State], old: State) -> State:
        """As :meth:`guarded`, where ``update`` changes the state by the :meth:`map_blocks` of the engine it is given.

        So a compiled step that owns the old state's memory chooses block by block, and needs no second state.
        """
        return self.guarded(ok, lambda: update(self), old)

    def kept(self, new: State, old: State) -> State:
        """What :meth:`map_blocks` does not write of an update that :meth:`guarded_blocks` may refuse."""
        return new

    def change_blocks(self, chosen: Array, change: Callable[[Engine, State], State], state: State) -> State:
        """As :meth:`when`, for a change by the :meth:`map_blocks` of the engine it is given.

        A compiled step that owns the state's memory then passes over it where nothing is to change.
        """
        return change(self, state) if bool(chosen) else state

    @abstractmethod
    def scan(self, body: Callable[[State, Any], tuple[State, Any]], state: State, sequence: Any) -> tuple[State, Any]:
        """Fold ``body`` over the leading axis of ``sequence``; per-step results are stacked."""

    def sum_blocks(self, body: Callable[..., Any], arrays: Sequence[Array], size: int, *, narrow: bool = True) -> Any:
        """Σ of ``body``, a tree of arrays, over blocks of the arrays' rows: where these are too large for a cache.

        Args:
            body: of a block of each array.
            arrays: whose last axis but one is the rows.
            size: rows of a block; the last one may have fewer.
            narrow: whether what is multiplied has few columns; a compiling engine chooses its own sizes by that.
        """
        parts = (
            body(*(array[..., start : start + size, :] for array in arrays))
            for start in range(0, arrays[0].shape[-2], size)
        )
        return functools.reduce(lambda total, part: map_trees(lambda a, b: a + b, total, part), parts)

    def map_blocks(
        self, body: Callable[..., tuple[Array, ...]], arrays: Sequence[Array], others: Sequence[Array], size: int
    ) -> tuple[Array, ...]:
        """New values of the arrays, of their shapes, by blocks of rows where an eager framework profits.

        An owning engine may write each block into the arrays as soon as it is computed.

        Args:
            body: of a block of each of the arrays and others, to new blocks of the arrays.
            arrays: whose last axis but one is the rows.
            others: likewise, only read.
            size: rows of a block; the last one may have fewer.
        """
        everything = (*arrays, *others)
        starts = range(0, arrays[0].shape[-2], size)
        blocks = [body(*(array[..., start : start + size, :] for array in everything)) for start in starts]
        return tuple(self.xp.concat(parts, axis=-2) for parts in zip(*blocks, strict=True))

    def slice_rows(self, array: Array, first: Any, size: int) -> Array:
        """``size`` rows from ``first`` on, a number that compiled code may be given."""
        return array[int(first) : int(first) + size]

    @abstractmethod
    def vmap(self, function: Callable[..., Any], in_axes: Any = 0) -> Callable[..., Any]:
        """Map ``function`` over a leading axis of its arguments."""

    def batched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Map ``function`` over a leading axis of its arguments, trees that may be None: a loop where the framework is
        eager, so that ``function`` may leave it for the host, and on a processor; vmap where it compiles on a device.
        """

        def mapped(*args: Any) -> Any:
            size = leading_length(args[0])
            results = [function(*(None if arg is None else take(arg, i) for arg in args)) for i in range(size)]
            return stack_trees(self.xp.stack, results)

        return mapped

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
    def value_and_grad(self, function: Callable[..., Any], *, has_aux: bool = False) -> Callable[..., tuple[Any, Any]]:
        """Value and gradient with respect to the first argument, a tree of arrays; 0 for those that it doesn't use.

        Args:
            function: returns a number, or with ``has_aux`` a number and a tree that comes back beside the value.
            has_aux: see there.
        """

    def compiled(self, key: Hashable, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function compiled, or what an earlier call of this engine with an equal key compiled.

        Args:
            key: names all that the function closes over.
            function: as for :meth:`jit`.
        """
        compiled: Callable[..., Any] = self.programs.get(key, lambda: self.jit(function))
        return compiled

    @abstractmethod
    def vjp(self, function: Callable[[Any], Array], point: Any) -> tuple[Array, Callable[[Array], Any]]:
        """The function's value at a tree of arrays, and what takes a cotangent of its shape to the gradient there."""

    def in_chunks(self, function: Callable[..., Any], numbers: int) -> Callable[..., Any]:
        """The function of C points, each of which it treats alone, in as few at a time as is quickest.

        Args:
            function: of a tree of arrays (C, ...), and of arguments that all points share, which returns one of C too;
                and of a single point, without that axis.
            numbers: in the arrays between, for one point: a processor is quick while they fit its cache.
        """
        return function

    def value_and_grad_each(self, function: Callable[..., Array]) -> Callable[..., tuple[Array, Any]]:
        """Value and gradient of one function at several points: (C,), and a tree with a leading axis of C.

        Args:
            function: of a point, a tree of arrays, and of arguments that all points share; returns a number.
        """

        def total(points: Any, *shared: Any) -> tuple[Array, Array]:
            axes = (0, *(None for _ in shared))
            values = self.vmap(function, in_axes=axes)(points, *shared)
            return self.xp.sum(values), values

        both, one = self.value_and_grad(total, has_aux=True), self.value_and_grad(function)

        def each(points: Any, *shared: Any) -> tuple[Array, Any]:
            if leading_length(points) == 1:  # no transformation to pay for
                value, gradient = one(take(points, 0), *shared)
                return value[None], map_arrays(lambda a: a[None], gradient)
            (_, values), gradients = both(points, *shared)
            return values, gradients

        return each

    @abstractmethod
    def train(
        self,
        step: TrainingStep,
        state: Any,
        data: Sequence[Array],
        epochs: Iterable[tuple[np.ndarray, np.ndarray]],
        seed: int,
        on_epoch: OnEpoch | None = None,
        first_epoch: int = 0,
    ) -> tuple[Any, np.ndarray]:
        """Repeat a step over mini-batches; in JAX an epoch is one compiled loop.

        Args:
            step: see :data:`TrainingStep`; it may write into the memory of the state it is given.
            state: tree of arrays; not written to.
            data: arrays whose first axis is the rows.
            epochs: for each, row indices of shape (steps, ...), where a step is given ``array[rows]`` of each of the
                data, and numbers for each step, shape (steps, ...), in the engine's dtype.
            seed: of the keys handed to ``step``, which are drawn from it and the epoch's number.
            on_epoch: see :data:`OnEpoch`.
            first_epoch: number of the first epoch, where an interrupted training goes on.

        Returns:
            The last state, and the mean report of each epoch, shape (epochs that ran, ...).
        """

    def adam(self, parameters: Any, gradient: Any, moments: AdamMoments, rate: Array) -> tuple[Any, AdamMoments]:
        """A step of Adam (Kingma and Ba 2015, algorithm 1), with its usual constants.

        Args:
            parameters: tree of arrays.
            gradient: of what is minimised, in the shapes of the parameters.
            moments: from :meth:`adam_moments` or the last step.
            rate: learning rate.
        """
        xp = self.xp
        count = moments.count + 1
        first_share, second_share = 1 - 0.9**count, 1 - 0.999**count
        first = map_trees(lambda m, g: 0.9 * m + 0.1 * g, moments.first, gradient)
        second = map_trees(lambda v, g: 0.999 * v + 0.001 * g * g, moments.second, gradient)
        moved = map_trees(
            lambda p, m, v: p - xp.astype(rate / first_share, p.dtype) * m / (xp.sqrt(v / second_share) + 1e-8),
            parameters,
            first,
            second,
        )
        return moved, AdamMoments(first, second, count)

    def adam_moments(self, parameters: Any) -> AdamMoments:
        """Moments before the first step of :meth:`adam`."""
        with self.scope():
            first, second = (map_arrays(self.xp.zeros_like, parameters) for _ in range(2))
            return AdamMoments(first, second, self.asarray(np.float64(0.0)))

    # -- randomness -----------------------------------------------------------------------------------------------
    @abstractmethod
    def key(self, seed: int) -> Any:
        """A key; the same seed gives the same draws within one framework and device."""

    def stream(self, seed: int) -> Any:
        """A key for a long run of draws, which :meth:`fold_in` may leave as it is where draws come from a generator."""
        return self.key(seed)

    @abstractmethod
    def uniform(self, key: Any, shape: tuple[int, ...]) -> Array:
        """Uniform draws from [0, 1), in the engine's dtype."""

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

    def softmax(self, array: Array) -> Array:
        """Exponentials along the last axis, divided by their sum."""
        exponentials = self.xp.exp(array - array.max(-1, keepdims=True))
        return exponentials / exponentials.sum(-1, keepdims=True)

    def exp2(self, array: Array) -> Array:
        """2 to the power of the array: in torch on a processor a third of the time of exp."""
        return self.xp.exp2(array)

    @abstractmethod
    def lgamma(self, array: Array) -> Array:
        """Logarithm of the gamma function."""

    @abstractmethod
    def digamma(self, array: Array) -> Array:
        """Derivative of :meth:`lgamma`."""

    @abstractmethod
    def erf(self, array: Array) -> Array:
        """Error function."""

    def products(self, left: Array, right: Array) -> Array:
        """Matrix products of batches, ``left @ right``."""
        return left @ right

    def tanh(self, array: Array) -> Array:
        """Hyperbolic tangent, to a rounding error of 1."""
        return self.xp.tanh(array)

    @abstractmethod
    def relu(self, array: Array) -> Array:
        """``max(array, 0)``, whose derivative at 0 is 0."""

    def add_product(self, array: Array, left: Array, right: Array, factor: float = 1.0) -> Array:
        """``array + factor left ∘ right``, elementwise; where the framework can, without arrays in between."""
        return array + factor * left * right

    # -- the writes of a filter step; the only places, with map_blocks, where memory may be taken over ------------
    def add_outer(self, matrix: Array, column: Array, row: Array) -> Array:
        """``matrix + columnᵀ @ row`` for stacked columns (n, i) and rows (n, j)."""
        return matrix + (column.T * row if column.shape[0] == 1 else column.T @ row)

    def add_outer_over(self, matrix: Array, column: Array, row: Array, divisor: Array) -> Array:
        """``matrix + (columnᵀ @ row) / divisor``, elementwise division."""
        return matrix + (column.T @ row) / divisor

    def add_scaled(self, matrix: Array, scale: Array, row: Array) -> Array:
        """``matrix + scale ∘ row``, the row (1, j) broadcast."""
        return matrix + scale * row

    def spread_over(self, row: Array, precision: Array) -> tuple[Array, Array | None]:
        """``row² @ (1 / precision)`` for a row (1, i), and ``rowᵀ / precision`` where it is formed on the way."""
        cross = row.mT / precision
        return row @ cross, cross

    def learn_independent(
        self,
        mean: Array,
        precision: Array,
        column: Array,
        step: Array,
        gain: Array,
        cross: Array | None = None,
    ) -> tuple[Array, Array]:
        """``mean + (columnᵀ @ step) / precision``, and ``precision + (column²)ᵀ @ gain``.

        Args:
            mean: of independent weights, (i, j).
            precision: of each weight.
            column: of one input, (1, i).
            step: a row that moves the mean, (1, j).
            gain: a row that raises the precision, (1, j).
            cross: ``columnᵀ / precision``, where :meth:`spread_over` has formed it.
        """
        if cross is None:
            moved = self.add_outer_over(mean, column, step, precision)
        else:
            moved = self.add_scaled(mean, cross, step)
        return moved, self.add_outer(precision, column * column, gain)

    def gram(self, rows: Array) -> Array:
        """``rowsᵀ @ rows``; where the framework's library can, at the price of one triangle."""
        return rows.mT @ rows

    def subtract_product(self, matrix: Array, left: Array, right: Array) -> Array:
        """``matrix - left @ right``."""
        return matrix - left @ right

    def owning(self) -> Engine:
        """This engine with permission to write into the state it is given."""
        return replace(self, in_place=True)
