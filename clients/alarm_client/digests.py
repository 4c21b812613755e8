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
    return "content-encoding" in headers or _fits(body, headers.get("content-digest", ""))


def is_answer_to(asked: bytes, headers: Mapping[str, str]) -> bool:
    """Whether the body that was sent is the one which an answer's headers name as read."""
    return _fits(asked, headers.get("request-content-digest", ""))


def has_lost_a_digest(headers: Mapping[str, str]) -> bool:
    """Whether an answer to a body names only one of both, of itself and of what was asked.

    A digest that is garbled itself protects nothing. Answers with neither are of another server
    than ours; what something on its way has compressed may come without its own.
    """
    is_one = ("content-digest" in headers) != ("request-content-digest" in headers)
    return is_one and "content-encoding" not in headers


def _fits(body: bytes, header: str) -> bool:
    found = _SHA_256.search(header)
    return found is None or found.group() == content_digest(body)
