"""Samples as JSON are accepted by `/score` and round-trip."""

import json
from array import array

import pytest

from alarm_models.sample_json import sample_from_json, sample_to_json
from alarm_models.types import Message, PackedSpans, Sample, Span, ToolCall
from alarm_service.schemas import SampleIn, sample_in

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
