"""From trained parameters to a posterior in the model's structure; what Laplace and variational fits share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from .engines.base import Array, Engine, stack_trees, take
from .errors import InvalidInput
from .filtering import Posterior
from .gauss_newton import curvature_of
from .methods import FitProblem, FitResult, Method, state_arrays
from .network import Network
from .objective import Parameters, deviations_of
from .priors import NormalPrior
from .steps import Optimizer, optimizer_named
from .structures.base import Structure
from .structures.mixture import MixtureState
from .training import Trained, TrainingOptions, check_training, share_of, start_parameters, train

__all__ = ["AsMarked", "Assemble", "Finished", "LayerMethod", "assembler", "fit_members", "mixture_of"]


_ROWS_AT_ONCE = 4096

Assemble = Callable[..., Posterior]


def assembler(problem: FitProblem, variational: Sequence[bool], curvature: str = "ggn") -> Assemble:
    """``assemble(parameters, prior_precision, rows, state)``: the posterior around trained parameters.

    Variational layers take the precision of their fitted deviations; point layers take the prior's plus the generalised
    Gauss-Newton curvature, at the fitted means, of the given rows (indices, or all where None). The likelihood's state
    is that of the fit where None. All is at unit dispersion. What is returned is compiled once, for as many networks as
    need it.

    Args:
        problem: whose structure holds the posterior.
        variational: for each layer, whether its weights are variational.
        curvature: see :func:`~.gauss_newton.curvature_of`.
    """
    engine, likelihood, structure = problem.engine, problem.likelihood, problem.structure
    kinds = zip(variational, problem.network.layer_methods, strict=True)
    points = [not flag and kind is not None for flag, kind in kinds]
    survey = structure.survey if any(points) else None

    def adder(form: Structure) -> Callable[..., Any]:
        return curvature_of(engine, problem.network, likelihood, form, points, curvature)

    add_curvature, add_survey = adder(structure), None if survey is None else adder(survey)

    def assemble(
        parameters: Parameters, prior_precision: Sequence[np.ndarray], rows: Any = None, state: Any = None
    ) -> Posterior:
        data, weight = (problem.x, problem.y), problem.weight
        if rows is not None:
            with engine.scope():
                data, weight = (problem.x[rows], problem.y[rows]), weight[rows]
        if state is None:
            fitted = [engine.to_numpy(value) for value in parameters.likelihood]
            state = likelihood.state_from_fit(fitted, float(weight.sum()))
            if not any(variational):
                state = _at_mode(problem, state, parameters, data, weight)
        given = state_arrays(engine, state)
        dispersion = float(likelihood.dispersion(state))
        deviations = deviations_of(engine, parameters, variational)
        with engine.scope():
            precisions = tuple(
                engine.asarray(prior * dispersion) if deviation is None else dispersion / (deviation * deviation)
                for prior, deviation in zip(prior_precision, deviations, strict=True)
            )
            if not any(points):
                return Posterior(structure.initial(engine, parameters.mean, precisions), given)
            weights = structure.begin(engine, parameters.mean, precisions)
        if survey is not None and add_survey is not None:
            surveyed = add_survey(survey.begin(engine, parameters.mean, precisions), data, weight, given)
            with engine.scope():
                variances = survey.marginal_variance(engine, surveyed)
                weights = structure.chosen(engine, variances, parameters.mean, precisions)
        return Posterior(add_curvature(weights, data, weight, given), given)

    return assemble


def _at_mode(
    problem: FitProblem, state: Any, parameters: Parameters, data: tuple[Array, Array], weight: np.ndarray
) -> Any:
    """The likelihood's state at its mode, given the outputs of point weights."""
    engine, (x, y) = problem.engine, data
    if problem.likelihood.state_at_mode(state, *(np.zeros((0, 1)),) * 2, np.zeros(0)) is None:
        return state
    outputs = []
    for start in range(0, len(weight), _ROWS_AT_ONCE):
        with engine.scope():
            rows = problem.network.apply(engine, parameters.mean, x[start : start + _ROWS_AT_ONCE])
        outputs.append(engine.to_numpy(rows).astype(np.float64))
    targets = engine.to_numpy(y).astype(np.float64)
    return problem.likelihood.state_at_mode(state, np.concatenate(outputs), targets, weight)


