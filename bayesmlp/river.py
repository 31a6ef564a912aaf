"""River's interface, one dictionary of features at a time, around the scikit-learn estimators.

River itself is not needed: its pipelines and ``progressive_val_score`` call ``learn_one``, ``predict_one`` and
``predict_proba_one``, and that is what there is. The first rows are kept as a warm-up: they fix the features, the
scaling and (unless announced) the classes; then they are learned one by one, as every later row is.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Mapping
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from .estimators import BayesianMLPClassifier, BayesianMLPRegressor
from .inference.checks import check_count
from .inference.errors import InvalidInput, NotFitted
from .normal_scores import NormalScores
from .predictive import Predictive
from .validation import MAX_MAGNITUDE, MAX_RAW_MAGNITUDE

__all__ = ["RiverClassifier", "RiverRegressor"]


class _Row(NamedTuple):
    """A row of the warm-up."""

    x: dict[Hashable, float]
    y: Any
    w: float


class _River(ABC):
    """Features by name, and the warm-up."""

    def __init__(self, estimator: Any, warm_up: int, normal_scores: int | None) -> None:
        check_count("warm_up", warm_up)
        self.estimator = copy.deepcopy(estimator)
        self.warm_up = int(warm_up)
        self._rows: list[_Row] = []
        self._means: dict[Hashable, float] = {}  # of each feature, in the order of the model's inputs
        if normal_scores is not None:
            check_count("normal_scores", normal_scores)
        self.normal_scores = normal_scores
        self._scores = None if normal_scores is None else NormalScores(normal_scores)
        if self.is_ready:
            if normal_scores is not None:
                raise InvalidInput(
                    f"normal_scores must be None, as a fitted estimator has no inputs for them, got {normal_scores}"
                )
            if not hasattr(estimator, "feature_names_in_"):
                raise InvalidInput("estimator was fitted without feature names; fit it with a data frame")
            self._means = dict(zip(estimator.feature_names_in_, self._model.scaling.input_mean.tolist(), strict=True))

    def __repr__(self) -> str:
        state = f"{len(self.features)} features" if self.is_ready else f"{len(self._rows)} rows of warm-up"
        return f"{type(self).__name__}({self.estimator!r}, {state})"

    @property
    def is_ready(self) -> bool:
        """Whether the warm-up is over."""
        return hasattr(self.estimator, "model_")

    @property
    def features(self) -> list[Hashable]:
        """Names of the features, in order; empty during the warm-up."""
        return list(self._means)

    @property
    def _model(self) -> Any:
        return self.estimator.model_

    def predictive_one(self, x: Mapping[Hashable, Any]) -> Predictive:
        """Everything known about the y of one row, as a :class:`~bayesmlp.Predictive` of one answer.

        Args:
            x: features by name.

        Raises:
            NotFitted: during the warm-up.
        """
        if not self.is_ready:
            raise NotFitted(f"the warm-up is at row {len(self._rows)} of {self.warm_up}: nothing is learned yet")
        return self._model.predict(self._inputs(_numbers(x, self.estimator.standardize)))

    def learn_one(self, x: Mapping[Hashable, Any], y: Any, w: float = 1.0) -> None:
        """Learn from one row.

        Args:
            x: features by name. Missing ones (absent, None or NaN) are taken to be at their mean; ones that the warm-up
                did not see are ignored.
            y: target.
            w: weight of the row, at least 0.

        Raises:
            InvalidInput: a feature that is not a number, a target that can't be learned or a bad weight; nothing is
                learned.
        """
        if not isinstance(w, Real) or not 0 <= w <= MAX_MAGNITUDE:
            raise InvalidInput(f"w must be a number from 0 to {MAX_MAGNITUDE:g}, got {w!r}")
        row = _Row(_numbers(x, self.estimator.standardize), self._checked(y), float(w))
        if self.is_ready:
            self._learn(row)
            return
        self._rows.append(row)
        if len(self._rows) >= self.warm_up and any(row.x for row in self._rows) and self._may_start():
            self._start()

    def _learn(self, row: _Row) -> None:
        self._model.update(self._inputs(row.x), [self._target(row.y)], weight=row.w)
        if self._scores is not None:
            self._scores.observe(self._values(row.x))

    def _start(self) -> None:
        columns: dict[Hashable, list[float]] = {}
        for row in self._rows:
            for name, value in row.x.items():
                columns.setdefault(name, []).append(value)
        self._means = {name: float(np.mean(values)) for name, values in columns.items()}
        inputs = np.concatenate([self._values(row.x) for row in self._rows])
        if self.normal_scores is not None:
            inputs = np.hstack([inputs, NormalScores(self.normal_scores).observe(inputs)])
        # Rows of weight 0 set the scaling and teach nothing.
        self._begin(inputs, [row.y for row in self._rows], np.zeros(len(self._rows)))
        for row in self._rows:
            self._learn(row)
        self._rows = []

    def _values(self, x: Mapping[Hashable, float]) -> np.ndarray:
        """Features in order, (1, features); those that are missing at their mean."""
        return np.array([[x.get(name, mean) for name, mean in self._means.items()]], dtype=np.float64)

    def _inputs(self, x: Mapping[Hashable, float]) -> np.ndarray:
        """What the model takes: the features, and their scores among the rows that were learned."""
        values = self._values(x)
        return values if self._scores is None else np.hstack([values, self._scores.transform(values)])

    # -- what the two tasks differ in -----------------------------------------------------------------------------
    @abstractmethod
    def _checked(self, y: Any) -> Any:
        """The target, refused if it can't be learned."""

    def _may_start(self) -> bool:
        return True

    def _begin(self, inputs: np.ndarray, targets: list[Any], weight: np.ndarray) -> None:
        self.estimator.partial_fit(inputs, targets, sample_weight=weight)

    def _target(self, y: Any) -> Any:
        """The target as the model takes it."""
        return y


