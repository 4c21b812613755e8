"""Groups whose samples come in several requests, as plain state: who is there, missing or late."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from alarm_models.cancellation import check_cancelled
from alarm_models.combination.all_rules import RuleParams
from alarm_models.errors import SampleError, quoted
from alarm_models.sample_json import sample_to_json
from alarm_models.types import Sample, num_characters

__all__ = [
    "REMEMBERED_S",
    "Attempt",
    "AttemptState",
    "GroupPlan",
    "GroupState",
    "Identity",
    "Member",
    "NoRoom",
    "identities_of",
    "plan_groups",
]

#: How long the answers of a group are remembered, for members whose answer was lost.
REMEMBERED_S = 60.0

#: What a member takes besides its texts and numbers, in bytes.
_MEMBER_BYTES = 2048
_BYTES_A_TOKEN = 64


@dataclass(frozen=True, slots=True)
class Identity:
    """What sets a member apart from others, but not from its retry: ``id``, if any, and content."""

    id: str | None
    content: bytes
    prompt: bytes
    group_size: int
    num_bytes: int

    @classmethod
    def of(cls, sample: Sample, group_size: int) -> Identity:
        """Digest a sample; ``group_size`` is how many samples its group has."""
        encoded = sample_to_json(sample)
        prompt = encoded.pop("prompt")
        for name in ("id", "group", "group_size"):
            encoded.pop(name, None)
        num_tokens = len(sample.token_offsets or ())
        num_bytes = _MEMBER_BYTES + num_characters(sample) + _BYTES_A_TOKEN * num_tokens
        content = _digest([prompt, encoded])
        return cls(sample.id, content, _digest(prompt), group_size, num_bytes)


def _digest(value: Any) -> bytes:
    text = json.dumps(value, sort_keys=True)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def identities_of(samples: Sequence[Sample], group_sizes: Mapping[int, int]) -> dict[int, Identity]:
    """Return the identities of samples by their index, as ``group_sizes`` of their groups are."""
    identities = {}
    for index, group_size in group_sizes.items():
        check_cancelled()
        identities[index] = Identity.of(samples[index], group_size)
    return identities


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """Which samples of a request are members of groups that other requests complete.

    ``group_sizes`` has the size of each such sample's group, by the sample's index, and ``errors``
    those that contradict each other.
    """

    group_sizes: Mapping[int, int]
    errors: Mapping[int, SampleError]


def plan_groups(samples: Sequence[Sample], params: RuleParams) -> GroupPlan:
    """Find the groups of which a request brings fewer samples than their ``group_size``.

    A request that brings whole groups has none. Of those that are incomplete, all samples with a
    ``group_size`` must agree, with each other and with the recipe.
    """
    by_group: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        if sample.group is not None:
            by_group.setdefault(sample.group, []).append(index)
    group_sizes: dict[int, int] = {}
    errors: dict[int, SampleError] = {}
    for name, indices in by_group.items():
        sizes = {samples[index].group_size for index in indices} - {None}
        given = sorted(size for size in sizes if size is not None)
        if not given or given == [len(indices)]:
            continue
        fault = _contradiction(name, given, len(indices), params)
        if fault is None:
            group_sizes |= dict.fromkeys(indices, given[0])
        else:
            errors |= dict.fromkeys(indices, fault)
    return GroupPlan(group_sizes, errors)


def _contradiction(
    name: str, sizes: Sequence[int], num_samples: int, params: RuleParams
) -> SampleError | None:
    if len(sizes) > 1:
        return _conflict(
            f"samples of group {quoted(name)} have group_size {sizes[0]} and {sizes[1]}"
        )
    if params.group_size not in (None, sizes[0]):
        return SampleError(
            "invalid_sample",
            f"group {quoted(name)} has group_size {sizes[0]}, and the recipe has "
            f"hierarchy.group_size {params.group_size}",
        )
    if num_samples > sizes[0]:
        return _conflict(
            f"group {quoted(name)} has group_size {sizes[0]}, and {num_samples} samples came"
        )
    return None


def _conflict(message: str) -> SampleError:
    return SampleError("group_conflict", message)


@dataclass(eq=False, slots=True)
class Member:
    """One sample of a group.

    ``num_callers`` wait for its reward: none if its caller left, more than one if it was sent again
    meanwhile. ``outcome`` is its scores, the sample itself if it is scored with its group, or the
    error that its callers got at once.
    """

    identity: Identity
    num_callers: int = 0
    outcome: object | SampleError | None = None
    was_answered: bool = False

    @property
    def has_failed(self) -> bool:
        """Whether it cannot be scored."""
        return isinstance(self.outcome, SampleError)

    @property
    def is_there(self) -> bool:
        """Whether its group counts it: its caller waits, or got its error."""
        return self.num_callers > 0 or self.has_failed


class AttemptState(Enum):
    """The states of an attempt to complete a group."""

    OPEN = auto()
    COMPLETE = auto()
    INCOMPLETE = auto()


@dataclass(eq=False, slots=True)
class Attempt:
    """One attempt to complete a group: its members up to now.

    It ends once all are there and scored, or after ``timeout_s``. ``fingerprint`` is that of the
    scores up to now; scores of two fingerprints are never combined.
    """

    key: Hashable
    name: str
    prompt: bytes
    group_size: int
    timeout_s: float
    members: list[Member] = field(default_factory=list)
    fingerprint: str | None = None
    state: AttemptState = AttemptState.OPEN
    #: Whether ``timeout_s`` have passed.
    is_late: bool = False
    #: How many samples were there when it ended.
    num_came: int = 0
    #: About how much memory it takes.
    num_bytes: int = _MEMBER_BYTES

    @property
    def num_there(self) -> int:
        """How many of its samples came and are waited for."""
        return sum(member.is_there for member in self.members)

    @property
    def num_waiting(self) -> int:
        """How many of its members' callers wait."""
        return sum(member.num_callers > 0 for member in self.members)

    @property
    def is_all_there(self) -> bool:
        """Whether no sample is missing; some may still be scored."""
        return self.num_there >= self.group_size

    @property
    def is_ready(self) -> bool:
        """Whether all are there and scored."""
        there = [member for member in self.members if member.is_there]
        return len(there) >= self.group_size and all(one.outcome is not None for one in there)

    @property
    def was_answered(self) -> bool:
        """Whether every member's caller got its reward or error."""
        return all(member.was_answered or member.has_failed for member in self.members)

    def scored(self) -> list[Member]:
        """Return the members that are combined: those that are there and have scores."""
        return [one for one in self.members if one.num_callers > 0 and not one.has_failed]

    def known(self, identity: Identity) -> Member | None:
        """Return the member that is the same sample; without an ``id``, the first such member."""
        for member in self.members:
            if (member.identity.id, member.identity.content) == (identity.id, identity.content):
                return member
        return None

    def incomplete(self) -> SampleError:
        """Return the error of the members of a group that was given up."""
        return SampleError(
            "group_incomplete",
            f"{self.num_there} of {self.group_size} samples of group {quoted(self.name)} came "
            f"within {self.timeout_s:g} s",
        )

    def join(self, identity: Identity) -> Member | SampleError:
        """Add a sample to an open group, or say why it does not belong to it."""
        name = quoted(self.name)
        if identity.group_size != self.group_size:
            return _conflict(
                f"this sample of group {name} has group_size {identity.group_size}, and others "
                f"have {self.group_size}"
            )
        if identity.prompt != self.prompt:
            return _conflict(
                f"this sample's prompt differs from that of the {self.num_there} in group {name} "
                "so far"
            )
        member = self._place(identity)
        if isinstance(member, Member) and not member.is_there and self.is_all_there:
            return _conflict(f"{self.group_size} samples of group {name} came before this one")
        if isinstance(member, Member):
            member.num_callers += 1
            if member.has_failed:
                member.outcome = None
            if member not in self.members:
                self._add(member)
        return member

    def keep_scores_of(self, before: Attempt) -> None:
        """Take over what an earlier attempt of the same group scored, until it is sent again."""
        if (before.prompt, before.group_size) != (self.prompt, self.group_size):
            return
        self.fingerprint = before.fingerprint
        for one in before.members:
            if one.outcome is not None and not one.has_failed:
                self._add(Member(one.identity, outcome=one.outcome))

    def _add(self, member: Member) -> None:
        self.members.append(member)
        self.num_bytes += member.identity.num_bytes

    def _place(self, identity: Identity) -> Member | SampleError:
        """Return the member that a sample is, or a new one in place of one that left."""
        if identity.id is None:
            left = (one for one in self.members if one.identity == identity and not one.is_there)
            return next(left, None) or Member(identity)
        for member in self.members:
            if member.identity.id != identity.id:
                continue
            if member.identity.content == identity.content:
                return member
            if member.num_callers:
                return _conflict(
                    f"two samples of group {quoted(self.name)} have id {quoted(identity.id)}, and "
                    "differ"
                )
            self.members.remove(member)
            break
        return Member(identity)


