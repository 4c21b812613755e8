"""A judge behind a chat endpoint: requests, stored answers, budget, hedged requests."""

import asyncio
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from scripted_judge import Refuse, Say, endpoint, judge_server, says, served

from alarm_models.errors import CheckpointError, SampleError, quoted_answer
from alarm_models.recipe.specs import BudgetSpec, EndpointSpec
from alarm_models.reward_models.judge_endpoint import cache as cache_module
from alarm_models.reward_models.judge_endpoint.budget import Budget, Expense
from alarm_models.reward_models.judge_endpoint.cache import AnswerCache, request_key
from alarm_models.reward_models.judge_endpoint.client import JudgeEndpoint, Question
from alarm_models.types import JudgeUsage

HELLO = Question([{"role": "user", "content": "Hello?"}])
SCHEMA = {"type": "object", "properties": {"met": {"type": "boolean"}}}


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    with judge_server():
        yield


async def test_endpoint_counts_requests_tokens_and_money() -> None:
    prices = {"input_price": 100_000, "output_price": 200_000}
    async with endpoint(says("yes"), **prices) as (judge, server):
        result = await judge.ask(HELLO)
        assert [reply.text for reply in result.replies] == ["yes"]
        assert result.usage == JudgeUsage(1, 0, 10, 5, 2.0)
        assert judge.totals.usage == result.usage
        assert server.bodies == [
            {
                "temperature": 0,
                "max_tokens": 1024,
                "model": "judge",
                "messages": [{"role": "user", "content": "Hello?"}],
            }
        ]


async def test_endpoint_requests_schema_votes_and_logprobs() -> None:
    top = [{"token": "yes", "logprob": -0.5}, {"token": "no", "logprob": -1.0}]
    logprobs = {"content": [{"token": "yes", "logprob": -0.5, "top_logprobs": top}]}
    script = says("yes", logprobs=logprobs)
    async with endpoint(script) as (judge, server):
        asked = Question(HELLO.messages, SCHEMA, num_votes=2, top_logprobs=2)
        first, second = (await judge.ask(asked)).replies
        assert first == second
        assert first.tokens[0].alternatives == (("yes", -0.5), ("no", -1.0))
        body = server.bodies[0]
        assert (body["n"], body["logprobs"], body["top_logprobs"]) == (2, True, 2)
        assert body["response_format"]["json_schema"]["schema"] == SCHEMA


async def test_endpoint_without_n_is_asked_for_each_missing_vote() -> None:
    async with endpoint(lambda body: [Say("yes")]) as (judge, server):
        result = await judge.ask(Question(HELLO.messages, num_votes=3))
        assert len(result.replies) == result.usage.num_requests == 3
        assert ["n" in body for body in server.bodies] == [True, False, False]


async def test_endpoint_that_refuses_schemas_is_asked_without_from_then_on() -> None:
    def script(body: dict[str, Any]) -> list[Say] | Refuse | float:
        return Refuse(400) if "response_format" in body else [Say("yes")]

    async with endpoint(script) as (judge, server):
        for _ in range(2):
            await judge.ask(Question(HELLO.messages, SCHEMA))
        assert ["response_format" in body for body in server.bodies] == [True, False, False]
    async with endpoint(script, structured="json_schema") as (judge, _):
        with pytest.raises(SampleError, match="answered 400"):
            await judge.ask(Question(HELLO.messages, SCHEMA))


async def test_refused_and_truncated_answers_are_replies_that_say_so() -> None:
    script = lambda body: [Say(None, refusal="I will not"), Say("Let me", "length")]  # noqa: E731
    async with endpoint(script) as (judge, _):
        refused, cut = (await judge.ask(Question(HELLO.messages, num_votes=2))).replies
        assert (refused.is_refused, refused.is_cut, refused.text) == (True, False, "")
        assert (cut.is_refused, cut.is_cut) == (False, True)


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ({"got": ["a\nb\u202e"]}, r'(there is no "choices"): {"got": ["a\nb\u202e"]}'),
        ([{"text": None}], 'unknown format: [{"text": null}]'),
        ({"choices": [{"message": {"content": 7}}]}, "(message.content must be a text): {"),
        ({"error": 'sk-"a is wrong'}, '{"error": "[key] is wrong"}'),
    ],
)
async def test_response_of_another_format_is_shown_as_json(answer: Any, shown: str) -> None:
    script = lambda body: JSONResponse(answer)  # noqa: E731
    async with endpoint(script, api_key='sk-"a') as (judge, _):
        with pytest.raises(SampleError, match=re.escape(shown)) as caught:
            await judge.ask(HELLO)
        assert caught.value.message.startswith("the judge's response has an unknown format")
        assert judge.totals.num_failed == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\n'b' \x7f\u202e", r'"a\n' + r"'b' \u007f\u202e" + '"'),
        ('{"id":\n"x"}', r'{"id":\n"x"}'),
        ("x" * 300, '"' + "x" * 199 + "…"),
        ("\0" * 100, '"' + (r"\u0000" * 34)[:199] + "…"),
    ],
)
def test_answer_is_quoted_as_short_json(text: str, shown: str) -> None:
    assert quoted_answer(text) == shown


