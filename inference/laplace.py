"""Laplace's approximation: a Gaussian at the posterior's mode, with generalised Gauss-Newton curvature.

MacKay (1992), "A practical Bayesian framework for backpropagation networks"; Daxberger et al. (2021), "Laplace redux".
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .assembly import Assemble, Finished, LayerMethod
from .engines.base import map_arrays
from .errors import InvalidInput
from .gauss_newton import CURVATURES
from .marginal_likelihood import evidence, evidence_update
from .methods import FitProblem
from .network import Network
from .objective import Parameters
from .training import TrainingOptions, check_training

__all__ = ["Laplace"]

_UPDATES = 5  # of the fixed point, at one mode
_ROUNDS = 4  # of training, when the prior is learned during it


@dataclass(frozen=True)
class Laplace(LayerMethod):
    """Find the mode, then add the curvature of every row to the prior's precision, in the model's structure.

    Args:
        training: how the mode is found.
        marginal_likelihood: ``"after"``: learn the prior scale of each layer and the noise by the marginal likelihood,
            at the mode that was found; ``"during"``: in four rounds, each of which goes on from the last one's mode
            under the prior that it learned; None: take the prior as it is.

        curvature: ``"ggn"``, the generalised Gauss-Newton matrix, or ``"empirical_fisher"``, the squares of the rows'
            own scores.

    Raises:
        InvalidInput: another word.
    """

    training: TrainingOptions = field(default_factory=TrainingOptions)
    marginal_likelihood: str | None = None
    curvature: str = "ggn"

    def __post_init__(self) -> None:
        check_training(self)
        if self.curvature not in CURVATURES:
            raise InvalidInput(f"Laplace.curvature must be one of {', '.join(CURVATURES)}, got {self.curvature!r}")
        if self.marginal_likelihood not in (None, "after", "during"):
            raise InvalidInput(
                f"Laplace.marginal_likelihood must be 'after', 'during' or None, got {self.marginal_likelihood!r}"
            )

    @property
    def rounds(self) -> int:
        return _ROUNDS if self.marginal_likelihood == "during" else 1

    def deviations(self, network: Network) -> list[float | None]:
        return [None] * network.num_layers

    def finish(self, problem: FitProblem, parameters: Parameters, assemble: Assemble, rows: Any = None) -> Finished:
        finished = super().finish(problem, parameters, assemble, rows)
        if self.marginal_likelihood is None:
            return finished
        posterior, tried = finished.posterior, []
        fitted = map_arrays(problem.engine.to_numpy, posterior.likelihood)
        own = problem if rows is None else problem.only(rows)
        for update in range(_UPDATES + 1):  # far from the mode of its own prior an update may overshoot: keep the best
            known = evidence(own, posterior)
            if not np.isfinite(known.log_marginal_likelihood):
                break
            tried.append((known.log_marginal_likelihood, posterior, own.prior))
            if update < _UPDATES:
                own = replace(
                    own,
                    prior=evidence_update(
                        own, posterior, [method is not None for method in problem.network.layer_methods]
                    ),
                )
                state = problem.likelihood.discount(fitted, float(known.effective_parameters.sum()))
                posterior = assemble(parameters, own.prior_precision, rows, state)
        if not tried:
            return finished
        _, posterior, prior = max(tried, key=lambda one: one[0])
        return Finished(posterior, prior, {"log_marginal_likelihood": [value for value, *_ in tried]})