class NoRoom(Exception):
    """The groups that wait take as much memory as they may."""


class GroupState:
    """All open groups, and those that ended a short time ago, by key.

    A group that ended is remembered for `REMEMBERED_S`, so that a member whose answer was lost gets
    it when it is sent again. ``max_bytes`` bounds what all of them take; remembered groups make
    room for open ones. ``on_forgotten`` is called with each attempt that ended and is forgotten.
    """

    def __init__(
        self, max_bytes: int, on_forgotten: Callable[[Attempt], None] = lambda attempt: None
    ) -> None:
        self.max_bytes = max_bytes
        self._on_forgotten = on_forgotten
        self._num_bytes = 0
        self._attempts: dict[Hashable, Attempt] = {}
        #: When groups that ended are forgotten, in order.
        self._forgotten_at: dict[Hashable, float] = {}

    @property
    def open(self) -> Collection[Attempt]:
        """The groups that are not complete."""
        return [one for one in self._attempts.values() if one.state is AttemptState.OPEN]

    def arrive(
        self, key: Hashable, name: str, identity: Identity, timeout_s: float, now: float
    ) -> tuple[Attempt, Member] | SampleError:
        """Add a sample to its group: to one that is open, to one that it belonged to, or a new one.

        A member that is added waits until `leave`. Raises `NoRoom`.
        """
        self.forget(now)
        attempt = self._attempts.get(key)
        if attempt is not None and attempt.state is not AttemptState.OPEN:
            found = self._in_ended(attempt, identity)
            if found is not None:
                return found
        self._require_room(identity.num_bytes, key)
        if attempt is None or attempt.state is not AttemptState.OPEN or not attempt.num_there:
            attempt = self._start(key, name, identity, timeout_s)
        num_bytes = attempt.num_bytes
        member = attempt.join(identity)
        self._num_bytes += attempt.num_bytes - num_bytes
        return (attempt, member) if isinstance(member, Member) else member

    def leave(self, attempt: Attempt, member: Member, *, was_answered: bool) -> None:
        """Note that one caller of a member waits no more."""
        member.num_callers -= 1
        member.was_answered |= was_answered

    def end(self, attempt: Attempt, state: AttemptState, now: float) -> None:
        """End an open attempt; its members are remembered for a while."""
        attempt.num_came = attempt.num_there
        if state is AttemptState.COMPLETE:
            attempt.members = [member for member in attempt.members if member.is_there]
        attempt.state = state
        self._forgotten_at[attempt.key] = now + REMEMBERED_S

    def holds(self, attempt: Attempt) -> bool:
        """Whether an attempt is the one of its group, and not discarded or replaced."""
        return self._attempts.get(attempt.key) is attempt

    def discard(self, attempt: Attempt) -> None:
        """Forget an attempt at once."""
        if self.holds(attempt):
            self._remove(attempt.key)

    def forget(self, now: float) -> None:
        """Forget the groups that ended long enough ago."""
        while self._forgotten_at:
            key, until = next(iter(self._forgotten_at.items()))
            if until > now:
                return
            self._forget(key)

    def _in_ended(
        self, attempt: Attempt, identity: Identity
    ) -> tuple[Attempt, Member] | SampleError | None:
        """Return a sample's place in a group that ended; None if it starts a new attempt."""
        member = attempt.known(identity)
        is_other = (identity.prompt, identity.group_size) != (attempt.prompt, attempt.group_size)
        name = quoted(attempt.name)
        if attempt.state is AttemptState.COMPLETE:
            if member is not None:
                member.num_callers += 1
                return attempt, member
            if attempt.was_answered:
                return None
            return _conflict(
                f"{attempt.group_size} samples of group {name} came before this one, and not all "
                "have received their rewards"
            )
        has_id = identity.id is not None
        is_sent_again = has_id and any(one.identity.id == identity.id for one in attempt.members)
        if member is not None or is_sent_again or is_other:
            return None
        return SampleError(
            "group_incomplete",
            f"this sample came after group {name} was given up: {attempt.num_came} of "
            f"{attempt.group_size} samples came within {attempt.timeout_s:g} s",
        )

    def _start(self, key: Hashable, name: str, identity: Identity, timeout_s: float) -> Attempt:
        """Start an attempt; of one before it of the same group, what was scored is kept."""
        before = self._attempts.get(key)
        if before is not None:
            self._forget(key)
        attempt = Attempt(key, name, identity.prompt, identity.group_size, timeout_s)
        if before is not None and before.state is not AttemptState.COMPLETE:
            attempt.keep_scores_of(before)
        self._attempts[key] = attempt
        self._num_bytes += attempt.num_bytes
        return attempt

    def _require_room(self, num_bytes: int, key: Hashable) -> None:
        while self._num_bytes + num_bytes > self.max_bytes:
            oldest = next((one for one in self._forgotten_at if one != key), None)
            if oldest is None:
                raise NoRoom
            self._forget(oldest)

    def _forget(self, key: Hashable) -> None:
        self._on_forgotten(self._remove(key))

    def _remove(self, key: Hashable) -> Attempt:
        attempt = self._attempts.pop(key)
        self._forgotten_at.pop(key, None)
        self._num_bytes -= attempt.num_bytes
        return attempt
