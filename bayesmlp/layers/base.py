"""A user's module as a network of the library: some dense layers are Bayesian, everything else is a point.

The two frameworks differ only in how a module is run as a pure function with its dense layers taken out
(:class:`Skeleton`); the mathematics is here, once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..inference.engines import Array, Engine
from ..inference.errors import InvalidInput
from ..inference.factors import Factor, LayerFactors, SharedFactors
from ..inference.flipout import flipout_dense
from ..inference.network import Directions, Network, Weights, dense, noisy_dense, output_rows
from ..inference.priors import NormalPrior
from ..inference.structures import Blocks, Diagonal, Full, LastLayer, Point, Structure

__all__ = [
    "METHODS",
    "DenseLayer",
    "ModuleNetwork",
    "Parameter",
    "Skeleton",
    "Use",
    "dense_matrix",
    "log_deviations",
    "mean_field_kl",
]

METHODS = ("laplace", "variational")
FULL_UP_TO = 2000
"""Most weights of a last layer that gets all its correlations by default."""

Layer = Callable[[Array], Array]


class DenseLayer(NamedTuple):
    """A dense layer of a module.

    Attributes:
        name: by which the module knows it.
        matrix: its weights (inputs + 1, outputs) with the bias in the last row, or (inputs, outputs) without a bias.
        bias: whether it has one.
        method: how the module marks it: ``"laplace"``, ``"variational"`` or None.
        is_free: False where its weights are tied to another part's, computed from other parameters, or read outside the
            layer's calls as well.
        prior: that it was made with; None for any.
    """

    name: str
    matrix: np.ndarray
    bias: bool
    method: str | None
    is_free: bool = True
    prior: NormalPrior | None = None


class Parameter(NamedTuple):
    """A floating-point array of a module that is not a weight of a Bayesian layer.

    Attributes:
        name: by which the module knows it.
        value: its values, in float64.
        trained: False for constants: the statistics of a batch normalisation, or what the user has frozen.
    """

    name: str
    value: np.ndarray
    trained: bool


class Skeleton(ABC):
    """A copy of a user's module in evaluation mode, run as a pure function without the weights of some dense layers.

    Attributes:
        framework: the engine that it runs on.
        module_type: what the framework calls a module.
        class_name: of the module.
        parameters: every floating-point array, but for the weights of the dense layers taken out unless they are kept.
        integers: hash of the integer arrays, which stay with the module.
    """

    framework: ClassVar[str]
    module_type: ClassVar[type]
    class_name: str
    parameters: tuple[Parameter, ...]
    integers: str

    @classmethod
    @abstractmethod
    def dense_layers(cls, module: Any) -> dict[str, DenseLayer]:
        """The dense layers of a module, by name; those that are free can be taken out."""

    @abstractmethod
    def __init__(self, module: Any, taken_out: Sequence[str], keep: bool = False) -> None:
        """The skeleton of a module.

        Args:
            module: the user's own, which is left as it is.
            taken_out: names of the dense layers whose calls are served from outside.
            keep: whether their weights stay as parameters, for what reads them without a call; it finds none otherwise:
                NaN, or an error.
        """

    @abstractmethod
    def run(self, arrays: Mapping[str, Array], x: Array, layers: Mapping[str, Layer]) -> Array:
        """The module's outputs.

        Args:
            arrays: values of the parameters, by name.
            x: inputs in the module's own shape, with a leading axis of rows.
            layers: what each dense layer that was taken out does to its inputs.
        """

    @abstractmethod
    def trace(self, function: Callable[[], Array]) -> np.ndarray:
        """What a function gives, on the host; zeros in its shape where the framework can tell that without values."""


class Use(NamedTuple):
    """How a module applies a dense layer.

    Attributes:
        once: exactly once for each row, to a matrix of one row each.
        row_axis: of its inputs; None where no axis is the rows', so that rows are taken one at a time.
    """

    once: bool
    row_axis: int | None


@dataclass(frozen=True, eq=False, repr=False)
class ModuleNetwork(Network):
    """A network of the user's own with Bayesian dense layers; made by ``bayesianize``.

    Its weight arrays are the matrices of the Bayesian layers, in the order in which the module calls them, and then
    every other floating-point array of the module as a point.

    Attributes:
        skeleton: the module without the Bayesian layers' weights.
        layers: the Bayesian layers, with the method of each.
        uses: how the module applies each of them.
        shape: of one input.
        tokens: see :attr:`num_tokens`.
        num_outputs: of the module.
        train: ``"all"`` or ``"bayesian"``: whether a fit trains the other parameters.
    """

    skeleton: Skeleton
    layers: tuple[DenseLayer, ...]
    uses: tuple[Use, ...]
    shape: tuple[int, ...]
    tokens: int | None
    num_outputs: int
    train: str

    standardize_by_default = False

    def __repr__(self) -> str:
        names = ", ".join(f"{layer.name} ({layer.method})" for layer in self.layers)
        return f"ModuleNetwork({self.skeleton.class_name}: {names})"

    @property
    def engine_name(self) -> str:  # type: ignore[override]
        return self.skeleton.framework

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def num_tokens(self) -> int | None:
        return self.tokens

    @property
    def num_layers(self) -> int:
        return len(self.layers) + len(self.skeleton.parameters)

    @property
    def layer_methods(self) -> tuple[str | None, ...]:
        return (*(layer.method for layer in self.layers), *(None for _ in self.skeleton.parameters))

    def shapes(self, num_inputs: int, num_outputs: int) -> tuple[tuple[int, ...], ...]:
        if num_outputs != self.num_outputs:
            raise InvalidInput(
                f"network: {self.skeleton.class_name} has {self.num_outputs} outputs, "
                f"the likelihood needs {num_outputs}"
            )
        return tuple(array.shape for array in self._start())

    def _start(self) -> tuple[np.ndarray, ...]:
        return (*(layer.matrix for layer in self.layers), *(p.value for p in self.skeleton.parameters))

    def initialise(self, num_inputs: int, num_outputs: int, seed: int) -> tuple[np.ndarray, ...]:
        """The module's own weights."""
        return self._start()

    def restart(self, num_inputs: int, num_outputs: int, seed: int) -> tuple[np.ndarray, ...]:
        """The module's own weights in another order, but for constants: weights of the same distribution.

        Frameworks do not say how an array was initialised; where its entries were drawn independently of each other,
        their order is random. A 0, such as a bias or the embedding of the padding, stays where it is.
        """
        rng = np.random.default_rng(seed)
        matrices = (_shuffled_matrix(rng, layer) for layer in self.layers)
        points = (_shuffled(rng, p.value) if self._trains(p) else p.value for p in self.skeleton.parameters)
        return (*matrices, *points)

    def prior_precision(self, prior: NormalPrior, num_inputs: int, num_outputs: int) -> tuple[np.ndarray, ...]:
        """The prior's for Bayesian layers; 1 for other parameters that are trained; 0, no prior, for constants."""
        self.shapes(num_inputs, num_outputs)
        precisions = zip(prior.precision([_size(layer) for layer in self.layers]), self.layers, strict=True)
        return (
            *(precision[: len(layer.matrix)] for precision, layer in precisions),
            *(np.full(p.value.shape, float(self._trains(p))) for p in self.skeleton.parameters),
        )

    def check_prior(self, prior: NormalPrior, num_inputs: int, num_outputs: int) -> None:
        for layer, got in zip(self.layers, self.prior_precision(prior, num_inputs, num_outputs), strict=False):
            if layer.prior is None:
                continue
            (own,) = layer.prior.precision([_size(layer)])
            if not np.allclose(got, own[: len(got)], rtol=1e-12):
                raise InvalidInput(
                    f"prior must have the scale of layer {layer.name!r}, which was made with {layer.prior}, got {prior}"
                    "; it takes one scale for each Bayesian layer"
                )

    def _trains(self, parameter: Parameter) -> bool:
        return parameter.trained and self.train == "all"

    def default_structure(self) -> Structure:
        """All correlations of a last layer of up to 2,000 weights; independent weights for everything else."""
        return LastLayer(Full() if self.layers[-1].matrix.size <= FULL_UP_TO else Diagonal())

    def resolve(self, structure: Structure) -> Structure:
        count = len(self.layers)
        bayesian = structure.resolve(count)
        if not self.skeleton.parameters:
            return bayesian
        parts = bayesian.parts if isinstance(bayesian, Blocks) else ((bayesian, tuple(range(count))),)
        return Blocks((*parts, (Point(), tuple(range(count, self.num_layers)))))

    def description(self) -> dict[str, Any]:
        return {
            "framework": self.skeleton.framework,
            "class": self.skeleton.class_name,
            "input_shape": list(self.shape),
            "num_tokens": self.tokens,
            "num_outputs": self.num_outputs,
            "train": self.train,
            "layers": [
                {"name": layer.name, "shape": list(layer.matrix.shape), "method": layer.method} for layer in self.layers
            ],
            "parameters": [
                {"name": p.name, "shape": list(p.value.shape), "trained": p.trained} for p in self.skeleton.parameters
            ],
            "integers": self.skeleton.integers,
        }

    # -- running the module ---------------------------------------------------------------------------------------
    def _run(self, engine: Engine, weights: Weights, x: Array, layers: Sequence[Layer]) -> Array:
        """Outputs (N, K), with each Bayesian layer doing what it is told."""
        points = zip(self.skeleton.parameters, weights[len(self.layers) :], strict=True)
        arrays = {p.name: array if self._trains(p) else engine.stop_gradient(array) for p, array in points}
        inputs = engine.xp.reshape(x, (x.shape[0], *self.shape))
        if self.tokens is not None:
            inputs = engine.xp.astype(inputs, engine.xp.int32)
        named = dict(zip((layer.name for layer in self.layers), layers, strict=True))
        outputs = self.skeleton.run(arrays, inputs, named)
        return engine.cast(engine.xp.reshape(outputs, (x.shape[0], -1)))

    def apply(self, engine: Engine, weights: Weights, x: Array) -> Array:
        sampled = [array.ndim > value.ndim for array, value in zip(weights, self._start(), strict=True)]
        if any(sampled):

            def one(_: Any, drawn: Any) -> tuple[Any, Array]:
                rest = iter(drawn)
                mixed = tuple(next(rest) if flag else w for flag, w in zip(sampled, weights, strict=True))
                return (), self.apply(engine, mixed, x)

            return engine.scan(one, (), tuple(w for flag, w in zip(sampled, weights, strict=True) if flag))[1]
        layers = [partial(dense, engine, matrix=w, bias=d.bias) for w, d in zip(weights, self.layers, strict=False)]
        return self._run(engine, weights, x, layers)

    def noise_shapes(self, num_rows: int, weights: Weights) -> tuple[tuple[int, ...], ...]:
        """A draw for every row's pre-activations; where positions share the weights, one of the weights and signs."""
        shapes = [
            _noise_shape(num_rows, layer.matrix.shape, use) for layer, use in zip(self.layers, self.uses, strict=True)
        ]
        return (*shapes, *(() for _ in self.skeleton.parameters))

    def apply_with_noise(
        self,
        engine: Engine,
        weights: Weights,
        variances: Sequence[Array | None],
        x: Array,
        noise: Sequence[Array | None],
    ) -> Array:
        """Outputs for weights drawn anew for every row: by local reparametrisation where a row passes a layer once; by
        Flipout where it passes at several positions; one draw for the batch where no axis is the rows'.
        """
        layers: list[Layer] = []
        for layer, use, mean, variance, draw in zip(self.layers, self.uses, weights, variances, noise, strict=False):
            normal = {"engine": engine, "mean": mean, "variance": variance, "draw": draw, "bias": layer.bias}
            if variance is None:
                layers.append(partial(dense, engine, matrix=mean, bias=layer.bias))
            elif use.once:
                layers.append(partial(_noisy, **normal))
            elif use.row_axis is not None:
                layers.append(partial(_flipped, row_axis=use.row_axis, **normal))
            else:
                drawn = mean + engine.xp.sqrt(variance) * draw
                layers.append(partial(dense, engine, matrix=drawn, bias=layer.bias))
        return self._run(engine, weights, x, layers)

    # -- factors --------------------------------------------------------------------------------------------------
    def factors(
        self,
        engine: Engine,
        weights: Weights,
        x: Array,
        directions: Directions | None = None,
        needed: Sequence[bool] | None = None,
    ) -> tuple[Array, tuple[Any, ...]]:
        if x.shape[0] == 1 or all(use.row_axis is not None for use in self.uses):
            outputs, factors = self._factors(engine, weights, x, directions)
            return outputs, (*factors, *(None for _ in self.skeleton.parameters))

        def one(_: Any, row: Array) -> tuple[Any, Any]:
            return (), self._factors(engine, weights, row[None], None)

        _, (outputs, stacked) = engine.scan(one, (), x)  # of every row, each with an axis of its own
        outputs = outputs[:, 0]
        factors = tuple(type(f)(*(array[:, 0] for array in f)) for f in stacked)
        if directions is not None:
            factors = tuple(f.left_multiply(directions(outputs)) for f in factors)
        return outputs, (*factors, *(None for _ in self.skeleton.parameters))

    def _factors(
        self, engine: Engine, weights: Weights, x: Array, directions: Directions | None
    ) -> tuple[Array, tuple[Factor, ...]]:
        """One forward pass, and the directions back to the pre-activations of every call of a Bayesian layer."""
        called: list[int] = []

        def function(tap: Layer) -> tuple[Array, tuple[Array, ...]]:
            called.clear()
            inputs = []

            def layer_at(index: int) -> Layer:
                def call(a: Array) -> Array:
                    called.append(index)
                    inputs.append(_extended(engine, a, self.layers[index].bias))
                    return tap(inputs[-1] @ weights[index])

                return call

            outputs = self._run(engine, weights, x, [layer_at(index) for index in range(len(self.layers))])
            return outputs, tuple(inputs)

        outputs, inputs, pull = engine.vjp_at(function)
        rows = pull(engine.xp.permute_dims(output_rows(engine, outputs, directions), (1, 0, 2)))
        return outputs, tuple(self._factor(engine, index, called, inputs, rows) for index in range(len(self.layers)))

    def _factor(
        self, engine: Engine, index: int, called: list[int], inputs: Sequence[Array], rows: Sequence[Array]
    ) -> Factor:
        """The factors of one layer, over all of its calls."""
        xp, use = engine.xp, self.uses[index]
        calls = [call for call, layer in enumerate(called) if layer == index]
        if not calls:
            raise InvalidInput(f"layer {self.layers[index].name!r} is not called for these inputs; leave it out")
        if use.once and len(calls) == 1:
            return LayerFactors(*engine.cast((inputs[calls[0]], xp.permute_dims(rows[calls[0]], (1, 0, 2)))))
        return SharedFactors(
            *engine.cast(
                (
                    xp.concat([_positions(engine, inputs[call], use.row_axis, 1) for call in calls], axis=1),
                    xp.concat([_positions(engine, rows[call], use.row_axis, 2) for call in calls], axis=2),
                )
            )
        )


