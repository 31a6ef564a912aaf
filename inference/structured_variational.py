"""Variational inference in the model's own posterior structure, with correlated weights.

Opper and Archambeau (2009), "The variational Gaussian approximation revisited"; with a diagonal plus low-rank
precision, Mishkin et al. (2018), "SLANG: fast structured covariance approximations for Bayesian deep learning with
natural gradient". Here by reparametrised draws of all weights (Titsias and Lázaro-Gredilla 2014, "Doubly stochastic
variational Bayes for non-conjugate inference"), whose gradients have no variance left where q is the posterior: Roeder,
Wu and Duvenaud (2017), "Sticking the landing".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from .assembly import assembler
from .engines.base import Array, Engine, map_arrays
from .errors import InvalidInput
from .filtering import Posterior
from .methods import FitProblem, FitResult, Method, state_arrays
from .objective import Terms, WeightPrior
from .steps import Adam, Step, StepState
from .structures.base import Layers, Structure, sum_float64
from .training import TrainingOptions, check_training, minimise, share_of, start_parameters, train, weight_prior

__all__ = ["StructuredParameters", "StructuredVariational", "bound_of", "kl_from_prior"]


class StructuredParameters(NamedTuple):
    """Attributes:
    weights: the posterior of the weights in its unconstrained form, see :meth:`Structure.unconstrained`.
    likelihood: see :meth:`Likelihood.fit_parameters`.
    """

    weights: Any
    likelihood: tuple[Array, ...]


@dataclass(frozen=True)
class StructuredVariational(Method):
    """Fit a Gaussian in the model's structure by maximising E_q[log p(y | θ)] - KL(q ‖ p).

    The first half of the steps trains all weights as points θ*. The posterior starts there, with the precision
    diag(p/d²) + JᵀHJ of the prior's precision p, the initial deviation d and the Gauss-Newton curvature of all rows,
    projected on the structure; the second half of the steps moves all of it. With d = 1 this is where ``Laplace()``
    ends.

    With ``LowRank()`` weights of all layers are correlated in a few directions; with ``LastLayer(Full(), Diagonal())``
    all weights of the last layer are. Weights of ``Point()`` stay points, and go on learning.

    Args:
        training: how the bound is maximised.
        initial_deviation: d, starting standard deviation of a weight that the data says nothing about, relative to its
            prior's.
        num_draws: draws of all weights in a step, at least 1; they are the same for all rows of a mini-batch.
    """

    training: TrainingOptions = field(default_factory=TrainingOptions)
    initial_deviation: float = 0.2
    num_draws: int = 1

    def __post_init__(self) -> None:
        check_training(self)
        if not self.initial_deviation > 0:
            raise InvalidInput(
                f"StructuredVariational.initial_deviation must be positive, got {self.initial_deviation!r}"
            )
        if not isinstance(self.num_draws, int) or self.num_draws < 1:
            raise InvalidInput(
                f"StructuredVariational.num_draws must be an integer of at least 1, got {self.num_draws!r}"
            )

    def fit(self, problem: FitProblem) -> FitResult:
        """Fit.

        Raises:
            InvalidInput: the structure has no unconstrained form, such as :class:`Kronecker`, or no uncertain weights.
        """
        engine, structure, likelihood = problem.engine, problem.structure, problem.likelihood
        _check(problem)
        rows, options = np.arange(len(problem.weight)), share_of(self.training, 2)
        precision = tuple(engine.asarray(p) for p in problem.prior_precision)
        uncertain = structure.uses_factors(len(precision))
        start = self._start(problem, precision, options, rows)
        trained = minimise(
            problem,
            lambda chosen: self._step(problem, start, len(chosen)),
            StepState(start, weight_prior(problem, precision, uncertain, rows), engine.adam_moments(start)),
            options,
            rows,
            lambda parameters: structure.mean(parameters.weights),
        )
        fitted = [engine.to_numpy(value) for value in trained.parameters.likelihood]
        state = likelihood.state_from_fit(fitted, float(problem.weight.sum()))
        with engine.scope():
            weights = structure.constrained(engine, trained.parameters.weights)
            weights = engine.cast(structure.scaled(engine, weights, float(likelihood.dispersion(state))))
        details = {"validation": trained.validation} if trained.validation else {}
        posterior = Posterior(weights, state_arrays(engine, state))
        return FitResult(posterior, problem.prior, structure, trained.history, details)

    def _start(
        self, problem: FitProblem, precision: Layers, options: TrainingOptions, rows: np.ndarray
    ) -> StructuredParameters:
        """Trained points, with their curvature and that of a narrower prior around them."""
        engine, structure, likelihood = problem.engine, problem.structure, problem.likelihood
        points = [False] * len(precision)
        start = start_parameters(problem, [None] * len(precision), problem.seed)
        trained = train(problem, start, precision, points, options, Adam(), rows).parameters
        narrow = [p / self.initial_deviation**2 for p in problem.prior_precision]
        posterior = assembler(problem, points)(trained, narrow)
        dispersion = float(likelihood.dispersion(map_arrays(engine.to_numpy, posterior.likelihood)))
        with engine.scope():
            weights = structure.scaled(engine, posterior.weights, 1 / dispersion)
            return StructuredParameters(structure.unconstrained(engine, weights), trained.likelihood)

    def _step(self, problem: FitProblem, start: StructuredParameters, num_rows: int) -> Step:
        engine, structure = problem.engine, problem.structure
        with engine.scope():
            shapes = structure.noise_shapes(structure.constrained(engine, start.weights))
        gradient_of = engine.value_and_grad(bound_of(problem, num_rows), has_aux=True)

        def step(state: StepState, batch: Sequence[Array], key: Any, numbers: Array) -> tuple[StepState, Array]:
            noise = tuple(
                engine.normal(engine.fold_in(key, index), (self.num_draws, *shape))
                for index, shape in enumerate(shapes)
            )
            (_, terms), gradient = gradient_of(state.parameters, state.prior, batch, noise, numbers[1])
            parameters, memory = engine.adam(state.parameters, gradient, state.memory, numbers[0])
            return StepState(parameters, state.prior, memory), engine.xp.stack(list(terms))

        return step


def _check(problem: FitProblem) -> None:
    """Refuse a structure whose state gradients can't move."""
    engine, structure = problem.engine, problem.structure
    if not any(structure.uses_factors(len(problem.shapes))):
        raise InvalidInput(f"StructuredVariational needs a structure with uncertain weights, got {structure}")
    ones = tuple(engine.asarray(np.ones(shape)) for shape in problem.shapes)
    with engine.scope():
        structure.unconstrained(engine, structure.initial(engine, ones, ones))


