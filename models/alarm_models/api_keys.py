"""Keys that are sent to servers: what an HTTP header can hold."""

from __future__ import annotations

__all__ = ["usable_key"]


def usable_key(key: str) -> str:
    """Return a key without the white space around it, which files and shells leave.

    Raises `ValueError`, which says what is wrong and never what the key is.
    """
    key = key.strip()
    if not key:
        raise ValueError("the key is empty: leave it out, or give one")
    for at, character in enumerate(key):
        if not " " <= character <= "~":
            what = "a line break" if character in "\r\n" else f"U+{ord(character):04X}"
            raise ValueError(
                f"the key has {what} as its character {at + 1} of {len(key)}, which no HTTP header "
                "can hold: give the key alone"
            )
    return key