class RiverRegressor(_River):
    """Online regression on dictionaries of features.

    Args:
        estimator: the regressor that learns, with its parameters; one that was fitted on a data frame goes on from
            there, without a warm-up. A copy is taken.
        warm_up: rows that fix features and scaling. Until then the prediction is their mean target, 0 before any.
        normal_scores: beside each feature its rank among so many of the last rows, as
            :class:`~bayesmlp.NormalScores`: for heavy tails and for units that drift; None for the features alone.

    Raises:
        InvalidInput: bad arguments.
    """

    def __init__(
        self,
        estimator: BayesianMLPRegressor | None = None,
        *,
        warm_up: int = 50,
        normal_scores: int | None = None,
    ) -> None:
        super().__init__(estimator if estimator is not None else BayesianMLPRegressor(), warm_up, normal_scores)

    def predict_one(self, x: Mapping[Hashable, Any]) -> float:
        """Predictive mean of one row."""
        if self.is_ready:
            return float(self.predictive_one(x).mean[0])
        return float(np.mean([row.y for row in self._rows])) if self._rows else 0.0

    def _checked(self, y: Any) -> float:
        likelihood = self.estimator.likelihood
        is_scaled = self.estimator.standardize and (likelihood is None or likelihood.scales_targets)
        number = _number(y, "y", is_scaled)
        if likelihood is not None:
            likelihood.prepare(np.array([y]))
        return number


