"""Streams with drift, prequentially: every row is predicted, then learned.

    python benchmarks/drift.py DATA                  # all streams; half an hour on two cores
    python benchmarks/drift.py DATA --quick          # the first 600 rows of each; nothing is written
    python benchmarks/drift.py DATA --streams outdoor --learners river
    python benchmarks/drift.py DATA --standardised   # without normal scores, into results of their own

DATA holds the folder ``streams``. One configuration of ours for all streams: :func:`adaptive`, which is a network of
50 units whose rate of drift is learned. Beside it: the same model without dynamics; the label before, said again; plain
SGD on the same network, its learning rate the best of five on the first 200 rows; and River's learners with their own
settings, its linear ones with Adam (``pip install 'bayesmlp[bench]'``). What each is offered is said in ``streams.py``.
The first 200 rows are not scored for anyone.
Every result is written to the results file as it is done, and a later run goes on from there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from river_learners import river_learners, river_scores
from streams import STREAMS, Stream, load_stream

import bayesmlp as bm
from bayesmlp.inference.engines import Engine
from bayesmlp.inference.filtering import FilterModel, Posterior, filter_step, pass_time
from bayesmlp.inference.likelihoods import Likelihood
from bayesmlp.inference.predicting import linearized_outputs
from bayesmlp.inference.structures import Mixture
from bayesmlp.scaling import Scaling

PREFIX = 200
KINDS = ("ours", "baselines", "river")
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
Scores = tuple[np.ndarray, np.ndarray]
"""Error of each row, 0 or 1 or squared, and minus its log density."""


def likelihood_of(stream: Stream) -> Likelihood:
    """The observation model of a stream."""
    if stream.num_classes == 0:
        return bm.Gaussian()
    return bm.Bernoulli() if stream.num_classes == 2 else bm.Categorical(stream.num_classes)


def our_model(stream: Stream, dynamics: Any) -> bm.BayesianMLP:
    """The one configuration for all streams, at its prior; numeric targets are scaled by the first 200 rows."""
    model = bm.BayesianMLP(
        bm.MLP(hidden=(50,)),
        likelihood_of(stream),
        prior=bm.NormalPrior(scale=3.0),
        structure=bm.LowRank(10),
        dynamics=dynamics,
        engine="jax",
        standardize=False,
    )
    scaling = Scaling.identity(stream.vectors.shape[1], model.likelihood.num_targets)
    if stream.num_classes == 0:
        first = stream.y[:PREFIX]
        scaling = scaling._replace(target_mean=first.mean(keepdims=True), target_scale=first.std(keepdims=True))
    model.start_from_prior(stream.vectors.shape[1], scaling)
    return model


def adaptive() -> bm.AdaptiveForgetting:
    """The default: nothing drifts, or weights gain a prior's variance in 100,000, 10,000, 1,000 or 100 rows."""
    return bm.AdaptiveForgetting()


def our_scores(stream: Stream, dynamics: Any) -> Scores:
    """Prequential scores of a Bayesian network, the whole stream in one compiled loop."""
    model = our_model(stream, dynamics)
    engine, filter_model, prior = model.engine, model.filter_model, model.prior_state
    targets = model.scaling.targets(model.likelihood.prepare(stream.y))
    one_row, one_event = np.ones(1, np.float32), np.ones((), np.float32)

    def event(posterior: Posterior, row: tuple[Any, Any]) -> tuple[Posterior, tuple[Any, Any]]:
        x, y = row[0][None], row[1][None]
        rested = pass_time(engine, filter_model, posterior, prior, one_event)
        expected = expected_target(engine, filter_model, rested, x)
        learned, info = filter_step(engine, filter_model, posterior, prior, x, y, one_row, one_event)
        return learned, (info.log_predictive, expected)

    fold = engine.jit(lambda posterior, rows: engine.scan(event, posterior, rows))
    _, (log_density, expected) = fold(model.posterior, (engine.as_batch(stream.vectors), engine.as_batch(targets)))
    return scored(stream, model.scaling, engine.to_numpy(log_density), engine.to_numpy(expected))


