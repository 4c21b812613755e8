"""What models without work for the device promise, and how a check becomes one."""

from __future__ import annotations

import asyncio
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from alarm_models.crew import Check, Crew
from alarm_models.errors import SampleError
from alarm_models.rewards.base import RewardModel
from alarm_models.sample import Sample, Score
from alarm_models.specs import Spec

__all__ = ["CheckModel", "DirectModel", "Model", "fingerprint_of", "in_turns"]

_Part = TypeVar("_Part")
_Scored = TypeVar("_Scored")


class DirectModel(ABC):
    """A model that scores samples without the device: a rule, a checker, a user's function."""

    #: The most tokens it reads of one sample; None where it reads none, or that is not known.
    limit: int | None = None

    #: The precision that it computes in, as torch calls it; None where that is not known.
    dtype: str | None = None

    #: Where it runs, as callers are told.
    device = "none"

    #: Whether another server scores, which has shown that it answers once `open` is through.
    is_elsewhere = False

    def __init__(self, fingerprint: str) -> None:
        self._fingerprint = fingerprint

    @property
    def fingerprint(self) -> str:
        """A digest of all that decides its scores, as far as it can be known."""
        return self._fingerprint

    async def open(self) -> None:
        """Get ready, in the event loop that scores; raise `CheckpointError`.

        May be asked again after an `UnreachableError`.
        """
        return

    @abstractmethod
    async def score(self, samples: Sequence[Sample]) -> list[Score | SampleError]:
        """Return one outcome a sample, in order; a sample that cannot be scored fails alone."""

    async def close(self) -> None:
        """End what it has started; nothing is asked of it afterwards."""
        return


#: What a recipe's model is, once loaded.
Model = RewardModel | DirectModel


class CheckModel(DirectModel):
    """A check run on a crew's threads, each sample within its time.

    ``greet`` says whether a server that it asks is there, or raises `UnreachableError`.
    """

    def __init__(
        self,
        check: Check,
        crew: Crew,
        timeout_s: float,
        fingerprint: str,
        greet: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(fingerprint)
        self._check = check
        self._greet = greet
        self._crew = crew
        self._timeout_s = timeout_s

    async def open(self) -> None:
        """See that whom it asks is there."""
        if self._greet is not None:
            await asyncio.to_thread(self._greet)

    async def score(self, samples: Sequence[Sample]) -> list[Score | SampleError]:
        """Check each sample."""
        return await self._crew.run(self._check, samples, self._timeout_s)

    async def close(self) -> None:
        """Let the crew's threads end."""
        self._crew.close()


async def in_turns(
    score: Callable[[_Part], Awaitable[_Scored]], parts: Sequence[_Part], at_once: int
) -> list[_Scored]:
    """Score the parts of one request, so many at once, in order.

    What they wait for serves in the order of asking: a large request that asked for all at once
    would keep others waiting for all of it.
    """
    slots = asyncio.Semaphore(at_once)

    async def scored(part: _Part) -> _Scored:
        async with slots:
            return await score(part)

    return list(await asyncio.gather(*map(scored, parts)))


def fingerprint_of(spec: Spec, *more: object) -> str:
    """Digest a spec and what else decides the scores: a library's version, a function's text."""
    own = spec.model_dump_json(exclude={"timeout_s", "workers", "concurrency", "environment"})
    return hashlib.sha256(f"{own}|{more}".encode()).hexdigest()[:16]
