"""Encodes samples into request bodies, split under the server's limits; merges the results."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import groupby
from typing import Any, Generic, TypeAlias, TypeVar

from alarm_client._parsing import read_rewards, read_scores, sent_name
from alarm_client.errors import ProtocolError
from alarm_client.types import (
    Aspects,
    JudgeUsage,
    Limits,
    Overrides,
    RewardResult,
    Sample,
    SampleLike,
    ScoreResult,
    Usage,
)

#: The group of each sample, or None.
Groups: TypeAlias = Sequence["str | int | None"]

T = TypeVar("T")
U = TypeVar("U")


def split_ranges(
    groups: Groups, sizes: Sequence[int], most: int, max_samples: int, room: int
) -> Iterator[tuple[int, int]]:
    """Ranges `[start, end)` of about `most` samples, within `max_samples` and `room` bytes.

    `sizes`: bytes of each sample, separator included. Adjacent samples of a group stay together if
    they fit into one range; a sample larger than `room` gets a range of its own.
    """
    start = used = 0
    for first, end in _units(groups, sizes, max_samples, room):
        size = sum(sizes[first:end])
        is_full = first - start >= most or end - start > max_samples or used + size > room
        if first > start and is_full:
            yield start, first
            start, used = first, 0
        used += size
    yield start, len(groups)


def split_point(groups: Groups) -> int:
    """Where to split in half: at the group boundary nearest to the middle, else in the middle."""
    half = len(groups) // 2
    borders = [end for _, end in _runs(groups)][:-1]
    return min(borders, key=lambda border: abs(border - half), default=half)


def _units(
    groups: Groups, sizes: Sequence[int], max_samples: int, room: int
) -> Iterator[tuple[int, int]]:
    for first, end in _runs(groups):
        if end - first <= max_samples and sum(sizes[first:end]) <= room:
            yield first, end
        else:
            yield from ((index, index + 1) for index in range(first, end))


def _runs(groups: Groups) -> Iterator[tuple[int, int]]:
    """Adjacent samples of the same group; a sample without a group is a run of its own."""

    def of(index: int) -> tuple[str | int | None, int]:
        group = groups[index]
        return group, index if group is None else -1

    for _, run in groupby(range(len(groups)), of):
        indices = list(run)
        yield indices[0], indices[-1] + 1


def reorder_scores(result: ScoreResult, order: Sequence[int]) -> ScoreResult:
    """The result of samples sent in `order`, in the order of the call."""
    return replace(result, scores=_restored(result.scores, order))


def reorder_rewards(result: RewardResult, order: Sequence[int]) -> RewardResult:
    """As `reorder_scores`."""
    return replace(result, rewards=_restored(result.rewards, order))


def _restored(values: Sequence[U], order: Sequence[int]) -> tuple[U, ...]:
    placed = dict(zip(order, values, strict=True))
    return tuple(placed[index] for index in range(len(order)))


def merge_scores(results: Sequence[ScoreResult]) -> ScoreResult:
    """The results of one call's parts as one."""
    fingerprint = _one_fingerprint([result.fingerprint for result in results])
    scores = tuple(score for result in results for score in result.scores)
    return ScoreResult(results[0].model, fingerprint, scores, _sum(r.usage for r in results))


def merge_rewards(results: Sequence[RewardResult]) -> RewardResult:
    """The results of one call's parts as one."""
    fingerprint = _one_fingerprint([result.fingerprint for result in results])
    rewards = tuple(reward for result in results for reward in result.rewards)
    return RewardResult(results[0].recipe, fingerprint, rewards, _sum(r.usage for r in results))


def _sum(usages: Iterable[Usage]) -> Usage:
    every = list(usages)
    judges = [one.judge for one in every if one.judge is not None]
    return Usage(
        sum(one.num_tokens for one in every),
        sum(one.num_computed_tokens for one in every),
        _sum_of_judges(judges) if judges else None,
    )


def _sum_of_judges(usages: Sequence[JudgeUsage]) -> JudgeUsage:
    return JudgeUsage(
        sum(one.num_requests for one in usages),
        sum(one.num_cached for one in usages),
        sum(one.num_input_tokens for one in usages),
        sum(one.num_output_tokens for one in usages),
        sum(one.cost for one in usages),
    )


