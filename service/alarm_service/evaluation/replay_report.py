"""The report of `alarm replay` as tables."""

from __future__ import annotations

from alarm_service.evaluation.replay_comparison import (
    ChangeSummary,
    LargestDifference,
    ReplayResult,
)
from alarm_service.evaluation.report import Grid, Page, Paragraph, percent, plain

__all__ = ["replay_page"]


def replay_page(result: ReplayResult) -> Page:
    """Build the report."""
    captured = ", ".join(f"{name}: {num}" for name, num in result.captured.items())
    blocks: list[Paragraph | Grid] = [
        Paragraph(
            f"{result.num_samples} captured samples ({captured or 'none'}), scored again by "
            f"{result.recipe} {result.fingerprint}."
        ),
        *(Paragraph(text, is_caution=True) for text in _cautions(result)),
        _values(result),
        _counts(result),
    ]
    return Page(f"Replay by {result.recipe}", blocks)


def _cautions(result: ReplayResult) -> list[str]:
    failures = result.failures
    codes = ", ".join(f"{code}: {num}" for code, num in failures.codes_after.items())
    only_before = ", ".join(result.aspects_only_before)
    only_after = ", ".join(result.aspects_only_after)
    found = {
        f"{failures.num_only_after} samples had a reward and have none now, "
        f"{failures.num_only_before} have one only now, {failures.num_both} had and have none"
        f"{f' ({codes})' if codes else ''}.": failures.num_only_after
        + failures.num_only_before
        + failures.num_both,
        f"{result.num_of_incomplete_groups} samples are left out, as others of their group are "
        "not in the capture.": result.num_of_incomplete_groups,
        f"{result.num_retried} samples are left out, as their group has one of the same id "
        "already.": result.num_retried,
        f"{result.num_scores_left_out} samples of /score are left out: they have no "
        "reward.": result.num_scores_left_out,
        f"{result.num_with_overrides} samples were rewarded with overrides, which are not "
        "applied here.": result.num_with_overrides,
        f"Aspects only before: {only_before}.": len(result.aspects_only_before),
        f"Aspects only now: {only_after}.": len(result.aspects_only_after),
    }
    return [text for text, num in found.items() if num]


def _values(result: ReplayResult) -> Grid:
    named = {"reward": result.rewards, **result.aspects}
    most = result.most_changed_aspect
    return Grid(
        "Rewards and aspects (before weighting)",
        ("", "samples", "before", "now", "mean change", "largest", "at"),
        [_row(name, change) for name, change in named.items()],
        "Changes are absolute, except the largest."
        + ("" if most is None else f" The aspect that changed most in the mean: {most}."),
    )


def _row(name: str, change: ChangeSummary) -> tuple[str, ...]:
    largest = change.largest
    if largest is None:
        return (name, "0", "–", "–", "–", "–", "–")
    return (
        name,
        str(change.num_samples),
        plain(change.mean_before),
        plain(change.mean_after),
        plain(change.mean_absolute_difference),
        plain(largest.after - largest.before),
        _place(largest),
    )


def _place(largest: LargestDifference) -> str:
    of_id = "" if largest.id is None else f", id {largest.id}"
    return f"request {largest.request}{of_id}"


def _counts(result: ReplayResult) -> Grid:
    ranks, admitted = result.ranks, result.admitted
    share = result.share_of_pairs_changed
    rows = [
        ("admitted before and now", admitted.num_both),
        ("admitted only now", admitted.num_gained),
        ("admitted only before", admitted.num_lost),
        ("admitted neither before nor now", admitted.num_neither),
        ("pairs of one prompt", ranks.num_pairs),
        ("pairs reversed", ranks.num_reversed),
        ("pairs tied only now", ranks.num_newly_tied),
        ("pairs tied only before", ranks.num_untied),
    ]
    changed = "–" if share is None else percent(share)
    return Grid(
        "Admission and ranks within prompts",
        ("", "number"),
        [(name, str(num)) for name, num in rows],
        f"Share of pairs whose order changed: {changed}, in {ranks.num_groups} groups.",
    )
