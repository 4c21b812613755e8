"""The server's URL and API key, from arguments or the environment."""

from __future__ import annotations

import os
import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

DEFAULT_URL = "http://127.0.0.1:8000"

# A comma may also be part of a password.
_BETWEEN_URLS = re.compile(r"\s*,\s*(?=https?://)")

_NO_HOST = re.compile(r"[\s\x00-\x20\"<>\\^`{|}\[\]]")
# Characters that a header value cannot contain (RFC 9110, section 5.5), and non-ASCII ones.
_UNSENDABLE = re.compile(r"[^\t\x20-\x7e]")


@dataclass(frozen=True, slots=True)
class Address:
    """A server's URL without secrets, and the Authorization header for it."""

    url: str
    authorization: str | None = field(default=None, repr=False)

    @property
    def is_tls(self) -> bool:
        """Whether the URL is https."""
        return self.url.startswith("https:")

    @property
    def host(self) -> str:
        """The server's name or IP address, without brackets."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """The server's port; the scheme's default if the URL has none."""
        return urlsplit(self.url).port or (443 if self.is_tls else 80)

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine; no proxy is used for it."""
        try:
            address = ip_address(self.host)
        except ValueError:
            return self.host == "localhost" or self.host.endswith(".localhost")
        return address.is_loopback or address.is_unspecified


def find_addresses(url: str | Sequence[str] | None, api_key: str | None) -> tuple[Address, ...]:
    """The addresses of a client's servers, as `find_address`.

    `url` and `ALARM_URL` may be several URLs with commas between them.
    """
    urls = _listed(url, "url") or _listed(os.environ.get("ALARM_URL"), "ALARM_URL")
    addresses = tuple(find_address(one, api_key) for one in urls or [DEFAULT_URL])
    seen = [address.url for address in addresses]
    if len({*seen}) < len(seen):
        raise ValueError(f"a server is twice among the URLs {', '.join(seen)[:200]}: remove one")
    return addresses


def _listed(url: str | Sequence[str] | None, name: str) -> list[str]:
    if url is None or isinstance(url, str):
        return _BETWEEN_URLS.split(text) if (text := _text(url, name)) else []
    texts = [_text(one, name) for one in url] if isinstance(url, Sequence) else [_text(url, name)]
    if not texts or not all(texts):
        raise ValueError(f"{name} is a list without a URL, or with an empty one")
    return texts


def find_address(url: str | None, api_key: str | None) -> Address:
    """The address from the arguments, else `ALARM_URL` and `ALARM_API_KEY`, else localhost.

    A key in the URL (`http://any:key@host`) is sent as HTTP Basic unless `api_key` is given.
    Whitespace around a URL or a key is stripped. TypeError or ValueError names the invalid argument
    without showing the key.
    """
    text = _text(url, "url") or _text(os.environ.get("ALARM_URL"), "ALARM_URL") or DEFAULT_URL
    parts = _split(text)
    netloc = parts.netloc.rpartition("@")[2]
    bare = urlunsplit((parts.scheme, netloc, parts.path.rstrip("/"), "", ""))
    if api_key is None and (parts.username or parts.password):
        pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '').strip()}"
        return Address(bare, "Basic " + b64encode(pair.encode("utf-8", "replace")).decode())
    key = _key(api_key, "api_key") or _key(os.environ.get("ALARM_API_KEY"), "ALARM_API_KEY")
    return Address(bare, f"Bearer {key}" if key else None)


def _text(value: object, name: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {type(value).__name__}")
    return value.strip()


def _key(value: object, name: str) -> str:
    key = _text(value, name)
    found = _UNSENDABLE.search(key)
    if found:
        kind = "is not ASCII" if ord(found.group()) > 0x7F else "is a control character"
        raise ValueError(
            f"{name}: character {found.start() + 1} of the key {kind}, which an HTTP header cannot "
            "carry; give the server a key of letters, digits and punctuation, on one line"
        )
    return key


def _split(url: str) -> SplitResult:
    # The standard library's errors quote parts of the URL, which may contain a password.
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError:
        raise ValueError(
            f"the server's url must look like {DEFAULT_URL}; its host or port is invalid"
        ) from None
    if parts.scheme not in {"http", "https"} or not host or port == 0:
        raise ValueError(
            f"the server's url must look like {DEFAULT_URL}, with its scheme; "
            f"got scheme {parts.scheme!r} and host {host!r}"
        )
    if _NO_HOST.search(host) or any(not 0 < len(label) < 64 for label in _labels(host)):
        raise ValueError(
            f"the server's url must look like {DEFAULT_URL}; {host[:200]!r} is not a valid host "
            "name"
        )
    return parts


def _labels(host: str) -> list[str]:
    return [] if ":" in host else host.removesuffix(".").split(".")