async def test_stalled_judge_fails_and_hedged_request_does_not() -> None:
    delays = iter([1.0])
    script = lambda body: next(delays, [Say("yes")])  # noqa: E731
    async with endpoint(script, timeout_s=0.1) as (judge, _):
        with pytest.raises(SampleError, match=r"judge at 127\.0\.0\.1 took longer than 0\.1 s"):
            await judge.ask(HELLO)
        assert judge.totals.num_failed == 1
    delays = iter([2.0])
    async with endpoint(script, hedge_after_s=0.05) as (judge, server):
        assert (await judge.ask(HELLO)).replies[0].text == "yes"
        assert (judge.totals.num_hedged, len(server.bodies)) == (1, 2)


async def test_answers_are_stored_for_later_processes_and_not_for_other_questions(
    tmp_path: Path,
) -> None:
    with served(says("yes")) as (server, keys):
        spec = EndpointSpec.model_validate(keys | {"cache": str(tmp_path / "answers")})
        for expected in (JudgeUsage(1, 0, 10, 5), JudgeUsage(num_cached=1)):
            judge = JudgeEndpoint(spec)
            await judge.open()
            result = await judge.ask(HELLO)
            assert (result.replies[0].text, result.usage) == ("yes", expected)
            await judge.close()
        judge = JudgeEndpoint(spec)
        await judge.open()
        await judge.ask(Question([{"role": "user", "content": "Hello!"}]))
        await judge.close()
        assert server.last_messages == ["Hello?", "Hello!"]
    (file,) = (tmp_path / "answers").glob("*.sqlite3")
    assert file.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "answer", [Say("", "stop"), Say("Yes", "length"), Say("Ye", "abort"), Say(None, refusal="No")]
)
async def test_answers_without_an_end_are_not_stored(answer: Say, tmp_path: Path) -> None:
    answers = iter([[answer]])
    script = lambda body: next(answers, [Say("yes")])  # noqa: E731
    async with endpoint(script, cache=str(tmp_path)) as (judge, server):
        texts = [(await judge.ask(HELLO)).replies[0].text for _ in range(3)]
        assert (texts[1:], len(server.bodies)) == (["yes", "yes"], 2)


def damage(cache: Path, answer: str) -> None:
    (file,) = cache.glob("*.sqlite3")
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE answers SET answer = ?", (answer,))


@pytest.mark.parametrize("damaged", ["[]", "{}", '[{"text": 5}]', "[" * 5000])
async def test_stored_answer_that_is_damaged_is_asked_for_again(
    damaged: str, tmp_path: Path
) -> None:
    async with endpoint(says("yes"), cache=str(tmp_path)) as (judge, server):
        await judge.ask(HELLO)
        damage(tmp_path, damaged)
        for _ in range(2):
            assert (await judge.ask(HELLO)).replies[0].text == "yes"
        assert len(server.bodies) == 2


@pytest.mark.parametrize(
    ("reason", "is_cut", "is_refused"),
    [
        ("stop", False, False), ("STOP", False, False), ("end_turn", False, False),
        ("eos_token", False, False), ("length", True, False), ("model_length", True, False),
        ("MAX_TOKENS", True, False), ("insufficient_system_resource", True, False),
        ("abort", True, False), ("content_filter", False, True), ("SAFETY", False, True),
    ],
)  # fmt: skip
async def test_finish_reason_says_whether_the_judge_ended_its_answer(
    reason: str, is_cut: bool, is_refused: bool
) -> None:
    async with endpoint(lambda body: [Say("yes", reason)]) as (judge, _):
        (reply,) = (await judge.ask(HELLO)).replies
    assert (reply.is_cut, reply.is_refused) == (is_cut, is_refused)
    assert reply.is_worth_storing == (not is_cut and not is_refused)


async def test_cache_that_another_process_locks_is_read_without_waiting_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_BUSY_S", 0.05)
    async with endpoint(says("yes"), cache=str(tmp_path)) as (judge, server):
        await judge.ask(HELLO)
        with locked(tmp_path):
            assert (await judge.ask(HELLO)).usage.num_cached == 1
            cache = judge._cache
            assert cache is not None
            assert not cache._may_write
            assert (await judge.ask(Question([{"role": "user", "content": "Hi"}]))).replies
        assert len(server.bodies) == 2


