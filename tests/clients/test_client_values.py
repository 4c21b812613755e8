"""Conversion of callers' values; invalid ones are named by sample and field."""

import datetime
import decimal
import enum
import json
from collections import UserDict
from dataclasses import dataclass
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
import torch
from client_stand_in import StandIn
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from alarm_client._payloads import as_samples, reward_payload, score_payload
from alarm_client.client import AlarmClient
from alarm_client.errors import AlarmError
from alarm_client.types import Sample

# pytest writes parameters as texts, and Python no integer of so many digits.
HUGE = pytest.param(10**5000, id="huge")
MESSAGE = {"role": "user", "content": "p"}


def sent(**fields: object) -> dict:
    sample = Sample(**{"prompt": "p", "completion": "c", **fields})
    return json.loads(score_payload([sample], None).body)["samples"][0]


class Pydantic(BaseModel):
    role: str
    content: str | None
    name: str | None = None


@dataclass
class Plain:
    role: str
    content: str | None
    name: str | None = None


class Colour(str, enum.Enum):  # noqa: UP042 (as Python 3.10 has it)
    RED = "red"


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (np.int64(3), 3),
        (np.uint8(3), 3),
        (np.array(3), 3),
        (np.float32(3.0), 3),
        (3.0, 3),
        (torch.tensor(3), 3),
        (np.str_("row 3"), "row 3"),
        (Colour.RED, "red"),
        (None, None),
    ],
)
def test_sample_id_and_group_from_numpy_are_converted(value, number):
    assert sent(id=value, group=value).get("id") == number
    assert type(sent(group=value).get("group")) is type(number)


@pytest.mark.parametrize(
    "value",
    [3.5, float("nan"), np.float32("nan"), np.float64("inf"), True, np.bool_(True), b"3", [3],
     {"a": 1}, np.array([1, 2]), torch.tensor([1]), object(), decimal.Decimal(3), 1 + 2j,
     datetime.date(2026, 1, 1), np.datetime64("2026-01-01"), np.longdouble("0.1"), HUGE],
)  # fmt: skip
@pytest.mark.parametrize("field", ["id", "group"])
def test_sample_id_or_group_of_wrong_type_is_refused_by_name(field, value):
    samples = [Sample(prompt="p", completion="c"), Sample(prompt="p", completion="c")]
    samples[1] = Sample(prompt="p", completion="c", **{field: value})
    with pytest.raises((TypeError, ValueError), match=rf"^samples\[1\]\.{field} "):
        score_payload(samples, None)


@pytest.mark.parametrize(
    "offsets",
    [
        [(0, 1), (1, 2)],
        ((0, 1), (1, 2)),
        np.array([[0, 1], [1, 2]]),
        [np.array([0, 1]), np.array([1, 2])],
        [[np.int32(0), np.int64(1)], [1.0, np.float32(2)]],
        torch.tensor([[0, 1], [1, 2]]),
        [torch.tensor([0, 1]), (torch.tensor(1), 2)],
        iter([(0, 1), (1, 2)]),
    ],
)
def test_sample_offsets_from_arrays_and_tensors_are_converted(offsets):
    assert sent(token_offsets=offsets)["token_offsets"] == [[0, 1], [1, 2]]


@pytest.mark.parametrize(
    ("offsets", "place"),
    [
        ([(0, 1), (1, 2, 3)], r"\[1\]"),
        ([(0, 1), 1], r"\[1\]"),
        ([(0, 1), None], r"\[1\]"),
        ([(0, 1), "ab"], r"\[1\]"),
        ([(0, 1), (1, 2.5)], r"\[1\]\[1\]"),
        ([(0, 1), (float("nan"), 2)], r"\[1\]\[0\]"),
        ([(0, 1), (None, 2)], r"\[1\]\[0\]"),
        ([(0, 1), (True, 2)], r"\[1\]\[0\]"),
        (np.array([0, 1]), r"\[0\]"),
        ("ab", ""),
        (3, ""),
        ({0: 1}, ""),
        (np.float32(1), ""),
    ],
)
def test_sample_offset_of_wrong_type_is_named_by_index(offsets, place):
    sample = Sample(prompt="p", completion="c", token_offsets=offsets)
    with pytest.raises((TypeError, ValueError), match=rf"^samples\[0\]\.token_offsets{place} must"):
        score_payload([sample], None)
    if place:
        named = Sample(prompt="p", completion="c", segments={"sentences": offsets})
        place = rf"^samples\[0\]\.segments\['sentences'\]{place} must"
        with pytest.raises((TypeError, ValueError), match=place):
            score_payload([named], None)


