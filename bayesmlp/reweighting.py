"""What may be done to a sampler's draws: keep fewer, weigh them anew, move them on."""

from __future__ import annotations

from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from .inference.errors import InvalidInput, NumericalFailure
from .inference.filtering import Posterior
from .inference.methods import FitResult
from .inference.sampling.base import Sampler
from .inference.sampling.mclmc import MCLMC
from .inference.structures.particles import Particles, ParticlesState, effective_size
from .sampled import resampled

if TYPE_CHECKING:
    from .model import BayesianMLP

__all__ = ["reweighted", "thinned"]


def thinned(model: BayesianMLP, draws: int, stored: str) -> tuple[Particles, Posterior]:
    """See :meth:`BayesianMLP.thin`."""
    form, state = _drawn(model)
    if isinstance(draws, bool) or not isinstance(draws, int | np.integer):
        raise InvalidInput(f"draws must be an integer, got {draws!r}")
    largest = max(float(np.abs(model.engine.to_numpy(layer)).max()) for layer in state.draws)
    if stored == "float16" and largest > float(np.finfo(np.float16).max):
        raise InvalidInput(f"stored must be 'float32': a weight of {largest:.3g} is beyond float16")
    chosen, rows = replace(form, stored=stored).thinned(int(draws))
    return chosen, _kept(model, state, rows, model.engine.to_numpy(state.log_weights)[rows])


def reweighted(
    model: BayesianMLP,
    new: tuple[Any, Any, Any],
    least: float,
    memory: tuple[Any, Any] | None,
    method: Sampler | None,
) -> tuple[float, Particles, Posterior | FitResult]:
    """Effective size, and the posterior or what moved it on; see :meth:`BayesianMLP.reweight`.

    Args:
        model: with a sampler's posterior; left as it is.
        new: inputs, targets and weight of the rows to learn.
        least: share of the draws that must count.
        memory: inputs and targets of all rows learned before.
        method: that moves the draws on, if they must be.
    """
    form, state = _drawn(model)
    if isinstance(least, bool) or not isinstance(least, Real) or not 0 <= least <= 1:
        raise InvalidInput(f"least must be from 0 to 1, got {least!r}")
    if not isinstance(method, Sampler | None):
        raise InvalidInput(f"method must be a sampler, got {method!r}")
    if memory is not None and not (isinstance(memory, tuple | list) and len(memory) == 2):
        raise InvalidInput(f"memory must be a pair of inputs and targets, got {memory!r}")
    if memory is not None:
        model.scaled_rows(*memory, None)  # checked before any work is done
    x, targets, weights = model.scaled_rows(*new)
    log_likelihood = model.sampled_answers.log_likelihood(state, x, targets) @ weights
    log_weights = model.engine.to_numpy(state.log_weights) + log_likelihood
    size = effective_size(log_weights)
    if size >= least * form.size:
        other = model.duplicate()
        other.update(new[0], new[1], weight=new[2])  # the Gaussian learns them too
        beside = state._replace(gaussian=other.posterior.weights)
        kept = _kept(model, beside, np.arange(form.size), log_weights)
        return size, form, kept._replace(likelihood=other.posterior.likelihood)
    if memory is None:
        raise NumericalFailure(
            f"of {form.size} draws only {size:.1f} would count, fewer than {least:.0%}: give the memory of all rows, "
            "sample anew, or update, which goes on from a Gaussian"
        )
    result = _moved(model, form, state, log_weights, memory, new, method)
    assert isinstance(result.structure, Particles)
    return size, result.structure, result


def _drawn(model: BayesianMLP) -> tuple[Particles, ParticlesState]:
    if model.particles is None:
        raise InvalidInput("the posterior is not a sampler's: fit the model with NUTS(), MCLMC() or SGHMC()")
    return model.particles, model.posterior.weights


def _kept(model: BayesianMLP, state: ParticlesState, rows: np.ndarray, log_weights: np.ndarray) -> Posterior:
    """The chosen draws, with their weights, which are given up to a factor."""
    engine = model.engine
    with engine.scope():
        kept = state._replace(
            draws=tuple(layer[rows] for layer in state.draws),
            parameters=tuple(values[rows] for values in state.parameters),
            log_weights=engine.asarray(log_weights - np.logaddexp.reduce(log_weights), "float64"),
        )
    return model.posterior._replace(weights=kept)


def _moved(
    model: BayesianMLP,
    form: Particles,
    state: ParticlesState,
    log_weights: np.ndarray,
    memory: tuple[Any, Any],
    new: tuple[Any, Any, Any],
    method: Sampler | None,
) -> FitResult:
    """Chains that go on from resampled draws, given all rows (Gilks and Berzuini 2001, resample and move)."""
    parts = [model.scaled_rows(*memory, None), model.scaled_rows(*new)]
    x, targets, weights = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    chosen = method or MCLMC(num_warmup=300, num_chains=form.chains, num_samples=form.draws)
    rows = resampled(log_weights - np.logaddexp.reduce(log_weights), chosen.num_chains, model.seed)
    start = tuple(model.engine.to_numpy(layer)[rows].astype(np.float64) for layer in state.draws)
    parameters = tuple(model.engine.to_numpy(values)[rows] for values in state.parameters)
    problem = model.scaled_problem(x, targets, weights)
    return chosen.fit(replace(problem, chains_from=(start, parameters)))
