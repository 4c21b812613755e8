"""The story of one reward: a holistic model, its aspects and a rule."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from pydantic import Field, field_validator, model_validator

from alarm_models.assembly import AspectRule
from alarm_models.errors import RecipeError, quoted
from alarm_models.hierarchy import Hierarchy
from alarm_models.recipe_tables import AspectSpec, HierarchySpec, HolisticSpec, Overrides, Table
from alarm_models.shaping import Shaping
from alarm_models.specs import ModelSpec, MultiObjectiveSpec
from alarm_models.texts.template import FieldPattern

__all__ = ["Recipe"]


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

    def hierarchy_with(self, overrides: Overrides) -> Hierarchy:
        """Return the rule with its constants.

        Raises `RecipeError` for a weight of no aspect, and for a rule whose constants lack.
        """
        unknown = sorted(set(overrides.weights) - set(self.aspects))
        if unknown:
            raise RecipeError(
                f"overrides.weights names {quoted(unknown)}; recipe {self.name!r} has the aspects "
                f"{sorted(self.aspects)}"
            )
        own = {name: aspect.weight for name, aspect in self.aspects.items()}
        spec = self.hierarchy
        rule = overrides.rule or spec.rule
        spec.require_constants(rule)
        threshold, weight = overrides.threshold, overrides.holistic_weight
        return Hierarchy(
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
