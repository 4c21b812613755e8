"""The hosts that a server without keys serves; it redirects to none."""

from typing import Any

import pytest
from served import serving

from alarm_service.api.auth import allowed_hosts
from alarm_service.settings import Settings

OWN = ["localhost", "LOCALHOST:8000", "localhost.", "127.0.0.1", "127.9.8.7:80", "[::1]:8000", ""]
FOREIGN = [
    "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example",
    "10.0.0.1", "[fd00::1]:8000", "alarm", "localhost@evil.example", "127.0.0.1:80:80", "[", "\xe9",
    "[::1]evil.example", "[::1].evil.example:80",
]  # fmt: skip


@pytest.mark.parametrize("path", ["/models", "/health/live", "/score", "/docs", "/nowhere"])
async def test_host_foreign_is_refused_without_a_key(path: str) -> None:
    async with serving() as server:
        answer = await server.client.get(path, headers={"Host": "evil.example:8000"})
    assert answer.status_code == 421
    assert answer.json()["error"] == {
        "code": "misdirected",
        "message": "this server does not serve the host 'evil.example:8000': without a key it "
        "serves localhost only; name the host with --allowed-host (ALARM_ALLOWED_HOST), or give "
        "the server a key",
        "retryable": False,
    }


@pytest.mark.parametrize("host", FOREIGN)
async def test_host_of_any_foreign_form_is_refused(host: str) -> None:
    async with serving() as server:
        headers = {"Host": host.encode("latin-1")}
        assert (await server.client.get("/models", headers=headers)).status_code == 421


@pytest.mark.parametrize("host", OWN)
async def test_host_of_loopback_is_served(host: str) -> None:
    async with serving() as server:
        assert (await server.client.get("/models", headers={"Host": host})).status_code == 200


async def test_host_that_is_allowed_is_served() -> None:
    async with serving(allowed_host=("alarm", "a.example")) as server:
        for host in ("alarm:8000", "A.example", "localhost"):
            assert (await server.client.get("/models", headers={"Host": host})).status_code == 200
        assert (await server.client.get("/models", headers={"Host": "b.a"})).status_code == 421


async def test_host_is_not_checked_with_keys() -> None:
    async with serving(api_key="sesame") as server:
        headers = {"Host": "proxy.example", "Authorization": "Bearer sesame"}
        assert (await server.client.get("/models", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("options", "checked"),
    [
        ({}, True),
        ({"host": "0.0.0.0", "published": "127.0.0.1"}, True),
        ({"host": "0.0.0.0", "insecure": True}, False),
        ({"allowed_host": "*"}, False),
        ({"host": "0.0.0.0", "api_key": "sesame"}, False),
    ],
)
def test_host_is_checked_on_loopback_servers(options: dict[str, Any], checked: bool) -> None:
    assert (allowed_hosts(Settings(**options)) is not None) is checked


def test_host_of_a_container_may_be_its_address() -> None:
    hosts = allowed_hosts(Settings(host="0.0.0.0", published="127.0.0.1"))
    assert hosts is not None
    assert "172.17.0.2:8000" in hosts
    assert "evil.example" not in hosts


@pytest.mark.parametrize("path", ["/models/", "/health/live/", "//models", "/models//"])
async def test_path_with_double_slash_does_not_redirect(path: str) -> None:
    async with serving() as server:
        answer = await server.client.get(f"http://localhost{path}")
    assert answer.status_code == (404 if path.startswith("//") else 200)
    assert "location" not in answer.headers


async def test_path_with_trailing_slash_is_served() -> None:
    async with serving() as server:
        answer = await server.client.post(
            "/score/", json={"samples": [{"prompt": "?", "completion": "a b"}]}
        )
    assert answer.json()["scores"][0]["score"] == 2.0


@pytest.mark.parametrize(
    "path", ["/health/live", "/health/ready", "/models", "/metrics", "/docs", "/openapi.json"]
)
async def test_head_is_get_without_a_body(path: str) -> None:
    async with serving() as server:
        await server.engine.life.until_ready()
        head, get = await server.client.head(path), await server.client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]


async def test_head_of_a_post_route_is_405() -> None:
    async with serving() as server:
        answer = await server.client.head("/score")
    assert (answer.status_code, answer.content) == (405, b"")
