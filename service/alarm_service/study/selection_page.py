"""How `alarm select` shows what it found."""

from __future__ import annotations

from collections.abc import Iterator

from alarm_service.study.columns import HOLISTIC
from alarm_service.study.page import (
    Grid,
    Page,
    Paragraph,
    Picture,
    fingerprints,
    percent,
    percents,
    plains,
)
from alarm_service.study.plots import inconsistency_bars
from alarm_service.study.selecting import Consistency, SelectionResult

__all__ = ["selection_page"]

_HEADERS = ("", "pairs", "paper's inconsistency", "ties", "inconsistency, untied", "tau-b")
_NOTE = (
    "Inconsistency: how often it goes against the reference. The paper's figure counts its ties as "
    "agreement; 50% among untied pairs, and a tau-b of 0, is a coin."
)


def selection_page(result: SelectionResult) -> Page:
    """Lay out a study of aspects, the reference that chooses first."""
    ordered = sorted(result.consistencies, key=lambda one: one.reference != result.chosen_by)
    blocks: list[Paragraph | Grid | Picture] = [Paragraph(_subject(result))]
    blocks += [Paragraph(fault, is_caution=True) for fault in result.faults]
    for consistency in ordered:
        blocks += _consistency(consistency)
    if result.win_rates is not None:
        blocks.append(_win_rates(result))
    return Page(f"Aspects of {result.recipe}", blocks)


def _subject(result: SelectionResult) -> str:
    of_policies = f" of {' and '.join(result.sides)}" if result.sides else ""
    left_out = (
        f"; {result.num_left_out} prompts that not both answered are left out"
        if result.num_left_out
        else ""
    )
    lower = result.lower_is_better
    direction = f" Lower is better for {', '.join(lower)}." if lower else ""
    return (
        f"{result.num_completions} completions{of_policies} to {result.num_prompts} prompts"
        f"{left_out}. Intervals: 95% by {result.resampling.num_draws} bootstrap draws of prompts, "
        f"seed {result.resampling.seed}.{direction} Models: {fingerprints(result.fingerprints)}."
    )


def _consistency(one: Consistency) -> Iterator[Grid | Paragraph | Picture]:
    name = "people" if one.reference != HOLISTIC else "the holistic reward"
    rows = [
        (
            column, str(found.num_pairs), percent(found.inconsistency), percent(found.tie_share),
            percents(found.untied), plains(found.tau_b),
        )
        for column, found in one.agreements.items()
    ]  # fmt: skip
    yield Grid(f"Agreement with {name}", _HEADERS, rows, _NOTE)
    yield Picture(
        f"inconsistency-{one.reference}",
        f"Pairs on which each goes against {name}, with intervals. A red mark is what knowing "
        "nothing would score by the paper's count.",
        lambda: inconsistency_bars(one.agreements, one.selection.chosen),
    )
    yield from _recommendation(one, name)


def _recommendation(one: Consistency, reference: str) -> Iterator[Grid | Paragraph]:
    found = one.selection
    yield Grid(
        f"Recommended by {reference}: {', '.join(found.chosen) or 'none of the aspects'}",
        ("", "verdict", "why"),
        [(name, finding.verdict, finding.reason) for name, finding in found.findings.items()],
    )
    if found.by_paper is not None and found.by_paper not in found.chosen:
        yield Paragraph(
            f"By the paper's figure alone {found.by_paper} would be chosen: it has the lowest "
            "inconsistency where ties count as agreement.",
            is_caution=True,
        )
    for name, finding in found.findings.items():
        if finding.caution:
            yield Paragraph(f"{name}: {finding.caution}.", is_caution=True)


def _win_rates(result: SelectionResult) -> Grid:
    first, second = result.sides
    rows = [
        (name, f"{one.wins:g}", f"{one.losses:g}", f"{one.ties:g}", percents(one.rate))
        for name, one in (result.win_rates or {}).items()
    ]
    return Grid(
        f"Win rates of {first} over {second}",
        ("", "wins", "losses", "ties", "win rate"),
        rows,
        "Ties are left out of the win rate.",
    )
