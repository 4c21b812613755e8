"""The recipe: its tables, per-request overrides and fingerprint."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from functools import partial
from graphlib import CycleError, TopologicalSorter
from typing import Any, Literal, TypeVar, get_type_hints

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    create_model,
    field_validator,
    model_validator,
)

from alarm_models.combination.all_rules import RULES, Rule, RuleParams, Shaping
from alarm_models.combination.overlong import OverlongSpec
from alarm_models.combination.rewards import AspectRule
from alarm_models.combination.rule_registry import CONSTANTS, DEFAULT_BASE, HOLISTIC
from alarm_models.combination.token_alignment import Placement
from alarm_models.errors import RecipeError, quoted
from alarm_models.preprocessing.templates import FieldPattern
from alarm_models.recipe.specs import KINDS, ModelSpec, Spec

__all__ = ["AspectSpec", "HierarchySpec", "HolisticSpec", "Overrides", "Recipe", "Table"]


class Table(BaseModel):
    """A table of a recipe; unknown keys, infinities and NaN are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


#: How the reward of a whole completion is spread over its tokens.
Dense = Literal["prefix"]

#: The segments after which `dense` cuts completions.
Segmenter = Literal["sentences", "subsentences", "steps", "turns"]

_DENSE = (
    "`prefix`: each segment gets what it adds to the score of the completion so far; for kinds "
    "`sequence` and `multi-objective`"
)
_SEGMENTER = "segments into which `dense` cuts the completion; default: `sentences`"


class HolisticSpec(Table):
    """The model that scores whole completions, and the constants that normalize its score."""

    model: str = Field(description="name of a model of the recipe")
    output: str | None = Field(default=None, description="output to use, if the model has several")
    weight: float = Field(default=1.0, description="factor of the normalized score in the reward")
    mean: float = Field(default=0.0, description="subtracted from the score")
    std: float = Field(default=1.0, gt=0, description="the score is divided by it after that")
    dense: Dense | None = Field(default=None, description=_DENSE)
    segmenter: Segmenter | None = Field(default=None, description=_SEGMENTER)


_T = TypeVar("_T", bound=Table)


def _with_constants(table: type[_T]) -> type[_T]:
    """Return the table with a key for each constant that `RuleParams` declares for rules."""
    hints = get_type_hints(RuleParams)
    keys: dict[str, Any] = {}
    for one in dataclasses.fields(RuleParams):
        if one.name not in CONSTANTS:
            continue
        constant = CONSTANTS[one.name]
        bounds = {"gt": constant.gt, "ge": constant.ge, "le": constant.le}
        field = partial(Field, **bounds, description=constant.description)
        hint = hints[one.name]
        if one.default_factory is dict:
            keys[one.name] = (hint, field(default_factory=dict))
        elif one.default == ():
            keys[one.name] = (hint, field(default=()))
        else:  # None: the recipe does not set it
            keys[one.name] = (hint | None, field(default=None))
    return create_model(
        table.__name__, __base__=table, __module__=table.__module__, __doc__=table.__doc__, **keys
    )


@_with_constants
class HierarchySpec(Table):
    """The rule that combines scores; `threshold` is in standard deviations."""

    rule: Rule = Field(default=Rule("hierarchical"), description="how scores become a reward")
    threshold: float = Field(
        default=0.0, description="normalized holistic score from which aspects count"
    )

    def constants(self) -> dict[str, Any]:
        """Return the rule constants that the recipe sets."""
        given = {name: getattr(self, name) for name in CONSTANTS}
        return {name: value for name, value in given.items() if value not in (None, (), {})}

    def require_constants(self, rule: Rule) -> None:
        """Raise `RecipeError` naming the constants that ``rule`` requires and that are missing."""
        given = self.constants()
        needed = [name for one in self._rule_and_base(rule) for name in RULES[one].requires]
        missing = [name for name in dict.fromkeys(needed) if name not in given]
        if missing:
            raise RecipeError(
                f"rule `{rule}` requires {' and '.join(f'hierarchy.{name}' for name in missing)}: "
                "set it in the recipe"
            )

    def _rule_and_base(self, rule: Rule) -> list[str]:
        """Return a rule, and the one that it starts from if there is one."""
        if "base" not in RULES[rule].constants:
            return [rule]
        base = getattr(self, "base", None) or DEFAULT_BASE
        if base not in RULES or RULES[base].compares_groups:
            able = ", ".join(f"`{one}`" for one in Rule if not RULES[one].compares_groups)
            raise RecipeError(f"hierarchy.base is {quoted(base)}: use one of {able}")
        return [rule, base]

    def can_spread_holistic(self, rule: Rule) -> bool:
        """Say whether a rule, and its base, can spread the holistic reward over tokens."""
        return all(RULES[one].can_spread_holistic for one in self._rule_and_base(rule))


