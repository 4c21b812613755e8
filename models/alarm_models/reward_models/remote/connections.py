"""HTTP clients of other servers: proxies, and responses with limits of size and time."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from alarm_models.errors import AddressError
from alarm_models.recipe.specs import require_address

__all__ = [
    "MAX_ANSWER_BYTES",
    "NoAnswer",
    "ask",
    "ask_async",
    "excerpt",
    "open_async_client",
    "open_client",
    "parsed",
    "without_password",
]

#: Enough for scores of thousands of samples with segments.
MAX_ANSWER_BYTES = 16 << 20

#: Length of quoted responses in error messages.
_MAX_EXCERPT = 200


class NoAnswer(Exception):
    """There was no response, or an unusable one; the message says why."""

    def __init__(self, message: str, *, is_of_no_use: bool = False) -> None:
        super().__init__(message)
        self.is_of_no_use = is_of_no_use


def open_client(
    url: str, key: str | None = None, *, limits: httpx.Limits, retries: int = 0
) -> httpx.Client:
    """Return a client for the server of ``url``; raise `AddressError`."""
    try:
        transport = httpx.HTTPTransport(
            verify=_verify(url), proxy=_proxy(url), limits=limits, retries=retries
        )
        return httpx.Client(headers=_headers(key), transport=transport, trust_env=False)
    except (httpx.InvalidURL, ValueError, ImportError) as error:
        raise _unusable(url) from error


def open_async_client(
    url: str,
    key: str | None = None,
    *,
    limits: httpx.Limits,
    transport: httpx.AsyncBaseTransport | None = None,
) -> httpx.AsyncClient:
    """Return a client for the server of ``url``; raise `AddressError`.

    ``transport`` replaces the network in tests. Proxies are resolved here rather than by httpx,
    which rejects some common values of ``NO_PROXY``.
    """
    try:
        transport = transport or httpx.AsyncHTTPTransport(
            verify=_verify(url), proxy=_proxy(url), limits=limits
        )
        return httpx.AsyncClient(headers=_headers(key), transport=transport, trust_env=False)
    except (httpx.InvalidURL, ValueError, ImportError) as error:
        raise _unusable(url) from error


async def ask_async(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    *,
    timeout_s: float,
    max_bytes: int = MAX_ANSWER_BYTES,
    **request: Any,
) -> httpx.Response:
    """Return a complete response; raise `NoAnswer`.

    ``timeout_s`` covers the whole response; ``max_bytes`` limits its body.
    """
    try:
        async with (
            asyncio.timeout(timeout_s),
            client.stream(method, url, timeout=timeout_s, **request) as response,
        ):
            body = bytearray()
            async for part in response.aiter_bytes():
                body += part
                _require_bounded(body, max_bytes)
            return _whole(response, bytes(body))
    except (TimeoutError, httpx.TimeoutException) as error:
        raise NoAnswer(f"took longer than {timeout_s:g} s") from error
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        raise _no_answer(error) from error


def ask(
    client: httpx.Client,
    method: str,
    url: str,
    *,
    timeout_s: float,
    max_bytes: int = MAX_ANSWER_BYTES,
    **request: Any,
) -> httpx.Response:
    """Return a complete response; raise `NoAnswer`. As `ask_async`, blocking."""
    ends = time.monotonic() + timeout_s
    try:
        with client.stream(method, url, timeout=timeout_s, **request) as response:
            body = bytearray()
            for part in response.iter_bytes():
                body += part
                _require_bounded(body, max_bytes)
                if time.monotonic() > ends:
                    raise TimeoutError
            return _whole(response, bytes(body))
    except (TimeoutError, httpx.TimeoutException) as error:
        raise NoAnswer(f"took longer than {timeout_s:g} s") from error
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        raise _no_answer(error) from error


def parsed(response: httpx.Response, secret: str | None = None) -> Any:
    """Return a response's JSON; raise `NoAnswer`, which never contains ``secret``."""
    try:
        return json.loads(response.content)
    except (ValueError, RecursionError) as error:
        quoted = excerpt(response.text, secret)
        raise NoAnswer(f"answered no JSON: {quoted}", is_of_no_use=True) from error


