"""What a run left in its folder, read back."""

from __future__ import annotations

import dataclasses
import io
import logging
import os
import zipfile

import numpy as np
import tensorflow as tf

from simclr_tf.config import Config
from simclr_tf.evaluation import Predictions
from simclr_tf.summaries import read_history

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run left in its folder. `predictions` and `class_names` are None before an evaluation."""

    config: Config
    history: list[dict]
    predictions: Predictions | None
    class_names: tuple[str, ...] | None
    step: int | None


def read_run(config: Config) -> Run:
    """Gathers what `config.model_dir` holds. A damaged file of predictions is reported and left out."""
    predictions, class_names, step = None, None, None
    suffix = f"_{config.eval_name}" if config.eval_name else ""
    path = os.path.join(config.model_dir, f"predictions{suffix}.npz")
    if tf.io.gfile.exists(path):
        try:
            with tf.io.gfile.GFile(path, "rb") as file:
                archive = np.load(io.BytesIO(file.read()), allow_pickle=False)
            columns = [archive[f.name] for f in dataclasses.fields(Predictions)]
            class_names = tuple(map(str, archive["class_names"]))
            predictions, step = Predictions(*columns), int(archive["step"])
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            log.warning("WARNING: the report leaves out the predictions: %s cannot be read: %s", path, error)
    return Run(config, read_history(config.model_dir), predictions, class_names, step)


def describe(config: Config) -> str:
    """One line: what was done, on what, with which network."""
    verb = {
        "pretrain": "Contrastive pretraining", "finetune": "Supervised fine-tuning", "distill": "Distillation",
        "baseline": "Frozen InceptionV3 with a small classifier",
    }[config.train_mode]
    if config.train_mode == "finetune" and not config.checkpoint:
        verb = "Supervised training from scratch"
    if config.mode == "eval":
        verb = "Evaluation"
    if config.train_mode == "baseline":
        return f"{verb} on {config.dataset}: {config.baseline_image_size} px, seed {config.seed}"
    return (
        f"{verb} on {config.dataset}: ResNet-{config.resnet_depth}, width {config.width_multiplier:g}, "
        f"{config.image_size} px, seed {config.seed}"
    )
