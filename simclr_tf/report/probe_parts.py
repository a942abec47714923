"""The parts of a report about classifiers: the probes of frozen features, and how far confidence can be believed."""

from __future__ import annotations

import re

import numpy as np

from simclr_tf import metrics
from simclr_tf.report.elements import Section, Table
from simclr_tf.report.numbers import percent, wilson_interval
from simclr_tf.report.pictures import curves_by_labels, reliability
from simclr_tf.report.run import PROBE_NAMES, Run


def probes(run: Run) -> Section | None:
    """Linear, logistic regression and nearest neighbours on frozen features, and how they fare with fewer labels."""
    if run.probes is None:
        return None
    result = run.probes["result"]
    kinds = [kind for kind in PROBE_NAMES if f"probe/{kind}/top_1" in result]
    n, classes = int(result["probe/test_images"]), len(run.probes.get("class_names", ()))
    rows = []
    for kind in kinds:
        value = {name: result[f"probe/{kind}/{name}"] for name in ("top_1", "top_5", "mean_per_class")}
        low, high = wilson_interval(value["top_1"], n)
        rows.append([PROBE_NAMES[kind], percent(value["top_1"]), f"{100 * low:.1f} to {100 * high:.1f}",
                     percent(value["top_5"]) if classes > 5 else "-", percent(value["mean_per_class"]),
                     f"{100 * result[f'probe/{kind}/calibration_error']:.1f}", _chosen(kind, result)])
    best = max(range(len(kinds)), key=lambda i: result[f"probe/{kinds[i]}/top_1"]) if kinds else None
    tables = [Table(("Probe", "Top-1", "95 % interval", "Top-5", "Mean over classes", "Calibration error, points",
                     "Settings"), rows, numeric=(1, 2, 3, 4, 5), best=[] if best is None else [best])]
    ks = {int(m[1]): v for name, v in result.items() if (m := re.fullmatch(r"probe/knn/k(\d+)/top_1", name))}
    if len(ks) > 1:
        tables.append(Table(("Neighbours that vote", *map(str, sorted(ks))),
                            [("Top-1", *(percent(ks[k]) for k in sorted(ks)))], numeric=range(1, len(ks) + 1)))
    pictures = []
    if sweep := _sweep(kinds, result):
        pictures.append(curves_by_labels(sweep, n))
    text = (
        f"Trained on the frozen features of {result['probe/train_images']:,} labelled images, tested on {n:,} others; "
        "settings were chosen on held-out training images."
    )
    return Section("Probes", "probes", text, pictures=pictures, tables=tables)


def _chosen(kind: str, result: dict) -> str:
    name = {"knn": "k", "logreg": "l2", "linear": "learning_rate"}[kind]
    return f"{name.replace('_', ' ')} {result[f'probe/{kind}/{name}']:g}"


def _sweep(kinds, result: dict):
    """(name of the probe, images [k], accuracy in % [k]) of each probe that was repeated with fewer labels."""
    series = []
    for kind in kinds:
        found = [(result[name.removesuffix("top_1") + "images"], 100 * value) for name, value in result.items()
                 if name.startswith(f"probe/{kind}/labels_") and name.endswith("top_1")]
        if len(found) > 1:
            x, y = np.array(sorted(found)).T
            series.append((PROBE_NAMES[kind], x, y))
    return series


def calibration(run: Run) -> Section | None:
    """Whether the classifier is right as often as it says."""
    if run.predictions is None or not len(run.predictions.labels):
        return None
    confidence = run.predictions.probabilities[:, 0]
    error, bins = metrics.calibration(confidence, run.predictions.correct)
    text = (
        f"Mean confidence in the first guess {percent(float(confidence.mean()))}, accuracy "
        f"{percent(run.predictions.top_1())}; expected calibration error {100 * error:.1f} points."
    )
    return Section("Calibration", "calibration", text, pictures=[reliability(bins)])
