"""One pass over a stream against a batch fit: the network of the demonstration, several seeds.

    python benchmarks/digits_stream.py               # 10 shuffles
    python benchmarks/digits_stream.py --quick       # 1 shuffle

Fit on 200 digits, stream 1,200 one by one, compare on 397 held-out digits with a batch fit of the same network on all
1,400; and stream all 1,400 from the prior alone, with a diagonal plus low-rank posterior. The comparison is void if
the batch fit is not good itself: accuracy at least .970, NLL at most .12.
"""

from __future__ import annotations

import argparse

import numpy as np
from rich.console import Console
from rich.table import Table

import bayesmlp as bm
from bayesmlp.demo import build_model, fit_method, load_digits_split, scale_pixels
from bayesmlp.metrics import accuracy, expected_calibration_error, negative_log_likelihood


def scores(model: bm.BayesianMLP, x: np.ndarray, y: np.ndarray) -> list[float]:
    """Accuracy, NLL at the mean, linearised NLL, linearised calibration error."""
    linearized = model.predict(x).probabilities
    return [
        accuracy(linearized, y),
        negative_log_likelihood(model.predict(x, method="mean").probabilities, y),
        negative_log_likelihood(linearized, y),
        expected_calibration_error(linearized, y),
    ]


def compare(engine: str, seed: int) -> np.ndarray:
    """Scores of the 200-digit fit, of the stream after it, of a stream from the prior and of the batch fit, (4, 4)."""
    digits = load_digits_split(seed)
    test = scale_pixels(digits.test_x), digits.test_y
    model = build_model(engine, seed).fit(scale_pixels(digits.fit_x), digits.fit_y, method=fit_method())
    rows = [scores(model, *test)]
    for pixels, label in zip(scale_pixels(digits.stream_x), digits.stream_y, strict=True):
        model.update(pixels[None], [label])
    rows.append(scores(model, *test))
    x = scale_pixels(np.concatenate([digits.fit_x, digits.stream_x]))
    y = np.concatenate([digits.fit_y, digits.stream_y])
    alone = bm.BayesianMLP(
        model.network, model.likelihood, prior=model.prior, structure=bm.LowRank(), engine=engine, standardize=False,
        seed=seed,
    )  # fmt: skip
    alone.update_each(x, y)
    rows.append(scores(alone, *test))
    rows.append(scores(build_model(engine, seed).fit(x, y, method=fit_method()), *test))
    return np.asarray(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one shuffle")
    parser.add_argument("--engine", default="jax")
    options = parser.parse_args()
    seeds = range(1 if options.quick else 10)
    results = np.asarray([compare(options.engine, seed) for seed in seeds])
    mean, error = results.mean(0), results.std(0) / max(1, len(results) - 1) ** 0.5
    table = Table("", "accuracy", "NLL at the mean", "NLL linearised", "calibration error")
    for row, name in enumerate(
        ("200 digits", "after the stream", "stream of 1,400 from the prior", "batch, 1,400 digits")
    ):
        table.add_row(name, *(f"{m:.3f} ± {e:.3f}" for m, e in zip(mean[row], error[row], strict=True)))
    console = Console()
    console.print(table)
    sound = mean[3, 0] >= 0.970 and min(mean[3, 1:3]) <= 0.12
    console.print(f"batch fit sound: {sound}; mean of {len(results)} shuffles")
    for row, name in ((1, "after a fit"), (2, "from the prior")):
        gap = mean[row] - mean[3]
        console.print(
            f"stream {name} - batch: accuracy {100 * gap[0]:+.1f} points, NLL {gap[1]:+.3f} (at the mean), "
            f"{gap[2]:+.3f} (linearised)"
        )


if __name__ == "__main__":
    main()
