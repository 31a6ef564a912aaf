"""Ensembles: several fits from different starts, as a mixture.

Lakshminarayanan, Pritzel and Blundell (2017), "Simple and scalable predictive uncertainty estimation using deep
ensembles"; with a Gaussian around every member, Eschenhagen et al. (2021), "Mixtures of Laplace approximations".
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .assembly import AsMarked, LayerMethod, fit_members, mixture_of
from .checks import is_count, positive_numbers
from .errors import InvalidInput
from .methods import FitProblem, FitResult, Method
from .structures.mixture import Mixture

__all__ = ["Ensemble"]


@dataclass(frozen=True)
class Ensemble(Method):
    """Fit several networks from different starts and mini-batches, all at once; the posterior is their mixture.

    A module of the user's own is where the first member starts; the others start at its trained weights in another
    order, so that they know nothing of what it may have learned before. What is to be kept has to be a constant:
    ``bayesianize(..., train="bayesian")``, or parameters that require no gradient.

    Args:
        method: that each member is fitted by: ``Laplace()``, ``Variational()``, ``PerLayer(...)``; unless told
            ``AsMarked()``. With the structure ``Point()`` and ``Laplace()`` this is a plain deep ensemble.
        members: how many, at least 1.
        scales: factor on the prior's scale for each member; None: 1 for all.

    Raises:
        InvalidInput: another method, no member, or not as many scales.
    """

    method: LayerMethod = field(default_factory=AsMarked)
    members: int = 5
    scales: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.method, LayerMethod):
            raise InvalidInput(
                f"Ensemble.method must be Laplace(), Variational() or PerLayer(...), got {self.method!r}"
            )
        if not is_count(self.members):
            raise InvalidInput(f"Ensemble.members must be an integer of at least 1, got {self.members!r}")
        if self.scales is not None:
            object.__setattr__(self, "scales", positive_numbers("Ensemble.scales", self.scales))
            if len(self.scales) != self.members:
                raise InvalidInput(f"Ensemble.scales must be {self.members} positive numbers, got {self.scales!r}")

    def fit(self, problem: FitProblem) -> FitResult:
        seeds = [problem.seed + member for member in range(self.members)]
        priors = [problem.prior.times(scale) for scale in self.scales or (1.0,) * self.members]
        finished, trained = fit_members(self.method, problem, priors, seeds)
        log_weights = np.full(self.members, -np.log(self.members))
        posterior = mixture_of(problem.engine, [done.posterior for done in finished], log_weights)
        details = {"members": [done.details for done in finished], "priors": [done.prior for done in finished]}
        details |= {"validation": trained.validation} if trained.validation else {}
        return FitResult(posterior, problem.prior, Mixture(problem.structure, self.members), trained.history, details)
