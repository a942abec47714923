"""Where a run's weights come from: its own newest checkpoint, or the one given with --checkpoint."""

from __future__ import annotations

import dataclasses
import logging
import os

import tensorflow as tf

from simclr_tf import checkpoint, formats, released
from simclr_tf.config import Config
from simclr_tf.errors import CheckpointError
from simclr_tf.model import SimCLR

log = logging.getLogger(__name__)

# Settings that a run's own checkpoint supplies where flags don't, besides what its weights show: to build on it,
# and to evaluate it as the run itself would.
TO_BUILD_ON = ("image_size", "precision")
TO_EVALUATE = (*TO_BUILD_ON, "ft_proj_selector", "optimizer", "train_mode", "weight_decay")


def follow_own(config: Config, prefix: str) -> Config:
    """`config` as the run's own checkpoint `prefix` continues.

    Raises:
      CheckpointError: the run was started with other settings that matter; all of them are listed.
    """
    checkpoint.check_same_settings(config, checkpoint.Metadata.read(prefix), (*released.FOLLOWED, *TO_BUILD_ON))
    return follow_checkpoint(config, prefix)


def follow_checkpoint(config: Config, path: str, settings: tuple[str, ...] = TO_BUILD_ON) -> Config:
    """`config` with the architecture of `path` and, if it is one of ours, its `settings`, where not chosen.

    Raises:
      CheckpointError: `path` is no checkpoint, or chosen settings contradict it.
    """
    own = own_metadata(path)
    if own is not None:
        changes = {name: own.settings[name] for name in settings
                   if name not in config.given and name in own.settings}
        config = dataclasses.replace(config, **changes)
    arch, arrays = released.inspect(path)
    if "ft_proj_selector" in settings and "ft_proj_selector" not in config.given:
        config = dataclasses.replace(config, ft_proj_selector=arch.ft_proj_selector)
    return released.follow(config, arch, arrays.source)


def own_metadata(path: str) -> checkpoint.Metadata | None:
    """The metadata of `path` (a prefix or a run's folder) if this project wrote it, else None."""
    try:
        prefix = formats.find_prefix(released.locate(path))
    except CheckpointError:
        return None
    return checkpoint.Metadata.read(prefix) if tf.io.gfile.exists(f"{prefix}.json") else None


def restore_weights(model: SimCLR, config: Config, class_names: tuple[str, ...] | None) -> None:
    """Fills `model` from `config.checkpoint`; a supervised head of other classes is left fresh, and it is said."""
    leave_out = {}
    own = own_metadata(config.checkpoint)
    if own is not None and class_names is not None and own.class_names not in (None, class_names):
        leave_out["head_supervised"] = f"its classes ({_few(own.class_names)}) are not the data's ({_few(class_names)})"
    summary = released.restore_into(
        model, config.checkpoint, use_ema=config.use_ema, schema=config.variable_schema, leave_out=leave_out
    )
    log.info("Weights from %s", summary)


def resume(model_dir: str, state: dict, config: Config, class_names: tuple[str, ...] | None) -> int:
    """Fills `state` from the run's newest undamaged checkpoint and returns its step; 0 if there is none.

    Raises:
      CheckpointError: the run was started with other settings or classes, or every checkpoint is damaged.
    """
    prefix = checkpoint.latest(model_dir)
    if prefix is None:
        return 0
    metadata = checkpoint.Metadata.read(prefix)
    checkpoint.check_same_settings(config, metadata)
    if metadata.class_names != class_names:
        raise CheckpointError(
            f"The run in {model_dir} was started on other classes ({_few(metadata.class_names)}) than the data's "
            f"({_few(class_names)}). Use another --model_dir."
        )
    checkpoint.restore(prefix, state)
    log.info("Resuming from %s at step %d", os.path.join(model_dir, os.path.basename(prefix)), metadata.step)
    return metadata.step


def _few(names: tuple[str, ...] | None) -> str:
    if names is None:
        return "none"
    return f"{len(names)}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
