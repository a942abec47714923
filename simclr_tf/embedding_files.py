"""`--mode=embed`: the embeddings of a split as files, for work elsewhere.

Rows are written as they are computed, so that a split need not fit memory. The files appear when all is done.
"""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import math
import os
import shutil
import tempfile

import numpy as np
import tensorflow as tf

from simclr_tf import checkpoint, data, evaluation, neighbours, restore
from simclr_tf.config import Config
from simclr_tf.embedding import Embedder, Embeddings
from simclr_tf.errors import CheckpointError, ConfigError, DataError
from simclr_tf.sources import Source

log = logging.getLogger(__name__)

VECTORS, LABELS, EXAMPLES, PARQUET = "embeddings.npy", "labels.npy", "examples.csv", "embeddings.parquet"
NEIGHBOURS, DESCRIPTION, PROJECTOR = "neighbours.csv", "embeddings.json", "projector"
_TEXT = dict(newline="", encoding="utf-8", errors="surrogateescape")  # paths need not be UTF-8
PICTURE_SIZE = 48  # of the projector's thumbnails: 100 x 100 of them fit the 8192 pixels it allows


def write(config: Config) -> dict:
    """Embeds `config.eval_split` with `config.checkpoint`, or with the run in model_dir, and writes into model_dir:

      embeddings.npy   float32 [n, d], the rows in the split's order
      labels.npy       int32 [n], -1 unknown
      examples.csv     row, id, label, class of each
      embeddings.json  what they are: endpoint, checkpoint, data, classes
      neighbours.csv   the nearest neighbours of the first images, by cosine similarity
      projector/       a folder for TensorBoard: tensorboard --logdir=<model_dir>/projector
      embeddings.parquet, with --embed_parquet: id, label, class, embedding

    With `--eval_name` the names end in it (embeddings_<eval_name>.npy).

    Returns:
      The contents of embeddings.json.

    Raises:
      ConfigError: the network has no such endpoint, or pyarrow is missing.
      CheckpointError, DataError, StorageError: no checkpoint, no data, no room.
    """
    path = config.checkpoint or checkpoint.latest(config.model_dir)
    if path is None:
        raise CheckpointError(f"No checkpoint in {config.model_dir}. Train first, or name one with --checkpoint.")
    if config.embed_parquet:
        _pyarrow()
    source = data.open_source(config, config.eval_split)
    log.info("Data: %s", source.describe())
    model, config, strategy = evaluation.load(config, path)
    own = restore.own_metadata(path)
    pictures = PICTURE_SIZE if config.projector_images else 0
    description = {
        "endpoint": config.endpoint, "checkpoint": path, "step": own.step if own else None, "dataset": config.dataset,
        "split": config.eval_split, "image_size": config.image_size,
        "class_names": None if source.class_names is None else list(source.class_names),
    }
    try:
        with _folder(config) as folder:
            with _Writer(folder, source, config) as writer:
                for number, part in enumerate(
                    Embedder(model, config, strategy, config.endpoint, pictures).of_source(source), 1
                ):
                    writer.add(part)
                    if number % 100 == 0:
                        log.info("%d of %d", number * config.eval_batch_size, source.num_examples)
                description |= dict(zip(("examples", "dimensions"), writer.finish(), strict=True))
            with open(os.path.join(folder, DESCRIPTION), "w", encoding="utf-8") as file:
                json.dump(description, file, indent=1)
            if config.embed_neighbours:
                _write_neighbours(folder, source, config)
    except (OSError, tf.errors.OpError) as error:
        raise checkpoint.storage_error(error, f"embeddings in {config.model_dir}") from error
    log.info("%d vectors of %d numbers in %s", description["examples"], description["dimensions"],
             os.path.join(config.model_dir, named(VECTORS, config)))
    return description


def read(model_dir: str, eval_name: str | None = None) -> tuple[np.ndarray, np.ndarray, dict]:
    """The vectors (a memory map, float32 [n, d]), labels and description that `write` left in a local folder."""
    suffix = Config(eval_name=eval_name)
    vectors, labels = (os.path.join(model_dir, named(name, suffix)) for name in (VECTORS, LABELS))
    with open(os.path.join(model_dir, named(DESCRIPTION, suffix)), encoding="utf-8") as file:
        return np.load(vectors, mmap_mode="r"), np.load(labels), json.load(file)


