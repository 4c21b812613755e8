"""Whether a body arrived as it was sent: `Content-Digest` with sha-256 (RFC 9530)."""

from __future__ import annotations

import base64
import hashlib
import re

__all__ = ["content_digest", "is_intact"]

_SHA_256 = re.compile(r"sha-256=:([^:]*):")


def content_digest(body: bytes) -> str:
    """Return the header's value for a body."""
    digest = base64.b64encode(hashlib.sha256(body).digest())
    return f"sha-256=:{digest.decode()}:"


def is_intact(digest: str, header: str) -> bool:
    """Say whether a body's digest is the one of its header; True where that names no sha-256."""
    found = _SHA_256.search(header)
    return found is None or found.group() == digest
