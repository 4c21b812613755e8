"""The registry of rules: their declarations, inputs and constants, and shaping."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, TypedDict, Unpack

from alarm_models.errors import RecipeError, SampleError, quoted

__all__ = [
    "CONSTANTS",
    "DEFAULT_BASE",
    "HOLISTIC",
    "ROUNDING",
    "RULES",
    "SHAPINGS",
    "AspectInput",
    "AspectsCount",
    "Constant",
    "RuleDefinition",
    "RuleInputs",
    "RuleParams",
    "RuleTraits",
    "Shaping",
    "TokenRewards",
    "apply_base",
    "apply_rule",
    "centred",
    "group_rule",
    "is_admitted",
    "normalize",
    "on_last_token",
    "require_no_negative_weight",
    "require_positive_weight",
    "require_valid_base",
    "sample_rule",
    "sigmoid",
    "validate_group_members",
    "validate_groups",
]

#: What an aspect's `parents` and `requires` call the holistic score.
HOLISTIC = "holistic"

#: The rule that rules with a base start from, unless a recipe names another.
DEFAULT_BASE = "weighted_sum"

#: Sums and quotients of floats that differ from a bound by less are on it.
ROUNDING = 1e-9

#: The rewards of one sample's tokens, ``[num_tokens]``, or why it has none.
TokenRewards = tuple[float, ...] | SampleError


@dataclass(frozen=True, slots=True)
class Constant:
    """A key of a recipe's ``[hierarchy]`` table that only some rules use.

    ``example`` is a value, for documentation and tests; ``gt``, ``ge`` and ``le`` are bounds.
    ``names_aspects`` is true if its items (or keys) are names of the recipe's aspects.
    """

    description: str
    example: object
    gt: float | None = None
    ge: float | None = None
    le: float | None = None
    names_aspects: bool = False


def _constant(default: Any, constant: Constant) -> Any:
    if isinstance(default, dict):
        return field(default_factory=dict, metadata={"constant": constant})
    return field(default=default, metadata={"constant": constant})


@dataclass(frozen=True, slots=True)
class RuleParams:
    """A rule by name, with the recipe's constants and one weight per aspect.

    The fields after ``weights`` are constants of individual rules. The keys of a recipe's
    ``[hierarchy]`` table and their types are derived from these fields; a rule declares which of
    them it requires. The defaults fill constants that a rule does not use. With
    ``spreads_holistic`` the holistic reward is spread over the prefixes of a completion if these
    have scores. ``parents`` and ``requires`` are the keys of that name of aspects: aspect -> parent
    -> lambda, and aspect -> other aspect -> level that it must reach.
    """

    rule: str
    threshold: float
    holistic_weight: float
    mean: float
    std: float
    weights: Mapping[str, float]
    temperature: float = _constant(1.0, Constant("width of the gate", 0.5, gt=0))
    floor: float = _constant(0.0, Constant("reward of a sample that misses a minimum", -5.0))
    minimums: Mapping[str, float] = _constant(
        {}, Constant("aspect -> level that it must reach", {"a": 0.5}, names_aspects=True)
    )
    order: tuple[str, ...] = _constant(
        (), Constant("aspects in order of priority", ("a", "b"), names_aspects=True)
    )
    group_size: int | None = _constant(
        None, Constant("number of samples per group, if all groups have the same", 2, ge=2)
    )
    beta: float = _constant(0.0, Constant("weight of the standard deviation", 0.5, ge=0))
    max_deviation: float | None = _constant(
        None, Constant("standard deviation above which a sample gets no reward", 2.0, ge=0)
    )
    base: str = _constant(
        DEFAULT_BASE, Constant("rule that gives the rewards to start from", "aspect_only")
    )
    pass_share: float = _constant(
        1.0, Constant("share of a group that must reach all minimums", 0.5, ge=0, le=1)
    )
    length_penalty: float = _constant(
        0.0, Constant("`alpha`, the strength of the length penalty", 0.3, ge=0)
    )
    length_weight: float = _constant(
        0.0,
        Constant(
            "weight of the length bonus if the samples above the mean have equal rewards", 0.4, ge=0
        ),
    )
    least_length_weight: float = _constant(
        0.0,
        Constant(
            "weight of the length bonus if their rewards vary as in the whole group", 0.1, ge=0
        ),
    )
    length_cap: float = _constant(
        1.0,
        Constant(
            "share of the mean length by which a sample must be shorter for the full bonus",
            0.5,
            gt=0,
            le=1,
        ),
    )
    spreads_holistic: bool = False
    parents: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    requires: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def definition(self) -> RuleDefinition:
        """The rule itself, with what its base needs if it has one."""
        rule = RULES[self.rule]
        if "base" not in rule.constants:
            return rule
        base = RULES[self.base]
        return replace(
            rule,
            accepts=(*rule.accepts, *base.constants),
            aspect_keys=base.aspect_keys,
            aspects=rule.aspects if "minimums" in rule.constants else base.aspects,
            needs_reference=base.needs_reference,
            uses_holistic=base.uses_holistic,
        )

    def needs_aspect(self, name: str) -> bool:
        """Say whether the rule may use an aspect.

        It may if the aspect has a weight or a minimum, or if another aspect depends on it.
        """
        if self.weights[name] != 0:
            return True
        if "minimums" in self.definition.constants and name in self.minimums:
            return True
        links = [getattr(self, key) for key in self.definition.aspect_keys]
        return any(name in others for link in links for others in link.values())


#: The constants by name, in the order of `RuleParams`.
CONSTANTS: Mapping[str, Constant] = {
    one.name: one.metadata["constant"] for one in fields(RuleParams) if "constant" in one.metadata
}


def normalize(score: float, params: RuleParams) -> float:
    """Return ``z``, the holistic score in standard deviations from its mean."""
    return (score - params.mean) / params.std


def is_admitted(z: float, params: RuleParams) -> bool:
    """Say whether a sample is at or past the threshold."""
    return z >= params.threshold


class Shaping(StrEnum):
    """The shapings that a recipe may name: how an aspect's raw values become rewards."""

    #: The paper's: ``s(v)`` for each segment.
    SIGMOID = "sigmoid"
    #: The raw values.
    NONE = "none"
    #: ``s(v) - s(0)``: negative for what is judged wrong.
    CENTRED = "centred"
    #: The mean of ``s(v)`` over the segments: each gets its share.
    MEAN = "mean"
    #: The sum of ``s(v)`` over the segments, divided by the completion's length in tokens.
    PER_LENGTH = "per_length"

    @property
    def is_sigmoid(self) -> bool:
        """Whether values are sigmoids before they are divided."""
        return self is Shaping.SIGMOID or self.divides

    @property
    def divides(self) -> bool:
        """Whether a segment's reward depends on the number of segments or tokens."""
        return self in (Shaping.MEAN, Shaping.PER_LENGTH)

    def divisor(self, num_values: int, num_tokens: int) -> int:
        """Return what each of a completion's shaped values is divided by to become a reward."""
        if self is Shaping.MEAN:
            return max(num_values, 1)
        return max(num_tokens, 1) if self is Shaping.PER_LENGTH else 1


