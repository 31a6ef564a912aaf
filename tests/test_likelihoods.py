"""Likelihoods whose integrals have no closed form, against numerical integration; and what they learn and refuse."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from cases import TOLERANCE, make_inputs, make_targets, on
from scipy import integrate, stats

import bayesmlp as bm
from bayesmlp.inference.engines import Engine, NumpyEngine
from bayesmlp.inference.errors import InvalidInput
from bayesmlp.inference.likelihoods import LevelState, Likelihood, ScaleState, Thresholds
from bayesmlp.inference.likelihoods.heteroscedastic_gaussian import LOG_VARIANCE_BOUNDS
from bayesmlp.inference.likelihoods.poisson import LOG_RATE_BOUNDS
from bayesmlp.inference.quadrature import log_gamma_nodes
from bayesmlp.inference.spec import from_spec, to_spec
from bayesmlp.scaling import Scaling

HOST = NumpyEngine()
CASES: dict[str, tuple[Likelihood, Any]] = {
    "heteroscedastic": (bm.HeteroscedasticGaussian(), LevelState(np.float64(-0.5))),
    "student_t": (bm.StudentT(), ScaleState(np.float64(0.4))),
    "student_t_known": (bm.StudentT(degrees_of_freedom=7.5, scale=0.7), ()),
    "poisson": (bm.Poisson(), ()),
    "ordinal": (bm.Ordinal(4), Thresholds(np.array([-1.0, 0.2, 1.5]))),
}
CONTINUOUS = ["heteroscedastic", "student_t", "student_t_known"]
DISCRETE = ["poisson", "ordinal"]
ROWS = 3


def support(name: str) -> np.ndarray:
    """Every y that matters, as the likelihood prepares it."""
    return CASES[name][0].prepare(np.arange(400 if name == "poisson" else 4))


def normal_outputs(size: int, seed: int, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Means (N, K) and covariances (N, K, K) of outputs."""
    rng = np.random.default_rng(seed)
    root = scale * rng.standard_normal((ROWS, size, size + 1)) / np.sqrt(size + 1)
    return 0.7 * rng.standard_normal((ROWS, size)), root @ root.mT


