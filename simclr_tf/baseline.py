"""`--train_mode=baseline`: Keras's InceptionV3, frozen, with a small classifier trained on its features.

images -> 299 x 299, in [-1, 1] -> InceptionV3 -> 2048 features, standardised -> three dense layers with dropout.

The network is frozen and images are not augmented, so each one's features are computed once and kept in the run's
folder, in parts: a run that was killed goes on with the next part.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
import os
import time
import zipfile
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from simclr_tf import checkpoint, data, download, evaluation, released, training
from simclr_tf.config import Config
from simclr_tf.errors import CheckpointError, DataError
from simclr_tf.evaluation import Predictions
from simclr_tf.interrupts import Interrupts
from simclr_tf.strategy import inference, one_device

log = logging.getLogger(__name__)

WEIGHTS_FILE = "inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5"
WEIGHTS_URL = f"https://storage.googleapis.com/tensorflow/keras-applications/inception_v3/{WEIGHTS_FILE}"
WEIGHTS_MD5 = "bcbd6486424b2319ff4ef7d526e38f63"  # as Keras has it
BATCH = 32
PART_BATCHES = 8  # batches to a file of features
UNITS = (512, 256)
DROPOUT = 0.5
LEARNING_RATE = 1e-3


@dataclasses.dataclass(frozen=True)
class Features:
    """What the frozen network makes of a split. index: int64 [n], labels: int32 [n], values: float32 [n, 2048]."""

    index: np.ndarray
    labels: np.ndarray
    values: np.ndarray


def train_then_eval(config: Config) -> dict:
    """Trains the classifier for the run's steps on the labelled images and evaluates it.

    Returns:
      As `evaluation.evaluate_and_record`, and `train/label_top_1_accuracy`: on the images it was trained on.

    Raises:
      CheckpointError: the weights cannot be had or are not InceptionV3's.
      DataError: the data has no labels.
      Interrupted: a signal came; the features computed so far are kept.
    """
    training.make_folder(config.model_dir)
    labelled = data.open_training_source(config)
    log.info("Training data: %s", labelled.describe())
    if labelled.class_names is None:
        raise DataError(f"A baseline needs labels, and {labelled.name} has none. Use a data set with classes.")
    test = data.open_source(config, config.eval_split)
    if test.class_names != labelled.class_names:
        raise DataError(f"{config.train_split} and {config.eval_split} of {labelled.name} have different classes.")
    weights = find_weights(config.baseline_weights)
    training.write_flags(config)
    network = _Network(config, weights)
    known, unknown = (features(network, source, config) for source in (labelled, test))

    mean, deviation = known.values.mean(0, np.float64), known.values.std(0, dtype=np.float64)
    deviation[deviation == 0] = 1  # a feature that is always the same says nothing
    steps = config.total_steps(labelled.num_examples)
    classifier = make_classifier(known.values.shape[1], labelled.num_classes, config.seed)
    standardised = [((f.values - mean) / deviation).astype(np.float32) for f in (known, unknown)]
    fit(classifier, standardised[0], known.labels, config, steps)
    predictions = _predictions(classifier, standardised[1], unknown)
    result = {
        "eval/regularization_loss": 0.0,
        "eval/label_top_1_accuracy": predictions.top_1(),
        "eval/label_top_5_accuracy": predictions.top_5(),
        "train/label_top_1_accuracy": _predictions(classifier, standardised[0], known).top_1(),
        "global_step": float(steps),
    }
    log.info("Step %d: top-1 %.2f %% on %d images of %s; %.2f %% on those it was trained on", steps,
             100 * predictions.top_1(), len(predictions.labels), config.eval_split,
             100 * result["train/label_top_1_accuracy"])
    evaluation.record(config, result, predictions, labelled.class_names, test.ids(predictions.index), steps)
    return result


# --- The classifier --------------------------------------------------------------------------------------------------
def make_classifier(width: int, num_classes: int, seed: int) -> keras.Model:
    """Three dense layers with dropout between them, [n, width] -> logits [n, num_classes]."""
    layers = [keras.Input([width])]
    for i, units in enumerate(UNITS):
        initial = keras.initializers.HeNormal(seed=1000 * seed + i)
        layers += [keras.layers.Dense(units, "relu", kernel_initializer=initial),
                   keras.layers.Dropout(DROPOUT, seed=1000 * seed + 100 + i)]
    last = keras.initializers.GlorotUniform(seed=1000 * seed + len(UNITS))
    return keras.Sequential([*layers, keras.layers.Dense(num_classes, kernel_initializer=last)])


def fit(classifier: keras.Model, values: np.ndarray, labels: np.ndarray, config: Config, steps: int) -> None:
    """Trains `classifier` with Adam for `steps` updates."""
    examples = tf.data.Dataset.from_tensor_slices((values, labels)).shuffle(len(labels), seed=config.seed)
    classifier.compile(
        keras.optimizers.Adam(LEARNING_RATE), keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    classifier.fit(examples.repeat().batch(config.train_batch_size), steps_per_epoch=steps, shuffle=False,
                   verbose=0)


def _predictions(classifier: keras.Model, values: np.ndarray, of: Features) -> Predictions:
    p = tf.nn.softmax(classifier.predict(values, batch_size=1024, verbose=0))
    probabilities, top = tf.math.top_k(p, min(5, p.shape[1]))
    return Predictions(of.index, of.labels, top.numpy(), probabilities.numpy())


# --- The frozen network ----------------------------------------------------------------------------------------------
def find_weights(weights: str) -> str | None:
    """The path of the weights that --baseline_weights stands for; None for random ones.

    Raises:
      CheckpointError: they cannot be had; what to fetch and where to put it is said.
    """
    if weights == "none":
        return None
    if weights != "imagenet":
        path = os.path.expanduser(weights)
        if not os.path.isfile(path):
            raise CheckpointError(
                f"--baseline_weights must be imagenet, none or a file. Received: {weights}, which is no file. Keras's "
                f"own is to be had from {WEIGHTS_URL}."
            )
        return path
    cached = os.path.join(os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras"), "models", WEIGHTS_FILE)
    if not os.path.isfile(cached):
        folder = os.path.join(released.FOLDER, "keras")
        download.fetch(folder, {WEIGHTS_FILE: WEIGHTS_URL})
        cached = os.path.join(folder, WEIGHTS_FILE)
    with open(cached, "rb") as file:
        if hashlib.file_digest(file, "md5").hexdigest() != WEIGHTS_MD5:
            raise CheckpointError(f"{cached} is damaged or not Keras's. Delete it to fetch {WEIGHTS_URL} again.")
    return cached


class _Network:
    """InceptionV3 without its classifier, built when it is first needed: after that its features are on the disk."""

    def __init__(self, config: Config, weights: str | None):
        self._size, self._seed, self._weights, self._run = config.baseline_image_size, config.seed, weights, None
        digest = f"random {config.seed}"
        if weights:
            with open(weights, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.identity = f"{digest} {self._size}"

    def view(self, image: tf.Tensor) -> tf.Tensor:
        """uint8 [H, W, 3] -> float32 [S, S, 3] in [-1, 1], as InceptionV3 takes them; the aspect ratio is not kept."""
        resized = tf.image.resize(tf.cast(image, tf.float32), [self._size, self._size], antialias=True)
        return resized / 127.5 - 1.0

    def __call__(self, images: tf.Tensor) -> np.ndarray:
        """float32 [n, S, S, 3] in [-1, 1] -> float32 [n, 2048]."""
        if self._run is None:
            network = make_network(self._size, self._seed, self._weights)
            self._run = inference(one_device(), network, lambda batch: (network(batch["images"], training=False),))
        return self._run({"images": images})[0]


def make_network(size: int, seed: int, weights: str | None) -> keras.Model:
    """InceptionV3 [n, size, size, 3] -> [n, 2048] with the weights of a file, or random ones drawn by the seed.

    Always in float32: with random weights the features of different images differ in their third digit only.

    Raises:
      CheckpointError: the file does not hold InceptionV3's weights.
    """
    network = keras.applications.InceptionV3(
        include_top=False, weights=None, input_shape=(size, size, 3), pooling="avg",
    )
    if weights is None:
        for i, variable in enumerate(network.weights):
            if len(variable.shape) == 4:  # a convolution's kernel; everything else starts as a constant
                variable.assign(keras.initializers.GlorotUniform(seed=seed * 1_000_003 + i)(variable.shape))
        return network
    try:
        network.load_weights(weights)
    except (ValueError, OSError, KeyError) as error:
        raise CheckpointError(
            f"{weights} does not hold the weights of Keras's InceptionV3 without its top, as {WEIGHTS_FILE} does: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return network


# --- Features, kept in parts -----------------------------------------------------------------------------------------
def features(network: _Network, source, config: Config) -> Features:
    """The features of all images of `source`, from the run's folder as far as they are there.

    Raises:
      Interrupted: a signal came; the parts finished are kept.
    """
    names = hashlib.sha256("\0".join(source.keys).encode(errors="surrogateescape")).hexdigest()
    key = hashlib.sha256(json.dumps([network.identity, source.name, names]).encode()).hexdigest()[:16]
    folder = os.path.join(config.model_dir, "features")
    sized = dataclasses.replace(config, image_size=config.baseline_image_size)
    feed = data.Feed.evaluation(source, sized, batch_size=min(BATCH, source.num_examples), view=network.view)
    size = min(BATCH, source.num_examples)
    steps, parts, started, computed = -(-source.num_examples // size), [], time.perf_counter(), 0
    batches, at = None, -1  # an iterator, and the batch it gives next
    with Interrupts() as interrupts:
        for first in range(0, steps, PART_BATCHES):
            path = os.path.join(folder, f"{key}-{first:06d}.npz")
            part = _read_part(path)
            if part is None:
                count = min(PART_BATCHES, steps - first)
                batches = batches if at == first else feed.iterate(first)
                part, at = _compute(network, batches, count), first + count
                computed += len(part.index)
                _write_part(path, part)
                done = min((first + PART_BATCHES) * size, source.num_examples)
                log.info("Features of %s: %d of %d images, %.1f per second", source.split, done, source.num_examples,
                         computed / (time.perf_counter() - started))
            parts.append(part)
            if interrupts.signal:
                interrupts.stop(f"features of {sum(len(p.index) for p in parts):,} images of {source.split} are kept; "
                                "the same command goes on from there")
    return Features(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(Features)))


def _compute(network: _Network, batches: Iterator[dict], count: int) -> Features:
    columns = []
    for _ in range(count):
        batch = next(batches)
        counts = batch["weights"].numpy() > 0
        columns.append([batch["index"].numpy()[counts], batch["labels"].numpy()[counts],
                        network(batch["images"])[counts]])
    return Features(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def _read_part(path: str) -> Features | None:
    """A part that was kept, or None if there is none or it is damaged: it is then computed again."""
    if not tf.io.gfile.exists(path):
        return None
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            archive = np.load(io.BytesIO(file.read()), allow_pickle=False)
        return Features(*(archive[f.name] for f in dataclasses.fields(Features)))
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("WARNING: %s is damaged (%s) and is computed again", path, error)
        return None


def _write_part(path: str, part: Features) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **dataclasses.asdict(part))
    try:
        tf.io.gfile.makedirs(os.path.dirname(path))
        with tf.io.gfile.GFile(f"{path}.unfinished", "wb") as file:
            file.write(buffer.getvalue())
        tf.io.gfile.rename(f"{path}.unfinished", path, overwrite=True)
    except (OSError, tf.errors.OpError) as error:
        raise checkpoint.storage_error(error, f"features {path}") from error
