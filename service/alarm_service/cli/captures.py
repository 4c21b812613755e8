"""`alarm replay` and `alarm audit`."""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path

from alarm_models.errors import AlarmModelsError
from alarm_service.cli.options import (
    Subparsers,
    add_command,
    add_scoring,
    number_within,
    positive,
    source_of,
)
from alarm_service.json_lines import require_other_file, require_writable
from alarm_service.observability.gaming import WINDOW, Limits

__all__ = ["add_audit", "add_replay"]

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
    from alarm_models.recipe.schema import Overrides
    from alarm_service.captures.lines import constants_of
    from alarm_service.evaluation.replay import replay
    from alarm_service.evaluation.replay_examples import ReplayExamples
    from alarm_service.evaluation.replay_html import replay_html
    from alarm_service.evaluation.replay_report import replay_page
    from alarm_service.evaluation.report import json_of, print_page
    from alarm_service.json_lines import STANDARD, write_whole
    from alarm_service.stdout_console import StdoutConsole

    constants = constants_of(source.recipe.rule_params(Overrides()))
    examples = None if options.html is None else ReplayExamples(constants)
    result = replay(files, source.recipe, source.settings, source.url, examples)
    if examples is not None:
        write_whole(options.html, replay_html(result, examples))
        sys.stderr.write(f"report: {options.html}\n")
    if options.out is None:
        print_page(replay_page(result), StdoutConsole())
        return 0
    write_whole(options.out, json_of(result))
    if options.out != STANDARD:
        print_page(replay_page(result), StdoutConsole())
        sys.stderr.write(f"report: {options.out}\n")
    return 0


_AUDIT_DESCRIPTION = """\
Look in a capture (alarm serve --capture FOLDER) for signs that the policy games its reward.

Figures are computed over windows of consecutive samples and compared with limits; a figure has to
pass its limit in one window only. The exit code is 1 where one does, 2 where the capture cannot be
read, else 0. docs/captures.md explains the figures and when to trust them.
"""

#: What each limit is for, in `--help`.
_LIMITED = {
    "zero_deviation_share": "share of groups whose rewards are all equal",
    "ceiling_share": "share of samples within 1e-4 of the largest reward",
    "variance_share": "share of the variance of the reward that one aspect, or the rule, explains",
    "opposed_share": "share of adjacent pairs of a group that an aspect orders against the "
    "holistic score",
    "shared_segment_share": "share of an aspect's segments whose text answers to other prompts "
    "have too",
    "length_correlation": "correlation of the reward with the completion's length, absolute",
    "drift": "CUSUM of the holistic score, in standard deviations of the calibration",
    "truncated_share": "share of samples that were truncated for a model",
    "omitted_share": "share of samples of which a model was not shown a part, other than thoughts, "
    "system messages and tools",
}


def add_audit(commands: Subparsers) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "audit",
        _run_audit,
        "look in a capture for signs of a gamed reward",
        _AUDIT_DESCRIPTION,
    )
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="folder of a capture, or one of its files"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument(
        "--window",
        type=positive,
        default=WINDOW,
        metavar="N",
        help="samples per window; default %(default)s",
    )
    for limit in fields(Limits):
        parser.add_argument(
            f"--max-{limit.name.replace('_', '-')}",
            type=partial(number_within, least=0, most=math.inf),
            default=limit.default,
            metavar="NUMBER",
            help=f"limit of the {_LIMITED[limit.name]}; default %(default)s",
        )


def _run_audit(options: argparse.Namespace) -> int:
    # Not at import: `alarm --help` imports no numpy.
    from alarm_service.captures.lines import capture_files
    from alarm_service.evaluation.audit import audit
    from alarm_service.evaluation.audit_report import audit_page
    from alarm_service.evaluation.report import json_of, print_page
    from alarm_service.stdout_console import StdoutConsole

    limits = Limits(**{one.name: getattr(options, f"max_{one.name}") for one in fields(Limits)})
    try:
        result = audit(capture_files(options.folder), limits, options.window)
    except (AlarmModelsError, OSError) as error:
        sys.stderr.write(f"alarm: {error}\n")
        return 2
    if options.json:
        sys.stdout.write(json_of(result))
    else:
        print_page(audit_page(result), StdoutConsole())
    return 1 if result.num_passed else 0
