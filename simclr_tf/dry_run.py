"""`--dry_run`: what a run would be, without running it. What this machine lacks is reported, not an error."""

from __future__ import annotations

import math

from simclr_tf import data, options, restore
from simclr_tf.config import Config
from simclr_tf.errors import CheckpointError, DataError, DeviceError
from simclr_tf.model import make_model
from simclr_tf.step import decayed_in_loss, excluded_from_lars, trainable
from simclr_tf.strategy import describe, make_strategy


def dry_run(config: Config) -> str:
    """A text: the resolved settings, data, devices, model size, training of each variable, steps."""
    missing, sections = [], []
    source = strategy = None
    try:
        source = data.open_training_source(config)
    except DataError as error:
        missing.append(f"data set: {error}")
    try:
        strategy = make_strategy(config)
    except DeviceError as error:
        missing.append(f"device: {error}")
    if config.checkpoint:
        try:
            config = restore.follow_checkpoint(config, config.checkpoint)
        except CheckpointError as error:
            missing.append(f"checkpoint: {error}")
    model = make_model(config, source.num_classes if source else 1000)
    trained = trainable(model)

    sections.append("Configuration:\n" + "".join(f"  {line}\n" for line in options.to_flagfile(config).splitlines()))
    if missing:
        sections.append("Not here (a real run would end with an error):\n" + "".join(f"  {m}\n" for m in missing))
    if source:
        sections.append(f"Data: {source.describe()}\n")
    if strategy:
        sections.append(f"Devices: {describe(strategy, config)}\n")
    count = sum(math.prod(item.variable.shape) for item in trained)
    sections.append(
        f"Model: ResNet-{config.resnet_depth}, width {config.width_multiplier:g}: {model.count_params():,} parameters, "
        f"{count:,} trained, in {len(trained)} variables\n"
    )
    sections.append("Trained variables (decay: weight decay; adapt: LARS trust ratio):\n" + "".join(
        f"  {item.name} {tuple(item.variable.shape)}{_treatment(item, config)}\n" for item in trained
    ))
    if source:
        n = source.num_examples
        sections.append(
            f"Steps: {config.epoch_steps(n):,} per epoch, {config.total_steps(n):,} in all, {config.warmup_steps(n):,} "
            f"of warm-up; a checkpoint every {config.checkpoint_interval(n):,}\n"
        )
    return "\n".join(sections)


def _treatment(item, config: Config) -> str:
    decay = decayed_in_loss(item, config) or (config.optimizer == "lars" and not excluded_from_lars(item))
    adapt = config.optimizer == "lars" and not excluded_from_lars(item)
    words = [w for w, yes in (("decay", decay and config.weight_decay > 0), ("adapt", adapt)) if yes]
    return f"  {', '.join(words)}" if words else ""

