"""The encoder: ResNet 18 to 200 with optional width, CIFAR stem, selective kernels (SK) and squeeze-excitation (SE).

images [n, H, W, 3] in [0, 1] -> h [n, 512 * width] (depth 18, 34) or [n, 2048 * width] (depth 50 and up).

A functional Keras model. Layers are made in the reference's order, so that the k-th convolution here is its
`conv2d_k` (a block's projection shortcut comes before its main path): `ResNet.layers` keeps that order.
Sources: He et al. 2015 (ResNet v1), Li et al. 2019 (SK), Hu et al. 2017 (SE), He et al. 2018 (ResNet-D, used by SK).
"""

from __future__ import annotations

import dataclasses
import itertools

import keras
from keras import ops

from simclr_tf.batch_norm import BatchNorm
from simclr_tf.initializers import Initializers

# depth -> (bottleneck blocks?, blocks per group)
ARCHITECTURES = {
    18: (False, (2, 2, 2, 2)),
    34: (False, (3, 4, 6, 3)),
    50: (True, (3, 4, 6, 3)),
    101: (True, (3, 4, 23, 3)),
    152: (True, (3, 8, 36, 3)),
    200: (True, (3, 24, 36, 3)),
}
SK_MIN_DIM = 32  # narrowest bottleneck of the SK gate


@dataclasses.dataclass(frozen=True)
class ResNet:
    """An encoder and what others need to know of its inside.

    encoder: images -> h.
    endpoints: images -> dict of `initial_conv, initial_max_pool, block_group1..4, final_avg_pool`.
    layers: those with weights, in the reference's order.
    stages: the same layers by stage: index 0 the stem, 1..4 the block groups (for freezing).
    """

    encoder: keras.Model
    endpoints: keras.Model
    layers: tuple[keras.layers.Layer, ...]
    stages: tuple[tuple[keras.layers.Layer, ...], ...]


def resnet(depth=50, width=1, sk_ratio=0.0, se_ratio=0.0, cifar_stem=False, batch_norm_decay=0.9, global_bn=True,
           dtype=None, initializers=None, builder=None) -> ResNet:
    """Builds the encoder.

    Args:
      depth: one of `ARCHITECTURES`.
      width: multiplier of the channels; 64 * width must be a whole number.
      sk_ratio, se_ratio: above 0 switch on SK and SE. SK replaces the 3x3 convolution of bottleneck blocks, so at
        depth 18 and 34 it gives the ResNet-D stem and shortcut only, as in the reference.
      cifar_stem: 3x3 convolution and no pooling, for images up to 32 pixels.
      batch_norm_decay, global_bn: see `BatchNorm`.
      dtype: Keras dtype policy of the layers, the global one by default.
      initializers: of the kernels; random by default.
      builder: class that makes the layers, by default `Builder`.
    """
    if depth not in ARCHITECTURES:
        raise ValueError(f"depth must be one of {sorted(ARCHITECTURES)}. Received: depth={depth}")
    if not float(64 * width).is_integer() or width <= 0:
        raise ValueError(f"64 * width must be a whole number of channels above 0. Received: width={width}")
    build = (builder or Builder)(sk_ratio, se_ratio, batch_norm_decay, global_bn, dtype, initializers or Initializers())
    bottleneck, group_sizes = ARCHITECTURES[depth]
    block = build.bottleneck_block if bottleneck else build.basic_block
    base = int(64 * width)

    images = keras.Input((None, None, 3), name="images")
    endpoints = {}
    x = build.cifar_stem(images, base, endpoints) if cifar_stem else build.imagenet_stem(images, base, endpoints)
    stage_ends = [len(build.layers)]
    for group, blocks in enumerate(group_sizes):
        for i in range(blocks):
            strides = 2 if group > 0 and i == 0 else 1
            x = block(x, base * 2**group, strides, project=i == 0, name=f"block_group{group + 1}_block{i + 1}")
        endpoints[f"block_group{group + 1}"] = x
        stage_ends.append(len(build.layers))
    h = build.average(x)  # [n, C]
    endpoints["final_avg_pool"] = h
    return ResNet(
        encoder=keras.Model(images, h, name="encoder"),
        endpoints=keras.Model(images, endpoints, name="endpoints"),
        layers=tuple(build.layers),
        stages=tuple(tuple(build.layers[a:b]) for a, b in itertools.pairwise([0, *stage_ends])),
    )


