"""From a user's module to a network: which layers are Bayesian, how the module applies them, and back from a store."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import numpy as np

from ..inference.errors import InvalidInput
from ..inference.network import Network
from ..inference.spec import EXTERNAL, from_spec, to_spec
from .base import METHODS, DenseLayer, ModuleNetwork, Skeleton, Use
from .probe import Probe

__all__ = ["bayesianize", "restore_network"]

_HOMES = {"torch": "torch", "jax": "flax"}
"""Module of this package by engine."""


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
    shape = _checked_shape(input_shape)
    if num_tokens is not None and not (isinstance(num_tokens, int | np.integer) and 1 <= num_tokens <= 2**24):
        raise InvalidInput(f"num_tokens must be an integer from 1 to 2**24, got {num_tokens!r}")
    probe = Probe.of(skeleton_type, module, shape, num_tokens)
    found = dict(probe.layers)
    uses, outputs = probe.uses()
    for name in probe.read_elsewhere([name for name in uses if found[name].is_free], outputs):
        found[name] = found[name]._replace(is_free=False)
    chosen = _select(type(module).__qualname__, found, uses, layers)
    named = tuple(found[name]._replace(method=found[name].method or method) for name in chosen)
    skeleton = skeleton_type(module, tuple(chosen))
    used = tuple(uses[name] for name in chosen)
    return ModuleNetwork(skeleton, named, used, shape, num_tokens, outputs.shape[1], train)


def _checked_shape(input_shape: Any) -> tuple[int, ...]:
    is_sequence = isinstance(input_shape, Sequence) and not isinstance(input_shape, str)
    if not is_sequence or not all(isinstance(size, int | np.integer) and size >= 1 for size in input_shape):
        raise InvalidInput(f"input_shape must hold integers of at least 1, got {input_shape!r}")
    return tuple(int(size) for size in input_shape)


def _select(
    owner: str, found: Mapping[str, DenseLayer], uses: Mapping[str, Use], layers: str | Sequence[str] | None
) -> list[str]:
    """Names of the chosen layers, in the order of their calls."""
    free = [name for name in uses if found[name].is_free]
    if not free:
        reason = f"; the weights of {', '.join(uses)} are tied" if uses else ""
        raise InvalidInput(f"module {owner} calls no dense layer that could be Bayesian{reason}")
    marked = [name for name in free if found[name].method is not None]
    if layers == "last" or (layers is None and not marked):
        layers = list(uses)[-1:]
    if layers is None:
        return marked
    if layers == "all":
        return free
    names = isinstance(layers, Sequence) and not isinstance(layers, str) and [n for n in layers if isinstance(n, str)]
    tied = [name for name in names or () if name in found and not found[name].is_free]
    if tied:
        raise InvalidInput(
            f"layers must have weights that serve their own calls alone, those of {tied[0]!r} in {owner} are tied; "
            f"others that it calls are {', '.join(free)}"
        )
    if not names or len(names) != len(layers) or not set(names) <= set(free):
        raise InvalidInput(
            f"layers must be 'last', 'all' or a list of dense layers that {owner} calls "
            f"({', '.join(free)}), got {layers!r}"
        )
    return [name for name in free if name in set(names)]


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
    stored = {parameter["name"]: parameter["trained"] for parameter in spec["parameters"]}
    skeleton = network.skeleton  # what a fit trained is not for the module to say again: it may be frozen to serve
    skeleton.parameters = tuple(p._replace(trained=stored.get(p.name, p.trained)) for p in skeleton.parameters)
    methods = [layer["method"] for layer in spec["layers"]]
    marked = tuple(layer._replace(method=method) for layer, method in zip(network.layers, methods, strict=True))
    return replace(network, layers=marked)


def _difference(got: Any, stored: Any) -> str:
    """Two values, or where two lists begin to differ."""
    if isinstance(got, list) and isinstance(stored, list):
        for a, b in zip_longest(got, stored, fillvalue="nothing"):
            if a != b:
                got, stored = a, b
                break
    return f"{got!r}, expected {stored!r}"
