"""Fitting a model to a data set: what is checked and prepared, and what a checkpoint keeps."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from numbers import Real
from typing import Any, Self

import numpy as np

from ..checkpoint import FileCheckpoint, fit_digest
from ..inference.assembly import AsMarked, LayerMethod
from ..inference.dynamics import Hypotheses
from ..inference.ensemble import Ensemble
from ..inference.errors import InvalidInput, NumericalFailure
from ..inference.likelihoods import Likelihood
from ..inference.methods import FitProblem, Method
from ..inference.sampling.base import Sampler
from ..inference.spec import to_spec
from ..inference.stacking import Stacking
from ..inference.structured_variational import StructuredVariational
from ..inference.structures import Mixture
from ..inference.structures.particles import Particles
from ..masking import check_labels_possible, fill_unobserved
from ..progress import fit_progress
from ..rehearsal import offer
from ..scaling import Scaling
from ..validation import as_host_array, check_inputs, check_weights
from .moving import PortableModel

__all__ = ["FittedModel"]


class FittedModel(PortableModel):
    """A model that is fitted."""

    def fit(
        self,
        X: Any,  # noqa: N803
        y: Any,
        *,
        method: Method | None = None,
        weight: Any = None,
        on_epoch: Callable[[int, int, float], None] | None = None,
        progress: bool | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_seconds: float = 30.0,
    ) -> Self:
        """Fit the posterior to a data set, from scratch.

        Args:
            X: inputs, (rows, inputs).
            y: targets, as the likelihood takes them.
            method: ``Laplace()``, ``Variational()``, ``StructuredVariational()``, ``PerLayer(...)``; None:
                ``AsMarked()``, which is Laplace unless a module of the user's own marks layers otherwise.
            weight: of each row, at least 0.
            on_epoch: called with the epoch, the number of epochs and the mean objective per row.
            progress: whether to show a progress bar; None for one on a terminal if the fit takes over a second.
            checkpoint: a file that holds the state of the fit until it ends. If the fit is interrupted, the same fit
                with the same file goes on from there, to the result it would have had.
            checkpoint_seconds: between two writes of it, at least 0; it is written at the end of an epoch.

        Returns:
            The model itself.

        Raises:
            InvalidInput: bad data, an engine without gradients, or a checkpoint of another fit.
            NumericalFailure: the fit diverged; the model is as it was.
        """
        if method is not None and not isinstance(method, Method):
            raise InvalidInput(f"method must be Laplace(), Variational() or PerLayer(...), got {method!r}")
        if isinstance(self.structure, Mixture) and isinstance(method, StructuredVariational):
            raise InvalidInput(f"StructuredVariational fits one Gaussian, not the members of {self.structure}")
        if isinstance(self.dynamics, Hypotheses) and isinstance(method, Ensemble | Stacking | Sampler):
            raise InvalidInput(f"method must fit one Gaussian for {self.dynamics}, got {method!r}")
        if self.memory is not None and isinstance(method, Sampler):
            raise InvalidInput(f"method must give Gaussians for a model with a memory, got {method!r}")
        if isinstance(self.structure, Mixture) and isinstance(method, Sampler):
            raise InvalidInput(f"structure must be of one Gaussian for {type(method).__name__}, got {self.structure}")
        x, targets, scaling, weights = self._training_data(X, y, weight)
        problem = self._problem(x, targets, scaling, weights)
        method = method or AsMarked()
        if isinstance(self.structure, Mixture) and isinstance(method, LayerMethod):
            method = Ensemble(method, self.structure.members, self.structure.scales)
        kept = (
            None
            if checkpoint is None
            else self._checkpoint(checkpoint, checkpoint_seconds, method, x, targets, weights)
        )
        with fit_progress(progress, on_epoch) as report:
            result = method.fit(replace(problem, on_epoch=report, checkpoint=kept))
        arrays = result.structure.to_arrays(self.engine, result.posterior.weights)
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise NumericalFailure("the fitted posterior is not finite; lower the learning rate")
        self.history = [float(value) for value in result.history[:, 0]]
        self.fit_details = {"terms": result.history, **result.details}
        self._fitted_prior = result.prior
        own = result.structure
        self._resolved = own if isinstance(own, Particles) else self._of_hypotheses(own)
        asked = self.structure
        if isinstance(asked, Mixture) and isinstance(own, Mixture):
            self._resolved = self._resolve(asked)  # with what it says of pruning
        with self.engine.scope():
            held = self.likelihood.held(self.engine, result.posterior.likelihood)
        posterior = result.posterior._replace(likelihood=held)
        if self.kinds:
            members = result.structure.members if isinstance(result.structure, Mixture) else None
            posterior = posterior._replace(likelihood=self._with_other_kinds(posterior.likelihood, members))
        self._set(x.shape[1], scaling, self._under_hypotheses(posterior))
        if self.memory is not None:
            offer(self, x, targets, weights)
        if kept is not None:
            kept.remove()
        return self

    def fit_problem(self, X: Any, y: Any, *, weight: Any = None) -> FitProblem:  # noqa: N803
        """What :meth:`fit` would give a method, for methods of one's own; nothing is learned.

        Args:
            X: inputs, (rows, inputs).
            y: targets.
            weight: of each row, at least 0.

        Raises:
            InvalidInput: bad data, or an engine without gradients.
        """
        return self._problem(*self._training_data(X, y, weight))

    def _problem(self, x: np.ndarray, targets: np.ndarray, scaling: Scaling, weight: np.ndarray) -> FitProblem:
        return FitProblem(
            engine=self.engine,
            network=self._seen,
            likelihood=self.likelihood.in_units_of(scaling.target_scale),
            structure=self._base,
            prior=self.prior,
            x=self.engine.asarray(x),
            y=self.engine.asarray(targets),
            weight=weight,
            seed=self.seed,
        )

    def _checkpoint(
        self, path: str | os.PathLike[str], seconds: float, method: Method, *data: np.ndarray
    ) -> FileCheckpoint:
        """The file of this very fit."""
        if not isinstance(seconds, Real) or not float(seconds) >= 0:
            raise InvalidInput(f"checkpoint_seconds must be a number of at least 0, got {seconds!r}")
        asked = {"prior": to_spec(self.prior), "structure": to_spec(self.structure), "num_inputs": None}
        described = {**self.spec(), **asked, "method": repr(method), "engine": self.engine.fingerprint()}
        return FileCheckpoint(path, fit_digest(described, data), float(seconds))

    def _training_data(
        self,
        X: Any,  # noqa: N803
        y: Any,
        weight: Any = None,
    ) -> tuple[np.ndarray, np.ndarray, Scaling, np.ndarray]:
        """Checked, scaled inputs and targets, the scaling, and the checked weights."""
        x, targets, weights = self._checked(X, y, weight)
        if not weights.any():
            raise InvalidInput("weight must be positive for at least one row, got 0 for all")
        if not self.engine.has_gradients:
            raise InvalidInput(f"engine {self.engine.name!r} has no gradients: fit with 'torch' or 'jax'")
        scaling = self._estimate_scaling(x, targets, weights)
        return scaling.inputs(x), scaling.targets(targets), scaling, weights

    def _checked(self, X: Any, y: Any, weight: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # noqa: N803
        x = check_inputs(X, None, network=self.network)
        return x, self._prepare(y, len(x)), check_weights(weight, len(x))

    def estimate_scaling(self, X: Any, y: Any, *, weight: Any = None) -> Scaling:  # noqa: N803
        """The standardisation that :meth:`fit` would take from a data set; nothing is learned.

        Args:
            X: inputs, (rows, inputs).
            y: targets.
            weight: of each row, at least 0.

        Raises:
            InvalidInput: bad data.
        """
        return self._estimate_scaling(*self._checked(X, y, weight))

    def _estimate_scaling(self, x: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> Scaling:
        return Scaling.estimate(
            x,
            targets,
            inputs=self.standardize,
            targets=self.standardize and self.likelihood.scales_targets,
            one_target_scale=self.likelihood.shares_target_scale,
            num_targets=self.likelihood.num_targets,
            inputs_per_row=self.network.inputs_per_row,
            weight=weights if weights.any() else None,  # rows that weigh nothing still have a scale
        )

    def _prepare(
        self, y: Any, rows: int, mask: np.ndarray | None = None, likelihood: Likelihood | None = None
    ) -> np.ndarray:
        likelihood = likelihood or self.likelihood
        is_scaled = self._scaling is not None and likelihood is self.likelihood
        mean = self.scaling.target_mean if is_scaled else np.zeros(1)
        targets = likelihood.prepare(fill_unobserved(as_host_array(y, "y"), mask, mean))
        if len(targets) != rows:
            raise InvalidInput(f"y must have as many rows as X ({rows}), got {len(targets)}")
        check_labels_possible(targets, mask)
        return targets
