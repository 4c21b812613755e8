"""Tiny random checkpoints in the layouts that reward models are published in.

Only layouts are published ones: names of tensors, keys of configurations, templates, forms of
files. Weights are random, tokenizers are trained on a few sentences.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers as hf
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from vocabularies import train_unigram, train_wordpiece

HIDDEN = 32

CORPUS = [
    "A red kite rises over the harbour while two fishermen mend their nets.",
    "What is the boiling point of water? It is 100 degrees at sea level.",
    "Step 1: 6 times 7 is 42. Step 2: 42 less 2 is 40. The answer is 40. yes no + -",
    "user assistant system model Human: Assistant: USER: ASSISTANT: BEGINNING OF CONVERSATION:",
    "Ça va? Über straße, naïve words; and some 日本語 too.",
] * 2

_GPT_SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
#: As Llama 3.2's: the date stands in the system turn.
LLAMA32 = (
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nToday Date: "
    "{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}<|eot_id|>"
    + LLAMA3.removeprefix("{{ bos_token }}")
)
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} "
    "[/INST]{% elif m['role'] == 'assistant' %} {{ m['content'] }} {{ eos_token }}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}<start_of_turn>"
    "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}"
    "<end_of_turn>\n{% endfor %}"
)

_QWEN_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra_0>", "<|reward|>"]
_LLAMA3_TOKENS = [
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>", "<|reserved_special_token_1|>", "[PAD]",
]  # fmt: skip


def _byte_bpe(special: Sequence[str], bos: str | None) -> Tokenizer:
    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_GPT_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    fast.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=480,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator(CORPUS, trainer)
    _put_first(fast, bos)
    return fast


def _put_first(fast: Tokenizer, bos: str | None) -> None:
    if bos is not None:
        fast.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A $B:1",
            special_tokens=[(bos, fast.token_to_id(bos))],
        )


def _write(folder: Path, fast: Tokenizer, name: str, chat: str | None, **more: Any) -> None:
    """Write a tokenizer as transformers 4 did: the template in tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    fast.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": name, **more} | ({} if chat is None else {"chat_template": chat})
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1), "utf-8")


def qwen_tokenizer(folder: Path, chat: str | None = CHATML) -> None:
    """Qwen 2.5's form: nothing around a text, end and padding apart."""
    fast = _byte_bpe(_QWEN_TOKENS, None)
    _write(
        folder, fast, "Qwen2Tokenizer", chat, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        bos_token=None, model_max_length=4096,
    )  # fmt: skip


def llama3_tokenizer(
    folder: Path, chat: str | None = LLAMA3, *, extra: tuple[str, ...] = (), **more: Any
) -> None:
    """Llama 3's form: a BOS before each text."""
    fast = _byte_bpe([*_LLAMA3_TOKENS, *extra], "<|begin_of_text|>")
    _write(
        folder, fast, "PreTrainedTokenizerFast", chat, bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>", pad_token="[PAD]", model_max_length=4096, **more,
    )  # fmt: skip


def llama2_tokenizer(
    folder: Path,
    chat: str | None = LLAMA2,
    *,
    name: str = "LlamaTokenizer",
    extra: tuple[str, ...] = (),
    **more: Any,
) -> None:
    """Llama 2's form: sentencepiece pieces with bytes behind them, and a BOS."""
    special = ["<unk>", "<s>", "</s>", *extra]
    letters = sorted({letter for text in CORPUS for letter in text.replace(" ", "▁")})
    fast = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    fast.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    fast.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = BpeTrainer(
        vocab_size=520,
        special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))],
        initial_alphabet=letters,
        show_progress=False,
    )
    fast.train_from_iterator([word for text in CORPUS for word in text.split()], trainer)
    state = json.loads(fast.to_str())
    state["added_tokens"] = [one for one in state["added_tokens"] if one["content"] in special]
    fast = Tokenizer.from_str(json.dumps(state))
    _put_first(fast, "<s>")
    _write(
        folder, fast, name, chat, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        pad_token="<unk>", add_bos_token=True, add_eos_token=False, model_max_length=4096, **more,
    )  # fmt: skip


