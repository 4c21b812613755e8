"""A page as one HTML text that needs no other file and no network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

from alarm_service.study.page import Grid, Page, Paragraph, Picture

__all__ = ["html_of"]

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
    """Write a page with its pictures, PNGs by name, put in."""
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
