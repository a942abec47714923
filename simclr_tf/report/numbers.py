"""The numbers of a report, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

MAX_POINTS = 400  # per curve; more of them are averaged, so that long runs give small files
LISTED = 12  # rows of the tables of classes and pairs


def points(history: Sequence[dict], tag: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of a tag, at most MAX_POINTS of them: means over neighbours where there are more."""
    pairs = [(line["step"], line[tag]) for line in history if tag in line and math.isfinite(line[tag])]
    if tag == "images_per_second":
        pairs = [pair for pair in pairs if pair[1] > 0]  # 0 stands for "not measured yet"
    if not pairs:
        return np.zeros(0), np.zeros(0)
    bins = np.array_split(np.array(pairs, float), min(MAX_POINTS, len(pairs)))
    x, y = np.array([part.mean(0) for part in bins]).T
    return x, y


def confusion_counts(labels: np.ndarray, guesses: np.ndarray, num_classes: int) -> np.ndarray:
    """int [classes, classes]: images of the row's class taken for the column's."""
    flat = labels.astype(np.int64) * num_classes + guesses
    return np.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes)


def most_confused(counts: np.ndarray) -> list[tuple[int, int]]:
    """(true class, taken for), the most frequent mistakes first, at most LISTED."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:LISTED]
    return [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True) if wrong[i, j]]


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share observed in n trials (Wilson 1927)."""
    z = 1.959964
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"
