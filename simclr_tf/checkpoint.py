"""Saving and resuming a run: `ckpt-<step>` in TensorFlow's object format, complete or not there at all.

A checkpoint is three kinds of files: `ckpt-<step>.data-*` (values), `ckpt-<step>.json` (sizes and SHA-256 of the
others, settings, class names) and `ckpt-<step>.index`. They are written under a temporary name, flushed to disk, and
renamed in that order: what has an index is complete. They are deleted in the opposite order for the same reason.
Variables are stored under their TF1 names (`model/base_model/conv2d/kernel/...`), so a checkpoint does not depend on
how the Python objects hang together.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import logging
import os
import re
import shutil

import keras
import numpy as np
import tensorflow as tf

from simclr_tf.config import Config, flag_fields
from simclr_tf.errors import CheckpointError, NonFiniteError, StorageError
from simclr_tf.model import SimCLR, named_variables

log = logging.getLogger(__name__)

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
SPARE_BYTES = 4 << 20  # asked for beyond a checkpoint's own size: summaries, the graph of its objects
_INDEX = re.compile(r"ckpt-(\d+)\.index")
_PART = re.compile(r"(ckpt-\d+)\.(?:index|json|data-\d+-of-\d+)")
_SAVING = re.compile(r"\.saving-\d+")


# --- What is saved -------------------------------------------------------------------------------------------------


def training_state(model: SimCLR, optimizer: keras.optimizers.Optimizer) -> dict[str, keras.Variable]:
    """All variables of a training by their names in a checkpoint."""
    named = named_variables(model)
    state = {f"model/{item.name}": item.variable for item in named}
    state["optimizer/iterations"] = optimizer.iterations
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        state["optimizer/loss_scale"], state["optimizer/finite_steps"] = optimizer.dynamic_scale, optimizer.step_counter
        optimizer = optimizer.inner_optimizer
    tf1_name = {id(item.variable): item.name for item in named}
    for slot in ("momentums", "_momentums", "_velocities"):
        if not hasattr(optimizer, slot):
            continue
        for variable, of in zip(getattr(optimizer, slot), optimizer._trainable_variables, strict=True):
            state[f"optimizer/{slot.strip('_')}/{tf1_name[id(of)]}"] = variable
    return state


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What a checkpoint says of itself besides its variables."""

    step: int
    settings: dict
    class_names: tuple[str, ...] | None
    files: dict[str, dict]

    @classmethod
    def read(cls, prefix: str) -> Metadata:
        """The metadata of the checkpoint `prefix`.

        Raises:
          CheckpointError: it is missing or damaged.
        """
        try:
            with tf.io.gfile.GFile(f"{prefix}.json") as file:
                raw = json.load(file)
            names = raw["class_names"]
            return cls(int(raw["step"]), dict(raw["settings"]), None if names is None else tuple(names),
                       dict(raw["files"]))
        except (tf.errors.OpError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{prefix}.json is missing or damaged: {error}") from error


# --- Saving ----------------------------------------------------------------------------------------------------------


def save(model_dir: str, step: int, state: dict, config: Config, class_names: tuple[str, ...] | None) -> str:
    """Writes `ckpt-<step>` and returns its prefix. A crash at any moment leaves it complete or absent.

    Raises:
      StorageError: the disk is full or the folder cannot be written.
      NonFiniteError: a variable holds infinities or NaN: such a checkpoint would drive out the good ones.
    """
    check_finite(model_dir, step, state)
    check_space(model_dir, state)
    folder = os.path.join(model_dir, f".saving-{step}")
    name = f"ckpt-{step}"
    try:
        if tf.io.gfile.exists(folder):
            tf.io.gfile.rmtree(folder)
        tf.io.gfile.makedirs(folder)
        _tree(state).write(os.path.join(folder, name))
        written = sorted(tf.io.gfile.listdir(folder))
        files = {f: {"size": tf.io.gfile.stat(os.path.join(folder, f)).length,
                     "sha256": _sha256(os.path.join(folder, f))} for f in written}
        record = dict(step=step, class_names=class_names, settings=_settings(config), files=files)
        with tf.io.gfile.GFile(os.path.join(folder, f"{name}.json"), "w") as file:
            json.dump(record, file, indent=1)
        # Data first, index last: also on a store whose renames are copies the index appears only when all is there.
        for f in sorted([*written, f"{name}.json"], key=lambda f: (f.endswith(".index"), f)):
            _flush(os.path.join(folder, f))
            if f.endswith(".index"):
                _flush(model_dir)  # the other names are on the disk before this one is
            tf.io.gfile.rename(os.path.join(folder, f), os.path.join(model_dir, f), overwrite=True)
        _flush(model_dir)
        tf.io.gfile.rmtree(folder)
    except (OSError, tf.errors.OpError) as error:
        raise storage_error(error, f"checkpoint {name} in {model_dir}") from error
    _point_to(model_dir)
    return os.path.join(model_dir, name)


def prune(model_dir: str, keep: int) -> None:
    """Deletes all but the newest `keep` checkpoints and the best one (see `best`); 0 keeps all.

    What a killed process left half-written or half-deleted goes too.
    """
    found = checkpoints(model_dir)
    doomed = {os.path.basename(p) for p in found[:-keep] if p != best(model_dir)} if keep else set()
    alive = {os.path.basename(p) for p in found} - doomed
    try:
        files = tf.io.gfile.listdir(model_dir)
        for name in sorted(files, key=lambda f: not f.endswith(".index")):  # indices first
            part = _PART.fullmatch(name)
            if part and part[1] not in alive:
                tf.io.gfile.remove(os.path.join(model_dir, name))
            elif _SAVING.fullmatch(name.rstrip("/")):
                tf.io.gfile.rmtree(os.path.join(model_dir, name.rstrip("/")))
    except (OSError, tf.errors.OpError) as error:
        raise storage_error(error, f"to {model_dir} (deleting old checkpoints)") from error
    _point_to(model_dir)


def check_finite(model_dir: str, step: int, state: dict) -> None:
    """Raises NonFiniteError if a variable of `state` holds infinities or NaN."""
    bad = [name for name, variable in state.items() if not np.isfinite(variable.numpy()).all()]
    if bad:
        raise NonFiniteError(
            f"After step {step} {len(bad)} of {len(state)} variables hold infinities or NaN ({', '.join(bad[:3])}), so "
            f"that no checkpoint was written. {newest_text(model_dir)} Lower --learning_rate."
        )


def check_space(model_dir: str, state: dict) -> None:
    """Raises StorageError unless the disk has room for another checkpoint. Remote stores are not asked."""
    if "://" in model_dir:
        return
    needed = round(1.01 * sum(4 * int(np.prod(v.shape)) for v in state.values())) + SPARE_BYTES
    try:
        free = shutil.disk_usage(model_dir).free
    except OSError:
        return  # writing will say what is wrong
    if free < needed:
        raise StorageError(
            f"A checkpoint needs {needed / 2**20:,.0f} MiB, and the storage of {model_dir} has {free / 2**20:,.0f} MiB "
            "left: it is full. Checkpoints written before are intact; make room, or lower --keep_checkpoint_max, and "
            "give the same command again."
        )


def newest_text(model_dir: str) -> str:
    """A sentence that names the checkpoint to go back to."""
    found = checkpoints(model_dir)
    return f"The last good checkpoint is {found[-1]}." if found else "There is no checkpoint before it."


def storage_error(error: Exception, what: str) -> StorageError:
    """`error`, which came while writing `what`, as a user should read it."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
    reason = "the storage is full" if full else str(error).splitlines()[0]
    return StorageError(f"Could not write {what}: {reason}. Checkpoints written before it are intact.")


# --- Finding and restoring -------------------------------------------------------------------------------------------


def checkpoints(model_dir: str) -> list[str]:
    """Prefixes of the complete checkpoints in `model_dir`, oldest first. The `checkpoint` file is not trusted."""
    if not tf.io.gfile.isdir(model_dir):
        return []
    steps = sorted(int(m[1]) for f in tf.io.gfile.listdir(model_dir) if (m := _INDEX.fullmatch(f)))
    return [os.path.join(model_dir, f"ckpt-{step}") for step in steps]


def best(model_dir: str) -> str | None:
    """Prefix of the checkpoint with the highest top-1 accuracy of those that were evaluated; of equals the newest."""
    scores = {}
    for prefix in checkpoints(model_dir):
        try:
            with tf.io.gfile.GFile(os.path.join(model_dir, f"result_{step_of(prefix)}.json")) as file:
                scores[prefix] = float(json.load(file)["eval/label_top_1_accuracy"])
        except (tf.errors.OpError, ValueError, KeyError, TypeError):
            continue  # not evaluated
    return max(reversed(scores), key=scores.get) if scores else None


def step_of(prefix: str) -> int:
    return int(os.path.basename(prefix).removeprefix("ckpt-"))


def latest(model_dir: str) -> str | None:
    """Prefix of the newest undamaged checkpoint, or None if there is none at all.

    Raises:
      CheckpointError: there are checkpoints, but each one is damaged: starting at step 0 would lose the run.
    """
    while True:
        found = checkpoints(model_dir)
        reasons = []
        for prefix in reversed(found):
            try:
                verify(prefix)
                return prefix
            except CheckpointError as error:
                if not tf.io.gfile.exists(f"{prefix}.index"):
                    break  # the training that is going on has deleted it meanwhile
                log.warning("WARNING: %s; trying the checkpoint before it", error)
                reasons.append(str(error))
        if checkpoints(model_dir) == found:
            break
    if found:
        raise CheckpointError(
            f"Every checkpoint in {model_dir} is damaged: {'; '.join(reasons)}. Restore one from a backup, or start "
            "again with another --model_dir."
        )
    return None


def verify(prefix: str) -> Metadata:
    """Checks the checkpoint's files against its integrity record, which it returns.

    Raises:
      CheckpointError: a file is missing, has another size, or another SHA-256.
    """
    metadata = Metadata.read(prefix)
    for name, expected in metadata.files.items():
        path = os.path.join(os.path.dirname(prefix), os.path.basename(name))
        try:
            size = tf.io.gfile.stat(path).length
            if size != expected["size"]:
                raise CheckpointError(f"{path} is damaged: {size} bytes instead of {expected['size']}")
            if _sha256(path) != expected["sha256"]:
                raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one recorded when it was written")
        except tf.errors.NotFoundError:
            raise CheckpointError(f"{path} is missing") from None
        except (tf.errors.OpError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
    return metadata


def restore(prefix: str, state: dict) -> None:
    """Fills `state` (see `training_state`) from the checkpoint, all of it.

    Raises:
      CheckpointError: a variable is missing, superfluous, or of another shape; the message lists them.
    """
    try:
        reader = tf.train.load_checkpoint(prefix)
        stored = {k.removesuffix(VALUE): tuple(s) for k, s in reader.get_variable_to_shape_map().items()
                  if k.endswith(VALUE)}
        wanted = {name: tuple(v.shape) for name, v in state.items()}
        problems = [f"{n} {s} is missing" for n, s in wanted.items() if n not in stored]
        problems += [f"{n} has shape {stored[n]}, not {s}" for n, s in wanted.items() if stored.get(n, s) != s]
        problems += [f"{n} {s} has no place" for n, s in stored.items() if n not in wanted]
        if problems:
            more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
            raise CheckpointError(f"{prefix} does not fit this run: {'; '.join(problems[:8])}{more}")
        for name, variable in state.items():
            variable.assign(reader.get_tensor(name + VALUE))
    except (tf.errors.OpError, ValueError) as error:
        raise CheckpointError(f"{prefix} cannot be read: {error}") from error


def check_same_settings(config: Config, metadata: Metadata, follows: tuple[str, ...] = ()) -> None:
    """Raises CheckpointError if the run was started with other settings that matter, field by field.

    Args:
      follows: settings that the checkpoint supplies where they are not given.
    """
    now, before = _settings(config), metadata.settings
    allowed = config.allowed_changes
    changed = {
        f.name: f"--{f.name}={now[f.name]} (was {before[f.name]})"
        for f in flag_fields()
        if not f.metadata["resumable"] and f.name in before and before[f.name] != now[f.name]
        and (f.name in config.given or f.name not in follows)
    }
    for name in changed.keys() & allowed:
        log.warning("WARNING: going on with %s, as --allow_changed_settings says", changed.pop(name))
    if changed:
        raise CheckpointError(
            f"The run in {config.model_dir} was started with other settings: {', '.join(changed.values())}. Use the "
            "same, or another --model_dir; to go on all the same, add "
            f"--allow_changed_settings={','.join([*changed, *sorted(allowed)])}."
        )


# --- Details ---------------------------------------------------------------------------------------------------------


def _settings(config: Config) -> dict:
    return {f.name: getattr(config, f.name) for f in flag_fields()}


def _tree(state: dict) -> tf.train.Checkpoint:
    """Nested nodes whose paths are the names in `state`, so that the names are what the file format stores."""
    nested: dict = {}
    for name, variable in state.items():
        *parents, leaf = name.split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        value = variable.value if isinstance(variable, keras.Variable) else variable
        # Another backend's array is written through a TensorFlow variable on the host.
        node[leaf] = value if isinstance(value, tf.Variable) else tf.Variable(np.asarray(value))

    def build(node):
        return tf.train.Checkpoint(**{k: build(v) if isinstance(v, dict) else v for k, v in node.items()})

    return build(nested)


def _point_to(model_dir: str) -> None:
    """Writes the `checkpoint` file for TensorFlow's own tools."""
    found = checkpoints(model_dir)
    if found:
        names = [os.path.basename(p) for p in found]
        tf.compat.v1.train.update_checkpoint_state(model_dir, names[-1], names)


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with tf.io.gfile.GFile(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def _flush(path: str) -> None:
    """Waits until a local file or folder has reached the disk; remote stores do so when a file is closed."""
    if "://" in path:
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
