"""Runs of a user's module at made-up inputs, before it becomes a network: whether it takes them, how it applies its
dense layers, and whether it reads their weights anywhere else.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..inference.engines import Array, get_engine
from ..inference.errors import InvalidInput
from ..inference.network import dense
from .base import DenseLayer, Layer, ModuleNetwork, Skeleton, Use

__all__ = ["Probe"]

_log = logging.getLogger(__name__)

Shapes = dict[str, list[tuple[int, ...]]]
"""Of the inputs at every call of a layer, by its name."""


@dataclass(frozen=True)
class Probe:
    """A module that is to be looked at.

    Attributes:
        skeleton_type: of its framework.
        module: the user's own.
        layers: its dense layers.
        shape: of one input.
        tokens: number of tokens, where inputs are tokens.
    """

    skeleton_type: type[Skeleton]
    module: Any
    layers: Mapping[str, DenseLayer]
    shape: tuple[int, ...]
    tokens: int | None

    @classmethod
    def of(cls, skeleton_type: type[Skeleton], module: Any, shape: tuple[int, ...], tokens: int | None) -> Probe:
        """A look at a module; raises :class:`InvalidInput` unless it can be copied and takes inputs of that kind."""
        with _quoting(module, "module must have all its parameters, and be one that can be copied"):
            probe = cls(skeleton_type, module, skeleton_type.dense_layers(module), shape, tokens)
            plain = probe._network((), keep=True)
        probe._run(plain, probe._inputs(2), {})  # with its own layers, so that it speaks for itself
        if tokens is not None:
            probe._check_tokens(plain, tokens)
        return probe

    def _check_tokens(self, plain: ModuleNetwork, tokens: int) -> None:
        """Raises :class:`InvalidInput` if the module takes the last token nowhere; positions may differ in tokens."""
        engine, x = get_engine(plain.engine_name), self._inputs(1)
        weights = tuple(engine.asarray(array) for array in plain._start())
        run = engine.jit(lambda weights, x: plain._run(engine, weights, x, []))
        before = engine.to_numpy(run(weights, engine.asarray(x)))
        expected = f"num_tokens must be a number of tokens that module takes, got {tokens}"
        for position in range(x.size):
            last = np.where(np.arange(x.size) == position, tokens - 1, x)
            try:
                with _quoting(self.module, expected):
                    after = engine.to_numpy(run(weights, engine.asarray(last)))
            except ModuleRefused as error:
                refusal = error
                continue
            if not _is_lost(before, after):
                return
            refusal = ModuleRefused(
                f"{expected}; its outputs are not finite at token {tokens - 1}"
            )  # JAX has no errors
        raise refusal

    def uses(self) -> tuple[dict[str, Use], np.ndarray]:
        """How the module applies its dense layers, in the order of their first calls, and its outputs for two rows.

        The axis of the rows is the one that grows with them.
        """
        network = self._network(tuple(self.layers), keep=True)
        two: Shapes = {}
        three: Shapes = {}
        outputs = self._run(network, self._inputs(2), two)
        self._run(network, self._inputs(3), three)
        return {name: _use(shapes, three.get(name, [])) for name, shapes in two.items()}, outputs

    def read_elsewhere(self, names: Sequence[str], outputs: np.ndarray) -> list[str]:
        """Those of some layers whose weights the module also reads outside the layer's calls, such as a tied decoder.

        Args:
            names: of layers that can be taken out.
            outputs: of the module as it is, for two rows.
        """

        def fails(taken_out: Sequence[str]) -> bool:
            """Whether the module can't do without the weights of these layers, though their calls are served."""
            network = self._network(taken_out, keep=False)
            try:
                without = self._run(network, self._inputs(2), {})
            except ModuleRefused as refusal:
                _log.info("without the weights of %s: %s", ", ".join(taken_out), refusal)
                return True
            return _is_lost(outputs, without)

        return _find(fails, names)

    def _network(self, taken_out: Sequence[str], keep: bool) -> ModuleNetwork:
        skeleton = self.skeleton_type(self.module, taken_out, keep)
        layers = tuple(self.layers[name] for name in taken_out)
        return ModuleNetwork(skeleton, layers, (), self.shape, self.tokens, 0, "all")

    def _inputs(self, rows: int) -> np.ndarray:
        """Rows of the first two tokens, so not padding alone; or of numbers that have a logarithm and a norm."""
        count = rows * math.prod(self.shape)
        values = np.linspace(0.25, 0.5, count) if self.tokens is None else np.arange(count) % min(2, self.tokens)
        return values.reshape(rows, -1).astype(np.float64)

    def _run(self, network: ModuleNetwork, x: np.ndarray, shapes: Shapes) -> np.ndarray:
        """Outputs of a network, with the shapes of its layers' inputs noted."""
        engine = get_engine(network.engine_name)

        def recorder(layer: DenseLayer, matrix: Array) -> Layer:
            def call(a: Array) -> Array:
                shapes.setdefault(layer.name, []).append(tuple(a.shape))
                return dense(engine, a, matrix, layer.bias)

            return call

        kind = f"input_shape={self.shape} and num_tokens={self.tokens}"
        expected = f"module must take a batch (rows, *input_shape) to outputs (rows, outputs), got {kind}"
        with engine.scope():
            rows, weights = engine.asarray(x), tuple(engine.asarray(array) for array in network._start())
            recorders = [recorder(layer, matrix) for layer, matrix in zip(network.layers, weights, strict=False)]
            with _quoting(self.module, expected):
                return network.skeleton.trace(lambda: network._run(engine, weights, rows, recorders))


class ModuleRefused(InvalidInput):
    """The user's own code raised something."""


@contextmanager
def _quoting(module: Any, expected: str) -> Iterator[None]:
    """Turns what the user's own code raises, which may be anything but a lack of memory, into :class:`InvalidInput`."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # of code that is not ours; its cause is kept
        name = type(module).__qualname__
        raise ModuleRefused(f"{expected}; {name} says {type(error).__name__}: {error}") from error


def _is_lost(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether an output is not finite any more."""
    return bool(np.any(np.isfinite(before) & ~np.isfinite(after)))


def _use(two: Sequence[tuple[int, ...]], three: Sequence[tuple[int, ...]]) -> Use:
    """How a layer is applied, from the shapes of its inputs for two rows and for three."""
    axes = set()
    for a, b in zip(two, three, strict=False):
        growing = [axis for axis, (p, q) in enumerate(zip(a, b, strict=False)) if (p, q) == (2, 3)]
        whole = len(a) == len(b) and sum(p != q for p, q in zip(a, b, strict=True)) == 1
        axes.add(growing[0] if whole and growing else None)
    axis = axes.pop() if len(two) == len(three) and len(axes) == 1 else None
    return Use(once=len(two) == 1 and len(two[0]) == 2 and axis == 0, row_axis=axis)


def _find(holds: Callable[[Sequence[str]], bool], names: Sequence[str]) -> list[str]:
    """The names for which something holds that holds for names together if for any of them, by halving."""
    if not names or not holds(names):
        return []
    if len(names) == 1:
        return list(names)
    half = len(names) // 2
    return [*_find(holds, names[:half]), *_find(holds, names[half:])]
