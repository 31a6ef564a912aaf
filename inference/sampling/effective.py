"""Effective sample size and R-hat of chains, by their autocorrelations.

Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021), "Rank-normalization, folding, and localization", section 3;
Geyer (1992). ArviZ has the same and more for reports; samplers need them where ArviZ is not installed.
"""

from __future__ import annotations

import numpy as np

__all__ = ["autocovariance", "effective_sample_size", "split_rhat"]


def autocovariance(chains: np.ndarray) -> np.ndarray:
    """Autocovariance of each chain at every lag, biased, (C, n, M).

    Args:
        chains: (C, n, M).
    """
    size = chains.shape[1]
    centred = chains - chains.mean(axis=1, keepdims=True)
    spectrum = np.fft.rfft(centred, n=1 << (2 * size - 1).bit_length(), axis=1)
    return np.asarray(np.fft.irfft(np.abs(spectrum) ** 2, axis=1)[:, :size]) / size


def effective_sample_size(chains: np.ndarray) -> np.ndarray:
    """Number of independent draws that tell as much of the mean, for each of M quantities, (M,).

    Chains are split in halves; the sum of autocorrelations ends where a pair of them is no longer positive, and is made
    monotone before (Geyer's initial monotone sequence).

    Args:
        chains: (C, n, M), n at least 4.
    """
    halves = _halves(np.asarray(chains, dtype=np.float64))
    count, size, _ = halves.shape
    covariance = autocovariance(halves)
    within = covariance[:, 0].mean(0) * size / (size - 1)
    pooled = within * (size - 1) / size + _variance_of_means(halves)
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = 1 - (within - (covariance * size / (size - 1)).mean(0)) / pooled
    correlation[0] = 1.0
    pairs = correlation[: size - size % 2].reshape(size // 2, 2, -1).sum(1)
    positive = np.cumprod(pairs > 0, axis=0).astype(bool)
    monotone = np.minimum.accumulate(np.where(positive, pairs, 0.0), axis=0)
    time = np.maximum(2 * monotone.sum(0) - 1, 1 / np.log10(count * size))
    constant = ~(pooled > 0)
    return np.where(constant, float(count * size), count * size / np.where(constant, 1.0, time))


def split_rhat(chains: np.ndarray) -> np.ndarray:
    """√(pooled variance / variance within the halves of chains), (M,): 1 where the chains agree, infinite where they
    stand still at different values.

    Args:
        chains: (C, n, M), n at least 4.
    """
    halves = _halves(np.asarray(chains, dtype=np.float64))
    size = halves.shape[1]
    within = halves.var(axis=1, ddof=1).mean(0)
    pooled = within * (size - 1) / size + _variance_of_means(halves)
    stuck = np.where(pooled > 0, np.inf, 1.0)  # each chain at a value of its own; or all at one
    return np.sqrt(np.where(within > 0, pooled / np.where(within > 0, within, 1.0), stuck))


def _halves(chains: np.ndarray) -> np.ndarray:
    half = chains.shape[1] // 2
    return np.concatenate([chains[:, :half], chains[:, -half:]])


def _variance_of_means(halves: np.ndarray) -> np.ndarray:
    return np.asarray(halves.mean(axis=1).var(axis=0, ddof=1))
