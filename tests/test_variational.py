"""Starting deviations, optimizers and their refusals, on models whose variational optimum is a closed form."""

from __future__ import annotations

from collections.abc import Callable

import dense
import numpy as np
import pytest
from cases import LINEAR, NETWORK, make_inputs, on, shapes_of

import bayesmlp as bm
from bayesmlp.inference.engines import Array, Engine
from bayesmlp.inference.engines.base import leaves_of
from bayesmlp.inference.errors import InvalidInput
from bayesmlp.inference.methods import Method
from bayesmlp.inference.objective import Parameters, WeightPrior, gradient_of, normal_kl

ROWS = 200
NOISE = 0.3
STILL = bm.TrainingOptions(epochs=1, batch_size=ROWS, learning_rate=1e-30)


def fit(
    method: Method, engine: str, network: bm.MLP = LINEAR, weight: np.ndarray | None = None
) -> tuple[bm.BayesianMLP, np.ndarray, np.ndarray]:
    """A float64 model of unscaled data, one of whose inputs is always 0; the inputs with their 1; the targets."""
    x = make_inputs(ROWS, seed=110)
    x[:, 1] = 0.0
    model = bm.BayesianMLP(
        network, bm.Gaussian(noise_variance=NOISE), structure=bm.Diagonal(), engine=engine, dtype="float64",
        standardize=False,
    )  # fmt: skip
    y = np.sin(x[:, 0]) + 0.5 * np.random.default_rng(1).standard_normal(ROWS)
    model.fit(x, y, method=method, weight=weight)
    return model, np.concatenate([x, np.ones((ROWS, 1))], axis=1), y


def prior_precision(network: bm.MLP) -> np.ndarray:
    return dense.flatten(bm.NormalPrior().precision(shapes_of(bm.Gaussian(), network)))


@pytest.mark.parametrize("engine", on("torch", "jax"))
def test_deviations_start_where_the_data_narrows_them(engine: str) -> None:
    weight = np.random.default_rng(2).uniform(0, 2, ROWS)
    method = bm.Variational(STILL, initial_deviation=0.5, initial_curvature=0.2)
    model, rows, _ = fit(method, engine, weight=weight)
    expected = 1 / (prior_precision(LINEAR) / 0.5**2 + 0.2 * weight @ rows**2)
    got = dense.flatten(model.weight_variances())
    np.testing.assert_allclose(got, expected, rtol=1e-9)
    np.testing.assert_allclose(got[1], 0.5**2 / prior_precision(LINEAR)[1], rtol=1e-9)  # the input that is always 0


@pytest.mark.parametrize("engine", on("torch", "jax"))
def test_hidden_layers_start_from_their_own_inputs(engine: str) -> None:
    model, rows, _ = fit(bm.Variational(STILL, initial_deviation=1.0, initial_curvature=0.2), engine, NETWORK)
    first = NETWORK.initialise(rows.shape[1] - 1, 1, model.seed)[0]
    hidden = np.tanh(rows @ first)
    variances = model.weight_variances()[1]
    precision = bm.NormalPrior().precision(shapes_of(bm.Gaussian(), NETWORK))[1]
    np.testing.assert_allclose(variances[:-1], 1 / (precision[:-1] + 0.2 * (hidden**2).sum(0)[:, None]), rtol=1e-9)


@pytest.mark.parametrize("engine", on("torch", "jax"))
def test_ivon_finds_the_mean_field_posterior_of_a_linear_model(engine: str) -> None:
    """Independent normals closest to a normal posterior have its mean and the diagonal of its precision.

    Both are found up to the noise of one draw a step, averaged over 1 / (1 - β₂) steps: relative to the deviation a
    quarter for the means, and 15% for the deviations.
    """
    method = bm.Variational(
        bm.TrainingOptions(epochs=3000, batch_size=ROWS, learning_rate=0.05),
        initial_deviation=0.5,
        optimizer=bm.IVON(curvature_decay=0.998),
    )
    model, rows, y = fit(method, engine)
    precision = np.diag(prior_precision(LINEAR)) + rows.T @ rows / NOISE
    mean, deviation = np.linalg.solve(precision, rows.T @ y / NOISE), 1 / np.sqrt(np.diag(precision))
    np.testing.assert_array_less(np.abs(dense.flatten(model.mean_weights()) - mean), 0.25 * deviation)
    np.testing.assert_allclose(np.sqrt(dense.flatten(model.weight_variances())), deviation, rtol=0.15)


