"""Each structure's primitives against dense matrices, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import dense
import numpy as np
import pytest
from cases import BLOCKS, FRAMEWORKS, NETWORK, STRUCTURES, needs, random_arrays, relative_error, shapes_of
from scipy import linalg

import bayesmlp as bm
from bayesmlp.inference.engines import Engine, NumpyEngine, get_engine, map_arrays
from bayesmlp.inference.errors import InvalidInput
from bayesmlp.inference.structures import BufferedLowRank, Structure

EXACT = 1e-10
SHAPES = shapes_of(bm.Categorical(3))
RETENTION = 0.8


class Primitives(NamedTuple):
    """What a structure answers about two random posteriors, and the dense matrices behind them."""

    structure: Structure
    mean: np.ndarray
    precision: np.ndarray
    old_mean: np.ndarray
    old_precision: np.ndarray
    growth: Sequence[np.ndarray]
    answers: dict[str, Any]


@pytest.fixture(params=STRUCTURES, scope="module")
def structure(request: pytest.FixtureRequest) -> Structure:
    """Each structure in turn, resolved."""
    return STRUCTURES[request.param].resolve(NETWORK.num_layers)


@pytest.fixture(scope="module")
def primitives(structure: Structure, engine64: Engine) -> Primitives:
    """All primitives of a structure, compiled once."""
    engine = engine64
    new, old = (random_arrays(structure, SHAPES, seed) for seed in (40, 50))
    rng = np.random.default_rng(41)
    growth = tuple(rng.uniform(0.1, 1.0, shape) for shape in SHAPES)
    states = [structure.from_arrays(engine, arrays) for arrays in (new, old)]
    draw_shapes = structure.noise_shapes(states[0])
    sizes = [int(np.prod(shape)) for shape in draw_shapes]
    units = np.split(np.eye(sum(sizes)), np.cumsum(sizes)[:-1], axis=1)
    noise = tuple(
        engine.asarray(unit.reshape(-1, *shape)) for unit, shape in zip(units, draw_shapes, strict=True)
    )  # the identity: one sample for every single draw

    def answer(state: Any, other: Any, noise: Any, growth: Any) -> dict[str, Any]:
        shifted, own_precision = structure.natural(engine, state)
        return {
            "sample": structure.sample(engine, state, noise),
            "mean": structure.mean(state),
            "variance": structure.marginal_variance(engine, state),
            "log_determinant": structure.log_determinant(engine, state),
            "kl": structure.kl(engine, state, other),
            "kl_of_itself": structure.kl(engine, state, state),
            "natural": shifted,
            "natural_precision": own_precision,
            "transition": structure.transition(engine, state, other, RETENTION, growth),
        }

    answers = engine.jit(answer)(*states, noise, map_arrays(engine.asarray, growth))
    answers["transition"] = structure.to_arrays(engine, answers["transition"])
    return Primitives(
        structure,
        dense.mean(structure, new, SHAPES),
        dense.precision(structure, new, SHAPES),
        dense.mean(structure, old, SHAPES),
        dense.precision(structure, old, SHAPES),
        growth,
        map_arrays(engine.to_numpy, answers),
    )


def close(got: Any, expected: Any) -> None:
    np.testing.assert_allclose(got, expected, rtol=EXACT, atol=EXACT)


def test_samples_have_the_posterior_covariance_exactly(primitives: Primitives) -> None:
    samples = primitives.answers["sample"]
    linear_map = np.stack([dense.flatten([layer[s] for layer in samples]) for s in range(len(samples[0]))])
    linear_map = linear_map - primitives.mean  # θ - m is linear in the noise
    close(linear_map.T @ linear_map, np.linalg.inv(primitives.precision))


def test_mean(primitives: Primitives) -> None:
    close(dense.flatten(primitives.answers["mean"]), primitives.mean)


def test_marginal_variance(primitives: Primitives) -> None:
    close(dense.flatten(primitives.answers["variance"]), np.diag(np.linalg.inv(primitives.precision)))


def test_log_determinant(primitives: Primitives) -> None:
    close(primitives.answers["log_determinant"], np.linalg.slogdet(primitives.precision)[1])


def test_kl_is_the_gaussian_divergence(primitives: Primitives) -> None:
    expected = dense.gaussian_kl(primitives.mean, primitives.precision, primitives.old_mean, primitives.old_precision)
    assert expected > 1
    close(primitives.answers["kl"], expected)
    assert abs(primitives.answers["kl_of_itself"]) < EXACT


def test_natural_parameters(primitives: Primitives) -> None:
    close(dense.flatten(primitives.answers["natural"]), primitives.precision @ primitives.mean)
    own = primitives.answers["natural_precision"]
    close(dense_form(primitives.structure, own, SHAPES), primitives.precision)


def dense_form(structure: Structure, own: Any, shapes: dense.Shapes) -> np.ndarray:
    """A precision in the structure's own form, as ``natural`` gives it."""
    if isinstance(structure, bm.Diagonal):
        return np.diag(dense.flatten(own))
    if isinstance(structure, bm.Full):
        return np.asarray(own)
    if isinstance(structure, bm.LowRank | BufferedLowRank):
        diagonal, columns = own
        joined = np.concatenate([layer.reshape(len(layer), -1) for layer in columns], axis=1)
        return np.diag(dense.flatten(diagonal)) + joined.T @ joined
    if isinstance(structure, bm.Kronecker):
        inverses = [(np.kron(inputs, outputs), precision.reshape(-1, 1)) for inputs, outputs, precision in own]
        return linalg.block_diag(*(inverse.T @ (precision * inverse) for inverse, precision in inverses))
    assert isinstance(structure, bm.Blocks)
    size = sum(rows * columns for rows, columns in shapes)
    precision = np.zeros((size, size))
    for (part, layers), piece in zip(structure.parts, own, strict=True):
        where = dense.weight_indices(shapes, layers)
        precision[np.ix_(where, where)] = dense_form(part, piece, [shapes[layer] for layer in layers])
    return precision


