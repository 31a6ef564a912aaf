"""One suite for every structure, method, likelihood and engine: what a user may rely on, whatever they choose."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
from cases import LIKELIHOODS, NETWORK, STRUCTURES, TOLERANCE, make_inputs, make_targets, needs, on, relative_error

import bayesmlp as bm
from bayesmlp.inference.errors import InvalidInput, NotFitted, NumericalFailure
from bayesmlp.inference.methods import Method
from bayesmlp.scaling import Scaling

TRAINING = bm.TrainingOptions(epochs=3, batch_size=16)
METHODS: dict[str, Method] = {
    "laplace": bm.Laplace(TRAINING),
    "variational": bm.Variational(TRAINING),
    "per_layer": bm.PerLayer(hidden=bm.Variational(TRAINING), last=bm.Laplace(TRAINING)),
}
PAIRS = [
    (structure, list(METHODS)[(i + j) % len(METHODS)], likelihood)
    for i, structure in enumerate(STRUCTURES)
    for j, likelihood in enumerate(LIKELIHOODS)
]
"""Every structure with every likelihood, and either of them with every method."""
LIVES = [pytest.param(("torch", *pair), id=f"torch-{'-'.join(pair)}", marks=needs("torch")) for pair in PAIRS] + [
    pytest.param(
        ("jax", *pair),
        id=f"jax-{'-'.join(pair)}",
        marks=[needs("jax")] if position % 8 == position // 8 % 8 else [needs("jax"), pytest.mark.slow],
    )
    for position, pair in enumerate(PAIRS)
]
"""JAX takes seconds to compile a case: each structure once, with another likelihood; the rest are slow."""
ROWS = 40


class Life(NamedTuple):
    """A model that was fitted, asked, updated and asked again."""

    model: bm.BayesianMLP
    method: Method
    x: np.ndarray
    y: np.ndarray
    x_new: np.ndarray
    y_new: np.ndarray
    fitted: bm.Predictive
    fitted_arrays: dict[str, np.ndarray]
    info: Any
    updated: bm.Predictive


def read_only(array: np.ndarray) -> np.ndarray:
    """An array that raises where it is written to."""
    array = array.copy()
    array.setflags(write=False)
    return array


def assert_same_answers(got: bm.Predictive, expected: bm.Predictive) -> None:
    """Equal to float32; means relative to the scale on which y varies, since they may be near 0."""
    tolerance = TOLERANCE["float32"] * expected.std.max()
    np.testing.assert_allclose(got.mean, expected.mean, rtol=0, atol=tolerance)
    np.testing.assert_allclose(got.std, expected.std, rtol=0, atol=tolerance)


def make_model(structure: str, likelihood: str, engine: str, **options: Any) -> bm.BayesianMLP:
    return bm.BayesianMLP(
        NETWORK, LIKELIHOODS[likelihood], structure=STRUCTURES[structure], engine=engine, seed=1, **options
    )


@pytest.fixture(params=LIVES, scope="module")
def life(request: pytest.FixtureRequest) -> Life:
    """One life for each pair and engine; inputs are read-only, so that nothing can write to them."""
    engine, structure, method, likelihood = request.param
    model = make_model(structure, likelihood, engine)
    x, x_new = read_only(make_inputs(ROWS, seed=80)), read_only(make_inputs(4, seed=81))
    y, y_new = (read_only(make_targets(model.likelihood, rows, seed=82)) for rows in (x, x_new))
    model.fit(x, y, method=METHODS[method])
    fitted = model.predict(x_new)
    arrays = model.to_arrays()
    info = model.update(x_new, y_new)
    return Life(model, METHODS[method], x, y, x_new, y_new, fitted, arrays, info, model.predict(x_new))


def test_answers_are_finite_and_split_their_variance(life: Life) -> None:
    rows = len(life.x_new)
    for predictive in (life.fitted, life.updated):
        assert predictive.mean.shape[0] == rows
        assert predictive.mean.dtype == np.float64
        for values in (predictive.mean, predictive.std, predictive.log_prob(life.y_new)):
            assert np.isfinite(values).all()
        assert (predictive.epistemic_variance >= 0).all()
        assert (predictive.aleatoric_variance > 0).all()
        total = predictive.epistemic_variance + predictive.aleatoric_variance
        np.testing.assert_allclose(predictive.variance, total, rtol=1e-10)
        if isinstance(life.model.likelihood, bm.Categorical | bm.Bernoulli | bm.Ordinal):
            np.testing.assert_allclose(predictive.probabilities.sum(axis=1), 1, rtol=1e-10)


def test_an_update_learns_the_rows_it_was_given(life: Life) -> None:
    assert life.info.ok
    assert life.info.information > 0
    assert np.isfinite([life.info.log_predictive, life.info.information]).all()
    assert life.updated.log_prob(life.y_new).mean() > life.fitted.log_prob(life.y_new).mean()


def test_an_update_leaves_older_values_alone(life: Life) -> None:
    """The posterior is a value: what was taken from the model before the update is as it was."""
    again = bm.BayesianMLP.from_parts(life.model.spec(), life.fitted_arrays, "numpy")
    assert_same_answers(again.predict(life.x_new), life.fitted)


def test_the_posterior_moves_to_numpy_and_back(life: Life) -> None:
    there = life.model.to_engine("numpy")
    back = there.to_engine(life.model.engine)
    arrays, returned = life.model.to_arrays(), back.to_arrays()
    assert arrays.keys() == returned.keys()
    for name, array in arrays.items():
        assert array.dtype == returned[name].dtype
        np.testing.assert_array_equal(array, returned[name], err_msg=name)
    assert back.spec() == life.model.spec()
    assert_same_answers(there.predict(life.x_new), life.updated)


def test_numpy_goes_on_where_the_fit_ended(life: Life) -> None:
    host = bm.BayesianMLP.from_parts(life.model.spec(), life.fitted_arrays, "numpy")
    info = host.update(life.x_new, life.y_new)
    assert relative_error(np.array(info[:2]), np.array(life.info[:2])) < TOLERANCE["float32"]
    assert_same_answers(host.predict(life.x_new), life.updated)


@pytest.mark.parametrize(
    ("engine", "method"),
    [pytest.param("torch", method, marks=needs("torch")) for method in METHODS]
    + [pytest.param("jax", "per_layer", marks=needs("jax"))],
)
def test_the_same_seed_fits_the_same_posterior(engine: str, method: str) -> None:
    x = make_inputs(ROWS, seed=83)
    models = []
    for seed in (1, 1, 2):
        model = bm.BayesianMLP(bm.MLP((3,)), bm.Categorical(3), structure=bm.Diagonal(), engine=engine, seed=seed)
        models.append(model.fit(x, make_targets(model.likelihood, x, seed=84), method=METHODS[method]))
    first, again, other = (model.to_arrays() for model in models)
    for name, array in first.items():
        np.testing.assert_array_equal(array, again[name], err_msg=name)
    assert any((array != other[name]).any() for name, array in first.items())
    assert models[0].history == models[1].history
    assert len(models[0].history) == TRAINING.epochs


@pytest.mark.parametrize("engine", on("numpy", "torch"))
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_prior_alone_learns(structure: str, likelihood: str, engine: str) -> None:
    """A stream in small batches, as linearisation at the prior's draw is no promise for a single large step."""
    model = make_model(structure, likelihood, engine)
    x = make_inputs(128, seed=85)
    y = make_targets(model.likelihood, x, seed=86)
    with pytest.raises(NotFitted, match="call fit or update first"):
        model.predict(x)
    model.start_from_prior(x.shape[1])
    before = model.predict(x).log_prob(y).mean()
    for start in range(0, len(x), 4):
        assert model.update(x[start : start + 4], y[start : start + 4]).ok
    assert model.predict(x).log_prob(y).mean() > before