def gemma_tokenizer(folder: Path) -> None:
    """Gemma 2's form, byte-level here: a BOS, turns between tokens of their own."""
    fast = _byte_bpe(["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"], "<bos>")
    _write(
        folder, fast, "PreTrainedTokenizerFast", GEMMA, bos_token="<bos>", eos_token="<eos>",
        pad_token="<pad>", model_max_length=4096,
    )  # fmt: skip


def deberta_tokenizer(folder: Path) -> None:
    """DeBERTa v3's form: unigram pieces between [CLS] and [SEP]."""
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    fast = Tokenizer(models.Unigram())
    fast.pre_tokenizer = pre_tokenizers.Metaspace()
    fast.decoder = decoders.Metaspace()
    train_unigram(fast, CORPUS, special, size=200, unk="[UNK]")
    _put_around(fast)
    _write(
        folder, fast, "PreTrainedTokenizerFast", None, cls_token="[CLS]", sep_token="[SEP]",
        pad_token="[PAD]", unk_token="[UNK]", model_max_length=512,
    )  # fmt: skip


def bert_tokenizer(folder: Path) -> None:
    """BERT's form: word pieces, the answer of token type 1."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    fast = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    fast.normalizer = normalizers.BertNormalizer()
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    train_wordpiece(fast, CORPUS, special, size=300, unk="[UNK]")
    _put_around(fast)
    _write(
        folder, fast, "BertTokenizer", None, cls_token="[CLS]", sep_token="[SEP]",
        pad_token="[PAD]", unk_token="[UNK]", model_max_length=512,
    )  # fmt: skip


def _put_around(fast: Tokenizer) -> None:
    fast.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(one, fast.token_to_id(one)) for one in ("[CLS]", "[SEP]")],
    )


#: What makes any decoder small.
DECODER: Mapping[str, Any] = {
    "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48, "vocab_size": 520,
    "max_position_embeddings": 4096, "initializer_range": 0.25,
}  # fmt: skip
#: What makes any encoder small.
ENCODER: Mapping[str, Any] = {
    "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "vocab_size": 520, "max_position_embeddings": 512,
    "initializer_range": 0.25,
}  # fmt: skip


def base(config: type[Any], **more: Any) -> Any:
    """Make a base model with random weights."""
    torch.manual_seed(11)
    return hf.AutoModel.from_config(config(**{**DECODER, **more})).float().eval()


def linear(outputs: int = 1, *, bias: bool = False, inputs: int = HIDDEN) -> torch.nn.Linear:
    """Make a head whose scores are of order 1."""
    torch.manual_seed(12)
    head = torch.nn.Linear(inputs, outputs, bias=bias)
    torch.nn.init.normal_(head.weight, 0, 0.4)
    return head


def layers(*widths: int) -> torch.nn.Sequential:
    """Make a head of linear layers with a ReLU between."""
    torch.manual_seed(13)
    made: list[torch.nn.Module] = []
    for inputs, outputs in pairwise(widths):
        made += [torch.nn.ReLU()] if made else []
        made.append(torch.nn.Linear(inputs, outputs))
    return torch.nn.Sequential(*made)


def named(name: str, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a module's tensors under a name."""
    return {f"{name}.{key}": one for key, one in module.state_dict().items()}


def write_weights(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    *,
    suffix: str = "safetensors",
    parts: int = 1,
) -> None:
    """Write tensors as safetensors or ``.bin``, whole or in parts with an index."""
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    index: dict[str, str] = {}
    for part in range(parts):
        name = f"{stem}.{suffix}" if parts == 1 else f"{stem}-{part + 1:05}-of-{parts:05}.{suffix}"
        some = {key: tensors[key].clone() for key in list(tensors)[part::parts]}
        index |= dict.fromkeys(some, name)
        if suffix == "safetensors":
            save_file(some, folder / name, metadata={"format": "pt"})
        else:
            torch.save(some, folder / name)
    if parts > 1:
        table = {"metadata": {}, "weight_map": index}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(table), "utf-8")


