"""How fast requests are done while there is more than enough to do."""

from __future__ import annotations

__all__ = ["Throughput"]

#: What is assumed before anything was measured, and the seconds of measuring that it counts for.
_ASSUMED_TOKENS_PER_S = 1000.0
_ASSUMED_S = 1.0

#: The seconds of work in which what was measured before halves its weight.
_HALF_LIFE_S = 60.0


class Throughput:
    """Tokens a second, of requests that were done while others waited."""

    def __init__(self, assumed_tokens_per_s: float = _ASSUMED_TOKENS_PER_S) -> None:
        self._tokens = assumed_tokens_per_s * _ASSUMED_S
        self._seconds = _ASSUMED_S
        self._measured_s = 0.0

    @property
    def is_measured(self) -> bool:
        """Whether more was measured than is assumed."""
        return self._measured_s > _ASSUMED_S

    @property
    def tokens_per_s(self) -> float:
        """The tokens done in a second; never 0."""
        return self._tokens / self._seconds

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Count tokens that were done after so many seconds of work."""
        kept = 0.5 ** (seconds / _HALF_LIFE_S)
        self._tokens = kept * self._tokens + num_tokens
        self._seconds = kept * self._seconds + seconds
        self._measured_s += seconds
