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
Compare each aspect of a recipe with its holistic reward on pairs of completions, and recommend
the aspects that agree. Length and readability are compared too, as baselines.

FILE is either one JSON lines file of prompts with their completions
  {"prompt": "...", "completions": ["...", "..."]}
or two files as NAME=FILE with the completions of two policies for the same prompts
  {"prompt": "...", "completion": "..."}
A line with several completions may also have
  "fields"       {"question": "..."}: texts that the recipe's templates use
  "values"       {"name": [0.5, null]}: further scores to compare, one per completion
  "preferences"  [{"first": 0, "second": 1, "preferred": "first"}]: human preferences
                 between two of them; "preferred" is "first", "second" or null for neither
"""


def add_select(commands: Subparsers) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands, "select", _run_select, "find the aspects that agree with the holistic reward",
        _SELECT_DESCRIPTION,
    )  # fmt: skip
    parser.add_argument("files", nargs="+", metavar="FILE", help="FILE, or NAME=FILE twice")
    parser.add_argument(
        "--against", choices=("holistic", "preferences"), default="holistic",
        help="reference that chosen aspects must agree with [default holistic]",
    )  # fmt: skip
    parser.add_argument(
        "--choose",
        type=positive,
        default=1,
        metavar="N",
        help="recommend at most N aspects [default 1]",
    )
    parser.add_argument(
        "--lower", action="append", default=[], metavar="NAME",
        help="aspect or value for which lower is better; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="write the recipe with the chosen aspects"
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
Estimate the constants of a recipe on completions of the initial policy: mean and standard
deviation of the holistic score, and the threshold that admits the wanted share. Shows what each
aspect adds to the reward past the threshold, and reports an aspect that is a length bonus.

FILE is a JSON lines file of samples, or of prompts with their completions:
  {"prompt": "...", "completion": "..."}
  {"prompt": "...", "completions": ["...", "..."]}
each with "fields" {"question": "..."} if the recipe's templates use some
"""


def add_calibrate(commands: Subparsers) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "calibrate",
        _run_calibrate,
        "estimate a recipe's mean, std and threshold",
        _CALIBRATE_DESCRIPTION,
    )
    parser.add_argument("file", metavar="FILE")
    parser.add_argument(
        "--admit", type=_share, default=0.27, metavar="SHARE",
        help="share of completions past the threshold [default 0.27, as z >= 0.6 in a normal "
        "distribution]",
    )  # fmt: skip
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="write the recipe with these constants"
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
Each FILE is a JSON lines file with the completions of one policy:
  {"prompt": "...", "completion": "..."}
with "fields" {"question": "..."} if templates use some. Prompts are matched by "id" if a line has
one, else by their text. A policy may have several completions per prompt.
"""

_EVALUATE_DESCRIPTION = f"""\
Compare policies by each reward of a recipe: mean, standard deviation, gain over the first policy
and pairwise win rates, with paired bootstrap intervals over prompts.

{POLICY_FILES}"""


def add_evaluate(commands: Subparsers) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "evaluate",
        _run_evaluate,
        "compare policies by their completions",
        _EVALUATE_DESCRIPTION,
    )
    parser.add_argument("files", nargs="+", metavar="NAME=FILE", help="completions of one policy")
    parser.add_argument(
        "--lower", action="append", default=[], metavar="NAME",
        help="aspect or value for which lower is better; repeatable",
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
Each pair is judged in both orders; if the orders disagree it is a tie. Answers are cached as they
arrive, so an interrupted run resumes and a repeated run sends no requests.

{POLICY_FILES}
The API key is read from OPENAI_API_KEY. The estimated cost is shown first: on a terminal you are
asked to confirm it, elsewhere --yes is required.
"""


def add_judge(commands: Subparsers) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands, "judge", _run_judge, "compare policies with an LLM judge", _JUDGE_DESCRIPTION
    )
    parser.add_argument("files", nargs="+", metavar="NAME=FILE", help="completions of one policy")
    parser.add_argument(
        "--endpoint",
        required=True,
        metavar="URL",
        help="OpenAI-compatible endpoint, such as https://HOST/v1",
    )
    parser.add_argument("--model", required=True, help="name of the judge model at the endpoint")
    parser.add_argument("--criteria", help="text that replaces the default judging criteria")
    parser.add_argument(
        "--cache", type=Path, default=Path("judge-cache.jsonl"), metavar="FILE",
        help="cache of answers [default judge-cache.jsonl]",
    )  # fmt: skip
    parser.add_argument(
        "--concurrency",
        type=positive,
        default=8,
        metavar="N",
        help="maximum concurrent requests [default 8]",
    )
    parser.add_argument(
        "--body", type=_object, default={}, metavar="JSON",
        help='request parameters, merged over {"temperature": 0, "max_tokens": 512}; null '
        'removes one',
    )  # fmt: skip
    parser.add_argument(
        "--prices", type=_price, nargs=2, metavar=("PROMPT", "ANSWER"),
        help="prices per million prompt and answer tokens, to show the cost in money",
    )  # fmt: skip
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=120,
        metavar="S",
        help="timeout per request in seconds [default 120]",
    )
    parser.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    parser.add_argument("--cost", action="store_true", help="show the estimated cost and exit")
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
    refused: list[str] = []
    if cost.num_asks:
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
        # Treat an empty variable as unset.
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
        sys.stderr.write(
            "alarm: no requests were sent; without a terminal, pass --yes to confirm\n"
        )
        return False
    sys.stderr.write("Continue? [y/N] ")
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
        raise argparse.ArgumentTypeError(f"expected a JSON object: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {text!r}")
    for name in ("max_tokens", "max_completion_tokens"):
        most = value.get(name, 1)
        if most is not None and (type(most) is not int or most < 1):
            raise argparse.ArgumentTypeError(
                f"{name} must be an integer of at least 1, got {most!r}"
            )
    return value
