"""The Bayes step against conjugate answers and against brute force with dense matrices, in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import dense
import numpy as np
import pytest
from cases import (
    BLOCKS,
    FRAMEWORKS,
    LIKELIHOODS,
    LINEAR,
    NETWORK,
    NUM_INPUTS,
    STRUCTURES,
    arrays_for,
    make_inputs,
    make_likelihood_state,
    make_targets,
    needs,
    on,
    random_arrays,
    relative_error,
    shapes_of,
)
from scipy import optimize, special, stats

import bayesmlp as bm
from bayesmlp.inference.engines import Engine, NumpyEngine, get_engine
from bayesmlp.inference.filtering import FilterModel, Posterior, UpdateInfo
from bayesmlp.inference.laplace_step import LaplaceStep
from bayesmlp.inference.likelihoods import Likelihood, NoiseState
from bayesmlp.inference.structures import BufferedLowRank, Structure

EXACT = 1e-10
ALL_STRUCTURES = STRUCTURES | {
    "low_rank_wide": bm.LowRank(12),
    "buffer_full": bm.LowRank(3, buffer=3),  # with the row that waits
    "buffer_too_small": bm.LowRank(3, buffer=2),
}
"""The wide one has room for every column of these cases' batches, so that nothing is cut off."""
PAIRS = [(s, k) for s in STRUCTURES for k in LIKELIHOODS] + [
    ("low_rank_wide", "categorical"),
    *(
        (name, kind)
        for name in ("buffer_full", "buffer_too_small")
        for kind in ("gaussian_known", "categorical", "ordinal")
    ),
]


# -- linear models: conjugate answers ---------------------------------------------------------------------------------
def linear_model(likelihood: Likelihood, structure: Structure, framework: str) -> bm.BayesianMLP:
    return bm.BayesianMLP(LINEAR, likelihood, structure=structure, engine=framework, dtype="float64", seed=3)


def linear_prior(likelihood: Likelihood) -> tuple[np.ndarray, np.ndarray]:
    """Mean and precision of the linear model's weights before any data."""
    shapes = LINEAR.shapes(NUM_INPUTS, likelihood.num_outputs)
    return dense.flatten(LINEAR.initialise(NUM_INPUTS, likelihood.num_outputs, seed=3)), dense.flatten(
        bm.NormalPrior().precision(shapes)
    )


def design(x: np.ndarray, num_outputs: int) -> np.ndarray:
    """Rows of the linear model's Jacobian, (N·K, P)."""
    extended = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    return np.einsum("ni,kl->nkil", extended, np.eye(num_outputs)).reshape(len(x) * num_outputs, -1)


def dense_state(model: bm.BayesianMLP) -> tuple[np.ndarray, np.ndarray]:
    """A model's posterior mean and unit-dispersion precision."""
    structure = model.structure.resolve(model.network.num_layers)
    arrays = structure.to_arrays(model.engine, model.posterior.weights)
    shapes = model.network.shapes(model.num_inputs, model.likelihood.num_outputs)
    return dense.mean(structure, arrays, shapes), dense.precision(structure, arrays, shapes)


@pytest.mark.parametrize("structure", [bm.Full(), bm.LowRank(24)], ids=["full", "low_rank"])
def test_known_noise_is_ridge_regression_in_any_order_and_in_any_portions(framework: str, structure: Structure) -> None:
    likelihood = bm.Gaussian(num_outputs=2, noise_variance=0.3)
    x = make_inputs(8, seed=0)
    y = make_targets(likelihood, x, seed=1)
    mean, precision = linear_prior(likelihood)
    rows = design(x, 2)
    expected_precision = np.diag(precision) + rows.T @ rows / 0.3
    expected = np.linalg.solve(expected_precision, precision * mean + rows.T @ y.reshape(-1) / 0.3)
    for portions in ([range(8)], [[i] for i in range(8)], [[i] for i in (5, 2, 7, 0, 3, 6, 1, 4)]):
        model = linear_model(likelihood, structure, framework)
        for portion in portions:
            model.update(x[list(portion)], y[list(portion)])
        got, got_precision = dense_state(model)
        np.testing.assert_allclose(got, expected, rtol=EXACT, atol=EXACT)
        np.testing.assert_allclose(
            np.linalg.inv(got_precision), np.linalg.inv(expected_precision), rtol=EXACT, atol=EXACT
        )


