"""One self-contained `report.html` per run: what it was, how it went, and what it gets wrong.

A report is a list of sections. Each is made by a function `part(run) -> Section | None`, None where the run has not
left the material for it; `PARTS` is their order. The template escapes every text it is given.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import logging
import math
import os
import re
import zipfile
from collections.abc import Callable, Sequence

import jinja2
import numpy as np
import tensorflow as tf

import simclr_tf
from simclr_tf import checkpoint, data
from simclr_tf.config import Config, flag_fields
from simclr_tf.errors import DataError
from simclr_tf.evaluation import Predictions
from simclr_tf.summaries import read_history

log = logging.getLogger(__name__)

NAME = "report.html"
MAX_POINTS = 400  # per curve; more of them are averaged, so that long runs give small files
SAMPLES = 8  # images whose views are shown
ANNOTATED_CLASSES = 20  # confusion matrices up to this size have their counts written in
LABELLED_CLASSES = 130  # up to this size every class is named at the axes
LISTED = 12  # rows of the tables of classes and pairs
_COLOURS = ("#2f6db5", "#d1701f", "#8a93a3")
_INK, _SOFT, _LINE = "#1c2330", "#5d6675", "#e3e6eb"


# --- What a report is made of ----------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Picture:
    """An image as a `data:` address. `width`: CSS pixels it is shown at. `pixels`: enlarge without smoothing."""

    source: str
    caption: str
    show_caption: bool = False
    width: int | None = None
    pixels: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of texts. `numeric`: right-aligned columns; `bar`: the column of numbers in 0..1 drawn as bars; `best`:
    rows to stress."""

    columns: Sequence[str]
    rows: Sequence[Sequence]
    numeric: Sequence[int] = ()
    bar: int | None = None
    best: Sequence[int] = ()


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading with, in this order, what it has of: text, large figures, pictures, tables, a folded list, a note."""

    title: str
    anchor: str
    text: str = ""
    headline: Sequence[tuple[str, str]] = ()
    pictures: Sequence[Picture] = ()
    layout: str = ""
    tables: Sequence[Table] = ()
    details_title: str = ""
    details: Sequence[tuple[str, Sequence[tuple[str, str]]]] = ()
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run left in its folder. `predictions` and `class_names` are None before an evaluation."""

    config: Config
    history: list[dict]
    predictions: Predictions | None
    class_names: tuple[str, ...] | None
    step: int | None


def write_report(
    config: Config, *, title: str | None = None, lead: str | None = None, parts: Sequence[Callable] | None = None,
) -> str:
    """Writes `report.html` into `config.model_dir` from what is there, and returns its path.

    Args:
      config: the run's, as it was after following its checkpoint.
      title, lead: heading and line below it; default the folder's name and what was run on what.
      parts: functions Run -> Section | None; default `PARTS`.

    Raises:
      StorageError: the file cannot be written.
    """
    run = read_run(config)
    sections = [section for part in parts or PARTS if (section := part(run)) is not None]
    path = os.path.join(config.model_dir, NAME)
    name = os.path.basename(os.path.normpath(config.model_dir))
    flagfile = os.path.join(config.model_dir, "flags.flags")
    flagfile = flagfile if tf.io.gfile.exists(flagfile) else None  # an evaluation alone leaves none
    text = render(title or name, lead or describe(config), sections, flagfile)
    try:
        with tf.io.gfile.GFile(path, "w") as file:
            file.write(text)
    except (OSError, tf.errors.OpError) as error:
        raise checkpoint.storage_error(error, path) from error
    log.info("Report: %s", path)
    return path


