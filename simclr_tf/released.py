"""The authors' checkpoints, and any other checkpoint of SimCLR: find, download, and map onto a model.

A restore is strict: every variable of the model is filled, and what is left out on either side is named with the
reason. The one thing left out by itself is the supervised head, when its classes or its input differ.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import math
import os
import re
from collections.abc import Mapping

import tensorflow as tf

from simclr_tf import catalog, checkpoint, formats
from simclr_tf.architecture import Architecture, architecture, differences, variables
from simclr_tf.catalog import Released, table, table_markdown, table_text
from simclr_tf.config import Config
from simclr_tf.errors import CheckpointError, ConfigError
from simclr_tf.location import FOLDER, locate
from simclr_tf.model import SimCLR, named_variables

__all__ = [
    "FOLDER", "Released", "Summary", "follow", "inspect", "load", "locate", "restore_into", "table", "table_markdown",
    "table_text",
]

log = logging.getLogger(__name__)

EVERYTHING = "?!global_step"  # the reference's default of --variable_schema, no regular expression
_HEAD = "head_supervised"
_PROJECTION = "head_contrastive"


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a restore did.

    source, format: of the checkpoint.
    restored, total: how many of the model's variables were filled.
    parameters: how many numbers that is.
    left_out: scope of the model's variables, or of weights in the checkpoint, that were passed over -> why.
    leftovers: why an entry of the checkpoint is no weight -> how many such entries there are.
    """

    source: str
    format: str
    restored: int
    total: int
    parameters: int
    left_out: dict[str, str]
    leftovers: dict[str, int]

    def __str__(self):
        parts = [f"{self.restored} of {self.total} variables", f"{self.parameters / 1e6:.1f} M parameters"]
        parts += [f"{scope} left out: {why}" for scope, why in self.left_out.items()]
        text = f"{self.source} ({self.format}): {', '.join(parts)}"
        unused = [f"{count} x {why}" for why, count in sorted(self.leftovers.items())]
        return f"{text}; other entries of the checkpoint: {', '.join(unused)}" if unused else text


def load(
    name_or_path: str | os.PathLike, num_classes: int | None = None, use_ema: bool = False, *, folder: str = FOLDER
) -> SimCLR:
    """A model with the weights of a checkpoint; its architecture is read off the checkpoint.

    Args:
      name_or_path: a released model (`simclrv2/pretrained/r50_1x_sk0`, see `table`), which is downloaded into `folder`
        unless it is there; or a path or URL, see `locate`.
      num_classes: of the supervised head. Where it differs from the checkpoint's the head is fresh; None keeps the
        checkpoint's head, if it has one.
      use_ema: take the moving average of the weights, where the checkpoint has one.
      folder: where released models are.

    Raises:
      CheckpointError: the checkpoint cannot be had, read, or is not SimCLR's.
    """
    arch, arrays = inspect(name_or_path, use_ema=use_ema, folder=folder)
    if num_classes is not None and num_classes != arch.num_classes:
        arch = dataclasses.replace(arch, num_classes=num_classes, ft_proj_selector=0)
    # What the checkpoint fills need not be drawn first; a fresh head must be.
    complete = arch.num_classes is None or not _head_unfit(variables(arch), arrays.shapes)
    model = SimCLR(**dataclasses.asdict(arch), initialize=not complete)
    log.info("%s", _restore(model, arrays, EVERYTHING, {}))
    return model


def inspect(
    name_or_path: str | os.PathLike, *, use_ema: bool = False, folder: str = FOLDER
) -> tuple[Architecture, formats.NamedArrays]:
    """The architecture of a checkpoint and its weights, not read yet. Arguments and errors as for `load`.

    The layer that the supervised head reads is that of the run, for our own checkpoints; of the paper, for the authors'
    (by their name in the path); 0 for others.
    """
    arrays = formats.open_checkpoint(locate(name_or_path, folder=folder), use_ema=use_ema)
    arch = architecture(arrays.shapes, arrays.source)
    selector = 0
    if tf.io.gfile.exists(f"{arrays.source}.json"):
        selector = checkpoint.Metadata.read(arrays.source).settings.get("ft_proj_selector", 0)
    elif released := catalog.find(os.fspath(name_or_path)):
        _check_is(released, arch, arrays.source)
        selector = released.ft_proj_selector
    elif released := catalog.find_in_path(arrays.source):
        selector = released.ft_proj_selector
    selected = dataclasses.replace(arch, ft_proj_selector=selector)
    if arch.num_classes is None or arch.proj_head_mode == "none" or variables(selected) != variables(arch):
        return arch, arrays
    return selected, arrays