@pytest.mark.parametrize("portions", [[range(8)], [[i] for i in (5, 2, 7, 0, 3, 6, 1, 4)]], ids=["batch", "singles"])
def test_learned_noise_is_normal_inverse_gamma(framework: str, portions: list[Any]) -> None:
    likelihood = bm.Gaussian(prior_shape=1.5, prior_rate=0.4)
    x = make_inputs(8, seed=0)
    y = make_targets(likelihood, x, seed=1)
    mean, precision = linear_prior(likelihood)
    unit = precision * 0.4 / 1.5  # θ | φ ~ N(m, φ Λ⁻¹), with the prior's variance at the prior's φ
    rows = design(x, 1)
    expected_precision = np.diag(unit) + rows.T @ rows
    expected = np.linalg.solve(expected_precision, unit * mean + rows.T @ y)
    shape = 1.5 + 8 / 2
    rate = 0.4 + 0.5 * (y @ y + unit @ mean**2 - expected @ expected_precision @ expected)

    model = linear_model(likelihood, bm.Full(), framework)
    for portion in portions:
        model.update(x[list(portion)], y[list(portion)])
    got, got_precision = dense_state(model)
    np.testing.assert_allclose(got, expected, rtol=EXACT, atol=EXACT)
    np.testing.assert_allclose(got_precision, expected_precision, rtol=EXACT, atol=EXACT)
    learned = [float(value) for value in model.posterior.likelihood]
    np.testing.assert_allclose(learned, [shape, rate], rtol=EXACT)
    covariance = np.linalg.inv(expected_precision) * rate / shape
    np.testing.assert_allclose(dense.flatten(model.weight_variances()), np.diag(covariance), rtol=EXACT)

    x_new = make_inputs(4, seed=2)
    rows_new = design(x_new, 1)
    scale = np.sqrt(np.einsum("np,pq,nq->n", rows_new, covariance, rows_new) + rate / shape)
    reference = stats.t(df=2 * shape, loc=rows_new @ expected, scale=scale)
    predictive = model.predict(x_new)
    np.testing.assert_allclose(predictive.log_prob(y[:4]), reference.logpdf(y[:4]), rtol=EXACT)
    np.testing.assert_allclose(predictive.std, reference.std(), rtol=EXACT)
    np.testing.assert_allclose(predictive.quantile(0.05), reference.ppf(0.05), rtol=EXACT)


# -- any network: brute force -----------------------------------------------------------------------------------------
class Step(NamedTuple):
    """One Bayes step and the arrays it started from, all on the host."""

    structure: Structure
    likelihood: Likelihood
    before: dict[str, np.ndarray]
    after: dict[str, np.ndarray]
    learned: tuple[np.ndarray, ...]
    info: UpdateInfo
    outputs: np.ndarray
    jacobian: np.ndarray
    y: np.ndarray
    weight: np.ndarray

    @property
    def shapes(self) -> dense.Shapes:
        return shapes_of(self.likelihood)

    def reference(self) -> tuple[np.ndarray, np.ndarray]:
        """The linearised posterior, by brute force: step of the mean, and precision."""
        prior = dense.precision(self.structure, self.before, self.shapes)
        state = make_likelihood_state(self.likelihood, NumpyEngine())
        return dense.linearised_posterior(
            self.likelihood, self.outputs, self.jacobian, prior, self.y, self.weight, state
        )

    def moved(self) -> np.ndarray:
        """How far the step moved the mean."""
        return dense.mean(self.structure, self.after, self.shapes) - dense.mean(
            self.structure, self.before, self.shapes
        )


