"""A look at what a network makes of some images, kept in the run's folder for its report.

`representation.npz` holds, of the first images of a split, small pictures, labels, features h and ids, and the signs
of health of `health.measure`.
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import os
import zipfile

import numpy as np
import tensorflow as tf
from keras import ops

from simclr_tf import checkpoint, data, evaluation, health
from simclr_tf.config import Config
from simclr_tf.embedding import Embedder, joined
from simclr_tf.errors import DataError, SimclrError
from simclr_tf.strategy import ON_JAX, inference

log = logging.getLogger(__name__)

NAME = "representation.npz"
PAIRS = 256  # images of which two views are made
PICTURE_SIZE = 48


@dataclasses.dataclass(frozen=True)
class Representation:
    """labels: int32 [n], -1 unknown. h: float32 [n, d]. pictures: uint8 [n, T, T, 3]. signs: see `health.measure`."""

    labels: np.ndarray
    h: np.ndarray
    pictures: np.ndarray
    class_names: tuple[str, ...] | None
    split: str
    step: int
    signs: dict[str, float]


def record(config: Config) -> Representation | None:
    """Computes it with the newest checkpoint of model_dir (or `config.checkpoint`), of `config.report_images` images
    of `config.eval_split`, or of `config.train_split` where there is no such split; and writes it.

    What stands in the way is said and passed over: a report without it is better than none.
    """
    path = checkpoint.latest(config.model_dir) or config.checkpoint
    if not config.report_images or path is None or config.train_mode == "baseline":
        return None
    try:
        source = _source(config)
        found = _look(config, path, source)
    except (SimclrError, tf.errors.OpError) as error:
        log.warning("WARNING: the report leaves out the look at the representation: %s", str(error).splitlines()[0])
        return None
    for text in health.warnings(found.signs):
        log.warning("WARNING: %s", text)
    _write(config, found)
    return found


def read(model_dir: str) -> Representation | None:
    """What `record` wrote; None if there is nothing, or nothing that can be read, which is said."""
    path = os.path.join(model_dir, NAME)
    if not tf.io.gfile.exists(path):
        return None
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            archive = np.load(io.BytesIO(file.read()), allow_pickle=False)
        about = json.loads(str(archive["about"]))
        names = about["class_names"]
        return Representation(
            archive["labels"], archive["h"].astype(np.float32), archive["pictures"],
            None if names is None else tuple(names), about["split"], about["step"], about["signs"],
        )
    except (ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        log.warning("WARNING: the report leaves out the representation: %s cannot be read: %s", path, error)
        return None


def _source(config: Config):
    try:
        return data.open_source(config, config.eval_split)
    except DataError:
        return data.open_source(config, config.train_split)


def _look(config: Config, path: str, source) -> Representation:
    # One device is enough for so few images, and leaves the collectives of several alone.
    if not ON_JAX:
        device = "gpu" if tf.config.list_logical_devices("GPU") else "cpu"
        config = dataclasses.replace(config, strategy=device, use_tpu=False)
    batch = min(config.eval_batch_size, config.report_images) if not ON_JAX else config.eval_batch_size
    config = dataclasses.replace(config, eval_batch_size=batch)
    model, config, strategy = evaluation.load(config, path)
    images = joined(Embedder(model, config, strategy, picture_size=PICTURE_SIZE).of_source(
        source, limit=config.report_images))
    if not len(images):
        raise DataError(f"{source.name}: not one of the first images of split {source.split} can be read.")
    h = images.vectors
    z = np.concatenate(list(_projections(model, strategy, h, batch)))
    first, second = _pairs(model, config, strategy, source, batch)
    signs = health.measure(h, z, first, second)
    own = evaluation.restore.own_metadata(path)
    return Representation(images.labels, h, images.pictures, source.class_names, source.split,
                          own.step if own else 0, signs)


def _projections(model, strategy, h: np.ndarray, batch: int):
    """z of features h: the head alone, in batches of one size."""
    def project(b):
        return (ops.cast(model.projection_head(b["h"], training=False)[-1], "float32"),)

    run = inference(strategy, model, project)
    for i in range(0, len(h), batch):
        part = h[i : i + batch]
        padded = np.concatenate([part, np.zeros([batch - len(part), h.shape[1]], np.float32)])
        yield run({"h": tf.constant(padded)})[0][: len(part)]


def _pairs(model, config: Config, strategy, source, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """z of two views, as pretraining makes them, of up to PAIRS images."""
    def project(b):
        def z(images):
            hiddens = model.projection_head(model.encoder(images, training=False), training=False)
            return ops.cast(hiddens[-1], "float32")

        return z(b["images"][..., :3]), z(b["images"][..., 3:])

    run = inference(strategy, model, project)
    seen = dataclasses.replace(config, train_mode="pretrain", fine_tune_after_block=-1, labels_per_class=0,
                               label_fraction=1.0, held_out_fraction=0.0, teacher=None)
    feed = data.Feed.training(source, seen, batch_size=batch)
    wanted = min(PAIRS, source.num_examples)
    pairs, count = [], 0
    for part in feed:
        pairs.append(run({"images": part["images"]}))
        count += batch
        if count >= wanted:
            break
    first, second = (np.concatenate(side)[:wanted] for side in zip(*pairs, strict=True))
    return first, second


def _write(config: Config, found: Representation) -> None:
    about = {"class_names": found.class_names, "split": found.split, "step": found.step, "signs": found.signs}
    archive = io.BytesIO()
    np.savez_compressed(archive, labels=found.labels, h=found.h.astype(np.float16), pictures=found.pictures,
                        about=np.array(json.dumps(about)))
    path = os.path.join(config.model_dir, NAME)
    try:
        tf.io.gfile.makedirs(config.model_dir)
        with tf.io.gfile.GFile(path, "wb") as file:
            file.write(archive.getvalue())
    except (OSError, tf.errors.OpError) as error:
        raise checkpoint.storage_error(error, path) from error
