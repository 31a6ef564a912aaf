"""What fitting, answering and training cost, in units of a plain pass of the same framework in the same process.

    python benchmarks/cost.py            # both frameworks
    python benchmarks/cost.py --quick    # fewer rounds

One thread. Floors and ours take turns; a ratio is that of the median CPU times of the process, so that what else runs
on the machine counts little. Compilation is left out. The peers' figures were measured elsewhere, in the same units.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import argparse
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from online_update import wait
from rich.console import Console
from rich.table import Table

import bayesmlp as bm
from bayesmlp.inference.engines import Engine, get_engine
from bayesmlp.inference.gauss_newton import curvature_of
from bayesmlp.inference.structures import Structure

Work = Callable[[], Any]

ROWS, BATCH, ASKED = 10_000, 128, 256
NETWORK, WIDE = bm.MLP((256, 256)), bm.MLP((400, 400))
CLASSES = bm.Categorical(10)
STRUCTURES = {
    "Diagonal": bm.Diagonal(),
    "Kronecker": bm.Kronecker(),
    "LastLayer(Full, Point)": bm.LastLayer(bm.Full(), bm.Point()),
}
PEERS = {
    "Laplace fit, Diagonal": "laplace-torch 2,060",
    "Laplace fit, Kronecker": "laplace-torch 15.4",
    "predictive, Diagonal": "laplace-torch 7,290",
    "predictive, Kronecker": "laplace-torch 27,500",
    "predictive, LastLayer(Full, Point)": "laplace-torch 560",
    "variational step": "IVON 2.75, torchbnn 2.9, NumPyro 3.0, bayesian-torch 4.2, posteriors 4.5, blitz 5.5, Pyro 5.5",
}
LIMITS = {
    "Laplace fit, Diagonal": 2.3,
    "Laplace fit, Kronecker": 4.0,
    "predictive, Diagonal": 7.0,
    "predictive, LastLayer(Full, Point)": 16.0,
    "predictive variances, LastLayer(Full, Point)": 5.0,
    "variational step": 2.0,
}


def data(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Ten clusters, as images have."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, rows)
    x = 0.5 * rng.standard_normal((rows, 784)) + 0.5 * rng.standard_normal((10, 784))[y]
    return x.astype(np.float32), y


def medians(works: dict[str, Work], rounds: int) -> dict[str, float]:
    """CPU seconds of each piece of work, which take turns; the first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for round_ in range(-1, rounds):
        for name, work in works.items():
            started = time.process_time()
            work()
            if round_ >= 0:
                times[name].append(time.process_time() - started)
    return {name: statistics.median(values) for name, values in times.items()}