def _size(layer: DenseLayer) -> tuple[int, int]:
    """Shape of a layer's matrix if it had a bias."""
    return layer.matrix.shape[0] + (not layer.bias), layer.matrix.shape[1]


def _shuffled_matrix(rng: np.random.Generator, layer: DenseLayer) -> np.ndarray:
    """A dense layer's weights in another order, and its biases in one of theirs."""
    if not layer.bias:
        return _shuffled(rng, layer.matrix)
    return np.concatenate([_shuffled(rng, layer.matrix[:-1]), _shuffled(rng, layer.matrix[-1:])])


def _shuffled(rng: np.random.Generator, values: np.ndarray) -> np.ndarray:
    """An array whose entries other than 0 have changed places."""
    shuffled = values.copy()
    shuffled[values != 0] = rng.permutation(values[values != 0])
    return shuffled


def _positions(engine: Engine, array: Array, row_axis: int | None, leading: int) -> Array:
    """Rows first, features last, and every axis of positions between them as one.

    Args:
        engine: the array's engine.
        array: inputs of a layer (1 leading axis: the rows), or rows of factors (2: the rows and the directions).
        row_axis: of the layer's inputs; None where all of the array belongs to one row.
        leading: how many axes lead.
    """
    array = array[None] if row_axis is None else engine.xp.moveaxis(array, row_axis + leading - 1, 0)
    return engine.xp.reshape(array, (*array.shape[:leading], -1, array.shape[-1]))


