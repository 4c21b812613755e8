"""The policy: its tokenizer, supervised training, and translations with their probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    set_seed,
)

from translation_study.fitting import fit, padded
from translation_study.settings import Sizes

__all__ = [
    "Translation",
    "divergences",
    "load",
    "save",
    "supervise",
    "train_tokenizer",
    "translate",
]

_IGNORED = -100
_ROWS = 256


@dataclass(frozen=True, slots=True)
class Translation:
    """A translation as text and as the tokens that the policy wrote, end of text included."""

    text: str
    ids: tuple[int, ...]


def train_tokenizer(texts: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer; `<sep>` separates words for the model of error spans."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "</s>", "<sep>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="<sep>",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def supervise(
    pairs: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerFast, sizes: Sizes
) -> tuple[LlamaForCausalLM, list[float]]:
    """Train a policy from scratch on pairs (prompt, translation); return it with its losses."""
    set_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=sizes.width,
            intermediate_size=sizes.width * 8 // 3,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            num_key_value_heads=sizes.heads,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    prompts = tokenizer([prompt for prompt, _ in pairs])["input_ids"]
    whole = tokenizer([prompt + english for prompt, english in pairs])["input_ids"]
    rows = [[*ids, tokenizer.eos_token_id] for ids in whole]
    starts = [len(ids) for ids in prompts]

    def loss_of(batch: list[int]) -> torch.Tensor:
        ids, mask = padded([rows[at] for at in batch], tokenizer.pad_token_id)
        labels = ids.masked_fill(mask == 0, _IGNORED)
        for row, at in enumerate(batch):
            labels[row, : starts[at]] = _IGNORED
        logits = model(input_ids=ids, attention_mask=mask).logits  # [batch, tokens, vocabulary]
        return cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=_IGNORED
        )

    losses = fit(
        model,
        [len(row) for row in rows],
        loss_of,
        batch=sizes.supervised_batch,
        steps=sizes.supervised_steps,
        rate=sizes.supervised_rate,
        betas=(0.9, 0.98),
        report_every=100,
    )
    return model.eval(), losses


def save(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save a model in float16: what is used afterwards is what is stored."""
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load(folder: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Load a policy in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def translate(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    *,
    new_tokens: int,
    seed: int | None = None,
) -> list[Translation]:
    """Translate prompts greedily, or by sampling at temperature 1 if there is a seed.

    Equal seeds give equal translations of the same prompts.
    """
    if seed is not None:
        set_seed(seed)
    how = {"do_sample": False} if seed is None else {"do_sample": True, "top_k": 0, "top_p": 1.0}
    order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
    found: dict[int, Translation] = {}
    for at in range(0, len(order), _ROWS):
        rows = order[at : at + _ROWS]
        encoded = tokenizer([prompts[row] for row in rows], padding=True, return_tensors="pt")
        written = model.generate(**encoded, max_new_tokens=new_tokens, **how)
        for row, ids in zip(
            rows, written[:, encoded["input_ids"].shape[1] :].tolist(), strict=True
        ):
            kept = _until_end(ids, tokenizer.eos_token_id)
            found[row] = Translation(tokenizer.decode(kept, skip_special_tokens=True), kept)
    return [found[row] for row in range(len(prompts))]


def _until_end(ids: Sequence[int], end: int) -> tuple[int, ...]:
    return tuple(ids[: ids.index(end) + 1] if end in ids else ids)


@torch.no_grad()
def divergences(
    model: LlamaForCausalLM,
    reference: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    translations: Sequence[Translation],
) -> list[float]:
    """Return the KL divergence of a policy from a reference along each translation, in nats.

    The sum over its tokens of the exact divergence of the next token's distribution.
    """
    encoded = tokenizer(list(prompts))["input_ids"]
    rows = [[*ids, *one.ids] for ids, one in zip(encoded, translations, strict=True)]
    ids, mask = padded(rows, tokenizer.pad_token_id)
    own, other = (
        one(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
        for one in (model, reference)
    )  # [rows, tokens, vocabulary]
    by_token = (own.exp() * (own - other)).sum(-1)
    return [
        float(by_token[row, len(start) - 1 : len(whole) - 1].sum())
        for row, (start, whole) in enumerate(zip(encoded, rows, strict=True))
    ]