class LayerMethod(Method):
    """A method that says for each layer whether its weights are points or variational, and trains them together.

    Attributes:
        training: how the network is trained.
        curvature: of layers with point weights, see :func:`~.gauss_newton.curvature_of`.
        optimizer: what steps it takes.
        initial_curvature: see :func:`.training.start_parameters`; None for the optimizer's own.
    """

    training: TrainingOptions
    optimizer: Optimizer | str = "adam"
    initial_curvature: float | None = None

    curvature: str = "ggn"

    @property
    def rounds(self) -> int:
        """How often training and :meth:`finish` take turns; they share the training's steps."""
        return 1

    @abstractmethod
    def deviations(self, network: Network) -> list[float | None]:
        """For each variational layer the starting standard deviation of its weights, relative to the prior's; None for
        a layer with point weights, which takes its curvature after the training, and for arrays without uncertainty.
        """

    def with_training(self, training: TrainingOptions) -> LayerMethod:
        """The same method, trained otherwise."""
        return replace(self, training=training)  # type: ignore[type-var]

    def finish(self, problem: FitProblem, parameters: Parameters, assemble: Assemble, rows: Any = None) -> Finished:
        """The posterior of one trained network, and the prior that it is to have.

        Args:
            problem: with the prior that the network was trained under.
            parameters: of the network.
            assemble: from :func:`assembler`.
            rows: that it was trained on; all where None.
        """
        return Finished(assemble(parameters, problem.prior_precision, rows), problem.prior, {})

    def fit(self, problem: FitProblem) -> FitResult:
        (finished,), trained = fit_members(self, problem, [problem.prior], [problem.seed])
        details = finished.details | ({"validation": trained.validation} if trained.validation else {})
        return FitResult(finished.posterior, finished.prior, problem.structure, trained.history, details)


@dataclass(frozen=True)
class AsMarked(LayerMethod):
    """Each layer by the method that the network names for it: Laplace for an :class:`~.network.MLP`.

    Args:
        training: how the network is trained.
        initial_deviation: see :class:`~.variational.Variational`.
    """

    training: TrainingOptions = field(default_factory=TrainingOptions)
    initial_deviation: float = 0.02

    def __post_init__(self) -> None:
        check_training(self)
        if not self.initial_deviation > 0:
            raise InvalidInput(f"AsMarked.initial_deviation must be positive, got {self.initial_deviation!r}")

    def deviations(self, network: Network) -> list[float | None]:
        methods = network.layer_methods
        return [self.initial_deviation if method == "variational" else None for method in methods]


class Finished(NamedTuple):
    """Attributes:
    posterior: of one network.
    prior: of its weights.
    details: what the method has to say of it, by name.
    """

    posterior: Posterior
    prior: NormalPrior
    details: dict[str, Any]


def fit_members(
    method: LayerMethod,
    problem: FitProblem,
    priors: Sequence[NormalPrior],
    seeds: Sequence[int],
    rows: Sequence[np.ndarray] | None = None,
) -> tuple[list[Finished], Trained]:
    """Train networks, several of them at once under vmap, and assemble the posterior of each.

    Args:
        method: that each is fitted by.
        problem: what to fit.
        priors: of each network.
        seeds: of the start of each.
        rows: that each is trained on, equally many; all where None.

    Returns:
        A posterior and a prior for each network, and the (last) training of all of them.
    """
    engine, count = problem.engine, len(priors)
    deviations = method.deviations(problem.network)
    variational = [deviation is not None for deviation in deviations]
    alone = [replace(problem, prior=prior) for prior in priors]
    own_rows = [np.arange(len(problem.weight))] * count if rows is None else list(rows)
    optimizer = optimizer_named(method.optimizer)
    curvature = optimizer.initial_curvature if method.initial_curvature is None else method.initial_curvature
    members = [start_parameters(one, deviations, seed, curvature) for one, seed in zip(alone, seeds, strict=True)]
    options = share_of(method.training, method.rounds)
    assemble = assembler(problem, variational, method.curvature)
    for turn in range(method.rounds):
        precisions = [tuple(engine.asarray(p) for p in one.prior_precision) for one in alone]
        with engine.scope():
            start, precision = (_stack(engine, trees) for trees in (members, precisions))
        index = own_rows[0] if count == 1 else np.stack(own_rows)
        trained = train(
            replace(problem, seed=problem.seed + turn),
            start,
            precision,
            variational,
            options,
            optimizer,
            index,
        )
        with engine.scope():
            members = [trained.parameters] if count == 1 else [take(trained.parameters, i) for i in range(count)]
        finished = [
            method.finish(one, parameters, assemble, None if rows is None else mine)
            for one, parameters, mine in zip(alone, members, own_rows, strict=True)
        ]
        alone = [replace(problem, prior=done.prior) for done in finished]
    return finished, trained


def _stack(engine: Engine, trees: Sequence[Any]) -> Any:
    """Trees of several networks under one leading axis; the only one as it is."""
    return trees[0] if len(trees) == 1 else stack_trees(engine.xp.stack, list(trees))


def mixture_of(engine: Engine, posteriors: Sequence[Posterior], log_weights: np.ndarray) -> Posterior:
    """The weighted mixture of several posteriors of one structure."""
    with engine.scope():
        weights = stack_trees(engine.xp.stack, [posterior.weights for posterior in posteriors])
        likelihood = stack_trees(engine.xp.stack, [posterior.likelihood for posterior in posteriors])
    return Posterior(MixtureState(weights, engine.asarray(log_weights, "float64")), likelihood)