@pytest.mark.parametrize("engine", on("torch", "jax"))
@pytest.mark.parametrize("optimizer", [bm.Adam(), bm.IVON(curvature_decay=1 - 2**-53)], ids=["adam", "ivon"])
def test_both_optimizers_report_the_same_bound(optimizer: bm.Adam, engine: str) -> None:
    """At a point where nothing moves: expected log likelihood and KL divergence in closed form."""
    options = bm.TrainingOptions(epochs=400, batch_size=ROWS, learning_rate=1e-30)
    model, rows, y = fit(bm.Variational(options, 0.7, 0.0, optimizer), engine)
    precision, mean = prior_precision(LINEAR), dense.flatten(model.mean_weights())
    squares = ((y - rows @ mean) ** 2 + rows**2 @ (0.7**2 / precision)).sum()
    fit_term = -0.5 * squares / NOISE - 0.5 * ROWS * np.log(2 * np.pi * NOISE)
    divergence = 0.5 * (len(mean) * (0.7**2 - 1 - 2 * np.log(0.7)) + precision @ mean**2)
    terms = ROWS * np.asarray(model.fit_details["terms"])
    error = terms.std(0)[1] / len(terms) ** 0.5
    assert error > 0
    assert abs(terms[:, 1].mean() - fit_term) < 5 * error
    np.testing.assert_allclose(terms[:, 2], divergence, rtol=1e-9)
    np.testing.assert_allclose(terms[:, 0], terms[:, 2] - terms[:, 1], rtol=1e-9)


