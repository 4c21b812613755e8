"""Reports for terminal, Markdown and HTML."""

from __future__ import annotations

import base64
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from pydantic_core import to_json
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text as Line

from alarm_models.study.bootstrap import Estimate
from alarm_service.evaluation.errors import StudyError
from alarm_service.evaluation.plots import require_plots
from alarm_service.json_lines import require_other_file, write_whole
from alarm_service.stdout_console import StdoutConsole

__all__ = [
    "Grid",
    "Outputs",
    "Page",
    "Paragraph",
    "Picture",
    "fingerprints",
    "html_of",
    "json_of",
    "markdown_of",
    "percent",
    "percents",
    "plain",
    "plains",
    "print_page",
]

#: Cells with more characters are text, not numbers.
_MAX_FIGURES = 40

#: Smaller numbers have three significant digits.
_SMALL = 0.01

#: The width in which a table is measured, in characters.
_ENDLESS = 100_000


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A paragraph; ``is_caution`` marks a warning."""

    text: str
    is_caution: bool = False


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of strings; the first column names the rows."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def has_words(self, column: int) -> bool:
        """Whether a column has text, which is left-aligned and may wrap."""
        return column == 0 or any(len(row[column]) > _MAX_FIGURES for row in self.rows)


@dataclass(frozen=True, slots=True)
class Picture:
    """A plot, drawn on demand: ``draw`` returns a PNG."""

    name: str
    caption: str
    draw: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Page:
    """A report: a title and its blocks, in order."""

    title: str
    blocks: Sequence[Paragraph | Grid | Picture]


def print_page(page: Page, console: Console) -> None:
    """Print paragraphs and tables; pictures are only in the report files."""
    for block in page.blocks:
        if isinstance(block, Grid):
            table = Table(title=Line(block.title), title_justify="left",
                          caption=Line(block.note) if block.note else None,
                          caption_justify="left")  # fmt: skip
            for index, header in enumerate(block.headers):
                justify: JustifyMethod = "left" if block.has_words(index) else "right"
                table.add_column(Line(header), justify=justify, overflow="fold")
            for row in block.rows:
                table.add_row(*map(Line, row))
            if not console.is_terminal:  # a file has no width
                endless = console.options.update(max_width=_ENDLESS)
                console.width = max(console.width, table.__rich_measure__(console, endless).maximum)
            console.print(table)
        elif isinstance(block, Paragraph):
            console.print(Line(block.text, "yellow" if block.is_caution else ""))


def percent(share: float) -> str:
    """Format a share as 31.2%, or a dash for NaN."""
    return "–" if math.isnan(share) else f"{100 * share:.1f}%"


def plain(value: float | None) -> str:
    """Format a number with three or four digits, or a dash for None and NaN."""
    if value is None or math.isnan(value):
        return "–"
    return _digits(value)(value)


def fingerprints(by_model: Mapping[str, str]) -> str:
    """Format models with their fingerprints."""
    return ", ".join(f"{model} {one}" for model, one in by_model.items())


def percents(one: Estimate) -> str:
    """Format a share with its interval: 31.2% [27.0%, 35.5%]."""
    return _with_interval(one, percent)


def plains(one: Estimate) -> str:
    """Format a number with its interval, with the same number of digits."""
    known = [abs(value) for value in (one.value, one.low, one.high) if not math.isnan(value)]
    write = _digits(max(known, default=0.0))
    return _with_interval(one, lambda value: "–" if math.isnan(value) else write(value))


def _digits(size: float) -> Callable[[float], str]:
    """Return how numbers of a size are written: with three digits, or those of small ones."""
    if abs(size) >= 10:
        return "{:.1f}".format
    return "{:.3f}".format if size == 0 or abs(size) >= _SMALL else "{:.3g}".format


def _with_interval(one: Estimate, write: Callable[[float], str]) -> str:
    if math.isnan(one.value) or math.isnan(one.low):
        return write(one.value)
    return f"{write(one.value)} [{write(one.low)}, {write(one.high)}]"


def markdown_of(page: Page) -> str:
    """Return the page as Markdown; pictures are ``NAME.png``."""
    return "\n\n".join([f"# {page.title}", *map(_block, page.blocks)]) + "\n"


def _block(block: Paragraph | Grid | Picture) -> str:
    match block:
        case Paragraph(text, is_caution):
            return f"> {_plain(text)}" if is_caution else _plain(text)
        case Grid(title, headers, rows, note):
            sides = ["---" if block.has_words(one) else "---:" for one in range(len(headers))]
            rule = f"|{'|'.join(sides)}|"
            table = [_row(headers), rule, *map(_row, rows)]
            under = f"\n\n{_plain(note)}" if note else ""
            return f"## {_plain(title)}\n\n" + "\n".join(table) + under
        case Picture(name, caption, _):
            return f"![{caption}]({name}.png)\n\n{caption}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_plain(one) for one in cells)} |"


def _plain(text: str) -> str:
    """Escape text from users' files, so that it is not parsed as markup."""
    for mark in "\\|<`*_":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("\n", " ")


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #22303c; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #dde4ea;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
table .words { white-space: normal; text-align: left; min-width: 20rem; }
.wide { overflow-x: auto; } .note { color: #5b6b79; font-size: 13px; }
.caution { border-left: 4px solid #d1495b; padding: .2rem .8rem; background: #fbf0f1; }
figure { margin: 1.5rem 0; } img { max-width: 100%; height: auto; }
figcaption { color: #5b6b79; font-size: 13px; }
"""


def html_of(page: Page, pictures: Mapping[str, bytes]) -> str:
    """Return the page as HTML with embedded ``pictures``, PNGs by name."""
    blocks = [_html(block, pictures) for block in page.blocks]
    title = escape(page.title)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{title}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        + "\n".join(blocks)
        + "\n</body>\n</html>\n"
    )


def _html(block: Paragraph | Grid | Picture, pictures: Mapping[str, bytes]) -> str:
    match block:
        case Paragraph(text, is_caution):
            return f"<p{' class=caution' if is_caution else ''}>{escape(text)}</p>"
        case Grid():
            return _table(block)
        case Picture(name, caption, _):
            data = base64.b64encode(pictures[name]).decode()
            return (
                f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
                f"<figcaption>{escape(caption)}</figcaption></figure>"
            )


def _table(grid: Grid) -> str:
    rows = [_cells("th", grid.headers, grid), *(_cells("td", row, grid) for row in grid.rows)]
    under = f'<p class="note">{escape(grid.note)}</p>' if grid.note else ""
    return (
        f'<h2>{escape(grid.title)}</h2>\n<div class="wide"><table>\n'
        + "\n".join(f"<tr>{row}</tr>" for row in rows)
        + f"\n</table></div>{under}"
    )


def _cells(tag: str, texts: Sequence[str], grid: Grid) -> str:
    return "".join(
        f"<{tag}{' class=words' if index and grid.has_words(index) else ''}>{escape(text)}</{tag}>"
        for index, text in enumerate(texts)
    )


#: Suffixes of report files.
_WRITTEN = (".html", ".json", ".md", ".png")


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where results go: standard output as tables or JSON, and optionally a folder."""

    folder: Path | None
    as_json: bool

    def check(self, inputs: Sequence[Path]) -> None:
        """Raise `AlarmModelsError` or `OSError` if results cannot be written.

        ``inputs`` are the input files, which a report must not replace.
        """
        if self.folder is None:
            return
        require_plots()
        if self.folder.exists() and not self.folder.is_dir():
            raise StudyError(f"--out {self.folder} is a file, but must be a folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        if not os.access(self.folder, os.W_OK):
            raise StudyError(f"--out {self.folder} cannot be written: permission denied")
        for there in self.folder.iterdir():
            if there.suffix in _WRITTEN:
                require_other_file(there, inputs, "one of the files to be read")

    def give(self, page: Page, result: object) -> None:
        """Write the report files if a folder is set, then print the page or the result."""
        if self.folder is not None:
            self._write(self.folder, page, result)
        if self.as_json:
            sys.stdout.write(json_of(result))
        else:
            print_page(page, StdoutConsole())

    def _write(self, folder: Path, page: Page, result: object) -> None:
        pictures = {one.name: one.draw() for one in page.blocks if isinstance(one, Picture)}
        for name, picture in pictures.items():
            write_whole(folder / f"{name}.png", picture)
        write_whole(folder / "result.json", json_of(result))
        write_whole(folder / "report.md", markdown_of(page))
        write_whole(folder / "report.html", html_of(page, pictures))
        sys.stderr.write(f"report: {folder / 'report.html'}\n")


def json_of(result: object) -> str:
    """Return a result as JSON; NaN and infinities are null."""
    return to_json(result, indent=2, inf_nan_mode="null", fallback=_listed).decode() + "\n"


def _listed(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"a result has a {type(value).__name__}, which is not JSON")
