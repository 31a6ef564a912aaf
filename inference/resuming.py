"""Trainings that may be interrupted: what is kept of them, and how they go on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .engines.base import Engine, leaves_of, map_arrays

__all__ = ["Checkpoint", "from_leaves", "to_leaves"]


class Checkpoint(ABC):
    """Keeps the state of a fit's trainings, which are numbered in the order in which they begin."""

    @abstractmethod
    def begin(self) -> Mapping[str, np.ndarray] | None:
        """Begin the next training; what was kept of it, or None."""

    @abstractmethod
    def due(self) -> bool:
        """Whether it is time to keep something."""

    @abstractmethod
    def keep(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep the arrays, in place of those that were kept of this training before."""


def to_leaves(engine: Engine, name: str, tree: Any) -> dict[str, np.ndarray]:
    """The arrays of a tree on the host, ``name.0`` and so on."""
    return {f"{name}.{index}": engine.to_numpy(leaf) for index, leaf in enumerate(leaves_of(tree))}


def from_leaves(engine: Engine, name: str, arrays: Mapping[str, np.ndarray], like: Any) -> Any:
    """The tree from :func:`to_leaves`, in the form of ``like``."""

    def saved() -> Iterator[Any]:
        for index in range(len(leaves_of(like))):
            array = arrays[f"{name}.{index}"]
            yield engine.asarray(array, str(array.dtype))

    leaves = saved()
    return map_arrays(lambda _: next(leaves), like)