def sigmoid(value: float) -> float:
    """Return ``1 / (1 + exp(-value))`` without overflow (the paper's shaping)."""
    if value >= 0:
        return 1 / (1 + math.exp(-value))
    power = math.exp(value)
    return power / (1 + power)


def centred(value: float) -> float:
    """Return ``s(value) - s(0)``, where ``s`` is the sigmoid."""
    return sigmoid(value) - 0.5


def _identity(value: float) -> float:
    return value


#: The monotone function of each shaping.
SHAPINGS: Mapping[Shaping, Callable[[float], float]] = {
    Shaping.SIGMOID: sigmoid,
    Shaping.NONE: _identity,
    Shaping.CENTRED: centred,
    Shaping.MEAN: sigmoid,
    Shaping.PER_LENGTH: sigmoid,
}


@dataclass(frozen=True, slots=True)
class AspectInput:
    """One aspect of one sample, as a rule sees it.

    ``rewards`` are its shaped rewards on the tokens, ``[num_tokens]``. ``value`` is their mean over
    the judged segments, or the single reward of the whole completion. ``level`` is the same before
    shaping. Both are None if nothing was judged.
    """

    rewards: Sequence[float]
    value: float | None
    level: float | None


@dataclass(frozen=True, slots=True)
class RuleInputs:
    """One sample, as a rule sees it.

    ``aspects`` has the aspects that count: none if the rule uses them only past the threshold and
    the sample is below it. ``num_tokens`` is 1 if only a scalar is requested. ``reference_z`` is
    the normalized holistic score of a reference completion, for rules that compare with one.
    ``group`` is the caller's name for the samples of one prompt. ``spread_z`` is ``z`` split over
    the tokens, ``[num_tokens]``; if it is None, all of ``z`` is on the last token.
    """

    z: float
    aspects: Mapping[str, AspectInput]
    num_tokens: int
    reference_z: float | None = None
    group: str | None = None
    spread_z: Sequence[float] | None = None
    #: The completion's number of tokens, or of words if the caller sent no tokens; only for rules
    #: that use it.
    length: int = 0
    length_is_in_words: bool = False

    def z_on_tokens(self) -> Sequence[float]:
        """Return each token's part of ``z``: ``[num_tokens]``."""
        return on_last_token(self.z, self.num_tokens) if self.spread_z is None else self.spread_z

    def weighted(self, params: RuleParams) -> Iterator[tuple[float, AspectInput]]:
        """Yield the aspects that have a weight, each with its weight."""
        for name, aspect in self.aspects.items():
            if params.weights[name] != 0:
                yield params.weights[name], aspect

    def passes(self, name: str, params: RuleParams) -> bool:
        """Say whether an aspect's level reaches its minimum.

        An aspect passes if it has no minimum or judged nothing.
        """
        minimum = params.minimums.get(name)
        return minimum is None or self._aspect_reaches(name, minimum)

    def reaches(self, name: str, level: float) -> bool:
        """Say whether an aspect, or the holistic score ``z``, reaches a level.

        An aspect that judged nothing does.
        """
        return self.z >= level if name == HOLISTIC else self._aspect_reaches(name, level)

    def _aspect_reaches(self, name: str, level: float) -> bool:
        aspect = self.aspects.get(name)
        return aspect is None or aspect.level is None or aspect.level >= level


