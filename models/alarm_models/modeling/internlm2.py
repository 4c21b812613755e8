"""InternLM2 as Llama: the same arithmetic, with other names and queries, keys and values in one.

transformers has no InternLM2. Its reward models (InternLM2-reward, POLAR) are loaded as a
`LlamaModel`, whose batches are packed and share prefixes, without code of the checkpoint's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

from alarm_models.errors import CheckpointError
from alarm_models.modeling.checkpoint import read_tensors

__all__ = ["MODEL_TYPE", "llama_config", "llama_tensors"]

MODEL_TYPE = "internlm2"

#: What the parts of a layer are called there, and what they are in `LlamaModel`.
_PARTS = {
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}

#: Keys of the configuration that mean in both the same.
_SAME = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "hidden_act", "max_position_embeddings", "rms_norm_eps",
    "initializer_range", "pad_token_id", "bos_token_id", "eos_token_id",
)  # fmt: skip


def llama_config(config: Mapping[str, Any]) -> LlamaConfig:
    """Return the configuration of a Llama that computes what an InternLM2's does."""
    scaling = dict(config.get("rope_scaling") or {})
    rope = {"rope_type": scaling.pop("type", None) or scaling.pop("rope_type", "default")}
    keys = {key: config[key] for key in _SAME if config.get(key) is not None}
    return LlamaConfig(
        **keys,
        # What InternLM2's own configuration class falls back to.
        attention_bias=config.get("bias", True),
        rope_parameters={**rope, **scaling, "rope_theta": float(config.get("rope_theta", 10000))},
        tie_word_embeddings=False,
    )


def llama_tensors(folder: Path, config: LlamaConfig) -> dict[str, torch.Tensor]:
    """Read an InternLM2's base by the names of `LlamaModel`; raise `CheckpointError`.

    The rows of ``wqkv`` are grouped by key head: each group has its queries, then its key, then its
    value.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in read_tensors(folder, "model").items():
        layer, dot, part = name.rpartition(".attention.wqkv.")
        if dot:
            for key, rows in _split(name, tensor, config).items():
                tensors[f"{layer}.self_attn.{key}_proj.{part}"] = rows
        else:
            tensors[_llama_name(name)] = tensor
    return tensors


def _llama_name(name: str) -> str:
    for theirs, llamas in _PARTS.items():
        name = name.replace(f".{theirs}.", f".{llamas}.")
    return name.replace("tok_embeddings.", "embed_tokens.")


def _split(name: str, rows: torch.Tensor, config: Any) -> dict[str, torch.Tensor]:
    """Take ``wqkv`` apart: a weight ``[rows, hidden]`` or a bias ``[rows]``."""
    groups = config.num_key_value_heads
    queries = config.num_attention_heads // groups
    width = config.hidden_size // config.num_attention_heads
    if rows.shape[0] != groups * (queries + 2) * width:
        raise CheckpointError(
            f"{name} has {rows.shape[0]} rows; config.json's heads make "
            f"{groups * (queries + 2) * width}"
        )
    grouped = rows.view(groups, queries + 2, width, *rows.shape[1:])
    parts = {"q": grouped[:, :queries], "k": grouped[:, -2], "v": grouped[:, -1]}
    return {key: part.reshape(-1, *rows.shape[1:]).contiguous() for key, part in parts.items()}
