"""Weights as a `safetensors` file under the names that torchvision's ResNet gives them.

Names: `conv1`, `bn1`, `layer<1..4>.<block>.conv<1..3>`, `.bn<1..3>`, `.downsample.<0|1>`, and `fc` for the supervised
head. What torchvision's ResNet has not: `projection_head.<k>` are the entries of a `Sequential` of Linear, BatchNorm1d
and ReLU; with selective kernels `stem.*` and `layer*.*.sk.*`, with squeeze-excitation `layer*.*.se.*`.
"""

from __future__ import annotations

import json
import re

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from simclr_tf.errors import CheckpointError
from simclr_tf.model import SimCLR, named_variables, set_from_tf1

_LEAVES = {"kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias", "moving_mean": "running_mean",
           "moving_variance": "running_var"}
_PARTS = {  # the name of a block's layer here -> in the file
    "shortcut_conv": "downsample.0", "shortcut_norm": "downsample.1", "sk_conv": "sk.conv", "sk_norm": "sk.bn",
    "sk_squeeze": "sk.squeeze", "sk_squeeze_norm": "sk.squeeze_bn", "sk_gate": "sk.gate", "se_reduce": "se.reduce",
    "se_expand": "se.expand",
}
_STEM = {"stem_conv": "conv1", "stem_conv3": "conv1", "stem_norm": "bn1", "stem_conv1": "stem.conv1",
         "stem_norm1": "stem.bn1", "stem_conv2": "stem.conv2", "stem_norm2": "stem.bn2"}


def write(model: SimCLR, path: str, class_names: tuple[str, ...] | None = None) -> None:
    """Writes the weights of `model` to the local file `path`; its architecture and classes are in the metadata."""
    keys = torch_keys(model)
    tensors = {keys[item.name]: _to_torch(np.asarray(item.variable)) for item in named_variables(model)}
    # torch's batch norm always has a bias; the projection's last one has none here.
    for i, norm in enumerate(model.projection_head.norm_layers):
        if not norm.center:
            tensors[f"projection_head.{3 * i + 1}.bias"] = np.zeros(norm.gamma.shape, np.float32)
    metadata = dict(
        format="pt", images="RGB in [0, 1], not standardised; float32 [n, 3, H, W]",
        architecture=json.dumps(model.architecture | {"ft_proj_selector": model.ft_proj_selector}),
        class_names=json.dumps(class_names),
    )
    save_file(tensors, path, metadata)


def read_into(model: SimCLR, path: str) -> None:
    """Fills `model` from the file `path` that `write` made of one of the same architecture.

    Raises:
      CheckpointError: the file is damaged, or lacks a weight.
    """
    keys = torch_keys(model)
    try:
        with safe_open(path, framework="numpy") as file:
            set_from_tf1(model, lambda name, shape: _from_torch(file.get_tensor(keys[name])))
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or of another architecture: {error}") from error


def torch_keys(model: SimCLR) -> dict[str, str]:
    """TF1 name of each variable of `model` -> its name in the file."""
    head = model.projection_head
    layers = [(_torch_layer(layer.name), layer) for layer in model.resnet.layers]
    for i, (dense, norm) in enumerate(zip(head.dense_layers, head.norm_layers, strict=True)):
        layers += [(f"projection_head.{3 * i}", dense), (f"projection_head.{3 * i + 1}", norm)]
    if model.supervised_head is not None:
        layers.append(("fc", model.supervised_head))
    keys = {id(getattr(layer, attribute, None)): f"{name}.{leaf}"
            for name, layer in layers for attribute, leaf in _LEAVES.items()}
    return {item.name: keys[id(item.variable)] for item in named_variables(model)}


def _torch_layer(name: str) -> str:
    if name in _STEM:
        return _STEM[name]
    group, block, part = re.fullmatch(r"block_group(\d)_block(\d+)_(\w+)", name).groups()
    return f"layer{group}.{int(block) - 1}.{_PARTS.get(part) or part.replace('norm', 'bn')}"


def _to_torch(value: np.ndarray) -> np.ndarray:
    """[h, w, in, out] -> [out, in, h, w]; [in, out] -> [out, in]."""
    return np.ascontiguousarray(value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T)


def _from_torch(value: np.ndarray) -> np.ndarray:
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
