"""Counts the multiplications that any implementation needs for a batch: a lower bound.

A multiply-add counts as two operations. A layer multiplies each token by its weights and, for each
token that it attends to, twice as many numbers as the layer is wide. In the last layer only keys
and values are counted, because nothing else is needed for all tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import transformers as hf

from alarm_models.modeling.packed.prefix_cache import common_prefix_length

__all__ = ["Batch", "of_apart", "of_group"]

#: Token ids of each sample of a batch.
Batch = Sequence[Sequence[int]]


def of_group(config: hf.LlamaConfig, batch: Batch) -> float:
    """Count the operations of a Llama for a group, its common prefix once.

    A layer's weights are 2 h^2 of queries and output, 2 h k of keys and values (k = h unless
    several heads share them), and 3 h m of the gated MLP.
    """
    first, *others = map(tuple, batch)
    prompt = min((common_prefix_length(first, other, 0) for other in others), default=len(first))
    ends = [len(ids) - prompt for ids in batch]
    pairs = prompt * (prompt + 1) / 2 + sum(end * prompt + end * (end + 1) / 2 for end in ends)
    width = config.hidden_size
    kv_width = width * config.num_key_value_heads // config.num_attention_heads
    weights = 2 * width * (width + kv_width) + 3 * width * config.intermediate_size
    return _of_layers(config, prompt + sum(ends), weights, pairs, kv_width)


def of_apart(config: hf.BertConfig | hf.LongformerConfig, batch: Batch) -> float:
    """Count the operations of an encoder, for which samples share nothing.

    A layer's weights are 4 h^2 of attention and 2 h m of the MLP; a Longformer's tokens attend to
    half a window on each side.
    """
    windows = getattr(config, "attention_window", None)
    pairs = sum(_pairs(len(ids), windows[0] // 2 if windows else len(ids)) for ids in batch)
    weights = 4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size
    return _of_layers(config, sum(map(len, batch)), weights, pairs, config.hidden_size)


def _of_layers(
    config: hf.PretrainedConfig, tokens: int, weights: int, pairs: float, kv_width: int
) -> float:
    layer = tokens * weights + pairs * 2 * config.hidden_size
    last = tokens * 2 * config.hidden_size * kv_width
    return 2 * ((config.num_hidden_layers - 1) * layer + last)


def _pairs(tokens: int, side: int) -> int:
    """Count pairs of tokens that attend to each other, including itself, up to ``side`` apart."""
    side = min(side, tokens - 1)
    return tokens * (2 * side + 1) - side * (side + 1)
