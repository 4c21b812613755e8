"""Patterns from recipes over texts from callers: each search ends within a time limit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import lru_cache

import regex

from alarm_models.cancellation import check_cancelled
from alarm_models.errors import RecipeError, SampleError

__all__ = ["TimedPattern"]


class TimedPattern:
    """A compiled pattern whose searches end within a time and let other threads run meanwhile.

    Python's own `re` holds the interpreter until it is through with a text, which for some patterns
    and texts takes hours. Every search raises `SampleError` (``model_failed``) past its time.
    """

    def __init__(
        self, pattern: str, timeout_s: float, *, name: str = "pattern", dotall: bool = False
    ) -> None:
        self._pattern = _compiled(pattern, name, dotall)
        self._timeout_s = timeout_s
        self._name = name

    @property
    def num_groups(self) -> int:
        """How many groups it has."""
        return int(self._pattern.groups)

    def search(self, text: str) -> regex.Match[str] | None:
        """Return the first match."""
        try:
            return self._pattern.search(text, timeout=self._timeout_s, concurrent=True)
        except TimeoutError as error:
            raise self._too_slow() from error

    def fullmatch(self, text: str) -> regex.Match[str] | None:
        """Return the match of the whole text."""
        try:
            return self._pattern.fullmatch(text, timeout=self._timeout_s, concurrent=True)
        except TimeoutError as error:
            raise self._too_slow() from error

    def finditer(self, text: str) -> Iterator[regex.Match[str]]:
        """Yield each match, all within the one time."""
        deadline = time.monotonic() + self._timeout_s
        try:
            for found in self._pattern.finditer(text, timeout=self._timeout_s, concurrent=True):
                check_cancelled()
                if time.monotonic() > deadline:
                    raise self._too_slow()
                yield found
        except TimeoutError as error:
            raise self._too_slow() from error

    def _too_slow(self) -> SampleError:
        return SampleError(
            "model_failed", f"the {self._name} took longer than {self._timeout_s:g} s"
        )


@lru_cache(maxsize=256)
def _compiled(pattern: str, name: str, dotall: bool) -> regex.Pattern[str]:
    try:
        return regex.compile(pattern, regex.DOTALL if dotall else 0)
    except regex.error as error:
        raise RecipeError(f"{name} {pattern!r} cannot be read: {error}") from error
