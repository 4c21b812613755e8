"""One generation after another: which serves, who still holds the ones before, and their end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import structlog

from alarm_models.rewards import DirectModel, Model
from alarm_service.generations.generation import Generation

__all__ = ["Succession", "close_models"]

_log = structlog.get_logger()


class Succession:
    """Holds the generation that serves, and those before it until their last request has ended.

    All of it belongs to the event loop. ``forget`` is run in a thread once models are gone.
    """

    def __init__(self, first: Generation, forget: Callable[[], None]) -> None:
        self.current = first
        self._forget = forget
        self._num_requests = {first: 0}
        self._closing: set[asyncio.Task[None]] = set()
        self._is_closed = False

    @contextmanager
    def taken(self) -> Iterator[Generation]:
        """Hold the generation of now while the block runs, whatever follows it meanwhile."""
        generation = self.current
        self._num_requests[generation] += 1
        try:
            yield generation
        finally:
            self._num_requests[generation] -= 1
            self._retire()

    def follow(self, generation: Generation) -> None:
        """Serve this generation from now on."""
        self.current = generation
        self._num_requests[generation] = 0
        self._retire()

    async def close(self) -> None:
        """Close the models of all generations, whoever still holds one; once."""
        if self._is_closed:
            return
        self._is_closed = True
        await asyncio.gather(*self._closing)
        models = {id(one): one for generation in self._num_requests for one in generation.replicas}
        await close_models(list(models.values()))

    def _retire(self) -> None:
        """Close the models that no generation has which serves or has requests."""
        if self._is_closed:
            return
        gone = [
            generation
            for generation, num_requests in self._num_requests.items()
            if not num_requests and generation is not self.current
        ]
        for generation in gone:
            del self._num_requests[generation]
        kept = {id(model) for generation in self._num_requests for model in generation.replicas}
        models = {id(one): one for generation in gone for one in generation.replicas}
        closed = [model for key, model in models.items() if key not in kept]
        if closed:
            task = asyncio.create_task(self._end(closed))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _end(self, models: list[Model]) -> None:
        await close_models(models)
        models.clear()
        await asyncio.to_thread(self._forget)


async def close_models(models: Sequence[Model]) -> None:
    """Close those that have something to end; one that fails keeps no other from it."""
    for model in models:
        if isinstance(model, DirectModel):
            try:
                await model.close()
            except Exception as error:  # it is gone for callers all the same
                _log.warning("a model did not close", error=repr(error))
