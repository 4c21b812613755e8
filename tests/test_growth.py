"""Functions that process callers' or models' texts take linear time.

Each is given degenerate texts of one length and of four times that length, and the CPU times of the
thread are compared: a factor of 4 is linear, 16 quadratic. Times below a few milliseconds for the
longer text are ignored. A recipe's own patterns, which may be anything, and checkpoints' chat
templates have a time limit instead.
"""

import gc
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import pytest
from tokenizers import Tokenizer as FastTokenizer

import alarm_models.recipes
from alarm_client.token_offsets import read_utf8
from alarm_client.trainers._inputs import plain_samples, without_end_tokens
from alarm_client.types import Sample as ClientSample
from alarm_models.cancellation import Cancelled, cancellable
from alarm_models.combination.token_alignment import place_on_turns
from alarm_models.errors import SampleError
from alarm_models.preprocessing import templates
from alarm_models.preprocessing.segmentation import (
    copied_words,
    sentences,
    split_words,
    steps,
    subsentences,
    word_types,
)
from alarm_models.preprocessing.templates import FieldPattern, Rendered, TextTemplate
from alarm_models.preprocessing.tokenizer import _find_plain
from alarm_models.recipe.specs import GrammarSpec, LanguageSpec, SimilaritySpec
from alarm_models.reward_models.harper import Harper
from alarm_models.reward_models.judge_answers import RatingError, Scale, read_rating
from alarm_models.reward_models.language import LanguageConfidence
from alarm_models.reward_models.readability import Readability
from alarm_models.reward_models.similarity import Similarity
from alarm_models.reward_models.text_checks import repetition
from alarm_models.study import baselines
from alarm_models.types import Message, Sample, Shown, ShownPiece, Span
from alarm_service.api.compat.conversation import (
    SplitError,
    pair_texts,
    split_query,
    split_text,
    without_ends,
)
from alarm_service.api.compat.templates import TEMPLATES, marked, unknown_markup
from alarm_service.evaluation.judge import read_choice
from alarm_service.json_pieces import read_json

LENGTH = 6000
TIMES = 4
#: Between 4, which is linear, and 16, with room for what caches and the machine do.
MOST = 9.0
#: Seconds: what takes less than that is not compared.
FLOOR = 0.004
#: Seconds: what takes more than that varies little, so the shorter text is read once.
LONG = 0.1

TEXTS = {
    "spaces": " ",
    "lines": "\n",
    "blank lines": "\n \n",
    "carriage returns": "\r\n",
    "quotes": '"',
    "opening quotes": "“",
    "guillemets": "«",
    "unclosed": "“a «b» ",
    "backticks": "`",
    "apostrophes": "'a ",
    "brackets": "(\"'[“",
    "angles": "<",
    "bars": "<|",
    "markers": "<|im_start|>user\n",
    "turns": "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA",
    "ends": "</s>",
    "strikes": "<s>",
    "instructions": "[INST] <<SYS>>",
    "questions": "question:",
    "questions and spaces": "question: \n",
    "digits": "1",
    "ratings": "7/10 ",
    "list items": "1. a\n",
    "numbers": "1.",
    "letters": "a",
    "capitals": "A",
    "initials": "A.The.",
    "words": "word ",
    "commas": "word, ",
    "dots": ".",
    "marks": "! ",
    "combining marks": "e\u0301",
    "emoji": "👩‍👩‍👧 ",
    "hiragana": "\u3042",
    "replacements": "\ufffd",
    "thoughts": "<think>",
    "verdicts": "verdict: ",
    "addresses": "a@b.c ",
    "nul": "\x00",
}

MINI = Path(next(iter(alarm_models.recipes.__path__))) / "mini"


def quietly(call: Callable[[str], object]) -> Callable[[str], None]:
    """Ignore errors about the contents of a text."""

    def called(text: str) -> None:
        with suppress(SplitError, RatingError, SampleError, ValueError):
            call(text)

    return called