@contextmanager
def locked(cache: Path) -> Iterator[None]:
    (file,) = cache.glob("*.sqlite3")
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        yield
        database.execute("ROLLBACK")


async def test_answer_that_cannot_be_read_is_asked_for_again(tmp_path: Path) -> None:
    async with endpoint(says("One moment."), cache=str(tmp_path)) as (judge, server):
        result = await judge.ask(HELLO)
        assert (await judge.ask(HELLO)).usage.num_cached == 1
        await judge.forget(result)
        assert (await judge.ask(HELLO)).usage.num_cached == 0
        assert len(server.bodies) == 2


async def test_key_does_not_depend_on_whether_schemas_were_refused(tmp_path: Path) -> None:
    def script(body: dict[str, Any]) -> list[Say] | Refuse | float:
        return Refuse(400) if "response_format" in body else [Say("yes")]

    asked = Question(HELLO.messages, SCHEMA)
    for expected in (0, 1):  # the second has not been refused yet
        async with endpoint(script, cache=str(tmp_path)) as (judge, _):
            assert (await judge.ask(asked)).usage.num_cached == expected
            assert (await judge.ask(asked)).usage.num_cached == 1


async def test_cache_removes_the_least_recently_used_answers(tmp_path: Path) -> None:
    cache = AnswerCache(str(tmp_path), 250)
    for name in "ab":
        await cache.put(name, name * 97)  # with the key and quotes, 100 bytes
    await cache.get("a")
    await cache.put("c", "c" * 97)
    assert cache.num_bytes() == 200
    assert [await cache.get(name) is not None for name in "abc"] == [True, False, True]
    await cache.put("d", "d" * 300)
    assert await cache.get("d") is None
    cache.close()


async def test_cache_that_cannot_be_opened_is_refused_with_the_key(tmp_path: Path) -> None:
    (tmp_path / "judge-answers.sqlite3").write_bytes(b"not a database, for certain" * 100)
    with pytest.raises(CheckpointError, match="Set `cache` to a folder that can be written"):
        AnswerCache(str(tmp_path), 1000)


async def test_cache_that_fails_later_answers_nothing(tmp_path: Path) -> None:
    cache = AnswerCache(str(tmp_path), 1000)
    await cache.put("a", 1)
    with sqlite3.connect(tmp_path / "judge-answers.sqlite3") as other:
        other.execute("DROP TABLE answers")
    assert await cache.get("a") is None
    await cache.put("b", 2)
    cache.close()


async def test_cache_that_cannot_be_written_later_still_answers(tmp_path: Path) -> None:
    cache = AnswerCache(str(tmp_path), 1000)
    await cache.put("a", 1)
    with sqlite3.connect(tmp_path / "judge-answers.sqlite3") as other:
        other.execute(
            "CREATE TRIGGER full BEFORE UPDATE ON answers BEGIN SELECT RAISE(ABORT, 'full'); END"
        )
    assert await cache.get("a") == 1
    cache.close()


def test_key_of_a_request_depends_on_server_model_and_body() -> None:
    keys = {
        request_key(*parts)
        for parts in (
            ("a", "m", {"x": 1}),
            ("b", "m", {"x": 1}),
            ("a", "n", {"x": 1}),
            ("a", "m", {"x": 2}),
        )
    }
    assert len(keys) == 4
    assert request_key("a", "m", {"x": 1, "y": 2}) == request_key("a", "m", {"y": 2, "x": 1})


def test_budget_waits_until_the_oldest_expenses_are_a_minute_old() -> None:
    budget = Budget(BudgetSpec(tokens=100))
    budget.enter(Expense(60), now=0)
    settle = budget.enter(Expense(30), now=20)
    assert budget.wait_s(Expense(10), now=30) == 0
    assert budget.wait_s(Expense(20), now=30) == 30
    assert budget.wait_s(Expense(90), now=30) == 50
    assert budget.wait_s(Expense(101), now=30) is None
    settle(Expense(5))
    assert budget.wait_s(Expense(35), now=30) == 0
    assert budget.wait_s(Expense(95), now=60) == 0


def test_budget_limits_requests_and_money() -> None:
    budget = Budget(BudgetSpec(requests=1))
    assert budget.wait_s(Expense(), now=0) == 0
    budget.enter(Expense(), now=0)
    assert budget.wait_s(Expense(), now=1) == 59
    costs = Budget(BudgetSpec(cost=1.0))
    costs.enter(Expense(0, 0.75), now=0)
    assert costs.wait_s(Expense(0, 0.25), now=0) == 0
    assert costs.wait_s(Expense(0, 0.5), now=0) == 60
    assert costs.wait_s(Expense(0, 1.5), now=0) is None


