"""Weights & Biases, for who asks for it with `--wandb`: the same numbers and pictures as the summaries.

`wandb` is imported only then, and is no dependency (`pip install 'simclr_tf[wandb]'`). Its account, project, host and
offline mode are chosen as everywhere with it: `wandb login`, or the environment variables WANDB_API_KEY,
WANDB_PROJECT, WANDB_ENTITY, WANDB_BASE_URL, WANDB_MODE.
"""

from __future__ import annotations

import importlib
import os
import secrets

import numpy as np
import tensorflow as tf

from simclr_tf.config import Config, flag_fields
from simclr_tf.errors import ConfigError, StorageError

ID_FILE = "wandb_id"  # in a run's folder: a resumed training goes on in the same W&B run
STEP = "step"


def open_run(config: Config) -> Tracker | None:
    """The W&B run of `config.model_dir`, begun or gone on with; None without `--wandb`.

    An evaluation that runs beside a training (`--mode=eval`) has a run of its own in the same group.

    Raises:
      ConfigError: `wandb` is not installed, or refuses: not logged in, no such project.
      StorageError: the run's folder cannot be written.
    """
    if not config.wandb:
        return None
    try:
        wandb = importlib.import_module("wandb")
    except ImportError as error:
        raise ConfigError(
            f"--wandb needs Weights & Biases, which cannot be imported: {error}. Run: pip install 'simclr_tf[wandb]', "
            "or drop --wandb."
        ) from error
    group = _id(config.model_dir)
    job = "eval" if config.mode == "eval" else "train"
    run_id = f"{group}-eval" if job == "eval" else group
    if wandb.run is not None:
        if wandb.run.id == run_id:
            return Tracker(wandb, wandb.run)
        wandb.finish()  # an earlier training of this process
    try:
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "simclr_tf"), name=os.path.basename(config.model_dir.rstrip("/")),
            id=run_id, group=group, job_type=job, resume="allow", dir=None if "://" in config.model_dir else
            config.model_dir, config={f.name: getattr(config, f.name) for f in flag_fields()},
        )
    except wandb.errors.Error as error:
        raise ConfigError(
            f"Weights & Biases refuses: {error}. Run `wandb login`, set WANDB_MODE=offline, or drop --wandb."
        ) from error
    # Their own step counter cannot go back, as a run does that is resumed from its last checkpoint.
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP)
    return Tracker(wandb, run)


class Tracker:
    """A W&B run that takes what `Summaries` takes."""

    def __init__(self, wandb, run):
        self._wandb, self._run = wandb, run

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._run.log({STEP: step, **values})

    def picture(self, step: int, picture: np.ndarray) -> None:
        """`picture` is float [H, W, 3] in [0, 1]."""
        self._run.log({STEP: step, "image": self._wandb.Image((picture * 255).round().astype(np.uint8))})


def _id(model_dir: str) -> str:
    """The id that the run's folder keeps; a new one the first time."""
    path = os.path.join(model_dir, ID_FILE)
    try:
        tf.io.gfile.makedirs(model_dir)
        if tf.io.gfile.exists(path):
            with tf.io.gfile.GFile(path) as file:
                return file.read().strip()
        run_id = secrets.token_hex(6)
        with tf.io.gfile.GFile(path, "w") as file:
            file.write(run_id)
        return run_id
    except (OSError, tf.errors.OpError) as error:
        raise StorageError(f"Could not write {path}: {error}") from error
