"""What one event costs, in units of a plain SGD step of the same framework, network and process.

    python benchmarks/online_update.py            # both frameworks, three networks
    python benchmarks/online_update.py --quick    # the middle one, fewer rounds

Floor and ours alternate; each round times a block of events of each; the ratio is that of the medians. Timed are: the
bare step (factors, output covariance, one Kalman step, no checks), the step that the updater runs (checks, surprise
and information) at the mode and variational, and a durable ``observe``. A second table has every structure.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import bayesmlp as bm
from bayesmlp.inference.engines import Engine
from bayesmlp.inference.filtering import Posterior

KEYS = ("bare", "mode", "step", "observe")
STRUCTURES: list[tuple[str, Any, int]] = [
    ("Diagonal", bm.Diagonal(), 1),
    ("Diagonal", bm.Diagonal(), 32),
    ("LowRank(10)", bm.LowRank(10), 1),
    ("LowRank(10)", bm.LowRank(10), 32),
    ("LastLayer(Full, Diagonal)", bm.LastLayer(), 1),
    ("LastLayer(Kronecker, Diagonal)", bm.LastLayer(bm.Kronecker()), 1),
    ("Kronecker", bm.Kronecker(), 1),
]
NETWORKS = {
    "[8-64-64-1]": (8, (64, 64), bm.Gaussian(noise_variance=0.1)),
    "[784-256-256-10]": (784, (256, 256), bm.Categorical(10)),
    "[784-1000-1000-1000-10]": (784, (1000, 1000, 1000), bm.Categorical(10)),
}


def sgd_torch(weights: list[np.ndarray], x: np.ndarray, y: np.ndarray, classes: bool) -> Callable[[int], None]:
    """A plain SGD step, eager, as a user writes it."""
    import torch

    layers: list[Any] = []
    for matrix in weights:
        linear = torch.nn.Linear(matrix.shape[0] - 1, matrix.shape[1])
        linear.weight.data.copy_(torch.tensor(matrix[:-1].T))
        layers += [linear, torch.nn.ReLU()]
    network = torch.nn.Sequential(*layers[:-1])
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    inputs, targets = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    loss_of = torch.nn.functional.cross_entropy if classes else torch.nn.functional.mse_loss
    targets = targets if classes else targets.float()

    def step(i: int) -> None:
        optimizer.zero_grad()
        loss_of(network(inputs[i : i + 1]), targets[i : i + 1]).backward()
        optimizer.step()

    return step


def sgd_jax(weights: list[np.ndarray], x: np.ndarray, y: np.ndarray, classes: bool) -> Callable[[int], None]:
    """A plain SGD step, jitted, with donated parameters."""
    import jax
    import jax.numpy as jnp

    def loss(parameters: Any, row: Any, target: Any) -> Any:
        for index, matrix in enumerate(parameters):
            row = row @ matrix[:-1] + matrix[-1]
            row = jax.nn.relu(row) if index < len(parameters) - 1 else row
        if classes:
            return -jnp.mean(jax.nn.log_softmax(row)[jnp.arange(len(target)), target])
        return jnp.mean((row - target) ** 2)

    def update(parameters: Any, row: Any, target: Any) -> Any:
        gradient = jax.grad(loss)(parameters, row, target)
        return [p - 1e-3 * g for p, g in zip(parameters, gradient, strict=True)]

    compiled = jax.jit(update, donate_argnums=0)
    state = {"parameters": [jnp.asarray(w, dtype=jnp.float32) for w in weights]}
    inputs = x.astype(np.float32)
    targets = y.astype(np.int32) if classes else y.astype(np.float32)

    def step(i: int) -> None:
        state["parameters"] = compiled(state["parameters"], inputs[i : i + 1], targets[i : i + 1])
        jax.block_until_ready(state["parameters"])

    return step


def bare_step(model: bm.BayesianMLP, x: np.ndarray, y: np.ndarray) -> Callable[[int], None]:
    """One Kalman step from the structure's primitives alone."""
    structure, likelihood, network = model.filter_model.structure, model.likelihood, model.network
    engine = model.engine.owning()

    def kalman(weights: Any, row: Any, target: Any) -> Any:
        outputs, factors = network.factors(engine, structure.mean(weights), row)
        covariance = structure.output_covariance(engine, weights, factors, joint=True)
        factor = likelihood.fisher_factor(engine, outputs)
        score = likelihood.unit_score(engine, outputs, target)
        system = engine.eye(len(covariance), covariance) + factor[0] @ (factor[0].mT @ covariance)
        residual = engine.xp.linalg.solve(system, score.mT).mT
        return structure.add_precision(engine, structure.shift(engine, weights, factors, residual), factors, factor)

    compiled = model.engine.jit(kalman, donate=(0,))
    state = {"weights": model.to_engine(model.engine).posterior.weights}
    rows, targets = x.astype(np.float32), y

    def step(i: int) -> None:
        convert = model.engine.as_batch
        state["weights"] = compiled(state["weights"], convert(rows[i : i + 1]), convert(targets[i : i + 1]))
        wait(model.engine, state["weights"])

    return step


def wait(engine: Engine, tree: Any) -> None:
    """Until the device is done."""
    if engine.name.startswith("jax"):
        import jax

        jax.block_until_ready(tree)
    elif "cuda" in engine.name:
        import torch

        torch.cuda.synchronize()