def body(text: str, place: str) -> bytes:
    """Return JSON that is too large to be parsed at once, with the text as names or values."""
    name, value = (text * 4, "x" * 200_000) if place == "name" else ("x", text * 4)
    return json.dumps({"y": "x" * 200_000, name: value}).encode()


def functions() -> Iterator[tuple[str, Callable[[str], object]]]:
    field = FieldPattern(r"question:\s*(.*?)\s*context:")
    template = TextTemplate("{prompt:words} {question} {completion}", fields={"question": field})
    own = marked(user="a", assistant="b", system="c", ends=[f"{index}x" for index in range(16)])
    tokenizer = FastTokenizer.from_file(str(MINI / "tokenizer.json"))
    yield "field", field.find
    yield "template", lambda text: template.render(Sample(text, text))
    yield "sentences", sentences
    yield "subsentences", subsentences
    yield "steps", steps
    # Prompts differ, because results of the last ones are kept.
    number = count()
    yield "copied words", lambda text: copied_words(f"{next(number)} {text}", text)
    yield "word types", lambda text: word_types(f"{next(number)} {text}", text, "support")
    yield (
        "word types of a question",
        lambda text: word_types(f"{text} {next(number)}: {text}", text, "support", text),
    )
    yield (
        "words",
        lambda text: split_words(
            Rendered(text, Span(0, len(text)), Span(0, 0)),
            Sample(f"{next(number)} {text}", text),
            (Span(0, len(text)),),
            "support",
        ),
    )
    yield "tokens", lambda text: tokenizer.encode(text)
    yield (
        "messages of a chat",
        lambda text: _find_plain(
            text, [Message("user", text[: len(text) // 2]), Message("assistant", f"a{text}")], 1
        ),
    )
    yield "repetition", lambda text: repetition(text, 4)
    yield "grade", baselines.reading_grade
    yield "rating", quietly(lambda text: read_rating(text, Scale(1, 10)))
    yield "verdict", read_choice
    yield "ends", lambda text: without_ends(text, ())
    yield "client's ends", without_end_tokens
    yield "unknown markup", unknown_markup
    yield "detected", quietly(lambda text: split_text(text, None))
    yield "query", quietly(lambda text: split_query(f"{text}x{text}", f"a{text}x", None))
    yield "own markers", quietly(lambda text: split_text(text, own))
    for name in dict.fromkeys(one.name for one in TEMPLATES.values()):
        yield (
            f"template {name}",
            quietly(lambda text, name=name: pair_texts(text, text, TEMPLATES[name])),
        )
    yield (
        "client's samples",
        quietly(lambda text: plain_samples([ClientSample(prompt=text, completion=text)], None, "")),
    )
    for unit in ("name", "value"):
        yield f"large body's {unit}", quietly(lambda text, unit=unit: read_json(body(text, unit)))
    yield "policy's bytes", lambda text: read_utf8(text.encode()[:-1] + b"\x80" * len(text))


FUNCTIONS = dict(functions())


@contextmanager
def no_collection() -> Iterator[None]:
    """Disable garbage collection, which would distort the times."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def seconds(call: Callable[[str], object], text: str) -> float:
    started = time.thread_time()
    call(text)
    return time.thread_time() - started


def growth(call: Callable[[str], object], unit: str, length: int) -> float:
    """Return the factor of time for a text four times as long; 0 if both are negligible."""
    short, long = ((unit * size)[:size] for size in (length, TIMES * length))
    with no_collection():
        found = seconds(call, long)
        if found < FLOOR:
            return 0.0
        best = min(seconds(call, short) for _ in range(2 if found > LONG else 3))
        # What else the machine does makes a call slower, never faster.
        for _ in range(4):
            if found <= MOST * max(best, FLOOR / TIMES):
                break
            found = min(found, seconds(call, long))
    return found / max(best, FLOOR / TIMES)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_text_function_on_degenerate_text_takes_linear_time(name: str) -> None:
    call = FUNCTIONS[name]
    call("Warm up, please.")
    grown = {text: growth(call, unit, LENGTH) for text, unit in TEXTS.items()}
    assert {text: found for text, found in grown.items() if found > MOST} == {}


def test_word_types_of_many_short_sentences_and_a_question_take_linear_time() -> None:
    # Each answer has words of the question, and of sentences that share some with it.
    question = " ".join(f"word{index}" for index in range(64))

    def call(size: int) -> float:
        text = " ".join(f"Word{index % 64} is {index} at {size}." for index in range(size))
        started = time.thread_time()
        word_types(text, text, "support", question)
        return time.thread_time() - started

    with no_collection():
        long, short = min(call(4000 + run) for run in range(2)), call(1000)
    assert long <= MOST * max(short, FLOOR / TIMES)


#: Checks are slower than the rest, and each is a library of its own.
FOR_CHECKS = {
    "spaces", "lines", "opening quotes", "brackets", "digits", "list items", "letters", "initials",
    "words", "dots", "combining marks", "emoji", "hiragana", "replacements",
}  # fmt: skip


def checks() -> Iterator[tuple[str, Callable[[], Callable[[Sample], object]]]]:
    languages = LanguageSpec(languages=("en", "de", "fr", "es"))
    yield "language", lambda: LanguageConfidence(languages)
    yield "readability", Readability
    for metric in ("chrf", "bleu"):
        spec = SimilaritySpec(metric=metric, reference="{prompt}")
        yield metric, lambda spec=spec: Similarity(spec, {})


CHECKS = dict(checks())


@pytest.mark.parametrize("name", CHECKS)
def test_check_on_degenerate_text_takes_linear_time(name: str) -> None:
    check = CHECKS[name]()

    def call(text: str) -> object:
        return check(Sample(text, text))

    call("Warm up, please.")
    texts = {text: unit for text, unit in TEXTS.items() if text in FOR_CHECKS}
    grown = {text: growth(call, unit, LENGTH) for text, unit in texts.items()}
    assert {text: found for text, found in grown.items() if found > MOST} == {}


@pytest.mark.parametrize("unit", ["(", "«", "1. ", "word, ", "<|im_start|>", "e\u0301", "```"])
def test_grammar_on_degenerate_text_takes_linear_time(unit: str) -> None:
    find = Harper(GrammarSpec()).find
    find("Warm up, please.")
    assert growth(find, unit, LENGTH // 2) <= MOST


def rewards_of_letters(text: str) -> None:
    """Place a reward on each letter of a text, of which each is a turn, as shown between others."""
    letters = [Span(at, at + 1) for at in range(len(text))]
    shown = Shown(tuple(ShownPiece(at, 2 * at, 1) for at in range(len(text))))
    sent = [shown.to_given(letter) for letter in letters]
    place_on_turns([(one, 1.0) for one in sent], sent, sent, len(sent) - 1)


def test_rewards_on_turns_take_linear_time() -> None:
    assert growth(rewards_of_letters, "a", LENGTH // 3) <= MOST


def test_growth_of_quadratic_function_is_detected() -> None:
    def quadratic(text: str) -> int:
        return sum(len(list(text)) for _ in text)

    # A slow reading of the short text hides growth, so there are two tries.
    assert max(growth(quadratic, "a", 1000) for _ in range(2)) > MOST
    assert growth(lambda text: [ord(letter) for letter in text], "a", 4 * LENGTH) < MOST


@pytest.mark.parametrize("text", ["a" * 60 + "!", "question:" + " " * 20_000])
def test_recipe_pattern_with_backtracking_ends_within_its_time_limit(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(templates, "_FIELD_TIMEOUT_S", 0.1)
    for pattern in (r"^(a|aa)+$", r"question:\s*(.*?)\s*context:\s*(.*?)$"):
        with suppress(SampleError):
            FieldPattern(pattern).find(text)


def test_field_pattern_over_its_time_limit_fails_the_sample() -> None:
    with pytest.raises(SampleError, match=r"the pattern in \[fields\] took longer than 1 s"):
        FieldPattern(r"^(a|aa)+$").find("a" * 60 + "!")


def test_work_on_a_text_ends_when_its_caller_is_gone() -> None:
    with cancellable(lambda: True), pytest.raises(Cancelled):
        sentences("One. Two.\n\nThree.")
