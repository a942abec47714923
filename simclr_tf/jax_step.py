"""A training update, and inference, on Keras's JAX backend: each one compiled function of values.

Keras's layers and optimizers read and write variables; under a `StatelessScope`, which is what `stateless_call` is
made of, they read the values they are given and hand back the new ones. Imported only where that backend is chosen.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import keras
import numpy as np

from simclr_tf import jax_devices
from simclr_tf.config import Config
from simclr_tf.jax_devices import JaxDevices, at_work
from simclr_tf.jax_gradient_caching import encode_in_pieces
from simclr_tf.model import SimCLR
from simclr_tf.step import encode_at_once, forward, trainable


class CompiledStep:
    """One update of a model, an optimizer and a batch.

    The variables' buffers are donated: a step writes the new values over the old ones. Between `begin` and `end` the
    Keras variables therefore hold nothing that can be read.

    Args:
      model, optimizer, config, teacher: as for `step.train_step`.
      devices: that share the batch.
    """

    def __init__(self, model: SimCLR, optimizer, config: Config, devices: JaxDevices, teacher=None):
        self.devices = devices
        trained = trainable(model)
        self._trained = [item.variable for item in trained]
        ids = {id(v) for v in self._trained}
        self._others = [v for v in model.variables if id(v) not in ids]
        self._optimizer = list(optimizer.variables)
        self._constant = list(teacher.model.variables) if teacher is not None else []
        self._written: list = [None] * len(self._variables)
        updated = [takes_part(item, model, config) for item in trained]
        encode = encode_at_once
        if config.micro_batch_size:
            encode = functools.partial(encode_in_pieces, devices=devices)

        skips = config.nan_policy == "skip"
        iterations = next(i for i, v in enumerate(self._optimizer) if v is optimizer.iterations)

        def step(values, going, constant, images, labels):
            old = values
            trained, others, of_optimizer = values

            def loss(trained):
                given = [*zip(self._trained, trained, strict=True), *zip(self._others, others, strict=True),
                         *zip(self._constant, constant, strict=True)]
                with at_work(devices), keras.StatelessScope(state_mapping=given) as scope:
                    terms, metrics = forward(model, images, labels, config, teacher, encode)
                return terms["total"], (terms, metrics, [scope.get_current_value(v) for v in self._others])

            gradients, (terms, metrics, others) = jax.grad(loss, has_aux=True)(trained)
            given = [*zip(self._trained, trained, strict=True), *zip(self._optimizer, of_optimizer, strict=True)]
            with keras.StatelessScope(state_mapping=given) as scope:
                optimizer.apply_gradients(
                    [(g, v) for g, v, use in zip(gradients, self._trained, updated, strict=True) if use]
                )
            trained, of_optimizer = (
                [scope.get_current_value(v) for v in variables] for variables in (self._trained, self._optimizer)
            )
            finite = jnp.stack([jnp.isfinite(tensor).all() for tensor in (terms["total"], *gradients)]).all()
            updates = going & finite
            new = jax.tree.map(lambda n, o: jnp.where(updates, n, o), (trained, others, of_optimizer), old)
            if skips:
                new[2][iterations] = of_optimizer[iterations]
            return new, updates if not skips else going, terms, metrics, finite

        self._step = jax.jit(step, donate_argnums=0, out_shardings=devices.everywhere)

    @property
    def _variables(self):
        return [*self._trained, *self._others, *self._optimizer]

    def begin(self) -> tuple[tuple, list]:
        """The values to begin with, on all devices, and those of the teacher."""
        # What this object did not write itself, others may hold: donating it would take it away from them.
        values = [
            v.value if v.value is w else jax.device_put(jnp.array(v.value, copy=True), self.devices.everywhere)
            for v, w in zip(self._variables, self._written, strict=True)
        ]
        n, m = len(self._trained), len(self._trained) + len(self._others)
        constant = [jax.device_put(v.value, self.devices.everywhere) for v in self._constant]
        return (values[:n], values[n:m], values[m:]), constant

    def __call__(self, values, going, constant, images, labels):
        """One update, if `going` and loss and gradients are finite.

        Returns:
          The new values (the old ones are gone), whether to go on, the loss terms, the metrics, and bool []: finite.
        """
        return self._step(values, going, constant, images, labels)

    def end(self, values: tuple) -> None:
        """Puts `values` into the variables."""
        self._written = [value for part in values for value in part]
        for variable, value in zip(self._variables, self._written, strict=True):
            variable.assign(value)
        self._written = [v.value for v in self._variables]


def takes_part(item, model: SimCLR, config: Config) -> bool:
    """Whether an update is made of a variable.

    Where fine-tuning leaves out layers of the projection head TensorFlow gives their weights no gradient, JAX a zero
    one, on which LARS would still decay them.
    """
    if config.train_mode == "pretrain" or config.optimizer != "lars" or not item.name.startswith("head_contrastive/"):
        return True
    used = range(model.projection_head.num_layers + 1)[model.ft_proj_selector]  # this many layers
    return int(item.name.split("/")[1].rpartition("_")[2]) < used


@functools.lru_cache(maxsize=4)
def _one_device_step(model, optimizer, config, teacher):
    return CompiledStep(model, optimizer, config, jax_devices.one(), teacher)


def update(model, optimizer, images, labels, config, teacher=None) -> tuple[dict, dict]:
    """`step.update` on this backend."""
    step = _one_device_step(model, optimizer, config, teacher)
    values, constant = step.begin()
    labels = None if labels is None else np.asarray(labels)
    values, _, terms, metrics, _ = step(values, True, constant, np.asarray(images), labels)
    step.end(values)
    return terms, metrics


def make_loop(
    model: SimCLR, optimizer, config: Config, devices: JaxDevices, teacher, row: Callable,
) -> Callable[[Iterator, int], np.ndarray]:
    """`run_steps` of `training.make_loop`: n updates without waiting for one of them.

    After a step that is not finite the others change nothing, where `--nan_policy=stop`, and are not told of.

    Args:
      row: (terms, metrics) of a step -> float32 [metrics], to which the seconds spent waiting for images are added.
    """
    step = CompiledStep(model, optimizer, config, devices, teacher)
    supervised = model.supervised_head is not None
    row = jax.jit(row)

    def run_steps(iterator, n):
        values, constant = step.begin()
        rows, waits, finite, going = [], [], [], True
        try:
            for _ in range(n):
                asked = time.perf_counter()
                batch = next(iterator)
                waits.append(time.perf_counter() - asked)
                batch = devices.share_out({name: batch[name] for name in ("images", "labels")})
                values, going, terms, metrics, sound = step(
                    values, going, constant, batch["images"], batch["labels"] if supervised else None
                )
                rows.append(row(terms, metrics))
                finite.append(sound)
        finally:
            step.end(values)  # also where a batch cannot be drawn: the steps before it are done and stay
        rows = np.column_stack([np.stack(jax.device_get(rows)), np.asarray(waits, np.float32)])
        finite = np.stack(jax.device_get(finite))
        if config.nan_policy == "stop" and not finite.all():
            n = int(np.argmin(finite)) + 1
        return rows[:n], finite[:n]

    return run_steps


def inference(model: SimCLR, function: Callable, devices: JaxDevices) -> Callable:
    """`strategy.inference` on this backend."""
    variables = list(model.variables)

    @functools.partial(jax.jit, out_shardings=devices.everywhere)
    def run(values, batch):
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return function(batch)

    def on_batch(batch):
        values = [jax.device_put(v.value, devices.everywhere) for v in variables]
        return [np.asarray(value) for value in run(values, devices.share_out(batch))]

    return on_batch
