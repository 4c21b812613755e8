"""The score of a rubric from the verdicts on its criteria."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter

from alarm_models.errors import SampleError, quoted
from alarm_models.reward_models.rubric.criteria import Criterion, Rubric
from alarm_models.types import Score, SegmentScore, Span

__all__ = ["Verdict", "rubric_score", "score_of_verdicts"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """To what extent a criterion is met, in [0, 1], and the spans that the judge quoted."""

    met: float
    spans: tuple[Span, ...] = ()


def score_of_verdicts(
    rubric: Rubric, verdicts: Sequence[Verdict | SampleError], *, skips_failed: bool
) -> Score:
    """Return the score of a rubric, whose outputs are the verdicts on its criteria, in order.

    A criterion without a verdict raises its `SampleError`, or with ``skips_failed`` is skipped.
    """
    met: dict[str, float] = {}
    segments: dict[str, tuple[SegmentScore, ...]] = {}
    skipped = list(rubric.left_out)
    reason = ""
    for criterion, verdict in zip(rubric.criteria, verdicts, strict=True):
        if isinstance(verdict, SampleError):
            if not skips_failed:
                message = f"criterion {quoted(criterion.name)}: {verdict.message}"
                raise SampleError(verdict.code, message)
            skipped.append(criterion.name)
            reason = reason or f"; of {quoted(criterion.name)}: {verdict.message}"
            continue
        met[criterion.name] = verdict.met
        if verdict.spans:
            label = "met" if verdict.met > 0.5 else "not met"
            segments[criterion.name] = tuple(
                SegmentScore(span, label, verdict.met, None) for span in verdict.spans
            )
    try:
        value = rubric_score(rubric.criteria, met)
    except SampleError as error:
        raise SampleError(error.code, f"{error.message}{reason}") from error
    return Score(
        value,
        None,
        0,
        False,
        outputs=met,
        output_segments=segments or None,
        skipped=tuple(skipped),
    )


def rubric_score(criteria: Sequence[Criterion], met: Mapping[str, float]) -> float:
    """Return ``clip(sum_k w_k*q_k / sum_k max(w_k, 0), 0, 1)``, where ``q_k = v_k*prod_j q_j``.

    ``met`` has the verdicts ``v_k`` in [0, 1]; ``j`` are the criteria that ``k`` requires. A
    criterion without a verdict is left out of both sums, and as a requirement counts as met. If all
    weights are negative the score is ``1 - sum_k w_k*q_k / sum_k w_k``: an answer with none of the
    pitfalls has 1. Sources: the explicit aggregation of Rubrics as Rewards (Gunjal et al. 2025,
    arXiv 2507.17746); ``requires`` is the gate of GEAR (arXiv 2606.03361) with lambda 0. Raises
    `SampleError`: ``non_finite`` for a verdict that is not a number, ``model_failed`` if no
    criterion with a weight has a verdict.
    """
    if not all(map(math.isfinite, met.values())):
        raise SampleError("non_finite", "a verdict is not a finite number")
    judged = [one for one in criteria if one.name in met]
    if any(one.weight > 0 for one in criteria) and not any(one.weight > 0 for one in judged):
        raise SampleError(
            "model_failed", "no criterion with a positive weight has a readable verdict"
        )
    if not any(one.weight for one in judged):
        raise SampleError("model_failed", "no criterion with a weight has a readable verdict")
    counted = _counted(criteria, met)
    total = math.fsum(one.weight * counted[one.name] for one in judged)
    positive = math.fsum(max(one.weight, 0.0) for one in judged)
    if positive > 0:
        return min(max(total / positive, 0.0), 1.0)
    return 1.0 - total / math.fsum(one.weight for one in judged)


def _counted(criteria: Sequence[Criterion], met: Mapping[str, float]) -> dict[str, float]:
    """Return to what extent each criterion counts as met, with what it requires."""
    by_name = {one.name: one for one in criteria}
    counted: dict[str, float] = {}
    graph = {name: one.requires for name, one in by_name.items()}
    for name in TopologicalSorter(graph).static_order():
        requirements = by_name[name].requires if name in by_name else ()
        counted[name] = met.get(name, 1.0) * math.prod(
            counted[one] for one in dict.fromkeys(requirements)
        )
    return counted
