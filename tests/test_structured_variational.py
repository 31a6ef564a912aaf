"""Structured variational fits against dense formulas; of linear models, whose posterior is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import dense
import numpy as np
import pytest
from cases import BLOCKS, LIKELIHOODS, LINEAR, NETWORK, make_inputs, make_targets, needs, on, random_arrays, shapes_of

import bayesmlp as bm
from bayesmlp.inference.engines import Engine, map_arrays
from bayesmlp.inference.engines.base import leaves_of
from bayesmlp.inference.errors import InvalidInput
from bayesmlp.inference.methods import FitProblem
from bayesmlp.inference.objective import WeightPrior
from bayesmlp.inference.structured_variational import StructuredParameters, bound_of, kl_from_prior
from bayesmlp.inference.structures import Structure

ROWS, NOISE = 60, 0.3
SHAPES = shapes_of(bm.Categorical(3))
LINEAR_SHAPES = [(3, 1)]
OF_LAYERS = {"last_full": bm.LastLayer(bm.Full(), bm.Diagonal()).resolve(3), "blocks": BLOCKS.resolve(3)}
OF_WEIGHTS: dict[str, Structure] = {"diagonal": bm.Diagonal(), "low_rank": bm.LowRank(2), "full": bm.Full()}
STRUCTURES = OF_WEIGHTS | OF_LAYERS
WITH_POINTS = bm.Blocks(((bm.Full(), (0, 2)), (bm.Point(), (1,))))


def data() -> tuple[np.ndarray, np.ndarray]:
    """Inputs that are correlated, and targets of some noise."""
    x = make_inputs(ROWS, seed=110)
    x[:, 1] += 1.5 * x[:, 0]
    return x, x @ [0.7, -0.4] + 0.2 + NOISE**0.5 * np.random.default_rng(1).standard_normal(ROWS)


class Exact(NamedTuple):
    """The linear model's posterior and log evidence."""

    mean: np.ndarray
    precision: np.ndarray
    log_evidence: float


def exact(noise: float = NOISE) -> Exact:
    x, y = data()
    rows = np.concatenate([x, np.ones((ROWS, 1))], axis=1)
    prior = dense.flatten(bm.NormalPrior().precision(LINEAR_SHAPES))
    precision = np.diag(prior) + rows.T @ rows / noise
    covariance = noise * np.eye(ROWS) + rows @ np.diag(1 / prior) @ rows.T
    log_evidence = -0.5 * (np.linalg.slogdet(2 * np.pi * covariance)[1] + y @ np.linalg.solve(covariance, y))
    return Exact(np.linalg.solve(precision, rows.T @ y / noise), precision, float(log_evidence))


def problem_of(engine: Engine, structure: Structure) -> FitProblem:
    x, y = data()
    return FitProblem(
        engine, LINEAR, bm.Gaussian(noise_variance=NOISE), structure, bm.NormalPrior(), engine.asarray(x),
        engine.asarray(y[:, None]), np.ones(ROWS), 0,
    )  # fmt: skip


def prior_of(engine: Engine, precision: Sequence[np.ndarray]) -> WeightPrior:
    log_determinants = tuple(engine.asarray(np.log(p).sum()) for p in precision)
    return WeightPrior(tuple(engine.asarray(p) for p in precision), log_determinants)


