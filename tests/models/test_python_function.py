import asyncio
from pathlib import Path

import pytest
from scoring_directly import completion, load_direct, score_directly, values

from alarm_models.errors import RecipeError
from alarm_models.types import Sample, Score, Span

FUNCTIONS = """
import asyncio, os, time

def words(sample):
    print("a function may print")
    if sample.completion == "raise":
        raise ValueError("no")
    if sample.completion == "hang":
        time.sleep(1000)
    if sample.completion == "die":
        os._exit(3)
    return len(sample.completion.split())

async def words_later(sample):
    if sample.completion == "hang":
        await asyncio.sleep(1000)
    if sample.completion == "block":
        time.sleep(1000)
    if sample.completion == "exit":
        raise SystemExit(0)
    if sample.completion == "wait":
        await asyncio.sleep(0.2)
    await asyncio.sleep(0)
    return words(sample)

def capitals(sample):
    spans = [(at, at + 1, 1.0, "capital") for at, c in enumerate(sample.completion) if c.isupper()]
    return spans + [(0, 0)]

def by_the_rest(sample):
    question, (first, *_) = sample.fields["question"], sample.token_offsets
    (message,), errors = sample.prompt, sample.segments["errors"]
    return first.end + len(errors) + len(question) + len(message.content)

def whatever(sample):
    return {"nan": float("nan"), "none": None, "text": "text", "far": [(0, 99)],
            "surrogate": [(0, 3, 1.0, "a\\ud800")]}[sample.completion]
"""


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "my_rewards.py").write_text(FUNCTIONS)
    return str(tmp_path)


def spec(folder: str, name: str, **more: object) -> dict[str, object]:
    return {"kind": "python", "function": f"my_rewards:{name}", "path": folder} | more


def test_function_that_raises_hangs_or_dies_fails_its_sample_alone(folder: str) -> None:
    model = load_direct(**spec(folder, "words", timeout_s=1.5, workers=1))
    texts = ("a b", "raise", "a", "hang", "a b c", "die", "a b c d")
    assert values(model, *map(completion, texts)) == [
        2,
        "the function failed: ValueError('no')",
        1,
        "my_rewards:words took longer than 1.5 s",
        3,
        "my_rewards:words ended its process: the process ended",
        4,
    ]


def test_async_function_runs_concurrently_and_fails_one_by_one(folder: str) -> None:
    model = load_direct(**spec(folder, "words_later", timeout_s=1.5, workers=1))
    texts = ("a b", "hang", "die", "a", "raise", "a b c")
    assert values(model, *map(completion, texts)) == [
        2,
        "the function failed: took longer than 1.5 s",
        "my_rewards:words_later ended its process: the process ended",
        1,
        "the function failed: ValueError('no')",
        3,
    ]


def test_async_function_that_blocks_fails_its_sample_alone(folder: str) -> None:
    model = load_direct(**spec(folder, "words_later", timeout_s=0.5, workers=1))
    blocked, fine = values(model, completion("block"), completion("a b"))
    assert blocked == "my_rewards:words_later took longer than 0.5 s"
    assert fine == 2


def test_async_function_that_exits_fails_its_sample_alone(folder: str) -> None:
    model = load_direct(**spec(folder, "words_later", workers=1, concurrency=8))
    texts = ("wait", "wait", "exit", "wait", "a b")
    assert values(model, *map(completion, texts)) == [
        1,
        1,
        "my_rewards:words_later ended its process: the process ended",
        1,
        2,
    ]


def test_label_that_cannot_be_written_is_replaced(folder: str) -> None:
    (one,) = score_directly(load_direct(**spec(folder, "whatever")), completion("surrogate"))
    assert isinstance(one, Score)
    assert one.segments is not None
    assert one.segments[0].label == "a?"


async def test_function_whose_caller_left_occupies_its_process_until_killed(folder: str) -> None:
    model = load_direct(**spec(folder, "words", timeout_s=1.5, workers=1))
    leaving = asyncio.create_task(model.score([completion("hang")]))
    await asyncio.sleep(0.1)
    leaving.cancel()
    (score,) = await model.score([completion("a b")])
    assert score == Score(2, None, 0, False)
    await model.close()


def test_function_spans_are_positive_by_their_scores(folder: str) -> None:
    model = load_direct(**spec(folder, "capitals"))
    (score,) = score_directly(model, completion("aBc"))
    assert isinstance(score, Score)
    assert [(one.span, one.label, one.score, one.is_positive) for one in score.segments or ()] == [
        (Span(0, 0), None, None, False),
        (Span(1, 2), "capital", 1.0, True),
    ]
    assert score.value == 0.5


def test_function_receives_the_whole_sample(folder: str) -> None:
    from alarm_models.types import Message

    sample = Sample(
        (Message("user", "1234"),),
        "ab",
        {"question": "12345"},
        (Span(0, 2), Span(2, 2)),
        {"errors": (Span(0, 1),)},
    )
    assert values(load_direct(**spec(folder, "by_the_rest")), sample) == [2 + 1 + 5 + 4]


def test_function_result_that_is_not_a_score_is_an_error(folder: str) -> None:
    model = load_direct(**spec(folder, "whatever"))
    nan, none, text, far = score_directly(model, *map(completion, ("nan", "none", "text", "far")))
    assert getattr(nan, "code", None) == "non_finite"
    assert none == Score(None, None, 0, False)
    assert "could not convert string to float" in getattr(text, "message", "")
    assert "the function's spans[0] is [0, 99]" in getattr(far, "message", "")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("my_rewards:missing", "has no attribute 'missing'"),
        ("no_such_module:words", "No module named 'no_such_module'"),
        ("my_rewards:FUNCTIONS", "has no attribute"),
        ("os:sep", "sep is not a function"),
    ],
)
def test_function_that_is_missing_is_refused_at_loading(
    folder: str, function: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        load_direct(kind="python", function=function, path=folder)


def test_function_fingerprint_changes_with_its_file(folder: str) -> None:
    first, again = (load_direct(**spec(folder, "words")) for _ in range(2))
    with (Path(folder) / "my_rewards.py").open("a") as file:
        file.write("# changed\n")
    changed = load_direct(**spec(folder, "words"))
    assert first.fingerprint == again.fingerprint != changed.fingerprint
