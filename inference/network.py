"""Networks: what a posterior needs of one, and the multi-layer perceptron."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
from jaxtyping import Float

from .engines.base import Array, Engine
from .errors import InvalidInput
from .factors import LayerFactors
from .priors import NormalPrior
from .structures import LastLayer, Structure

__all__ = ["ACTIVATIONS", "MLP", "Directions", "Network", "dense", "noisy_dense", "output_rows"]

Weights = tuple[Array, ...]

Directions: TypeAlias = Callable[[Array], Array]
"""From outputs (N, K) to R directions in output space for each input, (N, K, R)."""


def dense(engine: Engine, x: Array, matrix: Array, bias: bool = True) -> Array:
    """A dense layer, whose bias is the last row of its matrix."""
    return (with_one(engine, x) if bias else x) @ matrix


def with_one(engine: Engine, x: Array) -> Array:
    """The inputs of a layer that has a bias: a 1 after the others.

    One product with the whole matrix is then all there is; a gradient through slices of it would fill as many matrices
    of zeros.
    """
    return engine.xp.concat([x, _ones(engine, x)], axis=-1)


def _ones(engine: Engine, x: Array) -> Array:
    one, shape = engine.constant(np.ones((1,) * x.ndim), x), (*x.shape[:-1], 1)
    return one if one.shape == shape else engine.xp.broadcast_to(one, shape)


def noisy_dense(engine: Engine, x: Array, mean: Array, variance: Array, draw: Array, bias: bool = True) -> Array:
    """Pre-activations of a dense layer whose weights are independent normals, by local reparametrisation.

    Given the inputs a they are Gaussian with mean ``a M`` and variance ``a² S²``. Drawing them instead of the weights
    draws the weights anew for every row, and gives gradients of lower variance (Kingma, Salimans and Welling 2015,
    "Variational dropout and the local reparameterization trick", equation 6).

    Args:
        engine: the arrays' engine.
        x: the layer's inputs a, (N, I).
        mean: M.
        variance: S², elementwise.
        draw: standard normal draws, (N, O).
        bias: whether the last row of the matrices is a bias.
    """
    extended = with_one(engine, x) if bias else x
    spread = (extended * extended) @ variance
    # Where a row's inputs are all 0 and there is no bias, the square root would have an infinite slope.
    return extended @ mean + engine.xp.sqrt(spread if bias else spread + _TINY) * draw


_TINY = 1e-30


def output_rows(engine: Engine, outputs: Float[Array, "N K"], directions: Directions | None) -> Float[Array, "N R K"]:
    """Where the rows of the factors start: Lᵀ of the directions, or the identity."""
    if directions is not None:
        return directions(outputs).mT
    num_rows, num_outputs = outputs.shape
    rows = engine.eye(num_outputs, outputs)[None]
    return rows if num_rows == 1 else engine.xp.broadcast_to(rows, (num_rows, num_outputs, num_outputs))


class Network(ABC):
    """A function of weights and inputs; its weights are a tuple of arrays, which a posterior is over.

    The weights of a Bayesian dense layer are one matrix (inputs + 1, outputs) whose last row is the bias. Arrays
    without uncertainty may have any shape; :attr:`layer_methods` is None for them.
    """

    engine_name: ClassVar[str | None] = None
    """The one framework that the network runs on; None for every one."""

    inputs_per_row: ClassVar[int] = 1
    """How many inputs of one kind a row holds, side by side."""

    standardize_by_default: ClassVar[bool] = True
    """Whether a model with this network scales its inputs and targets unless told."""

    def description(self) -> dict[str, Any] | None:
        """What a network of the user's own code is recognised by, as JSON values; None for this package's own."""
        return None

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        """Shape of one input, of which a row holds the numbers in order; None where inputs are rows of any length."""
        return None

    @property
    def num_tokens(self) -> int | None:
        """Inputs are integers from 0 to below this number; None where they are real numbers."""
        return None

    @property
    @abstractmethod
    def num_layers(self) -> int:
        """Number of weight arrays."""

    @property
    def output_layer(self) -> int | None:
        """Index of the layer whose pre-activations are the outputs; None where that is not known."""
        return None

    @property
    def layer_methods(self) -> tuple[str | None, ...]:
        """How each array is meant to be fitted: ``"laplace"``, ``"variational"``, or None for a point."""
        return ("laplace",) * self.num_layers

    @abstractmethod
    def shapes(self, num_inputs: int, num_outputs: int) -> tuple[tuple[int, ...], ...]:
        """Shape of each weight array; raises :class:`InvalidInput` for numbers that the network can't have."""

    @abstractmethod
    def initialise(self, num_inputs: int, num_outputs: int, seed: int) -> tuple[np.ndarray, ...]:
        """Where training starts, and the prior of an unfitted model is centred; on the host, in float64."""

    def restart(self, num_inputs: int, num_outputs: int, seed: int) -> tuple[np.ndarray, ...]:
        """Where further members of an ensemble start; as :meth:`initialise`, which a network may not draw at random."""
        return self.initialise(num_inputs, num_outputs, seed)

    def prior_precision(self, prior: NormalPrior, num_inputs: int, num_outputs: int) -> tuple[np.ndarray, ...]:
        """Prior precision of every weight, in the weights' shapes, in float64."""
        return prior.precision(self.shapes(num_inputs, num_outputs))  # type: ignore[arg-type]

    def check_prior(self, prior: NormalPrior, num_inputs: int, num_outputs: int) -> None:
        """Raises :class:`InvalidInput` unless the prior fits the network."""
        self.prior_precision(prior, num_inputs, num_outputs)

    def default_structure(self) -> Structure:
        """The structure of a model that is not given one."""
        return LastLayer()

    def resolve(self, structure: Structure) -> Structure:
        """The structure over all arrays, from one over the Bayesian layers; raises :class:`InvalidInput` if unfit."""
        return structure.resolve(self.num_layers)

    @abstractmethod
    def apply(self, engine: Engine, weights: Weights, x: Float[Array, "*S N I"]) -> Float[Array, "*S N K"]:
        """Outputs of the network; a leading axis of the weights (samples) becomes one of the outputs."""

    def pullback(
        self, engine: Engine, weights: Weights, x: Float[Array, "N I"], *, many: bool = True
    ) -> tuple[Float[Array, "*C N K"], Callable[[Array], Weights]]:
        """Outputs of C networks, and what takes a cotangent of them (C, N, K) to the gradient for their weights.

        Args:
            engine: the arrays' engine.
            weights: one array per layer with a leading axis of C; or without, of a single network.
            x: inputs of all of them.
            many: whether there is that axis.
        """

        def outputs(own: Weights) -> Array:
            return self.apply(engine, own, x)

        return engine.vjp(engine.vmap(outputs) if many else outputs, weights)

    def noise_shapes(self, num_rows: int, weights: Weights) -> tuple[tuple[int, ...], ...]:
        """Shapes of the draws for :meth:`apply_with_noise`, one for each weight array."""
        return tuple((num_rows, matrix.shape[-1]) for matrix in weights)

    @abstractmethod
    def apply_with_noise(
        self,
        engine: Engine,
        weights: Weights,
        variances: Sequence[Array | None],
        x: Float[Array, "N I"],
        noise: Sequence[Array | None],
    ) -> Float[Array, "N K"]:
        """Outputs for weights drawn at random.

        Args:
            engine: the arrays' engine.
            weights: means M, one array per layer.
            variances: S², elementwise, for each layer; None where the layer's weights are points.
            x: inputs.
            noise: standard normal draws in :meth:`noise_shapes`; None where the weights are points.
        """

    @abstractmethod
    def factors(
        self,
        engine: Engine,
        weights: Weights,
        x: Float[Array, "N I"],
        directions: Directions | None = None,
        needed: Sequence[bool] | None = None,
    ) -> tuple[Float[Array, "N K"], tuple[Any, ...]]:
        """Outputs, and for each Bayesian layer its :data:`~.factors.Factor`; None for arrays without uncertainty.

        Args:
            engine: the arrays' engine.
            weights: one array per layer.
            x: inputs.
            directions: the factors are those of Lᵀ J for the L (N, K, R) that it gives; of J itself if None.
            needed: for each array, whether its factors are; those of others may be None, which saves work.
        """


