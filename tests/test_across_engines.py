"""One posterior, either framework: stored by one, read and learned on by the other."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from store_cases import published, small_model, stream

import bayesmlp as bm
from bayesmlp.feedback import Observation
from bayesmlp.inference.assembly import assembler
from bayesmlp.inference.engines.base import leaves_of
from bayesmlp.inference.engines.fused_loops import fused_loops
from bayesmlp.inference.methods import FitProblem
from bayesmlp.inference.objective import Parameters
from bayesmlp.stepper import Stepper

torch = pytest.importorskip("torch", reason="pip install 'bayesmlp[torch]' to enable")
jax = pytest.importorskip("jax", reason="pip install 'bayesmlp[jax]' to enable")

STRUCTURES = {
    "diagonal": bm.Diagonal(),
    "full": bm.Full(),
    "low rank": bm.LowRank(4),
    "kronecker": bm.Kronecker(),
    "last layer": bm.LastLayer(),
    "low rank and last layer": bm.LastLayer(hidden=bm.LowRank(4)),
}


def difference(one: bm.BayesianMLP, other: bm.BayesianMLP, x: np.ndarray) -> float:
    return float(np.abs(one.predict(x).probabilities - other.predict(x).probabilities).max())


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize(("writer", "reader"), [("torch", "jax"), ("jax", "torch")])
def test_stored_by_one_read_and_learned_on_by_the_other(
    tmp_path: Path, writer: str, reader: str, structure: str
) -> None:
    x, y = stream(300)
    store = published(tmp_path, writer, structure=STRUCTURES[structure])
    with bm.OnlineUpdater(store, "m", engine=writer) as updater:
        updater.observe_many(x[:100], y[:100])
    here, there = (bm.load(store, "m", engine=name) for name in (writer, reader))
    assert difference(here, there, x[200:]) <= 1e-5
    for i in range(100, 200):
        for model in (here, there):
            model.update(x[i : i + 1], y[i : i + 1])
    assert difference(here, there, x[200:]) <= 1e-4


def test_a_handover_is_recorded_and_keeps_the_posterior(tmp_path: Path) -> None:
    x, y = stream(60)
    store = published(tmp_path, "torch")
    with bm.OnlineUpdater(store, "m", engine="torch") as updater:
        updater.observe_many(x[:30], y[:30])
        before = updater.model.predict(x).probabilities
    with bm.OnlineUpdater(store, "m", engine="jax") as updater:
        assert [entry.kind for entry in updater.history()][-1] == "handover"
        np.testing.assert_allclose(updater.model.predict(x).probabilities, before, atol=1e-5)
        updater.observe_many(x[30:], y[30:], event_ids=[f"j{i}" for i in range(30)])
        learned = updater.digest()
    with bm.OnlineUpdater(store, "m", engine="jax") as updater:
        assert updater.digest() == learned
        updater.retract([f"j{i}" for i in range(30)])
        np.testing.assert_allclose(updater.model.predict(x).probabilities, before, atol=1e-5)


def test_a_torch_tensor_and_a_jax_array_are_as_good_as_numpy() -> None:
    x, y = stream(20)
    model = small_model("torch")
    model.update(torch.tensor(x, requires_grad=True), torch.tensor(y))
    other = small_model("jax")
    other.update(jax.numpy.asarray(x, dtype="float32"), jax.numpy.asarray(y))
    assert difference(model, other, x) <= 1e-5
    assert isinstance(model.predict(torch.tensor(x)).mean, np.ndarray)


@pytest.mark.parametrize("numba", [True, False])
@pytest.mark.parametrize("structure", ["diagonal", "kronecker", "last layer"])
def test_an_event_of_a_large_layer(structure: str, numba: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, and with the updater's permission to write: by NumPy and compiled loops, where those are
    there, else by torch; a third of the inputs is 0.
    """
    if numba:
        pytest.importorskip("numba", reason="pip install 'bayesmlp[fast]'")
    else:
        monkeypatch.setitem(sys.modules, "numba", None)
    fused_loops.cache_clear()
    try:
        rng = np.random.default_rng(0)
        x, y = rng.standard_normal((6, 300)), rng.integers(0, 3, 6)
        x[:, ::3] = 0.0
        answers = {}
        for engine in ("torch", "numpy"):
            model = bm.BayesianMLP(
                bm.MLP((120,)), bm.Categorical(3), structure=STRUCTURES[structure], engine=engine, standardize=False
            )
            model.start_from_prior(300)
            before = model.posterior
            kept = [np.array(model.engine.to_numpy(array)) for array in leaves_of(before)]
            stepper = Stepper(model)
            for i in range(6):
                model.update(x[i : i + 1], y[i : i + 1])
                event = Observation.check(x[i : i + 1], y[i : i + 1], None, None, model=model)
                assert stepper.apply(event).outcome == "applied"
            for array, old in zip(leaves_of(before), kept, strict=True):
                np.testing.assert_array_equal(model.engine.to_numpy(array), old)
            answers[engine] = model.predict(x).probabilities
            np.testing.assert_array_equal(stepper.model.predict(x).probabilities, answers[engine])
        np.testing.assert_allclose(answers["torch"], answers["numpy"], atol=1e-5)
    finally:
        fused_loops.cache_clear()


