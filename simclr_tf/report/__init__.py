"""One self-contained `report.html` per run: what it was, how it went, and what it gets wrong.

A report is a list of sections. Each is made by a function `part(run) -> Section | None`, None where the run has not
left the material for it; `parts.PARTS` is their order.
"""

from simclr_tf.report.elements import Picture, Section, Table
from simclr_tf.report.numbers import (
    LISTED,
    MAX_POINTS,
    confusion_counts,
    most_confused,
    percent,
    points,
    wilson_interval,
)
from simclr_tf.report.page import NAME, render, write_report
from simclr_tf.report.parts import PARTS, accuracy, configuration, confusion, curves, views
from simclr_tf.report.pictures import class_label, confusion_picture, plot, view_grid
from simclr_tf.report.run import Run, describe, read_run

__all__ = [
    "LISTED", "MAX_POINTS", "NAME", "PARTS", "Picture", "Run", "Section", "Table", "accuracy", "class_label",
    "configuration", "confusion", "confusion_counts", "confusion_picture", "curves", "describe", "most_confused",
    "percent", "plot", "points", "read_run", "render", "view_grid", "views", "wilson_interval", "write_report",
]