def render(title: str, lead: str, sections: Sequence[Section], flagfile: str | None = None) -> str:
    """The HTML of a report; `flagfile` repeats the run. Every argument is plain text, never markup."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("simclr_tf"), autoescape=True, undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(NAME).render(
        title=title, lead=lead, sections=sections, flagfile=flagfile, version=simclr_tf.__version__,
    )


def read_run(config: Config) -> Run:
    """Gathers what `config.model_dir` holds. A damaged file of predictions is reported and left out."""
    predictions, class_names, step = None, None, None
    suffix = f"_{config.eval_name}" if config.eval_name else ""
    path = os.path.join(config.model_dir, f"predictions{suffix}.npz")
    if tf.io.gfile.exists(path):
        try:
            with tf.io.gfile.GFile(path, "rb") as file:
                archive = np.load(io.BytesIO(file.read()), allow_pickle=False)
            columns = [archive[f.name] for f in dataclasses.fields(Predictions)]
            class_names = tuple(map(str, archive["class_names"]))
            predictions, step = Predictions(*columns), int(archive["step"])
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            log.warning("WARNING: the report leaves out the predictions: %s cannot be read: %s", path, error)
    return Run(config, read_history(config.model_dir), predictions, class_names, step)


def describe(config: Config) -> str:
    """One line: what was done, on what, with which network."""
    verb = {
        "pretrain": "Contrastive pretraining", "finetune": "Supervised fine-tuning", "distill": "Distillation",
        "baseline": "Frozen InceptionV3 with a small classifier",
    }[config.train_mode]
    if config.train_mode == "finetune" and not config.checkpoint:
        verb = "Supervised training from scratch"
    if config.mode == "eval":
        verb = "Evaluation"
    if config.train_mode == "baseline":
        return f"{verb} on {config.dataset}: {config.baseline_image_size} px, seed {config.seed}"
    return (
        f"{verb} on {config.dataset}: ResNet-{config.resnet_depth}, width {config.width_multiplier:g}, "
        f"{config.image_size} px, seed {config.seed}"
    )


# --- The parts -------------------------------------------------------------------------------------------------------
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
    text = f"{n:,} images of {run.config.dataset}, split {run.config.eval_split}, after {run.step:,} steps."
    return Section("Accuracy", "accuracy", text, headline)


def curves(run: Run) -> Section | None:
    """Loss, accuracy, entropy, learning rate and throughput over the steps."""
    panels = (
        ("Loss", (("train/contrast_loss", "contrastive"), ("train/supervised_loss", "supervised"),
                  ("train/distillation_loss", "distillation"), ("train/total_loss", "total"))),
        ("Contrastive accuracy", (("train/contrast_acc", "train"),)),
        ("Contrastive entropy", (("train/contrast_entropy", "train"),)),
        ("Agreement with the teacher", (("train/teacher_agreement", "train"),)),
        ("Classification accuracy", (("train/supervised_acc", "train"), ("eval/label_top_1_accuracy", "evaluation"))),
        ("Learning rate", (("learning_rate", ""),)),
        ("Images per second", (("images_per_second", ""),)),
    )
    pictures = []
    for title, tags in panels:
        series = [(name, *points(run.history, tag)) for tag, name in tags]
        series = [(name, x, y) for name, x, y in series if len(x)]
        if series:
            pictures.append(plot(title, series, "step"))
    if not pictures:
        return None
    return Section("Training", "training", pictures=pictures, layout="curves")


def views(run: Run) -> Section | None:
    """Sample images beside what augmentation makes of them: the first ones of the first epoch, as they were seen."""
    if run.config.mode == "eval" or run.config.train_mode == "baseline":
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


PARTS: tuple[Callable[[Run], Section | None], ...] = (accuracy, curves, views, confusion, configuration)


# --- Numbers ---------------------------------------------------------------------------------------------------------
def points(history: Sequence[dict], tag: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of a tag, at most MAX_POINTS of them: means over neighbours where there are more."""
    pairs = [(line["step"], line[tag]) for line in history if tag in line and math.isfinite(line[tag])]
    if tag == "images_per_second":
        pairs = [pair for pair in pairs if pair[1] > 0]  # 0 stands for "not measured yet"
    if not pairs:
        return np.zeros(0), np.zeros(0)
    bins = np.array_split(np.array(pairs, float), min(MAX_POINTS, len(pairs)))
    x, y = np.array([part.mean(0) for part in bins]).T
    return x, y


def confusion_counts(labels: np.ndarray, guesses: np.ndarray, num_classes: int) -> np.ndarray:
    """int [classes, classes]: images of the row's class taken for the column's."""
    flat = labels.astype(np.int64) * num_classes + guesses
    return np.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes)


def most_confused(counts: np.ndarray) -> list[tuple[int, int]]:
    """(true class, taken for), the most frequent mistakes first, at most LISTED."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:LISTED]
    return [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True) if wrong[i, j]]


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share observed in n trials (Wilson 1927)."""
    z = 1.959964
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


# --- Pictures --------------------------------------------------------------------------------------------------------
def plot(title: str, series: Sequence[tuple[str, np.ndarray, np.ndarray]], x_label: str) -> Picture:
    """Lines over a common axis; `series` holds (name, x, y)."""
    with _figure(3.4, 2.5) as (figure, axes):
        for (name, x, y), colour in zip(series, _COLOURS, strict=False):
            axes.plot(x, y, color=colour, label=name, marker="o" if len(x) < 3 else None, markersize=4, linewidth=1.6)
        axes.set_title(title, loc="left")
        axes.set_xlabel(x_label)
        axes.grid(axis="y", color=_LINE, linewidth=0.8)
        axes.locator_params(nbins=5)
        axes.ticklabel_format(useOffset=False)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if len(series) > 1:
            axes.legend(frameon=False)
        return Picture(_svg(figure), title)


