"""Batch normalisation as the reference computes it, as fast as the backend allows.

It differs from `keras.layers.BatchNormalization` in three ways that matter here:
* on TensorFlow, in float32, it is the reference's formula operation by operation, because a contrastive network on a
  small batch amplifies another rounding of the statistics to whole per cents of the loss within a few steps
  (docs/parity.md); for half precision, or with `fused`, it is one fused kernel with float32 statistics;
* with several replicas the statistics are those of the global batch (`synchronized`) or each replica's own;
* freezing its parameters (`trainable = False`) does not freeze its moving statistics: only `training=False` does,
  as in both versions of the reference when fine-tuning after a block.
"""

from __future__ import annotations

import contextlib
import threading

import keras
from keras import ops

EPSILON = 1e-5

if keras.config.backend() == "tensorflow":
    import tensorflow as tf
else:
    tf = None  # other backends take the `keras.ops` branch; nothing here imports TensorFlow for them


_collecting = threading.local()  # mirrored replicas are traced in threads of their own


@contextlib.contextmanager
def collected_statistics():
    """Within it the layers, in training, keep their moving statistics and put (mean, variance) into the dict given."""
    outer = getattr(_collecting, "statistics", None)
    _collecting.statistics = {}
    try:
        yield _collecting.statistics
    finally:
        _collecting.statistics = outer


class BatchNorm(keras.layers.Layer):
    """Normalises the last axis of `[n, C]` or `[n, H, W, C]`.

    Args:
      decay: of the moving statistics, in [0, 1].
      center: whether there is a `beta`.
      gamma_initializer: "ones", or "zeros" for the last norm of a residual branch, which then starts as the identity.
      synchronized: whether replicas share their statistics.
    """

    def __init__(self, decay=0.9, center=True, gamma_initializer="ones", synchronized=True, **kwargs):
        super().__init__(**kwargs)
        self.decay = decay
        self.center = center
        self.gamma_initializer = gamma_initializer
        self.synchronized = synchronized
        self.fused = False  # in float32 too, see `fuse`

    def build(self, input_shape):
        def weight(name, initializer, **kwargs):
            return self.add_weight(
                shape=(input_shape[-1],), name=name, initializer=initializer, dtype="float32", autocast=False, **kwargs
            )

        self.gamma = weight("gamma", self.gamma_initializer)
        self.beta = weight("beta", "zeros") if self.center else None
        # Replicas that keep their own statistics (synchronized=False) leave behind the mean of them.
        self.moving_mean = weight("moving_mean", "zeros", trainable=False, aggregation="mean")
        self.moving_variance = weight("moving_variance", "ones", trainable=False, aggregation="mean")

    def compute_output_shape(self, input_shape):
        return input_shape

    def call(self, x, training=False):
        beta = ops.zeros(self.gamma.shape) if self.beta is None else self.beta
        if not training:
            return self._normalize(x, self.moving_mean, self.moving_variance, beta)
        if tf is None:
            axes = tuple(range(len(x.shape) - 1))
            mean, variance = ops.moments(ops.cast(x, "float32"), axes)
            y = self._normalize(x, mean, variance, beta)
        elif (self.synchronized and _replicas() > 1) or (x.dtype == tf.float32 and not self.fused):
            mean, variance = _global_moments(x) if self.synchronized else _local_moments(x)
            y = tf.nn.batch_normalization(
                tf.cast(x, tf.float32), mean, variance, ops.convert_to_tensor(beta), ops.convert_to_tensor(self.gamma),
                EPSILON,
            )
            y = tf.cast(y, x.dtype)
        else:
            y, mean, variance = _fused(x, ops.convert_to_tensor(self.gamma), ops.convert_to_tensor(beta))
        if (statistics := getattr(_collecting, "statistics", None)) is not None:
            statistics[self] = ops.stop_gradient(mean), ops.stop_gradient(variance)
        else:
            self.move(mean, variance)
        return y

    def move(self, mean, variance):
        """Lets the moving statistics follow a batch's, `[C]` each."""
        for moving, batch in zip(self.moving, (mean, variance), strict=True):
            moving.assign(moving * self.decay + ops.stop_gradient(batch) * (1 - self.decay))

    @property
    def moving(self):
        """The moving mean and variance."""
        return self.moving_mean, self.moving_variance

    def _normalize(self, x, mean, variance, beta):
        """`x` scaled and shifted in float32, in `x`'s own type afterwards."""
        scale = self.gamma * ops.rsqrt(variance + EPSILON)
        y = ops.cast(x, "float32") * scale + (beta - mean * scale)
        return ops.cast(y, x.dtype)

    def get_config(self):
        return super().get_config() | dict(
            decay=self.decay, center=self.center, gamma_initializer=self.gamma_initializer,
            synchronized=self.synchronized,
        )


# --- TensorFlow only -------------------------------------------------------------------------------------------------


def _fused(x, gamma, beta):
    """One kernel: normalised `x`, mean and biased variance, both `[C]` float32."""
    four_d = x if len(x.shape) == 4 else x[:, None, None, :]
    y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=four_d, scale=gamma, offset=beta, mean=[], variance=[], epsilon=EPSILON, is_training=True,
    )
    count = tf.cast(tf.size(four_d) // tf.shape(four_d)[-1], tf.float32)
    # The kernel returns the unbiased variance; the reference's layer averages the biased one.
    variance *= (count - 1) / count
    return tf.reshape(y, tf.shape(x)), mean, variance


def _global_moments(x):
    """Mean and biased variance over all replicas' rows, `[C]` float32 each. Differentiable through the sum."""
    x = tf.cast(x, tf.float32)
    axes = list(range(len(x.shape) - 1))
    # TensorFlow's graph optimizer adds up the three gradients that `x` gets in the alphabetical order of their names,
    # and in float32 the order tells. The reference's has "batchnorm" before "moments"; so has this.
    # The row count is summed like the rest for the same reason; with static shapes it is folded into a constant.
    with tf.name_scope("moments"):
        sums = [tf.reduce_sum(v, axes, keepdims=True) for v in (x, tf.square(x), tf.ones_like(x))]
        if _replicas() > 1:
            context = tf.distribute.get_replica_context()
            sums = tf.unstack(context.all_reduce(tf.distribute.ReduceOp.SUM, tf.stack(sums)))
        total, total_of_squares, count = sums
        mean = total / count
        variance = total_of_squares / count - tf.square(mean)
        return tf.squeeze(mean, axes), tf.squeeze(variance, axes)


def _local_moments(x):
    """Mean and biased variance over this replica's rows, `[C]` float32 each."""
    return tf.nn.moments(tf.cast(x, tf.float32), list(range(len(x.shape) - 1)))


def _replicas():
    return tf.distribute.get_strategy().num_replicas_in_sync
