"""One pass over the UCI sets, each row seen once, against a batch fit of the same network.

    python benchmarks/online_uci.py DATA/uci_regression             # every set and split
    python benchmarks/online_uci.py DATA/uci_regression --quick     # one split of the small sets

One hidden layer of 50 tanh units (100 for protein), normal noise that is learned from the newest 50 rows, all
correlations; prior scale and starting noise are chosen by the stream's evidence (EvidenceGrid). Once with nothing
stored, and once with a memory of 100 rows, of which each event rehearses eight. Inputs and targets are standardised on
the training part, as the protocol of these splits has it. Three orders: as given, shuffled, sorted by target. The batch
fit is Laplace's, of the same network, prior and structure, and the noise of all rows. Published: the best of six
one-pass filters whose hyperparameters were searched on a warm-up set.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import bayesmlp as bm

PUBLISHED = {"boston": 3.52, "concrete": 6.45, "energy": 1.58, "naval": 0.00039, "yacht": 2.31}
SETS = ("boston", "concrete", "energy", "naval", "protein", "yacht")
SCALES, DISPERSIONS = (0.5, 1.0, 2.0), (1.0, 0.1, 0.01)
NOISE_WINDOW = 50  # rows
STRUCTURES: dict[str, bm.Full | bm.LowRank | bm.Blocks | bm.Diagonal | bm.Kronecker] = {
    "Full": bm.Full(),
    "LowRank(10)": bm.LowRank(10),
    "LastLayer": bm.LastLayer(),
    "Kronecker": bm.Kronecker(),
    "Diagonal": bm.Diagonal(),
}


def network_of(name: str) -> bm.MLP:
    return bm.MLP((100 if name == "protein" else 50,), "tanh")


def scores(model: bm.BayesianMLP, x: np.ndarray, y: np.ndarray) -> list[float]:
    """RMSE, NLL and the share of targets inside the 90% interval."""
    p = model.predict(x)
    low, high = (np.ravel(bound) for bound in p.interval(0.9))
    rmse = np.sqrt(np.mean((np.ravel(p.mean) - y) ** 2))
    return [float(rmse), float(-np.mean(p.log_prob(y))), float(np.mean((low <= y) & (y <= high)))]


def one_pass(
    name: str, x: np.ndarray, y: np.ndarray, structure: str, stored: int, engine: str, seed: int
) -> bm.BayesianMLP:
    """The posterior after every row, one by one, from the prior alone."""
    grid = bm.EvidenceGrid(STRUCTURES[structure], SCALES, DISPERSIONS)
    model = bm.BayesianMLP(
        network_of(name),
        bm.Gaussian(noise_window=NOISE_WINDOW),
        prior=bm.NormalPrior(1.0),
        structure=grid,
        memory=bm.Memory(stored) if stored else None,
        engine=engine,
        seed=seed,
    )
    model.start_from_prior(x.shape[1], model.estimate_scaling(x, y))
    model.update_each(x, y)
    return model


def batch_fit(name: str, x: np.ndarray, y: np.ndarray, engine: str, seed: int) -> bm.BayesianMLP:
    model = bm.BayesianMLP(
        network_of(name), bm.Gaussian(), prior=bm.NormalPrior(1.0), structure=bm.Full(), engine=engine, seed=seed
    )
    return model.fit(x, y, method=bm.Laplace())


def ordered(order: str, y: np.ndarray, seed: int) -> np.ndarray:
    if order == "sorted":
        return np.argsort(y, kind="stable")
    return np.arange(len(y)) if order == "given" else np.random.default_rng(seed).permutation(len(y))


def run(folder: Path, name: str, splits: int, plans: Sequence[tuple[str, str, int]], engine: str) -> dict[str, list]:
    """Scores of each split for each plan, a structure, an order and a memory, and for the batch fit."""
    with np.load(folder / f"{name}.npz") as file:
        x, y, trains, tests = (file[key] for key in ("X", "y", "splits_train", "splits_test"))
    x, y = x.astype(np.float64), y.astype(np.float64)
    results: dict[str, list] = {}
    for split in range(min(splits, len(trains))):
        train, test = trains[split], tests[split]
        for structure, order, stored in plans:
            rows = train[ordered(order, y[train], split)]
            model = one_pass(name, x[rows], y[rows], structure, stored, engine, split)
            fit = f"{structure}, {order}" + (f", {stored} stored" if stored else "")
            results.setdefault(fit, []).append(scores(model, x[test], y[test]))
        model = batch_fit(name, x[train], y[train], engine, split)
        results.setdefault("batch", []).append(scores(model, x[test], y[test]))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the UCI sets")
    parser.add_argument("--quick", action="store_true", help="one split of boston, energy and yacht")
    parser.add_argument("--sets", nargs="*", default=SETS, choices=SETS)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--orders", nargs="*", default=("given",), choices=("given", "shuffled", "sorted"))
    parser.add_argument("--structures", nargs="*", default=("Full",), choices=list(STRUCTURES))
    parser.add_argument("--stored", nargs="*", type=int, default=(0, 100), help="rows in the memory; 0: none")
    parser.add_argument("--engine", default="jax")
    parser.add_argument("--results", type=Path, help="file to write every split's scores to, as JSON")
    options = parser.parse_args()
    sets = ("boston", "energy", "yacht") if options.quick else options.sets
    plans = list(itertools.product(options.structures, options.orders, options.stored))
    console = Console(width=140)
    everything = {}
    table = Table("set", "fit", "splits", "RMSE", "published", "NLL", "NLL - batch", "90% interval holds", "seconds")
    for name in sets:
        started = time.perf_counter()
        results = everything[name] = run(
            options.data, name, 1 if options.quick else options.splits, plans, options.engine
        )
        seconds = time.perf_counter() - started
        batch = np.mean(results["batch"], axis=0)
        for fit, rows in results.items():
            mean, error = np.mean(rows, axis=0), np.std(rows, axis=0) / max(1, len(rows) - 1) ** 0.5
            cells = (f"{mean[0]:.4g} ± {error[0]:.2g}", f"{PUBLISHED.get(name, '')}", f"{mean[1]:.3f} ± {error[1]:.2g}")
            table.add_row(
                name, fit, str(len(rows)), *cells, f"{mean[1] - batch[1]:+.3f}", f"{mean[2]:.3f}", f"{seconds:.0f}"
            )
        console.print(table)
    if options.results:
        options.results.write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    main()