def write_base(
    folder: Path,
    model: Any,
    heads: Mapping[str, torch.Tensor],
    *,
    prefix: str = "model.",
    suffix: str = "safetensors",
    parts: int = 1,
    **config: Any,
) -> None:
    """Write a base under a prefix, heads beside it, and config.json with these keys."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{prefix}{key}": one for key, one in model.state_dict().items()}
    write_weights(folder, tensors | dict(heads), suffix=suffix, parts=parts)
    model.config.save_pretrained(folder)
    edit_config(folder, **config)


def edit_config(folder: Path, **keys: Any) -> None:
    """Set keys of config.json; None takes a key out."""
    file = folder / "config.json"
    config = json.loads(file.read_text("utf-8")) | keys
    kept = {key: one for key, one in config.items() if one is not None}
    file.write_text(json.dumps(kept, indent=1), "utf-8")


def write_classifier(
    folder: Path,
    config: type[Any],
    tokenizer: Callable[[Path], None],
    *,
    auto: Any = hf.AutoModelForSequenceClassification,
    shard: str = "5GB",
    **more: Any,
) -> None:
    """Write a stock classifier, as transformers saves it, and its tokenizer."""
    torch.manual_seed(14)
    small = ENCODER if "num_key_value_heads" not in vars(config()) else DECODER
    model = auto.from_config(config(**{"num_labels": 1, **small, **more})).float()
    for key, tensor in model.named_parameters():
        if key.startswith(("score", "classifier")) or "token_type" in key:
            torch.nn.init.normal_(tensor, 0, 0.4)
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer(folder)


def write_gguf(
    file: Path,
    architecture: str,
    tensors: Mapping[str, torch.Tensor],
    config: hf.PreTrainedConfig,
    folder: Path,
    **more: Any,
) -> None:
    """Write a GGUF file: tensors by their names there, and the byte-level tokenizer of a folder.

    Matrices with rows of whole blocks are stored as Q8_0: 32 integers with a scale of 16 bits.
    ``more`` are further keys of the architecture.
    """
    writer = gguf.GGUFWriter(file, architecture)
    told: Any = config
    writer.add_context_length(told.max_position_embeddings)
    writer.add_embedding_length(told.hidden_size)
    writer.add_block_count(told.num_hidden_layers)
    writer.add_feed_forward_length(told.intermediate_size)
    writer.add_head_count(told.num_attention_heads)
    writer.add_head_count_kv(told.num_key_value_heads)
    writer.add_layer_norm_rms_eps(told.rms_norm_eps)
    writer.add_rope_freq_base(told.rope_parameters["rope_theta"])
    for key, value in more.items():
        writer.add_uint32(f"{architecture}.{key}", value)
    _add_tokenizer(writer, folder)
    for name, one in tensors.items():
        if one.ndim == 2 and one.shape[1] % 32 == 0:
            blocks = one.reshape(one.shape[0], -1, 32)
            scales = blocks.abs().amax(-1, keepdim=True).log2().ceil().exp2() / 64
            integers = (blocks / scales).round().to(torch.int8).numpy()
            parts = [scales.half().numpy().view(np.uint8), integers.view(np.uint8)]
            rows = np.concatenate(parts, -1).reshape(one.shape[0], -1)
            writer.add_tensor(name, rows, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, one.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path) -> None:
    fast = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    added = {one["id"]: one["content"] for one in fast["added_tokens"]}
    vocabulary = {index: token for token, index in fast["model"]["vocab"].items()} | added
    tokens = [vocabulary[index] for index in sorted(vocabulary)]
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe" if config["bos_token"] else "qwen2")
    if config["bos_token"]:
        writer.add_bos_token_id(tokens.index(config["bos_token"]))
        writer.add_add_bos_token(True)
    writer.add_token_list(tokens)
    writer.add_token_types([control if index in added else normal for index in range(len(tokens))])
    writer.add_token_merges([" ".join(pair) for pair in fast["model"]["merges"]])
    writer.add_eos_token_id(tokens.index(config["eos_token"]))
    writer.add_pad_token_id(tokens.index(config["pad_token"]))
    writer.add_chat_template(config["chat_template"])
