"""Where the server is and how to be let in, from arguments or the environment."""

from __future__ import annotations

import os
from base64 import b64encode
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit, urlunsplit

DEFAULT_URL = "http://127.0.0.1:8000"


@dataclass(frozen=True, slots=True)
class Address:
    """A server's URL without secrets, and the Authorization header that opens it."""

    url: str
    authorization: str | None = field(default=None, repr=False)

    @property
    def is_tls(self) -> bool:
        """Whether certificates are needed."""
        return self.url.startswith("https:")

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine, where no proxy belongs between."""
        return urlsplit(self.url).hostname in {"127.0.0.1", "localhost", "::1"}


def find_address(url: str | None, api_key: str | None) -> Address:
    """The address that the arguments name, else `ALARM_URL` and `ALARM_API_KEY`, else this machine.

    A key in the URL (`http://any:key@host`) is sent as HTTP Basic unless `api_key` is given.
    """
    parts = urlsplit(url or os.environ.get("ALARM_URL") or DEFAULT_URL)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(
            f"the server's url must look like {DEFAULT_URL}, with its scheme; "
            f"got scheme {parts.scheme!r} and host {parts.hostname!r}"
        )
    netloc = parts.netloc.rpartition("@")[2]
    bare = urlunsplit((parts.scheme, netloc, parts.path.rstrip("/"), "", ""))
    if api_key is None and (parts.username or parts.password):
        pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        return Address(bare, "Basic " + b64encode(pair.encode()).decode())
    key = api_key or os.environ.get("ALARM_API_KEY")
    return Address(bare, f"Bearer {key}" if key else None)
