"""Data sets of TensorFlow Datasets as sources.

Records are read undecoded. A split of moderate size is held in memory as encoded bytes, so that any order costs
nothing; a larger one is streamed from its shards and shuffled through a buffer of encoded records.
"""

import bisect
import contextlib
import dataclasses
import difflib
import itertools
import logging
import os
import socket
import urllib.request
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from simclr_tf import sources
from simclr_tf.errors import DataError
from simclr_tf.sources import Source

log = logging.getLogger(__name__)

HOLD_BYTES = 2 << 30  # splits up to this size are held in memory
SHUFFLE_RECORDS = 16384  # records in the shuffle buffer of a streamed split; 1.8 GB for ImageNet
OPEN_SHARDS = 16  # shards read at once while streaming
UNEVENNESS = 1.02  # how much larger than the smallest the largest stream of a split may be
# What reading a damaged, an absent or a shortened file of records ends in; the last has other causes too.
RECORD_ERRORS = (tf.errors.DataLossError, tf.errors.NotFoundError, tf.errors.FailedPreconditionError)


def open_tfds(name: str, split: str, data_dir: str | None, *, hold: bool = False, download: bool = True) -> Source:
    """Opens a split of a TFDS data set, preparing the data set first where it is not in `data_dir` yet.

    Args:
      name: as TFDS writes it: `name`, `name/config`, `name:1.2.3`.
      split: in TFDS notation.
      data_dir: the folder that holds `<name>/`; None is TFDS's own default.
      hold: keep the encoded images in memory whatever their size.
      download: whether it may be downloaded and prepared.

    Raises:
      DataError: there is no such data set or split, it cannot be prepared, or it has no images.
    """
    builder = _prepared(name, data_dir, download)
    is_dict = isinstance(builder.info.features, tfds.features.FeaturesDict)
    features = dict(builder.info.features.items()) if is_dict else {}
    image = features.get("image")
    if not isinstance(image, tfds.features.Image) or image.np_dtype not in (np.uint8, np.uint16):
        there = ", ".join(features) or str(builder.info.features)
        raise DataError(f"TFDS data set {name} has no feature 'image' with encoded images. It has: {there}.")
    label = features.get("label")
    class_names = label.names if isinstance(label, tfds.features.ClassLabel) else None
    try:
        info = builder.info.splits[split]
        shards = [_Shard(i.filename, i.skip, i.take) for i in info.file_instructions] if info.num_examples else []
    except (KeyError, ValueError, AssertionError) as error:
        there = ", ".join(f"{key} ({value.num_examples:,} images)" for key, value in builder.info.splits.items())
        reason = " ".join(str(error).split())
        raise DataError(f"{name}: split {split!r} cannot be had. There are: {there}. ({reason})") from error
    if not shards:
        raise DataError(f"{name}: split {split} is empty. Give a split or slice that holds images.")

    wanted = tfds.decode.PartialDecoding(
        {"image": True} | ({} if class_names is None else {"label": True}),
        decoders={"image": tfds.decode.SkipDecoding()},
    )
    with _quiet():
        parser = wanted.extract_features(builder.info.features)
    total = sum(s.num_examples for s in builder.info.splits.values())
    size = builder.info.dataset_size * sum(s.take for s in shards) / max(total, 1)
    is_tfrecord = builder.info.file_format == tfds.core.FileFormat.TFRECORD
    if hold or size <= HOLD_BYTES:
        with _damage_named(name, shards if is_tfrecord else []):
            return _hold(builder, name, split, class_names, shards, wanted)
    if not is_tfrecord:
        raise DataError(
            f"{name} is stored as {builder.info.file_format.value}; only tfrecord files can be streamed. Prepare it "
            f"with file_format='tfrecord', or add --cache_dataset to hold its {size / 2**30:.1f} GiB in memory."
        )
    note = f"streamed, about {size / 2**30:.1f} GiB"
    return StreamedSource(
        name, split, None if class_names is None else tuple(class_names), None, (note,), _Keys(shards),
        shards=tuple(shards), features=parser,
    )  # fmt: skip


