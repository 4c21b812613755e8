"""What a study shows, once for the terminal and the report: texts, tables and pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text as Line

from alarm_models.study.bootstrap import Estimate

__all__ = [
    "Grid",
    "Page",
    "Paragraph",
    "Picture",
    "fingerprints",
    "percent",
    "percents",
    "plain",
    "plains",
    "print_page",
]


#: A cell with more letters holds words, not figures.
_MAX_FIGURES = 40


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A sentence or two; ``is_caution`` sets those apart that warn."""

    text: str
    is_caution: bool = False


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of texts; the first column names the rows."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def has_words(self, column: int) -> bool:
        """Say whether a column holds words, which stand on the left and may break."""
        return column == 0 or any(len(row[column]) > _MAX_FIGURES for row in self.rows)


@dataclass(frozen=True, slots=True)
class Picture:
    """A plot that is drawn where it is wanted: ``draw`` returns a PNG."""

    name: str
    caption: str
    draw: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Page:
    """A study's results, to be read from top to bottom."""

    title: str
    blocks: Sequence[Paragraph | Grid | Picture]


def print_page(page: Page, console: Console) -> None:
    """Print texts and tables; pictures are the report's."""
    for block in page.blocks:
        if isinstance(block, Grid):
            table = Table(title=block.title, title_justify="left", caption=block.note or None,
                          caption_justify="left")  # fmt: skip
            for index, header in enumerate(block.headers):
                table.add_column(header, justify="left" if block.has_words(index) else "right")
            for row in block.rows:
                table.add_row(*map(Line, row))
            console.print(table)
        elif isinstance(block, Paragraph):
            console.print(Line(block.text, "yellow" if block.is_caution else ""))


def percent(share: float) -> str:
    """Write a share as 31.2%, or a dash where there is none."""
    return "–" if math.isnan(share) else f"{100 * share:.1f}%"


def plain(value: float | None) -> str:
    """Write a number with three or four digits, or a dash where there is none."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def fingerprints(by_model: Mapping[str, str]) -> str:
    """Write models with their fingerprints."""
    return ", ".join(f"{model} {one}" for model, one in by_model.items())


def percents(one: Estimate) -> str:
    """Write a share with its interval: 31.2% [27.0%, 35.5%]."""
    return _with_interval(one, percent)


def plains(one: Estimate) -> str:
    """Write a number with its interval, all with the digits that the largest of them has."""
    known = [abs(value) for value in (one.value, one.low, one.high) if not math.isnan(value)]
    digits = 3 if max(known, default=0.0) < 10 else 1
    return _with_interval(one, lambda value: "–" if math.isnan(value) else f"{value:.{digits}f}")


def _with_interval(one: Estimate, write: Callable[[float], str]) -> str:
    if math.isnan(one.value) or math.isnan(one.low):
        return write(one.value)
    return f"{write(one.value)} [{write(one.low)}, {write(one.high)}]"
