"""What the network says about y, and how sure it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np

from .inference.checks import check_count, is_number
from .inference.engines import NumpyEngine, map_arrays
from .inference.errors import InvalidInput
from .inference.likelihoods import Likelihood
from .inference.likelihoods.base import covariance_root
from .inference.likelihoods.masked import CERTAIN, MaskedTargets, masked
from .inference.logit_normal import CLOSED_FORMS
from .inference.quadrature import normal_nodes
from .masking import fill_unobserved
from .scaling import Scaling
from .validation import as_host_array

__all__ = ["APPROXIMATIONS", "JointOutputs", "Predictive", "draw_outputs"]

_NUMPY = NumpyEngine()
_AT_ONCE = 1 << 22
"""Numbers that an expectation holds at a time."""

APPROXIMATIONS = ("nodes", *CLOSED_FORMS, "monte_carlo")
"""How class probabilities are averaged over normal logits."""

Reduction = Callable[[np.ndarray], np.ndarray]


class JointOutputs(NamedTuple):
    """Outputs of several rows with the covariances between rows: a mixture of M normal distributions, in scaled units.

    Attributes:
        likelihood: the observation model.
        scaling: of the targets.
        log_weights: logarithms of the components' probabilities, (M,).
        mean: (M, N, K).
        covariance: due to the weights, (M, N·K, N·K).
        likelihood_state: what the likelihood has learned; each array with a leading axis M.
    """

    likelihood: Likelihood
    scaling: Scaling
    log_weights: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    likelihood_state: Any

    def sample_mean(self, num_samples: int, *, seed: int) -> np.ndarray:
        """Joint draws of E[y | weights], in the units of the targets, (num_samples, N, T); for classes, of their
        probabilities.
        """
        likelihood, state = self.likelihood, self.likelihood_state
        flat = self.mean.reshape(len(self.mean), 1, -1)
        rng, covariance = np.random.default_rng(seed), self.covariance[:, None]
        outputs, drawn = draw_outputs(likelihood, rng, num_samples, self.log_weights, flat, covariance, state)
        drawn = map_arrays(lambda array: array[:, None], drawn)
        means = np.asarray(likelihood.mean(_NUMPY, outputs.reshape(num_samples, *self.mean.shape[1:]), drawn))
        if likelihood.scales_targets:
            means = means * self.scaling.target_scale + self.scaling.target_mean
        return means

    def moments(self) -> tuple[np.ndarray, np.ndarray, Any]:
        """Mean (N, K) and covariance (N·K, N·K) of the mixture, and the likeliest component's likelihood state."""
        shares = np.exp(self.log_weights)
        mean = np.tensordot(shares, self.mean, axes=1)
        between = (self.mean - mean).reshape(len(shares), -1)
        covariance = np.tensordot(shares, self.covariance, axes=1) + (between.T * shares) @ between
        return mean, covariance, map_arrays(lambda array: array[int(shares.argmax())], self.likelihood_state)


