"""LARS, layer-wise adaptive rate scaling (You et al. 2017, arXiv 1708.03888), as SimCLR uses it."""

from __future__ import annotations

from collections.abc import Callable

import keras
from keras import ops


class LARS(keras.optimizers.Optimizer):
    """SGD with momentum whose step on each variable is scaled by `eeta * |w| / |g + decay * w|`, the trust ratio.

    Args:
      learning_rate: float or schedule.
      momentum: in [0, 1].
      weight_decay: added to the gradient as `weight_decay * w` before the trust ratio is taken.
      nesterov: look-ahead momentum.
      classic_momentum: the learning rate enters the momentum buffer (True) or is applied after it (False); the trust
        ratio then uses the norm of the update instead of the gradient's.
      eeta: coefficient of the trust ratio.
      exclude: predicate on variables; those get neither weight decay nor a trust ratio. The reference excludes batch
        norm, biases and the supervised head by name; names do not tell in Keras 3, so here identity decides.
    """

    def __init__(self, learning_rate, momentum=0.9, weight_decay=0.0, nesterov=False, classic_momentum=True,
                 eeta=0.001, exclude: Callable[[keras.Variable], bool] = lambda variable: False, name="lars", **kwargs):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.momentum = momentum
        # Not `weight_decay`: that attribute switches on Keras's own decoupled decay.
        self.l2_decay = weight_decay
        self.nesterov = nesterov
        self.classic_momentum = classic_momentum
        self.eeta = eeta
        self.exclude = exclude
        self.momentums: list[keras.Variable] = []

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.momentums = [self.add_variable_from_reference(v, name="momentum") for v in variables]
        # Asked here, once, and of the Keras variables: `update_step` may be handed a replica's copy of one.
        self._adapted = [not self.exclude(v) for v in variables]

    def update_step(self, gradient, variable, learning_rate):
        learning_rate = ops.cast(learning_rate, variable.dtype)
        gradient = ops.cast(gradient, variable.dtype)
        index = self._get_variable_index(variable)
        buffer, adapt = self.momentums[index], self._adapted[index]
        if adapt:
            gradient = gradient + self.l2_decay * variable
        if self.classic_momentum:
            ratio = self._trust_ratio(variable, gradient) if adapt else 1.0
            gradient = learning_rate * ratio * gradient
            rate = 1.0
        new_buffer = self.momentum * buffer + gradient
        update = self.momentum * new_buffer + gradient if self.nesterov else new_buffer
        if not self.classic_momentum:
            ratio = self._trust_ratio(variable, update) if adapt else 1.0
            rate = learning_rate * ratio
        self.assign(buffer, new_buffer)
        self.assign_sub(variable, rate * update)

    def _trust_ratio(self, weights, update):
        """1 where either norm is zero, so that a zero-initialised layer can leave zero."""
        w_norm, u_norm = _norm(weights), _norm(update)
        both = ops.logical_and(w_norm > 0, u_norm > 0)
        return ops.where(both, self.eeta * w_norm / ops.where(both, u_norm, 1.0), 1.0)

    def get_config(self):
        config = super().get_config()
        return config | dict(
            momentum=self.momentum, weight_decay=self.l2_decay, nesterov=self.nesterov,
            classic_momentum=self.classic_momentum, eeta=self.eeta,
        )


def _norm(x):
    """Euclidean norm over all axes (`ops.norm` takes at most two)."""
    return ops.sqrt(ops.sum(ops.square(x)))