def cubature(shapes: Sequence[tuple[int, ...]], engine: Engine) -> tuple[Any, ...]:
    """Draws whose mean and covariance are 0 and the identity: averages of quadratic functions over them are exact."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    total = sum(sizes)
    points = total**0.5 * np.concatenate([np.eye(total), -np.eye(total)])
    pieces = np.split(points, np.cumsum(sizes)[:-1], axis=1)
    return tuple(engine.asarray(piece.reshape(2 * total, *shape)) for piece, shape in zip(pieces, shapes, strict=True))


def evaluated(engine: Engine, structure: Structure, arrays: Any, beta: float, noise: Any = None) -> tuple[Any, ...]:
    """Unconstrained parameters of a posterior of the linear model, terms and gradient at exact or given draws."""
    problem = problem_of(engine, structure)
    state = structure.from_arrays(engine, arrays)
    noise = cubature(structure.noise_shapes(state), engine) if noise is None else noise
    with engine.scope():
        parameters = StructuredParameters(structure.unconstrained(engine, state), ())
    prior = prior_of(engine, problem.prior_precision)
    batch = (problem.x, problem.y, engine.asarray(problem.weight))
    gradient_of = engine.jit(engine.value_and_grad(bound_of(problem, ROWS), has_aux=True))
    (_, terms), gradient = gradient_of(parameters, prior, batch, noise, engine.asarray(np.float64(beta)))
    return parameters.weights, map_arrays(lambda a: float(engine.to_numpy(a)), terms), gradient.weights


def negative_elbo(structure: Structure, arrays: Any, beta: float) -> float:
    """Per row, of the linear model, in closed form."""
    x, y = data()
    rows = np.concatenate([x, np.ones((ROWS, 1))], axis=1)
    mean, precision = dense.mean(structure, arrays, LINEAR_SHAPES), dense.precision(structure, arrays, LINEAR_SHAPES)
    squares = ((y - rows @ mean) ** 2).sum() + np.trace(rows @ np.linalg.solve(precision, rows.T))
    prior = np.diag(dense.flatten(bm.NormalPrior().precision(LINEAR_SHAPES)))
    divergence = dense.gaussian_kl(mean, precision, 0 * mean, prior)
    return float(0.5 * squares / NOISE / ROWS + 0.5 * np.log(2 * np.pi * NOISE) + beta * divergence / ROWS)


@pytest.mark.parametrize("structure", OF_WEIGHTS.values(), ids=OF_WEIGHTS)
def test_the_bound_and_its_gradient_are_the_dense_ones(structure: Structure, gradient_engine64: Engine) -> None:
    engine, beta, step = gradient_engine64, 0.7, 1e-5
    arrays = random_arrays(structure, LINEAR_SHAPES, seed=111)
    free, terms, gradient = evaluated(engine, structure, arrays, beta)
    np.testing.assert_allclose(terms.objective, negative_elbo(structure, arrays, beta), rtol=1e-10)
    np.testing.assert_allclose(terms.objective, terms.complexity - terms.log_likelihood, rtol=1e-12)

    def at(tree: Any) -> float:
        with engine.scope():
            state = structure.constrained(engine, map_arrays(engine.asarray, tree))
        return negative_elbo(structure, structure.to_arrays(engine, state), beta)

    host = map_arrays(engine.to_numpy, free)
    for array, slope in zip(leaves_of(host), leaves_of(gradient), strict=True):
        expected = np.zeros(array.shape)
        for index in np.ndindex(array.shape):
            start = array[index]
            array[index] = start + step
            above = at(host)
            array[index] = start - step
            expected[index] = (above - at(host)) / (2 * step)
            array[index] = start
        np.testing.assert_allclose(engine.to_numpy(slope), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("structure", [bm.Full(), bm.LowRank(3)], ids=["full", "low_rank"])
def test_nothing_moves_the_exact_posterior(structure: Structure, gradient_engine64: Engine) -> None:
    """Log p(y, θ) - log q(θ) is the log evidence at every θ: the bound is tight, and no draw has a gradient."""
    engine, answer = gradient_engine64, exact()
    arrays = {"mean.0": answer.mean[:, None]}
    if isinstance(structure, bm.Full):
        arrays["covariance_root"] = np.linalg.cholesky(np.linalg.inv(answer.precision))
    else:
        prior = bm.NormalPrior().precision(LINEAR_SHAPES)[0]
        columns = np.linalg.cholesky(answer.precision - np.diag(prior[:, 0])).T
        arrays |= {"diagonal.0": prior, "columns.0": columns[:, :, None]}
    _, terms, _ = evaluated(engine, structure, arrays, 1.0)
    np.testing.assert_allclose(-ROWS * terms.objective, answer.log_evidence, rtol=1e-10)
    rng = np.random.default_rng(112)
    shapes = structure.noise_shapes(structure.from_arrays(engine, arrays))
    noise = tuple(engine.asarray(rng.standard_normal((1, *shape))) for shape in shapes)
    _, _, gradient = evaluated(engine, structure, arrays, 1.0, noise)
    for slope in leaves_of(gradient):
        np.testing.assert_allclose(engine.to_numpy(slope), 0, atol=1e-11)


@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
def test_samples_and_divergences_are_differentiable(structure: Structure, gradient_engine64: Engine) -> None:
    """Against differences, in a random direction of the unconstrained form."""
    engine = gradient_engine64
    new, old = (structure.from_arrays(engine, random_arrays(structure, SHAPES, seed)) for seed in (113, 114))
    rng = np.random.default_rng(115)
    noise = tuple(engine.asarray(rng.standard_normal((2, *shape))) for shape in structure.noise_shapes(new))
    with engine.scope():
        free = structure.unconstrained(engine, new)
    direction = map_arrays(lambda a: engine.asarray(rng.standard_normal(tuple(a.shape))), free)

    def value(free: Any, step: Any) -> Any:
        moved = iter(leaves_of(direction))
        state = structure.constrained(engine, map_arrays(lambda a: a + step * next(moved), free))
        squares = sum(engine.xp.sum(layer**2) for layer in structure.sample(engine, state, noise))
        return squares + structure.kl(engine, state, old)

    compiled, step = engine.jit(value), 1e-6
    ends = [float(engine.to_numpy(compiled(free, engine.asarray(np.float64(s))))) for s in (step, -step)]
    _, gradient = engine.jit(engine.value_and_grad(value))(free, engine.asarray(np.float64(0)))
    pairs = zip(leaves_of(gradient), leaves_of(direction), strict=True)
    slope = sum((engine.to_numpy(g) * engine.to_numpy(d)).sum() for g, d in pairs)
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * step), rtol=1e-6)


@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
def test_the_divergence_from_the_prior_is_the_gaussian_one(structure: Structure, engine64: Engine) -> None:
    engine, arrays = engine64, random_arrays(structure, SHAPES, seed=116)
    prior = tuple(np.exp(np.random.default_rng(117).standard_normal(shape)) for shape in SHAPES)
    with engine.scope():
        state = structure.from_arrays(engine, arrays)
        divergence, penalty = kl_from_prior(engine, structure, state, prior_of(engine, prior))
    mean = dense.mean(structure, arrays, SHAPES)
    expected = dense.gaussian_kl(
        mean, dense.precision(structure, arrays, SHAPES), 0 * mean, np.diag(dense.flatten(prior))
    )
    np.testing.assert_allclose(engine.to_numpy(divergence), expected, rtol=1e-10)
    assert penalty == 0


def fit(
    structure: Structure, engine: str, likelihood: bm.Gaussian, steps: int = 800, rate: float = 0.05, num_draws: int = 1
) -> bm.BayesianMLP:
    x, y = data()
    options = bm.TrainingOptions(steps=steps, batch_size=ROWS, learning_rate=rate)
    model = bm.BayesianMLP(LINEAR, likelihood, structure=structure, engine=engine, dtype="float64", standardize=False)
    return model.fit(x, y, method=bm.StructuredVariational(options, num_draws=num_draws))


def fitted_precision(model: bm.BayesianMLP, structure: Structure) -> np.ndarray:
    arrays = {name.removeprefix("weights."): array for name, array in model.to_arrays().items()}
    return dense.precision(structure, arrays, LINEAR_SHAPES)


FITS = [pytest.param(bm.Full(), name, id=f"full-{name}", marks=needs(name)) for name in ("torch", "jax")]
FITS += [pytest.param(bm.LowRank(3), "torch", id="low_rank-torch", marks=needs("torch"))]


@pytest.mark.parametrize(("structure", "engine"), FITS)
def test_a_linear_model_gets_its_exact_posterior(structure: Structure, engine: str) -> None:
    """Gradients vanish there for every draw, so that the steps end there: within 0.1% of a standard deviation."""
    answer, model = exact(), fit(structure, engine, bm.Gaussian(noise_variance=NOISE), steps=1600)
    step = dense.flatten(model.mean_weights()) - answer.mean
    assert step @ answer.precision @ step < 1e-6
    root = np.linalg.cholesky(answer.precision)
    relative = np.linalg.solve(root, np.linalg.solve(root, fitted_precision(model, structure)).T)
    np.testing.assert_allclose(np.linalg.eigvalsh(relative), 1, atol=1e-3)


@pytest.mark.parametrize("engine", on("torch"))
def test_independent_weights_get_the_mean_field_optimum(engine: str) -> None:
    """The posterior's mean and the diagonal of its precision; no draw's gradient vanishes there.

    Over eight seeds the means ended within 0.20 standard deviations, the precisions within 2% and the bounds within
    0.05.
    """
    likelihood = bm.Gaussian(noise_variance=NOISE)
    answer, model = exact(), fit(bm.Diagonal(), engine, likelihood, steps=3000, rate=0.02, num_draws=4)
    precision = np.diag(answer.precision)
    deviations = np.abs(dense.flatten(model.mean_weights()) - answer.mean) * precision**0.5
    np.testing.assert_array_less(deviations, 0.3)
    np.testing.assert_allclose(np.diag(fitted_precision(model, bm.Diagonal())), precision, rtol=0.05)
    gap = dense.gaussian_kl(answer.mean, np.diag(precision), answer.mean, answer.precision)
    bound = -ROWS * np.asarray(model.history)[-300:].mean()
    assert gap > 0.3
    assert abs(bound - (answer.log_evidence - gap)) < 0.1


@pytest.mark.parametrize("engine", on("torch"))
@pytest.mark.parametrize("structure", [bm.Full(), bm.LowRank(3)], ids=["full", "low_rank"])
def test_with_learned_noise_the_posterior_is_held_at_unit_dispersion(structure: Structure, engine: str) -> None:
    """The precision times φ."""
    model = fit(structure, engine, bm.Gaussian())
    arrays = model.to_arrays()
    noise = float(arrays["likelihood.1"] / arrays["likelihood.0"])
    assert 0.1 < noise < 0.5
    answer = exact(noise)
    np.testing.assert_allclose(fitted_precision(model, structure), noise * answer.precision, rtol=0.1)
    expected = np.diag(np.linalg.inv(answer.precision))
    np.testing.assert_allclose(dense.flatten(model.weight_variances()), expected, rtol=0.05)


# -- networks ---------------------------------------------------------------------------------------------------------
QUICK = bm.TrainingOptions(epochs=4, batch_size=16)


@pytest.mark.parametrize("engine", on("torch"))
def test_correlations_of_the_last_layer_raise_the_bound(engine: str) -> None:
    """Inputs far from 0, so that hidden units are alike and the weights of the last layer correlated.

    By one nat; it was 1.5 to 1.8 over three seeds, and the means of the last epochs are uncertain by 0.1.
    """
    x, y = data()
    bounds = []
    for last in (bm.Full(), bm.Diagonal()):
        structure = bm.LastLayer(last, bm.Point())
        model = bm.BayesianMLP(
            bm.MLP((4,), "tanh"), bm.Gaussian(noise_variance=NOISE), structure=structure, engine=engine,
            standardize=False,
        )  # fmt: skip
        options = bm.TrainingOptions(steps=1600, batch_size=ROWS, learning_rate=0.05)
        model.fit(x + 3, y, method=bm.StructuredVariational(options, num_draws=4))
        bounds.append(-ROWS * np.asarray(model.history)[-300:].mean())
    assert bounds[0] - bounds[1] > 1


LIVES = [
    pytest.param(structure, likelihood, "torch", id=f"{name}-{likelihood}-torch", marks=needs("torch"))
    for name, structure in (("blocks", BLOCKS), ("low_rank", bm.LowRank(2)), ("points", WITH_POINTS))
    for likelihood in LIKELIHOODS
]
LIVES += [pytest.param(WITH_POINTS, "categorical", "jax", id="points-categorical-jax", marks=needs("jax"))]
"""JAX takes seconds to compile a case."""


@pytest.mark.parametrize(("structure", "likelihood", "engine"), LIVES)
def test_every_likelihood_is_fitted_and_learns_on(structure: Structure, likelihood: str, engine: str) -> None:
    model = bm.BayesianMLP(NETWORK, LIKELIHOODS[likelihood], structure=structure, engine=engine, seed=1)
    x = make_inputs(40, seed=118)
    y = make_targets(model.likelihood, x, seed=119)
    method = bm.StructuredVariational(bm.TrainingOptions(epochs=24, batch_size=8, learning_rate=0.02), num_draws=4)
    model.fit(x, y, method=method)
    terms = np.asarray(model.fit_details["terms"])
    assert terms.shape == (12, 3)
    np.testing.assert_allclose(terms[:, 0], terms[:, 2] - terms[:, 1], rtol=1e-5)
    assert terms[-3:, 0].mean() < terms[:3, 0].mean()
    before = model.predict(x[:4])
    assert (before.epistemic_variance > 0).all()
    assert model.update(x[:4], y[:4]).ok
    assert model.predict(x[:4]).log_prob(y[:4]).mean() > before.log_prob(y[:4]).mean()


@pytest.mark.parametrize("engine", on("torch"))
def test_the_same_seed_fits_the_same_posterior(engine: str) -> None:
    x, y = data()
    options = bm.TrainingOptions(epochs=4, batch_size=16, validation=0.2, kl_warmup=0.5)
    models = []
    for seed in (1, 1, 2):
        model = bm.BayesianMLP(NETWORK, bm.Gaussian(), structure=WITH_POINTS, engine=engine, seed=seed)
        models.append(model.fit(x, y, method=bm.StructuredVariational(options, num_draws=2)))
    first, again, other = (model.to_arrays() for model in models)
    for name, array in first.items():
        np.testing.assert_array_equal(array, again[name], err_msg=name)
    assert any((array != other[name]).any() for name, array in first.items())
    assert len(models[0].fit_details["validation"]) == 2


@pytest.mark.parametrize("engine", on("torch"))
def test_structures_without_an_unconstrained_form_are_refused_before_any_training(engine: str) -> None:
    x, y = data()
    epochs: list[int] = []
    for structure in (bm.Kronecker(), bm.Subnetwork(5), bm.LastLayer(bm.Kronecker(), bm.Diagonal()), bm.Point()):
        model = bm.BayesianMLP(NETWORK, bm.Gaussian(), structure=structure, engine=engine)
        with pytest.raises(InvalidInput, match=r"unconstrained form, which gradients need: use|uncertain weights, got"):
            model.fit(x, y, method=bm.StructuredVariational(QUICK), on_epoch=lambda epoch, *_: epochs.append(epoch))
    assert not epochs


@pytest.mark.parametrize("engine", on("torch"))
def test_a_mixture_is_refused(engine: str) -> None:
    model = bm.BayesianMLP(LINEAR, bm.Gaussian(), structure=bm.Mixture(bm.Full(), 2), engine=engine)
    with pytest.raises(InvalidInput, match=r"fits one Gaussian, not the members of Mixture\(of=Full\(\), members=2"):
        model.fit(*data(), method=bm.StructuredVariational(QUICK))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: bm.StructuredVariational(initial_deviation=0.0), "initial_deviation must be positive, got 0.0"),
        (lambda: bm.StructuredVariational(num_draws=0), "num_draws must be an integer of at least 1, got 0"),
        (lambda: bm.Ensemble(bm.StructuredVariational()), "Ensemble.method must be .* got StructuredVariational"),
    ],
)
def test_refusals_name_the_argument(build: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        build()
