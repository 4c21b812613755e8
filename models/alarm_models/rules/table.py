"""Which rule is which function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from alarm_models.errors import SampleError
from alarm_models.hierarchy import Hierarchy, Rule
from alarm_models.rules.groups import Tokens, gdpo, group_faults, mo_grpo
from alarm_models.rules.parts import Parts
from alarm_models.rules.scalars import log_sigmoid, minimum, product
from alarm_models.rules.sums import cascade, par, soft_gate, sum_counted, veto

__all__ = ["combine_all", "faults"]

#: Rules that look at one sample at a time.
_ALONE: Mapping[Rule, Callable[[Parts, Hierarchy], tuple[float, ...]]] = {
    Rule.HIERARCHICAL: sum_counted,
    Rule.WEIGHTED_SUM: sum_counted,
    Rule.HOLISTIC_ONLY: sum_counted,
    Rule.ASPECT_ONLY: sum_counted,
    Rule.SOFT_GATE: soft_gate,
    Rule.CASCADE: cascade,
    Rule.VETO: veto,
    Rule.PRODUCT: product,
    Rule.MINIMUM: minimum,
    Rule.PAR: par,
    Rule.LOG_SIGMOID: log_sigmoid,
}

#: Rules that compare the samples of a group.
_TOGETHER: Mapping[Rule, Callable[[Sequence[Parts], Hierarchy], list[Tokens]]] = {
    Rule.GDPO: gdpo,
    Rule.MO_GRPO: mo_grpo,
}


def combine_all(samples: Sequence[Parts], hierarchy: Hierarchy) -> list[Tokens]:
    """Return the rewards of each sample's tokens, or why it has none, in order."""
    if hierarchy.rule in _TOGETHER:
        return _TOGETHER[hierarchy.rule](samples, hierarchy)
    return [_alone(parts, hierarchy) for parts in samples]


def faults(groups: Sequence[str | None], hierarchy: Hierarchy) -> list[SampleError | None]:
    """Say of samples, by their groups' names, which the rule cannot serve whatever they score."""
    if hierarchy.rule in _TOGETHER:
        return group_faults(groups, hierarchy)
    return [None] * len(groups)


def _alone(parts: Parts, hierarchy: Hierarchy) -> Tokens:
    try:
        return _ALONE[hierarchy.rule](parts, hierarchy)
    except SampleError as error:
        return error
    except ArithmeticError:
        return SampleError("non_finite", "the rule's constants are so large that it overflows")
