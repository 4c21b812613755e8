"""Shared by the trainers' routes: body schemas, text options, scalar rewards, the call."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, TypeVar

import structlog
from fastapi import Depends, Path, Query, Request
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError

from alarm_models.cancellation import check_cancelled
from alarm_models.combination.all_rules import RuleParams
from alarm_models.errors import SampleError, quoted
from alarm_models.recipe.schema import Overrides, Recipe
from alarm_models.types import Message, Reward, Sample, Score
from alarm_service.api.auth import caller_of
from alarm_service.api.compat.conversation import SplitError, Texts, split_prompt
from alarm_service.api.compat.templates import MAX_ENDS, MAX_MARKER, TEMPLATES, ChatTemplate, marked
from alarm_service.api.deps import (
    TimeoutMs,
    engine_of,
    run_until_disconnect,
    settings_of,
    timeout_s,
)
from alarm_service.api.off_loop_bodies import REQUESTS_PER_ROLLOUT
from alarm_service.engine.engine import RewardEngine
from alarm_service.engine.fair_queueing import INTERNAL, Caller
from alarm_service.engine.hierarchical import reward_samples
from alarm_service.engine.model_set import Catalog, ServedModel
from alarm_service.errors import Invalid, NotFound, SampleFailed, TooLarge
from alarm_service.schemas import MessageFields, Text, message_in
from alarm_service.settings import Settings

__all__ = [
    "OWN_PARTS",
    "CallOf",
    "ChatMessageIn",
    "CompatCall",
    "Name",
    "Options",
    "ScalarReward",
    "ScalarRewards",
    "TextOptions",
    "TrainerBody",
    "fields_of",
    "messages_of",
    "pair_messages",
    "resolve_target",
    "scalar_rewards",
    "split_each",
    "text_fields",
]


class TrainerBody(BaseModel):
    """A trainer's request body; further fields are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)


class ChatMessageIn(MessageFields):
    """One turn of a conversation, as OpenAI's clients write it; further fields are ignored."""

    model_config = ConfigDict(extra="ignore")


