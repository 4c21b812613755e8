"""The tables of a recipe beside its models: what is written in each, and what may be changed."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

from alarm_models.alignment import Placement
from alarm_models.errors import RecipeError
from alarm_models.hierarchy import Rule
from alarm_models.shaping import Shaping

__all__ = ["AspectSpec", "HierarchySpec", "HolisticSpec", "Overrides", "Table"]


class Table(BaseModel):
    """A table that refuses keys it does not know, and numbers that are none."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class HolisticSpec(Table):
    """The model that judges whole completions, and the constants that normalise its score."""

    model: str
    output: str | None = Field(default=None, description="of a model that gives several numbers")
    weight: float = 1.0
    mean: float = 0.0
    std: float = Field(default=1.0, gt=0)


#: The constants that a rule cannot do without.
_WANTED = {
    Rule.SOFT_GATE: ("temperature",),
    Rule.CASCADE: ("order", "minimums"),
    Rule.VETO: ("floor", "minimums"),
}


class HierarchySpec(Table):
    """The rule of combination; the threshold counts in standard deviations."""

    rule: Rule = Rule.HIERARCHICAL
    threshold: float = 0.0
    temperature: float | None = Field(default=None, gt=0, description="`soft_gate`: its width")
    floor: float | None = Field(default=None, description="`veto`: what a vetoed sample gets")
    minimums: Mapping[str, float] = Field(
        default_factory=dict,
        description="`veto`, `cascade`: aspect -> the level that it must reach",
    )
    order: tuple[str, ...] = Field(default=(), description="`cascade`: aspects by priority")
    group_size: int | None = Field(
        default=None, ge=2, description="`gdpo`, `mo_grpo`: samples a group, where all have as many"
    )

    def require_constants(self, rule: Rule) -> None:
        """Raise `RecipeError`, naming what lacks, unless all is here that a rule wants."""
        lacking = [name for name in _WANTED.get(rule, ()) if not self._has(name)]
        if lacking:
            raise RecipeError(
                f"rule `{rule}` wants {' and '.join(f'hierarchy.{name}' for name in lacking)}"
            )

    def _has(self, name: str) -> bool:
        value = getattr(self, name)
        return value is not None and value not in ((), {})


class AspectSpec(Table):
    """A model's place in the reward: its weight, its shaping, and what maps scores to rewards."""

    model: str
    output: str | None = Field(default=None, description="of a model that gives several numbers")
    weight: float = 1.0
    shaping: Shaping = Shaping.SIGMOID
    placement: Placement | None = Field(default=None, description="else the model's kind's own")
    positive: float = 1.0
    negative: float = -1.0
    mean: float = 0.0
    std: float = Field(default=1.0, gt=0)
    scale: float = 1.0
    bias: float = 0.0


class Overrides(Table):
    """What one request may change of a recipe."""

    rule: Rule | None = None
    threshold: float | None = None
    holistic_weight: float | None = None
    weights: Mapping[str, float] = Field(default_factory=dict)
    shaping: Shaping | None = None
