"""What a report is made of: sections of texts, figures, pictures and tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


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
    """A heading with, in this order, what it has of: text, a warning, large figures, pictures, tables, a folded list, a
    note."""

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
    warning: str = ""
