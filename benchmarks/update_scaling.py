"""How the step of the online update grows: its time with the number of weights, and the memory that it takes.

    python benchmarks/update_scaling.py curve              # 10^5 to 10^8 weights, Diagonal
    python benchmarks/update_scaling.py memory             # the peak, in numbers of float32 for each weight
    python benchmarks/update_scaling.py curve --engines torch:cuda

Memory is the state and, on top of it, the peak of what the process took during steps that were compiled before, from
Linux's own account of resident memory; the limit is R + 4 for a structure of R columns.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from online_update import clusters, floor_of, full_step, measure, one_thread
from rich.console import Console
from rich.table import Table

import bayesmlp as bm
from bayesmlp.inference.engines.base import leaves_of

CLASSES = 10
INPUTS = 784
WIDTHS = (115, 256, 740, 2_780, 9_615)  # of two hidden layers: 10^5 to 10^8 weights
STRUCTURES: dict[str, tuple[Any, int]] = {
    "Diagonal": (bm.Diagonal(), 0),
    "LowRank(10)": (bm.LowRank(10), 10),
    "LowRank(10, buffer=16)": (bm.LowRank(10, buffer=16), 10),
}
MEMORY_WIDTH = 3_000


def prior(width: int, structure: Any, framework: str) -> bm.BayesianMLP:
    """A model that has learned nothing yet."""
    network, likelihood = bm.MLP((width, width)), bm.Categorical(CLASSES)
    model = bm.BayesianMLP(network, likelihood, structure=structure, engine=framework, standardize=False)
    model.start_from_prior(INPUTS)
    return model


def curve(framework: str, largest: int) -> Table:
    """Times of an SGD step and of an event, the quickest of five rounds."""
    x, y = clusters(INPUTS, 64)
    table = Table("weights", "engine", "SGD step (ms)", "event (ms)", "event / SGD", "ns / weight")
    for width in WIDTHS:
        model = prior(width, bm.Diagonal(), framework)
        weights = list(model.mean_weights())
        count = sum(matrix.size for matrix in weights)
        if count > largest:
            break
        floor = floor_of(framework)
        with one_thread(framework):
            steps = {"sgd": floor(weights, x, y, True), "step": full_step(model, x, y.astype(np.int32))}
            del weights, model
            gc.collect()
            times = measure(steps, 5, 16 if count < 10**7 else 3, framework)
        sgd, step = (min(times[key]) for key in ("sgd", "step"))
        row = (f"{count:,}", framework, f"{sgd:.3f}", f"{step:.3f}", f"{step / sgd:.2f}", f"{step / count * 1e6:.2f}")
        table.add_row(*row)
        del steps
        gc.collect()
    return table


def resident(what: str) -> int:
    """Bytes of resident memory now (``VmRSS``) or at the peak (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(what))


def memory_of(name: str, framework: str) -> tuple[float, float]:
    """Numbers of float32 for each weight: of the state, and of what steps take beside it at the peak."""
    structure, _ = STRUCTURES[name]
    x, y = clusters(INPUTS, 8)
    prepared = y.astype(np.int32)
    own = prior(MEMORY_WIDTH, structure, framework)
    count = sum(matrix.size for matrix in own.mean_weights())
    compiled = own.filter_model.compile_in_place(own.engine)
    posterior = own.to_engine(own.engine).posterior
    state = sum(leaf.nbytes for leaf in leaves_of(posterior.weights)) / 4 / count
    before = 0
    for i in range(6):
        if i == 3:  # compiled, and what was freed is given back
            gc.collect()
            before = resident("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")
        batch = own.batch(x[i : i + 1], prepared[i : i + 1], np.ones(1), 1.0)
        posterior, info = compiled(posterior, None, *batch)
        assert bool(own.engine.fetch(info).ok)
    return state, max(0, resident("VmHWM") - before) / 4 / count


def memory(frameworks: list[str]) -> Table:
    """Each structure in a process of its own."""
    table = Table("structure", "engine", "state / P", "step / P", "sum / P", "limit / P")
    for framework in frameworks:
        for name, (_, rank) in STRUCTURES.items():
            command = [sys.executable, __file__, "memory-of", name, "--engines", framework]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            state, taken = map(float, printed.split()[-2:])
            table.add_row(name, framework, f"{state:.2f}", f"{taken:.2f}", f"{state + taken:.2f}", f"{rank + 4}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["curve", "memory", "memory-of"])
    parser.add_argument("structure", nargs="?", choices=list(STRUCTURES), help="for memory-of")
    parser.add_argument("--engines", nargs="+", default=["torch", "jax"])
    parser.add_argument("--largest", type=int, default=2 * 10**8, help="number of weights")
    options = parser.parse_args()
    console = Console()
    if options.what == "memory-of":
        print(*memory_of(options.structure, options.engines[0]))
    elif options.what == "memory":
        console.print(memory(options.engines))
    else:
        for framework in options.engines:
            console.print(curve(framework, options.largest))


if __name__ == "__main__":
    main()