def _relu_slope(engine: Engine, z: Array, value: Array) -> Array:
    return engine.xp.sign(value)  # one operation; and products with booleans are slow


def _tanh(engine: Engine, z: Array) -> Array:
    return engine.tanh(z)


def _tanh_slope(engine: Engine, z: Array, value: Array) -> Array:
    return 1 - value * value


def _normal_cdf(engine: Engine, z: Array) -> Array:
    return 0.5 * (1 + engine.erf(z * math.sqrt(0.5)))


def _gelu(engine: Engine, z: Array) -> Array:
    return z * _normal_cdf(engine, z)


def _gelu_slope(engine: Engine, z: Array, value: Array) -> Array:
    return _normal_cdf(engine, z) + z * engine.xp.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


def _sigmoid(engine: Engine, z: Array) -> Array:
    return 0.5 * (1 + engine.tanh(0.5 * z))


def _silu(engine: Engine, z: Array) -> Array:
    return z * _sigmoid(engine, z)


def _silu_slope(engine: Engine, z: Array, value: Array) -> Array:
    sigmoid = _sigmoid(engine, z)
    return sigmoid + value * (1 - sigmoid)


ACTIVATIONS = {"relu": lambda engine, z: engine.relu(z), "tanh": _tanh, "gelu": _gelu, "silu": _silu}
"""Activation by name, of an engine and pre-activations."""

_SLOPES = {"relu": _relu_slope, "tanh": _tanh_slope, "gelu": _gelu_slope, "silu": _silu_slope}
"""Derivative by name, of an engine, pre-activations and the activation there."""

