"""One id for a request in the caller's error, the answer's header and the server's log."""

import logging
from typing import Any

import httpx
import pytest
import structlog
from served import samples, serving

from alarm_client._retry import Retries
from alarm_client.client import AsyncAlarmClient
from alarm_client.errors import InvalidRequest, NotFound


@pytest.fixture
def logs() -> list[Any]:
    """The logged requests."""
    capture = structlog.testing.LogCapture()
    structlog.configure(
        processors=[capture], wrapper_class=structlog.make_filtering_bound_logger(logging.INFO)
    )
    return capture.entries


def ids_of(logs: list[Any]) -> list[str]:
    return [line["request_id"] for line in logs if line["event"] == "request"]


async def test_request_id_of_the_caller_is_returned_and_logged(logs: list[Any]) -> None:
    async with serving() as server:
        answer = await server.score("a b", **{"X-Request-Id": "call-1"})
    assert answer.headers["X-Request-Id"] == "call-1"
    assert ids_of(logs) == ["call-1"]


@pytest.mark.parametrize("given", [None, "", "two words", "größe".encode(), "x" * 129])
async def test_request_id_is_generated_if_unusable(
    logs: list[Any], given: str | bytes | None
) -> None:
    headers = {} if given is None else {"X-Request-Id": given}
    async with serving() as server:
        answers = [await server.client.get("/models", headers=headers) for _ in range(2)]
    ids = [answer.headers["X-Request-Id"] for answer in answers]
    assert [len(one) for one in ids] == [32, 32]
    assert ids[0] != ids[1]
    assert ids_of(logs) == ids


async def test_request_id_is_on_refusals_and_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    headers = {"X-Request-Id": "call-1"}
    async with serving(api_key=("sesame",)) as server:
        key = {"Authorization": "Bearer sesame"}
        refused = await server.client.get("/models", headers=headers)
        unknown = await server.client.get("/nowhere", headers=headers | key)
        monkeypatch.setattr(type(server.engine), "catalog", None)
        failed = await server.client.get("/models", headers=headers | key)
    answers = [refused, unknown, failed]
    assert [answer.status_code for answer in answers] == [401, 404, 500]
    assert [answer.headers["X-Request-Id"] for answer in answers] == ["call-1"] * 3


async def test_request_id_of_client_error_is_in_the_server_log(logs: list[Any]) -> None:
    async with serving() as server:
        transport = httpx.ASGITransport(server.app)
        async with AsyncAlarmClient("http://localhost", transport=transport) as client:
            with pytest.raises(NotFound) as caught:
                await client.score(samples("a"), "nobody")
            assert client.has_answered
    assert ids_of(logs) == [caught.value.request_id]
    assert f"(request {caught.value.request_id})" in str(caught.value)


class Flipping(httpx.AsyncBaseTransport):
    """Flips a bit in the Content-Type of the first requests."""

    def __init__(self, app: Any, num_flipped: int) -> None:
        self.inner = httpx.ASGITransport(app)
        self.num_flipped = num_flipped
        self.num_requests = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.num_requests += 1
        if self.num_requests <= self.num_flipped:
            request.headers["Content-Type"] = "application/jsoo"
        return await self.inner.handle_async_request(request)


@pytest.mark.parametrize("num_flipped", [1, 2])
async def test_client_retries_garbled_content_type(num_flipped: int) -> None:
    async with serving() as server:
        transport = Flipping(server.app, num_flipped)
        at_once = Retries(first=0.0)
        async with AsyncAlarmClient(
            "http://localhost", transport=transport, retries=at_once
        ) as client:
            assert (await client.score(samples("a b"))).scalars() == [2.0]
    assert transport.num_requests == num_flipped + 1


async def test_client_refused_if_content_type_is_always_changed() -> None:
    async with serving() as server:
        transport = Flipping(server.app, 99)
        at_once = Retries(first=0.0)
        async with AsyncAlarmClient(
            "http://localhost", transport=transport, retries=at_once
        ) as client:
            with pytest.raises(InvalidRequest, match="without `Content-Type: application/json`"):
                await client.score(samples("a b"))
    assert transport.num_requests == 3