def _noisy(x: Array, *, engine: Engine, mean: Array, variance: Array, draw: Array, bias: bool) -> Array:
    return noisy_dense(engine, x, mean, variance, draw, bias)


def _noise_shape(num_rows: int, shape: tuple[int, ...], use: Use) -> tuple[int, ...]:
    """Of what :func:`_noisy`, :func:`_flipped` or one draw of the weights takes."""
    if use.once:
        return (num_rows, shape[1])
    return shape if use.row_axis is None else (shape[0] * shape[1] + num_rows * (shape[0] + shape[1]),)


def _flipped(
    x: Array, *, engine: Engine, mean: Array, variance: Array, draw: Array, bias: bool, row_axis: int
) -> Array:
    """Flipout, whose random signs are those of standard normal draws."""
    xp, (inputs, outputs) = engine.xp, mean.shape
    weights, rest = draw[: inputs * outputs], draw[inputs * outputs :]
    signs = 1 - 2 * xp.astype(xp.reshape(rest, (-1, inputs + outputs)) < 0, mean.dtype)
    drawn = xp.reshape(weights, (inputs, outputs))
    return flipout_dense(xp, x, mean, xp.sqrt(variance), drawn, signs[:, :inputs], signs[:, inputs:], bias, row_axis)


def _extended(engine: Engine, x: Array, bias: bool) -> Array:
    """A copy of the inputs, which the module may write to later, with a trailing 1 for the bias."""
    ones = engine.xp.ones_like(x[..., :1])
    return engine.xp.concat([x, ones], axis=-1) if bias else x + 0


def dense_matrix(kernel: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """The matrix (inputs + 1, outputs) of a dense layer, in float64; (inputs, outputs) without a bias."""
    rows = [kernel] if bias is None else [kernel, np.asarray(bias)[None]]
    return np.concatenate(rows).astype(np.float64)


# -- variational layers in the user's own training loop ---------------------------------------------------------------
def log_deviations(prior: NormalPrior, num_inputs: int, num_outputs: int, initial_deviation: float) -> np.ndarray:
    """Where the log standard deviations of a variational layer start, (inputs + 1, outputs)."""
    if not initial_deviation > 0:
        raise InvalidInput(f"initial_deviation must be positive, got {initial_deviation!r}")
    return np.log(initial_deviation) - 0.5 * np.log(prior.precision([(num_inputs + 1, num_outputs)])[0])


def mean_field_kl(xp: Any, mean: Array, log_deviation: Array, prior_precision: Array) -> Array:
    """KL divergence in nats of independent normals N(mean, exp(log_deviation)²) from N(0, 1 / prior_precision)."""
    scaled = prior_precision * xp.exp(2 * log_deviation)
    return 0.5 * xp.sum(scaled - 1 - xp.log(scaled) + prior_precision * mean * mean)
