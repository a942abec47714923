"""`--mode=predict`: classifies images with any model that has a supervised head."""

from __future__ import annotations

import csv
import io
import json
import logging
import os

import tensorflow as tf
import tensorflow_datasets as tfds

from simclr_tf import checkpoint, evaluation, folder_source, restore
from simclr_tf.config import Config
from simclr_tf.errors import CheckpointError, ConfigError

log = logging.getLogger(__name__)


def predict(config: Config) -> list[dict]:
    """Classifies the images of `config.predict_input` with `config.checkpoint`, or the run in model_dir.

    Returns, and writes to model_dir as `predictions.json` and `predictions.csv`:
      For each image dict(image=path, classes=[dict(name, probability), ...]), the most likely first, up to five.

    Raises:
      ConfigError: there is no `--predict_input`.
      CheckpointError: there is no checkpoint, or it has no supervised head.
      DataError: there are no images, or more unreadable ones than `--max_bad_images`.
    """
    if config.predict_input is None:
        raise ConfigError("--mode=predict needs images. Add --predict_input=<file or folder>.")
    path = config.checkpoint or checkpoint.latest(config.model_dir)
    if path is None:
        raise CheckpointError(f"No checkpoint in {config.model_dir}. Train first, or name one with --checkpoint.")
    source = folder_source.open_images(config.predict_input)
    model, config, strategy = evaluation.load(config, path)
    if model.supervised_head is None:
        raise CheckpointError(f"{path} has no supervised head to classify with. Fine-tune it first.")
    names = class_names(path, model.num_classes)
    found = evaluation.predict(model, config, source, strategy)
    results = [
        {"image": image, "classes": [
            {"name": names[label], "probability": round(float(p), 6)} for label, p in zip(top, ps, strict=True)
        ]}
        for image, top, ps in zip(source.ids(found.index), found.top, found.probabilities, strict=True)
    ]
    _write(config, results)
    for result in results[:10]:
        best = result["classes"][0]
        print(f"{result['image']}: {best['name']} ({best['probability']:.1%})")
    if len(results) > 10:
        print(f"... and {len(results) - 10} more in {os.path.join(config.model_dir, 'predictions.csv')}")
    return results


def class_names(path: str, num_classes: int) -> tuple[str, ...]:
    """The classes that the checkpoint `path` names; else ImageNet's WordNet ids if there are 1000, else numbers."""
    own = restore.own_metadata(path)
    if own is not None and own.class_names is not None:
        return own.class_names
    if num_classes == 1000:
        path = tfds.core.tfds_path("datasets/imagenet2012/labels.txt")
        return tuple(path.read_text().split())
    return tuple(f"class {i}" for i in range(num_classes))


def _write(config: Config, results: list[dict]) -> None:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["image", "rank", "class", "probability"])
    for result in results:
        for rank, guess in enumerate(result["classes"], 1):
            writer.writerow([result["image"], rank, guess["name"], guess["probability"]])
    try:
        tf.io.gfile.makedirs(config.model_dir)
        for name, text in (("predictions.json", json.dumps(results, indent=1)), ("predictions.csv", table.getvalue())):
            with tf.io.gfile.GFile(os.path.join(config.model_dir, name), "w") as file:
                file.write(text)
    except (OSError, tf.errors.OpError) as error:
        raise checkpoint.storage_error(error, f"predictions in {config.model_dir}") from error
