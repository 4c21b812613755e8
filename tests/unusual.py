"""Small models of rare types, for which padding or packing may not be exact."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers as hf

from alarm_models.modeling.backend_selection import select_backend
from alarm_models.modeling.heads import Pooling, sequence_head
from alarm_models.modeling.inputs import ModelInput
from alarm_models.modeling.network import HeadedNetwork, Network, WholeNetwork
from alarm_models.reward_models.text_pipeline import pooling_positions

__all__ = [
    "CONFIGURATIONS",
    "LONGROPE",
    "REFORMER",
    "classifier",
    "features",
    "ids",
    "network",
    "plain",
]

_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_labels": 1}
_ENCODER = _SPECIAL | {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
}
_DECODER = _ENCODER | {"num_key_value_heads": 2}
_SEQ2SEQ = _SPECIAL | {
    "vocab_size": 300,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 512,
}
#: RoPE with other frequencies from the 65th token on.
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.0, 2.0, 4.0, 8.0],
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 64,
}
_DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
_EXPERTS = {"num_local_experts": 4, "short_mscale": 1.1, "long_mscale": 1.3}

#: Attention within chunks of 64 tokens, of which the first sees the last.
REFORMER = _SPECIAL | {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "attention_head_size": 8,
    "feed_forward_size": 64,
    "attn_layers": ["local", "local"],
    "axial_pos_embds": False,
    "max_position_embeddings": 512,
}

#: By name: a configuration's class and what makes it small.
CONFIGURATIONS: Mapping[str, tuple[Any, Mapping[str, Any]]] = {
    "bart": (hf.BartConfig, _SEQ2SEQ),
    "bigbird": (hf.BigBirdConfig, _ENCODER | {"block_size": 8, "num_random_blocks": 1}),
    "canine": (hf.CanineConfig, {k: v for k, v in _ENCODER.items() if k != "vocab_size"}),
    "convbert": (hf.ConvBertConfig, _ENCODER | {"embedding_size": 32}),
    "data2vec": (hf.Data2VecTextConfig, _ENCODER),
    "diffllama": (hf.DiffLlamaConfig, _DECODER),
    "doge": (hf.DogeConfig, _DECODER | {"keep_window_size": 64}),
    "electra": (hf.ElectraConfig, _ENCODER | {"embedding_size": 32}),
    "esm": (hf.EsmConfig, _ENCODER | {"token_dropout": True, "mask_token_id": 4}),
    "fnet": (hf.FNetConfig, _ENCODER),
    "ibert": (hf.IBertConfig, _ENCODER),
    "llama-dynamic": (
        hf.LlamaConfig,
        _DECODER | {"max_position_embeddings": 64, "rope_parameters": _DYNAMIC},
    ),
    "luke": (hf.LukeConfig, _ENCODER | {"entity_vocab_size": 10}),
    "mobilebert": (hf.MobileBertConfig, _ENCODER | {"embedding_size": 32}),
    "modernbert": (
        hf.ModernBertConfig,
        _ENCODER | {"local_attention": 64, "cls_token_id": 1, "sep_token_id": 2},
    ),
    "mpnet": (hf.MPNetConfig, _ENCODER),
    "nystromformer": (hf.NystromformerConfig, _ENCODER),
    "opt": (
        hf.OPTConfig,
        {k: v for k, v in _ENCODER.items() if k != "intermediate_size"}
        | {"ffn_dim": 64, "word_embed_proj_dim": 32},
    ),
    "phi3": (
        hf.Phi3Config,
        _DECODER | {"original_max_position_embeddings": 64, "rope_parameters": LONGROPE},
    ),
    "phimoe": (hf.PhimoeConfig, _DECODER | {"rope_parameters": LONGROPE | _EXPERTS, **_EXPERTS}),
    "qwen2-yarn": (
        hf.Qwen2Config,
        _DECODER
        | {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 8.0,
                "rope_theta": 10000.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "reformer": (hf.ReformerConfig, REFORMER),
    "t5": (
        hf.T5Config,
        _SPECIAL
        | {
            "vocab_size": 300,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 64,
            "num_layers": 2,
            "num_heads": 4,
            "decoder_start_token_id": 0,
        },
    ),
    "xlnet": (
        hf.XLNetConfig,
        _SPECIAL | {"vocab_size": 300, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64},
    ),
}


def classifier(name: str) -> hf.PreTrainedModel:
    """Create a sequence classifier with weights large enough to expose every error."""
    configuration, small = CONFIGURATIONS[name]
    torch.manual_seed(1)
    model: Any = hf.AutoModelForSequenceClassification.from_config(configuration(**small))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, 0.15)
    made: hf.PreTrainedModel = model.eval()
    return made


def network(model: hf.PreTrainedModel) -> Network:
    """Wrap it like the server, with a prefix cache."""
    head = sequence_head(model)
    if head is None:
        return WholeNetwork(model)
    base: Any = model.base_model
    return HeadedNetwork(base, select_backend(base, prefix_cache_bytes=1 << 28), head)


def ids(num_tokens: int, seed: int = 0, prompt: int = 0) -> tuple[int, ...]:
    """Create token ids of a given length that start with a shared prompt."""
    shared = torch.randint(5, 200, (512,), generator=torch.Generator().manual_seed(99)).tolist()
    choose = torch.Generator().manual_seed(1000 * num_tokens + seed)
    own = torch.randint(5, 200, (num_tokens - prompt - 1,), generator=choose).tolist()
    return (*shared[:prompt], *own, 2)


def features(network: Network, samples: Sequence[tuple[int, ...]]) -> list[ModelInput]:
    """Create model inputs that are read where the network's head reads."""
    pooling, pad = network.pooling or Pooling.LAST, network.config.pad_token_id
    return [
        ModelInput(one, (pooling_positions(one, pooling, pad),), truncated=False) for one in samples
    ]


@torch.inference_mode()
def plain(model: hf.PreTrainedModel, sample: tuple[int, ...]) -> float:
    """Return the score by transformers, from a model that has run nothing before."""
    fresh: Any = copy.deepcopy(model)
    given = torch.tensor([sample])
    score: float = fresh(input_ids=given, attention_mask=torch.ones_like(given)).logits.item()
    return score
