"""`--mode=compare`: several runs in one table and one set of curves, as HTML, Markdown and CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import logging
import os

import tensorflow as tf

from simclr_tf import checkpoint, options
from simclr_tf.config import Config, flag_fields
from simclr_tf.errors import ConfigError
from simclr_tf.report.elements import Section, Table
from simclr_tf.report.numbers import percent, points, wilson_interval
from simclr_tf.report.page import render
from simclr_tf.report.parts import PANELS
from simclr_tf.report.pictures import bars, plot
from simclr_tf.report.run import PROBE_NAMES, Run, describe, read_run

log = logging.getLogger(__name__)

HTML, MARKDOWN, CSV = "compare.html", "compare.md", "compare.csv"
MISSING = "-"
_OWN = {"mode", "model_dir", "checkpoint", "report_images", "runs"}  # settings that need not be told apart
_LAST = {  # tag of history.jsonl -> column
    "train/total_loss": "Loss", "train/contrast_loss": "Contrastive loss", "train/contrast_acc": "Contrastive accuracy",
    "images_per_second": "Images/s",
}
_SHARES = ("top_1", "top_5", "accuracy", "Contrastive accuracy")


@dataclasses.dataclass(frozen=True)
class Compared:
    """A run with a name of its own among those compared, and the numbers in which it is compared."""

    name: str
    run: Run
    numbers: dict[str, float]


def compare(config: Config) -> list[Compared]:
    """Compares the runs in the folders `config.runs`; writes compare.html, compare.md and compare.csv into model_dir.

    Raises:
      ConfigError: there are no folders, or one is not a run's.
      StorageError: model_dir cannot be written.
    """
    folders = [os.path.expanduser(part.strip()) for part in (config.runs or "").split(",") if part.strip()]
    if not folders:
        raise ConfigError("--mode=compare needs runs. Add --runs=<folder>,<folder>.")
    names = short_names(folders)
    compared = [Compared(name, run := _read(folder), numbers(run))
                for name, folder in zip(names, folders, strict=True)]
    texts = {
        HTML: render("Comparison of runs", f"{len(compared)} runs: {', '.join(names)}", sections(compared)),
        MARKDOWN: markdown(compared), CSV: as_csv(compared),
    }
    try:
        tf.io.gfile.makedirs(config.model_dir)
        for name, text in texts.items():
            with tf.io.gfile.GFile(os.path.join(config.model_dir, name), "w") as file:
                file.write(text)
    except (OSError, tf.errors.OpError) as error:
        raise checkpoint.storage_error(error, f"the comparison in {config.model_dir}") from error
    print(texts[MARKDOWN], flush=True)
    log.info("Comparison: %s", os.path.join(config.model_dir, HTML))
    return compared


def _read(folder: str) -> Run:
    flagfile = os.path.join(folder, "flags.flags")
    if tf.io.gfile.exists(flagfile) and "://" not in folder:
        return read_run(options.parse([f"--flagfile={flagfile}", f"--model_dir={folder}"]))
    settings = os.path.join(folder, "flags.json")  # what an evaluation alone leaves
    if tf.io.gfile.exists(settings):
        known = {field.name for field in flag_fields()}
        try:
            with tf.io.gfile.GFile(settings) as file:
                found = {k: v for k, v in json.load(file).items() if k in known}
            return read_run(Config(**found | {"model_dir": folder}))
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"{settings} cannot be read: {error}") from error
    raise ConfigError(
        f"--runs must name folders of runs. Received: {folder}, which holds neither flags.flags nor flags.json."
    )


def short_names(folders: list[str]) -> list[str]:
    """The shortest ends of the paths that tell them apart; a folder named twice is numbered."""
    parts = [os.path.normpath(folder).split(os.sep) for folder in folders]
    most = max(map(len, parts))
    for depth in range(1, most + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({i})" for i, name in enumerate(names, 1)]


def numbers(run: Run) -> dict[str, float]:
    """All numbers of a run: its last training metrics, results, and signs of health."""
    found = {}
    if run.history:
        found["Steps"] = float(max(line["step"] for line in run.history))
    for tag, name in _LAST.items():
        x, y = points(run.history, tag)
        if len(x):
            found[name] = float(y[-1])
    if run.predictions is not None and not run.classifier:
        found |= {"top_1": run.predictions.top_1(), "test_images": float(len(run.predictions.labels))}
        if len(run.class_names) > 5:
            found["top_5"] = run.predictions.top_5()
    if run.probes:
        found |= {k: v for k, v in run.probes["result"].items() if k.startswith("probe/")}
    elif len(points(run.history, "probe/knn/top_1")[0]):
        found["probe/knn/top_1"] = float(points(run.history, "probe/knn/top_1")[1][-1])
    if run.representation:
        found |= {f"health/{k}": float(v) for k, v in run.representation.signs.items()}
    return found


def _accuracies(compared: list[Compared]) -> list[tuple[str, str]]:
    """(key of the number, heading) of the columns about accuracy."""
    wanted = [("top_1", "Top-1"), ("top_5", "Top-5")]
    wanted += [(f"probe/{kind}/top_1", f"{name}, top-1") for kind, name in PROBE_NAMES.items()]
    return [(key, name) for key, name in wanted if any(key in c.numbers for c in compared)]


def _others(compared: list[Compared]) -> list[tuple[str, str]]:
    """The same of how training ended, and of health. The CSV has every number."""
    wanted = [("Steps", "Steps"), *((name, name) for name in _LAST.values())]
    wanted += [("health/effective_rank_h", "Effective rank of h"), ("health/alignment", "Alignment"),
               ("health/uniformity", "Uniformity")]
    return [(key, name) for key, name in wanted if any(key in c.numbers for c in compared)]


def _table(compared: list[Compared], columns: list[tuple[str, str]]) -> Table:
    rows = [[c.name, *(_cell(key, c.numbers) for key, _ in columns)] for c in compared]
    best = []
    for key in ("top_1", "probe/logreg/top_1", "probe/linear/top_1", "probe/knn/top_1"):
        if any(key in c.numbers for c in compared):
            best = [max(range(len(compared)), key=lambda i: compared[i].numbers.get(key, -1))]
            break
    return Table(("Run", *(name for _, name in columns)), rows, numeric=range(1, len(columns) + 1), best=best)


def _tables(compared: list[Compared]) -> list[Table]:
    kinds = (_accuracies(compared), _others(compared))
    return [_table(compared, columns) for columns in kinds if columns]


def _cell(key: str, values: dict[str, float]) -> str:
    if key not in values:
        return MISSING
    value = values[key]
    if key == "top_1" and "test_images" in values:
        low, high = wilson_interval(value, int(values["test_images"]))
        return f"{percent(value)} ({100 * low:.1f} to {100 * high:.1f})"
    if key.endswith(_SHARES):
        return percent(value)
    return f"{value:,.0f}" if key in ("Steps", "Images/s") else f"{value:.3f}"


def _differences(compared: list[Compared]) -> Table | None:
    """The settings in which the runs differ."""
    rows = []
    for field in flag_fields():
        values = [str(getattr(c.run.config, field.name)) for c in compared]
        if field.name not in _OWN and len(set(values)) > 1:
            rows.append([f"--{field.name}", *values])
    return Table(("Setting", *(c.name for c in compared)), rows) if rows else None


def sections(compared: list[Compared]) -> list[Section]:
    """The comparison as a report."""
    differences = _differences(compared)
    runs = Table(("Run", "What it is", "Folder"),
                 [(c.name, describe(c.run.config), c.run.config.model_dir) for c in compared])
    figures = []
    for key, name in _accuracies(compared):
        found = [(c.name, c.numbers[key]) for c in compared if key in c.numbers]
        if key.endswith("top_1") and len(found) > 1:
            figures.append(bars(name, [(n, 100 * v) for n, v in found], "%"))
    made = [Section("Results", "results", pictures=figures, layout="curves", tables=_tables(compared),
                    note="In brackets the 95 % interval of the share of test images.")]
    curves = []
    for title, tags in PANELS:
        for tag, name in tags:
            series = [(c.name, *points(c.run.history, tag)) for c in compared]
            series = [(label, x, y) for label, x, y in series if len(x)]
            if series:
                curves.append(plot(f"{title}, {name}" if name and len(tags) > 1 else title, series, "step"))
    if curves:
        made.append(Section("Training", "training", pictures=curves, layout="curves"))
    if differences:
        made.append(Section("Settings in which they differ", "settings", tables=[differences]))
    made.append(Section("Runs", "runs", tables=[runs]))
    return made


def markdown(compared: list[Compared]) -> str:
    """The tables as Markdown."""
    parts = [markdown_table(table) for table in _tables(compared)]
    if differences := _differences(compared):
        parts.append(markdown_table(differences))
    return "\n\n".join(parts) + "\n"


def markdown_table(table: Table) -> str:
    lines = [table.columns, ["---:" if i in table.numeric else "---" for i in range(len(table.columns))], *table.rows]
    return "\n".join("| " + " | ".join(_markdown_cell(cell) for cell in line) + " |" for line in lines)


def _markdown_cell(cell) -> str:
    """A cell that stays one, and text: Markdown lets HTML through."""
    text = " ".join(str(cell).split())
    for sign, instead in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|")):
        text = text.replace(sign, instead)
    return text


def as_csv(compared: list[Compared]) -> str:
    """A row for each run, a column for each number; empty where a run has none."""
    names = list(dict.fromkeys(name for c in compared for name in c.numbers))
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["run", "folder", *names])
    for c in compared:
        writer.writerow([c.name, c.run.config.model_dir, *(c.numbers.get(name, "") for name in names)])
    return table.getvalue()
