"""`alarm view`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from alarm_service.cli.options import Subparsers, add_command, positive
from alarm_service.json_lines import STANDARD, require_other_file, require_writable

if TYPE_CHECKING:
    from alarm_service.viewer.index import RewardIndex

__all__ = ["add_view"]

_VIEW_DESCRIPTION = """\
Show rewards in a browser: a list that sorts, filters and searches, and for each sample how its
reward came about. FILE is the output of alarm score, or a capture (a folder or its files).

Without --out, a page is served on this machine until Ctrl+C; its address has a token that others
cannot guess. With --out, one HTML file is written that works by itself.
"""


def add_view(commands: Subparsers) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands, "view", _run_view, "show rewards of a file or capture in a browser",
        _VIEW_DESCRIPTION,
    )  # fmt: skip
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument(
        "--samples", type=Path, metavar="FILE",
        help="the file that alarm score read, for the texts of its output",
    )  # fmt: skip
    parser.add_argument(
        "--recipe", action="append", default=[], metavar="NAME",
        help="recipe whose threshold and weights explain rewards of lines without them: the "
        "output of alarm score has none; repeatable",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FILE", help="write one HTML file instead")
    parser.add_argument(
        "--limit", type=positive, default=2000, metavar="N",
        help="samples in the file of --out, at most 64 MiB [default 2000]",
    )  # fmt: skip
    parser.add_argument(
        "--pick", choices=("even", "worst", "best"), default="even",
        help="which groups the file of --out has, if not all: at equal distances, or those with "
        "the lowest or the highest rewards [default even]",
    )  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="[default 127.0.0.1]")
    parser.add_argument("--port", type=int, default=0, help="[default: a free one]")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")


def _run_view(options: argparse.Namespace) -> int:
    # Not at import: `alarm --help` imports no pydantic models of the API.
    from alarm_models.recipe.loader import load_recipes
    from alarm_service.captures.lines import capture_files
    from alarm_service.viewer.index import RewardIndex

    for place in options.files:
        place.stat()  # Only files of a folder may be removed meanwhile.
    files = [file for place in options.files for file in capture_files(place)]
    inputs = [*files, *([] if options.samples is None else [options.samples])]
    require_writable(options.out)
    require_other_file(options.out, inputs, "one of the files to be read")
    with RewardIndex(files, options.samples, load_recipes(options.recipe)) as index:
        if options.out is None:
            from alarm_service.viewer.local_server import serve_view

            serve_view(index, options.host, options.port, opens_browser=not options.no_browser)
        else:
            _write(index, options)
    return 0


def _write(index: RewardIndex, options: argparse.Namespace) -> None:
    from alarm_service.json_lines import write_whole
    from alarm_service.viewer.html_file import html_file
    from alarm_service.viewer.selection import Pick

    made = html_file(index, options.limit, Pick(options.pick))
    write_whole(options.out, made.content)
    if made.num_shown < len(index):
        sys.stderr.write(
            f"alarm: the file has {made.num_shown} of {len(index)} samples; --limit and --pick "
            "say which, and without --out all are shown\n"
        )
    if options.out != STANDARD:
        sys.stderr.write(
            f"page: {options.out} ({len(made.content) / 1e6:.1f} MB, {made.num_shown} samples)\n"
        )
