"""The same numbers on a GPU as on the CPU, for filtering, predicting and sampling.

These tests need a CUDA device: run ``pytest -m gpu`` on a machine that has one, with the frameworks' CUDA builds.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import dense
import numpy as np
import pytest
from cases import (
    LIKELIHOODS,
    NETWORK,
    STRUCTURES,
    TOLERANCE,
    make_inputs,
    make_likelihood_state,
    make_targets,
    random_arrays,
    relative_error,
    shapes_of,
)

import bayesmlp as bm
from bayesmlp.inference.engines import Engine, get_engine
from bayesmlp.inference.errors import DeviceUnavailable
from bayesmlp.inference.filtering import FilterModel, Posterior

pytestmark = pytest.mark.gpu
DEVICES = ("torch:cuda", "jax:gpu")


@cache
def why_not(device: str) -> str | None:
    """Why a device can not be tested here, and how to enable it; None where it can."""
    framework = device.partition(":")[0]
    how = f"to enable it, run 'pytest -m gpu' where there is a CUDA device and a CUDA build of {framework}"
    if importlib.util.find_spec(framework) is None:
        return f"{framework} is not installed; {how}"
    try:
        get_engine(device)
    except DeviceUnavailable:
        return f"{device} is not available; {how}"
    return None


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Each device in turn, skipped where it is not there."""
    if (reason := why_not(request.param)) is not None:
        pytest.skip(reason)
    return str(request.param)


def on_cpu(device: str) -> str:
    return device.partition(":")[0]