SampleRule = Callable[[RuleInputs, RuleParams], tuple[float, ...]]
GroupRule = Callable[[Sequence[RuleInputs], RuleParams], list[TokenRewards]]


class AspectsCount(StrEnum):
    """For which samples a rule uses aspects."""

    ALWAYS = "always"
    WHEN_ADMITTED = "when admitted"
    NEVER = "never"

    def includes(self, *, admitted: bool) -> bool:
        """Say whether a sample's aspects count, by whether it is past the threshold."""
        return admitted if self is AspectsCount.WHEN_ADMITTED else self is AspectsCount.ALWAYS


class RuleTraits(TypedDict, total=False):
    """What a rule may declare besides its name, summary, formula and source."""

    #: Keys of ``[hierarchy]`` without which a recipe with this rule is refused.
    requires: tuple[str, ...]
    #: Keys of ``[hierarchy]`` that are optional.
    accepts: tuple[str, ...]
    #: Keys of `[aspects.*]` that it uses, such as `parents`.
    aspect_keys: tuple[str, ...]
    #: Raises `RecipeError` if the rule cannot be applied with these constants and weights.
    validate: Callable[[RuleParams], None]
    aspects: AspectsCount
    #: Whether it requires the holistic score of each sample's ``fields.reference``.
    needs_reference: bool
    #: Whether it normalizes over all samples of a request, and not only over its groups.
    normalizes_requests: bool
    #: Whether it uses the length of completions, or whether they have tokens.
    uses_length: bool
    #: Whether the reward is the sum of weighted parts, so that the parts can be reported.
    adds_up: bool
    #: Whether the holistic score is among the parts.
    uses_holistic: bool
    #: Whether the reward is linear in ``z``, so that ``z`` can be spread over tokens
    #: (`RuleInputs.z_on_tokens`).
    can_spread_holistic: bool


@dataclass(frozen=True, slots=True)
class RuleDefinition:
    """A rule, as used by recipes, requests, documentation and the combination of rewards.

    ``summary`` is a sentence, ``reward`` the formula; both are for docs/rules.md. `RuleTraits`
    explains the rest. ``apply`` takes the samples of one request and returns one result per sample,
    in order.
    """

    name: str
    summary: str
    reward: str
    source: str
    apply: GroupRule
    compares_groups: bool
    requires: tuple[str, ...] = ()
    accepts: tuple[str, ...] = ()
    aspect_keys: tuple[str, ...] = ()
    validate: Callable[[RuleParams], None] = lambda params: None
    aspects: AspectsCount = AspectsCount.ALWAYS
    needs_reference: bool = False
    normalizes_requests: bool = False
    uses_length: bool = False
    adds_up: bool = False
    uses_holistic: bool = True
    can_spread_holistic: bool = False

    @property
    def constants(self) -> tuple[str, ...]:
        """The keys of ``[hierarchy]`` that it uses."""
        return (*self.requires, *self.accepts)


#: Every rule by name, in the order of definition.
RULES: dict[str, RuleDefinition] = {}


def sample_rule(
    name: str, *, summary: str, reward: str, source: str, **traits: Unpack[RuleTraits]
) -> Callable[[SampleRule], SampleRule]:
    """Register a rule that looks at one sample at a time; see `RuleDefinition`.

    If the function raises `SampleError`, or arithmetic overflows, only that sample fails.
    """

    def register(function: SampleRule) -> SampleRule:
        def apply(samples: Sequence[RuleInputs], params: RuleParams) -> list[TokenRewards]:
            return [_apply_to_sample(function, inputs, params) for inputs in samples]

        _register(
            RuleDefinition(name, summary, reward, source, apply, compares_groups=False, **traits)
        )
        return function

    return register


