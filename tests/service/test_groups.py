"""Groups whose samples come in several requests, over the real application."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from served import Server, serving, until, until_set
from standin import recipe

from alarm_models.combination.rewards import HolisticDecision, ScoredSample
from alarm_models.errors import SampleError
from alarm_models.types import Reward, Sample, Score
from alarm_service.engine.group_assembler import GroupAssembler
from alarm_service.engine.group_state import Identity
from alarm_service.engine.lifecycle import Lifecycle
from alarm_service.observability.metrics import Metrics

WORDS = ["a", "a b", "a b c", "a b c d e"]


@asynccontextmanager
async def grouping(timeout_s: float = 0.15, **tables: Any) -> AsyncIterator[Server]:
    tables.setdefault("hierarchy", {"rule": "mo_grpo"})
    async with serving(recipe(group_timeout_s=timeout_s, **tables)) as server:
        await server.engine.life.until_ready()
        yield server


def member(completion: str, at: object = None, **keys: Any) -> dict[str, Any]:
    sample = {"prompt": "?", "completion": completion, "group": "x", "group_size": 4, **keys}
    return sample if at is None else {"id": str(at), **sample}


def members() -> list[dict[str, Any]]:
    return [member(words, at) for at, words in enumerate(WORDS)]


async def post(server: Server, *samples: dict[str, Any], **headers: str) -> httpx.Response:
    return await server.client.post(
        "/hierarchical_reward", json={"samples": samples}, headers=headers
    )


async def reward(server: Server, *samples: dict[str, Any]) -> list[Any]:
    """Return the rewards of one request, or the error's code and message in place of one."""
    answer = await post(server, *samples)
    assert answer.status_code == 200, answer.text
    return [
        one["reward"] if one["error"] is None else (one["error"]["code"], one["error"]["message"])
        for one in answer.json()["rewards"]
    ]


async def each(server: Server, *samples: dict[str, Any]) -> list[Any]:
    answers = await asyncio.gather(*(reward(server, sample) for sample in samples))
    return [answer for (answer,) in answers]


async def whole(server: Server, *completions: str) -> list[Any]:
    """Return the rewards of a group that comes in one request."""
    return await reward(
        server, *({"prompt": "?", "completion": one, "group": "whole"} for one in completions)
    )


def num_waiting(server: Server) -> int:
    return sum(one.num_waiting for one in server.engine.groups.open_attempts)


async def waiting(server: Server, num: int) -> None:
    await until(lambda: num_waiting(server) == num and not server.engine.admission.num_queued)


@pytest.mark.parametrize("rule", ["mo_grpo", "gdpo"])
async def test_group_one_sample_a_request_has_the_rewards_of_one_request(rule: str) -> None:
    async with grouping(hierarchy={"rule": rule}) as server:
        wanted = await whole(server, *WORDS)
        order = members()
        random.Random(0).shuffle(order)
        found = dict(zip([one["id"] for one in order], await each(server, *order), strict=True))
        assert [found[str(at)] for at in range(4)] == wanted
        assert len(set(wanted)) == 4
        metrics = (await server.client.get("/metrics")).text
        assert 'alarm_groups_total{outcome="complete"} 1.0' in metrics
        assert "alarm_member_wait_seconds_count 4.0" in metrics
        assert "alarm_open_groups 0.0" in metrics


async def test_group_without_ids_may_have_equal_completions() -> None:
    async with grouping() as server:
        wanted = await whole(server, "a", "a", "a b", "a b")
        assert await each(server, *map(member, ["a", "a", "a b", "a b"])) == wanted


async def test_group_of_a_trainers_route_waits_for_capacity_and_releases_it() -> None:
    body = {"prompt": "?", "response": "a b " * 100, "group_size": 4}
    async with serving(
        recipe(group_timeout_s=5, hierarchy={"rule": "mo_grpo"}), max_queued_tokens=500
    ) as server:
        await server.engine.life.until_ready()
        bodies = [
            body | {"group": str(group), "id": str(member)}
            for member in range(4)
            for group in range(8)
        ]
        answers = await asyncio.gather(
            *(server.client.post("/compat/slime/plain", json=one) for one in bodies)
        )
        assert {one.status_code for one in answers} == {200}
        metrics = (await server.client.get("/metrics")).text
        assert "alarm_reserved_tokens 0.0" in metrics
        assert "alarm_queued_tokens 0.0" in metrics


async def test_group_in_two_requests_beside_whole_groups() -> None:
    async with grouping() as server:
        wanted, others = await whole(server, *WORDS), await whole(server, "a", "a b c")
        other = [
            {"prompt": "!", "completion": one, "group": "y", "group_size": 2}
            for one in ("a", "a b c")
        ]
        first, second = members()[:3], members()[3:]
        one, two = await asyncio.gather(
            reward(server, other[0], *first, other[1]), reward(server, *second)
        )
        assert [*one[1:4], *two] == wanted
        assert [one[0], one[4]] == others


