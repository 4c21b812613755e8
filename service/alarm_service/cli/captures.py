"""`alarm replay`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from alarm_service.cli.options import Subparsers, add_command, add_scoring, source_of
from alarm_service.json_lines import require_other_file, require_writable

__all__ = ["add_replay"]

_REPLAY_DESCRIPTION = """\
Score the samples of a capture (alarm serve --capture FOLDER) again with a recipe, and report
what changed: rewards, ranks within groups, samples that pass the threshold, aspects.

The recipe is used as it is: overrides of the captured requests are not applied. With --url, the
server must serve a recipe of that name.
"""


def add_replay(commands: Subparsers) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "replay",
        _run_replay,
        "score captured samples again and report what changed",
        _REPLAY_DESCRIPTION,
    )
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="folder of a capture, or one of its files"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the report as JSON")
    add_scoring(parser)


def _run_replay(options: argparse.Namespace) -> int:
    source = source_of(options)
    # Not at import: `alarm --help` imports no numpy.
    from alarm_service.captures.lines import capture_files

    files = capture_files(options.folder)
    require_writable(options.out)
    require_other_file(options.out, files, "one of the files to be read")
    from rich.console import Console

    from alarm_service.evaluation.replay import replay
    from alarm_service.evaluation.replay_report import replay_page
    from alarm_service.evaluation.report import json_of, print_page
    from alarm_service.json_lines import STANDARD, write_whole

    result = replay(files, source.recipe, source.settings, source.url)
    if options.out is None:
        print_page(replay_page(result), Console())
        return 0
    write_whole(options.out, json_of(result))
    if options.out != STANDARD:
        print_page(replay_page(result), Console())
        sys.stderr.write(f"report: {options.out}\n")
    return 0
