"""EasyR1's batch reward format, over HTTP."""

import json
from typing import Any

import pytest
from recording_server import error_of, recording_server
from served import Server
from standin import FIGURE_1, recipe

from alarm_models.types import Message

PATH = "/compat/easyr1/plain"
EMMA = {"prompt": "Who wrote Emma?", "reference": "Jane Austen", "year": 1815, "sources": ["a"]}


def given(response: Any, truth: Any) -> dict[str, Any]:
    return {"response": response, "response_length": 3, "ground_truth": truth}


async def post(server: Server, inputs: Any, path: str = PATH) -> Any:
    return await server.client.post(path, json=inputs)


@pytest.mark.parametrize("truth", [EMMA, json.dumps(EMMA)], ids=["object", "text"])
async def test_easyr1_inputs_with_a_prompt_get_an_overall_reward_each(truth: Any) -> None:
    async with recording_server() as (server, words):
        answer = await post(server, [given("a b c", truth), given("a<|im_end|>", truth)])
        assert [one["overall"] for one in answer.json()] == [3, 1]
        assert words.heard == [("Who wrote Emma?", "a b c"), ("Who wrote Emma?", "a")]
        assert words.samples[0].fields == {"reference": "Jane Austen", "year": "1815"}
        assert (await post(server, [])).json() == []


async def test_easyr1_answer_of_a_row_is_its_reference() -> None:
    async with recording_server() as (server, words):
        truths = [{"prompt": "Q?", "answer": 72}, {"prompt": "Q?", "answer": 72, "reference": "x"}]
        await post(server, [given("a", truth) for truth in truths])
        assert [sample.fields["reference"] for sample in words.samples] == ["72", "x"]


async def test_easyr1_conversation_and_templated_text_are_the_same_prompt() -> None:
    async with recording_server() as (server, words):
        chat = [{"role": "user", "content": "Q?"}]
        text = "<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n"
        await post(server, [given("a<|im_end|>", {"prompt": one}) for one in (chat, text)])
        assert words.heard == [("Q?", "a")] * 2


async def test_easyr1_answer_to_messages_is_judged_without_its_thoughts() -> None:
    said = (
        "<|channel|>analysis<|message|>hm<|end|>"
        "<|start|>assistant<|channel|>final<|message|>a<|return|>"
    )
    async with recording_server() as (server, words):
        chat = [{"role": "user", "content": "Q?"}]
        await post(server, [given(said, {"prompt": chat})])
        assert words.heard == [("Q?", "a")]


async def test_easyr1_response_of_messages_is_the_completion() -> None:
    async with recording_server() as (server, words):
        said = [{"role": "assistant", "content": "a", "reasoning_content": "hm"}]
        await post(server, [given(said, {"prompt": "Q?"})])
        assert words.samples[0].completion == (Message("assistant", "a", reasoning="hm"),)


async def test_easyr1_parts_add_up_to_the_overall_reward() -> None:
    async with recording_server(FIGURE_1) as (server, _):
        inputs = [given("AB B C AAC b c x", {"prompt": "Q?"})]
        (parts,) = (await post(server, inputs, "/compat/easyr1/figure-1")).json()
        assert parts["overall"] == pytest.approx(sum(parts[name] for name in ("holistic", *"abc")))


async def test_easyr1_samples_of_one_prompt_are_a_group() -> None:
    async with recording_server() as (server, words):
        inputs = [
            given(text, {"prompt": prompt}) for text, prompt in zip("abc", "QRQ", strict=True)
        ]
        await post(server, inputs)
        first, other, second = (sample.group for sample in words.samples)
        assert first == second
        assert first not in (None, other)


async def test_easyr1_batch_can_be_compared_within_its_groups() -> None:
    async with recording_server(recipe("gdpo", hierarchy={"rule": "gdpo"})) as (server, _):
        inputs = [given(text, {"prompt": prompt}) for text, prompt in [("a", "Q"), ("a b c", "Q")]]
        answer = await post(server, inputs, "/compat/easyr1/gdpo")
        # Two of a group, either side of their mean: half the square root of two.
        overall = [one["overall"] for one in answer.json()]
        assert overall == [pytest.approx(-0.7071, abs=1e-3), pytest.approx(0.7071, abs=1e-3)]


@pytest.mark.parametrize(
    ("meaning", "prompt", "fields"),
    [("prompt", "72", {}), ("reference", "", {"reference": "72"})],
)
async def test_easyr1_plain_ground_truth_is_what_the_url_says(
    meaning: str, prompt: str, fields: dict[str, str]
) -> None:
    async with recording_server() as (server, words):
        answer = await post(server, [given("a b", "72")], f"{PATH}?ground_truth={meaning}")
        assert answer.json()[0]["overall"] == 2
        assert (words.heard, words.samples[0].fields) == ([(prompt, "a b")], fields)


@pytest.mark.parametrize("truth", ["72", "", '{"reference": "72"}', "[1]", "[" * 99999, "null"])
async def test_easyr1_ground_truth_without_a_prompt_is_refused(truth: str) -> None:
    async with recording_server() as (server, words):
        answer = await post(server, [given("a", {"prompt": "Q?"}), given("a", truth)])
        assert "reward_inputs[1] cannot be split: EasyR1 passes no prompt" in error_of(answer, 422)
        assert words.heard == []


async def test_easyr1_failed_sample_fails_the_call() -> None:
    async with recording_server() as (server, _):
        answer = await post(server, [given("a", EMMA), given("nan", EMMA)])
        assert error_of(answer, 422).startswith("non_finite: reward_inputs[1]")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (PATH, [given("a", EMMA | {"reference": "\ud800"})]),
        ("/compat/slime/plain", {"prompt": "Q?", "response": "a", "label": "\ud800"}),
        (
            "/compat/openrlhf/plain",
            {"query": ["Q?a"], "prompts": ["Q?"], "labels": ["\ud800"]},
        ),
    ],
    ids=["easyr1", "slime", "openrlhf"],
)
async def test_label_with_a_lone_surrogate_is_refused(path: str, body: Any) -> None:
    async with recording_server() as (server, words):
        headers = {"content-type": "application/json"}
        answer = await server.client.post(path, content=json.dumps(body), headers=headers)
        assert "'reference' should be valid Unicode, but has a lone surrogate" in error_of(
            answer, 422
        )
        assert words.heard == []
