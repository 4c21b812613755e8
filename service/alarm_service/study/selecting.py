"""`alarm select`: how far each aspect agrees with a reference, and which to add to a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from alarm_models.recipe import Recipe
from alarm_models.study.agreement import Agreement, agreement, tau_b
from alarm_models.study.bootstrap import Resampling
from alarm_models.study.comparison import WinRate, win_rate
from alarm_models.study.pairs import Floats, Pairs, pairs_between, pairs_within, preferences
from alarm_models.study.selection import Selection, Verdict, select
from alarm_service.study.columns import HOLISTIC, Column
from alarm_service.study.errors import StudyError
from alarm_service.study.material import Material
from alarm_service.study.recipe_writing import Change
from alarm_service.study.scores import Scores

__all__ = [
    "PEOPLE",
    "Consistency",
    "SelectionResult",
    "changes_of",
    "require_pairs",
    "select_aspects",
]

PEOPLE = "preferences"


@dataclass(frozen=True, slots=True)
class Consistency:
    """How far everything agrees with one reference, and what is chosen by it."""

    reference: str
    agreements: Mapping[str, Agreement]
    selection: Selection


@dataclass(frozen=True, slots=True)
class SelectionResult:
    """A study of aspects.

    ``consistencies`` has one entry a reference: the holistic reward, and people where the file
    knows what they prefer. ``win_rates`` are of the first of two ``sides`` over the second: two
    policies, or the two completions that every prompt has; None where there are not two.
    ``tau_b_over_all`` compares completions with the holistic reward across prompts too.
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
        """The comparison with the reference that chooses."""
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
    """Compare every column with the holistic reward, and with people where they were asked."""
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
    """Raise `StudyError` where there is nothing to compare, before anything is scored."""
    _pairs(material)
    if against == PEOPLE and not material.preferred:
        raise StudyError("--against preferences: no line of the file has `preferences`")


def changes_of(result: SelectionResult, recipe: Recipe) -> dict[str, Change]:
    """Return the weights that make a recipe use what was chosen, and nothing else."""
    found = result.decisive.selection
    changes = {}
    for name, spec in recipe.aspects.items():
        is_chosen = found.findings[name].verdict is Verdict.CHOSEN
        weight = (spec.weight or 1.0) if is_chosen else 0.0
        prefix = "chosen: " if is_chosen else "left out: "
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
        raise StudyError("no prompt has two completions: there is nothing to compare")
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
    """Name what is compared: two policies, or the first and second of two completions each."""
    if len(material.policy_names) > 1:
        return material.policy_names
    counts = np.bincount(material.prompts)
    return ("the first", "the second") if set(counts.tolist()) == {2} else ()


def _tau(holistic: Column, other: Column) -> float:
    one, another = holistic.oriented, other.oriented
    known = ~(np.isnan(one) | np.isnan(another))
    return tau_b(one[known], another[known])
