import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from httpx import Response
from served import samples, serving, until_set
from standin import Words, recipe


def scores(response: Response) -> list[float | None]:
    assert response.status_code == 200, response.text
    return [one["score"] for one in response.json()["scores"]]


def errors(response: Response) -> list[str | None]:
    assert response.status_code == 200, response.text
    return [one["error"] and one["error"]["code"] for one in response.json()["scores"]]


def words(numbers: Sequence[int]) -> list[str]:
    return ["word " * number for number in numbers]


async def test_engine_batches_waiting_requests_together() -> None:
    async with serving() as server:
        first = asyncio.create_task(server.score("hold"))
        await until_set(server.words.held)
        server.words.batches.clear()
        others = [asyncio.create_task(server.score(*words([1 + i]))) for i in range(50)]
        await server.until_waiting(50)
        server.words.release.set()
        assert [scores(await one) for one in others] == [[1 + i] for i in range(50)]
        assert scores(await first) == [1]
        assert server.words.batches == [50]


async def test_engine_batch_is_within_its_token_budget() -> None:
    async with serving(max_batch_tokens=20) as server:
        first = asyncio.create_task(server.score("hold"))
        await until_set(server.words.held)
        server.words.batches.clear()
        others = [asyncio.create_task(server.score(*words([5]))) for _ in range(10)]
        await server.until_waiting(10)
        server.words.release.set()
        await asyncio.gather(first, *others)
        assert server.words.batches == [4, 4, 2]


async def test_engine_large_request_keeps_its_order() -> None:
    numbers = [1 + 37 * i % 101 for i in range(500)]
    async with serving(max_batch_tokens=300) as server:
        assert scores(await server.score(*words(numbers))) == numbers


async def test_engine_sample_that_raises_fails_alone() -> None:
    async with serving() as server:
        answer = await server.score("a", "a b", "boom", "a b c", "a b c d")
        assert scores(answer) == [1, 2, None, 3, 4]
        assert errors(answer) == [None, None, "model_failed", None, None]


async def test_engine_failing_batch_is_split_down_to_the_sample() -> None:
    async with serving() as server:
        await server.score("a")
        server.words.batches.clear()
        await server.score("a", "a", "a", "a", "a", "a", "a", "boom")
        assert server.words.batches == [8, 4, 4, 2, 2, 1, 1]


async def test_engine_batch_out_of_memory_is_split_until_it_fits() -> None:
    async with serving(words=Words(max_samples=2)) as server:
        answer = await server.score(*words(range(1, 9)))
        assert scores(answer) == [1, 2, 3, 4, 5, 6, 7, 8]
        assert server.words.batches[1:] == [8, 4, 2, 2, 4, 2, 2]


@pytest.mark.parametrize(
    ("bad", "code"),
    [("nan", "non_finite"), ("long", "too_long"), ("choke", "model_failed")],
)
async def test_engine_invalid_sample_fails_alone(bad: str, code: str) -> None:
    async with serving() as server:
        answer = await server.score("a b", bad, "a b c")
        assert scores(answer) == [2, None, 3]
        assert errors(answer) == [None, code, None]


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        (
            {"token_offsets": [[0, 1], [1, 4]]},
            "token_offsets[1] is [1, 4], but the completion has 3 characters",
        ),
        (
            {"token_offsets": [[2, 1]]},
            "token_offsets[0] is [2, 1], which ends before it starts",
        ),
        (
            {"token_offsets": [[1, 2], [0, 3]]},
            "token_offsets[1] starts at 0, before token_offsets[0] at 1",
        ),
        (
            {"segments": {"sentences": [[0, 99]]}},
            "segments.sentences[0] is [0, 99], but the completion has 3 characters",
        ),
        (
            {"segments": {"sentences": [[0, 1], [1, 1]]}},
            "segments.sentences[1] is [1, 1], which has no text",
        ),
        (
            {"segments": {"sentences": [[1, 2]]}},
            "segments.sentences[0] is [1, 2], which has no text",
        ),
        (
            {"segments": {"subsentences": [[2, 3], [0, 1]]}},
            "segments.subsentences[1] starts at 0, before segments.subsentences[0] at 2",
        ),
        (
            {"segments": {"errors": [[2, 3], [0, 1], [4, 5]]}},
            "segments.errors[2] is [4, 5], but the completion has 3 characters",
        ),
    ],
)
@pytest.mark.parametrize("route", ["/score", "/hierarchical_reward"])
async def test_spans_outside_the_completion_fail_the_sample(
    spans: dict[str, Any], message: str, route: str
) -> None:
    first, second, third = samples("a b", "a b", "a b")
    async with serving() as server:
        answer = await server.client.post(route, json={"samples": [first, second | spans, third]})
        before, bad, after = next(
            answer.json()[name] for name in ("scores", "rewards") if name in answer.json()
        )
        assert bad["error"] == {"code": "invalid_sample", "message": message}
        assert before == after
        assert before["error"] is None


async def test_token_offsets_count_code_points() -> None:
    sample = {"prompt": "?", "completion": "🙂é", "token_offsets": [[0, 1], [1, 2], [2, 2]]}
    async with serving() as server:
        answer = await server.client.post("/score", json={"samples": [sample]})
        assert errors(answer) == [None]


async def test_catalog_recipes_with_equal_specs_share_a_model() -> None:
    async with serving(recipe("one"), recipe("two")) as server:
        listed = (await server.client.get("/models")).json()
        assert [model["name"] for model in listed["models"]] == ["words"]
        assert [one["name"] for one in listed["recipes"]] == ["one", "two"]
        for name in ("words", "one/words", "two/words"):
            answer = await server.client.post(
                "/score", json={"model": name, "samples": samples("a")}
            )
            assert answer.json()["model"] == "words"


async def test_usage_counts_tokens_of_scored_samples() -> None:
    async with serving() as server:
        answer = await server.score("a b c", "boom", "a b")
        assert answer.json()["usage"] == {"num_tokens": 5, "num_computed_tokens": 5}
