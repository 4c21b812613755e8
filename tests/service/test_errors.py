import json
from collections.abc import AsyncIterator, Mapping
from typing import Any
from unittest.mock import Mock

import httpx
import pytest
from served import samples, serving
from standin import FIGURE_1, Words

JSON = {"Content-Type": "application/json"}
SAMPLE = {"prompt": "?", "completion": "a"}


def error_of(answer: httpx.Response, status: int) -> Mapping[str, Any]:
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"code", "message", "retryable"}
    return error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"completion": 5}, "samples[0].completion: Input should be a valid string (got 5)"),
        ({"reply": "b"}, "samples[0].reply: Extra inputs are not permitted"),
        (
            {"fields": {"question": [{"a": "\ud800"}]}},
            "samples[0].fields.question: Input should be",
        ),
        ({"fields": []}, "samples[0].fields: Input should be a valid dictionary"),
        ({"token_offsets": [[0, 1, 2]]}, "samples[0].token_offsets[0]: List should have at most 2"),
        ({"token_offsets": [[0]]}, "samples[0].token_offsets[0]: List should have at least 2"),
        ({"token_offsets": [[0, 1.0]]}, "samples[0].token_offsets[0][1]: Input should be a valid"),
        ({"token_offsets": [[-1, 1]]}, "should be greater than or equal to 0 (got -1)"),
        ({"token_offsets": "all"}, "should be a valid list (got a str of length 3)"),
        ({"segments": {"syllables": []}}, "samples[0].segments.syllables"),
        ({"id": True}, "samples[0].id"),
        ({"id": 1.5}, "samples[0].id"),
        ({"prompt": [{"role": "user"}]}, "prompt[0]: A message should have `content`"),
        ({"prompt": [{"role": "user", "content": "a", "names": "b"}]}, "names: Extra inputs"),
        ({"prompt": [{"role": "user", "content": [{"type": "text"}]}]}, "should have `text`"),
        (
            {"completion": [{"role": "assistant", "tool_calls": [{}]}]},
            "should have `function` or `name`",
        ),
        ({"group_size": 0}, "samples[0].group_size: Input should be greater than or equal to 1"),
        ({"tools": ["a"]}, "samples[0].tools[0]: Input should be a valid dictionary"),
        ({"prompt": "ab\ud800"}, "Input should be valid Unicode, but has a lone surrogate at 2"),
        ({"prompt": [{"role": "user", "content": "\ud800"}]}, "a lone surrogate at 0"),
        ({"fields": {"a": "\udc00"}}, "samples[0].fields.a: Input should be valid Unicode"),
        ({"fields": {"\ud800": "a"}}, "samples[0].fields."),
        ({"segments": {"\ud800": []}}, "samples[0].segments"),
        ({"id": "\ud800"}, "samples[0].id"),
        ({"\ud800": "a"}, "samples[0]"),
        ({"fields": {"a": float("nan")}}, "samples[0].fields.a: Input should be a finite number"),
        ({"id": float("inf")}, "samples[0].id"),
    ],
)
@pytest.mark.parametrize("route", ["/score", "/hierarchical_reward"])
async def test_invalid_sample_is_422_that_names_the_field(
    change: dict[str, Any], message: str, route: str
) -> None:
    body = json.dumps({"samples": [SAMPLE | change]})
    async with serving() as server:
        error = error_of(await server.client.post(route, content=body, headers=JSON), 422)
        assert error["code"] == "invalid"
        assert not error["retryable"]
        assert message in error["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "samples: Field required"),
        ({"samples": SAMPLE}, "samples: Input should be a valid list (got a dict of length 2)"),
        ({"samples": ["a"]}, "samples[0]: Input should be a valid dictionary"),
        (
            {"samples": [], "modle": "a"},
            "modle: Extra inputs are not permitted: did you mean `model`?",
        ),
        ({"samples": [], "overrides": {"treshold": 1}}, "overrides.treshold: Extra inputs"),
        ({"samples": [], "overrides": {"threshold": "1"}}, "overrides.threshold: Input should be"),
        ({"samples": [], "overrides": {"threshold": float("nan")}}, "overrides.threshold"),
        ({"samples": [], "overrides": {"holistic_weight": float("inf")}}, "holistic_weight"),
        ({"samples": [], "overrides": {"weights": {"a": True}}}, "overrides.weights.a"),
        ({"samples": [], "overrides": {"rule": "sum"}}, "overrides.rule"),
        ({"samples": [], "overrides": {"shaping": "tanh"}}, "overrides.shaping"),
        ({"samples": [], "aspects": "some"}, "aspects: Input should be 'admitted' or 'all'"),
        ([], "body: Input should be a valid dictionary"),
        (None, "body: Input should be a valid dictionary or object"),
        ({"samples": [], "recipe": "\ud800"}, "recipe: Input should be valid Unicode"),
        ({"samples": [], "overrides": {"weights": {"\ud800": 1}}}, "\\ud800"),
    ],
)
async def test_invalid_request_is_422_that_names_the_field(body: Any, message: str) -> None:
    async with serving(FIGURE_1) as server:
        content = json.dumps(body)
        answer = await server.client.post("/hierarchical_reward", content=content, headers=JSON)
        assert message in error_of(answer, 422)["message"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"samples",
        b'{"samples": [}',
        b'{"samples": "\xff"}',
        b'{"samples": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"samples": ' + b"1" * 5000 + b"}",
    ],
    ids=["nothing", "a word", "broken", "not UTF-8", "too deep", "too large a number"],
)
async def test_body_that_is_not_json_is_400(content: bytes) -> None:
    async with serving() as server:
        answer = await server.client.post("/score", content=content, headers=JSON)
        assert error_of(answer, 400)["code"] == "bad_request"