def test_transition_relaxes_mean_and_covariance(primitives: Primitives) -> None:
    arrays = primitives.answers["transition"]
    growth = primitives.growth
    if isinstance(primitives.structure, bm.Kronecker):  # holds multiples of its prior's variances
        priors = [dense.kronecker_prior(arrays, layer) for layer in range(len(SHAPES))]
        growth = [np.mean(grown * prior) / prior for grown, prior in zip(growth, priors, strict=True)]
    expected_mean = RETENTION * primitives.mean + (1 - RETENTION) * primitives.old_mean
    close(dense.mean(primitives.structure, arrays, SHAPES), expected_mean)
    covariance = RETENTION**2 * np.linalg.inv(primitives.precision) + np.diag(dense.flatten(growth))
    close(dense.precision(primitives.structure, arrays, SHAPES), np.linalg.inv(covariance))


def test_storage_round_trip_through_every_framework(structure: Structure) -> None:
    original = arrays = random_arrays(structure, SHAPES, seed=60)
    for framework in FRAMEWORKS:
        if needs(framework).args[0]:
            continue
        engine = get_engine(framework, "float64")
        arrays = structure.to_arrays(engine, structure.from_arrays(engine, arrays))
    assert arrays.keys() == original.keys()
    for name, array in arrays.items():
        assert array.dtype == np.float64
        np.testing.assert_array_equal(array, original[name], err_msg=name)


def test_replace_mean_keeps_the_precision(structure: Structure) -> None:
    engine = NumpyEngine()
    arrays = random_arrays(structure, SHAPES, seed=61)
    mean = tuple(np.full(shape, float(i)) for i, shape in enumerate(SHAPES))
    replaced = structure.to_arrays(engine, structure.replace_mean(structure.from_arrays(engine, arrays), mean))
    np.testing.assert_array_equal(dense.mean(structure, replaced, SHAPES), dense.flatten(mean))
    close(dense.precision(structure, replaced, SHAPES), dense.precision(structure, arrays, SHAPES))