def expected_target(engine: Engine, model: FilterModel, posterior: Posterior, x: Any) -> Any:
    """E[y] of one row: for classes, their probabilities."""
    likelihood = model.likelihood

    def of_one(weights: Any, state: Any) -> Any:
        mean, covariance = linearized_outputs(engine, model.network, model.of_member, weights, x)
        covariance = covariance * likelihood.dispersion(state)

        def moments(small: Engine, *arrays: Any) -> Any:
            return likelihood.predictive_moments(small, *arrays).mean

        return engine.in_float64(moments, mean, covariance, state)[0]

    if not isinstance(model.structure, Mixture):
        return of_one(posterior.weights, posterior.likelihood)
    each = engine.batched(of_one)(posterior.weights.members, posterior.likelihood)
    return engine.xp.exp(posterior.weights.log_weights) @ each


def no_change_scores(stream: Stream) -> Scores:
    """The label before is said again, with the share of the times when that was right so far."""
    y, before, row = stream.y, stream.columns[:, -1], np.arange(len(stream.y))
    if stream.num_classes == 0:
        squared = (y - before) ** 2
        variance = (np.cumsum(squared) - squared + 1) / (row + 1)
        return squared, 0.5 * (np.log(2 * np.pi * variance) + squared / variance)
    right = y == before
    share = (np.cumsum(right) - right + 1) / (row + 2)
    return (~right).astype(np.float64), -np.log(np.where(right, share, (1 - share) / (stream.num_classes - 1)))


def sgd_scores(stream: Stream) -> Scores:
    """Plain SGD, one step a row, at the rate that scores best on the first rows."""
    trials = [(sgd_at_rate(stream.first(PREFIX), rate)[1].mean(), rate) for rate in RATES]
    return sgd_at_rate(stream, min((loss, rate) for loss, rate in trials if np.isfinite(loss))[1])


def sgd_at_rate(stream: Stream, rate: float) -> Scores:
    """Prequential scores of SGD; a regressor's noise variance is the mean of its squared errors so far."""
    model = our_model(stream, bm.Static())
    engine, likelihood = model.engine, likelihood_of(stream)
    if stream.num_classes == 0:
        likelihood = bm.Gaussian(noise_variance=1.0)
    xp = engine.xp
    targets = model.scaling.targets(likelihood.prepare(stream.y))
    state = likelihood.initial_state()

    def loss(weights: Any, x: Any, y: Any) -> tuple[Any, Any]:
        outputs = model.network.apply(engine, weights, x)
        return -xp.sum(likelihood.log_prob(engine, outputs, y, state)), outputs

    gradient_of = engine.value_and_grad(loss, has_aux=True)

    def event(carry: tuple[Any, Any, Any], row: tuple[Any, Any]) -> tuple[Any, tuple[Any, Any]]:
        weights, squares, count = carry
        x, y = row[0][None], row[1][None]
        (value, outputs), gradient = gradient_of(weights, x, y)
        expected = likelihood.mean(engine, outputs, state)[0]
        if stream.num_classes == 0:
            error, variance = xp.sum((y - outputs) ** 2), (squares + 1) / (count + 1)
            value = 0.5 * (xp.log(2 * np.pi * variance) + error / variance)
            squares = squares + error
        stepped = tuple(w - np.float32(rate) * g for w, g in zip(weights, gradient, strict=True))
        return (stepped, squares, count + 1), (-value, expected)

    fold = engine.jit(lambda carry, rows: engine.scan(event, carry, rows))
    start = tuple(engine.asarray(layer) for layer in model.mean_weights()), np.float32(0.0), np.float32(0.0)
    _, (log_density, expected) = fold(start, (engine.as_batch(stream.vectors), engine.as_batch(targets)))
    return scored(stream, model.scaling, engine.to_numpy(log_density), engine.to_numpy(expected))


