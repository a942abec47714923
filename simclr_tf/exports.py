"""To use a model elsewhere: as a SavedModel, as a `.keras` file of stock layers, or as weights for torch.

Whatever is written is read back and run beside the model before it gets its name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

from simclr_tf import checkpoint, evaluation, prediction, torch_file
from simclr_tf.checkpoint import storage_error
from simclr_tf.config import Config
from simclr_tf.errors import CheckpointError, ConfigError
from simclr_tf.model import SimCLR, named_variables
from simclr_tf.saved_model import export_saved_model
from simclr_tf.stock_model import stock_model

log = logging.getLogger(__name__)

# Where --mode=export writes each format, below model_dir.
PATHS = {
    "saved_model": os.path.join("export", "saved_model"), "keras": os.path.join("export", "model.keras"),
    "safetensors": os.path.join("export", "model.safetensors"),
}
TOLERANCE = 1e-4  # of an output's largest value: other layers round otherwise


def export_checkpoint(config: Config) -> str:
    """`--mode=export`: writes `config.checkpoint`, or the run in model_dir, to model_dir; returns the path.

    Beside it `classes.txt` holds the names of the supervised head's classes, one a line.

    Raises:
      CheckpointError: there is no checkpoint, or what was written does not compute the same.
      StorageError: it cannot be written.
    """
    path = config.checkpoint or checkpoint.latest(config.model_dir)
    if path is None:
        raise CheckpointError(f"No checkpoint in {config.model_dir}. Train first, or name one with --checkpoint.")
    config = dataclasses.replace(config, precision="float32", given=config.given | {"precision"})
    model, config, _ = evaluation.load(config, path)
    names = prediction.class_names(path, model.num_classes) if model.num_classes is not None else None
    target = os.path.join(config.model_dir, PATHS[config.export_format])
    difference = export(model, target, config.export_format, class_names=names)
    if names is not None:
        _write_text(os.path.join(os.path.dirname(target), "classes.txt"), "".join(f"{name}\n" for name in names))
    print(f"{target}: written, read back and run; its outputs differ from the model's by at most {difference:.1e} of "
          "their largest value")
    return target


def export(
    model: SimCLR, path: str | os.PathLike, format: str = "saved_model", *, class_names: tuple[str, ...] | None = None
) -> float:
    """Writes `model` to `path`, replacing an earlier export there, and checks it by reading it back.

    Args:
      format: "saved_model" (a folder, with the reference's contract: see `saved_model.export_saved_model`), "keras" (a
        file `*.keras` of stock layers: see `stock_model.stock_model`) or "safetensors" (a file `*.safetensors` with
        torchvision's names: see `torch_file`).
      class_names: kept in a safetensors file's metadata.

    Returns:
      The largest difference between the outputs of the model and of what was read back, on noise, relative to each
      output's largest value.

    Raises:
      ConfigError: an unknown format, or a name that does not end as the format's do.
      CheckpointError: what was read back does not compute the same. `path` is then as it was.
      StorageError: it cannot be written.
    """
    path = os.fspath(path)
    if format not in PATHS:
        raise ConfigError(f"The format of an export must be one of {', '.join(PATHS)}. Received: format={format!r}")
    if format == "saved_model":
        return export_saved_model(model, path, check=lambda written: _difference(
            model, lambda images: tf.saved_model.load(written)(tf.constant(images), trainable=False), path))
    if not path.endswith(f".{format}"):
        raise ConfigError(f"An export with format={format!r} must end with .{format}. Received: {path}")
    write, load = {
        "keras": (lambda m, p: stock_model(m).save(p), lambda m, p: keras.saving.load_model(p, compile=False)),
        "safetensors": (lambda m, p: torch_file.write(m, p, class_names), _filled_from_torch_file),
    }[format]
    model = _in_float32(model)
    with _complete(path) as temporary:
        write(model, temporary)
        return _difference(model, lambda images: load(model, temporary)(images, training=False), path)


def _difference(model: SimCLR, exported: Callable, path: str) -> float:
    """The largest difference between the outputs of both, relative to an output's largest value."""
    size = 32 if model.architecture["cifar_stem"] else 64
    images = np.random.default_rng(0).uniform(size=(2, size, size, 3)).astype(np.float32)
    with tf.device("CPU:0"):
        found = {name: np.asarray(value) for name, value in exported(images).items()}
        expected = {name: np.asarray(value) for name, value in model(images).items()}
    errors = {}
    for name, value in found.items():
        largest = np.abs(expected[name]).max()
        errors[name] = float(np.abs(value - expected[name]).max() / max(largest, 1e-30))
    wrong = {name: error for name, error in errors.items() if not error <= TOLERANCE}  # nan is wrong, too
    if wrong:
        listed = ", ".join(f"{name} by {error:.1e}" for name, error in wrong.items())
        raise CheckpointError(
            f"What was read back from {path} differs from the model: {listed} of its largest value. It was not kept."
        )
    return max(errors.values())


def _filled_from_torch_file(model: SimCLR, path: str) -> SimCLR:
    copy = SimCLR(**model.get_config(), initialize=False)
    torch_file.read_into(copy, path)
    return copy


def _in_float32(model: SimCLR) -> SimCLR:
    """`model`, or a copy of it that computes in float32."""
    if model.compute_dtype == "float32":
        return model
    copy = SimCLR(**model.get_config() | dict(dtype="float32"), initialize=False)
    for ours, theirs in zip(named_variables(copy), named_variables(model), strict=True):
        ours.variable.assign(theirs.variable)
    return copy


@contextlib.contextmanager
def _complete(path: str) -> Iterator[str]:
    """A local path to write to; what is there at the end becomes `path`, unless there was an error."""
    folder = None
    try:
        parent = os.path.dirname(path) or "."
        tf.io.gfile.makedirs(parent)
        folder = tempfile.mkdtemp(prefix=".export-", dir=None if "://" in path else parent)
        temporary = os.path.join(folder, os.path.basename(path))
        yield temporary
        if "://" in path:
            tf.io.gfile.copy(temporary, f"{path}.unfinished", overwrite=True)
            temporary = f"{path}.unfinished"
        tf.io.gfile.rename(temporary, path, overwrite=True)
    except (OSError, tf.errors.OpError) as error:
        raise storage_error(error, path) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _write_text(path: str, text: str) -> None:
    try:
        with tf.io.gfile.GFile(path, "w") as file:
            file.write(text)
    except (OSError, tf.errors.OpError) as error:
        raise storage_error(error, path) from error
