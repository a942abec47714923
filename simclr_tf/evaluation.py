"""Evaluation of the supervised head: top-1, top-5, and the predictions themselves for whoever looks closer."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import os
import time

import numpy as np
import tensorflow as tf
from keras import ops

from simclr_tf import checkpoint, data, metrics, released, restore, saved_model, tracking
from simclr_tf.config import Config, flag_fields
from simclr_tf.errors import CheckpointError, DataError
from simclr_tf.model import SimCLR, make_model
from simclr_tf.step import weight_decay_loss
from simclr_tf.strategy import distribute, inference, is_chief, make_strategy

log = logging.getLogger(__name__)

POLL_SECONDS = 5.0  # between two looks for a new checkpoint


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a model said of each example of a split, in the order of the examples.

    index: int64 [n], into the source. labels: int32 [n]. top: int32 [n, k], the k most likely classes, k up to 5.
    probabilities: float32 [n, k], theirs.
    """

    index: np.ndarray
    labels: np.ndarray
    top: np.ndarray
    probabilities: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """bool [n]: the first guess was right."""
        return self.top[:, 0] == self.labels

    def top_1(self) -> float:
        return float(self.correct.mean())

    def top_5(self) -> float:
        return float((self.top == self.labels[:, None]).any(1).mean())


def evaluate(config: Config) -> dict | None:
    """`--mode=eval`: evaluates `config.checkpoint` once, or else each new checkpoint in model_dir until the last.

    Returns:
      The last results (see `evaluate_and_record`), or None if there was nothing to evaluate.

    Raises:
      CheckpointError: no checkpoint came within `config.eval_timeout` seconds.
    """
    if config.checkpoint:
        return _evaluate_checkpoint(config, config.checkpoint)
    result, seen, waiting_since = None, None, time.monotonic()
    while True:
        prefix = checkpoint.latest(config.model_dir)
        if prefix is not None and prefix != seen:
            step = checkpoint.step_of(prefix)
            try:
                result = _evaluate_checkpoint(config, prefix)
            except CheckpointError:
                if tf.io.gfile.exists(f"{prefix}.index"):
                    raise
                log.info("%s was deleted while it was read: the training has gone on; taking a newer one", prefix)
                continue
            seen, waiting_since = prefix, time.monotonic()
            if step >= _last_step(config):
                return result
            continue
        if time.monotonic() - waiting_since >= config.eval_timeout:
            if seen is None:
                raise CheckpointError(
                    f"No checkpoint in {config.model_dir} within --eval_timeout={config.eval_timeout:g} seconds. "
                    "Train first, or name one with --checkpoint."
                )
            log.info("No newer checkpoint for %g seconds; ending", config.eval_timeout)
            return result
        time.sleep(min(POLL_SECONDS, config.eval_timeout))


def evaluate_and_record(
    model: SimCLR, config: Config, strategy: tf.distribute.Strategy, class_names: tuple[str, ...] | None, step: int
) -> dict | None:
    """Evaluates `model` on `config.eval_split` and writes `result.json` and the predictions into model_dir.

    Returns:
      dict of `eval/label_top_1_accuracy`, `eval/label_top_5_accuracy`, `eval/regularization_loss`, `global_step`; or
      None where there is no supervised head to evaluate.
    """
    if model.supervised_head is None:
        log.info("Nothing to evaluate: the model has no supervised head (pretraining without labels or linear eval)")
        return None
    source = data.open_source(config, config.eval_split)
    log.info("Evaluation data: %s", source.describe())
    if source.class_names != class_names:
        raise DataError(
            f"The model was trained on other classes than those of {source.name}, split {source.split}: "
            f"{len(class_names or ())} against {source.num_classes}, or other names."
        )
    predictions = predict(model, config, source, strategy)
    result = {
        "eval/regularization_loss": float(weight_decay_loss(model, config)),
        "eval/label_top_1_accuracy": predictions.top_1(),
        "eval/label_top_5_accuracy": predictions.top_5(),
        "global_step": float(step),
    }
    log.info("Step %d on %d images of %s: top-1 %.2f %%, top-5 %.2f %%", step, len(predictions.labels),
             config.eval_split, 100 * predictions.top_1(), 100 * predictions.top_5())
    if is_chief(config):
        record(config, result, predictions, class_names, source.ids(predictions.index), step)
    return result


