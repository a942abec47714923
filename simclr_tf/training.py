"""The training loop, to be read from top to bottom.

images -> two views -> encoder h -> projection z -> NT-Xent -> LARS, with a checkpoint every so often.
"""

from __future__ import annotations

import logging
import os
import time

import numpy as np
import tensorflow as tf
from keras import ops

from simclr_tf import checkpoint, data, distillation, evaluation, options, probe, restore, saved_model, tracking
from simclr_tf.config import Config
from simclr_tf.errors import CheckpointError, ConfigError, DataError
from simclr_tf.interrupts import Interrupts
from simclr_tf.lock import training_lock
from simclr_tf.model import SimCLR, make_model
from simclr_tf.nonfinite import Guard
from simclr_tf.step import (
    all_finite,
    apply_gradients,
    compute_gradients,
    make_optimizer,
    make_schedule,
    moving_statistics,
)
from simclr_tf.strategy import ON_JAX, describe, distribute, is_chief, make_strategy, of_all_workers, set_determinism
from simclr_tf.summaries import INPUT_WAIT, Progress, Summaries
from simclr_tf.workers import lost_worker

log = logging.getLogger(__name__)


def train(config: Config) -> SimCLR:
    """Trains, from where `config.model_dir` was left, to the end; returns the model.

    Raises:
      SimclrError: see `errors.py`; `Interrupted` after a signal, with a checkpoint saved.
    """
    return _train(config)[0]


def train_then_eval(config: Config) -> dict:
    """Trains, then evaluates the last checkpoint; returns its results."""
    model, config, strategy, source, total = _train(config)
    result = evaluation.evaluate_and_record(model, config, strategy, source.class_names, total)
    if not is_chief(config):
        return result
    if result and (tracker := tracking.open_run(config)):
        tracker.scalars(total, {k: v for k, v in result.items() if k.startswith("eval/")})
    saved_model.export_step(model, config.model_dir, total, config.keep_hub_module_max)
    return result


def _train(config: Config):
    strategy = make_strategy(config)  # first: several workers join before TensorFlow computes anything
    log.info("Devices: %s", describe(strategy, config))
    set_determinism(config)
    make_folder(config.model_dir)
    source = data.open_training_source(config)
    log.info("Training data: %s", source.describe())
    with training_lock(config.model_dir, take=is_chief(config)):
        return _train_locked(config, strategy, source)


def _train_locked(config: Config, strategy: tf.distribute.Strategy, source):
    own = checkpoint.latest(config.model_dir)
    if own:
        config = restore.follow_own(config, own)
    elif config.checkpoint:
        config = restore.follow_checkpoint(config, config.checkpoint)
    total = config.total_steps(source.num_examples)
    schedule = make_schedule(config, source.num_examples)
    teacher = None
    with strategy.scope():
        if config.train_mode == "distill":
            teacher = distillation.load_teacher(config)
            source = distillation.with_classes_of(teacher, source, config)
        model = make_model(config, source.num_classes)
        optimizer = make_optimizer(config, model, source.num_examples)
        state = checkpoint.training_state(model, optimizer)
        step = _begin(config, model, state, source)
    checkpoint.check_space(config.model_dir, state)
    _announce(config, source, model, step, total)
    _check_begin_together(strategy, step)
    chief = is_chief(config)
    if chief:
        write_flags(config)

    run_steps, tags = make_loop(model, optimizer, config, strategy, teacher)
    feed = data.Feed.training(source, config)

    def iterator_from(step):
        return iter(distribute(strategy, config.train_batch_size, lambda w, n: feed.batches(step, w, n)))

    iterator = iterator_from(step)
    summaries = Summaries(config.model_dir, step, tracking.open_run(config)) if chief else None
    progress = Progress(step, total, config.train_batch_size, config.epoch_steps(source.num_examples))
    intervals = _intervals(config, source.num_examples)
    guard = Guard(config, feed, tags, writes=chief)
    neighbours = probe.KnnMonitor(model, config, strategy) if config.knn_every_epochs else None
    pending: list[np.ndarray] = []  # rows of metrics since the last summary

    with Interrupts() as interrupts:
        while step < total:
            until = min([total, *(_next_multiple(step, every) for every in intervals.values() if every)])
            until = min(until, step + _steps_per_loop(config, strategy))
            started = time.perf_counter()
            try:
                rows, finite = run_steps(iterator, until - step)
                stop = max(of_all_workers(strategy, interrupts.signal or 0))
            except tf.errors.OpError as error:
                if lost := lost_worker(error):
                    raise lost from error
                # An unreadable image: the steps before its batch are done and stay.
                step = int(optimizer.iterations)
                feed.recover(error, step)
                iterator = iterator_from(step)
                continue
            guard.check(step, rows, finite)
            step = until
            if chief:
                pending.append(rows[finite])
            progress.advance(step, time.perf_counter() - started, float(rows[:, tags.index(INPUT_WAIT)].sum()))

            due = {name for name, every in intervals.items() if every and step % every == 0}
            ending = step == total or stop
            if chief and (ending or due & {"summary", "checkpoint"}) and any(map(len, pending)):
                values = dict(zip(tags, np.concatenate(pending).mean(0).tolist(), strict=True))
                values["learning_rate"] = float(schedule(step))
                values["images_per_second"] = progress.images_per_second
                summaries.scalars(step, values)
                progress.show(values, last=ending)
                pending.clear()
            if chief and (ending or due & {"checkpoint", "eval"}):  # what is evaluated is kept if it is the best
                checkpoint.save(config.model_dir, step, state, config, source.class_names)
                checkpoint.prune(config.model_dir, config.keep_checkpoint_max)
                summaries.views(step, _some_views(feed, step - 1))
            if "eval" in due and step < total:
                result = evaluation.evaluate_and_record(model, config, strategy, source.class_names, step)
                if chief and result:
                    summaries.scalars(step, {k: v for k, v in result.items() if k.startswith("eval/")})
            if "knn" in due or (neighbours and step == total):
                values = neighbours.scalars()
                if chief:
                    summaries.scalars(step, values)
            if stop:
                saved = f"saved a checkpoint at step {step} of {total}; the same command goes on from there"
                interrupts.stop(saved, stop)
    log.info("Training complete: %d steps. Checkpoints are in %s", total, config.model_dir)
    return model, config, strategy, source, total


