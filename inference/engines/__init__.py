"""Engines by name: ``"numpy"``, ``"torch"``, ``"jax"``, ``"torch:cuda"``, ``"jax:gpu"``."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import lru_cache
from typing import Any

from ..errors import InvalidInput
from .base import Array, Engine, map_arrays
from .numpy_engine import NumpyEngine

__all__ = ["Array", "Engine", "NumpyEngine", "engine_of", "get_engine", "map_arrays"]


@lru_cache
def get_engine(name: str | Engine, dtype: str | None = None) -> Engine:
    """The engine ``framework[:device]``.

    Args:
        name: ``"numpy"``, ``"torch"`` or ``"jax"``, with an optional device: ``"torch:cuda"``, ``"torch:cuda:1"``,
            ``"jax:gpu"``, ``"jax:cpu"``; or an engine.
        dtype: ``"float32"`` (default of torch and jax) or ``"float64"`` (default of numpy); None keeps an engine's.

    Raises:
        InvalidInput: an unknown framework or dtype.
        MissingDependency: the framework is not installed.
        DeviceUnavailable: the device is not on this machine.
    """
    if isinstance(name, Engine):
        return name if dtype is None else replace(name, dtype=dtype)
    framework, _, device = name.partition(":") if isinstance(name, str) else ("", "", "")
    if framework == "numpy" and not device:
        return NumpyEngine(dtype=dtype or "float64")
    if framework == "torch":
        from .torch_engine import torch_engine

        return torch_engine(device or "cpu", dtype or "float32")
    if framework == "jax":
        from .jax_engine import jax_engine

        return jax_engine(device or "cpu", dtype or "float32")
    raise InvalidInput(f"engine must be 'numpy', 'torch[:device]' or 'jax[:device]', got {name!r}")


def engine_of(array: Any) -> Engine:
    """The engine whose framework an array belongs to; plain numbers and sequences belong to NumPy."""
    module = type(array).__module__.partition(".")[0]
    if module == "torch":
        return get_engine("torch")
    if module in ("jax", "jaxlib") and "jax" in sys.modules:
        return get_engine("jax")
    return get_engine("numpy")
