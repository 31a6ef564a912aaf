"""Multi-layer perceptrons: sizes, initialisation, forward pass, layer factors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from .engines.base import Array, Engine
from .errors import InvalidInput
from .factors import LayerFactors

__all__ = ["ACTIVATIONS", "MLP"]

Weights = tuple[Array, ...]


def _relu(engine: Engine, z: Array) -> tuple[Array, Array]:
    slope = z > 0  # a product with booleans keeps the floating-point type
    return z * slope, slope


def _tanh(engine: Engine, z: Array) -> tuple[Array, Array]:
    value = engine.xp.tanh(z)
    return value, 1 - value * value


def _gelu(engine: Engine, z: Array) -> tuple[Array, Array]:
    below = 0.5 * (1 + engine.erf(z * math.sqrt(0.5)))
    return z * below, below + z * engine.xp.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


def _silu(engine: Engine, z: Array) -> tuple[Array, Array]:
    sigmoid = 0.5 * (1 + engine.xp.tanh(0.5 * z))
    return z * sigmoid, sigmoid * (1 + z * (1 - sigmoid))


ACTIVATIONS = {"relu": _relu, "tanh": _tanh, "gelu": _gelu, "silu": _silu}
"""Activation and its derivative, by name."""

_GAIN = {"relu": math.sqrt(2.0), "tanh": 1.0, "gelu": math.sqrt(2.0), "silu": math.sqrt(2.0)}


@dataclass(frozen=True)
class MLP:
    """A multi-layer perceptron.

    The weights of each layer are one matrix (inputs + 1, outputs) whose last row is the bias.

    Args:
        hidden: widths of the hidden layers; ``()`` is a linear model.
        activation: ``"relu"``, ``"tanh"``, ``"gelu"`` or ``"silu"``.

    Raises:
        InvalidInput: a width below 1 or an unknown activation.
    """

    hidden: tuple[int, ...] = (50,)
    activation: str = "relu"

    inputs_per_row: ClassVar[int] = 1
    """How many inputs of one kind a row holds, side by side."""

    def __post_init__(self) -> None:
        try:
            widths = tuple(int(width) for width in self.hidden)
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"hidden must be a sequence of layer widths, got {self.hidden!r}") from error
        if any(width < 1 for width in widths) or widths != tuple(self.hidden):
            raise InvalidInput(f"hidden must hold integers of at least 1, got {self.hidden!r}")
        object.__setattr__(self, "hidden", widths)
        if self.activation not in ACTIVATIONS:
            raise InvalidInput(f"activation must be one of {', '.join(ACTIVATIONS)}, got {self.activation!r}")

    @property
    def num_layers(self) -> int:
        """Number of weight matrices."""
        return len(self.hidden) + 1

    def shapes(self, num_inputs: int, num_outputs: int) -> tuple[tuple[int, int], ...]:
        """Shape (inputs + 1, outputs) of each layer's weight matrix."""
        sizes = (num_inputs, *self.hidden, num_outputs)
        return tuple((fan_in + 1, fan_out) for fan_in, fan_out in zip(sizes[:-1], sizes[1:], strict=True))

    def initialise(self, num_inputs: int, num_outputs: int, seed: int) -> tuple[np.ndarray, ...]:
        """Fan-in initialisation: weights of variance gain² / fan-in, biases 0; drawn on the host, in float64.

        The last layer has gain 1: nothing follows it that would halve the variance.
        """
        rng = np.random.default_rng(seed)
        weights = []
        shapes = self.shapes(num_inputs, num_outputs)
        for index, (rows, columns) in enumerate(shapes):
            gain = _GAIN[self.activation] if index < len(shapes) - 1 else 1.0
            matrix = rng.standard_normal((rows, columns)) * gain / math.sqrt(rows - 1)
            matrix[-1] = 0.0
            weights.append(matrix)
        return tuple(weights)

    def apply(self, engine: Engine, weights: Weights, x: Float[Array, "*S N I"]) -> Float[Array, "*S N K"]:
        """Outputs of the network; a leading axis of the weights (samples) becomes one of the outputs."""
        activate = ACTIVATIONS[self.activation]
        for index, matrix in enumerate(weights):
            x = x @ matrix[..., :-1, :] + matrix[..., -1:, :]
            if index < len(weights) - 1:
                x, _ = activate(engine, x)
        return x

    def apply_with_noise(
        self,
        engine: Engine,
        weights: Weights,
        standard_deviations: Sequence[Array | None],
        x: Float[Array, "N I"],
        noise: Sequence[Array | None],
    ) -> Float[Array, "N K"]:
        """Outputs for weights drawn anew for every row, by local reparametrisation.

        A row's pre-activations are Gaussian given its inputs a: mean ``a M``, variance ``a² S²``. Drawing them instead
        of the weights gives gradients of lower variance (Kingma, Salimans and Welling 2015, equation 6).

        Args:
            engine: the arrays' engine.
            weights: means M, one matrix per layer.
            standard_deviations: S for each layer; None where the layer's weights are points.
            x: inputs.
            noise: standard normal draws for each layer's pre-activations (N, O); None where the weights are points.
        """
        xp = engine.xp
        activate = ACTIVATIONS[self.activation]
        for index, (matrix, deviation, draw) in enumerate(zip(weights, standard_deviations, noise, strict=True)):
            z = x @ matrix[:-1, :] + matrix[-1:, :]
            if deviation is not None:
                variance = deviation * deviation
                z = z + xp.sqrt((x * x) @ variance[:-1, :] + variance[-1:, :]) * draw
            x = z if index == len(weights) - 1 else activate(engine, z)[0]
        return x

    def factors(
        self, engine: Engine, weights: Weights, x: Float[Array, "N I"]
    ) -> tuple[Float[Array, "N K"], tuple[LayerFactors, ...]]:
        """Outputs, and the factors of every layer (one forward pass, K rows back)."""
        xp = engine.xp
        activate = ACTIVATIONS[self.activation]
        ones = engine.constant(np.ones((1, 1)), x)
        ones = ones if x.shape[0] == 1 else xp.broadcast_to(ones, (x.shape[0], 1))
        inputs, slopes = [], []
        for index, matrix in enumerate(weights):
            extended = xp.concat([x, ones], axis=1)
            inputs.append(extended)
            x = extended @ matrix
            if index < len(weights) - 1:
                x, slope = activate(engine, x)
                slopes.append(slope)
        num_outputs = x.shape[1]
        rows = engine.eye(num_outputs, x)[None]
        if x.shape[0] > 1:
            rows = xp.broadcast_to(rows, (x.shape[0], num_outputs, num_outputs))
        factors = [LayerFactors(inputs[-1], rows)]
        for matrix, extended, slope in zip(weights[:0:-1], inputs[-2::-1], slopes[::-1], strict=True):
            rows = (rows @ matrix[:-1, :].mT) * slope[:, None, :]
            factors.append(LayerFactors(extended, rows))
        return x, tuple(factors[::-1])
