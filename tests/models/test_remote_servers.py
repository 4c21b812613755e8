"""A remote model with several servers: turns, failover, health, and servers that disagree."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import fields

import pytest
from remote_servers import Calls, completions, values, vllm
from restarting_servers import ask_while_one_restarts, restarting_servers
from tcp import over_tcp

from alarm_models.errors import CheckpointError, SampleError, UnreachableError
from alarm_models.recipe.specs import RemoteSpec
from alarm_models.reward_models.remote.model import RemoteModel

#: The longest first wait for a server that failed.
BACKOFF_S = 0.25


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[list[Calls], list[str]]]:
    """Two vLLM servers and their URLs."""
    both = [Calls(), Calls()]
    with over_tcp(vllm(both[0])) as one, over_tcp(vllm(both[1])) as other:
        yield both, [f"http://127.0.0.1:{port}" for port in (one, other)]


class Pair:
    """The two servers of a test, which opens a model on them."""

    def __init__(self, both: list[Calls], urls: list[str]) -> None:
        self.first, self.second = both
        self._urls = urls

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[RemoteModel]:
        """Open a model that retries nothing and sends one text a request."""
        table = {"api": "vllm", "template": "{completion}", "batch_size": 1, "max_retries": 0}
        model = RemoteModel(RemoteSpec.model_validate(table | {"url": self._urls}), {})
        try:
            await model.open()
            yield model
        finally:
            await model.close()


@pytest.fixture
def pair(served: tuple[list[Calls], list[str]]) -> Pair:
    for calls in served[0]:
        for field in fields(Calls):
            setattr(calls, field.name, getattr(Calls(), field.name))
    return Pair(*served)


def texts_of(calls: Calls) -> list[str]:
    return [text for body in calls.bodies for text in body["input"] if len(text) == 1]


async def test_servers_take_requests_in_turn(pair: Pair) -> None:
    first, second = pair.first, pair.second
    async with pair.opened() as model:
        assert values(await model.score(completions(*"abcd"))) == [-9] * 4
    assert sorted(map(len, map(texts_of, (first, second)))) == [2, 2]


async def test_server_that_is_down_is_skipped_and_its_samples_go_to_the_next(pair: Pair) -> None:
    first, second = pair.first, pair.second
    async with pair.opened() as model:
        first.num_refused = 99
        for text in "abcd":
            assert values(await model.score(completions(text))) == [-9]
    assert (texts_of(first), texts_of(second)) == (["a"], list("abcd"))


async def test_sample_fails_when_all_servers_fail(pair: Pair) -> None:
    first, second = pair.first, pair.second
    async with pair.opened() as model:
        first.num_refused = second.num_refused = 1
        failed, scored = [(await model.score(completions("a")))[0] for _ in range(2)]
    assert isinstance(failed, SampleError)
    assert failed.message.startswith("none of 2 servers gave scores; vllm at 127.0.0.1 answered")
    assert values([scored]) == [-9]


async def test_text_that_a_server_refuses_is_not_sent_to_the_next(pair: Pair) -> None:
    first, second = pair.first, pair.second
    async with pair.opened() as model:
        num_before = len(first.bodies) + len(second.bodies)
        assert values(await model.score(completions("boom"))) == ["model_failed"]
    assert len(first.bodies) + len(second.bodies) == num_before + 1


async def test_server_that_stops_and_restarts_under_load_loses_no_score() -> None:
    async with restarting_servers(3) as servers:
        table = {"api": "alarm", "url": [one.url for one in servers], "batch_size": 1}
        model = RemoteModel(RemoteSpec.model_validate(table), {})
        await model.open()

        async def ask(index: int) -> float:
            (found,) = values(await model.score(completions("x" * index)))
            assert isinstance(found, float), found
            return found

        try:
            answers = await ask_while_one_restarts(ask, servers, 200)
        finally:
            await model.close()
    assert answers == [*range(200), *range(5)]


async def test_server_unavailable_at_the_start_is_used_once_it_is_back(pair: Pair) -> None:
    first, second = pair.first, pair.second
    second.num_refused = 1
    async with pair.opened() as model:
        await asyncio.sleep(BACKOFF_S)
        for text in "abcd":
            await model.score(completions(text))
    assert sorted(texts_of(first) + texts_of(second)) == list("abcd")
    assert texts_of(second)


async def test_server_back_with_another_model_gets_no_samples(pair: Pair) -> None:
    first, second = pair.first, pair.second
    second.num_refused, second.root = 1, "/weights/other"
    async with pair.opened() as model:
        await asyncio.sleep(BACKOFF_S)
        assert values(await model.score(completions(*"abcd"))) == [-9] * 4
        first.num_refused = 99
        (failed,) = await model.score(completions("e"))
    assert texts_of(second) == []
    assert isinstance(failed, SampleError)


async def test_only_server_back_with_another_model_gets_no_samples() -> None:
    calls = Calls()
    table = {"api": "vllm", "template": "{completion}", "max_retries": 0}
    with over_tcp(vllm(calls)) as port:
        spec = RemoteSpec.model_validate(table | {"url": f"http://127.0.0.1:{port}"})
        model = RemoteModel(spec, {})
        await model.open()
    try:
        assert values(await model.score(completions("a"))) == ["model_failed"]
        calls.root = "/weights/other"
        with over_tcp(vllm(calls), port=port):
            (changed,) = await model.score(completions("a"))
        calls.root = "/weights/rm"
        with over_tcp(vllm(calls), port=port):
            assert values(await model.score(completions("a"))) == [-9]
    finally:
        await model.close()
    assert isinstance(changed, SampleError)
    assert "before: reload the recipe" in changed.message


async def test_servers_with_different_models_are_refused_at_the_start(pair: Pair) -> None:
    pair.second.root = "/weights/other"
    with pytest.raises(CheckpointError, match=r"must serve the same model"):
        async with pair.opened():
            pass


async def test_servers_that_are_all_unavailable_are_waited_for(pair: Pair) -> None:
    pair.first.num_refused = pair.second.num_refused = 1
    with pytest.raises(UnreachableError, match="none of 2 servers"):
        async with pair.opened():
            pass


async def test_fingerprint_does_not_depend_on_the_order_of_the_servers() -> None:
    urls = ["http://a:1", "http://b:1"]
    table = {"api": "vllm", "template": "{completion}"}
    prints = {
        RemoteModel(RemoteSpec.model_validate(table | {"url": url}), {}).fingerprint
        for url in (urls, urls[::-1], urls[:1])
    }
    assert len(prints) == 2