@pytest.mark.parametrize("shared", [True, False], ids=["rows", "weights"])
def test_the_gradient_is_that_of_the_objective(gradient_engine64: Engine, shared: bool) -> None:
    """Of two networks, with a variational layer and a point layer: differentiated whole, at the same noise."""
    engine, xp, rng = gradient_engine64, gradient_engine64.xp, np.random.default_rng(3)
    network, likelihood, flags = bm.MLP((3,), "tanh"), bm.Gaussian(noise_variance=NOISE), [True, False]
    shapes = network.shapes(2, 1)
    precision = [rng.uniform(1, 2, (2, rows, 1 if shared else columns)) for rows, columns in shapes]
    determinant = np.log(np.broadcast_to(precision[0], (2, *shapes[0]))).sum((1, 2))
    with engine.scope():
        mean = tuple(engine.asarray(rng.standard_normal((2, *shape))) for shape in shapes)
        parameters = Parameters(mean, (engine.asarray(rng.standard_normal((2, *shapes[0]))),), ())
        prior = WeightPrior(
            tuple(engine.asarray(p) for p in precision), (engine.asarray(determinant), engine.asarray(np.zeros(2)))
        )
        batch = [engine.asarray(rng.standard_normal(shape)) for shape in ((2, 5, 2), (2, 5, 1), (2, 5))]
        noise, beta = (engine.asarray(rng.standard_normal((2, 5, 3))),), engine.asarray(np.float64(0.3))

    def one(now: Parameters, prior: WeightPrior, batch: list[Array], noise: tuple[Array, ...]) -> Array:
        log_s, (p, q) = now.log_deviation[0], prior.precision
        variance = xp.exp(2 * log_s)
        outputs = network.apply_with_noise(engine, now.mean, [variance, None], batch[0], [noise[0], None])
        misfit = -xp.sum(batch[2] * likelihood.fit_log_prob(engine, outputs, batch[1], ())) / 5
        divergence = normal_kl(xp, now.mean[0], variance, log_s, p, prior.log_determinant[0])
        return misfit + (beta * divergence + 0.5 * xp.sum(q * now.mean[1] ** 2)) / ROWS

    def total(now: Parameters) -> tuple[Array, Array]:
        values = engine.vmap(one)(now, prior, batch, noise)
        return xp.sum(values), values

    gradient = gradient_of(engine, network, likelihood, flags, ROWS, members=True)
    terms, got = engine.jit(lambda now: gradient(now, prior, batch, noise, beta))(parameters)
    (_, values), expected = engine.jit(engine.value_and_grad(total, has_aux=True))(parameters)
    np.testing.assert_allclose(engine.to_numpy(terms.objective), engine.to_numpy(values), rtol=1e-12)
    for own, whole in zip(leaves_of(got), leaves_of(expected), strict=True):
        np.testing.assert_allclose(engine.to_numpy(own), engine.to_numpy(whole), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("engine", on("torch", "jax"))
def test_deviations_move_at_their_own_rate(engine: str) -> None:
    """A first step of Adam is as long as its learning rate."""
    one = bm.TrainingOptions(epochs=1, batch_size=ROWS, learning_rate=1e-3)
    model, _, _ = fit(bm.Variational(one, initial_deviation=0.1, optimizer=bm.Adam(deviation_rate=0.1)), engine)
    moved = 0.5 * np.log(dense.flatten(model.weight_variances()) * prior_precision(LINEAR)) - np.log(0.1)
    np.testing.assert_allclose(np.abs(moved), 1e-4, rtol=1e-3)


@pytest.mark.parametrize("engine", on("torch", "jax"))
def test_points_and_members_beside_ivon(engine: str) -> None:
    """Layers with point weights and several networks at once learn too."""
    fast = bm.TrainingOptions(steps=400, batch_size=50, learning_rate=0.05)
    variational = bm.Variational(fast, initial_deviation=1.0, initial_curvature=10.0, optimizer=bm.IVON())
    for method in (bm.PerLayer(variational, bm.Laplace(fast)), bm.Ensemble(variational, members=2)):
        model, rows, y = fit(method, engine, NETWORK)
        residual = y - model.predict(rows[:, :-1], method="mean").mean
        assert residual.var() < 0.6 * y.var()


@pytest.mark.parametrize("engine", on("torch", "jax"))
@pytest.mark.parametrize("likelihood", [bm.Categorical(3), bm.Gaussian()], ids=["classes", "numbers"])
def test_both_optimizers_learn_at_their_defaults(likelihood: bm.Likelihood, engine: str) -> None:
    """Three well separated classes, and a line with little noise."""
    rng = np.random.default_rng(5)
    x, labels = rng.standard_normal((600, 2)), rng.integers(0, 3, 600)
    x += np.array([[0, 3], [3, -2], [-3, -2]])[labels]
    y = labels if isinstance(likelihood, bm.Categorical) else x @ [1, -2] + 0.1 * rng.standard_normal(600)
    scores = []
    for optimizer in ("adam", "ivon"):
        model = bm.BayesianMLP(bm.MLP((20,)), likelihood, structure=bm.Diagonal(), engine=engine)
        model.fit(x[:300], y[:300], method=bm.Variational(bm.TrainingOptions(steps=1500), optimizer=optimizer))
        scores.append(model.predict(x[300:]).log_prob(y[300:]).mean())
    assert scores[1] > scores[0] - 0.1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: bm.IVON(adam_rate=0.0), "adam_rate must be positive"),
        (lambda: bm.Variational(initial_curvature=-1.0), "initial_curvature must be at least 0"),
        (lambda: bm.Variational(optimizer="adagrad"), "optimizer must be .*'adagrad'"),
        (lambda: bm.Adam(deviation_rate=0.0), "deviation_rate must be positive"),
        (lambda: bm.IVON(curvature_decay=1.0), r"curvature_decay must be in \[0, 1\)"),
        (
            lambda: bm.PerLayer(bm.Variational(initial_curvature=1.0), bm.Variational()),
            "hidden and last differ in initial_curvature",
        ),
    ],
)
def test_refusals_name_the_argument(build: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        build()
