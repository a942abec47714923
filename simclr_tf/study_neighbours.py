"""Which images a network holds to be alike: the nearest neighbours of a few, by the cosine of their features h."""

from __future__ import annotations

import logging

import numpy as np

from simclr_tf import augment, checkpoint, data, evaluation
from simclr_tf.config import CIFAR_STEM_MAX_SIZE, Config
from simclr_tf.errors import DataError
from simclr_tf.report import Section, Table, class_label, percent, view_grid
from simclr_tf.strategy import inference, one_device

log = logging.getLogger(__name__)

QUERIES = 8  # images whose neighbours are shown, of as many classes
NEIGHBOURS = 4  # shown of each
MAX_IMAGES = 5_000  # of the split, the first ones


def nearest(h: np.ndarray, queries: np.ndarray, count: int) -> np.ndarray:
    """int [q, count]: the rows of `h` [n, d] that are nearest to the rows `queries` [q] by cosine, themselves apart."""
    unit = h / np.maximum(np.linalg.norm(h, axis=1, keepdims=True), np.finfo(h.dtype).tiny)
    similarity = unit[queries] @ unit.T  # [q, n]
    similarity[np.arange(len(queries)), queries] = -np.inf
    return np.argsort(-similarity, axis=1, kind="stable")[:, :count]


def section(config: Config) -> Section | None:
    """Neighbours among the images of `config.eval_split`, by the network of the run in `config.model_dir`."""
    path = checkpoint.latest(config.model_dir)
    if path is None:
        return None
    try:
        source = data.open_source(config, config.eval_split)
        model, config, _ = evaluation.load(config, path)
        index, labels, h = _features(model, source, config)
    except DataError as error:
        log.warning("WARNING: the report leaves out nearest neighbours: %s", error)
        return None
    count = min(NEIGHBOURS, len(index) - 1)
    if count < 1:
        return None
    queries = _first_of_each_class(labels)
    found = nearest(h, queries, count)
    crop = config.image_size > CIFAR_STEM_MAX_SIZE

    def picture(i):
        return augment.preprocess_for_eval(source.load(int(index[i])), config.image_size, crop=crop).numpy()

    rows = [np.stack([picture(i) for i in column]) for column in found.T]
    text = (
        f"Test images, and below each the {count} of {len(index):,} whose features are nearest to its own by cosine, "
        "for the pretrained network, which has seen no label."
    )
    tables, note = [], ""
    if source.class_names is not None:
        names = [class_label(name) for name in source.class_names]
        tables = [Table(("Image of", "Its nearest, in order"), [
            (names[labels[q]], ", ".join(names[labels[i]] for i in near))
            for q, near in zip(queries, found, strict=True)
        ])]
        everyone = np.arange(len(index))
        first = np.concatenate([nearest(h, part, 1)[:, 0] for part in np.array_split(everyone, len(index) // 500 + 1)])
        chance = np.mean([(np.sum(labels == label) - 1) / (len(labels) - 1) for label in labels])
        hits = np.mean(labels[first] == labels)
        note = (f"For {percent(hits)} of these images the nearest other one is of the same class; by chance it would "
                f"be for {percent(chance)}.")
    return Section("Nearest neighbours", "neighbours", text, layout="wide", tables=tables, note=note, pictures=[
        view_grid([source.load(int(index[i])) for i in queries], rows, "Test images and their nearest neighbours"),
    ])


def _features(model, source, config: Config) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices [n], labels [n] and features h [n, d] of the first MAX_IMAGES readable images."""
    encode = inference(one_device(), model, lambda batch: (model.encoder(batch["images"], training=False),))
    columns, seen = [], 0
    for batch in data.Feed.evaluation(source, config, batch_size=min(config.eval_batch_size, source.num_examples)):
        counts = batch["weights"].numpy() > 0
        h = encode({"images": batch["images"]})[0].astype(np.float32)
        columns.append([batch["index"].numpy()[counts], batch["labels"].numpy()[counts], h[counts]])
        seen += counts.sum()
        if seen >= MAX_IMAGES:
            break
    index, labels, h = (np.concatenate(column)[:MAX_IMAGES] for column in zip(*columns, strict=True))
    return index, labels, h


def _first_of_each_class(labels: np.ndarray) -> np.ndarray:
    """Up to QUERIES rows, each of another class."""
    _, first = np.unique(labels, return_index=True)
    return np.sort(first)[:QUERIES]