def named(name: str, config: Config) -> str:
    """`name` with `config.eval_name` before its ending."""
    stem, ending = os.path.splitext(name)
    return f"{stem}_{config.eval_name}{ending}" if config.eval_name else name


@contextlib.contextmanager
def _folder(config: Config):
    """A local folder whose files go to model_dir once they are complete."""
    remote = "://" in config.model_dir
    if not remote:
        os.makedirs(config.model_dir, exist_ok=True)
    folder = tempfile.mkdtemp(prefix=".embedding-", dir=None if remote else config.model_dir)
    try:
        yield folder
        for below, _, files in os.walk(folder):
            part, _, rest = os.path.relpath(below, folder).partition(os.sep)
            inner = os.path.join(named(part, config), rest) if part != "." else ""
            target = os.path.join(config.model_dir, inner)
            tf.io.gfile.makedirs(target)
            for file in files:
                name = file if inner else named(file, config)
                if remote:
                    tf.io.gfile.copy(os.path.join(below, file), os.path.join(target, name), overwrite=True)
                else:
                    os.replace(os.path.join(below, file), os.path.join(target, name))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Writer:
    """Appends rows to all the files of a folder. `finish` completes them; leaving the context closes them anyhow."""

    def __init__(self, folder: str, source: Source, config: Config):
        self._folder, self._source, self._config = folder, source, config
        self._rows = self._dimensions = 0
        self._labels: list[np.ndarray] = []
        self._open = contextlib.ExitStack()
        self._vectors = self._open.enter_context(open(os.path.join(folder, VECTORS), "wb"))
        self._examples = self._open.enter_context(open(os.path.join(folder, EXAMPLES), "w", **_TEXT))
        self._table = csv.writer(self._examples, lineterminator="\n")
        self._table.writerow(["row", "id", "label", "class"])
        self._parquet = None
        self._projector = _Projector(folder, config.projector_images) if config.projector_images else None

    def add(self, part: Embeddings) -> None:
        if not len(part):
            return
        if not self._rows:
            self._dimensions = part.vectors.shape[1]
            self._header(self._source.num_examples)
            if self._config.embed_parquet:
                self._parquet = _Parquet(os.path.join(self._folder, PARQUET), self._dimensions)
                self._open.callback(self._parquet.close)
        ids = self._source.ids(part.index)
        names = [self._class(label) for label in part.labels]
        self._vectors.write(np.ascontiguousarray(part.vectors, "<f4").tobytes())
        self._labels.append(part.labels)
        self._table.writerows(zip(range(self._rows, self._rows + len(part)), ids, part.labels, names, strict=True))
        if self._parquet:
            self._parquet.add(ids, part.labels, names, part.vectors)
        if self._projector:
            self._projector.add(ids, names, part)
        self._rows += len(part)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._open.close()

    def finish(self) -> tuple[int, int]:
        """Completes the files; returns the shape of the vectors."""
        if not self._rows:
            raise DataError(f"{self._source.name}: not one image of split {self._source.split} can be read.")
        self._vectors.seek(0)
        self._header(self._rows)  # unreadable images have no row
        np.save(os.path.join(self._folder, LABELS), np.concatenate(self._labels).astype(np.int32))
        if self._projector:
            self._projector.write()
        return self._rows, self._dimensions

    def _class(self, label: int) -> str:
        return self._source.class_names[label] if self._source.class_names is not None and label >= 0 else ""

    def _header(self, rows: int) -> None:
        """The header of an .npy file; numpy pads it, so that another number of rows has the same length."""
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, self._dimensions)}
        np.lib.format.write_array_header_1_0(self._vectors, header)


class _Parquet:
    """One table, a row group per batch."""

    def __init__(self, path: str, dimensions: int):
        self._arrow, parquet = _pyarrow()
        self._schema = self._arrow.schema({
            "id": self._arrow.string(), "label": self._arrow.int32(), "class": self._arrow.string(),
            "embedding": self._arrow.list_(self._arrow.float32(), dimensions),
        })
        self._file = parquet.ParquetWriter(path, self._schema)

    def add(self, ids, labels, names, vectors) -> None:
        flat = self._arrow.array(vectors.ravel(), self._arrow.float32())
        column = self._arrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        ids = [name.encode(errors="replace").decode() for name in ids]  # paths need not be UTF-8, Parquet's texts must
        self._file.write_table(self._arrow.table([ids, labels, names, column], self._schema))

    def close(self) -> None:
        self._file.close()


