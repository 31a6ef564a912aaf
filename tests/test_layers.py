"""Networks of the user's own: factors against automatic differentiation, updates against dense algebra, storage."""

from __future__ import annotations

import importlib
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import needs, on, relative_error
from test_packaging import run_python

import bayesmlp as bm
from bayesmlp.inference.engines import NumpyEngine, get_engine, map_arrays
from bayesmlp.inference.errors import InvalidInput
from bayesmlp.inference.factors import LayerFactors, SharedFactors
from bayesmlp.layers.base import ModuleNetwork
from bayesmlp.layers.probe import _find

CASES = [
    *(("torch", n) for n in ("conv", "transformer", "transformer, positions first", "graph", "residual")),
    *(("jax", name) for name in ("conv", "attention", "merged")),
]
HOMES = {"torch": "torch", "jax": "flax"}
ROWS = 3
TRAINING = bm.TrainingOptions(steps=60, batch_size=16, learning_rate=1e-2)


class Own:
    """A module of the user's, its layers' home, and data for it."""

    def __init__(self, framework: str, name: str) -> None:
        self.framework, self.name = framework, name
        self.modules: Any = importlib.import_module(f"modules_{HOMES[framework]}")
        self.home: Any = importlib.import_module(f"bayesmlp.layers.{HOMES[framework]}")
        self.case = self.modules.CASES[name]

    def module(self, seed: int = 0) -> Any:
        return self.modules.build(self.name, seed)

    def network(self, layers: Any = "all", **options: Any) -> ModuleNetwork:
        made: ModuleNetwork = self.home.bayesianize(
            self.module(), self.case.input_shape, layers=layers, num_tokens=self.case.num_tokens, **options
        )
        return made

    def inputs(self, rows: int, seed: int = 1) -> np.ndarray:
        rng = np.random.default_rng(seed)
        if self.case.num_tokens is not None:
            return rng.integers(0, self.case.num_tokens, (rows, *self.case.input_shape))
        return rng.standard_normal((rows, *self.case.input_shape))

    def labels(self, x: np.ndarray) -> np.ndarray:
        flat = x.reshape(len(x), -1)
        return (flat[:, 0] > np.median(flat[:, 0])).astype(int) + (flat[:, 1] > np.median(flat[:, 1]))

    def outputs(self, module: Any, x: np.ndarray) -> np.ndarray:
        """What the user's own module says, in evaluation mode."""
        module.eval()
        if self.framework == "torch":
            import torch

            given = torch.tensor(x) if x.dtype.kind == "i" else torch.tensor(x, dtype=torch.float32)
            return module(given).detach().numpy()
        return np.asarray(module(np.asarray(x, np.int32 if x.dtype.kind == "i" else np.float32)))


@pytest.fixture(params=[pytest.param(case, marks=needs(case[0]), id=f"{case[0]} {case[1]}") for case in CASES])
def own(request: pytest.FixtureRequest) -> Own:
    return Own(*request.param)


def brute_force(network: ModuleNetwork, framework: str, weights: tuple[np.ndarray, ...], x: np.ndarray) -> list[Any]:
    """Jacobian (N, K, P) of the outputs with respect to each Bayesian layer's matrix, by the framework itself."""
    engine = get_engine(framework, "float64")
    with engine.scope():
        given = tuple(engine.asarray(w) for w in weights)
        rows = engine.asarray(x)
        count = len(network.layers)
        if framework == "torch":
            import torch

            with torch.enable_grad():
                blocks = torch.autograd.functional.jacobian(
                    lambda *m: network.apply(engine, (*m, *given[count:]), rows), given[:count]
                )
        else:
            import jax

            # Flax computes embeddings in float32, whose rounding depends on what is a constant: nothing is one here.
            derivative = jax.jacrev(lambda m, rest, x: network.apply(engine, (*m, *rest), x))
            blocks = jax.jit(derivative)(given[:count], given[count:], rows)
        return [engine.to_numpy(block).reshape(*block.shape[:2], -1) for block in blocks]


def flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1).astype(np.float64)


# -- the module as a function -----------------------------------------------------------------------------------------
def test_the_network_says_what_the_module_says(own: Own) -> None:
    network, x = own.network(), own.inputs(ROWS)
    model = bm.BayesianMLP(network, bm.Categorical(3))
    model.start_from_prior()
    answer = model.predict(x, method="mean")
    assert relative_error(answer.average_output, own.outputs(own.module(), x)) < 1e-5


def test_factors_are_the_jacobian_of_automatic_differentiation(own: Own) -> None:
    network, x = own.network(), flat(own.inputs(ROWS))
    engine = get_engine(own.framework, "float64")
    weights = network.initialise(x.shape[1], 3, 0)
    arguments = map_arrays(engine.asarray, (weights, x))
    left = np.random.default_rng(3).standard_normal((ROWS, 3, 2))

    def contract(weights: Any, x: Any, left: Any) -> Any:
        outputs, factors = network.factors(engine, weights, x)
        _, turned = network.factors(engine, weights, x, lambda f: left + 0 * f[:, :, None])
        kept = [(f.dense(engine), t.dense(engine)) for f, t in zip(factors, turned, strict=True) if f is not None]
        return outputs, kept

    outputs, kept = engine.jit(contract)(*arguments, engine.asarray(left))
    assert relative_error(engine.to_numpy(outputs), model_outputs(network, own.framework, weights, x)) < 1e-12
    assert len(kept) == len(network.layers) == sum(method is not None for method in network.layer_methods)
    for (plain, turned), jacobian in zip(kept, brute_force(network, own.framework, weights, x), strict=True):
        assert np.abs(jacobian).max() > 1e-3
        assert relative_error(engine.to_numpy(plain), jacobian) < 1e-10
        assert relative_error(engine.to_numpy(turned), np.einsum("nkr,nkp->nrp", left, jacobian)) < 1e-10