_GAIN = {"relu": math.sqrt(2.0), "tanh": 1.0, "gelu": math.sqrt(2.0), "silu": math.sqrt(2.0)}


@dataclass(frozen=True)
class MLP(Network):
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

    def __post_init__(self) -> None:
        try:
            widths = tuple(int(width) for width in self.hidden)
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"hidden must be a sequence of layer widths, got {self.hidden!r}") from error
        if any(width < 1 for width in widths) or widths != tuple(self.hidden):
            raise InvalidInput(f"hidden must hold integers of at least 1, got {self.hidden!r}")
        object.__setattr__(self, "hidden", widths)
        if not isinstance(self.activation, str) or self.activation not in ACTIVATIONS:
            raise InvalidInput(f"activation must be one of {', '.join(ACTIVATIONS)}, got {self.activation!r}")

    @property
    def num_layers(self) -> int:
        """Number of weight matrices."""
        return len(self.hidden) + 1

    @property
    def output_layer(self) -> int:
        return len(self.hidden)

    def shapes(self, num_inputs: int, num_outputs: int) -> tuple[tuple[int, int], ...]:
        """Shape (inputs + 1, outputs) of each layer's weight matrix."""
        sizes = (num_inputs, *self.hidden, num_outputs)
        return tuple((fan_in + 1, fan_out) for fan_in, fan_out in zip(sizes[:-1], sizes[1:], strict=True))

    def check_prior(self, prior: NormalPrior, num_inputs: int, num_outputs: int) -> None:
        prior.check(self.shapes(num_inputs, num_outputs))

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
            x = dense(engine, x, matrix)
            if index < len(weights) - 1:
                x = activate(engine, x)
        return x

    def apply_with_noise(
        self,
        engine: Engine,
        weights: Weights,
        variances: Sequence[Array | None],
        x: Float[Array, "N I"],
        noise: Sequence[Array | None],
    ) -> Float[Array, "N K"]:
        """Outputs for weights drawn anew for every row; see :func:`noisy_dense`."""
        activate = ACTIVATIONS[self.activation]
        for index, (matrix, variance, draw) in enumerate(zip(weights, variances, noise, strict=True)):
            z = dense(engine, x, matrix) if variance is None else noisy_dense(engine, x, matrix, variance, draw)
            x = z if index == len(weights) - 1 else activate(engine, z)
        return x

    def pullback(
        self, engine: Engine, weights: Weights, x: Float[Array, "N I"], *, many: bool = True
    ) -> tuple[Float[Array, "*C N K"], Callable[[Array], Weights]]:
        """See :meth:`Network.pullback`: in closed form, which is quicker than a tape of many small operations."""
        activate, slope = ACTIVATIONS[self.activation], _SLOPES[self.activation]
        inputs, slopes = [x], []
        for index, matrix in enumerate(weights):
            z = engine.products(inputs[-1], matrix[..., :-1, :]) + matrix[..., -1:, :]
            if index < len(weights) - 1:
                inputs.append(activate(engine, z))
                slopes.append(slope(engine, z, inputs[-1]))

        def pull(cotangent: Float[Array, "C N K"]) -> Weights:
            gradients, rows = [], cotangent
            for index in range(len(weights) - 1, -1, -1):
                matrix, bias = engine.products(inputs[index].mT, rows), engine.xp.sum(rows, axis=-2)[..., None, :]
                gradients.append(engine.xp.concat([matrix, bias], axis=-2))
                if index:
                    rows = engine.products(rows, weights[index][..., :-1, :].mT) * slopes[index - 1]
            return tuple(gradients[::-1])

        return z, pull

    def factors(
        self,
        engine: Engine,
        weights: Weights,
        x: Float[Array, "N I"],
        directions: Directions | None = None,
        needed: Sequence[bool] | None = None,
    ) -> tuple[Float[Array, "N K"], tuple[Any, ...]]:
        """See :meth:`Network.factors`: one forward pass, and K or R rows back, no further than they are needed."""
        activate, slope = ACTIVATIONS[self.activation], _SLOPES[self.activation]
        xp, ones = engine.xp, _ones(engine, x)
        inputs, slopes = [], []
        for index, matrix in enumerate(weights):
            extended = xp.concat([x, ones], axis=1)
            inputs.append(extended)
            x = z = engine.products(extended, matrix)
            if index < len(weights) - 1:
                x = activate(engine, z)
                slopes.append(slope(engine, z, x))
        rows = output_rows(engine, x, directions)
        factors: list[LayerFactors | None] = [LayerFactors(inputs[-1], rows)]
        rows = rows[:1] if directions is None else rows  # the identity for every input
        for index in range(len(weights) - 2, -1, -1):
            if needed is None or any(needed[: index + 1]):
                rows = engine.products(rows, weights[index + 1][:-1, :].mT) * slopes[index][:, None, :]
                factors.append(LayerFactors(inputs[index], rows))
            else:
                factors.append(None)
        return x, tuple(factors[::-1])
