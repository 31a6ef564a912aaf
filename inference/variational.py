"""Mean-field variational inference: independent normal weights that maximise the evidence lower bound.

Blundell et al. (2015), "Weight uncertainty in neural networks", with the local reparametrisation of Kingma, Salimans
and Welling (2015).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .assembly import LayerMethod
from .checks import is_number
from .errors import InvalidInput
from .network import Network
from .steps import Optimizer, optimizer_named
from .training import TrainingOptions, check_training

__all__ = ["Variational"]


@dataclass(frozen=True)
class Variational(LayerMethod):
    """Fit a mean and a standard deviation for every weight.

    The result is stored in the model's structure as independent weights; a structure that can hold correlations learns
    them from the events that follow.

    Args:
        training: how the bound is maximised.
        initial_deviation: starting standard deviation of a weight that the data says nothing about, relative to its
            prior's.
        initial_curvature: κ, at least 0, by which the data narrows the start: a weight that multiplies inputs a starts
            with precision p / d² + κ Σ a², for the prior's precision p and the initial deviation d. With d = 1 weights
            of inputs that are always 0 keep their prior, and inputs of another kind than the data's are uncertain. None
            for the optimizer's own: 0 for Adam, 1 for IVON.
        optimizer: ``"adam"``, with local reparametrisation, or ``"ivon"``; or either with settings of its own, as
            ``Adam(...)`` or ``IVON(...)``.
    """

    training: TrainingOptions = field(default_factory=TrainingOptions)
    initial_deviation: float = 0.02
    initial_curvature: float | None = None
    optimizer: Optimizer | str = "adam"

    def __post_init__(self) -> None:
        check_training(self)
        if not is_number(self.initial_deviation) or self.initial_deviation <= 0:
            raise InvalidInput(
                f"Variational.initial_deviation must be positive and finite, got {self.initial_deviation!r}"
            )
        if self.initial_curvature is not None and not (
            is_number(self.initial_curvature) and self.initial_curvature >= 0
        ):
            raise InvalidInput(f"Variational.initial_curvature must be at least 0, got {self.initial_curvature!r}")
        optimizer_named(self.optimizer)

    def deviations(self, network: Network) -> list[float | None]:
        """All Bayesian layers have variational weights."""
        return [None if method is None else self.initial_deviation for method in network.layer_methods]
