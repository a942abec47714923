"""`--mode=probe`: what a network's frozen features are worth to a linear classifier and to nearest neighbours.

The features of `--probe_split` and `--eval_split` are computed once, from the evaluation crop; the probes learn from
the former's labels and are tested on the latter's. Settings that are to be chosen (learning rate, l2) are chosen on a
fifth of the labels that is held out, and the probe is then trained on all of them: the test images choose nothing.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os

import numpy as np
import tensorflow as tf

from simclr_tf import checkpoint, classifiers, data, evaluation, label_subsets, metrics, restore
from simclr_tf.classifiers import Scaler
from simclr_tf.config import Config
from simclr_tf.config_checks import listed, probe_labels
from simclr_tf.embedding import Embedder, Embeddings, joined
from simclr_tf.errors import CheckpointError, DataError
from simclr_tf.evaluation import Predictions
from simclr_tf.sources import Source

log = logging.getLogger(__name__)

HELD_OUT = 0.2  # of each class's labels, for choosing settings
PATIENCE = 10  # values of l2 without a better held-out accuracy after which weaker ones are not tried
DETAILS = "probe.json"


@dataclasses.dataclass(frozen=True)
class Features:
    """What the probes work with: training and test vectors with their labels, and training views for SGD."""

    train: Embeddings
    test: Embeddings
    views: list[np.ndarray]
    class_names: tuple[str, ...]

    def labelled_by(self, rows: np.ndarray) -> Features:
        """With these training rows only."""
        train = Embeddings(self.train.index[rows], self.train.labels[rows], self.train.vectors[rows])
        return dataclasses.replace(self, train=train, views=[view[rows] for view in self.views])


def probe(config: Config) -> dict:
    """Probes `config.checkpoint`, or the run in model_dir, in each way that `config.probe` lists.

    Returns, and adds to `result.json`:
      dict of `probe/<probe>/top_1`, `top_5`, `mean_per_class`, `calibration_error`, `log_loss` (not for kNN), what was
      chosen (`learning_rate`, `l2`); `probe/knn/k<k>/top_1` for each k; with `--probe_labels` also
      `probe/<probe>/labels_<of each class>/top_1`; and `probe/train_images`, `probe/test_images`, `global_step`.
      `probe.json` holds the classes, confusions and calibration, `predictions_<probe>.npz` what was said of each image.

    Raises:
      CheckpointError: there is no checkpoint.
      DataError: a split has no labels, or their classes differ.
    """
    path = config.checkpoint or checkpoint.latest(config.model_dir)
    if path is None:
        raise CheckpointError(f"No checkpoint in {config.model_dir}. Train first, or name one with --checkpoint.")
    bank, test = open_splits(config)
    model, config, strategy = evaluation.load(config, path)
    own = restore.own_metadata(path)
    step = own.step if own else 0
    embedder = Embedder(model, config, strategy, config.endpoint)
    features = _features(embedder, config, bank, test)
    log.info("%d training and %d test vectors of %d numbers (%s)", len(features.train), len(features.test),
             features.train.vectors.shape[1], config.endpoint)
    result, details = {}, {}
    for kind in listed(config, "probe", str):
        found, probabilities = run(kind, features, config)
        predictions = _predictions(features.test, probabilities)
        summary = metrics.details(predictions.labels, predictions.top, predictions.probabilities[:, 0],
                                  features.class_names)
        details[kind] = summary | {"settings": found}
        result |= {f"probe/{kind}/{name}": summary[name]
                   for name in ("top_1", "top_5", "mean_per_class", "calibration_error")}
        if kind != "knn":  # there a class without a vote has probability 0
            result[f"probe/{kind}/log_loss"] = metrics.log_loss(predictions.labels, probabilities)
        result |= {f"probe/{kind}/{name}": value for name, value in found.items()}
        log.info("%s: top-1 %.2f %%, top-5 %.2f %% %s", kind, 100 * summary["top_1"], 100 * summary["top_5"], found)
        _write_predictions(config, kind, predictions, features.class_names, test.ids(predictions.index), step)
        result |= _with_fewer_labels(kind, features, config)
    result |= {"probe/train_images": len(features.train), "probe/test_images": len(features.test),
               "global_step": float(step)}
    _record(config, result, details | {"class_names": list(features.class_names)}, step)
    return result


def open_splits(config: Config) -> tuple[Source, Source]:
    """The sources that probes learn from and are tested on.

    Raises:
      DataError: one has no labels, or their classes differ.
    """
    split = config.probe_split or config.train_split
    bank, test = data.open_source(config, split), data.open_source(config, config.eval_split)
    for source in (bank, test):
        if source.class_names is None:
            raise DataError(f"Probes need labels, and {source.name}, split {source.split}, has none.")
    if bank.class_names != test.class_names:
        raise DataError(f"Splits {bank.split} and {test.split} of {bank.name} have other classes.")
    if config.labels_per_class or config.label_fraction < 1:
        bank = label_subsets.labelled_subset(bank, dataclasses.replace(config, train_mode="finetune"))
    log.info("Labels from: %s", bank.describe())
    log.info("Tested on: %s", test.describe())
    return bank, test


def run(kind: str, features: Features, config: Config) -> tuple[dict, np.ndarray]:
    """One probe: what it chose and, for kNN, the accuracy of each k; and probabilities float32 [m, classes]."""
    if kind == "knn":
        return _knn(features, config)
    fit, name, values, default = {"logreg": _logreg, "linear": _linear}[kind](features, config)
    if len(values) == 1:
        chosen, how = values[0], "given"
    elif (inner := _hold_out(features, config)) is None:
        chosen, how = min(values, key=lambda v: abs(np.log(max(v, 1e-30) / default))), "default"
    else:
        chosen, how = _choose(fit, values, *inner), "held out"
    scaler = _scaler(features, config)
    model = fit([scaler(view) for view in features.views] or [scaler(features.train.vectors)], features.train.labels,
                chosen, None)
    log.info("%s: %s %g (%s)", kind, name, chosen, how)
    return {name: chosen}, model.probabilities(scaler(features.test.vectors))


def _scaler(features: Features, config: Config):
    if not config.probe_standardise:
        return lambda x: x
    return Scaler.of(features.views[0] if features.views else features.train.vectors)


def _knn(features: Features, config: Config) -> tuple[dict, np.ndarray]:
    ks = listed(config, "knn_k", int)
    if max(ks) > len(features.train):
        log.info("kNN: only %d training images vote where k is more", len(features.train))
    shares = classifiers.knn_probabilities(
        features.test.vectors, features.train.vectors, features.train.labels, len(features.class_names), ks,
        config.knn_temperature,
    )
    accuracies = {k: float((metrics.top_k(p, 1)[:, 0] == features.test.labels).mean()) for k, p in shares.items()}
    return {"k": ks[0]} | {f"k{k}/top_1": value for k, value in accuracies.items()}, shares[ks[0]]


def _logreg(features: Features, config: Config):
    def fit(views, labels, l2, start):
        return classifiers.logistic_regression(views[0], labels, len(features.class_names), l2, start)

    values = listed(config, "probe_l2", float) or classifiers.default_l2()
    return fit, "l2", tuple(sorted(values, reverse=True)), 1.0


def _linear(features: Features, config: Config):
    def fit(views, labels, learning_rate, start):
        return classifiers.linear_by_sgd(
            views, labels, len(features.class_names), learning_rate=learning_rate, epochs=config.probe_epochs,
            batch_size=config.probe_batch_size, weight_decay=config.probe_weight_decay, seed=config.seed,
        )

    return fit, "learning_rate", listed(config, "probe_learning_rates", float), 0.1


def _hold_out(features: Features, config: Config):
    """(views, labels, vectors, labels): to train on, and held out; None where no class has labels to spare."""
    held = ~chosen_rows(features.train.labels, len(features.class_names), 1 - HELD_OUT, config.seed)
    if not held.any():
        return None
    scaler = _scaler(features, config)
    views = [scaler(view)[~held] for view in features.views] or [scaler(features.train.vectors)[~held]]
    return views, features.train.labels[~held], scaler(features.train.vectors)[held], features.train.labels[held]


def _choose(fit, values, views, labels, held_x, held_y) -> float:
    """The value that does best on what was held out: by accuracy, of equals by loss."""
    best, chosen, since, model = None, values[0], 0, None
    for value in values:
        model = fit(views, labels, value, model)
        p = model.probabilities(held_x)
        score = (float((p.argmax(1) == held_y).mean()), -metrics.log_loss(held_y, p))
        if best is None or score > best:
            best, chosen, since = score, value, 0
        elif (since := since + 1) >= PATIENCE:
            break
    return chosen


def chosen_rows(labels: np.ndarray, num_classes: int, amount: float | int, seed: int) -> np.ndarray:
    """bool [n]: of each class `amount` rows, or that fraction of them if it is a float; at least one, by the seed."""
    chosen = np.zeros(len(labels), bool)
    for rows in label_subsets.rows_per_class(labels, num_classes, seed):
        count = max(1, round(amount * len(rows))) if isinstance(amount, float) else amount
        chosen[rows[:count]] = True
    return chosen


def _with_fewer_labels(kind: str, features: Features, config: Config) -> dict:
    result = {}
    for name, amount in probe_labels(config):
        rows = np.flatnonzero(chosen_rows(features.train.labels, len(features.class_names), amount, config.seed))
        _, probabilities = run(kind, features.labelled_by(rows), config)
        accuracy = float((metrics.top_k(probabilities, 1)[:, 0] == features.test.labels).mean())
        result |= {f"probe/{kind}/labels_{name}/top_1": accuracy, f"probe/{kind}/labels_{name}/images": len(rows)}
        log.info("%s, %s of each class (%d images): top-1 %.2f %%", kind, name, len(rows), 100 * accuracy)
    return result


def _features(embedder: Embedder, config: Config, bank: Source, test: Source) -> Features:
    train, tested = joined(embedder.of_source(bank)), joined(embedder.of_source(test))
    views = []
    if config.probe_views and "linear" in listed(config, "probe", str):
        # Whole epochs of fine-tuning's batches: every image once in each, cropped and flipped otherwise each time.
        n = bank.num_examples
        seen = dataclasses.replace(config, train_mode="finetune")
        feed = data.Feed.training(bank, seen, batch_size=config.eval_batch_size)
        parts = joined(embedder.of_batches(feed, n * config.probe_views))
        for epoch in range(config.probe_views):
            rows = slice(epoch * n, (epoch + 1) * n)
            by_index = dict(zip(parts.index[rows].tolist(), parts.vectors[rows], strict=True))
            views.append(np.stack([by_index[i] for i in train.index.tolist()]))
    return Features(_known(train), _known(tested), views, bank.class_names)


def _known(embeddings: Embeddings) -> Embeddings:
    """Those whose label is known.

    Raises:
      DataError: there are none.
    """
    known = embeddings.labels >= 0
    if not known.any():
        raise DataError("Probes need labels, and not one image of the split has any.")
    if known.all():
        return embeddings
    return Embeddings(embeddings.index[known], embeddings.labels[known], embeddings.vectors[known])


def _predictions(test: Embeddings, probabilities: np.ndarray) -> Predictions:
    top = metrics.top_k(probabilities, 5)
    return Predictions(test.index, test.labels, top, np.take_along_axis(probabilities, top, 1))


def _write_predictions(config: Config, kind: str, predictions, class_names, ids, step: int) -> None:
    try:
        tf.io.gfile.makedirs(config.model_dir)
        path = os.path.join(config.model_dir, f"predictions_{kind}.npz")
        evaluation.write_predictions(path, predictions, class_names, ids, step)
    except (OSError, tf.errors.OpError) as error:
        raise checkpoint.storage_error(error, f"results in {config.model_dir}") from error


def _record(config: Config, result: dict, details: dict, step: int) -> None:
    """Adds to result.json, which may hold other evaluations of the same step, and writes probe.json and summaries."""
    def path(name):
        return os.path.join(config.model_dir, name)

    try:
        merged = {}
        if tf.io.gfile.exists(path("result.json")):
            with tf.io.gfile.GFile(path("result.json")) as file:
                text = file.read()
            try:
                merged = json.loads(text)
            except ValueError:
                log.warning("WARNING: %s cannot be read and is written anew", path("result.json"))
            if not isinstance(merged, dict) or merged.get("global_step") != result["global_step"]:
                merged = {}
        for name, content in (("result.json", merged | result), (DETAILS, details | {"result": result})):
            with tf.io.gfile.GFile(path(name), "w") as file:
                json.dump(content, file)
        writer = tf.summary.create_file_writer(config.model_dir)
        with writer.as_default():
            for tag, value in result.items():
                if tag.endswith(("top_1", "top_5")):
                    tf.summary.scalar(tag, value, step=step)
        writer.close()
    except (OSError, tf.errors.OpError) as error:
        raise checkpoint.storage_error(error, f"results in {config.model_dir}") from error


class KnnMonitor:
    """Accuracy of the nearest neighbours while a network is trained, which sees none of the labels used here."""

    def __init__(self, model, config: Config, strategy):
        self._bank, self._test = open_splits(dataclasses.replace(config, labels_per_class=0, label_fraction=1.0))
        self._config = config
        self._embedder = Embedder(model, config, strategy, config.endpoint)

    def scalars(self) -> dict[str, float]:
        """`probe/knn/top_1`, `probe/knn/top_5` and `probe/knn/k<k>/top_1` of the network as it is."""
        features = _features(self._embedder, dataclasses.replace(self._config, probe_views=0), self._bank, self._test)
        found, probabilities = _knn(features, self._config)
        hits = metrics.top_k(probabilities, 5) == features.test.labels[:, None]
        values = {"probe/knn/top_1": float(hits[:, 0].mean()), "probe/knn/top_5": float(hits.any(1).mean())}
        log.info("Nearest neighbours: top-1 %.2f %%", 100 * values["probe/knn/top_1"])
        return values | {f"probe/knn/{name}": value for name, value in found.items() if name != "k"}