class AspectSpec(Table):
    """An aspect: its model, its weight, and how scores become rewards."""

    model: str = Field(description="name of a model of the recipe")
    output: str | None = Field(default=None, description="output to use, if the model has several")
    weight: float = Field(default=1.0, description="factor of the aspect's reward; 0: not used")
    shaping: Shaping = Field(
        default=Shaping.SIGMOID,
        description="`sigmoid`: the sigmoid `s(v)` of each segment's value, as in the paper; "
        "`none`: the value; `centred`: `s(v) - s(0)`; `mean`: the mean of `s(v)` over the "
        "segments; `per_length`: their sum over the number of tokens",
    )
    placement: Placement | None = Field(
        default=None,
        description="tokens that get a segment's reward: its last one (`segment-ends`), every one "
        "(`tokens`), or the last one of its message (`turn-ends`); default: that of the model's "
        "kind",
    )
    positive: float = Field(default=1.0, description="value of a segment judged right")
    negative: float = Field(default=-1.0, description="value of a segment judged wrong")
    mean: float = Field(default=0.0, description="of scores: subtracted")
    std: float = Field(default=1.0, gt=0, description="of scores: divided by after that")
    scale: float = Field(default=1.0, description="of scores: multiplied by after that")
    bias: float = Field(default=0.0, description="of scores: added after that")
    dense: Dense | None = Field(default=None, description=_DENSE)
    segmenter: Segmenter | None = Field(default=None, description=_SEGMENTER)
    parents: Mapping[str, float] = Field(
        default_factory=dict,
        description="for rule `gear`: parent aspect, or `holistic` -> lambda in [0, 1], the share "
        "that remains if the parent fails",
    )
    requires: Mapping[str, float] = Field(
        default_factory=dict,
        description="for rule `conditioned`: aspect, or `holistic` -> level that it must reach",
    )


class Overrides(Table):
    """Per-request overrides of a recipe."""

    rule: Rule | None = Field(default=None, description="instead of `hierarchy.rule`")
    threshold: float | None = Field(default=None, description="instead of `hierarchy.threshold`")
    holistic_weight: float | None = Field(default=None, description="instead of `holistic.weight`")
    weights: Mapping[str, float] = Field(
        default_factory=dict, description="aspect -> weight instead of the recipe's"
    )
    shaping: Shaping | None = Field(
        default=None, description="instead of the shaping of every aspect"
    )


#: Maximum number of a request's wrong names that an error message lists.
_MAX_NAMED = 5


def _placement(spec: Spec) -> Placement:
    """Return where the rewards of a model are placed unless the aspect sets `placement`."""
    is_of_turns = getattr(spec, "segmenter", None) == "turns"
    return Placement.TURN_ENDS if is_of_turns else spec.placement


