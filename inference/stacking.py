"""Priors averaged by how well they predict held-out rows.

Every candidate prior is fitted on each fold's training rows (all candidates and folds at once, under vmap, for a third
of the training steps) and predicts the rows that the fold holds out. The weights of the mixture are those that would
have predicted the held-out rows best: Yao, Vehtari, Simpson and Gelman (2018), "Using stacking to average Bayesian
predictive distributions", equation 5. The members of the mixture are then fitted on all rows, each under the prior that
its weight stands for; an ensemble that varies its priors is also the better ensemble (Wenzel et al. 2020,
"Hyperparameter ensembles").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .assembly import AsMarked, LayerMethod, fit_members, mixture_of
from .checks import is_count, positive_numbers
from .errors import InvalidInput, NumericalFailure
from .methods import FitProblem, FitResult, Method
from .predicting import log_predictive
from .priors import NormalPrior
from .structures.mixture import Mixture
from .training import TrainingOptions, batch_size_for, share_of

__all__ = ["Stacking", "apportion", "long_training", "stacking_weights"]

_STEPS, _LEARNING_RATE = 12_000, 1e-2
_ROWS_OF_STEPS = 5_000  # so many rows are trained for _STEPS; more rows for more steps, in proportion
_MOST_TIMES = 8  # as many steps
_FEW_ROWS = 2000  # up to here every row is held out once; beyond, one fold says enough
_FOLDS = 5
_SEARCH_SHARES = 3  # to compare candidates takes a third of the steps
_PSEUDO_COUNT = 1.0  # rows that count for each candidate beforehand


@dataclass(frozen=True)
class Stacking(Method):
    """A mixture over prior scales, weighted by stacking.

    Args:
        method: that each member is fitted by: ``Laplace()``, ``Variational()``, ``PerLayer(...)``; None:
            ``AsMarked()`` with :func:`long_training`.
        scales: candidates for the scale of the prior (see :class:`NormalPrior`), in place of its own.
        output_scales: candidates for the prior's relative scale of the likelihood's dispersion outputs, as of
            ``HeteroscedasticGaussian``; it has no effect where the likelihood has none.
        members: how many networks the mixture is to have, at least 1; they are apportioned to the candidates by weight.
        folds: how often rows are held out; None: 5 for up to 2,000 rows, else 1 fifth of them once.

    Raises:
        InvalidInput: another method, no candidates, or a number out of its range.
    """

    method: LayerMethod | None = None
    scales: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    output_scales: tuple[float, ...] = (0.05, 0.3, 1.0)
    members: int = 10
    folds: int | None = None

    def __post_init__(self) -> None:
        if self.method is not None and not isinstance(self.method, LayerMethod):
            raise InvalidInput(
                f"Stacking.method must be Laplace(), Variational() or PerLayer(...), got {self.method!r}"
            )
        for name in ("scales", "output_scales"):
            object.__setattr__(self, name, positive_numbers(f"Stacking.{name}", getattr(self, name)))
        if not is_count(self.members):
            raise InvalidInput(f"Stacking.members must be an integer of at least 1, got {self.members!r}")
        if self.folds is not None and not is_count(self.folds):
            raise InvalidInput(f"Stacking.folds must be an integer of at least 1, got {self.folds!r}")

    def candidates(self, problem: FitProblem) -> list[NormalPrior]:
        """The priors to choose from; raises :class:`InvalidInput` for a prior that has a scale for each layer."""
        if isinstance(problem.prior.scale, tuple):
            raise InvalidInput(
                f"NormalPrior.scale must be one number for Stacking, which chooses it, got {problem.prior.scale}"
            )
        outputs = problem.likelihood.dispersion_outputs
        if not outputs:
            return [replace(problem.prior, scale=scale) for scale in self.scales]
        size = problem.likelihood.num_outputs
        return [
            replace(
                problem.prior,
                scale=scale,
                output_scale=tuple(relative if k in outputs else 1.0 for k in range(size)),
            )
            for scale in self.scales
            for relative in self.output_scales
        ]

    def method_for(self, num_rows: int) -> LayerMethod:
        """What each member is fitted by, to so many rows."""
        return self.method or AsMarked(long_training(num_rows))

    def fit(self, problem: FitProblem) -> FitResult:
        candidates = self.candidates(problem)
        method = self.method_for(int(np.count_nonzero(problem.weight)))
        scores, rows = self._held_out_scores(method, problem, candidates)
        weights = stacking_weights(scores, problem.weight[rows])
        counts = apportion(weights, self.members)
        weights = np.where(counts > 0, weights, 0.0) / weights[counts > 0].sum()
        chosen = np.repeat(np.arange(len(candidates)), counts)
        seeds = [problem.seed + member for member in range(len(chosen))]
        finished, trained = fit_members(method, problem, [candidates[c] for c in chosen], seeds)
        posterior = mixture_of(
            problem.engine, [done.posterior for done in finished], np.log(weights[chosen] / counts[chosen])
        )
        details = {
            "candidates": candidates,
            "weights": weights,
            "held_out_log_predictive": np.average(scores, axis=1, weights=problem.weight[rows]),
        }
        best = candidates[int(np.argmax(weights))]
        return FitResult(posterior, best, Mixture(problem.structure, len(chosen)), trained.history, details)

    def _held_out_scores(
        self, method: LayerMethod, problem: FitProblem, candidates: Sequence[NormalPrior]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log predictive density of every held-out row under every candidate, (candidates, rows held out); the rows."""
        known = np.flatnonzero(problem.weight > 0)
        num_rows, least = len(known), max(self.folds or 1, _FOLDS)
        if num_rows < least:
            raise InvalidInput(
                f"X must have at least {least} rows of weight above 0 for Stacking, where an estimator counts equal "
                f"rows once, got {num_rows}"
            )
        folds = self.folds or (_FOLDS if num_rows <= _FEW_ROWS else 1)
        order = np.random.default_rng(problem.seed).permutation(known)
        parts = np.array_split(order, folds if folds > 1 else _FOLDS)
        held_out = parts[:folds]
        size = num_rows - max(len(part) for part in held_out)
        kept = [np.setdiff1d(known, part)[:size] for part in held_out]
        priors = [candidate for candidate in candidates for _ in held_out]
        rows = [part for _ in candidates for part in kept]
        seeds = [problem.seed] * len(priors)
        silent = replace(problem, on_epoch=None)
        search = method.with_training(share_of(method.training, _SEARCH_SHARES))
        finished, _ = fit_members(search, silent, priors, seeds, rows)
        density = log_predictive(problem)
        scores = [density(done.posterior, held_out[index % folds]) for index, done in enumerate(finished)]
        table = np.stack([np.concatenate(scores[i : i + folds]) for i in range(0, len(scores), folds)])
        table[~np.isfinite(table).all(axis=1)] = -np.inf  # a candidate that failed numerically gets no weight
        if np.isneginf(table).all():
            raise NumericalFailure("no candidate prior led to a finite prediction; standardise the inputs")
        return table, np.concatenate(held_out)