@pytest.mark.parametrize(
    "messages",
    [
        [MESSAGE],
        (MESSAGE,),
        [UserDict(MESSAGE)],
        np.array([MESSAGE], dtype=object),
        [Pydantic(role="user", content="p")],
        [Plain(role="user", content="p")],
        [{"role": np.str_("user"), "content": np.str_("p")}],
    ],
)
def test_sample_messages_from_arrays_and_objects_are_converted(messages):
    got = sent(prompt=messages, completion=messages)
    assert (got["prompt"], got["completion"]) == ([MESSAGE], [MESSAGE])


@pytest.mark.parametrize("message", [Pydantic, Plain])
def test_sample_message_without_content_keeps_none(message):
    assert sent(completion=[message(role="user", content=None)])["completion"] == [
        {"role": "user", "content": None}
    ]


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (None, ""),
        (b"text", ""),
        (3, ""),
        (float("nan"), ""),
        ({"role": "user"}, ""),
        (object(), ""),
        ([MESSAGE, "text"], r"\[1\]"),
        ([MESSAGE, None], r"\[1\]"),
        ([MESSAGE, SimpleNamespace(role="user", content="p")], r"\[1\]"),
        ([MESSAGE, {"role": "user", "content": b"p"}], r"\[1\]\['content'\]"),
        ([MESSAGE, {"role": "user", "content": float("nan")}], r"\[1\]\['content'\]"),
        ([MESSAGE, {"role": "user", "content": {1, 2}}], r"\[1\]\['content'\]"),
        ([MESSAGE, {3: "user"}], r"\[1\]"),
        (np.array(["a", "b"]), r"\[0\]"),
        (np.array([1.5]), r"\[0\]"),
    ],
)
@pytest.mark.parametrize("field", ["prompt", "completion"])
def test_sample_prompt_of_wrong_type_is_named(field, value, place):
    sample = Sample(**{"prompt": "p", "completion": "c", field: value})
    with pytest.raises((TypeError, ValueError), match=rf"^samples\[0\]\.{field}{place} must"):
        score_payload([sample], None)


def test_sample_completion_of_bytes_error_says_decode():
    with pytest.raises(TypeError, match=r"completion must be a string .* bytes; decode it first"):
        score_payload([Sample(prompt="p", completion=b"c")], None)


def test_sample_fields_of_numpy_texts_are_sent_as_texts():
    fields = {"reference": np.str_("r"), "title": np.array("t"), "empty": ""}
    assert sent(fields=fields)["fields"] == {"reference": "r", "title": "t", "empty": ""}


def test_sample_message_with_numpy_values_is_sent_as_json():
    call = {"number": np.float32(0.5), "list": np.arange(2), "name": np.str_("n")}
    prompt = sent(prompt=[{"role": "user", "content": "q", "call": call}])["prompt"]
    assert prompt[0]["call"] == {"number": 0.5, "list": [0, 1], "name": "n"}


def test_sample_fields_of_any_json_are_sent_as_json():
    fields = {"rubric": [{"points": np.int64(3), "must": True}], "none": None, "n": (1, 2.5)}
    assert sent(fields=fields)["fields"] == {
        "rubric": [{"points": 3, "must": True}],
        "none": None,
        "n": [1, 2.5],
    }


