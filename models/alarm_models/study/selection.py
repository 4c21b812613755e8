"""Selects the aspects to add to a holistic reward, with a one-sentence reason for each."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

from alarm_models.study.agreement import Agreement

__all__ = ["Finding", "Selection", "Verdict", "select"]

#: At or above this share of ties, the paper's figure is reported as misleading.
_MANY_TIES = 0.1


class Verdict(StrEnum):
    """The verdict on an aspect; `AGREES` is a candidate that was not chosen, or a baseline."""

    CHOSEN = "chosen"
    AGREES = "agrees"
    UNCLEAR = "unclear"
    OPPOSES = "opposes"
    SILENT = "silent"


@dataclass(frozen=True, slots=True)
class Finding:
    """The finding on one aspect; ``caution`` is set where the paper's figure misleads."""

    verdict: Verdict
    reason: str
    caution: str | None


@dataclass(frozen=True, slots=True)
class Selection:
    """A finding per aspect, the chosen aspects, best first, and the paper's choice."""

    findings: Mapping[str, Finding]
    chosen: tuple[str, ...]
    by_paper: str | None


def select(
    agreements: Mapping[str, Agreement],
    choosable: Collection[str],
    max_chosen: int,
    reference: str = "the holistic reward",
) -> Selection:
    """Choose at most ``max_chosen`` aspects.

    Only an aspect whose inconsistency among untied pairs lies below 50% with its whole interval
    is chosen; of those, the ones with the highest tau-b, which neither counts ties as agreement nor
    ignores them. Names that are not ``choosable`` are baselines: evaluated, never chosen.
    ``reference`` is how the sentences refer to the reward that all are compared with.
    """
    ranked = sorted(agreements, key=lambda name: -_or_lowest(agreements[name].tau_b.value))
    verdicts = {name: _verdict(agreements[name]) for name in ranked}
    agreeing = [name for name in ranked if verdicts[name] is Verdict.AGREES and name in choosable]
    chosen = tuple(agreeing[:max_chosen])
    verdicts |= dict.fromkeys(chosen, Verdict.CHOSEN)
    findings = {
        name: Finding(
            verdicts[name],
            _reason(name, agreements[name], verdicts[name], chosen, reference),
            _caution(agreements[name]),
        )
        for name in agreements
    }
    measured = [name for name in agreements if name in choosable and agreements[name].num_pairs]
    by_paper = min(measured, key=lambda name: agreements[name].inconsistency, default=None)
    return Selection(findings, chosen, by_paper)


def _verdict(one: Agreement) -> Verdict:
    if math.isnan(one.untied.value):
        return Verdict.SILENT
    if one.untied.lies_below(0.5):
        return Verdict.AGREES
    return Verdict.OPPOSES if one.untied.lies_above(0.5) else Verdict.UNCLEAR


def _reason(
    name: str, one: Agreement, verdict: Verdict, chosen: tuple[str, ...], reference: str
) -> str:
    decided = f"of the {one.num_pairs - one.num_tied} pairs that it does not tie"
    share = f"{one.untied.value:.1%} [{one.untied.low:.1%}, {one.untied.high:.1%}]"
    if verdict is Verdict.UNCLEAR and math.isnan(one.untied.low):
        return (
            f"disagrees with {reference} in {one.untied.value:.1%} {decided}: too few prompts to "
            "tell from chance"
        )
    match verdict:
        case Verdict.SILENT:
            return f"ties every pair that {reference} does not tie"
        case Verdict.OPPOSES:
            return f"disagrees with {reference} in {share} {decided}: more often than chance"
        case Verdict.UNCLEAR:
            return (
                f"disagrees with {reference} in {share} {decided}: not distinguishable from chance"
            )
        case Verdict.CHOSEN:
            place = (
                "the highest of those that agree"
                if name == chosen[0]
                else f"next after {chosen[0]}'s"
            )
            return (
                f"disagrees with {reference} in only {share} {decided}; "
                f"its tau-b of {one.tau_b.value:.2f} is {place}"
            )
        case Verdict.AGREES:
            return f"disagrees with {reference} in only {share} {decided}, but is not chosen"


def _caution(one: Agreement) -> str | None:
    if not one.tie_share >= _MANY_TIES or math.isnan(one.untied.value):
        return None
    return (
        f"the paper's {one.inconsistency:.1%} counts {one.tie_share:.1%} of ties as agreement; "
        f"an unrelated aspect with as many ties would score {one.by_chance:.1%}"
    )


def _or_lowest(value: float) -> float:
    return -math.inf if math.isnan(value) else value
