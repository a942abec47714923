"""The two heads on top of the encoder: projection h -> z for the contrastive loss, and supervised -> logits."""

from __future__ import annotations

import keras
from keras import ops

from simclr_tf.batch_norm import BatchNorm
from simclr_tf.initializers import Initializers

MODES = ("none", "linear", "nonlinear")


def _normal(initializers):
    return (initializers or Initializers()).make(keras.initializers.RandomNormal, stddev=0.01)


class ProjectionHead(keras.layers.Layer):
    """Maps h [n, C] to the list of hidden vectors from h itself (index 0) to the projection z (index -1).

    Args:
      mode: "none" (z is h), "linear" (one layer) or "nonlinear" (`num_layers` layers, ReLU between them).
      num_layers: of the non-linear head. Middle layers keep the width of h.
      out_dim: dimensions of z.
      batch_norm_decay, global_bn: see `BatchNorm`. Each layer is a dense kernel and a batch norm; the last one's
        norm has no beta.
      initializers: of the kernels; random by default.
    """

    def __init__(self, mode="nonlinear", num_layers=3, out_dim=128, batch_norm_decay=0.9, global_bn=True,
                 initializers=None, **kwargs):
        super().__init__(**kwargs)
        if mode not in MODES:
            raise ValueError(f"mode must be one of {MODES}. Received: mode={mode!r}")
        self.mode = mode
        self.out_dim = out_dim
        self.num_layers = {"none": 0, "linear": 1, "nonlinear": num_layers}[mode]
        self._batch_norm = dict(decay=batch_norm_decay, synchronized=global_bn, dtype=self.dtype_policy)
        self._initializers = initializers
        self.dense_layers: list[keras.layers.Dense] = []
        self.norm_layers: list[BatchNorm] = []

    def build(self, input_shape):
        width = input_shape[-1]
        for i in range(self.num_layers):
            last = i == self.num_layers - 1
            dense = keras.layers.Dense(
                self.out_dim if last else width, use_bias=False, kernel_initializer=_normal(self._initializers),
                dtype=self.dtype_policy, name=f"dense{i}",
            )
            dense.build((None, width))
            norm = BatchNorm(center=not last, name=f"norm{i}", **self._batch_norm)
            norm.build((None, self.out_dim if last else width))
            self.dense_layers.append(dense)
            self.norm_layers.append(norm)

    def call(self, h, training=False):
        hiddens = [h]
        for i, (dense, norm) in enumerate(zip(self.dense_layers, self.norm_layers, strict=True)):
            x = norm(dense(hiddens[-1]), training=training)
            hiddens.append(x if i == self.num_layers - 1 else ops.relu(x))
        return hiddens


class SupervisedHead(keras.layers.Dense):
    """Linear classifier, [n, C] -> logits [n, num_classes], in float32 whatever the encoder's policy."""

    def __init__(self, num_classes, initializers=None, **kwargs):
        super().__init__(num_classes, kernel_initializer=_normal(initializers), dtype="float32", **kwargs)
