"""The pictures of a report, each a `data:` address."""

from __future__ import annotations

import base64
import io
import itertools
import math
import re
from collections.abc import Sequence

import numpy as np

from simclr_tf.report.elements import Picture

ANNOTATED_CLASSES = 20  # confusion matrices up to this size have their counts written in
MAP_CLASSES = 10  # maps of up to so many classes have points of a colour each
LABELLED_CLASSES = 130  # up to this size every class is named at the axes
COLOURS = ("#2f6db5", "#d1701f", "#8a93a3", "#2e8b57", "#8e5aa8", "#b03a48", "#3aa6b9", "#7a6a53")
INK, SOFT, LINE = "#1c2330", "#5d6675", "#e3e6eb"
SAME, OTHER = "#2e8b57", "#c0392b"  # of the same class, of another


def plot(title: str, series: Sequence[tuple[str, np.ndarray, np.ndarray]], x_label: str) -> Picture:
    """Lines over a common axis; `series` holds (name, x, y)."""
    with figure_of(3.4, 2.5) as (figure, axes):
        for (name, x, y), colour in zip(series, itertools.cycle(COLOURS), strict=False):
            axes.plot(x, y, color=colour, label=name, marker="o" if len(x) < 3 else None, markersize=4, linewidth=1.6)
        axes.set_title(title, loc="left")
        axes.set_xlabel(x_label)
        axes.grid(axis="y", color=LINE, linewidth=0.8)
        axes.locator_params(nbins=5)
        axes.ticklabel_format(useOffset=False)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if len(series) > 1:
            # Not loc="best": it weighs every point, and warns when the machine is slow.
            falling = np.mean([y[-1] - y[0] for _, _, y in series]) < 0
            axes.legend(frameon=False, loc="upper right" if falling else "upper left")
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
    upright = n * max(map(len, names)) > 30
    # Room for the names, so that they do not take it from a small matrix.
    room = max(map(len, names)) * 0.6 * font / 72 if n <= ANNOTATED_CLASSES else 0.0
    width, height = side + 1.2 + room, side + 0.6 + (room if upright else 0)
    with figure_of(width, height) as (figure, axes):
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=top, interpolation="nearest")
        axes.set_xticks(shown, names, rotation=90 if upright else 0, fontsize=font)
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
    return Picture(source, caption, width=round(96 * width))


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


def neighbour_sheet(pictures, labels, names, queries, rows, similarities) -> Picture:
    """A row for each query: the image, then its neighbours, framed by whether they are of its class.

    Args:
      pictures: uint8 [n, T, T, 3]. labels: int [n], -1 unknown. names: by label, or None.
      queries: int [q]. rows, similarities: [q, k], the neighbours.
    """
    from matplotlib.patches import Rectangle

    columns = 1 + rows.shape[1]
    with figure_of(8.4, 8.4 * 1.2 * len(queries) / (columns + 0.2)) as (figure, axes):
        for line, (query, near, values) in enumerate(zip(queries, rows, similarities, strict=True)):
            for column, index in enumerate([query, *near]):
                left, top = column + (0.15 if column else 0), line * 1.2
                axes.imshow(pictures[index], extent=(left + 0.06, left + 0.94, top + 0.9, top + 0.02), aspect="auto",
                            interpolation="nearest" if pictures.shape[1] <= 16 else "bilinear")
                known = labels[query] >= 0 and labels[index] >= 0
                colour = SOFT if not known or not column else SAME if labels[index] == labels[query] else OTHER
                axes.add_patch(Rectangle((left + 0.06, top + 0.02), 0.88, 0.88, fill=False, edgecolor=colour,
                                         linewidth=2 if column else 1))
                named = names is not None and labels[index] >= 0
                name = shortened(names[labels[index]], 14 if column else 18) if named else ""
                text = f"{name} {values[column - 1]:.2f}" if column else name
                axes.text(left + 0.5, top + 0.93, text.strip(), ha="center", va="top", fontsize=6.5,
                          fontweight="bold" if not column else "normal")
        axes.set_xlim(0, columns + 0.2)
        axes.set_ylim(1.2 * len(queries), 0)
        axes.axis("off")
        return Picture(png(figure, 140), "Sample images and their nearest neighbours", width=806)


