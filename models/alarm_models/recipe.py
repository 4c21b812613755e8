"""The story of one reward: a holistic model, its aspects and a rule."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field, model_validator

from alarm_models.alignment import Placement
from alarm_models.assembly import AspectRule
from alarm_models.errors import RecipeError
from alarm_models.hierarchy import Hierarchy, Rule
from alarm_models.shaping import Shaping
from alarm_models.specs import ModelSpec
from alarm_models.template import FieldPattern

__all__ = ["AspectSpec", "Overrides", "Recipe"]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class HolisticSpec(_Table):
    """The model that judges whole completions, and the constants that normalise its score."""

    model: str
    weight: float = 1.0
    mean: float = 0.0
    std: float = Field(default=1.0, gt=0)


class HierarchySpec(_Table):
    """The rule of combination; the threshold counts in standard deviations."""

    rule: Rule = Rule.HIERARCHICAL
    threshold: float = 0.0


class AspectSpec(_Table):
    """A model's place in the reward: its weight, its shaping, and what maps scores to rewards."""

    model: str
    weight: float = 1.0
    shaping: Shaping = Shaping.SIGMOID
    placement: Placement | None = Field(default=None, description="else the model's kind's own")
    positive: float = 1.0
    negative: float = -1.0
    mean: float = 0.0
    std: float = Field(default=1.0, gt=0)
    scale: float = 1.0
    bias: float = 0.0


class Overrides(_Table):
    """What one request may change of a recipe."""

    rule: Rule | None = None
    threshold: float | None = None
    holistic_weight: float | None = None
    weights: Mapping[str, float] = Field(default_factory=dict)
    shaping: Shaping | None = None


class Recipe(_Table):
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

    @model_validator(mode="after")
    def _models_exist(self) -> Recipe:
        named = {"holistic.model": self.holistic.model}
        named |= {f"aspects.{name}.model": aspect.model for name, aspect in self.aspects.items()}
        for key, model in named.items():
            if model not in self.models:
                raise ValueError(f"{key} is {model!r}, but the models are {sorted(self.models)}")
        if self.models[self.holistic.model].kind == "segments":
            raise ValueError(f"holistic.model {self.holistic.model!r} judges segments, not wholes")
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

    def hierarchy_with(self, overrides: Overrides) -> Hierarchy:
        """Return the rule with its constants; raise `RecipeError` for a weight of no aspect."""
        unknown = sorted(set(overrides.weights) - set(self.aspects))
        if unknown:
            raise RecipeError(
                f"overrides.weights names {unknown}; recipe {self.name!r} has the aspects "
                f"{sorted(self.aspects)}"
            )
        own = {name: aspect.weight for name, aspect in self.aspects.items()}
        threshold, weight = overrides.threshold, overrides.holistic_weight
        return Hierarchy(
            rule=overrides.rule or self.hierarchy.rule,
            threshold=self.hierarchy.threshold if threshold is None else threshold,
            holistic_weight=self.holistic.weight if weight is None else weight,
            mean=self.holistic.mean,
            std=self.holistic.std,
            weights=own | dict(overrides.weights),
        )

    def fingerprint(self, models: Mapping[str, str], overrides: Overrides) -> str:
        """Digest the models' fingerprints and all constants, overrides included."""
        constants = self.model_dump_json(include={"holistic", "hierarchy", "aspects"})
        parts = f"{sorted(models.items())}|{constants}|{overrides.model_dump_json()}"
        return hashlib.sha256(parts.encode()).hexdigest()[:16]
