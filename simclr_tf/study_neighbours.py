"""Which images a network holds to be alike: the nearest neighbours of a few, by the cosine of their features h."""

from __future__ import annotations

import logging

import numpy as np

from simclr_tf import augment, checkpoint, data, evaluation, neighbours
from simclr_tf.config import CIFAR_STEM_MAX_SIZE, Config
from simclr_tf.embedding import Embedder, joined
from simclr_tf.errors import DataError
from simclr_tf.report import Section, Table, class_label, percent, view_grid

log = logging.getLogger(__name__)

QUERIES = 8  # images whose neighbours are shown, of as many classes
NEIGHBOURS = 4  # shown of each
MAX_IMAGES = 5_000  # of the split, the first ones


def section(config: Config) -> Section | None:
    """Neighbours among the images of `config.eval_split`, by the network of the run in `config.model_dir`."""
    path = checkpoint.latest(config.model_dir)
    if path is None:
        return None
    try:
        source = data.open_source(config, config.eval_split)
        model, config, strategy = evaluation.load(config, path)
        found = joined(Embedder(model, config, strategy).of_source(source, MAX_IMAGES))
    except DataError as error:
        log.warning("WARNING: the report leaves out nearest neighbours: %s", error)
        return None
    index, labels, h = found.index, found.labels, found.vectors
    if len(index) < 2:
        return None
    near, _ = neighbours.nearest(h, h, NEIGHBOURS, own=np.arange(len(h)))  # [n, count]
    queries, count = _first_of_each_class(labels), near.shape[1]
    crop = config.image_size > CIFAR_STEM_MAX_SIZE

    def picture(i):
        return augment.preprocess_for_eval(source.load(int(index[i])), config.image_size, crop=crop).numpy()

    rows = [np.stack([picture(i) for i in column]) for column in near[queries].T]
    text = (
        f"Test images, and below each the {count} of {len(index):,} whose features are nearest to its own by cosine, "
        "for the pretrained network, which has seen no label."
    )
    tables, note = [], ""
    if source.class_names is not None:
        names = [class_label(name) for name in source.class_names]
        tables = [Table(("Image of", "Its nearest, in order"), [
            (names[labels[q]], ", ".join(names[labels[i]] for i in near[q])) for q in queries
        ])]
        chance = np.mean([(np.sum(labels == label) - 1) / (len(labels) - 1) for label in labels])
        hits = np.mean(labels[near[:, 0]] == labels)
        note = (f"For {percent(hits)} of these images the nearest other one is of the same class; by chance it would "
                f"be for {percent(chance)}.")
    return Section("Nearest neighbours", "neighbours", text, layout="wide", tables=tables, note=note, pictures=[
        view_grid([source.load(int(index[i])) for i in queries], rows, "Test images and their nearest neighbours"),
    ])


def _first_of_each_class(labels: np.ndarray) -> np.ndarray:
    """Up to QUERIES rows, each of another class."""
    _, first = np.unique(labels, return_index=True)
    return np.sort(first)[:QUERIES]
