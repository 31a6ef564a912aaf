"""Scores of predicted class probabilities."""

from __future__ import annotations

import numpy as np

__all__ = [
    "accuracy",
    "binned_calibration_error",
    "calibration_bins",
    "expected_calibration_error",
    "negative_log_likelihood",
]


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows whose most probable class is the label."""
    return float(np.mean(np.argmax(probabilities, axis=1) == labels))


def negative_log_likelihood(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean of -log probability of the label, in nats."""
    return float(-np.mean(np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-300))))


def calibration_bins(
    probabilities: np.ndarray, labels: np.ndarray, num_bins: int = 10
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean confidence, accuracy and share of the rows in each of equally wide bins of confidence that holds any."""
    return _bins(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels, num_bins)


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, num_bins: int = 10) -> float:
    """Mean distance between confidence and accuracy over bins of confidence (Guo et al. 2017)."""
    return binned_calibration_error(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels, num_bins)


def binned_calibration_error(confidence: np.ndarray, hit: np.ndarray, num_bins: int = 10) -> float:
    """As :func:`expected_calibration_error`, from the predicted classes' probabilities and whether they were right."""
    mean_confidence, hits, share = _bins(confidence, hit, num_bins)
    return float(np.sum(share * np.abs(mean_confidence - hits)))


def _bins(confidence: np.ndarray, hit: np.ndarray, num_bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    kept = counts > 0
    mean_confidence = np.bincount(bins, confidence, num_bins)[kept] / counts[kept]
    mean_accuracy = np.bincount(bins, hit, num_bins)[kept] / counts[kept]
    return mean_confidence, mean_accuracy, counts[kept] / len(hit)
