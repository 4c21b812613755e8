"""`alarm select`: which aspects agree with the holistic reward, before any training."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from alarm_service.commands.options import Subparsers, add_command
from alarm_service.commands.study_options import (
    add_outputs,
    add_resampling,
    add_scoring,
    outputs_of,
    positive,
    resampling_of,
    source_of,
)

__all__ = ["add_to"]

_DESCRIPTION = """\
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


def add_to(commands: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        commands, "select", _run, "find the aspects that agree with the holistic reward",
        _DESCRIPTION,
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


def _run(options: argparse.Namespace) -> int:
    source = source_of(options)
    outputs = outputs_of(options, options.files, options.write)
    from alarm_service.study.columns import columns_of, require_names
    from alarm_service.study.files import read_material
    from alarm_service.study.recipe_writing import write_recipe
    from alarm_service.study.scores import score_all
    from alarm_service.study.selecting import changes_of, require_pairs, select_aspects
    from alarm_service.study.selection_page import selection_page

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
