"""What the network says about y, and how sure it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from .inference.engines import NumpyEngine
from .inference.errors import InvalidInput
from .inference.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from .scaling import Scaling

__all__ = ["Predictive"]

_NUMPY = NumpyEngine()


@dataclass(frozen=True, eq=False)
class Predictive:
    """The predictive distribution of N answers, on the host, in the units of the targets.

    Attributes:
        method: how the uncertainty of the weights reached the outputs: ``"linearized"`` (first order around the mean),
            ``"samples"`` (sampled networks) or ``"mean"`` (not at all).
        likelihood: the observation model.
        likelihood_state: what it has learned.
        scaling: of the targets.
        output_mean: the network's outputs in scaled units, (N, K).
        output_covariance: of the outputs due to the weights, in scaled units, (N, K, K); for ``"linearized"``.
        output_samples: outputs of sampled networks, (S, N, K); for ``"samples"``.
        sampled_dispersion: the noise variance that goes with each sample, (S,); for ``"samples"`` with learned noise.
        prediction_id: by which feedback may name this answer; set by an updater.
        version: of the model that answered; set by an updater.
    """

    method: str
    likelihood: Likelihood
    likelihood_state: Any
    scaling: Scaling
    output_mean: np.ndarray
    output_covariance: np.ndarray | None = None
    output_samples: np.ndarray | None = None
    sampled_dispersion: np.ndarray | None = None
    prediction_id: str | None = field(default=None)
    version: int | None = field(default=None)

    def __repr__(self) -> str:
        return f"Predictive({len(self)} answers of {self.likelihood}, {self.method})"

    def __len__(self) -> int:
        return int(self.output_mean.shape[0])

    # -- moments --------------------------------------------------------------------------------------------------
    @cached_property
    def _nodes(self) -> tuple[np.ndarray, np.ndarray]:
        """Outputs (S, N, K) and weights (S,) that stand for the uncertainty of the weights."""
        if self.output_samples is not None:
            size = len(self.output_samples)
            return self.output_samples, np.full(size, 1 / size)
        if self.output_covariance is None:
            return self.output_mean[None], np.ones(1)
        return self.likelihood.output_nodes(_NUMPY, self.output_mean, self.output_covariance)

    def _average(self, values: np.ndarray) -> np.ndarray:
        """Σ weights · values over the nodes."""
        return np.tensordot(self._nodes[1], values, axes=1)

    def _squeeze(self, values: np.ndarray) -> np.ndarray:
        """(N, K) as the shape of y: (N,) for one output."""
        return values[:, 0] if values.shape[1] == 1 else values

    @cached_property
    def _mean(self) -> np.ndarray:
        if isinstance(self.likelihood, Gaussian):
            outputs = self.output_mean if self.output_samples is None else self._average(self.output_samples)
            return outputs * self.scaling.target_scale + self.scaling.target_mean
        return self._average(self.likelihood.mean(_NUMPY, self._nodes[0]))

    @cached_property
    def _noise_variance(self) -> float:
        """E[φ] in scaled units; infinite where the posterior of the noise has no mean."""
        assert isinstance(self.likelihood, Gaussian)
        if self.sampled_dispersion is not None:
            return float(np.mean(self.sampled_dispersion))
        return float(self.likelihood.variance(_NUMPY, np.zeros((1, 1)), self.likelihood_state)[0, 0])

    @cached_property
    def _epistemic(self) -> np.ndarray:
        if self.method == "mean":
            return np.zeros_like(self._mean)
        if isinstance(self.likelihood, Gaussian):
            square = self.scaling.target_scale**2
            if self.output_covariance is None:
                return np.var(self._nodes[0], axis=0) * square
            inflation = 1.0
            if self.likelihood.learns_noise:
                inflation = self._noise_variance / float(self.likelihood.dispersion(self.likelihood_state))
            return np.einsum("nkk->nk", self.output_covariance) * inflation * square
        means = self.likelihood.mean(_NUMPY, self._nodes[0])
        return np.maximum(self._average(means**2) - self._mean**2, 0.0)

    @cached_property
    def _aleatoric(self) -> np.ndarray:
        if isinstance(self.likelihood, Gaussian):
            return np.zeros_like(self._mean) + self._noise_variance * self.scaling.target_scale**2
        return self._average(self.likelihood.variance(_NUMPY, self._nodes[0], self.likelihood_state))

    @property
    def mean(self) -> np.ndarray:
        """E[y], shape (N,) or (N, K); for classes, their probabilities (N, C)."""
        return self._squeeze(self._mean)

    @property
    def epistemic_variance(self) -> np.ndarray:
        """Variance that more data would take away: Var[E[y | weights]], in the shape of :attr:`mean`."""
        return self._squeeze(self._epistemic)

    @property
    def aleatoric_variance(self) -> np.ndarray:
        """Variance that no data would take away: E[Var[y | weights]], in the shape of :attr:`mean`."""
        return self._squeeze(self._aleatoric)

    @property
    def variance(self) -> np.ndarray:
        """Var[y], the sum of the two parts."""
        return self._squeeze(self._epistemic + self._aleatoric)

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of y."""
        return np.sqrt(self.variance)

    # -- regression -----------------------------------------------------------------------------------------------
    def quantile(self, q: float) -> np.ndarray:
        """The value that y stays below with probability q, in the shape of :attr:`mean`.

        Raises:
            InvalidInput: q outside (0, 1), or y is a class.
        """
        if not 0 < q < 1:
            raise InvalidInput(f"q must be between 0 and 1, got {q!r}")
        gaussian = self._regression("quantile")
        if self.output_samples is not None:
            return self._squeeze(self._mixture_quantile(q))
        variance = 0.0 if self.output_covariance is None else np.einsum("nkk->nk", self.output_covariance)
        if gaussian.learns_noise:
            from scipy.special import stdtrit

            scale = np.sqrt(variance + float(gaussian.dispersion(self.likelihood_state)))
            steps = scale * stdtrit(2 * float(self.likelihood_state.shape), q)
        else:
            from scipy.special import ndtri

            steps = np.sqrt(variance + self._noise_variance) * ndtri(q)
        return self._squeeze(self._mean + steps * self.scaling.target_scale)

    def interval(self, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper end of the central interval that holds y with probability ``level``.

        Raises:
            InvalidInput: a level outside (0, 1), or y is a class.
        """
        if not 0 < level < 1:
            raise InvalidInput(f"level must be between 0 and 1, got {level!r}")
        return self.quantile(0.5 - level / 2), self.quantile(0.5 + level / 2)

    def _regression(self, what: str) -> Gaussian:
        if not isinstance(self.likelihood, Gaussian):
            raise InvalidInput(f"{what} is for numeric targets, not for {type(self.likelihood).__name__}")
        return self.likelihood

    def _sample_deviations(self) -> np.ndarray:
        """Standard deviation of y around each sampled network, (S, 1, 1), in scaled units."""
        if self.sampled_dispersion is None:
            return np.sqrt(np.full((1, 1, 1), self._noise_variance))
        return np.sqrt(self.sampled_dispersion)[:, None, None]

    def _mixture_quantile(self, q: float) -> np.ndarray:
        """Quantile of the mixture over sampled networks, by bisection."""
        from scipy.special import ndtr

        outputs, weights = self._nodes
        deviations = self._sample_deviations()
        low = np.min(outputs - 40 * deviations, axis=0)
        high = np.max(outputs + 40 * deviations, axis=0)
        for _ in range(80):
            middle = 0.5 * (low + high)
            below = np.tensordot(weights, ndtr((middle - outputs) / deviations), axes=1) < q
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return 0.5 * (low + high) * self.scaling.target_scale + self.scaling.target_mean

    # -- classification -------------------------------------------------------------------------------------------
    @cached_property
    def probabilities(self) -> np.ndarray:
        """Probability of each class, (N, C); for yes or no, of 0 and of 1, (N, 2).

        Raises:
            InvalidInput: y is a number.
        """
        return self._average(self._node_probabilities)

    @cached_property
    def _node_probabilities(self) -> np.ndarray:
        """Class probabilities at each node, (S, N, C)."""
        if isinstance(self.likelihood, Bernoulli) and self.likelihood.num_outputs == 1:
            yes = self.likelihood.mean(_NUMPY, self._nodes[0])[..., 0]
            return np.stack([1 - yes, yes], axis=-1)
        if not isinstance(self.likelihood, Categorical):
            raise InvalidInput(f"class probabilities are for Categorical and Bernoulli, not for {self.likelihood}")
        return np.asarray(self.likelihood.mean(_NUMPY, self._nodes[0]))

    @property
    def entropy(self) -> np.ndarray:
        """Entropy of the predicted class, in nats, (N,)."""
        return _entropy(self.probabilities)

    @property
    def mutual_information(self) -> np.ndarray:
        """Information that the class would bring about the weights, in nats, (N,) (Houlsby et al. 2011, BALD)."""
        return np.maximum(self.entropy - self._average(_entropy(self._node_probabilities)), 0.0)

    # -- density and samples --------------------------------------------------------------------------------------
    def log_prob(self, y: Any) -> np.ndarray:
        """Log predictive density (or probability) of y in nats, in the units of the targets, (N,).

        Raises:
            InvalidInput: targets that the likelihood does not take, or another number of them.
        """
        targets = self.scaling.targets(self.likelihood.prepare(y))
        if len(targets) != len(self):
            raise InvalidInput(f"y must have {len(self)} rows, got {len(targets)}")
        jacobian = float(np.sum(np.log(self.scaling.target_scale)))
        if isinstance(self.likelihood, Gaussian):
            if self.output_samples is not None:
                return self._mixture_log_prob(targets) - jacobian
            covariance = self.output_covariance
            if covariance is None:
                covariance = np.zeros((*self.output_mean.shape, self.output_mean.shape[1]))
            state = self.likelihood_state
            return self.likelihood.predictive_log_prob(_NUMPY, self.output_mean, covariance, targets, state) - jacobian
        outputs, weights = self._nodes
        values = self.likelihood.log_prob(_NUMPY, outputs, targets, self.likelihood_state)
        return _NUMPY.logsumexp(np.log(weights)[:, None] + values, axis=0) - jacobian

    def _mixture_log_prob(self, targets: np.ndarray) -> np.ndarray:
        outputs, weights = self._nodes
        deviations = self._sample_deviations()
        standardised = (targets - outputs) / deviations
        values = -0.5 * standardised**2 - np.log(deviations) - 0.5 * np.log(2 * np.pi)
        return _NUMPY.logsumexp(np.log(weights)[:, None] + values.sum(-1), axis=0)

    def sample(self, num_samples: int = 1, *, seed: int = 0) -> np.ndarray:
        """Draws of y, (num_samples, N) or (num_samples, N, K).

        Raises:
            InvalidInput: fewer than one sample.
        """
        if not isinstance(num_samples, int | np.integer) or num_samples < 1:
            raise InvalidInput(f"num_samples must be an integer of at least 1, got {num_samples!r}")
        rng = np.random.default_rng(seed)
        rows, size = self.output_mean.shape
        state, likelihood = self.likelihood_state, self.likelihood
        if self.output_samples is not None:
            chosen = rng.integers(len(self.output_samples), size=num_samples)
            outputs = self.output_samples[chosen]
            if self.sampled_dispersion is not None:
                noise = rng.standard_normal(outputs.shape)
                drawn = outputs + noise * np.sqrt(self.sampled_dispersion[chosen])[:, None, None]
            else:
                drawn = likelihood.draw(rng, outputs, state)
        else:
            outputs = np.broadcast_to(self.output_mean, (num_samples, rows, size))
            inflation = np.ones((num_samples, 1, 1))
            learns_noise = isinstance(likelihood, Gaussian) and likelihood.learns_noise
            if learns_noise:  # weights and noise share one draw of φ
                inflation = 1 / rng.gamma(float(state.shape), 1 / float(state.shape), (num_samples, 1, 1))
            if self.output_covariance is not None:
                root = np.linalg.cholesky(self.output_covariance + 1e-12 * np.eye(size))
                normal = rng.standard_normal((num_samples, rows, size, 1))
                outputs = outputs + np.sqrt(inflation) * (root @ normal)[..., 0]
            if learns_noise:
                spread = np.sqrt(inflation * float(likelihood.dispersion(state)))
                drawn = outputs + spread * rng.standard_normal(outputs.shape)
            else:
                drawn = likelihood.draw(rng, outputs, state)
        if drawn.dtype.kind == "f" and drawn.ndim == 3:
            drawn = drawn * self.scaling.target_scale + self.scaling.target_mean
        return drawn[..., 0] if drawn.ndim == 3 and size == 1 else drawn


def _entropy(probabilities: np.ndarray) -> np.ndarray:
    """-Σ p log p along the last axis."""
    return -np.sum(probabilities * np.log(np.maximum(probabilities, 1e-300)), axis=-1)
