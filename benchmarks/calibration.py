"""Simulation-based calibration: are posteriors what they say, over data sets drawn from the prior?

    python benchmarks/calibration.py                        # NUTS and MCLMC, 100 runs each
    python benchmarks/calibration.py --methods all          # and Laplace, mean field, the stream: their bias
    python benchmarks/calibration.py --quick                # 16 runs
    python benchmarks/calibration.py --plots FOLDER

A network of three tanh units, two inputs, 15 rows, noise learned under an inverse-gamma prior. Ranks of the truth among
63 posterior draws, of three function values and of the noise variance; uniform if the method is exact: χ² over eight
bins, p-values against .001 with Bonferroni's correction. ``spread`` is the variance of the ranks over the uniform's:
above 1 where a posterior is too narrow.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import bayesmlp as bm
from bayesmlp.diagnostics import simulation_based_calibration

EXACT: dict[str, Any] = {
    "NUTS": bm.NUTS(num_warmup=300, num_samples=300, num_chains=4, max_tree_depth=7),
    "MCLMC": bm.MCLMC(num_warmup=400, num_samples=150, num_chains=4, thinning=10, climb=100, energy_error=1e-4),
}
APPROXIMATE: dict[str, Any] = {
    "MEADS": bm.MEADS(num_warmup=1000, num_samples=10, num_chains=64, thinning=40, climb=100),
    "Laplace, Full": bm.Laplace(),
    "mean field": bm.Variational(),
    "stream, Full": None,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(EXACT), help='names as in the file, or "all"')
    parser.add_argument("--engine", default="torch")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--plots", type=Path)
    options = parser.parse_args()
    runs = 16 if options.quick else options.runs
    console = Console(width=140)
    console.print("method  runs  smallest p (of 4 quantities)  passes  mean rank - .5  spread of ranks  seconds a run")
    x = np.random.default_rng(4).standard_normal((15, 2))
    known = EXACT | APPROXIMATE
    for name in known if options.methods == ["all"] else options.methods:
        method = known[name]
        engine = "jax" if name == "NUTS" else options.engine
        structure = bm.Diagonal() if name == "mean field" else bm.Full()
        likelihood = bm.Gaussian(prior_shape=3.0, prior_rate=1.0)
        model = bm.BayesianMLP(bm.MLP((3,), "tanh"), likelihood, structure=structure, engine=engine, standardize=False)
        started = time.perf_counter()
        result = simulation_based_calibration(model, x, method=method, runs=runs)
        seconds = (time.perf_counter() - started) / runs
        console.print(
            f"{name:14} {runs:4d}  {result.p_values().min():.4f}  {'yes' if result.passes() else 'NO':3}  "
            f"{np.round(result.skew() - 0.5, 3)}  {np.round(result.spread(), 2)}  {seconds:.1f}",
            highlight=False,
        )
        if options.plots is not None:
            options.plots.mkdir(parents=True, exist_ok=True)
            result.plot(options.plots / f"ranks_{name.replace(', ', '_').replace(' ', '_')}.png")


if __name__ == "__main__":
    main()