def _check_begin_together(strategy: tf.distribute.Strategy, step: int) -> None:
    steps = of_all_workers(strategy, step)
    if len(set(steps)) > 1:
        raise CheckpointError(
            "All workers must go on from the same checkpoint, so --model_dir must be a folder that they share. They "
            f"found those of steps {', '.join(map(str, steps))}."
        )


def make_loop(model: SimCLR, optimizer, config: Config, strategy: tf.distribute.Strategy, teacher=None):
    """A compiled loop of training steps, and the TensorBoard tags of its metrics.

    Returns:
      `run_steps(iterator, n) -> float32 [m, metrics], bool [m]`: the metrics of m steps, and in which of them loss and
      gradients were finite. The others made no update; m is n, or less where `--nan_policy=stop` broke off.
    """
    tags = ["train/total_loss", "train/weight_decay"]
    if config.train_mode == "pretrain":
        tags += ["train/contrast_loss", "train/contrast_acc", "train/contrast_entropy"]
    supervised = model.supervised_head is not None
    if config.train_mode == "distill":
        tags += ["train/distillation_loss", "train/supervised_loss", "train/teacher_agreement"]
    elif supervised:
        tags += ["train/supervised_loss", "train/supervised_acc"]
    measured = tuple(tags)
    tags.append(INPUT_WAIT)

    def row(terms, metrics):
        named = {"train/total_loss": terms["total"], "train/weight_decay": terms["weight_decay"],
                 "train/contrast_loss": terms["contrastive"], "train/supervised_loss": terms["supervised"],
                 "train/distillation_loss": terms["distillation"]}
        named |= {f"train/{name}": value for name, value in metrics.items()}
        return ops.stack([named[tag] for tag in measured])

    if ON_JAX:
        from simclr_tf import jax_step

        return jax_step.make_loop(model, optimizer, config, strategy, teacher, row), tags

    skips = config.nan_policy == "skip"

    @tf.autograph.experimental.do_not_convert
    def look(batch):
        # A skipped step leaves no trace in the moving statistics, which the forward pass changes.
        before = {name: tf.identity(v.value) for name, v in moving_statistics(model).items()} if skips else {}
        gradients, terms, metrics = compute_gradients(
            model, optimizer, batch["images"], batch["labels"] if supervised else None, config, teacher
        )
        finite = all_finite(optimizer, terms, gradients)
        return row(terms, metrics), gradients, before, tf.cast(~finite, tf.float32)

    @tf.autograph.experimental.do_not_convert
    def learn(gradients):
        apply_gradients(model, optimizer, gradients)

    @tf.autograph.experimental.do_not_convert
    def undo(before):
        for name, variable in moving_statistics(model).items():
            variable.assign(before[name])
        optimizer.iterations.assign_add(1)

    if config.jit_compile:
        look, learn = (tf.function(part, jit_compile=True, autograph=False) for part in (look, learn))

    @tf.function
    def compiled(iterator, n):
        rows = tf.TensorArray(tf.float32, n, element_shape=[len(tags)])
        sound = tf.TensorArray(tf.bool, n, element_shape=[])
        values = tf.zeros([len(tags) - 1])
        i, going = 0, True
        while going and i < n:
            with tf.control_dependencies([values]):  # asked for when the step before is done
                asked = tf.timestamp()
            with tf.control_dependencies([asked]):
                batch = next(iterator)
            # Nothing else keeps the step counter from being raised before a batch that then cannot be drawn.
            with tf.control_dependencies(tf.nest.flatten(strategy.experimental_local_results(batch))):
                waited = tf.cast(tf.timestamp() - asked, tf.float32)
                values, gradients, before, bad = strategy.run(look, (batch,))
            # All replicas, of all workers, decide the same.
            finite = strategy.reduce(tf.distribute.ReduceOp.SUM, bad, axis=None) == 0
            if finite:
                strategy.run(learn, (gradients,))
            elif skips:
                strategy.run(undo, (before,))
            else:
                going = False
            values = strategy.reduce(tf.distribute.ReduceOp.MEAN, values, axis=None)
            rows = rows.write(i, tf.concat([values, [waited]], 0))
            sound = sound.write(i, finite)
            i += 1
        return rows.stack()[:i], sound.stack()[:i]

    def run_steps(iterator, n):
        return tuple(result.numpy() for result in compiled(iterator, tf.constant(n)))

    return run_steps, tags


