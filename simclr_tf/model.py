"""SimCLR = encoder + projection head + supervised head, and the names its weights have in the authors' checkpoints."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from simclr_tf.batch_norm import BatchNorm
from simclr_tf.config import Config
from simclr_tf.heads import ProjectionHead, SupervisedHead
from simclr_tf.initializers import Initializers
from simclr_tf.resnet import resnet


class SimCLR(keras.Model):
    """The network of SimCLR v1 and v2. All variables exist once it is constructed.

    `model(images, training=False)` takes float32 images [n, H, W, 3] in [0, 1] and returns a dict of endpoints:
    `initial_conv, initial_max_pool, block_group1..4` [n, h, w, c], `final_avg_pool` (h, [n, C]), `proj_head_input`,
    `proj_head_output` (z, [n, proj_out_dim]), and `logits_sup` [n, num_classes] when there are classes.

    `.encoder` is a plain Keras model images -> h that works in `compile`/`fit`.

    Args:
      depth, width, sk_ratio, se_ratio, cifar_stem, batch_norm_decay, global_bn: see `resnet`.
      num_classes: of the supervised head; None for no head.
      proj_head_mode, num_proj_layers, proj_out_dim: see `ProjectionHead`.
      ft_proj_selector: index of the projection head's hidden vector that feeds the supervised head; 0 is h.
      dtype: Keras dtype policy, e.g. "mixed_bfloat16".
      seed: of the initial weights; random when None.
      initialize: False leaves every kernel at zero, which is faster where a checkpoint fills them.

    Raises:
      ValueError: an argument is out of range.
    """

    def __init__(self, depth=50, width=1, sk_ratio=0.0, se_ratio=0.0, cifar_stem=False, num_classes=None,
                 proj_head_mode="nonlinear", num_proj_layers=3, proj_out_dim=128, ft_proj_selector=0,
                 batch_norm_decay=0.9, global_bn=True, dtype=None, seed=None, initialize=True, name="simclr"):
        super().__init__(dtype=dtype, name=name)
        self.architecture = dict(
            depth=depth, width=width, sk_ratio=sk_ratio, se_ratio=se_ratio, cifar_stem=cifar_stem,
            proj_head_mode=proj_head_mode, num_proj_layers=num_proj_layers, proj_out_dim=proj_out_dim,
        )
        self.num_classes = num_classes
        self.ft_proj_selector = ft_proj_selector
        self._settings = dict(
            ft_proj_selector=ft_proj_selector, batch_norm_decay=batch_norm_decay, global_bn=global_bn, seed=seed,
        )
        initializers = Initializers(seed, zeros=not initialize)
        policy = self.dtype_policy
        self.resnet = resnet(
            depth, width, sk_ratio, se_ratio, cifar_stem, batch_norm_decay, global_bn, policy, initializers
        )
        self.encoder = self.resnet.encoder
        self.projection_head = ProjectionHead(
            proj_head_mode, num_proj_layers, proj_out_dim, batch_norm_decay, global_bn, initializers, dtype=policy,
            name="projection_head",
        )
        self.projection_head.build(self.encoder.output_shape)
        if not -1 <= ft_proj_selector <= self.projection_head.num_layers:
            raise ValueError(
                f"ft_proj_selector must be -1 to {self.projection_head.num_layers}, the number of projection layers "
                f"(proj_head_mode={proj_head_mode!r}). Received: ft_proj_selector={ft_proj_selector}"
            )
        self.supervised_head = None
        if num_classes is not None:
            self.supervised_head = SupervisedHead(num_classes, initializers, name="head_supervised")
            selected = self._hidden_dims()[ft_proj_selector]
            self.supervised_head.build((None, selected))
        self.built = True

    def _hidden_dims(self):
        width, head = self.encoder.output_shape[-1], self.projection_head
        return [width] * max(1, head.num_layers) + [head.out_dim] * min(1, head.num_layers)

    def call(self, images, training=False):
        _check_range(images)
        endpoints = dict(self.resnet.endpoints(images, training=training))
        hiddens = self.projection_head(endpoints["final_avg_pool"], training=training)
        endpoints["proj_head_input"] = hiddens[0]
        endpoints["proj_head_output"] = ops.cast(hiddens[-1], "float32")
        if self.supervised_head is not None:
            endpoints["logits_sup"] = self.supervised_head(hiddens[self.ft_proj_selector])
        return endpoints

    def get_config(self):
        return dict(
            **self.architecture, **self._settings, num_classes=self.num_classes, dtype=self.dtype_policy.name,
            name=self.name,
        )


def _check_range(images) -> None:
    """Raises ValueError for images that can be seen not to be in [0, 1]."""
    if not str(images.dtype).removeprefix("<dtype: '").startswith(("float", "bfloat")):
        raise ValueError(f"images must be floats in [0, 1]. Received dtype {images.dtype}: divide uint8 images by 255")
    if _has_values(images):
        values = np.asarray(images)
        # Comparisons are written so that nan fails them.
        if values.size and not (values.min() >= -1e-3 and values.max() <= 1 + 1e-3):
            raise ValueError(
                f"images must be in [0, 1], neither 0..255 nor standardised. Received: {values.min()} to {values.max()}"
            )


def _has_values(x) -> bool:
    """Whether the numbers in `x` can be looked at: not while a function of it is being compiled."""
    if keras.config.backend() == "jax" and not isinstance(x, np.ndarray):
        import jax

        return isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)
    return isinstance(x, np.ndarray) or (hasattr(x, "numpy") and not isinstance(x, keras.KerasTensor))


def make_model(config: Config, num_classes: int | None, initialize: bool = True) -> SimCLR:
    """The model of a run, its layers frozen as `config.fine_tune_after_block` says.

    Args:
      config: the run's.
      num_classes: of the data; None when unlabelled. Ignored when pretraining without linear evaluation.
      initialize: see `SimCLR`.
    """
    model = SimCLR(
        depth=config.resnet_depth, width=config.width_multiplier, sk_ratio=config.sk_ratio, se_ratio=config.se_ratio,
        cifar_stem=config.cifar_stem, num_classes=num_classes if config.linear_eval else None,
        proj_head_mode=config.proj_head_mode, num_proj_layers=config.num_proj_layers,
        proj_out_dim=config.proj_out_dim, ft_proj_selector=config.ft_proj_selector,
        batch_norm_decay=config.batch_norm_decay, global_bn=config.global_bn, dtype=config.precision, seed=config.seed,
        initialize=initialize,
    )
    freeze(model, config.fine_tune_after_block)
    for layer in (*model.resnet.layers, *model.projection_head.norm_layers):
        if isinstance(layer, BatchNorm):
            layer.fused = config.fused_bn
    return model


def freeze(model: SimCLR, after_block: int) -> None:
    """Keeps only what lies after block group `after_block` trainable: -1 all, 0 after the stem, 4 only the classifier.

    Batch-norm moving statistics are not part of it: they move whenever a layer is called with `training=True`.
    """
    for stage, layers in enumerate(model.resnet.stages):
        for layer in layers:
            layer.trainable = stage > after_block
    model.projection_head.trainable = after_block < 4


# --- The authors' names ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class NamedVariable:
    """A variable, its name in the authors' TF1 checkpoints, and the roles that decide how it is trained."""

    name: str
    variable: keras.Variable
    is_norm: bool
    is_bias: bool
    in_supervised_head: bool


