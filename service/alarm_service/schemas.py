"""Request and response bodies, their validation, and conversion to the types of alarm_models."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain, islice
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from alarm_models.combination.all_rules import Rule, Shaping
from alarm_models.combination.rewards import AspectRule, value_places
from alarm_models.errors import SampleError
from alarm_models.recipe.schema import Overrides
from alarm_models.types import (
    AspectReward,
    JudgeUsage,
    Message,
    PackedSpans,
    Reward,
    Sample,
    Score,
    SegmentScore,
    Span,
    ToolCall,
)
from alarm_service.errors import MAX_FAULTS, OmittedFaults, num_faults
from alarm_service.json_pieces import MAX_OFFSET

__all__ = [
    "REQUEST_KEYS",
    "SAMPLE_KEYS",
    "AdmissionOut",
    "AspectOut",
    "AspectValuesOut",
    "DenseHolisticOut",
    "ErrorBody",
    "ErrorOut",
    "FailFastInPieces",
    "FewUnknown",
    "GamingLimitsOut",
    "GamingOut",
    "HealthOut",
    "HistogramOut",
    "HolisticOut",
    "InPieces",
    "JsonObjectIn",
    "JudgeUsageOut",
    "KeptSampleOut",
    "ListOf",
    "LoadOut",
    "MessageFields",
    "MessageIn",
    "ModelOut",
    "ModelsOut",
    "NamedScoresOut",
    "OverridesIn",
    "RecentOut",
    "RecipeOut",
    "RewardOut",
    "RewardRequest",
    "RewardResponse",
    "SampleErrorOut",
    "SampleIn",
    "ScoreOut",
    "ScoreRequest",
    "ScoreResponse",
    "SegmentOut",
    "SpanIn",
    "UnwellOut",
    "UsageOut",
    "message_in",
    "reward_out",
    "sample_in",
    "score_out",
    "usage_out",
    "with_aspect_values",
]

#: Members passed to pydantic per call, during which it holds the GIL.
_PIECE = 256


class FewUnknown(BaseModel):
    """A model that forbids unknown keys, and reports only the first of them.

    pydantic builds an error of about 10 kB for each, and a body may have millions.
    """

    @model_validator(mode="before")
    @classmethod
    def _omit_unknown(cls, value: Any) -> Any:
        known = cls.model_fields
        if type(value) is not dict or len(value) <= len(known) + MAX_FAULTS:
            return value
        unknown = [name for name in value if name not in known]
        kept = {name: value[name] for name in known if name in value}
        kept |= {name: value[name] for name in unknown[:MAX_FAULTS]}
        if len(unknown) > MAX_FAULTS:
            kept[unknown[MAX_FAULTS]] = OmittedFaults(len(unknown) - MAX_FAULTS)
        return kept


def _in_pieces(value: Any, validate: ValidatorFunctionWrapHandler, *, fails_fast: bool) -> Any:
    """Validate a long list or a large object, a few members at a time."""
    if type(value) is list and len(value) > _PIECE:
        pieces = (value[at : at + _PIECE] for at in range(0, len(value), _PIECE))
        valid = _valid(pieces, validate, shifts=True, fails_fast=fails_fast)
        return list(chain.from_iterable(valid))
    if type(value) is dict and len(value) > _PIECE:
        members = _valid(_parts(value), validate, shifts=False, fails_fast=fails_fast)
        return dict(chain.from_iterable(part.items() for part in members))
    return validate(value)


# Functions rather than partial objects: pydantic reads their signatures and names.


def _with_all(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    return _in_pieces(value, validate, fails_fast=False)


def _with_first(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    return _in_pieces(value, validate, fails_fast=True)


#: Annotates a list or an object of any number of members.
InPieces = WrapValidator(_with_all)
#: Annotates a list of which only the first error is reported.
FailFastInPieces = WrapValidator(_with_first)

_T = TypeVar("_T")
ListOf = Annotated[list[_T], InPieces]


def _parts(members: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
    items = iter(members.items())
    while part := dict(islice(items, _PIECE)):
        yield part


def _valid(
    pieces: Iterator[Any], validate: ValidatorFunctionWrapHandler, *, shifts: bool, fails_fast: bool
) -> list[Any]:
    """Validate each piece; raise the first errors found, with the number of the others.

    ``shifts``: members are identified by their index. ``fails_fast``: only the first error is
    reported.
    """
    found: list[Any] = []
    named: list[InitErrorDetails] = []
    num_found = 0
    title = ""
    for index, piece in enumerate(pieces):
        try:
            valid = validate(piece)
        except ValidationError as error:
            title = error.title
            if len(named) == MAX_FAULTS:
                num_found += error.error_count()
                continue
            faults = error.errors(include_url=False, include_context=False)
            num_found += num_faults(faults)
            shift = index * _PIECE if shifts else 0
            named += (_details(fault, shift) for fault in faults[: MAX_FAULTS - len(named)])
            if fails_fast:
                break
        else:
            if not named:
                found.append(valid)
    if not named:
        return found
    if num_found > len(named):
        more = PydanticCustomError("omitted", "more of this kind")
        omitted = OmittedFaults(num_found - len(named))
        named.append(InitErrorDetails(type=more, loc=(), input=omitted))
    raise ValidationError.from_exception_data(title, named)


def _details(fault: Mapping[str, Any], shift: int) -> InitErrorDetails:
    loc = fault["loc"]
    if shift and loc and isinstance(loc[0], int):
        loc = (loc[0] + shift, *loc[1:])
    kind = PydanticCustomError(fault["type"], fault["msg"])
    return InitErrorDetails(type=kind, loc=loc, input=fault["input"])


_EXAMPLE_SAMPLE: dict[str, Any] = {
    "prompt": "question: Who wrote Emma? context: wikipage: Emma (novel) text: Emma is a novel "
    "written by English author Jane Austen, first published in December 1815.",
    "completion": "Emma was written by Jane Austen. It came out in 1815.",
    "token_offsets": [
        [0, 4], [5, 8], [9, 16], [17, 19], [20, 24], [25, 31], [31, 32], [33, 35], [36, 40],
        [41, 44], [45, 47], [48, 52], [52, 53], [53, 53],
    ],
    "id": "emma-1",
}  # fmt: skip


class _In(FewUnknown):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _whole(text: str) -> str:
    """Refuse lone surrogates, which can be neither tokenized nor echoed."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError(
            "lone_surrogate",
            "Input should be valid Unicode, but has a lone surrogate at {at}",
            {"at": error.start},
        ) from None
    return text


