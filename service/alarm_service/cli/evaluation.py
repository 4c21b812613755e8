"""`alarm select`, `calibrate`, `evaluate` and `judge`."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alarm_service.cli.options import (
    Subparsers,
    add_command,
    add_outputs,
    add_resampling,
    add_scoring,
    files_of,
    number_within,
    outputs_of,
    positive,
    resampling_of,
    source_of,
)
from alarm_service.json_lines import require_other_file

if TYPE_CHECKING:
    from alarm_service.evaluation.judge import Judge

__all__ = ["POLICY_FILES", "add_calibrate", "add_evaluate", "add_judge", "add_select"]

_SELECT_DESCRIPTION = """\
Compare every aspect of a recipe with its holistic reward on pairs of completions, and recommend
the aspects that agree. Length and readability are compared beside them.

FILE is one file, a JSON object a line: a prompt with its completions
  {"prompt": "...", "completions": ["...", "..."]}
or two files as NAME=FILE, of two policies' completions to the same prompts
  {"prompt": "...", "completion": "..."}
A line of completions may also have
  "fields"       {"question": "..."}: texts that templates name
  "values"       {"name": [0.5, null]}: further figures to compare, one a completion
  "preferences"  [{"first": 0, "second": 1, "preferred": "first"}]: people's word on two of them;
                 "preferred" is "first", "second" or null for neither
"""


def add_select(commands: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        commands, "select", _run_select, "find the aspects that agree with the holistic reward",
        _SELECT_DESCRIPTION,
    )  # fmt: skip
    parser.add_argument("files", nargs="+", metavar="FILE", help="FILE, or NAME=FILE twice")
    parser.add_argument(
        "--against", choices=("holistic", "preferences"), default="holistic",
        help="what chosen aspects must agree with [holistic]",
    )  # fmt: skip
    parser.add_argument(
        "--choose", type=positive, default=1, metavar="N", help="recommend at most N aspects [1]"
    )
    parser.add_argument(
        "--lower", action="append", default=[], metavar="NAME",
        help="less of this is better; may be given again",
    )  # fmt: skip
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="write the recipe with what was chosen"
    )
    add_resampling(parser)
    add_outputs(parser)
    add_scoring(parser)


def _run_select(options: argparse.Namespace) -> int:
    source = source_of(options)
    outputs = outputs_of(options, options.files, options.write)
    from alarm_service.evaluation.dataset import read_material
    from alarm_service.evaluation.recipe_writer import write_recipe
    from alarm_service.evaluation.scoring import columns_of, require_names, score_all
    from alarm_service.evaluation.select import (
        changes_of,
        require_pairs,
        select_aspects,
        selection_page,
    )

    material = read_material(options.files, options.sample, options.seed)
    require_names(material, source.recipe, options.lower)
    require_pairs(material, options.against)
    scores = score_all(material.samples, source.recipe, source.settings, source.url)
    result = select_aspects(
        material,
        source.recipe,
        columns_of(material, source.recipe, scores, options.lower),
        resampling_of(options),
        against=options.against,
        max_chosen=options.choose,
        scores=scores,
    )
    outputs.give(selection_page(result), result)
    if options.write is not None:
        settings = source.settings
        changes = changes_of(result, source.recipe)
        write_recipe(settings.recipe[0], settings.set, changes, options.write)
        sys.stderr.write(f"recipe: {options.write}\n")
    return 0


_CALIBRATE_DESCRIPTION = """\
Find the constants of a recipe on completions of the policy that training starts from: the
holistic mean and standard deviation, and a threshold that admits a wanted share. Shows what each
aspect would add past it, and says where that is a bonus for length.

FILE has a JSON object a line, a sample or a prompt with its completions:
  {"prompt": "...", "completion": "..."}
  {"prompt": "...", "completions": ["...", "..."]}