class TextOptions(BaseModel):
    """How a text is split into prompt and completion; by default by its template's tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    template: str | SkipJsonSchema[None] = Field(
        default=None,
        description=f"the policy's chat template: {', '.join(TEMPLATES)}; `plain` for none. "
        "By default it is detected from the start of the text",
        json_schema_extra={"enum": list(TEMPLATES)},
    )
    user: Text | SkipJsonSchema[None] = Field(
        default=None, description="the text before a user's turn, such as `Human:`"
    )
    assistant: Text | SkipJsonSchema[None] = Field(
        default=None, description="the text before the assistant's turn, such as `Assistant:`"
    )
    system: Text | SkipJsonSchema[None] = Field(
        default=None, description="the text before the system's turn"
    )
    end: list[Text] = Field(
        default=[], max_length=MAX_ENDS, description="texts that end a turn; may be given again"
    )

    @field_validator("template")
    @classmethod
    def _is_known(cls, name: str | None) -> str | None:
        if name is None or name in TEMPLATES:
            return name
        raise PydanticCustomError("template", "Input should be one of " + ", ".join(TEMPLATES))

    @field_validator("user", "assistant", "system", "end")
    @classmethod
    def _is_short(cls, given: str | list[str] | None) -> str | list[str] | None:
        # Each turn of a text is compared with each of these: so they are short, and few.
        for marker in given if isinstance(given, list) else [given or ""]:
            if len(marker) > MAX_MARKER:
                raise PydanticCustomError(
                    "marker", f"String should have at most {MAX_MARKER} characters"
                )
        return given

    @model_validator(mode="after")
    def _is_one_template(self) -> TextOptions:
        has_markers = any((self.user, self.assistant, self.system, self.end))
        if self.template is not None and has_markers:
            raise PydanticCustomError(
                "template", "template already defines user, assistant, system and end"
            )
        if has_markers and not self.assistant:
            raise PydanticCustomError(
                "template", "assistant is missing: the text before the assistant's turn"
            )
        return self

    @property
    def chat_template(self) -> ChatTemplate | None:
        """The template that was named or described."""
        if self.template is not None:
            return TEMPLATES[self.template]
        if not self.assistant:
            return None
        return marked(user=self.user, assistant=self.assistant, system=self.system, ends=self.end)


def messages_of(messages: list[ChatMessageIn]) -> tuple[Message, ...]:
    """Convert the messages of a request; the parts of one message are joined."""
    return tuple(map(message_in, messages))


def fields_of(label: Any) -> dict[str, str]:
    """Return a label as the field `reference`, where it is a text or a number."""
    return text_fields({"reference": label})


def text_fields(columns: Mapping[str, Any]) -> dict[str, str]:
    """Return the columns of a trainer's row that are a text or a number, as texts by name.

    Raises `Invalid` where one is no Unicode, as the `Text` of other fields does.
    """
    fields = {name: str(value) for name, value in columns.items() if _is_text_or_number(value)}
    for name, text in fields.items():
        try:
            f"{name}{text}".encode()
        except UnicodeEncodeError:
            raise Invalid(
                f"{ascii(name)[:80]} should be valid Unicode, but has a lone surrogate"
            ) from None
    return fields


def _is_text_or_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, float) and not math.isfinite(value):
        return False  # a missing value of pandas
    return is_number or (isinstance(value, str) and bool(value))


Target = Recipe | ServedModel
_T = TypeVar("_T")

_TRUNCATED = "truncated_samples"
#: The parts of every recipe's scalar reward besides its aspects.
OWN_PARTS = ("holistic", "holistic_score", "admitted", _TRUNCATED)


@dataclass(frozen=True, slots=True)
class ScalarReward:
    """A sample's reward, and its parts by name.

    For a recipe, the parts `holistic` and each aspect's name add up to the reward. If the rule does
    more than add, they are its inputs: the normalized holistic score and each aspect's reward
    without its weight. A model's scalar is its score and has no such parts. ``omitted`` names what
    the models were not shown.
    """

    value: float
    parts: Mapping[str, float]
    omitted: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class ScalarRewards:
    """One scalar per sample, in order, their cost in tokens, and the recipe or model used."""

    source: str
    part_names: Sequence[str]
    numbers: Sequence[ScalarReward]
    num_tokens: int

    @property
    def values(self) -> list[float]:
        """The numbers alone."""
        return [number.value for number in self.numbers]


def resolve_target(catalog: Catalog, name: str | None) -> Target:
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


async def scalar_rewards(
    engine: RewardEngine,
    name: str | None,
    samples: Sequence[Sample],
    field: str,
    caller: Caller = INTERNAL,
) -> ScalarRewards:
    """Return one scalar reward per sample, by the recipe or model of that name.

    These trainers cannot handle null, and a default number would be a wrong reward: one failed
    sample fails the whole call with `SampleFailed`, which names its index in ``field``. When the
    queue is full the call waits for capacity, since trainers give up after a few tries.
    """
    caller = replace(caller, waits=True)
    target = resolve_target(engine.catalog, name)
    if isinstance(target, Recipe):
        rewards = await reward_samples(
            engine, target.name, samples, Overrides(), "admitted", caller
        )
        recipe = rewards.recipe
        of_reward = partial(_of_reward, params=rewards.params)
        return ScalarRewards(
            recipe.name,
            [*recipe.aspects, *OWN_PARTS],
            _each(rewards.rewards, of_reward, field),
            rewards.num_tokens,
        )
    scores = await engine.score(target.key, samples, caller)
    return ScalarRewards(
        scores.model, [_TRUNCATED], _each(scores.outcomes, _of_score, field), scores.num_tokens
    )


def _each(
    outcomes: Sequence[_T | SampleError], number: Callable[[_T], ScalarReward], name: str
) -> list[ScalarReward]:
    numbers = []
    for index, outcome in enumerate(outcomes):
        try:
            if isinstance(outcome, SampleError):
                raise outcome
            numbers.append(number(outcome))
        except SampleError as error:
            raise SampleFailed(error.code, f"{name}[{index}]: {error.message}") from error
    return numbers


def _of_score(score: Score) -> ScalarReward:
    if score.value is None:
        raise SampleError("invalid_sample", "the completion has no segment to score")
    return ScalarReward(score.value, {_TRUNCATED: float(score.truncated)}, score.omitted)


def _of_reward(reward: Reward, params: RuleParams) -> ScalarReward:
    rule = params.definition
    aspects_count = rule.aspects.includes(admitted=reward.admitted)
    parts = {
        name: (params.weights[name] if rule.adds_up else 1.0) * aspect.reward
        if aspects_count and aspect is not None
        else 0.0
        for name, aspect in reward.aspects.items()
    }
    weight = params.holistic_weight if rule.adds_up else 1.0
    holistic = weight * reward.holistic_normalized if rule.uses_holistic else 0.0
    own = (holistic, reward.holistic_score, float(reward.admitted), float(reward.truncated))
    named = dict(zip(OWN_PARTS, own, strict=True))
    return ScalarReward(reward.reward, parts | named, reward.omitted)


_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class CompatCall:
    """One trainer's request."""

    request: Request
    engine: RewardEngine
    settings: Settings
    timeout_ms: int | None

    async def numbers(
        self, name: str | None, prepare: Callable[[], Sequence[Sample]], field: str
    ) -> ScalarRewards:
        """Return the numbers of the samples that ``prepare`` makes, by a recipe or model.

        ``field`` is what the trainer calls them. Raises `ServiceError`.
        """
        work = self._numbers(name, prepare, field)
        return await run_until_disconnect(
            self.request, work, timeout_s(self.timeout_ms, self.settings)
        )

    async def _numbers(
        self, name: str | None, prepare: Callable[[], Sequence[Sample]], field: str
    ) -> ScalarRewards:
        resolve_target(self.engine.catalog, name)  # an unknown name is refused at once
        samples = await self.engine.pipeline.run_in_thread(prepare)
        self._check(samples, field)
        return await scalar_rewards(
            self.engine, name, samples, field, caller_of(self.request.scope)
        )

    def _check(self, samples: Sequence[Sample], field: str) -> None:
        most = REQUESTS_PER_ROLLOUT * self.settings.max_samples
        if len(samples) > most:
            raise TooLarge(f"{field} has {len(samples)} items, a request may have {most}")
        if self.settings.log_texts:
            for sample in samples:
                _log.info("sample", prompt=sample.prompt_text, completion=sample.completion_text)


async def _call(request: Request, timeout_ms: TimeoutMs = None) -> CompatCall:
    """Return what a route needs of a request."""
    return CompatCall(request, engine_of(request), settings_of(request), timeout_ms)


CallOf = Annotated[CompatCall, Depends(_call)]
Name = Annotated[str, Path(description="a recipe or a model", examples=["mini"])]
Options = Annotated[TextOptions, Query()]


def pair_messages(
    prompt: str | tuple[Message, ...],
    completion: tuple[Message, ...],
    template: ChatTemplate | None,
) -> Texts:
    """Remove the template's tokens from a prompt whose completion is messages, without tokens.

    If the prompt has started the assistant's turn, a first message without reasoning starts with
    that text. Raises `SplitError`.
    """
    if not completion:
        raise SplitError("it has no messages")
    if not isinstance(prompt, str):
        return Texts(prompt, completion)
    turns, started = split_prompt(prompt, template)
    first = completion[0]
    if first.is_of_policy and not first.reasoning:
        first = replace(first, content=started + first.content)
    return Texts(turns, (first, *completion[1:]))