# -- floors -----------------------------------------------------------------------------------------------------------
def torch_network(weights: tuple[np.ndarray, ...]) -> Any:
    """As a user writes it."""
    import torch

    layers: list[Any] = []
    for matrix in weights:
        linear = torch.nn.Linear(matrix.shape[0] - 1, matrix.shape[1])
        linear.weight.data.copy_(torch.tensor(matrix[:-1].T))
        layers += [linear, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def torch_floors(weights: tuple[np.ndarray, ...], x: np.ndarray, y: np.ndarray) -> dict[str, Work]:
    """An epoch's forward and backward pass, one forward pass, and an epoch of Adam."""
    import torch

    torch.set_num_threads(1)
    network = torch_network(weights)
    optimizer = torch.optim.Adam(network.parameters())
    inputs, targets = torch.tensor(x), torch.tensor(y)

    def epoch(step: bool) -> None:
        for start in range(0, len(x), BATCH):
            network.zero_grad()
            rows = slice(start, start + BATCH)
            torch.nn.functional.cross_entropy(network(inputs[rows]), targets[rows]).backward()
            if step:
                optimizer.step()

    def forward() -> None:
        with torch.no_grad():
            network(inputs[:ASKED])

    return {"epoch": lambda: epoch(False), "forward": forward, "adam": lambda: epoch(True)}


def jax_floors(weights: tuple[np.ndarray, ...], x: np.ndarray, y: np.ndarray) -> dict[str, Work]:
    """The same, jitted."""
    import jax
    import jax.numpy as jnp
    import optax

    def network(parameters: Any, rows: Any) -> Any:
        for index, (matrix, bias) in enumerate(parameters):
            rows = rows @ matrix + bias
            rows = jax.nn.relu(rows) if index < len(parameters) - 1 else rows
        return rows

    def loss(parameters: Any, rows: Any, targets: Any) -> Any:
        return -jnp.mean(jax.nn.log_softmax(network(parameters, rows))[jnp.arange(len(targets)), targets])

    parameters = [(jnp.asarray(w[:-1], jnp.float32), jnp.asarray(w[-1], jnp.float32)) for w in weights]
    optimizer = optax.adam(1e-3)
    gradient, forward = jax.jit(jax.value_and_grad(loss)), jax.jit(network)
    targets, asked = y.astype(np.int32), jnp.asarray(x[:ASKED])

    @jax.jit
    def step(parameters: Any, state: Any, rows: Any, targets: Any) -> Any:
        updates, state = optimizer.update(jax.grad(loss)(parameters, rows, targets), state)
        return optax.apply_updates(parameters, updates), state

    def epoch() -> None:
        for start in range(0, len(x), BATCH):
            result = gradient(parameters, x[start : start + BATCH], targets[start : start + BATCH])
        jax.block_until_ready(result)

    def adam() -> None:
        carry = (parameters, optimizer.init(parameters))
        for start in range(0, len(x), BATCH):
            carry = step(*carry, x[start : start + BATCH], targets[start : start + BATCH])
        jax.block_until_ready(carry)

    return {"epoch": epoch, "forward": lambda: jax.block_until_ready(forward(parameters, asked)), "adam": adam}


def floors(framework: str, network: bm.MLP, x: np.ndarray, y: np.ndarray) -> dict[str, Work]:
    make = torch_floors if framework == "torch" else jax_floors
    return make(network.initialise(784, 10, 0), x, y)


# -- ours -------------------------------------------------------------------------------------------------------------
def laplace_work(engine: Engine, structure: Structure, x: np.ndarray, y: np.ndarray) -> Work:
    """The curvature of every row, added to the prior: what Laplace does after training."""
    resolved = structure.resolve(NETWORK.num_layers)
    shapes = NETWORK.shapes(784, 10)
    with engine.scope():
        mean = tuple(engine.asarray(m) for m in NETWORK.initialise(784, 10, 0))
        state = resolved.begin(engine, mean, tuple(engine.asarray(p) for p in bm.NormalPrior().precision(shapes)))
    rows, weight = (engine.asarray(x), engine.asarray(CLASSES.prepare(y))), np.ones(len(x))
    add = curvature_of(engine, NETWORK, CLASSES, resolved, [True] * len(shapes))
    return lambda: wait(engine, add(state, rows, weight, ()))


def predictive_work(framework: str, structure: Any, x: np.ndarray, what: str) -> Work:
    """Outputs and their covariances through the model's own path, from the form that it prepares."""
    model = bm.BayesianMLP(NETWORK, CLASSES, structure=structure, engine=framework, standardize=False)
    model.start_from_prior(784)
    asked = x[:ASKED].astype(np.float64)
    answering, posterior = model._answering, model.posterior
    least = model.filter_model.structure.rows_worth_preparing(posterior.weights, NETWORK.num_layers - 1) or 0
    for _ in range(1 + least // ASKED):
        answering.linearized(posterior, asked, what)
    return lambda: answering.linearized(posterior, asked, what)


def variational_step(framework: str, x: np.ndarray, y: np.ndarray, epochs: int) -> float:
    """CPU seconds of one training step, from fits of two lengths: what both have in common drops out."""
    seconds = []
    for count in (epochs, 3 * epochs):
        model = bm.BayesianMLP(WIDE, CLASSES, structure=bm.Diagonal(), engine=framework, standardize=False)
        options = bm.TrainingOptions(epochs=count, batch_size=BATCH)
        started = time.process_time()
        model.fit(x, y, method=bm.Variational(options))
        seconds.append(time.process_time() - started)
    return (seconds[1] - seconds[0]) / (2 * epochs * (len(x) // BATCH))


# -- memory -----------------------------------------------------------------------------------------------------------
def peak_memory(framework: str, what: str) -> float:
    """Extra memory at the peak of a fit, in multiples of the weights' own, in a process of its own."""
    command = [sys.executable, __file__, "--memory", framework, what]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm", encoding="ascii") as fields:
        return int(fields.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure_memory(framework: str, what: str) -> float:
    x, y = data(2048)
    network = WIDE if what == "variational" else NETWORK
    warm = bm.BayesianMLP(bm.MLP((8,)), CLASSES, structure=bm.Diagonal(), engine=framework, standardize=False)
    warm.fit(x, y, method=bm.Laplace(bm.TrainingOptions(epochs=1, batch_size=BATCH)))
    model = bm.BayesianMLP(network, CLASSES, structure=bm.Diagonal(), engine=framework, standardize=False)
    method = bm.Variational(bm.TrainingOptions(epochs=2, batch_size=BATCH))
    works: dict[str, Work] = {name: laplace_work(get_engine(framework), s, x, y) for name, s in STRUCTURES.items()}
    works["variational"] = lambda: model.fit(x, y, method=method)
    before, peak, done = resident(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            peak.append(resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    works[what]()
    done.set()
    watcher.join()
    return (max(peak) - before) / sum(4 * rows * columns for rows, columns in network.shapes(784, 10))


# -- the tables -------------------------------------------------------------------------------------------------------
def compare(framework: str, rounds: int) -> dict[str, float]:
    """Every ratio of one framework."""
    x, y = data(ROWS)
    engine = get_engine(framework)
    floor = floors(framework, NETWORK, x, y)
    ratios: dict[str, float] = {}
    fits = {name: laplace_work(engine, STRUCTURES[name], x, y) for name in ("Diagonal", "Kronecker")}
    times = medians({"floor": floor["epoch"], **fits}, rounds)
    ratios |= {f"Laplace fit, {name}": times[name] / times["floor"] for name in fits}

    answers = {f"predictive, {n}": predictive_work(framework, s, x, "covariance") for n, s in STRUCTURES.items()}
    answers |= {
        f"predictive variances, {n}": predictive_work(framework, s, x, "variance") for n, s in STRUCTURES.items()
    }
    times = medians({"floor": lambda: [floor["forward"]() for _ in range(10)], **answers}, 4 * rounds)
    ratios |= {name: 10 * times[name] / times["floor"] for name in answers}

    some, labels = x[: 20 * BATCH], y[: 20 * BATCH]
    adam = floors(framework, WIDE, some, labels)["adam"]
    pairs = [(medians({"adam": adam}, 3)["adam"] / 20, variational_step(framework, some, labels, 15)) for _ in range(3)]
    ratios["variational step"] = statistics.median(ours / plain for plain, ours in pairs)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--engines", nargs="+", default=["torch", "jax"])
    parser.add_argument("--memory", nargs=2, metavar=("ENGINE", "WORK"), help="print one peak and stop")
    options = parser.parse_args()
    console = Console()
    if options.memory:
        print(measure_memory(*options.memory))
        return
    table = Table("work", *options.engines, "limit", "peers")
    columns = [compare(framework, 2 if options.quick else 7) for framework in options.engines]
    for name in columns[0]:
        limit = f"{LIMITS[name]:g}" if name in LIMITS else ""
        table.add_row(name, *(f"{column[name]:.2f}" for column in columns), limit, PEERS.get(name, ""))
    console.print(table)
    memory = Table("peak extra memory, in weights", *options.engines)
    for what in ("Diagonal", "Kronecker", "variational"):
        memory.add_row(what, *(f"{peak_memory(framework, what):.1f}" for framework in options.engines))
    console.print(memory)


if __name__ == "__main__":
    main()
