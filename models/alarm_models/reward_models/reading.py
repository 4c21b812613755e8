"""Describes how a loaded model is read: the read token, and differences from its card."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from alarm_models.errors import CheckpointError, RecipeError
from alarm_models.modeling.compatibility import class_note, dequantization_note
from alarm_models.modeling.families import match_family, recipe_lines, toml_value
from alarm_models.modeling.heads import Pooling
from alarm_models.modeling.inputs import ModelInput, TokenSequence
from alarm_models.modeling.inspection import CheckpointFacts, inspect_folder, read_config
from alarm_models.preprocessing.chat_templates import FIXED_DATE, ChatFormat, asks_date
from alarm_models.preprocessing.templates import TextTemplate
from alarm_models.preprocessing.tokenizer import Tokenizer
from alarm_models.recipe.specs import CometSpec, CompareSpec, JudgeSpec, NeuralSpec, TextSpec
from alarm_models.reward_models.base import NeuralRewardModel
from alarm_models.types import Sample

__all__ = [
    "probe_tokens",
    "read_token",
    "reading_notes",
    "require_reward_token",
    "template_notes",
]

#: Keys in which a recipe may differ from its family without changing scores wrongly.
_FREE_KEYS = frozenset(
    {
        "kind", "template", "objectives", "gate_at", "positive", "reference", "rubric",
        "max_new_tokens",
    }
)  # fmt: skip


#: Keys of a configuration with the moments of scores.
_MOMENTS = ("mean", "std", "var")


def read_token(model: NeuralRewardModel, spec: NeuralSpec, tokenizer: Tokenizer) -> str | None:
    """Return the token at which a score is read; None if it is read at several tokens."""
    features = _probe(model, spec)
    if features is None or not features.read_positions or model.pooling is Pooling.OWN:
        return None
    start, end = features.read_positions[-1]
    return tokenizer.text_of(features.ids[start]) if end - start == 1 else None


def probe_tokens(model: NeuralRewardModel, spec: NeuralSpec) -> TokenSequence | None:
    """Return the tokens of a test sample; None if the template refuses it."""
    features = _probe(model, spec)
    return None if features is None else features.sequences[0]


def require_reward_token(
    model: NeuralRewardModel, spec: NeuralSpec, tokenizer: Tokenizer, folder: Path
) -> None:
    """Raise `CheckpointError` if texts do not end with the reward token of config.json.

    The code of InternLM2 and POLAR appends this token, or reads the score at it
    (`reward_token_id`).
    """
    wanted = read_config(folder).get("reward_token_id")
    features = _probe(model, spec)
    if not isinstance(wanted, int) or features is None or features.ids[-1] == wanted:
        return
    token, last = tokenizer.text_of(wanted), tokenizer.text_of(features.ids[-1])
    raise CheckpointError(
        f"{spec.checkpoint}: config.json names a reward token {token!r} (reward_token_id {wanted}) "
        f"at which the score is read, but this recipe's texts end with {last!r}: write "
        f"`{recipe_lines({'suffix': token})}`"
    )


def _probe(model: NeuralRewardModel, spec: NeuralSpec) -> ModelInput | None:
    """Return the input of a test sample; None if the template refuses it."""
    fields = dict.fromkeys(_field_names(spec), "text")
    (features,) = model.prepare([Sample("A prompt.", "A completion.", fields=fields)])
    return features if isinstance(features, ModelInput) else None


def _field_names(spec: NeuralSpec) -> list[str]:
    try:
        return [name for text in spec.templates for name in TextTemplate(text).names]
    except RecipeError:
        return []


def _differs(given: object, wanted: object) -> bool:
    if isinstance(given, BaseModel):
        given = given.model_dump(exclude_defaults=True)
    return given != wanted and wanted != "$eos"


def reading_notes(
    spec: NeuralSpec, folder: Path, tokenizer: Tokenizer, token: str | None, dtype: str
) -> tuple[str, ...]:
    """Return sentences on how scores may differ from those of the model's card.

    ``token`` is the token at which scores are read, from `read_token`; ``dtype`` is the model's.
    """
    facts = inspect_folder(folder)
    notes: list[str | None] = [spec.note, _unused_normalization(spec, facts)]
    notes.append(dequantization_note(facts, dtype))
    reward_id = facts.config.get("reward_token_id")
    if isinstance(reward_id, int) and token not in (None, wanted := tokenizer.text_of(reward_id)):
        notes.append(
            f"config.json's reward_token_id is {wanted!r}, but this recipe reads its score at "
            f"{token!r}: write `suffix = {toml_value(wanted)}`"
        )
    is_pair_ranker = isinstance(spec, CompareSpec) and spec.format == "pairrm"
    has_own_head = isinstance(spec, CometSpec) or is_pair_ranker
    if not spec.trust_remote_code and spec.head is None and not has_own_head:
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
    turns = "prompt_turns" if isinstance(spec, JudgeSpec) else "turns"
    joins = getattr(spec, "chats", "join") == "join" and not getattr(spec, turns, None)
    if joins and any("{prompt" in text for text in spec.templates):
        other = 'messages = ["{prompt}", ...]' if turns == "prompt_turns" else 'template = "chat"'
        advice = f". Write `{turns}`, or `{other}`, for chats" if hasattr(spec, turns) else ""
        notes.append(
            "the template has no turns: the messages of a prompt are joined by blank lines, "
            f"without their roles{advice}"
        )
    return tuple(note for note in notes if note is not None)


def _unused_normalization(spec: NeuralSpec, facts: CheckpointFacts) -> str | None:
    """Return a note if the configuration has a mean or deviation, and no flag that uses it."""
    if getattr(spec, "normalization", None) is not None or facts.is_normalization_set:
        return None
    found = [f"{key} {facts.config[key]}" for key in _MOMENTS if _is_number(facts.config.get(key))]
    if not found:
        return None
    return (
        f"config.json has {', '.join(found)}, but neither do_normalize nor normalize_reward: the "
        "scores are raw. If the card normalizes them, write "
        '`normalization = { mean = ..., std = ... }`, otherwise `normalization = "none"`'
    )


def _is_number(value: object) -> bool:
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    return isinstance(value, int | float) and not isinstance(value, bool)


def template_notes(spec: NeuralSpec, tokenizer: Tokenizer) -> tuple[str, ...]:
    """Return sentences on how a chat template's text may differ from that of the card."""
    if not isinstance(spec, TextSpec) or spec.turns is not None:
        return ()
    if getattr(spec, "template", "chat") != "chat":
        return ()
    chat = ChatFormat(spec.chat_template, spec.chat_arguments)
    template = chat.template or tokenizer.chat_template
    if template is None:  # pairs and `ask` need none
        return ()
    notes = []
    if asks_date(template) and "date_string" not in chat.arguments:
        date = f"{FIXED_DATE:%d %b %Y}"
        notes.append(
            f"the chat template inserts the current date, and always gets {date}. If it accepts "
            "another, write `template_arguments = { date_string = ... }`"
        )
    bos = tokenizer.bos_left_out(chat)
    if spec.special_tokens is None and bos is not None:
        notes.append(
            f"the chat template does not begin with {bos}, which the tokenizer puts before other "
            "texts. If the card's text begins with it, write `special_tokens = true`"
        )
    return tuple(notes)
