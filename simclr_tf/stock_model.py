"""The network in Keras's own layers: a model file of it opens anywhere, in safe mode, on each of Keras's backends."""

from __future__ import annotations

import keras
import numpy as np

from simclr_tf.batch_norm import EPSILON, BatchNorm
from simclr_tf.initializers import Initializers
from simclr_tf.model import SimCLR
from simclr_tf.resnet import SK_MIN_DIM, Builder, resnet


class StockBuilder(Builder):
    """Makes the same network of stock layers alone: where `Builder` calls functions, there is a layer here."""

    def norm_layer(self, name, gamma_initializer):
        return _norm_layer(self.batch_norm_decay, name)

    def relu(self, x):
        return keras.layers.ReLU()(x)

    def add(self, x, y):
        return keras.layers.Add()([x, y])

    def average(self, x):
        return keras.layers.GlobalAveragePooling2D()(x)

    def selective_kernel(self, x, filters, strides, name):
        """The two streams and their gates are layers of their own, with half of the original's channels each.

        A softmax over two gates is the sigmoid of their difference.
        """
        streams = [
            self.norm(self.conv(x, filters, 3, strides, f"{name}_sk_conv{i}"), f"{name}_sk_norm{i}") for i in (0, 1)
        ]
        pooled = self._pooled(self.add(*streams))  # [n, 1, 1, filters]
        gate_dim = max(int(filters * self.sk_ratio), SK_MIN_DIM)
        gate = self.norm(self.conv(pooled, gate_dim, 1, 1, f"{name}_sk_squeeze"), f"{name}_sk_squeeze_norm")
        gates = [self.conv(gate, filters, 1, 1, f"{name}_sk_gate{i}") for i in (0, 1)]
        return self.add(*(
            self._gated(stream, keras.layers.Subtract()([own, other]))
            for stream, own, other in zip(streams, gates, reversed(gates), strict=True)
        ))

    def squeeze_excite(self, x, filters, name):
        squeezed = self.conv(self._pooled(x), max(1, int(filters * self.se_ratio)), 1, 1, f"{name}_se_reduce", True)
        return self._gated(x, self.conv(self.relu(squeezed), x.shape[-1], 1, 1, f"{name}_se_expand", True))

    def _pooled(self, x):
        return keras.layers.GlobalAveragePooling2D(keepdims=True)(x)

    def _gated(self, x, logits):
        return keras.layers.Multiply()([x, keras.layers.Activation("sigmoid")(logits)])


def stock_model(model: SimCLR) -> keras.Model:
    """A functional model with the weights of `model`, in float32.

    images float32 [n, H, W, 3] in [0, 1] -> dict of `final_avg_pool` (h), `proj_head_output` (z), and `logits_sup`
    where there is a supervised head.
    """
    settings = model.get_config()
    zeros = Initializers(zeros=True)
    net = resnet(
        *(settings[name] for name in ("depth", "width", "sk_ratio", "se_ratio", "cifar_stem", "batch_norm_decay")),
        dtype="float32", initializers=zeros, builder=StockBuilder,
    )
    h = net.encoder.output
    layers = {layer.name: layer for layer in net.layers}
    for layer in model.resnet.layers:
        _copy(layer, layers)

    hiddens, head = [h], model.projection_head
    for i, (dense, norm) in enumerate(zip(head.dense_layers, head.norm_layers, strict=True)):
        layers = {
            dense.name: _dense_layer(dense.units, f"projection{i}", use_bias=False),
            norm.name: _norm_layer(norm.decay, f"projection_norm{i}", center=norm.center),
        }
        x = layers[norm.name](layers[dense.name](hiddens[-1]))
        hiddens.append(x if i == head.num_layers - 1 else keras.layers.ReLU()(x))
        for layer in (dense, norm):
            _copy(layer, layers)
    outputs = {"final_avg_pool": h, "proj_head_output": hiddens[-1]}
    if model.supervised_head is not None:
        supervised = _dense_layer(model.num_classes, "head_supervised")
        outputs["logits_sup"] = supervised(hiddens[model.ft_proj_selector])
        supervised.set_weights(model.supervised_head.get_weights())
    return keras.Model(net.encoder.input, outputs, name="simclr")


def _norm_layer(decay, name, center=True):
    return keras.layers.BatchNormalization(momentum=decay, epsilon=EPSILON, center=center, dtype="float32", name=name)


def _dense_layer(units, name, use_bias=True):
    return keras.layers.Dense(units, use_bias=use_bias, kernel_initializer="zeros", dtype="float32", name=name)


def _copy(source: keras.layers.Layer, layers: dict[str, keras.layers.Layer]) -> None:
    """Gives the weights of `source` to the layer of its name, or to the two that have half of its channels each."""
    attributes = ("gamma", "beta", "moving_mean", "moving_variance") if isinstance(source, BatchNorm) else (
        "kernel", "bias")
    whole = [np.asarray(v) for v in (getattr(source, a, None) for a in attributes) if v is not None]
    if source.name in layers:
        layers[source.name].set_weights(whole)
        return
    halves = zip(*(np.split(value, 2, axis=-1) for value in whole), strict=True)
    for i, half in enumerate(halves):
        layers[f"{source.name}{i}"].set_weights(list(half))
