"""`alarm audit`: looks for signs in a capture that the policy games its reward."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from alarm_service.captures.lines import read_numbered
from alarm_service.evaluation.errors import StudyError
from alarm_service.observability.gaming import (
    INTENDED,
    RULE,
    TIE,
    Drift,
    Limits,
    RewardRecord,
    figures_of,
    flat_groups,
    grouped,
    shared_segment_share,
    shared_texts,
)
from alarm_service.schemas import RewardOut, SampleIn, sample_in

__all__ = ["AuditResult", "Evidence", "Finding", "RecipeAudit", "audit"]

#: Samples that are named for a figure.
_MAX_EVIDENCE = 5


class _Line(BaseModel):
    """What an audit reads of a captured line; its texts may be redacted."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    request: str
    sample: dict[str, Any]
    recipe: str | None = None
    fingerprint: str
    reward: RewardOut | None = None
    parts: dict[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """A sample to look at: its file and line, its id, and what it earned."""

    file: str
    line: int
    id: str | int | None
    reward: float


@dataclass(frozen=True, slots=True)
class _Audited:
    """A captured sample with its reward."""

    prompt: str
    record: RewardRecord
    #: Aspect -> texts of the segments that it judged; none where the capture is redacted.
    segments: Mapping[str, Sequence[str]]
    evidence: Evidence

    def texts(self, aspect: str) -> list[tuple[str, str]]:
        """Return the prompt with each segment's text."""
        return [(self.prompt, text) for text in self.segments.get(aspect, ())]


@dataclass(frozen=True, slots=True)
class Finding:
    """One figure: its largest value in a window of samples, and the samples to look at there.

    ``subject`` is the component, aspect or direction that it is about. ``value`` is None if no
    window has enough samples. ``num_passed`` counts the windows beyond the limit.
    """

    figure: str
    subject: str | None
    limit: float | None
    value: float | None = None
    num_windows: int = 0
    num_passed: int = 0
    first: Evidence | None = None
    last: Evidence | None = None
    evidence: Sequence[Evidence] = ()


@dataclass(frozen=True, slots=True)
class RecipeAudit:
    """The figures of the samples that one fingerprint of a recipe rewarded."""

    recipe: str
    fingerprint: str
    num_samples: int
    num_windows: int
    findings: Sequence[Finding]


@dataclass(frozen=True, slots=True)
class AuditResult:
    """What an audit found; ``num_passed`` counts the figures beyond their limits."""

    num_samples: int
    num_without_reward: int
    num_scores_left_out: int
    errors: Mapping[str, int]
    limits: Limits
    window: int
    num_passed: int
    recipes: Sequence[RecipeAudit]


def audit(files: Sequence[Path], limits: Limits, window: int) -> AuditResult:
    """Compute the figures of captured files; raise `AlarmModelsError` and `OSError`.

    Files are read as a stream, in windows of consecutive samples of the same fingerprint.
    """
    streams: dict[tuple[str, str], _Stream] = {}
    errors: Counter[str] = Counter()
    num_scores = 0
    for file, number, line in _lines(files):
        if line.reward is None:
            num_scores += 1
        elif line.reward.error is not None:
            errors[line.reward.error.code] += 1
        else:
            key = (line.recipe or "", line.fingerprint)
            stream = streams.setdefault(key, _Stream(limits, window))
            stream.add(_audited(file, number, line))
    recipes = [stream.result(*key) for key, stream in streams.items()]
    if not recipes:
        raise StudyError("the capture has no sample with a reward, so there is nothing to audit")
    return AuditResult(
        num_samples=sum(one.num_samples for one in recipes),
        num_without_reward=errors.total(),
        num_scores_left_out=num_scores,
        errors=dict(errors),
        limits=limits,
        window=window,
        num_passed=sum(one.num_passed > 0 for recipe in recipes for one in recipe.findings),
        recipes=recipes,
    )


def _lines(files: Sequence[Path]) -> Iterator[tuple[Path, int, _Line]]:
    for file in files:
        # A server that still captures may have removed the oldest file.
        with suppress(FileNotFoundError):
            for number, line in read_numbered(file, _Line):
                yield file, number, line


def _audited(file: Path, number: int, line: _Line) -> _Audited:
    reward = line.reward
    if reward is None or reward.reward is None or reward.holistic is None:
        raise StudyError(f"{file}, line {number}: its reward has no `reward` or no `holistic`")
    prompt, completion = _prompt_of(line.sample), _completion_of(line.sample)
    record = RewardRecord(
        group=(line.request, prompt),
        num_characters=(
            line.sample["num_completion_chars"] if completion is None else len(completion)
        ),
        reward=reward.reward,
        z=reward.holistic.normalized,
        parts=line.parts,
        admitted=bool(reward.admitted),
        truncated=reward.truncated,
        omitted=reward.omitted,
    )
    named = Evidence(file.name, number, line.sample.get("id"), reward.reward)
    return _Audited(prompt, record, _segments_of(completion, reward), named)


def _prompt_of(sample: Mapping[str, Any]) -> str:
    """Return what samples of one prompt have in common; redacted captures have its hash."""
    if "prompt_sha256" in sample:
        return str(sample["prompt_sha256"])
    content = json.dumps(sample.get("prompt")).encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _completion_of(sample: Mapping[str, Any]) -> str | None:
    """Return the completion's text; None where it is redacted."""
    if "num_completion_chars" in sample:
        return None
    completion = sample.get("completion")
    if isinstance(completion, str):
        return completion
    return sample_in(SampleIn.model_validate(sample)).completion_text


def _segments_of(completion: str | None, reward: RewardOut) -> dict[str, list[str]]:
    if completion is None:
        return {}
    return {
        name: [
            completion[one.start : one.end].strip().casefold()
            for one in aspect.segments
            if one.score is not None
        ]
        for name, aspect in reward.aspects.items()
        if aspect is not None and aspect.segments
    }


class _Stream:
    """The samples of one fingerprint, a window at a time."""

    def __init__(self, limits: Limits, size: int) -> None:
        self._limits = limits
        self._size = size
        self._samples: list[_Audited] = []
        self._drift = Drift()
        self._findings: dict[tuple[str, str | None], Finding] = {}
        self._num_samples = 0
        self._num_windows = 0

    def add(self, sample: _Audited) -> None:
        """Add the next sample."""
        self._samples.append(sample)
        if len(self._samples) == self._size:
            self._end_window()

    def result(self, recipe: str, fingerprint: str) -> RecipeAudit:
        """Return what was found, with the figures beyond their limits first."""
        if self._samples:
            self._end_window()
        findings = sorted(self._findings.values(), key=lambda one: one.num_passed == 0)
        return RecipeAudit(recipe, fingerprint, self._num_samples, self._num_windows, findings)

    def _end_window(self) -> None:
        samples, self._samples = _joined(self._samples), []
        self._num_samples += len(samples)
        self._num_windows += 1
        for figure, subject, limit, value, choose in self._figures(samples):
            key = (figure, subject)
            found = self._findings.setdefault(key, Finding(figure, subject, limit))
            self._findings[key] = _with_window(found, value, samples, choose)

    def _figures(self, samples: Sequence[_Audited]) -> Iterator[_Figure]:
        records = [one.record for one in samples]
        figures, limits = figures_of(records), self._limits
        yield (
            "zero_deviation_share",
            None,
            limits.zero_deviation_share,
            figures.zero_deviation_share,
            _in_flat_groups,
        )
        yield "ceiling_share", None, limits.ceiling_share, figures.ceiling_share, _at_ceiling
        yield from self._drifts(samples)
        for component, value in figures.variance_shares.items():
            limit = None if component == "holistic" else limits.variance_share
            yield "variance_share", component, limit, value, _highest_part(component)
        for aspect, value in figures.opposed_shares.items():
            yield "opposed_share", aspect, limits.opposed_share, value, _highest_part(aspect)
        for aspect in dict.fromkeys(name for one in samples for name in one.segments):
            segments = [text for one in samples for text in one.texts(aspect)]
            share = shared_segment_share(segments)
            choose = _most_shared(aspect, shared_texts(segments))
            yield "shared_segment_share", aspect, limits.shared_segment_share, share, choose
        length = figures.length_correlation
        yield (
            "length_correlation",
            None,
            limits.length_correlation,
            None if length is None else abs(length),
            _longest if length is None or length > 0 else _shortest,
        )
        yield "truncated_share", None, limits.truncated_share, figures.truncated_share, _truncated
        yield "omitted_share", None, limits.omitted_share, figures.omitted_share, _omitted
        yield "admitted_share", None, None, figures.admitted_share, _none

    def _drifts(self, samples: Sequence[_Audited]) -> Iterator[_Figure]:
        """Yield the highest level that each side of the CUSUM reaches in the window."""
        up = down = 0.0
        for group in grouped(one.record for one in samples).values():
            self._drift.add(sum(one.z for one in group) / len(group))
            up, down = max(up, self._drift.up), max(down, self._drift.down)
        limit = self._limits.drift
        yield "drift", "up", limit, up, _by(lambda one: one.z)
        yield "drift", "down", limit, down, _by(lambda one: -one.z)


#: Chooses the samples to look at, best first.
_Choose = Callable[[Sequence[_Audited]], Sequence[_Audited]]

#: Name, subject, limit, value, and how the samples to look at are chosen.
_Figure = tuple[str, str | None, float | None, float | None, _Choose]


def _joined(samples: Sequence[_Audited]) -> list[_Audited]:
    """Put samples of a prompt that came one by one into one group."""
    sizes = Counter(one.record.group for one in samples)

    def of(one: _Audited) -> _Audited:
        if sizes[one.record.group] > 1:
            return one
        return replace(one, record=replace(one.record, group=("", one.prompt)))

    return [of(one) for one in samples]


def _with_window(
    found: Finding, value: float | None, samples: Sequence[_Audited], choose: _Choose
) -> Finding:
    """Count a window, and keep it if its value is the largest so far."""
    if value is None:
        return found
    is_passed = found.limit is not None and value > found.limit
    found = replace(
        found, num_windows=found.num_windows + 1, num_passed=found.num_passed + is_passed
    )
    if found.value is not None and value <= found.value:
        return found
    chosen = _of_distinct_prompts(choose(samples)) if is_passed else ()
    return replace(
        found,
        value=value,
        first=samples[0].evidence,
        last=samples[-1].evidence,
        evidence=[one.evidence for one in chosen],
    )


def _of_distinct_prompts(samples: Sequence[_Audited]) -> list[_Audited]:
    """Return the first samples, one per prompt, so that they show more than one case."""
    chosen: dict[str, _Audited] = {}
    for one in samples:
        chosen.setdefault(one.prompt, one)
        if len(chosen) == _MAX_EVIDENCE:
            break
    return list(chosen.values())


def _by(key: Callable[[RewardRecord], float]) -> _Choose:
    return lambda samples: sorted(samples, key=lambda one: key(one.record), reverse=True)


def _highest_part(name: str) -> _Choose:
    def part(one: RewardRecord) -> float:
        parts = one.parts or {}
        return one.reward - sum(parts.values()) if name == RULE else parts.get(name, 0.0)

    return _by(part)


def _most_shared(aspect: str, shared: set[str]) -> _Choose:
    def num_shared(one: _Audited) -> int:
        return sum(text in shared for text in one.segments.get(aspect, ()))

    return lambda samples: sorted(samples, key=num_shared, reverse=True)


_longest = _by(lambda one: one.num_characters)
_shortest = _by(lambda one: -one.num_characters)


def _none(_: Sequence[_Audited]) -> Sequence[_Audited]:
    return ()


def _in_flat_groups(samples: Sequence[_Audited]) -> Sequence[_Audited]:
    groups = [one for one in grouped(one.record for one in samples).values() if len(one) > 1]
    flat = {group[0].group for group in flat_groups(groups)}
    return [one for one in samples if one.record.group in flat]


def _at_ceiling(samples: Sequence[_Audited]) -> Sequence[_Audited]:
    ceiling = max(one.record.reward for one in samples)
    return [one for one in samples if one.record.reward >= ceiling - TIE]


def _truncated(samples: Sequence[_Audited]) -> Sequence[_Audited]:
    return [one for one in samples if one.record.truncated]


def _omitted(samples: Sequence[_Audited]) -> Sequence[_Audited]:
    return [one for one in samples if not INTENDED.issuperset(one.record.omitted)]
