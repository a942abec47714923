"""`--mode=demo`: does pretraining without labels pay? A study (`study.py`) of two rows, small enough to wait for."""

from __future__ import annotations

import dataclasses
import json
import os

import tensorflow as tf

from simclr_tf import checkpoint, data, study
from simclr_tf.config import Config
from simclr_tf.errors import DataError

ROWS = "finetuned,scratch"
RESULT = "result.json"


def demo(config: Config) -> dict:
    """Pretrains, fine-tunes on a few labels, and trains from scratch on the same; leaves the study's files.

    Training from scratch gets every advantage: as many updates as pretraining and fine-tuning together, and for each
    seed the learning rate that does best on the very images the result is measured on.

    Returns:
      What `result.json` holds: `simclr` and `from_scratch`, top-1 accuracies in 0..1, means over the seeds; `by_seed`:
      both of each seed, from scratch by learning rate too; `labelled_images`, `test_images`, `updates` of either.

    Raises:
      DataError: `config.dataset` has no labels to fine-tune on.
    """
    source = data.open_training_source(dataclasses.replace(config, labels_per_class=0, label_fraction=1.0))
    if source.class_names is None:
        raise DataError(f"The demo compares accuracies and needs labels; {source.name} has none. Use --dataset=digits.")
    pretraining = config.total_steps(source.num_examples)
    found = study.study(as_study(config, pretraining))
    result = summary(found, pretraining)
    path = os.path.join(config.model_dir, RESULT)
    try:
        with tf.io.gfile.GFile(path, "w") as file:
            json.dump(result, file, indent=1)
    except (OSError, tf.errors.OpError) as error:
        raise checkpoint.storage_error(error, path) from error
    return result


def as_study(config: Config, pretraining: int) -> Config:
    """The study that the demo is. Labels are those of a few of the images that pretraining sees without them."""
    return dataclasses.replace(
        config, mode="study", study_rows=ROWS, study_labelled_split=config.train_split, study_label_counts="none",
        study_scratch_steps=config.study_scratch_steps or pretraining + config.study_steps,
        given=config.given | {"eval_split"},
    )


def summary(found: dict, pretraining: int) -> dict:
    """`result.json` from the study's result; `pretraining`: the updates of it."""
    tuned, scratch = ({seed["seed"]: seed for seed in row["by_seed"]} for row in found["rows"])
    return {
        "simclr": found["rows"][0]["top_1"],
        "from_scratch": found["rows"][1]["top_1"],
        "by_seed": [
            {"seed": seed, "simclr": tuned[seed]["top_1"], "from_scratch": scratch[seed]["top_1"],
             "from_scratch_by_learning_rate": scratch[seed]["by_learning_rate"]} for seed in tuned
        ],
        "labelled_images": found["data"][1]["images"],
        "test_images": found["data"][2]["images"],
        "updates": {"simclr": [pretraining, found["rows"][0]["updates"]], "from_scratch": found["rows"][1]["updates"]},
    }