@pytest.mark.parametrize(
    ("engine", "structure"),
    [pytest.param(name, s, marks=needs(name)) for name in ("numpy", "torch") for s in STRUCTURES]
    + [pytest.param("jax", "blocks", marks=needs("jax"))],
)
@pytest.mark.parametrize("likelihood", ["gaussian", "categorical"])
def test_sampled_networks_answer_in_the_same_way(structure: str, likelihood: str, engine: str) -> None:
    model = make_model(structure, likelihood, engine)
    x = make_inputs(5, seed=95)
    y = make_targets(model.likelihood, x, seed=96)
    model.update(x, y)
    sampled, again = (model.predict(x, method="samples", num_samples=20, seed=2) for _ in range(2))
    assert sampled.output_mean.shape == (20, 5, model.likelihood.num_outputs)
    assert sampled.output_covariance is None
    np.testing.assert_array_equal(sampled.output_mean, again.output_mean)
    assert sampled.mean.shape == model.predict(x).mean.shape
    assert np.isfinite(sampled.log_prob(y)).all()
    assert (sampled.epistemic_variance > 0).all()
    np.testing.assert_allclose(sampled.variance, sampled.epistemic_variance + sampled.aleatoric_variance, rtol=1e-10)


def test_the_prior_alone_learns_in_jax() -> None:
    pytest.importorskip("jax", reason="jax is not installed: pip install 'bayesmlp[jax]'")
    test_the_prior_alone_learns("blocks", "categorical", "jax")


