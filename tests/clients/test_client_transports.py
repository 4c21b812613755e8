"""TCP keepalive of connections, and use of environment proxies."""

import errno
import socket

import httpx
import pytest
from client_stand_in import StandIn
from reward_server import reward_server

from alarm_client._address import Address
from alarm_client._retry import Retries
from alarm_client._transport import open_async_client, open_client
from alarm_client.client import AlarmClient
from alarm_client.errors import AlarmConnectionError
from alarm_client.types import Sample

LINUX = pytest.mark.skipif(
    not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the options are named as on Linux"
)


def options_of(connection: socket.socket) -> dict[str, int]:
    names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
    found = {
        name: connection.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names
    }
    return {"SO_KEEPALIVE": connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)} | found


WANTED = {
    "SO_KEEPALIVE": 1,
    "TCP_KEEPIDLE": 20,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 4,
    "TCP_USER_TIMEOUT": 40_000,
}


def gone(request: httpx.Request) -> httpx.Response:
    """Fail as httpx does where the kernel finds that a peer is gone."""
    raise httpx.ReadTimeout("timed out") from TimeoutError(errno.ETIMEDOUT, "timed out")


def test_client_whose_server_machine_is_gone_retries_and_raises_no_deadline():
    server = StandIn()
    answers = iter([gone, server])
    transport = httpx.MockTransport(lambda request: next(answers)(request))
    at_once = Retries(first=0.0, longest=0.0, max_reconnects=2)
    with AlarmClient("http://a", transport=transport, retries=at_once) as client:
        assert client.hierarchical_reward([Sample(prompt="p", completion="abc")]).scalars() == [3.0]
    with (
        AlarmClient("http://a", transport=httpx.MockTransport(gone), retries=at_once) as client,
        pytest.raises(AlarmConnectionError, match="TCP keepalive got no answer"),
    ):
        client.hierarchical_reward([Sample(prompt="p", completion="abc")])


@LINUX
def test_blocking_connection_enables_tcp_keepalive():
    with (
        reward_server() as server,
        open_client(Address(server.url), None) as client,
        client.stream("POST", f"{server.url}/score", json={"samples": []}) as response,
    ):
        stream = response.extensions["network_stream"]
        assert options_of(stream.get_extra_info("socket")) == WANTED


@LINUX
async def test_async_connection_enables_tcp_keepalive():
    with reward_server() as server:
        async with open_async_client(Address(server.url), None) as client:
            request = client.build_request("POST", f"{server.url}/score", json={"samples": []})
            response = await client.send(request, stream=True)
            stream = response.extensions["network_stream"]
            assert options_of(stream.get_extra_info("socket")) == WANTED
            await response.aclose()


def test_environment_proxy_is_used_for_other_hosts(monkeypatch):
    with reward_server() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        with AlarmClient("http://rewards.example") as client:
            result = client.hierarchical_reward([Sample(prompt="p", completion="abc")])
    assert result.scalars() == [3.0]


def test_environment_proxy_is_not_used_for_localhost(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with reward_server() as server, AlarmClient(server.url) as client:
        assert client.hierarchical_reward([Sample(prompt="p", completion="abc")]).scalars() == [3.0]


def test_environment_proxy_is_not_used_for_no_proxy_hosts(monkeypatch):
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda _, *rest, **named: resolve("127.0.0.1", *rest, **named)
    )
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "example")
    with (
        reward_server() as server,
        AlarmClient(f"http://rewards.example:{server.server_port}") as client,
    ):
        result = client.hierarchical_reward([Sample(prompt="p", completion="abc")])
    assert result.scalars() == [3.0]