def filtered(engine: Engine, structure: Any, likelihood: Any) -> dict[str, np.ndarray]:
    """A filter step, and what comes of it with given noise, from the same numbers on any engine."""
    shapes = shapes_of(likelihood)
    x = make_inputs(3, seed=100)
    y = likelihood.prepare(make_targets(likelihood, x, seed=101))
    weights = structure.from_arrays(engine, random_arrays(structure, shapes, seed=102))
    rng = np.random.default_rng(103)
    noise = tuple(engine.asarray(rng.standard_normal((2, *s))) for s in structure.noise_shapes(weights))
    batch = [engine.asarray(a) for a in (x, y, np.array([1.0, 2.0, 0.0]), np.float64(1.0))]
    posterior = Posterior(weights, make_likelihood_state(likelihood, engine))
    after, info = FilterModel(NETWORK, likelihood, structure).compile(engine)(posterior, None, *batch)
    assert bool(info.ok)
    arrays = structure.to_arrays(engine, after.weights)

    def answers(state: Any, x: Any) -> tuple[Any, Any]:
        outputs, factors = NETWORK.factors(engine, structure.mean(state), x)
        return outputs, structure.output_covariance(engine, state, factors)

    def sampled_outputs(state: Any, noise: Any, x: Any) -> Any:
        """Of given columns: those of a step are determined but for their signs."""
        return NETWORK.apply(engine, structure.sample(engine, state, noise), x)

    given = structure.from_arrays(engine, random_arrays(structure, shapes, seed=102))
    sampled = engine.jit(sampled_outputs)(given, noise, batch[0])
    outputs, covariance = engine.jit(answers)(after.weights, batch[0])
    return {
        "mean": dense.mean(structure, arrays, shapes),
        "precision": dense.precision(structure, arrays, shapes),
        "likelihood": np.array([float(v) for v in after.likelihood]),
        "information": engine.to_numpy(info.information),
        "log_predictive": engine.to_numpy(info.log_predictive),
        "outputs": engine.to_numpy(outputs),
        "covariance": engine.to_numpy(covariance),
        "sampled_outputs": engine.to_numpy(sampled),
    }


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("likelihood", ["gaussian", "categorical"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_filtering_predicting_and_sampling_agree(device: str, structure: str, likelihood: str, dtype: str) -> None:
    resolved = STRUCTURES[structure].resolve(NETWORK.num_layers)
    host, there = (
        filtered(get_engine(name, dtype), resolved, LIKELIHOODS[likelihood]) for name in (on_cpu(device), device)
    )
    for name, expected in host.items():
        assert relative_error(there[name], expected) < TOLERANCE[dtype], name


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_model_moves_to_the_device_and_back(device: str, structure: str) -> None:
    likelihood = LIKELIHOODS["categorical"]
    x = make_inputs(16, seed=104)
    y = make_targets(likelihood, x, seed=105)
    model = bm.BayesianMLP(NETWORK, likelihood, structure=STRUCTURES[structure], engine=on_cpu(device))
    model.update(x, y)
    there = model.to_engine(device)
    assert there.engine.name.startswith(device)
    back = there.to_engine(on_cpu(device)).to_arrays()
    for name, array in model.to_arrays().items():
        np.testing.assert_array_equal(array, back[name], err_msg=name)
    for method in ("linearized", "mean"):
        got, expected = (m.predict(x, method=method).probabilities for m in (there, model))
        assert relative_error(got, expected) < TOLERANCE["float32"], method
    first, again = (there.predict(x, method="samples", num_samples=20, seed=1).mean for _ in range(2))
    np.testing.assert_array_equal(first, again)


LEARNERS: dict[str, dict[str, Any]] = {
    "memory": {"memory": bm.Memory(20)},
    "forgetting": {"dynamics": bm.Forgetting(0.99)},
    "random walk": {"dynamics": bm.RandomWalk(1e-2)},
    "adaptive": {"dynamics": bm.AdaptiveForgetting()},
    "change points": {"dynamics": bm.ChangePoint()},
    "grid": {"structure": bm.EvidenceGrid(bm.LowRank(3), (0.3, 1.0)), "memory": bm.Memory(20)},
    "shared matrix": {"structure": bm.LastLayer(bm.Full(), bm.Diagonal())},
}


@pytest.mark.parametrize("likelihood", ["gaussian", "categorical"])
@pytest.mark.parametrize("options", LEARNERS.values(), ids=LEARNERS)
def test_a_stored_stream_learns_alike(device: str, options: dict[str, Any], likelihood: str, tmp_path: Path) -> None:
    """Events learned on the device and kept, then opened on the processor: what the processor learns of them."""
    chosen = LIKELIHOODS[likelihood]
    x = make_inputs(24, seed=108)
    y = make_targets(chosen, x, seed=109)
    answers: list[np.ndarray] = []
    for place in (device, on_cpu(device)):
        store = bm.open_store(tmp_path / f"{len(answers)}.db")
        model = bm.BayesianMLP(NETWORK, chosen, engine=place, standardize=False, **options)
        model.start_from_prior(x.shape[1])
        store.publish("stream", model)
        with bm.OnlineUpdater(store, "stream", engine=place) as updater:
            for row in range(24):
                updater.observe(x[row], y[row], event_id=f"event {row}")
        answers.append(bm.load(store, "stream", engine=on_cpu(device)).predict(x, method="linearized").mean)
    assert relative_error(*answers) < 20 * TOLERANCE["float32"]


def test_a_fit_on_the_device_learns(device: str) -> None:
    likelihood = LIKELIHOODS["categorical"]
    x = make_inputs(64, seed=106)
    y = make_targets(likelihood, x, seed=107)
    model = bm.BayesianMLP(NETWORK, likelihood, engine=device)
    model.start_from_prior(x.shape[1])
    before = model.predict(x).log_prob(y).mean()
    model.fit(x, y, method=bm.Laplace(bm.TrainingOptions(steps=200)))
    assert model.predict(x).log_prob(y).mean() > before


@pytest.mark.parametrize("method", [bm.MCLMC(num_warmup=300, num_samples=100), bm.MEADS(num_samples=10)], ids=repr)
def test_chains_on_a_device_find_the_posterior(device: str, method: Any) -> None:
    """A linear model, against its closed form; 5 Monte Carlo standard errors."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 9))
    y = x @ rng.standard_normal(9) + 0.5 * rng.standard_normal(40)
    likelihood = bm.Gaussian(noise_variance=0.25)
    model = bm.BayesianMLP(bm.MLP(()), likelihood, structure=bm.Full(), engine=device, standardize=False)
    answer = model.fit(x, y, method=method).predict(x)
    design = np.hstack([x, np.ones((40, 1))])
    prior = bm.NormalPrior().precision(((10, 1),))[0][:, 0]
    exact = design @ np.linalg.solve(np.diag(prior) + design.T @ design / 0.25, design.T @ y / 0.25)
    error = (np.ravel(answer.mean) - exact) / np.sqrt(np.ravel(answer.epistemic_variance))
    assert np.all(np.abs(error) < 5 / np.sqrt(model.fit_details["effective_size"].min()) + 0.05)
