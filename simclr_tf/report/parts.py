"""The parts of a report: each a function Run -> Section, or None where the run has not left the material for it."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from simclr_tf import data
from simclr_tf.config import flag_fields
from simclr_tf.errors import DataError
from simclr_tf.report.elements import Section, Table
from simclr_tf.report.numbers import LISTED, confusion_counts, most_confused, percent, points, wilson_interval
from simclr_tf.report.pictures import class_label, confusion_picture, plot, view_grid
from simclr_tf.report.probe_parts import calibration, probes
from simclr_tf.report.representation_parts import embedding_map, nearest_images, signs_of_health
from simclr_tf.report.run import Run

log = logging.getLogger(__name__)

SAMPLES = 8  # images whose views are shown
PANELS = (  # title, (tag, name) of each line
    ("Loss", (("train/contrast_loss", "contrastive"), ("train/supervised_loss", "supervised"),
              ("train/distillation_loss", "distillation"), ("train/total_loss", "total"))),
    ("Contrastive accuracy", (("train/contrast_acc", "train"),)),
    ("Contrastive entropy", (("train/contrast_entropy", "train"),)),
    ("Agreement with the teacher", (("train/teacher_agreement", "train"),)),
    ("Classification accuracy", (("train/supervised_acc", "train"), ("eval/label_top_1_accuracy", "evaluation"))),
    ("Nearest neighbours, top-1", (("probe/knn/top_1", "evaluation"),)),
    ("Learning rate", (("learning_rate", ""),)),
    ("Images per second", (("images_per_second", ""),)),
)


def accuracy(run: Run) -> Section | None:
    """Top-1 and top-5 with what chance and the size of the test set make of them."""
    if run.predictions is None or not len(run.predictions.labels):
        return None
    n, classes = len(run.predictions.labels), len(run.class_names)
    top_1 = run.predictions.top_1()
    low, high = wilson_interval(top_1, n)
    headline = [(percent(top_1), f"top-1 (95 % interval {100 * low:.1f} to {percent(high)})")]
    if classes > 5:
        headline.append((percent(run.predictions.top_5()), "top-5"))
    headline.append((percent(1 / classes), f"chance, {classes} classes"))
    text = f"{n:,} images of {run.config.dataset}, split {run.config.eval_split}, after {run.step:,} steps"
    text += f", by {run.classifier[0].lower()}{run.classifier[1:]}." if run.classifier else "."
    return Section("Accuracy", "accuracy", text, headline)


def curves(run: Run) -> Section | None:
    """Loss, accuracy, entropy, learning rate and throughput over the steps."""
    pictures = []
    for title, tags in PANELS:
        series = [(name, *points(run.history, tag)) for tag, name in tags]
        series = [(name, x, y) for name, x, y in series if len(x)]
        if series:
            pictures.append(plot(title, series, "step"))
    if not pictures:
        return None
    return Section("Training", "training", pictures=pictures, layout="curves")


def views(run: Run) -> Section | None:
    """Sample images beside what augmentation makes of them: the first ones of the first epoch, as they were seen."""
    if run.config.mode in ("eval", "probe", "embed") or run.config.train_mode == "baseline":
        return None
    try:
        source = data.open_training_source(run.config)
        batch = next(iter(data.Feed.training(source, run.config, batch_size=min(SAMPLES, source.num_examples))))
        originals = [source.load(int(i)) for i in batch["index"]]
    except DataError as error:
        log.warning("WARNING: the report leaves out the sample images: %s", error)
        return None
    images = batch["images"].numpy()
    count = images.shape[-1] // 3
    text = {
        2: "Original images, and below each the two views that training pulls together.",
        1: "Original images, and below each the view it is trained on.",
    }[count]
    return Section(
        "Augmentation", "augmentation", text, pictures=[view_grid(originals, np.split(images, count, -1))],
        layout="wide",
    )


def confusion(run: Run) -> Section | None:
    """The confusion matrix, the most confused pairs and the classes that fare worst."""
    if run.predictions is None or not len(run.predictions.labels):
        return None
    counts = confusion_counts(run.predictions.labels, run.predictions.top[:, 0], len(run.class_names))
    pairs = most_confused(counts)
    names, totals = [class_label(name) for name in run.class_names], counts.sum(1)
    recall = np.divide(counts.diagonal(), totals, out=np.zeros(len(totals)), where=totals > 0)
    seen = np.flatnonzero(totals)
    worst = seen[np.argsort(recall[seen], kind="stable")][:LISTED]
    tables = [Table(
        ("Class", "Images", "Correct", ""),
        [(names[i], f"{totals[i]:,}", percent(recall[i]), recall[i]) for i in worst],
        numeric=(1, 2), bar=3,
    )]
    if pairs:
        tables.append(Table(
            ("Is", "Taken for", "Images", "Of its class"),
            [(names[i], names[j], f"{counts[i, j]:,}", percent(counts[i, j] / totals[i]))
             for i, j in pairs],
            numeric=(2, 3),
        ))
    listed = "Each class, the worst first" if len(worst) == len(seen) else f"The {len(worst)} worst classes"
    listed += ", and the pairs most often confused." if pairs else ". No image was taken for another class."
    return Section(
        "Confusion", "confusion", "A row holds the images of one class, a column what they were taken for.",
        pictures=[confusion_picture(counts, names)], tables=tables, note=listed,
    )


def configuration(run: Run) -> Section:
    """What was chosen, and folded away everything else."""
    chosen, topics = [], {}
    for field in flag_fields():
        row = (f"--{field.name}", str(getattr(run.config, field.name)))
        topics.setdefault(field.metadata["topic"], []).append(row)
        if field.name in run.config.given:
            chosen.append(row)
    return Section(
        "Configuration", "configuration", tables=[Table(("Chosen", "Value"), chosen)] if chosen else [],
        details_title="All settings", details=list(topics.items()),
    )


PARTS: tuple[Callable[[Run], Section | None], ...] = (
    accuracy, probes, curves, views, signs_of_health, nearest_images, embedding_map, confusion, calibration,
    configuration,
)
