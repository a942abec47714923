"""Devices: the only place that knows how many there are and of which kind."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from simclr_tf.config import Config
from simclr_tf.errors import ConfigError, DeviceError

COLLECTIVES_PER_STRATEGY = 100_000
ON_JAX = keras.config.backend() == "jax"  # the devices are then a `jax_devices.JaxDevices`


def make_strategy(config: Config) -> tf.distribute.Strategy:
    """The `tf.distribute` strategy that `config` asks for; "auto" takes a TPU, else all GPUs, else the CPU.

    On Keras's JAX backend: its devices.

    Raises:
      DeviceError: what was asked for is not there; the message names what is.
      ConfigError: the batch does not divide among the replicas.
    """
    kind = "jax" if ON_JAX else _kind(config)
    if kind == "jax":
        from simclr_tf import jax_devices

        strategy = jax_devices.make(config)
    elif kind == "tpu":
        strategy = _tpu_strategy(config)
    elif kind == "multi_worker":
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    elif kind == "mirrored":
        strategy = mirrored(tuple(_names("GPU") or _names("CPU")))
    elif kind == "gpu":
        strategy = tf.distribute.OneDeviceStrategy("GPU:0")
    else:
        # The default strategy rather than OneDeviceStrategy: it adds nothing to run through.
        strategy = tf.distribute.get_strategy()
        if tf.config.list_logical_devices("GPU"):
            strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    replicas = strategy.num_replicas_in_sync
    for name in ("train_batch_size", "eval_batch_size"):
        size = getattr(config, name)
        if size % replicas:
            raise ConfigError(
                f"--{name} must be a multiple of the number of replicas, {replicas}. Received: --{name}={size}. Use "
                f"for example {max(1, size // replicas) * replicas}."
            )
    return strategy


def one_device() -> tf.distribute.Strategy:
    """For work that is not shared out: the device that variables are made on."""
    if ON_JAX:
        from simclr_tf import jax_devices

        return jax_devices.one()
    return tf.distribute.get_strategy()


@functools.cache
def mirrored(devices: tuple[str, ...]) -> tf.distribute.MirroredStrategy:
    """The mirrored strategy over `devices`, names such as "CPU:0"; the same object each time in a process.

    TensorFlow numbers the collectives of every mirrored strategy from the same base, so that a second one, of a later
    run in the same process, would meet the first one's with other shapes and abort. Each gets a range of its own.
    """
    tf.distribute.MirroredStrategy._collective_key_base += COLLECTIVES_PER_STRATEGY
    return tf.distribute.MirroredStrategy(devices)


def describe(strategy: tf.distribute.Strategy) -> str:
    """One line: what runs where."""
    if ON_JAX:
        return str(strategy)
    replicas = strategy.num_replicas_in_sync
    if not tf.distribute.has_strategy() and replicas == 1 and strategy is tf.distribute.get_strategy():
        return "CPU: 1 replica"
    devices = strategy.extended.worker_devices
    workers = getattr(strategy.extended, "_num_workers", 1)
    where = ", ".join(d.rsplit("device:", 1)[-1] for d in devices)
    return f"{type(strategy).__name__}: {replicas} {_plural(replicas, 'replica')} on {workers} " \
           f"{_plural(workers, 'worker')} ({where})"


def distribute(
    strategy: tf.distribute.Strategy, batch_size: int, make_dataset: Callable[[int, int], tf.data.Dataset],
):
    """A distributed dataset in which replica r of the job gets the r-th piece of each global batch.

    Args:
      batch_size: of the global batch, a multiple of the number of replicas.
      make_dataset: (worker, number of workers) -> that worker's contiguous part of each global batch.
    """
    replicas = strategy.num_replicas_in_sync
    if ON_JAX:
        return make_dataset(*strategy.process)
    if replicas == 1:
        return make_dataset(0, 1)

    def per_worker(context: tf.distribute.InputContext):
        dataset = make_dataset(context.input_pipeline_id, context.num_input_pipelines)
        return dataset.rebatch(batch_size // replicas, drop_remainder=True)

    return strategy.distribute_datasets_from_function(per_worker)


def inference(
    strategy: tf.distribute.Strategy, model: keras.Model, function: Callable[[dict], tuple],
) -> Callable[[dict], list[np.ndarray]]:
    """`function`, which runs `model` on a batch, compiled for batches of `distribute`.

    Args:
      model: whose variables `function` reads, and no others.
      function: dict of tensors -> tuple of tensors with a row for each of the batch, in `keras.ops`.

    Returns:
      A function of the same batches that gives arrays of all replicas' rows, in the order of the examples.
    """
    if ON_JAX:
        from simclr_tf import jax_step

        return jax_step.inference(model, function, strategy)

    function = tf.autograph.experimental.do_not_convert(function)

    @tf.function(reduce_retracing=True)
    def run(batch):
        return strategy.run(function, (batch,))

    return lambda batch: [tf.concat(strategy.experimental_local_results(v), 0).numpy() for v in run(batch)]


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes the run's files."""
    if ON_JAX:
        return strategy.process[0] == 0
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.task_type:
        return True
    return resolver.task_type == "chief" or (
        resolver.task_type == "worker" and resolver.task_id == 0 and "chief" not in resolver.cluster_spec().as_dict()
    )


