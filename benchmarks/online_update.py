"""What one event costs, in units of a plain SGD step of the same framework, network and process.

    python benchmarks/online_update.py            # both frameworks, three networks
    python benchmarks/online_update.py --quick    # the middle one, fewer rounds
    python benchmarks/online_update.py --engines torch:cuda jax:gpu

One thread. Floor and ours alternate; each round times a block of events of each; the ratio is that of the median CPU
times of the process, so that what else runs on the machine counts little; on a device, of the time on the wall. Timed
are: the bare step (factors, output covariance, one Kalman step, no checks), the step that the updater runs (checks,
surprise and information) at the mode and variational, and a durable ``observe``, by the clock on the wall. A second
table has every structure after 320 events; a third the last layers beside what they should be measured by.
``update_scaling.py`` has the step's growth with the number of weights, and its memory.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import argparse
import contextlib
import functools
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

CLASSES = 10
KEYS = ("bare", "mode", "step", "observe")
STRUCTURES: list[tuple[str, Any, int]] = [
    ("Diagonal", bm.Diagonal(), 1),
    ("Diagonal", bm.Diagonal(), 32),
    ("LowRank(10)", bm.LowRank(10), 1),
    ("LowRank(10)", bm.LowRank(10), 32),
    ("LowRank(10, buffer=16)", bm.LowRank(10, buffer=16), 1),
    ("LastLayer(Full, Diagonal)", bm.LastLayer(), 1),
    ("LastLayer(Kronecker, Diagonal)", bm.LastLayer(bm.Kronecker()), 1),
    ("Kronecker", bm.Kronecker(), 1),
]
NETWORKS = {
    "[8-64-64-1]": (8, (64, 64), bm.Gaussian(noise_variance=0.1)),
    "[784-256-256-10]": (784, (256, 256), bm.Categorical(10)),
    "[784-1000-1000-1000-10]": (784, (1000, 1000, 1000), bm.Categorical(10)),
}


def floor_of(framework: str) -> Callable[..., Callable[[int], None]]:
    """The plain SGD step of the framework, on the device of the engine's name."""
    name, _, device = framework.partition(":")
    return functools.partial(sgd_torch, device=device or "cpu") if name == "torch" else sgd_jax


def sgd_torch(
    weights: list[np.ndarray], x: np.ndarray, y: np.ndarray, classes: bool, device: str = "cpu"
) -> Callable[[int], None]:
    """A plain SGD step, eager, as a user writes it."""
    import torch

    layers: list[Any] = []
    for matrix in weights:
        linear = torch.nn.Linear(matrix.shape[0] - 1, matrix.shape[1])
        linear.weight.data.copy_(torch.tensor(matrix[:-1].T))
        layers += [linear, torch.nn.ReLU()]
    network = torch.nn.Sequential(*layers[:-1]).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    inputs, targets = torch.tensor(x, dtype=torch.float32, device=device), torch.tensor(y, device=device)
    loss_of = torch.nn.functional.cross_entropy if classes else torch.nn.functional.mse_loss
    targets = targets if classes else targets.float()

    def step(i: int) -> None:
        optimizer.zero_grad()
        loss_of(network(inputs[i : i + 1]), targets[i : i + 1]).backward()
        optimizer.step()
        if device != "cpu":
            torch.cuda.synchronize()

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

    def kalman(engine: Engine, weights: Any, row: Any, target: Any) -> Any:
        outputs, factors = network.factors(engine, structure.mean(weights), row)
        covariance = structure.output_covariance(engine, weights, factors, joint=True)
        factor = likelihood.fisher_factor(engine, outputs)
        score = likelihood.unit_score(engine, outputs, target)
        system = engine.eye(len(covariance), covariance) + factor[0] @ (factor[0].mT @ covariance)
        residual = engine.xp.linalg.solve(system, score.mT).mT
        return structure.add_precision(engine, structure.shift(engine, weights, factors, residual), factors, factor)

    owner = model.engine.owning()
    lightly = owner.lightly if structure.is_light(model.posterior.weights) else lambda step, *args: step(owner, *args)
    compiled = owner.jit(lambda *args: lightly(kalman, *args), donate=(0,))
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


