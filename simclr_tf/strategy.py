"""Devices: the only place that knows how many there are and of which kind."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from simclr_tf import workers
from simclr_tf.config import Config
from simclr_tf.errors import ConfigError, DeviceError

log = logging.getLogger(__name__)

COLLECTIVES_PER_STRATEGY = 100_000
ON_JAX = keras.config.backend() == "jax"  # the devices are then a `jax_devices.JaxDevices`

# Where a machine shows that it has a TPU, whether or not this TensorFlow can use it.
TPU_FILES = ("/dev/accel0", "/dev/vfio/0")
TPU_VARIABLES = ("TPU_ACCELERATOR_TYPE", "COLAB_TPU_ADDR")


def make_strategy(config: Config) -> tf.distribute.Strategy:
    """The `tf.distribute` strategy that `config` asks for; "auto" takes a TPU, else all GPUs, else the CPU.

    Of several workers it is the first thing to ask for: they join before TensorFlow computes anything, and this waits
    until all are there. On Keras's JAX backend: its devices.

    Raises:
      DeviceError: what was asked for is not there; the message names what is.
      ConfigError: the batch does not divide among the replicas.
    """
    kind = "jax" if ON_JAX else _kind(config)
    if kind == "jax":
        from simclr_tf import jax_devices

        strategy = jax_devices.make(config)
        if num_workers(strategy) > 1:
            workers.check(config)
    elif kind == "tpu":
        strategy = _tpu_strategy(config)
    elif kind == "multi_worker":
        workers.check(config)
        strategy = workers.join()
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
    for name in ("train_batch_size", "eval_batch_size", "micro_batch_size"):
        size = getattr(config, name)
        if size % replicas:
            raise ConfigError(
                f"--{name} must be a multiple of the number of replicas, {replicas}. Received: --{name}={size}. Use "
                f"for example {max(1, size // replicas) * replicas}."
            )
    if config.jit_compile and replicas > 1 and kind not in ("tpu", "jax"):
        raise ConfigError(
            f"--jit_compile is for one device: XLA cannot reach the other replicas of {replicas}. Drop it, or use "
            "--strategy=gpu."
        )
    return strategy


def one_device() -> tf.distribute.Strategy:
    """For work that is not shared out: the device that variables are made on."""
    if ON_JAX:
        from simclr_tf import jax_devices

        return jax_devices.one()
    return tf.distribute.get_strategy()


def set_determinism(config: Config) -> None:
    """Makes TensorFlow use deterministic kernels only, for the rest of the process, where `config` asks for it.

    A CPU needs no such thing: order and augmentation are functions of seed, epoch and example, batches are drawn in
    order, and its kernels add in a fixed order. (Asked for nevertheless, it also makes decoding sequential.)

    Raises:
      ConfigError: on JAX, whose kernels are chosen before it is imported.
    """
    if not config.deterministic:
        return
    if ON_JAX:
        raise ConfigError(
            "--deterministic is for TensorFlow's kernels. Received: --deterministic=True with KERAS_BACKEND=jax. Drop "
            "it; on a GPU set the environment variable XLA_FLAGS=--xla_gpu_deterministic_ops=true instead."
        )
    log.info("Deterministic kernels: a run gives the same numbers each time, more slowly; images are decoded one by "
             "one (docs/reliability.md)")
    tf.config.experimental.enable_op_determinism()


@functools.cache
def mirrored(devices: tuple[str, ...]) -> tf.distribute.MirroredStrategy:
    """The mirrored strategy over `devices`, names such as "CPU:0"; the same object each time in a process.

    TensorFlow numbers the collectives of every mirrored strategy from the same base, so that a second one, of a later
    run in the same process, would meet the first one's with other shapes and abort. Each gets a range of its own.
    """
    tf.distribute.MirroredStrategy._collective_key_base += COLLECTIVES_PER_STRATEGY
    return tf.distribute.MirroredStrategy(devices)


def describe(strategy: tf.distribute.Strategy, config: Config) -> str:
    """One line: what was asked for, what runs where, and each replica's share of a batch."""
    replicas = strategy.num_replicas_in_sync
    if ON_JAX:
        return str(strategy)
    share = f"{config.train_batch_size // replicas} images each" if replicas > 1 else "whole batches"
    if replicas == 1 and strategy is tf.distribute.get_strategy():
        name, where = "CPU", "CPU:0"
    else:
        name = type(strategy).__name__.removesuffix("V2").replace("CollectiveAllReduce", "MultiWorkerMirrored")
        where = ", ".join(d.rsplit("device:", 1)[-1] for d in strategy.extended.worker_devices)
    count = num_workers(strategy)
    if count > 1:
        where = f"here {where}"
    return f"--strategy={config.strategy}: {name}: {replicas} {_plural(replicas, 'replica')} on {count} " \
           f"{_plural(count, 'worker')} ({where}), {share}"


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

    def rows(values):
        if num_workers(strategy) > 1:
            return strategy.gather(values, axis=0)
        return tf.concat(strategy.experimental_local_results(values), 0)

    return lambda batch: [rows(values).numpy() for values in run(batch)]


