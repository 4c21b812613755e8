"""What trainers' modules share: settings, the reward source, the failure policy, components."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, Literal, TypeAlias, cast

from alarm_client._payloads import reward_payload
from alarm_client._transport import content_digest
from alarm_client.client import AlarmClient, AsyncAlarmClient
from alarm_client.errors import (
    AlarmError,
    InvalidRequest,
    NotFound,
    SampleFailed,
    TooLarge,
    Unauthorized,
)
from alarm_client.trainers._inputs import plain_samples, template_of
from alarm_client.trainers._shared_calls import Asker, SharedCalls
from alarm_client.types import (
    Aspects,
    Id,
    Overrides,
    Reward,
    RewardResult,
    Sample,
    SampleError,
    Score,
    ScoreResult,
)

OnFailure: TypeAlias = Literal["raise", "none", "group_mean"] | float


@dataclass(frozen=True, slots=True)
class TrainerDefaults:
    """What a trainer's hook allows, and what suits it where the user says nothing.

    `timeout`: seconds for one call, under the trainer's own limit. `takes_none`: whether the
    trainer skips a sample whose reward is None. `whole_groups`: what makes a call hold all the
    completions of a prompt, None where each call is for one sample. `same_keys`: whether each
    sample must log the same names as the others.
    `references`: the dataset columns that may hold the field `reference`, the first that is there
    counts. `group_column`: the column that names a prompt, where the trainer has one.
    """

    trainer: str
    timeout: float
    on_failure: OnFailure = "raise"
    takes_none: bool = False
    whole_groups: str | None = None
    same_keys: bool = False
    aspects: Aspects = "all"
    references: tuple[str, ...] = ()
    group_column: str | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """Where rewards come from, what is sent for them and what a failure becomes.

    `recipe`: a recipe of the server, its default one unless named; `overrides`: what to change
    of it. `model`: a model of the server, whose raw scores are the rewards, in place of a
    recipe. `aspects`: "all" computes every aspect so that it can be logged, "admitted" what the
    reward needs. `aspect_names`: the names to log, known before the first answer. `fields`: the
    server's field -> the dataset's column, None for the trainer's usual one. `group`: the
    column that tells prompts apart, None for the prompt itself. `template`: the policy's chat
    template, where trainers send it: a name, "plain" for none, or JSON of what stands before
    turns and ends them; detected where it is None. `timeout`: seconds of one call, retries
    included; `connect_timeout`: seconds in which the first answer must come. `on_failure`:
    "raise", "none", "group_mean" or the reward of a failed sample.
    """

    habits: TrainerDefaults
    url: str | None = field(repr=False)  # may hold a password
    api_key: str | None = field(repr=False)
    recipe: str | None
    model: str | None
    overrides: Overrides | None = field(hash=False)
    aspects: Aspects
    aspect_names: tuple[str, ...]
    fields: Mapping[str, str] | None = field(hash=False)
    group: str | None
    timeout: float
    connect_timeout: float
    on_failure: OnFailure
    template: str | None = None

    @property
    def trainer(self) -> str:
        """The trainer's name, for messages."""
        return self.habits.trainer


# A server that is started together with the trainer opens its port within this time.
CONNECT_TIMEOUT = 120.0

NAMES = frozenset({one.name for one in dataclasses.fields(Settings)} - {"habits"})


def read_settings(habits: TrainerDefaults, given: Mapping[str, Any] | None = None) -> Settings:
    """The settings that `given` names, else `ALARM_<NAME>`, else what suits the trainer.

    ValueError names the one that is wrong; `NAMES` are those that there are.
    """
    given = given or {}
    unknown = set(given) - NAMES
    if unknown:
        raise ValueError(
            f"{habits.trainer}: no such setting {sorted(unknown)}; there are {sorted(NAMES)}"
        )
    values = {name: _value(name, given) for name in NAMES}

    def read(name: str, reader: Callable[[Any], Any], fallback: Any) -> Any:
        return _read(name, values[name], reader, fallback)

    settings = Settings(
        habits=habits,
        url=values["url"],
        api_key=values["api_key"],
        recipe=read("recipe", _text, None),
        model=read("model", _text, None),
        overrides=read("overrides", _overrides, None),
        aspects=read("aspects", _aspects, habits.aspects),
        aspect_names=read("aspect_names", _names, ()),
        fields=read("fields", _fields, None),
        group=read("group", _text, None),
        timeout=read("timeout", _seconds, habits.timeout),
        connect_timeout=read("connect_timeout", _seconds, CONNECT_TIMEOUT),
        on_failure=read("on_failure", _policy, habits.on_failure),
        template=read("template", _template, None),
    )
    _check(settings)
    return settings


