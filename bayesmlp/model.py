"""A Bayesian network: fit, update, predict."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from .answering import Answering
from .functions import FUNCTION_METHODS, FunctionSamples
from .inference.checks import check_count
from .inference.engines import map_arrays
from .inference.engines.base import stack_trees
from .inference.errors import InvalidInput
from .inference.likelihoods import Likelihood
from .inference.methods import FitProblem, FitResult
from .inference.sampling.base import Sampler
from .inference_data import inference_data
from .kinds import check_items, observed_kind, scaled_items
from .masking import check_output_mask
from .modelling.learning import LearningModel
from .modelling.state import default_engine
from .predictive import APPROXIMATIONS, JointOutputs, Predictive
from .programs import Program, program_of
from .reweighting import reweighted, thinned
from .sampled import SampledAnswers
from .scaling import Scaling
from .validation import check_elapsed, check_inputs

if TYPE_CHECKING:
    from .consolidation import Consolidate, Consolidation

__all__ = ["BayesianMLP", "default_engine"]

_log = logging.getLogger(__name__)

PREDICTION_METHODS = ("linearized", "samples", "mean")


class BayesianMLP(LearningModel):
    """A multi-layer perceptron, or a network of the user's own, with a posterior over its weights.

    The posterior comes from :meth:`fit`, or grows from the prior by :meth:`update` alone; either way :meth:`update`
    goes on from it. NumPy in, NumPy out; torch tensors, JAX arrays and data frames are accepted.

    Args:
        network: sizes and activation; or a module with Bayesian layers (:mod:`bayesmlp.layers`).
        likelihood: what the outputs mean: ``Gaussian()``, ``Categorical(10)``, ``Bernoulli()``.
        feedback: in place of a likelihood, several kinds of feedback by name, each an observation model of the first
            outputs, or of those that a :class:`Kind` names: ``{"label": Categorical(10), "rating": Kind(Ordinal(5),
            outputs=10), "preference": Kind(BradleyTerry(), outputs=10)}``. The first is the one that :meth:`fit` takes,
            whose targets are scaled, and that is meant where no kind is named.
        prior: of the weights.
        structure: form of the posterior; None for the network's own default: for an ``MLP`` a ``LastLayer()``.
        dynamics: what happens to the posterior before each update.
        step: how an update takes an observation in: ``VariationalStep()`` (default), ``LaplaceStep()`` (at the mode) or
            ``KalmanStep()`` (a single step); for normal noise they are one.
        relinearizations: how often an update takes its batch in again, with the network linearised at the mean that the
            batch led to; at least 0.
        influence: how much any one event may do to the posterior: ``InverseMultiquadric()`` bounds it, against outliers
            and poison; None: as much as the likelihood says. It is for updates; a fit takes its data as they are.
        memory: rows that are kept from the past, so that updates and consolidations do not forget; None: none.
        engine: ``"torch"``, ``"jax"``, ``"numpy"`` (no fitting), with a device: ``"torch:cuda"``, ``"jax:gpu"``;
            None for the network's own, or the one that is installed.
        dtype: ``"float32"`` (default) or ``"float64"``.
        standardize: scale inputs, and numeric targets, to mean 0 and variance 1 with the statistics of the data given
            to :meth:`fit`. A model that only updates does not scale, unless :meth:`start_from_prior` is told how. None:
            only where the network is an ``MLP``.
        seed: of initialisation, mini-batches and noise.

    Raises:
        InvalidInput: arguments that do not go together.
        MissingDependency: the engine's framework is not installed.
        DeviceUnavailable: the engine's device is not on this machine.
    """

    def consolidate(
        self,
        X: Any,  # noqa: N803
        y: Any,
        *,
        newest: tuple[Any, Any],
        base: Self | None = None,
        method: Consolidate | None = None,
        weight: Any = None,
        output_mask: Any = None,
        newest_output_mask: Any = None,
        source: str | None = None,
    ) -> Consolidation:
        """Learn again, all at once, what updates have learned one after the other, if that predicts better.

        The rows are fitted anew from what was known before them. Both posteriors then learn the newest rows, and the
        one that predicts them better, each before it is learned, is the model's from now on.

        Args:
            X: inputs that the model has learned since ``base``, (rows, inputs).
            y: their targets.
            newest: inputs and targets that it has not learned yet; it has after, either way.
            base: a copy of the model, as :meth:`duplicate` makes it, from before it learned the rows; None: its prior.
            method: how.
            weight: of each row, at least 0.
            output_mask: of the rows, see :meth:`update`.
            newest_output_mask: of the newest rows.
            source: who sent all of them, see :meth:`update`.

        Raises:
            InvalidInput: bad data, or a model that can't be consolidated: a mixture, dynamics that are not static, a
                bounded influence, an engine without gradients.
            NotFitted: the model has seen no data.
            NumericalFailure: the fit diverged; the model is as it was.
        """
        from .consolidation import consolidate  # the stepper and feedback are built on the model

        if not isinstance(newest, tuple) or len(newest) != 2:
            raise InvalidInput(f"newest must be a pair of inputs and targets, got {newest!r}")
        told = (X, y, weight, output_mask), (*newest, None, newest_output_mask)
        return consolidate(self, base, *told, method, source)

    def to_numpyro(self, num_inputs: int | None = None, scaling: Scaling | None = None) -> Program:
        """The model as a NumPyro program ``program(x, y=None)`` of scaled inputs: any kernel or guide works on it.

        Args:
            num_inputs: number of inputs, for a model that has seen no data.
            scaling: of the data that the program will be given; the model's own if it has one.

        Raises:
            InvalidInput: the engine is not jax.
            MissingDependency: NumPyro is not installed.
        """
        return program_of(self, "jax", "numpyro", num_inputs, scaling)

    def to_pyro(self, num_inputs: int | None = None, scaling: Scaling | None = None) -> Program:
        """The model as a Pyro program; see :meth:`to_numpyro`. The engine must be torch."""
        return program_of(self, "torch", "pyro", num_inputs, scaling)

    def to_arviz(self, X: Any, y: Any = None, *, num_samples: int = 1000, seed: int | None = None) -> Any:  # noqa: N803
        """The posterior as ArviZ takes it, whatever method it is of; see :mod:`bayesmlp.inference_data`.

        Args:
            X: inputs at which to look at function values.
            y: targets there, for the log likelihood; None for none.
            num_samples: draws of a posterior in closed form.
            seed: of these; the model's own if None.

        Raises:
            InvalidInput: bad data.
            NotFitted: the model has seen no data.
            MissingDependency: ArviZ is not installed.
        """
        return inference_data(self, X, y, num_samples=num_samples, seed=seed)

    def thin(self, draws: int, *, stored: str = "float32") -> Self:
        """Keep fewer draws of each chain, evenly spaced; what a store then holds.

        Args:
            draws: of each chain.
            stored: how weights are stored: ``"float16"`` halves the bytes and rounds every weight to a relative 5e-4.

        Returns:
            The model itself.

        Raises:
            InvalidInput: the posterior is no draws, or has fewer.
        """
        self._resolved, self._posterior = thinned(self, draws, stored)
        return self

    @property
    def sample_statistics(self) -> dict[str, np.ndarray]:
        """What the last fit's sampler said of each draw, (chains, draws), by name.

        Empty for another method, and once the draws have unequal weights.
        """
        if self.particles is not None and np.ptp(self.engine.to_numpy(self.posterior.weights.log_weights)) > 1e-9:
            return {}
        return dict(self.fit_details.get("sample_stats", {}))

    def weight_draws(self, num_samples: int, seed: int) -> tuple[tuple[np.ndarray, ...], Any]:
        """Weights drawn from a posterior in closed form, (S, ...) of each layer, and the likelihood's state with each.

        Of a mixture every member gives its share.
        """
        members, log_weights = self._members()
        counts = np.random.default_rng(seed).multinomial(num_samples, np.exp(log_weights))
        chosen = [(m, p, int(n)) for m, (p, n) in enumerate(zip(members, counts, strict=True)) if n]
        parts = [self._answering.weight_draws(posterior, n, seed + member) for member, posterior, n in chosen]
        weights = tuple(np.concatenate(layers) for layers in zip(*(weights for weights, _ in parts), strict=True))
        return weights, stack_trees(np.concatenate, [states for _, states in parts])

    def network_outputs(self, weights: tuple[np.ndarray, ...], x: np.ndarray) -> np.ndarray:
        """Outputs (S, N, K), in scaled units, of networks given by their weights (S, ...) at scaled inputs."""
        return self.sampled_answers.outputs_of(tuple(self.engine.asarray(layer) for layer in weights), x)

    def prepared_targets(self, y: Any, rows: int) -> np.ndarray:
        """Checked targets, in the user's units."""
        return self._prepare(y, rows)

    def reweight(
        self,
        X: Any,  # noqa: N803
        y: Any,
        *,
        weight: Any = None,
        least: float = 0.1,
        memory: tuple[Any, Any] | None = None,
        method: Sampler | None = None,
    ) -> float:
        """Learn rows by weighing a sampler's draws with their likelihood: Bayes' rule, exact up to the draws' number.

        The Gaussian beside the draws learns the rows too, as by :meth:`update`.

        Args:
            X: inputs.
            y: targets.
            weight: of each row, at least 0.
            least: smallest effective sample size that is let pass, as a share of the draws.
            memory: inputs and targets of all rows that the posterior has learned. With them, where too few draws would
                count, chains go on from draws that do, on these rows and the new ones (resample and move).
            method: that moves them; ``MCLMC(num_warmup=300)`` if None.

        Returns:
            The effective sample size before any move.

        Raises:
            InvalidInput: bad data, or the posterior is no draws.
            NumericalFailure: too few draws would count; the model is as it was. Sample anew, or :meth:`update`.
        """
        size, form, outcome = reweighted(self, (X, y, weight), least, memory, method)
        if isinstance(outcome, FitResult):
            self.fit_details = {"terms": outcome.history, **outcome.details}
            own = outcome.posterior
            others = self.posterior.likelihood[1:] if self.kinds else ()
            outcome = own._replace(likelihood=(own.likelihood, *others)) if self.kinds else own
        self._resolved, self._posterior = form, outcome
        return size

    def scaled_rows(self, X: Any, y: Any, weight: Any = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # noqa: N803
        """Checked inputs and targets in scaled units, and weights."""
        check_inputs(X, self.num_inputs, network=self.network)
        x, targets, weights = self._checked(X, y, weight)
        return self.scaling.inputs(x), self.scaling.targets(targets), weights

    def scaled_problem(self, x: np.ndarray, targets: np.ndarray, weight: np.ndarray) -> FitProblem:
        """What a method is given for rows in the units of this model, under its prior."""
        return replace(self._problem(x, targets, self.scaling, weight), prior=self._fitted_prior)

    @property
    def sampled_answers(self) -> SampledAnswers:
        """Answers of the drawn networks."""
        return self._cached("sampled", lambda: SampledAnswers(self.engine, self._seen, self.scaled_likelihood))

    def predict(
        self,
        X: Any,  # noqa: N803
        *,
        method: str | None = None,
        num_samples: int = 100,
        seed: int | None = None,
        approximation: str = "nodes",
        elapsed: float = 0.0,
        output_mask: Any = None,
        kind: str | None = None,
    ) -> Predictive:
        """The predictive distribution of y.

        Args:
            X: inputs, (rows, inputs).
            method: ``"linearized"``: the network linearised at the mean, closed form or fixed nodes; ``"samples"``:
                sampled networks; ``"mean"``: the mean weights alone, no epistemic uncertainty. None: linearised; for
                a sampler's posterior the mixture of all its draws, beside which the Gaussian that stands for them
                answers by the other ways.
            num_samples: of ``"samples"`` and of ``"monte_carlo"``.
            seed: of ``"samples"`` and of ``"monte_carlo"``; the model's own if None.
            approximation: how ``"linearized"`` averages class probabilities over normal logits: ``"nodes"``: fixed
                nodes; ``"monte_carlo"``: random draws; or a closed form, ``"probit"`` or ``"bridge"`` (see
                :mod:`.inference.logit_normal`), for Categorical and Bernoulli. A closed form gives the probabilities
                and what follows from them; the epistemic parts of variance and entropy are still by fixed nodes.
            elapsed: units of the dynamics that have passed since the last update; the model stays as it is.
            output_mask: as for :meth:`update`: the classes that are possible, others have probability 0; or the outputs
                that ``Predictive.log_prob`` is of, which changes nothing else.
            kind: of what is predicted, for a model that hears several; None for the first. Where it compares items,
                rows are as for :meth:`update`.

        Raises:
            InvalidInput: bad inputs, an unknown method, or an approximation where there is nothing to approximate.
            NotFitted: the model has seen no data.
        """
        stands_still = elapsed == 0 or self.dynamics.is_static
        is_first = kind is None or observed_kind(self.kinds, kind) is None
        has_draws = self.particles is not None and method is None and stands_still and is_first
        method = ("samples" if has_draws else "linearized") if method is None else method
        if method not in PREDICTION_METHODS:
            raise InvalidInput(f"method must be one of {', '.join(PREDICTION_METHODS)}, got {method!r}")
        check_count("num_samples", num_samples)
        check_count("seed", 0 if seed is None else seed, 0)
        check_elapsed(elapsed)
        observed = observed_kind(self.kinds, kind)
        if observed is None:
            x = self.scaling.inputs(check_inputs(X, self.num_inputs, network=self.network))
            answering, likelihood, scaling = self._answering, self.scaled_likelihood, self.scaling
        else:
            x = scaled_items(self.scaling, check_items(X, observed, self.num_inputs, "X", self.network))
            answering, likelihood = self._answering_of(str(kind), observed.items_of(x.shape[1], self.num_inputs))
            scaling = Scaling.identity(self.num_inputs, likelihood.num_targets)
        self._check_approximation(approximation, method, likelihood)
        mask = check_output_mask(output_mask, len(x), likelihood)
        if mask is not None and approximation == "bridge":
            raise InvalidInput("approximation 'bridge' takes no output_mask: it needs every logit")
        own_seed = self.seed if seed is None else seed
        options: dict[str, Any] = {"approximation": approximation}
        if approximation == "monte_carlo":
            options["standard_normal"] = np.random.default_rng(own_seed).standard_normal(
                (num_samples, likelihood.num_outputs)
            )
        if has_draws:
            state, drawn = self.posterior.weights, self.sampled_answers
            mixture = drawn.log_weights(state), drawn.outputs(state, x), None, drawn.likelihood_states(state)
            answer = Predictive(method, likelihood, scaling, *mixture)
            return answer if mask is None else answer.masked(mask)
        members, log_weights = self._members(self.posterior_after(elapsed))
        parts = []
        for member, posterior in enumerate(members):
            if method == "samples":
                count = -(-num_samples // len(members))
                outputs, states = answering.sampled(posterior, x, count, own_seed + member)
                even = np.full(count, -np.log(count))
                parts.append(Predictive(method, likelihood, scaling, even, outputs, likelihood_state=states))
                continue
            if method == "mean":
                mean, covariance = answering.outputs(posterior, x), None
            else:
                mean, covariance = answering.linearized(posterior, x, member=member)
            state = answering.likelihood_state(posterior)
            parts.append(Predictive.single(method, likelihood, scaling, mean, covariance, state, **options))
        answer = Predictive.mixture(parts, log_weights) if len(parts) > 1 else parts[0]
        return answer if mask is None else answer.masked(mask)

    def _answering_of(self, kind: str, items: int) -> tuple[Answering, Likelihood]:
        """Answers of a kind of feedback other than the first, and its likelihood."""
        model = self.filter_model_of(kind, items)
        build = lambda: Answering(self.engine, model.network, self._base, model.likelihood, model.place)  # noqa: E731
        return self._cached(f"answering {kind} {items}", build), model.likelihood

    def _check_approximation(self, approximation: str, method: str, likelihood: Likelihood) -> None:
        if approximation not in APPROXIMATIONS:
            raise InvalidInput(f"approximation must be one of {', '.join(APPROXIMATIONS)}, got {approximation!r}")
        if approximation == "nodes":
            return
        if method != "linearized":
            raise InvalidInput(f"approximation {approximation!r} is for method 'linearized', not for {method!r}")
        if not likelihood.has_logits:
            raise InvalidInput(f"approximation {approximation!r} is for class logits, not for {likelihood}")

    def output_variance(self, X: Any) -> np.ndarray:  # noqa: N803
        """Variance of each output due to the weights, linearised at the mean, (N, K), in scaled units.

        Where only this is wanted, it takes less than :meth:`predict`. For a mixture, the members' average plus the
        variance of their means.

        Args:
            X: inputs, (rows, inputs).

        Raises:
            InvalidInput: bad inputs.
            NotFitted: the model has seen no data.
        """
        x = self.scaling.inputs(check_inputs(X, self.num_inputs, network=self.network))
        if self.particles is not None:
            return self.sampled_answers.variance(self.posterior.weights, x)
        members, log_weights = self._members()
        moments = [self._answering.linearized(one, x, "variance", member) for member, one in enumerate(members)]
        means, variances = (np.stack(values) for values in zip(*moments, strict=True))
        shares = np.exp(log_weights)[:, None, None]
        average = np.sum(shares * means, axis=0)
        return np.asarray(np.sum(shares * (variances + (means - average) ** 2), axis=0))

    def joint_outputs(self, X: Any) -> JointOutputs:  # noqa: N803
        """Outputs of several rows, linearised at the mean, with the covariances between the rows.

        Args:
            X: inputs, (rows, inputs); memory grows with the square of their number.

        Raises:
            InvalidInput: bad inputs.
            NotFitted: the model has seen no data.
        """
        x = self.scaling.inputs(check_inputs(X, self.num_inputs, network=self.network))
        members, log_weights = self._members()
        if self.particles is not None:
            mean, covariance = self.sampled_answers.joint_moments(self.posterior.weights, x)
            state = map_arrays(lambda array: array[None], self._answering.likelihood_state(members[0]))
            return JointOutputs(self.scaled_likelihood, self.scaling, log_weights, mean[None], covariance[None], state)
        mean, covariance = (np.stack(a) for a in zip(*(self._answering.joint(p, x) for p in members), strict=True))
        states = [self._answering.likelihood_state(posterior) for posterior in members]
        state = stack_trees(np.stack, states)
        return JointOutputs(self.scaled_likelihood, self.scaling, log_weights, mean, covariance, state)

    def sample_functions(
        self, num_functions: int, *, method: str | None = None, seed: int | None = None
    ) -> FunctionSamples:
        """Functions drawn from the posterior: callable on any inputs, with the same weights for every call.

        Args:
            num_functions: how many; their weights are kept.
            method: ``"linearized"`` or ``"samples"``, as for :meth:`predict`; None: linearised, or a sampler's own.
            seed: of the draws; the model's own if None.

        Raises:
            InvalidInput: fewer than one, a seed below 0 or an unknown method.
            NotFitted: the model has seen no data.
        """
        has_draws = self.particles is not None and method is None
        method = ("samples" if has_draws else "linearized") if method is None else method
        if method not in FUNCTION_METHODS:
            raise InvalidInput(f"method must be one of {', '.join(FUNCTION_METHODS)}, got {method!r}")
        check_count("num_functions", num_functions)
        check_count("seed", 0 if seed is None else seed, 0)
        seed = self.seed if seed is None else seed
        members, log_weights = self._members()
        if has_draws:
            group = self.sampled_answers.deviations(
                self.posterior.weights, self._base.mean(members[0].weights), num_functions, seed
            )
            return FunctionSamples(self.engine, self._seen, self.scaling, self.num_inputs, method, [group])
        counts = np.random.default_rng(seed).multinomial(num_functions, np.exp(log_weights))
        groups = [
            (*self._answering.weight_deviations(posterior, int(count), seed + member), int(count))
            for member, (posterior, count) in enumerate(zip(members, counts, strict=True))
            if count
        ]
        return FunctionSamples(self.engine, self._seen, self.scaling, self.num_inputs, method, groups)