def excerpt(text: object, secret: str | None = None) -> str:
    """Return the start of another server's text, on one line, for error messages."""
    # Longer than the excerpt, so that a secret at its end is removed entirely.
    said = str(text)[: _MAX_EXCERPT + 4096]
    if secret:
        said = said.replace(secret, "[key]")
    said = "".join(one if one.isprintable() else " " for one in said)
    return said if len(said) <= _MAX_EXCERPT else f"{said[:_MAX_EXCERPT]}..."


def without_password(url: str) -> str:
    """Return a URL that may be logged: without user name, password, query and fragment."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "an address that cannot be read"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _headers(key: str | None) -> Mapping[str, str]:
    # No compression: a small response must not expand beyond the limit.
    plain = {"Accept-Encoding": "identity"}
    return plain if key is None else plain | {"Authorization": f"Bearer {key}"}


def _verify(url: str) -> bool:
    # Without TLS, no certificates are loaded.
    return url.startswith("https:")


def _require_bounded(body: bytearray, max_bytes: int) -> None:
    if len(body) > max_bytes:
        raise NoAnswer(f"answered with more than {max_bytes} bytes", is_of_no_use=True)


def _whole(response: httpx.Response, body: bytes) -> httpx.Response:
    # The body is already decoded.
    headers = [
        (name, value)
        for name, value in response.headers.multi_items()
        if name.lower() not in ("content-encoding", "content-length", "transfer-encoding")
    ]
    return httpx.Response(response.status_code, headers=headers, content=body)


def _no_answer(error: Exception) -> NoAnswer:
    # httpx's error quotes the header's value, so it is not included.
    if isinstance(error, httpx.LocalProtocolError):
        return NoAnswer("cannot be reached: a header has invalid characters")
    return NoAnswer(f"cannot be reached: {excerpt(str(error) or type(error).__name__)}")


def _unusable(url: str) -> AddressError:
    proxy = _proxy_setting(url)
    if proxy is None:
        return AddressError(f"{without_password(url)} is not a valid URL")
    variable, value = proxy
    more = ""
    if value.startswith("socks"):
        more = ": for a SOCKS proxy, pip install 'httpx[socks]'"
    return AddressError(
        f"the proxy {without_password(value)} of {variable} cannot be used to ask "
        f"{without_password(url)}{more}"
    )


def _proxy(url: str) -> str | None:
    """Return the proxy of a URL; raise `ValueError` if the setting is invalid."""
    setting = _proxy_setting(url)
    return None if setting is None else require_address(setting[1])


def _proxy_setting(url: str) -> tuple[str, str] | None:
    """Return the variable that names the proxy of a URL, and the proxy; None without one."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    proxies = getproxies()
    scheme = next((one for one in (parts.scheme, "all") if proxies.get(one)), None)
    if scheme is None or _is_excepted(host, parts.port, proxies.get("no", "")):
        return None
    value = proxies[scheme]
    return f"{scheme.upper()}_PROXY", value if "://" in value else f"http://{value}"


def _is_excepted(host: str, port: int | None, exceptions: str) -> bool:
    """Return whether a host is reached directly: localhost, or a host in ``NO_PROXY``.

    ``NO_PROXY`` may list hosts, domains, addresses and address ranges, with optional ports.
    """
    address = _address(host)
    if host == "localhost" or (address is not None and address.is_loopback):
        return True
    if any(_names(entry.strip(), host, port) for entry in exceptions.split(",")):
        return True
    return bool(proxy_bypass(host))


def _names(entry: str, host: str, port: int | None) -> bool:
    if entry == "*":
        return True
    address = _address(host)
    try:
        # A single address is a range of one.
        network = ipaddress.ip_network(entry.strip("[]"), strict=False)
        return address is not None and address in network
    except ValueError:
        name, colon, wanted = entry.rpartition(":")
        if colon and wanted.isdecimal() and wanted.isascii():
            return int(wanted) == port and _names(name, host, None)
    name = entry.lstrip("*").lstrip(".").lower()
    return bool(name) and (host == name or host.endswith(f".{name}"))


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None
