"""Parses responses into checked results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NoReturn, TypeAlias

from alarm_client.errors import ProtocolError
from alarm_client.types import (
    AspectReward,
    Catalogue,
    Holistic,
    Id,
    JudgeUsage,
    Limits,
    Reward,
    RewardResult,
    Sample,
    SampleError,
    Score,
    ScoreResult,
    SegmentScore,
    Usage,
)

Json: TypeAlias = Mapping[str, object]
_LARGEST = 1.7e308


def read_object(body: bytes) -> Json:
    """The JSON object in a body; NaN and infinity are rejected."""
    try:
        value = json.loads(body, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        start = body[:80].decode("utf-8", "replace")
        raise ProtocolError(f"the response is not JSON ({error}): {start!r}") from error
    return object_of(value, "the answer")


def number(value: object, name: str) -> float:
    """A finite number."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not -_LARGEST < value < _LARGEST:  # type: ignore[operator]  # is_number
        raise ProtocolError(f"{name} must be a finite number, got {str(value)[:80]}")
    return float(value)  # type: ignore[arg-type]  # is_number


def optional_number(row: Json, name: str) -> float | None:
    """A finite number, or None if the value is null or absent."""
    return None if row.get(name) is None else number(row[name], name)


def positive(value: object, fallback: int) -> int:
    """A count of one or more, or the fallback."""
    return value if isinstance(value, int) and value > 0 else fallback


def text(row: Json, name: str) -> str:
    """A text."""
    value = row.get(name)
    if not isinstance(value, str):
        raise ProtocolError(f"{name} must be a string, got {str(value)[:80]!r}")
    return value


def object_of(value: object, name: str) -> Json:
    """An object."""
    if not isinstance(value, dict):
        raise ProtocolError(f"{name} must be an object, got {str(value)[:80]!r}")
    return value


def list_of(value: object, name: str) -> list[object]:
    """A list."""
    if not isinstance(value, list):
        raise ProtocolError(f"{name} must be a list, got {str(value)[:80]!r}")
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def read_scores(body: bytes, samples: Sequence[Sample]) -> ScoreResult:
    """The response of `/score`; ProtocolError unless it has one valid score per sample."""
    answer = read_object(body)
    rows = _rows(answer, "scores", samples)
    return ScoreResult(
        text(answer, "model"),
        text(answer, "fingerprint"),
        tuple(_score(row, sample) for row, sample in zip(rows, samples, strict=True)),
        _usage(answer),
    )


def read_rewards(body: bytes, samples: Sequence[Sample]) -> RewardResult:
    """The response of `/hierarchical_reward`; ProtocolError unless each sample has its reward."""
    answer = read_object(body)
    rows = _rows(answer, "rewards", samples)
    pairs = zip(rows, samples, strict=True)
    return RewardResult(
        text(answer, "recipe"),
        text(answer, "fingerprint"),
        tuple(_reward(row, sample) for row, sample in pairs),
        _usage(answer),
    )


def read_catalogue(body: bytes) -> Catalogue:
    """The response of `/models`; absent limits get their defaults."""
    answer = read_object(body)
    limits = object_of(answer.get("limits") or {}, "limits")
    defaults = Limits()
    return Catalogue(
        tuple(object_of(row, "a model") for row in list_of(answer.get("models", []), "models")),
        tuple(object_of(row, "a recipe") for row in list_of(answer.get("recipes", []), "recipes")),
        Limits(
            positive(limits.get("max_samples"), defaults.max_samples),
            positive(limits.get("max_body_bytes"), defaults.max_body_bytes),
        ),
    )


def sent_name(name: Id) -> Id:
    """An id or a group as it is sent: a lone surrogate, which UTF-8 cannot encode, is escaped."""
    if isinstance(name, str):
        return name.encode("utf-8", "backslashreplace").decode()
    return name


def _score(row: Json, sample: Sample) -> Score:
    score = optional_number(row, "score")
    tokens = int(number(row.get("num_tokens", 0), "num_tokens"))
    outputs = None
    if row.get("outputs") is not None:
        named = object_of(row["outputs"], "outputs")
        outputs = {name: number(value, "outputs") for name, value in named.items()}
    return Score(
        _id(row, sample),
        score,
        _segments(row),
        tokens,
        bool(row.get("truncated")),
        _error(row),
        outputs,
        _texts(row, "omitted"),
        _output_segments(row),
        _texts(row, "skipped"),
    )