def confusion_picture(counts: np.ndarray, class_names: Sequence[str]) -> Picture:
    """The matrix, coloured by the share of each row; the deepest colour is the largest share there is."""
    n = len(class_names)
    totals = counts.sum(1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    top = float(shares.max()) or 1.0
    side = min(10.0, max(2.2, 0.42 * n)) if n <= ANNOTATED_CLASSES else 9.0
    font = 9.0 if n <= ANNOTATED_CLASSES else max(4.5, min(8.0, 62 * side / n))
    shown = range(0, n, math.ceil(n / LABELLED_CLASSES))
    names = [_shortened(class_names[i]) for i in shown]
    with _figure(side + 1.2, side + 0.6) as (figure, axes):
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=top, interpolation="nearest")
        axes.set_xticks(shown, names, rotation=0 if n * max(map(len, names)) <= 30 else 90, fontsize=font)
        axes.set_yticks(shown, names, fontsize=font)
        axes.tick_params(length=0)
        axes.set_xlabel("taken for")
        axes.set_ylabel("is")
        axes.spines[:].set_visible(False)
        if n <= ANNOTATED_CLASSES:
            for i, j in np.argwhere(counts > 0):
                axes.text(j, i, f"{counts[i, j]}", ha="center", va="center", fontsize=font,
                          color="white" if shares[i, j] > 0.55 * top else _INK)
        bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02, ticks=[0, top / 2, top], format="{x:.0%}")
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0)
        # Hundreds of names drawn as outlines are heavier than a picture of them.
        source = (_svg if n <= ANNOTATED_CLASSES else _png)(figure)
    caption = "Confusion matrix: share of each class taken for each class"
    return Picture(source, caption, width=round(96 * (side + 1.2)))


def view_grid(
    originals: Sequence[np.ndarray], rows: Sequence[np.ndarray], caption: str = "Sample images and their views",
) -> Picture:
    """One column per image: the original, scaled to fit a square, and its views below.

    Args:
      originals: uint8 [H, W, 3] each, of any size.
      rows: float [n, S, S, 3] in [0, 1] each.
    """
    from PIL import Image

    gap = 1 if rows[0].shape[1] <= 32 else 4
    cell = rows[0].shape[1] + gap
    sheet = np.full([cell * (1 + len(rows)) - gap, cell * len(originals) - gap, 3], 255, np.uint8)
    for i, original in enumerate(originals):
        fitted = Image.fromarray(original)
        scale = (cell - gap) / max(fitted.size)
        fitted = np.asarray(fitted.resize([max(1, round(side * scale)) for side in fitted.size]))
        top, left = (cell - gap - fitted.shape[0]) // 2, i * cell + (cell - gap - fitted.shape[1]) // 2
        sheet[top : top + fitted.shape[0], left : left + fitted.shape[1]] = fitted
        for k, row in enumerate(rows, 1):
            sheet[k * cell : k * cell + cell - gap, i * cell : i * cell + cell - gap] = np.round(255 * row[i])
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "PNG", optimize=True)
    # Whole multiples keep the pixels of small images even.
    width = sheet.shape[1] * max(1, 900 // sheet.shape[1])
    return Picture(_address("image/png", buffer.getvalue()), caption, width=width, pixels=cell <= 64)


def class_label(name: str) -> str:
    """The name of a class to be read: without the WordNet number that ImageNet's data sets put before it."""
    return re.sub(r"^n\d{8}[-_](?=.)", "", name).replace("_", " ")


def _shortened(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"


class _figure:
    """A matplotlib figure in the report's style, `with _figure(width, height) as (figure, axes)`, in inches.

    Made without pyplot: no window system is asked for, and nothing global changes.
    """

    def __init__(self, width: float, height: float):
        import matplotlib
        from matplotlib.figure import Figure

        self._style = matplotlib.rc_context({
            "font.size": 9, "axes.titlesize": 10, "axes.labelcolor": _SOFT, "axes.edgecolor": _SOFT,
            "axes.spines.top": False, "axes.spines.right": False, "text.color": _INK, "text.parse_math": False,
            "xtick.color": _SOFT, "ytick.color": _SOFT, "svg.fonttype": "path", "svg.hashsalt": "simclr_tf",
        })
        self._make = lambda: Figure(figsize=(width, height), layout="constrained")

    def __enter__(self):
        self._style.__enter__()
        figure = self._make()
        return figure, figure.add_subplot()

    def __exit__(self, *exc):
        self._style.__exit__(*exc)


def _svg(figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _address("image/svg+xml", buffer.getvalue())


def _png(figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200)
    return _address("image/png", buffer.getvalue())


def _address(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
