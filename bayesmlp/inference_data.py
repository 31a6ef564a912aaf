"""Any model's posterior as ArviZ takes it, with function values in place of single weights.

A network computes the same function with its hidden units in any order, so diagnostics of single weights mean little;
those of function values and of whole layers do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .inference.engines import NumpyEngine, map_arrays
from .inference.errors import InvalidInput, MissingDependency
from .sampled import resampled
from .validation import check_inputs

if TYPE_CHECKING:
    from .model import BayesianMLP

__all__ = ["inference_data", "posterior_draws"]

_NUMPY = NumpyEngine()
_CHAINS = 4
"""Into which independent draws are divided, so that reports that ask for several chains have them."""


def inference_data(
    model: BayesianMLP,
    X: Any,  # noqa: N803
    y: Any = None,
    *,
    num_samples: int = 1000,
    seed: int | None = None,
) -> Any:
    """Draws of a model as ArviZ's ``InferenceData`` (before version 1) or ``DataTree``.

    Groups: ``posterior`` (``function``: the outputs at X; ``layer_scale``: root mean square of each layer's weights, in
    standard deviations of the prior; ``likelihood_...``: what the likelihood has learned, in scaled units),
    ``posterior_predictive`` (``y``), ``sample_stats`` of a sampler, and with targets ``log_likelihood`` (``y``, in the
    user's units) and ``observed_data``. A sampler's chains stay chains; other posteriors give independent draws.

    Args:
        model: with a posterior of any method.
        X: inputs, (rows, inputs).
        y: targets there; None for none.
        num_samples: draws of a posterior in closed form.
        seed: of the draws; the model's own if None.

    Raises:
        InvalidInput: bad data.
        MissingDependency: ArviZ is not installed.
    """
    try:
        import arviz
    except ImportError as error:
        raise MissingDependency("arviz", "jax") from error
    if not isinstance(num_samples, int | np.integer) or num_samples < _CHAINS:
        raise InvalidInput(f"num_samples must be an integer of at least {_CHAINS}, got {num_samples!r}")
    seed = model.seed if seed is None else seed
    x = model.scaling.inputs(check_inputs(X, model.num_inputs, network=model.network))
    (chains, draws), weights, states = posterior_draws(model, num_samples, seed)
    outputs = np.asarray(model.network_outputs(weights, x))

    def by_chain(values: np.ndarray) -> np.ndarray:
        return values.reshape(chains, draws, *values.shape[1:])

    likelihood, scaling = model.scaled_likelihood, model.scaling
    at_rows = map_arrays(lambda array: np.asarray(array)[:, None], states)
    drawn = likelihood.draw(np.random.default_rng([seed, 1]), outputs, at_rows)
    in_units = drawn * scaling.target_scale + scaling.target_mean if likelihood.scales_targets else drawn
    posterior = {"function": by_chain(outputs), "layer_scale": by_chain(_layer_scales(model, weights))}
    names = getattr(states, "_fields", [str(i) for i in range(len(states))])
    for name, values in zip(names, states, strict=True):
        posterior[f"likelihood_{name}"] = by_chain(np.asarray(values))
    groups: dict[str, Any] = {"posterior": posterior, "posterior_predictive": {"y": by_chain(in_units)}}
    statistics = {k: v for k, v in model.sample_statistics.items() if v.shape == (chains, draws)}
    if statistics:
        groups["sample_stats"] = {"lp" if name == "log_density" else name: v for name, v in statistics.items()}
    if y is not None:
        targets = model.prepared_targets(y, len(x))
        scaled = scaling.targets(targets)
        log_prob = np.asarray(likelihood.log_prob(_NUMPY, outputs, scaled, at_rows))
        if likelihood.scales_targets:
            log_prob = log_prob - np.sum(np.log(scaling.target_scale))
        groups |= {"log_likelihood": {"y": by_chain(log_prob)}, "observed_data": {"y": targets}}
    if int(arviz.__version__.split(".")[0]) >= 1:
        return arviz.from_dict(groups)
    return arviz.from_dict(**groups)


def posterior_draws(model: BayesianMLP, num_samples: int, seed: int) -> tuple[tuple[int, int], Any, Any]:
    """Chains and draws of each; weights of every layer (S, ...); the likelihood's states, stacked; on the host."""
    if (form := model.particles) is not None:
        state, answers = model.posterior.weights, model.sampled_answers
        log_weights = answers.log_weights(state)
        weights = tuple(model.engine.to_numpy(layer) for layer in state.draws)
        states = answers.likelihood_states(state)
        if np.ptp(log_weights) < 1e-9:
            return (form.chains, form.draws), weights, states
        rows = resampled(log_weights, form.size, seed)
        return (1, form.size), tuple(w[rows] for w in weights), map_arrays(lambda a: a[rows], states)
    size = num_samples - num_samples % _CHAINS
    weights, states = model.weight_draws(size, seed)
    return (_CHAINS, size // _CHAINS), weights, states


def _layer_scales(model: BayesianMLP, weights: Any) -> np.ndarray:
    """Root mean square of each layer's weights in standard deviations of the prior, (S, layers)."""
    precision = model.network.prior_precision(model.prior, model.num_inputs, model.likelihood.num_outputs)
    layers = zip(weights, precision, strict=True)
    return np.stack([np.sqrt(np.mean(w**2 * p, axis=tuple(range(1, w.ndim)))) for w, p in layers], axis=1)
