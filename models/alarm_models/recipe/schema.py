"""Recipe, its tables, per-request overrides and the recipe's fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from alarm_models.combination.rewards import AspectRule
from alarm_models.combination.rules import Rule, RuleParams, Shaping
from alarm_models.combination.token_alignment import Placement
from alarm_models.errors import RecipeError, quoted
from alarm_models.preprocessing.templates import FieldPattern
from alarm_models.recipe.specs import ModelSpec, MultiObjectiveSpec

__all__ = ["AspectSpec", "HierarchySpec", "HolisticSpec", "Overrides", "Recipe", "Table"]


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
_REQUIRED_CONSTANTS = {
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
        lacking = [name for name in _REQUIRED_CONSTANTS.get(rule, ()) if not self._has(name)]
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


#: As many of a request's wrong names as one message tells.
_MAX_NAMED = 5


class Recipe(Table):
    """One holistic model, its aspects and a rule."""

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$")
    description: str = ""
    models: Mapping[str, ModelSpec]
    holistic: HolisticSpec
    hierarchy: HierarchySpec = HierarchySpec()
    aspects: Mapping[str, AspectSpec] = Field(default_factory=dict)
    fields: Mapping[str, str] = Field(
        default_factory=dict,
        description="field name -> pattern that finds it in the prompt when a caller leaves it out",
    )
    parity: str | None = Field(
        default=None, description="a file of samples and their scores, compared before it is served"
    )
    parity_tolerance: float = Field(default=1e-4, ge=0, description="how far they may differ")
    parity_rewards: bool = Field(default=True, description="whether rewards are compared too")

    @field_validator("parity")
    @classmethod
    def _none_where_empty(cls, parity: str | None) -> str | None:
        return parity or None

    @model_validator(mode="after")
    def _models_exist(self) -> Recipe:
        named = {"holistic.model": self.holistic.model}
        named |= {f"aspects.{name}.model": aspect.model for name, aspect in self.aspects.items()}
        for key, model in named.items():
            if model not in self.models:
                raise ValueError(f"{key} is {model!r}, but the models are {sorted(self.models)}")
        spec = self.models[self.holistic.model]
        if spec.kind == "segments":
            raise ValueError(f"holistic.model {self.holistic.model!r} judges segments, not wholes")
        if isinstance(spec, MultiObjectiveSpec) and not (
            spec.weights or spec.gate_at or self.holistic.output
        ):
            raise ValueError(
                f"holistic.model {self.holistic.model!r} gives several numbers: name one in "
                f"holistic.output, or weigh them in models.{self.holistic.model}.weights"
            )
        return self

    @model_validator(mode="after")
    def _rule_has_its_constants(self) -> Recipe:
        for key in ("minimums", "order"):
            unknown = sorted(set(getattr(self.hierarchy, key)) - set(self.aspects))
            if unknown:
                raise ValueError(
                    f"hierarchy.{key} names {unknown}, but the aspects are {sorted(self.aspects)}"
                )
        try:
            self.hierarchy.require_constants(self.hierarchy.rule)
        except RecipeError as error:
            raise ValueError(str(error)) from error
        return self

    @property
    def field_patterns(self) -> dict[str, FieldPattern]:
        """The patterns that find fields in prompts."""
        return {name: FieldPattern(pattern) for name, pattern in self.fields.items()}

    def aspect_rule(self, name: str, shaping: Shaping | None) -> AspectRule:
        """Return how an aspect's scores become rewards; ``shaping`` overrides its own."""
        aspect = self.aspects[name]
        return AspectRule(
            aspect.positive,
            aspect.negative,
            aspect.mean,
            aspect.std,
            aspect.scale,
            aspect.bias,
            shaping or aspect.shaping,
            aspect.placement or self.models[aspect.model].placement,
        )

    def rule_params(self, overrides: Overrides) -> RuleParams:
        """Return the rule with its constants.

        Raises `RecipeError` for a weight of no aspect, and for a rule whose constants lack.
        """
        unknown = [name for name in overrides.weights if name not in self.aspects]
        if unknown:
            first, num_more = sorted(unknown[:_MAX_NAMED]), len(unknown) - _MAX_NAMED
            more = f" and {num_more} more" if num_more > 0 else ""
            raise RecipeError(
                f"overrides.weights names {quoted(first)}{more}; recipe {self.name!r} has the "
                f"aspects {sorted(self.aspects)}"
            )
        own = {name: aspect.weight for name, aspect in self.aspects.items()}
        spec = self.hierarchy
        rule = overrides.rule or spec.rule
        spec.require_constants(rule)
        threshold, weight = overrides.threshold, overrides.holistic_weight
        return RuleParams(
            rule=rule,
            threshold=spec.threshold if threshold is None else threshold,
            holistic_weight=self.holistic.weight if weight is None else weight,
            mean=self.holistic.mean,
            std=self.holistic.std,
            weights=own | dict(overrides.weights),
            # A rule that wants one of these has it; the others never look.
            temperature=spec.temperature or 1.0,
            floor=spec.floor or 0.0,
            minimums=spec.minimums,
            order=spec.order,
            group_size=spec.group_size,
        )

    def fingerprint(self, models: Mapping[str, str], overrides: Overrides) -> str:
        """Digest the models' fingerprints and all constants, overrides included."""
        # Without defaults, so that a new option changes no fingerprint of who does not use it.
        constants = self.model_dump_json(
            include={"holistic", "hierarchy", "aspects"}, exclude_defaults=True
        )
        parts = f"{sorted(models.items())}|{constants}|{overrides.model_dump_json()}"
        return hashlib.sha256(parts.encode()).hexdigest()[:16]