def predict(model: SimCLR, config: Config, source, strategy: tf.distribute.Strategy) -> Predictions:
    """Runs `model` over a source, each example once (`config.eval_steps` batches of it, if above 0)."""
    k = min(5, model.num_classes)

    def one_batch(batch):
        h = model.encoder(batch["images"], training=False)
        hiddens = model.projection_head(h, training=False)
        p = ops.softmax(model.supervised_head(hiddens[model.ft_proj_selector]))
        probabilities, top = ops.top_k(p, k)
        return batch["index"], batch["weights"], batch["labels"], top, probabilities

    run = inference(strategy, model, one_batch)
    feed = data.Feed.evaluation(source, config)
    parts = []
    for step, batch in enumerate(batches_of(feed, strategy, config)):
        if config.eval_steps and step >= config.eval_steps:
            break
        values = run(batch)
        counts = values[1] > 0  # padding and unreadable images do not
        parts.append([v[counts] for v in values])
    index, _, labels, top, probabilities = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return Predictions(index, labels, top, probabilities)


def batches_of(feed: data.Feed, strategy: tf.distribute.Strategy, config: Config):
    """The evaluation batches of `feed` for `strategy.inference`, each example once."""
    if strategy.num_replicas_in_sync == 1:
        return feed
    return distribute(strategy, config.eval_batch_size, lambda w, n: feed.batches(0, w, n))


def load(config: Config, path: str) -> tuple[SimCLR, Config, tf.distribute.Strategy]:
    """The model that the checkpoint `path` holds, the settings that fit it, and the devices it is on."""
    # All of it: --variable_schema says what training takes over from another checkpoint.
    config = dataclasses.replace(config, variable_schema=released.EVERYTHING)
    config = restore.follow_checkpoint(config, path, restore.TO_EVALUATE)
    arch, _ = released.inspect(path)
    strategy = make_strategy(config)
    with strategy.scope():
        model = make_model(config, arch.num_classes, initialize=False)
    log.info("%s", released.restore_into(model, path, use_ema=config.use_ema))
    return model, config, strategy


def _evaluate_checkpoint(config: Config, path: str) -> dict | None:
    tracker = tracking.open_run(config)
    model, config, strategy = load(config, path)
    own = restore.own_metadata(path)
    if own is not None:
        class_names, step = own.class_names, own.step
    else:  # the authors' checkpoints do not name their classes: the number has to do
        source = data.open_source(config, config.eval_split)
        class_names = source.class_names if source.num_classes == model.num_classes else None
        step = 0
    result = evaluate_and_record(model, config, strategy, class_names, step)
    if tracker and result:
        tracker.scalars(step, {k: v for k, v in result.items() if k.startswith("eval/")})
    saved_model.export_step(model, config.model_dir, step, config.keep_hub_module_max)
    return result


def _last_step(config: Config) -> int:
    return config.train_steps or config.total_steps(data.open_training_source(config).num_examples)


def record(config: Config, result: dict, predictions: Predictions, class_names, ids: list[str], step: int) -> None:
    """Writes result.json, result_<step>.json, flags.json, predictions.npz, and the TensorBoard scalars."""
    suffix = f"_{config.eval_name}" if config.eval_name else ""
    settings = {f.name: getattr(config, f.name) for f in flag_fields()}

    def path(name):
        return os.path.join(config.model_dir, name)

    try:
        tf.io.gfile.makedirs(config.model_dir)
        contents = {
            "result.json": result, f"result{suffix}_{step}.json": result, "flags.json": settings,
            f"evaluation{suffix}.json": metrics.details(
                predictions.labels, predictions.top, predictions.probabilities[:, 0], class_names),
        }
        for name, content in contents.items():
            with tf.io.gfile.GFile(path(name), "w") as file:
                json.dump(content, file)
        write_predictions(path(f"predictions{suffix}.npz"), predictions, class_names, ids, step)
        folder = path(f"eval{suffix}") if suffix else config.model_dir
        writer = tf.summary.create_file_writer(folder)
        with writer.as_default():
            for tag, value in result.items():
                if tag.startswith("eval/"):
                    tf.summary.scalar(tag, value, step=step)
        writer.close()
    except (OSError, tf.errors.OpError) as error:
        raise checkpoint.storage_error(error, f"results in {config.model_dir}") from error


def write_predictions(path: str, predictions: Predictions, class_names, ids: list[str], step: int) -> None:
    """Writes an archive that `report.read_run` reads back."""
    # Through memory: a zip archive needs to seek, which remote files cannot.
    archive = io.BytesIO()
    np.savez_compressed(
        archive, index=predictions.index, labels=predictions.labels, top=predictions.top,
        probabilities=predictions.probabilities, ids=np.array(ids), class_names=np.array(class_names), step=step,
    )
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(archive.getvalue())