def _pyarrow():
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise ConfigError("--embed_parquet needs pyarrow. Run: pip install pyarrow.") from error
    return pyarrow, parquet


class _Projector:
    """The first images as TensorBoard's projector wants them: tensors, metadata, a sheet of thumbnails."""

    def __init__(self, folder: str, limit: int):
        self._folder, self._limit = os.path.join(folder, PROJECTOR), limit
        os.makedirs(self._folder)
        self._vectors, self._pictures, self._rows = [], [], []

    def add(self, ids, names, part: Embeddings) -> None:
        kept = min(self._limit - len(self._rows), len(part))
        if kept > 0:
            self._vectors.append(part.vectors[:kept])
            self._pictures.append(part.pictures[:kept])
            self._rows += zip(ids[:kept], names[:kept], strict=True)

    def write(self) -> None:
        from PIL import Image

        vectors, pictures = np.concatenate(self._vectors), np.concatenate(self._pictures)
        # Text, because TensorBoard takes a binary file that happens to be UTF-8 for it, and
        # projector.tensorflow.org reads nothing else.
        np.savetxt(os.path.join(self._folder, "tensors.tsv"), vectors, fmt="%.6g", delimiter="\t")
        with open(os.path.join(self._folder, "metadata.tsv"), "w", encoding="utf-8", errors="replace") as file:
            file.write("class\tid\n" + "".join(f"{_cell(name)}\t{_cell(id)}\n" for id, name in self._rows))
        Image.fromarray(sheet(pictures)).save(os.path.join(self._folder, "sprite.png"))
        text = (
            'embeddings {\n  tensor_name: "embeddings"\n  tensor_path: "tensors.tsv"\n'
            f"  tensor_shape: {vectors.shape[0]}\n  tensor_shape: {vectors.shape[1]}\n"
            '  metadata_path: "metadata.tsv"\n  sprite {\n    image_path: "sprite.png"\n'
            f"    single_image_dim: {PICTURE_SIZE}\n    single_image_dim: {PICTURE_SIZE}\n  }}\n}}\n"
        )
        with open(os.path.join(self._folder, "projector_config.pbtxt"), "w") as file:
            file.write(text)


def _cell(text: str) -> str:
    """A text without what separates cells and rows; one that is not empty, which the projector would skip."""
    return " ".join(str(text).split()) or "-"


def sheet(pictures: np.ndarray) -> np.ndarray:
    """[n, T, T, 3] in rows of a square sheet, uint8 [s * T, s * T, 3]; the rest is black."""
    n, size = pictures.shape[:2]
    side = math.ceil(math.sqrt(n))
    cells = np.zeros([side * side, size, size, 3], np.uint8)
    cells[:n] = pictures
    return cells.reshape(side, side, size, size, 3).swapaxes(1, 2).reshape(side * size, side * size, 3)


def _write_neighbours(folder: str, source: Source, config: Config) -> None:
    vectors, labels = np.load(os.path.join(folder, VECTORS), mmap_mode="r"), np.load(os.path.join(folder, LABELS))
    with open(os.path.join(folder, EXAMPLES), **_TEXT) as file:
        table = list(csv.reader(file))[1:] if len(labels) <= 1_000_000 else None
    own = np.arange(min(config.embed_queries, len(vectors)))
    rows, similarities = neighbours.nearest(vectors[: len(own)], vectors, config.embed_neighbours, own=own)
    with open(os.path.join(folder, NEIGHBOURS), "w", **_TEXT) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["row", "rank", "neighbour", "similarity", "id", "class", "neighbour_id", "neighbour_class"])
        for row in own:
            for rank, (other, similarity) in enumerate(zip(rows[row], similarities[row], strict=True), 1):
                texts = [table[i][j] if table else "" for i in (row, other) for j in (1, 3)]
                writer.writerow([row, rank, other, f"{similarity:.6f}", *texts])