async def test_validation_error_with_many_faults_names_some() -> None:
    async with serving() as server:
        answer = await server.client.post("/score", json={"samples": [{}] * 10})
        assert error_of(answer, 422)["message"].endswith("; and 15 more")


@pytest.mark.parametrize(
    ("route", "body", "message"),
    [
        ("/score", {"model": "b"}, "no model 'b'; there are words"),
        ("/hierarchical_reward", {"recipe": "b"}, "no recipe 'b'; there are plain"),
        ("/rewards", {}, "no such path; see /docs"),
    ],
)
async def test_unknown_model_is_404_and_names_the_known_ones(
    route: str, body: dict[str, Any], message: str
) -> None:
    async with serving() as server:
        answer = await server.client.post(route, json={"samples": [], **body})
        assert error_of(answer, 404) == {
            "code": "not_found",
            "message": message,
            "retryable": False,
        }


async def test_wrong_method_is_405_and_names_the_right_one() -> None:
    async with serving() as server:
        answer = await server.client.get("/score")
        assert error_of(answer, 405)["code"] == "method_not_allowed"
        assert answer.headers["Allow"] == "POST"


async def test_request_with_too_many_samples_is_413() -> None:
    async with serving(max_samples=2) as server:
        assert (await server.score("a", "b")).status_code == 200
        for answer in (await server.score("a", "b", "c"), await server.reward("a", "b", "c")):
            error = error_of(answer, 413)
            assert error["code"] == "too_large"
            assert "3 items" in error["message"]


async def test_body_over_the_limit_is_413() -> None:
    async with serving(max_body_bytes=1024) as server:
        error = error_of(await server.score("a" * 1024), 413)
        assert "over 1024 bytes" in error["message"]


async def test_body_over_the_limit_is_413_with_and_without_content_length() -> None:
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield b" " * 100

    async with serving(max_body_bytes=1024) as server:
        error_of(await server.client.post("/score", content=chunks()), 413)
        assert sent == 11


@pytest.mark.parametrize("timeout", ["0", "-1", "soon", "1.5", "1" * 400])
async def test_deadline_that_is_not_a_number_is_422(timeout: str) -> None:
    async with serving() as server:
        answer = await server.score("a", **{"X-Request-Timeout-Ms": timeout})
        assert "X-Request-Timeout-Ms" in error_of(answer, 422)["message"]


async def test_deadline_may_be_long() -> None:
    async with serving() as server:
        answer = await server.score("a", **{"X-Request-Timeout-Ms": str(1 << 40)})
        assert answer.status_code == 200


async def test_unexpected_exception_has_the_error_format() -> None:
    async with serving() as server:
        await server.engine.life.until_ready()
        server.engine.score_admitted = None
        error = error_of(await server.score("a"), 500)
        assert error["code"] == "internal"
        assert (await server.client.get("/health/live")).status_code == 200


class Panic(BaseException):
    """What a library in Rust raises when it panics."""


Panic.__module__ = "pyo3_runtime"


async def test_panic_of_a_library_has_the_error_format_and_is_counted_as_500() -> None:
    async with serving() as server:
        await server.engine.life.until_ready()
        server.engine.score_admitted = Mock(side_effect=Panic("byte 3"))
        answer = await server.score("a")
        assert error_of(answer, 500)["code"] == "internal"
        assert answer.headers["X-Request-Id"]
        metrics = (await server.client.get("/metrics")).text
        assert 'alarm_requests_total{route="/score",status="500"} 1.0' in metrics


async def test_panic_of_a_tokenizer_fails_only_its_sample() -> None:
    class Panicking(Words):
        def prepare(self, samples: Any) -> Any:
            if any("panic" in one.completion_text for one in samples):
                raise Panic("byte 3")
            return super().prepare(samples)

    async with serving(words=Panicking()) as server:
        answer = await server.score("a", "panic", "a b")
        assert [one["score"] for one in answer.json()["scores"]] == [1, None, 2]
        assert answer.json()["scores"][1]["error"]["code"] == "model_failed"


async def test_body_without_content_type_is_refused_with_accept_post() -> None:
    async with serving() as server:
        content = json.dumps({"samples": samples("a")})
        answer = await server.client.post(
            "/score", content=content, headers={"Content-Type": "text/plain"}
        )
        assert "Content-Type: application/json" in error_of(answer, 422)["message"]
