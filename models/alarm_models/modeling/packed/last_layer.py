"""The last layer, computed only for the tokens that a head reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from alarm_models.modeling.kernels.modules import rotate_heads
from alarm_models.modeling.packed.attention import attend_reads
from alarm_models.modeling.packed.batch import get_forward_context

__all__ = ["LastLayerAtReads", "prune_last_layer", "restore_last_layer"]

#: Decoders with Llama's layer structure, and encoders with BERT's.
_LIKE_LLAMA = {"llama", "mistral", "qwen2", "qwen3"}
_LIKE_BERT = {"bert", "roberta", "xlm-roberta", "camembert"}


class LastLayerAtReads(torch.nn.Module):
    """Replaces a last layer: all tokens in, ``[1, reads, hidden]`` out.

    Keys and values are computed for every token, queries and the rest of the layer only for the
    reads. Where every token is read, as for the mean of all states, the layer itself runs.
    """

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(
        self, hidden_states: torch.Tensor, *arguments: Any, **keywords: Any
    ) -> torch.Tensor:
        """Run the layer."""
        places = get_forward_context().read_places
        if len(set(places)) == hidden_states.shape[1]:
            every: torch.Tensor = self.layer(hidden_states, *arguments, **keywords)
            return every[:, places]
        return self._at_reads(hidden_states, places, *arguments, **keywords)

    def _at_reads(
        self, hidden_states: torch.Tensor, places: Sequence[int], *arguments: Any, **keywords: Any
    ) -> torch.Tensor:
        raise NotImplementedError

    @property
    def _weights(self) -> Any:
        return self.layer


class _LlamaLastLayer(LastLayerAtReads):
    def _at_reads(
        self,
        hidden_states: torch.Tensor,
        places: Sequence[int],
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **_: Any,
    ) -> torch.Tensor:
        layer, attention = self._weights, self._weights.self_attn
        normed = layer.input_layernorm(hidden_states)
        query = self._heads(attention.q_proj(normed[:, places]), "q_norm")
        key = self._heads(attention.k_proj(normed), "k_norm")
        value = self._heads(attention.v_proj(normed), "")
        cos, sin = position_embeddings  # [1, tokens, dim]
        query = rotate_heads(query, cos[:, places], sin[:, places])
        attended = attend_reads(
            attention,
            query,
            rotate_heads(key, cos, sin),
            value,
            scale=attention.scaling,
            causal=True,
            # Models whose layers differ set it per layer; None means no window despite the
            # configuration.
            window=getattr(
                attention, "sliding_window", getattr(attention.config, "sliding_window", None)
            ),
        )
        states = hidden_states[:, places] + attention.o_proj(attended.flatten(2))
        at_reads: torch.Tensor = states + layer.mlp(layer.post_attention_layernorm(states))
        return at_reads

    def _heads(self, states: torch.Tensor, norm: str) -> torch.Tensor:
        attention = self._weights.self_attn
        heads = states.view(*states.shape[:2], -1, attention.head_dim)
        return getattr(attention, norm, torch.nn.Identity())(heads).transpose(1, 2)  # type: ignore[no-any-return]


class _BertLastLayer(LastLayerAtReads):
    def _at_reads(
        self, hidden_states: torch.Tensor, places: Sequence[int], *_: Any, **__: Any
    ) -> torch.Tensor:
        layer, attention = self._weights, self._weights.attention.self
        reads = hidden_states[:, places]
        query, key, value = (
            states.view(*states.shape[:2], -1, attention.attention_head_size).transpose(1, 2)
            for states in (
                attention.query(reads),
                attention.key(hidden_states),
                attention.value(hidden_states),
            )
        )
        attended = attend_reads(
            attention, query, key, value, scale=attention.scaling, causal=False, window=None
        )
        states = layer.attention.output(attended.flatten(2), reads)
        at_reads: torch.Tensor = layer.feed_forward_chunk(states)
        return at_reads


def prune_last_layer(model: PreTrainedModel) -> bool:
    """Compute the last layer only at the reads if the model type is known; return whether."""
    kind = model.config.get_text_config().model_type
    kinds = ((_LIKE_LLAMA, _LlamaLastLayer), (_LIKE_BERT, _BertLastLayer))
    for model_types, last_layer in kinds:
        if kind in model_types:
            layers = _layers(model)
            layers[-1] = last_layer(layers[-1])
            return True
    return False


def restore_last_layer(model: PreTrainedModel) -> None:
    """Restore the original last layer if it was pruned."""
    if model.config.get_text_config().model_type in _LIKE_LLAMA | _LIKE_BERT:
        layers = _layers(model)
        last = layers[-1]
        layers[-1] = last.layer if isinstance(last, LastLayerAtReads) else last


def _layers(model: Any) -> torch.nn.ModuleList:
    layers: torch.nn.ModuleList = model.layers if hasattr(model, "layers") else model.encoder.layer
    return layers
