"""GroupAssembler: requests wait for the other samples of their groups, without holding capacity."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from alarm_models.combination.rewards import ScoredSample
from alarm_models.errors import SampleError, quoted
from alarm_models.types import Reward, Sample
from alarm_service.engine.group_state import (
    REMEMBERED_S,
    Attempt,
    AttemptState,
    GroupState,
    Identity,
    Member,
    NoRoom,
)
from alarm_service.engine.lifecycle import Lifecycle, draining_error
from alarm_service.errors import Overloaded, ServiceError
from alarm_service.observability.metrics import Metrics

__all__ = ["Combine", "GroupAnswer", "GroupAssembler", "GroupVisit"]

_log = structlog.get_logger()

_RETRY_AFTER_S = 5

#: Turns the scores of a whole group into rewards, in order; or its samples, if they are not scored.
Combine = Callable[[Sequence[ScoredSample | Sample]], Awaitable[Sequence[Reward | SampleError]]]


@dataclass(frozen=True, slots=True)
class GroupAnswer:
    """What a member gets. ``fingerprint`` is None without scores.

    ``is_remembered`` tells that its group had ended before it came.
    """

    reward: Reward | SampleError
    fingerprint: str | None
    is_remembered: bool


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How an attempt ended: with rewards, with an error for all members, or to be scored again."""

    rewards: Mapping[Member, Reward | SampleError]
    error: SampleError | None = None
    failure: Callable[[], ServiceError] | None = None
    is_to_be_scored_again: bool = False


@dataclass(frozen=True, slots=True)
class _Place:
    attempt: Attempt
    member: Member
    is_remembered: bool


class GroupVisit:
    """The samples of one request that are members of groups, while the request waits for them."""

    def __init__(self, assembler: GroupAssembler) -> None:
        self._assembler = assembler
        self._errors: dict[int, SampleError] = {}
        self._places: dict[int, _Place] = {}
        self._was_answered = False

    def arrive(
        self, index: int, key: Hashable, name: str, identity: Identity, timeout_s: float
    ) -> None:
        """Add a sample to its group. Raises `Overloaded`."""
        found = self._assembler.arrive(key, name, identity, timeout_s)
        if isinstance(found, SampleError):
            self._errors[index] = found
            return
        attempt, member = found
        is_remembered = attempt.state is AttemptState.COMPLETE
        self._places[index] = _Place(attempt, member, is_remembered)

    def unscored(self) -> list[int]:
        """Return the samples, by index, that have to be scored."""
        return [
            index
            for index, place in self._places.items()
            if place.member.outcome is None and not place.is_remembered
        ]

    def settle(
        self,
        index: int,
        outcome: ScoredSample | Sample | SampleError,
        fingerprint: str,
        combine: Combine,
    ) -> None:
        """Note what scoring a sample gave; the last of a group has the group combined."""
        place = self._places[index]
        self._assembler.settle(place.attempt, place.member, outcome, fingerprint, combine)

    def combine_ready(self, combine: Combine) -> None:
        """Combine groups that are complete without a new score: the last came back."""
        for place in self._places.values():
            self._assembler.combine_if_ready(place.attempt, combine)

    async def answers(self) -> dict[int, GroupAnswer] | None:
        """Wait for the rewards of the samples, by index; None if they are to be scored again.

        Raises `Draining`.
        """
        since = time.monotonic()
        found = {index: GroupAnswer(error, None, False) for index, error in self._errors.items()}
        for index, place in self._places.items():
            if isinstance(place.member.outcome, SampleError):
                found[index] = GroupAnswer(place.member.outcome, None, place.is_remembered)
                continue
            outcome = await self._assembler.outcome(place.attempt)
            if outcome.is_to_be_scored_again:
                return None
            if outcome.failure is not None:
                raise outcome.failure()
            reward = outcome.error or outcome.rewards[place.member]
            fingerprint = place.attempt.fingerprint
            found[index] = GroupAnswer(reward, fingerprint, place.is_remembered)
            if not place.is_remembered:
                self._assembler.metrics.observe_member_wait(time.monotonic() - since)
        self._was_answered = True
        return found

    def leave(self) -> None:
        """Stop waiting: members without an answer are awaited again by the others."""
        for place in self._places.values():
            self._assembler.leave(place.attempt, place.member, was_answered=self._was_answered)


