import asyncio

import pytest
from served import serving, until_set
from standin import Words, recipe

from alarm_models.sample import Message, Sample
from alarm_service.errors import Overloaded
from alarm_service.scheduling.admission import Admission, estimate_tokens


def door(max_tokens: int, *, tokens_per_s: float = 0) -> Admission:
    return Admission(max_tokens, tokens_per_s=lambda: tokens_per_s, observe=lambda _: None)


def test_an_empty_house_takes_any_request() -> None:
    admission = door(10)
    with admission.admit(1000):
        assert admission.num_queued == 1000


def test_a_house_fills_up_to_its_limit() -> None:
    admission = door(10)
    with admission.admit(4), admission.admit(6), pytest.raises(Overloaded), admission.admit(1):
        pass


def test_a_place_is_given_back_whatever_happens() -> None:
    admission = door(10)
    with pytest.raises(ValueError, match="no"), admission.admit(4):
        raise ValueError("no")
    assert admission.num_queued == 0


@pytest.mark.parametrize(
    ("tokens_per_s", "seconds"),
    [(0, 1), (1000, 1), (25, 2), (1, 30)],  # 100 tokens wait: half of them take 50 / rate
)
def test_a_full_house_says_when_half_of_it_will_be_done(tokens_per_s: float, seconds: int) -> None:
    admission = door(100, tokens_per_s=tokens_per_s)
    with admission.admit(100):
        assert admission.retry_after_s() == seconds


def test_tokens_are_estimated_from_characters() -> None:
    sample = Sample("1234", (Message("assistant", "12345678"),), fields={"question": "1234"})
    assert estimate_tokens([sample, sample]) == 2 * (16 + 4)


async def test_a_full_queue_is_429_and_says_when_to_come_again() -> None:
    async with serving(max_queued_tokens=20) as server:
        first = asyncio.create_task(server.score("hold"))
        await until_set(server.words.held)
        refused = await server.score("one")
        assert refused.status_code == 429
        assert refused.headers["Retry-After"] == "1"
        assert refused.json()["error"]["code"] == "overloaded"
        assert refused.json()["error"]["retryable"]
        server.words.release.set()
        assert (await first).status_code == 200
        assert (await server.score("one")).status_code == 200


async def test_the_queue_counts_both_routes() -> None:
    async with serving(max_queued_tokens=20) as server:
        first = asyncio.create_task(server.reward("hold"))
        await until_set(server.words.held)
        assert (await server.score("one")).status_code == 429
        assert (await server.reward("one")).status_code == 429
        server.words.release.set()
        await first


async def test_a_request_of_several_models_has_one_place() -> None:
    async with serving(recipe(aspects={"again": {"model": "words"}}), words=Words()) as server:
        request = asyncio.create_task(server.reward("hold", aspects="all"))
        await until_set(server.words.held)
        assert server.engine.admission.num_queued == 16 + 1
        server.words.release.set()
        await request
        assert server.engine.admission.num_queued == 0


@pytest.mark.parametrize("completion", ["boom", "nan", "choke", "long"])
async def test_a_failed_sample_gives_its_place_back(completion: str) -> None:
    async with serving() as server:
        await server.score(completion)
        assert server.engine.admission.num_queued == 0


async def test_a_refused_override_gives_its_place_back() -> None:
    async with serving() as server:
        refused = await server.reward("one", overrides={"weights": {"nobody": 1}})
        assert refused.status_code == 422
        assert server.engine.admission.num_queued == 0


async def test_a_passed_deadline_gives_its_place_back() -> None:
    async with serving() as server:
        late = await server.score("hold", **{"X-Request-Timeout-Ms": "1"})
        assert late.status_code == 504
        assert server.engine.admission.num_queued == 0
