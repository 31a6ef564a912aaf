"""A million updates: is the posterior finite and positive definite, and is it still right?

    python benchmarks/long_run.py            # 10^6 updates for each structure, dtype and dynamics; about 20 minutes
    python benchmarks/long_run.py --quick    # 10^4

Each event is its own Bayes step, folded by ``Engine.scan`` in JAX. Two models: one that is linear in its weights, and a
network of 6 units; noise is learned, but known with forgetting, which is of the weights alone. Errors of the mean are
in posterior standard deviations of each weight, those of the variances relative; the largest of all weights is given.
What they are measured against:

- linear, static: the batch solve of all rows, in float64 (wanted of ``Full`` and ``LowRank`` in float64: 1e-6);
- linear or network, forgetting: the same filter in float64, begun anew 40,000 events before the end, by when it has
  forgotten all but 1e-17 of its start: what the long run has accumulated is the difference;
- network, static: the same structure's long run in float64.

A structure that can't hold every correlation is no batch solve even in float64; its row says by how much.
"""

from __future__ import annotations

import argparse
import time
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

import bayesmlp as bm
from bayesmlp.inference.filtering import Posterior, filter_step
from bayesmlp.inference.structures import Structure

NUM_INPUTS = 3
NETWORKS = {"linear": bm.MLP(hidden=()), "network": bm.MLP(hidden=(6,), activation="tanh")}
STRUCTURES: dict[str, Structure] = {
    "Diagonal": bm.Diagonal(),
    "LowRank": bm.LowRank(4),
    "Kronecker": bm.Kronecker(),
    "Full": bm.Full(),
    "LastLayer": bm.LastLayer(bm.Full(), bm.LowRank(2)),
    "Subnetwork": bm.Subnetwork(12),
}
LIKELIHOODS = {"static": bm.Gaussian(), "forgetting": bm.Gaussian(noise_variance=0.02)}
DYNAMICS = {"static": bm.Static(), "forgetting": bm.Forgetting(0.999)}
PORTION = 10_000
LATE = 40_000


class Outcome(NamedTuple):
    """What is left after a run: means, variances, and whether every step and the end were sound."""

    mean: np.ndarray
    variance: np.ndarray
    sound: bool
    seconds: float


def events(portion: int) -> tuple[np.ndarray, np.ndarray]:
    """One portion of the stream, (rows, 1, inputs) and (rows, 1, 1)."""
    rng = np.random.default_rng(portion)
    x = rng.standard_normal((PORTION, 1, NUM_INPUTS)) @ np.array([[1, 0.8, 0], [0, 0.6, 0.5], [0, 0, 0.9]])
    signal = np.sin(x @ np.array([[1.0], [-0.7], [0.4]]))
    return x, signal + 0.1 * rng.standard_normal(signal.shape)


def fold_of(model: bm.BayesianMLP) -> Any:
    """``fold(posterior, prior, x, y)``: many events in one dispatch."""
    engine, filter_model = model.engine, model.filter_model

    def fold(posterior: Posterior, prior: Any, x: Any, y: Any) -> tuple[Posterior, Any]:
        def body(now: Posterior, row: Any) -> tuple[Posterior, Any]:
            inputs, target = row
            one = engine.constant(1.0, inputs)
            after, info = filter_step(engine, filter_model, now, prior, inputs, target, one[None], one)
            return after, info.ok

        after, ok = engine.scan(body, posterior, (x, y))
        return after, engine.xp.all(ok)

    return engine.jit(fold)


