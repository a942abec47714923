"""Signs of a representation's health, from vectors alone: does it tell images apart, and in how many directions?"""

from __future__ import annotations

import numpy as np

from simclr_tf.neighbours import unit


def alignment(first: np.ndarray, second: np.ndarray) -> float:
    """Mean squared distance of the two views of an image on the unit sphere, 0 to 4; low is good.

    Wang and Isola 2020 (arXiv 2005.10242), with alpha = 2. first, second: [n, d], row i of both is of the same image.
    """
    return float(np.square(unit(first) - unit(second)).sum(1).mean())


def uniformity(vectors: np.ndarray) -> float:
    """log of the mean of exp(-2 |x - y|^2) over pairs on the unit sphere: 0 if all are the same point, towards -4 if
    they are spread evenly over a sphere of many dimensions. The same paper, with t = 2. nan for fewer than two.
    """
    x = unit(vectors).astype(np.float64)
    n = len(x)
    if n < 2:
        return float("nan")
    distances = np.maximum(2 - 2 * (x @ x.T), 0)
    pairs = np.exp(-2 * distances[np.triu_indices(n, 1)])
    return float(np.log(pairs.mean()))


def effective_rank(vectors: np.ndarray) -> float:
    """How many directions the vectors [n, d] vary in: exp of the entropy of the normalised singular values.

    Roy and Vetterli 2007, of the centred vectors; 1 to min(n - 1, d), and 0 where nothing varies.
    """
    x = np.asarray(vectors, np.float64)
    x = x - x.mean(0)
    values = np.linalg.svd(x, compute_uv=False)
    if not values.size or values[0] <= 1e-9 * max(1.0, float(np.abs(vectors).max(initial=0))):
        return 0.0
    p = values / values.sum()
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


def mean_similarity(vectors: np.ndarray) -> float:
    """Mean cosine similarity of different images; nan for fewer than two."""
    x = unit(vectors).astype(np.float64)
    n = len(x)
    if n < 2:
        return float("nan")
    total = np.square(x.sum(0)).sum() - np.square(x).sum()
    return float(total / (n * (n - 1)))


def measure(h: np.ndarray, z: np.ndarray, z_first: np.ndarray, z_second: np.ndarray) -> dict[str, float]:
    """The signs of features h and projections z of images [n, d], and of z of two views of some of them."""
    return {
        "alignment": alignment(z_first, z_second), "uniformity": uniformity(z), "effective_rank_h": effective_rank(h),
        "effective_rank_z": effective_rank(z), "mean_similarity_h": mean_similarity(h),
        "mean_similarity_z": mean_similarity(z), "images": len(h), "pairs": len(z_first),
        "dimensions_h": h.shape[1], "dimensions_z": z.shape[1],
    }


def warnings(signs: dict[str, float]) -> list[str]:
    """What looks wrong, in words; empty if nothing does."""
    found = []
    if signs["images"] < 10:
        return found  # too few to say
    if signs["uniformity"] > -0.1 or signs["effective_rank_z"] == 0:
        found.append(
            "Collapse: the projections of all images are nearly the same point. Lower the learning rate, lengthen the "
            "warm-up, or raise the batch size."
        )
    elif signs["effective_rank_z"] < 3 <= min(signs["images"] - 1, signs["dimensions_z"]):
        found.append(
            f"Dimensional collapse: the projections vary in {signs['effective_rank_z']:.1f} directions only, of "
            f"{signs['dimensions_z']:.0f}. Train longer, or with stronger augmentation or a lower temperature."
        )
    if signs["effective_rank_h"] < 2:
        found.append(f"The features vary in {signs['effective_rank_h']:.1f} directions only.")
    return found
