"""Creates a recipe from a checkpoint alone, by its family; refuses unknown checkpoints."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alarm_models.errors import CheckpointError, shortened
from alarm_models.modeling.families import Family, match_family, toml_value
from alarm_models.modeling.inspection import (
    CheckpointFacts,
    inspect_folder,
    is_folder,
    no_weights,
    read_json_object,
)
from alarm_models.recipe.specs import KINDS, Spec, TextSpec

__all__ = ["MODEL", "SOURCE", "CheckpointRecipe", "recipe_of_checkpoint", "recipe_text"]

#: Prefix of a recipe name that is a folder or hub id of a checkpoint.
SOURCE = "checkpoint:"

#: The name of the only model of such a recipe.
MODEL = "rm"

#: What an adapter's files do not say.
_ADAPTED = (
    "the files do not identify the model, so that its text is not verified: it is the chat "
    "template's. Compare a score with its card"
)

#: Keys that set the text of a model.
_TEXT_KEYS = frozenset({"template", "turns", "chat_template"})

#: How a checkpoint that no row of the table matches is read: as the keys that were set say.
_BY_KEYS = Family("recipe by keys", recipe={"kind": "sequence"})


@dataclass(frozen=True, slots=True)
class CheckpointRecipe:
    """The table of a recipe, with its family and the facts that it is based on."""

    table: Mapping[str, Any]
    family: Family
    #: None for an adapter, whose base is read when it is loaded.
    facts: CheckpointFacts | None


def recipe_of_checkpoint(
    checkpoint: str, given: Mapping[str, Any] | None = None
) -> CheckpointRecipe:
    """Create the recipe of a folder or hub id; raise `CheckpointError` if it has no known family.

    ``given`` are the model's keys that will be set in the recipe: a kind, or trust in the
    checkpoint's own class, makes a recipe of an unknown family too. Downloads all files of a hub
    id, including weights, as loading does.
    """
    given = given or {}
    # Both import torch, which recipe files do not need.
    from alarm_models.modeling.checkpoint import locate
    from alarm_models.modeling.compatibility import require_readable_weights, unknown_family_refusal

    adapter = _adapter(checkpoint)
    if adapter is not None:
        keys = {"checkpoint": adapter.base, **adapter.family.recipe, "adapter": adapter.folder}
        table = _table(checkpoint, adapter.family, {**keys, **_kind(given)}, {})
        return CheckpointRecipe(table, adapter.family, None)
    folder = locate(checkpoint)
    facts = inspect_folder(folder)
    require_readable_weights(facts)
    if not facts.tensors:
        raise CheckpointError(no_weights(folder))
    family = match_family(facts, checkpoint)
    is_given = "kind" in given or given.get("trust_remote_code") is True
    if (family is None or not family.recipe) and is_given:
        family = _BY_KEYS
    if family is None:
        raise CheckpointError(unknown_family_refusal(facts))
    if family.advice is not None and not (family.recipe and _TEXT_KEYS & set(given)):
        raise CheckpointError(
            f"{shortened(checkpoint)} is of the family {family.name}: {family.advice}"
        )
    # A recipe may be written to a file, and be served from another folder.
    given_path = Path(checkpoint).expanduser()
    where = str(given_path.absolute()) if given_path.exists() else checkpoint
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
    table = _table(checkpoint, family, {**keys, **_kind(given)}, output)
    return CheckpointRecipe(table, family, facts)


def _kind(given: Mapping[str, Any]) -> dict[str, str]:
    return {"kind": str(given["kind"])} if "kind" in given else {}


def _table(
    checkpoint: str, family: Family, keys: Mapping[str, Any], output: Mapping[str, str]
) -> dict[str, Any]:
    model = dict(keys)
    remarks = [one for one in (family.unverified, family.note) if one]
    if remarks:
        model["note"] = "; ".join(remarks)
    if issubclass(KINDS.get(keys["kind"], Spec), TextSpec):
        # Nobody chose to lose the roles of a chat.
        model["chats"] = "refuse"
    return {
        "name": _name(checkpoint),
        "description": family.name + (f": {family.note}" if family.note else ""),
        "models": {MODEL: model},
        "holistic": {"model": MODEL, **output},
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
    if not is_folder(checkpoint):
        return None
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
        family = Family(
            "adapter of a sequence classifier",
            recipe={"kind": "sequence"} | tokenizer,
            unverified=_ADAPTED,
        )
    elif any((folder / f"value_head.{end}").is_file() for end in ("safetensors", "bin")):
        keys = {"kind": "sequence", "head": "v_head.summary"} | tokenizer
        family = Family(
            "adapter with a value head (LLaMA-Factory)", recipe=keys, unverified=_ADAPTED
        )
    else:
        task = shortened(adapter_config.get("task_type") or "no named task")
        raise CheckpointError(
            f"{folder} has an adapter for {task} on {shortened(base)}, "
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
