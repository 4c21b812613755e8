"""What a study leaves: tables or JSON on the terminal, and a folder with a report."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic_core import to_json
from rich.console import Console

from alarm_service.lines import require_other_file, write_whole
from alarm_service.study.errors import StudyError
from alarm_service.study.html import html_of
from alarm_service.study.markdown import markdown_of
from alarm_service.study.page import Page, Picture, print_page
from alarm_service.study.plots import require_plots

__all__ = ["Outputs", "json_of"]

#: What the files of a report end in.
_WRITTEN = (".html", ".json", ".md", ".png")


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where results go: the terminal as tables or JSON, and a folder where one is named."""

    folder: Path | None
    as_json: bool

    def check(self, inputs: Sequence[Path]) -> None:
        """Raise `AlarmModelsError` or `OSError` before long work rather than after.

        ``inputs`` are the study's own files, which no report may replace.
        """
        if self.folder is None:
            return
        require_plots()
        if self.folder.exists() and not self.folder.is_dir():
            raise StudyError(f"--out {self.folder} is a file: name a folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        if not os.access(self.folder, os.W_OK):
            raise StudyError(f"--out {self.folder} cannot be written: permission denied")
        for there in self.folder.iterdir():
            if there.suffix in _WRITTEN:
                require_other_file(there, inputs, "one of the files to be read")

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
            write_whole(self.folder / f"{name}.png", picture)
        write_whole(self.folder / "result.json", json_of(result))
        write_whole(self.folder / "report.md", markdown_of(page))
        write_whole(self.folder / "report.html", html_of(page, pictures))
        sys.stderr.write(f"report: {self.folder / 'report.html'}\n")


def json_of(result: object) -> str:
    """Write a result as JSON; what is not a number is null."""
    return to_json(result, indent=2, inf_nan_mode="null", fallback=_listed).decode() + "\n"


def _listed(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"a result holds a {type(value).__name__}")
