"""Draws of the weights, as a sampler leaves them: the posterior itself, not an approximation in closed form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ..engines.base import Array, Engine
from ..errors import InvalidInput
from .base import Structure

__all__ = ["Particles", "ParticlesState", "effective_size"]

STORED = ("float32", "float16")


class ParticlesState(NamedTuple):
    """Attributes:
    draws: weights of every layer, (S, ...).
    parameters: likelihood parameters drawn with them, each (S,), float64; see :meth:`Likelihood.fit_parameters`.
    log_weights: logarithm of each draw's weight, (S,), float64; the weights add up to 1.
    gaussian: state of the structure that an update goes on from.
    distance: of that Gaussian from the draws, see :func:`~..sampling.projection.function_distance`.
    """

    draws: tuple[Array, ...]
    parameters: tuple[Array, ...]
    log_weights: Float[Array, " S"]
    gaussian: Any
    distance: Float[Array, ""]


@dataclass(frozen=True)
class Particles:
    """S weighted draws from several chains, and the Gaussian that stands for them where one is needed.

    It answers by the mixture of its networks. It is no filter: an update goes on from the Gaussian, and says how far
    that is from the draws; or :meth:`BayesianMLP.reweight` weighs the draws anew.

    Args:
        of: structure of the Gaussian.
        chains: C, of equally many draws each.
        draws: of each chain.
        stored: ``"float32"``, or ``"float16"``: half the bytes in a store, every weight to a relative 5e-4
            (below 6e-5 to 3e-8).

    Raises:
        InvalidInput: a number below 1 or another type.
    """

    of: Structure
    chains: int
    draws: int
    stored: str = "float32"

    def __post_init__(self) -> None:
        for name in ("chains", "draws"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise InvalidInput(f"Particles.{name} must be an integer of at least 1, got {getattr(self, name)!r}")
        if self.stored not in STORED:
            raise InvalidInput(f"Particles.stored must be one of {', '.join(STORED)}, got {self.stored!r}")

    @property
    def size(self) -> int:
        """S."""
        return self.chains * self.draws

    def thinned(self, draws: int) -> tuple[Particles, np.ndarray]:
        """Fewer draws of each chain, evenly spaced, and the indices of those kept among all S."""
        if not 1 <= draws <= self.draws:
            raise InvalidInput(f"draws must be from 1 to {self.draws}, got {draws!r}")
        kept = np.linspace(0, self.draws - 1, draws).round().astype(int)
        rows = (np.arange(self.chains)[:, None] * self.draws + kept).ravel()
        return replace(self, draws=draws), rows

    def to_arrays(self, engine: Engine, state: ParticlesState) -> dict[str, np.ndarray]:
        """The state as named host arrays."""
        arrays = {f"gaussian.{name}": array for name, array in self.of.to_arrays(engine, state.gaussian).items()}
        for name, values in (("draws", state.draws), ("parameters", state.parameters)):
            arrays |= {f"{name}.{index}": engine.to_numpy(value) for index, value in enumerate(values)}
        if self.stored == "float16":
            arrays |= {k: v.astype(np.float16) for k, v in arrays.items() if k.startswith("draws.")}
        rest = {"log_weights": state.log_weights, "distance": state.distance}
        return arrays | {name: engine.to_numpy(value) for name, value in rest.items()}

    def from_arrays(self, engine: Engine, arrays: Mapping[str, np.ndarray]) -> ParticlesState:
        """The state from :meth:`to_arrays`, on another engine if need be."""

        def listed(name: str) -> list[np.ndarray]:
            found = {k: v for k, v in arrays.items() if k.startswith(f"{name}.")}
            return [found[f"{name}.{index}"] for index in range(len(found))]

        own = {name.removeprefix("gaussian."): a for name, a in arrays.items() if name.startswith("gaussian.")}
        return ParticlesState(
            tuple(engine.asarray(array, engine.dtype) for array in listed("draws")),
            tuple(engine.asarray(array, "float64") for array in listed("parameters")),
            engine.asarray(arrays["log_weights"], "float64"),
            self.of.from_arrays(engine, own),
            engine.asarray(arrays["distance"], "float64"),
        )


def effective_size(log_weights: np.ndarray) -> float:
    """1 / Σ w² of normalised weights w: how many equally weighted draws say as much (Kong 1992)."""
    shifted = np.exp(log_weights - np.max(log_weights))
    return float(math.fsum(shifted) ** 2 / math.fsum(shifted * shifted))
