"""The client's data types: samples, scores, rewards and results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypedDict

from alarm_client.errors import SampleFailed

Message: TypeAlias = Mapping[str, object]
Id: TypeAlias = str | int | None
Text: TypeAlias = str | Sequence[Message]
Offsets: TypeAlias = Sequence[Sequence[int]]
#: A rule's name, such as "hierarchical" or "weighted_sum"; the server's docs/rules.md has them all,
#: and the server rejects unknown names. Not a Literal, as the server may be newer.
Rule: TypeAlias = str
Shaping: TypeAlias = Literal["sigmoid", "none", "centred", "mean", "per_length"]
Aspects: TypeAlias = Literal["admitted", "all"]
OnError: TypeAlias = float | Literal["raise"] | None


class Overrides(TypedDict, total=False):
    """The parts of a recipe that a call may override."""

    rule: Rule
    threshold: float
    holistic_weight: float
    weights: Mapping[str, float]
    shaping: Shaping


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A prompt with one completion, each a text or chat messages as OpenAI's API writes them.

    `fields`: JSON values that a recipe may use, such as a reference. `token_offsets`: `[start,
    end)` in characters of the completion (of messages: see `completion_text`), one per policy
    token. `segments`: spans by name, in place of the server's own segmentation. `id`: returned with
    the score or reward. `group`: equal for samples that share a prompt. `group_size`: number of
    samples in the group, if they come in several calls; the server holds each until all are there,
    at most for the recipe's `group_timeout_s`. A sample with it and without an `id` is given one,
    so that a retry is not counted twice. `tools`: JSON descriptions of the tools that the policy
    could call. `finish_reason`: why the policy stopped, "length" at its limit.
    `continue_final_message`: whether the completion continues the last message of the prompt, which
    is the assistant's. Integers, spans and messages may be numpy arrays or tensors.
    """

    prompt: Text
    completion: Text
    fields: Mapping[str, object] | None = None
    token_offsets: Offsets | None = None
    segments: Mapping[str, Offsets] | None = None
    id: Id = None
    group: Id = None
    group_size: int | None = None
    tools: Sequence[Mapping[str, object]] | None = None
    finish_reason: str | None = None
    continue_final_message: bool = False


SampleLike: TypeAlias = Sample | Mapping[str, object]


@dataclass(frozen=True, slots=True)
class SampleError:
    """Why a sample has no score or reward. Other samples of the call are not affected.

    `code`: "invalid_sample", "too_long", "non_finite" and "model_failed"; "unsupported_content" if
    the model cannot read a part of a message, such as an image; "group_incomplete" if other members
    of the group did not come in time, and "group_conflict" if the group is contradictory, such as
    two samples with one id; "overlong" and "dropped" if the recipe gives the sample no reward on
    purpose; "budget_exceeded" if a judge's budget did not allow to ask about it.
    """

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class SegmentScore:
    """A span of the completion, its label and its margin; None if it was truncated."""

    start: int
    end: int
    label: str | None
    score: float | None


@dataclass(frozen=True, slots=True)
class Score:
    """The raw score of a sample; None on error, or if no segment was found.

    `outputs`: the named outputs of a model that has several. `omitted`: what the model was not
    shown, such as "thinking"; empty from servers that do not say. `output_segments`: the spans of
    outputs that have their own. `skipped`: the outputs that judged nothing.
    """

    id: Id
    score: float | None
    segments: tuple[SegmentScore, ...] | None
    num_tokens: int
    truncated: bool
    error: SampleError | None
    outputs: Mapping[str, float] | None = None
    omitted: tuple[str, ...] = ()
    output_segments: Mapping[str, tuple[SegmentScore, ...]] | None = None
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Holistic:
    """The holistic score, raw (None if the short-response penalty replaced it) and normalized.

    `segments`: the scores of the completion up to each segment's end, if the recipe asks for them.
    """

    score: float | None
    normalized: float
    segments: tuple[SegmentScore, ...] | None = None


@dataclass(frozen=True, slots=True)
class AspectReward:
    """One aspect's part of a reward: its sum, its token rewards and its segments."""

    reward: float
    token_rewards: tuple[float, ...] | None
    segments: tuple[SegmentScore, ...] | None


@dataclass(frozen=True, slots=True)
class Reward:
    """The reward of a sample: the sum of its `token_rewards`; None on error.

    `omitted`: what the models were not shown, as in Score.
    """

    id: Id
    reward: float | None
    token_rewards: tuple[float, ...] | None
    holistic: Holistic | None
    admitted: bool | None
    aspects: Mapping[str, AspectReward | None]
    truncated: bool
    error: SampleError | None
    omitted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class JudgeUsage:
    """What judges behind endpoints were asked: requests, tokens and money.

    `num_cached` counts the questions whose answer the server had stored.
    """

    num_requests: int = 0
    num_cached: int = 0
    num_input_tokens: int = 0
    num_output_tokens: int = 0
    cost: float = 0.0


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts: as if each sample were scored alone, and as computed on the device.

    `judge`: what a judge behind an endpoint was asked, if any.
    """

    num_tokens: int
    num_computed_tokens: int
    judge: JudgeUsage | None = None


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """The scores of one call, in the order of its samples."""

    model: str
    fingerprint: str
    scores: tuple[Score, ...]
    usage: Usage

    def scalars(self, on_error: OnError = "raise") -> list[float | None]:
        """one number per sample; one without a score gets `on_error`, or raises SampleFailed."""
        return _scalars([(score.score, score.error) for score in self.scores], on_error)


@dataclass(frozen=True, slots=True)
class RewardResult:
    """The rewards of one call, in the order of its samples."""

    recipe: str
    fingerprint: str
    rewards: tuple[Reward, ...]
    usage: Usage

    def scalars(self, on_error: OnError = "raise") -> list[float | None]:
        """one number per sample; one without a reward gets `on_error`, or raises SampleFailed."""
        return _scalars([(reward.reward, reward.error) for reward in self.rewards], on_error)


@dataclass(frozen=True, slots=True)
class Limits:
    """The server's limits for one request."""

    max_samples: int = 1024
    max_body_bytes: int = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Catalogue:
    """A server's models, recipes and limits."""

    models: tuple[Mapping[str, object], ...]
    recipes: tuple[Mapping[str, object], ...]
    limits: Limits


def _scalars(
    numbers: Iterable[tuple[float | None, SampleError | None]], on_error: OnError
) -> list[float | None]:
    if isinstance(on_error, str) and on_error != "raise":
        raise ValueError(f"on_error must be 'raise', None or a number, got {on_error!r}")
    scalars: list[float | None] = []
    for index, (number, error) in enumerate(numbers):
        if number is None and isinstance(on_error, str):
            code = error.code if error else "no_segments"
            reason = error.message if error else "the model found no segment"
            raise SampleFailed(f"sample {index} has no number: {code}: {reason}", code=code)
        scalars.append(on_error if number is None else number)  # type: ignore[arg-type]  # "raise" has left
    return scalars
