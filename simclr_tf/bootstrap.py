"""Bootstrap over test images: how far an accuracy, or a difference of two, could be off by the choice of images.

Images are drawn with replacement, as many as there are, many times over. What a draw depends on is how often each
distinct row of values occurs, so the counts are drawn (multinomially) instead of the images: the same distribution, at
a cost that does not grow with the number of images. Efron and Tibshirani, An Introduction to the Bootstrap (1993).
"""

from __future__ import annotations

import dataclasses

import numpy as np

RESAMPLES = 20_000


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The mean of one column minus that of another, measured on the same images.

    low, high: of the interval of `level`. p: two-sided, the share of resamples on the other side of no difference,
    doubled; at least 2 / (RESAMPLES + 1).
    """

    difference: float
    low: float
    high: float
    level: float
    p: float


def resampled_means(values: np.ndarray, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Means over images of `values` [n] or [n, k] in each resample: [resamples] or [resamples, k]."""
    values = np.asarray(values, np.float64)
    distinct, counts = np.unique(values, axis=0, return_counts=True)
    rng = np.random.Generator(np.random.PCG64(seed))
    draws = rng.multinomial(counts.sum(), counts / counts.sum(), size=resamples)  # [resamples, distinct]
    return draws @ distinct / counts.sum()


def interval(values: np.ndarray, seed: int, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of the mean of `values` [n]."""
    return _percentiles(resampled_means(values, seed), level)


def compare(a: np.ndarray, b: np.ndarray, seed: int, level: float = 0.99) -> Comparison:
    """The paired comparison of `a` with `b`, both [n], image by image."""
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    means = resampled_means(difference, seed)
    tail = min((means <= 0).sum(), (means >= 0).sum())
    p = min(1.0, 2 * (tail + 1) / (len(means) + 1))
    return Comparison(float(difference.mean()), *_percentiles(means, level), level, float(p))


def ratio_interval(a: np.ndarray, b: np.ndarray, seed: int, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of mean(a) / mean(b), both [n], image by image; infinite where b may be 0."""
    means = resampled_means(np.stack([a, b], 1), seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        return _percentiles(means[:, 0] / means[:, 1], level)


def _percentiles(means: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], method="nearest")
    return float(low), float(high)
