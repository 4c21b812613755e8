"""API keys: reads and compares them; imports no FastAPI."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from pydantic import SecretStr

from alarm_service.settings import Settings, SettingsError, require_key

__all__ = ["Keys", "read_admin_keys", "read_keys"]

#: A key may contain the character `#`, which begins a comment only after white space.
_COMMENT = re.compile(r"(?:^|\s)#.*")


class Keys:
    """A set of API keys, looked up in constant time."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(_digest(key.encode()) for key in dict.fromkeys(keys))

    def __len__(self) -> int:
        return len(self._digests)

    def find(self, key: bytes) -> int | None:
        """Return the index of a key, or None if it is not one of these.

        Every key is compared, each in constant time, and digests hide how long they are.
        """
        digest = _digest(key)
        found = None
        for index, known in enumerate(self._digests):
            if hmac.compare_digest(known, digest):
                found = index
        return found

    def identity(self, index: int) -> str:
        """Return what identifies the key at an index, without revealing it."""
        return self._digests[index].hex()[:16]


def read_keys(settings: Settings) -> Keys:
    """Read the keys of the options and of their file; raise `SettingsError` for an unusable one."""
    return Keys(_read(settings.api_key, settings.api_key_file, "--api-key-file"))


def read_admin_keys(settings: Settings) -> Keys:
    """Read the admin keys; raise `SettingsError` if one is also a caller's key."""
    keys = _read(settings.admin_key, settings.admin_key_file, "--admin-key-file")
    callers = read_keys(settings)
    if any(callers.find(key.encode()) is not None for key in keys):
        raise SettingsError("one key is both an admin key and a caller's: use separate keys")
    return Keys(keys)


def _read(given: Sequence[SecretStr], file: Path | None, flag: str) -> list[str]:
    keys = [key.get_secret_value().strip() for key in given]
    return keys if file is None else keys + _lines(file, flag)


def _lines(file: Path, flag: str) -> list[str]:
    try:
        content = file.read_bytes() if file.is_file() else _piped(file)
        # Some editors start a file with a byte order mark, which is not part of a key.
        lines = content.decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the keys of {flag} {file} cannot be read: {error}") from error
    keys = [
        require_key(key, f"{flag} {file}, line {number}")
        for number, line in enumerate(lines, 1)
        if (key := _COMMENT.sub("", line)).strip()
    ]
    if not keys:
        raise SettingsError(f"{flag} {file} has no key: write one per line")
    return keys


@cache
def _piped(file: Path) -> bytes:
    """Return the contents of a pipe, which can be read only once; keys are read several times."""
    return file.read_bytes()


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
