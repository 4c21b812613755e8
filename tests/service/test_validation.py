"""Requests with very many errors: few are reported, all are counted."""

import json
from typing import Annotated, Any

import httpx
import pytest
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from served import samples, serving
from standin import FIGURE_1

from alarm_service import json_pieces as pieces
from alarm_service import schemas
from alarm_service.api import off_loop_bodies as large
from alarm_service.engine import pipeline
from alarm_service.errors import format_validation_errors, num_faults
from alarm_service.schemas import FailFastInPieces, FewUnknown, InPieces, ListOf

UNKNOWN = {f"k{index}": 1 for index in range(1000)}
MESSAGE = {"role": "user", "content": "?"}
DEEP = dict.fromkeys(UNKNOWN, json.loads("[" * 70 + "]" * 70))


class Forbidding(FewUnknown):
    model_config = ConfigDict(extra="forbid")

    known: int
    missed: int


def faults_of(kind: Any, value: Any) -> Any:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(kind).validate_python(value)
    return caught.value.errors()


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemas, "_PIECE", 4)


@pytest.mark.parametrize("count", [1, 4, 5, 6, 7, 1000])
def test_few_unknown_reports_like_pydantic(count: int) -> None:
    sent = {"known": "x"} | {f"k{index}": 1 for index in range(count)}
    told = format_validation_errors(faults_of(Forbidding, sent))
    names = ["known", "missed", *(f"k{index}" for index in range(count))]
    lines = [line.partition(":")[0] for line in told.split("; ")]
    more = [f"and {count + 2 - 5} more"] if count > 3 else []
    assert lines == names[:5] + more


def test_few_unknown_omitted_keys_are_one_error() -> None:
    faults = faults_of(Forbidding, UNKNOWN | {"known": 1, "missed": 2})
    assert (len(faults), num_faults(faults)) == (6, 1000)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"completion": [{"role": 1, "content": "x"}]}, "completion[0].role: Input should be a"),
        (
            {"completion": [{"role": "a", "content": [{"type": "text"}]}]},
            "completion[0].content[0]",
        ),
        ({"prompt": "\ud800"}, "prompt: Input should be valid Unicode"),
        ({"group": 1.5}, "group: Input should be a valid string (got 1.5); samples[0].group: "),
    ],
    ids=["messages", "parts", "text", "neither"],
)
def test_union_reports_the_type_that_was_received(keys: dict[str, Any], told: str) -> None:
    sent = {"samples": [{"prompt": "?", "completion": "!", **keys}]}
    found = format_validation_errors(faults_of(schemas.ScoreRequest, sent))
    assert found.startswith(f"samples[0].{told}")
    assert found.count("; ") == told.count("; ")


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("count", [1, 5, 6, 30])
def test_in_pieces_list_reports_indices(count: int) -> None:
    sent = [0] * 10 + ["x"] * count
    faults = faults_of(ListOf[int], sent)
    assert [fault["loc"] for fault in faults[:5]] == [(10 + at,) for at in range(min(count, 5))]
    assert num_faults(faults) == count
    assert TypeAdapter(ListOf[int]).validate_python(["1"] * 30) == [1] * 30


@pytest.mark.usefixtures("small_pieces")
def test_in_pieces_object_reports_first_errors_and_counts_others() -> None:
    kind = Annotated[dict[str, int], InPieces]
    sent = {f"k{index}": index if index % 2 else "x" for index in range(40)}
    told = format_validation_errors(faults_of(kind, sent))
    assert told.startswith("k0: Input should be a valid integer")
    assert "; k8: " in told
    assert told.endswith("; and 15 more")
    assert TypeAdapter(kind).validate_python(dict.fromkeys(sent, "1")) == dict.fromkeys(sent, 1)


@pytest.mark.usefixtures("small_pieces")
def test_fail_fast_in_pieces_reports_the_first_error() -> None:
    kind = Annotated[list[int], Field(fail_fast=True), FailFastInPieces]
    faults = faults_of(kind, [*range(10), "x", "y"])
    assert [fault["loc"] for fault in faults] == [(10,)]


BODIES: list[tuple[str, Any, str]] = [
    ("/score", {"samples": samples("a"), **UNKNOWN}, "k0: Extra inputs are not permitted; k1"),
    ("/score", {"samples": [samples("a")[0] | UNKNOWN]}, "samples[0].k0: Extra inputs"),
    ("/score", {"samples": [samples("a")[0] | {"fields": DEEP}]}, "samples[0].fields.k0: "),
    ("/score", {"samples": [samples("a")[0] | {"segments": UNKNOWN}]}, "samples[0].segments.k0"),
    ("/score", {"samples": [{"prompt": [MESSAGE | UNKNOWN], "completion": "a"}]}, "samples[0]."),
    ("/hierarchical_reward", {"samples": samples("a"), "overrides": UNKNOWN}, "overrides.k0: "),
    ("/hierarchical_reward", {"samples": samples("a"), "overrides": {"weights": UNKNOWN}},
        "overrides.weights names ['k0', 'k1', 'k2', 'k3', 'k4'] and 995 more"),
    ("/hierarchical_reward", {"samples": samples("a"),
        "overrides": {"weights": dict.fromkeys(UNKNOWN, "x")}}, "overrides.weights.k0: "),
    ("/get_reward", {"query": [1] * 1000}, "query[0]: Input should be a valid string"),
    ("/compat/easyr1/figure-1", [{}] * 1000, "[0].response: Field required"),
    ("/compat/slime/figure-1", {"prompt": [{}] * 1000, "response": "a"}, "prompt"),
    ("/compat/nemo-gym/figure-1/verify", {"responses_create_params": {"input": [{}] * 1000},
        "response": {"output": [1] * 1000}}, "response"),
]  # fmt: skip


