"""One run of a study: made once, its record kept, gone on with where it was killed, and never mistaken for another."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import logging
import os
import re

import tensorflow as tf

from simclr_tf import baseline, checkpoint, data, restore, training
from simclr_tf.config import Config, flag_fields
from simclr_tf.errors import CheckpointError
from simclr_tf.report import read_run
from simclr_tf.summaries import read_history

log = logging.getLogger(__name__)

RECORD = "study_run.json"
# Settings that a run may be continued with another value of, but that would make it another row of the table.
_DECISIVE = ("train_steps", "train_epochs", "eval_split", "eval_steps", "variable_schema", "use_ema")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a finished run of a study left.

    top_1, top_5: on its evaluation split, in 0..1. correct: bool [n]. index: int64 [n], the images.
    train_top_1: on the images it was trained on (a running mean, with augmentation and dropout as in training, where
    the network was trained); None if unknown. seconds, images_per_second: of training. peak_megabytes: of memory.
    """

    config: Config
    top_1: float
    top_5: float
    correct: object
    index: object
    updates: int
    train_top_1: float | None
    seconds: float | None
    images_per_second: float | None
    peak_megabytes: float | None


def complete(config: Config) -> None:
    """Makes the run `config` as far as it is not made yet.

    Raises:
      CheckpointError: its folder holds a run with other settings or from another checkpoint.
      SimclrError: what training and evaluating raise.
    """
    record = _read_record(config.model_dir)
    identity = _identity(config)
    if record is None and config.mode == "train" and _pretrained_elsewhere(config):
        return
    if record is not None:
        _check_same(config, record, identity)
        if record["done"] and _is_there(config):
            log.info("Done before: %s", config.model_dir)
            return
    record = record or {"identity": identity, "done": False, "peak_megabytes": None}
    training.make_folder(config.model_dir)
    _write_record(config.model_dir, record)
    _reset_peak()
    log.info("Run: %s", config.model_dir)
    try:
        if config.train_mode == "baseline":
            baseline.train_then_eval(config)
        elif config.mode == "train":
            training.train(config)
        else:
            training.train_then_eval(config)
    finally:
        record["peak_megabytes"] = max(record["peak_megabytes"] or 0, _peak_megabytes())
        _write_record(config.model_dir, record)
        gc.collect()  # models and their graphs hold each other in circles
    _write_record(config.model_dir, record | {"done": True})


def outcome(config: Config) -> Outcome | None:
    """What the run `config` left, None while it is not done."""
    record = _read_record(config.model_dir)
    if record is None or not record["done"]:
        return None
    predictions, step = (run := read_run(config)).predictions, run.step
    if predictions is None:
        return None
    seconds, rate = cost(config)
    return Outcome(
        config, predictions.top_1(), predictions.top_5(), predictions.correct, predictions.index, step,
        _train_top_1(config, run.history), seconds, rate, record["peak_megabytes"],
    )


def cost(config: Config) -> tuple[float | None, float | None]:
    """Seconds of training and images per second, as the run's own history has them; None where it has none.

    Compiling, evaluating and saving are not in it, and neither is what was lost by being killed.
    """
    seconds, images, last = 0.0, 0, 0
    for line in read_history(config.model_dir):
        new, last = line["step"] - last, line["step"]
        if line.get("images_per_second"):
            seconds += new * config.train_batch_size / line["images_per_second"]
            images += new * config.train_batch_size
    return (seconds, images / seconds) if seconds else (None, None)


def peak_megabytes(config: Config) -> float | None:
    """Peak memory of the run, None where it was made outside of the study."""
    record = _read_record(config.model_dir)
    return record and record["peak_megabytes"]


# --- What is done ----------------------------------------------------------------------------------------------------
def _pretrained_elsewhere(config: Config) -> bool:
    """Whether the folder holds a finished run with the settings of `config` that was put there, not made here.

    Raises:
      CheckpointError: it holds a run with other settings.
    """
    prefix = checkpoint.latest(config.model_dir)
    if prefix is None:
        return False
    metadata = checkpoint.Metadata.read(prefix)
    checkpoint.check_same_settings(config, metadata)
    for name in ("train_steps", "train_epochs"):
        if metadata.settings.get(name) != getattr(config, name):
            raise CheckpointError(
                f"The run in {config.model_dir} has --{name}={metadata.settings.get(name)}, the study "
                f"--{name}={getattr(config, name)}. Give the study the same, or put the run elsewhere."
            )
    done = metadata.step >= _total_steps(config)
    if done:
        log.info("Done elsewhere: %s, step %d", config.model_dir, metadata.step)
    return done


