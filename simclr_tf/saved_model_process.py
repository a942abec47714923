"""Writes the SavedModel of a model that lives on another backend: a TensorFlow graph can be made on TensorFlow only.

`python -m simclr_tf.saved_model_process <folder>` is that other process, started by `write` with
KERAS_BACKEND=tensorflow. It gets the weights as a file of numbers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

import numpy as np

from simclr_tf.errors import StorageError
from simclr_tf.model import SimCLR, named_variables


def write(model: SimCLR, path: str) -> None:
    """Writes the SavedModel of `model` to the new folder `path`, in a process of its own (some ten seconds).

    Raises:
      StorageError: the other process failed; its last line says why.
    """
    with tempfile.TemporaryDirectory(prefix="simclr-export-") as folder:
        settings = dict(
            config=model.get_config(), path=path,
            trained=[item.name for item in named_variables(model) if item.variable.trainable],
        )
        np.savez(os.path.join(folder, "weights.npz"),
                 **{item.name: np.asarray(item.variable) for item in named_variables(model)})
        with open(os.path.join(folder, "settings.json"), "w", encoding="utf-8") as file:
            json.dump(settings, file)
        # The package lies where this process found it, which need not be an installed one.
        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        places = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        done = subprocess.run(
            [sys.executable, "-m", __spec__.name, folder], capture_output=True, text=True, check=False,
            env=os.environ | {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": places},
        )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise StorageError(f"The SavedModel {path} could not be written on TensorFlow: {reason}")


def main(folder: str) -> None:
    """What the other process does: makes the model, fills it and saves it."""
    from simclr_tf import saved_model

    with open(os.path.join(folder, "settings.json"), encoding="utf-8") as file:
        settings = json.load(file)
    model = SimCLR(**settings["config"], initialize=False)
    weights = np.load(os.path.join(folder, "weights.npz"))
    for item in named_variables(model):
        item.variable.assign(weights[item.name])
        item.variable.trainable = item.name in settings["trained"]
    saved_model.write(model, settings["path"])


if __name__ == "__main__":
    main(sys.argv[1])
