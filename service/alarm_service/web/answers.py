"""The shapes of what callers get."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "AspectOut",
    "ErrorBody",
    "ErrorOut",
    "HealthOut",
    "HolisticOut",
    "ModelOut",
    "ModelsOut",
    "NamedScoresOut",
    "RecipeOut",
    "RewardOut",
    "RewardResponse",
    "SampleErrorOut",
    "ScoreOut",
    "ScoreResponse",
    "SegmentOut",
    "UnwellOut",
    "UsageOut",
]


class _Out(BaseModel):
    model_config = ConfigDict(frozen=True)


class SampleErrorOut(_Out):
    """Why one sample has no result."""

    code: Literal["too_long", "non_finite", "invalid_sample", "model_failed"]
    message: str


class SegmentOut(_Out):
    """A judged segment, `score` the margin between two labels; or a graded one, `score` its grade.

    `score` is null where the segment was not read.
    """

    start: int
    end: int
    label: str | None
    score: float | None


class ScoreOut(_Out):
    """One sample's score."""

    id: str | int | None = Field(default=None, description="as it came")
    score: float | None
    segments: list[SegmentOut] | None
    num_tokens: int
    truncated: bool
    error: SampleErrorOut | None


class NamedScoresOut(ScoreOut):
    """One sample's score from a model that gives several numbers."""

    outputs: dict[str, float] = Field(description="the numbers by their names")


class UsageOut(_Out):
    """Tokens as if each sample were scored alone, and tokens that the device ran."""

    num_tokens: int
    num_computed_tokens: int


class ScoreResponse(_Out):
    """One score a sample, in order."""

    model: str
    fingerprint: str
    scores: list[NamedScoresOut | ScoreOut]
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

    id: str | int | None = Field(default=None, description="as it came")
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
    deterministic: bool = Field(description="whether each sample runs alone, for the same bits")
    limits: dict[str, int | None]


class RecipeOut(ModelOut):
    """A served recipe; `checkpoint` and `limits` are its holistic model's."""

    description: str
    rule: str
    threshold: float
    holistic_weight: float
    weights: dict[str, float] = Field(description="aspect -> weight")
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


class UnwellOut(HealthOut, ErrorOut):
    """How the server is while it cannot serve: health and error in one."""
