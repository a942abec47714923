"""The architecture of a checkpoint, read off the names and shapes of its weights.

Weights go by their names in the authors' TF1 checkpoints, such as `base_model/conv2d_3/kernel`: convolutions and
batch norms are numbered in the order in which the network makes them, a block's projection shortcut first.
"""

from __future__ import annotations

import dataclasses
import itertools
import re

from simclr_tf.errors import CheckpointError
from simclr_tf.resnet import ARCHITECTURES, SK_MIN_DIM

RELEASED_SK_RATIO = 0.0625
_MAX_LISTED = 5  # names in an error message

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What decides the names and shapes of a model's weights. The fields are arguments of `SimCLR`.

    Some of it cannot always be seen in the weights, and is then the default: `sk_ratio` of depth 18 and 34 with the
    CIFAR stem (0; and 0.0625 stands for every ratio that gives the same widths), `num_proj_layers` and `proj_out_dim`
    where the projection head has no such thing, and `ft_proj_selector`, which is -1 only where the supervised head's
    input has the projection's width.
    """

    depth: int
    width: float = 1
    sk_ratio: float = 0.0
    se_ratio: float = 0.0
    cifar_stem: bool = False
    proj_head_mode: str = "nonlinear"
    num_proj_layers: int = 3
    proj_out_dim: int = 128
    num_classes: int | None = None
    ft_proj_selector: int = 0

    def __str__(self):
        head = {
            "none": "no projection head",
            "linear": f"linear projection head to {self.proj_out_dim}",
            "nonlinear": f"projection head of {self.num_proj_layers} layers to {self.proj_out_dim}",
        }[self.proj_head_mode]
        parts = [f"ResNet-{self.depth} {self.width:g}x"]
        parts += [f"SK {self.sk_ratio:g}"] * (self.sk_ratio > 0) + [f"SE {self.se_ratio:g}"] * (self.se_ratio > 0)
        parts += ["CIFAR stem"] * self.cifar_stem + [head]
        parts += [f"{self.num_classes} classes" if self.num_classes is not None else "no supervised head"]
        return ", ".join(parts)


def variables(arch: Architecture) -> dict[str, Shape]:
    """Names and shapes of the weights that a model of this architecture has, in the authors' order."""
    shapes: dict[str, Shape] = {}
    counts = {"conv2d": itertools.count(), "batch_normalization": itertools.count()}

    def scope(kind):
        k = next(counts[kind])
        return f"base_model/{kind}_{k}" if k else f"base_model/{kind}"

    def norm(name, channels, center=True):
        for leaf in ("gamma", "beta", "moving_mean", "moving_variance"):
            if center or leaf != "beta":
                shapes[f"{name}/{leaf}"] = (channels,)

    def conv(size, inputs, outputs, normalized=True, bias=False):
        name = scope("conv2d")
        shapes[f"{name}/kernel"] = (size, size, inputs, outputs)
        if bias:
            shapes[f"{name}/bias"] = (outputs,)
        if normalized:
            norm(scope("batch_normalization"), outputs)
        return outputs

    def squeeze_excite(channels, filters):
        squeezed = conv(1, channels, max(1, int(filters * arch.se_ratio)), normalized=False, bias=True)
        conv(1, squeezed, channels, normalized=False, bias=True)

    def block(inputs, filters, project):
        outputs = 4 * filters if bottleneck else filters
        if project:
            conv(1, inputs, outputs)
        if bottleneck:
            conv(1, inputs, filters)
            if arch.sk_ratio > 0:
                conv(3, filters, 2 * filters)
                squeezed = conv(1, filters, max(int(filters * arch.sk_ratio), SK_MIN_DIM))
                conv(1, squeezed, 2 * filters, normalized=False)
            else:
                conv(3, filters, filters)
            conv(1, filters, outputs)
        else:
            conv(3, inputs, filters)
            conv(3, filters, outputs)
        if arch.se_ratio > 0:
            squeeze_excite(outputs, filters)
        return outputs

    bottleneck, group_sizes = ARCHITECTURES[arch.depth]
    base = int(64 * arch.width)
    if arch.cifar_stem:
        channels = conv(3, 3, base)
    elif arch.sk_ratio > 0:
        channels = conv(3, conv(3, conv(3, 3, base // 2), base // 2), base)
    else:
        channels = conv(7, 3, base)
    for group, blocks in enumerate(group_sizes):
        for i in range(blocks):
            channels = block(channels, base * 2**group, project=i == 0)

    layers = {"none": 0, "linear": 1, "nonlinear": arch.num_proj_layers}[arch.proj_head_mode]
    for i in range(layers):
        last = i == layers - 1
        name = f"head_contrastive/{'l' if arch.proj_head_mode == 'linear' else 'nl'}_{i}"
        outputs = arch.proj_out_dim if last else channels
        shapes[f"{name}/dense/kernel"] = (channels, outputs)
        norm(f"{name}/batch_normalization", outputs, center=not last)
    if arch.num_classes is not None:
        reads_projection = layers and arch.ft_proj_selector in (-1, layers)
        name = "head_supervised/linear_layer/dense"
        shapes[f"{name}/kernel"] = (arch.proj_out_dim if reads_projection else channels, arch.num_classes)
        shapes[f"{name}/bias"] = (arch.num_classes,)
    return shapes


def architecture(shapes: dict[str, Shape], source: str = "the checkpoint") -> Architecture:
    """The architecture whose weights are exactly `shapes` (TF1 name -> shape).

    Raises:
      CheckpointError: it is no SimCLR network's: what is missing, too much, or of another shape is named, together
        with the architecture that fits best. `source` names the checkpoint in the message.
    """
    arch = _guess(shapes, source)
    problems = differences(variables(arch), shapes)
    if problems:
        raise CheckpointError(
            f"{source} is damaged or not a SimCLR network. It looks like {arch}, but {problems}."
        )
    return arch


def differences(expected: dict[str, Shape], found: dict[str, Shape]) -> str:
    """What `found` lacks, has too much, or has in another shape; empty where it agrees."""
    missing = [f"{name} {expected[name]}" for name in expected if name not in found]
    extra = [f"{name} {found[name]}" for name in found if name not in expected]
    unequal = [name for name in expected if name in found and found[name] != expected[name]]
    reshaped = [f"{name} is {found[name]} instead of {expected[name]}" for name in unequal]
    parts = []
    for rows, text in ((missing, "lacks"), (extra, "has in addition"), (reshaped, "differs in shape:")):
        if rows:
            listed = ", ".join(rows[:_MAX_LISTED])
            more = f" and {len(rows) - _MAX_LISTED} more" if len(rows) > _MAX_LISTED else ""
            parts.append(f"{text} {listed}{more}")
    return "; ".join(parts)


def _guess(shapes: dict[str, Shape], source: str) -> Architecture:
    """The architecture that the number and the first few shapes of the layers point to."""

    def fail(why: str):
        raise CheckpointError(f"{source} holds no SimCLR network: {why}.")

    convs = {}
    for name, shape in shapes.items():
        if match := re.fullmatch(r"base_model/conv2d(?:_(\d+))?/kernel", name):
            if len(shape) != 4 or min(shape) < 1:
                fail(f"{name} has shape {shape}, a convolution has 4 dimensions")
            convs[int(match[1] or 0)] = shape
    if len(convs) < 8:
        fail(f"its encoder has {len(convs)} convolutions named base_model/conv2d*, the smallest ResNet has 20")
    absent = [k for k in range(max(convs)) if k not in convs]
    if absent:
        fail(f"its encoder lacks the convolutions {', '.join(f'conv2d_{k}' for k in absent[:_MAX_LISTED])}")
    n = len(convs)

    # The stem ends where the first block begins, with its 1x1 projection shortcut.
    stem = next((k for k in range(1, 4) if convs[k][0] == 1), None)
    if stem not in (1, 3):
        fail("its first convolutions are neither a 7x7 stem, a 3x3 stem nor a ResNet-D stem")
    base = convs[stem - 1][3]
    bottleneck = convs[stem + 1][0] == 1
    selective = convs[stem + 2][3] == 2 * base if bottleneck else stem == 3
    squeezing = any(re.fullmatch(r"base_model/conv2d\w*/bias", name) for name in shapes)
    per_block = (3 if bottleneck else 2) + 2 * (selective and bottleneck) + 2 * squeezing
    depth = next((depth for depth, (is_bottleneck, groups) in ARCHITECTURES.items()
                  if is_bottleneck == bottleneck and stem + 4 + per_block * sum(groups) == n), None)
    if depth is None:
        fail(f"an encoder with {n} convolutions, {per_block} per {'bottleneck' if bottleneck else 'basic'} block, is "
             f"none of ResNet-{', '.join(map(str, ARCHITECTURES))}")

    filters = 8 * base  # of the last block group, where ratios show best
    sk_ratio = se_ratio = 0.0
    if selective:
        sk_ratio = RELEASED_SK_RATIO
        squeezed = convs[n - 3 - 2 * squeezing][3]
        if bottleneck and max(int(filters * sk_ratio), SK_MIN_DIM) != squeezed:
            sk_ratio = _ratio(squeezed, filters)
    if squeezing:
        se_ratio = _ratio(convs[n - 2][3], filters)

    mode, layers, out_dim = _projection_head(shapes)
    classifier = shapes.get("head_supervised/linear_layer/dense/kernel")
    features = filters * (4 if bottleneck else 1)
    reads_projection = classifier is not None and mode != "none" and classifier[0] == out_dim != features
    defaults = Architecture(depth)
    return Architecture(
        depth, base // 64 if base % 64 == 0 else base / 64, sk_ratio, se_ratio, convs[0][0] == 3 and stem == 1, mode,
        layers if mode == "nonlinear" else defaults.num_proj_layers,
        defaults.proj_out_dim if mode == "none" else out_dim,
        classifier[-1] if classifier is not None else None, -1 if reads_projection else 0,
    )


def _projection_head(shapes) -> tuple[str, int, int]:
    """Mode, number of layers and output dimensions of the projection head."""
    kernels = {}
    for name, shape in shapes.items():
        if match := re.fullmatch(r"head_contrastive/(n?l)_(\d+)/dense/kernel", name):
            kernels[int(match[2])] = ("linear" if match[1] == "l" else "nonlinear", shape)
    if not kernels:
        return "none", 0, 0
    mode, shape = kernels[max(kernels)]
    return mode, max(kernels) + 1, shape[-1]


def _ratio(part: int, whole: int) -> float:
    """A ratio r with int(whole * r) == part."""
    ratio = part / whole
    return ratio if int(whole * ratio) == part else (part + 0.5) / whole
