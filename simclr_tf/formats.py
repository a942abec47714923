"""Reads the weights of a checkpoint as data, whichever program wrote it, under the authors' TF1 names.

Read are: the authors' TF1 checkpoints and TF1 hub modules, the reference's TF2 SavedModels and training checkpoints,
archives of any of these, and this project's own checkpoints. All are TensorFlow "tensor bundles" (an `.index` and
`.data-*` files) and differ in the keys alone. No graph is loaded, no function is run, nothing is unpickled.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import weakref
import zipfile

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import trackable_object_graph_pb2

from simclr_tf import archives
from simclr_tf.errors import CheckpointError
from simclr_tf.tf1_names import OBJECT_GRAPH, from_objects, from_tf1

_SHARD = re.compile(r"(.*)\.data-(\d{5})-of-(\d{5})")
_SUPPORTED = (
    "Supported are TF1 checkpoints and hub modules, TF2 SavedModels and training checkpoints of "
    "google-research/simclr, zip or tar archives of these, and this project's checkpoints"
)


class NamedArrays:
    """The model's weights in a checkpoint. Arrays are read one at a time, when asked for.

    format: what wrote it, in words.
    source: the checkpoint's prefix, or the archive it came from.
    shapes: TF1 name -> shape, of all that can be read.
    leftovers: key of every other entry -> why it is not a weight of the model.
    """

    def __init__(self, prefix: str, source: str, use_ema: bool):
        self.source = source
        self._reader, shapes = _open_bundle(prefix)
        if OBJECT_GRAPH in shapes:
            if use_ema:
                raise CheckpointError(f"{source} has no moving average of the weights (ema_model/). Leave out use_ema.")
            self.format, self._keys, self.leftovers = from_objects(shapes, self._full_names, source)
        else:
            self.format, self._keys, self.leftovers = from_tf1(shapes, source, use_ema)
            if tf.io.gfile.exists(os.path.join(os.path.dirname(prefix), "..", "tfhub_module.pb")):
                self.format = "TF1 hub module"
        if not self._keys:
            if any(key.startswith("_model/encoder/") for key in shapes):
                raise CheckpointError(
                    f"{source} is a SavedModel that simclr_tf exported, for use elsewhere: give the run's folder or "
                    "checkpoint instead."
                )
            some = ", ".join(sorted(shapes)[:5]) or "nothing"
            raise CheckpointError(f"{source} is a checkpoint, but not of SimCLR: it holds {some}. {_SUPPORTED}.")
        self.shapes = {name: tuple(shapes[key]) for name, key in self._keys.items()}

    def read(self, name: str) -> np.ndarray:
        """The float32 array of the weight with TF1 name `name`.

        Raises:
          CheckpointError: its bytes are damaged, or it is no array of finite floating-point numbers.
        """
        try:
            value = self._reader.get_tensor(self._keys[name])
        except (tf.errors.OpError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{self.source} is damaged at {self._keys[name]}: {_first_line(error)}") from error
        if not (isinstance(value, np.ndarray) and value.dtype.name in ("float16", "bfloat16", "float32", "float64")):
            raise CheckpointError(f"{self.source}: {self._keys[name]} is not a floating-point array.")
        if value.size and not (np.isfinite(value.min()) and np.isfinite(value.max())):
            raise CheckpointError(f"{self.source}: {self._keys[name]} holds infinite numbers or none (nan).")
        return value.astype(np.float32, copy=False)

    def _full_names(self) -> dict[str, str]:
        """Checkpoint key -> the name its variable had, from the description of the objects (parsed, not loaded)."""
        graph = trackable_object_graph_pb2.TrackableObjectGraph()
        try:
            graph.ParseFromString(self._reader.get_tensor(OBJECT_GRAPH))
        except (DecodeError, TypeError, tf.errors.OpError, RuntimeError) as error:
            raise CheckpointError(f"{self.source} is damaged at {OBJECT_GRAPH}: {_first_line(error)}") from error
        return {a.checkpoint_key: a.full_name for node in graph.nodes for a in node.attributes}


def open_checkpoint(path: str | os.PathLike, *, use_ema: bool = False) -> NamedArrays:
    """Opens the checkpoint at `path` and names its weights.

    Args:
      path: a prefix (`.../model.ckpt-250228`, also with `.index` behind it), a folder that holds one, a SavedModel's
        or hub module's folder, or an archive; local, or on storage that TensorFlow reads (`gs://`).
      use_ema: take the moving average of the weights (`ema_model/...`) where there is one. The supervised head has
        none and is taken as it is.

    Raises:
      CheckpointError: nothing is there, it is damaged, incomplete or of a kind that is not read.
    """
    path = os.fspath(path)
    try:
        return _open(path, use_ema)
    except (tf.errors.OpError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {_first_line(error)}") from error


def _open(path: str, use_ema: bool) -> NamedArrays:
    is_file = tf.io.gfile.exists(path) and not tf.io.gfile.isdir(path)
    if not is_file or _prefix_of_file(path) or tf.io.gfile.exists(path + ".index"):
        prefix = find_prefix(path)
        return NamedArrays(prefix, prefix, use_ema)
    if refusal := _why_refused(path):
        raise CheckpointError(f"{path} is not read: {refusal}. {_SUPPORTED}.")
    temporary = tempfile.mkdtemp(prefix="simclr_tf_")
    try:
        folder = os.path.join(temporary, "unpacked")
        archives.unpack(path, folder)
        arrays = NamedArrays(find_prefix(folder, shown=path), path, use_ema)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    weakref.finalize(arrays, shutil.rmtree, temporary, ignore_errors=True)  # after the last array is read
    return arrays


# --- Where the files are -----------------------------------------------------------------------------------------


def find_prefix(path: str, shown: str | None = None) -> str:
    """The prefix of the checkpoint that `path` (a prefix, one of its files, or a folder) means.

    Raises:
      CheckpointError: there is none, or several and nothing says which. `shown` replaces `path` in the message.
    """
    shown = shown or path
    if tf.io.gfile.exists(path + ".index"):
        return path
    if prefix := _prefix_of_file(path):
        if not tf.io.gfile.exists(prefix + ".index"):
            raise CheckpointError(f"{shown} is incomplete: {os.path.basename(prefix)}.index is missing beside it.")
        return prefix
    if tf.io.gfile.isdir(path):
        if found := _prefix_in_folder(path, shown):
            return found
        inside = ", ".join(sorted(tf.io.gfile.listdir(path))[:8]) or "nothing"
        raise CheckpointError(f"{shown} holds no checkpoint (a pair of .index and .data-* files). It holds: {inside}.")
    if tf.io.gfile.glob(_escape(path) + ".data-*"):
        raise CheckpointError(f"{shown} is incomplete: {os.path.basename(path)}.index is missing.")
    parent = os.path.dirname(path) or "."
    there = _prefixes(parent) if tf.io.gfile.isdir(parent) else []
    hint = f" {parent} has: {', '.join(os.path.basename(p) for p in there[:8])}." if there else ""
    raise CheckpointError(f"{shown} does not exist.{hint}")


def _prefix_of_file(path: str) -> str | None:
    """The prefix that a checkpoint's file belongs to, by its name alone."""
    for suffix in (".index", ".meta"):
        if path.endswith(suffix):
            return path.removesuffix(suffix)
    match = _SHARD.fullmatch(path)
    return match[1] if match else None