def point_map(places: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Picture:
    """Points [n, 2] in 0..1 coloured by class."""
    import matplotlib

    with figure_of(7.4, 5.2) as (figure, axes):
        colours = matplotlib.colormaps["tab10"]
        for label in np.unique(labels):
            these = labels == label
            axes.scatter(*places[these].T, s=14, color=colours(int(label)), linewidths=0, alpha=0.85,
                         label=shortened(names[label]))
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), markerscale=1.6)
        return Picture(svg(figure), "Map of the embeddings, coloured by class", width=710)


def picture_map(places: np.ndarray, pictures: np.ndarray) -> Picture:
    """The images themselves at their places [n, 2] in 0..1, each moved to the free cell of a grid nearest to it."""
    from PIL import Image

    n, size = pictures.shape[:2]
    columns = max(4, math.ceil(math.sqrt(2.2 * n)))  # about half of the cells stay free
    rows = max(4, math.ceil(columns * 0.7))
    cells = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(-1, 2)
    free = np.ones(len(cells), bool)
    canvas = np.full([rows * size, columns * size, 3], 255, np.uint8)
    wanted = places * [columns - 1, rows - 1]
    # From the middle outwards, so that crowds push to the rim.
    for i in np.argsort(np.square(places - 0.5).sum(1), kind="stable"):
        distance = np.where(free, np.square(cells - wanted[i]).sum(1), np.inf)
        cell = int(distance.argmin())
        free[cell] = False
        x, y = cells[cell] * size
        canvas[y : y + size, x : x + size] = pictures[i]
    image = Image.fromarray(canvas)
    if image.width > 1440:
        image = image.resize((1440, round(image.height * 1440 / image.width)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return Picture(address("image/jpeg", buffer.getvalue()), "Map of the embeddings, of the images", width=1016)


def reliability(bins: Sequence[dict]) -> Picture:
    """Accuracy over confidence; bars on the diagonal are right as often as they say."""
    with figure_of(4.6, 3.4) as (figure, axes):
        axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle="--", zorder=3)
        axes.bar([b["low"] for b in bins], [b["accuracy"] for b in bins], [b["high"] - b["low"] for b in bins],
                 align="edge", color=COLOURS[0], edgecolor="white", linewidth=0.8)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_xlabel("confidence in the first guess")
        axes.set_ylabel("share that is right")
        return Picture(svg(figure), "Accuracy over confidence", width=442)


def bars(title: str, values: Sequence[tuple[str, float]], unit: str) -> Picture:
    """A bar for each (name, value)."""
    with figure_of(3.4, 0.8 + 0.32 * len(values)) as (figure, axes):
        at = range(len(values))
        axes.barh(at, [value for _, value in values], color=COLOURS[0], height=0.62)
        most = max(value for _, value in values) or 1.0
        for i, (_, value) in enumerate(values):
            axes.text(value + 0.02 * most, i, f"{value:.1f}", va="center", fontsize=8, color=SOFT)
        axes.set_yticks(at, [shortened(name) for name, _ in values])
        axes.set_ylim(len(values) - 0.4, -0.6)
        axes.set_xlim(0, 1.15 * most)
        axes.set_title(f"{title}, {unit}", loc="left")
        axes.tick_params(axis="y", length=0)
        return Picture(svg(figure), title)


def curves_by_labels(series, test_images: int) -> Picture:
    """Accuracy in % over the number of labelled images; `series` holds (name, x, y)."""
    with figure_of(6.4, 3.2) as (figure, axes):
        for (name, x, y), colour in zip(series, itertools.cycle(COLOURS), strict=False):
            axes.plot(x, y, color=colour, label=name, marker="o", markersize=4, linewidth=1.6)
        ticks = sorted({int(v) for _, x, _ in series for v in x})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel("labelled images")
        axes.set_ylabel(f"top-1 on {test_images:,} images, %")
        axes.grid(axis="y", color=LINE, linewidth=0.8)
        axes.legend(frameon=False, loc="best")
        return Picture(svg(figure), "Test accuracy over the number of labelled images", width=614)


def class_label(name: str) -> str:
    """The name of a class to be read: without the WordNet number that ImageNet's data sets put before it."""
    return re.sub(r"^n\d{8}[-_](?=.)", "", name).replace("_", " ")


def shortened(name: str, most: int = 24) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


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


def png(figure, dpi: int = 200) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return address("image/png", buffer.getvalue())


def address(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