def make_folder(path: str) -> None:
    """Creates the run's folder.

    Raises:
      ConfigError: `path` cannot be a folder.
      StorageError: it cannot be written.
    """
    no_folder = ConfigError(f"--model_dir must be a folder. Received: --model_dir={path}, where there is a file.")
    try:
        tf.io.gfile.makedirs(path)
    except tf.errors.OpError as error:
        if isinstance(error, (tf.errors.FailedPreconditionError, tf.errors.AlreadyExistsError)):
            raise no_folder from error
        raise checkpoint.storage_error(error, f"the folder {path}") from error
    if not tf.io.gfile.isdir(path):
        raise no_folder


def _begin(config: Config, model: SimCLR, state: dict, source) -> int:
    """Fills the model and optimizer from the run's checkpoint or from --checkpoint; returns the step."""
    step = restore.resume(config.model_dir, state, config, source.class_names)
    if step == 0 and config.train_mode == "finetune" and model.supervised_head is None:
        raise DataError(f"Fine-tuning needs labels, and {source.name} has none. Use a data set with classes.")
    if step == 0 and config.checkpoint:
        restore.restore_weights(model, config, source.class_names)
    if step == 0 and config.zero_init_logits_layer and model.supervised_head is not None:
        log.info("The supervised head starts at zero")
        for variable in model.supervised_head.variables:
            variable.assign(np.zeros(variable.shape))
    return step


def _announce(config: Config, source, model: SimCLR, step: int, total: int) -> None:
    if config.train_mode == "pretrain" and config.lineareval_while_pretraining and source.class_names is None:
        log.info("Linear evaluation is off: the data has no labels")
    if config.train_mode == "finetune" and not config.checkpoint:
        log.info("No --checkpoint: training from scratch")
    warmup = config.warmup_steps(source.num_examples)
    if warmup >= total:
        log.warning(
            "WARNING: warm-up takes %d steps of %d: the learning rate never reaches its peak. Lower --warmup_epochs.",
            warmup, total,
        )
    log.info(
        "ResNet-%d, %.1f M parameters; %d steps to go of %d, %d per epoch, batch %d", config.resnet_depth,
        model.count_params() / 1e6, max(0, total - step), total, config.epoch_steps(source.num_examples),
        config.train_batch_size,
    )


def write_flags(config: Config) -> None:
    """Leaves the resolved flags where `run.py --flagfile=<model_dir>/flags.flags` repeats the run."""
    try:
        with tf.io.gfile.GFile(os.path.join(config.model_dir, "flags.flags"), "w") as file:
            file.write(options.to_flagfile(config))
    except (OSError, tf.errors.OpError) as error:
        raise checkpoint.storage_error(error, f"flags.flags in {config.model_dir}") from error


def _intervals(config: Config, num_examples: int) -> dict[str, int]:
    """Every how many steps something is due; 0 is never."""
    return {
        "checkpoint": config.checkpoint_interval(num_examples),
        "summary": config.train_summary_steps,
        "eval": config.eval_every_epochs * config.epoch_steps(num_examples),
        "knn": config.knn_every_epochs * config.epoch_steps(num_examples),
    }


def _next_multiple(step: int, every: int) -> int:
    return (step // every + 1) * every


def _steps_per_loop(config: Config, strategy: tf.distribute.Strategy) -> int:
    """How many steps to run between two looks at signals. On a CPU a look costs nothing beside a step."""
    on_cpu = strategy.on_cpu if ON_JAX else not any(tf.config.list_logical_devices(kind) for kind in ("GPU", "TPU"))
    return config.steps_per_loop or (1 if on_cpu else 20)


def _some_views(feed: data.Feed, step: int) -> np.ndarray:
    return next(iter(feed.batches(step)))["images"].numpy()