def _check_is(released: Released, arch: Architecture, source: str) -> None:
    """Raises CheckpointError if the files found for a released model are another network's."""
    fields = ("depth", "width", "sk_ratio", "se_ratio", "cifar_stem")
    if any(getattr(arch, field) != getattr(released.architecture, field) for field in fields):
        raise CheckpointError(
            f"{source} is mixed up: it holds {arch}, but {released.name} is {released.architecture}. Delete the "
            "files to download them again."
        )


def restore_into(
    model: SimCLR,
    name_or_path: str | os.PathLike,
    *,
    use_ema: bool = False,
    schema: str = EVERYTHING,
    leave_out: Mapping[str, str] | None = None,
    folder: str = FOLDER,
) -> Summary:
    """Fills the variables of `model` from a checkpoint, one array in memory at a time.

    Args:
      model: its architecture must be the checkpoint's, as far as `schema` reaches.
      name_or_path, use_ema, folder: as for `load`.
      schema: regular expression (`re.match`) on TF1 names: the variables to restore; the others keep their values.
        `EVERYTHING` stands for all.
      leave_out: scope (`head_supervised`, `head_contrastive`) -> reason: not restored whatever the checkpoint holds.

    Raises:
      CheckpointError: the checkpoint cannot be had or read, or does not fit: names, both shapes and both
        architectures are given. The model is then as it was, unless the file's bytes turn out damaged.
    """
    arrays = formats.open_checkpoint(locate(name_or_path, folder=folder), use_ema=use_ema)
    return _restore(model, arrays, schema, dict(leave_out or {}))


def _restore(model: SimCLR, arrays: formats.NamedArrays, schema: str, left_out: dict[str, str]) -> Summary:
    targets = {item.name: item.variable for item in named_variables(model)}
    wanted = {name: tuple(variable.shape) for name, variable in targets.items()}
    if reason := _head_unfit(wanted, arrays.shapes):
        left_out.setdefault(_HEAD, reason)

    def selected(name):
        return _matches(schema, name) and name.split("/", 1)[0] not in left_out

    restored = {name: shape for name, shape in wanted.items() if selected(name)}
    offered = {name: shape for name, shape in arrays.shapes.items() if selected(name)}
    if problems := differences(restored, offered):
        raise CheckpointError(_misfit(wanted, arrays, problems))
    if not restored:
        raise CheckpointError(
            f"Nothing of {arrays.source} would be restored: --variable_schema={schema} matches none of its weights."
        )
    for scope, reason in _passed_over(schema, wanted, left_out).items():
        left_out[scope] = reason
    # The largest first: what a variable held before is freed when it is filled, and has room for the next array.
    for name in sorted(restored, key=lambda name: -math.prod(restored[name])):
        targets[name].assign(arrays.read(name))
    parameters = sum(math.prod(shape) for shape in restored.values())
    leftovers = dict(collections.Counter(arrays.leftovers.values()))
    return Summary(arrays.source, arrays.format, len(restored), len(wanted), parameters, left_out, leftovers)


def _matches(schema: str, name: str) -> bool:
    return schema == EVERYTHING or re.match(schema, name) is not None


def _head_unfit(wanted: dict, found: dict) -> str:
    """Why the supervised head cannot be taken from the checkpoint; empty if it can, or if neither side has one."""
    kernel = f"{_HEAD}/linear_layer/dense/kernel"
    ours, theirs = wanted.get(kernel), found.get(kernel)
    if ours is None:
        return "the model has none" if theirs else ""
    if theirs is None:
        return "the checkpoint has none"
    if ours[-1] != theirs[-1]:
        return f"{theirs[-1]} classes, data has {ours[-1]}"
    return f"its input has {theirs[0]} features, here {ours[0]}" if ours != theirs else ""


