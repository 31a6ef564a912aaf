"""PyTorch."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from ..errors import DeviceUnavailable, MissingDependency
from .base import (
    AdamMoments,
    Engine,
    OnEpoch,
    Tap,
    TrainingStep,
    leading_length,
    leaves_of,
    map_arrays,
    stack_trees,
    take,
)
from .fused_loops import WORTH_A_LOOP, fused_loops
from .numpy_engine import NumpyEngine, one_blas_thread, processor, python_scan

try:
    import torch
except ImportError as error:
    raise MissingDependency("torch", "torch") from error

from array_api_compat import torch as torch_namespace
from torch.optim.adam import adam as functional_adam

__all__ = ["TorchEngine", "torch_engine"]

_HOST = NumpyEngine()
_SMALL = 2**14  # numbers, which a processor is done with before a device has begun
_LARGE_BLOCK = 32_000_000
"""Bytes. The C library keeps freed blocks for what comes next if none was larger than the largest freed so far, up to
this size; others it returns, and their pages are mapped and cleared anew: a fifth of the time of a Laplace fit."""
_CACHED = 300_000
"""Numbers of an array that a few operations in a row find in a processor's cache."""
_FLOATS = (torch.float32, torch.float64)


def torch_engine(device: str, dtype: str) -> TorchEngine:
    """The engine on a torch device string; raises :class:`DeviceUnavailable` if it is not there."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise DeviceUnavailable(
            f"engine 'torch:{device}': torch {torch.__version__} sees no such device here ({error}); use engine='torch'"
        ) from error
    if torch.device(device).type == "cpu":
        torch.empty(_LARGE_BLOCK, dtype=torch.uint8)
    return TorchEngine(device=torch.device(device), dtype=dtype)


@dataclass(frozen=True)
class TorchEngine(Engine):
    """PyTorch on one device, eager."""

    device: Any = torch.device("cpu")

    @property
    def name(self) -> str:
        return "torch" if self.device.type == "cpu" else f"torch:{self.device}"

    @property
    def xp(self) -> Any:
        return torch_namespace

    @property
    def has_gradients(self) -> bool:
        return True

    def fingerprint(self) -> dict[str, str]:
        on_gpu = self.device.type == "cuda"
        hardware = torch.cuda.get_device_name(self.device) if on_gpu else processor()
        libraries = _HOST.libraries(large=not on_gpu)
        return {"engine": self.name, "torch": torch.__version__, "processor": hardware, **libraries}

    def asarray(self, values: Any, dtype: str | None = None) -> torch.Tensor:
        if isinstance(values, torch.Tensor):
            tensor = values.detach().to(self.device, copy=True)
        else:  # torch.tensor copies into memory of torch's own alignment, on which the bits of a product may depend
            host = np.asarray(values)
            if dtype is None and host.dtype.kind == "f":  # sooner converted here than there
                host = host.astype(self.dtype, copy=False)
            tensor = torch.tensor(host, device=self.device)
        if dtype is not None:
            return tensor.to(getattr(torch, dtype))
        return tensor.to(self.float_dtype) if tensor.dtype.is_floating_point else tensor

    def constant(self, values: Any, like: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(values, dtype=like.dtype, device=like.device)

    def eye(self, size: int, like: torch.Tensor) -> torch.Tensor:
        return torch.eye(size, dtype=like.dtype, device=like.device)

    def cast(self, tree: Any) -> Any:
        return map_arrays(lambda a: a.to(self.float_dtype), tree)

    def to_numpy(self, array: Any) -> np.ndarray:
        if not isinstance(array, torch.Tensor):  # a small system's results may already be on the host
            return np.array(array)
        host = array.detach().cpu().numpy()
        return host if self.lends else np.array(host)

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        threads = torch.get_num_threads()
        if self.device.type == "cpu" and threads != 1:
            torch.set_num_threads(1)
        try:
            with torch.no_grad(), one_blas_thread():
                yield
        finally:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)

    def jit(self, function: Callable[..., Any], donate: tuple[int, ...] = ()) -> Callable[..., Any]:
        def scoped(*args: Any) -> Any:
            with self.scope():
                return function(*args)

        return scoped

    def in_float64(self, function: Callable[..., Any], *arrays: Any) -> Any:
        small = (
            self.device.type == "cpu"
            or sum(math.prod(getattr(leaf, "shape", ())) for leaf in leaves_of(arrays)) <= _SMALL
        )
        if small and not _on_tape(arrays):
            with np.errstate(all="ignore"):
                result = function(_HOST, *(map_arrays(_widen_on_host, array) for array in arrays))
            return map_arrays(self._from_host, result)
        return function(replace(self, dtype="float64"), *(map_arrays(_widen, array) for array in arrays))

    def lightly(self, function: Callable[..., Any], *trees: Any) -> Any:
        if self.device.type != "cpu" or _on_tape(trees):
            return function(self, *trees)
        lent: dict[int, tuple[np.ndarray, torch.Tensor]] = {}

        def lend(tensor: torch.Tensor) -> np.ndarray:
            host = tensor.numpy()
            lent[id(host)] = host, tensor
            return host

        def give_back(array: Any) -> torch.Tensor:
            if id(array) in lent:
                return lent[id(array)][1]
            return torch.tensor(array) if array.ndim else torch.from_numpy(np.array(array))

        on_host = map_arrays(lend, trees)
        if any(host.size >= WORTH_A_LOOP for host, _ in lent.values()) and fused_loops() is None:
            return function(self, *trees)
        with np.errstate(all="ignore"):
            return map_arrays(give_back, function(_host(self.dtype, self.in_place), *on_host))

    def _from_host(self, array: Any) -> torch.Tensor:
        tensor = torch.from_numpy(np.array(array, order="C"))
        return tensor if self.device.type == "cpu" else tensor.to(self.device)

    def while_loop(self, condition: Callable[[Any], Any], body: Callable[[Any], Any], state: Any) -> Any:
        while condition(state):
            state = body(state)
        return state

    def guarded(self, ok: Any, update: Callable[[], Any], old: Any) -> Any:
        return update() if bool(ok) else old

    def scan(self, body: Callable[[Any, Any], tuple[Any, Any]], state: Any, sequence: Any) -> tuple[Any, Any]:
        return python_scan(torch.stack, body, state, sequence)

    def map_blocks(
        self, body: Callable[..., tuple[Any, ...]], arrays: Sequence[Any], others: Sequence[Any], size: int
    ) -> tuple[Any, ...]:
        if not self.in_place:
            return super().map_blocks(body, arrays, others, size)
        for start in range(0, arrays[0].shape[-2], size):
            blocks = [array[..., start : start + size, :] for array in (*arrays, *others)]
            for block, new in zip(blocks, body(*blocks), strict=False):
                block.copy_(new)
        return tuple(arrays)

    def vmap(self, function: Callable[..., Any], in_axes: Any = 0) -> Callable[..., Any]:
        return torch.func.vmap(function, in_dims=in_axes)

    def value_and_grad(self, function: Callable[..., Any], *, has_aux: bool = False) -> Callable[..., tuple[Any, Any]]:
        def evaluated(parameters: Any, *rest: Any) -> tuple[Any, Any]:
            with torch.enable_grad():  # the tape costs a third of torch.func's transformation at these sizes
                tracked = map_arrays(lambda a: a.detach().requires_grad_(), parameters)
                result = function(tracked, *rest)
                value = result[0] if has_aux else result
                gradients = iter(torch.autograd.grad(value, leaves_of(tracked), materialize_grads=True))
            return map_arrays(torch.Tensor.detach, result), map_arrays(lambda _: next(gradients), parameters)

        return evaluated

    def vjp(self, function: Callable[[Any], Any], point: Any) -> tuple[Any, Callable[[Any], Any]]:
        with torch.enable_grad():
            tracked = map_arrays(lambda a: a.detach().requires_grad_(), point)
            value = function(tracked)

        def pull(cotangent: torch.Tensor) -> Any:
            gradients = iter(torch.autograd.grad(value, leaves_of(tracked), cotangent, materialize_grads=True))
            return map_arrays(lambda _: next(gradients), point)

        return value.detach(), pull

    def in_chunks(self, function: Callable[..., Any], numbers: int) -> Callable[..., Any]:
        size = max(1, _CACHED // numbers)

        def chunked(points: Any, *shared: Any) -> Any:
            count = leading_length(points)
            if self.device.type != "cpu" or count <= size:
                return function(points, *shared)
            parts = [slice(first, first + size) for first in range(0, count, size)]
            return stack_trees(torch.cat, [function(take(points, part), *shared) for part in parts])

        return chunked

    def vjp_at(
        self, function: Callable[[Tap], tuple[Any, Any]]
    ) -> tuple[Any, Any, Callable[[torch.Tensor], list[torch.Tensor]]]:
        values: list[torch.Tensor] = []

        def tap(value: torch.Tensor) -> torch.Tensor:
            values.append(value if value.requires_grad else value.detach().requires_grad_())
            return values[-1].clone()  # what follows may write into it

        with torch.enable_grad():
            outputs, extras = function(tap)

        def pull(cotangents: torch.Tensor) -> list[torch.Tensor]:
            rows = [
                torch.autograd.grad(outputs, values, cotangent, retain_graph=True, materialize_grads=True)
                for cotangent in cotangents
            ]
            return [torch.stack(gradients) for gradients in zip(*rows, strict=True)]

        return outputs.detach(), map_arrays(lambda a: a.detach(), extras), pull

    def stop_gradient(self, array: torch.Tensor) -> torch.Tensor:
        return array.detach()

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
        with self.scope():
            state = map_arrays(lambda a: a.clone(memory_format=torch.contiguous_format), state)
            key = torch.Generator(self.device)
            history = []
            for epoch, (batches, numbers) in enumerate(epochs, first_epoch):
                key.manual_seed(self.fold_in(self.key(seed), epoch))
                rows, schedule = torch.tensor(batches, device=self.device), self.asarray(numbers, self.dtype)
                total: Any = 0.0
                for index in range(len(batches)):
                    batch = [_rows_of(array, rows[index]) for array in data]
                    state, report = step(state, batch, key, schedule[index])
                    total = total + report.to(torch.float64)
                history.append(self.to_numpy(total / len(batches)))
                if on_epoch is not None and on_epoch(epoch, history[-1], state):
                    break
            return state, np.stack(history)

    def adam(self, parameters: Any, gradient: Any, moments: AdamMoments, rate: Any) -> tuple[Any, AdamMoments]:
        """In place and fused: the memory of parameters and moments, which must be contiguous, is taken over."""
        leaves = leaves_of(parameters)
        functional_adam(
            leaves, [g.contiguous() for g in leaves_of(gradient)], leaves_of(moments.first),
            leaves_of(moments.second), [],
            list(moments.count.to(torch.float32).repeat(len(leaves)).unbind()),  # each is counted up
            fused=self.device.type in ("cpu", "cuda"), amsgrad=False, beta1=0.9, beta2=0.999, lr=float(rate),
            weight_decay=0.0, eps=1e-8, maximize=False,
        )  # fmt: skip
        return parameters, moments._replace(count=moments.count + 1)

    def key(self, seed: int) -> int:
        return seed & _MASK

    def fold_in(self, key: Any, data: int) -> Any:
        if isinstance(key, torch.Generator):  # a stream of draws inside the training loop
            return key
        return int(np.random.SeedSequence([key, data & _MASK]).generate_state(1, np.uint64)[0]) & _MASK

    def stream(self, seed: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(self.key(seed))

    def uniform(self, key: Any, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.rand(shape, generator=self._generator(key), dtype=self.float_dtype, device=self.device)

    def normal(self, key: Any, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, generator=self._generator(key), dtype=self.float_dtype, device=self.device)

    def _generator(self, key: Any) -> torch.Generator:
        return key if isinstance(key, torch.Generator) else torch.Generator(self.device).manual_seed(key)

    def cholesky(self, matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        factor, info = torch.linalg.cholesky_ex(matrix)
        return factor, torch.all(info == 0)

    def solve(self, matrix: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        solution, info = torch.linalg.solve_ex(matrix, right)
        return torch.where(torch.any(info != 0), torch.nan, solution)

    def solve_triangular(self, factor: Any, right: Any, *, lower: bool = True, transpose: bool = False) -> Any:
        return torch.linalg.solve_triangular(factor.mT if transpose else factor, right, upper=lower == transpose)

    def logsumexp(self, array: torch.Tensor, axis: int) -> torch.Tensor:
        return torch.logsumexp(array, dim=axis)

    def softmax(self, array: torch.Tensor) -> torch.Tensor:
        return torch.softmax(array, dim=-1)

    def lgamma(self, array: torch.Tensor) -> torch.Tensor:
        return torch.lgamma(array)

    def digamma(self, array: torch.Tensor) -> torch.Tensor:
        return torch.digamma(array)

    def erf(self, array: torch.Tensor) -> torch.Tensor:
        return torch.erf(array)

    def products(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        if left.shape[-1] == 1:
            return left * right
        if right.ndim == 2 and left.ndim == 3 and len(left) == 1:  # a large matrix comes first, in half of the time
            return (right.mT @ left[0].mT).mT[None]
        if right.shape[-1] == 1 and right.ndim > 2:  # its batches of products with one column take three times as long
            return torch.sum(left * right.mT, dim=-1)[..., None]
        return left @ right

    def tanh(self, array: torch.Tensor) -> torch.Tensor:
        if self.device.type != "cpu":
            return torch.tanh(array)
        return 2 * torch.sigmoid(2 * array) - 1  # on processors a fifth of tanh's time

    def relu(self, array: torch.Tensor) -> torch.Tensor:
        return torch.relu(array)

    def add_product(self, array: Any, left: Any, right: Any, factor: float = 1.0) -> torch.Tensor:
        return torch.addcmul(array, left, right, value=factor)

    def add_outer(self, matrix: torch.Tensor, column: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        if len(column) == 1:  # a broadcast product is faster than a matrix product of rank one
            return matrix.addcmul_(column.T, row) if self.in_place else torch.addcmul(matrix, column.T, row)
        return matrix.addmm_(column.T, row) if self.in_place else torch.addmm(matrix, column.T, row)

    def add_outer_over(self, matrix: Any, column: Any, row: Any, divisor: Any) -> torch.Tensor:
        outer = column.T * row if len(column) == 1 else column.T @ row
        return matrix.addcdiv_(outer, divisor) if self.in_place else torch.addcdiv(matrix, outer, divisor)

    def add_scaled(self, matrix: torch.Tensor, scale: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return matrix.addcmul_(scale, row) if self.in_place else torch.addcmul(matrix, scale, row)

    def spread_over(self, row: torch.Tensor, precision: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        if not self._has_loops_for(precision):
            return super().spread_over(row, precision)
        return self.lightly(lambda host, *arrays: host.spread_over(*arrays), row, precision)

    def learn_independent(
        self, mean: Any, precision: Any, column: Any, step: Any, gain: Any, cross: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self._has_loops_for(precision):
            return super().learn_independent(mean, precision, column, step, gain, cross)
        arrays = mean, precision, column, step, gain, cross
        return self.lightly(lambda host, *arrays: host.learn_independent(*arrays), *arrays)

    def _has_loops_for(self, matrix: torch.Tensor) -> bool:
        return self.device.type == "cpu" and matrix.numel() >= WORTH_A_LOOP and fused_loops() is not None

    def gram(self, rows: torch.Tensor) -> torch.Tensor:
        if self.device.type != "cpu":
            return rows.mT @ rows
        host = rows.numpy()  # NumPy sees that the factors are one array, and computes one triangle
        return torch.from_numpy(host.T @ host)

    def subtract_product(self, matrix: Any, left: Any, right: Any) -> torch.Tensor:
        if self.in_place:
            return matrix.addmm_(left, right, alpha=-1)
        return torch.addmm(matrix, left, right, alpha=-1)


@cache
def _host(dtype: str, in_place: bool) -> NumpyEngine:
    return NumpyEngine(dtype=dtype, in_place=in_place)


_MASK = 2**63 - 1


def _rows_of(array: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """``array[index]``, by whole rows: a fifth of the time of indexing."""
    return torch.index_select(array, 0, index.reshape(-1)).reshape(*index.shape, *array.shape[1:])


def _on_tape(tree: Any) -> bool:
    """Whether a gradient is being taken with respect to any of the arrays."""
    return torch.is_grad_enabled() and any(getattr(leaf, "requires_grad", False) for leaf in leaves_of(tree))


def _widen(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.float64) if tensor.dtype in _FLOATS else tensor


def _widen_on_host(tensor: Any) -> np.ndarray:
    array = tensor.cpu().numpy() if isinstance(tensor, torch.Tensor) else np.asarray(tensor)
    return array.astype(np.float64) if array.dtype == np.float32 else array
