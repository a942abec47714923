"""Loss scaling for float16, whose gradients would vanish below 6e-8."""

from __future__ import annotations

import keras
from keras import ops


class LossScaling(keras.optimizers.LossScaleOptimizer):
    """Keras's dynamic loss scale with two differences.

    A skipped update counts as a step, so that the step, the data that belong to it and the learning rate stay together.
    Replicas agree on what is skipped: Keras asks the first one only, whose gradients are not summed yet.
    """

    def apply(self, grads, trainable_variables=None):
        if keras.config.backend() == "tensorflow":
            grads = _infinite_everywhere(grads)
        super().apply(grads, trainable_variables)

    def _stateful_handle_non_finite_grads(self):
        super()._stateful_handle_non_finite_grads()
        self.inner_optimizer.iterations.assign_add(1)

    def _stateless_handle_non_finite_grads(self, optimizer_variables, trainable_variables):
        trained, others = super()._stateless_handle_non_finite_grads(optimizer_variables, trainable_variables)
        index = next(i for i, v in enumerate(self.variables) if v is self.inner_optimizer.iterations)
        others[index] = others[index] + 1
        return trained, others


def _infinite_everywhere(gradients):
    """Gradients that are not finite on this replica if they are not on any."""
    import tensorflow as tf

    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return gradients
    # 0 where all are finite, else nan; the sum over replicas is nan where any is.
    zeros = [ops.sum(g) * 0 for g in gradients if g is not None]
    spoiled = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.add_n(zeros))
    return [g if g is None else g + ops.cast(spoiled, g.dtype) for g in gradients]
