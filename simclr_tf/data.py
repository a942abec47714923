"""From a source to batches: a pure function of (seed, epoch, example index), so that a run can begin at any step.

images -> two views (pretraining), one view (fine-tuning) or the evaluation crop -> batches of a fixed size.
"""

import logging
from collections.abc import Callable, Collection, Iterator

import tensorflow as tf

from simclr_tf import augment, digits_source, folder_source, images, label_subsets, sources, tfds_source
from simclr_tf.config import CIFAR_STEM_MAX_SIZE, Config
from simclr_tf.errors import DataError
from simclr_tf.sources import Source

log = logging.getLogger(__name__)

# Second halves of the seeds, so that order and augmentation do not follow each other; label_subsets.py has its own.
_ORDER, _AUGMENTATION = 1, 2

CHUNK_BYTES = 1 << 20  # of views distorted in one call: half of a core's cache of 2 MiB

HELD_OUT = "held_out"  # the name of a split, see `open_source`


def open_source(config: Config, split: str) -> Source:
    """Opens a split of `config.dataset`. Nothing is decoded yet.

    Args:
      split: `train`, `test[20%:]`, `train[:100]`, `train+test`, ...: the notation of TFDS, on every data set; or
        `held_out`: the labelled training examples that `config.held_out_fraction` keeps out of training.

    Raises:
      DataError: the data set or split does not exist, is empty, or cannot be prepared.
    """
    if split == HELD_OUT:
        return label_subsets.held_out_apart(_labelled_source(config), config)[1]
    if config.dataset == "digits":
        return digits_source.open_digits(split)
    if config.dataset.startswith(folder_source.FOLDER_PREFIX):
        source = folder_source.open_folder(config.dataset.removeprefix(folder_source.FOLDER_PREFIX), split)
        return source.in_memory() if config.cache_dataset else source
    return tfds_source.open_tfds(
        config.dataset, split, config.data_dir, hold=config.cache_dataset, download=not config.dry_run
    )


def open_training_source(config: Config) -> Source:
    """`config.train_split`, with the labels asked for; fine-tuning leaves out the examples that have none of them."""
    source = _labelled_source(config)
    return label_subsets.held_out_apart(source, config)[0] if config.held_out_fraction else source


def _labelled_source(config: Config) -> Source:
    source = open_source(config, config.train_split)
    if config.labels_per_class or config.label_fraction < 1:
        source = label_subsets.labelled_subset(source, config)
    return source


def train_batches(
    source: Source, config: Config, start_step: int, *, batch_size: int | None = None, worker: int = 0,
    num_workers: int = 1, bad: Collection[int] = (),
) -> tf.data.Dataset:
    """Endless training batches from `start_step` on; the same whether or not the steps before were drawn.

    Args:
      batch_size: examples per step over all workers; default `config.train_batch_size`. Where it exceeds the data set,
        examples repeat within the batch, with other augmentation.
      worker, num_workers: this worker gets rows worker * B // num_workers to (worker + 1) * B // num_workers.
      bad: indices of unreadable examples; each is replaced by the next good one.

    Returns:
      Dataset of dict(images float32 [rows, S, S, 6] (two views along channels; when fine-tuning [rows, S, S, 3]) in
      [0, 1], labels int32 [rows] (-1 unknown), index int64 [rows]).
    """
    batch, begin, end = _rows(config, batch_size, worker, num_workers)
    instead = _replacements(source, bad)
    size = config.image_size

    def example(element):
        index, data, label = source.fetch(element, instead)
        if source.labelled is not None:
            label = tf.where(tf.gather(source.labelled, index), label, sources.UNKNOWN_LABEL)
        # The seed is that of the example due here, not of one that stands in for it: a stand-in is seen with two
        # different augmentations in the epoch.
        seed = tf.random.fold_in(_seed(config, _AUGMENTATION), element["epoch"], alg="philox")
        seed = tf.random.fold_in(seed, element["index"], alg="philox")
        image, rest = images.decode(data), {"labels": label, "index": index}
        if config.train_mode != "pretrain":
            view = augment.finetune_view(image, seed, size)
            return {"images": tf.ensure_shape(view, [size, size, 3])} | rest
        crops, draws, _ = augment.crops_apart(image, seed, size)
        crops = tuple(tf.ensure_shape(crop, [size, size, 3]) for crop in crops)
        return {"crops": crops, "draws": draws} | rest

    def distort(examples):
        """A chunk of examples, [chunk, ...] each: `images` in place of `crops` and `draws`."""
        crops, draws = examples.pop("crops"), examples.pop("draws")
        views = augment.distort(
            crops, draws, config.color_jitter_strength, config.use_blur, config.color_jitter_impl, white=255
        )
        return {"images": views} | examples

    elements = source.shuffled(_seed(config, _ORDER), start_step, batch, begin, end)
    if config.train_mode != "pretrain":
        return _batched(elements, example, end - begin)
    chunk = _chunk(end - begin, 2 * size * size * 3 * 4)
    return _batched(elements, example, end - begin, chunk, distort)