def scored(stream: Stream, scaling: Scaling, log_density: np.ndarray, expected: np.ndarray) -> Scores:
    """Errors and losses in the units of the targets, from what was predicted of the scaled ones."""
    if stream.num_classes == 0:
        scale = scaling.target_scale[0]
        errors = (stream.y - scaling.target_mean[0] - scale * expected[:, 0]) ** 2
        return errors, np.log(scale) - log_density
    said = expected.argmax(1) if stream.num_classes > 2 else expected[:, 0] > 0.5
    return (said != stream.y).astype(np.float64), -log_density


def learners(stream: Stream, kinds: list[str]) -> Iterator[tuple[str, Callable[[], Scores]]]:
    """Name and run of every learner."""
    if "ours" in kinds:
        yield "adaptive", lambda: our_scores(stream, adaptive())
        yield "static", lambda: our_scores(stream, bm.Static())
    if "baselines" in kinds:
        yield "no change", lambda: no_change_scores(stream)
        yield "SGD", lambda: sgd_scores(stream)
    if "river" in kinds:
        for name, (make, inputs) in river_learners(stream).items():
            yield f"River {name}", partial(river_scores, make, inputs, stream)


def run(stream: Stream, scores: Callable[[], Scores]) -> dict[str, float]:
    """One learner on one stream: accuracy or RMSE, log loss."""
    errors, losses = (values[PREFIX:] for values in scores())
    error = float(errors.mean())
    measure = {"accuracy": 1 - error} if stream.num_classes else {"rmse": error**0.5}
    return {**measure, "log_loss": float(losses.mean()), "rows": len(stream.y)}


def show(results: dict[str, dict[str, dict[str, float]]], console: Console) -> None:
    """The table, and on how many streams the adaptive model is best by each score."""
    table = Table(title=f"Prequential scores after the first {PREFIX} rows")
    for column in ("stream", "learner", "accuracy or RMSE", "log loss"):
        table.add_column(column, justify="left" if column in ("stream", "learner") else "right")
    for name, rows in results.items():
        for learner, row in rows.items():
            first = f"{row['accuracy']:.4f}" if "accuracy" in row else f"{row['rmse']:.2f}"
            table.add_row(name, learner, first, f"{row['log_loss']:.4f}")
        table.add_section()
    console.print(table)
    for name, rows in results.items():
        if "adaptive" in rows:
            console.print(f"{name}: " + "; ".join(verdicts(rows)))


def verdicts(rows: dict[str, dict[str, float]]) -> Iterator[str]:
    """Whether the adaptive model is ahead of all others, by each score."""
    for score, sign in (("accuracy", -1), ("rmse", 1), ("log_loss", 1)):
        if score in rows["adaptive"]:
            own = rows["adaptive"][score]
            ahead = [learner for learner, row in rows.items() if sign * row[score] < sign * own]
            yield f"{score} " + (f"behind {', '.join(ahead)}" if ahead else "best")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--quick", action="store_true", help="the first 600 rows of each stream")
    parser.add_argument("--streams", nargs="+", choices=STREAMS, default=list(STREAMS))
    parser.add_argument("--learners", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--standardised", action="store_true", help="vectors without normal scores")
    parser.add_argument("--results", type=Path, help="JSON file; beside it goes a table")
    options = parser.parse_args()
    kind = "drift_standardised" if options.standardised else "drift"
    file = options.results or Path(__file__).parent / "results" / f"{kind}.json"
    results: dict[str, dict[str, dict[str, float]]] = {}
    if file.exists() and not options.quick:
        results = json.loads(file.read_text())
    for name in options.streams:
        stream = load_stream(options.data, name, scores=not options.standardised)
        stream = stream.first(600) if options.quick else stream
        rows = results.setdefault(name, {})
        for learner, scores in learners(stream, options.learners):
            if learner not in rows:
                rows[learner] = run(stream, scores)
                Console(stderr=True).print(name, learner, rows[learner])
                if not options.quick:
                    file.write_text(json.dumps(results, indent=1) + "\n")
    show(results, Console())
    if not options.quick:
        with file.with_suffix(".txt").open("w") as table:
            show(results, Console(file=table, width=100))


if __name__ == "__main__":
    main()
