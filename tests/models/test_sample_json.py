"""Samples as JSON are accepted by `/score`; they and scores round-trip."""

import json
from array import array

import pytest

from alarm_models.sample_json import sample_from_json, sample_to_json, score_from_json
from alarm_models.types import Message, PackedSpans, Sample, Score, SegmentScore, Span, ToolCall
from alarm_service.schemas import SampleIn, sample_in, score_out

SPANS = (Span(0, 2), Span(2, 2))
SAMPLES = [
    Sample("p", "ok"),
    Sample("p", "ok", token_offsets=()),
    Sample((Message("user", "p"),), (Message("assistant", "ok"),), group="", id="1"),
    Sample((Message("assistant", "o"),), "k", continue_final_message=True),
    Sample("p", "ok", {"reference": "yes"}, SPANS, {"sentences": SPANS}, "a", "g"),
    Sample(
        (Message("user", "p", name="Ann", other_parts=("image_url",)),),
        (
            Message("assistant", "", "Hm.", (ToolCall("add", '{"a": 1}', "c1"), ToolCall("x", ""))),
            Message("tool", "2", tool_call_id="c1"),
            Message("assistant", "ok"),
        ),
        {"rubric": [{"weight": 0.5, "segments": [[0, 1]]}], "none": None},
        group="g",
        group_size=8,
        tools=({"type": "function", "function": {"name": "add"}},),
        finish_reason="length",
    ),
]


@pytest.mark.parametrize("sample", SAMPLES)
def test_sample_to_json_is_read_back_as_the_same_sample(sample: Sample) -> None:
    text = json.dumps(sample_to_json(sample))
    assert sample_from_json(json.loads(text)) == sample


@pytest.mark.parametrize("sample", SAMPLES)
def test_sample_to_json_is_a_sample_of_a_request(sample: Sample) -> None:
    text = json.dumps(sample_to_json(sample))
    assert sample_in(SampleIn.model_validate_json(text)) == sample


def test_sample_to_json_leaves_out_what_the_sample_lacks() -> None:
    assert sample_to_json(Sample("p", "ok")) == {"prompt": "p", "completion": "ok"}


def test_sample_to_json_writes_packed_spans_as_pairs() -> None:
    packed = PackedSpans(array("q", [0, 2, 2, 2]))
    assert json.dumps(sample_to_json(Sample("p", "ok", token_offsets=packed))["token_offsets"]) == (
        "[[0, 2], [2, 2]]"
    )


def segment(label: str | None, score: float | None, *, verdict: bool | None) -> SegmentScore:
    return SegmentScore(Span(0, 2), label, score, verdict)


UNREAD = segment(None, None, verdict=None)


@pytest.mark.parametrize(
    "score",
    [
        Score(1.5, None, 3, False),
        Score(None, (), 3, True, omitted=("thinking",), judged=(Span(0, 1),)),
        Score(0.5, (segment("ok", 0.5, verdict=True), UNREAD), 3, False),
        Score(0.5, (segment("error", 0.0, verdict=False),), 3, False),
        Score(-1.0, (segment("a check's rule", None, verdict=False),), 3, False),
        Score(0.9, (segment("step", 0.9, verdict=None), UNREAD), 3, False),
        Score(
            0.5,
            None,
            3,
            False,
            outputs={"polite": 1.0, "short": 0.0},
            output_segments={"polite": (segment("quoted", 1.0, verdict=None),), "short": ()},
            skipped=("funny",),
        ),
    ],
)
def test_score_of_a_response_is_read_back_as_the_same_score(score: Score) -> None:
    row = score_out(SampleIn(prompt="p", completion="ok"), score).model_dump_json()
    assert score_from_json(json.loads(row)) == score


def test_texts_of_a_response_can_be_written() -> None:
    segment = {"start": 0, "end": 1, "label": "a\ud83d", "score": 1.0}
    row = {"score": 1.0, "segments": [segment], "num_tokens": 1, "truncated": False}
    score = score_from_json(row | {"omitted": ["b\ud83d"]})
    assert score.segments is not None
    assert (score.segments[0].label, score.omitted) == ("a?", ("b?",))
    with pytest.raises(TypeError, match="an integer was expected"):
        score_from_json(row | {"num_tokens": 10**400})


@pytest.mark.parametrize("score", ["1", True, [1.0]])
def test_score_of_a_response_that_is_no_number_is_refused(score: object) -> None:
    row = {"score": score, "segments": None, "num_tokens": 1, "truncated": False}
    with pytest.raises(TypeError, match="a number was expected"):
        score_from_json(row)
