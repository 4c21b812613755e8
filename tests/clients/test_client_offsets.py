"""Token offsets from sampled ids, for real tokenizers of each family."""

import re
import sys
from functools import cache
from itertools import pairwise
from random import Random

import client_tokenizers
import numpy as np
import pytest
import torch
from client_tokenizers import BYTES, TEXTS, WORDS, TokensOfBytes
from hypothesis import given, settings
from hypothesis import strategies as st

from alarm_client.token_offsets import PolicyTokens, token_offsets

offsets_module = sys.modules[PolicyTokens.__module__]

FAMILIES = ["byte_level", "byte_fallback", "unigram", "wordpiece"]


@cache
def tokenizer_of(family):
    return getattr(client_tokenizers, family)()


@cache
def policy_of(family):
    return PolicyTokens(tokenizer_of(family))


def check(family, ids):
    """The invariants of every answer."""
    tokenizer = tokenizer_of(family)
    text, offsets = policy_of(family).locate(ids)
    assert text == tokenizer.decode(
        ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    assert len(offsets) == len(ids)
    assert all(0 <= start <= end <= len(text) for start, end in offsets)
    assert all(one[0] <= two[0] for one, two in pairwise(offsets))
    assert {place for span in offsets for place in range(*span)} == set(range(len(text)))
    for token_id, (start, end) in zip(ids, offsets, strict=True):
        assert token_id not in tokenizer.all_special_ids or start == end
    return text, offsets


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_locate_of_any_ids_covers_their_decoded_text(family, data):
    num_ids = len(tokenizer_of(family)) + 2  # models sample past the vocabulary, too
    check(family, data.draw(st.lists(st.integers(0, num_ids), max_size=40)))


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet=st.sampled_from("ab é.日😀\n'"), max_size=20))
def test_locate_of_any_texts_ids_covers_the_text(family, text):
    check(family, tokenizer_of(family)(text).input_ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_locate_of_real_texts_needs_no_prefixes(family, monkeypatch):
    monkeypatch.setattr(PolicyTokens, "_by_prefixes", None)
    for text in TEXTS:
        check(family, tokenizer_of(family)(text).input_ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_locate_of_no_ids_returns_no_text(family):
    assert check(family, []) == ("", [])


def ids_of(family, *tokens):
    return tokenizer_of(family).convert_tokens_to_ids(list(tokens))


def test_token_offsets_emoji_of_four_byte_tokens_belongs_to_each():
    ids = ids_of("byte_level", "a", "ð", "Ł", "ĺ", "Ģ", "Ġ", "b", "</s>")
    spans = [(0, 1), (1, 2), (1, 2), (1, 2), (1, 2), (2, 3), (3, 4), (4, 4)]
    assert check("byte_level", ids) == ("a😀 b", spans)


def test_token_offsets_special_token_inside_emoji_is_empty():
    ids = ids_of("byte_level", "ð", "Ł", "</s>", "ĺ", "Ģ")
    assert check("byte_level", ids) == ("😀", [(0, 1), (0, 1), (0, 0), (0, 1), (0, 1)])


def test_token_offsets_invalid_bytes_are_one_replacement_character():
    ids = ids_of("byte_level", "a", "ð", "Ł", "b")
    assert check("byte_level", ids) == ("a\ufffdb", [(0, 1), (1, 2), (1, 2), (2, 3)])


def test_token_offsets_added_tokens_are_text_and_reserved_are_not(monkeypatch):
    monkeypatch.setattr(PolicyTokens, "_by_prefixes", None)
    ids = ids_of("byte_level", "<tool>", "<|reserved|>", " two words", "<pad>")
    spans = [(0, 6), (6, 6), (6, 16), (16, 16)]
    assert check("byte_level", ids) == ("<tool> two words", spans)


def test_token_offsets_unlisted_reserved_tokens_are_special(monkeypatch):
    class Transformers4:
        all_special_ids = (0, 1, 2)

        def __getattr__(self, name):
            return getattr(tokenizer_of("byte_level"), name)

    monkeypatch.setattr(PolicyTokens, "_by_prefixes", None)
    ids = ids_of("byte_level", "ð", "Ł", "<|reserved|>", "ĺ", "Ģ")
    spans = [(0, 1), (0, 1), (0, 0), (0, 1), (0, 1)]
    assert token_offsets(ids, Transformers4()) == ("😀", spans)


def test_token_offsets_fallback_bytes_share_their_character():
    ids = ids_of(
        "byte_fallback", "<s>", "▁caf", *BYTES[0xC3:0xC4], *BYTES[0xA9:0xAA], "<0x0A>", "s"
    )
    spans = [(0, 0), (0, 3), (3, 4), (3, 4), (4, 5), (5, 6)]
    assert check("byte_fallback", ids) == ("café\ns", spans)


def test_token_offsets_dropped_leading_space_belongs_to_no_token():
    assert check("byte_fallback", ids_of("byte_fallback", "▁it", "▁it")) == (
        "it it",
        [(0, 2), (2, 5)],
    )
    assert check("byte_fallback", ids_of("byte_fallback", "▁", "▁it")) == (" it", [(0, 0), (0, 3)])


def test_token_offsets_word_pieces_match_decoded_text():
    tokenizer = tokenizer_of("wordpiece")
    ids = tokenizer("is it ?").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["is", "it", "?"]
    assert check("wordpiece", ids) == ("is it?", [(0, 2), (2, 5), (5, 6)])


def test_token_offsets_of_noncanonical_ids_follow_the_ids():
    tokenizer = tokenizer_of("byte_level")
    ids = ids_of("byte_level", *"The")
    assert len(tokenizer("The").input_ids) < 3
    assert check("byte_level", ids) == ("The", [(0, 1), (1, 2), (2, 3)])


class EndOfWord:
    """A tokenizer of a family that the fast readings do not know: `</w>` ends a word."""

    all_special_ids = (0,)
    tokens = ("<eos>", "a</w>", "b", "c</w>")

    def convert_ids_to_tokens(self, ids):
        return [self.tokens[token_id] for token_id in ids]

    def decode(self, token_ids, **options):
        text = "".join(self.tokens[token_id] for token_id in token_ids if token_id)
        return re.sub("</w>$", "", text).replace("</w>", " ")


def test_locate_of_unknown_family_reads_prefixes():
    text, offsets = token_offsets([1, 2, 3, 1, 0], EndOfWord())
    assert text == "a bc a"
    assert offsets == [(0, 1), (1, 3), (3, 4), (4, 6), (6, 6)]


def test_token_offsets_by_prefixes_share_a_split_character():
    policy = policy_of("byte_level")
    ids = ids_of("byte_level", "a", "ð", "Ł", "ĺ", "Ģ", "b", "</s>")
    assert policy._by_prefixes(ids, "a😀b") == policy.locate(ids)[1]


def test_locate_accepts_an_array():
    numpy = pytest.importorskip("numpy")
    ids = ids_of("byte_level", "a", "b")
    assert token_offsets(numpy.array(ids), tokenizer_of("byte_level")) == ("ab", [(0, 1), (1, 2)])


END_OF_TEXT = 256 + len(WORDS)
TOOL = END_OF_TEXT + 1
BYTE_IDS = st.lists(
    st.one_of(
        st.integers(0, TOOL),
        st.sampled_from([*"é日😀".encode(), 0xF0, 0x9F, 0xFF, 256, END_OF_TEXT]),
    ),
    max_size=12,
)


def test_token_offsets_of_bytes_tokens_match_text(monkeypatch):
    monkeypatch.setattr(PolicyTokens, "_by_prefixes", None)
    ids = [256, 257, *"🙂é".encode(), TOOL, END_OF_TEXT]
    emoji, accent = [(11, 12)] * 4, [(12, 13)] * 2
    assert policy_of("tokens_of_bytes").locate(ids) == (
        "Hello world🙂é<tool>",
        [(0, 5), (5, 11), *emoji, *accent, (13, 19), (19, 19)],
    )


def test_token_offsets_added_token_not_decoded_is_empty(monkeypatch):
    """As the `<|im_end|>` of Qwen-7B, which is not among its special tokens."""
    tokenizer = TokensOfBytes()
    decode = tokenizer.decode
    monkeypatch.setattr(
        tokenizer, "decode", lambda ids, **rest: decode([i for i in ids if i != TOOL], **rest)
    )
    monkeypatch.setattr(PolicyTokens, "_by_prefixes", None)
    assert PolicyTokens(tokenizer).locate([256, TOOL, 257]) == (
        "Hello world",
        [(0, 5), (5, 5), (5, 11)],
    )


@settings(max_examples=300, deadline=None)
@given(BYTE_IDS)
def test_locate_of_any_byte_ids_covers_their_decoded_text(ids):
    check("tokens_of_bytes", ids)


@pytest.mark.parametrize(
    ("data", "spans"),
    [
        (b"a\xf0\x9f", [(0, 1), (1, 2), (1, 2)]),
        (b"\xf0\x9f\x98a", [(0, 1), (0, 1), (0, 1), (1, 2)]),
        (b"\xf0\x9fa\xf0\x9f", [(0, 1), (0, 1), (1, 2), (2, 3), (2, 3)]),
        ("\ufffda".encode(), [(0, 1), (0, 1), (0, 1), (1, 2)]),
        ("😀".encode(), [(0, 1)] * 4),
        (b"\xff\xff", [(0, 1), (1, 2)]),
    ],
)
@pytest.mark.parametrize("family", ["tokens_of_bytes", "tokens_of_latin1"])
def test_token_offsets_partial_character_bytes_share_replacement(family, data, spans):
    text, offsets = policy_of(family).locate([*data, END_OF_TEXT])
    assert text == data.decode("utf-8", "replace")
    assert offsets == [*spans, (len(text), len(text))]


@settings(max_examples=500, deadline=None)
@given(BYTE_IDS)
def test_by_prefixes_of_bytes_equals_locate(ids):
    assert (
        policy_of("tokens_of_bytes")._by_prefixes(ids, policy_of("tokens_of_bytes")._decode(ids))
        == (policy_of("tokens_of_bytes").locate(ids)[1])
    )


def by_prefixes(policy: PolicyTokens, ids: list[int]) -> list[tuple[int, int]]:
    return policy._by_prefixes(ids, policy._decode(ids))


@pytest.mark.parametrize("family", [*FAMILIES, "tokens_of_bytes", "tokens_of_latin1"])
def test_by_prefixes_of_long_ids_equals_decoding_every_prefix_whole(family, monkeypatch):
    tokenizer = tokenizer_of(family)
    random = Random(0)
    texts = [tokenizer(text).input_ids for text in TEXTS]
    rows = [[*texts[3], *texts[2], *texts[3]] * 2]
    rows += [[random.randrange(len(tokenizer)) for _ in range(200)] for _ in range(3)]
    found = [by_prefixes(policy_of(family), ids) for ids in rows]
    monkeypatch.setattr(offsets_module, "_CONTEXT_SIZES", (10**6,))
    assert found == [by_prefixes(policy_of(family), ids) for ids in rows]


def test_by_prefixes_of_long_ids_decodes_a_bounded_number_of_tokens_each():
    num_decoded = 0

    class Counting(EndOfWord):
        def decode(self, token_ids, **options):
            nonlocal num_decoded
            num_decoded += len(token_ids)
            return super().decode(token_ids, **options)

    ids = [1, 2, 3, 1] * 1000
    text, spans = token_offsets(ids, Counting())
    assert (text[:6], len(spans), spans[-1]) == ("a bc a", 4000, (len(text) - 2, len(text)))
    assert num_decoded < 150 * len(ids)  # of all the prefixes: 2,000 for each


def test_token_offsets_special_token_in_partial_character_is_monotonic():
    ids = [0xF0, END_OF_TEXT, 0x9F, END_OF_TEXT]
    assert policy_of("tokens_of_latin1").locate(ids) == (
        "\ufffd",
        [(0, 1), (0, 0), (0, 1), (1, 1)],
    )


def test_locate_batch_equals_locate_of_each_row():
    rows = [[256, 257], [256, *"é".encode(), END_OF_TEXT], []]
    policy = policy_of("tokens_of_bytes")
    assert policy.locate_batch(rows) == [policy.locate(row) for row in rows]
    assert policy.locate_batch([]) == []


@pytest.mark.parametrize("array", [list, np.array, torch.tensor])
def test_locate_batch_with_masks_skips_padding(array):
    rows = array([[256, 257, END_OF_TEXT, END_OF_TEXT], [END_OF_TEXT, 257, 256, END_OF_TEXT]])
    masks = array([[1, 1, 1, 0], [0, 1, 1, 1]])
    assert policy_of("tokens_of_bytes").locate_batch(rows, masks) == [
        ("Hello world", [(0, 5), (5, 11), (11, 11)]),
        (" worldHello", [(0, 6), (6, 11), (11, 11)]),
    ]
    assert [len(spans) for _, spans in policy_of("tokens_of_bytes").locate_batch(rows)] == [4, 4]


@pytest.mark.parametrize("masks", [[[1, 1]], [[1, 1], [1]], [], [[1, 1], [1, 1], [1, 1]]])
def test_locate_batch_with_wrong_mask_shape_is_refused(masks):
    with pytest.raises(ValueError, match=r"^masks must have the shape of rows"):
        policy_of("tokens_of_bytes").locate_batch([[256, 257], [256, 257]], masks)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([256, 2**32], r"token_ids\[1\] must be a token id, got 4294967296"),
        pytest.param([256, 10**5000], r"token_ids\[1\] must be a token id", id="huge"),
        ([256, -100], r"token_ids\[1\] must be a token id, got -100"),
        ([256, 1.5], r"token_ids\[1\] must be an integer, got 1.5"),
        ([256, float("nan")], r"token_ids\[1\] must be an integer, got nan"),
        ([256, None], r"token_ids\[1\] must be an integer, got NoneType"),
        ([256, "a"], r"token_ids\[1\] must be an integer, got str"),
        ([[256, 257]], "token_ids must be the ids of one text; use locate_batch"),
        (np.array([[256, 257]]), "token_ids must be the ids of one text; use locate_batch"),
        ("text", "token_ids must be a list, an array or a tensor, got str"),
        (None, "token_ids must be a list, an array or a tensor, got NoneType"),
        (np.array(3), "token_ids must be a list, an array or a tensor, got ndarray"),
    ],
)
def test_token_offsets_invalid_id_is_named_by_index(ids, words):
    with pytest.raises((TypeError, ValueError), match=words):
        policy_of("tokens_of_bytes").locate(ids)
    if isinstance(ids, list) and not isinstance(ids[0], list):
        with pytest.raises((TypeError, ValueError), match=words.replace("token_ids", r"rows\[1\]")):
            policy_of("tokens_of_bytes").locate_batch([[256], ids])


@pytest.mark.parametrize("array", [np.array, torch.tensor, tuple])
def test_token_offsets_accepts_arrays_tensors_and_scalars(array):
    policy = policy_of("tokens_of_bytes")
    assert policy.locate(array([256, 257])) == policy.locate([np.int64(256), torch.tensor(257)])