class Recipe(Table):
    """One holistic model, its aspects and a rule."""

    name: str = Field(
        min_length=1,
        max_length=200,
        pattern=r"^[\w.-]+$",
        description="in requests and metrics",
    )
    description: str = Field(default="", description="shown by `alarm recipes`")
    models: Mapping[str, ModelSpec] = Field(description="name -> model, see below")
    holistic: HolisticSpec = Field(description="the model of whole completions, see below")
    hierarchy: HierarchySpec = Field(
        default=HierarchySpec(), description="the rule and its constants, see below"
    )
    aspects: Mapping[str, AspectSpec] = Field(
        default_factory=dict, description="name -> aspect, see below"
    )
    fields: Mapping[str, str] = Field(
        default_factory=dict,
        description="field name -> regular expression whose group finds it in the prompt if a "
        "request omits it",
    )
    overlong: OverlongSpec | None = Field(
        default=None, description="what to do with completions at the policy's token limit"
    )
    group_timeout_s: float = Field(
        default=120.0,
        gt=0,
        le=86400,
        description="seconds that a group rule waits for samples that come in other requests",
    )
    parity: str | None = Field(
        default=None,
        description="file of samples with scores to reproduce before the recipe is served",
    )
    parity_tolerance: float = Field(default=1e-4, ge=0, description="largest difference allowed")
    parity_rewards: bool = Field(
        default=True, description="whether to compare rewards as well as scores"
    )

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
                raise ValueError(
                    f"{key} is {model!r}, which is not a model of the recipe: use one of "
                    f"{sorted(self.models)}"
                )
        spec = self.models[self.holistic.model]
        if not spec.judges_wholes:
            raise ValueError(
                f"holistic.model {self.holistic.model!r} scores only segments: use a model that "
                "scores whole completions"
            )
        if not (spec.has_score or self.holistic.output):
            raise ValueError(
                f"holistic.model {self.holistic.model!r} has several outputs: name one in "
                "holistic.output (`--set holistic.output=NAME`), or set "
                f"models.{self.holistic.model}.weights"
            )
        return self

    @model_validator(mode="after")
    def _rule_has_its_constants(self) -> Recipe:
        for key, value in self.hierarchy.constants().items():
            named = set(value) if CONSTANTS[key].names_aspects else set()
            unknown = sorted(named - set(self.aspects))
            if unknown:
                raise ValueError(
                    f"hierarchy.{key} names {unknown}, which are not aspects of the recipe: use "
                    f"names of {sorted(self.aspects)}"
                )
        try:
            self.hierarchy.require_constants(self.hierarchy.rule)
        except RecipeError as error:
            raise ValueError(str(error)) from error
        return self

    @model_validator(mode="after")
    def _aspects_depend_on_others(self) -> Recipe:
        for name, aspect in self.aspects.items():
            for key, named in (("parents", aspect.parents), ("requires", aspect.requires)):
                self._require_dependencies(f"aspects.{name}.{key}", name, named)
            for parent, share in aspect.parents.items():
                if not 0 <= share <= 1:
                    raise ValueError(
                        f"aspects.{name}.parents.{parent} is {share:g}: set a lambda from 0 to 1"
                    )
        try:
            graph = {name: aspect.parents for name, aspect in self.aspects.items()}
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            cycle = " -> ".join(reversed(error.args[1]))
            raise ValueError(
                f"aspects.*.parents have a cycle, {quoted(cycle)}: remove one of these parents"
            ) from error
        return self

    def _require_dependencies(self, key: str, name: str, named: Mapping[str, float]) -> None:
        """Raise `ValueError` unless an aspect depends on other aspects or the holistic score."""
        unknown = sorted(set(named) - set(self.aspects) - {HOLISTIC})
        if unknown:
            raise ValueError(
                f"{key} names {quoted(unknown)}, which are not aspects of the recipe: use names "
                f"of {sorted(self.aspects)}, or `{HOLISTIC}` for the holistic score"
            )
        if HOLISTIC in named and HOLISTIC in self.aspects:
            raise ValueError(
                f"{key} names `{HOLISTIC}`, which is both the holistic score and an aspect: rename "
                "the aspect"
            )
        if name in named:
            raise ValueError(f"{key} names the aspect itself: remove it")

    @model_validator(mode="after")
    def _dense_has_prefixes(self) -> Recipe:
        segmenters: dict[str, tuple[str, str]] = {}
        for table, spec in self._tables.items():
            if spec.dense is None:
                if spec.segmenter is not None:
                    raise ValueError(f'{table}.segmenter requires {table}.dense = "prefix"')
                continue
            model = self.models[spec.model]
            if not model.scores_prefixes:
                able = [f"`{kind}`" for kind, one in KINDS.items() if one.scores_prefixes]
                raise ValueError(
                    f"{table}.dense requires a model of kind {' or '.join(able)}, but "
                    f"{spec.model!r} is of kind `{model.kind}`, which cannot score an unfinished "
                    f"completion: remove {table}.dense"
                )
            if isinstance(spec, AspectSpec) and spec.placement is not None:
                raise ValueError(f"{table} has both dense and placement: remove one")
            own = spec.segmenter or "sentences"
            other, named = segmenters.setdefault(spec.model, (table, own))
            if named != own:
                raise ValueError(
                    f"{other} and {table} use the same model {spec.model!r} with different "
                    f"segmenters, {named} and {own}: use the same one"
                )
        try:
            self._require_spreading(self.hierarchy.rule)
        except RecipeError as error:
            raise ValueError(str(error)) from error
        return self

    @model_validator(mode="after")
    def _tokens_have_verdicts(self) -> Recipe:
        for name, aspect in self.aspects.items():
            model = self.models[aspect.model]
            if aspect.placement is Placement.TOKENS and model.grades_segments:
                raise ValueError(
                    f'aspects.{name}.placement is "tokens", which requires positive and negative '
                    f"segments, but segments of kind `{model.kind}` have scores: remove "
                    f"aspects.{name}.placement"
                )
        return self

    @model_validator(mode="after")
    def _rule_fits(self) -> Recipe:
        try:
            params = self.rule_params(Overrides())
        except RecipeError as error:
            raise ValueError(str(error)) from error
        spec = self.models[self.holistic.model]
        if params.definition.needs_reference and spec.kind == "compare":
            raise ValueError(
                f"rule `{params.rule}` scores the reference alone, which holistic.model "
                f"{self.holistic.model!r} of kind compare cannot: use method `reference` with "
                "another rule"
            )
        return self

    @property
    def _tables(self) -> dict[str, HolisticSpec | AspectSpec]:
        """The tables that name a model, by their dotted names."""
        aspects = {f"aspects.{name}": aspect for name, aspect in self.aspects.items()}
        return {"holistic": self.holistic} | aspects

    def _require_spreading(self, rule: Rule) -> None:
        """Raise `RecipeError` if holistic.dense is set and the rule cannot spread the reward."""
        if self.holistic.dense is not None and not self.hierarchy.can_spread_holistic(rule):
            able = ", ".join(f"`{one}`" for one in Rule if RULES[one].can_spread_holistic)
            raise RecipeError(
                f"holistic.dense requires a rule that adds up the holistic reward, and `{rule}` "
                f"does not: remove holistic.dense, or use one of {able}"
            )

    @property
    def prefix_segmenters(self) -> dict[str, str]:
        """The segmenter of each model whose scores of prefixes are needed."""
        return {
            spec.model: spec.segmenter or "sentences"
            for spec in self._tables.values()
            if spec.dense is not None
        }

    @property
    def field_patterns(self) -> dict[str, FieldPattern]:
        """The patterns of fields that are found in prompts."""
        found = {}
        for name, pattern in self.fields.items():
            try:
                found[name] = FieldPattern(pattern)
            except RecipeError as error:
                raise RecipeError(f"fields.{name}: {error}") from error
        return found

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
            aspect.placement or _placement(self.models[aspect.model]),
            is_dense=aspect.dense is not None,
        )

    def rule_params(self, overrides: Overrides) -> RuleParams:
        """Return the rule with its constants.

        Raises `RecipeError` for a weight of an unknown aspect, for missing constants, and for
        weights that the rule cannot use.
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
        self._require_spreading(rule)
        threshold, weight = overrides.threshold, overrides.holistic_weight
        params = RuleParams(
            rule=rule,
            threshold=spec.threshold if threshold is None else threshold,
            holistic_weight=self.holistic.weight if weight is None else weight,
            mean=self.holistic.mean,
            std=self.holistic.std,
            weights=own | dict(overrides.weights),
            spreads_holistic=self.holistic.dense is not None,
            parents={name: one.parents for name, one in self.aspects.items() if one.parents},
            requires={name: one.requires for name, one in self.aspects.items() if one.requires},
            **spec.constants(),
        )
        params.definition.validate(params)
        return params

    def fingerprint(self, models: Mapping[str, str], overrides: Overrides) -> str:
        """Digest the models' fingerprints and all constants, including overrides."""
        # Without defaults: a new option must not change the fingerprints of existing recipes.
        constants = self.model_dump_json(
            include={"holistic", "hierarchy", "aspects", "overlong"}, exclude_defaults=True
        )
        parts = f"{sorted(models.items())}|{constants}|{overrides.model_dump_json()}"
        return hashlib.sha256(parts.encode()).hexdigest()[:16]