def test_scaled_multiplies_the_precision(structure: Structure, engine64: Engine) -> None:
    """Also what is still to be settled of it."""
    engine, arrays = engine64, random_arrays(structure, SHAPES, seed=67)

    def scale(state: Any) -> tuple[Any, ...]:
        scaled = structure.scaled(engine, state, 2.5)
        if not isinstance(structure, bm.Kronecker):
            return scaled, scaled, state
        return (
            scaled,
            structure.settle(engine, scaled),
            structure.settle(engine, state),
        )

    states = engine.jit(scale)(structure.from_arrays(engine, arrays))
    scaled, settled, before = (structure.to_arrays(engine, state) for state in states)
    np.testing.assert_array_equal(dense.mean(structure, scaled, SHAPES), dense.mean(structure, arrays, SHAPES))
    close(dense.precision(structure, scaled, SHAPES), 2.5 * dense.precision(structure, arrays, SHAPES))
    close(dense.precision(structure, settled, SHAPES), 2.5 * dense.precision(structure, before, SHAPES))


def test_the_unconstrained_form_and_back(structure: Structure, engine64: Engine) -> None:
    engine, arrays = engine64, random_arrays(structure, SHAPES, seed=68)
    state = structure.from_arrays(engine, arrays)
    if isinstance(structure, bm.Kronecker):
        with pytest.raises(InvalidInput, match=r"structure Kronecker\(\) has no unconstrained form"):
            structure.unconstrained(engine, state)
        return
    with engine.scope():
        free = structure.unconstrained(engine, state)
        back = structure.to_arrays(engine, structure.constrained(engine, free))
        moved = structure.constrained(engine, map_arrays(lambda a: a - 3, free))
    if isinstance(structure, BufferedLowRank):  # all is folded in
        close(dense.mean(structure, back, SHAPES), dense.mean(structure, arrays, SHAPES))
        close(dense.precision(structure, back, SHAPES), dense.precision(structure, arrays, SHAPES))
    else:
        for name, array in arrays.items():
            close(back[name], array)
    precision = dense.precision(structure, structure.to_arrays(engine, moved), SHAPES)
    assert np.linalg.eigvalsh(precision).min() > 0


@pytest.mark.parametrize("size", [3, 1000])
def test_a_scaled_subnetwork(size: int) -> None:
    structure, engine = bm.Subnetwork(size), NumpyEngine()
    state = structure.initial(engine, *(tuple(np.full(shape, value) for shape in SHAPES) for value in (0.3, 2.0)))
    scaled = structure.scaled(engine, state, 2.5)
    expected = tuple(variance / 2.5 for variance in structure.marginal_variance(engine, state))
    close(dense.flatten(structure.marginal_variance(engine, scaled)), dense.flatten(expected))
    with pytest.raises(InvalidInput, match="has no unconstrained form"):
        structure.unconstrained(engine, state)


# -- forgetting -------------------------------------------------------------------------------------------------------
@pytest.fixture
def learned(structure: Structure) -> tuple[Any, Any, Any]:
    """A prior of unequal precisions, and a posterior that is sharper than it in every direction."""
    engine = NumpyEngine()
    rng = np.random.default_rng(62)
    prior_precision = tuple(np.exp(rng.standard_normal(shape)) for shape in SHAPES)
    prior = structure.initial(engine, tuple(np.ones(shape) for shape in SHAPES), prior_precision)
    x = rng.standard_normal((5, 2))
    _, factors = NETWORK.factors(engine, structure.mean(prior), x)
    posterior = structure.add_precision(engine, prior, factors, np.tile(2 * np.eye(3), (5, 1, 1)))
    moved = structure.replace_mean(posterior, tuple(rng.standard_normal(shape) for shape in SHAPES))
    return engine, prior, moved


