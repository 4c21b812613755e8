"""What the HTML report of `alarm replay` shows of single samples; in bounded memory."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from alarm_service.captures.lines import CapturedLine, Constants
from alarm_service.evaluation.replay_comparison import prompt_key
from alarm_service.schemas import RewardOut

__all__ = ["ChangedSample", "Ranks", "ReplayExamples", "RewardPair"]

#: Samples shown with all their parts, and pairs of rewards shown in charts.
_MAX_EXAMPLES = 40
_MAX_PAIRS = 4000


@dataclass(frozen=True, slots=True)
class Ranks:
    """The place of a sample among those of its prompt that were scored with it; 1 is the best."""

    before: int
    after: int
    num_samples: int


@dataclass(frozen=True, slots=True)
class ChangedSample:
    """A sample with its reward before and after."""

    line: CapturedLine
    before: RewardOut
    after: RewardOut
    ranks: Ranks


@dataclass(frozen=True, slots=True)
class RewardPair:
    """The rewards of one sample, and whether it was past the threshold."""

    before: float
    after: float
    was_admitted: bool
    is_admitted: bool


class ReplayExamples:
    """Keeps the samples whose reward changed most, and a random part of all pairs of rewards.

    ``constants`` are those of the new rewards.
    """

    def __init__(self, constants: Constants, seed: int = 0) -> None:
        self.constants = constants
        self.num_samples = 0
        self.num_with_parts = 0
        self.pairs: list[RewardPair] = []
        self._changes: dict[str, float] = {}
        self._random = random.Random(seed)
        self._heap: list[tuple[float, int, ChangedSample]] = []

    def add(self, lines: Sequence[CapturedLine], rewards: Sequence[RewardOut]) -> None:
        """Consider samples that were scored together."""
        groups: dict[bytes, list[tuple[CapturedLine, RewardOut, RewardOut, float, float]]] = {}
        for line, after in zip(lines, rewards, strict=True):
            before = line.reward
            if before is None or before.reward is None or after.reward is None:
                continue
            members = groups.setdefault(prompt_key(line), [])
            members.append((line, before, after, before.reward, after.reward))
        for members in groups.values():
            old = [one[3] for one in members]
            new = [one[4] for one in members]
            for line, before, after, was, now in members:
                ranks = Ranks(_rank(was, old), _rank(now, new), len(members))
                self._add(ChangedSample(line, before, after, ranks), was, now)

    def most_changed(self) -> list[ChangedSample]:
        """Return the samples whose reward changed most, the largest change first."""
        return [one for *_, one in sorted(self._heap, key=lambda entry: (-entry[0], entry[1]))]

    def mean_changes(self) -> dict[str, float]:
        """Return the mean absolute change of each part, where the rewards are weighted sums."""
        num = self.num_with_parts or 1
        return {name: change / num for name, change in self._changes.items()}

    def _add_parts(self, changed: ChangedSample) -> None:
        old = _parts(changed.before, changed.line.constants)
        new = _parts(changed.after, self.constants)
        if old is None or new is None:
            return
        self.num_with_parts += 1
        for name in {**old, **new}:
            change = abs(new.get(name, 0.0) - old.get(name, 0.0))
            self._changes[name] = self._changes.get(name, 0.0) + change

    def _add(self, changed: ChangedSample, was: float, now: float) -> None:
        self.num_samples += 1
        self._add_parts(changed)
        entry = (abs(now - was), -self.num_samples, changed)
        if len(self._heap) < _MAX_EXAMPLES:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heappushpop(self._heap, entry)
        pair = RewardPair(was, now, bool(changed.before.admitted), bool(changed.after.admitted))
        if len(self.pairs) < _MAX_PAIRS:
            self.pairs.append(pair)
        elif (at := self._random.randrange(self.num_samples)) < _MAX_PAIRS:
            self.pairs[at] = pair


def _parts(reward: RewardOut, constants: Constants | None) -> dict[str, float] | None:
    """Return what each part adds to a reward; None where it is no known weighted sum."""
    if constants is None or reward.holistic is None:
        return None
    counted = _COUNTED.get(constants.rule)
    if counted is None:
        return None
    has_holistic, has_aspects = counted(bool(reward.admitted))
    parts = {"holistic": has_holistic * constants.holistic_weight * reward.holistic.normalized}
    for name, aspect in reward.aspects.items():
        value = 0.0 if aspect is None else aspect.reward
        parts[name] = has_aspects * constants.weights.get(name, 0.0) * value
    return parts


#: Rule -> whether the holistic score and the aspects count, for a sample that is admitted or not.
_COUNTED: dict[str, Callable[[bool], tuple[bool, bool]]] = {
    "hierarchical": lambda is_admitted: (True, is_admitted),
    "weighted_sum": lambda _: (True, True),
    "holistic_only": lambda _: (True, False),
    "aspect_only": lambda _: (False, True),
}


def _rank(value: float, all_values: Sequence[float]) -> int:
    return 1 + sum(other > value for other in all_values)
