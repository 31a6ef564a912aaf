"""The model as an ordinary program of NumPyro or Pyro: written once, for both.

The two languages share their primitives (``sample``, ``plate``) and the names of their distributions; what differs is
passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..engines.base import Engine
from ..likelihoods import Bernoulli, Categorical, Gaussian
from ..likelihoods.base import Likelihood
from ..network import MLP

__all__ = ["NOISE_PRECISION", "Program", "layer_site", "parameter_site", "probabilistic_program"]

Program = Callable[..., Any]
"""``program(x, y=None)``: a NumPyro or Pyro model of scaled inputs (N, I) and prepared targets."""

NOISE_PRECISION = "noise_precision"
"""Site of the Gaussian noise's precision 1/φ, where it is learned."""


def layer_site(index: int) -> str:
    """Name of the site of a layer's weight matrix (inputs + 1, outputs)."""
    return f"layer_{index}"


def parameter_site(index: int) -> str:
    """Name of the site of a parameter that a likelihood learns."""
    return f"likelihood_{index}"


def probabilistic_program(
    language: Any,
    distributions: Any,
    engine: Engine,
    network: MLP,
    likelihood: Likelihood,
    prior_precision: Sequence[np.ndarray],
) -> Program:
    """The joint density of weights, what the likelihood learns, and data.

    For Gaussian, Categorical and Bernoulli the data are an ordinary site ``y``, so that the language's own predictive
    works. For every other likelihood ``y`` is a factor beside a deterministic site ``outputs``, and each of its
    parameters (:meth:`Likelihood.fit_parameters`) an improper uniform site with a factor for its prior.

    Args:
        language: the module ``numpyro`` or ``pyro``.
        distributions: its module of distributions.
        engine: of the arrays.
        network: the network.
        likelihood: the observation model.
        prior_precision: of each weight, one matrix per layer; the prior mean is 0.
    """
    deviations = [engine.asarray(precision**-0.5) for precision in prior_precision]

    def observation(outputs: Any) -> Any:
        if isinstance(likelihood, Categorical):
            return distributions.Categorical(logits=outputs)
        if isinstance(likelihood, Bernoulli):
            return distributions.Bernoulli(logits=outputs).to_event(1)
        assert isinstance(likelihood, Gaussian)
        if likelihood.noise_variance is not None:
            return distributions.Normal(outputs, likelihood.noise_variance**0.5).to_event(1)
        shape = engine.asarray(np.float64(likelihood.prior_shape))
        rate = engine.asarray(np.float64(likelihood.prior_rate))
        precision = language.sample(NOISE_PRECISION, distributions.Gamma(shape, rate))
        return distributions.Normal(outputs, precision**-0.5).to_event(1)

    def factors(outputs: Any, y: Any) -> Any:
        real = distributions.constraints.real
        parameters = tuple(
            language.sample(parameter_site(index), distributions.ImproperUniform(real, (), ()))
            for index in range(len(likelihood.fit_parameters()))
        )
        if parameters:
            language.factor("likelihood_prior", likelihood.fit_log_prior(engine, parameters))
        language.deterministic("outputs", outputs)
        if y is not None:
            language.factor("y", engine.xp.sum(likelihood.fit_log_prob(engine, outputs, y, parameters)))
        return outputs

    def program(x: Any, y: Any = None) -> Any:
        weights = tuple(
            language.sample(layer_site(i), distributions.Normal(0.0 * deviation, deviation).to_event(2))
            for i, deviation in enumerate(deviations)
        )
        outputs = network.apply(engine, weights, x)
        if not isinstance(likelihood, Gaussian | Categorical | Bernoulli):
            return factors(outputs, y)
        conditional = observation(outputs)
        with language.plate("rows", x.shape[0]):
            return language.sample("y", conditional, obs=y)

    return program