@cache
def take_step(framework: str, structure: Structure, likelihood: Likelihood) -> Step:
    """A weighted batch of three rows on a random posterior."""
    engine = get_engine(framework, "float64")
    structure = structure.resolve(NETWORK.num_layers)
    shapes = shapes_of(likelihood)
    before = arrays_for(likelihood, structure, shapes, seed=10)
    x = make_inputs(3, seed=11)
    y = likelihood.prepare(make_targets(likelihood, x, seed=12))
    weight = np.array([1.0, 0.5, 2.0])
    posterior = Posterior(structure.from_arrays(engine, before), make_likelihood_state(likelihood, engine))
    step = FilterModel(NETWORK, likelihood, structure, step=LaplaceStep()).compile(engine)
    arguments = (engine.asarray(x), engine.asarray(y), engine.asarray(weight), engine.asarray(1.0))
    after, info = step(posterior, None, *arguments)
    layers = dense.split(dense.mean(structure, before, shapes), shapes)
    return Step(
        structure,
        likelihood,
        before,
        structure.to_arrays(engine, after.weights),
        tuple(engine.to_numpy(value) for value in after.likelihood),
        UpdateInfo(*(engine.to_numpy(value) for value in info)),
        dense.outputs("tanh", layers, x),
        dense.jacobian("tanh", layers, x),
        y,
        weight,
    )


def cases() -> list[Any]:
    """Every framework, structure and likelihood; in JAX, which takes seconds to compile each, most of them are slow."""
    likelihoods = list(LIKELIHOODS)
    chosen = []
    for name in FRAMEWORKS:
        for position, (structure, likelihood) in enumerate(PAIRS):
            quick = structure == "full" or likelihoods.index(likelihood) == position // len(likelihoods) % 4
            marks = [needs(name)] if name != "jax" or quick else [needs(name), pytest.mark.slow]
            case = (name, structure, likelihood)
            chosen.append(pytest.param(case, id="-".join(case), marks=marks))
    return chosen


@pytest.fixture(params=cases(), scope="module")
def taken(request: pytest.FixtureRequest) -> Step:
    """One step for each framework, structure and likelihood."""
    name, structure, likelihood = request.param
    return take_step(name, ALL_STRUCTURES[structure], LIKELIHOODS[likelihood])


def test_the_step_succeeds(taken: Step) -> None:
    assert bool(taken.info.ok)


def test_the_mean_moves_to_the_mode_of_the_linearised_posterior(taken: Step) -> None:
    np.testing.assert_allclose(taken.moved(), taken.reference()[0], rtol=EXACT, atol=EXACT)


def test_the_precision_is_the_projection_of_the_dense_one(taken: Step) -> None:
    _, exact = taken.reference()
    assert_projection(taken.structure, taken.before, taken.after, taken.shapes, exact)


def assert_projection(
    structure: Structure,
    before: Mapping[str, np.ndarray],
    after: Mapping[str, np.ndarray],
    shapes: dense.Shapes,
    exact: np.ndarray,
) -> None:
    """That ``after`` is what the structure can hold of the exact precision."""
    got = dense.precision(structure, after, shapes)
    if isinstance(structure, bm.Blocks):
        for index, (part, layers) in enumerate(structure.parts):
            where = dense.weight_indices(shapes, layers)
            own_before, own_after = dense.own_arrays(before, index), dense.own_arrays(after, index)
            own_shapes = [shapes[layer] for layer in layers]
            assert_projection(part, own_before, own_after, own_shapes, exact[np.ix_(where, where)])
            outside = np.setdiff1d(np.arange(len(exact)), where)
            assert not got[np.ix_(where, outside)].any()
    elif isinstance(structure, bm.Diagonal):
        np.testing.assert_allclose(got, np.diag(np.diag(exact)), rtol=EXACT, atol=EXACT)
    elif isinstance(structure, bm.Kronecker):
        assert_kronecker(before, after, shapes, exact)
    elif isinstance(structure, BufferedLowRank):
        if structure.capacity > 3:  # rows of a step, and one that has waited
            np.testing.assert_allclose(got, exact, rtol=EXACT, atol=EXACT)
            return
        assert_truncation(structure.of, before, after, shapes, exact)
        assert not dense.waiting_rows(after, shapes).any()
        assert not after["waiting"]
    elif isinstance(structure, bm.LowRank) and structure.rank < 12:
        assert_truncation(structure, before, after, shapes, exact)
    else:
        np.testing.assert_allclose(got, exact, rtol=EXACT, atol=EXACT)