def _kind(config: Config) -> str:
    if config.use_tpu or config.strategy == "tpu":
        return "tpu"
    if config.strategy == "multi_worker" and not _in_cluster():
        raise DeviceError(
            "--strategy=multi_worker needs the environment variable TF_CONFIG with more than one worker. It is "
            "absent; see docs/multi-worker.md."
        )
    if config.strategy in ("gpu", "mirrored") and not _names("GPU"):
        if config.strategy == "gpu" or len(_names("CPU")) < 2:
            raise DeviceError(f"--strategy={config.strategy} needs a GPU. There is: {_what_there_is()}.")
    if config.strategy != "auto":
        return config.strategy
    if _in_cluster():
        return "multi_worker"
    if config.use_tpu is None and config.tpu_name:
        return "tpu"
    if config.use_tpu is None and tf.config.list_physical_devices("TPU"):
        return "tpu"
    gpus = len(_names("GPU"))
    return "mirrored" if gpus > 1 else "gpu" if gpus else "cpu"


def _tpu_strategy(config: Config) -> tf.distribute.Strategy:
    address = config.tpu_name or config.master or "local"
    # Without a name the only TPU there can be is one of this machine: asking the resolver for it when it is absent
    # would wait for minutes.
    if address == "local" and not tf.config.list_physical_devices("TPU"):
        raise DeviceError(
            f"--use_tpu=True needs a TPU on this machine, or --tpu_name. There is: {_what_there_is()}. Leave --use_tpu "
            "out to use what there is."
        )
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(
            address, zone=config.tpu_zone, project=config.gcp_project
        )
        if address != "local":
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except Exception as error:  # the resolver raises whatever its transport does
        raise DeviceError(f"TPU {address!r} could not be reached: {error}. There is: {_what_there_is()}.") from error


def _in_cluster() -> bool:
    try:
        cluster = json.loads(os.environ.get("TF_CONFIG") or "{}").get("cluster", {})
        return sum(len(cluster.get(role, ())) for role in ("chief", "worker")) > 1
    except (ValueError, AttributeError, TypeError) as error:
        raise DeviceError(f"The environment variable TF_CONFIG is not the JSON it must be: {error}.") from error


def _names(kind: str) -> list[str]:
    return [d.name for d in tf.config.list_logical_devices(kind)]


def _what_there_is() -> str:
    found = [f"{len(_names(kind))} {kind}" for kind in ("TPU", "GPU", "CPU") if _names(kind)]
    return ", ".join(found)


def _plural(count: int, noun: str) -> str:
    return noun if count == 1 else f"{noun}s"
