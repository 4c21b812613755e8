"""Kind `remote` against small HTTP servers that speak each API."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from remote_servers import (
    Calls,
    completions,
    judge,
    opened,
    sglang,
    tei,
    values,
    vllm,
    vllm_scoring,
)
from tcp import over_tcp

from alarm_models.errors import CheckpointError, SampleError
from alarm_models.recipe.specs import RemoteSpec
from alarm_models.reward_models.remote.http import is_retryable
from alarm_models.reward_models.remote.model import RemoteModel
from alarm_models.types import Message, Sample, Score

TEMPLATE = "{completion}"


TEXTS = ("a" * 12, "b" * 7, "c" * 10)


async def test_vllm_request_asks_for_raw_logits_and_rows_are_sorted() -> None:
    async with opened(vllm, template=TEMPLATE, model="rm", api_key="key") as (model, calls):
        assert values(await model.score(completions(*TEXTS))) == [2, -3, 0]
        assert calls.bodies == [{"model": "rm", "input": list(TEXTS), "use_activation": False}]
        assert set(calls.keys) == {"Bearer key"}


async def test_vllm_chat_template_takes_one_conversation_a_request() -> None:
    async with opened(vllm, template="chat") as (model, calls):
        prompt = (Message("user", "Hi"),)
        assert values(await model.score([Sample(prompt, "there" * 3), Sample("p", "q")])) == [7, -8]
        first = next(body for body in calls.bodies if body["messages"][0]["content"] == "Hi")
        assert [turn["role"] for turn in first["messages"]] == ["user", "assistant"]


async def test_remote_that_always_applies_activation_is_refused() -> None:
    with pytest.raises(CheckpointError, match="with and without activation"):
        async with opened(vllm, Calls(is_old=True), template=TEMPLATE):
            pass


async def test_vllm_scoring_reads_a_probability_and_refuses_a_text_that_vllm_cuts() -> None:
    more = {"api": "vllm-scoring", "template": TEMPLATE, "label_token_ids": [9, 7]}
    async with opened(vllm_scoring, special_tokens=False, **more) as (model, calls):
        assert values(await model.score(completions("a" * 10, "b" * 15))) == [0.5, "too_long"]
        asked = {"items": [""], "label_token_ids": [9, 7], "add_special_tokens": False}
        assert {"query": "a" * 10} | asked in calls.bodies


async def test_sglang_is_read_from_the_route_with_logits() -> None:
    async with opened(sglang, template=TEMPLATE) as (model, calls):
        assert values(await model.score(completions(*TEXTS))) == [2, -3, 0]
        assert calls.bodies == [{"text": list(TEXTS)}]


async def test_tei_is_read_by_label_and_sent_single_texts() -> None:
    more = {"template": TEMPLATE, "weights": {"ok": 1.0}, "batch_size": 2}
    async with opened(tei, **more) as (model, calls):
        scores = await model.score(completions(*TEXTS))
        assert values(scores) == [2, -3, 0]
        assert scores[1] == Score(-3, None, 0, False, outputs={"bad": 3, "ok": -3})
        inputs = [body["inputs"] for body in calls.bodies]
        assert sorted(inputs, key=len) == [[[TEXTS[2]]], [[TEXTS[0]], [TEXTS[1]]]]
        assert all(body["raw_scores"] and not body["truncate"] for body in calls.bodies)


@pytest.mark.parametrize("make", [vllm, sglang, tei])
async def test_remote_refusing_a_text_fails_its_sample_alone(
    make: Callable[[Calls], FastAPI],
) -> None:
    weights = {"weights": {"ok": 1.0}} if make is tei else {}
    async with opened(make, template=TEMPLATE, max_retries=0, **weights) as (model, _):
        outcomes = await model.score(completions("a" * 11, "boom", "b" * 12, "c" * 13))
        assert values(outcomes) == [1, "model_failed", 2, 3]


async def test_remote_batch_over_the_servers_limit_is_halved() -> None:
    async with opened(tei, template=TEMPLATE, weights={"ok": 1.0}) as (model, calls):
        assert values(await model.score(completions(*"abcdef"))) == [-9] * 6
        assert [len(body["inputs"]) for body in calls.bodies] == [6, 3, 3]


async def test_remote_busy_is_retried() -> None:
    async with opened(sglang, template=TEMPLATE) as (model, calls):
        calls.num_refused = 1
        assert values(await model.score(completions("a" * 12))) == [2]
        assert len(calls.bodies) == 2


async def test_remote_that_stays_busy_fails_its_samples_with_the_reason() -> None:
    async with opened(sglang, template=TEMPLATE) as (model, calls):
        calls.num_refused = 99
        (outcome,) = await model.score(completions("a"))
        assert isinstance(outcome, SampleError)
        assert outcome.message == 'sglang at 127.0.0.1 answered 503: {"error":"busy"}'


async def test_remote_requests_in_flight_are_bounded() -> None:
    more = {"template": TEMPLATE, "batch_size": 1, "max_concurrent": 3}
    async with opened(sglang, **more) as (model, calls):
        await model.score(completions(*"abcdefghijkl"))
        assert calls.most_running == 3


async def test_remote_unreachable_fails_its_samples_alone() -> None:
    calls = Calls()
    with over_tcp(sglang(calls)) as port:
        base = {"api": "sglang", "url": f"http://127.0.0.1:{port}", "template": TEMPLATE}
        model = RemoteModel(RemoteSpec.model_validate(base | {"max_retries": 0}), {})
        await model.open()
    assert values(await model.score(completions("a", "b"))) == ["model_failed", "model_failed"]
    await model.close()


async def test_remote_fingerprint_changes_with_the_request_but_not_with_retries() -> None:
    calls, prints = Calls(), []
    with over_tcp(vllm(calls)) as port:
        for more in (
            {},
            {"max_retries": 2, "timeout_s": 3.0, "api_key": "secret"},
            {"url": f"http://user:password@127.0.0.1:{port}"},
            {"template": "{prompt} {completion}"},
            {"model": "rm"},
        ):
            base = {"api": "vllm", "url": f"http://127.0.0.1:{port}", "template": TEMPLATE}
            model = RemoteModel(RemoteSpec.model_validate(base | more), {})
            before = model.fingerprint
            await model.open()
            await model.close()
            assert model.fingerprint != before  # the server said what it serves
            prints.append(model.fingerprint)
    plain, patient, named, *others = prints
    assert plain == patient == named
    assert len({plain, *others}) == 3


async def test_remote_unreachable_or_of_another_api_is_refused_at_open() -> None:
    spec = {"api": "vllm", "url": "http://127.0.0.1:9", "template": TEMPLATE, "max_retries": 0}
    with pytest.raises(CheckpointError, match="cannot be reached"):
        await RemoteModel(RemoteSpec.model_validate(spec), {}).open()
    with pytest.raises(CheckpointError, match="answered 404"):
        async with opened(judge, api="vllm", template=TEMPLATE) as (model, _):
            await model.score(completions("a"))


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"api": "tei"}, "requires template"),
        ({"api": "chat"}, "requires rubric and model"),
        ({"api": "alarm", "template": "{completion}"}, "does not use template"),
        ({"api": "sglang", "template": "chat"}, "does not apply a chat template"),
        ({"api": "chat", "model": "m", "rubric": "r", "pattern": "("}, "not a valid regular"),
        ({"api": "alarm", "url": "localhost:8000"}, "url"),
        ({"api": "grpc"}, "'vllm', 'vllm-scoring', 'sglang', 'tei', 'alarm' or 'chat'"),
    ],
)
def test_remote_spec_with_keys_of_another_api_is_refused(table: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        RemoteSpec.model_validate({"url": "http://host"} | table)


def test_retry_applies_to_transient_statuses() -> None:
    statuses = (400, 401, 413, 422, 424, 429, 500, 503)
    assert list(filter(is_retryable, statuses)) == [429, 500, 503]
