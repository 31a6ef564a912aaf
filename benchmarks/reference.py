"""How near every method is to the exact posterior, by a long NUTS run on the same data.

    python benchmarks/reference.py              # every method
    python benchmarks/reference.py --quick      # short chains, a few methods

Regression: scikit-learn's diabetes data, 150 rows, five tanh units, noise learned; at 150 other rows the mean
one-dimensional Wasserstein distance of the predictive distributions (in deviations of y), the ratio of the deviations
of the function, and coverage of 90% intervals. Classification: scikit-learn's wine data, two features of 60 rows; at
the others agreement of the likeliest class, and total variation of the probabilities. A second NUTS run says what the
figures of an exact method are. ``function sd`` below 1 is overconfidence: that of mean field, for instance.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from rich.console import Console
from sklearn.datasets import load_diabetes, load_wine

import bayesmlp as bm

LEVELS = (np.arange(100) + 0.5) / 100


def methods(quick: bool) -> dict[str, tuple[Any, Any, str]]:
    """Method (None: the stream), structure and engine by name."""
    own: dict[str, tuple[Any, Any, str]] = {
        "NUTS again": (bm.NUTS(200, 100, 2) if quick else bm.NUTS(500, 1000, 4), bm.Full(), "jax"),
        "MCLMC": (bm.MCLMC(), bm.Full(), "jax"),
        "Laplace, Full": (bm.Laplace(), bm.Full(), "torch"),
        "mean field": (bm.Variational(), bm.Diagonal(), "torch"),
        "stream, Full": (None, bm.Full(), "torch"),
    }  # fmt: skip
    if quick:
        return own
    return own | {
        "NUTS by Pyro": (bm.NUTS(200, 150, 2), bm.Full(), "torch"),
        "HMC": (bm.HMC(), bm.Full(), "jax"),
        "MCLMC, adjusted": (bm.AdjustedMCLMC(), bm.Full(), "jax"),
        "MEADS": (bm.MEADS(), bm.Full(), "jax"),
        "SGHMC": (bm.SGHMC(), bm.Full(), "torch"),
        "SGHMC, cyclical": (bm.SGHMC(cycles=4), bm.Full(), "torch"),
        "SGLD": (bm.SGLD(), bm.Full(), "torch"),
        "Laplace, LastLayer": (bm.Laplace(), bm.LastLayer(), "torch"),
        "Laplace, Kronecker": (bm.Laplace(), bm.Kronecker(), "torch"),
        "Laplace, LowRank": (bm.Laplace(), bm.LowRank(10), "torch"),
        "Laplace, Diagonal": (bm.Laplace(), bm.Diagonal(), "torch"),
        "mean field, IVON": (bm.Variational(optimizer="ivon"), bm.Diagonal(), "torch"),
        "variational, LowRank": (bm.StructuredVariational(), bm.LowRank(10), "torch"),
        "variational, Full": (bm.StructuredVariational(), bm.Full(), "torch"),
        "ensemble of Laplace": (bm.Ensemble(bm.Laplace()), bm.Full(), "torch"),
        "stacking": (bm.Stacking(), bm.Kronecker(), "torch"),
        "stream, LastLayer": (None, bm.LastLayer(), "torch"),
        "stream, Diagonal": (None, bm.Diagonal(), "torch"),
    }


def fitted(
    network: Any, likelihood: Any, x: np.ndarray, y: np.ndarray, what: tuple[Any, Any, str], seed: int
) -> bm.BayesianMLP:
    method, structure, engine = what
    model = bm.BayesianMLP(network, likelihood, structure=structure, engine=engine, standardize=False, seed=seed)
    return model.fit(x, y, method=method) if method is not None else _streamed(model, x, y)


def _streamed(model: bm.BayesianMLP, x: np.ndarray, y: np.ndarray) -> bm.BayesianMLP:
    model.update_each(x, y)
    return model


def quantiles(answer: Any) -> np.ndarray:
    return np.stack([np.ravel(answer.quantile(level)) for level in LEVELS])


def regression(console: Console, quick: bool) -> None:
    x, y = load_diabetes(return_X_y=True)
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    order = np.random.default_rng(0).permutation(len(x))
    learned, asked = order[:150], order[150:300]
    network, likelihood = bm.MLP((5,), "tanh"), bm.Gaussian()
    exact = bm.NUTS(200, 200, 2) if quick else bm.NUTS(2000, 2000, 4)
    started = time.perf_counter()
    reference = fitted(network, likelihood, x[learned], y[learned], (exact, bm.Full(), "jax"), 0)
    rhat = reference.fit_details["rhat"].max()
    console.print(f"diabetes: NUTS took {time.perf_counter() - started:.0f} s, largest R-hat of a function {rhat:.4f}")
    answer = reference.predict(x[asked])
    wanted, spread = quantiles(answer), np.sqrt(np.mean(answer.epistemic_variance))
    console.print(
        f"{'method':22} {'Wasserstein':>11} {'mean':>7} {'function sd':>11} {'coverage':>8} {'nll':>7} {'s':>6}"
    )
    for name, what in methods(quick).items():
        started = time.perf_counter()
        own = fitted(network, likelihood, x[learned], y[learned], what, 1).predict(x[asked])
        low, high = (np.ravel(bound) for bound in own.interval(0.9))
        away = np.mean(np.abs(quantiles(own) - wanted))
        console.print(
            f"{name:22} {away:11.4f} {np.mean(np.abs(own.mean - answer.mean)):7.4f} "
            f"{np.sqrt(np.mean(own.epistemic_variance)) / spread:11.3f} "
            f"{np.mean((low <= y[asked]) & (y[asked] <= high)):8.3f} {-own.log_prob(y[asked]).mean():7.4f} "
            f"{time.perf_counter() - started:6.1f}",
            highlight=False,
        )
    console.print(f"(NUTS: nll {-answer.log_prob(y[asked]).mean():.4f})")


def classification(console: Console, quick: bool) -> None:
    x, y = load_wine(return_X_y=True)
    x = ((x - x.mean(0)) / x.std(0))[:, [0, 10]]
    order = np.random.default_rng(0).permutation(len(x))
    learned, asked = order[:60], order[60:]
    network, likelihood = bm.MLP((5,), "tanh"), bm.Categorical(3)
    exact = bm.NUTS(200, 200, 2) if quick else bm.NUTS(1500, 1500, 4)
    reference = fitted(network, likelihood, x[learned], y[learned], (exact, bm.Full(), "jax"), 0)
    wanted = reference.predict(x[asked]).probabilities
    console.print(f"wine: largest R-hat of a logit {reference.fit_details['rhat'].max():.4f}")
    console.print(f"{'method':22} {'agreement':>9} {'total variation':>15} {'entropy':>8} {'accuracy':>8} {'nll':>7}")
    rows = {"(NUTS)": reference.predict(x[asked])}
    for name, what in methods(quick).items():
        rows[name] = fitted(network, likelihood, x[learned], y[learned], what, 1).predict(x[asked])
        own = rows[name].probabilities
        agreement = np.mean(own.argmax(1) == wanted.argmax(1))
        variation = np.mean(0.5 * np.abs(own - wanted).sum(1))
        console.print(
            f"{name:22} {agreement:9.3f} {variation:15.4f} {rows[name].entropy.mean():8.3f} "
            f"{np.mean(own.argmax(1) == y[asked]):8.3f} {-rows[name].log_prob(y[asked]).mean():7.4f}",
            highlight=False,
        )
    nuts = rows["(NUTS)"]
    console.print(
        f"(NUTS: entropy {nuts.entropy.mean():.3f}, accuracy {np.mean(wanted.argmax(1) == y[asked]):.3f}, "
        f"nll {-nuts.log_prob(y[asked]).mean():.4f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short chains, a few methods")
    options = parser.parse_args()
    console = Console(width=140)
    regression(console, options.quick)
    classification(console, options.quick)


if __name__ == "__main__":
    main()
