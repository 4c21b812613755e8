"""Small tokenizers of each family, trained on the spot."""

from __future__ import annotations

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast
from vocabularies import train_unigram, train_wordpiece

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
    train_unigram(inner, TEXTS, [*SPECIALS, "<unk>"], size=200, unk="<unk>")
    return wrap(inner)


def wordpiece() -> PreTrainedTokenizerFast:
    """As BERT, whose decoder cleans up spaces before punctuation."""
    inner = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    train_wordpiece(inner, TEXTS, [*SPECIALS, "<unk>"], size=300, unk="<unk>")
    return wrap(inner)


def wrap(inner: tokenizers.Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


class _Bytes(PreTrainedTokenizer):
    """A token a byte, two words, and an end of text."""

    def __init__(self, **given: object) -> None:
        self.tokens = {self.written(bytes([byte])): byte for byte in range(256)}
        self.tokens |= {self.written(word): 256 + at for at, word in enumerate(WORDS)}
        self.by_id = {index: token for token, index in self.tokens.items()}
        super().__init__(eos_token="<|endoftext|>", **given)
        self.add_tokens(["<tool>"])

    def written(self, data: bytes) -> str | bytes:
        raise NotImplementedError

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    def get_vocab(self) -> dict[str | bytes, int]:
        return {**self.tokens, **self.added_tokens_encoder}

    def _tokenize(self, text: str, **_: object) -> list[str | bytes]:
        return [self.written(bytes([byte])) for byte in text.encode()]

    def _convert_token_to_id(self, token: str | bytes) -> int | None:
        return self.tokens.get(token)

    def _convert_id_to_token(self, index: int) -> str | bytes | None:
        return self.by_id.get(index)


class TokensOfBytes(_Bytes):
    """As Qwen-7B, GLM-4 and Phi-3-small: tiktoken's own bytes."""

    def written(self, data: bytes) -> bytes:
        return data

    def convert_tokens_to_string(self, tokens: list[str | bytes]) -> str:
        pieces = [one if isinstance(one, bytes) else one.encode() for one in tokens]
        return b"".join(pieces).decode("utf-8", "replace")


class TokensOfLatin1(_Bytes):
    """As DBRX: a character a byte, but not the letters of byte-level vocabularies."""

    def written(self, data: bytes) -> str:
        return data.decode("latin-1")

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens).encode("latin-1").decode("utf-8", "replace")


WORDS = [b"Hello", b" world", "né".encode(), "é日".encode()[:3]]


def tokens_of_bytes() -> TokensOfBytes:
    return TokensOfBytes()


def tokens_of_latin1() -> TokensOfLatin1:
    return TokensOfLatin1()
