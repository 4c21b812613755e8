"""`alarm select`: which aspects agree with the holistic reward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from alarm_models.recipe.schema import Recipe
from alarm_models.study.agreement import Agreement, agreement, tau_b
from alarm_models.study.bootstrap import Resampling
from alarm_models.study.comparison import WinRate, win_rate
from alarm_models.study.pairs import Floats, Pairs, pairs_between, pairs_within, preferences
from alarm_models.study.selection import Selection, Verdict, select
from alarm_service.evaluation.dataset import Material
from alarm_service.evaluation.errors import StudyError
from alarm_service.evaluation.plots import inconsistency_bars
from alarm_service.evaluation.recipe_writer import Change
from alarm_service.evaluation.report import (
    Grid,
    Page,
    Paragraph,
    Picture,
    fingerprints,
    percent,
    percents,
    plains,
)
from alarm_service.evaluation.scoring import HOLISTIC, Column, Scores

__all__ = [
    "PEOPLE",
    "Consistency",
    "SelectionResult",
    "changes_of",
    "require_pairs",
    "select_aspects",
    "selection_page",
]

PEOPLE = "preferences"


@dataclass(frozen=True, slots=True)
class Consistency:
    """Agreement of every column with one reference, and the choice based on it."""

    reference: str
    agreements: Mapping[str, Agreement]
    selection: Selection


@dataclass(frozen=True, slots=True)
class SelectionResult:
    """The result of `select_aspects`.

    ``consistencies`` has one entry per reference: the holistic reward, and human preferences if the
    file has them. ``win_rates`` are of the first of two ``sides`` over the second: two policies, or
    the two completions of each prompt; None if there are not two. ``tau_b_over_all`` also compares
    completions of different prompts.
    """

    recipe: str
    fingerprints: Mapping[str, str]
    num_prompts: int
    num_completions: int
    num_left_out: int
    sides: Sequence[str]
    resampling: Resampling
    lower_is_better: Sequence[str]
    consistencies: Sequence[Consistency]
    win_rates: Mapping[str, WinRate] | None
    tau_b_over_all: Mapping[str, float]
    faults: Sequence[str]
    chosen_by: str

    @property
    def decisive(self) -> Consistency:
        """The comparison with the reference that decides."""
        return next(one for one in self.consistencies if one.reference == self.chosen_by)


def select_aspects(
    material: Material,
    recipe: Recipe,
    columns: Sequence[Column],
    resampling: Resampling,
    *,
    against: str,
    max_chosen: int,
    scores: Scores,
) -> SelectionResult:
    """Compare every column with the holistic reward, and with human preferences if given."""
    pairs, sides = _pairs(material), _named_sides(material)
    holistic = next(one for one in columns if one.name == HOLISTIC)
    others = [one for one in columns if one.name != HOLISTIC]
    references = [(HOLISTIC, preferences(holistic.oriented, pairs), pairs, others)]
    if material.preferred:
        judged = np.array([one.outcome for one in material.preferred])
        references.append((PEOPLE, judged, material.preferred_pairs, [holistic, *others]))
    return SelectionResult(
        recipe=recipe.name,
        fingerprints=scores.fingerprints,
        num_prompts=material.num_prompts,
        num_completions=len(material.samples),
        num_left_out=material.num_left_out,
        sides=sides,
        resampling=resampling,
        lower_is_better=[one.name for one in columns if one.is_lower_better],
        consistencies=[
            _consistency(name, reference, found, compared, resampling, max_chosen)
            for name, reference, found, compared in references
        ],
        win_rates={
            one.name: win_rate(preferences(one.oriented, pairs), pairs, resampling)
            for one in columns
        }
        if sides
        else None,
        tau_b_over_all={one.name: _tau(holistic, one) for one in others},
        faults=scores.faults,
        chosen_by=against,
    )


def require_pairs(material: Material, against: str) -> None:
    """Raise `StudyError` if there is nothing to compare; call before scoring."""
    _pairs(material)
    if against == PEOPLE and not material.preferred:
        raise StudyError("--against preferences: no line of the file has `preferences`")


def changes_of(result: SelectionResult, recipe: Recipe) -> dict[str, Change]:
    """Return the weights that make a recipe use only the chosen aspects."""
    found = result.decisive.selection
    changes = {}
    for name, spec in recipe.aspects.items():
        is_chosen = found.findings[name].verdict is Verdict.CHOSEN
        weight = (spec.weight or 1.0) if is_chosen else 0.0
        prefix = "chosen: " if is_chosen else "not chosen: "
        changes[f"aspects.{name}.weight"] = Change(weight, prefix + found.findings[name].reason)
    return changes


def _pairs(material: Material) -> Pairs:
    if len(material.policy_names) > 2:
        raise StudyError("select compares two policies, or the completions of one file")
    if len(material.policy_names) == 2:
        pairs = pairs_between(material.prompts, material.policies, 0, 1)
    else:
        pairs = pairs_within(material.prompts)
    if not len(pairs):
        raise StudyError("no prompt has two completions to compare")
    return pairs


def _consistency(
    name: str,
    reference: Floats,
    pairs: Pairs,
    columns: Sequence[Column],
    resampling: Resampling,
    max_chosen: int,
) -> Consistency:
    agreements = {
        one.name: agreement(reference, preferences(one.oriented, pairs), pairs, resampling)
        for one in columns
    }
    choosable = [one.name for one in columns if one.is_aspect]
    called = "the holistic reward" if name == HOLISTIC else "people"
    return Consistency(name, agreements, select(agreements, choosable, max_chosen, called))


def _named_sides(material: Material) -> tuple[str, ...]:
    """Return the names of the sides: two policies, or the first and second completion."""
    if len(material.policy_names) > 1:
        return material.policy_names
    counts = np.bincount(material.prompts)
    return ("the first", "the second") if set(counts.tolist()) == {2} else ()


def _tau(holistic: Column, other: Column) -> float:
    one, another = holistic.oriented, other.oriented
    known = ~(np.isnan(one) | np.isnan(another))
    return tau_b(one[known], another[known])


_HEADERS = ("", "pairs", "paper's inconsistency", "ties", "inconsistency, untied", "tau-b")
_NOTE = (
    "Inconsistency is how often it disagrees with the reference. The paper's figure counts ties as "
    "agreement. Chance is 50% of untied pairs, and a tau-b of 0."
)


def selection_page(result: SelectionResult) -> Page:
    """Build the report, with the deciding reference first."""
    ordered = sorted(result.consistencies, key=lambda one: one.reference != result.chosen_by)
    blocks: list[Paragraph | Grid | Picture] = [Paragraph(_subject(result))]
    blocks += [Paragraph(fault, is_caution=True) for fault in result.faults]
    for consistency in ordered:
        blocks += _consistency_table(consistency)
    if result.win_rates is not None:
        blocks.append(_win_rates(result))
    return Page(f"Aspects of {result.recipe}", blocks)


def _subject(result: SelectionResult) -> str:
    of_policies = f" of {' and '.join(result.sides)}" if result.sides else ""
    left_out = (
        f"; {result.num_left_out} prompts that not both policies answered are left out"
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


def _consistency_table(one: Consistency) -> Iterator[Grid | Paragraph | Picture]:
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
        f"Pairs in which each disagrees with {name}, with intervals. The red mark is the score of "
        "an unrelated aspect by the paper's count.",
        lambda: inconsistency_bars(one.agreements, one.selection.chosen),
    )
    yield from _recommendation(one, name)


def _recommendation(one: Consistency, reference: str) -> Iterator[Grid | Paragraph]:
    found = one.selection
    yield Grid(
        f"Recommended by {reference}: {', '.join(found.chosen) or 'none of the aspects'}",
        ("", "verdict", "reason"),
        [(name, finding.verdict, finding.reason) for name, finding in found.findings.items()],
    )
    if found.by_paper is not None and found.by_paper not in found.chosen:
        yield Paragraph(
            f"By the paper's figure alone {found.by_paper} would be chosen: it has the lowest "
            "inconsistency if ties count as agreement.",
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
        "The win rate excludes ties.",
    )