def assert_kronecker(
    before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], shapes: dense.Shapes, exact: np.ndarray
) -> None:
    """That each layer's precision is that of the partial traces of all curvature so far."""
    for layer in range(len(shapes)):
        where = dense.weight_indices(shapes, [layer])
        added = exact[np.ix_(where, where)] - dense.kronecker_precision(before, layer)
        a, g = dense.kronecker_sums(before, layer, added)
        prior = np.diag(dense.kronecker_prior(before, layer).reshape(-1))
        expected = prior + np.kron(a, g) / np.trace(a)
        np.testing.assert_allclose(dense.kronecker_precision(after, layer), expected, rtol=EXACT, atol=EXACT)


def assert_truncation(
    structure: bm.LowRank,
    before: Mapping[str, np.ndarray],
    after: Mapping[str, np.ndarray],
    shapes: dense.Shapes,
    exact: np.ndarray,
) -> None:
    """That the leading directions in the metric of the old diagonal are kept, and the precision's diagonal is exact."""
    np.testing.assert_allclose(
        np.diag(dense.precision(structure, after, shapes)), np.diag(exact), rtol=EXACT, atol=EXACT
    )
    diagonal = dense.flatten(dense.layers_of("diagonal", before, len(shapes)))
    scale = 1 / np.sqrt(diagonal)
    columns = scale[:, None] * dense.low_rank_columns(after, shapes)
    whole = scale[:, None] * (exact - np.diag(diagonal)) * scale
    leading = np.linalg.eigvalsh(whole)[::-1][: structure.rank]
    assert np.linalg.eigvalsh(whole)[::-1][structure.rank] > 0.01, "nothing is cut off in this case"
    np.testing.assert_allclose(np.linalg.eigvalsh(columns.T @ columns)[::-1], leading, rtol=EXACT, atol=EXACT)
    assert np.linalg.eigvalsh(whole - columns @ columns.T).min() > -EXACT


def test_learned_noise_is_the_dense_answer(taken: Step) -> None:
    if not (isinstance(taken.likelihood, bm.Gaussian) and taken.likelihood.learns_noise):
        held = make_likelihood_state(taken.likelihood, NumpyEngine())
        for got, expected in zip(taken.learned, held, strict=True):
            np.testing.assert_array_equal(got, expected)
        return
    prior = dense.precision(taken.structure, taken.before, taken.shapes)
    step, _ = taken.reference()
    residual = taken.y - taken.outputs - taken.jacobian @ step
    squares = float(taken.weight @ (residual**2).sum(1) + step @ prior @ step)
    expected = [2.5 + 0.5 * taken.weight.sum(), 0.8 + 0.5 * squares]
    np.testing.assert_allclose([float(value) for value in taken.learned], expected, rtol=EXACT)


def test_information_is_the_divergence_of_the_linearised_posterior(taken: Step) -> None:
    prior = dense.precision(taken.structure, taken.before, taken.shapes)
    step, precision = taken.reference()
    if not isinstance(make_likelihood_state(taken.likelihood, NumpyEngine()), NoiseState):
        expected = dense.gaussian_kl(step, precision, np.zeros_like(step), prior)
    else:  # both Gaussians are given φ; their divergence is averaged over the new φ, with E[1/φ] = shape/rate
        shape, rate = (float(value) for value in taken.learned)
        expected = dense.gaussian_kl(np.sqrt(shape / rate) * step, precision, np.zeros_like(step), prior)
        old, new = stats.invgamma(2.5, scale=0.8), stats.invgamma(shape, scale=rate)
        expected += new.expect(lambda phi: new.logpdf(phi) - old.logpdf(phi), epsabs=1e-13, epsrel=1e-12, limit=500)
    np.testing.assert_allclose(float(taken.info.information), expected, rtol=1e-9)


@pytest.mark.parametrize("likelihood", ["gaussian_known", "categorical", "bernoulli"])
def test_information_is_the_divergence_of_a_full_structure(framework: str, likelihood: str) -> None:
    taken = take_step(framework, bm.Full(), LIKELIHOODS[likelihood])
    engine = get_engine(framework, "float64")
    states = [taken.structure.from_arrays(engine, arrays) for arrays in (taken.after, taken.before)]
    with engine.scope():
        divergence = engine.to_numpy(taken.structure.kl(engine, *states))
    np.testing.assert_allclose(float(taken.info.information), float(divergence), rtol=EXACT)


