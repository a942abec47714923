"""Where images come from: a numbered list of encoded images with ids and, if there are any, labels.

A source's numbering is fixed: example i of a split is the same image in every run. Folders and digits are numbered by
the SHA-256 of their relative path (splits.py), TFDS splits by the order of their files (tfds_source.py).
"""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from simclr_tf import images
from simclr_tf.errors import DataError

UNKNOWN_LABEL = -1

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

    def with_labels(self) -> "Source":
        """The source with its labels known, as these are where it is not streamed."""
        return self

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