def _check(settings: Settings) -> None:
    habits, where, policy = settings.habits, settings.trainer, settings.on_failure
    if settings.recipe and settings.model:
        raise ValueError(f"{where}: set recipe or model, not both")
    if settings.overrides and settings.model:
        raise ValueError(f"{where}: overrides change a recipe; with model there is none to change")
    sees_groups = habits.whole_groups is not None
    takes = "'raise', 'group_mean' or a number" if sees_groups else "'raise' or a number"
    if policy == "none" and not habits.takes_none:
        raise ValueError(
            f"{where}: on_failure 'none' needs a trainer that skips samples, and this one "
            f"counts a null as 0 or fails on it; it takes {takes}"
        )
    if policy == "group_mean" and not sees_groups:
        raise ValueError(
            f"{where}: on_failure 'group_mean' needs calls that hold all the completions of a "
            f"prompt, and this trainer asks for one sample at a time; it takes {takes}"
        )
    needs_names = habits.same_keys and isinstance(policy, float)
    if needs_names and not (settings.aspect_names or settings.model):
        raise ValueError(
            f"{where} wants the same keys from every sample, so on_failure {policy} "
            f"needs aspect_names (or ALARM_ASPECT_NAMES), such as factuality,relevance"
        )


def _value(name: str, given: Mapping[str, Any]) -> Any:
    value = given.get(name)
    return (os.environ.get(f"ALARM_{name.upper()}") or None) if value is None else value


def _read(name: str, value: Any, read: Callable[[Any], Any], fallback: Any) -> Any:
    try:
        return fallback if value is None else read(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} (or ALARM_{name.upper()}): {error}; got {value!r}") from None


def _aspects(value: Any) -> Aspects:
    if value not in ("admitted", "all"):
        raise ValueError("must be 'admitted' or 'all'")
    return value  # type: ignore[no-any-return]  # one of two literals


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("must be a text")
    return value


def _names(value: Any) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else value
    is_many = isinstance(names, Sequence) and all(isinstance(name, str) for name in names)
    if not is_many or isinstance(names, bytes):
        raise TypeError("must be names, such as factuality,relevance")
    return tuple(name.strip() for name in names if name.strip())


def _fields(value: Any) -> dict[str, str]:
    """A mapping, its JSON, or `field=column,...`."""
    if isinstance(value, str) and not value.lstrip().startswith("{"):
        pairs = [pair.partition("=") for pair in value.split(",") if pair.strip()]
        value = {name.strip(): column.strip() for name, _, column in pairs}
    found = _object(value)
    if not all(isinstance(column, str) and name and column for name, column in found.items()):
        raise ValueError(
            "must name a dataset column for each field, such as reference=ground_truth"
        )
    return found


def _overrides(value: Any) -> Overrides:
    """A mapping or its JSON; what it may hold is the server's to say."""
    return cast(Overrides, _object(value))


def _object(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f"is not JSON ({error})") from None
    if not isinstance(value, Mapping):
        raise ValueError("must be an object")
    return {str(name): _plain(inner) for name, inner in value.items()}


def _plain(value: Any) -> Any:
    """What configuration libraries wrap, as JSON's own types."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(inner) for inner in value]
    return value


def _template(value: Any) -> str:
    if not isinstance(value, (str, Mapping)):
        raise TypeError("must be a name, or an object of what stands before turns and ends them")
    name = value if isinstance(value, str) else json.dumps(_plain(value), sort_keys=True)
    template_of(name)
    return name


def _seconds(value: Any) -> float:
    seconds = _number(value)
    if not 0 < seconds < math.inf:
        raise ValueError("must be seconds over 0")
    return seconds


def _policy(value: Any) -> OnFailure:
    if value in ("raise", "none", "group_mean"):
        return value  # type: ignore[no-any-return]  # one of three literals
    number = _number(value)
    if not math.isfinite(number):
        raise ValueError("must be 'raise', 'none', 'group_mean' or a finite number")
    return number


def _number(value: Any) -> float:
    """A number or its text; NaN for anything else, true and false among it."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.nan