@pytest.mark.parametrize("engine", on("numpy", "torch", "jax"))
def test_a_batch_longer_than_a_chunk_is_learned_whole(engine: str) -> None:
    likelihood = bm.Gaussian(num_outputs=2, noise_variance=0.3)
    x = make_inputs(300, seed=87)  # chunks hold 512 output directions
    y = make_targets(likelihood, x, seed=88)
    whole, portions = (
        bm.BayesianMLP(bm.MLP(()), likelihood, structure=bm.Full(), engine=engine, dtype="float64") for _ in range(2)
    )
    info = whole.update(x, y)
    parts = [portions.update(x[i : i + 60], y[i : i + 60]) for i in range(0, 300, 60)]
    for first, second in zip(whole.mean_weights(), portions.mean_weights(), strict=True):
        assert relative_error(first, second) < TOLERANCE["float64"]
    assert info.ok
    assert info.information > max(part.information for part in parts)


@pytest.mark.parametrize("engine", on("torch"))
def test_the_units_of_inputs_and_targets_do_not_matter(engine: str) -> None:
    """A fit scales both; so other units give the same answers in the other units, and later updates too."""
    x = make_inputs(ROWS, seed=99)
    y = make_targets(LIKELIHOODS["gaussian"], x, seed=100)
    shift, scale = np.array([100.0, -3.0]), np.array([0.01, 40.0])
    plain, other = (
        bm.BayesianMLP(bm.MLP((3,)), bm.Gaussian(), structure=bm.Full(), engine=engine, dtype="float64")
        for _ in range(2)
    )
    plain.fit(x, y, method=METHODS["laplace"])
    other.fit(shift + scale * x, 7 + 5 * y, method=METHODS["laplace"])
    for _ in range(2):
        expected, got = plain.predict(x), other.predict(shift + scale * x)
        np.testing.assert_allclose(got.mean, 7 + 5 * expected.mean, rtol=1e-8)
        np.testing.assert_allclose(got.std, 5 * expected.std, rtol=1e-8)
        plain.update(x[:4], y[:4])
        other.update(shift + scale * x[:4], 7 + 5 * y[:4])


