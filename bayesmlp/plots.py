"""Pictures. Figures are returned, never shown."""

from __future__ import annotations

from typing import Any

import numpy as np

from .inference.errors import MissingDependency
from .metrics import calibration_bins
from .predictive import Predictive
from .prequential import Prequential

__all__ = ["demo_figure", "learning_curve", "picture_grid", "prequential_figure", "reliability_diagram"]

_BLUE, _ORANGE, _GREY = "#1f5fa8", "#d9772b", "#9aa0a6"


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependency("matplotlib", "plots") from error
    return Figure(figsize=(width, height), layout="constrained")


def learning_curve(axes: Any, right: np.ndarray, surprise: np.ndarray, window: int = 100) -> None:
    """Running accuracy and surprise of a stream, with two standard errors of the window's mean.

    Args:
        axes: to draw on.
        right: 1 where the answer was right, in order of the events.
        surprise: of each event, in nats.
        window: events averaged.
    """
    twin = axes.twinx()
    for target, values, colour, name in (
        (axes, right, _BLUE, "accuracy"),
        (twin, surprise, _ORANGE, "surprise (nats)"),
    ):
        kernel = np.ones(window) / window
        mean = np.convolve(values, kernel, mode="valid")
        square = np.convolve(values**2, kernel, mode="valid")
        error = 2 * np.sqrt(np.maximum(square - mean**2, 0) / window)
        events = np.arange(window, len(values) + 1)
        target.plot(events, mean, color=colour)
        target.fill_between(events, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)
        target.set_ylabel(f"{name}, last {window}", color=colour)
    axes.set_xlabel("events learned")
    axes.set_title("Learning from corrections")


def reliability_diagram(axes: Any, answers: dict[str, Predictive], labels: np.ndarray) -> None:
    """Accuracy against confidence in ten bins.

    Args:
        axes: to draw on.
        answers: predictives of the same rows, by name.
        labels: of the rows.
    """
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1)
    for (name, answer), colour in zip(answers.items(), (_ORANGE, _BLUE), strict=False):
        confidence, hits, share = calibration_bins(answer.probabilities, labels)
        axes.plot(confidence, hits, color=colour, linewidth=1)
        axes.scatter(confidence, hits, s=15 + 400 * share, color=colour, label=name, alpha=0.8)
    axes.legend(loc="upper left", frameon=False)
    axes.set_xlabel("confidence")
    axes.set_ylabel("accuracy")
    axes.set_title("Reliability (area: share of answers)")


def picture_grid(figure: Any, pictures: np.ndarray, captions: list[str], title: str) -> None:
    """Small grey pictures with captions.

    Args:
        figure: or subfigure to draw on.
        pictures: (n, height, width).
        captions: one for each.
        title: above all.
    """
    figure.suptitle(title, fontsize="medium")
    for axes, picture, caption in zip(figure.subplots(1, len(pictures)), pictures, captions, strict=True):
        axes.imshow(picture, cmap="gray_r")
        axes.set_title(caption, fontsize="x-small")
        axes.set_xticks([])
        axes.set_yticks([])


def prequential_figure(record: Prequential, size: int = 100) -> Any:
    """Log score, calibration and drift over a stream.

    Args:
        record: of the stream.
        size: of the windows, in events.
    """
    windows = record.windows(size)
    events, score, error, cumulative, drift = (
        np.array([getattr(window, name) for window in windows], dtype=np.float64)
        for name in ("events", "log_score", "error", "cumulative", "drift")
    )
    figure = _figure(11, 3.4)
    left, middle, right = figure.subplots(1, 3)
    left.plot(events, score, color=_BLUE, label=f"last {size}")
    left.fill_between(events, score - 2 * error, score + 2 * error, color=_BLUE, alpha=0.2, linewidth=0)
    left.plot(events, cumulative, color=_GREY, label="cumulative")
    left.legend(frameon=False)
    left.set_title("Log score (nats)")
    known = np.isfinite(record.pit)
    if known.any():
        middle.hist(record.pit[known], bins=10, range=(0, 1), density=True, color=_BLUE)
        middle.axhline(1, color=_GREY, linewidth=1)
        middle.set_title(f"Probability integral transform; 90% intervals hold {record.coverage:.2f}")
    else:
        for name, label in (("accuracy", "accuracy"), ("calibration_error", "calibration error")):
            middle.plot(events, [getattr(window, name) for window in windows], label=label)
        middle.legend(frameon=False)
        middle.set_title("Accuracy and calibration")
    right.axhline(0, color=_GREY, linewidth=1)
    right.plot(events, drift, color=_ORANGE, marker=".")
    right.set_title("Change of the log score (standard errors)")
    for axes in (left, middle, right) if not known.any() else (left, right):
        axes.set_xlabel("events learned")
    return figure


def demo_figure(curve: Any, test_x: np.ndarray, labels: np.ndarray, before: Predictive, after: Predictive) -> Any:
    """The picture of the demonstration: learning curve, reliability, most and least certain digits.

    Args:
        curve: ``right`` and ``surprise`` of the stream.
        test_x: held-out digits, (n, 64).
        labels: of them.
        before: answers before the stream.
        after: answers after it.
    """
    figure = _figure(11, 7.2)
    upper, middle, lower = figure.subfigures(3, 1, height_ratios=(3, 1.1, 1.1))
    left, right = upper.subplots(1, 2)
    learning_curve(left, curve.right, curve.surprise)
    reliability_diagram(right, {"before": before, "after": after}, labels)
    order = np.argsort(after.mutual_information)
    for part, chosen, title in (
        (middle, order[:10], "Most certain"),
        (lower, order[::-1][:10], "Least certain: what it would ask about"),
    ):
        probabilities = after.probabilities[chosen]
        captions = [
            f"says {p.argmax()} ({p.max():.2f})\nis {label}"
            for p, label in zip(probabilities, labels[chosen], strict=True)
        ]
        picture_grid(part, test_x[chosen].reshape(-1, 8, 8), captions, title)
    return figure