async def test_request_over_budget_fails_with_its_own_code() -> None:
    async with endpoint(says("yes"), budget={"requests": 1, "excess": "fail"}) as (judge, server):
        await judge.ask(HELLO)
        with pytest.raises(SampleError, match="used up and has room in 60 s") as caught:
            await judge.ask(HELLO)
        assert caught.value.code == "budget_exceeded"
        assert (len(server.bodies), judge.totals.num_over_budget) == (1, 1)
    async with endpoint(says("yes"), budget={"tokens": 100}) as (judge, _):
        with pytest.raises(SampleError, match=r"more than budget\.tokens allows a minute"):
            await judge.ask(HELLO)


@pytest.mark.parametrize(
    ("usage", "num_answered"),
    [
        ({}, 1),
        ({"prompt_tokens": None}, 1),
        ({"total_tokens": 40}, 2),
        ({"prompt_tokens": 10, "completion_tokens": 5}, 3),
    ],
)
async def test_budget_counts_the_estimate_where_the_server_counts_nothing(
    usage: dict[str, Any], num_answered: int
) -> None:
    choice = {"index": 0, "message": {"content": "yes"}, "finish_reason": "stop"}
    script = lambda body: JSONResponse({"choices": [choice], "usage": usage})  # noqa: E731
    limits = {"budget": {"tokens": 130, "excess": "fail"}, "parameters": {"max_tokens": 88}}
    async with endpoint(script, **limits) as (judge, _):  # a question is 90 tokens by estimate
        outcomes = await asyncio.gather(*(ask_later(judge, at) for at in range(3)))
    assert sum(outcomes) == num_answered


async def ask_later(judge: JudgeEndpoint, index: int) -> bool:
    """Ask one after the other; return whether there was an answer."""
    await asyncio.sleep(0.05 * index)
    try:
        await judge.ask(HELLO)
    except SampleError:
        return False
    return True


async def test_missing_votes_are_not_waited_for_after_one_is_refused() -> None:
    num = iter(range(99))

    def script(body: dict[str, Any]) -> list[Say] | Refuse | float:
        at = next(num)
        return [Say("yes")] if at == 0 else Refuse(400) if at == 1 else 5.0

    async with endpoint(script, max_concurrent=2) as (judge, server):
        with pytest.raises(SampleError, match="answered 400"):
            await judge.ask(Question(HELLO.messages, num_votes=9))
        await asyncio.sleep(0.1)
        assert len(server.bodies) <= 4


async def test_budget_does_not_count_tokens_of_requests_that_were_refused() -> None:
    answers = iter([Refuse(429), Refuse(503)])
    script = lambda body: next(answers, [Say("yes")])  # noqa: E731
    parameters = {"parameters": {"max_tokens": 90}, "max_retries": 2}
    budget = {"tokens": 100, "excess": "fail"}
    async with endpoint(script, budget=budget, **parameters) as (judge, server):
        assert (await judge.ask(HELLO)).usage == JudgeUsage(3, 0, 10, 5)
        assert len(server.bodies) == 3


async def test_models_of_one_url_share_its_concurrency() -> None:
    with served(lambda body: 0.05) as (server, keys):
        spec = EndpointSpec.model_validate(keys | {"max_concurrent": 2})
        judges = [JudgeEndpoint(spec) for _ in range(2)]
        for judge in judges:
            await judge.open()
        await asyncio.gather(*(judge.ask(HELLO) for judge in judges for _ in range(3)))
        for judge in judges:
            await judge.close()
        assert server.most_running <= 2


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"budget": {"cost": 1.0}}, "budget.cost requires input_price and output_price"),
        ({"parameters": {"n": 2}}, r"sets \['n'\], which the server sets itself"),
    ],
)
def test_endpoint_spec_refuses(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EndpointSpec.model_validate({"url": "http://judge", "model": "m"} | keys)


async def test_endpoint_that_lists_no_models_is_opened() -> None:
    with served(says("x")) as (judge, keys):
        elsewhere = keys["url"].removesuffix("/v1") + "/else"  # which answers 404 to all
        client = JudgeEndpoint(EndpointSpec.model_validate(keys | {"url": elsewhere}))
        await client.open()
        with pytest.raises(SampleError, match="404"):
            await client.ask(Question([{"role": "user", "content": "?"}]))
        await client.close()
        assert not judge.bodies