async def test_whole_groups_in_one_request_do_not_wait() -> None:
    async with grouping() as server:
        assert await reward(server, *members()) == await whole(server, *WORDS)
        assert not server.engine.groups.open_attempts


async def test_partial_group_is_refused_at_once_where_servers_are_several() -> None:
    async with grouping(timeout_s=60) as server:
        server.engine.groups.set_num_servers(2)
        ((code, message),) = await reward(server, member("a", 0))
        assert code == "group_incomplete"
        assert message.startswith("this request has a part of group 'x', and the others may reach")
        assert message.endswith("2 ingress replicas: send whole groups, or run one ingress replica")
        assert await reward(server, *members()) == await whole(server, *WORDS)


async def test_sample_rules_ignore_group_size() -> None:
    async with grouping(hierarchy={"rule": "weighted_sum"}) as server:
        assert await reward(server, member("a b")) == [2.0]


async def test_incomplete_group_says_how_many_came() -> None:
    async with grouping() as server:
        wanted = ("group_incomplete", "3 of 4 samples of group 'x' came within 0.15 s")
        assert await each(server, *members()[:3]) == [wanted] * 3


async def test_late_member_is_told_at_once_and_the_retried_group_is_complete() -> None:
    async with grouping() as server:
        await each(server, *members()[:3])
        (late,) = await reward(server, members()[3])
        assert late[0] == "group_incomplete"
        assert "3 of 4 samples came" in late[1]
        server.words.batches.clear()
        retried = asyncio.gather(*(reward(server, one) for one in members()[:3]))
        await waiting(server, 3)
        last = await reward(server, members()[3])
        assert [one for (one,) in [*await retried, last]] == await whole(server, *WORDS)
        assert server.words.batches[0] == 1  # what was scored before was not scored again


async def test_waiting_members_hold_no_queue_capacity() -> None:
    async with grouping() as server:
        task = asyncio.create_task(each(server, *members()[:3]))
        await waiting(server, 3)
        assert server.engine.admission.num_queued == 0
        metrics = (await server.client.get("/metrics")).text
        assert "alarm_waiting_members 3.0" in metrics
        await task


async def test_lost_answer_is_remembered() -> None:
    async with grouping() as server:
        wanted = await each(server, *members())
        server.words.batches.clear()
        assert await each(server, *members()) == wanted
        assert not server.words.batches


async def test_same_id_with_another_completion_is_a_conflict() -> None:
    async with grouping() as server:
        first = asyncio.create_task(each(server, *members()[:3]))
        await waiting(server, 3)
        (found,) = await reward(server, member("other words", 0))
        assert found == ("group_conflict", "two samples of group 'x' have id '0', and differ")
        last = await reward(server, members()[3])
        assert [*await first, *last] == await whole(server, *WORDS)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (member("b", 9, group_size=3), "has group_size 3, and others have 4"),
        (member("b", 9, prompt="??"), "prompt differs from that of the 1 in group"),
    ],
)
async def test_contradicting_member_is_a_conflict(sample: dict[str, Any], message: str) -> None:
    async with grouping() as server:
        first = asyncio.create_task(reward(server, members()[0]))
        await waiting(server, 1)
        ((code, found),) = await reward(server, sample)
        assert code == "group_conflict"
        assert message in found
        await first
        assert (
            'alarm_groups_total{outcome="conflict"} 1.0'
            in (await server.client.get("/metrics")).text
        )


async def test_too_many_samples_are_a_conflict() -> None:
    async with grouping() as server:
        found = await each(server, *members(), member("x y", 4))
        failed = [one for one in found if isinstance(one, tuple)]
        assert [code for code, _ in failed] in (["group_conflict"], ["group_incomplete"])
        assert len(found) - len(failed) == 4


async def test_request_with_more_than_group_size_or_two_sizes_is_a_conflict() -> None:
    async with grouping() as server:
        many = await reward(server, *(member("a", at) for at in range(5)))
        assert [code for code, _ in many] == ["group_conflict"] * 5
        two = await reward(server, member("a", 0), member("b", 1, group_size=3))
        assert [code for code, _ in two] == ["group_conflict"] * 2


async def test_group_size_must_be_the_recipes() -> None:
    async with grouping(hierarchy={"rule": "mo_grpo", "group_size": 8}) as server:
        ((code, message),) = await reward(server, member("a"))
        assert code == "invalid_sample"
        assert "hierarchy.group_size 8" in message


async def test_member_whose_caller_left_is_awaited_again() -> None:
    async with grouping(timeout_s=60) as server:
        leaver = asyncio.create_task(reward(server, members()[0]))
        await waiting(server, 1)
        leaver.cancel()
        await waiting(server, 0)
        others = asyncio.create_task(each(server, *members()[1:]))
        await waiting(server, 3)
        assert not others.done()
        first = await reward(server, members()[0])
        assert [*first, *await others] == await whole(server, *WORDS)


async def test_member_past_its_deadline_is_504_and_keeps_its_scores() -> None:
    async with grouping(timeout_s=60) as server:
        late = await post(server, members()[0], **{"X-Request-Timeout-Ms": "50"})
        assert late.status_code == 504
        server.words.batches.clear()
        assert await each(server, *members()) == await whole(server, *WORDS)
        assert sum(server.words.batches) == 3 + 4