@dataclass(frozen=True, eq=False)
class Predictive:
    """The predictive distribution of N answers, on the host, in the units of the targets: a mixture of M components.

    Linearised networks give one component with a covariance, S sampled networks S without, an ensemble one for each of
    its members. Within a component the outputs are normal, or known where there is no covariance.

    Attributes:
        method: how the uncertainty of the weights reached the outputs: ``"linearized"`` (first order around the mean),
            ``"samples"`` (sampled networks) or ``"mean"`` (not at all).
        likelihood: the observation model.
        scaling: of the targets.
        log_weights: logarithms of the components' probabilities, (M,).
        output_mean: of the network's outputs in scaled units, (M, N, K).
        output_covariance: of the outputs due to the weights, in scaled units, (M, N, K, K), or None.
        likelihood_state: what the likelihood has learned; each array with a leading axis M.
        approximation: of class probabilities, see :meth:`BayesianMLP.predict`.
        standard_normal: draws for ``"monte_carlo"``, (S, K).
        output_mask: the outputs that :meth:`log_prob` is of, (N, K); None for all.
        prediction_id: by which feedback may name this answer; set by an updater.
        version: of the model that answered; set by an updater.
        stale: whether a retraction that is under way had not reached the model yet; set by an updater.
    """

    method: str
    likelihood: Likelihood
    scaling: Scaling
    log_weights: np.ndarray
    output_mean: np.ndarray
    output_covariance: np.ndarray | None = None
    likelihood_state: Any = ()
    approximation: str = "nodes"
    standard_normal: np.ndarray | None = field(default=None, repr=False)
    output_mask: np.ndarray | None = None
    prediction_id: str | None = field(default=None)
    version: int | None = field(default=None)
    stale: bool = field(default=False)

    @classmethod
    def single(
        cls,
        method: str,
        likelihood: Likelihood,
        scaling: Scaling,
        output_mean: np.ndarray,
        output_covariance: np.ndarray | None = None,
        likelihood_state: Any = (),
        **options: Any,
    ) -> Predictive:
        """One component: arrays as in :class:`Predictive`, but without the axis M."""
        covariance = None if output_covariance is None else output_covariance[None]
        state = map_arrays(lambda array: np.asarray(array)[None], likelihood_state)
        return cls(method, likelihood, scaling, np.zeros(1), output_mean[None], covariance, state, **options)

    @classmethod
    def mixture(cls, parts: Sequence[Predictive], log_weights: np.ndarray | None = None) -> Predictive:
        """The mixture of several predictives of the same rows by one kind of model, as of an ensemble.

        Args:
            parts: of one method, likelihood and scaling, all with a covariance or all without.
            log_weights: logarithms of the parts' probabilities, (parts,); equally likely if None.
        """
        first = parts[0]
        own = np.zeros(len(parts)) if log_weights is None else np.asarray(log_weights, np.float64)
        own = own - _NUMPY.logsumexp(own, axis=0)
        states = zip(*(part.likelihood_state for part in parts), strict=True)
        state = tuple(np.concatenate(arrays) for arrays in states)
        kind = type(first.likelihood_state)
        covariances = [part.output_covariance for part in parts if part.output_covariance is not None]
        return replace(
            first,
            log_weights=np.concatenate([w + part.log_weights for w, part in zip(own, parts, strict=True)]),
            output_mean=np.concatenate([part.output_mean for part in parts]),
            output_covariance=np.concatenate(covariances) if covariances else None,
            likelihood_state=kind(*state) if hasattr(kind, "_fields") else state,
        )

    def masked(self, mask: np.ndarray) -> Predictive:
        """The same answers where only some classes are possible, or only some outputs will be observed.

        A class that is impossible has a logit that is known, and as good as -∞; so it has probability 0 in all that
        follows.

        Args:
            mask: booleans, (N, K).
        """
        if not self.likelihood.has_logits or self.likelihood.num_outputs == 1:
            return replace(self, output_mask=mask)
        covariance = self.output_covariance
        if covariance is not None:
            covariance = np.where(mask[:, :, None] & mask[:, None, :], covariance, 0.0)
        return replace(self, output_mean=np.where(mask, self.output_mean, -CERTAIN), output_covariance=covariance)

    def __repr__(self) -> str:
        return f"Predictive({len(self)} answers of {self.likelihood}, {self.method})"

    def __len__(self) -> int:
        return int(self.output_mean.shape[1])

    @property
    def average_output(self) -> np.ndarray:
        """E[outputs] over the components, in scaled units, (N, K)."""
        return self._average(self.output_mean)

    # -- over components ------------------------------------------------------------------------------------------
    def _average(self, values: np.ndarray) -> np.ndarray:
        """Σ probability · values over the leading axis M."""
        return np.tensordot(np.exp(self.log_weights), values, axes=1)

    def _over_components(
        self, function: Callable[..., np.ndarray], *per_row: np.ndarray, reduce: Reduction | None = None
    ) -> np.ndarray:
        """``function(mean, covariance, state, *per_row)`` of every component and row, reduced over the components.

        Components and rows are one axis to the function; rows are taken in portions, so that memory stays bounded.
        """
        parts, rows, size = self.output_mean.shape
        width = size * (1 if self.output_covariance is None else max(size, len(self._standard[1])))
        portion = max(1, _AT_ONCE // (parts * width))
        reduce = self._average if reduce is None else reduce
        pieces = []
        for start in range(0, rows, portion):
            chunk = slice(start, min(start + portion, rows))
            count = chunk.stop - start
            mean = self.output_mean[:, chunk].reshape(parts * count, size)
            covariance = self.output_covariance
            if covariance is not None:
                covariance = covariance[:, chunk].reshape(parts * count, size, size)
            state = map_arrays(partial(np.repeat, repeats=count, axis=0), self.likelihood_state)
            own = [np.concatenate([values[chunk]] * parts) for values in per_row]
            values = np.asarray(function(mean, covariance, state, *own))
            pieces.append(reduce(values.reshape(parts, count, *values.shape[1:])))
        return np.concatenate(pieces)

    @property
    def _standard(self) -> tuple[np.ndarray, np.ndarray]:
        return normal_nodes(self.output_mean.shape[2])

    def _expectation(self, function: Callable[[np.ndarray, Any], np.ndarray]) -> np.ndarray:
        """E[function(outputs, state)] over components and nodes, (N, ...)."""

        def over_nodes(mean: np.ndarray, covariance: np.ndarray | None, state: Any) -> np.ndarray:
            nodes, weights = self.likelihood.output_nodes(_NUMPY, mean, covariance, self.standard_normal)
            return np.tensordot(weights, function(nodes, state), axes=1)

        return self._over_components(over_nodes)

    # -- moments --------------------------------------------------------------------------------------------------
    @cached_property
    def _moments(self) -> np.ndarray:
        """Mean, epistemic and aleatoric variance in scaled units, (N, 3, T)."""

        def of_component(*arguments: Any) -> np.ndarray:
            return np.stack(self.likelihood.predictive_moments(_NUMPY, *arguments), axis=1)

        def total(parts: np.ndarray) -> np.ndarray:
            """The law of total variance."""
            mean = self._average(parts[:, :, 0])
            between = self._average((parts[:, :, 0] - mean) ** 2) if len(parts) > 1 else 0.0
            return np.stack([mean, between + self._average(parts[:, :, 1]), self._average(parts[:, :, 2])], axis=1)

        moments = self._over_components(of_component, reduce=total)
        if self.approximation == "nodes":
            return moments
        mean = self.probabilities[:, -moments.shape[2] :]  # one column for yes or no
        epistemic = np.minimum(moments[:, 1], mean * (1 - mean))
        return np.stack([mean, epistemic, mean * (1 - mean) - epistemic], axis=1)

    def _in_units(self, values: np.ndarray) -> np.ndarray:
        """Scaled (..., N, T) as targets of the user's, (..., N) where T is 1."""
        if self.likelihood.scales_targets:
            values = values * self.scaling.target_scale + self.scaling.target_mean
        return values[..., 0] if values.shape[-1] == 1 else values

    def _squares_in_units(self, values: np.ndarray) -> np.ndarray:
        if self.likelihood.scales_targets:
            values = values * self.scaling.target_scale**2
        return values[:, 0] if values.shape[1] == 1 else values

    @property
    def mean(self) -> np.ndarray:
        """E[y], shape (N,) or (N, T); for classes, their probabilities (N, C)."""
        return self._in_units(self._moments[:, 0])

    @property
    def epistemic_variance(self) -> np.ndarray:
        """Variance that more data would take away: Var[E[y | weights]], in the shape of :attr:`mean`."""
        return self._squares_in_units(self._moments[:, 1])

    @property
    def aleatoric_variance(self) -> np.ndarray:
        """Variance that no data would take away: E[Var[y | weights]], in the shape of :attr:`mean`."""
        return self._squares_in_units(self._moments[:, 2])

    @property
    def variance(self) -> np.ndarray:
        """Var[y], the sum of the two parts."""
        return self._squares_in_units(self._moments[:, 1] + self._moments[:, 2])

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of y."""
        return np.sqrt(self.variance)

    # -- numbers --------------------------------------------------------------------------------------------------
    def quantile(self, q: float) -> np.ndarray:
        """The smallest value that y stays at or below with probability q, in the shape of :attr:`mean`.

        Raises:
            InvalidInput: q outside (0, 1), or y is a class.
        """
        if not is_number(q) or not 0 < q < 1:
            raise InvalidInput(f"q must be between 0 and 1, got {q!r}")

        def of_component(mean: np.ndarray, covariance: np.ndarray | None, state: Any, y: np.ndarray) -> np.ndarray:
            return self.likelihood.predictive_cdf(mean, covariance, y, state)

        def excess(y: np.ndarray) -> np.ndarray:
            return self._over_components(of_component, y) - q

        mean, epistemic, aleatoric = np.moveaxis(self._moments, 1, 0)
        if self.likelihood.is_discrete:
            return self._in_units(_whole_root(excess, np.floor(mean)))
        deviation = np.sqrt(epistemic + aleatoric)
        return self._in_units(_root(excess, mean, np.where(np.isfinite(deviation), deviation, 1.0)))

    def interval(self, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper end of the central interval that holds y with probability ``level``.

        Raises:
            InvalidInput: a level outside (0, 1), or y is a class.
        """
        if not is_number(level) or not 0 < level < 1:
            raise InvalidInput(f"level must be between 0 and 1, got {level!r}")
        return self.quantile(0.5 - level / 2), self.quantile(0.5 + level / 2)

    def probability_integral_transform(self, y: Any) -> np.ndarray:
        """P(Y < y) + ½ P(Y = y) for each target, (N, T): uniform on (0, 1) where the predictions are calibrated.

        Raises:
            InvalidInput: targets that the likelihood does not take, or y is a class.
        """
        targets = self.scaling.targets(self.likelihood.prepare(y))

        def of_component(mean: np.ndarray, covariance: np.ndarray | None, state: Any, y: np.ndarray) -> np.ndarray:
            return self.likelihood.predictive_cdf(mean, covariance, y, state)

        at_most = self._over_components(of_component, targets)
        if not self.likelihood.is_discrete:
            return at_most
        return 0.5 * (at_most + self._over_components(of_component, targets - 1))

    # -- classes --------------------------------------------------------------------------------------------------
    @cached_property
    def probabilities(self) -> np.ndarray:
        """Probability of each class or level, (N, C); for yes or no, of 0 and of 1, (N, 2).

        Raises:
            InvalidInput: y is a number.
        """
        if self.approximation not in CLOSED_FORMS:
            return self._expectation(self._class_probabilities)
        closed_form = CLOSED_FORMS[self.approximation]

        def of_component(mean: np.ndarray, covariance: np.ndarray, state: Any) -> np.ndarray:
            return np.asarray(closed_form(_NUMPY, *self.likelihood.logits(_NUMPY, mean, covariance)))

        return self._over_components(of_component)

    def _class_probabilities(self, outputs: np.ndarray, state: Any) -> np.ndarray:
        return np.asarray(self.likelihood.class_probabilities(_NUMPY, outputs, state))

    @property
    def entropy(self) -> np.ndarray:
        """Entropy of the predicted class, in nats, (N,)."""
        return _entropy(self.probabilities)

    @property
    def mutual_information(self) -> np.ndarray:
        """Information that the class would bring about the weights, in nats, (N,) (Houlsby et al. 2011, BALD)."""
        expected = self._expectation(lambda outputs, state: _entropy(self._class_probabilities(outputs, state)))
        return np.maximum(self.entropy - expected, 0.0)

    # -- density and samples --------------------------------------------------------------------------------------
    def log_prob(self, y: Any) -> np.ndarray:
        """Log predictive density (or probability) of y in nats, in the units of the targets, (N,).

        Raises:
            InvalidInput: targets that the likelihood does not take, or another number of them.
        """
        mask, likelihood = self.output_mask, self.likelihood
        y = fill_unobserved(as_host_array(y, "y"), mask, self.scaling.target_mean)
        targets = self.scaling.targets(likelihood.prepare(y))
        if len(targets) != len(self):
            raise InvalidInput(f"y must have {len(self)} rows, got {len(targets)}")
        if self.approximation != "nodes":
            labels = targets.reshape(len(self)).astype(int)
            return np.log(self.probabilities[np.arange(len(self)), labels])

        def of_component(mean: np.ndarray, covariance: np.ndarray | None, state: Any, *y: np.ndarray) -> np.ndarray:
            if mask is None:
                return likelihood.predictive_log_prob(_NUMPY, mean, covariance, y[0], state)
            return masked(likelihood).predictive_log_prob(_NUMPY, mean, covariance, MaskedTargets(*y), state)

        def mixed(parts: np.ndarray) -> np.ndarray:
            return _NUMPY.logsumexp(self.log_weights[:, None] + parts, axis=0)

        per_row = (targets,) if mask is None else (targets, mask)
        log_scale = np.log(self.scaling.target_scale)
        in_units = np.sum(log_scale) if mask is None else mask @ log_scale
        return self._over_components(of_component, *per_row, reduce=mixed) - in_units

    def sample(self, num_samples: int = 1, *, seed: int = 0) -> np.ndarray:
        """Draws of y, (num_samples, N) or (num_samples, N, T); the rows of a draw share one component and its noise.

        Raises:
            InvalidInput: fewer than one sample, or another seed than an integer of at least 0.
        """
        check_count("num_samples", num_samples)
        check_count("seed", seed, 0)
        rng = np.random.default_rng(seed)
        outputs, drawn_state = self._draw_outputs(num_samples, rng)
        drawn = self.likelihood.draw(rng, outputs, map_arrays(lambda array: array[:, None], drawn_state))
        return self._in_units(drawn) if drawn.ndim == 3 else drawn

    def sample_mean(self, num_samples: int = 1, *, seed: int = 0) -> np.ndarray:
        """Draws of E[y | weights], (num_samples, N) or (num_samples, N, T); of class probabilities, (..., N, C).

        Raises:
            InvalidInput: fewer than one sample, or another seed than an integer of at least 0.
        """
        check_count("num_samples", num_samples)
        check_count("seed", seed, 0)
        outputs, drawn_state = self._draw_outputs(num_samples, np.random.default_rng(seed))
        state = map_arrays(lambda array: array[:, None], drawn_state)
        return self._in_units(np.asarray(self.likelihood.mean(_NUMPY, outputs, state)))

    def _draw_outputs(self, num_samples: int, rng: np.random.Generator) -> tuple[np.ndarray, Any]:
        state, mean, covariance = self.likelihood_state, self.output_mean, self.output_covariance
        return draw_outputs(self.likelihood, rng, num_samples, self.log_weights, mean, covariance, state)


def draw_outputs(
    likelihood: Likelihood,
    rng: np.random.Generator,
    num_samples: int,
    log_weights: np.ndarray,
    mean: np.ndarray,
    covariance: np.ndarray | None,
    state: Any,
) -> tuple[np.ndarray, Any]:
    """Draws of outputs (S, N, K), and what the likelihood is uncertain of, drawn with each.

    Args:
        likelihood: whose state is drawn.
        rng: source of the draws.
        num_samples: S.
        log_weights: of the components, (M,).
        mean: (M, N, K).
        covariance: (M, N, K, K), or None.
        state: with a leading axis M.
    """
    chosen = rng.choice(len(log_weights), num_samples, p=np.exp(log_weights))
    own = map_arrays(lambda array: array[chosen], state)
    drawn_state = likelihood.draw_state(rng, own)
    outputs = mean[chosen]
    if covariance is not None:  # weights and noise share one draw of φ
        inflation = np.asarray(likelihood.dispersion(drawn_state) / likelihood.dispersion(own))
        noise = rng.standard_normal(outputs.shape) * np.sqrt(inflation.reshape(-1, 1, 1))
        for part in np.unique(chosen):
            root = covariance_root(_NUMPY, covariance[part])
            outputs[chosen == part] += np.einsum("nkl,snl->snk", root, noise[chosen == part])
    return outputs, drawn_state


def _bracket(function: Reduction, start: np.ndarray, step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends between which an increasing function becomes 0 or more, by doubled steps from a start."""
    low, high = start - step, start + step
    for end, wanted, sign in ((high, True, 1.0), (low, False, -1.0)):
        for doubling in range(1000):
            wrong = (function(end) >= 0) != wanted
            if not wrong.any():
                break
            end[wrong] += sign * step[wrong] * 2.0**doubling
    return low, high


def _whole_root(function: Reduction, start: np.ndarray) -> np.ndarray:
    """The smallest whole numbers where an increasing function is 0 or more, by bisection."""
    low, high = _bracket(function, start, np.ones_like(start))
    while (high - low > 1).any():
        middle = np.floor(0.5 * (low + high))
        under = function(middle) < 0
        low, high = np.where(under, middle, low), np.where(under, high, middle)
    return high


def _root(function: Reduction, start: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Where an increasing function is 0, by inverse quadratic interpolation or bisection (Chandrupatla 1997)."""
    b, a = _bracket(function, start, step)
    fa, fb, share = function(a), function(b), np.full_like(a, 0.5)
    best = a
    with np.errstate(all="ignore"):  # rows that are done divide by 0
        for _ in range(200):
            x = a + share * (b - a)
            fx = function(x)
            same = np.sign(fx) == np.sign(fa)
            c, fc = np.where(same, a, b), np.where(same, fa, fb)
            b, fb = np.where(same, b, a), np.where(same, fb, fa)
            a, fa = x, fx
            best = np.where(np.abs(fa) < np.abs(fb), a, b)
            least = (1e-13 * step + 4e-16 * np.abs(best)) / np.abs(b - a)
            done = (least > 0.5) | (fa == 0) | (fb == 0)
            if done.all():
                break
            along, rise = (a - b) / (c - b), (fa - fb) / (fc - fb)
            curved = (rise**2 < along) & ((1 - rise) ** 2 < 1 - along)
            inverse = fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb)
            share = np.clip(np.where(curved, inverse, 0.5), least, 1 - least)
            share = np.where(done, 0.5, share)
    return best


def _entropy(probabilities: np.ndarray) -> np.ndarray:
    """-Σ p log p along the last axis."""
    return -np.sum(probabilities * np.log(np.maximum(probabilities, 1e-300)), axis=-1)
