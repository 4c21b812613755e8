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
    parser.add_argument(
        "--html", type=Path, metavar="FILE",
        help="write the report as one HTML file, with charts and the samples that changed most",
    )  # fmt: skip
    add_scoring(parser)


def _run_replay(options: argparse.Namespace) -> int:
    source = source_of(options)
    # Not at import: `alarm --help` imports no numpy.
    from alarm_service.captures.lines import capture_files

    files = capture_files(options.folder)
    for target in (options.out, options.html):
        require_writable(target)
        require_other_file(target, files, "one of the files to be read")
    from rich.console import Console

    from alarm_models.recipe.schema import Overrides
    from alarm_service.captures.lines import constants_of
    from alarm_service.evaluation.replay import replay
    from alarm_service.evaluation.replay_examples import ReplayExamples
    from alarm_service.evaluation.replay_html import replay_html
    from alarm_service.evaluation.replay_report import replay_page
    from alarm_service.evaluation.report import json_of, print_page
    from alarm_service.json_lines import STANDARD, write_whole

    constants = constants_of(source.recipe.rule_params(Overrides()))
    examples = None if options.html is None else ReplayExamples(constants)
    result = replay(files, source.recipe, source.settings, source.url, examples)
    if examples is not None:
        write_whole(options.html, replay_html(result, examples))
        sys.stderr.write(f"report: {options.html}\n")
    if options.out is None:
        print_page(replay_page(result), Console())
        return 0
    write_whole(options.out, json_of(result))
    if options.out != STANDARD:
        print_page(replay_page(result), Console())
        sys.stderr.write(f"report: {options.out}\n")
    return 0
