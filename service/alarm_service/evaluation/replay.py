"""`alarm replay`: scores a capture again, as a stream, and compares the rewards."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress

from alarm_models.cancellation import gather_or_cancel
from alarm_models.recipe.schema import Overrides, Recipe
from alarm_service.captures.lines import CapturedLine, read_captured
from alarm_service.errors import ServiceError, format_validation_errors
from alarm_service.evaluation.errors import StudyError
from alarm_service.evaluation.replay_comparison import ReplayComparison, ReplayResult, prompt_key
from alarm_service.evaluation.replay_examples import ReplayExamples
from alarm_service.evaluation.scoring import Peer, open_engine, open_peer
from alarm_service.schemas import RewardOut, RewardResponse, reward_out, sample_in
from alarm_service.settings import Settings

if TYPE_CHECKING:
    from alarm_service.engine.engine import RewardEngine

__all__ = ["RemoteRewarder", "Rewarder", "compared", "replay"]

#: Samples scored at once, unless a request with groups has more.
_MAX_IN_FLIGHT = 256

#: Calls at the same time.
_MAX_CALLS = 8

#: Samples of groups from several requests that are held until the rest of their group is read.
_MAX_PENDING = 16_384


def replay(
    files: Sequence[Path],
    recipe: Recipe,
    settings: Settings,
    url: str | None,
    examples: ReplayExamples | None = None,
) -> ReplayResult:
    """Score the samples of captured files again; raise `AlarmModelsError` and `OSError`.

    With ``url``, the server there scores them, by its recipe of the same name. ``examples`` is
    given the samples with their new rewards.
    """
    try:
        return asyncio.run(_replay(files, recipe, settings, url, examples))
    except ServiceError as error:
        raise StudyError(error.message) from error


async def _replay(
    files: Sequence[Path],
    recipe: Recipe,
    settings: Settings,
    url: str | None,
    examples: ReplayExamples | None,
) -> ReplayResult:
    async with _open_rewarder(recipe, settings, url) as rewarder:
        return await compared(files, rewarder, ReplayComparison(recipe.name), examples)


async def compared(
    files: Sequence[Path],
    rewarder: Rewarder,
    comparison: ReplayComparison,
    examples: ReplayExamples | None = None,
) -> ReplayResult:
    """Reward the samples of captured files, and return what changed."""
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("scoring", total=None)
        for units in _chunks(_whole_groups(_rewarded(files, comparison), comparison)):
            lines = [line for unit in units for line in unit]
            rewards = await _rewards_of(units, rewarder)
            comparison.add(lines, rewards)
            if examples is not None:
                examples.add(lines, rewards)
            progress.advance(task, len(lines))
        num_samples = progress.tasks[0].completed or 1
        progress.update(task, total=num_samples, completed=num_samples)
    return comparison.result(rewarder.fingerprint)


def _rewarded(files: Iterable[Path], comparison: ReplayComparison) -> Iterator[CapturedLine]:
    """Yield the lines that have a reward; those of `/score` have none to compare."""
    for file in files:
        with suppress(FileNotFoundError):  # a server that still captures removed the oldest
            for line in read_captured(file):
                if line.reward is None:
                    comparison.num_scores_left_out += 1
                else:
                    yield line


def _whole_groups(
    lines: Iterable[CapturedLine], comparison: ReplayComparison
) -> Iterator[list[CapturedLine]]:
    """Yield lines that must be scored together: one request's, or a group of several requests.

    A group of which samples are missing, or of which too much else is read before its last sample,
    is left out.
    """
    pending: OrderedDict[tuple[str, bytes], list[CapturedLine]] = OrderedDict()
    requests: OrderedDict[str, _OpenRequest] = OrderedDict()
    request: list[CapturedLine] = []  # of captures that do not say how many samples it has
    num_pending = 0
    for line in map(_of_own_group, lines):
        is_held = line.sample.group is not None and line.sample.group_size is not None
        if request and (line.request != request[0].request or line.sample.group is None):
            yield request
            request = []
        if line.num_samples is not None:
            opened = requests.setdefault(line.request, _OpenRequest())
            opened.num_read += 1
            if not is_held and line.sample.group is not None:
                opened.lines.append(line)
                num_pending += 1
            if opened.num_read >= line.num_samples:
                del requests[line.request]
                num_pending -= len(opened.lines)
                if opened.lines:
                    yield opened.lines
            if line.sample.group is None:
                yield [line]
        elif not is_held:
            request.append(line)
        if is_held:
            key = (str(line.sample.group), prompt_key(line))
            members = pending.setdefault(key, [])
            if _is_retried(line, members):
                comparison.num_retried += 1
                continue
            members.append(line)
            num_pending += 1
            if len(members) >= (line.sample.group_size or 0):
                num_pending -= len(pending.pop(key))
                name = f"{members[0].request}/{line.sample.group}"
                yield [_of_group(member, name) for member in members]
        while num_pending > _MAX_PENDING:
            left_out = _oldest(pending, requests)
            num_pending -= left_out
            comparison.num_of_incomplete_groups += left_out
    if request:
        yield request
    comparison.num_of_incomplete_groups += num_pending


@dataclass(slots=True)
class _OpenRequest:
    """A request of which not all lines are read: other servers' files may come between them."""

    num_read: int = 0
    #: Those with a group that no other request completes.
    lines: list[CapturedLine] = field(default_factory=list)


