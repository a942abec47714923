"""What a run left in its folder, read back."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import os
import zipfile

import numpy as np
import tensorflow as tf

from simclr_tf import representation
from simclr_tf.config import Config
from simclr_tf.evaluation import Predictions
from simclr_tf.representation import Representation
from simclr_tf.summaries import read_history

log = logging.getLogger(__name__)

PROBE_NAMES = {"logreg": "Logistic regression", "linear": "Linear, by SGD", "knn": "Nearest neighbours"}


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run left in its folder. `predictions` and `class_names` are None before an evaluation.

    probes: the contents of probe.json, or None. classifier: what made the predictions; empty for the run's own head.
    """

    config: Config
    history: list[dict]
    predictions: Predictions | None
    class_names: tuple[str, ...] | None
    step: int | None
    representation: Representation | None = None
    probes: dict | None = None
    classifier: str = ""


def read_run(config: Config) -> Run:
    """Gathers what `config.model_dir` holds. A damaged file is reported and left out."""
    suffix = f"_{config.eval_name}" if config.eval_name else ""
    probes = _read_probes(os.path.join(config.model_dir, "probe.json"))
    archive, classifier = _read_predictions(os.path.join(config.model_dir, f"predictions{suffix}.npz")), ""
    for kind in (k for k in PROBE_NAMES if probes and k in probes):
        if archive is None:
            archive = _read_predictions(os.path.join(config.model_dir, f"predictions_{kind}.npz"))
            classifier = f"{PROBE_NAMES[kind]} on frozen features" if archive else ""
    predictions, class_names, step = archive or (None, None, None)
    return Run(config, read_history(config.model_dir), predictions, class_names, step,
               representation.read(config.model_dir), probes, classifier)


def _read_predictions(path: str) -> tuple[Predictions, tuple[str, ...], int] | None:
    if not tf.io.gfile.exists(path):
        return None
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            archive = np.load(io.BytesIO(file.read()), allow_pickle=False)
        columns = [archive[f.name] for f in dataclasses.fields(Predictions)]
        return Predictions(*columns), tuple(map(str, archive["class_names"])), int(archive["step"])
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("WARNING: the report leaves out the predictions: %s cannot be read: %s", path, error)
        return None


def _read_probes(path: str) -> dict | None:
    if not tf.io.gfile.exists(path):
        return None
    try:
        with tf.io.gfile.GFile(path) as file:
            probes = json.load(file)
        probes["result"]["probe/test_images"]
        return probes
    except (ValueError, KeyError, TypeError) as error:
        log.warning("WARNING: the report leaves out the probes: %s cannot be read: %s", path, error)
        return None


def describe(config: Config) -> str:
    """One line: what was done, on what, with which network."""
    verb = {
        "pretrain": "Contrastive pretraining", "finetune": "Supervised fine-tuning", "distill": "Distillation",
        "baseline": "Frozen InceptionV3 with a small classifier",
    }[config.train_mode]
    if config.train_mode == "finetune" and not config.checkpoint:
        verb = "Supervised training from scratch"
    verb = {"eval": "Evaluation", "probe": "Probes", "embed": "Embeddings"}.get(config.mode, verb)
    if config.train_mode == "baseline":
        return f"{verb} on {config.dataset}: {config.baseline_image_size} px, seed {config.seed}"
    return (
        f"{verb} on {config.dataset}: ResNet-{config.resnet_depth}, width {config.width_multiplier:g}, "
        f"{config.image_size} px, seed {config.seed}"
    )
