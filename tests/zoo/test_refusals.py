"""Unsupported checkpoints are refused with a description of the files and what to write."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from alarm_models.errors import CheckpointError
from zoo import builders
from zoo.cases import load

_QWEN = {"pad_token_id": 0, "eos_token_id": 2}


@dataclass(frozen=True)
class Refused:
    """A checkpoint that is refused, the recipe that asks for it, and what the message says."""

    name: str
    build: Callable[[Path], object]
    says: tuple[str, ...]
    recipe: Mapping[str, Any] = field(default_factory=dict)


def _classifier(folder: Path, **more: Any) -> dict[str, torch.Tensor]:
    builders.write_classifier(folder, hf.Qwen2Config, builders.qwen_tokenizer, **_QWEN, **more)
    return load_file(folder / "model.safetensors")


def _rewrite(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})


def _gguf(folder: Path) -> None:
    (folder / "rm-Q4_K_M.gguf").write_bytes(b"GGUF" + bytes(32))


def _gguf_beside_config(folder: Path) -> None:
    _gguf(folder)
    builders.qwen_tokenizer(folder)
    hf.Qwen2Config(**builders.DECODER).save_pretrained(folder)


def _adapter(folder: Path, task: str = "SEQ_CLS") -> None:
    builders.qwen_tokenizer(folder)
    told = {"peft_type": "LORA", "task_type": task, "r": 4, "target_modules": ["q_proj"]}
    told["base_model_name_or_path"] = "Qwen/Qwen2.5-7B-Instruct"
    (folder / "adapter_config.json").write_text(json.dumps(told), "utf-8")
    tensors = {"base_model.model.score.weight": torch.zeros(1, 32)}
    save_file(tensors, folder / "adapter_model.safetensors")


def _adapter_beside_config(folder: Path) -> None:
    _adapter(folder)
    hf.Qwen2Config(**builders.DECODER, num_labels=1).save_pretrained(folder)


def _llama_factory_adapter(folder: Path) -> None:
    _adapter(folder, "CAUSAL_LM")
    save_file(
        builders.named("v_head.summary", builders.linear(bias=True)),
        folder / "value_head.safetensors",
    )


def _pair_ranker(folder: Path) -> None:
    base = hf.DebertaV2Model(hf.DebertaV2Config(**builders.ENCODER)).eval()
    head = builders.named("head_layer.1", builders.linear(32, inputs=64))
    builders.write_base(
        folder, base, head, prefix="pretrained_model.", architectures=["DebertaV2PairRM"]
    )
    builders.deberta_tokenizer(folder)


def _blender(folder: Path) -> None:
    builders.deberta_tokenizer(folder)
    config = {"ranker_type": "pairranker", "model_type": "deberta", "num_tasks": 1}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    torch.save({"pretrained_model.x": torch.zeros(1)}, folder / "pytorch_model.bin")


def _t5(folder: Path) -> None:
    builders.deberta_tokenizer(folder)
    config = hf.T5Config(
        vocab_size=520, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4,
        decoder_start_token_id=0,
    )  # fmt: skip
    hf.T5ForConditionalGeneration(config).save_pretrained(folder)


def _unknown_type(folder: Path, *, code: bool = False, name: str = "Novel") -> None:
    low = name.lower()
    builders.write_base(
        folder, builders.base(hf.LlamaConfig), builders.named("v_head", builders.linear()),
        architectures=[f"{name}ForRewardModel"], model_type=low,
        auto_map={
            "AutoConfig": f"configuration_{low}.{name}Config",
            "AutoModel": f"modeling_{low}.{name}ForRewardModel",
        } if code else None,
    )  # fmt: skip
    builders.llama2_tokenizer(folder)


def _internlm(folder: Path) -> None:
    _unknown_type(folder, code=True, name="InternLM2")


def _bin(tensors: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        state = _classifier(folder)
        (folder / "model.safetensors").unlink()
        torch.save(tensors(state), folder / "pytorch_model.bin")

    return build


def _no_safetensors(folder: Path) -> None:
    _classifier(folder)
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")


def _token_classifier(folder: Path) -> None:
    builders.write_classifier(
        folder, hf.Qwen2Config, builders.qwen_tokenizer,
        auto=hf.AutoModelForTokenClassification, **_QWEN,
    )  # fmt: skip


def _two_layers(folder: Path) -> None:
    head = builders.named("score", builders.layers(32, 32, 1))
    builders.write_base(
        folder, builders.base(hf.LlamaConfig), head,
        architectures=["INFORMForSequenceClassification"], num_labels=1,
    )  # fmt: skip
    builders.llama3_tokenizer(folder)


def _openrlhf(folder: Path) -> None:
    builders.write_base(
        folder, builders.base(hf.Qwen2Config), builders.named("score", builders.linear()),
        architectures=["RewardModel"], normalize_reward=False, mean=0.1, std=2.0,
    )  # fmt: skip
    builders.qwen_tokenizer(folder)


def _beaver_normalized(folder: Path) -> None:
    builders.write_base(
        folder, builders.base(hf.LlamaConfig), builders.named("score_head", builders.linear()),
        architectures=["LlamaForScore"], do_normalize=True, mean=[1.0], var=[4.0],
    )  # fmt: skip
    builders.llama2_tokenizer(folder, None)


def _urm(folder: Path) -> None:
    heads = builders.named("score", builders.linear(10))
    heads |= builders.named("weights.fc.0", builders.linear(5))
    builders.write_base(
        folder, builders.base(hf.LlamaConfig), heads,
        id2label={str(at): f"LABEL_{at}" for at in range(10)},
        architectures=["LlamaForSequenceClassificationWithNormal_Weights"],
        auto_map={"AutoModelForSequenceClassification": "modeling_custom.WithNormalWeights"},
    )  # fmt: skip
    builders.llama3_tokenizer(folder)


def _other_prefix(folder: Path) -> None:
    builders.write_base(
        folder, builders.base(hf.LlamaConfig), builders.named("v_head", builders.linear()),
        prefix="transformer.", architectures=["LlamaForSequenceClassification"],
    )  # fmt: skip
    builders.llama3_tokenizer(folder)


def _causal(folder: Path) -> None:
    torch.manual_seed(1)
    hf.MistralForCausalLM(hf.MistralConfig(**builders.DECODER)).save_pretrained(folder)
    builders.llama2_tokenizer(folder)


def _no_tokenizer(folder: Path) -> None:
    builders.write_base(
        folder, builders.base(hf.LlamaConfig), builders.named("v_head", builders.linear())
    )


_V_HEAD = {"head": "v_head"}
_TEXT = {"template": "{prompt}\n{completion}"}

CASES = [
    Refused("gguf_incomplete", _gguf, ("rm-Q4_K_M.gguf", "not a complete GGUF file")),
    Refused("gguf_beside_config", _gguf_beside_config, ("rm-Q4_K_M.gguf", "not a complete GGUF")),
    Refused("adapter", _adapter, ("PEFT adapter", "Qwen/Qwen2.5-7B-Instruct", "`adapter =")),
    Refused("adapter_beside_config", _adapter_beside_config, ("PEFT adapter", "merge_and_unload")),
    Refused(
        "llama_factory_adapter",
        _llama_factory_adapter,
        ("PEFT adapter", "CAUSAL_LM", "`adapter ="),
        {"head": "v_head.summary"},
    ),
    Refused(
        "pairrm", _pair_ranker, ("DebertaV2PairRM", '`kind = "compare", format = "pairrm"'), _TEXT
    ),
    Refused("pairrm_of_llm_blender", _blender, ("llm-blender's own", "PairRM-hf"), _TEXT),
    Refused(
        "unieval_t5",
        _t5,
        ("sequence-to-sequence", "`remote`"),
        {**_TEXT, "kind": "generative", "positive": 10},
    ),
    Refused(
        "pickled_object",
        _bin(lambda state: state | {"args": argparse.Namespace(lr=1e-5)}),
        ("argparse.Namespace", "not unpickled", "model.safetensors"),
    ),
    Refused(
        "pickled_object_beside_a_head",
        _bin(lambda state: state | {"args": argparse.Namespace(lr=1e-5)}),
        ("argparse.Namespace", "not unpickled"),
        {"head": "score"},
    ),
    Refused("nested_state", _bin(lambda state: {"module": state}), ("'module'", "one level down")),
    Refused("pointer_of_lfs", _no_safetensors, ("not a valid safetensors file", "Git LFS")),
    Refused(
        "token_classifier_as_a_sequence",
        _token_classifier,
        ("score.bias [1]", "Qwen2ForTokenClassification", '`kind = "sequence", head = "score"'),
    ),
    Refused(
        "layers_where_one_is_wanted",
        _two_layers,
        ("score.0.weight [32, 32]", '`kind = "sequence", head = "score"'),
    ),
    Refused(
        "urm_untrusted",
        _urm,
        ("modeling_custom.WithNormalWeights", '`kind = "multi-objective", head = "score", gate'),
        {"kind": "multi-objective"},
    ),
    Refused(
        "internlm2_untrusted",
        _internlm,
        ("v_head.weight [1, 32]", "trust_remote_code = true", "InternLM2ForRewardModel"),
    ),
    Refused("unknown_type_without_code", _unknown_type, ("novel", "v_head.weight"), _V_HEAD),
    Refused(
        "unknown_type_untrusted_with_its_head",
        lambda folder: _unknown_type(folder, code=True),
        ("v_head.weight [1, 32]", "trust_remote_code = true"),
        _V_HEAD,
    ),
    Refused(
        "other_prefix",
        _other_prefix,
        ("v_head.weight [1, 32]", "under transformer.", '`prefix = "transformer."`', "`head ="),
    ),
    Refused(
        "other_prefix_with_its_head",
        _other_prefix,
        ("20 tensors under transformer.", '`prefix = "transformer."`'),
        _V_HEAD,
    ),
    Refused(
        "causal_model_as_steps",
        _causal,
        ("MistralForCausalLM", "`generative`"),
        {**_TEXT, "kind": "steps", "step_token": "</s>"},
    ),
    Refused("no_tokenizer", _no_tokenizer, ("tokenizer", "`tokenizer`"), {**_V_HEAD, **_TEXT}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_checkpoint_with_different_scores_is_refused_with_advice(
    case: Refused, tmp_path: Path
) -> None:
    case.build(tmp_path)
    with pytest.raises(CheckpointError) as refused:
        load(tmp_path, case.recipe)
    message = str(refused.value)
    assert [part for part in case.says if part not in message] == []
    assert len(message) < 1500
    assert "Traceback" not in message
    assert "weights_only=False" not in message.replace("`", "")
    assert "`weights_only` set to `False`" not in message


def test_openrlhf_without_end_of_text_has_a_note(tmp_path: Path) -> None:
    _openrlhf(tmp_path)
    model = load(tmp_path, {})
    assert any("config.json names the class RewardModel" in note for note in model.notes)
    assert any("OpenRLHF is read with" in note for note in model.notes)


def test_normalization_unsupported_by_kind_is_refused(tmp_path: Path) -> None:
    _beaver_normalized(tmp_path)
    recipe = {"head": "score_head", "template": "{prompt}{completion}", "kind": "multi-objective"}
    with pytest.raises(CheckpointError, match=r"do_normalize True, mean \[1.0\], var \[4.0\]"):
        load(tmp_path, recipe | {"objectives": ["cost"]})