def test_layers_that_rows_pass_once_stay_cheap() -> None:
    pytest.importorskip("torch")
    engine = get_engine("torch")
    for name, kinds in {
        "conv": [LayerFactors, LayerFactors],
        "transformer": [SharedFactors, SharedFactors, LayerFactors],
        "graph": [SharedFactors, SharedFactors],
    }.items():
        own = Own("torch", name)
        network, x = own.network(), flat(own.inputs(ROWS))
        with engine.scope():
            weights = tuple(engine.asarray(w) for w in network.initialise(x.shape[1], 3, 0))
            factors = network.factors(engine, weights, engine.asarray(x))[1]
        assert [type(f) for f in factors if f is not None] == kinds


def test_shared_factors_contract_as_their_dense_rows() -> None:
    engine, rng = NumpyEngine(), np.random.default_rng(0)
    f = SharedFactors(rng.standard_normal((3, 4, 5)), rng.standard_normal((3, 2, 4, 6)))
    jacobian = np.einsum("nti,nkto->nkio", f.inputs, f.rows)
    residual, left = rng.standard_normal((3, 2)), rng.standard_normal((3, 2, 7))
    variance, directions = rng.uniform(0.5, 2, (5, 6)), rng.standard_normal((8, 5, 6))

    def summed(pair: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        return pair[0].T @ pair[1]

    joint = np.einsum("nkio,io,mlio->nkml", jacobian, variance, jacobian)
    for got, expected in (
        (f.dense(engine), jacobian.reshape(3, 2, 30)),
        (f.left_multiply(left).dense(engine), np.einsum("nkr,nkio->nrio", left, jacobian).reshape(3, 7, 30)),
        (summed(f.pull_back(residual)), np.einsum("nk,nkio->io", residual, jacobian)),
        (summed(f.squares(engine)), np.einsum("nkio,nkio->io", jacobian, jacobian)),
        (f.gram(engine, variance, joint=True), joint.reshape(6, 6)),
        (f.gram(engine, variance, joint=False), np.einsum("nknl->nkl", joint)),
        (f.push_forward(engine, directions), np.einsum("nkio,rio->nkr", jacobian, directions)),
    ):
        assert relative_error(got, expected) < 1e-13


# -- Bayes ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("structure", [bm.Full(), bm.Diagonal(), bm.LastLayer()], ids=["full", "diagonal", "blocks"])
def test_an_update_is_the_dense_one(own: Own, structure: Any) -> None:
    noise_variance = 0.3
    network, x = own.network(), own.inputs(ROWS)
    likelihood = bm.Gaussian(num_outputs=3, noise_variance=noise_variance)
    model = bm.BayesianMLP(network, likelihood, structure=structure, dtype="float64")
    model.start_from_prior()
    start = model.mean_weights()
    y = np.random.default_rng(4).standard_normal((ROWS, 3))
    model.update(x, y)

    count = len(network.layers)
    jacobian = np.concatenate(brute_force(network, own.framework, start, flat(x)), axis=2).reshape(ROWS * 3, -1)
    before = np.concatenate([p.ravel() for p in network.prior_precision(model.prior, x[0].size, 3)[:count]])
    covariance = jacobian @ (jacobian / before).T + noise_variance * np.eye(ROWS * 3)
    error = (y - model_outputs(network, own.framework, start, x)).ravel()
    mean = np.concatenate([w.ravel() for w in start[:count]]) + (jacobian / before).T @ np.linalg.solve(
        covariance, error
    )
    after = np.diag(before) + jacobian.T @ jacobian / noise_variance
    sizes = [layer.matrix.size for layer in network.layers]
    last = np.arange(len(mean)) >= sum(sizes[:-1])
    kept = np.eye(len(mean), dtype=bool)  # of the precision, what the structure can hold
    if isinstance(structure, bm.Full):
        kept[:] = True
    elif not isinstance(structure, bm.Diagonal):
        kept |= np.outer(last, last)
    variances = np.diag(np.linalg.inv(np.where(kept, after, 0)))
    assert relative_error(np.concatenate([w.ravel() for w in model.mean_weights()[:count]]), mean) < 1e-9
    assert relative_error(np.concatenate([v.ravel() for v in model.weight_variances()[:count]]), variances) < 1e-9
    for point, old, variance in zip(
        model.mean_weights()[count:], start[count:], model.weight_variances()[count:], strict=True
    ):
        assert np.array_equal(point, old)
        assert not variance.any()


def model_outputs(network: ModuleNetwork, framework: str, weights: Any, x: np.ndarray) -> np.ndarray:
    engine = get_engine(framework, "float64")
    apply = engine.jit(lambda weights, x: network.apply(engine, weights, x))
    return engine.to_numpy(apply(tuple(engine.asarray(w) for w in weights), engine.asarray(flat(x))))


def test_sampled_networks_are_the_network_at_sampled_weights(own: Own) -> None:
    network, x = own.network(), flat(own.inputs(ROWS))
    weights = network.initialise(x.shape[1], 3, 0)
    rng, count = np.random.default_rng(5), len(network.layers)
    drawn = tuple(w + 0.1 * rng.standard_normal((4, *w.shape)) for w in weights[:count])
    got = model_outputs(network, own.framework, (*drawn, *weights[count:]), x)
    for sample in range(4):
        mixed = (*(d[sample] for d in drawn), *weights[count:])
        assert relative_error(got[sample], model_outputs(network, own.framework, mixed, x)) < 1e-12


# -- fit, store, update, reload ---------------------------------------------------------------------------------------
RELOAD = """
import json, sys
import numpy as np
import bayesmlp as bm
from modules_{home} import build
model = bm.load(sys.argv[1], "mine", network=build({name!r}, seed=99))
x = np.array(json.loads(sys.argv[2]))
print(json.dumps([model.predict(x).probabilities.tolist(), model.predict(x, method="samples").mean.tolist()]))
"""


STRUCTURES = {"conv": None, "transformer": bm.LastLayer(hidden=bm.LowRank(3)), "graph": bm.Full(), "attention": None}


@pytest.mark.parametrize(
    ("framework", "name"),
    [
        pytest.param("torch", "conv", marks=needs("torch")),
        pytest.param("torch", "transformer", marks=needs("torch")),
        pytest.param("torch", "graph", marks=needs("torch")),
        pytest.param("jax", "conv", marks=needs("jax")),
        pytest.param("jax", "attention", marks=[needs("jax"), pytest.mark.slow]),  # compiled by two processes
    ],
)
def test_a_module_is_fitted_stored_taught_and_reloaded_in_a_fresh_process(
    framework: str, name: str, tmp_path: Path
) -> None:
    own = Own(framework, name)
    module, x = own.module(), own.inputs(80)
    y, before = own.labels(x), own.outputs(module, x)
    network = own.home.bayesianize(module, own.case.input_shape, layers="all", num_tokens=own.case.num_tokens)
    model = bm.BayesianMLP(network, bm.Categorical(3), structure=STRUCTURES[name])
    model.fit(x[:64], y[:64], method=bm.AsMarked(TRAINING))
    assert model.history[-1] < model.history[0]
    assert np.array_equal(own.outputs(module, x), before)  # the user's own module is as it was

    with bm.open_store(tmp_path / "store.db") as store:
        store.publish("mine", model)
        with bm.OnlineUpdater(store, "mine", network=module, snapshot_every=4) as updater:
            for row, label in zip(x[64:70], y[64:70], strict=True):
                assert updater.observe(row, label).status == "applied"
            answer = updater.predict(x[70])
            updater.feedback(answer.prediction_id, y[70], event_id="late")
            updater.observe_many(x[71:73], y[71:73])
            taught = updater.digest()
            updater.observe(x[73], (y[73] + 1) % 3, event_id="wrong")
            updater.retract(["wrong"])
            assert updater.digest() == taught
            expected = updater.model.predict(x[74:]).probabilities
            samples = updater.model.predict(x[74:], method="samples").mean
        assert np.abs(expected - model.predict(x[74:]).probabilities).max() > 1e-4  # it has learned
        again = bm.load(store, "mine", network=module)
        assert np.array_equal(again.predict(x[74:]).probabilities, expected)
    program = RELOAD.format(home=HOMES[framework], name=name)
    given = json.dumps(x[74:].tolist())
    here = Path(__file__).parent
    (tmp_path / "program.py").write_text(f"import sys\nsys.path.insert(0, {str(here)!r})\n{program}")
    printed = run_python("program.py", "store.db", given, cwd=tmp_path)
    got, drawn = json.loads(printed)
    assert np.array_equal(np.array(got), expected)
    assert np.array_equal(np.array(drawn), samples)


@needs("torch")
def test_forgetting_leaves_points_where_they_are() -> None:
    own = Own("torch", "conv")
    model = bm.BayesianMLP(own.network(), bm.Categorical(3), dynamics=bm.Forgetting(0.9))
    x = own.inputs(4)
    model.update(x, own.labels(x))
    known = model.weight_variances()
    model.update(x[:1], [0], weight=0.0, elapsed=1000.0)
    prior = model.network.prior_precision(model.prior, 16, 3)
    for before, after, precision in zip(known[:2], model.weight_variances()[:2], prior[:2], strict=True):
        assert relative_error(after, 1 / precision) < 1e-3  # all is forgotten
        assert before.mean() < after.mean()
    start = model.network.initialise(16, 3, 0)
    assert all(np.allclose(a, b, rtol=1e-6) for a, b in zip(model.mean_weights()[2:], start[2:], strict=True))


def test_bayesian_layers_may_be_all_that_is_trained(own: Own) -> None:
    network = own.network("last", train="bayesian")
    x = own.inputs(32)
    start = network.initialise(x[0].size, 3, 0)
    model = bm.BayesianMLP(network, bm.Categorical(3)).fit(x, own.labels(x), method=bm.Laplace(TRAINING))
    moved = [not np.allclose(a, b, atol=1e-6) for a, b in zip(model.mean_weights(), start, strict=True)]
    assert moved == [True] + [False] * (len(start) - 1)


def test_the_rest_is_trained_and_constants_are_not(own: Own) -> None:
    network = own.network("last")
    x = own.inputs(32)
    model = bm.BayesianMLP(network, bm.Categorical(3)).fit(x, own.labels(x), method=bm.Laplace(TRAINING))
    points = network.skeleton.parameters
    for parameter, after in zip(points, model.mean_weights()[1:], strict=True):
        moved = not np.allclose(after, parameter.value, atol=1e-6)
        # a variational layer that is left a point has deviations that nothing uses, and keys' biases shift no attention
        assert moved == parameter.trained or "deviation" in parameter.name or "key.bias" in parameter.name
    assert own.name != "conv" or sum(not p.trained for p in points) == 2  # the batch normalisation's mean and variance


@pytest.mark.parametrize("train", ["all", "bayesian"])
def test_another_start_is_the_modules_weights_in_another_order(own: Own, train: str) -> None:
    network = own.network("last", train=train)
    size = own.inputs(1)[0].size
    first, other, again, third = (network.initialise(size, 3, 0), *(network.restart(size, 3, s) for s in (1, 1, 2)))
    assert network.layers[0].bias
    np.testing.assert_array_equal(np.sort(other[0][:-1], axis=None), np.sort(first[0][:-1], axis=None))
    np.testing.assert_array_equal(np.sort(other[0][-1]), np.sort(first[0][-1]))
    assert not np.array_equal(other[0], first[0])
    assert not np.array_equal(other[0], third[0])
    for a, b, c, parameter in zip(first[1:], other[1:], again[1:], network.skeleton.parameters, strict=True):
        np.testing.assert_array_equal(b, c)
        np.testing.assert_array_equal(b == 0, a == 0)
        np.testing.assert_array_equal(np.sort(b, axis=None), np.sort(a, axis=None))
        stays = train == "bayesian" or not parameter.trained or len(np.unique(a[a != 0])) < 2
        assert np.array_equal(b, a) == stays


@pytest.mark.parametrize("framework", on("torch", "jax"))
def test_members_of_an_ensemble_start_apart_and_the_first_at_the_module(framework: str) -> None:
    own = Own(framework, "conv")
    network, x = own.network("last"), own.inputs(32)
    still = bm.Laplace(bm.TrainingOptions(epochs=1, batch_size=32, learning_rate=1e-30))
    model = bm.BayesianMLP(network, bm.Categorical(3), structure=bm.Diagonal())
    model.fit(x, own.labels(x), method=bm.Ensemble(still, members=3))
    learned = model.mean_weights()
    mixed = bm.BayesianMLP(network, bm.Categorical(3), structure=bm.Mixture(bm.Diagonal(), 3))
    mixed.start_from_prior()
    starts = [network.initialise(16, 3, 0), network.restart(16, 3, 1), network.restart(16, 3, 2)]
    for got in (learned, mixed.mean_weights()):
        for index, layer in enumerate(got):
            for member in range(3):
                np.testing.assert_allclose(layer[member], starts[member][index], rtol=1e-6, atol=1e-29)


@needs("torch")
def test_frozen_parameters_are_constants_and_may_be_frozen_to_serve(tmp_path: Path) -> None:
    own = Own("torch", "conv")
    module = own.module()
    module.conv.weight.requires_grad_(False)
    network = own.home.bayesianize(module, own.case.input_shape)
    x = own.inputs(32)
    model = bm.BayesianMLP(network, bm.Categorical(3)).fit(x, own.labels(x), method=bm.Laplace(TRAINING))
    after = dict(zip((p.name for p in network.skeleton.parameters), model.mean_weights()[1:], strict=True))
    np.testing.assert_array_equal(after["conv.weight"], module.conv.weight.numpy())
    assert not np.allclose(after["conv.bias"], module.conv.bias.detach().numpy(), atol=1e-6)
    assert module.conv.bias.requires_grad
    with bm.open_store(tmp_path / "store.db") as store:
        store.publish("image", model)
        served = bm.load(store, "image", network=own.module().requires_grad_(False))
    np.testing.assert_array_equal(served.predict(x).probabilities, model.predict(x).probabilities)


# -- layers in the user's own training loop ----------------------------------------------------------------------------
@pytest.fixture(params=[pytest.param("torch", marks=needs("torch")), pytest.param("jax", marks=needs("jax"))])
def variational(request: pytest.FixtureRequest) -> tuple[str, Any]:
    """The framework, and a layer of 3 inputs and 2 outputs with large deviations."""
    if request.param == "torch":
        import torch

        from bayesmlp.layers.torch import VariationalLinear

        torch.manual_seed(0)
        return "torch", VariationalLinear(3, 2, initial_deviation=0.5)
    from flax import nnx

    from bayesmlp.layers.flax import VariationalLinear as FlaxLinear

    return "jax", FlaxLinear(3, 2, initial_deviation=0.5, rngs=nnx.Rngs(0))


def call(framework: str, layer: Any, x: np.ndarray) -> np.ndarray:
    if framework == "torch":
        import torch

        return layer(torch.tensor(x, dtype=torch.float32)).detach().numpy()
    return np.asarray(layer(np.asarray(x, np.float32)))


def moments(framework: str, layer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations of a layer's weights, (inputs + 1, outputs)."""
    engine = get_engine(framework)
    mean = engine.to_numpy(layer._mean())
    return mean, np.exp(engine.to_numpy(layer.log_deviation if framework == "torch" else layer.log_deviation[...]))


@pytest.mark.parametrize("shape", [(20000, 3), (4000, 5, 3)])
def test_a_variational_layer_samples_in_training_and_not_in_evaluation(
    variational: tuple[str, Any], shape: tuple[int, ...]
) -> None:
    framework, layer = variational
    mean, deviation = moments(framework, layer)
    row = np.array([0.5, -1.0, 2.0])
    extended = np.append(row, 1.0)
    expected_mean, expected_variance = extended @ mean, extended**2 @ deviation**2
    layer.train()
    if len(shape) == 2:
        draws = call(framework, layer, np.broadcast_to(row, shape))
    else:  # one draw of the weights serves all positions: the same number everywhere
        some = [call(framework, layer, np.broadcast_to(row, (2, 2, 3))) for _ in range(2000)]
        assert all(np.ptp(s.reshape(-1, 2), axis=0).max() < 1e-5 for s in some)
        draws = np.array([s[0, 0] for s in some])
    error = np.sqrt(expected_variance / len(draws))
    assert np.all(np.abs(draws.mean(0) - expected_mean) < 5 * error)
    assert np.all(np.abs(draws.var(0) / expected_variance - 1) < 5 * math.sqrt(2 / len(draws)))
    layer.eval()
    assert relative_error(call(framework, layer, row[None]), expected_mean[None]) < 1e-6


def test_kl_divergence_is_the_integral(variational: tuple[str, Any]) -> None:
    framework, layer = variational
    mean, deviation = (array.astype(np.float64) for array in moments(framework, layer))
    prior = bm.NormalPrior().precision([(4, 2)])[0] ** -0.5
    expected = 0.0
    for m, s, p in zip(mean.ravel(), deviation.ravel(), prior.ravel(), strict=True):
        grid = m + s * np.linspace(-12, 12, 4001)
        density = np.exp(-0.5 * ((grid - m) / s) ** 2) / (s * math.sqrt(2 * math.pi))
        ratio = -0.5 * ((grid - m) / s) ** 2 - math.log(s) + 0.5 * (grid / p) ** 2 + math.log(p)
        expected += np.trapezoid(density * ratio, grid)
    got = get_engine(framework).to_numpy(layer.kl_divergence())
    assert relative_error(got, np.asarray(expected)) < 1e-5
    assert deviation == pytest.approx(0.5 * prior, rel=1e-5)


def test_marked_layers_are_fitted_as_they_are_marked() -> None:
    pytest.importorskip("torch")
    own = Own("torch", "residual")
    network = own.network(None)
    assert [(layer.name, layer.method) for layer in network.layers] == [("body", "variational"), ("head", "laplace")]
    x = own.inputs(64)
    model = bm.BayesianMLP(network, bm.Categorical(3), structure=bm.Diagonal()).fit(
        x, own.labels(x), method=bm.AsMarked(TRAINING)
    )
    prior = network.prior_precision(model.prior, 3, 3)
    body, head = (v * p for v, p in zip(model.weight_variances(), prior, strict=True))
    assert np.all(body < 0.1)  # deviations start at 0.02 of the prior's, and 60 steps move them little
    assert np.all(head <= 1 + 1e-6)
    assert head.max() > 0.1


@pytest.mark.parametrize(
    "method", [bm.Variational(TRAINING), bm.PerLayer(bm.Variational(TRAINING), bm.Laplace(TRAINING))]
)
def test_every_method_leaves_points_without_uncertainty(method: Any) -> None:
    pytest.importorskip("torch")
    own = Own("torch", "transformer")
    network, x = own.network(), own.inputs(32)
    model = bm.BayesianMLP(network, bm.Categorical(3)).fit(x, own.labels(x), method=method)
    flags = [bool(v.any()) for v in model.weight_variances()]
    assert flags == [m is not None for m in network.layer_methods]


def draws(network: ModuleNetwork, rows: int, seed: int) -> list[np.ndarray]:
    """Standard normal draws of every Bayesian layer."""
    rng = np.random.default_rng(seed)
    shapes = network.noise_shapes(rows, network._start())
    return [rng.standard_normal(shape) for shape in shapes[: len(network.layers)]]


def drawn_weights(layer: Any, mean: np.ndarray, draw: np.ndarray, row: int, deviation: float) -> np.ndarray:
    """The weights that Flipout gives one row: M + (r sᵀ) ∘ S ∘ E, with the signs behind the draws of E."""
    inputs, outputs = layer.matrix.shape
    signs = np.where(draw[inputs * outputs :] < 0, -1.0, 1.0).reshape(-1, inputs + outputs)[row]
    noise = deviation * draw[: inputs * outputs].reshape(inputs, outputs)
    return mean + np.outer(signs[:inputs], signs[inputs:]) * noise


SHARED = ["transformer", "transformer, positions first", "residual"]
FLIPPED = [pytest.param("torch", name, marks=needs("torch"), id=f"torch {name}") for name in SHARED]
FLIPPED += [pytest.param("jax", "attention", marks=needs("jax"), id="jax attention")]


@pytest.mark.parametrize(("framework", "name"), FLIPPED)
def test_every_row_draws_its_own_weights_for_all_of_its_positions(framework: str, name: str) -> None:
    """With noise: as that row alone, through the network at the weights that Flipout gives it."""
    own, deviation = Own(framework, name), 0.3
    network, engine = own.network(), get_engine(framework, "float32")
    x, noise = flat(own.inputs(ROWS)), draws(network, ROWS, seed=5)
    shared = [not use.once for use in network.uses]
    assert any(shared)
    assert all(use.row_axis is not None for use in network.uses)
    weights = network._start()
    points = [None] * len(network.skeleton.parameters)
    with engine.scope():
        variances = [
            engine.asarray(np.full(layer.matrix.shape, deviation**2)) if flag else None
            for layer, flag in zip(network.layers, shared, strict=True)
        ]
        given = [engine.asarray(draw) if flag else None for draw, flag in zip(noise, shared, strict=True)]
        got = engine.to_numpy(
            network.apply_with_noise(
                engine, tuple(engine.asarray(w) for w in weights), [*variances, *points], engine.asarray(x),
                [*given, *points],
            )
        )  # fmt: skip
    plain = model_outputs(network, framework, weights, x)
    for row in range(ROWS):
        own_weights = [
            drawn_weights(layer, mean, draw, row, deviation) if flag else mean
            for layer, mean, draw, flag in zip(network.layers, weights, noise, shared, strict=False)
        ]
        expected = model_outputs(network, framework, (*own_weights, *weights[len(own_weights) :]), x[row : row + 1])
        np.testing.assert_allclose(got[row], expected[0], rtol=1e-4, atol=1e-5)
        assert np.abs(expected[0] - plain[row]).max() > 1e-2


# -- what is refused --------------------------------------------------------------------------------------------------
def torch_model(name: str = "conv") -> bm.BayesianMLP:
    model = bm.BayesianMLP(Own("torch", name).network(), bm.Categorical(3))
    model.start_from_prior()
    return model


@needs("torch")
def test_a_module_runs_on_its_own_framework_only() -> None:
    for engine in ("jax", "numpy"):
        with pytest.raises(InvalidInput, match=f"engine must be 'torch' for ModuleNetwork.*got '{engine}'"):
            torch_model().to_engine(engine)
    assert torch_model().to_engine("torch").engine.name == "torch"


@needs("torch")
def test_a_stored_module_needs_the_users_code(tmp_path: Path) -> None:
    own = Own("torch", "conv")
    with bm.open_store(tmp_path / "store.db") as store:
        store.publish("mine", torch_model())
        store.publish("plain", plain_model())
        with pytest.raises(InvalidInput, match=r"module of your own, ConvNet on torch.*pass it as network="):
            bm.load(store, "mine")
        with pytest.raises(InvalidInput, match="pass it as network="):
            bm.OnlineUpdater(store, "mine")
        with bm.OnlineUpdater(store, "mine", network=own.module()):
            pass  # the lease was given back
        with pytest.raises(InvalidInput, match="network must be a ConvNet, as stored, got a Transformer"):
            bm.load(store, "mine", network=Own("torch", "transformer").module())
        with pytest.raises(InvalidInput, match=r"its layers is .*'head'.*expected .*'body.1'"):
            bm.load(store, "mine", network=own.network("last"))
        with pytest.raises(InvalidInput, match=r"network must be MLP.*got a ConvNet"):
            bm.load(store, "plain", network=own.module())
        with pytest.raises(InvalidInput, match="its hidden is"):
            bm.load(store, "plain", network=bm.MLP((4,)))
        bm.load(store, "plain", network=bm.MLP((3,)))


@needs("torch")
def test_an_updater_goes_back_to_the_network_that_it_was_given_and_to_no_other_module(tmp_path: Path) -> None:
    own = Own("torch", "conv")
    with bm.open_store(tmp_path / "store.db") as store:
        for model in (torch_model(), plain_model(), torch_model()):
            store.publish("mine", model)
        with bm.OnlineUpdater(store, "mine", network=own.module()) as updater:
            assert updater.rollback(1) == 4
            version = updater.rollback(2)
            with pytest.raises(InvalidInput, match="pass it as network="):
                updater.rollback(1)
            assert updater.version == version
            assert updater.predict(np.zeros(2)).probabilities.shape == (1, 3)


def plain_model() -> bm.BayesianMLP:
    model = bm.BayesianMLP(bm.MLP((3,)), bm.Categorical(3), engine="numpy")
    model.start_from_prior(2)
    return model


@needs("torch")
def test_integer_arrays_must_be_the_stored_ones(tmp_path: Path) -> None:
    with bm.open_store(tmp_path / "store.db") as store:
        store.publish("mine", torch_model("graph"))
        other = Own("torch", "graph").module()
        other.senders[0] = 3
        with pytest.raises(InvalidInput, match="its integers is"):
            bm.load(store, "mine", network=other)


@needs("torch")
def test_bad_arguments_are_named() -> None:
    own = Own("torch", "transformer")
    with pytest.raises(InvalidInput, match="module must be a Module of its framework, got 'net'"):
        own.home.bayesianize("net", (5,))
    for layers, message in (
        (["head", "tail"], "layers must be 'last', 'all' or a list of dense layers that Transformer calls"),
        (["encoder.self_attn.out_proj"], "layers must be .*encoder.linear1, encoder.linear2, head"),
        ("first", "got 'first'"),
        (3, "got 3"),
        ([], "got \\[\\]"),
    ):
        with pytest.raises(InvalidInput, match=message):
            own.network(layers)
    for options, message in (
        ({"method": "dropout"}, "method must be one of laplace, variational, got 'dropout'"),
        ({"train": "some"}, "train must be 'all' or 'bayesian', got 'some'"),
    ):
        with pytest.raises(InvalidInput, match=message):
            own.network(**options)
    for shape in ((0,), 4, ("a", 8), "5", None):
        with pytest.raises(InvalidInput, match="input_shape must hold integers of at least 1, got "):
            own.home.bayesianize(own.module(), shape, num_tokens=7)
    for tokens in (0, "3", 3.5):
        with pytest.raises(InvalidInput, match="num_tokens must be an integer from 1"):
            own.home.bayesianize(own.module(), (5,), num_tokens=tokens)
    with pytest.raises(InvalidInput, match="Transformer has 3 outputs, the likelihood needs 4"):
        bm.BayesianMLP(own.network(), bm.Categorical(4))
    with pytest.raises(InvalidInput, match="standardize must be off"):
        bm.BayesianMLP(own.network(), bm.Categorical(3), standardize=True)
    with pytest.raises(InvalidInput, match="num_inputs must be 5, got 6"):
        bm.BayesianMLP(own.network(), bm.Categorical(3)).start_from_prior(6)


@pytest.mark.parametrize("framework", on("torch", "jax"))
def test_a_module_that_does_not_fit_its_inputs_is_quoted(framework: str) -> None:
    def quoted(name: str, kind: str, said: str) -> Any:
        expected = "module must take a batch (rows, *input_shape) to outputs (rows, outputs), got "
        return pytest.raises(InvalidInput, match=rf"{re.escape(expected + kind)}; {name} says {said}")

    image, tokens = (
        Own(framework, "tied decoder"),
        Own(framework, {"torch": "transformer", "jax": "attention"}[framework]),
    )
    torch_says, jax_says = (
        r"RuntimeError: mat1 and mat2 .*\(2x5 and 3x2\)",
        r"TypeError: dot_general .*\(5,\) and \(3,\)",
    )
    with quoted(
        "TiedDecoder", "input_shape=(5,) and num_tokens=None", torch_says if framework == "torch" else jax_says
    ):
        image.home.bayesianize(image.module(), (5,))
    name = type(tokens.module()).__name__
    with quoted(name, "input_shape=(5,) and num_tokens=None", ".*Int|.*integer"):
        tokens.home.bayesianize(tokens.module(), (5,))
    said = {"torch": f"{name} says IndexError: index out of range", "jax": "its outputs are not finite at token 7"}
    with pytest.raises(InvalidInput, match=rf"num_tokens must be .* module takes, got 8; {said[framework]}"):
        tokens.home.bayesianize(tokens.module(), (5,), num_tokens=8)


@needs("torch")
def test_columns_may_have_tokens_of_their_own() -> None:
    from torch import nn

    import bayesmlp.layers.torch as layers

    class Columns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small, self.large, self.head = nn.Embedding(3, 4), nn.Embedding(30, 4), nn.Linear(4, 2)

        def forward(self, x: Any) -> Any:
            return self.head(self.small(x[:, 0]) + self.large(x[:, 1]))

    assert layers.bayesianize(Columns(), (2,), num_tokens=30).num_tokens == 30
    with pytest.raises(InvalidInput, match=r"num_tokens must be .* got 31; .*Columns says IndexError"):
        layers.bayesianize(Columns(), (2,), num_tokens=31)


@needs("torch")
def test_a_module_that_can_not_be_read_or_copied_is_quoted() -> None:
    from torch import nn

    import bayesmlp.layers.torch as layers

    with pytest.warns(FutureWarning, match="weight_norm"):
        normed = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 3))
    for module, said in (
        (nn.Sequential(nn.LazyLinear(3)), "ValueError: .*uninitialized parameter"),
        (normed, "RuntimeError: .*deepcopy"),
    ):
        with pytest.raises(
            InvalidInput, match=f"module must have all its parameters, .* copied; Sequential says {said}"
        ):
            layers.bayesianize(module, (4,))
    with pytest.raises(InvalidInput, match=r"module must take .*; LSTM says TypeError: .* must be Tensor, not tuple"):
        layers.bayesianize(nn.LSTM(4, 3), (2, 4))


