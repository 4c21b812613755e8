"""Long texts tokenized in parts have the same tokens, also after truncation."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers import (
    Tokenizer as FastTokenizer,
)
from vocabularies import train_unigram

from alarm_models.errors import SampleError
from alarm_models.preprocessing import tokenizer as tokenizing
from alarm_models.preprocessing.chunked_tokenization import can_cut, cut
from alarm_models.preprocessing.segmentation import split_words
from alarm_models.preprocessing.templates import Rendered, TypedSpan
from alarm_models.preprocessing.tokenizer import Tokenizer
from alarm_models.preprocessing.truncation import TokenIds, Truncation, fit
from alarm_models.recipe.loader import locate_recipe
from alarm_models.types import Sample, Span

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXT = [
    "The quick brown fox jumps over the lazy dog, don't it? Naïve café 東京 🙂 1815  3.14\n\n x"
]


def _bpe(pre: Any) -> Any:
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = pre
    fast.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return fast


def _unigram(scheme: str) -> Any:
    fast = FastTokenizer(models.Unigram())
    fast.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    train_unigram(fast, TEXT, ["<s>", "<unk>"], size=90, unk="<unk>")
    return fast


FAST = {
    "gpt2": lambda: _bpe(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "gpt2-prefix": lambda: _bpe(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "llama3": lambda: _bpe(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(LLAMA_3), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    ),
    "unigram-always": lambda: _unigram("always"),
    "unigram-first": lambda: _unigram("first"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {"mini": locate_recipe("mini").parent / "mini"}
    for name, make in FAST.items():
        made[name] = tmp_path_factory.mktemp(name)
        hf.PreTrainedTokenizerFast(tokenizer_object=make()).save_pretrained(str(made[name]))
    return made


@pytest.fixture(scope="module")
def tokenizers(folders: dict[str, Path]) -> dict[str, Tokenizer]:
    return {name: Tokenizer(folder) for name, folder in folders.items()}


WORDS = st.sampled_from(
    ["the", "dog", "don't", "it's", "I", "x", " ", "  ", "\n", "\n\n", "1815", "3.14", "?", "...",
     "</s>", "[SEP]", "naïve", "é", "e\u0301", "東京", "🙂", "\t", "\u00a0", "a" * 40, "'", "▁"]
)  # fmt: skip
TEXTS = st.lists(WORDS, min_size=1, max_size=60).map(" ".join)
#: Tokenizers that a test goes through.
NAMES = st.sampled_from(["mini", *FAST])


@settings(deadline=None, derandomize=True, database=None, max_examples=300)
@given(NAMES, TEXTS, TEXTS, TEXTS, st.sampled_from(list(Truncation)), st.integers(4, 40), st.data())
def test_long_text_truncated_in_parts_equals_whole(
    tokenizers: dict[str, Tokenizer],
    name: str,
    before: str,
    prompt: str,
    completion: str,
    truncation: Truncation,
    max_tokens: int,
    data: Any,
) -> None:
    tokenizer = tokenizers[name]
    text = f"{before} {prompt} {completion}"
    start = len(before) + 1
    rendered = Rendered(
        text, Span(start, start + len(prompt)), Span(start + len(prompt) + 1, len(text))
    )
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(text) - 1))
        rendered = replace(
            rendered, typed_spans=(TypedSpan(at, len(text), 1),), anchor_positions=(at,)
        )

    def left(*, whole: int) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tokenizing, "_MAX_WHOLE", whole)
            patch.setattr(tokenizing, "_PART", 8)
            (tokens,) = tokenizer.encode(
                [rendered], with_special=True, max_tokens=max_tokens, truncation=truncation
            )
        try:
            kept, is_cut = fit(tokens, max_tokens, truncation)
        except SampleError as error:
            return error.code, error.message
        return kept.ids, kept.token_type_ids, kept.anchor_positions, is_cut

    assert left(whole=0) == left(whole=1 << 20)


@pytest.mark.parametrize("name", ["mini", *FAST])
def test_can_cut_accepts_known_tokenizers(name: str, folders: dict[str, Path]) -> None:
    assert can_cut(json.loads((folders[name] / "tokenizer.json").read_text("utf-8")))


def _prepending() -> Any:  # Llama 2's
    fast = _bpe(None)
    fast.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return fast


def _with_dropout() -> Any:
    fast = _bpe(pre_tokenizers.ByteLevel())
    fast.model.dropout = 0.1
    return fast


def _with_token(token: AddedToken) -> Any:
    fast = _bpe(pre_tokenizers.ByteLevel())
    fast.add_tokens([token])
    return fast


@pytest.mark.parametrize(
    "make",
    [
        _prepending,
        _with_dropout,
        lambda: _with_token(AddedToken("lazy dog")),
        lambda: _with_token(AddedToken("lazy", rstrip=True)),
        lambda: _bpe(None),
        lambda: _bpe(pre_tokenizers.Split(Regex("dog the"), "isolated")),
        lambda: _bpe(pre_tokenizers.ByteLevel(use_regex=False)),
        lambda: _bpe(pre_tokenizers.Metaspace(split=False)),
        lambda: _bpe(pre_tokenizers.Punctuation()),
    ],
)
def test_can_cut_rejects_tokenizers_that_join_parts(make: Any) -> None:
    assert not can_cut(json.loads(make().to_str()))


def test_cut_splits_between_words_away_from_prompt_ends() -> None:
    text = "one two three  4\nfive ° six ? seven"
    prompt = Span(4, 13)
    parts = cut(Rendered(text, prompt, Span(0, 0)), 1)
    assert [text[start:end] for start, end in parts] == [
        "one two three  4\nfive ° six",
        " ?",
        " seven",
    ]


def test_long_prompt_is_tokenized_only_in_part(
    tokenizers: dict[str, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    tokenizer = tokenizers["mini"]
    encode_part = Tokenizer._encode_part

    def noted(self: Tokenizer, text: Rendered, part: Span) -> Any:
        sizes.append(part.end - part.start)
        return encode_part(self, text, part)

    monkeypatch.setattr(Tokenizer, "_encode_part", noted)
    text = "the dog " * 100_000 + "it is"
    rendered = Rendered(text, Span(0, len(text) - 5), Span(len(text) - 5, len(text)))
    (tokens,) = tokenizer.encode(
        [rendered], with_special=True, max_tokens=512, truncation=Truncation.PROMPT
    )
    kept, is_cut = fit(tokens, 512, Truncation.PROMPT)
    assert (len(kept.ids), is_cut) == (512, True)
    assert sum(sizes) < 100_000


@pytest.mark.parametrize("name", ["mini", "unigram-first"])
def test_encode_words_in_parts_equals_whole(
    name: str, tokenizers: dict[str, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [["The", "lazy", "dogs", "1815"] * 3, [], ["x"], ["naïve"] * 9]
    whole = tokenizers[name].encode_words(texts)
    monkeypatch.setattr(tokenizing, "_WORDS_AT_ONCE", 5)
    assert tokenizers[name].encode_words(texts) == whole
    assert whole[1] == ([], [])


@settings(deadline=None, derandomize=True, database=None, max_examples=100)
@given(TEXTS, TEXTS, st.sampled_from(["", " ", "\n"]), st.sampled_from(["", " ", "."]), st.data())
def test_long_prefix_of_segments_has_after_truncation_the_words_of_the_whole(
    tokenizers: dict[str, Tokenizer], prompt: str, rest: str, before: str, after: str, data: Any
) -> None:
    tokenizer, max_tokens = tokenizers["mini"], data.draw(st.integers(4, 40))
    text = f"answer{before}{prompt}{after}{rest}"
    start = len("answer" + before)
    prefix = Rendered(text, Span(start, start + len(prompt)), Span(0, 0))
    sample = Sample(prompt, "It is. So!")

    def left(one: Rendered) -> Any:
        part = split_words(one, sample, (Span(0, 6), Span(7, 10)), marking=False)
        ((ids, owners),) = tokenizer.encode_words([part.words])
        laid = part.insert_separators(ids, owners, 102)
        try:
            return fit(TokenIds(tuple(laid.ids), laid.prompt, 0, 0), max_tokens, Truncation.PROMPT)
        except SampleError as error:
            return error.message

    shortened = tokenizer.shorten_words(prefix, max_tokens, size=data.draw(st.integers(1, 50)))
    kept, whole = left(shortened), left(prefix)
    if isinstance(whole, str):
        assert kept == whole
    else:
        assert (kept[0].ids, kept[1]) == (whole[0].ids, whole[1])


def test_long_prefix_of_segments_is_shortened(tokenizers: dict[str, Tokenizer]) -> None:
    text = "question: " + "the dog " * 100_000 + "answer: "
    prefix = Rendered(text, Span(10, len(text) - 8), Span(0, 0))
    shortened = tokenizers["mini"].shorten_words(prefix, 512)
    assert len(shortened.text) < 50_000
    assert shortened.text.startswith("question: the dog")
    assert shortened.text.endswith(" dog answer: ")


def test_long_text_without_valid_split_is_too_long(
    tokenizers: dict[str, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizing, "_MAX_WHOLE", 20)
    monkeypatch.setattr(tokenizing, "_MAX_AT_ONCE", 20)
    monkeypatch.setattr(tokenizing, "_MAX_WHOLE", 20)
    monkeypatch.setattr(tokenizing, "_PART", 8)
    for text in ("the dog " * 9, "a" * 20):
        tokenizers["mini"].require_tokenizable(Rendered(text, Span(0, 0), Span(0, 0)))
    with pytest.raises(SampleError, match="21 characters that can only be tokenized at once"):
        tokenizers["mini"].require_tokenizable(Rendered("a" * 21, Span(0, 0), Span(0, 0)))
