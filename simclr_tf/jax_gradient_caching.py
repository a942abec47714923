"""Gradient caching on Keras's JAX backend; `gradient_caching.py` says what it is and what it changes.

Nothing has to be replayed by hand here: a piece under `jax.checkpoint` keeps its images alone, and when its part of
the gradient is due it is encoded again.
"""

from __future__ import annotations

import jax
from keras import ops

from simclr_tf.batch_norm import BatchNorm, collected_statistics
from simclr_tf.config import Config
from simclr_tf.jax_devices import JaxDevices
from simclr_tf.model import SimCLR


def encode_in_pieces(model: SimCLR, images, config: Config, devices: JaxDevices) -> list:
    """`step.encode_at_once` for pretraining, `config.micro_batch_size` images at a time.

    Args:
      images: float32 [n, H, W, 6], the two views along the channels, shared out among `devices`.
    """
    pieces, d, n = config.train_batch_size // config.micro_batch_size, devices.num_replicas_in_sync, images.shape[0]
    rows = n // pieces // d  # of a piece, on a device
    norms = [layer for layer in (*model.resnet.layers, *model.projection_head.norm_layers)
             if isinstance(layer, BatchNorm)]

    def encode(piece):  # [d rows, H, W, 6]
        views = ops.concatenate(ops.split(piece, 2, axis=-1), 0)
        with collected_statistics() as statistics:
            hiddens = model.projection_head(model.encoder(views, training=True), training=True)
        return hiddens, [statistics[layer] for layer in norms]

    # A piece has the next rows of every device, so that no image moves to another.
    cut = images.reshape(d, pieces, rows, *images.shape[1:]).swapaxes(0, 1).reshape(pieces, -1, *images.shape[1:])
    hiddens, statistics = jax.lax.map(jax.checkpoint(encode, prevent_cse=False), cut)
    for layer, (mean, variance) in zip(norms, statistics, strict=True):
        layer.move(ops.mean(mean, 0), ops.mean(variance, 0))

    def whole(hidden):  # [pieces, 2 d rows, width]
        apart = hidden.reshape(pieces, 2, d, rows, -1)
        return apart.transpose(1, 2, 0, 3, 4).reshape(2 * n, -1)

    return [whole(hidden) for hidden in hiddens]
