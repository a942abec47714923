"""Numbers of a classification, from the probabilities it gave: accuracy, by class, confusion, calibration."""

from __future__ import annotations

import numpy as np

BINS = 15  # of the calibration, as Guo et al. 2017 (arXiv 1706.04599) have them


def top_k(probabilities: np.ndarray, k: int) -> np.ndarray:
    """int32 [n, k]: the most probable classes, the first first; of equals the lower one."""
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, : min(k, probabilities.shape[1])]
    return order.astype(np.int32)


def recall(labels: np.ndarray, guesses: np.ndarray, num_classes: int) -> np.ndarray:
    """float64 [classes]: the share of each class's images that were taken for it; nan where it has none."""
    totals = np.bincount(labels, minlength=num_classes)
    hits = np.bincount(labels[guesses == labels], minlength=num_classes)
    return np.divide(hits, totals, out=np.full(num_classes, np.nan), where=totals > 0)


def confusion(labels: np.ndarray, guesses: np.ndarray, num_classes: int) -> np.ndarray:
    """int64 [classes, classes]: images of the row's class taken for the column's."""
    flat = labels.astype(np.int64) * num_classes + guesses
    return np.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes)


def calibration(confidence: np.ndarray, correct: np.ndarray) -> tuple[float, list[dict]]:
    """How far confidence and accuracy are apart.

    Args:
      confidence: float [n], the probability of the first guess.
      correct: bool [n].

    Returns:
      The expected calibration error: the mean over images of |accuracy - mean confidence| of their bin of confidence,
      and the bins that hold images: dict(low, high, images, confidence, accuracy).
    """
    number = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)  # bins ((i / BINS, (i + 1) / BINS]]
    bins, error = [], 0.0
    for i in range(BINS):
        inside = number == i
        if inside.any():
            mean, accuracy = float(confidence[inside].mean()), float(correct[inside].mean())
            bins.append(dict(low=i / BINS, high=(i + 1) / BINS, images=int(inside.sum()), confidence=mean,
                             accuracy=accuracy))
            error += inside.mean() * abs(accuracy - mean)
    return float(error), bins


def log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean of -log of the probability given to the true class, in nats."""
    p = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.maximum(p, np.finfo(np.float64).tiny)).mean())


def details(labels: np.ndarray, top: np.ndarray, confidence: np.ndarray, class_names) -> dict:
    """What the few numbers of `result.json` leave out, ready for JSON: classes, confusions, calibration.

    Args:
      labels: int [n]. top: int [n, k], guesses. confidence: float [n], the probability of the first.
      class_names: by label.
    """
    num_classes, guesses = len(class_names), top[:, 0]
    counts, shares = confusion(labels, guesses, num_classes), recall(labels, guesses, num_classes)
    error, bins = calibration(confidence, guesses == labels)
    return {
        "images": len(labels),
        "top_1": float((guesses == labels).mean()),
        "top_5": float((top[:, :5] == labels[:, None]).any(1).mean()),
        "mean_per_class": float(np.nanmean(shares)),
        "calibration_error": error,
        "calibration": bins,
        "per_class": [
            {"class": name, "images": int(counts[i].sum()), "top_1": None if np.isnan(shares[i]) else float(shares[i])}
            for i, name in enumerate(class_names)
        ],
        # Only what occurs: a thousand classes have a million pairs.
        "confusion": [[int(i), int(j), int(counts[i, j])] for i, j in np.argwhere(counts)],
    }
