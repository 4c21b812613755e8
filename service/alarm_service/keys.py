"""The keys that callers may bring: where they come from, and whether one is among them."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from alarm_service.settings import Settings, SettingsError

__all__ = ["Keys", "read_keys"]


class Keys:
    """A set of keys that tells nothing of them through the time that it takes."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(_digest(key.encode()) for key in dict.fromkeys(keys))

    def __len__(self) -> int:
        return len(self._digests)

    def find(self, key: bytes) -> int | None:
        """Return a key's place among the keys, or None where it is none of them.

        Every key is compared, each in constant time, and digests hide how long they are.
        """
        digest = _digest(key)
        found = None
        for index, known in enumerate(self._digests):
            if hmac.compare_digest(known, digest):
                found = index
        return found


def read_keys(settings: Settings) -> Keys:
    """Read the keys of the options and of their file; raise `SettingsError` for an unusable one."""
    keys = [key.get_secret_value().strip() for key in settings.api_key]
    if settings.api_key_file is not None:
        keys += _lines(settings.api_key_file)
    return Keys(keys)


def _lines(file: Path) -> list[str]:
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the keys of --api-key-file {file} cannot be read: {error}") from error
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise SettingsError(f"--api-key-file {file} holds no key: write one a line")
    return keys


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