def eval_batches(
    source: Source, config: Config, *, batch_size: int | None = None, start_step: int = 0, worker: int = 0,
    num_workers: int = 1, bad: Collection[int] = (), view: Callable | None = None,
) -> tf.data.Dataset:
    """Every example once, in order, in batches of one static size; the last one is padded.

    Args:
      batch_size: default `config.eval_batch_size`.
      start_step: batches to leave out at the beginning.
      worker, num_workers: as for `train_batches`.
      bad: indices of unreadable examples: they count nothing.
      view: uint8 [H, W, 3] -> float32 [S, S, 3]; default the evaluation crop.

    Returns:
      Dataset of dict(images float32 [n, S, S, 3] in [0, 1], labels int32 [n] (-1 unknown), weights float32 [n],
      index int64 [n]). Padding has weight 0, a black image, label 0 and index -1; a bad example weight 0 and a black
      image.
    """
    batch, begin, end = _rows(config, batch_size or config.eval_batch_size, worker, num_workers)
    size, n = config.image_size, source.num_examples
    bad_indices = tf.constant(sorted(bad), tf.int64)

    def example(element):
        index = element["index"]

        def read():
            _, data, label = source.fetch(element, {})
            is_bad = tf.reduce_any(tf.equal(bad_indices, index))
            return tf.cond(is_bad, lambda: (black(), label, 0.0), lambda: (seen(data), label, 1.0))

        image, label, weight = tf.cond(index < 0, lambda: (black(), 0, 0.0), read)
        return {"images": image, "labels": label, "weights": weight, "index": index}

    def black():
        return tf.zeros([size, size, 3])

    def crop(image):
        return augment.preprocess_for_eval(image, size, crop=size > CIFAR_STEM_MAX_SIZE)

    def seen(data):
        image = (view or crop)(images.decode(data))
        return tf.ensure_shape(image, [size, size, 3])

    elements = source.in_order(start_step * batch, -n % batch)
    if num_workers > 1:
        mine = elements.enumerate().filter(lambda k, _: tf.logical_and(begin <= k % batch, k % batch < end))
        elements = mine.map(lambda _, element: element)
    return _batched(elements, example, end - begin)


def _seed(config: Config, purpose: int) -> tf.Tensor:
    return tf.constant([config.seed, purpose], tf.int32)


def _rows(config: Config, batch_size: int | None, worker: int, num_workers: int) -> tuple[int, int, int]:
    """The global batch size and the first and last (exclusive) row of it that are this worker's."""
    batch = batch_size or config.train_batch_size
    begin, end = worker * batch // num_workers, (worker + 1) * batch // num_workers
    if begin == end:
        raise DataError(f"A batch of {batch} leaves worker {worker} of {num_workers} nothing; raise the batch size.")
    return batch, begin, end


def _replacements(source: Source, bad: Collection[int]) -> dict[int, int]:
    """For each bad index the next good one, the last one's next being the first."""
    n, bad = source.num_examples, set(bad)
    if len(bad) >= n:
        raise DataError(f"{source.name}: not one image of split {source.split} can be read.")
    instead = {}
    for index in sorted(bad):
        good = (index + 1) % n
        while good in bad:
            good = (good + 1) % n
        instead[index] = good
    return instead


def _chunk(rows: int, example_bytes: int) -> int:
    """How many examples of a batch of `rows` are distorted in one call: what fits the processor's cache, and divides
    the batch, so that an unreadable image spoils no other batch than its own."""
    return max(n for n in range(1, rows + 1) if rows % n == 0 and (n == 1 or n * example_bytes <= CHUNK_BYTES))


