"""InternLM2's tokenizer without code of the checkpoint's own: sentencepiece, as Llama 2's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import SentencePieceExtractor

__all__ = ["is_internlm2", "read_internlm2"]

#: The classes that its tokenizer_config.json names, which transformers does not have.
_CLASSES = ("InternLM2Tokenizer", "InternLM2TokenizerFast")


def is_internlm2(folder: Path) -> bool:
    """Say whether a folder's tokenizer is to be read by InternLM2's own class."""
    file = folder / "tokenizer_config.json"
    return file.is_file() and _read(file).get("tokenizer_class") in _CLASSES


def read_internlm2(folder: Path) -> PreTrainedTokenizerFast:
    """Read the tokenizer of a folder: its tokenizer.json, else its sentencepiece model."""
    # transformers' loader has no types.
    load: Any = PreTrainedTokenizerFast.from_pretrained
    if (folder / "tokenizer.json").is_file():
        tokenizer: PreTrainedTokenizerFast = load(str(folder))
        return tokenizer
    tokenizer = load(str(folder), tokenizer_object=_converted(folder / "tokenizer.model"))
    bos = tokenizer.bos_token
    if bos is not None and _read(folder / "tokenizer_config.json").get("add_bos_token", True):
        # As its class does: the BOS alone, before each of two texts too.
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos}:1 $B:1",
            special_tokens=[(bos, tokenizer.convert_tokens_to_ids(bos))],
        )
    return tokenizer


def _converted(file: Path) -> Tokenizer:
    """Make a fast tokenizer of a sentencepiece model, whose word it is if a space begins a text."""
    read = SentencePieceExtractor(str(file))
    made: Any = read.extract(BPE)  # its types name another form
    fast = Tokenizer(
        BPE(
            made["vocab"],
            made["merges"],
            unk_token=read.proto.trainer_spec.unk_piece,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    starts_with_space = read.proto.normalizer_spec.add_dummy_prefix
    fast.normalizer = normalizers.Sequence(
        [
            *([normalizers.Prepend("▁")] if starts_with_space else []),
            normalizers.Replace(" ", "▁"),
        ]
    )
    fast.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    fast.add_tokens(made["additional_special_tokens"])
    return fast


def _read(file: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return read