def _reward(row: Json, sample: Sample) -> Reward:
    error = _error(row)
    reward = optional_number(row, "reward")
    if reward is None and error is None:
        raise ProtocolError("a reward is null without an error")
    token_rewards = _token_rewards(row)
    if error is None and sample.token_offsets is not None:
        got = "none" if token_rewards is None else len(token_rewards)
        if got != len(sample.token_offsets):
            raise ProtocolError(
                f"{len(sample.token_offsets)} token_offsets were sent, {got} token_rewards received"
            )
    return Reward(
        _id(row, sample),
        reward,
        token_rewards,
        _holistic(row),
        None if row.get("admitted") is None else bool(row["admitted"]),
        {
            name: _aspect(value)
            for name, value in object_of(row.get("aspects") or {}, "aspects").items()
        },
        bool(row.get("truncated")),
        error,
        _texts(row, "omitted"),
    )


def _holistic(row: Json) -> Holistic | None:
    if row.get("holistic") is None:
        return None
    holistic = object_of(row["holistic"], "holistic")
    normalized = number(holistic.get("normalized"), "normalized")
    return Holistic(optional_number(holistic, "score"), normalized, _segments(holistic))


def _aspect(value: object) -> AspectReward | None:
    if value is None:
        return None
    aspect = object_of(value, "an aspect")
    reward = optional_number(aspect, "reward")
    if reward is None:
        return None
    return AspectReward(reward, _token_rewards(aspect), _segments(aspect))


def _segments(row: Json) -> tuple[SegmentScore, ...] | None:
    return None if row.get("segments") is None else _segments_of(row["segments"])


def _segments_of(values: object) -> tuple[SegmentScore, ...]:
    segments = [object_of(value, "a segment") for value in list_of(values, "segments")]
    return tuple(
        SegmentScore(
            int(number(segment.get("start"), "start")),
            int(number(segment.get("end"), "end")),
            None if segment.get("label") is None else str(segment["label"]),
            optional_number(segment, "score"),
        )
        for segment in segments
    )


def _output_segments(row: Json) -> Mapping[str, tuple[SegmentScore, ...]] | None:
    if row.get("output_segments") is None:
        return None
    named = object_of(row["output_segments"], "output_segments")
    return {name: _segments_of(values) for name, values in named.items()}


def _token_rewards(row: Json) -> tuple[float, ...] | None:
    values = row.get("token_rewards")
    if values is None:
        return None
    return tuple(number(value, "token_rewards") for value in list_of(values, "token_rewards"))


def _rows(answer: Json, name: str, samples: Sequence[Sample]) -> list[Json]:
    rows = [object_of(row, name) for row in list_of(answer.get(name), name)]
    if len(rows) != len(samples):
        raise ProtocolError(f"{len(samples)} samples were sent, {len(rows)} {name} received")
    for row, sample in zip(rows, samples, strict=True):
        if sample.id is not None and row.get("id") != sent_name(sample.id):
            raise ProtocolError(f"{name} are out of order: {row.get('id')!r} for {sample.id!r}")
    return rows


def _texts(row: Json, name: str) -> tuple[str, ...]:
    """A list of texts; empty if the key is absent, as from servers that do not know it."""
    values = [] if row.get(name) is None else list_of(row[name], name)
    return tuple(map(str, values))


def _error(row: Json) -> SampleError | None:
    if row.get("error") is None:
        return None
    error = object_of(row["error"], "error")
    return SampleError(str(error.get("code")), str(error.get("message")))


def _id(row: Json, sample: Sample) -> Id:
    if sample.id is not None:
        return sample.id  # the caller's own, even if it was escaped when sent
    value = row.get("id")
    return value if isinstance(value, int) or value is None else str(value)


def _usage(answer: Json) -> Usage:
    usage = object_of(answer.get("usage") or {}, "usage")
    tokens = int(number(usage.get("num_tokens", 0), "num_tokens"))
    computed = int(number(usage.get("num_computed_tokens", tokens), "usage"))
    return Usage(tokens, computed, _judge_usage(usage.get("judge")))


def _judge_usage(value: object) -> JudgeUsage | None:
    if value is None:
        return None
    judge = object_of(value, "usage.judge")

    def count(name: str) -> int:
        return int(number(judge.get(name, 0), f"usage.judge.{name}"))

    return JudgeUsage(
        count("num_requests"),
        count("num_cached"),
        count("num_input_tokens"),
        count("num_output_tokens"),
        number(judge.get("cost", 0), "usage.judge.cost"),
    )
