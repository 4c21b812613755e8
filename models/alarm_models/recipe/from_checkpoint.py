"""A recipe made of a checkpoint alone: its family's keys, or a refusal with what is there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alarm_models.errors import CheckpointError
from alarm_models.modeling.families import Family, match_family, toml_value
from alarm_models.modeling.inspection import CheckpointFacts, inspect_folder

__all__ = ["SOURCE", "CheckpointRecipe", "recipe_of_checkpoint", "recipe_text"]

#: What stands before a folder or hub id where a recipe is made of the checkpoint.
SOURCE = "checkpoint:"

#: The name of the one model of such a recipe.
_MODEL = "rm"


@dataclass(frozen=True, slots=True)
class CheckpointRecipe:
    """A recipe's table, the family that it was made by, and what the files say."""

    table: Mapping[str, Any]
    family: Family
    #: None for an adapter, whose base is read when it is loaded.
    facts: CheckpointFacts | None


def recipe_of_checkpoint(checkpoint: str) -> CheckpointRecipe:
    """Make the recipe of a folder or hub id; raise `CheckpointError` saying what is there.

    A hub id's files are fetched, weights and all, as loading would.
    """
    # Both import torch, which a recipe's file does without.
    from alarm_models.modeling.checkpoint import locate
    from alarm_models.modeling.compatibility import require_plain_weights, unknown_family_refusal

    adapter = _adapter(checkpoint)
    if adapter is not None:
        keys = {"checkpoint": adapter.base, **adapter.family.recipe, "adapter": adapter.folder}
        return CheckpointRecipe(_table(checkpoint, adapter.family, keys, {}), adapter.family, None)
    folder = locate(checkpoint)
    facts = inspect_folder(folder)
    require_plain_weights(facts)
    family = match_family(facts, checkpoint)
    if family is None:
        raise CheckpointError(unknown_family_refusal(facts))
    if family.advice is not None:
        raise CheckpointError(f"{checkpoint} is of the family {family.name}: {family.advice}")
    output: dict[str, str] = {}
    if family.recipe["kind"] == "multi-objective" and "gate_at" not in family.recipe:
        # Which of labels without names is the score, the files do not tell: the recipe asks.
        labels = _labels(facts)
        if not all(re.fullmatch(r"LABEL_\d+", one) for one in labels):
            output = {"output": labels[-1]}
    # A recipe may be written to a file, and be served from another folder.
    is_folder = Path(checkpoint).expanduser().is_dir()
    where = str(folder.absolute()) if is_folder else checkpoint
    keys = {"checkpoint": where, **_keys(family, facts)}
    return CheckpointRecipe(_table(checkpoint, family, keys, output), family, facts)


def _table(
    checkpoint: str, family: Family, keys: Mapping[str, Any], output: Mapping[str, str]
) -> dict[str, Any]:
    return {
        "name": _name(checkpoint),
        "description": family.name + (f": {family.note}" if family.note else ""),
        "models": {_MODEL: keys},
        "holistic": {"model": _MODEL, **output},
        "hierarchy": {"rule": "holistic_only"},
    }


@dataclass(frozen=True, slots=True)
class _AdapterFolder:
    """A folder that holds an adapter alone, and the checkpoint that it changes."""

    folder: str
    base: str
    family: Family


def _adapter(checkpoint: str) -> _AdapterFolder | None:
    """Return what an adapter's folder says of its base and its head; None for any other."""
    folder = Path(checkpoint).expanduser().absolute()
    if not (folder / "adapter_config.json").is_file():
        return None
    # Trainers often write the base's configuration beside an adapter, and merged weights count.
    if (folder / "config.json").is_file() and inspect_folder(folder).has_base:
        return None
    told = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    base = told.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise CheckpointError(f"{folder}: adapter_config.json names no base: write a recipe")
    tokenizer = {"tokenizer": str(folder)} if (folder / "tokenizer_config.json").is_file() else {}
    if told.get("task_type") == "SEQ_CLS":
        family = Family("adapter of a sequence classifier", recipe={"kind": "sequence"} | tokenizer)
    elif any((folder / f"value_head.{end}").is_file() for end in ("safetensors", "bin")):
        keys = {"kind": "sequence", "head": "v_head.summary"} | tokenizer
        family = Family("adapter with a value head (LLaMA-Factory)", recipe=keys)
    else:
        raise CheckpointError(
            f"{folder} holds an adapter for {told.get('task_type') or 'no named task'} on {base}, "
            "and no reward head: write a recipe with `adapter` and what its score is read by"
        )
    return _AdapterFolder(str(folder), base, family)


def _keys(family: Family, facts: CheckpointFacts) -> dict[str, Any]:
    """Return the family's recipe keys, the end of text put in where they name it."""
    keys = dict(family.recipe)
    if keys.get("suffix") == "$eos":
        end = facts.eos_token
        if end is None:
            raise CheckpointError(
                f"{facts.folder}: the tokenizer names no eos_token: write `suffix`"
            )
        # OpenRLHF puts a space before it, unless the chat's text ends with it anyway.
        template = facts.chat_template or ""
        keys["suffix"] = end if end in template or "eos_token" in template else f" {end}"
    return keys


def _labels(facts: CheckpointFacts) -> list[str]:
    labels = facts.config.get("id2label") or {"0": "LABEL_0"}
    return [str(labels[key]) for key in sorted(labels, key=int)]


def _name(checkpoint: str) -> str:
    """Return a recipe's name: the last part of a folder or hub id, without other characters."""
    last = Path(checkpoint).expanduser().resolve().name if "/" not in checkpoint else checkpoint
    return re.sub(r"[^\w.-]+", "-", last.rstrip("/").rpartition("/")[2]) or "model"


def recipe_text(table: Mapping[str, Any]) -> str:
    """Write a recipe's table as TOML, ready to be saved and served."""
    lines: list[str] = []
    _write_table(lines, table, ())
    return "\n".join(lines).strip() + "\n"


def _write_table(lines: list[str], table: Mapping[str, Any], path: tuple[str, ...]) -> None:
    plain = {key: one for key, one in table.items() if not isinstance(one, Mapping)}
    if path and plain:
        lines += ["", f"[{'.'.join(path)}]"]
    lines += [f"{_key(key)} = {toml_value(one)}" for key, one in plain.items()]
    for key, one in table.items():
        if isinstance(one, Mapping):
            _write_table(lines, one, (*path, _key(key)))


def _key(name: str) -> str:
    return name if re.fullmatch(r"[\w-]+", name, re.ASCII) else json.dumps(name)
