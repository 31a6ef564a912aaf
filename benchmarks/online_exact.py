"""How far a stream's posterior is from the exact one: each structure after one pass against NUTS on the same rows.

    python benchmarks/online_exact.py              # every structure, 4 chains
    python benchmarks/online_exact.py --quick      # two structures, short chains

scikit-learn's diabetes data, standardised: 150 rows to learn, the rest to ask about; one hidden layer of five tanh
units, known noise. For the predictive distribution at each row asked about: the one-dimensional Wasserstein distance
from NUTS's, the difference of the means and the ratio of the standard deviations, averaged; and how many targets the
90% intervals hold. The filters' prior is normal around an initialisation, NUTS's around 0 with the same variances: a
network whose units may change places has no other centre, and a part of the distance is that. A batch Laplace fit
stands beside them.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_diabetes

import bayesmlp as bm

ROWS, ASKED = 150, 150
NETWORK, NOISE = bm.MLP((5,), "tanh"), bm.Gaussian(noise_variance=0.5)
LEVELS = (np.arange(100) + 0.5) / 100
STRUCTURES: dict[str, Any] = {
    "Full": bm.Full(),
    "LowRank(10)": bm.LowRank(10),
    "LastLayer": bm.LastLayer(),
    "Kronecker": bm.Kronecker(),
    "Diagonal": bm.Diagonal(),
}


def model_of(structure: Any, engine: str) -> bm.BayesianMLP:
    return bm.BayesianMLP(
        NETWORK, NOISE, prior=bm.NormalPrior(1.0), structure=structure, engine=engine, standardize=False
    )


def quantiles(predictive: Any) -> np.ndarray:
    """(levels, rows)."""
    return np.stack([np.ravel(predictive.quantile(level)) for level in LEVELS])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two structures, short chains")
    parser.add_argument("--engine", default="jax")
    options = parser.parse_args()
    x, y = load_diabetes(return_X_y=True)
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    order = np.random.default_rng(0).permutation(len(x))
    learned, asked = order[:ROWS], order[ROWS : ROWS + ASKED]
    chains = bm.NUTS(200, 200, 2) if options.quick else bm.NUTS(1000, 500, 4)
    exact = model_of(bm.Full(), options.engine).fit(x[learned], y[learned], method=chains).predict(x[asked])
    reference = quantiles(exact)
    answers = {"NUTS": exact}
    for name in ("Full", "Diagonal") if options.quick else STRUCTURES:
        model = model_of(STRUCTURES[name], options.engine)
        model.update_each(x[learned], y[learned])
        answers[f"stream, {name}"] = model.predict(x[asked])
    batch = model_of(bm.Full(), options.engine).fit(x[learned], y[learned], method=bm.Laplace())
    answers["batch Laplace, Full"] = batch.predict(x[asked])
    table = Table(
        "posterior", "Wasserstein distance", "difference of means", "ratio of deviations", "90% interval holds"
    )
    for name, answer in answers.items():
        low, high = (np.ravel(bound) for bound in answer.interval(0.9))
        table.add_row(
            name,
            f"{np.mean(np.abs(quantiles(answer) - reference)):.3f}",
            f"{np.mean(np.abs(answer.mean - exact.mean)):.3f}",
            f"{np.mean(answer.std / exact.std):.3f}",
            f"{np.mean((low <= y[asked]) & (y[asked] <= high)):.3f}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
