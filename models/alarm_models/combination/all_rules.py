"""All registered rules, and the enum of their names that validates recipes and requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum

from alarm_models.combination import group_rules, sample_rules
from alarm_models.combination.group_rules import gdpo, mo_grpo
from alarm_models.combination.rule_registry import (
    RULES,
    SHAPINGS,
    AspectInput,
    RuleInputs,
    RuleParams,
    Shaping,
    apply_rule,
    is_admitted,
    normalize,
    on_last_token,
    sigmoid,
    validate_groups,
)
from alarm_models.combination.sample_rules import (
    cascade,
    log_sigmoid,
    minimum,
    par,
    product,
    soft_gate,
    sum_of_counted,
    veto,
)
from alarm_models.errors import SampleError

__all__ = [
    "RULES",
    "SHAPINGS",
    "AspectInput",
    "Rule",
    "RuleInputs",
    "RuleParams",
    "Shaping",
    "apply_rule",
    "aspects_apply",
    "cascade",
    "gdpo",
    "group_rules",
    "hierarchical_sum",
    "is_admitted",
    "log_sigmoid",
    "minimum",
    "mo_grpo",
    "needs_aspect",
    "needs_reference",
    "normalize",
    "on_last_token",
    "par",
    "product",
    "sample_rules",
    "sigmoid",
    "soft_gate",
    "sum_of_counted",
    "validate_groups",
    "veto",
]


class Rule(StrEnum):
    """How the holistic reward and the aspects are combined."""

    # One member per registered rule, such as HIERARCHICAL = "hierarchical"; group rules come last.
    locals().update(
        {
            rule.name.upper(): rule.name
            for rule in sorted(RULES.values(), key=lambda rule: rule.compares_groups)
        }
    )


def aspects_apply(z: float, params: RuleParams) -> bool:
    """Say whether the aspects of a sample with this ``z`` count for its reward."""
    return params.definition.aspects.includes(admitted=is_admitted(z, params))


def needs_aspect(name: str, params: RuleParams) -> bool:
    """Say whether the rule uses an aspect; see `RuleParams.needs_aspect`."""
    return params.needs_aspect(name)


def needs_reference(params: RuleParams) -> bool:
    """Say whether the rule compares with a reference completion."""
    return params.definition.needs_reference


def hierarchical_sum(
    z: float, aspects: Mapping[str, Sequence[float]], params: RuleParams, num_tokens: int
) -> tuple[float, ...]:
    """Return the token rewards of one sample, ``[num_tokens]``, from numbers alone.

    ``aspects`` has shaped rewards, ``[num_tokens]`` each. For a scalar reward, use one token.
    Raises `SampleError`.
    """
    counted = {
        name: AspectInput(values, None, None)
        for name, values in aspects.items()
        if aspects_apply(z, params)
    }
    (rewards,) = apply_rule([RuleInputs(z, counted, num_tokens)], params)
    if isinstance(rewards, SampleError):
        raise rewards
    return rewards
