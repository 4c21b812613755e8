"""HTTP clients per process and event loop: connections, headers, digests, tracing."""

from __future__ import annotations

import asyncio
import base64
import errno
import hashlib
import os
import re
import socket
import ssl
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from alarm_client._address import Address
from alarm_client._proxies import proxy_of
from alarm_client._retry import Reply, Send
from alarm_client.errors import AlarmConnectionError, AlarmError, DeadlineExceeded
from alarm_client.version import __version__

# Shorter than uvicorn's keep-alive (5 s), so that no request is sent on a closing connection.
_POOL = httpx.Limits(max_connections=256, max_keepalive_connections=64, keepalive_expiry=4.0)

# A response may take minutes, which looks the same as a host that lost power or network. TCP
# keepalive distinguishes them: a host whose kernel is silent for 40 seconds is considered down.
_KEEPALIVE_IDLE, _KEEPALIVE_INTERVAL, _KEEPALIVE_PROBES = 20, 5, 4
_GONE_AFTER_SECONDS = _KEEPALIVE_IDLE + _KEEPALIVE_INTERVAL * _KEEPALIVE_PROBES
_OPTIONS = {
    "TCP_KEEPIDLE": _KEEPALIVE_IDLE,
    "TCP_KEEPINTVL": _KEEPALIVE_INTERVAL,
    "TCP_KEEPCNT": _KEEPALIVE_PROBES,
    "TCP_USER_TIMEOUT": 1000 * _GONE_AFTER_SECONDS,  # for sent but unacknowledged data
}


def open_client(address: Address, transport: httpx.BaseTransport | None) -> httpx.Client:
    """The blocking client of a server; `transport` replaces the network in tests."""
    transport = transport or httpx.HTTPTransport(**_settings(address))
    return httpx.Client(transport=transport, trust_env=False)


def open_async_client(
    address: Address, transport: httpx.AsyncBaseTransport | None
) -> httpx.AsyncClient:
    """The client of a server for one event loop; `transport` replaces the network in tests."""
    transport = transport or httpx.AsyncHTTPTransport(**_settings(address))
    return httpx.AsyncClient(transport=transport, trust_env=False)


def _settings(address: Address) -> dict[str, Any]:
    # `verify` only with TLS, as loading certificates is slow and repeated for each new loop. The
    # proxy is resolved here: httpx raises for some valid values of NO_PROXY and does not support
    # address ranges in it.
    return {
        "verify": address.is_tls,
        "limits": _POOL,
        "proxy": proxy_of(address),
        "socket_options": _socket_options(),
    }


def _socket_options() -> list[tuple[int, int, int]]:
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in _OPTIONS.items():
        if hasattr(socket, name):  # not available on every platform
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options


_SHA_256 = re.compile(r"sha-256=:([^:]*):")


def content_digest(body: bytes) -> str:
    """The `Content-Digest` header of a body."""
    digest = base64.b64encode(hashlib.sha256(body).digest())
    return f"sha-256=:{digest.decode()}:"


def is_intact(body: bytes, headers: Mapping[str, str]) -> bool:
    """Whether a decoded body matches the `Content-Digest` among its headers (in lower case).

    True without a sha-256 digest, as gateways may strip headers, and for a body that was compressed
    in transit.
    """
    found = _SHA_256.search(headers.get("content-digest", ""))
    return found is None or "content-encoding" in headers or found.group() == content_digest(body)


def trace_headers() -> dict[str, str]:
    """The `traceparent` of the caller's current span; empty without a span.

    Only if the program has imported OpenTelemetry, which is not imported here.
    """
    headers: dict[str, str] = {}
    if "opentelemetry.trace" in sys.modules:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        TraceContextTextMapPropagator().inject(headers)
    return headers