def bound_of(problem: FitProblem, num_rows: float) -> Callable[..., tuple[Array, Terms]]:
    """``bound(parameters, prior, batch, noise, kl_weight) -> (surrogate, terms)``.

    The terms are those of the negative ELBO, at weights θ that are drawn from q; its gradient is that of the surrogate,
    where weights move with q but q's density at them stays what it is: the gradient of log q at a fixed θ, which is 0
    on average, is left out.

    Args:
        problem: what to fit.
        num_rows: N of the data set, of which a batch is a sample.

    Returns:
        A pure function of :class:`StructuredParameters`; the prior; a batch (inputs, targets, weight of each row);
        noise for :meth:`Structure.sample`; and the weight β of the KL term.
    """
    engine, xp, structure, likelihood = problem.engine, problem.engine.xp, problem.structure, problem.likelihood

    def bound(
        parameters: StructuredParameters,
        prior: WeightPrior,
        batch: Sequence[Array],
        noise: Sequence[Array],
        kl_weight: Array,
    ) -> tuple[Array, Terms]:
        rows, targets, row_weight = batch
        weights = structure.constrained(engine, parameters.weights)
        drawn = structure.sample(engine, weights, noise)
        outputs = problem.network.apply(engine, drawn, rows)
        log_probs = likelihood.fit_log_prob(engine, outputs, targets, parameters.likelihood)
        fit = xp.mean(xp.sum(row_weight * log_probs, axis=-1)) / rows.shape[0]
        held, theta = map_arrays(engine.stop_gradient, (weights, drawn))
        pull = _log_ratio_gradient(engine, structure, held, theta, prior.precision, kl_weight)
        moved = sum(xp.sum(p * w) for p, w in zip(map_arrays(engine.stop_gradient, pull), drawn, strict=True))
        log_prior = likelihood.fit_log_prior(engine, parameters.likelihood)
        surrogate = (moved / noise[0].shape[0] - log_prior) / num_rows - fit
        divergence, penalty = kl_from_prior(engine, structure, held, prior)
        complexity = xp.astype((kl_weight * divergence + penalty - log_prior) / num_rows, fit.dtype)
        return surrogate, Terms(complexity - fit, fit, complexity)

    return bound


def _log_ratio_gradient(
    engine: Engine, structure: Structure, state: Any, drawn: Layers, prior_precision: Sequence[Array], kl_weight: Array
) -> Layers:
    """β ∇ log q(θ)/p(θ) = β (p θ - Λ (θ - m)) at drawn weights θ, with a leading axis of draws; p θ for points."""
    uncertain = structure.uses_factors(len(drawn))
    wide = engine.widen(state)
    steps = tuple(engine.widen(theta) - mean for theta, mean in zip(drawn, structure.mean(wide), strict=True))

    def times_precision(step: Layers) -> Layers:
        return structure.natural(engine, structure.replace_mean(wide, step))[0]

    own = engine.vmap(times_precision, in_axes=(tuple(0 if flag else None for flag in uncertain),))(steps)
    layers = zip(prior_precision, drawn, engine.cast(tuple(own)), uncertain, strict=True)
    return tuple((kl_weight if flag else 1.0) * (p * theta - pulled) for p, theta, pulled, flag in layers)


def kl_from_prior(engine: Engine, structure: Structure, state: Any, prior: WeightPrior) -> tuple[Array, Array]:
    """KL divergence of the uncertain weights from their prior, and minus the log prior of points up to a constant.

    For Gaussian weights of mean m, variances v and precision Λ, and independent priors N(0, 1/p)::

        KL = ½ (log det Λ + Σ p (v + m²) - 1 - log p),    penalty = ½ Σ p m²

    Args:
        engine: of the arrays.
        structure: of the posterior, each of whose layers is either all uncertain or all points.
        state: the posterior.
        prior: of every weight.
    """
    means, variances = structure.mean(state), structure.marginal_variance(engine, state)
    divergence, penalty = structure.log_determinant(engine, state), 0.0
    layers = zip(structure.uses_factors(len(means)), means, variances, *prior, strict=True)
    for uncertain, mean, variance, precision, log_determinant in layers:
        if uncertain:
            squares = sum_float64(engine, precision * (variance + mean * mean) - 1)
            divergence = divergence + squares - log_determinant
        else:
            penalty = penalty + 0.5 * sum_float64(engine, precision * mean * mean)
    return 0.5 * divergence, penalty
