"""A page as Markdown, with its pictures as files beside it."""

from __future__ import annotations

from collections.abc import Sequence

from alarm_service.study.page import Grid, Page, Paragraph, Picture

__all__ = ["markdown_of"]


def markdown_of(page: Page) -> str:
    """Write a page; pictures are named ``NAME.png``."""
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
    """Keep texts from a user's files from being read as markup."""
    for mark in "\\|<`*_":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("\n", " ")
