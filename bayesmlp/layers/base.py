"""A user's module as a network of the library: some dense layers are Bayesian, everything else is a point.

The two frameworks differ only in how a module is run as a pure function with its dense layers taken out
(:class:`Skeleton`); the mathematics is here, once.
"""

from __future__ import annotations

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..inference.engines import Array, Engine, get_engine
from ..inference.errors import InvalidInput
from ..inference.factors import Factor, LayerFactors, SharedFactors
from ..inference.network import Directions, Network, Weights, dense, noisy_dense, output_rows
from ..inference.priors import NormalPrior
from ..inference.spec import EXTERNAL, from_spec, to_spec
from ..inference.structures import Blocks, Diagonal, Full, LastLayer, Point, Structure

__all__ = [
    "METHODS",
    "DenseLayer",
    "ModuleNetwork",
    "Parameter",
    "Skeleton",
    "bayesianize",
    "dense_matrix",
    "log_deviations",
    "mean_field_kl",
    "restore_network",
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
    """

    name: str
    matrix: np.ndarray
    bias: bool
    method: str | None


class Parameter(NamedTuple):
    """A floating-point array of a module that is not a weight of a Bayesian layer.

    Attributes:
        name: by which the module knows it.
        value: its values, in float64.
        trained: False for constants, such as the statistics of a batch normalisation.
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
        parameters: every floating-point array but the weights of the dense layers taken out.
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
        """The dense layers of a module that can be taken out, by name."""

    @abstractmethod
    def __init__(self, module: Any, taken_out: Sequence[str]) -> None: ...

    @abstractmethod
    def run(self, arrays: Mapping[str, Array], x: Array, layers: Mapping[str, Layer]) -> Array:
        """The module's outputs.

        Args:
            arrays: values of the parameters, by name.
            x: inputs in the module's own shape, with a leading axis of rows.
            layers: what each dense layer that was taken out does to its inputs.
        """

    @abstractmethod
    def trace(self, function: Callable[[], Any]) -> None:
        """Run a function for the shapes of its values only, where the framework can."""


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

    def prior_precision(self, prior: NormalPrior, num_inputs: int, num_outputs: int) -> tuple[np.ndarray, ...]:
        """The prior's for Bayesian layers; 1 for other parameters that are trained; 0, no prior, for constants."""
        self.shapes(num_inputs, num_outputs)
        sizes = [(layer.matrix.shape[0] + (not layer.bias), layer.matrix.shape[1]) for layer in self.layers]
        precisions = zip(prior.precision(sizes), self.layers, strict=True)
        return (
            *(precision[: len(layer.matrix)] for precision, layer in precisions),
            *(np.full(p.value.shape, float(self._trains(p))) for p in self.skeleton.parameters),
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
        layers = [partial(dense, matrix=w, bias=d.bias) for w, d in zip(weights, self.layers, strict=False)]
        return self._run(engine, weights, x, layers)

    def noise_shapes(self, num_rows: int, weights: Weights) -> tuple[tuple[int, ...], ...]:
        """A draw for every row's pre-activations; where positions share the weights, one draw of the weights."""
        shapes = [
            (num_rows, layer.matrix.shape[1]) if use.once else layer.matrix.shape
            for layer, use in zip(self.layers, self.uses, strict=True)
        ]
        return (*shapes, *(() for _ in self.skeleton.parameters))

    def apply_with_noise(
        self,
        engine: Engine,
        weights: Weights,
        standard_deviations: Sequence[Array | None],
        x: Array,
        noise: Sequence[Array | None],
    ) -> Array:
        layers: list[Layer] = []
        for layer, use, mean, deviation, draw in zip(
            self.layers, self.uses, weights, standard_deviations, noise, strict=False
        ):
            if deviation is not None and use.once:
                layers.append(
                    partial(_noisy, engine=engine, mean=mean, deviation=deviation, draw=draw, bias=layer.bias)
                )
            else:
                drawn = mean if deviation is None else mean + deviation * draw
                layers.append(partial(dense, matrix=drawn, bias=layer.bias))
        return self._run(engine, weights, x, layers)

    # -- factors --------------------------------------------------------------------------------------------------
    def factors(
        self, engine: Engine, weights: Weights, x: Array, directions: Directions | None = None
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


def _noisy(x: Array, *, engine: Engine, mean: Array, deviation: Array, draw: Array, bias: bool) -> Array:
    return noisy_dense(engine, x, mean, deviation, draw, bias)


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


# -- making one -------------------------------------------------------------------------------------------------------
def bayesianize(
    skeleton_type: type[Skeleton],
    module: Any,
    input_shape: Sequence[int],
    layers: str | Sequence[str] | None,
    method: str,
    num_tokens: int | None,
    train: str,
) -> ModuleNetwork:
    """A module as a network with Bayesian layers; see the frameworks' own functions."""
    if not isinstance(module, skeleton_type.module_type):
        raise InvalidInput(f"module must be a {skeleton_type.module_type.__name__} of its framework, got {module!r}")
    if method not in METHODS:
        raise InvalidInput(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if train not in ("all", "bayesian"):
        raise InvalidInput(f"train must be 'all' or 'bayesian', got {train!r}")
    shape = tuple(int(size) for size in input_shape)
    if any(size < 1 for size in shape) or shape != tuple(input_shape):
        raise InvalidInput(f"input_shape must hold integers of at least 1, got {input_shape!r}")
    if num_tokens is not None and not 1 <= num_tokens <= 2**24:
        raise InvalidInput(f"num_tokens must be from 1 to 2**24, got {num_tokens!r}")
    found = skeleton_type.dense_layers(module)
    probe = ModuleNetwork(skeleton_type(module, tuple(found)), tuple(found.values()), (), shape, num_tokens, 0, train)
    uses, num_outputs = _uses(probe)
    chosen = _select(probe.skeleton.class_name, found, uses, layers)
    named = tuple(found[name]._replace(method=found[name].method or method) for name in chosen)
    skeleton = skeleton_type(module, tuple(chosen))
    return ModuleNetwork(skeleton, named, tuple(uses[name] for name in chosen), shape, num_tokens, num_outputs, train)


def _uses(probe: ModuleNetwork) -> tuple[dict[str, Use], int]:
    """How a module applies its dense layers, in the order of their first calls, and the number of its outputs.

    The axis of the rows is the one that grows with them.
    """
    engine = get_engine(probe.engine_name)
    seen: list[dict[str, list[tuple[int, ...]]]] = []
    sizes: list[int] = []

    def run(rows: int) -> Array:
        shapes: dict[str, list[tuple[int, ...]]] = {}

        def recorder(layer: DenseLayer, matrix: Array) -> Layer:
            def call(a: Array) -> Array:
                shapes.setdefault(layer.name, []).append(tuple(a.shape))
                return dense(a, matrix, layer.bias)

            return call

        weights = tuple(engine.asarray(array) for array in probe._start())
        recorders = [recorder(layer, matrix) for layer, matrix in zip(probe.layers, weights, strict=False)]
        outputs = probe._run(engine, weights, engine.asarray(np.zeros((rows, math.prod(probe.shape)))), recorders)
        seen.append(shapes)
        sizes.append(outputs.shape[1])
        return outputs

    with engine.scope():
        for rows in (2, 3):
            probe.skeleton.trace(partial(run, rows))
    return {name: _use(shapes, seen[1].get(name, [])) for name, shapes in seen[0].items()}, sizes[0]


def _use(two: list[tuple[int, ...]], three: list[tuple[int, ...]]) -> Use:
    """How a layer is applied, from the shapes of its inputs for two rows and for three."""
    axes = set()
    for a, b in zip(two, three, strict=False):
        growing = [axis for axis, (p, q) in enumerate(zip(a, b, strict=False)) if (p, q) == (2, 3)]
        whole = len(a) == len(b) and sum(p != q for p, q in zip(a, b, strict=True)) == 1
        axes.add(growing[0] if whole and growing else None)
    axis = axes.pop() if len(two) == len(three) and len(axes) == 1 else None
    return Use(once=len(two) == 1 and len(two[0]) == 2 and axis == 0, row_axis=axis)


def _select(
    owner: str, found: Mapping[str, DenseLayer], uses: Mapping[str, Use], layers: str | Sequence[str] | None
) -> list[str]:
    """Names of the chosen layers, in the order of their calls."""
    called = list(uses)
    if not called:
        raise InvalidInput(f"module {owner} calls no dense layer that could be Bayesian")
    if layers is None:
        return [name for name in called if found[name].method is not None] or called[-1:]
    if layers == "last":
        return called[-1:]
    if layers == "all":
        return called
    if isinstance(layers, str) or not layers or not set(layers) <= set(called):
        raise InvalidInput(
            f"layers must be 'last', 'all' or a list of dense layers that {owner} calls "
            f"({', '.join(called)}), got {layers!r}"
        )
    return [name for name in called if name in set(layers)]


def restore_network(spec: Mapping[str, Any], network: Any = None) -> Network:
    """The network of a stored description.

    Args:
        spec: the description.
        network: for a network of the user's own: the module, or what ``bayesianize`` made of it.

    Raises:
        InvalidInput: it is needed and missing, or not the one that was stored; the message says where they differ.
    """
    if network is None:
        restored: Network = from_spec(spec)
        return restored
    if not isinstance(network, Network):
        network = _bayesianize_as(spec, network)
    got = to_spec(network)
    for key in {**spec, **got}:
        if spec.get(key) != got.get(key):
            raise InvalidInput(
                f"network is not the one that was stored: its {key} is {_difference(got.get(key), spec.get(key))}"
            )
    return network


def _bayesianize_as(spec: Mapping[str, Any], module: Any) -> ModuleNetwork:
    """A module with the same Bayesian layers as a stored description."""
    if spec["type"] != EXTERNAL:
        raise InvalidInput(f"network must be {from_spec(spec)}, as stored, got a {type(module).__name__}")
    if type(module).__qualname__ != spec["class"]:
        raise InvalidInput(f"network must be a {spec['class']}, as stored, got a {type(module).__qualname__}")
    home = importlib.import_module(f".{_HOMES[spec['framework']]}", __package__)
    network: ModuleNetwork = home.bayesianize(
        module,
        spec["input_shape"],
        layers=[layer["name"] for layer in spec["layers"]],
        num_tokens=spec["num_tokens"],
        train=spec["train"],
    )
    methods = [layer["method"] for layer in spec["layers"]]
    marked = tuple(layer._replace(method=method) for layer, method in zip(network.layers, methods, strict=True))
    return replace(network, layers=marked)


_HOMES = {"torch": "torch", "jax": "flax"}


def _difference(got: Any, stored: Any) -> str:
    """Two values, or where two lists begin to differ."""
    if isinstance(got, list) and isinstance(stored, list):
        for a, b in zip_longest(got, stored, fillvalue="nothing"):
            if a != b:
                got, stored = a, b
                break
    return f"{got!r}, expected {stored!r}"
