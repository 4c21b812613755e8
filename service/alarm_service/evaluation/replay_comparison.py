"""What a replay changed: rewards, ranks within groups, admission, aspects; in bounded memory."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from alarm_service.captures.lines import CapturedLine
from alarm_service.schemas import RewardOut

__all__ = [
    "AdmittedChange",
    "Change",
    "FailureChange",
    "LargestDifference",
    "RankChange",
    "ReplayComparison",
    "ReplayResult",
    "prompt_key",
]

#: Rewards that differ by less count as equal: batches differ in the last bits.
_TIE = 1e-4

#: Samples of one prompt that are compared with each other, and samples held for that.
_MAX_GROUP = 1024
_MAX_HELD = 65_536


@dataclass(frozen=True, slots=True)
class LargestDifference:
    """The sample whose value changed most."""

    request: str
    id: str | int | None
    before: float
    after: float


@dataclass(slots=True)
class Change:
    """The change of a value over samples that have it before and after."""

    num_samples: int = 0
    sum_before: float = 0.0
    sum_after: float = 0.0
    sum_absolute: float = 0.0
    largest: LargestDifference | None = None

    def add(self, line: CapturedLine, before: float, after: float) -> None:
        """Count one sample."""
        difference = abs(after - before)
        self.num_samples += 1
        self.sum_before += before
        self.sum_after += after
        self.sum_absolute += difference
        largest = self.largest
        if largest is None or difference > abs(largest.after - largest.before):
            self.largest = LargestDifference(line.request, line.sample.id, before, after)

    def summary(self) -> ChangeSummary:
        """Return the means."""
        num = self.num_samples or 1
        return ChangeSummary(
            self.num_samples,
            self.sum_before / num,
            self.sum_after / num,
            (self.sum_after - self.sum_before) / num,
            self.sum_absolute / num,
            self.largest,
        )


@dataclass(frozen=True, slots=True)
class ChangeSummary:
    """Means of a value before and after, and of its difference; 0 without samples."""

    num_samples: int
    mean_before: float
    mean_after: float
    mean_difference: float
    mean_absolute_difference: float
    largest: LargestDifference | None


@dataclass(slots=True)
class RankChange:
    """Pairs of samples of one prompt, by whether their order changed.

    A pair is tied where its rewards differ by at most 1e-4, as stored scores of a golden check may.
    """

    num_groups: int = 0
    num_pairs: int = 0
    num_reversed: int = 0
    num_newly_tied: int = 0
    num_untied: int = 0

    @property
    def share_changed(self) -> float | None:
        """The share of pairs whose order is another; None without pairs."""
        changed = self.num_reversed + self.num_newly_tied + self.num_untied
        return changed / self.num_pairs if self.num_pairs else None

    def add(self, before: Sequence[float], after: Sequence[float]) -> None:
        """Count the pairs of one group."""
        if len(before) < 2:
            return
        old, new = _orders(before), _orders(after)
        self.num_groups += 1
        self.num_pairs += len(old)
        self.num_reversed += int(np.count_nonzero(old * new < 0))
        self.num_newly_tied += int(np.count_nonzero((old != 0) & (new == 0)))
        self.num_untied += int(np.count_nonzero((old == 0) & (new != 0)))


def _orders(values: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.int8]]:
    """Return for each pair ``[pairs]`` whether the first is higher: 1, 0 for a tie, or -1."""
    column = np.asarray(values, dtype=float)
    first, second = np.triu_indices(len(column), 1)
    differences = column[first] - column[second]
    signs = np.where(np.abs(differences) <= _TIE, 0, np.sign(differences))
    return signs.astype(np.int8)


@dataclass(slots=True)
class AdmittedChange:
    """Samples by whether they were past the threshold, before and after."""

    num_both: int = 0
    num_neither: int = 0
    num_gained: int = 0
    num_lost: int = 0

    def add(self, before: bool, after: bool) -> None:
        """Count one sample."""
        self.num_both += before and after
        self.num_neither += not before and not after
        self.num_gained += after and not before
        self.num_lost += before and not after


@dataclass(slots=True)
class FailureChange:
    """Samples without a reward before, after, or both; codes of the failures after."""

    num_both: int = 0
    num_only_before: int = 0
    num_only_after: int = 0
    codes_after: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """What changed; ``captured`` counts samples by the recipe and fingerprint they had.

    ``most_changed_aspect`` is the one whose reward, before weighting, changed most in the mean;
    None where none changed.
    """

    recipe: str
    fingerprint: str
    captured: Mapping[str, int]
    num_samples: int
    num_scores_left_out: int
    num_of_incomplete_groups: int
    num_retried: int
    num_with_overrides: int
    failures: FailureChange
    rewards: ChangeSummary
    ranks: RankChange
    share_of_pairs_changed: float | None
    admitted: AdmittedChange
    aspects: Mapping[str, ChangeSummary]
    most_changed_aspect: str | None
    aspects_only_before: Sequence[str]
    aspects_only_after: Sequence[str]


class ReplayComparison:
    """Compares captured rewards with new ones, a few samples at a time."""

    def __init__(self, recipe: str) -> None:
        self._recipe = recipe
        self.num_scores_left_out = 0
        self.num_of_incomplete_groups = 0
        self.num_retried = 0
        self._num_samples = 0
        self._num_with_overrides = 0
        self._captured: Counter[str] = Counter()
        self._failures = FailureChange()
        self._rewards = Change()
        self._ranks = RankChange()
        self._admitted = AdmittedChange()
        self._aspects: dict[str, Change] = {}
        self._names_before: dict[str, None] = {}
        self._names_after: dict[str, None] = {}
        self._groups: OrderedDict[bytes, tuple[list[float], list[float]]] = OrderedDict()
        self._num_held = 0

    def add(self, lines: Sequence[CapturedLine], rewards: Sequence[RewardOut]) -> None:
        """Compare samples with their new rewards."""
        for line, after in zip(lines, rewards, strict=True):
            if line.reward is not None:
                self._add(line, line.reward, after)

    def result(self, fingerprint: str) -> ReplayResult:
        """Return what changed over all samples."""
        while self._groups:
            self._end_group(next(iter(self._groups)))
        aspects = {name: change.summary() for name, change in self._aspects.items()}
        return ReplayResult(
            recipe=self._recipe,
            fingerprint=fingerprint,
            captured=dict(self._captured),
            num_samples=self._num_samples,
            num_scores_left_out=self.num_scores_left_out,
            num_of_incomplete_groups=self.num_of_incomplete_groups,
            num_retried=self.num_retried,
            num_with_overrides=self._num_with_overrides,
            failures=self._failures,
            rewards=self._rewards.summary(),
            ranks=self._ranks,
            share_of_pairs_changed=self._ranks.share_changed,
            admitted=self._admitted,
            aspects=aspects,
            most_changed_aspect=_most_changed(aspects),
            aspects_only_before=[one for one in self._names_before if one not in self._names_after],
            aspects_only_after=[one for one in self._names_after if one not in self._names_before],
        )

    def _add(self, line: CapturedLine, before: RewardOut, after: RewardOut) -> None:
        self._num_samples += 1
        self._num_with_overrides += bool(line.overrides)
        self._captured[f"{line.recipe} {line.fingerprint}"] += 1
        self._names_before |= dict.fromkeys(before.aspects)
        self._names_after |= dict.fromkeys(after.aspects)
        if before.reward is None or after.reward is None:
            self._count_failure(before, after)
            return
        self._rewards.add(line, before.reward, after.reward)
        if before.admitted is not None and after.admitted is not None:
            self._admitted.add(before.admitted, after.admitted)
        for name, old in before.aspects.items():
            new = after.aspects.get(name)
            if old is not None and new is not None:
                self._aspects.setdefault(name, Change()).add(line, old.reward, new.reward)
        self._add_to_group(line, before.reward, after.reward)

    def _count_failure(self, before: RewardOut, after: RewardOut) -> None:
        if after.error is not None:
            self._failures.codes_after[after.error.code] += 1
        if before.reward is None and after.reward is None:
            self._failures.num_both += 1
        elif before.reward is None:
            self._failures.num_only_before += 1
        else:
            self._failures.num_only_after += 1

    def _add_to_group(self, line: CapturedLine, before: float, after: float) -> None:
        key = prompt_key(line)
        old, new = self._groups.setdefault(key, ([], []))
        self._groups.move_to_end(key)
        old.append(before)
        new.append(after)
        self._num_held += 1
        if len(old) >= _MAX_GROUP:
            self._end_group(key)
        while self._num_held > _MAX_HELD:
            self._end_group(next(iter(self._groups)))

    def _end_group(self, key: bytes) -> None:
        before, after = self._groups.pop(key)
        self._num_held -= len(before)
        self._ranks.add(before, after)


def _most_changed(aspects: Mapping[str, ChangeSummary]) -> str | None:
    changes = {name: one.mean_absolute_difference for name, one in aspects.items()}
    most = max(changes, key=lambda name: changes[name], default=None)
    return None if most is None or changes[most] <= _TIE else most


def prompt_key(line: CapturedLine) -> bytes:
    """Return what samples of one prompt have in common, if the same recipe rewarded them."""
    prompt = line.sample.model_dump(mode="json", include={"prompt"})
    content = [line.recipe, line.fingerprint, line.overrides, prompt]
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).digest()
