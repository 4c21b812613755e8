"""Creates a recipe from a checkpoint alone, by its family; refuses unknown checkpoints."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alarm_models.errors import CheckpointError
from alarm_models.modeling.families import Family, match_family, toml_value
from alarm_models.modeling.inspection import CheckpointFacts, inspect_folder, read_json_object

__all__ = ["SOURCE", "CheckpointRecipe", "recipe_of_checkpoint", "recipe_text"]

#: Prefix of a recipe name that is a folder or hub id of a checkpoint.
SOURCE = "checkpoint:"

#: The name of the only model of such a recipe.
_MODEL = "rm"


@dataclass(frozen=True, slots=True)
class CheckpointRecipe:
    """The table of a recipe, with its family and the facts that it is based on."""

    table: Mapping[str, Any]
    family: Family
    #: None for an adapter, whose base is read when it is loaded.
    facts: CheckpointFacts | None


def recipe_of_checkpoint(checkpoint: str) -> CheckpointRecipe:
    """Create the recipe of a folder or hub id; raise `CheckpointError` if it has no known family.

    Downloads all files of a hub id, including weights, as loading does.
    """
    # Both import torch, which recipe files do not need.
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
    # A recipe may be written to a file, and be served from another folder.
    is_folder = Path(checkpoint).expanduser().is_dir()
    where = str(folder.absolute()) if is_folder else checkpoint
    keys = {"checkpoint": where, **_keys(family, facts)}
    output: dict[str, str] = {}
    is_weighed = "gate_at" in family.recipe or "gate" in family.recipe
    if family.recipe["kind"] == "multi-objective" and not is_weighed:
        labels = _labels(facts)
        # The files do not say which of labels without names is the score: the recipe asks.
        if not all(re.fullmatch(r"LABEL_\d+", one) for one in labels):
            output = {"output": labels[-1]}
        if not facts.config.get("id2label"):
            keys["objectives"] = labels
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
    """A folder with only an adapter, and the checkpoint that it applies to."""

    folder: str
    base: str
    family: Family


def _adapter(checkpoint: str) -> _AdapterFolder | None:
    """Return the base and the head of an adapter's folder; None for any other folder."""
    folder = Path(checkpoint).expanduser().absolute()
    if not (folder / "adapter_config.json").is_file():
        return None
    # Trainers often write the base's configuration beside an adapter, and merged weights count.
    if (folder / "config.json").is_file() and inspect_folder(folder).has_base:
        return None
    adapter_config = read_json_object(folder / "adapter_config.json")
    base = adapter_config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise CheckpointError(f"{folder}: adapter_config.json names no base model: write a recipe")
    tokenizer = {"tokenizer": str(folder)} if (folder / "tokenizer_config.json").is_file() else {}
    if adapter_config.get("task_type") == "SEQ_CLS":
        family = Family("adapter of a sequence classifier", recipe={"kind": "sequence"} | tokenizer)
    elif any((folder / f"value_head.{end}").is_file() for end in ("safetensors", "bin")):
        keys = {"kind": "sequence", "head": "v_head.summary"} | tokenizer
        family = Family("adapter with a value head (LLaMA-Factory)", recipe=keys)
    else:
        raise CheckpointError(
            f"{folder} has an adapter for "
            f"{adapter_config.get('task_type') or 'no named task'} on {base}, "
            "and no reward head: write a recipe with `adapter` and the keys that read its score"
        )
    return _AdapterFolder(str(folder), base, family)


def _keys(family: Family, facts: CheckpointFacts) -> dict[str, Any]:
    """Return the family's recipe keys with the end-of-text token filled in."""
    keys = dict(family.recipe)
    if keys.get("suffix") == "$eos":
        end = facts.eos_token
        if end is None:
            raise CheckpointError(
                f"{facts.folder}: the tokenizer names no eos_token: write `suffix`"
            )
        # OpenRLHF adds a space before it, unless the chat text already ends with it.
        template = facts.chat_template or ""
        keys["suffix"] = end if end in template or "eos_token" in template else f" {end}"
    return keys


def _labels(facts: CheckpointFacts) -> list[str]:
    labels = facts.config.get("id2label")
    if not labels:  # the default names of transformers
        return [f"LABEL_{index}" for index in range(facts.num_labels or 2)]
    return [str(labels[key]) for key in sorted(labels, key=int)]


def _name(checkpoint: str) -> str:
    """Return a recipe name: the last part of a folder or hub id, with only valid characters."""
    last = Path(checkpoint).expanduser().resolve().name if "/" not in checkpoint else checkpoint
    return re.sub(r"[^\w.-]+", "-", last.rstrip("/").rpartition("/")[2]) or "model"


def recipe_text(table: Mapping[str, Any]) -> str:
    """Format a recipe's table as TOML, ready to be saved and served."""
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
