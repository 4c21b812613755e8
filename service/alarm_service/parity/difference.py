"""How scores differ from those that were stored: pure comparisons."""

from __future__ import annotations

from alarm_models.errors import SampleError
from alarm_models.sample import Score
from alarm_service.parity.file import StoredScore

__all__ = ["difference", "is_close", "shown"]

#: How far scores may be apart in another precision than they were stored in: bfloat16 keeps three
#: digits, and a network loses some of them.
_ROUGHLY = 0.03


def difference(
    stored: StoredScore, found: Score | SampleError, tolerance: float, *, is_rough: bool
) -> str | None:
    """Say how a score differs from the stored one; None where it does not.

    ``is_rough`` is for another precision: the share of good segments, which a small difference may
    change, is then left to the segments' own scores.
    """
    if isinstance(found, SampleError):
        return f"stored {shown(stored.score)}, found the error {found}"
    pairs: list[tuple[str, float | None, float | None]] = []
    if not (is_rough and stored.segments is not None):
        pairs.append(("", stored.score, found.value))
    segments, now_segments = stored.segments or [], [one.score for one in found.segments or ()]
    if len(segments) != len(now_segments):
        return f"stored {len(segments)} segments, found {len(now_segments)}"
    both = zip(segments, now_segments, strict=True)
    pairs += [(f" of segment {place}", *pair) for place, pair in enumerate(both, 1)]
    outputs, now_outputs = stored.outputs or {}, found.outputs or {}
    for name in {**outputs, **now_outputs}:
        pairs.append((f" of output {name!r}", outputs.get(name), now_outputs.get(name)))
    for what, was, value in pairs:
        if not is_close(was, value, tolerance, is_rough=is_rough):
            return f"stored {shown(was)}{what}, found {shown(value)}"
    return None


def is_close(
    stored: float | None, found: float | None, tolerance: float, *, is_rough: bool
) -> bool:
    """Say whether two numbers are within the tolerance, or within 3% where it is rough."""
    if stored is None or found is None:
        return stored is found
    if is_rough:
        tolerance = max(tolerance, _ROUGHLY * max(1.0, abs(stored)))
    return abs(stored - found) <= tolerance


def shown(value: float | None) -> str:
    """Write a number for people."""
    return "none" if value is None else f"{value:.6g}"