@pytest.mark.parametrize(
    ("fields", "place", "reason"),
    [
        ("reference", "", "a mapping from names to JSON values, got str"),
        (["reference"], "", "a mapping from names to JSON values, got list"),
        ({3: "r"}, "", "strings as keys, got int"),
        ({"reference": b"r"}, r"\['reference'\]", "a JSON value, got bytes; decode it"),
        ({"reference": {1}}, r"\['reference'\]", "a JSON value, got set"),
        ({"reference": float("nan")}, r"\['reference'\]", "finite, got nan"),
        ({"a": [{"b": object()}]}, r"\['a'\]\[0\]\['b'\]", "a JSON value, got object"),
    ],
)
def test_sample_fields_that_are_not_json_name_the_field(fields, place, reason):
    with pytest.raises(
        (TypeError, ValueError), match=rf"^samples\[0\]\.fields{place} must (be|have) {reason}"
    ):
        score_payload([Sample(prompt="p", completion="c", fields=fields)], None)


def test_sample_group_size_tools_and_finish_reason_are_sent():
    tool = {"type": "function", "function": {"name": "search", "parameters": {}}}
    found = sent(group=1, group_size=np.int64(8), id="m", tools=(tool,), finish_reason="length")
    assert (found["group"], found["group_size"], found["id"]) == (1, 8, "m")
    assert (found["tools"], found["finish_reason"]) == ([tool], "length")
    assert sent(continue_final_message=True)["continue_final_message"] is True
    assert "continue_final_message" not in found


def test_sample_with_group_size_gets_an_id_of_its_own():
    own = as_samples([Sample(prompt="p", completion="c", group=1, group_size=2)] * 2)
    assert len({sample.id for sample in own} - {None}) == 2
    assert as_samples([Sample(prompt="p", completion="c", group=1)])[0].id is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"group_size": 2}, "group_size is 2, but the sample has no group"),
        ({"group_size": 0, "group": 1}, "group_size must be 1 or more, got 0"),
        ({"group_size": "2", "group": 1}, "group_size must be an integer, got str"),
        ({"tools": {"name": "f"}}, "tools must be a list of JSON objects, got dict"),
        ({"tools": [len]}, r"tools\[0\] must be a JSON object, got builtin.*JSON schema"),
        ({"finish_reason": 1}, "finish_reason must be a string, got int"),
        ({"continue_final_message": 1}, "continue_final_message must be True or False, got int"),
    ],
)
def test_sample_with_an_invalid_group_or_tool_is_refused(given, said):
    with pytest.raises((TypeError, ValueError), match=rf"^samples\[0\]\.{said}"):
        score_payload([Sample(prompt="p", completion="c", **given)], None)


@pytest.mark.parametrize("value", [float("nan"), [1, {2}], 10**5000], ids=["nan", "set", "huge"])
def test_sample_message_with_a_value_that_json_lacks_names_the_key(value):
    prompt = [{"role": "user", "content": "q", "call": value}]
    with pytest.raises((TypeError, ValueError), match=r"^samples\[0\]\.prompt\[0\]\['call'\]"):
        score_payload([Sample(prompt=prompt, completion="c")], None)


def test_sample_message_that_contains_itself_is_refused():
    circle: list = []
    circle.append(circle)
    prompt = [{"role": "user", "content": circle}]
    with pytest.raises(ValueError, match=r"^samples\[0\]\.prompt\[0\].* deeper than 100"):
        score_payload([Sample(prompt=prompt, completion="c")], None)


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (None, "samples must be a list of samples, got NoneType"),
        ("text", "samples must be a list of samples, got str"),
        (Sample(prompt="p", completion="c"), "got Sample; wrap the sample in a list"),
        ({"prompt": "p", "completion": "c"}, "got dict; wrap the sample in a list"),
        ([("p", "c")], r"samples\[0\] must be a Sample or a mapping, got tuple"),
        ([{"prompt": "p"}], r"samples\[0\] has no completion"),
        ([{"prompt": "p", "completion": "c", "offsets": []}], r"samples\[0\] has no field 'offs"),
        ([{1: "p"}], r"samples\[0\] must have strings as keys, got int"),
    ],
)
def test_score_with_invalid_samples_is_refused(samples, words):
    with pytest.raises(TypeError, match=words):
        score_payload(samples, None)


