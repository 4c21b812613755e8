"""Tiny random COMET checkpoints: as Lightning saves and COMET publishes them, and converted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from vocabularies import train_unigram

from alarm_models.modeling.comet_conversion import convert

HIDDEN, LAYERS, POSITIONS = 32, 3, 96

TEXTS = [
    "A red kite rises over the harbour while two fishermen mend their nets.",
    "Ein roter Milan steigt über dem Hafen auf, und zwei Fischer flicken ihre Netze.",
    "Le cerf-volant rouge monte au-dessus du port.",
]


def write_encoder(folder: Path, *, is_xl: bool = False) -> Any:
    """Write a tiny XLM-R and its tokenizer; return the model."""
    folder.mkdir(parents=True)
    fast = Tokenizer(models.Unigram())
    fast.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    train_unigram(fast, TEXTS, special, size=160, unk="<unk>")
    fast.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )  # fmt: skip
    fast.save(str(folder / "tokenizer.json"))
    told = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "cls_token": "<s>",
        "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>",
        "model_max_length": POSITIONS,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(told), "utf-8")
    made = hf.XLMRobertaXLConfig if is_xl else hf.XLMRobertaConfig
    torch.manual_seed(51)
    config = made(
        vocab_size=170, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=POSITIONS + 2, type_vocab_size=1,
        initializer_range=0.12, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    config.save_pretrained(folder)
    return hf.AutoModel.from_config(config).eval()


def head_tensors(tags: int, scalars: Sequence[float]) -> dict[str, torch.Tensor]:
    torch.manual_seed(52)
    widths = (HIDDEN, 24, 12, 1)
    made = {
        f"estimator.ff.{3 * at}.weight": 0.5 * torch.randn(widths[at + 1], widths[at])
        for at in range(3)
    }
    made |= {f"estimator.ff.{3 * at}.bias": 0.3 * torch.randn(widths[at + 1]) for at in range(3)}
    made |= {
        f"layerwise_attention.scalar_parameters.{at}": torch.tensor([one])
        for at, one in enumerate(scalars)
    }
    made["layerwise_attention.gamma"] = torch.tensor([0.9])
    made["layerwise_attention.dropout_mask"] = torch.zeros(len(scalars))
    if tags:
        made["hidden2tag.weight"] = 1.0 * torch.randn(tags, HIDDEN)
        made["hidden2tag.bias"] = torch.tensor([0.8, 0.5, 0.2, 0.0])[:tags]
        made["wordloss.weight"] = torch.ones(tags)
    return made


XCOMET: Mapping[str, Any] = {
    "class_identifier": "xcomet_metric", "sent_layer": "mix", "word_layer": 2,
    "layer_transformation": "sparsemax", "layer_norm": False, "hidden_sizes": [24, 12],
    "activations": "Tanh", "final_activation": None, "error_labels": ["minor", "major", "critical"],
    "dropout": 0.1,
}  # fmt: skip
KIWI: Mapping[str, Any] = {
    "class_identifier": "unified_metric", "sent_layer": "mix", "word_layer": 2,
    "layer_transformation": "softmax", "layer_norm": True, "hidden_sizes": [24, 12],
    "activations": "Tanh", "final_activation": None, "input_segments": ["mt", "src"],
}  # fmt: skip
SCALARS = (0.4, 0.9, -1.0, 0.7)


def publish(
    folder: Path, hparams: Mapping[str, Any], state: Mapping[str, Any], **more: Any
) -> Path:
    """Write a checkpoint as Lightning saves it and COMET publishes it."""
    (folder / "checkpoints").mkdir(parents=True)
    saved = {"epoch": 1, "state_dict": dict(state), "hyper_parameters": dict(hparams), **more}
    torch.save(saved, folder / "checkpoints" / "model.ckpt")
    lines = [f"class_identifier: {hparams['class_identifier']}", "loss: mse"]
    (folder / "hparams.yaml").write_text("\n".join(lines), "utf-8")
    return folder


def write(folder: Path, hparams: Mapping[str, Any], *, tags: int, is_xl: bool = False) -> Any:
    """Write a converted checkpoint at ``folder``; return what it was made of."""
    encoder = write_encoder(folder.parent / "encoder", is_xl=is_xl)
    heads = head_tensors(tags, SCALARS)
    inside = {
        f"encoder.model.{key}": one
        for key, one in encoder.state_dict().items()
        if not key.startswith("pooler.")
    }
    source = publish(folder.parent / "published", hparams, inside | heads)
    convert(source, str(folder.parent / "encoder"), folder)
    return encoder, heads