@needs("torch")
def test_a_lack_of_memory_is_not_taken_for_what_the_module_says() -> None:
    """Not for a refusal, nor, where the layer has been taken out, for a sign that its weights are read elsewhere."""
    from torch import nn

    import bayesmlp.layers.torch as layers

    class Hungry(nn.Module):
        def __init__(self, runs: int) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
            self.left = [runs]

        def __deepcopy__(self, memo: dict[int, Any]) -> Hungry:
            copy = Hungry(0)
            copy.load_state_dict(self.state_dict())
            copy.left = self.left  # counted together
            return copy

        def forward(self, x: Any) -> Any:
            self.left[0] -= 1
            if self.left[0] < 0:
                raise MemoryError("no room")
            return self.head(self.body(x))

    for runs in (0, 1, 3):  # as it is; with its layers looked at; without their weights
        with pytest.raises(MemoryError, match="no room"):
            layers.bayesianize(Hungry(runs), (4,), layers="all")
    network = layers.bayesianize(Hungry(1000), (4,), layers="all")
    assert [layer.name for layer in network.layers] == ["body", "head"]


@needs("torch")
def test_inputs_have_the_modules_shape(tmp_path: Path) -> None:
    image, tokens = torch_model("conv"), torch_model("transformer")
    x = Own("torch", "conv").inputs(2)
    assert np.array_equal(image.predict(x).probabilities, image.predict(flat(x)).probabilities)
    with pytest.raises(InvalidInput, match=r"X must have shape \(rows, 1, 4, 4\), got shape \(1, 4, 4\)"):
        image.predict(x[0])
    for bad in (7, -1, 0.5):
        with pytest.raises(InvalidInput, match="X must hold integers from 0 to 6"):
            tokens.predict([[0, 1, 2, 3, bad]])
    with bm.open_store(tmp_path / "store.db") as store:
        store.publish("tokens", tokens)
        store.publish("image", image)
        with bm.OnlineUpdater(store, "tokens", network=tokens.network) as updater:
            with pytest.raises(InvalidInput, match="x must hold integers from 0 to 6"):
                updater.observe([0, 1, 2, 3, 7], 1)
            assert updater.version == 1  # nothing was stored
        with bm.OnlineUpdater(store, "image", network=image.network) as updater:
            assert updater.predict(x[0]).mean.shape == (1, 3)
            assert updater.observe(x[0], 1).status == "applied"
            assert updater.observe(flat(x)[0], 1).status == "applied"