def test_overrides_with_numpy_numbers_are_converted():
    overrides = {"threshold": np.float32(0.5), "weights": {"relevance": np.int64(2)}}
    body = json.loads(reward_payload([], None, overrides, "all").body)
    assert body["overrides"] == {"threshold": 0.5, "weights": {"relevance": 2}}


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ((None, {"threshold": float("nan")}, "all"), r"overrides\['threshold'\]"),
        ((None, {"weights": {"a": float("inf")}}, "all"), r"overrides\['weights'\]\['a'\]"),
        ((None, {"weights": {1: 2.0}}, "all"), r"overrides\['weights'\]"),
        ((None, [("threshold", 1)], "all"), "overrides"),
        ((3, None, "all"), "recipe"),
        ((None, None, ["all"]), "aspects"),
    ],
)
def test_score_with_invalid_option_is_refused_by_name(options, place):
    with pytest.raises((TypeError, ValueError), match=f"^{place} must "):
        reward_payload([], *options)


@pytest.mark.parametrize("name", ["row \ud800", "row \udfff\ud800", "row"])
def test_sample_id_with_lone_surrogate_is_returned_unchanged(name):
    samples = [Sample(prompt="p", completion="abc", id=name)]
    with AlarmClient("http://a", transport=StandIn().transport) as client:
        assert [one.id for one in client.score(samples).scores] == [name]
        assert [one.id for one in client.hierarchical_reward(samples).rewards] == [name]


def test_sample_groups_with_lone_surrogates_stay_distinct():
    assert sent(group="\ud800")["group"] != sent(group="\ud801")["group"]


def test_sample_id_from_numpy_is_returned():
    samples = [Sample(prompt="p", completion="abc", id=np.int64(7))]
    with AlarmClient("http://a", transport=StandIn().transport) as client:
        assert [one.id for one in client.score(samples).scores] == [7]


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.complex_numbers(),
    st.decimals(),
    st.dates(),
    st.floats(width=32).map(np.float32),
    st.integers(-5, 5).map(np.int64),
    st.text().map(np.str_),
    st.just(object()),
    st.just(np.array([[1.5, float("nan")]])),
    st.just(np.array([b"a", None], dtype=object)),
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.one_of(st.text(max_size=5), st.integers()), inner, max_size=3),
    ),
    max_leaves=8,
)
FIELDS = ("prompt", "completion", "fields", "token_offsets", "segments", "id", "group")


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(FIELDS), ANYTHING, st.integers(0, 2))
def test_sample_with_random_values_is_sent_or_refused_by_name(field, value, index):
    samples = [{"prompt": "p", "completion": "c"} for _ in range(3)]
    samples[index][field] = value
    told = ""
    try:
        body = score_payload(samples, None).body
        # No NaN, no name that is no text: what any parser of JSON takes.
        json.loads(body, parse_constant=lambda constant: pytest.fail(constant))
    except (TypeError, ValueError) as error:
        told = str(error)
    assert not told or told.startswith(f"samples[{index}].{field}")


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["samples", "recipe", "overrides", "aspects", "timeout"]), ANYTHING)
def test_call_with_random_argument_error_names_it(name, value):
    arguments = {"samples": [Sample(prompt="p", completion="c")], name: value}
    with AlarmClient("http://a", transport=StandIn().transport) as client:
        told = name
        try:
            client.hierarchical_reward(**arguments)
        except AlarmError:
            pass
        except (TypeError, ValueError) as error:
            told = str(error)
        assert told.startswith(name)


@settings(max_examples=300, deadline=None)
@given(st.binary(), st.integers(200, 599), st.dictionaries(st.text(), st.text(), max_size=2))
def test_call_with_random_response_raises_client_error_or_returns(body, status, headers):
    named = {
        name.encode("utf-8", "replace"): value.encode("utf-8", "replace")
        for name, value in {"retry-after": "0", **headers}.items()
    }
    reply = httpx.Response(status, content=body, headers=list(named.items()))
    transport = httpx.MockTransport(lambda request: reply)
    with (
        AlarmClient("http://a", transport=transport, timeout=0.001) as client,
        pytest.raises(AlarmError),
    ):
        client.score([Sample(prompt="p", completion="c")])
