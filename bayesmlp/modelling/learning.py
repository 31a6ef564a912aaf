"""Learning on: one Bayes step after the other, in memory."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..inference.assembly import mixture_of
from ..inference.engines import map_arrays
from ..inference.errors import InvalidInput, NumericalFailure
from ..inference.filtering import Posterior, UpdateInfo
from ..inference.likelihoods.masked import MaskedTargets
from ..inference.methods import state_arrays
from ..inference.structures import Mixture
from ..inference.structures.base import chunk_rows
from ..inference.structures.mixture import MixtureState
from ..kinds import check_items, observed_kind, scaled_items
from ..masking import check_output_mask
from ..rehearsal import learn_by_heart
from ..scaling import Scaling
from ..validation import check_elapsed, check_inputs, check_source, check_weights
from .fitting import FittedModel

__all__ = ["LearningModel"]

_ROWS_OF_A_FOLD = 128


class LearningModel(FittedModel):
    """A model that learns on."""

    def update(
        self,
        X: Any,  # noqa: N803
        y: Any,
        *,
        weight: Any = None,
        elapsed: float = 1.0,
        output_mask: Any = None,
        kind: str | None = None,
        source: str | None = None,
    ) -> UpdateInfo:
        """One online Bayes step, in memory; a model without data starts from its prior.

        Large batches are taken in chunks of about 512 output directions, one Bayes step each.

        Args:
            X: inputs, (rows, inputs).
            y: targets.
            weight: of each row, at least 0; a row of weight 2 counts as two.
            elapsed: time since the last update, in the unit of the dynamics.
            output_mask: booleans (rows, K), or (K,) for all rows: for ``Categorical`` the classes that were possible,
                for ``Gaussian`` and ``Bernoulli`` the outputs that were observed; what y holds for others is ignored.
            kind: of the feedback, for a model that hears several; None for the first. Where it compares items, a row
                of X holds those of all items, one after the other, and y says whether the first won, or the place of
                the chosen one.
            source: who sent the rows, for a ``memory``, whose sources share it.

        Returns:
            What the update did, as plain numbers, summed over the chunks.

        Raises:
            InvalidInput: bad data; the model is as it was.
            NotFitted: a kind of feedback other than the first, and the model has seen no data.
            NumericalFailure: the step would not have been finite; the model is as it was.
        """
        observed = observed_kind(self.kinds, kind)
        if observed is not None:
            x = check_items(X, observed, self.num_inputs, "X", self.network)
            likelihood = observed.model_of(observed.items_of(x.shape[1], self.num_inputs))
        else:
            x, likelihood = check_inputs(X, self._num_inputs, network=self.network, whole=True), self.likelihood
        mask = check_output_mask(output_mask, len(x), likelihood)
        targets = self._prepare(y, len(x), mask, likelihood)
        weights = check_weights(weight, len(x))
        check_elapsed(elapsed)
        check_source(source)
        with self._all_or_nothing(x.shape[1]):
            x = scaled_items(self.scaling, x)
            targets = targets if observed else self.scaling.targets(targets)
            return self._update_in_chunks(x, targets, weights, elapsed, mask, kind if observed else None, source)

    def update_each(
        self,
        X: Any,  # noqa: N803
        y: Any,
        *,
        weight: Any = None,
        elapsed: float = 1.0,
        source: str | None = None,
    ) -> np.ndarray:
        """As :meth:`update` of one row after the other, but many rows in one dispatch where the engine compiles.

        With a ``memory``, which the host keeps, each row is a dispatch of its own.

        Args:
            X: inputs, (rows, inputs), in the order of the stream.
            y: targets.
            weight: of each row, at least 0.
            elapsed: time before each row, in the unit of the dynamics.
            source: see :meth:`update`.

        Returns:
            The log predictive density of each row before it was learned, (rows,): the prequential scores.

        Raises:
            InvalidInput: bad data; the model is as it was.
            NumericalFailure: a step would not have been finite; the model is as it was.
        """
        x = check_inputs(X, self._num_inputs, network=self.network, whole=True)
        targets = self._prepare(y, len(x))
        weights = check_weights(weight, len(x))
        check_elapsed(elapsed)
        check_source(source)
        with self._all_or_nothing(x.shape[1]):
            x, targets = self.scaling.inputs(x), self.scaling.targets(targets)
            return self._fold(x, targets, weights, float(elapsed), source)

    @contextlib.contextmanager
    def _all_or_nothing(self, num_inputs: int) -> Iterator[None]:
        """A model without data starts from its prior; whatever is raised leaves the model as it was."""
        before = (self._num_inputs, self._scaling, self._posterior, self._prior_state, self._resolved)
        remembered = self.memory_state
        if self._posterior is None:
            self.start_from_prior(num_inputs)
        self.project()
        try:
            yield
        except BaseException:
            self._num_inputs, self._scaling, self._posterior, self._prior_state, self._resolved = before
            self.memory_state = remembered
            raise

    def _fold(self, x: np.ndarray, y: np.ndarray, weight: np.ndarray, elapsed: float, source: str | None) -> np.ndarray:
        fold = self._cached("fold", lambda: self.filter_model.compile_fold(self.engine))
        whole = len(x) - len(x) % _ROWS_OF_A_FOLD if self.memory is None else 0
        convert, scores = self.engine.as_batch, []
        for start in range(0, whole, _ROWS_OF_A_FOLD):
            rows = slice(start, start + _ROWS_OF_A_FOLD)
            times = np.full(_ROWS_OF_A_FOLD, elapsed)
            batches = (convert(a) for a in (x[rows, None], y[rows, None], weight[rows, None], times))
            posterior, infos = fold(self.posterior, self._prior_state, *batches)
            infos = self.engine.fetch(infos)
            if not np.all(infos.ok):
                first = start + int(np.argmin(infos.ok))
                raise self._not_learned(f"row {first}", x[first], weight[first])
            self._posterior = posterior
            self.prune()
            scores.append(np.asarray(infos.log_predictive))
        for row in range(whole, len(x)):
            one = slice(row, row + 1)
            info = self._update_in_chunks(x[one], y[one], weight[one], elapsed, None, None, source)
            scores.append(np.array([info.log_predictive]))
        return np.concatenate(scores)

    def _not_learned(self, which: str, x: np.ndarray, weight: np.ndarray) -> NumericalFailure:
        """With what rows of such a kind have in common: they are large, or weigh much."""
        return NumericalFailure(
            f"the update by {which} would not be finite and positive definite in {self.engine.dtype}; nothing was "
            f"learned. Scaled inputs are up to {np.max(np.abs(x)):.3g} in magnitude, weights up to {np.max(weight):.3g}"
        )

    def _update_in_chunks(
        self,
        x: np.ndarray,
        y: np.ndarray,
        weight: np.ndarray,
        elapsed: float,
        mask: np.ndarray | None,
        kind: str | None,
        source: str | None,
    ) -> UpdateInfo:
        what = (kind, x.shape[1] // self.num_inputs if kind else 1, mask is not None)
        step = self._cached(f"step {what}", lambda: self.filter_model_of(*what).compile(self.engine))
        size = chunk_rows(max(self.likelihood.num_outputs, what[1]))
        totals = np.zeros(3)
        for start in range(0, len(x), size):
            rows = slice(start, start + size)
            time = float(elapsed) if start == 0 else 0.0
            batch = self.batch(x[rows], y[rows], weight[rows], time, None if mask is None else mask[rows])
            posterior, info = step(self.posterior, self._prior_state, *batch)
            info = UpdateInfo(*(float(value) for value in self.engine.fetch(info)))
            if not info.ok:
                raise self._not_learned("a row" if len(x[rows]) == 1 else f"{len(x[rows])} rows", x[rows], weight[rows])
            self._posterior = posterior
            self.prune()
            if kind is None:
                self.remember(x[rows], y[rows], weight[rows], None if mask is None else mask[rows], source)
            totals += [info.log_predictive, info.information, info.iterations]
        return UpdateInfo(float(totals[0]), float(totals[1]), float(totals[2]), True)

    def remember(
        self, x: np.ndarray, y: np.ndarray, weight: np.ndarray, mask: np.ndarray | None, source: str | None
    ) -> None:
        """What a memory does after an update of scaled rows: it rehearses some of its own, and takes in the new ones.

        Rows of other kinds of feedback than the first are not remembered.
        """
        if self.memory is not None:
            learn_by_heart(self, x, y, weight, mask, source)

    def prune(self) -> None:
        """Drop the members of a mixture that predicted too badly to count; see :class:`Mixture`."""
        mixture, posterior = self._resolved, self.posterior
        if not isinstance(mixture, Mixture) or mixture.prune_below is None or len(posterior.weights.log_weights) == 1:
            return
        log_weights = self.engine.to_numpy(posterior.weights.log_weights)
        kept = mixture.worth_keeping(log_weights)
        if len(kept) == len(log_weights):
            return
        with self.engine.scope():
            pick = lambda tree: map_arrays(lambda array: array[kept], tree)  # noqa: E731
            rest = log_weights[kept] - np.logaddexp.reduce(log_weights[kept])
            weights = MixtureState(pick(posterior.weights.members), self.engine.asarray(rest, "float64"))
            self._posterior = Posterior(weights, pick(posterior.likelihood))
            if self._prior_state is not None:
                self._prior_state = pick(self._prior_state)
        if self.memory_state is not None:
            self.memory_state = self.memory_state.only_members(kept)

    def batch(
        self, x: np.ndarray, y: np.ndarray, weight: np.ndarray, elapsed: float, mask: np.ndarray | None = None
    ) -> tuple[Any, ...]:
        """Scaled host rows as the engine's arrays, padded with rows of weight 0 to the next power of two."""
        missing = (1 << (len(x) - 1).bit_length()) - len(x)
        if missing and mask is not None:
            mask = np.concatenate([mask, np.repeat(mask[:1], missing, axis=0)])
        if missing:
            x = np.concatenate([x, np.repeat(x[:1], missing, axis=0)])
            y = np.concatenate([y, np.repeat(y[:1], missing, axis=0)])
            weight = np.concatenate([weight, np.zeros(missing)])
        convert = self.engine.as_batch
        if np.all(weight == 1):
            weights = self._cached(f"ones {len(x)}", lambda: convert(np.ones(len(x))))
        else:
            weights = convert(weight)
        if elapsed == 1:
            time = self._cached("one event", lambda: convert(np.ones(())))
        else:
            time = convert(np.asarray(elapsed, dtype=np.float64))
        targets = convert(y) if mask is None else MaskedTargets(convert(y), convert(mask))
        return convert(x), targets, weights, time

    def start_from_prior(self, num_inputs: int | None = None, scaling: Scaling | None = None) -> None:
        """Set the posterior to the prior: normal weights around the network's initialisation, nothing learned.

        Args:
            num_inputs: number of inputs; None for a network that knows it.
            scaling: of inputs and targets from now on, as :meth:`estimate_scaling` takes it from the first rows of a
                stream; None to leave them as they are.

        Raises:
            InvalidInput: the network has not that many inputs, or none were given.
        """
        shape = self.network.input_shape
        known = None if shape is None else math.prod(shape)
        num_inputs = known if num_inputs is None else num_inputs
        if num_inputs is None or known not in (None, num_inputs):
            raise InvalidInput(f"num_inputs must be {known or 'given'}, got {num_inputs}")
        scaling = scaling or Scaling.identity(num_inputs, self.likelihood.num_targets)
        if scaling.input_mean.shape != (num_inputs,):
            raise InvalidInput(f"scaling must be of {num_inputs} inputs, got {scaling.input_mean.shape[0]}")
        members = []
        mixture = self.structure if isinstance(self.structure, Mixture) else None
        for member in range(mixture.members if mixture else 1):
            initialise = self._seen.restart if member else self._seen.initialise
            start = initialise(num_inputs, self.likelihood.num_outputs, self.seed + member)
            scale, factor = mixture.start(member) if mixture else (1.0, 1.0)
            state = self.likelihood.with_dispersion(self.likelihood.initial_state(), factor)
            dispersion = float(self.likelihood.dispersion(state))
            weights = self._independent(start, num_inputs, dispersion, scale=scale)
            members.append(Posterior(weights, self._with_other_kinds(state_arrays(self.engine, state))))
        self._resolved = self._resolve(self.structure)  # a fit may have made another form of it
        even = np.full(len(members), -np.log(len(members)))
        posterior = mixture_of(self.engine, members, even) if mixture else members[0]
        self._set(num_inputs, scaling, self._under_hypotheses(posterior))
