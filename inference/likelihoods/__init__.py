"""Observation models: what turns the network's outputs into a distribution of y."""

from .base import Likelihood
from .bernoulli import Bernoulli
from .categorical import Categorical
from .gaussian import Gaussian, NoiseState

__all__ = ["Bernoulli", "Categorical", "Gaussian", "Likelihood", "NoiseState"]
