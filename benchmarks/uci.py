"""Regression on the UCI sets: the protocol of Hernandez-Lobato and Adams, with its published splits.

    python benchmarks/uci.py DATA                       # all sets, all splits; an hour or two on two cores
    python benchmarks/uci.py DATA --quick               # two splits of the four small sets
    python benchmarks/uci.py DATA --sets yacht boston   # some of them

DATA holds ``boston.npz`` and so on, with ``X``, ``y``, ``splits_train`` and ``splits_test``. One hidden layer of 50
units (100 for protein); one configuration for all sets: :func:`recommended`. Scores are in the units of the targets.
Every split is written to the results file as it is done, and a later run goes on from there. At the end: a table beside
published figures, and a plot of it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import bayesmlp as bm

PUBLISHED = {  # root mean squared error and negative log likelihood: dropout, tuned; deep ensemble; best of its kind
    "boston": ((2.90, 2.40), (3.28, 2.41), 2.35),
    "concrete": ((4.82, 2.93), (6.03, 3.06), 2.83),
    "energy": ((0.54, 1.21), (2.09, 1.38), 0.53),
    "naval": ((0.0007, -4.45), (0.0, -5.63), -6.33),
    "protein": ((4.27, 2.87), (4.71, 2.83), 2.63),
    "yacht": ((0.67, 1.25), (1.58, 1.18), 0.16),
}
SMALL = ("boston", "concrete", "energy", "yacht")


def recommended(num_units: int, engine: str, steps: int | None = None) -> tuple[bm.BayesianMLP, Any]:
    """The recommended regression model, and the method that fits it: nothing is set by hand for a data set."""
    model = bm.BayesianMLP(
        bm.MLP(hidden=(num_units,)), bm.HeteroscedasticGaussian(), structure=bm.Full(), engine=engine
    )
    if steps is None:
        return model, bm.Stacking()
    return model, bm.Stacking(bm.Laplace(bm.TrainingOptions(steps=steps, learning_rate=1e-2)))


def run_split(path: Path, split: int, engine: str, steps: int | None = None) -> dict[str, Any]:
    """Fit one split and score it."""
    data = np.load(path)
    x, y = data["X"].astype(np.float64), data["y"].astype(np.float64).ravel()
    train, test = data["splits_train"][split], data["splits_test"][split]
    began = time.perf_counter()
    model, method = recommended(100 if path.stem == "protein" else 50, engine, steps)
    model.fit(x[train], y[train], method=method)
    seconds = time.perf_counter() - began
    answer = model.predict(x[test])
    low, high = answer.interval(0.9)
    return {
        "set": path.stem,
        "split": split,
        "engine": engine,
        "rmse": float(np.sqrt(np.mean((answer.mean - y[test]) ** 2))),
        "nll": float(-answer.log_prob(y[test]).mean()),
        "coverage": float(np.mean((low <= y[test]) & (y[test] <= high))),
        "seconds": seconds,
        "weights": [round(float(weight), 3) for weight in model.fit_details["weights"]],
    }


def summarise(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and standard error of each set over its splits."""
    summary = {}
    for name in sorted({row["set"] for row in rows}):
        own = [row for row in rows if row["set"] == name]
        entry: dict[str, float] = {"splits": len(own)}
        for key in ("rmse", "nll", "coverage", "seconds"):
            values = np.array([row[key] for row in own])
            entry[key] = float(values.mean())
            entry[f"{key}_error"] = float(values.std() / np.sqrt(len(values)))
        summary[name] = entry
    return summary


def show(summary: dict[str, dict[str, float]]) -> None:
    """The table, beside published figures."""
    table = Table(title="UCI regression: mean ± standard error over the splits; published figures beside")
    for column in (
        "set",
        "splits",
        "RMSE",
        "dropout",
        "ensemble",
        "NLL",
        "dropout",
        "ensemble",
        "best MLP",
        "90%",
        "s",
    ):
        table.add_column(column, justify="right")
    for name, entry in summary.items():
        dropout, ensemble, best = PUBLISHED[name]
        digits = 5 if name == "naval" else 2
        table.add_row(
            name,
            str(entry["splits"]),
            f"{entry['rmse']:.{digits}f} ± {entry['rmse_error']:.{digits}f}",
            f"{dropout[0]:.{min(digits, 4)}f}",
            f"{ensemble[0]:.{min(digits, 4)}f}",
            f"{entry['nll']:.3f} ± {entry['nll_error']:.3f}",
            f"{dropout[1]:.2f}",
            f"{ensemble[1]:.2f}",
            f"{best:.2f}",
            f"{entry['coverage']:.3f}",
            f"{entry['seconds']:.0f}",
        )
    Console(width=130).print(table)


def plot(summary: dict[str, dict[str, float]], path: Path) -> None:
    """Negative log likelihoods beside the published ones, one panel for each set."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.2 * len(summary), 3.2), layout="constrained")
    for axis, (name, entry) in zip(
        np.ravel(figure.subplots(1, len(summary), squeeze=False)), summary.items(), strict=True
    ):
        dropout, ensemble, best = PUBLISHED[name]
        values = (dropout[1], ensemble[1], best)
        axis.plot(range(3), values, "o", color="0.5")
        axis.errorbar([3], [entry["nll"]], yerr=[entry["nll_error"]], fmt="o", color="C0", capsize=3)
        axis.set_xticks(range(4), ["dropout", "ensemble", "best MLP", "bayesmlp"], rotation=60, ha="right")
        axis.set_title(name)
    figure.supylabel("negative log likelihood")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with the sets")
    parser.add_argument("--sets", nargs="+", choices=sorted(PUBLISHED), default=sorted(PUBLISHED))
    parser.add_argument("--splits", type=int, help="only the first ones")
    parser.add_argument("--engine", default="jax")
    parser.add_argument("--steps", type=int, help="of training, for all sets; else Stacking's own choice")
    parser.add_argument("--quick", action="store_true", help="two splits of the small sets, fewer steps")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/uci.json"))
    options = parser.parse_args()
    sets, splits, steps, results = options.sets, options.splits, options.steps, options.results
    if options.quick:
        sets, splits, steps = [name for name in sets if name in SMALL], 2, 2000
        results = results.with_name("uci-quick.json")
    rows = json.loads(results.read_text()) if results.exists() and not options.quick else []
    done = {(row["set"], row["split"]) for row in rows}
    results.parent.mkdir(parents=True, exist_ok=True)
    for name in sets:
        path = options.data / f"{name}.npz"
        count = len(np.load(path)["splits_train"])
        for split in range(min(count, splits or count)):
            if (name, split) not in done:
                rows.append(run_split(path, split, options.engine, steps))
                results.write_text(json.dumps(rows, indent=1))
    summary = summarise([row for row in rows if row["set"] in sets])
    show(summary)
    plot(summary, results.with_suffix(".png"))


if __name__ == "__main__":
    main()
