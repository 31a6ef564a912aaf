"""scikit-learn estimators: a Bayesian MLP for pipelines, grid searches and ``partial_fit``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from .inference.dynamics import Dynamics
from .inference.errors import InvalidInput, MissingDependency
from .inference.laplace import Laplace
from .inference.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from .inference.likelihoods.base import HOST
from .inference.methods import Method
from .inference.network import MLP
from .inference.priors import NormalPrior
from .inference.structures import Diagonal, Full, LastLayer, Mixture, Structure
from .inference.training import TrainingOptions
from .model import BayesianMLP
from .predictive import Predictive
from .validation import MAX_MAGNITUDE, check_weights

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
except ImportError as error:
    raise MissingDependency("scikit-learn", "sklearn") from error

__all__ = ["BayesianMLPClassifier", "BayesianMLPRegressor"]

_FULL_UP_TO = 1000
_FULL_LAST_LAYER_UP_TO = 2000


class _BayesianMLPEstimator(BaseEstimator, ABC):
    """What both estimators share: parameters, the model behind them, pickling.

    Subclasses say what y means: :meth:`_begin` before a model is made, :meth:`_targets` for its targets.
    """

    _default_prior_scale: float

    def __init__(
        self,
        hidden_layer_sizes: Any = (50,),
        *,
        activation: str = "relu",
        likelihood: Likelihood | None = None,
        prior_scale: Any = None,
        structure: str | Structure | Mixture = "auto",
        method: Method | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        dynamics: Dynamics | None = None,
        engine: str | None = None,
        dtype: str = "float64",
        standardize: bool = True,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.likelihood = likelihood
        self.prior_scale = prior_scale
        self.structure = structure
        self.method = method
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.dynamics = dynamics
        self.engine = engine
        self.dtype = dtype
        self.standardize = standardize
        self.random_state = random_state
        self.verbose = verbose

    # -- what the two tasks differ in -----------------------------------------------------------------------------
    @abstractmethod
    def _validated(self, X: Any, y: Any, *, reset: bool) -> tuple[np.ndarray, np.ndarray]:  # noqa: N803
        """X as float64 and y as scikit-learn checks them; the order in memory, on which rounding depends, is fixed."""

    @abstractmethod
    def _begin(self, y: np.ndarray) -> Likelihood:
        """Note what y is like before the first row is learned; the default likelihood for it."""

    @abstractmethod
    def _targets(self, y: np.ndarray) -> np.ndarray:
        """The targets as the likelihood takes them."""

    def _check_likelihood(self, likelihood: Likelihood) -> None:
        """Raise :class:`InvalidInput` for a likelihood of another task."""
        if likelihood.has_logits:
            raise InvalidInput(f"likelihood must be of numeric targets for a regressor, got {likelihood}")

    # -- learning -------------------------------------------------------------------------------------------------
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:  # noqa: N803
        """Fit the posterior to a data set, from scratch.

        A row of weight w counts as w rows, and equal rows are merged: the fit depends neither on the order of the rows
        nor on whether rows are repeated or weighted.

        Args:
            X: inputs, (rows, features).
            y: targets.
            sample_weight: of each row, at least 0; a row of weight 0 is as good as absent.

        Returns:
            The estimator itself.

        Raises:
            InvalidInput: bad data or parameters; a ``ValueError``; what was fitted before is as it was.
            NumericalFailure: the fit diverged; what was fitted before is as it was.
        """
        fitted = self._unfinished()
        fitted._fit(X, y, sample_weight)
        self.__dict__ = fitted.__dict__
        return self

    def _unfinished(self) -> Self:
        """What learns in place of the estimator until it has learned, so that nothing changes where it can't."""
        estimator = object.__new__(type(self))
        estimator.__dict__ = dict(self.__dict__)
        return estimator

    def _fit(self, X: Any, y: Any, sample_weight: Any) -> None:  # noqa: N803
        x, y = self._validated(X, y, reset=True)
        weight = check_weights(sample_weight, len(x), "sample_weight")
        seen = weight > 0
        if not seen.any():
            raise InvalidInput("sample_weight must not be zero for every row")
        x, y, weight = x[seen], y[seen], weight[seen]
        method = self._method()
        model = self._new_model(x.shape[1], self._begin(y))
        x, targets, weight = _merge_equal_rows(x, self._targets(y), weight)
        self.model_ = model.fit(x, targets, method=method, weight=weight, progress=bool(self.verbose))
        self.history_ = self.model_.history

    def _partial_fit(self, X: Any, y: Any, sample_weight: Any, classes: Any = None) -> Self:  # noqa: N803
        fitted = self._unfinished()
        fitted._update(X, y, sample_weight, classes)
        self.__dict__ = fitted.__dict__
        return self

    def _update(self, X: Any, y: Any, sample_weight: Any, classes: Any) -> None:  # noqa: N803
        x, y = self._validated(X, y, reset=not hasattr(self, "model_"))
        weight = check_weights(sample_weight, len(x), "sample_weight")
        if hasattr(self, "model_"):
            self.model_.update(x, self._targets(y), weight=weight)
            return
        model = self._new_model(x.shape[1], self._begin(y if classes is None else classes))
        targets = self._targets(y)
        model.start_from_prior(x.shape[1], model.estimate_scaling(x, targets, weight=weight))
        model.update(x, targets, weight=weight)
        self.model_ = model

    def _method(self) -> Method:
        names = ("epochs", "batch_size", "learning_rate")
        training = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.method is None:
            return Laplace(TrainingOptions(**training))
        if not isinstance(self.method, Method):
            raise InvalidInput(f"method must be Laplace(), Variational() or PerLayer(...), got {self.method!r}")
        if training:
            raise InvalidInput(f"{', '.join(training)} can't go with a method that has a training of its own")
        return self.method

    def _new_model(self, num_inputs: int, default: Likelihood) -> BayesianMLP:
        likelihood = self.likelihood or default
        if not isinstance(likelihood, Likelihood):
            raise InvalidInput(f"likelihood must be a Likelihood, got {likelihood!r}")
        self._check_likelihood(likelihood)
        hidden = np.atleast_1d(self.hidden_layer_sizes).tolist() if np.size(self.hidden_layer_sizes) else ()
        network = MLP(tuple(hidden), self.activation)
        return BayesianMLP(
            network,
            likelihood,
            prior=NormalPrior(self._default_prior_scale if self.prior_scale is None else self.prior_scale),
            structure=self._structure(network.shapes(num_inputs, likelihood.num_outputs)),
            dynamics=self.dynamics,
            engine=self.engine,
            dtype=self.dtype,
            standardize=self.standardize,
            seed=int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max)),
        )

    def _structure(self, shapes: tuple[tuple[int, int], ...]) -> Structure | Mixture:
        if not isinstance(self.structure, str):
            return self.structure
        if self.structure != "auto":
            raise InvalidInput(f"structure must be 'auto' or a Structure, got {self.structure!r}")
        sizes = [rows * columns for rows, columns in shapes]
        if sum(sizes) <= _FULL_UP_TO:
            return Full()
        return LastLayer() if sizes[-1] <= _FULL_LAST_LAYER_UP_TO else Diagonal()

    # -- answering ------------------------------------------------------------------------------------------------
    def predictive(self, X: Any) -> Predictive:  # noqa: N803
        """Everything known about y: moments, intervals, epistemic and aleatoric parts, information.

        Args:
            X: inputs, (rows, features).

        Raises:
            NotFittedError: scikit-learn's own, before ``fit`` or ``partial_fit``.
        """
        check_is_fitted(self, "model_")
        return self.model_.predict(validate_data(self, X, reset=False, dtype=np.float64, order="C"))

    # -- keeping --------------------------------------------------------------------------------------------------
    def __getstate__(self) -> dict[str, Any]:
        """The estimator with its model as JSON values and host arrays: no compiled code, no device memory."""
        state = dict(super().__getstate__())
        if "model_" in state:
            model = state["model_"]
            state["model_"] = {"spec": model.spec(), "arrays": model.to_arrays(), "engine": model.engine.name}
        return state

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        state = dict(state)
        if "model_" in state:
            state["model_"] = BayesianMLP.from_parts(**state["model_"])
        super().__setstate__(state)