def damaged(name: str, reason: str) -> DataError:
    return DataError(f"{name}: the records cannot be read; prepare the data set anew. ({reason})")


def find_damage(shards: Sequence["_Shard"]) -> str | None:
    """The first TFRecord file whose records are not all there, and why; None if they are. Reads all of them."""
    for shard in shards:
        try:
            there = sum(1 for _ in _records(shard))
        except RECORD_ERRORS as error:
            return f"{shard.path}: {error.message.splitlines()[0]}"
        if there < shard.take:
            return f"{shard.path} ends after {shard.skip + there} records; at least {shard.skip + shard.take} are due"
    return None


@contextlib.contextmanager
def _damage_named(name: str, shards: Sequence["_Shard"]) -> Iterator[None]:
    try:
        yield
    except RECORD_ERRORS as error:
        raise damaged(name, find_damage(shards) or error.message.splitlines()[0]) from error


def _prepared(name: str, data_dir: str | None, download: bool) -> tfds.core.DatasetBuilder:
    folder = os.path.expanduser(data_dir or os.environ.get("TFDS_DATA_DIR") or tfds.core.constants.DATA_DIR)
    try:
        with _quiet():
            builder = tfds.builder(name, data_dir=folder)
            prepared = builder.is_prepared()
    except tfds.core.registered.DatasetNotFoundError as error:
        near = difflib.get_close_matches(name.split("/")[0].split(":")[0], tfds.list_builders(), n=3)
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        raise DataError(
            f"--dataset={name} is not a TFDS data set, neither a known one nor one prepared in {folder}. {hint}Give a "
            "name from https://www.tensorflow.org/datasets/catalog, folder:<path>, or digits."
        ) from error
    except Exception as error:  # whatever a builder's constructor raises: wrong version or config, missing package
        raise DataError(f"--dataset={name} cannot be opened by TFDS: {' '.join(str(error).split())}") from error
    if prepared:
        return builder
    fix = f"--data_dir must be the folder that holds {builder.name}/."
    if os.path.basename(os.path.normpath(folder)) == builder.name:
        fix += f" Perhaps --data_dir={os.path.dirname(os.path.normpath(folder))}?"
    if not download:
        raise DataError(f"TFDS data set {name} is not prepared in {folder} (looked for {builder.data_path}). {fix}")
    if _needs_network(builder, folder) and not _has_network():
        raise DataError(
            f"TFDS data set {name} is not prepared in {folder} (looked for {builder.data_path}) and cannot be "
            f"downloaded without a network. {fix}"
        )
    log.warning("TFDS data set %s is not in %s: downloading and preparing it. %s", name, folder, fix)
    try:
        builder.download_and_prepare()
    except Exception as error:  # no network, a moved file, manual download needed, full disk, ...
        raise DataError(
            f"TFDS data set {name} is not prepared in {folder} (looked for {builder.data_path}) and could not be "
            f"downloaded and prepared. {fix} ({type(error).__name__}: {' '.join(str(error).split())[:500]})"
        ) from error
    return builder


