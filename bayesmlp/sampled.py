"""A posterior as draws of a sampler: it predicts, and ArviZ reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .inference.engines import NumpyEngine
from .inference.errors import MissingDependency
from .inference.likelihoods import FixedNoise, Likelihood
from .inference.network import MLP
from .inference.sampling.nuts import Chains
from .inference.sampling.program import NOISE_PRECISION, layer_site
from .predictive import Predictive
from .scaling import Scaling
from .validation import check_inputs

__all__ = ["SampledPosterior"]

_NUMPY = NumpyEngine()


@dataclass(frozen=True, eq=False)
class SampledPosterior:
    """Draws of the weights given a data set.

    Attributes:
        network: the network.
        likelihood: the observation model.
        scaling: of inputs and targets.
        chains: the draws.
        x: scaled inputs that they are given, (N, I).
        y: scaled, prepared targets that they are given.
    """

    network: MLP
    likelihood: Likelihood
    scaling: Scaling
    chains: Chains
    x: np.ndarray
    y: np.ndarray

    def weights(self) -> tuple[np.ndarray, ...]:
        """Weight matrices of each layer, (chains, draws, inputs + 1, outputs)."""
        return tuple(self.chains.sites[layer_site(i)] for i in range(self.network.num_layers))

    def noise_variance(self) -> np.ndarray | None:
        """The noise variance φ in scaled units, (chains, draws); None where it is not learned."""
        precision = self.chains.sites.get(NOISE_PRECISION)
        return None if precision is None else 1 / precision

    def _outputs(self, x: np.ndarray) -> np.ndarray:
        """Outputs of every drawn network, (chains, draws, N, K), in scaled units."""
        flat = tuple(w.reshape(-1, *w.shape[2:]).astype(np.float64) for w in self.weights())
        outputs = self.network.apply(_NUMPY, flat, x)
        return np.asarray(outputs).reshape(*self.chains.diverging.shape, *outputs.shape[1:])

    def predict(self, X: Any) -> Predictive:  # noqa: N803
        """The predictive distribution: a mixture over all draws.

        Args:
            X: inputs, (rows, inputs), in the user's units.
        """
        x = self.scaling.inputs(check_inputs(X, self.x.shape[1]))
        outputs = self._outputs(x)
        samples = outputs.reshape(-1, *outputs.shape[2:])
        variance = self.noise_variance()
        state = () if variance is None else FixedNoise(variance.reshape(-1).astype(np.float64))
        log_weights = np.full(len(samples), -np.log(len(samples)))
        return Predictive("samples", self.likelihood, self.scaling, log_weights, samples, likelihood_state=state)

    def to_arviz(self) -> Any:
        """The draws as ArviZ takes them: posterior, sample statistics, log likelihood, function values and data.

        ``outputs`` holds the network's outputs at the data: their R-hat and effective sample size mean something, those
        of single weights hardly do, since a network may permute its units.

        Raises:
            MissingDependency: ArviZ is not installed.
        """
        try:
            import arviz
        except ImportError as error:
            raise MissingDependency("arviz", "jax") from error
        outputs = self._outputs(self.x)
        posterior = {**self.chains.sites, "outputs": outputs}
        groups = {
            "posterior": posterior,
            "sample_stats": {"diverging": self.chains.diverging},
            "log_likelihood": {"y": self._log_likelihood(outputs)},
            "observed_data": {"y": self.y},
        }
        if int(arviz.__version__.split(".")[0]) >= 1:
            return arviz.from_dict(groups)
        return arviz.from_dict(**groups)

    def _log_likelihood(self, outputs: np.ndarray) -> np.ndarray:
        variance = self.noise_variance()
        state = () if variance is None else FixedNoise(variance[:, :, None].astype(np.float64))
        return np.asarray(self.likelihood.log_prob(_NUMPY, outputs, self.y, state))
