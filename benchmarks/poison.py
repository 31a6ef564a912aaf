"""Poison: a tenth of a stream's targets are wrong. How much worse are the answers on clean held-out data?

    python benchmarks/poison.py                 # diabetes (of scikit-learn), 10 splits
    python benchmarks/poison.py --quick         # 2 splits
    python benchmarks/poison.py DATA            # and every regression set of a folder (*.npz with X and y)

One pass from the prior through a network of 50 units, with its default structure; scaling from the first 50 rows. The
poisoned targets are off by 5, 50 and a million noise standard deviations, all to the same side, which is the harder
case; the noise standard deviation is the held-out RMSE of the plain filter after the clean stream. With the noise
known (that value) and learned. Extra error: RMSE minus that of the same filter after the clean stream, in noise
standard deviations; wanted: at most 0.3. Loss on clean data: RMSE of the bounded filter over that of the plain one;
wanted: at most 5%. An event that is refused for its size, or whose step would not be finite, is left out, as an updater
does.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import bayesmlp as bm
from bayesmlp.validation import MAX_MAGNITUDE

DEVIATIONS = (5.0, 50.0, 1e6)
SHARE = 0.1
MOST_ROWS = 1000

Data = tuple[np.ndarray, np.ndarray]


def data_sets(folder: Path | None) -> Iterator[tuple[str, Data]]:
    """Names and rows."""
    from sklearn.datasets import load_diabetes

    yield "diabetes", load_diabetes(return_X_y=True)
    for path in sorted(folder.glob("*.npz")) if folder else ():
        data = np.load(path)
        yield path.stem, (data["X"].astype(np.float64), data["y"].astype(np.float64).ravel())


def held_out_rmse(
    train: Data,
    test: Data,
    clean_y: np.ndarray,
    noise: float | None,
    influence: bm.InverseMultiquadric | None,
    seed: int,
) -> float:
    """RMSE on held-out rows after one pass."""
    likelihood = bm.Gaussian(noise_variance=None if noise is None else noise**2)
    model = bm.BayesianMLP(bm.MLP(hidden=(50,)), likelihood, influence=influence, engine="torch", seed=seed)
    scaling = model.estimate_scaling(train[0][:50], clean_y[:50])
    model.start_from_prior(train[0].shape[1], scaling)
    for x, y in zip(*train, strict=True):
        if abs(y - scaling.target_mean[0]) > MAX_MAGNITUDE * scaling.target_scale[0]:
            continue  # such a target is refused
        with contextlib.suppress(bm.errors.NumericalFailure):
            model.update(x[None], [y])
    return float(np.sqrt(np.mean((model.predict(test[0]).mean - test[1]) ** 2)))


def run(data: Data, seed: int, learned: bool) -> np.ndarray:
    """Extra errors of the bounded filter, its loss on clean data, and the plain filter's extra errors."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(data[0]))[:MOST_ROWS]
    cut = len(order) // 5
    x, y = data[0][order[cut:]], data[1][order[cut:]]
    test = data[0][order[:cut]], data[1][order[:cut]]
    deviation = held_out_rmse((x, y), test, y, None, None, seed)
    noise = None if learned else deviation
    poisoned = rng.random(len(y)) < SHARE
    rows = []
    for influence in (bm.InverseMultiquadric(), None):
        streams = [y, *(y + poisoned * size * deviation for size in DEVIATIONS)]
        rows.append([held_out_rmse((x, stream), test, y, noise, influence, seed) for stream in streams])
    bounded, plain = np.asarray(rows)
    extra, plain_extra = ((errors[1:] - errors[0]) / deviation for errors in (bounded, plain))
    return np.concatenate([extra, [bounded[0] / plain[0] - 1], plain_extra])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, help="a folder of regression sets")
    parser.add_argument("--quick", action="store_true", help="two splits")
    parser.add_argument("--splits", type=int, default=10)
    options = parser.parse_args()
    sizes = [f"{size:g} sd" for size in DEVIATIONS]
    table = Table(
        "set", "noise", *sizes, "clean loss", *(f"plain {s}" for s in sizes),
        title="10% poison: extra RMSE in noise standard deviations; mean ± standard error over the splits",
    )  # fmt: skip
    worst, most_lost = 0.0, -1.0
    for name, data in data_sets(options.data):
        for learned in (False, True):
            splits = range(2 if options.quick else options.splits)
            results = np.asarray([run(data, seed, learned) for seed in splits])
            mean, error = results.mean(0), results.std(0, ddof=1) / len(results) ** 0.5
            bounded = [f"{m:+.3f} ± {e:.3f}" for m, e in zip(mean[:3], error[:3], strict=True)]
            loss = f"{100 * mean[3]:+.1f}% ± {100 * error[3]:.1f}"
            plain = [f"{m:+.3g}" for m in mean[4:]]
            table.add_row(name, "learned" if learned else "known", *bounded, loss, *plain)
            worst, most_lost = max(worst, float(mean[:3].max())), max(most_lost, float(mean[3]))
    console = Console(width=150)
    console.print(table)
    console.print(f"worst extra error {worst:.3f} (wanted: at most 0.3); worst clean loss {100 * most_lost:.1f}% (5%)")


if __name__ == "__main__":
    main()
