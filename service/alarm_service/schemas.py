"""The shapes on the wire: what callers send and what they get."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from alarm_models.recipe import Overrides
from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "AspectOut",
    "ErrorBody",
    "ErrorOut",
    "HealthOut",
    "HolisticOut",
    "ModelOut",
    "ModelsOut",
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
    "UsageOut",
]

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


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _Out(BaseModel):
    model_config = ConfigDict(frozen=True)


Offset = Annotated[int, Field(ge=0, le=1 << 40)]
SpanIn = Annotated[list[Offset], Field(min_length=2, max_length=2, examples=[[0, 4]])]
Id = Annotated[str | int | None, Field(description="echoed")]


class MessageIn(_In):
    """One turn of a conversation."""

    role: str
    content: str


class SampleIn(_In):
    """A prompt with one completion."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE_SAMPLE]})

    prompt: str | list[MessageIn]
    completion: str | list[MessageIn]
    fields: dict[str, str] = Field(
        default_factory=dict, description="texts that the model's template may name"
    )
    token_offsets: list[SpanIn] | None = Field(
        default=None,
        description="[start, end) in code points of the completion, one a policy token; "
        "special tokens are empty spans",
    )
    segments: dict[Literal["sentences", "subsentences", "errors"], list[SpanIn]] = Field(
        default_factory=dict, description="spans that replace the server's own finding"
    )
    id: Id = None
    group: str | int | None = Field(default=None, description="samples of one prompt share it")


class ScoreRequest(_In):
    """Samples for one model."""

    model: str | None = Field(default=None, description="else the default recipe's holistic model")
    samples: list[SampleIn]


class RewardRequest(_In):
    """Samples for one recipe."""

    recipe: str | None = Field(default=None, description="else the server's first recipe")
    samples: list[SampleIn]
    # A recipe's own types, which are lax: rules come as strings.
    overrides: Overrides = Field(default_factory=Overrides, strict=False)
    aspects: Literal["admitted", "all"] = Field(
        default="admitted", description='"all" computes every aspect, for logging'
    )


class SampleErrorOut(_Out):
    """Why one sample has no result."""

    code: Literal["too_long", "non_finite", "invalid_sample", "model_failed"]
    message: str


class SegmentOut(_Out):
    """A judged segment; `score` is the margin between the two labels, null where unread."""

    start: int
    end: int
    label: str | None
    score: float | None


class ScoreOut(_Out):
    """One sample's score."""

    id: Id = None
    score: float | None
    segments: list[SegmentOut] | None
    num_tokens: int
    truncated: bool
    error: SampleErrorOut | None


class UsageOut(_Out):
    """Tokens as if each sample were scored alone, and tokens that the device ran."""

    num_tokens: int
    num_computed_tokens: int


class ScoreResponse(_Out):
    """One score a sample, in order."""

    model: str
    fingerprint: str
    scores: list[ScoreOut]
    usage: UsageOut


class HolisticOut(_Out):
    """The holistic score, raw and in standard deviations."""

    score: float
    normalized: float


class AspectOut(_Out):
    """What an aspect says, shaped, before its weight."""

    reward: float
    token_rewards: list[float] | None
    segments: list[SegmentOut] | None


class RewardOut(_Out):
    """One sample's reward."""

    id: Id = None
    reward: float | None
    token_rewards: list[float] | None
    holistic: HolisticOut | None
    admitted: bool | None
    aspects: dict[str, AspectOut | None]
    truncated: bool
    error: SampleErrorOut | None


class RewardResponse(_Out):
    """One reward a sample, in order."""

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
    fingerprint: str | None = Field(description="null while loading")
    device: str
    limits: dict[str, int | None]


class RecipeOut(ModelOut):
    """A served recipe; `checkpoint` and `limits` are its holistic model's."""

    description: str
    rule: str
    holistic: str
    aspects: dict[str, str] = Field(description="aspect -> model")


class ModelsOut(_Out):
    """What is served, and what one request may ask for."""

    models: list[ModelOut]
    recipes: list[RecipeOut]
    limits: dict[str, int]


class HealthOut(_Out):
    """How the server is, in a word and a sentence."""

    status: str
    reason: str


class ErrorBody(_Out):
    """What went wrong, and whether the same request may succeed later."""

    code: str
    message: str
    retryable: bool


class ErrorOut(_Out):
    """The answer of every status but 200."""

    error: ErrorBody
