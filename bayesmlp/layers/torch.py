"""Bayesian dense layers in PyTorch modules.

::

    network = bayesmlp.layers.torch.bayesianize(cnn, input_shape=(1, 28, 28), layers="last")
    model = bm.BayesianMLP(network, bm.Categorical(10)).fit(x, y)
"""

from __future__ import annotations

import copy
import hashlib
import math
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np

from ..inference.engines import get_engine
from ..inference.errors import MissingDependency
from ..inference.network import noisy_dense
from ..inference.priors import NormalPrior
from .base import DenseLayer, Layer, ModuleNetwork, Parameter, Skeleton, dense_matrix, log_deviations, mean_field_kl
from .conversion import bayesianize as _bayesianize

try:
    import torch
except ImportError as error:
    raise MissingDependency("torch", "torch") from error

from torch import nn

__all__ = ["LaplaceLinear", "VariationalLinear", "bayesianize"]


class LaplaceLinear(nn.Linear):
    """A dense layer that :func:`bayesianize` gives a Laplace posterior: trained as any other, curvature afterwards.

    In a training loop of the user's own it is an ``nn.Linear``.
    """

    method: ClassVar[str] = "laplace"


class VariationalLinear(nn.Linear):
    """A dense layer with independent normal weights: a mean (``weight``, ``bias``) and a standard deviation for each.

    In training mode it samples, by local reparametrisation where its inputs are one row each, else one draw of the
    weights for the whole batch; in evaluation mode it applies the means. Add :meth:`kl_divergence` to the negative log
    likelihood of the whole data set (Blundell et al. 2015, "Weight uncertainty in neural networks").

    Means start as those of ``nn.Linear``.

    Args:
        in_features: number of inputs.
        out_features: number of outputs.
        bias: whether there is one.
        prior: of the weights; one that is given must be the model's for this layer, too, after :func:`bayesianize`.
        initial_deviation: standard deviation of a weight at the start, relative to its prior's.
        device: as for ``nn.Linear``.
        dtype: as for ``nn.Linear``.
    """

    method: ClassVar[str] = "variational"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        prior: NormalPrior | None = None,
        initial_deviation: float = 0.02,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.own_prior, self.prior = prior, prior or NormalPrior()
        start = log_deviations(self.prior, in_features, out_features, initial_deviation)
        self.log_deviation = nn.Parameter(self._like(start[: in_features + bias]))

    def _like(self, values: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(values, dtype=self.weight.dtype, device=self.weight.device)

    def _mean(self) -> torch.Tensor:
        """The means as one matrix (inputs + 1, outputs), the bias in the last row."""
        return self.weight.T if self.bias is None else torch.cat([self.weight.T, self.bias[None]])

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(input)
        mean, variance = self._mean(), torch.exp(2 * self.log_deviation)
        if input.ndim == 2:
            draw = torch.randn(len(input), self.out_features, dtype=mean.dtype, device=mean.device)
            return noisy_dense(get_engine("torch"), input, mean, variance, draw, self.bias is not None)
        drawn = mean + torch.sqrt(variance) * torch.randn_like(mean)
        inputs = self.in_features
        return nn.functional.linear(input, drawn[:inputs].T, None if self.bias is None else drawn[inputs])

    def kl_divergence(self) -> torch.Tensor:
        """KL divergence of the layer's weights from their prior, in nats."""
        rows = self.in_features + 1
        precision = self._like(self.prior.precision([(rows, self.out_features)])[0][: len(self.log_deviation)])
        return mean_field_kl(torch, self._mean(), self.log_deviation, precision)


def bayesianize(
    module: nn.Module,
    input_shape: Sequence[int],
    *,
    layers: str | Sequence[str] | None = None,
    method: str = "laplace",
    num_tokens: int | None = None,
    train: str = "all",
) -> ModuleNetwork:
    """A module as a network whose dense layers have a posterior; the module itself is left as it is.

    Everything else of the module (convolutions, embeddings, normalisations, other dense layers) is a point: trained by
    ``fit`` under a standard normal prior, stored beside the posterior, and not moved by updates; a constant where it
    does not require gradients. The copy runs in evaluation mode: no dropout, and batch normalisation with the
    statistics that the module has now, as constants.

    Args:
        module: takes a batch ``(rows, *input_shape)`` to outputs (rows, outputs); its rows must not depend on each
            other.
        input_shape: of one input; a model takes inputs of shape ``(rows, *input_shape)``, or flat rows.
        layers: ``"last"`` or ``"all"`` of the dense layers that the module calls, or their names; None: those that are
            :class:`VariationalLinear` or :class:`LaplaceLinear`, else the last. A layer whose weights are tied to
            others, or read outside its calls, can't be chosen, and is no part of ``"all"``.
        method: of chosen layers that are a plain ``nn.Linear``: ``"laplace"`` or ``"variational"``.
        num_tokens: inputs are integers from 0 to below this number, as an ``nn.Embedding`` takes them.
        train: ``"all"``: a fit trains the whole module; ``"bayesian"``: only the Bayesian layers.

    Returns:
        A network for :class:`~bayesmlp.BayesianMLP`.

    Raises:
        InvalidInput: no such layer, or one that the module does not call or has tied; a module that can't be copied, or
            does not take inputs of that shape or number of tokens.
    """
    return _bayesianize(TorchSkeleton, module, input_shape, layers, method, num_tokens, train)


class TorchSkeleton(Skeleton):
    """A PyTorch module as a pure function."""

    framework = "torch"
    module_type = nn.Module

    def __init__(self, module: nn.Module, taken_out: Sequence[str], keep: bool = False) -> None:
        self.class_name = type(module).__qualname__
        self._module = copy.deepcopy(module).eval().requires_grad_(False)
        self._lock = threading.Lock()
        self._layers: Mapping[str, Layer] = {}
        layers = {name: self._module.get_submodule(name) for name in taken_out}
        weights = {f"{name}.{own}" for name, layer in layers.items() for own, _ in layer.named_parameters()}
        own = set() if keep else weights
        trains = {name: value.requires_grad for name, value in module.named_parameters()}
        points = [(name, value, trains[name]) for name, value in self._module.named_parameters() if name not in own]
        arrays = [*points, *((name, value, False) for name, value in self._module.named_buffers())]
        self.parameters = tuple(
            Parameter(name, _to_numpy(value), flag) for name, value, flag in arrays if value.is_floating_point()
        )
        self._integers = {name: value for name, value, _ in arrays if not value.is_floating_point()}
        self.integers = _hash(self._integers)
        for name, layer in layers.items():
            layer.forward = partial(self._call, name)
            layer.register_forward_pre_hook(_nothing)  # fused kernels of transformer layers pass hooked layers by
        for parameter in self._module.parameters():
            if parameter.is_floating_point():
                parameter.fill_(math.nan)  # values are given by name at every run; what reads others shall not go on

    @classmethod
    def dense_layers(cls, module: nn.Module) -> dict[str, DenseLayer]:
        owners = Counter(id(parameter) for part in module.modules() for parameter in part.parameters(recurse=False))
        found = {}
        for name, layer in module.named_modules():
            plain = isinstance(layer, nn.Linear) and type(layer).forward is nn.Linear.forward
            if not (plain or isinstance(layer, VariationalLinear)) or not name:
                continue
            bias = None if layer.bias is None else _to_numpy(layer.bias)
            matrix = dense_matrix(_to_numpy(layer.weight).T, bias)
            arrays = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
            is_free = all(owners[id(array)] == 1 for array in arrays) and not hasattr(layer, "parametrizations")
            marks = getattr(layer, "method", None), is_free, getattr(layer, "own_prior", None)
            found[name] = DenseLayer(name, matrix, bias is not None, *marks)
        return found

    def _call(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self._layers[name](x)

    def run(self, arrays: Mapping[str, torch.Tensor], x: torch.Tensor, layers: Mapping[str, Layer]) -> torch.Tensor:
        integers = {name: value.to(x.device) for name, value in self._integers.items()}
        with self._lock:  # a functional call puts the arrays into the module for its duration
            self._layers = layers
            try:
                outputs: torch.Tensor = torch.func.functional_call(self._module, {**arrays, **integers}, (x,))
                return outputs
            finally:
                self._layers = {}

    def trace(self, function: Callable[[], torch.Tensor]) -> np.ndarray:
        return _to_numpy(function())


def _nothing(module: nn.Module, inputs: Any) -> None:
    """A hook that does nothing."""


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    return np.array(tensor.detach().cpu().double().numpy())


def _hash(integers: Mapping[str, torch.Tensor]) -> str:
    """Of the arrays that stay with the module; counts of batches do not matter in evaluation mode."""
    digest = hashlib.sha256()
    for name in sorted(integers):
        if not name.endswith("num_batches_tracked"):
            values = np.ascontiguousarray(integers[name].cpu().numpy())
            digest.update(f"{name} {values.dtype.str} {values.shape}\n".encode())
            digest.update(values.tobytes())
    return digest.hexdigest()
