"""Observation models: what turns the network's outputs into a distribution of y."""

from .base import Likelihood
from .bernoulli import Bernoulli
from .bradley_terry import BradleyTerry
from .categorical import Categorical
from .gaussian import FixedNoise, Gaussian, NoiseState
from .heteroscedastic_gaussian import HeteroscedasticGaussian, LevelState
from .ordinal import Ordinal, Thresholds
from .poisson import Poisson
from .student_t import ScaleState, StudentT

__all__ = [
    "Bernoulli",
    "BradleyTerry",
    "Categorical",
    "FixedNoise",
    "Gaussian",
    "HeteroscedasticGaussian",
    "LevelState",
    "Likelihood",
    "NoiseState",
    "Ordinal",
    "Poisson",
    "ScaleState",
    "StudentT",
    "Thresholds",
]
