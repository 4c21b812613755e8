"""One number a sample for a trainer that takes no more, and what that number is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from alarm_models.cancellation import check_cancelled
from alarm_models.errors import SampleError, quoted
from alarm_models.hierarchy import Hierarchy, Rule, counts_aspects
from alarm_models.recipe import Recipe
from alarm_models.recipe_tables import Overrides
from alarm_models.sample import Reward, Sample, Score
from alarm_service.catalog import Catalog, ServedModel
from alarm_service.compat.splitting import SplitError, Texts
from alarm_service.engine import Engine
from alarm_service.errors import Invalid, NotFound, SampleFailed
from alarm_service.scheduling.admission import estimate_tokens
from alarm_service.scheduling.caller import INTERNAL, Caller
from alarm_service.story import reward_samples

__all__ = ["OWN_PARTS", "Number", "Numbers", "find", "number_samples", "split_each"]

Target = Recipe | ServedModel
_T = TypeVar("_T")

#: The rules that add up weighted parts.
_SUMS = (Rule.HIERARCHICAL, Rule.WEIGHTED_SUM, Rule.HOLISTIC_ONLY, Rule.ASPECT_ONLY)

_TRUNCATED = "truncated_samples"
#: What every recipe's number has beside its aspects.
OWN_PARTS = ("holistic", "holistic_score", "admitted", _TRUNCATED)


@dataclass(frozen=True, slots=True)
class Number:
    """A sample's reward, and its parts by name.

    Of a recipe the parts `holistic` and each aspect's name say what that adds to the reward: their
    sum is the reward. Where a rule does more than add, they are what it starts from: the normalised
    holistic score and each aspect's reward without its weight. A model's number is its score and
    has no such parts.
    """

    value: float
    parts: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Numbers:
    """One number a sample, in order, what they cost, and the recipe or model they are from."""

    source: str
    part_names: Sequence[str]
    numbers: Sequence[Number]
    num_tokens: int

    @property
    def values(self) -> list[float]:
        """The numbers alone."""
        return [number.value for number in self.numbers]


def find(catalog: Catalog, name: str | None) -> Target:
    """Return the recipe of that name, else the model; without a name the default recipe."""
    name = name and name.strip("/")
    if name is None or name in catalog.recipes:
        return catalog.recipe(name)
    try:
        return catalog.model(name)
    except NotFound:
        names = ", ".join([*catalog.recipes, *catalog.models])
        raise NotFound(f"no recipe or model {quoted(name)}; there are {names}") from None


def split_each(texts: Sequence[object], split: Callable[[int], Texts], name: str) -> list[Texts]:
    """Split each text by its index; raise `Invalid` that names the first that cannot be."""
    splits = []
    for index in range(len(texts)):
        check_cancelled()
        try:
            splits.append(split(index))
        except SplitError as error:
            raise Invalid(f"{name}[{index}] cannot be split: {error}") from error
    return splits


async def number_samples(
    engine: Engine,
    name: str | None,
    samples: Sequence[Sample],
    field: str,
    caller: Caller = INTERNAL,
) -> Numbers:
    """Give each sample its number, by the recipe or model of that name.

    A trainer has no way to take a null, and a made-up number would be a wrong reward: so a sample's
    failure is the whole call's, `SampleFailed`, and says which of the ``field`` it is. Where the
    queue is full the call waits for room, since trainers give up after a few tries.
    """
    await engine.admission.until_room(estimate_tokens(samples), caller)
    target = find(engine.catalog, name)
    if isinstance(target, Recipe):
        rewards = await reward_samples(
            engine, target.name, samples, Overrides(), "admitted", caller
        )
        recipe = rewards.recipe
        of_reward = partial(_of_reward, hierarchy=recipe.hierarchy_with(Overrides()))
        return Numbers(
            recipe.name,
            [*recipe.aspects, *OWN_PARTS],
            _each(rewards.rewards, of_reward, field),
            rewards.num_tokens,
        )
    scores = await engine.score(target.key, samples, caller)
    return Numbers(
        scores.model, [_TRUNCATED], _each(scores.outcomes, _of_score, field), scores.num_tokens
    )


def _each(
    outcomes: Sequence[_T | SampleError], number: Callable[[_T], Number], name: str
) -> list[Number]:
    numbers = []
    for index, outcome in enumerate(outcomes):
        try:
            if isinstance(outcome, SampleError):
                raise outcome
            numbers.append(number(outcome))
        except SampleError as error:
            raise SampleFailed(error.code, f"{name}[{index}]: {error.message}") from error
    return numbers


def _of_score(score: Score) -> Number:
    if score.value is None:
        raise SampleError("invalid_sample", "the completion has no segment that could be judged")
    return Number(score.value, {_TRUNCATED: float(score.truncated)})


def _of_reward(reward: Reward, hierarchy: Hierarchy) -> Number:
    z = reward.holistic_normalized
    counts = counts_aspects(z, hierarchy)
    is_sum = hierarchy.rule in _SUMS
    parts = {
        name: (hierarchy.weights[name] if is_sum else 1.0) * aspect.reward
        if counts and aspect is not None
        else 0.0
        for name, aspect in reward.aspects.items()
    }
    weight = hierarchy.holistic_weight if is_sum else 1.0
    holistic = 0.0 if hierarchy.rule is Rule.ASPECT_ONLY else weight * z
    own = (holistic, reward.holistic_score, float(reward.admitted), float(reward.truncated))
    return Number(reward.reward, parts | dict(zip(OWN_PARTS, own, strict=True)))
