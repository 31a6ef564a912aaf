"""What is lost when four workers learn apart and are merged, against one stream of all observations.

``python benchmarks/merge.py`` (``--quick`` for one seed). A model learns a few observations and is branched four
times; the branches learn equal shares of the rest and are merged by their posteriors, once at the end, or several times
with a pull after each. For linear regression (diabetes) the merged posterior is that of the single stream; for a
classifier of digits with a hidden layer it is not, and the table shows the negative log likelihood of held-back digits.
There a merge by replay, which is the store's default for it, is shown beside.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_diabetes, load_digits

import bayesmlp as bm

WORKERS = 4


def learn(store: bm.PosteriorStore, name: str, engine: str, x: np.ndarray, y: np.ndarray) -> None:
    with bm.OnlineUpdater(store, name, engine=engine) as updater:
        updater.observe_many(x, y)


def streamed(store: bm.PosteriorStore, model: bm.BayesianMLP, engine: str, x: np.ndarray, y: np.ndarray) -> str:
    store.publish("single", model)
    learn(store, "single", engine, x, y)
    return "single"


def merged(
    store: bm.PosteriorStore,
    model: bm.BayesianMLP,
    engine: str,
    x: np.ndarray,
    y: np.ndarray,
    *,
    alone: int,
    rounds: int,
    how: str = "delta",
) -> str:
    """The first rows are learned alone; then each worker takes a share of every round."""
    name = f"{how}-{rounds}"
    store.publish(name, model)
    learn(store, name, engine, x[:alone], y[:alone])
    workers = [f"{name}/{i}" for i in range(WORKERS)]
    store.branch(name, workers)
    for part in np.array_split(np.arange(alone, len(x)), rounds):
        for worker, share in zip(workers, np.array_split(part, WORKERS), strict=True):
            learn(store, worker, engine, x[share], y[share])
        store.merge(name, workers, how=how)
        if rounds > 1:
            for worker in workers:
                store.pull(worker, how=how)
    return name


def linear(console: Console) -> None:
    x, y = load_diabetes(return_X_y=True)
    x, y = (x - x.mean(axis=0)) / x.std(axis=0), (y - y.mean()) / y.std()
    for noise_variance in (0.5, None):
        model = bm.BayesianMLP(
            bm.MLP(()), bm.Gaussian(noise_variance=noise_variance), structure=bm.Full(), engine="numpy",
            dtype="float64", standardize=False,
        )  # fmt: skip
        model.start_from_prior(x.shape[1])
        with tempfile.TemporaryDirectory() as folder, bm.open_store(Path(folder) / "store.db") as store:
            names = [streamed(store, model, "numpy", x, y)]
            names += [merged(store, model, "numpy", x, y, alone=42, rounds=rounds) for rounds in (1, 4)]
            single, *others = (bm.load(store, name, engine="numpy").predict(x) for name in names)
        gap = max(float(np.abs(getattr(p, m) - getattr(single, m)).max()) for p in others for m in ("mean", "std"))
        noise = "learned" if noise_variance is None else "known"
        console.print(f"linear regression, noise {noise}: means and deviations differ by at most {gap:.1e}")


def classifier(structure: bm.Diagonal | bm.LowRank | bm.Blocks, engine: str, seed: int) -> bm.BayesianMLP:
    model = bm.BayesianMLP(
        bm.MLP((64,), "tanh"), bm.Categorical(10), structure=structure, engine=engine, standardize=False, seed=seed
    )
    model.start_from_prior(64)
    return model


def digits(console: Console, engine: str, rounds: Sequence[int], seeds: Sequence[int]) -> None:
    x, y = load_digits(return_X_y=True)
    x = x / 16
    table = Table("structure", "single", "one worker", "replay", *(f"merges: {count}" for count in rounds))
    structures = {
        "Diagonal()": bm.Diagonal(),
        "LowRank(10)": bm.LowRank(10),
        "LastLayer(Kronecker())": bm.LastLayer(bm.Kronecker()),
    }
    for name, structure in structures.items():
        scores = []
        for seed in seeds:
            order = np.random.default_rng(seed).permutation(len(x))
            train, test = order[:1300], order[1300:]
            model = classifier(structure, engine, seed)
            with tempfile.TemporaryDirectory() as folder:
                store = bm.open_store(Path(folder) / "store.db", durability="normal")
                names = [streamed(store, model, engine, x[train], y[train])]
                several = [merged(store, model, engine, x[train], y[train], alone=100, rounds=r) for r in rounds]
                store.branch(several[0], "alone", version=101)
                learn(store, "alone", engine, x[train[100:400]], y[train[100:400]])
                replayed = merged(store, model, engine, x[train], y[train], alone=100, rounds=1, how="replay")
                names += ["alone", replayed, *several]
                answers = [bm.load(store, n, engine=engine).predict(x[test]) for n in names]
                scores.append([-float(answer.log_prob(y[test]).mean()) for answer in answers])
                store.close()
        table.add_row(name, *(f"{score:.3f}" for score in np.mean(scores, axis=0)))
    console.print(f"digits: negative log likelihood of held-back rows, {len(seeds)} seeds")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument("--engine", default="torch")
    options = parser.parse_args()
    console = Console(width=100)
    linear(console)
    digits(console, options.engine, (1, 4), range(1 if options.quick else 5))


if __name__ == "__main__":
    main()
