"""Small tokenizers of each family, trained on the spot."""

from __future__ import annotations

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "The café's naïve owner said: “it isn't done, is it?” Then she left.",
    "Größe, Ærø, žluťoučký kůň – déjà vu!  Two  spaces,\n\nand new lines.\t",
    "日本語の文章。東京は大きい。中文也可以。 한국어 문장도 있다.",
    "Emoji 😀😀👍🏽👩‍👩‍👧 in between, x = y + 3; print('hi')",
] * 3
SPECIALS = ["<pad>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2, Llama 3 and Qwen: 256 bytes and few merges, so that most characters are split."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(TEXTS, trainer)
    inner.add_tokens(["<tool>", " two words"])
    inner.add_special_tokens(["<|reserved|>"])
    return wrap(inner)


def byte_fallback() -> PreTrainedTokenizerFast:
    """As Llama 2: sentencepiece pieces, bytes for what has none, one leading space dropped."""
    vocab = {token: index for index, token in enumerate(SPECIALS + BYTES)}
    for piece in ["▁", "▁the", "▁it", "s", "▁▁", "e", "é", "n", "▁caf", "日", ".", "'", "▁a", "b"]:
        vocab[piece] = len(vocab)
    inner = tokenizers.Tokenizer(models.BPE(vocab, [], byte_fallback=True))
    inner.add_special_tokens(SPECIALS)
    inner.normalizer = normalizers.Replace(" ", "▁")
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return wrap(inner)


def unigram() -> PreTrainedTokenizerFast:
    """As T5."""
    inner = tokenizers.Tokenizer(models.Unigram())
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=[*SPECIALS, "<unk>"], unk_token="<unk>", show_progress=False
    )
    inner.train_from_iterator(TEXTS, trainer)
    return wrap(inner)


def wordpiece() -> PreTrainedTokenizerFast:
    """As BERT, whose decoder cleans up spaces before punctuation."""
    inner = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=[*SPECIALS, "<unk>"], show_progress=False
    )
    inner.train_from_iterator(TEXTS, trainer)
    return wrap(inner)


def wrap(inner: tokenizers.Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