def named_variables(model: SimCLR) -> list[NamedVariable]:
    """All variables of `model` under their TF1 names, in the authors' order."""
    named = []

    def add(scope, layer, attributes):
        for attribute in attributes:
            variable = getattr(layer, attribute, None)
            if variable is not None:
                named.append(NamedVariable(
                    f"{scope}/{attribute}", variable, isinstance(layer, BatchNorm), attribute == "bias",
                    scope.startswith("head_supervised"),
                ))

    norm_attributes = ("gamma", "beta", "moving_mean", "moving_variance")
    counts = {"conv2d": itertools.count(), "batch_normalization": itertools.count()}
    for layer in model.resnet.layers:
        kind, attributes = ("batch_normalization", norm_attributes) if isinstance(layer, BatchNorm) else (
            "conv2d", ("kernel", "bias"))
        k = next(counts[kind])
        add(f"base_model/{kind}_{k}" if k else f"base_model/{kind}", layer, attributes)
    head = model.projection_head
    for i, (dense, norm) in enumerate(zip(head.dense_layers, head.norm_layers, strict=True)):
        scope = f"head_contrastive/{'l' if head.mode == 'linear' else 'nl'}_{i}"
        add(f"{scope}/dense", dense, ("kernel",))
        add(f"{scope}/batch_normalization", norm, norm_attributes)
    if model.supervised_head is not None:
        add("head_supervised/linear_layer/dense", model.supervised_head, ("kernel", "bias"))
    return named


def set_from_tf1(model: SimCLR, read: Callable[[str, tuple[int, ...]], np.ndarray]) -> None:
    """Fills every variable of `model` from `read(tf1_name, shape) -> array`.

    Raises:
      ValueError: an array has another shape than its variable.
    """
    for item in named_variables(model):
        shape = tuple(item.variable.shape)
        value = np.asarray(read(item.name, shape))
        if value.shape != shape:
            raise ValueError(f"{item.name} must have shape {shape}. Received: {value.shape}")
        item.variable.assign(value)
