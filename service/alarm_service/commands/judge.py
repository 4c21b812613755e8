"""`alarm judge`: policies against each other, as a language model sees them."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alarm_service.commands.evaluate import POLICY_FILES
from alarm_service.commands.options import Subparsers, add_command
from alarm_service.commands.study_options import (
    add_outputs,
    add_resampling,
    files_of,
    number_within,
    outputs_of,
    positive,
    resampling_of,
)
from alarm_service.lines import require_other_file

if TYPE_CHECKING:
    from alarm_service.study.judging import Judge

__all__ = ["add_to"]

_DESCRIPTION = f"""\
Ask a model behind an OpenAI-compatible endpoint which of two policies' completions is better.
Each pair is asked about in both orders; where the orders disagree it is a tie. Answers are kept in
a cache as they come: a run that was stopped goes on, and a run again asks nothing.

{POLICY_FILES}
The key comes from the variable OPENAI_API_KEY. Cost is shown first, and asked about on a terminal;
elsewhere --yes is needed.
"""


def add_to(commands: Subparsers) -> None:
    """Add the command."""
    parser = add_command(commands, "judge", _run, "let a model judge policies", _DESCRIPTION)
    parser.add_argument("files", nargs="+", metavar="NAME=FILE", help="a policy's completions")
    parser.add_argument(
        "--endpoint", required=True, metavar="URL", help="for example https://HOST/v1"
    )
    parser.add_argument("--model", required=True, help="the judge, as the endpoint calls it")
    parser.add_argument("--criteria", help="what decides, in words, rather than our own")
    parser.add_argument(
        "--cache", type=Path, default=Path("judge-cache.jsonl"), metavar="FILE",
        help="where answers are kept [judge-cache.jsonl]",
    )  # fmt: skip
    parser.add_argument(
        "--concurrency", type=positive, default=8, metavar="N", help="requests at once [8]"
    )
    parser.add_argument(
        "--body", type=_object, default={}, metavar="JSON",
        help='more of the request, over {"temperature": 0, "max_tokens": 512}; null takes away',
    )  # fmt: skip
    parser.add_argument(
        "--prices", type=_price, nargs=2, metavar=("PROMPT", "ANSWER"),
        help="of a million tokens, to show the cost in money",
    )  # fmt: skip
    parser.add_argument(
        "--timeout", type=_seconds, default=120, metavar="S", help="a request's [120]"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask before it costs")
    parser.add_argument("--cost", action="store_true", help="show the cost, and stop")
    add_resampling(parser)
    add_outputs(parser)


def _run(options: argparse.Namespace) -> int:
    outputs = outputs_of(options, options.files)
    require_other_file(options.cache, files_of(options.files), "one of the files to be read")
    from alarm_service.study.cache import AnswerCache
    from alarm_service.study.files import named_files, read_policies
    from alarm_service.study.judgement import judge_pairs, settle
    from alarm_service.study.judgement_page import cost_in_words, judgement_page
    from alarm_service.study.judging import ask_all, cost_of, duels_of
    from alarm_service.study.scores import progress_bar

    judge = _judge(options)
    material = read_policies(named_files(options.files))
    if options.sample is not None:
        material = material.some_prompts(options.sample, options.seed)
    duels = duels_of(material, judge_pairs(material), judge)
    cache = AnswerCache(options.cache)
    cost = cost_of(duels, cache, judge, tuple(options.prices) if options.prices else None)
    sys.stderr.write(cost_in_words(cost, judge) + "\n")
    if options.cost or (cost.num_asks and not _agreed(options)):
        return 0 if options.cost else 1
    with cache, progress_bar() as progress:
        task = progress.add_task("judging", total=cost.num_asks)
        refused = asyncio.run(ask_all(duels, cache, judge, lambda: progress.advance(task)))
    result = settle(material, duels, cache, options.model, resampling_of(options), refused)
    outputs.give(judgement_page(result), result)
    return 1 if refused else 0


def _judge(options: argparse.Namespace) -> Judge:
    from alarm_service.study.http import key_for_header, require_url
    from alarm_service.study.judging import Judge
    from alarm_service.study.verdicts import CRITERIA

    body = {"model": options.model, "temperature": 0, "max_tokens": 512, **options.body}
    return Judge(
        endpoint=require_url(options.endpoint, "--endpoint"),
        # An empty variable is none, as it was unset in many a shell.
        api_key=key_for_header(os.environ.get("OPENAI_API_KEY") or None, "OPENAI_API_KEY"),
        criteria=options.criteria or CRITERIA,
        body={name: value for name, value in body.items() if value is not None},
        concurrency=options.concurrency,
        timeout_s=options.timeout,
    )


def _agreed(options: argparse.Namespace) -> bool:
    if options.yes:
        return True
    if not sys.stdin.isatty():
        sys.stderr.write("alarm: nothing was asked; --yes goes on without a terminal\n")
        return False
    sys.stderr.write("Go on? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _seconds(text: str) -> float:
    return number_within(text, 0, math.inf)


def _price(text: str) -> float:
    return number_within(text, -1e-9, math.inf)


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"wants a JSON object: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"wants a JSON object, not {text!r}")
    for name in ("max_tokens", "max_completion_tokens"):
        most = value.get(name, 1)
        if most is not None and (type(most) is not int or most < 1):
            raise argparse.ArgumentTypeError(f"wants a whole number for {name}, not {most!r}")
    return value
