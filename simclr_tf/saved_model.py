"""A model as a SavedModel with the reference's contract, for use without this package."""

from __future__ import annotations

import os
from collections.abc import Callable

import keras
import tensorflow as tf

from simclr_tf import saved_model_process
from simclr_tf.checkpoint import storage_error
from simclr_tf.errors import StorageError
from simclr_tf.model import SimCLR, named_variables


class _Exported(tf.Module):
    """What `tf.saved_model.load` gives back: callable with (images, trainable), returning the dict of endpoints."""

    def __init__(self, model: SimCLR):
        super().__init__()
        self._model = model
        # A module exports the variables it can see; Keras's wrappers hide them.
        self.all_variables = [item.variable.value for item in named_variables(model)]
        # The name is the reference's, and what its fine-tuning snippet reads: `trainable_variables` is taken.
        self.trainable_variables_list = [
            item.variable.value for item in named_variables(model) if item.variable.trainable
        ]

    @tf.function
    def __call__(self, inputs, trainable):
        return self._model(inputs, training=trainable)


def write(model: SimCLR, folder: str) -> None:
    """Writes `model`, on the TensorFlow backend, as a SavedModel to a new folder."""
    exported = _Exported(model)
    images = tf.TensorSpec([None, None, None, 3], tf.float32)
    exported.__call__.get_concrete_function(images, trainable=True)
    exported.__call__.get_concrete_function(images, trainable=False)
    tf.saved_model.save(exported, folder)


def export_saved_model(model: SimCLR, path: str, check: Callable[[str], float] = lambda folder: 0.0) -> float:
    """Writes `model` to the folder `path`, replacing a SavedModel that is there.

    `tf.saved_model.load(path)(images, trainable=False)` takes float32 images [n, H, W, 3] in [0, 1] and returns the
    endpoints of `SimCLR`, deterministically: no augmentation is part of it, unlike in the reference's export.
    `trainable=True` normalises by the batch and moves batch norm's statistics.

    Returns:
      What `check` does of the complete SavedModel, which has another path then. If it raises, `path` stays as it was.

    Raises:
      StorageError: `path` is something else than a SavedModel, or cannot be written.
    """
    if tf.io.gfile.exists(path) and not tf.io.gfile.exists(os.path.join(path, "saved_model.pb")):
        raise StorageError(f"{path} is there already and no SavedModel: it is not replaced. Choose another path.")
    unfinished = f"{path}.unfinished"
    try:
        _remove(unfinished)
        on_tensorflow = keras.config.backend() == "tensorflow"
        (write if on_tensorflow else saved_model_process.write)(model, unfinished)
        try:
            checked = check(unfinished)
        except BaseException:
            _remove(unfinished)
            raise
        _remove(path)
        tf.io.gfile.rename(unfinished, path)
        return checked
    except (OSError, tf.errors.OpError) as error:
        raise storage_error(error, f"the SavedModel {path}") from error


def _remove(folder: str) -> None:
    if tf.io.gfile.exists(folder):
        tf.io.gfile.rmtree(folder)


def export_step(model: SimCLR, model_dir: str, step: int, keep: int) -> None:
    """Writes `saved_model/<step>` in a run's folder and deletes all but the newest `keep` (0 keeps all, -1: none)."""
    if keep < 0:
        return
    folder = os.path.join(model_dir, "saved_model")
    export_saved_model(model, os.path.join(folder, str(step)))
    names = [name.rstrip("/") for name in tf.io.gfile.listdir(folder)]  # remote folders are listed with a slash
    steps = sorted(int(name) for name in names if name.isdigit())
    for old in steps[:-keep] if keep else ():
        tf.io.gfile.rmtree(os.path.join(folder, str(old)))