# Rules that add up weighted parts, and those that count aspects past the threshold alone.
_SUMS = ("hierarchical", "weighted_sum", "holistic_only", "aspect_only")
_THRESHOLDS = ("hierarchical", "cascade")

# What every reward has beside its aspects.
BASE = ("reward", "holistic", "admitted", "failed")


def components(reward: Reward, aspect_names: Sequence[str]) -> dict[str, float]:
    """One finite number or NaN a name: the base names, then the aspects' in the given order.

    `holistic` is the normalized score, `admitted` and `failed` are 0 or 1, an aspect is its own
    reward before its weight; NaN is what was not computed.
    """
    values = {
        "reward": _or_nan(reward.reward),
        "holistic": math.nan if reward.holistic is None else reward.holistic.normalized,
        "admitted": _or_nan(reward.admitted),
        "failed": float(reward.reward is None),
    }
    for name in aspect_names:
        aspect = reward.aspects.get(name)
        values[name] = math.nan if aspect is None else aspect.reward
    return values


def summands(reward: Reward, hierarchy: Mapping[str, Any]) -> dict[str, float]:
    """What the holistic score and each aspect add to a reward, by the rule and its weights.

    Where the rule does more than add, what it starts from: the normalized holistic score and each
    aspect's reward without its weight. An aspect that does not count adds 0. Empty on failure.
    """
    if reward.reward is None or reward.holistic is None:
        return {}
    rule, weights = hierarchy.get("rule"), hierarchy.get("weights") or {}
    is_sum = rule in _SUMS
    counts = reward.admitted if rule in _THRESHOLDS else rule != "holistic_only"
    z = reward.holistic.normalized * (hierarchy.get("holistic_weight", 1.0) if is_sum else 1.0)
    found = {"holistic": 0.0 if rule == "aspect_only" else z}
    for name, aspect in reward.aspects.items():
        weight = weights.get(name, 1.0) if is_sum else 1.0
        found[name] = weight * aspect.reward if counts and aspect is not None else 0.0
    return found


def columns(rewards: Sequence[Reward], aspect_names: Sequence[str]) -> dict[str, list[float]]:
    """The components of many samples by name, a list as long as the samples each."""
    rows = [components(reward, aspect_names) for reward in rewards]
    return {name: [row[name] for row in rows] for name in (*BASE, *aspect_names)}


