"""Several posteriors of one structure, weighted: an ensemble, or filters that run side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ..engines.base import Array, Engine
from ..errors import InvalidInput
from .base import Structure

__all__ = ["Mixture", "MixtureState"]


class MixtureState(NamedTuple):
    """Attributes:
    members: state of the members' structure, every array with a leading axis M.
    log_weights: logarithm of each member's weight, (M,), float64; their weights add up to 1.
    """

    members: Any
    log_weights: Float[Array, " M"]


@dataclass(frozen=True)
class Mixture:
    """A weighted mixture of M Gaussians, each in the same structure.

    Batch methods fill it with an ensemble of fits; the filter updates every member with every event and weighs it by
    how well it predicted (Bayesian model averaging), and predictions are mixtures.

    Args:
        of: structure of each member.
        members: M, at least 1.
    """

    of: Structure
    members: int = 5

    def __post_init__(self) -> None:
        if not isinstance(self.of, Structure):
            raise InvalidInput(f"Mixture.of must be a structure, got {self.of!r}")
        if self.members < 1:
            raise InvalidInput(f"Mixture.members must be at least 1, got {self.members!r}")

    def resolve(self, num_layers: int) -> Mixture:
        """The mixture for a network of ``num_layers`` layers."""
        return Mixture(self.of.resolve(num_layers), self.members)

    def to_arrays(self, engine: Engine, state: MixtureState) -> dict[str, np.ndarray]:
        """The state as named host arrays."""
        arrays = {f"members.{name}": array for name, array in self.of.to_arrays(engine, state.members).items()}
        return arrays | {"log_weights": engine.to_numpy(state.log_weights)}

    def from_arrays(self, engine: Engine, arrays: Mapping[str, np.ndarray]) -> MixtureState:
        """The state from :meth:`to_arrays`, on another engine if need be."""
        own = {name.removeprefix("members."): array for name, array in arrays.items() if name.startswith("members.")}
        return MixtureState(self.of.from_arrays(engine, own), engine.asarray(arrays["log_weights"], "float64"))