def long_training(num_rows: int) -> TrainingOptions:
    """12,000 steps for up to 5,000 rows, in proportion more for more rows, up to 96,000; at a learning rate of 0.01."""
    times = float(np.clip(num_rows / _ROWS_OF_STEPS, 1, _MOST_TIMES))
    batch_size = batch_size_for(num_rows, _STEPS)
    return TrainingOptions(steps=round(times * _STEPS), batch_size=batch_size, learning_rate=_LEARNING_RATE)


def stacking_weights(
    log_densities: np.ndarray, row_weight: np.ndarray | None = None, iterations: int = 1000
) -> np.ndarray:
    """Weights w on the simplex that maximise Σ_n v_n log Σ_c w_c p_cn + Σ_c log w_c, by expectation maximisation.

    The second sum is a Dirichlet prior worth one row for each candidate: it keeps candidates that hardly differ
    together, which matters where rows are few. Candidates of density 0 get weight 0.

    Args:
        log_densities: log p_cn of each row under each candidate, (candidates, rows).
        row_weight: v_n of each row, (rows,); 1 if None.
        iterations: each of them raises the objective, which is concave.
    """
    densities = np.exp(log_densities - log_densities.max(axis=0))
    usable = densities.any(axis=1)
    row_weight = np.ones(densities.shape[1]) if row_weight is None else row_weight
    weights = usable / usable.sum()
    for _ in range(iterations):
        shares = weights[:, None] * densities
        counts = (shares / shares.sum(axis=0)) @ row_weight + _PSEUDO_COUNT * usable
        weights = counts / counts.sum()
    return weights


def apportion(weights: np.ndarray, seats: int) -> np.ndarray:
    """Seats for each weight, by largest remainder; they add up to ``seats``."""
    ideal = weights / weights.sum() * seats
    counts = np.floor(ideal).astype(int)
    order = np.argsort(counts - ideal, kind="stable")
    counts[order[: seats - counts.sum()]] += 1
    return counts
