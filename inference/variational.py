"""Mean-field variational inference: independent normal weights that maximise the evidence lower bound.

Blundell et al. (2015), "Weight uncertainty in neural networks", with the local reparametrisation of Kingma, Salimans
and Welling (2015).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .assembly import LayerMethod
from .errors import InvalidInput
from .network import Network
from .training import TrainingOptions

__all__ = ["Variational"]


@dataclass(frozen=True)
class Variational(LayerMethod):
    """Fit a mean and a standard deviation for every weight.

    The result is stored in the model's structure as independent weights; a structure that can hold correlations learns
    them from the events that follow.

    Args:
        training: how the bound is maximised.
        initial_deviation: starting standard deviation of a weight, relative to its prior's.
    """

    training: TrainingOptions = field(default_factory=TrainingOptions)
    initial_deviation: float = 0.02

    def __post_init__(self) -> None:
        if not self.initial_deviation > 0:
            raise InvalidInput(f"Variational.initial_deviation must be positive, got {self.initial_deviation!r}")

    def deviations(self, network: Network) -> list[float | None]:
        """All Bayesian layers have variational weights."""
        return [None if method is None else self.initial_deviation for method in network.layer_methods]