@pytest.mark.parametrize("is_large", [False, True])
@pytest.mark.parametrize(("path", "body", "begin"), BODIES)
async def test_request_with_many_errors_reports_few(
    path: str, body: Any, begin: str, is_large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = []
    init = large.RequestValidationError.__init__

    def note(error: Any, faults: Any, **more: Any) -> None:
        noted.append(len(faults))
        init(error, faults, **more)

    monkeypatch.setattr(large.RequestValidationError, "__init__", note)
    if is_large:
        monkeypatch.setattr(large, "_LARGE_BYTES", 0)
    async with serving(FIGURE_1) as server:
        answer = await server.client.post(path, json=body)
    assert answer.status_code == 422
    message = answer.json()["error"]["message"]
    assert message.startswith(begin), message
    assert "more" in message
    assert sum(noted) <= 20


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x", "[[],[],[],[],[],[]]"),
        ("x", "[{},{},{},{},{},{}]"),
        ("x", "[1,1,1,1,1,1,1,1,1,1,1,1]"),
        ("x", '{"a":1,"b":1,"c":1,"d":1,"e":1,"f":1,"g":1,"h":1,"i":1,"j":1,"k":1,"l":1}'),
        ("x", "[[1,1,1,1,1,1],[1,1,1,1,1,1]]"),
        ("token_offsets", "[[0,1],[0,1],[0,1],[0,1],[0,1],[0,1.5]]"),
    ],
)
async def test_body_of_very_many_values_is_413(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large, "_LARGE_BYTES", 0)
    monkeypatch.setattr(pieces, "_PIECE_BYTES", 8)
    monkeypatch.setattr(pieces, "_MAX_CONTAINERS", 5)
    monkeypatch.setattr(pieces, "_MAX_VALUES", 11)
    body = f'{{"{name}":{value}}}'
    headers = {"Content-Type": "application/json"}
    async with serving() as server:
        answer = await server.client.post("/score", content=body, headers=headers)
    assert answer.status_code == 413
    assert answer.json()["error"]["message"].startswith("the body has over ")


def test_body_spans_do_not_count_as_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_PIECE_BYTES", 256)
    monkeypatch.setattr(pieces, "_MAX_CONTAINERS", 5)
    monkeypatch.setattr(pieces, "_MAX_VALUES", 11)
    spans = [[at, at + 1] for at in range(1000)]
    body = {"samples": [{"token_offsets": spans}, {"segments": {"steps": spans}}]}
    assert len(pieces.read_json(json.dumps(body).encode())["samples"]) == 2


async def test_easyr1_ground_truth_of_very_many_values_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pieces, "_PIECE_BYTES", 8)
    monkeypatch.setattr(pieces, "_MAX_VALUES", 11)
    body = [{"response": "a", "ground_truth": '{"prompt": "?", "x": [%s1]}' % ("1," * 20)}]
    async with serving(FIGURE_1) as server:
        answer: httpx.Response = await server.client.post("/compat/easyr1/figure-1", json=body)
    assert answer.status_code == 422
    assert "has none" in answer.json()["error"]["message"]


async def test_sample_of_too_many_characters_fails_alone() -> None:
    texts = [
        {"prompt": "?", "completion": "a b"},
        {"prompt": "?", "completion": "a " * 50},
        {"prompt": [MESSAGE] * 101, "completion": "a"},
        {"prompt": "?", "completion": "a", "fields": {"reference": "b" * 99}},
    ]
    async with serving(FIGURE_1, max_sample_chars=100) as server:
        scored = await server.client.post("/score", json={"samples": texts})
        rewarded = await server.client.post("/hierarchical_reward", json={"samples": texts})
    scores = scored.json()["scores"]
    assert scores[0]["score"] == 2
    assert [one["error"]["code"] for one in scores[1:]] == ["too_long"] * 3
    assert scores[1]["error"]["message"] == (
        "the sample has 101 characters, fields included, and the limit is 100 (--max-sample-chars)"
    )
    rewards = rewarded.json()["rewards"]
    assert rewards[0]["error"] is None
    assert [one["error"]["code"] for one in rewards[1:]] == ["too_long"] * 3


async def test_prepare_chunks_are_bounded_by_characters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = []
    prepare = pipeline.prepare

    def noted(model: Any, some: Any) -> Any:
        counts.append(len(some))
        return prepare(model, some)

    monkeypatch.setattr(pipeline, "prepare", noted)
    monkeypatch.setattr(pipeline, "_CHUNK_CHARS", 10)
    texts = ["a" * 9, "b b", "b b", "a" * 30, "b"]
    async with serving() as server:
        await server.score("b")  # once all is loaded
        counts.clear()
        answer = await server.score(*texts)
    assert counts == [1, 2, 1, 1]
    assert [one["score"] for one in answer.json()["scores"]] == [1, 2, 2, 1, 1]