def _prefixes(folder: str) -> list[str]:
    return sorted(p.removesuffix(".index") for p in tf.io.gfile.glob(os.path.join(_escape(folder), "*.index")))


def _escape(path: str) -> str:
    """`path` for a glob pattern; its own special characters lose their meaning."""
    return re.sub(r"([\\*?\[\]])", r"\\\1", path)


def _prefix_in_folder(folder: str, shown: str) -> str | None:
    prefixes = _prefixes(folder)
    state = tf.train.get_checkpoint_state(folder) if prefixes else None
    if state and state.model_checkpoint_path:
        # A folder that was moved still names its old place.
        latest = os.path.join(folder, os.path.basename(state.model_checkpoint_path))
        if latest in prefixes:
            return latest
    if len(prefixes) == 1:
        return prefixes[0]
    steps = {int(m[1]): p for p in prefixes if (m := re.search(r"-(\d+)$", p))}
    if len(prefixes) > 1:
        if not state and len(steps) == len(prefixes):
            return steps[max(steps)]
        names = ", ".join(os.path.basename(p) for p in prefixes)
        says = f"its `checkpoint` file names {os.path.basename(state.model_checkpoint_path)}, which is not there" if (
            state) else "nothing says which one is meant"
        raise CheckpointError(f"{shown} holds several checkpoints ({names}) and {says}: give one's full path.")
    if tf.io.gfile.exists(os.path.join(folder, "variables", "variables.index")):
        return os.path.join(folder, "variables", "variables")
    if any(tf.io.gfile.exists(os.path.join(folder, name)) for name in ("saved_model.pb", "tfhub_module.pb")):
        raise CheckpointError(f"{shown} is incomplete: a SavedModel without its variables/variables.index.")
    # A SavedModel or hub module of a run lies in saved_model/<step> or hub/<step>; an archive has one folder.
    folders = [d.rstrip("/") for d in tf.io.gfile.listdir(folder) if tf.io.gfile.isdir(os.path.join(folder, d))]
    numbered = sorted((int(d), d) for d in folders if d.isdigit())
    inner = [d for d in ("saved_model", "hub") if d in folders] or [d for _, d in numbered[-1:]]
    inner = inner or (folders if len(folders) == 1 else [])
    return _prefix_in_folder(os.path.join(folder, inner[0]), shown) if inner else None


