"""The tokens by which a causal model answers: their ids, whose logits are read."""

from __future__ import annotations

from collections.abc import Sequence

from alarm_models.errors import CheckpointError
from alarm_models.modeling.network import Network
from alarm_models.preprocessing.tokenizer import Tokenizer
from alarm_models.recipe.specs import GenerativeSpec, RubricSpec, StepsSpec

__all__ = ["answer_token_ids", "require_in_vocabulary", "scored_tokens"]


def scored_tokens(
    spec: GenerativeSpec | StepsSpec | RubricSpec, tokenizer: Tokenizer
) -> tuple[int, ...]:
    """Return the ids of `positive` and `negative`, if set; raise `CheckpointError`."""
    tokens = [token for token in (spec.positive, spec.negative) if token is not None]
    return answer_token_ids(tokens, tokenizer, spec.checkpoint, "`positive` and `negative`")


def answer_token_ids(
    tokens: Sequence[str | int], tokenizer: Tokenizer, checkpoint: str, keys: str
) -> tuple[int, ...]:
    """Return the ids of tokens that are given as texts or ids.

    Raises `CheckpointError`, which names the recipe's keys, unless each is one token and no two are
    the same.
    """
    try:
        ids = tuple(one if isinstance(one, int) else tokenizer.only_id(one) for one in tokens)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint}: {error}: change {keys}") from error
    if len({*ids}) < len(ids):
        raise CheckpointError(
            f"{checkpoint}: {keys} must be different tokens, but their ids are {list(ids)}"
        )
    return ids


def require_in_vocabulary(ids: Sequence[int], network: Network) -> None:
    """Raise `CheckpointError` for a token id outside the network's vocabulary."""
    vocabulary = int(network.config.vocab_size)
    for token in ids:
        if not 0 <= token < vocabulary:
            raise CheckpointError(f"token {token} is outside the vocabulary of {vocabulary}")