def _one_fingerprint(fingerprints: Sequence[str]) -> str:
    if len(set(fingerprints)) > 1:
        raise ProtocolError(
            f"the server changed during the call: fingerprints {sorted(set(fingerprints))}",
            retryable=True,
        )
    return fingerprints[0]


@dataclass(frozen=True, slots=True)
class Payload(Generic[T]):
    """Samples for one endpoint, and how to parse and merge the responses.

    `encoded` holds the JSON of each sample; `head` opens the body up to the list of samples.
    `recipe` is the named one, and `rule` the one that overrides its rule.
    """

    path: str
    head: bytes
    samples: tuple[Sample, ...]
    encoded: tuple[bytes, ...]
    read: Callable[[bytes, Sequence[Sample]], T]
    merge: Callable[[Sequence[T]], T]
    restore: Callable[[T, Sequence[int]], T]
    recipe: str | None = None
    rule: str | None = None

    @property
    def body(self) -> bytes:
        """The whole request body."""
        return self.head + b",".join(self.encoded) + b"]}"

    @property
    def num_bytes(self) -> int:
        """The size of the body, without building it."""
        return len(self.head) + sum(map(len, self.encoded)) + max(0, len(self.encoded) - 1) + 2

    @property
    def is_held(self) -> bool:
        """Whether the server may hold a sample until the rest of its group is there."""
        return any(sample.group_size is not None for sample in self.samples)

    @property
    def is_combined_at_once(self) -> bool:
        """Whether a rule combines the samples of one request, none of which waits for others."""
        return self.path == "/hierarchical_reward" and not self.is_held

    def ordered(self, order: Sequence[int]) -> Payload[T]:
        """The same call with its samples in another order."""
        return replace(
            self,
            samples=tuple(self.samples[index] for index in order),
            encoded=tuple(self.encoded[index] for index in order),
        )

    def part(self, start: int, end: int) -> Payload[T]:
        """The same call for some of the samples."""
        return replace(self, samples=self.samples[start:end], encoded=self.encoded[start:end])


def score_payload(samples: Sequence[SampleLike], model: str | None) -> Payload[ScoreResult]:
    """A call of `/score`; TypeError or ValueError names the sample and the field that is wrong."""
    normalized = as_samples(samples)
    head = _head({"model": text_of(model, "model")})
    return Payload(
        "/score", head, normalized, _encode(normalized), read_scores, merge_scores, reorder_scores
    )


def reward_payload(
    samples: Sequence[SampleLike],
    recipe: str | None,
    overrides: Overrides | None,
    aspects: Aspects,
) -> Payload[RewardResult]:
    """A call of `/hierarchical_reward`; errors as `score_payload`."""
    normalized = as_samples(samples)
    head = _head(
        {
            "recipe": text_of(recipe, "recipe"),
            "overrides": None if overrides is None else _overrides(overrides),
            "aspects": text_of(aspects, "aspects"),
        }
    )
    encoded = _encode(normalized)
    return Payload(
        "/hierarchical_reward",
        head,
        normalized,
        encoded,
        read_rewards,
        merge_rewards,
        reorder_rewards,
        text_of(recipe, "recipe"),
        None if overrides is None else overrides.get("rule"),
    )


def as_samples(samples: Sequence[SampleLike]) -> tuple[Sample, ...]:
    """The samples as `Sample` with plain values; the keys of a mapping must be fields of Sample."""
    if isinstance(samples, (str, bytes, Sample, Mapping)) or not isinstance(samples, Iterable):
        raise TypeError(
            f"samples must be a list of samples, got {describe(samples)}"
            + ("; wrap the sample in a list" if isinstance(samples, (Sample, Mapping)) else "")
        )
    return tuple(_sample(sample, f"samples[{index}]") for index, sample in enumerate(samples))


def require_splittable(job: Payload[T], recipes: Iterable[Mapping[str, object]]) -> None:
    """Raise ValueError if the rule normalizes rewards over one request.

    `recipes`: those of the server, the default one first; one of them names the rule if no override
    does.
    """
    rows = (row for row in recipes if job.recipe in (None, row.get("name")))
    rule = job.rule or next(rows, {}).get("rule")
    if rule in OVER_REQUESTS:
        raise ValueError(
            f"the rule {rule!r} normalizes rewards over one request, and these {len(job.samples)} "
            f"samples ({job.num_bytes} bytes) need several: send fewer in a call, raise the limits "
            "(--max-samples and --max-body-bytes of the server, or those of a gateway), or use the "
            "rule 'mo_grpo', which normalizes over groups"
        )