def run(network: str, structure: str, dtype: str, dynamics: str, portions: range) -> Outcome:
    """Fold a stream from the prior."""
    model = bm.BayesianMLP(
        NETWORKS[network], LIKELIHOODS[dynamics], structure=STRUCTURES[structure], dynamics=DYNAMICS[dynamics],
        engine="jax", dtype=dtype,
    )  # fmt: skip
    model.start_from_prior(NUM_INPUTS)
    fold, posterior, sound = fold_of(model), model.posterior, True
    began = time.perf_counter()
    for portion in portions:
        posterior, ok = fold(posterior, model.prior_state, *(model.engine.asarray(a) for a in events(portion)))
        sound &= bool(ok)
    model.set_posterior(posterior)
    mean, variance = (
        np.concatenate([w.ravel() for w in weights]).astype(np.float64)
        for weights in (model.mean_weights(), model.weight_variances())
    )
    with model.engine.scope():
        log_determinant = float(model.filter_model.of_member.log_determinant(model.engine, posterior.weights))
    sound &= bool(np.isfinite(mean).all() and np.isfinite(log_determinant) and (variance >= 0).all())
    sound &= bool((variance > 0).sum() >= min(12, len(variance)))  # all but the points of a Subnetwork
    return Outcome(mean, variance, sound, time.perf_counter() - began)


def batch_solve(portions: range) -> Outcome:
    """The linear model's posterior given all rows: conjugate, in float64."""
    model = bm.BayesianMLP(NETWORKS["linear"], bm.Gaussian(), structure=bm.Full(), engine="numpy", dtype="float64")
    model.start_from_prior(NUM_INPUTS)
    mean, variance = model.mean_weights()[0].ravel(), model.weight_variances()[0].ravel()
    shape, rate = (float(value) for value in model.posterior.likelihood)
    unit = np.diag(rate / shape / variance)
    precision, shifted, squares, count = unit.copy(), unit @ mean, mean @ unit @ mean, 0
    for portion in portions:
        x, y = (array[:, 0] for array in events(portion))
        rows = np.concatenate([x, np.ones((len(x), 1))], axis=1)
        precision += rows.T @ rows
        shifted += rows.T @ y[:, 0]
        squares, count = squares + float(np.sum(y * y)), count + len(x)
    solved = np.linalg.solve(precision, shifted)
    noise = (rate + 0.5 * (squares - solved @ shifted)) / (shape + 0.5 * count)
    return Outcome(solved, noise * np.diag(np.linalg.inv(precision)), True, 0.0)


def errors(outcome: Outcome, reference: Outcome) -> tuple[float, float]:
    """Of the means, in standard deviations; of the variances, relative."""
    known = reference.variance > 0
    scale = np.sqrt(reference.variance[known])
    mean = np.abs(outcome.mean - reference.mean)[known] / scale
    variance = np.abs(outcome.variance[known] / reference.variance[known] - 1)
    return float(mean.max()), float(variance.max())


def compare(network: str, dynamics: str, structures: list[str], portions: range) -> Table:
    """A row for each structure and dtype."""
    late = portions[-(LATE // PORTION) :]
    count = len(portions) * PORTION
    table = Table(
        "structure", "dtype", "sound", "error of mean, sd", "of variance, relative", "µs/step",
        title=f"{network}, {dynamics}: {count:,} updates", width=100,
    )  # fmt: skip
    for structure in structures:
        wide = reference = run(network, structure, "float64", dynamics, portions)
        if dynamics == "forgetting":
            reference = run(network, structure, "float64", dynamics, late)
        elif network == "linear":
            reference = batch_solve(portions)
        for dtype in ("float64", "float32"):
            outcome = wide if dtype == "float64" else run(network, structure, dtype, dynamics, portions)
            errs = ["the reference", ""] if outcome is reference else [f"{e:.1e}" for e in errors(outcome, reference)]
            sound = "yes" if outcome.sound else "NO"
            table.add_row(structure, dtype, sound, *errs, f"{1e6 * outcome.seconds / count:.0f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10^4 updates")
    parser.add_argument("--networks", nargs="*", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--structures", nargs="*", choices=list(STRUCTURES), default=list(STRUCTURES))
    options = parser.parse_args()
    for network in options.networks:
        several = [s for s in options.structures if network == "network" or s not in ("LastLayer", "Subnetwork")]
        for dynamics in DYNAMICS:
            Console(width=120).print(compare(network, dynamics, several, range(1 if options.quick else 100)))


if __name__ == "__main__":
    main()
