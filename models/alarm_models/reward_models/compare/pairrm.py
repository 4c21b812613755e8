"""The tokens of a pair as llm-blender's PairRM reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from alarm_models.cancellation import check_cancelled
from alarm_models.errors import CheckpointError, SampleError
from alarm_models.modeling.inputs import ModelInput
from alarm_models.preprocessing.tokenizer import Tokenizer
from alarm_models.recipe.specs import CompareSpec
from alarm_models.reward_models.base import LoadedCheckpoint, Prepared
from alarm_models.types import Span

__all__ = ["PairQuestion", "PairRmTexts"]

#: The tokens at which prompt and answers are read, by their keys in config.json.
_PREFIXES = {
    "source_prefix_id": "<|source|>",
    "cand1_prefix_id": "<|candidate1|>",
    "cand2_prefix_id": "<|candidate2|>",
}

#: The tokens that PairRM was trained on: at most so many of the prompt, and in total.
_PROMPT_TOKENS, _MAX_TOKENS = 1224, 2048


class PairQuestion(Protocol):
    """A prompt with two answers."""

    @property
    def prompt_text(self) -> str:
        """The prompt."""

    @property
    def completion_text(self) -> str:
        """The first answer."""

    @property
    def others(self) -> tuple[str, ...]:
        """The second answer."""


class PairRmTexts:
    """Tokenizes prompt and answers, each with special tokens around it, and joins them.

    ``[CLS] <|source|> prompt [SEP] [CLS] <|candidate1|> a [SEP] [CLS] <|candidate2|> b [SEP]``. The
    prompt is truncated at its end; the answers share what it leaves. Source: `tokenize_pair` in the
    card of llm-blender/PairRM-hf.
    """

    has_own_prompt = False

    def __init__(self, spec: CompareSpec, weights: LoadedCheckpoint) -> None:
        self._tokenizer = weights.tokenizer
        most = weights.network.max_positions
        wanted = _MAX_TOKENS if spec.max_tokens is None else spec.max_tokens
        self.max_tokens = wanted if most is None else min(wanted, most)
        self._prompt_tokens = self.max_tokens * _PROMPT_TOKENS // _MAX_TOKENS
        config = weights.network.config
        for key, text in _PREFIXES.items():
            _require_prefix(weights.tokenizer, text, getattr(config, key, None))

    def prepare(self, questions: Sequence[PairQuestion]) -> list[Prepared]:
        """Tokenize, truncate and join the texts of questions."""
        prepared: list[Prepared] = []
        for question in questions:
            check_cancelled()
            try:
                prepared.append(self._features(question))
            except SampleError as error:
                prepared.append(error)
        return prepared

    def _features(self, question: PairQuestion) -> ModelInput:
        texts = (question.prompt_text, question.completion_text, *question.others)
        parts = [
            self._tokenizer.encode_alone(prefix + text)[0]
            for prefix, text in zip(_PREFIXES.values(), texts, strict=True)
        ]
        prompt = self._cut(parts[0], self._prompt_tokens)
        room = (self.max_tokens - len(prompt)) // 2
        joined = [prompt, *(self._cut(part, room) for part in parts[1:])]
        reads: list[Span] = []
        ids: tuple[int, ...] = ()
        for part in joined:
            at = len(ids) + self._tokenizer.num_prefix
            reads.append(Span(at, at + 1))
            ids += part
        cut = [len(part) < len(whole) for part, whole in zip(joined, parts, strict=True)]
        omitted = ["prompt_end"] * cut[0] + ["completion_end"] * any(cut[1:])
        return ModelInput(ids, tuple(reads), any(cut), omitted=tuple(sorted(omitted)))

    def _cut(self, ids: tuple[int, ...], most: int) -> tuple[int, ...]:
        """Truncate a text at its end, before its special tokens."""
        if len(ids) <= most:
            return ids
        end = len(ids) - self._tokenizer.num_suffix
        kept = most - self._tokenizer.num_suffix
        if kept <= self._tokenizer.num_prefix:
            raise SampleError(
                "too_long", f"the model's limit of {self.max_tokens} tokens leaves no room"
            )
        return (*ids[:kept], *ids[end:])


def _require_prefix(tokenizer: Tokenizer, text: str, configured: object) -> None:
    """Raise `CheckpointError` unless a prefix is the token that config.json names."""
    found = tokenizer.only_id(text)
    if isinstance(configured, int) and configured != found:
        raise CheckpointError(
            f"the tokenizer reads {text} as token {found}, but config.json names {configured}"
        )
    ids, _ = tokenizer.encode_alone(f"{text}a")
    if len(ids) <= tokenizer.num_prefix or ids[tokenizer.num_prefix] != found:
        raise CheckpointError(f"the tokenizer does not put {text} first: {list(ids)}")