class GroupAssembler:
    """Brings samples of a group together that come in several requests.

    The decisions are `GroupState`'s; this has the clock, the timers and the futures. Members
    that wait hold no place in the queue; all groups together take at most ``max_bytes``. Used by
    the event loop alone.
    """

    def __init__(self, metrics: Metrics, life: Lifecycle, max_bytes: int) -> None:
        self.metrics = metrics
        self._life = life
        self._assembly = GroupState(max_bytes, self._drop_unused)
        self._num_servers = 1
        self._outcomes: dict[Attempt, asyncio.Future[_Outcome]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        life.on_drain(self._drain)
        metrics.bind_groups(
            lambda: len(self._assembly.open),
            lambda: sum(one.num_waiting for one in self._assembly.open),
        )

    @property
    def open_attempts(self) -> Collection[Attempt]:
        """The groups that wait for samples."""
        return self._assembly.open

    def set_num_servers(self, num_servers: int) -> None:
        """Refuse samples that others complete if those may reach another server."""
        self._num_servers = num_servers

    @contextmanager
    def visit(self) -> Iterator[GroupVisit]:
        """Let one request's samples be members of groups while the block runs."""
        visit = GroupVisit(self)
        try:
            yield visit
        finally:
            visit.leave()

    def arrive(
        self, key: Hashable, name: str, identity: Identity, timeout_s: float
    ) -> tuple[Attempt, Member] | SampleError:
        """Add a sample to its group. Raises `Overloaded` and `Draining`."""
        if self._life.is_draining:
            raise draining_error()
        if self._num_servers > 1:
            refused = _unreachable(name, self._num_servers)
            self._log_refused(refused)
            return refused
        try:
            found = self._assembly.arrive(key, name, identity, timeout_s, time.monotonic())
        except NoRoom:
            raise Overloaded(
                "too many samples wait for others of their groups; send groups in one request, or "
                "fewer groups at a time (--max-group-bytes)",
                retry_after_s=_RETRY_AFTER_S,
            ) from None
        if isinstance(found, SampleError):
            self._log_refused(found)
            return found
        attempt, _ = found
        if attempt not in self._outcomes:
            loop = asyncio.get_running_loop()
            self._outcomes[attempt] = loop.create_future()
            loop.call_later(timeout_s, self._pass_deadline, attempt)
        return found

    def settle(
        self,
        attempt: Attempt,
        member: Member,
        outcome: ScoredSample | Sample | SampleError,
        fingerprint: str,
        combine: Combine,
    ) -> None:
        """Note a member's scores; combine its group if it was the last."""
        if attempt.state is AttemptState.COMPLETE:
            return
        is_valid = not isinstance(outcome, SampleError)
        if is_valid and attempt.fingerprint not in (None, fingerprint):
            self._score_again(attempt)
            return
        member.outcome = outcome
        if is_valid:
            attempt.fingerprint = fingerprint
        self.combine_if_ready(attempt, combine)

    def combine_if_ready(self, attempt: Attempt, combine: Combine) -> None:
        """Combine a group if all of it is there and scored."""
        if self._is_open(attempt) and attempt.is_ready:
            # Before the task starts a caller may leave; its sample still belongs to the group.
            members = attempt.scored()
            self._end(attempt, AttemptState.COMPLETE)
            # In a task of its own: no caller that leaves may keep it from the others.
            task = asyncio.get_running_loop().create_task(self._combine(attempt, members, combine))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def outcome(self, attempt: Attempt) -> _Outcome:
        """Wait until an attempt has ended."""
        return await asyncio.shield(self._outcomes[attempt])

    def leave(self, attempt: Attempt, member: Member, *, was_answered: bool) -> None:
        """Note that one caller of a member waits no more."""
        self._assembly.leave(attempt, member, was_answered=was_answered)
        self._give_up_hopeless(attempt)
        self._drop_unused(attempt)

    def _is_open(self, attempt: Attempt) -> bool:
        return attempt.state is AttemptState.OPEN and self._assembly.holds(attempt)

    async def _combine(self, attempt: Attempt, members: Sequence[Member], combine: Combine) -> None:
        outcomes = (member.outcome for member in members)
        scored = [one for one in outcomes if isinstance(one, ScoredSample | Sample)]
        try:
            outcome = _Outcome(dict(zip(members, await combine(scored), strict=True)))
        except ServiceError:  # the server has stopped
            outcome = _Outcome({}, failure=draining_error)
        except Exception as error:
            _log.exception("a group cannot be combined")
            fault = SampleError("model_failed", f"the group cannot be combined: {error!r}"[:500])
            outcome = _Outcome({}, error=fault)
        for member in members:
            member.outcome = None
        self._resolve(attempt, outcome)

    def _pass_deadline(self, attempt: Attempt) -> None:
        attempt.is_late = True
        self._give_up_hopeless(attempt)
        self._drop_unused(attempt)

    def _give_up_hopeless(self, attempt: Attempt) -> None:
        """Give up a group that is not all there when its time is over, or the server stops.

        One that is all there, while some of it is scored, is given up only if a member leaves.
        """
        if not self._is_open(attempt) or attempt.is_all_there:
            return
        if self._life.is_draining:
            # The others may come to another server.
            self._assembly.discard(attempt)
            self._resolve(attempt, _Outcome({}, failure=draining_error))
        elif attempt.is_late:
            self._give_up(attempt)

    def _give_up(self, attempt: Attempt) -> None:
        error = attempt.incomplete()
        self._end(attempt, AttemptState.INCOMPLETE)
        _log.warning(
            "group incomplete",
            group=quoted(attempt.name),
            num_came=attempt.num_came,
            group_size=attempt.group_size,
            seconds=attempt.timeout_s,
        )
        self._resolve(attempt, _Outcome({}, error=error))

    def _end(self, attempt: Attempt, state: AttemptState) -> None:
        self._assembly.end(attempt, state, time.monotonic())
        self.metrics.count_group(state.name.lower())
        asyncio.get_running_loop().call_later(REMEMBERED_S, self._forget)

    def _forget(self) -> None:
        self._assembly.forget(time.monotonic())

    def _drop_unused(self, attempt: Attempt) -> None:
        if not attempt.num_waiting and not self._assembly.holds(attempt):
            self._outcomes.pop(attempt, None)

    def _score_again(self, attempt: Attempt) -> None:
        """Have all members scored with the models that are served now."""
        if self._is_open(attempt):
            _log.info("group scored again after a reload", group=quoted(attempt.name))
            self._assembly.discard(attempt)
            self._resolve(attempt, _Outcome({}, is_to_be_scored_again=True))

    def _drain(self) -> None:
        for attempt in self._assembly.open:
            self._give_up_hopeless(attempt)

    def _resolve(self, attempt: Attempt, outcome: _Outcome) -> None:
        future = self._outcomes.get(attempt)
        if future is not None and not future.done():
            future.set_result(outcome)

    def _log_refused(self, error: SampleError) -> None:
        if error.code == "group_conflict":
            self.metrics.count_group("conflict")
        _log.warning("group member refused", code=error.code, reason=error.message)


def _unreachable(name: str, num_servers: int) -> SampleError:
    return SampleError(
        "group_incomplete",
        f"this request has a part of group {quoted(name)}, and the others may reach another of "
        f"{num_servers} ingress replicas: send whole groups, or run one ingress replica",
    )
