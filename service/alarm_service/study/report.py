"""What a study leaves: tables or JSON on the terminal, and a folder with a report."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic_core import to_json
from rich.console import Console

from alarm_service.study.html import html_of
from alarm_service.study.markdown import markdown_of
from alarm_service.study.page import Page, Picture, print_page
from alarm_service.study.plots import require_plots

__all__ = ["Outputs", "json_of"]


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where results go: the terminal as tables or JSON, and a folder where one is named."""

    folder: Path | None
    as_json: bool

    def check(self) -> None:
        """Raise `StudyError` or `OSError` before long work rather than after."""
        if self.folder is not None:
            require_plots()
            self.folder.mkdir(parents=True, exist_ok=True)

    def give(self, page: Page, result: object) -> None:
        """Show the page, and write it with its pictures and the result."""
        if self.as_json:
            sys.stdout.write(json_of(result))
        else:
            print_page(page, Console())
        if self.folder is None:
            return
        pictures = {one.name: one.draw() for one in page.blocks if isinstance(one, Picture)}
        for name, picture in pictures.items():
            (self.folder / f"{name}.png").write_bytes(picture)
        (self.folder / "result.json").write_text(json_of(result), encoding="utf-8")
        (self.folder / "report.md").write_text(markdown_of(page), encoding="utf-8")
        (self.folder / "report.html").write_text(html_of(page, pictures), encoding="utf-8")
        sys.stderr.write(f"report: {self.folder / 'report.html'}\n")


def json_of(result: object) -> str:
    """Write a result as JSON; what is not a number is null."""
    return to_json(result, indent=2, inf_nan_mode="null", fallback=_listed).decode() + "\n"


def _listed(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"a result holds a {type(value).__name__}")
