"""Whether a body arrived as it was sent: `Content-Digest` with sha-256 (RFC 9530)."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping

_SHA_256 = re.compile(r"sha-256=:([^:]*):")


def content_digest(body: bytes) -> str:
    """The header's value for a body."""
    digest = base64.b64encode(hashlib.sha256(body).digest())
    return f"sha-256=:{digest.decode()}:"


def is_intact(body: bytes, headers: Mapping[str, str]) -> bool:
    """Whether a decoded body is the one that its headers (in lower case) name.

    True where they name no sha-256, or one of the body as something on its way has compressed it.
    """
    found = _SHA_256.search(headers.get("content-digest", ""))
    return found is None or "content-encoding" in headers or found.group() == content_digest(body)