def _oldest(
    pending: OrderedDict[tuple[str, bytes], list[CapturedLine]],
    requests: OrderedDict[str, _OpenRequest],
) -> int:
    """Forget the group, or the request, that waits the longest; return how many lines it has."""
    if pending:
        return len(pending.popitem(last=False)[1])
    return len(requests.popitem(last=False)[1].lines)


def _is_retried(line: CapturedLine, members: Sequence[CapturedLine]) -> bool:
    """Whether a group has a sample of this id already, from a request that was retried."""
    return line.sample.id is not None and any(one.sample.id == line.sample.id for one in members)


def _of_own_group(line: CapturedLine) -> CapturedLine:
    """Name a group after its request, unless other requests complete it: names are used again."""
    if line.sample.group is None or line.sample.group_size is not None:
        return line
    return _of_group(line, f"{line.request}/{line.sample.group}")


def _of_group(line: CapturedLine, name: str) -> CapturedLine:
    sample = line.sample.model_copy(update={"group": name, "group_size": None})
    return line.model_copy(update={"sample": sample})


def _chunks(units: Iterable[list[CapturedLine]]) -> Iterator[list[list[CapturedLine]]]:
    chunk: list[list[CapturedLine]] = []
    for unit in units:
        if chunk and sum(map(len, chunk)) + len(unit) > _MAX_IN_FLIGHT:
            yield chunk
            chunk = []
        chunk.append(unit)
    if chunk:
        yield chunk


async def _rewards_of(
    units: Sequence[Sequence[CapturedLine]], rewarder: Rewarder
) -> list[RewardOut]:
    """Reward units in one call, or in one each where the rule normalizes over a request's samples.

    Rules do that for groups only.
    """
    grouped = [unit for unit in units if _has_groups(unit)]
    others = [line for unit in units if not _has_groups(unit) for line in unit]
    limit = asyncio.Semaphore(_MAX_CALLS)

    async def rewards(lines: Sequence[CapturedLine]) -> Sequence[RewardOut]:
        async with limit:
            return await rewarder.rewards(lines) if lines else ()

    *of_units, of_others = await gather_or_cancel(*map(rewards, grouped), rewards(others))
    found = {id(line): one for line, one in zip(others, of_others, strict=True)}
    for unit, own in zip(grouped, of_units, strict=True):
        found |= {id(line): one for line, one in zip(unit, own, strict=True)}
    return [found[id(line)] for unit in units for line in unit]


def _has_groups(lines: Sequence[CapturedLine]) -> bool:
    return any(line.sample.group is not None for line in lines)


class Rewarder(Protocol):
    """Rewards captured samples by a recipe."""

    @property
    def fingerprint(self) -> str:
        """The recipe's fingerprint; empty before the first rewards."""

    async def rewards(self, lines: Sequence[CapturedLine]) -> Sequence[RewardOut]:
        """Return one reward per sample."""


@asynccontextmanager
async def _open_rewarder(
    recipe: Recipe, settings: Settings, url: str | None
) -> AsyncIterator[Rewarder]:
    if url is None:
        async with open_engine(recipe, settings) as engine:
            yield _LocalRewarder(engine, recipe)
        return
    async with open_peer(url, settings, num_connections=_MAX_CALLS) as (peer, base):
        yield RemoteRewarder(peer, base, recipe.name)


class _LocalRewarder:
    """Rewards samples in this process."""

    def __init__(self, engine: RewardEngine, recipe: Recipe) -> None:
        self._engine = engine
        self._recipe = recipe
        self.fingerprint = ""

    async def rewards(self, lines: Sequence[CapturedLine]) -> Sequence[RewardOut]:
        """Reward samples; raise `ServiceError`."""
        from alarm_service.engine.fair_queueing import INTERNAL
        from alarm_service.engine.hierarchical import reward_samples

        samples = [line.sample for line in lines]
        done = await reward_samples(
            self._engine,
            self._recipe.name,
            [sample_in(sample) for sample in samples],
            Overrides(),
            "admitted",
            replace(INTERNAL, waits=True),
        )
        self.fingerprint = done.fingerprint
        names = list(self._recipe.aspects)
        pairs = zip(samples, done.rewards, strict=True)
        return [reward_out(sample, reward, names) for sample, reward in pairs]


class RemoteRewarder:
    """Gets rewards from a server."""

    def __init__(self, peer: Peer, url: str, recipe: str) -> None:
        self._peer = peer
        self._url = f"{url}/hierarchical_reward"
        self._recipe = recipe
        self.fingerprint = ""

    async def rewards(self, lines: Sequence[CapturedLine]) -> Sequence[RewardOut]:
        """Reward samples over HTTP; raise `StudyError` with the server's message."""
        samples = [line.sample.model_dump(mode="json", exclude_defaults=True) for line in lines]
        answer = await self._peer.post(self._url, {"recipe": self._recipe, "samples": samples})
        try:
            response = RewardResponse.model_validate(answer)
        except ValidationError as error:
            faults = format_validation_errors(error.errors())
            raise StudyError(f"--url returned an invalid response: {faults}") from error
        if len(response.rewards) != len(lines):
            raise StudyError(
                f"--url returned {len(response.rewards)} rewards for {len(lines)} samples"
            )
        self.fingerprint = response.fingerprint
        return response.rewards
