"""JAX."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import DeviceUnavailable, MissingDependency
from .base import Engine, OnEpoch, Tap, TrainingStep, leading_length, map_arrays, take
from .numpy_engine import processor

try:
    import jax
    import jax.numpy as jnp
except ImportError as error:
    raise MissingDependency(error.name or "jax", "jax") from error

__all__ = ["JaxEngine", "jax_engine"]

_LONGER = 4
"""Blocks of all but narrow products are so many times as long as for an eager framework: a turn of XLA's loops costs
something."""
_FANNED_OUT = 250_000
"""Of stacked decompositions n³ times their number, well below where jaxlib begins to spread a stack over XLA's own
threads and waits for them. Where all of these wait, none is left to do the work, and the program never returns: two
stacks at once are enough on two processors (jaxlib's ``ParallelBatchMap``, up to 0.11.1)."""
_UNROLLED = 8  # points of a loop's turn: twice as quick as one; more are no quicker, and take longer to compile


def jax_engine(device: str, dtype: str) -> JaxEngine:
    """The engine on a JAX platform: ``"cpu"``, ``"gpu"``, ``"gpu:1"``; raises :class:`DeviceUnavailable`."""
    platform, _, index = device.partition(":")
    try:
        handle = jax.devices(platform)[int(index or 0)]
    except (RuntimeError, IndexError) as error:
        seen = ", ".join(sorted({d.platform for d in jax.devices()}))
        raise DeviceUnavailable(
            f"engine 'jax:{device}': jax {jax.__version__} sees only {seen} here ({error}); use engine='jax'"
        ) from error
    return JaxEngine(device=handle, dtype=dtype)


@dataclass(frozen=True)
class JaxEngine(Engine):
    """JAX on one device, compiled.

    Args:
        ok: what :meth:`map_blocks` writes its blocks under; None outside :meth:`guarded_blocks`.
        seldom: whether that is for a change which most steps go without.
    """

    ok: Any = field(default=None, compare=False, repr=False)
    seldom: bool = field(default=False, compare=False, repr=False)

    @property
    def name(self) -> str:
        return "jax" if self.device.platform == "cpu" else f"jax:{self.device.platform}"

    @property
    def xp(self) -> Any:
        return jnp

    @property
    def has_gradients(self) -> bool:
        return True

    def fingerprint(self) -> dict[str, str]:
        on_host = self.device.platform == "cpu"
        hardware = processor() if on_host else self.device.device_kind
        return {
            "engine": self.name,
            "jax": jax.__version__,
            "processor": hardware,
            "threads": str(os.cpu_count()) if on_host else "device",
        }

    def asarray(self, values: Any, dtype: str | None = None) -> jax.Array:
        if isinstance(values, jax.core.Tracer):
            return values if dtype is None else values.astype(dtype)
        host = np.asarray(values)
        if dtype is not None:
            host = host.astype(dtype)
        elif host.dtype.kind == "f":
            host = host.astype(self.dtype)
        with self.scope():
            return jax.device_put(host.copy(), self.device)

    def as_batch(self, values: np.ndarray) -> np.ndarray:
        return np.array(values, dtype=self.dtype if values.dtype.kind == "f" else None)  # dispatch moves it

    def fetch(self, tree: Any) -> Any:
        return super().fetch(tree) if self.device.platform == "cpu" else jax.device_get(tree)  # a tenth of its time

    def constant(self, values: Any, like: Any) -> jax.Array:
        return jnp.asarray(values, dtype=like.dtype)  # the scope's device; a traced array has none

    def eye(self, size: int, like: Any) -> jax.Array:
        return jnp.eye(size, dtype=like.dtype)

    def to_numpy(self, array: Any) -> np.ndarray:
        return np.array(array)

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        # A device's default is to round what is multiplied, to 10 bits; a posterior does not bear that.
        precision = None if self.device.platform == "cpu" else "highest"
        with jax.enable_x64(True), jax.default_device(self.device), jax.default_matmul_precision(precision):
            yield

    def jit(self, function: Callable[..., Any], donate: tuple[int, ...] = ()) -> Callable[..., Any]:
        compiled = jax.jit(function, donate_argnums=donate)

        def scoped(*args: Any) -> Any:
            with self.scope():
                return compiled(*args)

        scoped.cache_size = compiled._cache_size  # type: ignore[attr-defined]
        return scoped

    def in_float64(self, function: Callable[..., Any], *arrays: Any) -> Any:
        def widen(array: Any) -> Any:
            array = jnp.asarray(array)
            return array.astype(jnp.float64) if array.dtype == jnp.float32 else array

        return function(replace(self, dtype="float64"), *(map_arrays(widen, array) for array in arrays))

    def while_loop(self, condition: Callable[[Any], Any], body: Callable[[Any], Any], state: Any) -> Any:
        return jax.lax.while_loop(condition, body, state)

    def when(self, chosen: Any, change: Callable[[Any], Any], state: Any) -> Any:
        if self.device.platform == "cpu":
            return jax.lax.cond(chosen, change, lambda unchanged: unchanged, state)
        # Of what vmap maps, all would go through a branch; through a loop only while one of them needs it.
        once = jax.lax.while_loop(lambda now: now[0], lambda now: (~now[0], change(now[1])), (chosen, state))
        return once[1]

    def guarded(self, ok: Any, update: Callable[[], Any], old: Any) -> Any:
        return jax.tree.map(lambda new, before: jnp.where(ok, new, before), update(), old)

    def guarded_blocks(self, ok: Any, update: Callable[[Engine], Any], old: Any) -> Any:
        return update(replace(self, ok=ok)) if self.in_place else super().guarded_blocks(ok, update, old)

    def kept(self, new: Any, old: Any) -> Any:
        return new if self.ok is None else self.guarded(self.ok, lambda: new, old)

    def change_blocks(self, chosen: Any, change: Callable[[Engine, Any], Any], state: Any) -> Any:
        if not self.in_place:
            return self.when(chosen, lambda now: change(self, now), state)
        return change(replace(self, ok=chosen if self.ok is None else self.ok & chosen, seldom=True), state)

    def scan(self, body: Callable[[Any, Any], tuple[Any, Any]], state: Any, sequence: Any) -> tuple[Any, Any]:
        return jax.lax.scan(body, state, sequence)

    def sum_blocks(self, body: Callable[..., Any], arrays: Sequence[Any], size: int, *, narrow: bool = True) -> Any:
        if not narrow and self.device.platform != "cpu":
            return body(*arrays)
        if not narrow:
            size = _LONGER * size
        elif self.device.platform == "cpu":  # XLA's products of narrow float64 matrices are quick while they are short
            size = min(size, max(1, 256 // arrays[0].shape[-1]))
        whole, rest = divmod(arrays[0].shape[-2], size)
        if whole < 3:
            return super().sum_blocks(body, arrays, size)

        def add(index: Any, total: Any) -> Any:
            blocks = (jax.lax.dynamic_slice_in_dim(array, index * size, size, axis=-2) for array in arrays)
            return jax.tree.map(jnp.add, total, body(*blocks))

        first = body(*(array[..., :size, :] for array in arrays))
        total = jax.lax.fori_loop(1, whole, add, first)
        ends = [array[..., whole * size :, :] for array in arrays]
        return jax.tree.map(jnp.add, total, body(*ends)) if rest else total

    def map_blocks(
        self, body: Callable[..., tuple[Any, ...]], arrays: Sequence[Any], others: Sequence[Any], size: int
    ) -> tuple[Any, ...]:
        if self.ok is None:
            return body(*arrays, *others)  # the compiler's own fusion is what blocks are for elsewhere
        # What is done seldom is in blocks even where they are few, for blocks alone are passed over.
        size = min(size, max(1, arrays[0].shape[-2] // 4)) if self.seldom else _LONGER * size
        whole, rest = divmod(arrays[0].shape[-2], size)
        if self.device.platform != "cpu" and self.seldom:
            return self.when(self.ok, lambda now: tuple(body(*now, *others)), tuple(arrays))
        if self.device.platform != "cpu" or whole < 3:
            return self.guarded(self.ok, lambda: tuple(body(*arrays, *others)), tuple(arrays))

        def write(first: Any, length: int, now: tuple[Any, ...]) -> tuple[Any, ...]:
            blocks = [jax.lax.dynamic_slice_in_dim(array, first, length, axis=-2) for array in (*now, *others)]
            # Being an operation of its own, the choice has read each block when that is written: what is fused with the
            # writing would have XLA copy the arrays, so as to read them still.
            new = jax.lax.cond(self.ok, lambda own: tuple(body(*own)), lambda own: tuple(own[: len(now)]), blocks)
            pairs = zip(now, new, strict=True)
            return tuple(jax.lax.dynamic_update_slice_in_dim(array, part, first, axis=-2) for array, part in pairs)

        turns = jnp.where(self.ok, whole, 0)  # where nothing is to change, nothing is read
        written = jax.lax.fori_loop(0, turns, lambda index, now: write(index * size, size, now), tuple(arrays))
        return write(whole * size, rest, written) if rest else written

    def slice_rows(self, array: Any, first: Any, size: int) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(array, first, size)

    def vmap(self, function: Callable[..., Any], in_axes: Any = 0) -> Callable[..., Any]:
        return jax.vmap(function, in_axes=in_axes)

    def batched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """On a processor one after the other, so that no decomposition is stacked; see ``_FANNED_OUT``."""
        if self.device.platform != "cpu":
            return jax.vmap(function)
        return lambda *args: jax.lax.map(lambda own: function(*own), args)

    def value_and_grad(self, function: Callable[..., Any], *, has_aux: bool = False) -> Callable[..., tuple[Any, Any]]:
        return jax.value_and_grad(function, has_aux=has_aux)

    def vjp(self, function: Callable[[Any], Any], point: Any) -> tuple[Any, Callable[[Any], Any]]:
        value, pull = jax.vjp(function, point)
        return value, lambda cotangent: pull(cotangent)[0]

    def in_chunks(self, function: Callable[..., Any], numbers: int) -> Callable[..., Any]:
        def chunked(points: Any, *shared: Any) -> Any:
            def each(some: Any) -> Any:
                results = [function(take(some, index), *shared) for index in range(leading_length(some))]
                return jax.tree.map(lambda *arrays: jnp.stack(arrays), *results)

            count = leading_length(points)
            if self.device.platform != "cpu":
                return function(points, *shared)
            if count <= _UNROLLED:
                return each(points)
            # One after the other, in the processor's cache; some in a turn, whose small operations then overlap.
            groups, rest = divmod(count, _UNROLLED)
            grouped = jax.tree.map(lambda a: a[: count - rest].reshape(groups, _UNROLLED, *a.shape[1:]), points)
            results = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), jax.lax.map(each, grouped))
            if not rest:
                return results
            ends = each(jax.tree.map(lambda a: a[count - rest :], points))
            return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), results, ends)

        return chunked

    def vjp_at(
        self, function: Callable[[Tap], tuple[Any, Any]]
    ) -> tuple[Any, Any, Callable[[jax.Array], list[jax.Array]]]:
        values: list[Any] = []

        def record(value: Any) -> Any:
            values.append(value)
            return value

        jax.eval_shape(lambda: function(record))
        zeros = [jnp.zeros(value.shape, value.dtype) for value in values]

        def perturbed(perturbations: list[Any]) -> tuple[Any, Any]:
            remaining = iter(perturbations)
            return function(lambda value: value + next(remaining))

        outputs, pull, extras = jax.vjp(perturbed, zeros, has_aux=True)
        return outputs, extras, lambda cotangents: jax.vmap(pull)(cotangents)[0]

    def stop_gradient(self, array: Any) -> jax.Array:
        return jax.lax.stop_gradient(array)

    def train(
        self,
        step: TrainingStep,
        state: Any,
        data: Sequence[Any],
        epochs: Iterable[tuple[np.ndarray, np.ndarray]],
        seed: int,
        on_epoch: OnEpoch | None = None,
        first_epoch: int = 0,
    ) -> tuple[Any, np.ndarray]:
        def epoch_of(carry: Any, data: Any, rows: Any, schedule: Any) -> Any:
            def body(carry: Any, inputs: Any) -> Any:
                state, key = carry
                key, draw = jax.random.split(key)
                state, report = step(state, [array[inputs[0]] for array in data], draw, inputs[1])
                return (state, key), report

            return jax.lax.scan(body, carry, (rows, schedule))

        compiled = jax.jit(epoch_of)
        history = []
        with self.scope():
            for epoch, (batches, numbers) in enumerate(epochs, first_epoch):
                rows, schedule = self.asarray(batches, "int32"), self.asarray(numbers, self.dtype)
                carry = (state, self.fold_in(self.key(seed), epoch))
                (state, _), reports = compiled(carry, tuple(data), rows, schedule)
                history.append(self.to_numpy(reports).astype(np.float64).mean(0))
                if on_epoch is not None and on_epoch(epoch, history[-1], state):
                    break
            return state, np.stack(history)

    def key(self, seed: int) -> jax.Array:
        with self.scope():
            return jax.random.key(seed & (2**63 - 1))

    def fold_in(self, key: Any, data: int) -> jax.Array:
        return jax.random.fold_in(key, data & (2**32 - 1))

    def uniform(self, key: Any, shape: tuple[int, ...]) -> jax.Array:
        return jax.random.uniform(key, shape, dtype=self.float_dtype)

    def normal(self, key: Any, shape: tuple[int, ...]) -> jax.Array:
        return jax.random.normal(key, shape, dtype=self.float_dtype)

    def cholesky(self, matrix: Any) -> tuple[Any, Any]:
        factor = self._in_turns(jnp.linalg.cholesky, matrix)
        return factor, jnp.all(jnp.isfinite(factor))

    def solve(self, matrix: Any, right: Any) -> Any:
        return self._in_turns(jnp.linalg.solve, matrix, right)

    def _in_turns(self, function: Callable[..., Any], *stacks: Any) -> Any:
        """``function`` of stacks of matrices, few enough at a time; see ``_FANNED_OUT``."""
        batch = np.broadcast_shapes(*(stack.shape[:-2] for stack in stacks))
        size, count = stacks[0].shape[-1], math.prod(batch)
        turn = max(1, _FANNED_OUT // max(1, size) ** 3)
        if self.device.platform != "cpu" or count <= turn:
            return function(*stacks)
        rows = tuple(jnp.broadcast_to(s, (*batch, *s.shape[-2:])).reshape(count, *s.shape[-2:]) for s in stacks)
        done = jax.lax.map(lambda own: function(*own), rows, batch_size=turn if turn > 1 else None)
        return done.reshape(*batch, *done.shape[1:])

    def solve_triangular(self, factor: Any, right: Any, *, lower: bool = True, transpose: bool = False) -> Any:
        solve = jax.scipy.linalg.solve_triangular
        return solve(factor, right, lower=lower, trans=1 if transpose else 0)

    def gram(self, rows: Any) -> Any:
        half = rows.shape[1] // 2
        if self.device.platform != "cpu" or half < 64:
            return rows.mT @ rows
        left, right = rows[:, :half], rows[:, half:]  # XLA has no symmetric product here: the blocks below are copied
        across = left.mT @ right
        return jnp.block([[self.gram(left), across], [across.mT, self.gram(right)]])

    def logsumexp(self, array: Any, axis: int) -> Any:
        return jax.scipy.special.logsumexp(array, axis=axis)

    def lgamma(self, array: Any) -> Any:
        return jax.scipy.special.gammaln(array)

    def digamma(self, array: Any) -> Any:
        return jax.scipy.special.digamma(array)

    def erf(self, array: Any) -> Any:
        return jax.scipy.special.erf(array)

    def relu(self, array: Any) -> Any:
        return jax.nn.relu(array)