def test_forgetting_ends_at_the_prior_and_never_passes_it(structure: Structure, learned: Any) -> None:
    engine, prior, state = learned
    prior_arrays = structure.to_arrays(engine, prior)
    prior_covariance = np.linalg.inv(dense.precision(structure, prior_arrays, SHAPES))
    retention = bm.Forgetting(0.8).retention(1.0)
    growth = tuple((1 - retention**2) * v for v in structure.marginal_variance(engine, prior))
    for step in range(110):
        arrays = structure.to_arrays(engine, state)
        covariance = linalg.inv(dense.precision(structure, arrays, SHAPES))
        room = np.linalg.eigvalsh(prior_covariance - covariance).min()
        assert room > -1e-12, f"the variance exceeds the prior's after {step} steps"
        state = structure.transition(engine, state, prior, retention, growth)
    arrays = structure.to_arrays(engine, state)
    close(dense.mean(structure, arrays, SHAPES), dense.mean(structure, prior_arrays, SHAPES))
    close(dense.precision(structure, arrays, SHAPES), np.linalg.inv(prior_covariance))


def test_two_steps_of_forgetting_are_one_of_twice_the_time(structure: Structure, learned: Any) -> None:
    engine, prior, state = learned
    variances = structure.marginal_variance(engine, prior)

    def relaxed(state: Any, elapsed: float) -> Any:
        retention = bm.Forgetting(0.9).retention(elapsed)
        return structure.transition(engine, state, prior, retention, tuple((1 - retention**2) * v for v in variances))

    once, twice = relaxed(state, 3.0), relaxed(relaxed(state, 1.0), 2.0)
    first, second = structure.to_arrays(engine, once), structure.to_arrays(engine, twice)
    close(dense.mean(structure, first, SHAPES), dense.mean(structure, second, SHAPES))
    close(dense.precision(structure, first, SHAPES), dense.precision(structure, second, SHAPES))


@pytest.mark.parametrize("factor", [0.0, -0.5, 1.5, float("nan")])
def test_forgetting_refuses_factors_that_would_not_forget(factor: float) -> None:
    with pytest.raises(InvalidInput, match=r"Forgetting\.factor must be in \(0, 1\]"):
        bm.Forgetting(factor)


# -- float32 ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("structure", [*STRUCTURES.values(), bm.LowRank(10)], ids=[*STRUCTURES, "low_rank_10"])
def test_output_variances_survive_many_precise_events_in_float32(structure: Structure) -> None:
    """The variance left in a well-known direction is a small difference of large terms, unless computed with care."""
    likelihood = bm.Gaussian(noise_variance=1e-4)
    rng = np.random.default_rng(63)
    model = bm.BayesianMLP(NETWORK, likelihood, structure=structure, engine="numpy", dtype="float32")
    for _ in range(60):
        x = rng.standard_normal((16, 2))
        model.update(x, np.sin(x[:, 0]))
    exact = bm.BayesianMLP.from_parts(model.spec() | {"dtype": "float64"}, model.to_arrays(), "numpy")
    x = rng.standard_normal((200, 2))
    got, expected = (m.predict(x).epistemic_variance for m in (model, exact))
    assert expected.min() > 0
    assert got.min() > 0
    np.testing.assert_allclose(np.sqrt(got), np.sqrt(expected), rtol=0.01)
    variances = dense.flatten(model.weight_variances())
    np.testing.assert_allclose(np.sqrt(variances), np.sqrt(dense.flatten(exact.weight_variances())), rtol=0.01)


# -- which layers a block holds ---------------------------------------------------------------------------------------
def test_blocks_resolve_names_layers_from_either_end() -> None:
    resolved = bm.Blocks(((bm.Full(), (-1,)), (bm.Diagonal(), "rest"))).resolve(3)
    assert resolved == bm.Blocks(((bm.Full(), (2,)), (bm.Diagonal(), (0, 1))))
    assert bm.LastLayer(bm.LowRank(2)).resolve(3) == bm.Blocks(((bm.Diagonal(), (0, 1)), (bm.LowRank(2), (2,))))