def _why_refused(path: str) -> str:
    """Why the file at `path`, no part of a tensor bundle, is not read; empty for an archive of a checkpoint."""
    if os.path.isfile(path) and archives.is_archive(path):
        return _why_not_archive(path)
    with tf.io.gfile.GFile(path, "rb") as file:
        head = file.read(10)
    if not head:
        return "it is empty"
    if head.startswith(b"\x93NUMPY"):
        return "it is a NumPy file, which may hold pickled objects that run code"
    if head[0] == 0x80 and 2 <= head[1] <= 5:
        return "it is a pickle, which can run code when it is read"
    if head.startswith(b"\x89HDF"):
        return "it is an HDF5 file"
    if head[8:9] == b"{":
        return "it is a safetensors file"
    return "its content is none of a checkpoint's"


def _why_not_archive(path: str) -> str:
    """Why an archive is not read that is some other program's model file; empty for one of a checkpoint."""
    if not zipfile.is_zipfile(path):
        return ""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if any(name.endswith(".npy") for name in names):
                return "it is a NumPy archive (.npz), which may hold pickled objects that run code"
            if any(name.endswith("data.pkl") for name in names):
                return "it is a PyTorch file, a pickle, which can run code when it is read"
            if "config.json" in names:
                with archive.open("config.json") as file:
                    has_lambda = b'"Lambda"' in file.read(1 << 24)
                return "it is a Keras model file" + ", whose Lambda layer runs code when it is opened" * has_lambda
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}.") from error
    return ""


# --- The files themselves ----------------------------------------------------------------------------------------


def _open_bundle(prefix: str):
    """A reader of the tensor bundle at `prefix`, and key -> shape; the files are complete and large enough."""
    shards = {}
    total = 0
    for file in tf.io.gfile.glob(_escape(prefix) + ".data-*"):
        if match := _SHARD.fullmatch(file):
            shards.setdefault(int(match[3]), set()).add(int(match[2]))
            total += tf.io.gfile.stat(file).length
    if tf.io.gfile.stat(prefix + ".index").length == 0:
        raise CheckpointError(f"{prefix}.index is empty.")
    if len(shards) > 1:
        counts = " and of ".join(map(str, sorted(shards)))
        raise CheckpointError(f"{prefix} is mixed up: it has data files of {counts} shards.")
    count, present = next(iter(shards.items()), (1, set()))
    absent = [f"{os.path.basename(prefix)}.data-{k:05d}-of-{count:05d}" for k in range(count) if k not in present]
    if absent:
        raise CheckpointError(f"{prefix} is incomplete: missing beside its index: {', '.join(absent)}.")
    try:
        reader = tf.compat.v1.train.NewCheckpointReader(prefix)  # takes a prefix, never a folder
        shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    except (tf.errors.OpError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{prefix}.index is damaged: {_first_line(error)}") from error
    # Checked here, so that no array is allocated that the files cannot fill. Python's integers do not overflow.
    needed = 0
    for key, shape in shapes.items():
        elements = 1
        for dim in shape:
            elements *= dim
        needed += elements * max(1, dtypes[key].size)
    if total < needed:
        raise CheckpointError(
            f"{prefix} is truncated: its data files hold {total} bytes, its index describes at least {needed}."
        )
    return reader, shapes


def _first_line(error: Exception) -> str:
    text = getattr(error, "message", None) or str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0]
