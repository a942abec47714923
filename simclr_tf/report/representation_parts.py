"""The parts of a report that look at the representation: its health, which images it holds alike, and a map of it."""

from __future__ import annotations

import math

import numpy as np

from simclr_tf import health, neighbours
from simclr_tf.report.elements import Section, Table
from simclr_tf.report.numbers import percent
from simclr_tf.report.pictures import MAP_CLASSES, class_label, neighbour_sheet, picture_map, point_map
from simclr_tf.report.run import Run

QUERIES = 8
SHOWN = 6  # neighbours of each query


def signs_of_health(run: Run) -> Section | None:
    """Alignment, uniformity, effective rank, and warnings if they look wrong."""
    found = run.representation
    if found is None:
        return None
    s = found.signs
    warnings = health.warnings(s)
    rows = [
        ("Alignment", f"{s['alignment']:.3f}", "distance of two views of an image: 0 the same, 2 unrelated"),
        ("Uniformity", f"{s['uniformity']:.3f}", "spread over the sphere: 0 one point, towards -4 even"),
        ("Effective rank of h", f"{s['effective_rank_h']:.1f}",
         f"directions used, of at most {_most(s, 'h'):,}"),
        ("Effective rank of z", f"{s['effective_rank_z']:.1f}", f"of at most {_most(s, 'z'):,}"),
        ("Similarity of different images, h", f"{s['mean_similarity_h']:.3f}", "mean cosine"),
        ("Similarity of different images, z", f"{s['mean_similarity_z']:.3f}", "mean cosine"),
    ]
    text = (
        f"From {s['images']:,} images of split {found.split}, and two augmented views of {s['pairs']:,}, after "
        f"{found.step:,} steps."
    )
    return Section(
        "Health of the representation", "health", text, warning=" ".join(warnings),
        tables=[Table(("Sign", "Value", ""), [tuple("nan" if c == "nan" else c for c in row) for row in rows],
                      numeric=(1,))],
        note="" if warnings else "No sign of collapse.",
    )


def _most(signs: dict, name: str) -> int:
    return int(min(signs["images"] - 1, signs[f"dimensions_{name}"]))


def nearest_images(run: Run) -> Section | None:
    """A few images and those whose features are nearest to theirs."""
    found = run.representation
    if found is None or len(found.h) < 3:
        return None
    queries = _queries(found.labels)
    rows, similarities = neighbours.nearest(found.h[queries], found.h, SHOWN, own=queries)
    names = None if found.class_names is None else [class_label(name) for name in found.class_names]
    note = ""
    if names is not None and (found.labels >= 0).all():
        everyone = np.arange(len(found.h))
        first = neighbours.nearest(found.h, found.h, 1, own=everyone)[0][:, 0]
        counts = np.bincount(found.labels)
        chance = float((counts * (counts - 1)).sum() / (len(first) * (len(first) - 1)))
        hits = float((found.labels[first] == found.labels).mean())
        note = (
            f"For {percent(hits)} of these images the nearest other one is of the same class; by chance it would be "
            f"for {percent(chance)}."
        )
    text = (
        f"Left, images of split {found.split}; beside each, those of {len(found.h):,} most similar to it by the cosine "
        "of h. Frames: green of its class, red of another."
    )
    return Section(
        "Nearest neighbours", "neighbours", text, layout="wide", note=note,
        pictures=[neighbour_sheet(found.pictures, found.labels, names, queries, rows, similarities)],
    )


def _queries(labels: np.ndarray) -> np.ndarray:
    """Up to QUERIES rows, of as many classes as there are."""
    _, first = np.unique(labels, return_index=True)
    first = np.sort(first)[:QUERIES]
    others = np.setdiff1d(np.arange(len(labels)), first)[: QUERIES - len(first)]
    return np.concatenate([first, others]).astype(np.int64)


def embedding_map(run: Run) -> Section | None:
    """t-SNE of h: points coloured by class where the classes are few, else the images themselves."""
    found = run.representation
    if found is None or len(found.h) < 10:
        return None
    places = flattened(found.h)
    if places is None:
        return None
    text = f"The features h of {len(found.h):,} images of split {found.split}, flattened by t-SNE: near is alike."
    names = None if found.class_names is None else [class_label(name) for name in found.class_names]
    if names is not None and len(names) <= MAP_CLASSES and (found.labels >= 0).all():
        picture = point_map(places, found.labels, names)
    else:
        picture = picture_map(places, found.pictures)
    return Section("Map", "map", text, pictures=[picture], layout="wide")


def flattened(h: np.ndarray) -> np.ndarray | None:
    """float [n, 2] in 0..1 by t-SNE of the unit vectors; None where nothing varies."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    x = neighbours.unit(h)
    if float(x.var(0).sum()) < 1e-9:
        return None
    if min(x.shape) > 50:
        x = PCA(50, random_state=0).fit_transform(x)
    perplexity = min(30.0, (len(x) - 1) / 3)
    places = TSNE(2, init="pca", perplexity=perplexity, random_state=0).fit_transform(x)
    if not np.isfinite(places).all():
        return None
    low, high = places.min(0), places.max(0)
    return (places - low) / np.maximum(high - low, math.ulp(1.0))
