"""NeMo Gym's `/verify`: conversations of the Responses API, rewarded and sent back."""

import json
from typing import Any

import pytest
from recording_server import error_of, post, recording_server
from standin import FIGURE_1

from alarm_models.types import Message, ToolCall
from alarm_service.api.compat.nemo_gym import masked_answer
from alarm_service.errors import SampleFailed

PATH = "/compat/nemo-gym/plain/verify"


def message(text: str, role: str = "assistant") -> dict[str, Any]:
    kind = "output_text" if role == "assistant" else "input_text"
    content = [{"type": kind, "text": text, "annotations": []}]
    return {"id": "m", "type": "message", "role": role, "content": content, "status": "completed"}


def rollout(*output: dict[str, Any], asked: Any = "Q?", **columns: Any) -> dict[str, Any]:
    params = {"input": asked, "tools": [], "parallel_tool_calls": True}
    response = {"id": "r", "output": list(output), "object": "response", "created_at": 1.5}
    return {"responses_create_params": params, "response": response, **columns}


CALL = {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "c"}
RESULT = {"type": "function_call_output", "call_id": "c", "output": "42"}
THOUGHT = {"type": "reasoning", "id": "t", "summary": [{"type": "summary_text", "text": "hm"}]}


async def test_nemo_gym_gets_its_rollout_back_with_a_reward() -> None:
    async with recording_server() as (server, words):
        body = rollout(message("a b c"), expected_answer="A", _ng_task_index=7, more={"k": [1.0]})
        answer = (await post(server, PATH, **body)).json()
        assert answer.pop("reward") == 3
        parts = [name for name in answer if name.startswith("alarm_")]
        assert {name: answer.pop(name) for name in parts}["alarm_holistic"] == 3
        assert answer == body
        assert words.heard == [("Q?", "a b c")]
        assert words.samples[0].fields == {"reference": "A"}


@pytest.mark.parametrize("name", ["plain", "words"])
async def test_nemo_gym_answer_names_what_models_were_not_shown(name: str) -> None:
    async with recording_server() as (server, words):
        words.omitted = ("thinking", "tools")
        path = f"/compat/nemo-gym/{name}/verify"
        answer = (await post(server, path, **rollout(message("a")))).json()
        assert answer["alarm_omitted"] == ["thinking", "tools"]


async def test_nemo_gym_reference_is_the_column_that_the_url_names() -> None:
    async with recording_server() as (server, words):
        body = rollout(message("a"), expected_answer="A", label=4)
        await post(server, f"{PATH}?reference=label", **body)
        assert words.samples[0].fields == {"reference": "4"}


async def test_nemo_gym_completion_is_the_whole_response() -> None:
    async with recording_server() as (server, words):
        asked = [{"role": "developer", "content": "Be brief."}, message("Q?", "user")]
        body = rollout(THOUGHT, message("I look."), CALL, CALL, RESULT, RESULT, THOUGHT, CALL,
                       RESULT, message("a b<|im_end|>"), message("c"), asked=asked)  # fmt: skip
        body["responses_create_params"]["instructions"] = "Be right."
        await post(server, PATH, **body)
        (sample,) = words.samples
        assert sample.prompt == (
            Message("system", "Be right."), Message("system", "Be brief."), Message("user", "Q?")
        )  # fmt: skip
        call, result = ToolCall("f", "{}", "c"), Message("tool", "42", tool_call_id="c")
        assert sample.completion == (
            Message("assistant", "I look.", reasoning="hm", tool_calls=(call, call)),
            result,
            result,
            Message("assistant", "", reasoning="hm", tool_calls=(call,)),
            result,
            Message("assistant", "a b"),
            Message("assistant", "c"),
        )


async def test_nemo_gym_tools_and_limit_are_those_of_the_sample() -> None:
    async with recording_server() as (server, words):
        function = {"name": "f", "parameters": {"type": "object"}}
        body = rollout(message("a"))
        body["responses_create_params"]["tools"] = [{"type": "function", **function}]
        body["response"]["incomplete_details"] = {"reason": "max_output_tokens"}
        await post(server, PATH, **body)
        (sample,) = words.samples
        assert sample.tools == ({"type": "function", "function": function},)
        assert sample.finish_reason == "length"


async def test_nemo_gym_calls_and_reasoning_of_the_input_are_the_prompts() -> None:
    async with recording_server() as (server, words):
        asked = [message("Q?", "user"), THOUGHT, CALL, RESULT]
        await post(server, PATH, **rollout(message("a"), asked=asked))
        assert words.samples[0].prompt == (
            Message("user", "Q?"),
            Message("assistant", "", reasoning="hm", tool_calls=(ToolCall("f", "{}", "c"),)),
            Message("tool", "42", tool_call_id="c"),
        )