# -- fits -------------------------------------------------------------------------------------------------------------
def regression(rows: int) -> tuple[np.ndarray, np.ndarray]:
    x, _ = stream(rows, seed=1)
    return x, np.sin(2 * x[:, 0]) + 0.3 * np.random.default_rng(2).standard_normal(rows)


def laplace_around(model: bm.BayesianMLP, x: np.ndarray, y: np.ndarray, engine: str) -> bm.BayesianMLP:
    """The Laplace posterior around a model's mean weights and noise, assembled by a framework from the data."""
    there = model.to_engine(engine)
    problem = FitProblem(
        engine=there.engine,
        network=there.network,
        likelihood=there.scaled_likelihood,
        structure=there.network.resolve(there.structure),
        prior=there.prior,
        x=there.engine.asarray(there.scaling.inputs(x)),
        y=there.engine.asarray(there.scaling.targets(there.likelihood.prepare(y))),
        weight=np.ones(len(x)),
        seed=there.seed,
    )
    mode = Parameters(tuple(there.engine.asarray(layer) for layer in model.mean_weights()), (), ())
    assemble = assembler(problem, [False] * there.network.num_layers)
    there.set_posterior(assemble(mode, problem.prior_precision, None, model.posterior.likelihood))
    return there


@pytest.mark.parametrize("structure", STRUCTURES)
def test_laplace_from_the_same_mode_is_the_same_posterior(structure: str) -> None:
    """Fitted by torch in float32, and once more assembled around its mode by JAX from the same data."""
    x, y = regression(200)
    model = bm.BayesianMLP(bm.MLP((16,), "tanh"), bm.Gaussian(), structure=STRUCTURES[structure], engine="torch")
    model.fit(x[:150], y[:150], method=bm.Laplace(bm.TrainingOptions(epochs=20)))
    here, there = model.predict(x[150:]), laplace_around(model, x[:150], y[:150], "jax").predict(x[150:])
    np.testing.assert_allclose(there.epistemic_variance, here.epistemic_variance, rtol=1e-4)
    np.testing.assert_allclose(there.variance, here.variance, rtol=1e-4)


def test_the_same_seed_and_data_give_the_same_fit_in_either_framework() -> None:
    """With all rows in a batch, so that nothing is drawn but the start, which is the same."""
    x, y = regression(60)
    arrays = []
    for engine in ("torch", "jax"):
        model = bm.BayesianMLP(bm.MLP((8,), "tanh"), bm.Gaussian(), engine=engine, dtype="float64", seed=3)
        model.fit(x, y, method=bm.Laplace(bm.TrainingOptions(epochs=40, batch_size=60, learning_rate=0.02)))
        arrays.append(model.to_arrays())
    for name, array in arrays[0].items():
        np.testing.assert_allclose(arrays[1][name], array, rtol=1e-6, atol=1e-8, err_msg=name)