# -- the system in output space ---------------------------------------------------------------------------------------
def solve(likelihood: Likelihood, f: np.ndarray, covariance: np.ndarray, y: np.ndarray) -> Any:
    return LaplaceStep().solve(NumpyEngine(), likelihood, math.inf, f, covariance, y, np.ones(len(f)), ())


def test_a_confident_mistake_does_not_overshoot() -> None:
    f, covariance, y = np.array([[10.0, 0.0]]), 25 * np.eye(2), np.array([1])
    score, _ = dense.score_and_fisher(bm.Categorical(2), f, y)
    p = special.softmax(f[0])
    root = np.diag(np.sqrt(p)) - np.outer(p, np.sqrt(p))
    single = f[0] + covariance @ np.linalg.solve(np.eye(2) + root @ root.T @ covariance, score[0])
    np.testing.assert_allclose(single, [-14.94, 24.94], atol=0.01)  # what one Newton step alone would give

    def unsolved(difference: float) -> float:  # of the logits: f₁-f₀ = -10 + 50 p₀; their sum stays 10
        return difference + 10 - 50 * special.expit(-difference)

    difference = optimize.brentq(unsolved, -10, 40, xtol=1e-14)
    solution = solve(bm.Categorical(2), f, covariance, y)
    mode = f[0] + covariance @ solution.residual[0]
    np.testing.assert_allclose(mode, [5 - difference / 2, 5 + difference / 2], rtol=EXACT)
    np.testing.assert_allclose(mode, [4.38, 5.62], atol=0.01)
    assert bool(solution.ok)