def measure(
    steps: dict[str, Callable[[int], None]], rounds: int, events: int | dict[str, int], framework: str
) -> dict[str, list[float]]:
    """Milliseconds per event for each step and round, the steps taking turns."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(-1, rounds):  # the first one warms up
        for name, step in steps.items():
            count = events if isinstance(events, int) else events[name]
            on_wall = name == "observe" or ":" in framework
            clock = time.perf_counter if on_wall else time.process_time
            started = clock()
            for i in range(count):
                step(i)
            if round_ >= 0:
                times[name].append((clock() - started) / count * 1e3)
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


def started_step(
    framework: str, structure: Any, likelihood: Any, y: np.ndarray, size: int = 1, events: int = 320
) -> tuple[Callable[[int], None], list[np.ndarray]]:
    """The step of the middle network, some events into a stream, and the weights that it began with."""
    num_inputs, hidden, _ = NETWORKS["[784-256-256-10]"]
    x, _ = clusters(num_inputs, len(y))
    model = bm.BayesianMLP(bm.MLP(hidden), likelihood, structure=structure, engine=framework, standardize=False)
    model.start_from_prior(num_inputs)
    step = full_step(model, x, likelihood.prepare(y), size)
    with one_thread(framework):
        for i in range(events // size):
            step(i)
    return step, list(model.mean_weights())


def compare_structures(framework: str, rounds: int) -> list[list[str]]:
    """Rows of the second table: every structure's step, alone and in blocks, an event of each to an SGD step."""
    num_inputs, _, likelihood = NETWORKS["[784-256-256-10]"]
    x, y = clusters(num_inputs, 64)
    rows = []
    for name, structure, size in STRUCTURES:
        step, weights = started_step(framework, structure, likelihood, y, size)
        floor = floor_of(framework)
        with one_thread(framework):
            steps = {"sgd": floor(weights, x, y, True), "step": step}
            times = measure(steps, rounds, {"sgd": 60, "step": max(3, 48 // size)}, framework)
        sgd, mine = (statistics.median(times[key]) for key in ("sgd", "step"))
        rows.append([f"{name}, {size} at once", framework, f"{mine / size:.2f}", f"{mine / size / sgd:.1f}"])
    return rows


def full_floor(framework: str) -> Callable[[int], None]:
    """What the full last layer's root must go through: J S, a product with it, and an update of its rank."""
    rng = np.random.default_rng(0)
    size, num_inputs = 257 * CLASSES, 257
    root, row, rows = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((size, size), (1, num_inputs), (CLASSES + 1, size))
    )
    if framework.startswith("torch"):
        import torch

        device = framework.partition(":")[2] or "cpu"
        held, column, others = (torch.tensor(array, device=device) for array in (root, row, 1e-3 * rows))

        def eager(i: int) -> None:
            column @ held.view(num_inputs, -1)
            held.addmm_((held @ others.T)[:, :-1], others[:-1], alpha=-1)
            if device != "cpu":
                torch.cuda.synchronize()

        return eager
    import jax

    def passes(root: Any, row: Any, rows: Any) -> Any:
        return root - (root @ rows.T)[:, :-1] @ rows[:-1], row @ root.reshape(num_inputs, -1)

    compiled = jax.jit(passes, donate_argnums=0)
    state = {"root": jax.device_put(root)}

    def step(i: int) -> None:
        state["root"], product = compiled(state["root"], row, 1e-3 * rows)
        jax.block_until_ready((state["root"], product))

    return step


def compare_last_layers(framework: str, rounds: int) -> list[list[str]]:
    """Rows of the third table: a full last layer for classes beside the diagonal step and the floor of its products,
    and for ten outputs of one normal noise the matrix that they share, which a Kronecker precision is exactly.
    """
    _, y = clusters(784, 64)
    targets = np.random.default_rng(1).standard_normal((64, CLASSES))
    likelihood, normal = bm.Categorical(CLASSES), bm.Gaussian(noise_variance=0.1, num_outputs=CLASSES)
    with one_thread(framework):
        steps = {
            "full": started_step(framework, bm.LastLayer(), likelihood, y)[0],
            "diagonal": started_step(framework, bm.Diagonal(), likelihood, y)[0],
            "products": full_floor(framework),
            "shared": started_step(framework, bm.LastLayer(bm.Kronecker()), normal, targets)[0],
            "normal": started_step(framework, bm.Diagonal(), normal, targets)[0],
        }
        times = measure(steps, rounds, 48, framework)
    at = {key: statistics.median(values) for key, values in times.items()}
    floor = at["diagonal"] + at["products"]
    return [
        ["Full, classes / (Diagonal + its products)", framework, f"{at['full']:.2f}", f"{at['full'] / floor:.2f}"],
        [
            "shared matrix, normal noise / Diagonal",
            framework,
            f"{at['shared']:.2f}",
            f"{at['shared'] / at['normal']:.2f}",
        ],
    ]


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
    floor = floor_of(framework)
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
            times = measure(steps, rounds, events, framework)
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
    table = Table("last layer, [784-256-256-10]", "engine", "ms an event", "ratio")
    for framework in options.engines:
        for row in compare_last_layers(framework, 3 if options.quick else 9):
            table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
