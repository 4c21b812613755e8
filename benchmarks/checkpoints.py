"""Builds checkpoints with random weights in the shapes to measure."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers as hf
from made_samples import FIRST_WORD, VOCABULARY
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from work import LABELS

__all__ = ["Shape", "bert", "llama", "llama_with_head", "longformer", "random_llama"]

_SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")
_PAD, _CLS, _SEP, _UNK = range(FIRST_WORD)


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a model.

    By default attention heads are 64 wide, or 32 if the model is narrower than 512, each has keys
    of its own, and the gated MLP of a Llama is 8/3 as wide as the model.
    """

    layers: int
    hidden: int
    heads: int | None = None
    kv_heads: int | None = None
    intermediate: int | None = None

    @property
    def num_heads(self) -> int:
        """The number of attention heads."""
        return self.heads or self.hidden // (64 if self.hidden >= 512 else 32)


def llama(folder: Path, shape: Shape, *, token_head: bool = False) -> None:
    """Save a Llama classifier: one logit, or one per label and token."""
    _start()
    labels = {"id2label": dict(enumerate(LABELS))} if token_head else {"num_labels": 1}
    made = _llama_config(shape, VOCABULARY, **labels)
    loader = hf.LlamaForTokenClassification if token_head else hf.LlamaForSequenceClassification
    loader(made).save_pretrained(folder)
    _save_words(folder, encoder=False)


def random_llama(folder: Path, shape: Shape, device: str) -> None:
    """Save a Llama classifier without weights: loading it makes random ones on ``device``.

    It needs ``trust_remote_code``, because its class is `random_weights.RandomWeightsLlama`.
    """
    code = Path(__file__).with_name("random_weights.py")
    config = _llama_config(shape, VOCABULARY, num_labels=1, random_weights_device=device)
    config.architectures = ["LlamaForSequenceClassification"]
    config.auto_map = {"AutoModelForSequenceClassification": f"{code.stem}.RandomWeightsLlama"}
    config.save_pretrained(folder)
    shutil.copy(code, folder / code.name)
    # Loaders look for a file of weights; nothing reads this tensor.
    save_file({"score.weight": torch.zeros(1, shape.hidden)}, folder / "model.safetensors")
    _save_words(folder, encoder=False)


def bert(folder: Path, shape: Shape) -> None:
    """Save a BERT classifier with one logit.

    Both token types have the same embedding: rerankers mark the second text, others mark none.
    """
    _start()
    made = hf.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.hidden,
        intermediate_size=4 * shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.num_heads,
        num_labels=1,
        pad_token_id=_PAD,
    )
    model = hf.BertForSequenceClassification(made)
    types = model.bert.embeddings.token_type_embeddings.weight.data
    types[1] = types[0]
    model.save_pretrained(folder)
    _save_words(folder, encoder=True)


def longformer(folder: Path, shape: Shape, tokenizer: Path, labels: tuple[str, ...] = ()) -> None:
    """Save a Longformer with window 512 as a token classifier with labels, or with one logit."""
    _start()
    own = json.loads((tokenizer / "config.json").read_text())
    made = hf.LongformerConfig(
        vocab_size=own["vocab_size"],
        hidden_size=shape.hidden,
        intermediate_size=4 * shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.num_heads,
        attention_window=[512] * shape.layers,
        max_position_embeddings=4098,
        **{name: own[name] for name in ("pad_token_id", "bos_token_id", "eos_token_id")},
        **({"id2label": dict(enumerate(labels))} if labels else {"num_labels": 1}),
    )
    loader = (
        hf.LongformerForTokenClassification if labels else hf.LongformerForSequenceClassification
    )
    loader(made).save_pretrained(folder)
    _copy_tokenizer(tokenizer, folder)


def llama_with_head(folder: Path, shape: Shape, tokenizer: Path) -> None:
    """Save a Llama base with a linear ``regression_head``, named as in openbmb/UltraRM-13b."""
    _start()
    own = json.loads((tokenizer / "config.json").read_text())
    model = hf.LlamaModel(_llama_config(shape, own["vocab_size"]))
    model.save_pretrained(folder)
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    state["regression_head.weight"] = torch.randn(1, shape.hidden) / shape.hidden**0.5
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    _copy_tokenizer(tokenizer, folder)


def _start() -> None:
    torch.manual_seed(0)
    hf.logging.disable_progress_bar()


def _llama_config(shape: Shape, vocabulary: int, **more: object) -> hf.LlamaConfig:
    return hf.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate or shape.hidden * 8 // 3 // 64 * 64,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.kv_heads or shape.num_heads,
        max_position_embeddings=4096,
        pad_token_id=_PAD,
        bos_token_id=_CLS,
        eos_token_id=_SEP,
        **more,
    )


def _save_words(folder: Path, *, encoder: bool) -> None:
    """Save a tokenizer for the made-up words; encoders add special tokens around a text."""
    vocabulary = {token: index for index, token in enumerate(_SPECIAL)}
    vocabulary |= {f"w{index}": index for index in range(FIRST_WORD, VOCABULARY)}
    fast = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast.add_special_tokens(list(_SPECIAL))
    if encoder:
        fast.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", _CLS), ("[SEP]", _SEP)],
        )
    fast.save(str(folder / "tokenizer.json"))
    # Written by hand: transformers renamed its generic class, and the peers read the older name.
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "eos_token": "[SEP]"}
    longest = 512 if encoder else 4096
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": longest, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _copy_tokenizer(source: Path, folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(source / name, folder / name)
