"""`Content-Digest` is checked where a response has it, and no response fails without it."""

import httpx
import pytest

from alarm_client._retry import Retries
from alarm_client._transport import content_digest, is_intact
from alarm_client.client import AlarmClient

BODY = b'{"models": [], "recipes": []}'
RIGHT, WRONG = content_digest(BODY), content_digest(b"another body")


@pytest.mark.parametrize(
    "headers",
    [
        {"content-digest": RIGHT},
        {},
        {"content-digest": "md5=:a:"},
        {"content-digest": WRONG, "content-encoding": "gzip"},
        {"request-content-digest": WRONG},
    ],
    ids=["match", "no digest", "no sha-256", "compressed on the way", "digest of the request"],
)
def test_is_intact_without_a_contradicting_digest_returns_true(headers):
    assert is_intact(BODY, headers)


def test_is_intact_with_the_digest_of_another_body_returns_false():
    assert not is_intact(BODY, {"content-digest": WRONG})


@pytest.mark.parametrize("lost", ["content-digest", "request-content-digest"])
def test_client_response_without_one_of_the_servers_digests_is_accepted(lost):
    num_requests = 0

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal num_requests
        num_requests += 1
        headers = {"content-digest": RIGHT, "request-content-digest": content_digest(b"")}
        del headers[lost]
        return httpx.Response(200, content=BODY, headers=headers)

    with AlarmClient("http://localhost", transport=httpx.MockTransport(answer)) as client:
        assert client.models().models == ()
    assert num_requests == 1


def test_client_response_with_the_digest_of_another_body_is_requested_again():
    digests = iter([WRONG, RIGHT])

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=BODY, headers={"content-digest": next(digests)})

    transport = httpx.MockTransport(answer)
    with AlarmClient("http://localhost", transport=transport, retries=Retries(first=0)) as client:
        assert client.models().models == ()
    assert next(digests, None) is None
