"""`alarm evaluate`: several policies' completions by every reward of a recipe."""

from __future__ import annotations

import argparse

from alarm_service.commands.options import Subparsers, add_command
from alarm_service.commands.study_options import (
    add_outputs,
    add_resampling,
    add_scoring,
    outputs_of,
    resampling_of,
    source_of,
)

__all__ = ["POLICY_FILES", "add_to"]

POLICY_FILES = """\
Each FILE has a policy's completions, a JSON object a line:
  {"prompt": "...", "completion": "..."}
with "fields" {"question": "..."} where templates name some. Prompts are matched by "id" where a
line has one, else by their text. A policy may answer a prompt several times.
"""

_DESCRIPTION = f"""\
Compare policies by each reward of a recipe: mean, spread, gain over the first policy, and
win rates of each over each, with paired bootstrap intervals over prompts.

{POLICY_FILES}"""


def add_to(commands: Subparsers) -> None:
    """Add the command."""
    parser = add_command(commands, "evaluate", _run, "compare policies' completions", _DESCRIPTION)
    parser.add_argument("files", nargs="+", metavar="NAME=FILE", help="a policy's completions")
    parser.add_argument(
        "--lower", action="append", default=[], metavar="NAME",
        help="less of this is better; may be given again",
    )  # fmt: skip
    add_resampling(parser)
    add_outputs(parser)
    add_scoring(parser)


def _run(options: argparse.Namespace) -> int:
    source = source_of(options)
    outputs = outputs_of(options, options.files)
    from alarm_models.recipe_tables import Overrides
    from alarm_service.study.columns import Column, columns_of, require_names
    from alarm_service.study.evaluating import evaluate
    from alarm_service.study.evaluation_page import evaluation_page
    from alarm_service.study.files import named_files, read_policies
    from alarm_service.study.rewards import rewards_of
    from alarm_service.study.scores import score_all

    recipe = source.recipe
    material = read_policies(named_files(options.files))
    if options.sample is not None:
        material = material.some_prompts(options.sample, options.seed)
    require_names(material, recipe, options.lower)
    scores = score_all(material.samples, recipe, source.settings, source.url)
    rewards = rewards_of(material.samples, recipe, scores, recipe.hierarchy_with(Overrides()))
    columns = [
        Column("reward", rewards, is_lower_better=False),
        *columns_of(material, recipe, scores, options.lower),
    ]
    result = evaluate(material, recipe, columns, resampling_of(options), scores)
    outputs.give(evaluation_page(result), result)
    return 0
