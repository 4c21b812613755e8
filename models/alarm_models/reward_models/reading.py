"""Describes how a loaded model is read: the read token, and differences from its card."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from alarm_models.errors import RecipeError
from alarm_models.modeling.compatibility import class_note
from alarm_models.modeling.families import match_family, recipe_lines
from alarm_models.modeling.heads import Pooling
from alarm_models.modeling.inputs import ModelInput
from alarm_models.modeling.inspection import inspect_folder
from alarm_models.preprocessing.templates import TextTemplate
from alarm_models.preprocessing.tokenizer import Tokenizer
from alarm_models.recipe.specs import NeuralSpec
from alarm_models.reward_models.base import NeuralRewardModel
from alarm_models.types import Sample

__all__ = ["read_token", "reading_notes"]

#: Keys in which a recipe may differ from its family without changing scores wrongly.
_FREE_KEYS = frozenset({"kind", "template", "objectives", "gate_at", "positive", "note"})


def read_token(model: NeuralRewardModel, spec: NeuralSpec, tokenizer: Tokenizer) -> str | None:
    """Return the token at which a score is read; None if it is read at several tokens."""
    if model.pooling is Pooling.OWN:
        return None
    fields = dict.fromkeys(_field_names(spec), "text")
    (features,) = model.prepare([Sample("A prompt.", "A completion.", fields=fields)])
    if not isinstance(features, ModelInput) or not features.read_positions:
        return None
    start, end = features.read_positions[-1]
    return tokenizer.text_of(features.ids[start]) if end - start == 1 else None


def _field_names(spec: NeuralSpec) -> list[str]:
    try:
        return [name for text in spec.templates for name in TextTemplate(text).names]
    except RecipeError:
        return []


def _differs(given: object, wanted: object) -> bool:
    if isinstance(given, BaseModel):
        given = given.model_dump(exclude_defaults=True)
    return given != wanted and wanted != "$eos"


def reading_notes(spec: NeuralSpec, folder: Path) -> tuple[str, ...]:
    """Return sentences on how scores may differ from those of the model's card."""
    facts = inspect_folder(folder)
    notes = []
    if not spec.trust_remote_code and spec.head is None:
        notes.append(class_note(facts, "the stock class of its kind"))
    family = match_family(facts, spec.checkpoint)
    if family is not None:
        others = {
            key: value
            for key, value in family.recipe.items()
            if key not in _FREE_KEYS and _differs(getattr(spec, key, value), value)
        }
        if others:
            notes.append(
                f"{family.name} is read with `{recipe_lines(others)}`, but this recipe differs: "
                "its scores are not those of the model's card"
            )
    if any("{prompt" in text for text in spec.templates) and not getattr(spec, "turns", None):
        notes.append(
            "the template has no turns: the messages of a prompt are joined by blank lines, "
            'without their roles. Write `turns`, or `template = "chat"`, for chats'
        )
    return tuple(note for note in notes if note is not None)
