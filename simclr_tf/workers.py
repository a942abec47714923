"""Several processes that train together on TensorFlow: who they are, joining them, and seeing that one is gone."""

from __future__ import annotations

import functools
import json
import os

import tensorflow as tf

from simclr_tf.config import Config
from simclr_tf.errors import ConfigError, DeviceError, WorkerError

MODES = ("train", "train_then_eval")  # the others have no use for several workers
WHERE_IN_A_GRAPH = ("Graph execution", "Detected at", "Node:", "File ", "<stack traces")
LOST = (
    tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.InternalError,
    tf.errors.DeadlineExceededError, tf.errors.FailedPreconditionError, tf.errors.UnknownError,
)


def role() -> str | None:
    """What TF_CONFIG makes this process among several workers: "chief", which writes the run's files, or "worker"; None
    where it is absent, tells of one worker only, or lets this process evaluate.

    Raises:
      DeviceError: it cannot be understood.
    """
    text = os.environ.get("TF_CONFIG")
    if not text:
        return None

    def wrong(reason):
        return DeviceError(
            f"The environment variable TF_CONFIG is not what it must be: {reason}. See docs/multi-worker.md. Received: "
            f"{text}"
        )

    try:
        whole = json.loads(text)
        roles = {name: list(addresses) for name, addresses in whole.get("cluster", {}).items()}
        task = whole.get("task", {})
        kind, index = task.get("type"), int(task.get("index", -1))
    except (ValueError, AttributeError, TypeError) as error:
        raise wrong(error) from error
    if kind == "evaluator" or sum(len(roles.get(name, ())) for name in ("chief", "worker")) < 2:
        return None
    if "ps" in roles:
        raise wrong("there are parameter servers, which are not used")
    if kind not in ("chief", "worker") or not 0 <= index < len(roles.get(kind, ())):
        raise wrong(f"its task must be one of the cluster's workers, and is type {kind!r}, index {index}")
    return "chief" if kind == "chief" or (index == 0 and "chief" not in roles) else "worker"


def check(config: Config) -> None:
    """Raises ConfigError if what `config` asks for cannot be done by several workers."""
    if config.mode not in MODES:
        raise ConfigError(
            f"Several workers can train, with --mode={' or '.join(MODES)}. Received: --mode={config.mode}, and several "
            "workers. Run it in one process, with --strategy=gpu or cpu."
        )
    if config.max_bad_images:
        raise ConfigError(
            "Several workers cannot skip unreadable images: all would have to agree on them in the middle of a step. "
            f"Received: --max_bad_images={config.max_bad_images}. Drop it, and mend or remove the images."
        )


@functools.cache
def join() -> tf.distribute.MultiWorkerMirroredStrategy:
    """The strategy over all workers; a process can join them once."""
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except (RuntimeError, tf.errors.OpError) as error:
        raise WorkerError(
            f"The workers of TF_CONFIG could not be joined: {str(error).splitlines()[0]} Are its addresses free, and "
            "do all workers run the same command?"
        ) from error


def lost_worker(error: Exception) -> WorkerError | None:
    """What to raise for `error` if it came from another worker that is gone; None if it did not."""
    if not join.cache_info().currsize or not isinstance(error, LOST):
        return None
    # The first lines of an error in a graph say where it was met; what happened follows.
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(WHERE_IN_A_GRAPH)]
    reason = told[0][:300].rstrip(".: ") if told else type(error).__name__
    return WorkerError(
        f"Another worker is gone: {reason}. Start the same command on every worker again: the run goes on from its "
        "last checkpoint."
    )