@contextlib.contextmanager
def _quiet():
    """Keeps TFDS's warnings about its own internals from the user."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _needs_network(builder: tfds.core.DatasetBuilder, folder: str) -> bool:
    """Whether preparing surely downloads: a stock builder, nothing placed by hand or downloaded before."""
    stock = type(builder).__module__.startswith("tensorflow_datasets.")
    by_hand = getattr(builder, "MANUAL_DOWNLOAD_INSTRUCTIONS", None)
    return stock and not by_hand and not tf.io.gfile.exists(os.path.join(folder, "downloads"))


def _has_network() -> bool:
    """A quick look: TFDS itself retries for minutes before it gives up."""
    if urllib.request.getproxies():
        return True
    try:
        socket.getaddrinfo("storage.googleapis.com", 443)
    except OSError:
        return False
    return True


def _hold(builder, name, split, class_names, shards, wanted) -> Source:
    # One shard after the other: the numbering is that of the files, as in a streamed source.
    config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    with _quiet():
        dataset = builder.as_dataset(split=split, decoders=wanted, read_config=config, shuffle_files=False)
    batches = list(dataset.batch(1024))
    labels = [np.full(len(b["image"]), sources.UNKNOWN_LABEL) if class_names is None else b["label"] for b in batches]
    with tf.device("CPU:0"):
        contents = tf.concat([b["image"] for b in batches], 0)
    return sources.held(name, split, class_names, np.concatenate(labels), _Keys(shards), contents)


@dataclasses.dataclass(frozen=True)
class _Shard:
    """Records skip .. skip + take of one file."""

    path: str
    skip: int
    take: int


def _records(shard: _Shard) -> tf.data.Dataset:
    return tf.data.TFRecordDataset(shard.path, buffer_size=1 << 20).skip(shard.skip).take(shard.take)


class _Keys:
    """Sequence of TFDS ids `<file>__<record>`, made when asked for: there may be millions."""

    def __init__(self, shards: list[_Shard]):
        self.shards = shards
        self.starts = list(itertools.accumulate((s.take for s in shards), initial=0))  # index of each one's first

    def __len__(self) -> int:
        return self.starts[-1]

    def locate(self, index: int) -> tuple[str, int]:
        """File and record number of an example."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        i = bisect.bisect_right(self.starts, index) - 1
        return self.shards[i].path, self.shards[i].skip + index - self.starts[i]

    def __getitem__(self, index: int) -> str:
        path, record = self.locate(index)
        return f"{os.path.basename(path)}__{record}"


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedSource(Source):
    """A split too large to be held: read from its shards, in an order that is a pure function of (seed, epoch).

    Elements carry their serialized record, parsed in `fetch`. Beginning inside an epoch reads past that epoch's earlier
    records, without decoding them.

    The files are dealt out to up to `OPEN_SHARDS` streams, each of which fills the same rows of every batch and goes
    through its own files epoch by epoch. How many there are follows from the files and the batch, never from the
    workers: so batches are the same for any number of workers, and each one reads the files of its own rows only.
    """

    shards: tuple[_Shard, ...] = ()
    features: tfds.features.FeaturesDict | None = None

    def _parse(self, record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        example = self.features.deserialize_example(record, decoders={"image": tfds.decode.SkipDecoding()})
        return example["image"], tf.cast(example.get("label", sources.UNKNOWN_LABEL), tf.int32)

    def _record(self, index: int) -> tf.Tensor:
        path, number = self.keys.locate(int(index))
        return next(iter(tf.data.TFRecordDataset(path).skip(number).take(1)))

    def read(self, index):
        """As in `Source`, but only eagerly: finding a record means reading up to it."""
        return self._parse(self._record(index))

    def _shard_records(self, number: tf.Tensor) -> tf.data.Dataset:
        """Elements of index and record of shard `number`."""
        path = tf.gather([s.path for s in self.shards], number)
        skip = tf.gather(tf.constant([s.skip for s in self.shards], tf.int64), number)
        take = tf.gather(tf.constant([s.take for s in self.shards], tf.int64), number)
        start = tf.gather(tf.constant(self.keys.starts, tf.int64), number)
        # A file that was cut between two records would otherwise just be a shorter one.
        records = _records(_Shard(path, skip, take)).apply(tf.data.experimental.assert_cardinality(take))
        return records.enumerate().map(lambda i, record: {"index": start + i, "record": record})

    def streams(self, batch: int) -> int:
        """Into how many streams the files are dealt out: a power of two that divides the batch; 1 if they are few."""
        count = OPEN_SHARDS
        while count > 1:
            sizes = [sum(s.take for s in self.shards[i::count]) for i in range(count)]
            if batch % count == 0 and 0 < max(sizes) <= UNEVENNESS * min(sizes):
                return count
            count //= 2
        return 1

    def shuffled(self, seed, step, batch, begin, end):
        count = self.streams(batch)
        rows = batch // count
        first, last = begin // rows, -(-end // rows)  # the streams that fill rows begin to end
        parts = [self._stream(seed, i, count, step * rows).prefetch(rows) for i in range(first, last)]
        width = len(parts) * rows
        turns = tf.data.Dataset.range(tf.int64.max).map(lambda k: k % width // rows)
        records = parts[0] if len(parts) == 1 else tf.data.Dataset.choose_from_datasets(parts, turns)
        if width > end - begin:  # a stream whose rows are not all this worker's
            low, high = begin - first * rows, end - first * rows
            records = records.enumerate().filter(lambda i, _: (i % width >= low) & (i % width < high))
            records = records.map(lambda _, element: element)
        return records

    def _stream(self, seed: tf.Tensor, number: int, count: int, start: int) -> tf.data.Dataset:
        """The examples of every `count`-th file, shuffled, epoch after epoch, from the `start`-th on."""
        mine = list(range(number, len(self.shards), count))
        n = sum(self.shards[i].take for i in mine)
        if count > 1:
            seed = tf.random.fold_in(seed, number, alg="philox")

        def one_epoch(epoch):
            epoch_seed = tf.random.fold_in(seed, epoch, alg="philox")
            order = tf.random.experimental.index_shuffle(tf.range(len(mine)), epoch_seed, len(mine) - 1)
            records = tf.data.Dataset.from_tensor_slices(tf.gather(mine, order)).interleave(
                self._shard_records, cycle_length=OPEN_SHARDS // count, num_parallel_calls=tf.data.AUTOTUNE,
                deterministic=True,
            )
            records = records.shuffle(
                min(n, SHUFFLE_RECORDS // count), seed=tf.cast(epoch_seed[0], tf.int64), reshuffle_each_iteration=False
            )
            return records.map(lambda element: element | {"epoch": epoch})

        return tf.data.Dataset.range(start // n, tf.int64.max).flat_map(one_epoch).skip(start % n)

    def in_order(self, first, padding):
        shards = tf.data.Dataset.range(len(self.shards))
        records = shards.flat_map(self._shard_records).skip(first)
        return records.concatenate(
            tf.data.Dataset.from_tensors({"index": tf.constant(-1, tf.int64), "record": b""}).repeat(padding)
        )

    def fetch(self, element, instead: Mapping[int, int]):
        index, record = element["index"], element["record"]
        if instead:  # no random access while streaming: the replacements are read now and wait in memory
            match = tf.equal(tf.constant(list(instead), tf.int64), index)
            with tf.init_scope():
                spare = tf.stack([self._record(i) for i in instead.values()])
            at = tf.argmax(match)
            hit = tf.reduce_any(match)
            index = tf.where(hit, tf.gather(tf.constant(list(instead.values()), tf.int64), at), index)
            record = tf.where(hit, tf.gather(spare, at), record)
        return index, *self._parse(record)

    def with_labels(self) -> "StreamedSource":
        """The same source with its labels known, by reading all of it once."""
        log.warning("Reading all of %s once for its labels.", self.name)
        labels = self.in_order(0, 0).map(lambda e: self._parse(e["record"])[1], num_parallel_calls=tf.data.AUTOTUNE)
        with _damage_named(self.name, self.shards):
            return dataclasses.replace(self, labels=np.concatenate([b.numpy() for b in labels.batch(4096)]))

    def select(self, indices, note):
        """Holds the chosen examples in memory: streaming all records for a few of them would be no gain."""
        chosen = np.zeros(self.num_examples, bool)
        chosen[indices] = True
        chosen = tf.constant(chosen)
        records = self.in_order(0, 0).filter(lambda e: tf.gather(chosen, e["index"]))
        examples, size = {}, 0
        with _damage_named(self.name, self.shards):
            for element in records:
                examples[int(element["index"])] = data = self._parse(element["record"])[0].numpy()
                size += len(data)
                if size > HOLD_BYTES:
                    raise DataError(
                        f"{self.name}: {len(indices):,} chosen examples are more than the {HOLD_BYTES >> 30} GiB that "
                        "are held in memory. Take a slice of --train_split instead, or add --cache_dataset."
                    )
        return sources.held(
            self.name, self.split, self.class_names, self.labels[indices], [self.keys[int(i)] for i in indices],
            [examples[int(i)] for i in indices], notes=(note,),
        )  # fmt: skip
