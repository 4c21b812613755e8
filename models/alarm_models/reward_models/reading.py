"""What a loaded model reads: the token its score is read at, and what may differ from its card."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from alarm_models.errors import RecipeError
from alarm_models.modeling.compatibility import class_note
from alarm_models.modeling.families import match_family, recipe_lines
from alarm_models.modeling.heads import Pooling
from alarm_models.modeling.inputs import ModelInput
from alarm_models.modeling.inspection import inspect_folder
from alarm_models.preprocessing.chat_templates import FIXED_DATE, ChatFormat, asks_date
from alarm_models.preprocessing.templates import TextTemplate
from alarm_models.preprocessing.tokenizer import Tokenizer
from alarm_models.recipe.specs import NeuralSpec, TextSpec
from alarm_models.reward_models.base import NeuralRewardModel
from alarm_models.types import Sample

__all__ = ["read_token", "reading_notes", "template_notes"]

#: The keys in which a recipe may differ from its family's without being wrong.
_FREE_KEYS = frozenset({"kind", "template", "objectives", "gate_at", "positive", "note"})


def read_token(model: NeuralRewardModel, spec: NeuralSpec, tokenizer: Tokenizer) -> str | None:
    """Return the token that a sample's score is read at; None where several tokens make it."""
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
    """Say in sentences where scores may differ from those of the model's card."""
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
                f"{family.name} is read with `{recipe_lines(others)}`, and this recipe says "
                "otherwise: its scores are not those of the model's card"
            )
    if any("{prompt" in text for text in spec.templates) and not getattr(spec, "turns", None):
        notes.append(
            "the template has no turns: a prompt of several messages is joined by blank lines, "
            'and its roles are not written. Write `turns`, or `template = "chat"`, for chats'
        )
    return tuple(note for note in notes if note is not None)


def template_notes(spec: NeuralSpec, tokenizer: Tokenizer) -> tuple[str, ...]:
    """Say in sentences what a chat template's text is given, or lacks, that cards may have."""
    if not isinstance(spec, TextSpec) or spec.turns is not None:
        return ()
    if getattr(spec, "template", "chat") != "chat":
        return ()
    chat = ChatFormat(spec.chat_template, spec.template_arguments)
    template = chat.template or tokenizer.chat_template
    if template is None:  # pairs and `ask` need none
        return ()
    notes = []
    if asks_date(template) and "date_string" not in chat.arguments:
        date = f"{FIXED_DATE:%d %b %Y}"
        notes.append(
            f"the chat template asks for the date, and is always given {date}. Where it takes "
            "one, write `template_arguments = { date_string = ... }`"
        )
    bos = tokenizer.bos_left_out(chat)
    if spec.special_tokens is None and bos is not None:
        notes.append(
            f"the chat template does not begin with {bos}, which the tokenizer puts before other "
            "texts. Where the card has it so, write `special_tokens = true`"
        )
    return tuple(notes)