def group_rule(
    name: str, *, summary: str, reward: str, source: str, **traits: Unpack[RuleTraits]
) -> Callable[[GroupRule], GroupRule]:
    """Register a rule that compares the samples of one group; see `RuleDefinition`."""

    def register(function: GroupRule) -> GroupRule:
        _register(
            RuleDefinition(name, summary, reward, source, function, compares_groups=True, **traits)
        )
        return function

    return register


def _register(rule: RuleDefinition) -> None:
    if rule.name in RULES:
        raise ValueError(f"there are two rules named {rule.name!r}")
    unknown = set(rule.constants) - {"threshold", *CONSTANTS}
    if unknown:
        raise ValueError(f"rule {rule.name!r} uses {sorted(unknown)}, which RuleParams lacks")
    RULES[rule.name] = rule


def _apply_to_sample(function: SampleRule, inputs: RuleInputs, params: RuleParams) -> TokenRewards:
    try:
        return function(inputs, params)
    except SampleError as error:
        return error
    except ArithmeticError:
        return SampleError("non_finite", "the rule's constants are so large that it overflows")


def require_positive_weight(params: RuleParams) -> None:
    """Raise `RecipeError` unless an aspect has a positive weight, by which the rule divides."""
    if not any(weight > 0 for weight in params.weights.values()):
        raise RecipeError(
            f"rule `{params.rule}` divides by the sum of the positive weights, but no aspect has "
            "one: set the weight of an aspect above 0"
        )


def require_no_negative_weight(params: RuleParams) -> None:
    """Raise `RecipeError` if an aspect or the holistic score has a negative weight."""
    weights = {f"aspects.{name}.weight": weight for name, weight in params.weights.items()}
    negative = [
        name
        for name, weight in (weights | {"holistic.weight": params.holistic_weight}).items()
        if weight < 0
    ]
    if negative:
        raise RecipeError(
            f"rule `{params.rule}` cannot use negative weights: set {negative[0]} to 0 or more, "
            "and turn the score around with `scale`"
        )


def require_valid_base(params: RuleParams) -> None:
    """Raise `RecipeError` if the base of a rule cannot be applied with these parameters."""
    RULES[params.base].validate(replace(params, rule=params.base))


def apply_base(samples: Sequence[RuleInputs], params: RuleParams) -> list[TokenRewards]:
    """Return what the rule ``params.base`` gives each sample, in order."""
    base = RULES[params.base]
    counted = [
        one
        if base.aspects.includes(admitted=is_admitted(one.z, params))
        else replace(one, aspects={})
        for one in samples
    ]
    return base.apply(counted, replace(params, rule=params.base))


def on_last_token(value: float, num_tokens: int) -> tuple[float, ...]:
    """Return token rewards that are 0 except on the last token: ``[num_tokens]``."""
    return (*[0.0] * (num_tokens - 1), value)


def apply_rule(samples: Sequence[RuleInputs], params: RuleParams) -> list[TokenRewards]:
    """Return the token rewards of each sample, or why it has none, in order."""
    return params.definition.apply(samples, params)


def validate_groups(groups: Sequence[str | None], params: RuleParams) -> list[SampleError | None]:
    """Return for each sample, by its group's name, why the rule cannot be applied, or None."""
    if params.definition.compares_groups:
        return validate_group_members(groups, params)
    return [None] * len(groups)


_TOGETHER = (
    "send all samples of a group in one request, or each with `group_size`; samples that fail do "
    "not count"
)


def validate_group_members(
    groups: Sequence[str | None], params: RuleParams
) -> list[SampleError | None]:
    """Return for each sample, by its group's name, why a group rule cannot compare it, or None."""
    sizes = Counter(groups)
    return [_group_error(name, sizes[name], params) for name in groups]


def _group_error(name: str | None, num_samples: int, params: RuleParams) -> SampleError | None:
    if name is None:
        problem = (
            "requires groups: send `group` with each sample, the same for all samples of a prompt"
        )
    elif num_samples < 2:
        problem = f"compares samples, but group {quoted(name)} has only one: {_TOGETHER}"
    elif params.group_size not in (None, num_samples):
        problem = (
            f"has hierarchy.group_size {params.group_size}, but group {quoted(name)} has "
            f"{num_samples} samples: {_TOGETHER}"
        )
    else:
        return None
    return SampleError("invalid_sample", f"rule `{params.rule}` {problem}")