def test_scaling_is_by_mean_and_standard_deviation() -> None:
    rng = np.random.default_rng(101)
    x, y = rng.uniform(2, 5, (30, 2)), rng.uniform(-1, 9, (30, 1))
    x[:, 1] = 4.0  # a constant keeps its scale
    scaling = Scaling.estimate(x, y, inputs=True, targets=True, one_target_scale=False, num_targets=1)
    np.testing.assert_allclose(scaling.inputs(x).mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(scaling.inputs(x).std(0), [1, 0], atol=1e-12)
    np.testing.assert_allclose(scaling.inputs(x + 1)[:, 1], 1, rtol=1e-12)
    np.testing.assert_allclose([scaling.targets(y).mean(), scaling.targets(y).std()], [0, 1], atol=1e-12)
    labels = np.array([0, 2, 1])
    np.testing.assert_array_equal(scaling.targets(labels), labels)
    both = np.concatenate([y, 3 * y], axis=1)
    shared = Scaling.estimate(x, both, inputs=True, targets=True, one_target_scale=True, num_targets=2)
    np.testing.assert_allclose(shared.target_scale, np.sqrt((both.std(0) ** 2).mean()), rtol=1e-12)
    nothing = Scaling.estimate(x, y, inputs=False, targets=False, one_target_scale=False, num_targets=1)
    np.testing.assert_array_equal(nothing.inputs(x), x)
    np.testing.assert_array_equal(nothing.targets(y), y)


def test_scaling_counts_a_row_of_weight_w_as_w_rows() -> None:
    rng = np.random.default_rng(103)
    x, y = rng.uniform(2, 5, (9, 2)), rng.uniform(-1, 9, 9)
    weight = np.arange(9)
    model = bm.BayesianMLP(NETWORK, bm.Gaussian(), engine="numpy")
    weighted = model.estimate_scaling(x, y, weight=weight)
    for got, expected in zip(weighted, model.estimate_scaling(x.repeat(weight, 0), y.repeat(weight)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12)
    assert model.estimate_scaling(x, y, weight=0.0).input_mean.tolist() == x.mean(0).tolist()


def test_a_stream_may_start_with_a_scaling() -> None:
    """As if the data had been scaled beforehand."""
    x, y = make_inputs(12, 104), make_inputs(12, 105)[:, 0]
    model = bm.BayesianMLP(NETWORK, bm.Gaussian(), engine="numpy")
    scaling = model.estimate_scaling(5 + 3 * x[:6], 7 * y[:6])
    model.start_from_prior(2, scaling)
    plain = bm.BayesianMLP(NETWORK, bm.Gaussian(), engine="numpy")
    for rows in (slice(0, 6), slice(6, 12)):
        model.update(5 + 3 * x[rows], 7 * y[rows])
        plain.update(scaling.inputs(5 + 3 * x[rows]), scaling.targets(7 * y[rows][:, None]))
    unscaled = plain.predict(scaling.inputs(x)).mean * scaling.target_scale + scaling.target_mean
    assert relative_error(model.predict(x).mean, unscaled) < TOLERANCE["float32"]
    with pytest.raises(InvalidInput, match="scaling must be of 3 inputs, got 2"):
        model.start_from_prior(3, scaling)


@pytest.mark.parametrize("engine", on("torch"))
def test_a_refit_forgets_everything_about_the_model_before(engine: str) -> None:
    """Scaling, noise in scaled units and number of inputs are those of the new data."""
    x = make_inputs(ROWS, seed=97)
    y = 50 * make_targets(bm.Gaussian(), x, seed=98)
    used, fresh = (
        bm.BayesianMLP(bm.MLP((3,)), bm.Gaussian(noise_variance=4.0), structure=bm.Full(), engine=engine)
        for _ in range(2)
    )
    used.update(x[:, :1], y / 50)
    used.predict(x[:, :1])
    for model in (used, fresh):
        model.fit(x, y, method=METHODS["laplace"])
        model.update(x[:4], y[:4])
    for name, array in used.to_arrays().items():
        np.testing.assert_array_equal(array, fresh.to_arrays()[name], err_msg=name)
    np.testing.assert_array_equal(used.predict(x).std, fresh.predict(x).std)


# -- failures leave the model as it was -------------------------------------------------------------------------------
@pytest.mark.parametrize("engine", on("numpy", "torch", "jax"))
def test_a_step_that_would_not_be_finite_changes_nothing(engine: str) -> None:
    network = bm.MLP((4, 4, 4), activation="relu")
    model = bm.BayesianMLP(network, bm.Gaussian(), structure=bm.LowRank(2), engine=engine, dtype="float32")
    x, y = make_inputs(2, seed=89), np.array([0.1, -0.2])
    with pytest.raises(NumericalFailure, match=r"by 2 rows .* float32; nothing was learned.* weights up to 1e\+06"):
        model.update(np.full((2, 2), 1e6), y * 1e6, weight=1e6)
    with pytest.raises(NotFitted):
        model.predict(x)
    model.update(x, y)
    before, posterior = model.to_arrays(), model.posterior
    with pytest.raises(NumericalFailure, match="nothing was learned"):
        model.update(np.full((2, 2), 1e6), y * 1e6, weight=1e6)
    assert model.posterior is posterior
    for name, array in model.to_arrays().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_a_failure_in_a_later_chunk_takes_the_earlier_ones_back() -> None:
    network = bm.MLP((4, 4, 4), activation="relu")
    model = bm.BayesianMLP(network, bm.Gaussian(), structure=bm.LowRank(2), engine="numpy", dtype="float32")
    x = make_inputs(600, seed=93)  # a chunk of 512 rows, and the rest
    y = make_targets(model.likelihood, x, seed=94)
    model.update(x[:4], y[:4])
    posterior = model.posterior
    x[-2:], y[-2:] = 1e6, 1e6
    with pytest.raises(NumericalFailure, match="nothing was learned"):
        model.update(x, y, weight=np.where(np.arange(600) < 598, 1.0, 1e6))
    assert model.posterior is posterior


@pytest.mark.parametrize("engine", on("torch", "jax"))
def test_a_fit_that_diverges_changes_nothing_and_says_what_to_do(engine: str) -> None:
    model = bm.BayesianMLP(bm.MLP((4,)), bm.Gaussian(), engine=engine)
    x = make_inputs(ROWS, seed=90)
    y = make_targets(model.likelihood, x, seed=91)
    model.update(x[:4], y[:4])
    posterior, scaling = model.posterior, model.scaling
    with pytest.raises(NumericalFailure, match="lower learning_rate"):
        model.fit(x, y, method=bm.Laplace(bm.TrainingOptions(epochs=3, learning_rate=1e30)))
    assert model.posterior is posterior
    assert model.scaling is scaling


# -- what is refused, and what the message says -----------------------------------------------------------------------
GOOD_X, GOOD_Y = make_inputs(3, seed=92), np.array([0.1, -0.2, 0.3])
BAD_X: dict[str, tuple[Any, str]] = {
    "nan": (np.array([[0.0, np.nan]] * 3), "X must be finite, got nan in row 0, column 1"),
    "infinite": (np.array([[0.0, 1.0], [-np.inf, 0.0], [0.0, 0.0]]), "X must be finite, got -inf in row 1, column 0"),
    "too_large": (np.array([[0.0, 1e30]] * 3), "X must be at most 1e+06 in magnitude after scaling, got 1e+30"),
    "one_axis": (np.zeros(3), "X must have shape (rows, 2), got shape (3,)"),
    "three_axes": (np.zeros((3, 2, 1)), "X must have shape (rows, 2), got shape (3, 2, 1)"),
    "too_wide": (np.zeros((3, 5)), "X must have shape (rows, 2), got shape (3, 5)"),
    "no_rows": (np.zeros((0, 2)), "X must have at least one row, got shape (0, 2)"),
    "nothing": ([], "X must have shape (rows, 2), got shape (0,)"),
    "none": (None, "X must hold real numbers, got dtype object"),
    "ragged": ([[1.0, 2.0], [3.0]], "X must be an array of numbers, got a ragged list"),
    "objects": (np.array([[1, None]] * 3), "X must hold real numbers, got dtype object"),
    "complex": (np.zeros((3, 2), complex), "X must hold real numbers, got dtype complex128"),
    "strings": ([["a", "b"]] * 3, "X must hold real numbers, got dtype <U1"),
    "dates": (np.zeros((3, 2), "datetime64[D]"), "X must hold real numbers, got dtype datetime64[D]"),
}
BAD_Y: dict[str, tuple[str, Any, str]] = {
    "nan": ("gaussian", [0.0, np.nan, 0.0], "y must be finite, got nan"),
    "infinite": ("gaussian", [0.0, -np.inf, 0.0], "y must be finite, got -inf"),
    "too_large": ("gaussian", [0.0, 1e30, 0.0], "y must be at most 1e+06 in magnitude after scaling, got 1e+30"),
    "too_few": ("gaussian", [0.0], "y must have as many rows as X (3), got 1"),
    "two_columns": ("gaussian", np.zeros((3, 2)), "y must be of shape (rows, 1), got shape (3, 2)"),
    "one_column": ("gaussian_known", np.zeros(3), "y must be of shape (rows, 2), got shape (3,)"),
    "ragged": ("gaussian", [[0.0], [1.0, 2.0], [3.0]], "y must be an array of numbers, got a ragged list"),
    "none": ("gaussian", None, "y must hold real numbers, got dtype object"),
    "objects": ("gaussian", [0.0, None, 1.0], "y must hold real numbers, got dtype object"),
    "complex": ("gaussian", [0.0, 1j, 1.0], "y must hold real numbers, got dtype complex128"),
    "strings": ("categorical", ["a", "b", "c"], "y must hold real numbers, got dtype <U1"),
    "booleans": ("gaussian", [True, False, True], "y must be numbers, got dtype bool"),
    "unknown_class": ("categorical", [0, 3, 1], "y must be a class from 0 to 2, got 3"),
    "negative_class": ("categorical", [0, -1, 1], "y must be a class from 0 to 2, got -1"),
    "float_class": ("categorical", [0.0, 1.0, 2.0], "y must be integer class labels, got dtype float64"),
    "one_hot": ("categorical", np.eye(3, dtype=int), "y must be one label for each row, shape (rows,), got shape"),
    "neither_yes_nor_no": ("bernoulli", [0, 1, 2], "y must be 0 or 1, got 2"),
    "half": ("bernoulli", [0.0, 1.0, 0.5], "y must be 0 or 1, got 0.5"),
    "nan_answer": ("bernoulli", [0.0, 1.0, np.nan], "y must be 0 or 1, got nan"),
}
BAD_WEIGHT: dict[str, tuple[Any, str]] = {
    "negative": ([1.0, -1.0, 1.0], "weight must be from 0 to 1e+06, got -1"),
    "nan": ([1.0, np.nan, 1.0], "weight must be from 0 to 1e+06, got nan"),
    "infinite": (np.inf, "weight must be from 0 to 1e+06, got inf"),
    "too_few": ([1.0], "weight must be a number or have shape (3,), got shape (1,)"),
    "strings": ("heavy", "weight must hold real numbers, got dtype <U5"),
    "ragged": ([[1.0], [1.0, 2.0]], "weight must be an array of numbers, got a ragged list"),
}


def assert_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InvalidInput) as error:
        call()
    assert message in str(error.value)


def known(likelihood: str = "gaussian") -> bm.BayesianMLP:
    """A model of two inputs that has seen data."""
    model = bm.BayesianMLP(bm.MLP((3,)), LIKELIHOODS[likelihood], engine="numpy")
    model.start_from_prior(2)
    return model


@pytest.mark.parametrize("case", BAD_X)
def test_bad_inputs_are_refused_by_name(case: str) -> None:
    x, message = BAD_X[case]
    model = known()
    posterior = model.posterior
    assert_refused(lambda: model.update(x, GOOD_Y), message)
    assert_refused(lambda: model.predict(x), message)
    assert model.posterior is posterior
    unseen = bm.BayesianMLP(bm.MLP((3,)), bm.Gaussian(), engine="numpy")
    assert_refused(lambda: unseen.update(x, [0.0] * 5), "")
    with pytest.raises(NotFitted):
        _ = unseen.posterior


@pytest.mark.parametrize("case", [case for case in BAD_X if case not in ("too_large", "too_wide")])
def test_fit_refuses_the_same_inputs(case: str) -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install 'bayesmlp[torch]'")
    x, message = BAD_X[case]
    model = bm.BayesianMLP(bm.MLP((3,)), bm.Gaussian(), engine="torch")
    assert_refused(lambda: model.fit(x, GOOD_Y), message.replace("(rows, 2)", "(rows, inputs)"))
    with pytest.raises(NotFitted):
        _ = model.posterior


@pytest.mark.parametrize("case", BAD_Y)
def test_bad_targets_are_refused_by_name(case: str) -> None:
    likelihood, y, message = BAD_Y[case]
    model = known(likelihood)
    posterior = model.posterior
    assert_refused(lambda: model.update(GOOD_X, y), message)
    assert model.posterior is posterior


@pytest.mark.parametrize("case", BAD_WEIGHT)
def test_bad_weights_are_refused_by_name(case: str) -> None:
    weight, message = BAD_WEIGHT[case]
    model = known()
    assert_refused(lambda: model.update(GOOD_X, GOOD_Y, weight=weight), message)


def test_fit_refuses_the_same_targets_and_weights() -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install 'bayesmlp[torch]'")
    for case, (name, y, message) in BAD_Y.items():
        model = bm.BayesianMLP(bm.MLP((3,)), LIKELIHOODS[name], engine="torch")
        if case != "too_large":  # of targets that fit itself scales, none is
            assert_refused(partial(model.fit, GOOD_X, y), message)
    model = bm.BayesianMLP(bm.MLP((3,)), bm.Gaussian(), engine="torch")
    for weight, message in BAD_WEIGHT.values():
        assert_refused(partial(model.fit, GOOD_X, GOOD_Y, weight=weight), message)
    with pytest.raises(NotFitted):
        _ = model.posterior


@pytest.mark.parametrize("elapsed", [-1.0, float("nan"), "soon", None])
def test_bad_times_are_refused_by_name(elapsed: Any) -> None:
    assert_refused(lambda: known().update(GOOD_X, GOOD_Y, elapsed=elapsed), "elapsed must be")


@pytest.mark.parametrize("options", [{"num_samples": 0}, {"num_samples": 2.5}, {"num_samples": "ten"}, {"seed": -1}])
def test_bad_sampling_options_are_refused_by_name(options: dict[str, Any]) -> None:
    (name,) = options
    assert_refused(lambda: known().predict(GOOD_X, method="samples", **options), f"{name} must be")


def test_unknown_methods_are_refused_by_name() -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install 'bayesmlp[torch]'")
    assert_refused(lambda: known().predict(GOOD_X, method="guess"), "method must be one of linearized, samples, mean")
    model = bm.BayesianMLP(bm.MLP((3,)), bm.Gaussian(), engine="torch")
    assert_refused(lambda: model.fit(GOOD_X, GOOD_Y, method="laplace"), "method must be")


def test_numpy_does_not_fit_and_says_so() -> None:
    assert_refused(lambda: known().fit(GOOD_X, GOOD_Y), "engine 'numpy' has no gradients: fit with 'torch' or 'jax'")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": "mlp"}, "network must be an MLP, or a module given to bayesmlp.layers' bayesianize, got 'mlp'"),
        ({"likelihood": "gaussian"}, "likelihood must be a Likelihood, got 'gaussian'"),
        ({"structure": "full"}, "structure must be a Structure, got 'full'"),
        ({"prior": "normal"}, "prior must be a NormalPrior, got 'normal'"),
        ({"dynamics": 0.99}, "dynamics must be a Dynamics, got 0.99"),
        ({"prior": bm.NormalPrior(scale=(1.0, 2.0, 3.0))}, "NormalPrior.scale has 3 entries for a network of 2 layers"),
        ({"dtype": "float16"}, "dtype must be 'float32' or 'float64', got 'float16'"),
        ({"engine": "tensorflow"}, "engine must be 'numpy', 'torch[:device]' or 'jax[:device]', got 'tensorflow'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_parts_of_a_model_are_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    parts: dict[str, Any] = {"network": bm.MLP((3,)), "likelihood": bm.Gaussian(), "engine": "numpy"} | arguments
    assert_refused(lambda: bm.BayesianMLP(parts.pop("network"), parts.pop("likelihood"), **parts), message)


def test_both_layers_of_a_variational_pair_start_where_they_were_told() -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install 'bayesmlp[torch]'")
    still = bm.TrainingOptions(epochs=1, learning_rate=1e-12)
    method = bm.PerLayer(
        hidden=bm.Variational(still, initial_deviation=0.01), last=bm.Variational(still, initial_deviation=0.5)
    )
    network, prior = bm.MLP((3,)), bm.NormalPrior()
    model = bm.BayesianMLP(
        network, bm.Gaussian(noise_variance=0.3), prior=prior, structure=bm.Diagonal(), engine="torch"
    )
    model.fit(GOOD_X, GOOD_Y, method=method)
    relative = [
        np.sqrt(variance * precision)
        for variance, precision in zip(model.weight_variances(), prior.precision(network.shapes(2, 1)), strict=True)
    ]
    np.testing.assert_allclose(relative[0], 0.01, rtol=1e-4)
    np.testing.assert_allclose(relative[1], 0.5, rtol=1e-4)


# -- what is accepted -------------------------------------------------------------------------------------------------
def test_any_array_of_numbers_will_do() -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'bayesmlp[torch]'")
    jax = pytest.importorskip("jax", reason="jax is not installed: pip install 'bayesmlp[jax]'")
    host = np.round(GOOD_X, 1).astype(np.float32)
    inputs = [host.tolist(), torch.tensor(host, requires_grad=True), jax.numpy.asarray(host), pandas.DataFrame(host)]
    targets = [GOOD_Y.tolist(), torch.tensor(GOOD_Y), jax.numpy.asarray(GOOD_Y, "float32"), pandas.Series(GOOD_Y)]
    expected = known()
    expected.update(host, GOOD_Y)
    for x, y in zip(inputs, targets, strict=True):
        model = known()
        model.update(x, y)
        np.testing.assert_allclose(model.predict(x).mean, expected.predict(host).mean, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "int8", "uint64", "bool"])
def test_numbers_of_any_width_will_do(dtype: str) -> None:
    x = np.array([[0, 1], [1, 1], [1, 0]], dtype)
    np.testing.assert_array_equal(known().predict(x).mean, known().predict(x.astype(np.float64)).mean)


def test_half_precision_tensors_will_do() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'bayesmlp[torch]'")
    x = torch.tensor([[0.5, 1.0]], dtype=torch.bfloat16)
    np.testing.assert_array_equal(known().predict(x).mean, known().predict([[0.5, 1.0]]).mean)


@pytest.mark.parametrize("engine", on("numpy", "torch", "jax"))
@pytest.mark.parametrize(
    "options",
    [
        {"structure": bm.LowRank(2)},
        {"structure": bm.Diagonal(), "dynamics": bm.Forgetting(0.99)},
        {"structure": bm.Diagonal(), "dynamics": bm.ChangePoint()},
        {"structure": bm.Mixture(bm.Full(), 2)},
    ],
    ids=["low rank", "forgetting", "change points", "mixture"],
)
def test_many_rows_in_one_dispatch_are_one_after_the_other(engine: str, options: dict[str, Any]) -> None:
    """More rows than one dispatch takes, and some left over."""
    x = make_inputs(140, seed=31)
    y = make_targets(LIKELIHOODS["categorical"], x, seed=32)
    together, apart = (
        bm.BayesianMLP(bm.MLP((3,)), LIKELIHOODS["categorical"], engine=engine, dtype="float64", **options)
        for _ in range(2)
    )
    scores = together.update_each(x, y)
    expected = [apart.update(x[row : row + 1], y[row : row + 1]).log_predictive for row in range(140)]
    np.testing.assert_allclose(scores, expected, rtol=1e-8)
    np.testing.assert_allclose(together.predict(x).probabilities, apart.predict(x).probabilities, rtol=1e-8)
    state = together.to_arrays()
    with pytest.raises(InvalidInput, match="as many rows"):
        together.update_each(x, y[:5])
    assert all(np.array_equal(state[name], array) for name, array in together.to_arrays().items())