def _passed_over(schema: str, wanted: dict, left_out: dict[str, str]) -> dict[str, str]:
    """Scopes of the model some of whose variables `schema` does not match, with the reason."""
    names = [name for name in wanted if not _matches(schema, name)]
    scopes = collections.Counter(name.split("/", 1)[0] for name in names)
    return {
        scope: f"{count} variables not matched by --variable_schema={schema}"
        for scope, count in scopes.items() if scope not in left_out
    }


def _misfit(wanted: dict, arrays: formats.NamedArrays, problems: str) -> str:
    theirs, ours = architecture(arrays.shapes, arrays.source), architecture(wanted, "the model")
    text = f"{arrays.source} does not fit the model. The checkpoint is {theirs}; the model is {ours}. It {problems}."
    if theirs.proj_head_mode == "none" and ours.proj_head_mode != "none":
        text += (
            " The checkpoint has no projection head, as those of SimCLRv1: use --proj_head_mode=none, or leave the "
            "head out with --variable_schema='(?!global_step|head)'."
        )
    return text


# --- Flags that follow the checkpoint ----------------------------------------------------------------------------

_FLAGS = {  # flag -> field of Architecture, scope of the weights it decides on
    "resnet_depth": ("depth", "base_model"), "width_multiplier": ("width", "base_model"),
    "sk_ratio": ("sk_ratio", "base_model"), "se_ratio": ("se_ratio", "base_model"),
    "proj_head_mode": ("proj_head_mode", _PROJECTION), "num_proj_layers": ("num_proj_layers", _PROJECTION),
    "proj_out_dim": ("proj_out_dim", _PROJECTION),
}
FOLLOWED = tuple(_FLAGS)
_ANY_NAME = {"base_model": "base_model/conv2d/kernel", _PROJECTION: f"{_PROJECTION}/nl_0/dense/kernel"}


def follow(config: Config, arch: Architecture, source: str = "the checkpoint") -> Config:
    """`config` with the architecture of a checkpoint where the user did not choose one.

    A chosen setting (`config.given`) that would make other weights is an error; one that makes no difference to the
    weights stands. Parts that `config.variable_schema` does not restore are left alone.

    Raises:
      CheckpointError: chosen settings contradict the checkpoint; all are listed, with both values.
    """
    arch = dataclasses.replace(arch, num_classes=None, ft_proj_selector=0)
    changes, contradictions = {}, []
    for flag, (field, scope) in _FLAGS.items():
        ours, theirs = getattr(config, flag), getattr(arch, field)
        if ours == theirs or not _matches(config.variable_schema, _ANY_NAME[scope]):
            continue
        if flag not in config.given:
            changes[flag] = theirs
        elif variables(dataclasses.replace(arch, **{field: ours})) != variables(arch):
            contradictions.append(f"--{flag}={ours}, the checkpoint has {theirs}")
    if arch.cifar_stem != config.cifar_stem and _matches(config.variable_schema, _ANY_NAME["base_model"]):
        stem = "for images of up to 32 pixels" if arch.cifar_stem else "for images above 32 pixels"
        if "image_size" in config.given:
            contradictions.append(f"--image_size={config.image_size}, the checkpoint's stem is {stem}")
        else:
            changes["image_size"] = 32 if arch.cifar_stem else 224
    if contradictions:
        raise CheckpointError(
            f"{source} ({arch}) contradicts the flags: {'; '.join(contradictions)}. Drop these flags to follow the "
            "checkpoint."
        )
    if changes.get("proj_head_mode", config.proj_head_mode) == "none" and config.ft_proj_selector > 0:
        raise CheckpointError(
            f"{source} has no projection head (those of SimCLRv1 were released without), so "
            f"--ft_proj_selector={config.ft_proj_selector} cannot be served. Use --ft_proj_selector=0, or train a new "
            "projection head with --variable_schema='(?!global_step|head)'."
        )
    try:
        return dataclasses.replace(config, **changes)
    except ConfigError as error:
        raise CheckpointError(f"{source} ({arch}) does not fit the flags: {error}") from error
