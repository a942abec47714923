"""Devices of Keras's JAX backend: a row of them that share each batch out. Imported only where that backend is chosen.

There are no replicas in JAX: a step is one program over the whole batch, whose rows lie on several devices, so that
batch norm's statistics and NT-Xent's negatives are global by construction. `JaxDevices` has the few attributes of a
`tf.distribute.Strategy` that the rest of the package reads.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from simclr_tf.config import Config
from simclr_tf.errors import ConfigError, DeviceError


class JaxDevices:
    """The devices of a run, over all its processes.

    Attributes:
      devices: of the whole run, process by process.
      num_replicas_in_sync: how many there are; each gets an equal part of a batch.
      rows, everywhere: shardings of arrays whose rows are shared out, and of arrays that each device has whole.
    """

    def __init__(self, devices: list):
        self.devices = list(devices)
        self.mesh = Mesh(np.array(self.devices), ("batch",))
        self.rows = NamedSharding(self.mesh, PartitionSpec("batch"))
        self.everywhere = NamedSharding(self.mesh, PartitionSpec())

    @property
    def num_replicas_in_sync(self) -> int:
        return len(self.devices)

    @property
    def on_cpu(self) -> bool:
        return self.devices[0].platform == "cpu"

    @property
    def process(self) -> tuple[int, int]:
        """Number of this process, from 0, and how many there are."""
        return jax.process_index(), jax.process_count()

    def scope(self):
        """Variables are made on the default device; the first step spreads them."""
        return contextlib.nullcontext()

    def share_out(self, batch: dict) -> dict:
        """This process's rows of a batch, a dict of TensorFlow tensors, as arrays over all devices."""
        return {
            name: jax.make_array_from_process_local_data(self.rows, np.asarray(value)) for name, value in batch.items()
        }

    def __str__(self):
        kinds = sorted({f"{d.platform.upper()} {d.device_kind}".replace("CPU cpu", "CPU") for d in self.devices})
        count, hosts = len(self.devices), jax.process_count()
        return f"JAX: {count} {'device' if count == 1 else 'devices'} ({', '.join(kinds)}) of {hosts} " \
               f"{'process' if hosts == 1 else 'processes'}"


_AT_WORK: contextvars.ContextVar[JaxDevices | None] = contextvars.ContextVar("devices at work", default=None)


@contextlib.contextmanager
def at_work(devices: JaxDevices) -> Iterator[None]:
    """What is traced within it is to run on `devices`: for `mean_over_devices`."""
    token = _AT_WORK.set(devices)
    try:
        yield
    finally:
        _AT_WORK.reset(token)


def mean_over_devices(function: Callable, a, b) -> list:
    """The mean over the devices of `function(a, b, all_a, all_b, first)`, a tuple of scalars, of each one's own rows.

    Left to itself the compiler shares out products of matrices, but not a loop over their tiles.

    Args:
      function: of the device's rows of `a` and `b`, all rows, and the number of the device's first one.
      a, b: [n, d].
    """
    devices = _AT_WORK.get()
    if devices is None or devices.num_replicas_in_sync == 1:
        return function(a, b, a, b, 0)

    def own_rows(a, b):
        everyone = [jax.lax.all_gather(x, "batch", tiled=True) for x in (a, b)]
        values = function(a, b, *everyone, jax.lax.axis_index("batch") * a.shape[0])
        return [jax.lax.pmean(value, "batch") for value in values]

    rows = PartitionSpec("batch")
    # check_vma: a loop's first sums are the same everywhere and its later ones are not, which the check forbids.
    return jax.shard_map(own_rows, mesh=devices.mesh, in_specs=(rows, rows), out_specs=PartitionSpec(),
                         check_vma=False)(a, b)


def one() -> JaxDevices:
    """This process's first device."""
    return JaxDevices(jax.local_devices()[:1])


def make(config: Config) -> JaxDevices:
    """The devices that `config.strategy` asks for; "auto" takes all that JAX has of its best kind.

    Raises:
      DeviceError, ConfigError: what was asked for is not there, or not on this backend.
    """
    if config.precision == "mixed_float16":
        raise ConfigError(
            "The JAX backend has no scaling of the loss, which float16 needs. Received: --precision=mixed_float16 with "
            "KERAS_BACKEND=jax. Use mixed_bfloat16, or KERAS_BACKEND=tensorflow."
        )
    if config.fused_bn:
        raise ConfigError(
            "--fused_bn chooses a kernel of TensorFlow's; on JAX the compiler fuses by itself. Received: "
            "--fused_bn=True with KERAS_BACKEND=jax. Drop it."
        )
    kind = "tpu" if config.use_tpu else config.strategy
    if config.tpu_name or config.master:
        raise DeviceError(
            "On the JAX backend the program runs on the TPU's own machines: --tpu_name and --master are TensorFlow's. "
            "Drop them, and see docs/jax.md."
        )
    if kind == "multi_worker" or (kind == "auto" and "JAX_COORDINATOR_ADDRESS" in os.environ):
        join()
    if kind in ("tpu", "gpu", "cpu"):
        devices = _of_kind(kind)
        # As on TensorFlow, where `gpu` and `cpu` name one device and `mirrored` all of them.
        devices = devices if kind == "tpu" else devices[:1]
    else:
        devices = jax.devices()
        if config.use_tpu is False and devices[0].platform == "tpu":
            devices = _of_kind("cpu")
        if kind == "mirrored" and len(devices) < 2 and devices[0].platform == "cpu":
            raise DeviceError(f"--strategy=mirrored needs a GPU or several devices. There is: {_what_there_is()}.")
    if not config.global_bn and len(devices) > 1:
        raise DeviceError(
            f"The JAX backend has no batch norm per device: its statistics are those of the whole batch. Received: "
            f"--global_bn=False with {len(devices)} devices. Drop it, or use KERAS_BACKEND=tensorflow."
        )
    return JaxDevices(devices)


def join() -> None:
    """Makes this process one of several, once; the addresses come from the environment (see docs/jax.md).

    Raises:
      DeviceError: they are not there, or the others cannot be reached.
    """
    if jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(
            coordinator_address=os.environ.get("JAX_COORDINATOR_ADDRESS"),
            num_processes=_integer("JAX_NUM_PROCESSES"), process_id=_integer("JAX_PROCESS_ID"),
        )
    except (RuntimeError, ValueError) as error:
        raise DeviceError(
            f"Several processes could not be joined: {str(error).splitlines()[0]}. Set JAX_COORDINATOR_ADDRESS, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID in each one; see docs/jax.md."
        ) from error


def part() -> None:
    """Waits until all processes are at their end."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("the end of a run")


def _integer(name: str) -> int | None:
    text = os.environ.get(name)
    try:
        return None if text is None else int(text)
    except ValueError:
        raise DeviceError(f"The environment variable {name} must be a whole number. Received: {text}.") from None


def _of_kind(kind: str) -> list:
    try:
        return jax.devices(kind)
    except RuntimeError:  # also for a plugin that is installed and finds no device
        raise DeviceError(
            f"JAX has no {kind.upper()} here. There is: {_what_there_is()}. Drop --strategy and --use_tpu to use it."
        ) from None


def _what_there_is() -> str:
    return f"{len(jax.devices())} {jax.devices()[0].platform.upper()}"
