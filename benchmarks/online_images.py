"""The first 2,000 training images of MNIST once, in order, from the prior alone; tested on the 10,000.

    python benchmarks/online_images.py DATA               # DATA holds mnist/; 10 seeds
    python benchmarks/online_images.py DATA --quick       # 300 images, one seed, 100-100-10
    python benchmarks/online_images.py DATA --block 1     # one at a time

MLP 500-500-10. Images come in blocks, each a Bayes step. For each structure, with nothing stored and with a memory of
400 images: error, negative log likelihood at the mean, and of the linearised predictive distribution, and the numbers
kept, in multiples of the weights. Beside them Adam on the same network, which replays: every event it takes ten steps
on 32 images of a buffer. It keeps three numbers for each weight; its buffer has ten images, as in the published
comparison, or as many as a structure above stores, or as many as make it as large as one.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
from classification import read_images, read_labels
from rich.console import Console
from rich.table import Table

import bayesmlp as bm
from bayesmlp.metrics import accuracy, negative_log_likelihood

STRUCTURES: dict[str, Any] = {
    "Diagonal": bm.Diagonal(),
    "Kronecker": bm.Kronecker(),
    "LastLayer(Full, Diagonal)": bm.LastLayer(),
    "LowRank(10)": bm.LowRank(10),
}
SCALES = {"Diagonal": 2.0, "Kronecker": 4.0, "LastLayer(Full, Diagonal)": 2.0, "LowRank(10)": 2.0}
"""Of the prior; for Diagonal and Kronecker the better of a few on 10,000 other images of the training part."""
REHEARSED = 64  # images of the memory, each block
STEPS, BATCH, RATE, SMALLEST = 10, 32, 1e-3, 10
"""Of Adam: steps an event, images of a step, learning rate, images of the smallest buffer."""


def filtered(
    name: str, hidden: tuple[int, int], data: list[np.ndarray], engine: str, seed: int, block: int, stored: int
) -> list[float]:
    """Error, NLL at the mean, linearised NLL; numbers kept."""
    x, y, test_x, test_y = data
    model = bm.BayesianMLP(
        bm.MLP(hidden),
        bm.Categorical(10),
        prior=bm.NormalPrior(SCALES[name]),
        structure=STRUCTURES[name],
        memory=bm.Memory(stored, rehearsed=REHEARSED) if stored else None,
        engine=engine,
        standardize=False,
        seed=seed,
    )
    for start in range(0, len(x), block):
        model.update(x[start : start + block], y[start : start + block])
    linearized, mean = (model.predict(test_x, method=method).probabilities for method in ("linearized", "mean"))
    return [
        1 - accuracy(linearized, test_y),
        negative_log_likelihood(mean, test_y),
        negative_log_likelihood(linearized, test_y),
        sum(array.size for array in model.to_arrays().values()),
    ]


def replayed(hidden: tuple[int, int], data: list[np.ndarray], buffer: int, seed: int) -> list[float]:
    """Adam with a reservoir of past images; as :func:`filtered`."""
    import torch

    x, y, test_x, test_y = (torch.tensor(part) for part in data)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    sizes = (784, *hidden, 10)
    layers: list[Any] = []
    for before, after in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [torch.nn.Linear(before, after), torch.nn.ReLU()]
    network = torch.nn.Sequential(*layers[:-1])
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    kept: list[int] = []
    for row in range(len(x)):
        if len(kept) < buffer:
            kept.append(row)
        elif (place := int(torch.randint(row + 1, (1,), generator=generator))) < buffer:
            kept[place] = row
        pool = torch.tensor([*kept, row])
        for _ in range(STEPS):
            chosen = pool[torch.randint(len(pool), (BATCH,), generator=generator)]
            loss = torch.nn.functional.cross_entropy(network(x[chosen]), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        p = torch.softmax(network(test_x).double(), 1).numpy()
    nll = negative_log_likelihood(p, test_y.numpy())
    numbers = 3 * sum(parameter.numel() for parameter in network.parameters()) + buffer * (x.shape[1] + 1)
    return [1 - accuracy(p, test_y.numpy()), nll, nll, numbers]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the data sets")
    parser.add_argument("--quick", action="store_true", help="300 images, one seed, a small network")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--block", type=int, default=40, help="images of a step")
    parser.add_argument("--structures", nargs="*", default=list(STRUCTURES), choices=list(STRUCTURES))
    parser.add_argument("--stored", nargs="*", type=int, default=(0, 400), help="images in the memory; 0: none")
    parser.add_argument("--engine", default="jax")
    options = parser.parse_args()
    folder = options.data / "mnist"
    data = [read(folder, part) for part in ("train", "t10k") for read in (read_images, read_labels)]
    count, hidden, seeds = (300, (100, 100), 1) if options.quick else (2000, (500, 500), options.seeds)
    data = [data[0][:count], data[1][:count], *data[2:]]
    weights = sum((i + 1) * o for i, o in zip((784, *hidden), (*hidden, 10), strict=True))
    table = Table("", "seeds", "error", "NLL at the mean", "NLL linearised", "numbers kept / weights", "seconds a seed")
    console = Console(width=120)

    def report(name: str, results: list[list[float]], started: float) -> int:
        """Adds a row; the numbers that were kept."""
        mean, error = np.mean(results, axis=0), np.std(results, axis=0) / max(1, len(results) - 1) ** 0.5
        cells = [f"{m:.3f} ± {e:.3f}" for m, e in zip(mean[:3], error[:3], strict=True)]
        cells += [f"{mean[3] / weights:.2f}", f"{(time.perf_counter() - started) / len(results):.0f}"]
        table.add_row(name, str(len(results)), *cells)
        console.print(table)
        return int(mean[3])

    buffers = {SMALLEST}
    for name, stored in itertools.product(options.structures, options.stored):
        started = time.perf_counter()
        results = [filtered(name, hidden, data, options.engine, seed, options.block, stored) for seed in range(seeds)]
        numbers = report(f"{name}, {stored} stored" if stored else name, results, started)
        buffers |= {min(count, max(SMALLEST, images)) for images in (stored, (numbers - 3 * weights) // 785)}
    for buffer in sorted(buffers):
        started = time.perf_counter()
        results = [replayed(hidden, data, buffer, seed) for seed in range(seeds)]
        report(f"Adam, replay of {buffer:,} images", results, started)


if __name__ == "__main__":
    main()
