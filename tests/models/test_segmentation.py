import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from alarm_models.preprocessing import segmentation
from alarm_models.preprocessing.segmentation import sentences, split_sentences, subsentences, words
from alarm_models.types import Span


def texts(text: str, spans: tuple[Span, ...]) -> list[str]:
    return [text[span.start : span.end] for span in spans]


def test_sentences_exclude_surrounding_white_space() -> None:
    text = "  Dr. Smith left.  He was late!\n\nNobody cared."
    assert texts(text, sentences(text)) == ["Dr. Smith left.", "He was late!", "Nobody cared."]


def test_sentences_offsets_count_code_points() -> None:
    text = "🙂 é here. 東京 there."
    assert sentences(text)[0] == Span(0, 9)
    assert texts(text, sentences(text)) == ["🙂 é here.", "東京 there."]


@pytest.mark.parametrize("space", ["\xa0", " \u202f", "\u3000", "\x85", "\u2028", "\u2009\u2009"])
@pytest.mark.parametrize("before", ["He took vitamin D", "U.S", "C"])
def test_sentences_with_a_space_before_the_dot_of_an_initial(before: str, space: str) -> None:
    # sentencex panics here, which is no Exception.
    text = f"{before}{space}. Then he slept."
    assert texts(text, sentences(text))[-1] == "Then he slept."


def test_text_that_makes_the_segmenter_panic_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def panic(language: str, text: str) -> None:
        raise type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})

    monkeypatch.setattr(segmentation, "get_sentence_boundaries", panic)
    assert texts(" A. B.\n\nC.", sentences(" A. B.\n\nC.")) == ["A. B.", "C."]


@pytest.mark.parametrize("text", ["", " ", "\n\t", "\xa0"])
def test_sentences_of_blank_text_are_none(text: str) -> None:
    assert sentences(text) == ()
    assert subsentences(text) == ()


def split(text: str) -> list[str]:
    return texts(text, split_sentences(text, (Span(0, len(text)),)))


def test_subsentences_comma_with_five_words_before_and_six_after_splits() -> None:
    assert split("a b c d e, f g h i j k.") == ["a b c d e,", "f g h i j k."]


def test_subsentences_comma_with_four_words_before_does_not_split() -> None:
    assert split("a b c d, e f g h i j k.") == ["a b c d, e f g h i j k."]


def test_subsentences_comma_with_five_words_after_does_not_split() -> None:
    assert split("a b c d e f, g h i j k.") == ["a b c d e f, g h i j k."]


def test_subsentences_short_middle_part_joins_the_one_before() -> None:
    text = "a a a a a a, b b b, c c c c c c c"
    assert split(text) == ["a a a a a a, b b b,", "c c c c c c c"]


@pytest.mark.parametrize("mark", [",", ";", "!", "?"])
def test_subsentences_split_at_each_of_four_marks(mark: str) -> None:
    assert len(split(f"a b c d e{mark} f g h i j k")) == 2


@pytest.mark.parametrize("mark", [".", ":", "-", "，"])
def test_subsentences_do_not_split_at_other_marks(mark: str) -> None:
    assert len(split(f"a b c d e{mark} f g h i j k")) == 1


def golden_splits() -> list[dict[str, Any]]:
    file = Path(__file__).parents[1] / "golden" / "subsentences.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("golden", golden_splits(), ids=lambda golden: golden["id"])
def test_subsentences_starts_equal_the_original_code(golden: dict[str, Any]) -> None:
    bounds = golden["sentence_bounds"]
    spans = tuple(Span(*pair) for pair in pairwise(bounds))
    starts = [span.start for span in split_sentences(golden["text"], spans)]
    assert [*starts, len(golden["text"])] == golden["subsentence_bounds"]


def test_words_whitespace_separates_and_punctuation_belongs_to_the_word() -> None:
    assert words("I'm  late,\nsorry. ") == ((0, 3), (5, 10), (11, 17))