class BayesianMLPRegressor(RegressorMixin, _BayesianMLPEstimator):
    """Regression with a Bayesian MLP: predictions know how sure they are, and ``partial_fit`` is a Bayesian update.

    Args:
        hidden_layer_sizes: widths of the hidden layers; ``()`` is Bayesian linear regression.
        activation: ``"relu"``, ``"tanh"``, ``"gelu"`` or ``"silu"``.
        likelihood: observation model; None for ``Gaussian`` noise of learned variance.
        prior_scale: of :class:`~bayesmlp.NormalPrior`; one number, or one per layer; None for 1, which suits
            standardised targets.
        structure: form of the posterior; ``"auto"`` for ``Full()`` up to 1,000 weights, then ``LastLayer()`` while the
            last layer has up to 2,000, then ``Diagonal()``.
        method: batch method of ``fit``; None for ``Laplace``, trained with the three arguments that follow.
        epochs: passes over the data; None for as many as bring about 3,000 steps.
        batch_size: rows of a step; None as in :class:`TrainingOptions`.
        learning_rate: peak of the schedule; None for 0.005.
        dynamics: what happens to the posterior before each ``partial_fit``; None for nothing.
        engine: name, with a device: ``"torch"``, ``"jax:gpu"``, ``"numpy"`` (``partial_fit`` only); None for the one
            that is installed.
        dtype: ``"float64"``, as scikit-learn's estimators compute, or ``"float32"``.
        standardize: scale inputs and targets, with the statistics of ``fit`` or of the first ``partial_fit``.
        random_state: of initialisation, mini-batches and noise; an integer makes everything repeatable.
        verbose: show a progress bar while fitting.

    Attributes:
        model_: the :class:`~bayesmlp.BayesianMLP` behind it, which a store can publish.
        history_: mean objective per row, for each epoch of the last ``fit``.
        n_features_in_: number of features.
        feature_names_in_: their names, where X came with names.
        n_outputs_: number of targets.
    """

    _default_prior_scale = 1.0

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _validated(self, X: Any, y: Any, *, reset: bool) -> tuple[np.ndarray, np.ndarray]:  # noqa: N803
        x, y = validate_data(self, X, y, reset=reset, dtype=np.float64, order="C", multi_output=True, y_numeric=True)
        return x, column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y

    def _begin(self, y: np.ndarray) -> Likelihood:
        self.n_outputs_ = 1 if y.ndim == 1 else y.shape[1]
        return Gaussian(num_outputs=self.n_outputs_)

    def _targets(self, y: np.ndarray) -> np.ndarray:
        return y

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> BayesianMLPRegressor:  # noqa: N803
        """One Bayesian update; without an earlier ``fit`` it starts from the prior.

        The first batch of a stream fixes the scaling of inputs and targets: give it enough rows to know their spread.

        Args:
            X: inputs, (rows, features).
            y: targets, (rows,) or (rows, targets).
            sample_weight: of each row, at least 0.

        Returns:
            The estimator itself.

        Raises:
            InvalidInput: bad data; a ``ValueError``; the posterior is as it was.
            NumericalFailure: the update would not have been finite; the posterior is as it was.
        """
        return self._partial_fit(X, y, sample_weight)

    def predict(self, X: Any, return_std: bool = False) -> Any:  # noqa: N803
        """Predictive mean, and with ``return_std`` the standard deviation of y beside it.

        Args:
            X: inputs, (rows, features).
            return_std: whether to return the pair.

        Returns:
            (rows,) or (rows, targets); twice with ``return_std``.
        """
        answer = self.predictive(X)
        return (answer.mean, answer.std) if return_std else answer.mean

    def predict_interval(self, X: Any, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:  # noqa: N803
        """Lower and upper end of the central interval that holds y with probability ``level``.

        Args:
            X: inputs, (rows, features).
            level: between 0 and 1.
        """
        return self.predictive(X).interval(level)

    def sample_y(self, X: Any, n_samples: int = 1, random_state: Any = 0) -> np.ndarray:  # noqa: N803
        """Draws from the predictive distribution of each row, (rows, n_samples) or (rows, targets, n_samples).

        Args:
            X: inputs, (rows, features).
            n_samples: draws for each row.
            random_state: of the draws.
        """
        return _draws_last(self.predictive(X), n_samples, random_state)


class BayesianMLPClassifier(ClassifierMixin, _BayesianMLPEstimator):
    """Classification with a Bayesian MLP; probabilities are averaged over the posterior.

    The arguments are those of :class:`BayesianMLPRegressor`, except that the default likelihood is ``Bernoulli`` for
    two classes and ``Categorical`` for more (one of your own is given the positions in ``classes_``), and the default
    prior scale is 2: confident classes need large logits.

    Attributes:
        classes_: the labels, sorted.
        model_: the :class:`~bayesmlp.BayesianMLP` behind it, whose targets are positions in ``classes_``.
        history_: mean objective per row, for each epoch of the last ``fit``.
        n_features_in_: number of features.
        feature_names_in_: their names, where X came with names.
    """

    _default_prior_scale = 2.0

    def _validated(self, X: Any, y: Any, *, reset: bool) -> tuple[np.ndarray, np.ndarray]:  # noqa: N803
        x, y = validate_data(self, X, y, reset=reset, dtype=np.float64, order="C")
        check_classification_targets(y)
        return x, y

    def _begin(self, y: np.ndarray) -> Likelihood:
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise InvalidInput(f"y must have at least two classes among rows of weight above 0, got 1 class: {y[0]}")
        return Bernoulli() if len(self.classes_) == 2 else Categorical(len(self.classes_))

    def _check_likelihood(self, likelihood: Likelihood) -> None:
        outputs = np.zeros((1, likelihood.num_outputs))
        probabilities = likelihood.class_probabilities(HOST, outputs, likelihood.initial_state())
        if probabilities.shape[-1] != len(self.classes_):
            raise InvalidInput(f"likelihood must be of {len(self.classes_)} classes, as y has, got {likelihood}")

    def _targets(self, y: np.ndarray) -> np.ndarray:
        unknown = ~np.isin(y, self.classes_)
        if unknown.any():
            raise InvalidInput(f"y must be one of the classes {self.classes_.tolist()}, got {y[unknown].tolist()[0]!r}")
        return np.searchsorted(self.classes_, y)

    def partial_fit(
        self,
        X: Any,  # noqa: N803
        y: Any,
        classes: Any = None,
        sample_weight: Any = None,
    ) -> BayesianMLPClassifier:
        """One Bayesian update; without an earlier ``fit`` it starts from the prior.

        The first batch of a stream fixes the scaling of inputs: give it enough rows to know their spread.

        Args:
            X: inputs, (rows, features).
            y: labels, (rows,).
            classes: all labels that will ever come; needed by the first call if there was no ``fit``.
            sample_weight: of each row, at least 0.

        Returns:
            The estimator itself.

        Raises:
            InvalidInput: bad data; a ``ValueError``; the posterior is as it was.
            NumericalFailure: the update would not have been finite; the posterior is as it was.
        """
        first = not hasattr(self, "model_")
        if classes is not None:
            classes = np.unique(column_or_1d(classes))
        if first and classes is None:
            raise InvalidInput("classes must be passed to the first call of partial_fit")
        if not first and classes is not None and not np.array_equal(classes, self.classes_):
            raise InvalidInput(f"classes must be what they were, {self.classes_.tolist()}, got {classes.tolist()}")
        return self._partial_fit(X, y, sample_weight, classes)

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """The most probable class of each row, (rows,)."""
        most_probable = self.predict_proba(X).argmax(axis=1)
        return self.classes_[most_probable]

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Probability of each class, (rows, classes), in the order of ``classes_``."""
        return self.predictive(X).probabilities

    def predict_log_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Logarithm of :meth:`predict_proba`."""
        return np.log(np.maximum(self.predict_proba(X), np.finfo(np.float64).tiny))

    def decision_function(self, X: Any) -> np.ndarray:  # noqa: N803
        """Log odds of the second class for two classes, (rows,); the log probabilities for more, (rows, classes)."""
        logarithms = self.predict_log_proba(X)
        return logarithms[:, 1] - logarithms[:, 0] if len(self.classes_) == 2 else logarithms

    def sample_y(self, X: Any, n_samples: int = 1, random_state: Any = 0) -> np.ndarray:  # noqa: N803
        """Labels drawn from the predictive distribution of each row, (rows, n_samples).

        Args:
            X: inputs, (rows, features).
            n_samples: draws for each row.
            random_state: of the draws.
        """
        drawn = _draws_last(self.predictive(X), n_samples, random_state)
        return self.classes_[drawn]


def _merge_equal_rows(
    x: np.ndarray, targets: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each distinct row once, in an order that depends on the rows alone, with the sum of its weights."""
    table = np.ascontiguousarray(np.column_stack([x, targets]) + 0.0)  # -0.0 is 0.0
    keys = table.view(np.dtype((np.void, table.dtype.itemsize * table.shape[1])))[:, 0]
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    merged = np.bincount(group, weights=weight)
    if merged.max() > MAX_MAGNITUDE:  # more copies than one weight may stand for
        return x, targets, weight
    return x[first], targets[first], merged


def _draws_last(answer: Predictive, n_samples: int, random_state: Any) -> np.ndarray:
    seed = int(check_random_state(random_state).randint(np.iinfo(np.int32).max))
    return np.moveaxis(answer.sample(n_samples, seed=seed), 0, -1)