@needs("torch")
def test_modules_of_another_precision() -> None:
    """Attention reads the weights of its last layer without calling it."""
    own = Own("torch", "transformer")
    network = own.home.bayesianize(own.module().double(), (5,), layers="all", num_tokens=7)
    assert [layer.name for layer in network.layers] == ["encoder.linear1", "encoder.linear2", "head"]
    x = own.inputs(4)
    for dtype in ("float32", "float64"):
        model = bm.BayesianMLP(network, bm.Categorical(3), dtype=dtype)
        model.start_from_prior()
        expected = torch_model("transformer").predict(x, method="mean").probabilities
        np.testing.assert_allclose(model.predict(x, method="mean").probabilities, expected, atol=1e-6)


@needs("torch")
def test_tied_weights_stay_points() -> None:
    from torch import nn

    import bayesmlp.layers.torch as layers

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.body, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens: Any) -> Any:
            return self.head(self.body(self.embed(tokens).mean(1)))

    network = layers.bayesianize(Tied(), (5,), layers="all", num_tokens=7)
    assert [layer.name for layer in network.layers] == ["body"]
    model = bm.BayesianMLP(network, bm.Categorical(7))
    model.update([[0, 1, 2, 3, 4]], [1])
    for chosen in (["head"], "last", None):
        with pytest.raises(InvalidInput, match=r"those of 'head' in .*Tied are tied; others that it calls are body"):
            layers.bayesianize(Tied(), (5,), layers=chosen, num_tokens=7)
    parametrised = nn.Sequential(nn.Linear(2, 2), nn.utils.parametrizations.weight_norm(nn.Linear(2, 1)))
    with pytest.raises(InvalidInput, match="those of '1' in Sequential are tied; others that it calls are 0"):
        layers.bayesianize(parametrised, (2,))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("framework", on("torch", "jax"))
