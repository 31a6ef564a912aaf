"""Several posteriors of one structure, weighted: an ensemble, or filters that run side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ..checks import is_count, is_number, positive_numbers
from ..engines.base import Array, Engine
from ..errors import InvalidInput
from .base import Structure

__all__ = ["EvidenceGrid", "Mixture", "MixtureState"]


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

    From the prior alone, members start at initialisations of their own, and with ``scales`` under priors of their own:
    the stream's evidence then chooses the scale of the prior, on which a single pass depends more than on all else.

    Args:
        of: structure of each member.
        members: M, at least 1; the number of scales where these are given.
        scales: factor on the prior's scale for each member that starts from the prior; None: 1 for all.
        dispersions: likewise on the dispersion that the likelihood starts from (learned noise), as many.
        prune_below: log weight, relative to the heaviest member's, below which a member counts for nothing. Once half
            of the members do, they are dropped for good, so that a stream soon costs what a single filter costs. None:
            none is dropped. A member whose step would not be finite then counts for nothing; otherwise the whole step
            fails.

    Raises:
        InvalidInput: a number out of its range.
    """

    of: Structure
    members: int = 5
    scales: tuple[float, ...] | None = None
    dispersions: tuple[float, ...] | None = None
    prune_below: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.of, Structure):
            raise InvalidInput(f"Mixture.of must be a structure, got {self.of!r}")
        for name in ("scales", "dispersions"):
            if (given := getattr(self, name)) is not None:
                factors = positive_numbers(f"Mixture.{name}", given)
                object.__setattr__(self, name, factors)
                object.__setattr__(self, "members", len(factors))
        if self.scales and self.dispersions and len(self.scales) != len(self.dispersions):
            raise InvalidInput(
                f"Mixture.scales and dispersions must be equally long, got {len(self.scales)} and "
                f"{len(self.dispersions)}"
            )
        if not is_count(self.members):
            raise InvalidInput(f"Mixture.members must be an integer of at least 1, got {self.members!r}")
        limit = self.prune_below
        if limit is not None and not (is_number(limit) and limit < 0):
            raise InvalidInput(f"Mixture.prune_below must be a negative number or None, got {limit!r}")

    def resolve(self, num_layers: int) -> Mixture:
        """The mixture for a network of ``num_layers`` layers."""
        return replace(self, of=self.of.resolve(num_layers))

    def start(self, member: int) -> tuple[float, float]:
        """Factors on the prior's scale and on the likelihood's dispersion."""
        return (self.scales or (1.0,) * self.members)[member], (self.dispersions or (1.0,) * self.members)[member]

    def worth_keeping(self, log_weights: np.ndarray) -> np.ndarray:
        """Indices of the members that stay: all, or at most half, since each change compiles the step anew."""
        if self.prune_below is not None:
            kept = np.flatnonzero(log_weights >= log_weights.max() + self.prune_below)
            if 2 * len(kept) <= len(log_weights):
                return kept
        return np.arange(len(log_weights))

    def to_arrays(self, engine: Engine, state: MixtureState) -> dict[str, np.ndarray]:
        """The state as named host arrays."""
        arrays = {f"members.{name}": array for name, array in self.of.to_arrays(engine, state.members).items()}
        return arrays | {"log_weights": engine.to_numpy(state.log_weights)}

    def from_arrays(self, engine: Engine, arrays: Mapping[str, np.ndarray]) -> MixtureState:
        """The state from :meth:`to_arrays`, on another engine if need be."""
        own = {name.removeprefix("members."): array for name, array in arrays.items() if name.startswith("members.")}
        return MixtureState(self.of.from_arrays(engine, own), engine.asarray(arrays["log_weights"], "float64"))


def EvidenceGrid(  # noqa: N802
    of: Structure,
    scales: Sequence[float] = (0.5, 1.0, 2.0, 4.0),
    dispersions: Sequence[float] = (1.0,),
    prune_below: float = -12.0,
) -> Mixture:
    """Filters under every pair of a prior scale and a starting dispersion, pruned to those that predict the stream.

    Args:
        of: structure of each.
        scales: factors on the scale of the model's prior.
        dispersions: factors on the dispersion that the likelihood starts from, where it learns one.
        prune_below: see :class:`Mixture`.

    Raises:
        InvalidInput: no structure, or factors that are not positive numbers.
    """
    scales = positive_numbers("EvidenceGrid.scales", scales)
    dispersions = positive_numbers("EvidenceGrid.dispersions", dispersions)
    pairs = [(scale, dispersion) for scale in scales for dispersion in dispersions]
    return Mixture(
        of, scales=tuple(s for s, _ in pairs), dispersions=tuple(d for _, d in pairs), prune_below=prune_below
    )
