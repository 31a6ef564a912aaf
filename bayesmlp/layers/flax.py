"""Bayesian dense layers in flax nnx modules.

::

    network = bayesmlp.layers.flax.bayesianize(cnn, input_shape=(28, 28, 1), layers="last")
    model = bm.BayesianMLP(network, bm.Categorical(10)).fit(x, y)
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ..inference.engines import get_engine
from ..inference.errors import InvalidInput, MissingDependency
from ..inference.network import noisy_dense
from ..inference.priors import NormalPrior
from .base import (
    DenseLayer,
    Layer,
    ModuleNetwork,
    Parameter,
    Skeleton,
    dense_matrix,
    log_deviations,
    mean_field_kl,
)
from .conversion import bayesianize as _bayesianize

try:
    import jax
    import jax.numpy as jnp
    from flax import nnx
except ImportError as error:
    raise MissingDependency(error.name or "flax", "jax") from error

__all__ = ["LaplaceLinear", "VariationalLinear", "bayesianize"]


class LaplaceLinear(nnx.Linear):
    """A dense layer that :func:`bayesianize` gives a Laplace posterior: trained as any other, curvature afterwards.

    In a training loop of the user's own it is an ``nnx.Linear``.
    """

    method: ClassVar[str] = "laplace"


class VariationalLinear(nnx.Linear):
    """A dense layer with independent normal weights: a mean (``kernel``, ``bias``) and a standard deviation for each.

    In training mode it samples, by local reparametrisation where its inputs are one row each, else one draw of the
    weights for the whole batch; in evaluation mode (``module.eval()``) it applies the means. Add :meth:`kl_divergence`
    to the negative log likelihood of the whole data set (Blundell et al. 2015, "Weight uncertainty in neural
    networks").

    Means start as those of ``nnx.Linear``.

    Args:
        in_features: number of inputs.
        out_features: number of outputs.
        prior: of the weights; one that is given must be the model's for this layer, too, after :func:`bayesianize`.
        initial_deviation: standard deviation of a weight at the start, relative to its prior's.
        rngs: of the initialisation; the noise comes from its stream ``noise``.
        **options: as for ``nnx.Linear``.
    """

    method: ClassVar[str] = "variational"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        prior: NormalPrior | None = None,
        initial_deviation: float = 0.02,
        rngs: nnx.Rngs,
        **options: Any,
    ) -> None:
        super().__init__(in_features, out_features, rngs=rngs, **options)
        self.own_prior, self.prior = prior, prior or NormalPrior()
        start = log_deviations(self.prior, in_features, out_features, initial_deviation)
        self.log_deviation = nnx.Param(jnp.asarray(start[: in_features + self.use_bias], self.param_dtype))
        self.deterministic = False
        self.noise = rngs.noise.fork()

    def _mean(self) -> jax.Array:
        """The means as one matrix (inputs + 1, outputs), the bias in the last row."""
        kernel = self.kernel[...]
        return kernel if self.bias is None else jnp.concatenate([kernel, self.bias[...][None]])

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        if self.deterministic:
            return super().__call__(inputs, out_sharding)
        mean, variance = self._mean(), jnp.exp(2 * self.log_deviation[...])
        if inputs.ndim == 2:
            draw = jax.random.normal(self.noise(), (len(inputs), self.out_features), mean.dtype)
            return noisy_dense(get_engine("jax"), inputs, mean, variance, draw, self.use_bias)
        drawn = mean + jnp.sqrt(variance) * jax.random.normal(self.noise(), mean.shape, mean.dtype)
        outputs = inputs @ drawn[: self.in_features]
        return outputs + drawn[self.in_features] if self.use_bias else outputs

    def kl_divergence(self) -> jax.Array:
        """KL divergence of the layer's weights from their prior, in nats."""
        rows = self.in_features + 1
        precision = self.prior.precision([(rows, self.out_features)])[0][: self.log_deviation.shape[0]]
        return mean_field_kl(jnp, self._mean(), self.log_deviation[...], jnp.asarray(precision, self.param_dtype))


def bayesianize(
    module: nnx.Module,
    input_shape: Sequence[int],
    *,
    layers: str | Sequence[str] | None = None,
    method: str = "laplace",
    num_tokens: int | None = None,
    train: str = "all",
) -> ModuleNetwork:
    """A module as a network whose dense layers have a posterior; the module itself is left as it is.

    Everything else of the module (convolutions, embeddings, normalisations, other dense layers) is a point: trained by
    ``fit`` under a standard normal prior, stored beside the posterior, and not moved by updates. The copy runs in
    evaluation mode: no dropout, and batch normalisation with the statistics that the module has now, as constants.

    Args:
        module: takes a batch ``(rows, *input_shape)`` to outputs (rows, outputs); its rows must not depend on each
            other.
        input_shape: of one input; a model takes inputs of shape ``(rows, *input_shape)``, or flat rows.
        layers: ``"last"`` or ``"all"`` of the dense layers that the module calls, or their names (paths joined by
            dots); None: those that are :class:`VariationalLinear` or :class:`LaplaceLinear`, else the last. A layer
            whose weights are tied to others, or read outside its calls, can't be chosen, and is no part of ``"all"``.
        method: of chosen layers that are a plain ``nnx.Linear``: ``"laplace"`` or ``"variational"``.
        num_tokens: inputs are integers from 0 to below this number, as an ``nnx.Embed`` takes them.
        train: ``"all"``: a fit trains the whole module; ``"bayesian"``: only the Bayesian layers.

    Returns:
        A network for :class:`~bayesmlp.BayesianMLP`.

    Raises:
        InvalidInput: no such layer, or one that the module does not call or has tied; a module that can't be copied, or
            does not take inputs of that shape or number of tokens.
    """
    return _bayesianize(FlaxSkeleton, module, input_shape, layers, method, num_tokens, train)


class _TakenOut(nnx.Module):
    """Stands in a module for a dense layer that was taken out, and has its attributes, but for weights not kept."""

    def __init__(self, name: str, own: nnx.Module, keep: bool) -> None:
        weights = [key for key, value in vars(own).items() if isinstance(value, nnx.Variable)]
        self.name, self.gone = name, () if keep else tuple(weights)
        for key in self.gone:
            delattr(own, key)
        self.own = own
        self.layer: Layer | None = None

    def __call__(self, inputs: jax.Array) -> jax.Array:
        assert self.layer is not None
        return self.layer(inputs)

    def __getattr__(self, key: str) -> Any:
        own = vars(self).get("own")
        if own is None:  # not made yet
            raise AttributeError(key)
        if key in self.gone:
            raise InvalidInput(f"layers must have weights that serve their own calls alone, {self.name}.{key} is read")
        return getattr(own, key)


class FlaxSkeleton(Skeleton):
    """A flax nnx module as a pure function."""

    framework = "jax"
    module_type = nnx.Module

    def __init__(self, module: nnx.Module, taken_out: Sequence[str], keep: bool = False) -> None:
        self.class_name = type(module).__qualname__
        copy = nnx.clone(module)
        copy.eval()
        layers = {_name(path): layer for path, layer in nnx.iter_modules(copy)}
        stand_ins = {id(layers[name]): _TakenOut(name, layers[name], keep) for name in taken_out}
        for parent in list(layers.values()):
            for key, child in list(nnx.iter_children(parent)):
                if id(child) in stand_ins:
                    _put(parent, key, stand_ins[id(child)])
        self._graph, self._floats, self._rest = nnx.split(copy, _is_float, ...)
        flat = nnx.to_flat_state(self._floats)
        self.parameters = tuple(
            Parameter(_name(path), np.asarray(value[...], np.float64), isinstance(value, nnx.Param))
            for path, value in flat
        )
        self.integers = _hash(self._rest)

    @classmethod
    def dense_layers(cls, module: nnx.Module) -> dict[str, DenseLayer]:
        modules = list(nnx.iter_modules(module))
        owners = Counter(id(value) for _, part in modules for value in vars(part).values())
        found = {}
        for path, layer in modules:
            plain = isinstance(layer, nnx.Linear) and type(layer).__call__ is nnx.Linear.__call__
            if (plain or isinstance(layer, VariationalLinear)) and path:
                name, bias = _name(path), None if layer.bias is None else layer.bias[...]
                matrix = dense_matrix(np.asarray(layer.kernel[...]), bias)
                arrays = [layer.kernel] if layer.bias is None else [layer.kernel, layer.bias]
                is_free = all(owners[id(array)] == 1 for array in arrays)
                marks = getattr(layer, "method", None), is_free, getattr(layer, "own_prior", None)
                found[name] = DenseLayer(name, matrix, bias is not None, *marks)
        return found

    def run(self, arrays: Mapping[str, jax.Array], x: jax.Array, layers: Mapping[str, Layer]) -> jax.Array:
        values = [(path, value.replace(arrays[_name(path)])) for path, value in nnx.to_flat_state(self._floats)]
        module = nnx.merge(self._graph, nnx.from_flat_state(values), self._rest)
        for _, part in nnx.iter_modules(module):
            if isinstance(part, _TakenOut):
                part.layer = layers[part.name]
        outputs: jax.Array = module(x)
        return outputs

    def trace(self, function: Callable[[], jax.Array]) -> np.ndarray:
        return np.zeros(jax.eval_shape(function).shape)


def _name(path: Sequence[Any]) -> str:
    return ".".join(map(str, path))


def _put(parent: Any, key: Any, child: nnx.Module) -> None:
    """Replace a child of a module."""
    if isinstance(key, str):
        setattr(parent, key, child)
    else:
        parent[key] = child


def _is_float(path: Sequence[Any], value: Any) -> bool:
    return isinstance(value, nnx.Variable) and jnp.issubdtype(value.dtype, jnp.floating)


def _hash(rest: Any) -> str:
    """Of the integer arrays, which stay with the module; states of random streams do not matter in evaluation mode."""
    digest = hashlib.sha256()
    for path, value in nnx.to_flat_state(rest):
        if not isinstance(value, nnx.RngState):
            values = np.asarray(value[...] if isinstance(value, nnx.Variable) else value)
            digest.update(f"{_name(path)} {values.dtype.str} {values.shape}\n".encode())
            digest.update(values.tobytes())
    return digest.hexdigest()
