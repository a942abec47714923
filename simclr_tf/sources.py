"""Where images come from: a numbered list of encoded images with ids and, if there are any, labels.

A source's numbering is fixed: example i of a split is the same image in every run. Folders and digits are numbered by
the SHA-256 of their relative path, which mixes the classes, so that any slice of a split holds all of them; TFDS
splits are mixed when they are prepared and keep the order of their files.
"""

import collections
import dataclasses
import hashlib
import logging
import os
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from simclr_tf import images
from simclr_tf.errors import DataError

log = logging.getLogger(__name__)

FOLDER_PREFIX = "folder:"
IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .gif .bmp .webp .tif .tiff .ppm .pgm .pbm .pnm .jp2 .avif .ico .tga".split()
)
TEST_FRACTION = 0.2  # of each class, where a data set has no test split of its own
UNKNOWN_LABEL = -1

_VALIDATION_NAMES = ("validation", "val", "valid")
_SPLIT_NAMES = ("train", "test", *_VALIDATION_NAMES)

Element = dict[str, tf.Tensor]


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """One split of a data set, every example of which can be read by its index.

    Attributes:
      name: the data set as the user named it.
      split: the split as the user wrote it.
      class_names: names by label, or None where there are no labels.
      labels: int32 [num_examples], or None where they are not known without reading everything; -1 is unknown.
      notes: what was decided on the user's behalf, for `describe`.
      keys: the id of each example: its path, TFDS id or digit name.
      contents: string [num_examples]: encoded images, or the paths of the files that hold them.
      contents_are_paths: which of the two.
      labelled: bool [num_examples], whose labels training batches tell; None: everyone's.
    """

    name: str
    split: str
    class_names: tuple[str, ...] | None
    labels: np.ndarray | None
    notes: tuple[str, ...] = ()
    keys: Sequence[str] = ()
    contents: tf.Tensor | None = None
    contents_are_paths: bool = False
    labelled: np.ndarray | None = None

    @property
    def num_examples(self) -> int:
        return len(self.keys)

    @property
    def num_classes(self) -> int | None:
        return None if self.class_names is None else len(self.class_names)

    def describe(self) -> str:
        """One line: what, how many, how split."""
        classes = "no labels" if self.class_names is None else f"{self.num_classes} classes"
        notes = "".join(f"; {note}" for note in self.notes)
        return f"{self.name}, split {self.split}: {self.num_examples:,} images, {classes}{notes}"

    def ids(self, indices: Iterable[int]) -> list[str]:
        """Where the examples come from, for people: path, TFDS id or digit name."""
        return [self.keys[int(i)] for i in indices]

    def select(self, indices: np.ndarray, note: str) -> "Source":
        """The source that holds these examples only, numbered in the order given."""
        indices = np.asarray(indices, np.int64)
        with tf.device("CPU:0"):
            contents = tf.gather(self.contents, indices)
        return dataclasses.replace(
            self,
            labels=self.labels[indices],
            keys=[self.keys[i] for i in indices],
            contents=contents,
            notes=(*self.notes, note),
        )

    def in_memory(self) -> "Source":
        """The source with the encoded images themselves instead of paths; for `--cache_dataset`.

        A file that cannot be read becomes an empty image, which is found unreadable when its turn comes.
        """
        if not self.contents_are_paths:
            return self

        def read(path):
            try:
                return Path(os.fsdecode(path)).read_bytes()
            except OSError:
                return b""

        with tf.device("CPU:0"):
            contents = tf.constant([read(path) for path in self.contents.numpy()], tf.string)
        return dataclasses.replace(self, contents=contents, contents_are_paths=False)

    # --- Reading one example -------------------------------------------------------------------------------------
    def read(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Bytes (string []) and label (int32 [], -1 unknown) of example `index` (int64 []); eagerly or in a graph."""
        data = tf.gather(self.contents, index)
        if self.contents_are_paths:
            data = tf.io.read_file(data)
        return data, tf.gather(self.labels, index)

    def load(self, index: int) -> np.ndarray:
        """The image of one example, eagerly: uint8 [H, W, 3].

        Raises:
          DataError: it cannot be read or decoded; the message names it.
        """
        try:
            return images.decode(self.read(tf.constant(index, tf.int64))[0]).numpy()
        except (tf.errors.OpError, DataError) as error:
            raise DataError(f"{self.keys[index]}: {self._reason(index, error)}") from error

    def find_bad(self, indices: Iterable[int]) -> list[tuple[int, str, str]]:
        """Decodes the examples one by one; (index, id, reason) for each that cannot be read."""
        bad = []
        for index in sorted({int(i) for i in indices}):
            try:
                images.decode(self.read(tf.constant(index, tf.int64))[0])
            except (tf.errors.OpError, DataError) as error:
                bad.append((index, self.keys[index], self._reason(index, error)))
        return bad

    def _reason(self, index: int, error: tf.errors.OpError | DataError) -> str:
        """Why example `index` failed, in a few words."""
        if isinstance(error, DataError):
            return str(error)
        if isinstance(error, tf.errors.NotFoundError):
            return "no such file"
        try:
            images.decode_with_pillow(self.read(tf.constant(index, tf.int64))[0].numpy())
        except (DataError, tf.errors.OpError) as clearer:
            return str(clearer).splitlines()[0]
        return error.message.splitlines()[0]  # Pillow is more forgiving than TensorFlow here

    # --- Reading many, in tf.data --------------------------------------------------------------------------------
    def shuffled(self, seed: tf.Tensor, step: int, batch: int, begin: int, end: int) -> tf.data.Dataset:
        """Rows begin..end of every batch of `batch` examples from `step` on, without end, in shuffled order.

        The c-th example of a run, counted from 0, is of epoch c // n. Every epoch is another permutation, a pure
        function of (seed, epoch), so nothing has to be skipped to begin anywhere.

        Args:
          seed: int32 [2].

        Returns:
          Elements of int64 `epoch` and `index`, to be given to `fetch`.
        """
        n, rows = self.num_examples, end - begin

        def element(k):
            counter = k // rows * batch + begin + k % rows
            epoch = counter // n
            order_seed = tf.random.fold_in(seed, epoch, alg="philox")
            return {"epoch": epoch, "index": tf.random.experimental.index_shuffle(counter % n, order_seed, n - 1)}

        forever = tf.data.Dataset.range(step * rows, tf.int64.max)
        return forever.map(element, num_parallel_calls=tf.data.AUTOTUNE)

    def in_order(self, first: int, padding: int) -> tf.data.Dataset:
        """Elements (without `epoch`) of the examples from `first` on, each once, then `padding` of index -1."""
        n = self.num_examples
        return tf.data.Dataset.range(first, n + padding).map(lambda c: {"index": tf.where(c < n, c, -1)})

    def fetch(self, element: Element, instead: Mapping[int, int]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Index, bytes and label of an element; of example `instead[index]` for the indices in `instead`."""
        index = element["index"]
        if instead:
            match = tf.equal(tf.constant(list(instead), tf.int64), index)
            replacement = tf.gather(tf.constant(list(instead.values()), tf.int64), tf.argmax(match))
            index = tf.where(tf.reduce_any(match), replacement, index)
        return index, *self.read(index)


def held(
    name: str, split: str, class_names: Sequence[str] | None, labels: Sequence[int], keys: Sequence[str],
    contents: Sequence[bytes] | tf.Tensor, *, contents_are_paths: bool = False, notes: Iterable[str] = (),
) -> Source:
    """A source whose contents lie in memory, as one tensor that graphs refer to rather than contain."""
    if not len(keys):
        raise DataError(f"{name}: split {split} is empty. Give a split or slice that holds images.")
    with tf.device("CPU:0"):  # strings live on the host
        contents = tf.convert_to_tensor(contents, tf.string)
    class_names = None if class_names is None else tuple(class_names)
    labels = np.asarray(labels, np.int32)
    return Source(name, split, class_names, labels, tuple(notes), keys, contents, contents_are_paths)


# --- Splits of folders and digits ------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Record:
    """An example before it is read: its path relative to the data set's root, and its class, if it has one."""

    path: str
    class_name: str | None

    @property
    def rank(self) -> str:
        return hashlib.sha256(self.path.encode(errors="surrogateescape")).hexdigest()


def by_hash(records: Iterable[Record]) -> list[Record]:
    """The records in their fixed order."""
    return sorted(records, key=lambda record: record.rank)


def stratified(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Splits into train and test: of each class the last fifth in hash order is for testing (of two images, one)."""
    classes = collections.defaultdict(list)
    for record in by_hash(records):
        classes[record.class_name].append(record)
    splits = {"train": [], "test": []}
    for members in classes.values():
        num_test = min(max(round(TEST_FRACTION * len(members)), 1), len(members) - 1)
        splits["train"] += members[: len(members) - num_test]
        splits["test"] += members[len(members) - num_test :]
    return {name: by_hash(members) for name, members in splits.items()}


def other_test_name(spec: str, names: Iterable[str]) -> str:
    """`spec` with `validation` (`val`, `valid`) and `test` standing for each other where only one of them exists."""
    names = set(names)
    spec = re.sub(rf"\b({'|'.join(_VALIDATION_NAMES)})\b", "validation", spec)
    if "validation" not in names and "test" in names:
        return re.sub(r"\bvalidation\b", "test", spec)
    if "test" not in names and "validation" in names:
        return re.sub(r"\btest\b", "validation", spec)
    return spec


def take_slices(name: str, spec: str, splits: Mapping[str, Sequence[Record]]) -> list[Record]:
    """The records of a split in TFDS notation: `train`, `test[20%:]`, `train[:100]+test`, ...

    Raises:
      DataError: the notation is wrong, there is no such split, or the slice lies outside of it.
    """
    sizes = {
        key: types.SimpleNamespace(num_examples=len(records), shard_lengths=[len(records)])
        for key, records in splits.items()
    }
    try:
        instructions = tfds.core.ReadInstruction.from_spec(spec).to_absolute(sizes)
    except (ValueError, AssertionError) as error:
        there = ", ".join(f"{key} ({len(records):,} images)" for key, records in splits.items())
        raise DataError(f"{name}: split {spec!r} cannot be had. There are: {there}. ({_line(error)})") from error
    return [record for i in instructions for record in splits[i.splitname][i.from_ : i.to]]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _alias_note(spec: str, used: str) -> tuple[str, ...]:
    if spec == used:
        return ()
    log.info("Split %s means %s here.", spec, used)
    return (f"{spec} means {used} here",)


_OWN_SPLIT = f"split by us, {TEST_FRACTION:.0%} of each class for test, by hash of the names"


# --- Digits ----------------------------------------------------------------------------------------------------------
def open_digits(split: str) -> Source:
    """Scikit-learn's 1,797 scans of handwritten digits, 8x8, as RGB; split by us, as they have no split."""
    from sklearn.datasets import load_digits  # slow to import, and for this data set only

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # 0..16 -> 0..255, [1797, 8, 8]
    number = {f"digit_{i}": i for i in range(len(pixels))}
    used = other_test_name(split, ("train", "test"))
    splits = stratified(Record(key, str(bunch.target[i])) for key, i in number.items())
    records = take_slices("digits", used, splits)
    chosen = [number[record.path] for record in records]
    encoded = [tf.io.encode_png(np.repeat(pixels[i][..., None], 3, -1)).numpy() for i in chosen]
    log.info("digits: %s.", _OWN_SPLIT)
    return held(
        "digits", split, [str(c) for c in bunch.target_names], bunch.target[chosen],
        [record.path for record in records], encoded, notes=(_OWN_SPLIT, *_alias_note(split, used)),
    )  # fmt: skip


# --- Folders ---------------------------------------------------------------------------------------------------------
def open_folder(path: str, split: str) -> Source:
    """A tree of image files: [train/ test/ validation/ and in them] one folder per class, or images without classes.

    Raises:
      DataError: there is no such folder or split, a class has no images, or there are none at all.
    """
    name = FOLDER_PREFIX + path
    root = Path(os.path.abspath(os.path.expanduser(path)))
    if not root.is_dir():
        problem = "is a file, not a folder" if root.exists() else "does not exist"
        raise DataError(f"--dataset={name}: {root} {problem}. Give the folder that holds the images or their classes.")
    parts = _split_folders(root)
    classes = {key: _visible_folders(part) for key, part in parts.items()}
    used = other_test_name(split, parts if len(parts) > 1 or "train" not in parts else ("train", "test"))
    ignored = collections.Counter()
    splits = {  # only those that are used are listed: the others may be large, or broken
        key: by_hash(_records(root, part, classes[key], ignored)) if _mentions(used, key) or len(parts) == 1 else []
        for key, part in parts.items()
    }
    notes = []
    if set(parts) == {"train"}:
        splits = stratified(splits["train"])
        notes.append(_OWN_SPLIT)
        log.info("%s has no test folder: %s.", name, _OWN_SPLIT)
    notes += _alias_note(split, used)
    if ignored:
        notes.append(f"{ignored.total()} other files ignored ({', '.join(sorted(ignored))})")
        log.warning("%s: ignoring %d files that are not images: %s", name, ignored.total(), ", ".join(sorted(ignored)))

    records = take_slices(name, used, splits)
    labelled = any(record.class_name is not None for record in records)
    class_names = sorted(set().union(*classes.values())) if labelled else None
    number = {class_name: label for label, class_name in enumerate(class_names or ())}
    paths = [os.path.join(root, record.path) for record in records]
    return held(
        name, split, class_names, [number.get(record.class_name, UNKNOWN_LABEL) for record in records],
        paths, [os.fsencode(path) for path in paths], contents_are_paths=True, notes=notes,
    )  # fmt: skip


def open_images(path: str) -> Source:
    """An image file, or all images in and below a folder, without labels, in the order of their names.

    Raises:
      DataError: there is no such file or folder, or no image in it.
    """
    root = Path(os.path.abspath(os.path.expanduser(path)))
    if not root.exists():
        raise DataError(f"{path} does not exist. Give an image file or a folder of images.")
    paths = sorted(_image_files(root, collections.Counter(), recurse=True)) if root.is_dir() else [root]
    if not paths:
        raise DataError(f"{path} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}).")
    keys = [str(p) for p in paths]
    return held(path, "all", None, [UNKNOWN_LABEL] * len(keys), keys, [os.fsencode(k) for k in keys],
                contents_are_paths=True)  # fmt: skip


def _split_folders(root: Path) -> dict[str, Path]:
    """Folder of each split; `train` is the root itself where there are no split folders."""
    folders = _visible_folders(root)
    named = [folder for folder in folders if folder in _SPLIT_NAMES]
    others = len(folders) - len(named)
    # A class may be called "train", between "bus" and "tram": split folders come in twos or alone.
    if not named or (others and not ("train" in named and len(named) > 1)):
        return {"train": root}
    if others:
        log.warning("%s: ignoring the folders beside %s", root, ", ".join(named))
    return {"validation" if folder in _VALIDATION_NAMES else folder: root / folder for folder in named}


def _mentions(spec: str, split: str) -> bool:
    return re.search(rf"\b({split}|all)\b", spec) is not None


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _visible_folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not _is_hidden(entry.name))


def _records(root: Path, part: Path, classes: list[str], ignored: collections.Counter) -> list[Record]:
    """Every image of one split; `ignored` counts other files by suffix."""
    loose = _image_files(part, ignored, recurse=False)
    if not classes:
        if not loose:
            raise DataError(f"{part} holds no images. Known are files that end in {' '.join(sorted(IMAGE_SUFFIXES))}.")
        return [Record(path.relative_to(root).as_posix(), None) for path in loose]
    if loose:
        ignored["images beside the class folders"] += len(loose)
    records = []
    for class_name in classes:
        files = _image_files(part / class_name, ignored, recurse=True)
        if not files:
            raise DataError(
                f"{part / class_name} is the folder of a class and holds no images. Add some or remove the folder."
            )
        records += [Record(path.relative_to(root).as_posix(), class_name) for path in files]
    return records


def _image_files(folder: Path, ignored: collections.Counter, *, recurse: bool) -> list[Path]:
    files, seen = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # links that lead in a circle
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if recurse and not _is_hidden(name)]
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            if _is_hidden(name):
                continue
            if suffix in IMAGE_SUFFIXES:
                files.append(Path(parent, name))
            else:
                ignored[suffix or name] += 1
    return files