both with "fields" {"question": "..."} where the recipe's templates name some
"""


def add_calibrate(commands: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "calibrate",
        _run_calibrate,
        "find a recipe's mean, std and threshold",
        _CALIBRATE_DESCRIPTION,
    )
    parser.add_argument("file", metavar="FILE")
    parser.add_argument(
        "--admit", type=_share, default=0.27, metavar="SHARE",
        help="the share of completions past the threshold [0.27, as z >= 0.6 of a normal]",
    )  # fmt: skip
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="write the recipe with the constants found"
    )
    add_outputs(parser)
    add_scoring(parser)


def _run_calibrate(options: argparse.Namespace) -> int:
    source = source_of(options)
    outputs = outputs_of(options, [options.file], options.write)
    from alarm_service.evaluation.calibrate import calibrate, calibration_page, changes_of
    from alarm_service.evaluation.dataset import read_groups
    from alarm_service.evaluation.recipe_writer import write_recipe
    from alarm_service.evaluation.scoring import score_all

    material = read_groups(Path(options.file))
    scores = score_all(material.samples, source.recipe, source.settings, source.url)
    result = calibrate(material, source.recipe, scores, options.admit)
    outputs.give(calibration_page(result), result)
    if options.write is not None:
        settings = source.settings
        changes = changes_of(result, source.recipe)
        write_recipe(settings.recipe[0], settings.set, changes, options.write)
        sys.stderr.write(f"recipe: {options.write}\n")
    return 0


def _share(text: str) -> float:
    return number_within(text, 0, 1)


POLICY_FILES = """\
Each FILE has a policy's completions, a JSON object a line:
  {"prompt": "...", "completion": "..."}
with "fields" {"question": "..."} where templates name some. Prompts are matched by "id" where a
line has one, else by their text. A policy may answer a prompt several times.
"""

_EVALUATE_DESCRIPTION = f"""\
Compare policies by each reward of a recipe: mean, spread, gain over the first policy, and
win rates of each over each, with paired bootstrap intervals over prompts.

{POLICY_FILES}"""


def add_evaluate(commands: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        commands, "evaluate", _run_evaluate, "compare policies' completions", _EVALUATE_DESCRIPTION
    )
    parser.add_argument("files", nargs="+", metavar="NAME=FILE", help="a policy's completions")
    parser.add_argument(
        "--lower", action="append", default=[], metavar="NAME",
        help="less of this is better; may be given again",
    )  # fmt: skip
    add_resampling(parser)
    add_outputs(parser)
    add_scoring(parser)


def _run_evaluate(options: argparse.Namespace) -> int:
    source = source_of(options)
    outputs = outputs_of(options, options.files)
    from alarm_models.recipe.schema import Overrides
    from alarm_service.evaluation.dataset import named_files, read_policies
    from alarm_service.evaluation.evaluate import evaluate, evaluation_page
    from alarm_service.evaluation.scoring import (
        Column,
        columns_of,
        require_names,
        rewards_of,
        score_all,
    )

    recipe = source.recipe
    material = read_policies(named_files(options.files))
    if options.sample is not None:
        material = material.some_prompts(options.sample, options.seed)
    require_names(material, recipe, options.lower)
    scores = score_all(material.samples, recipe, source.settings, source.url)
    rewards = rewards_of(material.samples, recipe, scores, recipe.rule_params(Overrides()))
    columns = [
        Column("reward", rewards, is_lower_better=False),
        *columns_of(material, recipe, scores, options.lower),
    ]
    result = evaluate(material, recipe, columns, resampling_of(options), scores)
    outputs.give(evaluation_page(result), result)
    return 0


_JUDGE_DESCRIPTION = f"""\
Ask a model behind an OpenAI-compatible endpoint which of two policies' completions is better.
Each pair is asked about in both orders; where the orders disagree it is a tie. Answers are kept in
a cache as they come: a run that was stopped goes on, and a run again asks nothing.

{POLICY_FILES}
The key comes from the variable OPENAI_API_KEY. Cost is shown first, and asked about on a terminal;
elsewhere --yes is needed.
"""


def add_judge(commands: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        commands, "judge", _run_judge, "let a model judge policies", _JUDGE_DESCRIPTION
    )
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


def _run_judge(options: argparse.Namespace) -> int:
    outputs = outputs_of(options, options.files)
    require_other_file(options.cache, files_of(options.files), "one of the files to be read")
    from alarm_service.evaluation.dataset import named_files, read_policies
    from alarm_service.evaluation.judge import AnswerCache, ask_all, cost_of, duels_of
    from alarm_service.evaluation.judge_report import (
        cost_in_words,
        judge_pairs,
        judgement_page,
        settle,
    )
    from alarm_service.evaluation.scoring import progress_bar

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
    from alarm_service.evaluation.judge import CRITERIA, Judge
    from alarm_service.evaluation.scoring import key_for_header, require_url

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
