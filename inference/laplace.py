"""Laplace's approximation: a Gaussian at the posterior's mode, with generalised Gauss-Newton curvature.

MacKay (1992), "A practical Bayesian framework for backpropagation networks"; Daxberger et al. (2021), "Laplace redux".
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .assembly import LayerMethod
from .training import TrainingOptions

__all__ = ["Laplace"]


@dataclass(frozen=True)
class Laplace(LayerMethod):
    """Find the mode, then add the curvature of every row to the prior's precision, in the model's structure.

    Args:
        training: how the mode is found.
    """

    training: TrainingOptions = field(default_factory=TrainingOptions)

    def deviations(self, num_layers: int) -> list[float | None]:
        """All layers have point weights."""
        return [None] * num_layers
