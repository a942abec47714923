"""The pictures of a report, each a `data:` address."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Sequence

import numpy as np

from simclr_tf.report.elements import Picture

ANNOTATED_CLASSES = 20  # confusion matrices up to this size have their counts written in
LABELLED_CLASSES = 130  # up to this size every class is named at the axes
COLOURS = ("#2f6db5", "#d1701f", "#8a93a3")
INK, SOFT, LINE = "#1c2330", "#5d6675", "#e3e6eb"


def plot(title: str, series: Sequence[tuple[str, np.ndarray, np.ndarray]], x_label: str) -> Picture:
    """Lines over a common axis; `series` holds (name, x, y)."""
    with figure_of(3.4, 2.5) as (figure, axes):
        for (name, x, y), colour in zip(series, COLOURS, strict=False):
            axes.plot(x, y, color=colour, label=name, marker="o" if len(x) < 3 else None, markersize=4, linewidth=1.6)
        axes.set_title(title, loc="left")
        axes.set_xlabel(x_label)
        axes.grid(axis="y", color=LINE, linewidth=0.8)
        axes.locator_params(nbins=5)
        axes.ticklabel_format(useOffset=False)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if len(series) > 1:
            axes.legend(frameon=False)
        return Picture(svg(figure), title)


def confusion_picture(counts: np.ndarray, class_names: Sequence[str]) -> Picture:
    """The matrix, coloured by the share of each row; the deepest colour is the largest share there is."""
    n = len(class_names)
    totals = counts.sum(1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    top = float(shares.max()) or 1.0
    side = min(10.0, max(2.2, 0.42 * n)) if n <= ANNOTATED_CLASSES else 9.0
    font = 9.0 if n <= ANNOTATED_CLASSES else max(4.5, min(8.0, 62 * side / n))
    shown = range(0, n, math.ceil(n / LABELLED_CLASSES))
    names = [shortened(class_names[i]) for i in shown]
    with figure_of(side + 1.2, side + 0.6) as (figure, axes):
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
                          color="white" if shares[i, j] > 0.55 * top else INK)
        bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02, ticks=[0, top / 2, top], format="{x:.0%}")
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0)
        # Hundreds of names drawn as outlines are heavier than a picture of them.
        source = (svg if n <= ANNOTATED_CLASSES else png)(figure)
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
    return Picture(address("image/png", buffer.getvalue()), caption, width=width, pixels=cell <= 64)


def class_label(name: str) -> str:
    """The name of a class to be read: without the WordNet number that ImageNet's data sets put before it."""
    return re.sub(r"^n\d{8}[-_](?=.)", "", name).replace("_", " ")


def shortened(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"


class figure_of:
    """A matplotlib figure in the report's style, `with figure_of(width, height) as (figure, axes)`, in inches.

    Made without pyplot: no window system is asked for, and nothing global changes.
    """

    def __init__(self, width: float, height: float):
        import matplotlib
        from matplotlib.figure import Figure

        self._style = matplotlib.rc_context({
            "font.size": 9, "axes.titlesize": 10, "axes.labelcolor": SOFT, "axes.edgecolor": SOFT,
            "axes.spines.top": False, "axes.spines.right": False, "text.color": INK, "text.parse_math": False,
            "xtick.color": SOFT, "ytick.color": SOFT, "svg.fonttype": "path", "svg.hashsalt": "simclr_tf",
        })
        self._make = lambda: Figure(figsize=(width, height), layout="constrained")

    def __enter__(self):
        self._style.__enter__()
        figure = self._make()
        return figure, figure.add_subplot()

    def __exit__(self, *exc):
        self._style.__exit__(*exc)


def svg(figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return address("image/svg+xml", buffer.getvalue())


def png(figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200)
    return address("image/png", buffer.getvalue())


def address(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