def expectation(mean: np.ndarray, covariance: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """E[function(outputs)] for one row by the trapezium rule on a dense grid of one or two dimensions.

    ``function`` takes outputs (S, K) and returns (S, ...).
    """
    size = len(mean)
    axis = np.linspace(-9, 9, {1: 20_001, 2: 1201}[size])
    grid = np.stack(np.meshgrid(*[axis] * size, indexing="ij"), axis=-1).reshape(-1, size)
    weights = np.exp(-0.5 * (grid**2).sum(1))
    outputs = mean + grid @ np.linalg.cholesky(covariance).T
    return np.tensordot(weights / weights.sum(), function(outputs), axes=1)


def density(name: str, y: Any, outputs: np.ndarray) -> np.ndarray:
    """p(y | outputs) of one y for outputs (S, K)."""
    likelihood, state = CASES[name]
    targets = likelihood.prepare(np.asarray([y]))
    return np.exp(likelihood.log_prob(HOST, outputs[:, None, :], targets, state))[:, 0]


def some_targets(name: str) -> np.ndarray:
    return np.array([0.3, -1.2, 2.5]) if name in CONTINUOUS else np.array([0, 3, 1])


# -- given the outputs ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", CASES)
def test_fisher_information_is_the_expected_square_of_the_score(name: str) -> None:
    likelihood, state = CASES[name]
    outputs, _ = normal_outputs(likelihood.num_outputs, seed=1)
    factor = likelihood.fisher_factor(HOST, outputs, state)
    for row in range(ROWS):
        f = outputs[row : row + 1]

        def squares(y: np.ndarray, f: np.ndarray = f) -> np.ndarray:
            rows = np.broadcast_to(f, (len(y), f.shape[1]))
            score = likelihood.unit_score(HOST, rows, y, state)
            p = np.exp(likelihood.unit_log_prob(HOST, rows, y, state))
            return np.einsum("n,nk,nl->kl", p, score, score)

        if name in DISCRETE:
            expected = squares(support(name))
        else:
            at = f[0, 0]
            pieces = [(-np.inf, at - 5), (at - 5, at), (at, at + 5), (at + 5, np.inf)]
            expected = sum(
                integrate.quad_vec(lambda y: squares(np.array([[y]])), *piece, epsabs=1e-12, epsrel=1e-11)[0]
                for piece in pieces
            )
        np.testing.assert_allclose(factor[row] @ factor[row].T, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", DISCRETE)
def test_probabilities_sum_to_one(name: str) -> None:
    likelihood, _ = CASES[name]
    outputs, _ = normal_outputs(likelihood.num_outputs, seed=2)
    total = sum(density(name, y, outputs) for y in support(name).ravel().astype(int))
    np.testing.assert_allclose(total, 1, rtol=1e-12)


def test_two_targets_of_a_student_t_share_their_scale() -> None:
    likelihood = bm.StudentT(num_outputs=2, degrees_of_freedom=3.0, scale=0.5)
    rng = np.random.default_rng(3)
    f, y = rng.standard_normal((ROWS, 2)), 3 * rng.standard_normal((ROWS, 2))
    expected = [
        stats.multivariate_t.logpdf(target, row, 0.25 * np.eye(2), df=3.0) for row, target in zip(f, y, strict=True)
    ]
    np.testing.assert_allclose(likelihood.unit_log_prob(HOST, f, y), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("likelihood", "y"),
    [
        (bm.HeteroscedasticGaussian(), np.array([[1e6], [-1e6]])),
        (bm.StudentT(scale=1e-6), np.array([[1e6], [-1e6]])),
        (bm.Poisson(), np.array([[0.0], [1e6]])),
        (bm.Ordinal(3), np.array([0, 2], np.int32)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Likelihood) else None,
)
@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_extreme_outputs_stay_finite(engine64: Engine, likelihood: Likelihood, y: np.ndarray, extreme: float) -> None:
    with engine64.scope():
        outputs = engine64.asarray(np.full((2, likelihood.num_outputs), extreme))
        state = type(likelihood.initial_state())(*map(engine64.asarray, likelihood.initial_state()))
        terms = likelihood.unit_terms(engine64, outputs, engine64.asarray(y), state)
        assert all(np.isfinite(engine64.to_numpy(term)).all() for term in terms)


@pytest.mark.parametrize("bounds", [LOG_VARIANCE_BOUNDS, LOG_RATE_BOUNDS])
def test_outputs_on_a_logarithmic_scale_keep_their_bounds_and_are_untouched_inside(bounds: tuple[float, float]) -> None:
    from bayesmlp.inference.likelihoods.bounds import bounded

    values = np.linspace(-100, 100, 2001)
    inside, slope = bounded(HOST, values, *bounds)
    assert inside.min() >= bounds[0]
    assert inside.max() <= bounds[1]
    assert (np.diff(inside) >= 0).all()
    np.testing.assert_allclose(slope[1:-1], (inside[2:] - inside[:-2]) / (values[2:] - values[:-2]), atol=2e-3)
    distance = np.minimum(values - bounds[0], bounds[1] - values)
    within = distance > 0
    assert (np.abs(inside - values)[within] <= np.exp(-distance)[within] + 1e-12).all()


def test_noise_of_a_millionth_is_representable() -> None:
    likelihood = bm.HeteroscedasticGaussian()
    variance = likelihood.variance(HOST, np.array([[0.0, np.log(1e-6)]]), ())
    np.testing.assert_allclose(variance, 1e-6, rtol=0.02)


# -- the predictive ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", CASES)
def test_predictive_log_prob_is_the_integral(name: str) -> None:
    likelihood, state = CASES[name]
    mean, covariance = normal_outputs(likelihood.num_outputs, seed=4)
    y = some_targets(name)
    expected = [expectation(mean[row], covariance[row], partial(density, name, y[row])) for row in range(ROWS)]
    got = likelihood.predictive_log_prob(HOST, mean, covariance, likelihood.prepare(y), state)
    np.testing.assert_allclose(np.exp(got), expected, rtol=2e-8)


@pytest.mark.parametrize("y", [0, 1, 40, 5000, 1_000_000])
@pytest.mark.parametrize(("mean", "variance"), [(0.0, 1.0), (3.0, 25.0), (8.0, 0.01), (-4.0, 9.0), (8.0, 100.0)])
def test_large_counts_are_integrated_where_their_mass_is(y: int, mean: float, variance: float) -> None:
    """Against adaptive quadrature around the mode of the integrand."""
    likelihood, targets = bm.Poisson(), np.array([[float(y)]])

    def log_integrand(f: Any) -> Any:
        outputs = np.reshape(f, (-1, 1, 1))
        return likelihood.log_prob(HOST, outputs, targets, ())[:, 0] + stats.norm.logpdf(f, mean, variance**0.5)

    grid = np.linspace(mean - 40 * variance**0.5 - 20, max(20.0, mean + 40 * variance**0.5), 400_001)
    at = grid[np.argmax(log_integrand(grid))]
    width = 1 / np.sqrt(np.exp(min(at, 19.0)) + 1 / variance)
    fine = np.unique(np.concatenate([np.linspace(at - 60 * width, at + 60 * width, 40_001), grid]))
    values = log_integrand(fine)
    expected = values.max() + np.log(integrate.trapezoid(np.exp(values - values.max()), fine))
    got = likelihood.predictive_log_prob(HOST, np.array([[mean]]), np.array([[[variance]]]), targets, ())
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("freedom", [1.5, 4.0, 30.0, 1e5])
@pytest.mark.parametrize("scale", [1e-5, 0.3, 20.0])
def test_a_student_t_is_integrated_however_narrow_it_is(freedom: float, scale: float) -> None:
    likelihood = bm.StudentT(degrees_of_freedom=freedom, scale=scale)
    y, mean, variance = 1.3, 0.2, 0.8
    pieces = np.unique(np.concatenate([[-12.0, 12.0], y + scale * np.array([-1e3, -30, -1, 0, 1, 30, 1e3])]))
    pieces = pieces[(pieces >= -12) & (pieces <= 12)]

    def integrand(f: float) -> float:
        return float(stats.t.pdf(y, freedom, f, scale) * stats.norm.pdf(f, mean, variance**0.5))

    expected = sum(
        integrate.quad(integrand, a, b, epsabs=0, epsrel=1e-10)[0] for a, b in zip(pieces[:-1], pieces[1:], strict=True)
    )
    outputs = np.array([[mean]]), np.array([[[variance]]])
    got = likelihood.predictive_log_prob(HOST, *outputs, np.array([[y]]), ())
    np.testing.assert_allclose(np.exp(got), expected, rtol=1e-7)


def test_gamma_nodes_have_the_moments_of_the_gamma_distribution() -> None:
    for shape in (0.6, 2.0, 50.0, 1e6):
        nodes, log_weights = log_gamma_nodes(shape)
        weights = np.exp(log_weights)
        np.testing.assert_allclose(weights @ np.exp(nodes), 1, rtol=1e-10)
        np.testing.assert_allclose(weights @ np.expm1(nodes) ** 2, 1 / shape, rtol=1e-8)


def test_two_targets_with_their_own_noise_are_integrated_as_well_as_by_monte_carlo() -> None:
    """Two log variances have quasi-random nodes: an error within the standard error of as many random draws."""
    likelihood = bm.HeteroscedasticGaussian(2)
    mean, covariance = normal_outputs(4, seed=5)
    y, draws = np.array([[0.5, -0.5]] * ROWS), 400_000
    noise = np.random.default_rng(6).standard_normal((draws, ROWS, 4))
    outputs = mean + np.einsum("nkl,snl->snk", np.linalg.cholesky(covariance), noise)
    each = np.exp(likelihood.log_prob(HOST, outputs, y, ()))
    tolerance = each.std(0) * (1 / 128**0.5 + 5 / draws**0.5)
    got = np.exp(likelihood.predictive_log_prob(HOST, mean, covariance, y, ()))
    np.testing.assert_array_less(np.abs(got - each.mean(0)), tolerance)
    moments = likelihood.predictive_moments(HOST, mean, covariance, ())
    np.testing.assert_allclose(moments.aleatoric, np.exp(outputs[..., 2:]).mean(0), rtol=0.02)


@pytest.mark.parametrize("name", CASES)
def test_moments_obey_the_law_of_total_variance(name: str) -> None:
    likelihood, state = CASES[name]
    mean, covariance = normal_outputs(likelihood.num_outputs, seed=7)
    got = likelihood.predictive_moments(HOST, mean, covariance, state)
    for row in range(ROWS):

        def average(function: Callable[[np.ndarray], np.ndarray], row: int = row) -> np.ndarray:
            return expectation(mean[row], covariance[row], function)

        expected = average(lambda f: likelihood.mean(HOST, f, state))
        square = average(lambda f: likelihood.mean(HOST, f, state) ** 2)
        np.testing.assert_allclose(got.mean[row], expected, rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(got.epistemic[row], square - expected**2, rtol=1e-7)
        np.testing.assert_allclose(
            got.aleatoric[row], average(lambda f: likelihood.variance(HOST, f, state)), rtol=1e-7
        )


# -- mixtures ---------------------------------------------------------------------------------------------------------
def single(name: str, seed: int, *, known: bool = False, scaling: Scaling | None = None) -> bm.Predictive:
    likelihood, state = CASES[name]
    mean, covariance = normal_outputs(likelihood.num_outputs, seed)
    units = Scaling.identity(2, likelihood.num_targets) if scaling is None else scaling
    method = "mean" if known else "linearized"
    return bm.Predictive.single(method, likelihood, units, mean, None if known else covariance, state)


WEIGHTS = np.array([0.2, 0.5, 0.3])


@pytest.fixture(params=[(name, known) for name in CASES for known in (False, True)], ids=str)
def mixed(request: pytest.FixtureRequest) -> tuple[str, list[bm.Predictive], bm.Predictive]:
    """Three components and their mixture."""
    name, known = request.param
    parts = [single(name, seed, known=known) for seed in (10, 11, 12)]
    return name, parts, bm.Predictive.mixture(parts, np.log(WEIGHTS))


def test_a_mixture_mixes_moments_and_densities(mixed: tuple[str, list[bm.Predictive], bm.Predictive]) -> None:
    name, parts, mixture = mixed
    means = np.stack([part.mean for part in parts])
    mean = np.tensordot(WEIGHTS, means, 1)
    within, between = (np.stack([getattr(part, field) for part in parts]) for field in ("epistemic_variance", "mean"))
    np.testing.assert_allclose(mixture.mean, mean, rtol=1e-12)
    epistemic = np.tensordot(WEIGHTS, within + (between - mean) ** 2, 1)
    np.testing.assert_allclose(mixture.epistemic_variance, epistemic, rtol=1e-10)
    aleatoric = np.tensordot(WEIGHTS, [part.aleatoric_variance for part in parts], 1)
    np.testing.assert_allclose(mixture.aleatoric_variance, aleatoric, rtol=1e-12)
    y = some_targets(name)
    densities = np.tensordot(WEIGHTS, [np.exp(part.log_prob(y)) for part in parts], 1)
    np.testing.assert_allclose(np.exp(mixture.log_prob(y)), densities, rtol=1e-12)
    if name == "ordinal":
        probabilities = np.tensordot(WEIGHTS, [part.probabilities for part in parts], 1)
        np.testing.assert_allclose(mixture.probabilities, probabilities, rtol=1e-12)
        assert (mixture.mutual_information > 0).all()
    assert len(mixture) == ROWS
    assert mixture.average_output.shape == (ROWS, mixture.likelihood.num_outputs)


def test_a_mixture_does_not_depend_on_how_its_rows_are_portioned(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [single("ordinal", seed) for seed in (10, 11)]
    whole, portions = (bm.Predictive.mixture(parts) for _ in range(2))
    expected = whole.mean
    monkeypatch.setattr("bayesmlp.predictive._AT_ONCE", 1)
    np.testing.assert_allclose(portions.mean, expected, rtol=1e-14)
    np.testing.assert_allclose(portions.log_prob([0, 1, 2]), whole.log_prob([0, 1, 2]), rtol=1e-14)


@pytest.mark.parametrize("q", [0.02, 0.5, 0.9])
def test_quantiles_cut_off_their_share(mixed: tuple[str, list[bm.Predictive], bm.Predictive], q: float) -> None:
    name, _, mixture = mixed
    got = mixture.quantile(q)

    def at(values: Any) -> np.ndarray:
        return np.exp(mixture.log_prob(np.broadcast_to(values, ROWS)))

    if name in DISCRETE:
        values = support(name).ravel().astype(int)
        table = np.stack([at(value) for value in values])
        for row in range(ROWS):
            assert table[values <= got[row], row].sum() >= q - 1e-9
            assert table[values < got[row], row].sum() < q
    else:
        below, _ = integrate.quad_vec(lambda t: at(got - t / (1 - t)) / (1 - t) ** 2, 0, 1, epsabs=1e-9, epsrel=1e-9)
        np.testing.assert_allclose(below, q, rtol=1e-6)


def test_draws_have_the_moments_of_the_mixture(mixed: tuple[str, list[bm.Predictive], bm.Predictive]) -> None:
    name, _, mixture = mixed
    draws = mixture.sample(20_000, seed=1)
    assert draws.shape == (20_000, ROWS)
    np.testing.assert_array_less(np.abs(draws.mean(0) - mixture.mean), 5 * mixture.std / 20_000**0.5)
    median = mixture.quantile(0.5)
    share = (draws <= median).mean(0)
    expected = 0.5 if name in CONTINUOUS else share.clip(0.5)
    np.testing.assert_array_less(np.abs(share - expected), 5 * 0.5 / 20_000**0.5)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_scaled_targets_move_and_stretch_the_distribution(name: str) -> None:
    plain = single(name, seed=10)
    scaled = single(name, seed=10, scaling=Scaling(np.zeros(2), np.ones(2), np.array([10.0]), np.array([4.0])))
    y = some_targets(name)
    np.testing.assert_allclose(scaled.mean, 10 + 4 * plain.mean, rtol=1e-12)
    np.testing.assert_allclose(scaled.std, 4 * plain.std, rtol=1e-12)
    np.testing.assert_allclose(scaled.quantile(0.3), 10 + 4 * plain.quantile(0.3), rtol=1e-9)
    np.testing.assert_allclose(scaled.log_prob(10 + 4 * y), plain.log_prob(y) - np.log(4), rtol=1e-10)
    np.testing.assert_allclose(scaled.sample(3, seed=2), 10 + 4 * plain.sample(3, seed=2), rtol=1e-12)


# -- every engine -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", CASES)
def test_engines_agree_on_the_predictive(engine64: Engine, name: str) -> None:
    likelihood, state = CASES[name]
    mean, covariance = normal_outputs(likelihood.num_outputs, seed=4)
    y = likelihood.prepare(some_targets(name))
    expected = likelihood.predictive_log_prob(HOST, mean, covariance, y, state)
    with engine64.scope():
        own = type(state)(*map(engine64.asarray, state))
        outputs = engine64.asarray(mean), engine64.asarray(covariance)
        got = engine64.to_numpy(likelihood.predictive_log_prob(engine64, *outputs, engine64.asarray(y), own))
    np.testing.assert_allclose(got, expected, rtol=TOLERANCE["float64"])


# -- what a batch fit learns ------------------------------------------------------------------------------------------
TRAINING = bm.TrainingOptions(epochs=300, batch_size=200, learning_rate=0.05)


def fitted(likelihood: Likelihood, x: np.ndarray, y: np.ndarray, engine: str) -> bm.BayesianMLP:
    prior = bm.NormalPrior(scale=10.0)
    model = bm.BayesianMLP(bm.MLP(()), likelihood, prior=prior, structure=bm.Full(), engine=engine, dtype="float64")
    return model.fit(x, y, method=bm.Laplace(TRAINING))


@pytest.mark.parametrize("engine", on("torch", "jax"))
def test_thresholds_are_learned_and_kept(engine: str) -> None:
    rng = np.random.default_rng(20)
    x, thresholds = make_inputs(2000, seed=21), np.array([-2.0, -1.5, 1.0])
    y = np.digitize(x @ [1.0, -0.5] + rng.logistic(size=2000), thresholds)
    model = fitted(bm.Ordinal(4), x, y, engine)
    weights = model.mean_weights()[0][:, 0]
    learned = np.asarray(model.to_arrays()["likelihood.0"]) - weights[-1]  # the bias moves all of them
    np.testing.assert_allclose(np.diff(learned), np.diff(thresholds), atol=0.25)
    np.testing.assert_allclose(model.predict(x).probabilities.mean(0), np.bincount(y) / 2000, atol=0.02)
    again = model.to_engine("numpy")
    np.testing.assert_allclose(again.predict(x[:3]).probabilities, model.predict(x[:3]).probabilities, rtol=1e-10)


@pytest.mark.parametrize("engine", on("torch"))
def test_outliers_do_not_move_a_student_t(engine: str) -> None:
    rng = np.random.default_rng(22)
    x = make_inputs(500, seed=23)
    clean = x @ [1.0, -0.5]
    y = clean + 0.1 * rng.standard_t(4, 500)
    y[:25] += 30.0
    robust, plain = (fitted(likelihood, x, y, engine) for likelihood in (bm.StudentT(), bm.Gaussian()))
    errors = [np.sqrt(np.mean((model.predict(x).mean - clean) ** 2)) for model in (robust, plain)]
    assert errors[0] < 0.05 < errors[1]
    scale = float(np.asarray(robust.to_arrays()["likelihood.0"])) * robust.scaling.target_scale[0]
    assert 0.05 < scale < 0.25  # a twentieth of outliers widens it


@pytest.mark.parametrize("engine", on("torch"))
def test_the_network_predicts_its_own_noise(engine: str) -> None:
    rng = np.random.default_rng(24)
    x = make_inputs(3000, seed=25)
    log_deviation = -1.0 + 0.8 * x[:, 0]
    y = 100 * (x @ [1.0, -0.5] + np.exp(log_deviation) * rng.standard_normal(3000))
    model = fitted(bm.HeteroscedasticGaussian(), x, y, engine)
    got = 0.5 * np.log(model.predict(x[:50]).aleatoric_variance) - np.log(100)
    np.testing.assert_allclose(got, log_deviation[:50], atol=0.15)


@pytest.mark.parametrize("engine", on("torch"))
def test_the_network_predicts_rates(engine: str) -> None:
    rng = np.random.default_rng(26)
    x = make_inputs(2000, seed=27)
    rate = np.exp(1 + x @ [0.5, -0.3])
    model = fitted(bm.Poisson(), x, rng.poisson(rate), engine)
    np.testing.assert_allclose(model.predict(x[:50]).mean, rate[:50], rtol=0.15)


def test_curvature_is_taken_at_the_learned_thresholds() -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install 'bayesmlp[torch]'")
    rng = np.random.default_rng(28)
    x = make_inputs(300, seed=29)
    y = np.digitize(x @ [1.0, -0.5] + rng.logistic(size=300), [-3.0, 2.0])
    likelihood = bm.Ordinal(3)
    model = fitted(likelihood, x, y, "torch")
    rows = np.concatenate([model.scaling.inputs(x), np.ones((300, 1))], axis=1)
    state = likelihood.restore_state((np.asarray(model.to_arrays()["likelihood.0"]),))
    factor = likelihood.fisher_factor(HOST, rows @ model.mean_weights()[0], state)
    fisher = np.einsum("nkr,nlr->nkl", factor, factor)[:, 0, 0]
    prior = model.prior.precision(((3, 1),))[0][:, 0]
    expected = np.linalg.inv(np.diag(prior) + rows.T @ (fisher[:, None] * rows))
    np.testing.assert_allclose(model.weight_variances()[0][:, 0], np.diag(expected), rtol=1e-8)


# -- what is refused and what is stored -------------------------------------------------------------------------------
BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: bm.HeteroscedasticGaussian(0), "HeteroscedasticGaussian.num_targets must be an integer of at least 1"),
    (lambda: bm.StudentT(0), "StudentT.num_outputs must be an integer of at least 1, got 0"),
    (lambda: bm.StudentT(degrees_of_freedom=1.0), "StudentT.degrees_of_freedom must be finite and above 1, got 1.0"),
    (lambda: bm.StudentT(scale=-1.0), "StudentT.scale must be positive and finite, got -1.0"),
    (lambda: bm.Ordinal(1), "Ordinal.num_levels must be an integer of at least 2, got 1"),
    (lambda: bm.Poisson().prepare([1.0, 2.5]), "y must be a whole number from 0 to 1e6, got 2.5"),
    (lambda: bm.Poisson().prepare([1, -1]), "y must be a whole number from 0 to 1e6, got -1"),
    (lambda: bm.Poisson().prepare([[1, 2]]), "y must be one count for each row, shape (rows,), got shape (1, 2)"),
    (lambda: bm.Ordinal(3).prepare([0, 3]), "y must be a level from 0 to 2, got 3"),
    (lambda: bm.Ordinal(3).prepare([0.0, 1.0]), "y must be integer levels, got dtype float64"),
    (lambda: bm.StudentT().prepare([0.0, np.nan]), "y must be finite, got nan"),
    (lambda: bm.HeteroscedasticGaussian(2).prepare([0.0, 1.0]), "y must be of shape (rows, 2), got shape (2,)"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_arguments_and_targets_are_refused_by_name(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InvalidInput) as error:
        call()
    assert message in str(error.value)


@pytest.mark.parametrize("name", CASES)
def test_descriptions_and_states_survive_storage(name: str) -> None:
    likelihood, _ = CASES[name]
    assert from_spec(to_spec(likelihood)) == likelihood
    model = bm.BayesianMLP(bm.MLP((3,)), likelihood, engine="numpy")
    x = make_inputs(6, seed=30)
    model.update(x, make_targets(likelihood, x, seed=31))
    again = bm.BayesianMLP.from_parts(model.spec(), model.to_arrays(), "numpy")
    assert type(again.posterior.likelihood) is type(model.posterior.likelihood)
    np.testing.assert_array_equal(again.predict(x).mean, model.predict(x).mean)


def test_a_known_scale_is_in_the_units_of_the_targets() -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install 'bayesmlp[torch]'")
    x = make_inputs(40, seed=32)
    model = bm.BayesianMLP(bm.MLP((3,)), bm.StudentT(scale=0.5, degrees_of_freedom=6.0), engine="torch")
    model.fit(x, 100 * np.sin(x[:, 0]), method=bm.Laplace(bm.TrainingOptions(epochs=2)))
    np.testing.assert_allclose(model.predict(x[:3]).aleatoric_variance, 0.25 * 6 / 4, rtol=1e-6)


# -- the noise of the newest rows -------------------------------------------------------------------------------------
def noise_after(engine: str, window: float | None, y: np.ndarray, batch: int = 1) -> tuple[float, float]:
    """Shape of the noise variance's posterior, and the variance, after a stream with a constant model."""
    model = bm.BayesianMLP(
        bm.MLP(()), bm.Gaussian(noise_window=window), structure=bm.Full(), engine=engine, dtype="float64",
        standardize=False,
    )  # fmt: skip
    for start in range(0, len(y), batch):
        model.update(np.zeros((len(y[start : start + batch]), 1)), y[start : start + batch])
    state = model.posterior.likelihood
    return float(state.shape), float(model.likelihood.dispersion(state))


@pytest.mark.parametrize("engine", on("numpy", "torch", "jax"))
@pytest.mark.parametrize("batch", [1, 7])
def test_a_noise_window_follows_the_newest_rows(engine: str, batch: int) -> None:
    rng = np.random.default_rng(0)
    y = np.concatenate([0.1 * rng.standard_normal(200), 2.0 * rng.standard_normal(200)])
    shape, variance = noise_after(engine, 50, y, batch)
    assert shape == pytest.approx(25)
    effective = 50  # rows; the estimate's relative standard deviation is (2 / 50)^½
    assert abs(np.log(variance / 4)) < 4 * np.sqrt(2 / effective)
    whole_shape, whole_variance = noise_after(engine, None, y, batch)
    assert whole_shape == pytest.approx(201)
    assert whole_variance < 0.65 * 4


def test_a_noise_window_that_is_not_full_changes_nothing() -> None:
    y = np.random.default_rng(1).standard_normal(30)
    assert noise_after("numpy", 100, y) == pytest.approx(noise_after("numpy", None, y), rel=1e-14)


def test_a_fit_is_worth_no_more_than_the_window_and_what_weighs_nothing_tells_nothing() -> None:
    pytest.importorskip("torch")
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((300, 2)), rng.standard_normal(300)
    model = bm.BayesianMLP(bm.MLP(()), bm.Gaussian(noise_window=50), structure=bm.Full(), engine="torch")
    whole = bm.BayesianMLP(bm.MLP(()), bm.Gaussian(), structure=bm.Full(), engine="torch")
    method = bm.Laplace(bm.TrainingOptions(epochs=5))
    for one in (model, whole):
        one.fit(x, y, method=method)
    assert float(model.posterior.likelihood.shape) == pytest.approx(25)
    dispersions = [float(one.likelihood.dispersion(one.posterior.likelihood)) for one in (model, whole)]
    assert dispersions[0] == pytest.approx(dispersions[1])
    before = model.to_arrays()
    assert model.update(x[:1], y[:1], weight=[0.0]).information == pytest.approx(0, abs=1e-6)
    after = model.to_arrays()
    assert all(np.allclose(before[name], after[name], rtol=1e-6, atol=0) for name in before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise_window": 2, "prior_shape": 0.5}, r"above 2 rows, got 2"),
        ({"noise_window": 10**400}, "must be finite"),
        ({"noise_window": 2}, r"Gaussian\.noise_window must be finite and above 2 rows, got 2"),
        ({"noise_window": True}, "got True"),
        ({"noise_window": np.inf}, "got inf"),
        ({"noise_window": "9"}, "got '9'"),
        ({"noise_window": 50, "noise_variance": 1.0}, "it does not go with noise_variance"),
        ({"num_outputs": 4, "noise_window": 0.5}, "above 0.5 rows"),
    ],
)
def test_noise_windows_that_hold_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        bm.Gaussian(**settings)
