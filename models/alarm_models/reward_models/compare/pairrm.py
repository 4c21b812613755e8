"""Tokenizes a prompt and two answers for llm-blender's PairRM."""

from __future__ import annotations

from collections.abc import Sequence

from alarm_models.cancellation import check_cancelled
from alarm_models.errors import CheckpointError, SampleError
from alarm_models.modeling.inputs import ModelInput
from alarm_models.preprocessing.tokenizer import Tokenizer
from alarm_models.recipe.specs import CompareSpec
from alarm_models.reward_models.base import LoadedCheckpoint, Prepared
from alarm_models.reward_models.compare.local_questions import LocalQuestion
from alarm_models.types import Span

__all__ = ["PairRmTokenizer"]

#: The tokens that precede prompt and answers, where the head reads, by their keys in config.json.
_PREFIXES = {
    "source_prefix_id": "<|source|>",
    "cand1_prefix_id": "<|candidate1|>",
    "cand2_prefix_id": "<|candidate2|>",
}

#: Maximum tokens that PairRM was trained with: of the prompt, and in total.
_PROMPT_TOKENS, _MAX_TOKENS = 1224, 2048


class PairRmTokenizer:
    """Joins the tokens of a prompt and two answers, each with its own special tokens.

    ``[CLS] <|source|> prompt [SEP] [CLS] <|candidate1|> a [SEP] [CLS] <|candidate2|> b [SEP]``. A
    text is truncated at its end; each answer gets half of the tokens that the prompt leaves.
    Source: `tokenize_pair` on the card of llm-blender/PairRM-hf.
    """

    #: A prompt of several messages is one text.
    keeps_messages = False

    def __init__(self, spec: CompareSpec, weights: LoadedCheckpoint) -> None:
        self._tokenizer = weights.tokenizer
        wanted = _MAX_TOKENS if spec.max_tokens is None else spec.max_tokens
        max_positions = weights.network.max_positions
        self.max_tokens = wanted if max_positions is None else min(wanted, max_positions)
        self._prompt_tokens = self.max_tokens * _PROMPT_TOKENS // _MAX_TOKENS
        config = weights.network.config
        for key, text in _PREFIXES.items():
            _require_prefix_token(weights.tokenizer, text, getattr(config, key, None))

    def prepare(self, questions: Sequence[LocalQuestion]) -> list[Prepared]:
        """Tokenize, truncate and join the texts of questions."""
        prepared: list[Prepared] = []
        for question in questions:
            check_cancelled()
            try:
                prepared.append(self._features(question))
            except SampleError as error:
                prepared.append(error)
        return prepared

    def _features(self, question: LocalQuestion) -> ModelInput:
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
                "too_long",
                f"the limit of {self.max_tokens} tokens leaves no room for prompt and answers: "
                "raise max_tokens",
            )
        return (*ids[:kept], *ids[end:])


def _require_prefix_token(tokenizer: Tokenizer, text: str, configured: object) -> None:
    """Raise `CheckpointError` unless a text begins with the token that config.json names."""
    found = tokenizer.only_id(text)
    if isinstance(configured, int) and configured != found:
        raise CheckpointError(
            f"the tokenizer reads {text} as token {found}, but config.json names {configured}"
        )
    ids, _ = tokenizer.encode_alone(f"{text}a")
    if len(ids) <= tokenizer.num_prefix or ids[tokenizer.num_prefix] != found:
        raise CheckpointError(f"the tokenizer does not put {text} first: {list(ids)}")