@contextmanager
def map_httpx_errors(address: Address, action: Send) -> Iterator[None]:
    """Map httpx's errors to this package's.

    Messages contain no headers, as one of them is the key; errors of httpx that quote a header or
    the URL are not chained.
    """
    url = address.url
    where = f"{url}{action.path.partition('?')[0]}"
    request = f" (request {action.request_id})" if action.request_id else ""

    def broken(reason: str, *, retryable: bool = True) -> AlarmError:
        return AlarmConnectionError(
            f"{where}: {reason}", retryable=retryable, request_id=action.request_id
        )

    def late(reason: str) -> AlarmError:
        return DeadlineExceeded(
            f"{where}: {reason}{request}", retryable=True, request_id=action.request_id
        )

    try:
        yield
    except httpx.ConnectTimeout as error:
        seconds = f"{action.connect_timeout:.3g} s"
        raise broken(
            f"no connection within {seconds}{_through(address)}; is the host right?"
        ) from error
    except httpx.PoolTimeout as error:
        raise late("timed out waiting for a free connection of this client") from error
    except (httpx.TimeoutException, asyncio.TimeoutError) as error:  # noqa: UP041 (Python 3.10)
        if _is_gone(error):
            raise broken("the server's host is unreachable: TCP keepalive got no answer") from error
        raise late(f"no response within the remaining {action.timeout:g} s") from error
    except httpx.ConnectError as error:
        if _is_untrusted(error):
            raise broken(
                f"its certificate is not trusted ({error}); SSL_CERT_FILE may name the one of "
                "its authority",
                retryable=False,
            ) from error
        is_of_tls = any(isinstance(cause, ssl.SSLError) for cause in _causes(error))
        question = "does it speak TLS" if is_of_tls else "is `alarm serve` running"
        raise broken(
            f"cannot connect{_through(address)} ({error}); {question} at {url}?"
        ) from error
    except (httpx.LocalProtocolError, UnicodeError):
        raise broken(
            "the request cannot be sent: a header or the URL has characters that HTTP forbids",
            retryable=False,
        ) from None
    except httpx.RequestError as error:
        raise broken(
            f"the connection broke ({type(error).__name__}: {error}){request}",
            retryable=not isinstance(error, httpx.UnsupportedProtocol),
        ) from error
    except OSError as error:  # such as TLS errors of asyncio, which httpx does not wrap
        raise broken(f"the connection broke ({type(error).__name__}: {error}){request}") from error
    except (
        RuntimeError
    ) as error:  # another thread has closed the client: the next attempt reopens it
        if "closed" not in str(error):
            raise
        raise broken(f"the connection was closed ({error}){request}") from error
    except (httpx.InvalidURL, ValueError, TypeError) as error:
        reason = f"the request cannot be sent ({type(error).__name__}: {error})"
        raise broken(reason, retryable=False) from error


@contextmanager
def opening_errors(url: str) -> Iterator[None]:
    """Map errors of opening a client to AlarmConnectionError that is not retryable."""
    try:
        yield
    except ImportError as error:
        raise AlarmConnectionError(
            f"{url}: the environment's proxy (ALL_PROXY or HTTP_PROXY) uses SOCKS, which "
            "requires `pip install 'httpx[socks]'`; or add the server's host to NO_PROXY"
        ) from error
    except OSError as error:
        raise AlarmConnectionError(
            f"{url}: the CA certificates cannot be read ({error}); see SSL_CERT_FILE and "
            "SSL_CERT_DIR"
        ) from error
    except httpx.InvalidURL:  # quotes the proxy's URL, which may contain a password
        raise AlarmConnectionError(
            f"{url}: the environment's proxy (HTTP_PROXY, HTTPS_PROXY or ALL_PROXY) is not a URL; "
            "correct it, or add the server's host to NO_PROXY"
        ) from None
    except ValueError as error:
        raise AlarmConnectionError(f"{url}: {error}") from error


def _through(address: Address) -> str:
    proxy = proxy_of(address)
    if proxy is None:
        return ""
    return f" through the environment's proxy {proxy.partition('://')[2].rpartition('@')[2][:200]}"


def _is_gone(error: BaseException | None) -> bool:
    """Whether a timeout comes from the kernel (TCP keepalive) rather than this client."""
    return any(
        isinstance(cause, OSError) and cause.errno == errno.ETIMEDOUT for cause in _causes(error)
    )


def _is_untrusted(error: BaseException) -> bool:
    return any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def headers_of(address: Address, action: Send) -> list[tuple[bytes, bytes]]:
    """The client's headers, overridden by the request's headers of the same names."""
    headers = {
        "User-Agent": f"alarm-client/{__version__}",
        "X-Request-Timeout-Ms": str(max(1, int(action.timeout * 1000))),
        **trace_headers(),
    }
    if action.request_id is not None:
        headers["X-Request-Id"] = action.request_id
    if action.body is not None:
        headers["Content-Type"] = "application/json"
        headers["Content-Digest"] = content_digest(action.body)
    if address.authorization is not None:
        headers["Authorization"] = address.authorization
    given = action.headers or {}
    replaced = {name.lower() for name in given}
    kept = {name: value for name, value in headers.items() if name.lower() not in replaced}
    # Latin-1, as the relay decodes them: one character per byte.
    return [
        (name.encode("latin-1"), value.encode("latin-1"))
        for name, value in {**kept, **given}.items()
    ]