class Builder:
    """Makes layers with the shared settings and remembers those with weights, in order."""

    def __init__(self, sk_ratio, se_ratio, batch_norm_decay, global_bn, dtype, initializers):
        self.sk_ratio = sk_ratio
        self.se_ratio = se_ratio
        self.batch_norm_decay = batch_norm_decay
        self.global_bn = global_bn
        self.dtype = dtype
        self.initializers = initializers
        self.layers: list[keras.layers.Layer] = []

    def conv(self, x, filters, kernel_size, strides, name, use_bias=False):
        """Convolution whose padding depends on the kernel alone, not on the image's size."""
        if strides > 1 and kernel_size > 1:
            x = _pad(x, kernel_size, self.dtype, name)
        layer = keras.layers.Conv2D(
            filters, kernel_size, strides, padding="same" if strides == 1 else "valid", use_bias=use_bias,
            kernel_initializer=self.initializers.make(keras.initializers.VarianceScaling),
            dtype=self.dtype, name=name,
        )
        self.layers.append(layer)
        return layer(x)

    def norm(self, x, name, relu=True, zero=False):
        """Batch norm, then ReLU unless told otherwise; `zero` starts its scale at 0."""
        layer = self.norm_layer(name, "zeros" if zero else "ones")
        self.layers.append(layer)
        x = layer(x)
        return self.relu(x) if relu else x

    # --- Operations, which exports make of other layers -------------------------------------------------------------
    def norm_layer(self, name, gamma_initializer):
        return BatchNorm(
            self.batch_norm_decay, gamma_initializer=gamma_initializer, synchronized=self.global_bn, dtype=self.dtype,
            name=name,
        )

    def relu(self, x):
        return ops.relu(x)

    def add(self, x, y):
        return x + y

    def average(self, x):
        """[n, H, W, C] -> h [n, C], in float32 whatever the policy: h feeds losses and statistics."""
        return ops.mean(ops.cast(x, "float32"), axis=(1, 2))

    # --- Stems ---------------------------------------------------------------------------------------------------
    def cifar_stem(self, x, filters, endpoints):
        x = endpoints["initial_conv"] = self.conv(x, filters, 3, 1, "stem_conv")
        x = endpoints["initial_max_pool"] = self.norm(x, "stem_norm")  # nothing is pooled; the name is the reference's
        return x

    def imagenet_stem(self, x, filters, endpoints):
        if self.sk_ratio > 0:  # ResNet-D
            x = self.norm(self.conv(x, filters // 2, 3, 2, "stem_conv1"), "stem_norm1")
            x = self.norm(self.conv(x, filters // 2, 3, 1, "stem_conv2"), "stem_norm2")
            x = self.conv(x, filters, 3, 1, "stem_conv3")
        else:
            x = self.conv(x, filters, 7, 2, "stem_conv")
        endpoints["initial_conv"] = x
        x = self.norm(x, "stem_norm")
        x = keras.layers.MaxPooling2D(3, 2, padding="same", dtype=self.dtype, name="stem_pool")(x)
        endpoints["initial_max_pool"] = x
        return x

    # --- Blocks --------------------------------------------------------------------------------------------------
    def shortcut(self, x, filters, strides, name):
        if self.sk_ratio > 0:  # ResNet-D: average instead of dropping three pixels of four
            if strides > 1:
                x = _pad(x, 2, self.dtype, f"{name}_shortcut_pool")
            x = keras.layers.AveragePooling2D(
                2, strides, padding="same" if strides == 1 else "valid", dtype=self.dtype, name=f"{name}_shortcut_pool"
            )(x)
            strides = 1
        x = self.conv(x, filters, 1, strides, f"{name}_shortcut_conv")
        return self.norm(x, f"{name}_shortcut_norm", relu=False)

    def basic_block(self, x, filters, strides, project, name):
        shortcut = self.shortcut(x, filters, strides, name) if project else x
        x = self.norm(self.conv(x, filters, 3, strides, f"{name}_conv1"), f"{name}_norm1")
        x = self.norm(self.conv(x, filters, 3, 1, f"{name}_conv2"), f"{name}_norm2", relu=False, zero=True)
        if self.se_ratio > 0:
            x = self.squeeze_excite(x, filters, name)
        return self.relu(self.add(x, shortcut))

    def bottleneck_block(self, x, filters, strides, project, name):
        shortcut = self.shortcut(x, 4 * filters, strides, name) if project else x
        x = self.norm(self.conv(x, filters, 1, 1, f"{name}_conv1"), f"{name}_norm1")
        if self.sk_ratio > 0:
            x = self.selective_kernel(x, filters, strides, name)
        else:
            x = self.norm(self.conv(x, filters, 3, strides, f"{name}_conv2"), f"{name}_norm2")
        x = self.norm(self.conv(x, 4 * filters, 1, 1, f"{name}_conv3"), f"{name}_norm3", relu=False, zero=True)
        if self.se_ratio > 0:
            x = self.squeeze_excite(x, filters, name)
        return self.relu(self.add(x, shortcut))

    def selective_kernel(self, x, filters, strides, name):
        """Two 3x3 streams mixed by a softmax gate on their pooled sum."""
        x = self.norm(self.conv(x, 2 * filters, 3, strides, f"{name}_sk_conv"), f"{name}_sk_norm")
        streams = ops.split(x, 2, axis=-1)  # 2 x [n, H, W, filters]
        pooled = ops.mean(streams[0] + streams[1], axis=(1, 2), keepdims=True)  # [n, 1, 1, filters]
        gate_dim = max(int(filters * self.sk_ratio), SK_MIN_DIM)
        gate = self.norm(self.conv(pooled, gate_dim, 1, 1, f"{name}_sk_squeeze"), f"{name}_sk_squeeze_norm")
        gate = self.conv(gate, 2 * filters, 1, 1, f"{name}_sk_gate")
        gates = ops.softmax(ops.stack(ops.split(gate, 2, axis=-1)), axis=0)  # [2, n, 1, 1, filters]
        return streams[0] * gates[0] + streams[1] * gates[1]

    def squeeze_excite(self, x, filters, name):
        pooled = ops.mean(x, axis=(1, 2), keepdims=True)  # [n, 1, 1, C]
        squeezed = self.conv(pooled, max(1, int(filters * self.se_ratio)), 1, 1, f"{name}_se_reduce", use_bias=True)
        gate = self.conv(ops.relu(squeezed), x.shape[-1], 1, 1, f"{name}_se_expand", use_bias=True)
        return ops.sigmoid(gate) * x


def _pad(x, kernel_size, dtype, name):
    """Pads height and width by `kernel_size - 1` in all, the larger part at the end."""
    before = (kernel_size - 1) // 2
    after = kernel_size - 1 - before
    return keras.layers.ZeroPadding2D(((before, after), (before, after)), dtype=dtype, name=f"{name}_pad")(x)
