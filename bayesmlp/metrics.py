"""Scores of predicted class probabilities."""

from __future__ import annotations

import numpy as np

__all__ = ["accuracy", "calibration_bins", "expected_calibration_error", "negative_log_likelihood"]


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
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    kept = counts > 0
    mean_confidence = np.bincount(bins, confidence, num_bins)[kept] / counts[kept]
    mean_accuracy = np.bincount(bins, right, num_bins)[kept] / counts[kept]
    return mean_confidence, mean_accuracy, counts[kept] / len(labels)


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, num_bins: int = 10) -> float:
    """Mean distance between confidence and accuracy over bins of confidence (Guo et al. 2017)."""
    confidence, hits, share = calibration_bins(probabilities, labels, num_bins)
    return float(np.sum(share * np.abs(confidence - hits)))