# --- Several workers -------------------------------------------------------------------------------------------------


def is_chief(config: Config) -> bool:
    """Whether this process writes the run's files: the first of several workers does."""
    if ON_JAX:
        import jax

        return jax.process_index() == 0
    return workers.role() != "worker" or _kind(config) != "multi_worker"


def num_workers(strategy: tf.distribute.Strategy) -> int:
    """How many processes take part in the run."""
    if ON_JAX:
        return strategy.process[1]
    return getattr(strategy.extended, "_num_workers", 1)


def of_all_workers(strategy: tf.distribute.Strategy, number: int) -> list[int]:
    """What each worker, in order, gives as `number`. All have to ask; each gets the same answer."""
    if num_workers(strategy) == 1:
        return [number]
    if ON_JAX:
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(np.array(number))).tolist()
    numbers = _gatherer(strategy)(tf.constant(number)).numpy().tolist()  # one for each replica
    return numbers[:: len(numbers) // num_workers(strategy)]


@functools.cache
def _gatherer(strategy):
    @tf.autograph.experimental.do_not_convert
    def one_replica(number):
        context = tf.distribute.get_replica_context()
        place = tf.one_hot(context.replica_id_in_sync_group, strategy.num_replicas_in_sync, dtype=tf.int32)
        return context.all_reduce(tf.distribute.ReduceOp.SUM, place * number)

    @tf.function
    def gather(number):
        return strategy.experimental_local_results(strategy.run(one_replica, (number,)))[0]

    return gather


def part(config: Config) -> None:
    """Waits until all workers are at their end: one that leaves earlier is taken for dead by those still at work."""
    if ON_JAX:
        from simclr_tf import jax_devices

        jax_devices.part()
    elif _kind(config) == "multi_worker":
        of_all_workers(workers.join(), 0)


# --- Which devices ---------------------------------------------------------------------------------------------------


def _kind(config: Config) -> str:
    if config.use_tpu or config.strategy == "tpu":
        return "tpu"
    if config.strategy == "multi_worker" and workers.role() is None:
        raise DeviceError(
            "--strategy=multi_worker needs the environment variable TF_CONFIG with more than one worker. It is "
            f"{'of one' if os.environ.get('TF_CONFIG') else 'absent'}; see docs/multi-worker.md. There is: "
            f"{_what_there_is()}."
        )
    if config.strategy in ("gpu", "mirrored") and not _names("GPU"):
        if config.strategy == "gpu" or len(_names("CPU")) < 2:
            raise DeviceError(f"--strategy={config.strategy} needs a GPU. There is: {_what_there_is()}.")
    if config.strategy != "auto":
        return config.strategy
    if workers.role() is not None:
        return "multi_worker"
    if config.use_tpu is None and (config.tpu_name or tf.config.list_physical_devices("TPU")):
        return "tpu"
    gpus = len(_names("GPU"))
    return "mirrored" if gpus > 1 else "gpu" if gpus else "cpu"


def _tpu_strategy(config: Config) -> tf.distribute.Strategy:
    address = config.tpu_name or config.master or "local"
    # Without a name the only TPU there can be is one of this machine: asking the resolver for it when it is absent
    # would wait for minutes.
    if address == "local" and not tf.config.list_physical_devices("TPU"):
        asked = "--use_tpu=True" if config.use_tpu else "--strategy=tpu"
        raise DeviceError(
            f"{asked} needs a TPU on this machine that TensorFlow can use, or --tpu_name. There is: "
            f"{_what_there_is()}. Leave {asked.split('=')[0]} out to use what there is."
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


def _names(kind: str) -> list[str]:
    return [d.name for d in tf.config.list_logical_devices(kind)]


def _what_there_is() -> str:
    found = [f"{len(_names(kind))} {kind}" for kind in ("TPU", "GPU", "CPU") if _names(kind)]
    if has_tpu() and not _names("TPU"):
        found.append(
            f"a TPU that TensorFlow {tf.__version__} cannot use (pip install 'simclr_tf[tpu]', or KERAS_BACKEND=jax)"
        )
    return ", ".join(found)


def has_tpu() -> bool:
    """Whether this machine has a TPU, usable or not."""
    return any(map(os.path.exists, TPU_FILES)) or any(map(os.environ.get, TPU_VARIABLES))


def _plural(count: int, noun: str) -> str:
    return noun if count == 1 else f"{noun}s"