async def test_caller_that_leaves_as_its_group_completes_still_counts() -> None:
    assembler = GroupAssembler(Metrics(), Lifecycle(()), 1 << 20)
    sent = [Sample("?", words, id=words) for words in ("a", "b")]
    decision = HolisticDecision(Score(1.0, None, 1, False), 1.0, True, True)

    async def combine(scored: Sequence[ScoredSample]) -> list[Reward | SampleError]:
        return [Reward(float(len(scored)), None, 1.0, 1.0, True, {}, False) for _ in scored]

    with assembler.visit() as stays:
        with assembler.visit() as leaves:
            for visit, sample in zip((leaves, stays), sent, strict=True):
                visit.arrive(0, "x", "x", Identity.of(sample, 2), 60.0)
                visit.settle(0, ScoredSample(sample, decision, {}), "f", combine)
        found = await stays.answers()
    with assembler.visit() as again:
        again.arrive(0, "x", "x", Identity.of(sent[0], 2), 60.0)
        remembered = await again.answers()
    for answers in (found, remembered):
        assert answers is not None
        reward = answers[0].reward
        assert isinstance(reward, Reward)
        assert reward.reward == 2.0


async def test_member_sent_again_while_the_first_waits_is_one_member() -> None:
    async with grouping(timeout_s=60) as server:
        twice = [asyncio.create_task(reward(server, members()[0])) for _ in range(2)]
        rest = asyncio.create_task(each(server, *members()[1:]))
        wanted = await whole(server, *WORDS)
        assert [await one for one in twice] == [wanted[:1]] * 2
        assert await rest == wanted[1:]


async def test_failed_member_gets_its_error_and_the_others_are_combined() -> None:
    async with grouping(timeout_s=60) as server:
        wanted = await whole(server, "a", "a b", "a b c")
        (failed,) = await reward(server, member("long", 3))
        assert failed[0] == "too_long"
        assert await each(server, *members()[:3]) == wanted


async def test_group_name_may_be_used_again_for_other_samples() -> None:
    async with grouping(timeout_s=60) as server:
        await each(server, *members())
        again = ["x", "x y z", "x", "x y"]
        found = await each(server, *(member(one, at) for at, one in enumerate(again)))
        assert found == await whole(server, *again)


async def test_groups_of_other_keys_do_not_meet() -> None:
    async with grouping() as server:
        one = asyncio.create_task(each(server, *members()[:2]))
        other = server.client.post(
            "/hierarchical_reward",
            json={"samples": members()[2:], "overrides": {"holistic_weight": 2.0}},
        )
        codes = [code for code, _ in await one]
        codes += [found["error"]["code"] for found in (await other).json()["rewards"]]
        assert codes == ["group_incomplete"] * 4


async def test_draining_server_answers_waiting_members_at_once() -> None:
    async with grouping(timeout_s=60) as server:
        first = asyncio.create_task(post(server, *members()[:2]))
        await waiting(server, 2)
        server.engine.life.drain()
        answer = await first
        assert answer.status_code == 503
        assert answer.json()["error"]["retryable"]
        assert (await post(server, members()[2])).status_code == 503


async def test_all_members_there_while_one_is_scored_are_not_given_up() -> None:
    async with grouping(timeout_s=0.4) as server:
        rest = asyncio.create_task(each(server, *members()[:3]))
        await waiting(server, 3)
        held = asyncio.create_task(reward(server, member("hold", 3)))
        await until_set(server.words.held)
        await asyncio.sleep(0.5)
        server.words.release.set()
        assert [*await rest, *await held] == await whole(server, *WORDS[:3], "hold")


async def test_full_memory_is_429() -> None:
    grouped = recipe(hierarchy={"rule": "mo_grpo"})
    async with serving(grouped, max_group_bytes=4096) as server:
        answer = await post(server, member("a " * 4096, 0))
        assert answer.status_code == 429
        assert "--max-group-bytes" in answer.json()["error"]["message"]
        assert int(answer.headers["Retry-After"]) > 0


async def test_reload_scores_waiting_members_again() -> None:
    async with grouping(timeout_s=60) as server:
        rest = asyncio.create_task(each(server, *members()[:3]))
        await waiting(server, 3)
        server.words.batches.clear()
        changed = recipe(
            group_timeout_s=60.0,
            hierarchy={"rule": "mo_grpo"},
            holistic={"model": "words", "weight": 3},
        )
        await server.engine.change([changed])
        last = await reward(server, members()[3])
        assert [*await rest, *last] == await whole(server, *WORDS)


async def test_trainer_route_waits_for_its_group() -> None:
    async with grouping() as server:
        answer = await server.client.post(
            "/compat/slime/plain",
            json={"prompt": "?", "response": "a", "group": "x", "group_size": 4, "id": 0},
        )
        assert answer.status_code == 422
        assert answer.json()["error"]["code"] == "group_incomplete"