def _is_there(config: Config) -> bool:
    """Whether what a finished run leaves is still there."""
    if config.train_mode == "baseline":
        return read_run(config).predictions is not None
    if not checkpoint.checkpoints(config.model_dir):
        return False
    return config.mode == "train" or read_run(config).predictions is not None


def _total_steps(config: Config) -> int:
    return config.total_steps(data.open_training_source(config).num_examples)


def _identity(config: Config) -> dict:
    """Everything that decides what a run is, the checkpoint it starts from by its contents."""
    settings = {f.name: getattr(config, f.name) for f in flag_fields()
                if f.name in _DECISIVE or not f.metadata["resumable"]}
    return {"settings": settings, "origin": _origin(config)}


def _origin(config: Config) -> str | None:
    if config.train_mode != "finetune" or not config.checkpoint:
        return None
    own = restore.own_metadata(config.checkpoint)
    if own is None:
        return config.checkpoint
    return hashlib.sha256(json.dumps(own.files, sort_keys=True).encode()).hexdigest()


def _check_same(config: Config, record: dict, identity: dict) -> None:
    was, now = record["identity"]["settings"], json.loads(json.dumps(identity["settings"]))
    changed = [f"--{n}={now[n]} (was {was[n]})" for n in now if n in was and was[n] != now[n]]
    if record["identity"]["origin"] != identity["origin"]:
        changed.append(f"--checkpoint={config.checkpoint} (its contents were others)")
    if changed:
        raise CheckpointError(
            f"The study's run in {config.model_dir} was made with other settings: {', '.join(changed)}. Use the same, "
            "delete that folder to make the run again, or use another --model_dir."
        )


def _read_record(model_dir: str) -> dict | None:
    path = os.path.join(model_dir, RECORD)
    if not tf.io.gfile.exists(path):
        return None
    try:
        with tf.io.gfile.GFile(path) as file:
            record = json.load(file)
        record["identity"]["settings"], record["identity"]["origin"], record["done"], record["peak_megabytes"]
        return record
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}). Delete {model_dir} to make the run again."
        ) from error


def _write_record(model_dir: str, record: dict) -> None:
    path = os.path.join(model_dir, RECORD)
    try:
        with tf.io.gfile.GFile(f"{path}.unfinished", "w") as file:
            json.dump(record, file, indent=1)
        tf.io.gfile.rename(f"{path}.unfinished", path, overwrite=True)
    except (OSError, tf.errors.OpError) as error:
        raise checkpoint.storage_error(error, path) from error


# --- What it cost ----------------------------------------------------------------------------------------------------
def _train_top_1(config: Config, history: list[dict]) -> float | None:
    if config.train_mode == "baseline":
        with tf.io.gfile.GFile(os.path.join(config.model_dir, "result.json")) as file:
            return json.load(file)["train/label_top_1_accuracy"]
    values = [line["train/supervised_acc"] for line in history if "train/supervised_acc" in line]
    return values[-1] if values else None


def _reset_peak() -> None:
    """Makes the system count the peak of memory anew, where it can (Linux), and the GPU's."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        log.debug("peak memory is that of the whole process")
    for device in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.reset_memory_stats(device.name.removeprefix("/physical_device:"))


def _peak_megabytes() -> float:
    """Peak memory since `_reset_peak`: of the GPUs where there are some, else of the process."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        names = [gpu.name.removeprefix("/physical_device:") for gpu in gpus]
        return sum(tf.config.experimental.get_memory_info(name)["peak"] for name in names) / 1e6
    try:
        with open("/proc/self/status") as file:
            return int(re.search(r"VmHWM:\s+(\d+) kB", file.read())[1]) / 1e3
    except (OSError, TypeError):
        import resource  # not on Windows, where nothing is known then

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
