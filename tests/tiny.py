"""Creates small random checkpoints: a tokenizer, a configuration and weights."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

TEXT = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "question: What is the capital of France? context: wikipage: Paris text: Paris is the capital.",
    "Human: Assistant: answer: user assistant system",
    "Naïve café owners, 東京 and emoji 🙂 are all text; numbers like 1815 and 3.14 too!",
]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<extra_0>"]
PAD, BOS, EOS = 0, 1, 2
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_DECODER = _SMALL | {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}
_ENCODER = _SMALL | {"intermediate_size": 64}

#: By architecture: its configuration's class and what makes it small.
ARCHITECTURES: Mapping[str, tuple[Any, Mapping[str, Any]]] = {
    "llama": (hf.LlamaConfig, _DECODER),
    "qwen3": (hf.Qwen3Config, _DECODER),
    "gemma2": (hf.Gemma2Config, _DECODER | {"sliding_window": 16, "query_pre_attn_scalar": 8}),
    "deberta-v2": (
        hf.DebertaV2Config,
        _ENCODER
        | {
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 16,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "position_biased_input": False,
            "pooler_hidden_size": 32,
        },
    ),
    "modernbert": (hf.ModernBertConfig, _ENCODER | {"local_attention": 16}),
    "roberta": (hf.RobertaConfig, _ENCODER | {"max_position_embeddings": 514}),
    "longformer": (
        hf.LongformerConfig,
        _ENCODER | {"max_position_embeddings": 514, "attention_window": [16, 16]},
    ),
}
#: Those that are tried as language models alone.
CAUSAL: Mapping[str, tuple[Any, Mapping[str, Any]]] = {
    "gpt2": (hf.GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512})
}
DECODERS = ("llama", "qwen3", "gemma2")


@dataclass(frozen=True)
class Checkpoint:
    """A folder, and its model and tokenizer as loaded by transformers."""

    folder: Path
    model: Any
    tokenizer: Any

    @torch.inference_mode()
    def plain_logits(self, text: str) -> torch.Tensor:
        """Run transformers on one text."""
        return self.model(**self.tokenizer(text, return_tensors="pt")).logits[0]


def tokenizer(*, bos: bool, eos: bool, pad_is_eos: bool = False) -> Any:
    """Train a byte-level BPE; ``bos`` and ``eos`` add these tokens around a text."""
    fast = Tokenizer(models.BPE(unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    fast.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    fast.train_from_iterator(TEXT, trainer)
    single = f"{'<s> ' if bos else ''}$A{' </s>' if eos else ''}"
    fast.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=fast,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        sep_token="</s>",
        cls_token="<s>",
        pad_token="</s>" if pad_is_eos else "<pad>",
        model_max_length=512,
        chat_template=CHAT_TEMPLATE,
    )


def config(architecture: str, *, pad_is_eos: bool = False, **more: Any) -> Any:
    """Create a small configuration."""
    made, small = (ARCHITECTURES | CAUSAL)[architecture]
    common = {
        "vocab_size": 500,
        "max_position_embeddings": 512,
        "pad_token_id": EOS if pad_is_eos else PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "initializer_range": 0.3,
    }
    return made(**{**common, **small, **more})


def save(model: Any, tokens: Any, folder: Path) -> Checkpoint:
    """Save a checkpoint and load it with transformers."""
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    loaded = type(model).from_pretrained(folder, dtype=torch.float32).eval()
    return Checkpoint(folder, loaded, hf.AutoTokenizer.from_pretrained(folder))


def sequence_classifier(
    architecture: str, folder: Path, *, pad_is_eos: bool = False, labels: int = 1, seed: int = 0
) -> Checkpoint:
    """Create a sequence classifier with random weights."""
    torch.manual_seed(seed)
    made = config(architecture, pad_is_eos=pad_is_eos, num_labels=labels)
    model = hf.AutoModelForSequenceClassification.from_config(made)
    is_decoder = architecture in DECODERS
    return save(model, tokenizer(bos=True, eos=not is_decoder, pad_is_eos=pad_is_eos), folder)


def token_classifier(
    folder: Path, labels: tuple[str, ...], *, architecture: str = "longformer", seed: int = 0
) -> Checkpoint:
    """Create a token classifier with random weights and named labels."""
    torch.manual_seed(seed)
    made = config(architecture, id2label=dict(enumerate(labels)))
    model = hf.AutoModelForTokenClassification.from_config(made)
    return save(model, tokenizer(bos=True, eos=True), folder)


def base_with_head(
    folder: Path, *, head: str = "regression_head", outputs: int = 1, as_bin: bool = False
) -> Checkpoint:
    """Create a Llama base with a named linear head, like openbmb/UltraRM-13b."""
    torch.manual_seed(0)
    return base_with(folder, {f"{head}.weight": torch.randn(outputs, 32) / 4}, as_bin=as_bin)


def causal(architecture: str, folder: Path) -> Checkpoint:
    """Create a causal language model with random weights."""
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config(architecture))
    return save(model, tokenizer(bos=True, eos=False), folder)


def base_with(
    folder: Path, tensors: Mapping[str, torch.Tensor], *, as_bin: bool = False
) -> Checkpoint:
    """Create a Llama base with additional tensors, like models with remote code."""
    torch.manual_seed(0)
    model = hf.LlamaModel(config("llama"))
    tokens = tokenizer(bos=True, eos=False)
    checkpoint = save(model, tokens, folder)
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()} | dict(tensors)
    (folder / "model.safetensors").unlink()
    if as_bin:
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return checkpoint


def scripted_judge(folder: Path, script: Mapping[str, tuple[str, ...]]) -> Checkpoint:
    """Create a Llama that answers by a script.

    ``script`` maps a token to those that are equally likely after it; "" is the end of text.
    """
    torch.manual_seed(0)
    tokens = tokenizer(bos=True, eos=False)

    def token_id(text: str) -> int:
        name = text.replace("\n", "Ċ").replace(" ", "Ġ")
        return EOS if text == "" else int(tokens.convert_tokens_to_ids(name))

    model = hf.LlamaForCausalLM(config("llama", hidden_size=64, head_dim=16))
    write_script(model, {token_id(key): map(token_id, nexts) for key, nexts in script.items()})
    return save(model, tokens, folder)


@torch.no_grad()
def write_script(model: Any, script: Mapping[int, Iterable[int]]) -> None:
    """Make the next token of a causal model depend on the last one only, as a script says.

    The layers add nothing, so the last hidden state is the last token's embedding, which the head
    recognizes.
    """
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    embeddings = model.model.embed_tokens.weight
    embeddings.copy_(torch.nn.functional.normalize(torch.randn_like(embeddings), dim=-1))
    model.lm_head.weight.zero_()
    for last, nexts in script.items():
        for token in nexts:
            model.lm_head.weight[token] += 4 * embeddings[last]