def means(parts: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The mean of each column over what it has; NaN where it has nothing."""
    return {name: _mean(values) for name, values in parts.items()}


def part_of(reward: Reward, part: str) -> float | None:
    """The reward itself, or its normalized holistic score, or an aspect's own reward by its name.

    None where that was not computed; ValueError where the recipe has no such aspect.
    """
    if part == "reward":
        return reward.reward
    if part == "holistic":
        return None if reward.holistic is None else reward.holistic.normalized
    if part not in reward.aspects:
        raise ValueError(f"the recipe has no aspect {part!r}; it has {sorted(reward.aspects)}")
    aspect = reward.aspects[part]
    return None if aspect is None else aspect.reward


class AspectNames:
    """The aspects to log: those the user named, else those that answers have shown so far."""

    def __init__(self, named: Iterable[str]) -> None:
        self._names = tuple(named)
        self._is_fixed = bool(self._names)

    def seen(self, rewards: Iterable[Reward]) -> tuple[str, ...]:
        """The names, after these answers; sorted, so that every process has them in one order."""
        if not self._is_fixed:
            found = {name for reward in rewards for name in reward.aspects}
            self._names = tuple(sorted(found | set(self._names)))
        return self._names


def _mean(values: Sequence[float]) -> float:
    present = [value for value in values if not math.isnan(value)]
    return sum(present) / len(present) if present else math.nan


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)


LOG = logging.getLogger("alarm_client.trainers")

# No policy hides these: the address, the key, a name or the request itself is wrong, and waiting
# does not mend it.
MISCONFIGURED = (Unauthorized, NotFound, InvalidRequest, TooLarge)

# Of a sample: the server cannot judge it as it was sent.
_INVALID = "invalid_sample"

# As many one-sample calls in a row with an invalid sample are no chance.
_MOST_INVALID = 16


def failed_call(
    error: AlarmError, num_samples: int, policy: OnFailure, *, has_answered: bool = True
) -> list[Reward]:
    """A reward without a number for each sample of a failed call, unless it is to be raised.

    It is raised where the policy says so, where no other call could do better, and where the
    server has never answered (`has_answered`): a run must not start on nothing.
    """
    # Of a failed call no group has a mean.
    is_raised = policy in ("raise", "group_mean")
    if is_raised or isinstance(error, MISCONFIGURED) or not has_answered:
        raise error
    reason = SampleError(error.code or type(error).__name__, str(error))
    return [Reward(None, None, None, None, None, {}, False, reason) for _ in range(num_samples)]


class InvalidCalls:
    """Tells misconfiguration, which makes every sample invalid, from a sample that is."""

    def __init__(self, habits: TrainerDefaults) -> None:
        self.habits = habits
        self._has_rewarded = False
        self._num_in_a_row = 0

    def checked(self, rewards: Sequence[Reward]) -> list[Reward]:
        """The rewards of a call, with advice in the messages of invalid samples.

        Raises SampleFailed where each sample of the call is invalid. A call of one sample says
        little: there it is raised until the first reward came, and after many in a row.
        """
        advised = [self._advised(reward) for reward in rewards]
        invalid = [one.error for one in advised if one.error and one.error.code == _INVALID]
        self._has_rewarded |= any(reward.reward is not None for reward in rewards)
        if not advised or len(invalid) < len(advised):
            self._num_in_a_row = 0
            return advised
        self._num_in_a_row += 1
        is_chance = len(advised) == 1 and self._has_rewarded
        if is_chance and self._num_in_a_row < _MOST_INVALID:
            return advised
        calls = f"of {self._num_in_a_row} calls in a row" if is_chance else "of this call"
        raise SampleFailed(
            f"every sample {calls} is invalid, which on_failure does not hide: "
            f"{self.habits.trainer} does not send what the server's recipe wants; the first: "
            f"{_INVALID}: {invalid[0].message}",
            code=_INVALID,
        )

    def _advised(self, reward: Reward) -> Reward:
        error = reward.error
        if error is None or error.code != _INVALID:
            return reward
        advice = _advice(error.message, self.habits)
        return replace(reward, error=replace(error, message=error.message + advice))


def scalars(
    rewards: Sequence[Reward],
    policy: OnFailure,
    part: str = "reward",
    groups: Sequence[Id] | None = None,
) -> list[float | None]:
    """One number a sample, its reward or a part of it; where it has none, what the policy says.

    `groups`: each sample's, for "group_mean"; without them all samples are one group. A part that
    was not computed for a sample is None, or the mean of its group's where some have it.
    """
    report(rewards, policy, groups)
    substitute = policy if isinstance(policy, float) else None
    values = [substitute if reward.reward is None else part_of(reward, part) for reward in rewards]
    return with_group_means(values, groups) if policy == "group_mean" else values


def numbers(
    rewards: Sequence[Reward], policy: OnFailure, groups: Sequence[Id] | None = None
) -> list[float]:
    """One number a sample, for trainers that take nothing else."""
    found = [value for value in scalars(rewards, policy, groups=groups) if value is not None]
    if len(found) != len(rewards):
        raise ValueError("this trainer needs a number a sample; on_failure cannot be 'none'")
    return found


def with_group_means(
    values: Sequence[float | None], groups: Sequence[Id] | None = None
) -> list[float | None]:
    """The values, with the mean of its group's in place of each None; None where all are."""
    groups = [None] * len(values) if groups is None else groups
    present: dict[Id, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        if value is not None:
            present.setdefault(group, []).append(value)
    means = {group: sum(some) / len(some) for group, some in present.items()}
    return [
        means.get(group) if value is None else value
        for value, group in zip(values, groups, strict=True)
    ]


def report(
    rewards: Sequence[Reward], policy: OnFailure, groups: Sequence[Id] | None = None
) -> None:
    """Raise or log, once for all of them, that samples have no reward.

    With "group_mean" a group in which all failed is raised.
    """
    failed = [reward for reward in rewards if reward.reward is None]
    if not failed:
        return
    error = failed[0].error or SampleError("no_segments", "the model found nothing to judge")
    message = (
        f"{len(failed)} of {len(rewards)} samples have no reward; "
        f"the first: {error.code}: {error.message}"
    )
    if policy == "raise":
        raise SampleFailed(message, code=error.code)
    if policy == "group_mean":
        _require_means(rewards, groups, message, error.code)
    taken = {"none": "skipped", "group_mean": "taken as the mean of their group"}
    LOG.warning("%s; %s", message, taken.get(str(policy), f"taken as {policy}"))


def _require_means(
    rewards: Sequence[Reward], groups: Sequence[Id] | None, message: str, code: str
) -> None:
    groups = [None] * len(rewards) if groups is None else groups
    rewarded = {
        group for reward, group in zip(rewards, groups, strict=True) if reward.reward is not None
    }
    for group in groups:
        if group not in rewarded:
            size = sum(other == group for other in groups)
            of_one = " Let the trainer's local batch hold whole groups." if size == 1 else ""
            raise SampleFailed(
                f"all {size} samples that this call has of a prompt failed, so that there is no "
                f"group mean to take: {message}.{of_one} With on_failure as a number the run goes "
                "on past such a prompt",
                code=code,
            )


def missing_field(message: str) -> str | None:
    """The field that the server misses in a sample, by what it says of it."""
    missing = re.search(r"\{(\w+)\}.*`fields`|`?fields\.(\w+)", message)
    return None if missing is None else missing.group(1) or missing.group(2)


def _advice(message: str, habits: TrainerDefaults) -> str:
    """What to set in a trainer, where the server says what it misses in a sample."""
    if re.search(r"\bgroups?\b", message):
        if habits.whole_groups is not None:
            return (
                ". Each call must hold all the completions of a prompt: "
                f"{habits.trainer} does so with {habits.whole_groups}. The setting group "
                "(ALARM_GROUP) names a column that tells prompts apart, else the prompt does"
            )
        return (
            f". {habits.trainer} asks for one sample at a time, so that no rule that compares the "
            "samples of a group (gdpo, mo_grpo) can be used with it: choose another rule"
        )
    name = missing_field(message)
    if name is None:
        return ""
    usual = ", ".join(habits.references)
    from_where = f" (without it, from the first that is there of: {usual})" if usual else ""
    return (
        f'. Set fields to {{"{name}": COLUMN}}, or ALARM_FIELDS={name}=COLUMN, where COLUMN is the '
        f"dataset's column that holds it{from_where if name == 'reference' else ''}"
    )


class RewardSource:
    """Rewards under one trainer's settings; safe to pickle, to fork and to use from any loop.

    A result has one reward a sample, in order. Where the policy is not to raise, a failed call
    gives rewards without a number; see `failure`. Rewards of several functions that name an
    `asker` each cost one call a batch.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._template = template_of(settings.template)
        self.aspect_names = AspectNames(settings.aspect_names)
        self._invalid = InvalidCalls(settings.habits)
        self._shared: SharedCalls[list[Reward]] = SharedCalls()
        self._hierarchy: Mapping[str, Any] | None = None
        self._client = AlarmClient(
            settings.url,
            api_key=settings.api_key,
            timeout=settings.timeout,
            connect_timeout=settings.connect_timeout,
        )
        self._async_client = AsyncAlarmClient(
            settings.url,
            api_key=settings.api_key,
            timeout=settings.timeout,
            connect_timeout=settings.connect_timeout,
        )

    def rewards(self, samples: Sequence[Sample], asker: Asker | None = None) -> list[Reward]:
        """The rewards, from this thread."""
        if not samples:
            return []
        samples = plain_samples(samples, self._template, self.settings.trainer)
        if asker is None:
            return self._rewards(samples)
        return self._shared.result(asker, _key(samples), partial(self._rewards, samples))

    async def arewards(self, samples: Sequence[Sample], asker: Asker | None = None) -> list[Reward]:
        """The rewards, awaited on the running loop."""
        if not samples:
            return []
        samples = plain_samples(samples, self._template, self.settings.trainer)
        if asker is None:
            return await self._arewards(samples)
        return await self._shared.aresult(asker, _key(samples), partial(self._arewards, samples))

    def hierarchy(self) -> Mapping[str, Any]:
        """The rule and the weights of the recipe that is asked, with the overrides.

        Empty where a model is asked, or the server does not tell them.
        """
        if self.settings.model is not None:
            return {}
        if self._hierarchy is None:
            try:
                recipes = self._client.models().recipes
            except AlarmError:
                return {}  # it is asked again with the next rewards
            self._hierarchy = _hierarchy(recipes, self.settings)
        return self._hierarchy

    def wait_ready(self, timeout: float = 600.0) -> None:
        """Return when the server's models are ready; past `timeout` raise the server's reason."""
        self._client.wait_ready(timeout)

    def close(self) -> None:
        """Close the blocking connections; awaited ones close with their loop."""
        self._client.close()

    def _rewards(self, samples: Sequence[Sample]) -> list[Reward]:
        given, order = self.settings, _group_by_group(samples)
        sent = [samples[index] for index in order]
        result: RewardResult | ScoreResult
        try:
            if given.model:
                result = self._client.score(sent, given.model)
            else:
                result = self._client.hierarchical_reward(
                    sent, given.recipe, given.overrides, given.aspects
                )
        except AlarmError as error:
            return self._failed(error, len(samples))
        return self._answered(result, sent, order)

    async def _arewards(self, samples: Sequence[Sample]) -> list[Reward]:
        given, order = self.settings, _group_by_group(samples)
        sent = [samples[index] for index in order]
        result: RewardResult | ScoreResult
        try:
            if given.model:
                result = await self._async_client.score(sent, given.model)
            else:
                result = await self._async_client.hierarchical_reward(
                    sent, given.recipe, given.overrides, given.aspects
                )
        except AlarmError as error:
            return self._failed(error, len(samples))
        return self._answered(result, sent, order)

    def _answered(
        self, result: RewardResult | ScoreResult, sent: Sequence[Sample], order: Sequence[int]
    ) -> list[Reward]:
        found = result.rewards if isinstance(result, RewardResult) else _from_scores(result, sent)
        placed = dict(zip(order, found, strict=True))
        return self._invalid.checked([placed[index] for index in range(len(order))])

    def _failed(self, error: AlarmError, num_samples: int) -> list[Reward]:
        has_answered = self._client.has_answered or self._async_client.has_answered
        policy = self.settings.on_failure
        return failed_call(error, num_samples, policy, has_answered=has_answered)


def get_reward_source(
    habits: TrainerDefaults, given: Mapping[str, Any] | None = None
) -> RewardSource:
    """The source for these settings; hooks that are plain functions share one a process."""
    return source_for(read_settings(habits, given))


def source_for(settings: Settings) -> RewardSource:
    """The source for these settings, the same one in this process."""
    return _cached(settings)


@lru_cache(maxsize=32)
def _cached(settings: Settings) -> RewardSource:
    return RewardSource(settings)


def _hierarchy(recipes: Sequence[Mapping[str, Any]], settings: Settings) -> Mapping[str, Any]:
    for recipe in recipes:
        if settings.recipe in (None, recipe.get("name")) and "weights" in recipe:
            overrides: Mapping[str, Any] = settings.overrides or {}
            weights = {**recipe["weights"], **overrides.get("weights", {})}
            return {**recipe, **overrides, "weights": weights}
    return {}


def _key(samples: Sequence[Sample]) -> str:
    """The same for the same samples: a digest of what is sent for them."""
    return content_digest(reward_payload(samples, None, None, "all").body)


def _group_by_group(samples: Sequence[Sample]) -> list[int]:
    """The samples' order on the wire: a group's together, so that a large call is cut between."""
    firsts: dict[Id, int] = {}
    for index, sample in enumerate(samples):
        if sample.group is not None:
            firsts.setdefault(sample.group, index)
    return sorted(range(len(samples)), key=lambda index: firsts.get(samples[index].group, index))


def _from_scores(result: ScoreResult, samples: Sequence[Sample]) -> list[Reward]:
    return [
        _from_score(score, sample) for score, sample in zip(result.scores, samples, strict=True)
    ]


def _from_score(score: Score, sample: Sample) -> Reward:
    """A model's raw score as a reward, on the last token where tokens were sent."""
    reward = Reward(score.id, score.score, None, None, None, {}, score.truncated, score.error)
    if sample.token_offsets is None or score.score is None:
        return reward
    num_tokens = len(sample.token_offsets)
    laid = (0.0,) * (num_tokens - 1) + (score.score,) if num_tokens else ()
    return replace(reward, token_rewards=laid)
