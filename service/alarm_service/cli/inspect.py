"""`alarm inspect`: reports how a checkpoint is read, and writes a recipe for it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from alarm_models.recipe.from_checkpoint import SOURCE, recipe_of_checkpoint, recipe_text
from alarm_models.recipe.loader import given_keys, load_recipe
from alarm_models.types import Sample, Score
from alarm_service.cli.options import Subparsers, add_command, add_settings, settings_of
from alarm_service.settings import Settings
from alarm_service.stdout_console import StdoutConsole

__all__ = ["add_inspect"]

#: The sample that is scored to show that the recipe works.
_PROMPT, _COMPLETION = "What is the capital of France?", "The capital of France is Paris."


def add_inspect(commands: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        commands, "inspect", _run_inspect, "report how a checkpoint is read, and write its recipe"
    )
    parser.add_argument("checkpoint", help="a folder or a hub id")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the recipe to this file")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--no-score", action="store_true", help="read only the configuration; load no weights"
    )
    add_settings(parser, ("template", "set", "device"))


def _run_inspect(options: argparse.Namespace) -> int:
    source = f"{SOURCE}{options.checkpoint}"
    values = list(options.set or ())
    if options.template is not None:
        values.append(f"models.rm.template={json.dumps(options.template)}")
    options.template = options.set = None
    settings = settings_of(options)
    made = recipe_of_checkpoint(options.checkpoint, given_keys(values))
    recipe = load_recipe(source, values)
    (spec,) = recipe.models.values()
    keys = spec.model_dump(mode="json", exclude_defaults=True)
    found: dict[str, Any] = {
        "checkpoint": options.checkpoint,
        "family": made.family.name,
        "note": made.family.note,
        "unverified": made.family.unverified,
        "files": "an adapter" if made.facts is None else made.facts.describe(),
        "kind": spec.kind,
        "head": keys.get("head"),
        "template": "prompt and completion as a text pair"
        if getattr(spec, "pair", False)
        else getattr(spec, "template", None),
    }
    if not options.no_score:
        found |= _scored(recipe.models, recipe.field_patterns, recipe.holistic.output, settings)
    table = {
        **made.table,
        "models": {"rm": {"kind": spec.kind, **keys}},
    }
    found["recipe"] = recipe_text(table)
    if options.out is not None:
        options.out.write_text(found["recipe"], "utf-8")
    if options.json:
        sys.stdout.write(f"{json.dumps(found, ensure_ascii=False, indent=1)}\n")
    else:
        _print(found)
    return 0


def _scored(
    models: Mapping[str, Any], fields: Mapping[str, Any], output: str | None, settings: Settings
) -> dict[str, Any]:
    """Load the model, and score one sample as a server would."""
    import transformers

    from alarm_models.errors import SampleError
    from alarm_models.modeling.inputs import ModelInput
    from alarm_models.preprocessing.templates import TextTemplate
    from alarm_models.reward_models.base import NeuralRewardModel
    from alarm_models.reward_models.registry import Loader
    from alarm_service.engine.devices import choose_devices

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    (spec,) = models.values()
    model = Loader(choose_devices(settings.device)[0], dtype=settings.dtype).load(spec, fields)
    if not isinstance(model, NeuralRewardModel):
        raise TypeError("a checkpoint's recipe has a model with weights")
    named = {name: "text" for text in spec.templates for name in TextTemplate(text).names}
    (prepared,) = model.prepare([Sample(_PROMPT, _COMPLETION, fields=named)])
    if isinstance(prepared, SampleError):
        raise prepared
    notes = list(model.notes)
    if spec.kind == "compare":
        notes.append("the sample is compared with itself; the score is the share of the first")
    if isinstance(prepared, ModelInput):
        try:
            prepared = model.read(prepared, model.forward([prepared])[0])
        except SampleError as error:
            if spec.must_score_warm_up:
                raise
            notes.append(f"the sample has no score: {error.message}")
            prepared = Score(None, None, 0, False)
    return {
        "read_token": None if model.read_token is None else repr(model.read_token),
        "max_tokens": model.limit,
        "dtype": model.dtype,
        "execution": model.execution,
        "fingerprint": model.fingerprint,
        "score": prepared.output(output).value,
        "outputs": None if prepared.outputs is None else dict(prepared.outputs),
        "notes": notes,
    }


def _print(found: Mapping[str, Any]) -> None:
    table = Table(show_header=False)
    shown = {**found, "sample": f"{_PROMPT} -> {_COMPLETION}"} if "score" in found else found
    for key, value in shown.items():
        if key != "recipe" and value not in (None, []):
            text = "\n".join(value) if isinstance(value, list) else value
            table.add_row(key, text if isinstance(text, str) else json.dumps(text))
    StdoutConsole().print(table, markup=False)
    sys.stdout.write(f"\n{found['recipe']}")