def _batched(
    elements: tf.data.Dataset, example: Callable, rows: int, chunk: int = 1, on_chunk: Callable | None = None
) -> tf.data.Dataset:
    """Batches of `rows` examples; `on_chunk` has been applied to every `chunk` of them, which divides `rows`."""

    def parallel(dataset, function):
        return dataset.map(function, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    def alone(element):
        chunk_of_one = tf.nest.map_structure(lambda part: part[None], example(element))
        return tf.nest.map_structure(lambda part: part[0], on_chunk(chunk_of_one))

    def joined(chunks):
        return tf.nest.map_structure(lambda part: tf.reshape(part, [rows, *part.shape[2:]]), chunks)

    if on_chunk is None or chunk == 1:  # no chunks: putting one example into a chunk would copy it
        dataset = parallel(elements, example if on_chunk is None else alone).batch(rows, drop_remainder=True)
    else:
        dataset = parallel(elements, example).batch(chunk, drop_remainder=True)
        dataset = parallel(dataset, on_chunk)
        if chunk < rows:
            dataset = dataset.batch(rows // chunk, drop_remainder=True).map(joined)
    options = tf.data.Options()
    options.deterministic = True
    # Workers were given their rows already.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.prefetch(tf.data.AUTOTUNE).with_options(options)


class Feed:
    """Batches that survive up to `config.max_bad_images` unreadable images.

    Images are not checked ahead of time: that would mean decoding all of them. When one cannot be read, drawing its
    batch fails, wherever that happens. `recover` then finds out which image it was and gives a dataset that goes on
    without it:

        feed = Feed.training(source, config)
        iterator = iter(feed.batches(step))
        while step < total:
            try:
                run_some_steps(iterator)                # a tf.function: draws a batch and updates, several times
            except tf.errors.OpError as error:
                step = int(optimizer.iterations)        # updates before the failing one have been made, and stay
                iterator = iter(feed.recover(error, step))

    Inside the tf.function nothing orders a counter's increase after the draw: an update has to be made under
    `tf.control_dependencies(tf.nest.flatten(batch))`, or the counter may be one ahead of the batch that failed.

    The stand-ins are chosen by index alone, so a run that is killed and finds the same bad images again, one by one,
    trains on the same batches. Plain loops just iterate over the feed: `for batch in Feed.evaluation(source, config)`.

    Attributes:
      bad: index -> "path: reason" of the unreadable images found so far, for reports.
    """

    def __init__(self, source: Source, config: Config, make: Callable[..., tf.data.Dataset],
                 indices: Callable[[int], list[int]]):
        """`make(step, bad, worker, num_workers)` builds batches; `indices(step)` tells the examples due in a step."""
        self.source = source
        self.bad: dict[int, str] = {}
        self._max_bad = config.max_bad_images
        self._make = make
        self._indices = indices

    @classmethod
    def training(cls, source: Source, config: Config, *, batch_size: int | None = None) -> "Feed":
        batch = batch_size or config.train_batch_size

        def make(step, bad, worker, num_workers):
            return train_batches(
                source, config, step, batch_size=batch, worker=worker, num_workers=num_workers, bad=bad
            )

        def indices(step):
            elements = source.shuffled(_seed(config, _ORDER), step, batch, 0, batch).take(batch)
            return [int(element["index"]) for element in elements]

        return cls(source, config, make, indices)

    @classmethod
    def evaluation(
        cls, source: Source, config: Config, *, batch_size: int | None = None, view: Callable | None = None,
    ) -> "Feed":
        batch = batch_size or config.eval_batch_size

        def make(step, bad, worker, num_workers):
            return eval_batches(
                source, config, batch_size=batch, start_step=step, bad=bad, worker=worker, num_workers=num_workers,
                view=view,
            )

        def indices(step):
            return list(range(step * batch, min((step + 1) * batch, source.num_examples)))

        return cls(source, config, make, indices)

    def batches(self, start_step: int = 0, worker: int = 0, num_workers: int = 1) -> tf.data.Dataset:
        """The batches from a step on (a worker's rows of them), without the images known to be bad."""
        return self._make(start_step, frozenset(self.bad), worker, num_workers)

    def ids(self, step: int) -> list[str]:
        """Where the examples of a step's batch come from, for people; batches are numbered from 0."""
        instead = _replacements(self.source, self.bad) if self.bad else {}
        return self.source.ids(instead.get(index, index) for index in self._indices(step))

    def recover(self, error: tf.errors.OpError, step: int, steps: int = 1) -> tf.data.Dataset:
        """Batches from `step` on, after drawing one failed.

        Args:
          error: what was raised.
          step: the step whose batch was not delivered.
          steps: where only a range is known, in how many steps from `step` on to look.

        Raises:
          DataError: there are more unreadable images than `--max_bad_images`, all are named; or records are damaged.
          tf.errors.OpError: `error` itself, if no image of these steps is to blame.
        """
        if isinstance(error, tfds_source.RECORD_ERRORS) and isinstance(self.source, tfds_source.StreamedSource):
            if damage := tfds_source.find_damage(self.source.shards):
                raise tfds_source.damaged(self.source.name, damage) from error
        for at in range(step, step + steps):
            due = set(self._indices(at)) - set(self.bad)
            if self.bad:
                due |= set(_replacements(self.source, self.bad).values())
            found = self.source.find_bad(due)
            if found:
                self._add(found)
                return self.batches(step)
        raise error

    def _add(self, found: list[tuple[int, str, str]]) -> None:
        self.bad |= {index: f"{key}: {reason}" for index, key, reason in found}
        if len(self.bad) > self._max_bad:
            raise DataError(
                f"{len(self.bad)} unreadable images, --max_bad_images={self._max_bad} allows {self._max_bad}:\n  "
                + "\n  ".join(self.bad.values())
                + "\nMend or remove them, or raise --max_bad_images to skip that many."
            )
        for index, _, _ in found:
            count = f"{len(self.bad)} of at most {self._max_bad}"
            log.warning("Skipping unreadable image %s (%s)", self.bad[index], count)

    def __iter__(self) -> Iterator[dict[str, tf.Tensor]]:
        """All batches from step 0 on, recovering by itself."""
        return self.iterate(0)

    def iterate(self, step: int) -> Iterator[dict[str, tf.Tensor]]:
        """All batches from `step` on, recovering by itself."""
        dataset = self.batches(step)
        while True:
            try:
                for batch in dataset:
                    yield batch
                    step += 1
                return
            except tf.errors.OpError as error:
                dataset = self.recover(error, step)
