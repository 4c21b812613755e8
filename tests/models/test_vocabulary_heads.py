"""Logits of chosen tokens, read at one position by a head, equal those of the whole model."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from tolerance import computed

from alarm_models.modeling.inputs import ModelInput
from alarm_models.modeling.loader import CheckpointSource, token_scorer
from alarm_models.modeling.network import HeadedNetwork, WholeNetwork
from alarm_models.types import Span

pytestmark = pytest.mark.numeric

SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
#: Architectures by how their logits follow from the states.
LINEAR: dict[str, dict[str, Any]] = {
    "llama": {},
    "phi3": {},
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 8, "moe_intermediate_size": 32, "num_experts_per_tok": 2},
}
CHANGED: dict[str, dict[str, Any]] = {
    "gemma2": {"query_pre_attn_scalar": 8, "final_logit_softcapping": 5.0},
    "gemma3_text": {"query_pre_attn_scalar": 8, "final_logit_softcapping": 5.0},
    "cohere": {"logit_scale": 0.3},
    "granite": {"logits_scaling": 3.0},
}
TOKENS = (10, 11)


def causal(architecture: str, folder: Path, **more: Any) -> Any:
    torch.manual_seed(0)
    config = hf.CONFIG_MAPPING[architecture](**{**SMALL, **more})
    model: Any = hf.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    return model.eval()


def check(network: Any, model: Any) -> None:
    """Compare with transformers, one sample at a time, for samples that share a prefix."""
    prefix = tuple(range(5, 45))
    samples = [prefix + tuple(range(50, 50 + length)) for length in (3, 9, 20)]
    batch = [ModelInput(ids, (Span(len(ids) - 1, len(ids)),), truncated=False) for ids in samples]
    for ids, rows in zip(samples, network.forward(batch), strict=True):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        wanted = [*logits[list(TOKENS)].tolist(), logits.logsumexp(-1).item()]
        assert rows[0].tolist() == [computed(one) for one in wanted]


@pytest.mark.parametrize("architecture", [*LINEAR, *CHANGED])
def test_logits_of_known_forms_are_read_at_one_position(architecture: str, tmp_path: Path) -> None:
    model = causal(architecture, tmp_path, **(LINEAR | CHANGED)[architecture])
    source = CheckpointSource(tmp_path, torch.float32, torch.device("cpu"))
    network = token_scorer(source, TOKENS)
    assert isinstance(network, HeadedNetwork)
    assert "layout=shared" in network.execution
    check(network, model)


def test_logits_of_another_form_are_the_whole_models(tmp_path: Path) -> None:
    # Falcon-H1 multiplies its logits, under another key.
    more = {"lm_head_multiplier": 0.5, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8}
    model = causal("falcon_h1", tmp_path, **more)
    network = token_scorer(CheckpointSource(tmp_path, torch.float32, torch.device("cpu")), TOKENS)
    assert isinstance(network, WholeNetwork)
    check(network, model)
