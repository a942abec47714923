"""From images to vectors: any endpoint of a network, over data of any size."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
import tensorflow as tf
from keras import ops

from simclr_tf import data
from simclr_tf.config import Config
from simclr_tf.errors import ConfigError
from simclr_tf.evaluation import batches_of
from simclr_tf.model import SimCLR
from simclr_tf.strategy import inference, one_device


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """Vectors of examples, in the order they were drawn.

    index: int64 [n], into the source. labels: int32 [n], -1 unknown. vectors: float32 [n, d].
    pictures: uint8 [n, T, T, 3], what the network saw, shrunk; None unless asked for.
    """

    index: np.ndarray
    labels: np.ndarray
    vectors: np.ndarray
    pictures: np.ndarray | None = None

    def __len__(self):
        return len(self.labels)


class Embedder:
    """Computes an endpoint of `model` for batches; compiled once, so keep it for repeated use.

    Args:
      model: its weights are read at each call: a network in training gives its vectors of the moment.
      endpoint: a key of what `model(images)` gives. Feature maps [n, h, w, c] are averaged over positions: d = c.
      picture_size: side of `Embeddings.pictures`; 0 for none.

    Raises:
      ConfigError: the model has no such endpoint.
    """

    def __init__(
        self, model: SimCLR, config: Config, strategy, endpoint: str = "final_avg_pool", picture_size: int = 0,
    ):
        if endpoint == "logits_sup" and model.supervised_head is None:
            raise ConfigError(
                "The endpoint must be one of the network's. Received: --endpoint=logits_sup, and this checkpoint has "
                "no supervised head. Use final_avg_pool, or a fine-tuned checkpoint."
            )
        self._config, self._strategy = config, strategy

        def one_batch(batch):
            vectors = vectors_of(model, batch["images"], endpoint)
            columns = (batch["index"], batch.get("weights", ops.ones_like(vectors[:, 0])), batch["labels"], vectors)
            if picture_size:
                size = (picture_size, picture_size)
                small = ops.image.resize(batch["images"], size, interpolation="bilinear", antialias=True)
                columns += (ops.cast(ops.round(255 * ops.clip(small, 0, 1)), "uint8"),)
            return columns

        self._run = inference(strategy, model, one_batch)

    def of_source(self, source, limit: int = 0) -> Iterator[Embeddings]:
        """Each example once, in order, a batch at a time; only the first `limit` examples if above 0."""
        feed = data.Feed.evaluation(source, self._config)
        taken = 0
        for batch in batches_of(feed, self._strategy, self._config):
            part = self._embed(batch, limit - taken if limit else None)
            taken += len(part)
            yield part
            if limit and taken >= limit:
                return

    def of_batches(self, batches: Iterable[dict], limit: int) -> Iterator[Embeddings]:
        """The first `limit` examples of `batches`: dicts of images [n, S, S, 3], labels and index."""
        taken = 0
        for batch in batches:
            part = self._embed(batch, limit - taken)
            taken += len(part)
            yield part
            if taken >= limit:
                return

    def _embed(self, batch: dict, limit: int | None) -> Embeddings:
        index, weights, labels, vectors, *pictures = self._run(batch)
        kept = np.flatnonzero(weights > 0)[:limit]  # padding and unreadable images are not
        return Embeddings(index[kept], labels[kept], vectors[kept], pictures[0][kept] if pictures else None)


def vectors_of(model: SimCLR, images, endpoint: str):
    """float32 [n, d]: an endpoint in inference mode, feature maps averaged over positions."""
    h = model(images, training=False)[endpoint]
    if len(h.shape) == 4:
        h = ops.mean(h, (1, 2))
    return ops.cast(h, "float32")


def joined(parts: Iterable[Embeddings]) -> Embeddings:
    """All of them as one.

    Raises:
      ValueError: there is not one part.
    """
    parts = list(parts)
    columns = [[getattr(part, field.name) for part in parts] for field in dataclasses.fields(Embeddings)]
    return Embeddings(*(None if column[0] is None else np.concatenate(column) for column in columns))


def embed(model: SimCLR, dataset: Iterable, endpoint: str = "final_avg_pool") -> np.ndarray:
    """float32 [n, d]: an endpoint of `model` for every image of `dataset`.

    Args:
      model: from `released.load`, say, or `make_model`.
      dataset: batches float32 [b, H, W, 3] in [0, 1], or tuples or dicts (key `images`) that hold such a batch: a
        `tf.data.Dataset` or anything that can be iterated over.
      endpoint: see `Embedder`.

    Raises:
      ConfigError: the model has no such endpoint.
    """
    run = inference(one_device(), model, lambda batch: (vectors_of(model, batch["images"], endpoint),))
    parts = []
    for batch in dataset:
        images = batch["images"] if isinstance(batch, dict) else batch[0] if isinstance(batch, tuple) else batch
        try:
            parts += run({"images": tf.cast(images, tf.float32)})
        except KeyError:
            raise ConfigError(f"The model has no endpoint {endpoint!r}.") from None
    return np.concatenate(parts)
