"""The door: how much work may be in the house, counted in tokens."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from alarm_models.sample import Sample
from alarm_service.errors import Overloaded

__all__ = ["Admission", "estimate_tokens"]

#: Characters a token, and tokens a template: an estimate, since a full house tokenises nothing.
_CHARACTERS_A_TOKEN = 4
_TEMPLATE_TOKENS = 16

#: Tokens that may wait in line outside: so many houses, and in front of a small one as many as
#: fit in a few megabytes, since who waits there is a trainer that ends where it is refused.
_LINE_HOUSES = 8
_SHORTEST_LINE = 1_000_000


def estimate_tokens(samples: Sequence[Sample]) -> int:
    """Estimate the tokens of samples from their characters, without tokenising them."""
    return sum(
        _TEMPLATE_TOKENS
        + (
            len(sample.prompt_text)
            + len(sample.completion_text)
            + sum(map(len, sample.fields.values()))
        )
        // _CHARACTERS_A_TOKEN
        for sample in samples
    )


class Admission:
    """Lets requests in whole or not at all.

    An empty house takes any request, so that one larger than the limit is served too.
    """

    def __init__(
        self,
        max_queued_tokens: int,
        *,
        tokens_per_s: Callable[[], float],
        observe: Callable[[int], None],
    ) -> None:
        self._max = max_queued_tokens
        self._tokens_per_s = tokens_per_s
        self._observe = observe
        self.num_queued = 0
        self._num_in_line = 0
        self._turn = asyncio.Lock()
        self._left = asyncio.Event()

    async def until_room(self, num_tokens: int) -> None:
        """Wait in line until there is room for so many tokens; raise `Overloaded` from a full line.

        Who calls `admit` next, awaiting nothing in between, gets in.
        """
        longest = max(_SHORTEST_LINE, _LINE_HOUSES * self._max)
        if self._num_in_line and self._num_in_line + num_tokens > longest:
            raise self._overloaded(num_tokens)
        self._num_in_line += num_tokens
        try:
            async with self._turn:
                while not self._has_room(num_tokens):
                    self._left.clear()
                    await self._left.wait()
        finally:
            self._num_in_line -= num_tokens

    @contextmanager
    def admit(self, num_tokens: int) -> Iterator[None]:
        """Hold ``num_tokens`` of the house while the block runs; raise `Overloaded` when full."""
        if not self._has_room(num_tokens):
            raise self._overloaded(num_tokens)
        self._change(num_tokens)
        try:
            yield
        finally:
            self._change(-num_tokens)
            self._left.set()

    def retry_after_s(self) -> int:
        """Guess when half of what waits is done, in 1 to 30 seconds."""
        rate = self._tokens_per_s()
        return 1 if rate <= 0 else min(30, max(1, math.ceil(self.num_queued / 2 / rate)))

    def _has_room(self, num_tokens: int) -> bool:
        return not self.num_queued or self.num_queued + num_tokens <= self._max

    def _overloaded(self, num_tokens: int) -> Overloaded:
        return Overloaded(
            f"{self.num_queued} tokens are waiting and {self._max} may; send this request's "
            f"{num_tokens} again later",
            retry_after_s=self.retry_after_s(),
        )

    def _change(self, num_tokens: int) -> None:
        self.num_queued += num_tokens
        self._observe(self.num_queued)
