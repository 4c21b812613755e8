"""From the numbers of an answer to a score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from alarm_models.errors import SampleError
from alarm_models.sample import Score
from alarm_models.specs import RemoteSpec

__all__ = ["named_score", "number", "plain_score"]


def number(value: object) -> float:
    """Return a number of an answer; raise `TypeError` for what is none, a text of digits too."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"a number was expected, not a {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def plain_score(value: float) -> Score | SampleError:
    """Return the score of one number."""
    if not math.isfinite(value):
        return SampleError("non_finite", "the remote model gave a number that is not finite")
    return Score(value, None, 0, False)


def named_score(
    numbers: Sequence[object], names: Sequence[str] | None, spec: RemoteSpec
) -> Score | SampleError:
    """Return the score of one number, or of several by their names.

    Several are the outputs of the score; their sum by the recipe's ``weights`` is its value.
    Raises `TypeError` for what is no number.
    """
    if not isinstance(numbers, list | tuple):
        raise TypeError(f"numbers were expected, not a {type(numbers).__name__}")
    if len(numbers) == 1 and spec.labels is None:
        return plain_score(number(numbers[0]))
    names = spec.labels or names
    if names is None or len(names) != len(numbers):
        return SampleError(
            "model_failed",
            f"the remote model gave {len(numbers)} numbers: name them in order in `labels`",
        )
    outputs = {name: number(one) for name, one in zip(names, numbers, strict=True)}
    if not all(map(math.isfinite, outputs.values())):
        return SampleError("non_finite", "the remote model gave a number that is not finite")
    return Score(_weighed(outputs, spec.weights), None, 0, False, outputs=outputs)


def _weighed(outputs: Mapping[str, float], weights: Mapping[str, float]) -> float | None:
    if not weights:
        return next(iter(outputs.values())) if len(outputs) == 1 else None
    return sum(weight * outputs[name] for name, weight in weights.items())