@pytest.mark.parametrize(
    ("item", "thought"),
    [
        ({"summary": [{"type": "summary_text", "text": one} for one in "ab"]}, "a\n\nb"),
        ({"content": [{"type": "reasoning_text", "text": "a"}], "summary": []}, "a"),
    ],
)
async def test_nemo_gym_reasoning_is_content_or_summary(item: Any, thought: str) -> None:
    async with recording_server() as (server, words):
        await post(server, PATH, **rollout({"type": "reasoning", **item}, message("c")))
        assert words.samples[0].completion == (Message("assistant", "c", reasoning=thought),)


async def test_nemo_gym_call_of_a_built_in_tool_is_named_by_its_type() -> None:
    async with recording_server() as (server, words):
        await post(server, PATH, **rollout({"type": "web_search_call", "id": "w"}))
        call = ToolCall("web_search", "{}", None)
        assert words.samples[0].completion == (Message("assistant", "", tool_calls=(call,)),)


@pytest.mark.parametrize("output", [(), ({"type": "reasoning", "summary": []},)])
async def test_nemo_gym_rollout_without_content_has_an_empty_completion(output: Any) -> None:
    async with recording_server() as (server, words):
        answer = await post(server, PATH, **rollout(*output))
        assert (answer.json()["reward"], words.samples[0].completion) == (0, "")


@pytest.mark.parametrize(
    "said",
    ["a b<|im_end|>", "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final"
     "<|message|>a b<|return|>"],
)  # fmt: skip
async def test_nemo_gym_message_with_markup_is_judged_without_it(said: str) -> None:
    async with recording_server() as (server, words):
        await post(server, PATH, **rollout(message(said)))
        assert words.heard == [("Q?", "a b")]


async def test_nemo_gym_components_add_up_to_the_reward() -> None:
    async with recording_server(FIGURE_1) as (server, _):
        body = rollout(message("AB B C AAC b c x"))
        path = "/compat/nemo-gym/figure-1/verify"
        answer = (await post(server, f"{path}?components=1", **body)).json()
        assert set(answer["reward_components"]) == {"holistic", "a", "b", "c"}
        assert sum(answer["reward_components"].values()) == pytest.approx(answer["reward"])
        assert answer["alarm_holistic"] == answer["reward_components"]["holistic"]
        assert "reward_components" not in (await post(server, path, **body)).json()


IMAGE = {"type": "input_image", "image_url": "data:", "detail": "auto"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (rollout(message("nan")), "non_finite: response[0]"),
        (rollout(message("a"), asked=[{"role": "user", "content": [IMAGE]}]),
         "responses_create_params.input[0].content[0]: a part of type 'input_image' has no text"),
        (rollout({**message("a"), "content": [{"type": "output_text"}]}),
         "response.output[0].content[0]: a part of type 'output_text' has no text"),
        ({"responses_create_params": {"input": "Q?"}}, "invalid: response: Field required"),
        (rollout(message("a"), asked=None), "responses_create_params.input"),
    ],
)  # fmt: skip
async def test_nemo_gym_rollout_that_cannot_be_rewarded_is_an_error(
    body: dict[str, Any], message: str
) -> None:
    async with recording_server() as (server, _):
        assert message in error_of(await post(server, PATH, **body), 422)


async def test_nemo_gym_column_with_a_lone_surrogate_comes_back_as_it_was() -> None:
    async with recording_server() as (server, _):
        headers = {"content-type": "application/json"}
        body = b'{"responses_create_params":{"input":"Q?"},"response":{"output":[]},"x":"\\ud800"}'
        answer = await server.client.post(PATH, content=body, headers=headers)
        assert (answer.status_code, answer.json()["x"]) == (200, "\ud800")


async def test_nemo_gym_large_rollout_comes_back_as_it_was_sent() -> None:
    async with recording_server() as (server, words):
        spans = [[at, at + 1] for at in range(100)]
        body = rollout(message("a b c"), filler="x" * 200_000, token_offsets=spans,
                       segments={"a": spans}, expected_answer="A")  # fmt: skip
        answer = (await post(server, PATH, **body)).json()
        assert answer.pop("reward") == 3
        assert {name: answer[name] for name in body} == body
        assert words.heard == [("Q?", "a b c")]


async def test_nemo_gym_failed_rollout_is_masked_with_its_failure_where_asked() -> None:
    async with recording_server() as (server, _):
        for text, kind in (("boom", "judge_failed"), ("long", "verifier_error")):
            body = rollout(message(text), instance_config={"id": 1})
            refused = error_of(await post(server, PATH, **body), 422)
            answer = (await post(server, f"{PATH}?mask=1", **body)).json()
            assert answer.pop("failure_reason") == refused
            assert answer == body | {
                "reward": 0.0,
                "mask_sample": True,
                "failure_kind": kind,
                "_ng_failure_class": kind,
                "instance_config": {"id": 1, "mask_sample": True},
            }


def test_nemo_gym_rollout_over_the_judges_budget_may_be_judged_again() -> None:
    failure = SampleFailed("budget_exceeded", "used up")
    body = json.loads(masked_answer(b"{}", failure).body)
    assert (body["failure_kind"], body["failure_reason"]) == (
        "judge_failed",
        "budget_exceeded: used up",
    )
