"""The TF1 names of a checkpoint's entries, from the keys that each format gives them.

In TF1's checkpoints the key is the variable's name. In a TF2 training checkpoint it is the chain of attributes that
leads to the variable, in a SavedModel a number, and the name stands in the checkpoint's description of its objects.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from simclr_tf.errors import CheckpointError

OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_LEAVES = "kernel|bias|gamma|beta|moving_mean|moving_variance"
_WEIGHT = (
    r"(?:base_model/(?:conv2d|batch_normalization)(?:_\d+)?|head_contrastive/(?:nl_\d+|l_0)/"
    rf"(?:dense|batch_normalization)|head_supervised/linear_layer/dense)/(?:{_LEAVES})"
)

# What wrote the checkpoint, in words; TF1 name -> key of each weight; key of any other entry -> why it is no weight.
Naming = tuple[str, dict[str, str], dict[str, str]]


def from_tf1(keys: Iterable[str], source: str, use_ema: bool) -> Naming:
    """Names the entries of a checkpoint that goes by variable names, as TF1's do.

    Raises:
      CheckpointError: `use_ema` asks for a moving average that is not there for all weights but the supervised head's;
        or two entries are the same weight.
    """
    plain, ema, leftovers = {}, {}, {}
    for key in keys:
        name = key.removeprefix("module/")  # as a hub module names its variables inside another graph
        is_ema = name.startswith("ema_model/")
        name = name.removeprefix("ema_model/")
        if re.fullmatch(_WEIGHT, name):
            named = ema if is_ema else plain
            if name in named:
                raise CheckpointError(f"{source} is mixed up: {named[name]} and {key} are both {name}.")
            named[name] = key
        elif match := re.fullmatch(rf"{_WEIGHT}/(.+)", name):
            leftovers[key] = f"optimizer slot {match[1]}"
        elif name == "global_step":
            leftovers[key] = "global step"
        elif re.fullmatch(r"beta[12]_power", name):
            leftovers[key] = "optimizer state"
        else:
            leftovers[key] = "no weight of a SimCLR network"
    if not use_ema:
        leftovers |= {key: "moving average of the weights, not asked for" for key in ema.values()}
        return "TF1 checkpoint", plain, leftovers
    without = [name for name in plain if name not in ema and not name.startswith("head_supervised/")]
    if without:
        some = ", ".join(without[:5])
        raise CheckpointError(
            f"{source} has no moving average (ema_model/) of {len(without)} of its weights: {some}. Leave out use_ema."
        )
    leftovers |= {key: "replaced by its moving average" for name, key in plain.items() if name in ema}
    return "TF1 checkpoint (moving average)", plain | ema, leftovers


def from_objects(keys: Iterable[str], full_names: Callable[[], dict[str, str]], source: str) -> Naming:
    """Names the entries of a checkpoint that goes by Python objects, as TF2's do.

    Args:
      keys: all of the checkpoint's.
      full_names: gives key -> the name its variable had, as the checkpoint's description of its objects has it.

    Raises:
      CheckpointError: two entries are the same weight.
    """
    keys = set(keys)
    if any(re.fullmatch(rf"model/{_WEIGHT}{_VALUE}", key) for key in keys):
        form = "simclr_tf checkpoint"
        found = {key: key.removeprefix("model/").removesuffix(_VALUE) for key in keys
                 if re.fullmatch(rf"model/{_WEIGHT}{_VALUE}", key)}
    elif any(key.startswith("model/resnet_model/block_groups/") for key in keys):
        form = "TF2 training checkpoint"
        found = _renumbered({key: _by_structure(key) for key in keys})
    else:
        form = "TF2 SavedModel"
        found = _renumbered({key: _by_full_name(name) for key, name in full_names().items() if key in keys})
    named: dict[str, str] = {}
    for key, name in sorted(found.items()):
        if name in named:
            raise CheckpointError(f"{source} is mixed up: {named[name]} and {key} are both {name}.")
        named[name] = key
    leftovers = {key: _object_leftover(key) for key in keys - set(found)}
    return form, named, leftovers


def _object_leftover(key: str) -> str:
    if key == OBJECT_GRAPH:
        return "description of the objects"
    if "/.OPTIMIZER_SLOT/" in key:
        return "optimizer slot"
    root = key.split("/", 1)[0]
    return {
        "optimizer": "optimizer state", "global_step": "global step", "step": "global step",
        "save_counter": "number of checkpoints written",
    }.get(root, "no weight of a SimCLR network")


# A place in the encoder: (kind, order, leaf), numbered later; or the TF1 name where it is known already; or None.
Place = tuple[str, tuple[int, ...], str] | str | None


def _renumbered(places: dict[str, Place]) -> dict[str, str]:
    """Checkpoint key -> TF1 name: layers of the encoder get numbers in their order, each kind its own."""
    numbers: dict[str, dict[tuple[int, ...], int]] = {}
    for kind in ("conv2d", "batch_normalization"):
        orders = sorted({p[1] for p in places.values() if isinstance(p, tuple) and p[0] == kind})
        numbers[kind] = {order: k for k, order in enumerate(orders)}
    names = {}
    for key, place in places.items():
        if isinstance(place, tuple):
            kind, order, leaf = place
            k = numbers[kind][order]
            names[key] = f"base_model/{kind}_{k}/{leaf}" if k else f"base_model/{kind}/{leaf}"
        elif place is not None:
            names[key] = place
    return names


def _by_full_name(name: str) -> Place:
    """Place of a variable by the name TF2 gave it. Keras counts on where a process has made layers before."""
    match = re.fullmatch(
        rf"(?:.*/)?(resnet|projection_head|head_supervised)(?:_\d+)?/(?:.*/)?"
        rf"(conv2d|dense|(?:sync_)?batch_normalization)(?:_(\d+))?/({_LEAVES})", name)
    if not match:
        return name if re.fullmatch(_WEIGHT, name) else None
    part, kind, number, leaf = match.groups()
    kind = kind.removeprefix("sync_")
    if part == "resnet":
        return (kind, (int(number or 0),), leaf)
    if part == "head_supervised":
        return f"head_supervised/linear_layer/{kind}/{leaf}"
    layer = re.search(r"projection_head(?:_\d+)?/(nl_\d+|l_0)/", name)
    return f"head_contrastive/{layer[1]}/{kind}/{leaf}" if layer else None


# Order of making within a block, where the attribute's name does not carry an index.
_BLOCK_PARTS = {
    "shortcut_layers": 0, "projection_layers": 0, "conv2d_bn_layers": 1, "conv_relu_dropblock_layers": 1, "se_layer": 2,
}
_LAYER_PARTS = {
    "conv2d": 0, "bn": 0, "conv2d_fixed_padding": 0, "batch_norm_relu": 1, "conv2d_0": 2, "batch_norm_relu_1": 3,
    "conv2d_1": 4, "se_reduce": 0, "se_expand": 1,
}


def _by_structure(key: str) -> Place:
    """Place of a variable by the attributes that lead to it in the reference's TF2 model."""
    match = re.fullmatch(rf"model/(resnet_model|_projection_head|supervised_head)/(.+)/({_LEAVES}){_VALUE}", key)
    if not match:
        return None
    part, path, leaf = match.groups()
    kind = "batch_normalization" if leaf in ("gamma", "beta", "moving_mean", "moving_variance") else "conv2d"
    if part == "supervised_head":
        return f"head_supervised/linear_layer/dense/{leaf}" if path == "linear_layer/dense" else None
    if part == "_projection_head":
        layer = re.fullmatch(r"linear_layers/(\d+)/(?:bn_relu/bn|dense)", path)
        # A linear head cannot be trained by the reference's TF2 code: every layer is one of a non-linear head.
        return layer and f"head_contrastive/nl_{layer[1]}/{'dense' if kind == 'conv2d' else kind}/{leaf}"
    if stem := re.fullmatch(r"initial_conv_relu_max_pool/(\d+)/(?:conv2d|bn)", path):
        return (kind, (-1, int(stem[1])), leaf)
    block = re.fullmatch(r"block_groups/(\d+)/layers/(\d+)/(\w+?)(?:/(\d+))?/(\w+)(?:/\w+)?", path)
    if not block or block[3] not in _BLOCK_PARTS or block[5] not in _LAYER_PARTS:
        return None
    group, layer, block_part, index, layer_part = block.groups()
    return (
        kind, (int(group), int(layer), _BLOCK_PARTS[block_part], int(index or 0), _LAYER_PARTS[layer_part]), leaf)