def test_blocks_resolve_drops_an_empty_rest() -> None:
    assert bm.LastLayer(bm.LowRank(2), bm.Diagonal()).resolve(1) == bm.LowRank(2)
    assert BLOCKS.resolve(3) == BLOCKS


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((), r"Blocks\.parts must name every layer once"),
        (((bm.Full(), (0, 0)),), r"Blocks\.parts must name every layer once, got \[\(0, 0\)\]"),
        (((bm.Full(), (0,)), (bm.Diagonal(), (0,))), r"must name every layer once"),
        (((bm.Full(), "rest"), (bm.Diagonal(), "rest")), r"must name every layer once"),
    ],
)
def test_blocks_refuse_layers_named_twice(parts: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        bm.Blocks(parts)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (((bm.Full(), (0,)),), r"must name each of the layers 0 to 2 once, got \[\(0,\)\]"),
        (((bm.Full(), (3,)), (bm.Diagonal(), "rest")), r"names layers \(3,\) of a network of 3 layers"),
        (((bm.Full(), (-4,)), (bm.Diagonal(), "rest")), r"names layers \(-4,\) of a network of 3 layers"),
        (((bm.Full(), (2, -1)), (bm.Diagonal(), "rest")), r"must name each of the layers 0 to 2 once"),
    ],
)
def test_blocks_refuse_layers_that_are_not_there(parts: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        bm.Blocks(parts).resolve(3)


def test_low_rank_refuses_no_rank() -> None:
    with pytest.raises(InvalidInput, match=r"LowRank\.rank must be an integer of at least 1, got 0"):
        bm.LowRank(0)


def test_output_covariance_is_the_dense_one(structure: Structure, engine64: Engine) -> None:
    arrays = random_arrays(structure, SHAPES, seed=64)
    layers = dense.split(dense.mean(structure, arrays, SHAPES), SHAPES)
    x = np.random.default_rng(65).standard_normal((3, 2))
    jac = dense.jacobian("tanh", layers, x).reshape(9, -1)
    expected = jac @ np.linalg.inv(dense.precision(structure, arrays, SHAPES)) @ jac.T

    def covariances(state: Any, x: Any) -> tuple[Any, ...]:
        _, factors = NETWORK.factors(engine64, structure.mean(state), x)
        prepared = structure.prepare(engine64, state, NETWORK.num_layers - 1)
        return (
            structure.output_covariance(engine64, state, factors, joint=True),
            structure.output_covariance(engine64, state, factors),
            structure.predictive_covariance(engine64, state, factors),
            structure.predictive_covariance(engine64, prepared, factors),
            structure.predictive_variance(engine64, state, factors),
            structure.predictive_variance(engine64, prepared, factors),
        )

    got = engine64.jit(covariances)(structure.from_arrays(engine64, arrays), engine64.asarray(x))
    joint, *own, variance, prepared_variance = map_arrays(engine64.to_numpy, got)
    assert relative_error(joint, expected) < EXACT
    blocks = np.einsum("nknl->nkl", expected.reshape(3, 3, 3, 3))
    for covariance in own:
        assert relative_error(covariance, blocks) < EXACT
    for diagonal in (variance, prepared_variance):
        assert relative_error(diagonal, np.einsum("nkk->nk", blocks)) < EXACT


def test_a_model_prepares_its_answers_and_forgets_them_with_the_posterior() -> None:
    """Few enough weights in the last layer for some hundred inputs to pay; enough inputs for several stripes."""
    structure = bm.LastLayer(bm.Full(), bm.Point())
    model = bm.BayesianMLP(bm.MLP((70,)), bm.Gaussian(2, noise_variance=0.3), structure=structure, engine="numpy")
    x = np.random.default_rng(66).standard_normal((200, 2))
    for _ in range(2):
        model.update(x[:5], np.sin(x[:5]))
        before = [model.predict(x).output_covariance, model.output_variance(x)]
        for _ in range(2):
            model.predict(x)
        after = [model.predict(x).output_covariance, model.output_variance(x)]
        for first, second in zip(before, after, strict=True):  # 400 inputs do not pay for 142 weights, 600 do
            assert not np.array_equal(first, second), "nothing was prepared"
            assert relative_error(second, first) < 1e-5
        assert relative_error(after[1], np.einsum("nkk->nk", after[0][0])) < 1e-5