def timeout_of(action: Send) -> httpx.Timeout:
    """httpx's timeouts of a request."""
    return httpx.Timeout(action.timeout, connect=min(action.connect_timeout, action.timeout))


def reply_of(response: httpx.Response, body: bytes, action: Send) -> Reply:
    """The response as a reply; httpx.ReadError if its body does not match its digest."""
    response.headers.encoding = "latin-1"
    headers = {name.lower(): value for name, value in response.headers.items()}
    if not is_intact(body, headers):
        raise httpx.ReadError("the body of the response does not match its Content-Digest")
    request_id = headers.get("x-request-id") or action.request_id
    return Reply(response.status_code, headers, body, request_id)


def require_readable(address: Address) -> None:
    """Raise ValueError if httpx cannot parse the server's URL."""
    try:
        httpx.URL(address.url)
    except httpx.InvalidURL as error:
        raise ValueError(f"the server's url {address.url[:200]!r} is invalid: {error}") from None


class Connections:
    """The blocking HTTP clients of one AlarmClient: a forked child opens its own."""

    def __init__(
        self,
        address: Address,
        transport: httpx.BaseTransport | None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        require_readable(address)
        self._address = address
        self._transport = transport
        self._now = now
        self._clients: dict[int, httpx.Client] = {}

    def send(self, action: Send) -> Reply:
        """Perform one request within its timeout, which is checked between reads."""
        ends = self._now() + action.timeout
        client = self._client()
        with (
            map_httpx_errors(self._address, action),
            client.stream(
                action.method,
                self._address.url + action.path,
                content=action.body,
                headers=headers_of(self._address, action),
                timeout=timeout_of(action),
            ) as response,
        ):
            body = bytearray()
            for piece in response.iter_bytes():
                body += piece
                if self._now() > ends:
                    raise httpx.ReadTimeout("the response took too long")
            return reply_of(response, bytes(body), action)

    def close(self) -> None:
        """Close this process's connections; those of a parent process are left open."""
        client = self._clients.pop(os.getpid(), None)
        if client is not None:
            client.close()

    def _client(self) -> httpx.Client:
        pid = os.getpid()
        client = self._clients.get(pid)
        if client is None:
            with opening_errors(self._address.url):
                fresh = open_client(self._address, self._transport)
            # No lock, which a fork could leave locked: setdefault is atomic.
            client = self._clients.setdefault(pid, fresh)
            if client is not fresh:
                fresh.close()
        return client


@dataclass(frozen=True, slots=True)
class _OnLoop:
    """A loop's client. `closer`: a suspended generator that closes it when the loop shuts down."""

    loop: asyncio.AbstractEventLoop
    client: httpx.AsyncClient
    closer: AsyncGenerator[None, None]


class AsyncConnections:
    """The HTTP clients of one AsyncAlarmClient: each process and each event loop has its own."""

    def __init__(self, address: Address, transport: httpx.AsyncBaseTransport | None) -> None:
        require_readable(address)
        self._address = address
        self._transport = transport
        self._clients: dict[tuple[int, int], _OnLoop] = {}

    async def send(self, action: Send) -> Reply:
        """Perform one request within its timeout."""
        client = await self._client()
        with map_httpx_errors(self._address, action):
            request = client.request(
                action.method,
                self._address.url + action.path,
                content=action.body,
                headers=headers_of(self._address, action),
                timeout=timeout_of(action),
            )
            response = await asyncio.wait_for(request, action.timeout)
            return reply_of(response, response.content, action)

    async def aclose(self) -> None:
        """Close the running loop's connections; other loops close theirs as they shut down."""
        entry = self._clients.pop((os.getpid(), id(asyncio.get_running_loop())), None)
        if entry is not None:
            await entry.closer.aclose()

    async def _client(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        key = (os.getpid(), id(loop))
        entry = self._clients.get(key)
        if entry is None or entry.loop is not loop:
            self._drop_dead()
            with opening_errors(self._address.url):
                client = open_async_client(self._address, self._transport)
            entry = self._clients[key] = _OnLoop(loop, client, _keep(client))
            await entry.closer.__anext__()
        return entry.client

    def _drop_dead(self) -> None:
        for key, entry in list(self._clients.items()):
            if entry.loop.is_closed():
                self._clients.pop(key, None)


async def _keep(client: httpx.AsyncClient) -> AsyncGenerator[None, None]:
    # asyncio.run closes suspended async generators before it closes the loop.
    try:
        yield
    finally:
        await client.aclose()
