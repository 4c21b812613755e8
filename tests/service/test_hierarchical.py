"""Hierarchical rewards: decisions are made once per request, combination has its own threads."""

import asyncio
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import CodeType, FrameType

from served import serving, until_set
from standin import FIGURE_1, PATIENCE_S

from alarm_models.combination import rule_registry
from alarm_models.combination.rewards import AspectRule
from alarm_models.recipe.schema import Overrides, Recipe
from alarm_models.types import Sample
from alarm_service.engine.hierarchical import reward_samples

DECISIONS = {
    "normalize": rule_registry.normalize.__code__,
    "is_admitted": rule_registry.is_admitted.__code__,
    "aspect values": AspectRule.values.__code__,
    "rule_params": Recipe.rule_params.__code__,
}


@contextmanager
def counted(wanted: dict[str, CodeType]) -> Iterator[Counter[str]]:
    """Count calls of functions on this thread and on those that start within the block."""
    names = {code: name for name, code in wanted.items()}
    calls: Counter[str] = Counter()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code in names:
            calls[names[frame.f_code]] += 1

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


async def test_request_decides_each_sample_and_aspect_once() -> None:
    samples = [Sample("?", "A A c w w w"), Sample("?", "w"), Sample("?", "w w")]
    async with serving(FIGURE_1) as server:
        await server.engine.life.until_ready()
        with counted(DECISIONS) as calls:
            done = await reward_samples(server.engine, None, samples, Overrides(), "admitted")
    admitted = [getattr(reward, "admitted", None) for reward in done.rewards]
    assert admitted == [True, False, False]
    # Three samples; three aspects of the one that is past the threshold of 5 words.
    assert calls == {"normalize": 3, "is_admitted": 3, "aspect values": 3, "rule_params": 1}


async def test_combining_rewards_does_not_wait_for_tokenization() -> None:
    release = threading.Event()
    begun = [threading.Event(), threading.Event()]

    def occupy(one: threading.Event) -> None:
        one.set()
        assert release.wait(PATIENCE_S)

    async with serving(FIGURE_1) as server:
        await server.engine.life.until_ready()
        prepare = server.engine.pipeline.run_in_thread
        busy = [asyncio.create_task(prepare(partial(occupy, one))) for one in begun]
        for one in begun:
            await until_set(one)
        try:
            assert await server.engine.combining_threads.run(lambda: "free") == "free"
        finally:
            release.set()
            await asyncio.gather(*busy)