def measure(steps: dict[str, Callable[[int], None]], rounds: int, events: int) -> dict[str, list[float]]:
    """Milliseconds per event for each step and round, the steps taking turns."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(-1, rounds):  # the first one warms up
        for name, step in steps.items():
            started = time.perf_counter()
            for i in range(events):
                step(i)
            if round_ >= 0:
                times[name].append((time.perf_counter() - started) / events * 1e3)
    return times


def full_step(model: bm.BayesianMLP, x: np.ndarray, prepared: np.ndarray, size: int = 1) -> Callable[[int], None]:
    """The step that the updater runs, with its checks and diagnostics, on ``size`` rows at once."""
    own = model.to_engine(model.engine)
    compiled = own.filter_model.compile_in_place(own.engine)
    state: dict[str, Posterior] = {"posterior": own.posterior}

    def step(i: int) -> None:
        rows = [j % len(x) for j in range(i * size, (i + 1) * size)]
        batch = own.batch(x[rows], prepared[rows], np.ones(size), 1.0)
        state["posterior"], info = compiled(state["posterior"], None, *batch)
        info = own.engine.fetch(info)
        assert float(info.log_predictive) < np.inf
        assert float(info.information) >= 0
        assert bool(info.ok)
        wait(own.engine, state["posterior"].weights)
        assert getattr(compiled, "cache_size", lambda: 1)() == 1

    return step


def clusters(num_inputs: int, events: int) -> tuple[np.ndarray, np.ndarray]:
    """Ten classes, as images have them."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((events, num_inputs)), rng.integers(0, 10, events)
    return 0.5 * x + 0.5 * rng.standard_normal((10, num_inputs))[y], y


@contextlib.contextmanager
def one_thread(framework: str) -> Iterator[None]:
    """For the floor too: two threads are slower at these sizes."""
    if not framework.startswith("torch"):
        yield
        return
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def compare_structures(framework: str, rounds: int) -> list[list[str]]:
    """Rows of the second table: every structure's step, alone and in blocks, an event of each to an SGD step."""
    num_inputs, hidden, likelihood = NETWORKS["[784-256-256-10]"]
    x, y = clusters(num_inputs, 64)
    rows = []
    for name, structure, size in STRUCTURES:
        model = bm.BayesianMLP(bm.MLP(hidden), likelihood, structure=structure, engine=framework, standardize=False)
        model.start_from_prior(num_inputs)
        floor = sgd_torch if framework.startswith("torch") else sgd_jax
        with one_thread(framework):
            steps = {
                "sgd": floor(list(model.mean_weights()), x, y, True),
                "step": full_step(model, x, likelihood.prepare(y), size),
            }
            times = measure(steps, rounds, 8)
        sgd, step = (statistics.median(times[key]) for key in ("sgd", "step"))
        rows.append([f"{name}, {size} at once", framework, f"{step / size:.2f}", f"{step / size / sgd:.1f}"])
    return rows


def compare(name: str, framework: str, rounds: int, events: int) -> list[str]:
    """One row of the table."""
    num_inputs, hidden, likelihood = NETWORKS[name]
    classes = isinstance(likelihood, bm.Categorical)
    x, y = clusters(num_inputs, events)
    if not classes:
        y = np.random.default_rng(1).standard_normal((events, 1))
    model = bm.BayesianMLP(bm.MLP(hidden), likelihood, structure=bm.Diagonal(), engine=framework, standardize=False)
    model.start_from_prior(num_inputs)
    weights = list(model.mean_weights())
    prepared = likelihood.prepare(y)

    at_mode = bm.BayesianMLP(
        bm.MLP(hidden), likelihood, structure=bm.Diagonal(), step=bm.LaplaceStep(), engine=framework, standardize=False
    )
    at_mode.start_from_prior(num_inputs)
    floor = sgd_torch if framework.startswith("torch") else sgd_jax
    with one_thread(framework), tempfile.TemporaryDirectory() as folder:
        store = bm.open_store(Path(folder) / "store.db")
        store.publish("m", model)
        with bm.OnlineUpdater(store, "m", engine=framework, snapshot_every=10**9) as updater:
            steps = {
                "sgd": floor(weights, x, y, classes),
                "bare": bare_step(model, x, prepared),
                "mode": full_step(at_mode, x, prepared),
                "step": full_step(model, x, prepared),
                "observe": lambda i: (updater.observe(x[i], y[i]), None)[1],
            }
            times = measure(steps, rounds, events)
        store.close()
    medians = {key: statistics.median(values) for key, values in times.items()}
    ratio = {key: medians[key] / medians["sgd"] for key in KEYS}
    count = sum(w.size for w in weights)
    return [
        name,
        framework,
        f"{count:,}",
        f"{medians['sgd']:.3f}",
        *(f"{ratio[key]:.2f}" for key in KEYS),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the middle network, fewer rounds")
    parser.add_argument("--engines", nargs="+", default=["torch", "jax"])
    options = parser.parse_args()
    console = Console()
    table = Table("network", "engine", "weights", "SGD step (ms)", *(f"{key} / SGD" for key in KEYS))
    for framework in options.engines:
        for name in ["[784-256-256-10]"] if options.quick else NETWORKS:
            large = "1000" in name
            rounds, events = (5, 40) if options.quick else (9, 20 if large else 60)
            table.add_row(*compare(name, framework, rounds, events))
    console.print(table)
    table = Table("structure, [784-256-256-10]", "engine", "ms an event", "event / SGD")
    for framework in options.engines:
        for row in compare_structures(framework, 3 if options.quick else 9):
            table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