def test_weights_read_outside_their_layers_calls_stay_points(framework: str, dtype: str, tmp_path: Path) -> None:
    own = Own(framework, "tied decoder")
    network, x = own.network("all"), own.inputs(32)
    assert [layer.name for layer in network.layers] == ["body", "head"]
    start = network.initialise(3, 3, 0)
    model = bm.BayesianMLP(network, bm.Gaussian(3), dtype=dtype).fit(x, x, method=bm.Laplace(TRAINING))
    for before, after in zip(start, model.mean_weights(), strict=True):
        assert not np.allclose(after, before, atol=1e-6)  # all are trained
    with bm.open_store(tmp_path / "store.db") as store:
        store.publish("mine", model)
        again = bm.load(store, "mine", network=own.module(seed=1))
    np.testing.assert_array_equal(again.predict(x).mean, model.predict(x).mean)
    for name in ("encode", "scaled"):
        with pytest.raises(InvalidInput, match=f"those of '{name}' in TiedDecoder are tied; others that it calls are "):
            own.network([name, "head"])


@needs("torch")
def test_weights_of_another_precision_may_be_read_outside_a_call() -> None:
    own = Own("torch", "tied decoder")
    network = own.home.bayesianize(own.module().double(), (3,), layers="all")
    assert [layer.name for layer in network.layers] == ["body", "head"]
    model = bm.BayesianMLP(network, bm.Gaussian(3))
    model.start_from_prior()
    x = own.inputs(4)
    np.testing.assert_allclose(
        model.predict(x, method="mean").average_output, own.outputs(own.module(), x), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("framework", on("torch", "jax"))
def test_biases_may_be_what_is_tied(framework: str) -> None:
    own = Own(framework, "tied decoder")
    module = own.module()
    module.head.bias = module.body.bias
    with pytest.raises(InvalidInput, match=r"could be Bayesian; the weights of encode, body, scaled, head are tied"):
        own.home.bayesianize(module, (3,), layers="all")


@pytest.mark.parametrize("wanted", [[], [0], [4], [1, 2], [0, 3, 4], [0, 1, 2, 3, 4]])
def test_what_is_read_elsewhere_is_found_by_halving(wanted: list[int]) -> None:
    names = [str(i) for i in range(5)]
    expected = [names[i] for i in wanted]
    assert _find(lambda some: bool(set(some) & set(expected)), names) == expected


@pytest.mark.parametrize("framework", on("torch", "jax"))
def test_a_layers_own_prior_must_be_the_models(framework: str) -> None:
    layers: Any = importlib.import_module(f"bayesmlp.layers.{HOMES[framework]}")
    if framework == "torch":
        from torch import nn

        module: Any = nn.Sequential(layers.VariationalLinear(2, 3, prior=bm.NormalPrior(50.0)), nn.Linear(3, 1))
        names = ["0", "1"]
    else:
        from flax import nnx

        rngs = nnx.Rngs(0)
        own = layers.VariationalLinear(2, 3, prior=bm.NormalPrior(50.0), rngs=rngs)
        module = nnx.Sequential(own, nnx.Linear(3, 1, rngs=rngs))
        names = ["layers.0", "layers.1"]
    network = layers.bayesianize(module, (2,), layers=names)
    with pytest.raises(InvalidInput, match=rf"scale of layer '{names[0]}', which was made with NormalPrior\(scale=50"):
        bm.BayesianMLP(network, bm.Gaussian(), prior=bm.NormalPrior(2.0))
    bm.BayesianMLP(network, bm.Gaussian(), prior=bm.NormalPrior((50.0, 2.0)))
    bm.BayesianMLP(layers.bayesianize(module, (2,), layers=names[1:]), bm.Gaussian(), prior=bm.NormalPrior(2.0))