def fits_limits(job: Payload[T], limits: Limits) -> bool:
    """Whether the payload fits into one request."""
    return len(job.samples) <= limits.max_samples and job.num_bytes <= limits.max_body_bytes


def group_order(groups: Groups) -> list[int]:
    """The order in which the samples of a group are adjacent, at the place of its first one."""
    firsts: dict[str | int, int] = {}
    for index, group in enumerate(groups):
        if group is not None:
            firsts.setdefault(group, index)

    def place(index: int) -> int:
        group = groups[index]
        return index if group is None else firsts[group]

    return sorted(range(len(groups)), key=place)


def split(job: Payload[T], limits: Limits) -> list[Payload[T]]:
    """Split the payload into parts of about equal size within the limits; keeps groups whole.

    Samples of one group must be adjacent (`Payload.ordered`). A single sample over the limits is
    sent alone, and the server rejects it.
    """
    num_parts = max(
        -(-len(job.samples) // limits.max_samples), -(-job.num_bytes // limits.max_body_bytes), 1
    )
    most = -(-len(job.samples) // num_parts)
    # Each size includes the comma before the sample, which the first does not have.
    room = limits.max_body_bytes - len(job.head) - 1
    sizes = [len(piece) + 1 for piece in job.encoded]
    groups = [sample.group for sample in job.samples]
    parts = split_ranges(groups, sizes, most, limits.max_samples, room)
    return [job.part(start, end) for start, end in parts]


def split_in_two(job: Payload[T]) -> tuple[Payload[T], Payload[T]]:
    """The payload in two halves, split at a group boundary if there is one."""
    at = split_point([sample.group for sample in job.samples])
    return job.part(0, at), job.part(at, len(job.samples))


def _head(options: Mapping[str, object]) -> bytes:
    given = {name: value for name, value in options.items() if value is not None}
    return _dump(given)[:-1] + (b"," if given else b"") + b'"samples":['


def _overrides(overrides: object) -> object:
    if not isinstance(overrides, Mapping):
        raise TypeError(f"overrides must be a mapping, got {describe(overrides)}")
    return json_of(overrides, "overrides")


def _sample(sample: object, where: str) -> Sample:
    if isinstance(sample, Mapping):
        names = [key_of(name, where) for name in sample]
        unknown = [name for name in names if name not in _NAMES]
        missing = [name for name in ("prompt", "completion") if name not in names]
        if unknown or missing:
            wrong = f"has no field {unknown[0]!r}" if unknown else f"has no {missing[0]}"
            raise TypeError(f"{where} {wrong}; the fields of a sample are {', '.join(_NAMES)}")
        sample = Sample(**sample)
    if not isinstance(sample, Sample):
        raise TypeError(f"{where} must be a Sample or a mapping, got {describe(sample)}")
    offsets, segments = sample.token_offsets, sample.segments
    size = _group_size(sample, where)
    name = name_of(sample.id, f"{where}.id")
    return Sample(
        prompt=texts_or_messages(sample.prompt, f"{where}.prompt"),
        completion=texts_or_messages(sample.completion, f"{where}.completion"),
        fields=None if sample.fields is None else _fields(sample.fields, f"{where}.fields"),
        token_offsets=None if offsets is None else spans_of(offsets, f"{where}.token_offsets"),
        segments=None if segments is None else _segments(segments, f"{where}.segments"),
        id=uuid.uuid4().hex if name is None and size is not None else name,
        group=name_of(sample.group, f"{where}.group"),
        group_size=size,
        tools=None if sample.tools is None else _tools(sample.tools, f"{where}.tools"),
        finish_reason=text_of(sample.finish_reason, f"{where}.finish_reason"),
        continue_final_message=_flag(
            sample.continue_final_message, f"{where}.continue_final_message"
        ),
    )


_NAMES = tuple(one.name for one in fields(Sample))


def _flag(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{where} must be True or False, got {describe(value)}")
    return value


def _group_size(sample: Sample, where: str) -> int | None:
    if sample.group_size is None:
        return None
    size = integer_of(sample.group_size, f"{where}.group_size")
    if size < 1:
        raise ValueError(f"{where}.group_size must be 1 or more, got {size}")
    if sample.group is None:
        raise ValueError(f"{where}.group_size is {size}, but the sample has no group")
    return size


def _fields(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, Mapping):
        raise TypeError(
            f"{where} must be a mapping from names to JSON values, got {describe(value)}"
        )
    return {key_of(name, where): _field(one, f"{where}[{name!r}]") for name, one in value.items()}


def _field(value: object, where: str) -> object:
    if isinstance(value, (bytes, bytearray)):
        raise TypeError(f"{where} must be a JSON value, got {describe(value)}; decode it")
    return json_of(value, where)


def _tools(value: object, where: str) -> list[Mapping[str, object]]:
    if not is_list(value):
        raise TypeError(f"{where} must be a list of JSON objects, got {describe(value)}")
    return [_tool(tool, f"{where}[{index}]") for index, tool in enumerate(rows_of(value))]


def _tool(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        hint = "; describe the function as a JSON schema" if callable(value) else ""
        raise TypeError(f"{where} must be a JSON object, got {describe(value)}{hint}")
    tool: Mapping[str, object] = json_of(value, where)
    return tool


def _segments(value: object, where: str) -> dict[str, list[Sequence[int]]]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{where} must be a mapping from names to spans, got {describe(value)}")
    return {
        key_of(name, where): spans_of(spans, f"{where}[{name!r}]") for name, spans in value.items()
    }


def _encode(samples: Sequence[Sample]) -> tuple[bytes, ...]:
    return tuple(_dump(_present(sample)) for sample in samples)


def _present(sample: Sample) -> dict[str, object]:
    values = {name: getattr(sample, name) for name in _NAMES}
    if not sample.continue_final_message:  # servers before it know no such key
        del values["continue_final_message"]
    present = {name: value for name, value in values.items() if value is not None}
    for name in ("id", "group"):
        if name in present:
            present[name] = sent_name(present[name])
    return present


def _dump(value: object) -> bytes:
    # "replace": UTF-8 cannot encode a lone surrogate; one "?" in its place keeps the offsets valid.
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


_MOST_DIGITS = 4300  # Python's limit for converting integers to text
_DEEPEST = 100

# Rules that normalize over a request, and not only over the groups in it.
OVER_REQUESTS = ("gdpo",)


def describe(value: object) -> str:
    """A value's type, with the value itself if it is a short number."""
    name = type(value).__name__
    return f"{name} {value!r}" if isinstance(value, (bool, float)) else name


def scalar_of(value: Any) -> Any:
    """The value of a numpy scalar or of an array without dimensions; other values unchanged."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    return value


def rows_of(value: Any) -> Any:
    """The rows of an array or a tensor as lists; other values unchanged."""
    return value.tolist() if hasattr(value, "tolist") else value


def integer_of(value: object, where: str) -> int:
    """An integer, or a float with an integer value; TypeError or ValueError otherwise."""
    value = scalar_of(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, float):
        raise ValueError(f"{where} must be an integer, got {value!r}")
    raise TypeError(f"{where} must be an integer, got {describe(value)}")


def name_of(value: object, where: str) -> str | int | None:
    """A string or an integer used as an identifier, or None."""
    value = scalar_of(value)
    if value is None:
        return None
    if isinstance(value, str):
        return _plain_text(value)
    if isinstance(value, float) and not value.is_integer():
        raise ValueError(f"{where} must be a string, an integer or None, got {value!r}")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _writable(integer_of(value, where), where)
    raise TypeError(
        f"{where} must be a string, an integer or None, got {describe(value)}; "
        "convert it with str()"
    )


def text_of(value: object, where: str) -> str | None:
    """A string or None."""
    value = scalar_of(value)
    if value is None:
        return None
    if isinstance(value, str):
        return _plain_text(value)
    raise TypeError(f"{where} must be a string, got {describe(value)}")


def json_of(value: object, where: str, depth: int = 0) -> Any:
    """A JSON value; mappings become objects, arrays and tuples become lists."""
    value = scalar_of(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _plain_text(value)
    if isinstance(value, int):
        return _writable(int(value), where)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} must be finite, got {value!r}")
        return float(value)
    if depth == _DEEPEST:
        raise ValueError(f"{where} is nested deeper than {_DEEPEST} levels")
    if isinstance(value, Mapping):
        return {
            key_of(key, where): json_of(inner, f"{where}[{key!r}]", depth + 1)
            for key, inner in value.items()
        }
    if is_list(value):
        return [
            json_of(inner, f"{where}[{index}]", depth + 1)
            for index, inner in enumerate(rows_of(value))
        ]
    raise TypeError(f"{where} must be a JSON value, got {describe(value)}")


def key_of(key: object, where: str) -> str:
    """A key of a JSON object."""
    if not isinstance(key, str):
        raise TypeError(f"{where} must have strings as keys, got {describe(key)}")
    return _plain_text(key)


def is_list(value: object) -> bool:
    """Whether a value is a list, a tuple, an array or a tensor."""
    return isinstance(value, (list, tuple)) or (
        hasattr(value, "tolist") and isinstance(rows_of(value), list)
    )


def object_of_message(message: Any, where: str) -> dict[str, Any]:
    """A chat message: a mapping, a dataclass, or an object with `model_dump` (pydantic's)."""
    if isinstance(message, Mapping):
        given = message
    elif hasattr(message, "model_dump"):
        # Unset fields are None and must not be sent as null.
        given = message.model_dump(exclude_none=True)
        if "content" not in given and hasattr(message, "content"):
            given = {**given, "content": None}
    elif is_dataclass(message) and not isinstance(message, type):
        given = {
            field.name: getattr(message, field.name)
            for field in fields(message)
            if field.name == "content" or getattr(message, field.name) is not None
        }
    else:
        raise TypeError(
            f"{where} must be a message, an object with role and content, got {describe(message)}"
        )
    if not isinstance(given, Mapping):
        raise TypeError(f"{where} must be a message, got {describe(message)}")
    plain: dict[str, Any] = json_of(given, where)
    return plain


def texts_or_messages(value: object, where: str) -> str | list[dict[str, Any]]:
    """A prompt or a completion."""
    value = scalar_of(value)
    if isinstance(value, str):
        return _plain_text(value)
    if is_list(value):
        messages: Iterable[Any] = rows_of(value)
        return [
            object_of_message(message, f"{where}[{index}]")
            for index, message in enumerate(messages)
        ]
    hint = "; decode it first" if isinstance(value, (bytes, bytearray)) else ""
    raise TypeError(f"{where} must be a string or a list of messages, got {describe(value)}{hint}")


def spans_of(value: Any, where: str) -> list[Sequence[int]]:
    """`[start, end)` pairs, as lists or tuples."""
    rows = rows_of(value)
    if isinstance(rows, (str, bytes, Mapping)) or not isinstance(rows, Iterable):
        raise TypeError(f"{where} must be a list of [start, end), got {describe(value)}")
    # There is one span per token, so the common case is returned without a copy.
    return [
        row
        if type(row) is tuple and len(row) == 2 and type(row[0]) is type(row[1]) is int
        else _span(row, where, index)
        for index, row in enumerate(rows)
    ]


def _span(row: Any, where: str, index: int) -> list[int]:
    try:
        if isinstance(row, (str, bytes, Mapping)):
            raise TypeError
        start, end = rows_of(row)
    except (TypeError, ValueError):
        got = f"a list of {len(row)}" if is_list(row) and hasattr(row, "__len__") else describe(row)
        raise ValueError(f"{where}[{index}] must be [start, end), got {got}") from None
    if type(start) is int and type(end) is int:
        return [start, end]
    place = f"{where}[{index}]"
    return [integer_of(start, f"{place}[0]"), integer_of(end, f"{place}[1]")]


def _plain_text(value: str) -> str:
    return str.__str__(value)  # str() of an enum member is its name


def _writable(value: int, where: str) -> int:
    if value.bit_length() > 3 * _MOST_DIGITS:
        raise ValueError(f"{where} has more digits than can be sent")
    return value