Text = Annotated[str, AfterValidator(_whole)]
Offset = Annotated[int, Field(ge=0, le=MAX_OFFSET)]
SpanIn = Annotated[list[Offset], Field(min_length=2, max_length=2, examples=[[0, 4]])]


def _unless_packed(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """Skip validation of spans that were already validated while parsing."""
    return value if isinstance(value, PackedSpans) else validate(value)


#: Only the first error is reported: there may be millions.
SpansIn = Annotated[
    list[SpanIn], Field(fail_fast=True), FailFastInPieces, WrapValidator(_unless_packed)
]
Id = Annotated[Text | int | None, Field(description="echoed in the response")]


_Json = TypeVar("_Json")


def _checked_json(value: _Json) -> _Json:
    """Refuse lone surrogates, NaN and infinities, and nesting beyond `_MAX_LEVELS`.

    Spans that were packed while parsing become lists again.
    """
    checked: _Json = _plain_json(value, 0)
    return checked


#: Maximum nesting of a caller's own JSON: template engines and JSON encoders recurse into it.
_MAX_LEVELS = 64


def _plain_json(value: Any, level: int) -> Any:
    if level > _MAX_LEVELS:
        raise PydanticCustomError(
            "nested_too_deeply",
            "Input should be nested at most {most} levels deep",
            {"most": _MAX_LEVELS},
        )
    if isinstance(value, str):
        return _whole(value)
    if isinstance(value, dict):
        return {_whole(name): _plain_json(one, level + 1) for name, one in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        raise PydanticCustomError("finite_number", "Input should be a finite number")
    if isinstance(value, PackedSpans):
        return [list(span) for span in value]
    if isinstance(value, list):
        return [_plain_json(one, level + 1) for one in value]
    return value


#: Any JSON value, as the caller wrote it.
JsonIn = Annotated[Any, AfterValidator(_checked_json)]
JsonObjectIn = Annotated[dict[str, Any], AfterValidator(_checked_json)]

#: Types of content parts that are texts, in OpenAI's two APIs.
_TEXT_PARTS = frozenset({"text", "input_text", "output_text", "refusal"})


class ContentPartIn(FewUnknown):
    """A part of a message's content. Of a part that is not a text, only the type is used."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    type: Text
    text: Text | None = None
    refusal: Text | None = None

    @model_validator(mode="after")
    def _has_text(self) -> ContentPartIn:
        if self.type in _TEXT_PARTS and self.text is None and self.refusal is None:
            raise PydanticCustomError("no_text", "A content part of type text should have `text`")
        return self


class FunctionIn(_In):
    """The function that a tool call names; `arguments` is an object or its JSON text."""

    name: Text
    arguments: Text | JsonObjectIn | None = None


class ToolCallIn(FewUnknown):
    """A tool call, as in OpenAI's API or without the `function` level."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    id: Text | None = None
    function: FunctionIn | None = None
    name: Text | None = None
    arguments: Text | JsonObjectIn | None = None

    @model_validator(mode="after")
    def _has_name(self) -> ToolCallIn:
        if self.function is None and self.name is None:
            raise PydanticCustomError("no_function", "A tool call should have `function` or `name`")
        return self


class MessageFields(_In):
    """The fields of a message in OpenAI's API."""

    role: Text
    content: Text | ListOf[ContentPartIn] | None = None
    reasoning_content: Text | None = Field(
        default=None, description="the reasoning before the content"
    )
    reasoning: Text | None = Field(default=None, description="another name of `reasoning_content`")
    tool_calls: ListOf[ToolCallIn] | None = None
    tool_call_id: Text | None = None
    name: Text | None = None
    refusal: Text | None = None
    audio: JsonIn = None
    function_call: FunctionIn | None = None
    annotations: list[JsonIn] | None = None


class MessageIn(MessageFields):
    """One message of a conversation, as in OpenAI's API."""

    @model_validator(mode="after")
    def _has_content(self) -> MessageIn:
        if not self.model_fields_set - {"role", "name", "tool_call_id"}:
            raise PydanticCustomError("no_content", "A message should have `content`")
        return self


#: More completions of one prompt than any trainer samples.
MAX_GROUP_SIZE = 4096

MessagesIn = Annotated[list[MessageIn], Field(fail_fast=True), FailFastInPieces]


class SampleIn(_In):
    """A prompt with one completion."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE_SAMPLE]})

    prompt: Text | MessagesIn = Field(description="a text, or messages")
    completion: Text | MessagesIn = Field(
        description="what the policy wrote: a text, or messages with those of tools between them"
    )
    fields: Annotated[dict[Text, JsonIn], InPieces] = Field(
        default_factory=dict,
        description="named texts for the model's template; any JSON for models that read it",
    )
    token_offsets: SpansIn | None = Field(
        default=None,
        description="[start, end) of each policy token, in code points of the completion; "
        "special tokens are empty spans",
    )
    segments: Annotated[
        dict[Literal["sentences", "subsentences", "words", "steps", "turns", "errors"], SpansIn],
        InPieces,
    ] = Field(
        default_factory=dict, description="spans to use instead of those that the server would find"
    )
    id: Id = None
    group: Text | int | None = Field(
        default=None, description="name of the group: the same for all samples of a prompt"
    )
    group_size: int | None = Field(
        default=None, ge=1, le=MAX_GROUP_SIZE, description="number of samples in the group"
    )
    tools: ListOf[JsonObjectIn] | None = Field(
        default=None, description="tools that the policy could call, for chat templates"
    )
    finish_reason: Text | None = Field(
        default=None, description='why the policy stopped: "length" if it reached its token limit'
    )
    continue_final_message: bool = Field(
        default=False,
        description="whether the completion continues the prompt's last message, the assistant's",
    )


class OverridesIn(Overrides, FewUnknown):
    """Per-request overrides of a recipe."""

    model_config = ConfigDict(strict=True)

    weights: Annotated[Mapping[str, float], InPieces] = Field(default_factory=dict)

    rule: Rule | None = Field(default=None, strict=False)  # a string in JSON
    shaping: Shaping | None = Field(default=None, strict=False)


class ScoreRequest(_In):
    """Samples to score with one model."""

    model: Text | None = Field(
        default=None, description="model to use; default: the holistic model of the default recipe"
    )
    samples: ListOf[SampleIn]


class RewardRequest(_In):
    """Samples to reward with one recipe."""

    recipe: Text | None = Field(
        default=None, description="recipe to use; default: the server's first"
    )
    samples: ListOf[SampleIn]
    overrides: OverridesIn = Field(default_factory=OverridesIn)
    aspects: Literal["admitted", "all"] = Field(
        default="admitted",
        description='"admitted" computes the aspects that the reward needs; "all" computes '
        "every aspect of every sample, for logging",
    )
    aspect_values: bool = Field(
        default=False,
        description="whether aspects have `values`, their numbers before shaping",
    )


class _Out(BaseModel):
    model_config = ConfigDict(frozen=True)


class SampleErrorOut(_Out):
    """Why one sample has no result."""

    code: Literal[
        "too_long",
        "non_finite",
        "invalid_sample",
        "model_failed",
        "unsupported_content",
        "group_incomplete",
        "group_conflict",
        "overlong",
        "dropped",
        "budget_exceeded",
    ] = Field(description="kind of fault, for programs")
    message: str = Field(description="what is wrong, and what to do")


class SegmentOut(_Out):
    """A scored segment; `score` is the margin between two labels, or the segment's grade.

    `score` is null if the model did not read the segment.
    """

    start: int
    end: int
    label: str | None
    score: float | None


_OMITTED = "what the model was not shown, such as `thinking` or `prompt_start`"


class ScoreOut(_Out):
    """One sample's score."""

    id: str | int | None = Field(default=None, description="as in the request")
    score: float | None
    segments: list[SegmentOut] | None
    num_tokens: int
    truncated: bool
    omitted: list[str] = Field(default_factory=list, description=_OMITTED)
    judged: list[list[int]] | None = Field(
        default=None,
        exclude_if=lambda parts: parts is None,
        description="the parts of the completion that the policy wrote and the model was shown, "
        "as [start, end); absent where that is all of it",
    )
    graded: bool = Field(
        default=False,
        exclude_if=lambda graded: not graded,
        description="whether the segments' scores are grades rather than margins between two "
        "labels; absent if not",
    )
    error: SampleErrorOut | None


class NamedScoresOut(ScoreOut):
    """One sample's score from a model with several named outputs."""

    outputs: dict[str, float] = Field(description="output name -> value")
    output_segments: dict[str, list[SegmentOut]] | None = Field(
        default=None,
        exclude_if=lambda segments: segments is None,
        description="output name -> its segments, such as what a judge quoted; absent if no output "
        "has any",
    )
    skipped: list[str] = Field(
        default_factory=list,
        exclude_if=lambda names: not names,
        description="outputs that were not judged; absent if all were",
    )


class JudgeUsageOut(_Out):
    """What judges behind endpoints were asked for the scores of this response."""

    num_requests: int
    num_cached: int = Field(description="questions whose answer was stored")
    num_input_tokens: int
    num_output_tokens: int
    cost: float = Field(description="money, by the prices in the recipe")


class UsageOut(_Out):
    """Tokens as if each sample were scored alone, and tokens that were actually computed."""

    num_tokens: int
    num_computed_tokens: int
    judge: JudgeUsageOut | None = Field(
        default=None,
        exclude_if=lambda usage: usage is None,
        description="absent unless a judge behind an endpoint was asked",
    )


def usage_out(
    num_tokens: int, num_computed_tokens: int, judge: JudgeUsage | None = None
) -> UsageOut:
    """Convert what a response cost."""
    asked = None if judge is None else JudgeUsageOut(**asdict(judge))
    return UsageOut(num_tokens=num_tokens, num_computed_tokens=num_computed_tokens, judge=asked)


class ScoreResponse(_Out):
    """One score per sample, in request order."""

    model: str
    fingerprint: str
    scores: list[NamedScoresOut | ScoreOut]
    usage: UsageOut


class HolisticOut(_Out):
    """The holistic score, raw and in standard deviations."""

    score: float
    normalized: float


class DenseHolisticOut(HolisticOut):
    """The holistic score of a recipe that spreads it over tokens.

    A segment's `score` is that of the completion up to its end.
    """

    segments: list[SegmentOut]


class AspectValuesOut(_Out):
    """An aspect's numbers before shaping, one per judged segment or token, or one in all."""

    raw: list[float]
    tokens: list[int] | None = Field(
        description="the token that each is placed on; null without `token_offsets`"
    )
    num_tokens: int = Field(
        description="judged tokens, or words without `token_offsets`, for the shaping `per_length`"
    )
    is_divided: bool = Field(
        description="whether the values share one value, so that every shaping divides by them"
    )


class AspectOut(_Out):
    """An aspect's shaped reward, before weighting."""

    reward: float
    token_rewards: list[float] | None
    segments: list[SegmentOut] | None
    values: AspectValuesOut | None = Field(
        default=None,
        exclude_if=lambda values: values is None,
        description="with `aspect_values`; absent for a reward that is spread over prefixes",
    )


class RewardOut(_Out):
    """One sample's reward."""

    id: str | int | None = Field(default=None, description="as in the request")
    reward: float | None
    token_rewards: list[float] | None
    holistic: DenseHolisticOut | HolisticOut | None
    admitted: bool | None
    aspects: dict[str, AspectOut | None]
    truncated: bool
    omitted: list[str] = Field(default_factory=list, description=_OMITTED)
    error: SampleErrorOut | None


class RewardResponse(_Out):
    """One reward per sample, in request order."""

    recipe: str
    fingerprint: str
    rewards: list[RewardOut]
    usage: UsageOut


class ModelOut(_Out):
    """A served model."""

    name: str
    recipe: str
    kind: str
    checkpoint: str | None
    fingerprint: str | None = Field(description="null while loading or sleeping")
    device: str
    deterministic: bool = Field(
        description="whether each sample runs alone, so that scores are bit-identical"
    )
    limits: dict[str, int | None]
    read_token: str | None = Field(
        default=None,
        description="token at which the score is read; null if it is read at several",
    )
    notes: list[str] = Field(
        default_factory=list, description="why scores may differ from those of the model card"
    )
    execution: str | None = Field(
        default=None,
        description="how batches run: layout, and the kernels of attention and linear layers",
    )


class RecipeOut(ModelOut):
    """A served recipe; `checkpoint` and `limits` are those of its holistic model."""

    description: str
    rule: str
    threshold: float
    holistic_weight: float
    weights: dict[str, float] = Field(description="aspect -> weight")
    shapings: dict[str, str] = Field(description="aspect -> shaping")
    holistic: str
    aspects: dict[str, str] = Field(description="aspect -> model")


class ModelsOut(_Out):
    """The models and recipes being served, and the limits of a request."""

    models: list[ModelOut]
    recipes: list[RecipeOut]
    limits: dict[str, int]


class _OutOfAttributes(_Out):
    model_config = ConfigDict(frozen=True, from_attributes=True)


class HistogramOut(_OutOfAttributes):
    """`counts[i]` values lie between `edges[i]` and `edges[i + 1]`."""

    edges: list[float]
    counts: list[int]
    expected: list[float] | None = Field(
        description="numbers of values that scores as in the calibration would have, if known"
    )


class AdmissionOut(_OutOfAttributes):
    """Consecutive samples, and the share of them that is past the threshold."""

    time: float = Field(description="of the last sample, in Unix seconds")
    num_samples: int
    share: float


class GamingOut(_OutOfAttributes):
    """Figures of a window that show a gamed reward; null or left out with too few samples."""

    num_samples: int
    num_groups: int
    zero_deviation_share: float | None
    ceiling: float | None
    ceiling_share: float | None
    variance_shares: dict[str, float]
    opposed_shares: dict[str, float]
    length_correlation: float | None
    admitted_share: float | None
    truncated_share: float | None
    omitted_share: float | None
    drift_up: float
    drift_down: float


class GamingLimitsOut(_OutOfAttributes):
    """The limits that `alarm audit` has by default."""

    zero_deviation_share: float
    ceiling_share: float
    variance_share: float
    opposed_share: float
    length_correlation: float
    drift: float
    truncated_share: float
    omitted_share: float


class KeptSampleOut(_Out):
    """The reward of a recent sample and the beginnings of its texts."""

    reward: float
    prompt: str
    completion: str


class LoadOut(_Out):
    """The queue and the devices now; the seconds count from the start of the server."""

    time: float = Field(description="now, in Unix seconds")
    num_requests: int = Field(description="admitted requests that are queued or running")
    num_waiting_samples: int
    num_queued_tokens: int
    max_queued_tokens: int
    occupied_s: float = Field(description="with at least one request in flight")
    device_busy_s: float = Field(description="with a batch running on a device")


class RecentOut(_Out):
    """What a recipe rewarded recently: up to 2048 samples since the server started.

    `points` has characters, reward and admission of the newest 512. `best` and `worst` are null
    unless the server has `--log-texts`.
    """

    recipe: str
    threshold: float
    since: float | None = Field(description="time of the oldest sample, in Unix seconds")
    rewards: HistogramOut | None
    holistic: HistogramOut | None
    points: list[tuple[int, float, bool]]
    admission: list[AdmissionOut]
    errors: dict[str, int] = Field(description="code -> samples without a reward")
    gaming: GamingOut
    limits: GamingLimitsOut
    best: list[KeptSampleOut] | None
    worst: list[KeptSampleOut] | None
    load: LoadOut


class HealthOut(_Out):
    """The server's status as a word, and the reason as a sentence."""

    status: str
    reason: str


class ErrorBody(_Out):
    """An error, and whether the same request may succeed later."""

    code: str
    message: str
    retryable: bool


class ErrorOut(_Out):
    """The body of every response with a status other than 200."""

    error: ErrorBody


class UnwellOut(HealthOut, ErrorOut):
    """The health of a server that cannot serve; also an error body."""


def _keys_of(*tables: type[BaseModel]) -> frozenset[str]:
    return frozenset(name for table in tables for name in table.model_fields)


#: The keys of a sample and of what is in it, which messages about unknown ones suggest.
SAMPLE_KEYS = _keys_of(SampleIn, MessageIn, ToolCallIn)
#: Those of a request.
REQUEST_KEYS = _keys_of(ScoreRequest, RewardRequest, OverridesIn) | SAMPLE_KEYS


def sample_in(sample: SampleIn) -> Sample:
    """Convert a request's sample."""
    offsets = sample.token_offsets
    return Sample(
        prompt=_content(sample.prompt),
        completion=_content(sample.completion) or "",
        fields=sample.fields,
        token_offsets=None if offsets is None else _spans(offsets),
        segments={name: _spans(spans) for name, spans in sample.segments.items()},
        id=None if sample.id is None else str(sample.id),
        group=None if sample.group is None else str(sample.group),
        group_size=sample.group_size,
        tools=tuple(sample.tools or ()),
        finish_reason=sample.finish_reason,
        continue_final_message=sample.continue_final_message,
    )


def score_out(sample: SampleIn, outcome: Score | SampleError) -> ScoreOut:
    """Convert a sample's score or error to its response."""
    if isinstance(outcome, SampleError):
        return ScoreOut(
            id=sample.id,
            score=None,
            segments=None,
            num_tokens=0,
            truncated=False,
            omitted=[],
            error=_error(outcome),
        )
    score = ScoreOut(
        id=sample.id,
        score=outcome.value,
        segments=_segments(outcome.segments),
        num_tokens=outcome.num_tokens,
        truncated=outcome.truncated,
        omitted=list(outcome.omitted),
        judged=None if outcome.judged is None else [list(part) for part in outcome.judged],
        graded=outcome.is_graded,
        error=None,
    )
    if outcome.outputs is None:
        return score
    of_outputs = outcome.output_segments
    return NamedScoresOut(
        **dict(score),
        outputs=dict(outcome.outputs),
        output_segments=None
        if of_outputs is None
        else {name: _segments(some) or [] for name, some in of_outputs.items()},
        skipped=list(outcome.skipped),
    )


def reward_out(
    sample: SampleIn, outcome: Reward | SampleError, aspects: Sequence[str]
) -> RewardOut:
    """Convert a sample's reward or error to its response; ``aspects`` are the recipe's aspects."""
    if isinstance(outcome, SampleError):
        return RewardOut(
            id=sample.id,
            reward=None,
            token_rewards=None,
            holistic=None,
            admitted=None,
            aspects=dict.fromkeys(aspects),
            truncated=False,
            omitted=[],
            error=_error(outcome),
        )
    tokens = outcome.token_rewards
    return RewardOut(
        id=sample.id,
        reward=outcome.reward,
        token_rewards=None if tokens is None else list(tokens),
        holistic=_holistic(outcome),
        admitted=outcome.admitted,
        aspects={name: _aspect(aspect) for name, aspect in outcome.aspects.items()},
        truncated=outcome.truncated,
        omitted=list(outcome.omitted),
        error=None,
    )


def with_aspect_values(
    out: RewardOut, sample: Sample, outcome: Reward | SampleError, rules: Mapping[str, AspectRule]
) -> RewardOut:
    """Add the numbers before shaping to a response's aspects; ``rules`` are those of the aspects.

    There are none for aspects that were not computed or are spread over prefixes.
    """
    if isinstance(outcome, SampleError):
        return out
    aspects = dict(out.aspects)
    for name, aspect in outcome.aspects.items():
        shown = aspects[name]
        if aspect is not None and shown is not None and aspect.values is not None:
            values = AspectValuesOut(
                raw=list(aspect.values.raw),
                tokens=value_places(aspect.values, aspect, rules[name], sample),
                num_tokens=aspect.values.num_tokens,
                is_divided=aspect.values.is_divided,
            )
            aspects[name] = shown.model_copy(update={"values": values})
    return out.model_copy(update={"aspects": aspects})


def _content(content: str | list[MessageIn]) -> str | tuple[Message, ...]:
    if isinstance(content, str):
        return content
    return tuple(map(message_in, content))


def message_in(message: MessageFields) -> Message:
    """Convert a request's message."""
    content = message.content or ""
    other_parts: list[str] = [] if message.audio is None else ["audio"]
    if not isinstance(content, str):
        other_parts += [part.type for part in content if part.type not in _TEXT_PARTS]
        texts = [part.text or part.refusal or "" for part in content if part.type in _TEXT_PARTS]
        content = "".join(texts)
    calls = [_tool_call(call) for call in message.tool_calls or ()]
    if message.function_call is not None:
        calls.append(_function(message.function_call, None))
    return Message(
        message.role,
        content or message.refusal or "",
        reasoning=message.reasoning_content or message.reasoning or "",
        tool_calls=tuple(calls),
        tool_call_id=message.tool_call_id,
        name=message.name,
        other_parts=tuple(other_parts),
    )


def _tool_call(call: ToolCallIn) -> ToolCall:
    if call.function is not None:
        return _function(call.function, call.id)
    return ToolCall(call.name or "", _arguments(call.arguments), call.id)


def _function(function: FunctionIn, call_id: str | None) -> ToolCall:
    return ToolCall(function.name, _arguments(function.arguments), call_id)


def _arguments(arguments: str | dict[str, Any] | None) -> str:
    if arguments is None:
        return "{}"
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _spans(spans: Sequence[SpanIn] | PackedSpans) -> Sequence[Span]:
    if isinstance(spans, PackedSpans):
        return spans
    return tuple(Span(start, end) for start, end in spans)


def _holistic(outcome: Reward) -> HolisticOut:
    score, normalized = outcome.holistic_score, outcome.holistic_normalized
    segments = _segments(outcome.holistic_segments)
    if segments is None:
        return HolisticOut(score=score, normalized=normalized)
    return DenseHolisticOut(score=score, normalized=normalized, segments=segments)


def _aspect(aspect: AspectReward | None) -> AspectOut | None:
    if aspect is None:
        return None
    tokens = aspect.token_rewards
    return AspectOut(
        reward=aspect.reward,
        token_rewards=None if tokens is None else list(tokens),
        segments=_segments(aspect.segments),
    )


def _segments(segments: Sequence[SegmentScore] | None) -> list[SegmentOut] | None:
    if segments is None:
        return None
    return [
        SegmentOut(start=one.span.start, end=one.span.end, label=one.label, score=one.score)
        for one in segments
    ]


def _error(error: SampleError) -> SampleErrorOut:
    return SampleErrorOut.model_validate({"code": error.code, "message": error.message})
