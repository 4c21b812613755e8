"""How connections are opened: TLS, proxies, and how a machine that is gone is found out."""

from __future__ import annotations

import socket
from typing import Any

import httpx

from alarm_client.address import Address
from alarm_client.proxies import proxy_of

# Shorter than uvicorn keeps idle connections (5 s): no request meets a closing one.
_POOL = httpx.Limits(max_connections=256, max_keepalive_connections=64, keepalive_expiry=4.0)

# A call may wait minutes for its answer, which looks like a peer that lost its power or its
# network. The kernels ask each other: one that says nothing for 40 seconds is gone.
_ASKED_AFTER_SECONDS, _ASKED_EVERY_SECONDS, _ASKED_TIMES = 20, 5, 4
_GONE_AFTER_SECONDS = _ASKED_AFTER_SECONDS + _ASKED_EVERY_SECONDS * _ASKED_TIMES
_OPTIONS = {
    "TCP_KEEPIDLE": _ASKED_AFTER_SECONDS,
    "TCP_KEEPINTVL": _ASKED_EVERY_SECONDS,
    "TCP_KEEPCNT": _ASKED_TIMES,
    "TCP_USER_TIMEOUT": 1000 * _GONE_AFTER_SECONDS,  # of what was sent and not acknowledged
}


def open_client(address: Address, transport: httpx.BaseTransport | None) -> httpx.Client:
    """The blocking client of a server; `transport` is a test's own."""
    transport = transport or httpx.HTTPTransport(**_settings(address))
    return httpx.Client(transport=transport, trust_env=False)


def open_async_client(
    address: Address, transport: httpx.AsyncBaseTransport | None
) -> httpx.AsyncClient:
    """The client of a server for one event loop; `transport` is a test's own."""
    transport = transport or httpx.AsyncHTTPTransport(**_settings(address))
    return httpx.AsyncClient(transport=transport, trust_env=False)


def _settings(address: Address) -> dict[str, Any]:
    # `verify` only where there is TLS, as loading certificates takes long and each new loop pays
    # for it. The proxy is our own choice: httpx raises for what NO_PROXY may hold, and takes each
    # network in it for a host.
    return {
        "verify": address.is_tls,
        "limits": _POOL,
        "proxy": proxy_of(address),
        "socket_options": _socket_options(),
    }


def _socket_options() -> list[tuple[int, int, int]]:
    asked = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in _OPTIONS.items():
        if hasattr(socket, name):  # systems differ
            asked.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return asked
