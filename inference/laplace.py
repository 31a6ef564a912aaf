"""Laplace's approximation: a Gaussian at the posterior's mode, with generalised Gauss-Newton curvature.

MacKay (1992), "A practical Bayesian framework for backpropagation networks"; Daxberger et al. (2021), "Laplace redux".
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .errors import InvalidInput
from .gauss_newton import CURVATURES
from .methods import FitProblem, FitResult, Method, fit_posterior
from .objective import TrainingOptions

__all__ = ["Laplace"]


@dataclass(frozen=True)
class Laplace(Method):
    """Find the mode, then add the curvature of every row to the prior's precision, in the model's structure.

    Args:
        training: how the mode is found.
        curvature: ``"ggn"``, the generalised Gauss-Newton matrix, or ``"empirical_fisher"``, the squares of the rows'
            own scores.

    Raises:
        InvalidInput: another curvature.
    """

    training: TrainingOptions = field(default_factory=TrainingOptions)
    curvature: str = "ggn"

    def __post_init__(self) -> None:
        if self.curvature not in CURVATURES:
            raise InvalidInput(f"Laplace.curvature must be one of {', '.join(CURVATURES)}, got {self.curvature!r}")

    def fit(self, problem: FitProblem) -> FitResult:
        return fit_posterior(problem, [None] * problem.network.num_layers, self.training, self.curvature)