@pytest.mark.parametrize("noise_variance", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("rows", [1, 32])
def test_normal_noise_needs_one_newton_step(rows: int, noise_variance: float) -> None:
    rng = np.random.default_rng(14)
    likelihood = bm.Gaussian(noise_variance=noise_variance)
    root = 2 * rng.standard_normal((rows, 5))
    f, y = 10 * rng.standard_normal((2, rows, 1))
    solution = solve(likelihood, f, root @ root.T, y)
    inner = np.linalg.solve(noise_variance * np.eye(5) + root.T @ root, root.T @ (y - f))
    residual = (y - f - root @ inner) / noise_variance  # (φ I + C)⁻¹ (y - f), by the matrix inversion lemma
    assert relative_error(solution.residual, residual) < EXACT
    assert solution.iterations <= 2  # the objective is quadratic; one more may confirm it


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("likelihood", [bm.Categorical(3), bm.Bernoulli(3)], ids=["categorical", "bernoulli"])
def test_the_residual_is_the_score_at_the_mode(likelihood: Likelihood, scale: float) -> None:
    rng = np.random.default_rng(13)
    worst = 0.0
    for _ in range(100):
        f = scale * rng.standard_normal((2, 3))
        root = scale * rng.standard_normal((6, 6))
        covariance = root @ root.T
        y = rng.integers(3, size=2) if isinstance(likelihood, bm.Categorical) else rng.integers(2, size=(2, 3)) * 1.0
        solution = solve(likelihood, f, covariance, y)
        assert bool(solution.ok)
        mode = f + (covariance @ solution.residual.reshape(-1)).reshape(2, 3)
        score, _ = dense.score_and_fisher(likelihood, mode, y)
        worst = max(worst, float(np.abs(score - solution.residual).max()))
    assert worst < EXACT


# -- weights and padding ----------------------------------------------------------------------------------------------
class Batches(NamedTuple):
    """Posteriors after batches that should, or should not, be the same thing."""

    plain: dict[str, np.ndarray]
    doubled: dict[str, np.ndarray]
    repeated: dict[str, np.ndarray]
    padded: dict[str, np.ndarray]
    infos: dict[str, UpdateInfo]
    states: dict[str, list[float]]


@pytest.fixture(params=[(s, k) for s in STRUCTURES for k in LIKELIHOODS], ids=lambda case: "-".join(case))
def batches(request: pytest.FixtureRequest) -> Batches:
    """Two rows; the first with weight 2; the first twice; two rows and two of weight 0."""
    structure = STRUCTURES[request.param[0]].resolve(NETWORK.num_layers)
    likelihood = LIKELIHOODS[request.param[1]]
    engine, shapes = NumpyEngine(), shapes_of(likelihood)
    posterior = Posterior(
        structure.from_arrays(engine, arrays_for(likelihood, structure, shapes, seed=20)),
        make_likelihood_state(likelihood, engine),
    )
    step = FilterModel(NETWORK, likelihood, structure).compile(engine)
    x = make_inputs(4, seed=21)
    y = likelihood.prepare(make_targets(likelihood, x, seed=22))
    plans = {
        "plain": ([0, 1], [1.0, 1.0]),
        "doubled": ([0, 1], [2.0, 1.0]),
        "repeated": ([0, 0, 1], [1.0, 1.0, 1.0]),
        "padded": ([0, 1, 2, 3], [1.0, 1.0, 0.0, 0.0]),
    }
    steps = {name: step(posterior, None, x[rows], y[rows], np.array(w), 1.0) for name, (rows, w) in plans.items()}
    precisions = {}
    for name, (after, _) in steps.items():
        arrays = structure.to_arrays(engine, after.weights)
        precisions[name] = {
            "mean": dense.mean(structure, arrays, shapes),
            "precision": dense.precision(structure, arrays, shapes),
        }
    return Batches(
        **precisions,
        infos={name: info for name, (_, info) in steps.items()},
        states={
            name: [float(v) for array in after.likelihood for v in np.ravel(array)]
            for name, (after, _) in steps.items()
        },
    )


def assert_same(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> None:
    for name, array in first.items():
        np.testing.assert_allclose(array, second[name], rtol=EXACT, atol=EXACT, err_msg=name)


def test_weight_two_is_the_row_twice(batches: Batches) -> None:
    assert_same(batches.doubled, batches.repeated)
    assert relative_error(batches.doubled["precision"], batches.plain["precision"]) > 1e-4, "the weight has no effect"
    np.testing.assert_allclose(batches.states["doubled"], batches.states["repeated"], rtol=EXACT)
    infos = batches.infos
    np.testing.assert_allclose(infos["doubled"].information, infos["repeated"].information, rtol=EXACT)


def test_rows_of_weight_zero_change_nothing(batches: Batches) -> None:
    assert_same(batches.plain, batches.padded)
    np.testing.assert_allclose(batches.states["plain"], batches.states["padded"], rtol=EXACT)
    plain, padded = batches.infos["plain"], batches.infos["padded"]
    np.testing.assert_allclose(plain.information, padded.information, rtol=EXACT)
    np.testing.assert_allclose(plain.log_predictive, padded.log_predictive, rtol=EXACT)


# -- forgetting -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("elapsed", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("framework", on("numpy", "torch"))
@pytest.mark.parametrize("name", STRUCTURES)
def test_a_step_forgets_before_it_learns(name: str, framework: str, elapsed: float) -> None:
    """Σ ← γ²Σ + (1-γ²)Σ₀ and m ← γm + (1-γ)m₀ with γ = factor^elapsed, then the step as ever."""
    structure, likelihood = STRUCTURES[name].resolve(NETWORK.num_layers), LIKELIHOODS["categorical"]
    engine, shapes = get_engine(framework, "float64"), shapes_of(LIKELIHOODS["categorical"])
    arrays = random_arrays(structure, shapes, seed=40)
    rng = np.random.default_rng(41)
    prior_mean, prior_precision = ([rng.uniform(0.5, 2.0, shape) for shape in shapes] for _ in range(2))
    if structure == bm.Kronecker():  # it holds multiples of the precisions that it started with
        prior_precision = [2.0 * dense.kronecker_prior(arrays, layer) for layer in range(len(shapes))]
    convert = engine.asarray
    with engine.scope():
        prior = structure.initial(engine, tuple(map(convert, prior_mean)), tuple(map(convert, prior_precision)))
    x = make_inputs(3, seed=42)
    y = likelihood.prepare(make_targets(likelihood, x, seed=43))
    batch = convert(x), convert(y), convert(np.ones(3)), convert(np.float64(elapsed))
    step = FilterModel(NETWORK, likelihood, structure, bm.Forgetting(0.9), LaplaceStep()).compile(engine)
    after, _ = step(Posterior(structure.from_arrays(engine, arrays), ()), prior, *batch)

    retention = 0.9**elapsed
    covariance = retention**2 * np.linalg.inv(dense.precision(structure, arrays, shapes))
    covariance += (1 - retention**2) * np.diag(1 / dense.flatten(prior_precision))
    relaxed = retention * dense.mean(structure, arrays, shapes) + (1 - retention) * dense.flatten(prior_mean)
    layers = dense.split(relaxed, shapes)
    f, jac = dense.outputs("tanh", layers, x), dense.jacobian("tanh", layers, x)
    moved, precision = dense.linearised_posterior(likelihood, f, jac, np.linalg.inv(covariance), y, np.ones(3))
    got = structure.to_arrays(engine, after.weights)
    np.testing.assert_allclose(dense.mean(structure, got, shapes), relaxed + moved, rtol=EXACT, atol=EXACT)
    if structure == bm.Kronecker():  # its step is test_the_precision_is_the_projection_of_the_dense_one
        return
    diagonal = np.diag(dense.precision(structure, got, shapes))
    np.testing.assert_allclose(diagonal, np.diag(precision), rtol=EXACT, atol=EXACT)


def test_time_passes_once_for_a_batch_of_several_chunks() -> None:
    x = make_inputs(600, seed=44)  # a chunk of 512 rows, and the rest
    y = make_targets(bm.Gaussian(), x, seed=45)
    whole, portions = (
        bm.BayesianMLP(
            LINEAR, bm.Gaussian(noise_variance=0.3), structure=bm.Full(), dynamics=bm.Forgetting(0.9), engine="numpy"
        )
        for _ in range(2)
    )
    for model in (whole, portions):
        model.update(x[:8], y[:8])
    whole.update(x, y, elapsed=2.0)
    portions.update(x[:512], y[:512], elapsed=2.0)
    portions.update(x[512:], y[512:], elapsed=0.0)
    for first, second in zip(dense_state(whole), dense_state(portions), strict=True):
        assert relative_error(first, second) < 1e-5


def test_after_long_silence_the_prior_is_all_that_is_known() -> None:
    x = make_inputs(8, seed=46)
    model = bm.BayesianMLP(NETWORK, bm.Bernoulli(), structure=BLOCKS, dynamics=bm.Forgetting(0.9), engine="numpy")
    model.start_from_prior(NUM_INPUTS)
    before = model.predict(x)
    model.update(x, make_targets(bm.Bernoulli(), x, seed=47))
    assert relative_error(model.predict(x).probabilities, before.probabilities) > 0.01
    model.update(x[:1], [1], weight=0.0, elapsed=1000.0)
    after = model.predict(x)
    assert relative_error(after.probabilities, before.probabilities) < 1e-5
    assert relative_error(after.output_covariance, before.output_covariance) < 1e-5


# -- the prequential score --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("framework", on("numpy", "torch"))
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_log_predictive_is_what_predict_said_before(framework: str, name: str) -> None:
    likelihood = LIKELIHOODS[name]
    x = make_inputs(4, seed=30)
    y = make_targets(likelihood, x, seed=31)
    model = bm.BayesianMLP(NETWORK, likelihood, structure=bm.Full(), engine=framework, dtype="float64")
    model.update(x, y)
    for row in range(4):
        said = model.predict(x[row : row + 1]).log_prob(y[row : row + 1])
        info = model.update(x[row : row + 1], y[row : row + 1])
        np.testing.assert_allclose(info.log_predictive, said[0], rtol=EXACT)


def test_log_predictive_of_a_batch_sums_its_rows_own_densities(engine64: Engine) -> None:
    taken = take_step(engine64.name, bm.Full(), LIKELIHOODS["gaussian_known"])
    prior = dense.precision(taken.structure, taken.before, taken.shapes)
    covariance = np.einsum("nkp,pq,nlq->nkl", taken.jacobian, np.linalg.inv(prior), taken.jacobian)
    expected = [
        stats.multivariate_normal.logpdf(target, f, c + 0.3 * np.eye(2))
        for target, f, c in zip(taken.y, taken.outputs, covariance, strict=True)
    ]
    np.testing.assert_allclose(float(taken.info.log_predictive), sum(expected), rtol=EXACT)