class RiverClassifier(_River):
    """Online classification of dictionaries of features.

    Args:
        estimator: the classifier that learns, with its parameters; one that was fitted on a data frame goes on from
            there, without a warm-up. A copy is taken.
        classes: all labels that will ever come; None for those of the warm-up, which then goes on until it has seen
            two.
        warm_up: rows that fix features, scaling and classes. Until then the prediction is the frequency of the labels,
            each counted once more than it came.
        normal_scores: beside each feature its rank among so many of the last rows, as
            :class:`~bayesmlp.NormalScores`: for heavy tails and for units that drift; None for the features alone.

    Raises:
        InvalidInput: bad arguments.
    """

    def __init__(
        self,
        estimator: BayesianMLPClassifier | None = None,
        *,
        classes: Iterable[Any] | None = None,
        warm_up: int = 50,
        normal_scores: int | None = None,
    ) -> None:
        super().__init__(estimator if estimator is not None else BayesianMLPClassifier(), warm_up, normal_scores)
        labels = None if classes is None else set(classes)
        if labels is not None and not _are_of_one_kind(labels):
            raise InvalidInput(f"classes must be all strings or all numbers, got {list(labels)!r:.80}")
        self.classes = None if labels is None else sorted(labels)
        if self.is_ready:
            self.classes = self.estimator.classes_.tolist()
        if self.classes is not None and len(self.classes) < 2:
            raise InvalidInput(f"classes must be at least two labels, got {self.classes!r}")

    def predict_one(self, x: Mapping[Hashable, Any]) -> Any:
        """The most probable class of one row; None before any label is known."""
        probabilities = self.predict_proba_one(x)
        return max(probabilities, key=probabilities.__getitem__) if probabilities else None

    def predict_proba_one(self, x: Mapping[Hashable, Any]) -> dict[Any, float]:
        """Probability of each class of one row; empty before any label is known."""
        if self.is_ready:
            assert self.classes is not None
            return dict(zip(self.classes, self.predictive_one(x).probabilities[0].tolist(), strict=True))
        seen = [row.y for row in self._rows]
        known = self._known()
        return {label: (seen.count(label) + 1) / (len(seen) + len(known)) for label in known}

    def _known(self) -> list[Any]:
        return sorted({row.y for row in self._rows}) if self.classes is None else self.classes

    def _checked(self, y: Any) -> Any:
        if self.classes is not None and y not in self.classes:
            raise InvalidInput(f"y must be one of the classes {self.classes}, got {y!r}; announce all of them first")
        if not _are_of_one_kind([y]) or y != y:
            raise InvalidInput(f"y must be a label, a string or a number, got {y!r:.80}")
        if self._rows and not _are_of_one_kind([y, self._rows[0].y]):
            raise InvalidInput(f"y must be a label of the same kind as {self._rows[0].y!r}, got {y!r}")
        return y

    def _may_start(self) -> bool:
        return len(self._known()) >= 2

    def _begin(self, inputs: np.ndarray, targets: list[Any], weight: np.ndarray) -> None:
        self.classes = self._known()
        self.estimator.partial_fit(inputs, targets, classes=self.classes, sample_weight=weight)

    def _target(self, y: Any) -> int:
        assert self.classes is not None
        return self.classes.index(y)


def _are_of_one_kind(labels: Iterable[Any]) -> bool:
    """Whether labels can be put in order: all strings, or all numbers."""
    labels = list(labels)
    return any(all(isinstance(label, kinds) for label in labels) for kinds in (str, (Real, np.bool_)))


def _numbers(x: Mapping[Hashable, Any], is_scaled: bool) -> dict[Hashable, float]:
    """The features that are there, as numbers that can be learned."""
    if not isinstance(x, Mapping):
        raise InvalidInput(f"x must map names of features to numbers, got {type(x).__name__}")
    values = {}
    for name, value in x.items():
        if value is None or (isinstance(value, Real) and math.isnan(value)):
            continue
        values[name] = _number(value, f"x[{name!r}]", is_scaled)
    return values


def _number(value: Any, argument: str, is_scaled: bool) -> float:
    """A number that an update takes, so that no row of the warm-up can keep it from ending."""
    if not isinstance(value, Real | np.bool_) or not math.isfinite(value):
        raise InvalidInput(f"{argument} must be a finite number, got {value!r}")
    largest = MAX_RAW_MAGNITUDE if is_scaled else MAX_MAGNITUDE
    if abs(float(value)) > largest:
        raise InvalidInput(f"{argument} must be at most {largest:g} in magnitude, got {value!r}")
    return float(value)
