"""slime, miles, LLaMA-Factory, align-anything, vLLM and SGLang: request and response formats."""

import base64
from typing import Any

import pytest
from recording_server import error_of, post, recording_server
from standin import FIGURE_1

from alarm_models.combination.all_rules import sigmoid
from alarm_models.types import Message, ToolCall
from alarm_service.api.compat.common import ScalarReward, ScalarRewards
from alarm_service.api.compat.pooling import PoolingIn, as_embeddings
from alarm_service.errors import SampleFailed

PROMPT = "<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n"
TEXT = f"{PROMPT}a b c<|im_end|>"
MESSAGES = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "a b c"}]
POOLED = {"/classify": "probs", "/v1/classify": "probs", "/pooling": "data"}
POOLED |= {"/v1/embeddings": "embedding"}


@pytest.mark.parametrize("trainer", ["slime", "miles"])
async def test_slime_and_miles_response_is_a_number(trainer: str) -> None:
    async with recording_server() as (server, words):
        for prompt in (PROMPT, MESSAGES[:1], "Q?"):
            given = {"prompt": prompt, "response": "a b c<|im_end|>", "label": "L"}
            answer = await post(server, f"/compat/{trainer}/plain", **given)
            assert (answer.text, answer.headers["content-type"]) == ("3.0", "application/json")
        assert words.heard == [("Q?", "a b c")] * 3
        assert {sample.fields["reference"] for sample in words.samples} == {"L"}


async def test_label_that_is_a_missing_value_is_no_reference() -> None:
    async with recording_server() as (server, words):
        body = '{"prompt": "Q?", "response": "a b", "label": NaN}'
        for content in (body, body.replace("NaN", "Infinity"), body.replace("NaN", "1.5")):
            headers = {"Content-Type": "application/json"}
            answer = await server.client.post(
                "/compat/slime/plain", content=content, headers=headers
            )
            assert answer.status_code == 200
        assert [sample.fields.get("reference") for sample in words.samples] == [None, None, "1.5"]


TURNS = [
    {"role": "assistant", "content": "a", "tool_calls": [{"name": "f", "arguments": "{}"}]},
    {"role": "tool", "content": "42"},
    {"role": "assistant", "content": "b c", "reasoning_content": "hm"},
]


@pytest.mark.parametrize("prompt", [PROMPT, MESSAGES[:1]])
async def test_slime_response_of_messages_is_the_completion(prompt: Any) -> None:
    async with recording_server() as (server, words):
        await post(server, "/compat/slime/plain", prompt=prompt, response=TURNS)
        (sample,) = words.samples
        assert sample.prompt == (Message("user", "Q?"),)
        assert sample.completion == (
            Message("assistant", "a", tool_calls=(ToolCall("f", "{}"),)),
            Message("tool", "42"),
            Message("assistant", "b c", reasoning="hm"),
        )


@pytest.mark.parametrize(("thought", "content"), [(None, "Sure, a"), ("hm", "a")])
async def test_slime_first_message_has_the_turn_that_the_prompt_started(
    thought: str | None, content: str
) -> None:
    async with recording_server() as (server, words):
        response = [{"role": "assistant", "content": "a", "reasoning_content": thought}]
        await post(server, "/compat/slime/plain", prompt=f"{PROMPT}Sure, ", response=response)
        (said,) = words.samples[0].completion
        assert isinstance(said, Message)
        assert said.content == content


async def test_slime_format_dict_names_what_models_were_not_shown() -> None:
    async with recording_server() as (server, words):
        words.omitted = ("thinking",)
        path = "/compat/slime/plain?format=dict"
        parts = (await post(server, path, prompt="Q?", response="a")).json()
        assert (parts["score"], parts["omitted"]) == (1, ["thinking"])


async def test_slime_format_dict_has_score_and_parts() -> None:
    async with recording_server(FIGURE_1) as (server, _):
        path = "/compat/slime/figure-1?format=dict"
        given = {"prompt": "Q?", "response": "AB B C AAC b c x", "label": None}
        parts = (await post(server, path, **given)).json()
        assert parts["score"] == pytest.approx(sum(parts[name] for name in ("holistic", *"abc")))
        assert (parts["holistic"], parts["a"], parts["admitted"]) == (7, 3, 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"response": "nan"}, "non_finite: response[0]"),
        ({"prompt": None}, "invalid: prompt: Input should be a valid string"),
        ({"prompt": [{"role": "user", "content": [{"type": "text"}]}]}, "should have `text`"),
        ({"response": None}, "invalid: response: Input should be a valid string"),
        ({"response": []}, "response[0] cannot be split: it has no messages"),
    ],
)
async def test_slime_failed_sample_is_an_error(given: dict[str, Any], message: str) -> None:
    async with recording_server() as (server, _):
        body = {"prompt": PROMPT, "response": "a", "label": None} | given
        assert message in error_of(await post(server, "/compat/slime/plain", **body), 422)


@pytest.mark.parametrize("path", ["/v1/score/evaluation", "/compat/llamafactory/plain"])
async def test_llamafactory_response_has_one_score_per_text(path: str) -> None:
    async with recording_server() as (server, words):
        answer = (await post(server, path, model="model", messages=[TEXT, PROMPT])).json()
        assert answer.pop("id")
        expected = {"object": "score.evaluation", "model": "plain", "scores": [3, 0]}
        assert answer == expected
        assert words.heard == [("Q?", "a b c"), ("Q?", "")]
        assert (await post(server, path, model="model", messages=[])).json()["scores"] == []


async def test_llamafactory_body_names_the_model_without_a_path() -> None:
    async with recording_server(FIGURE_1) as (server, _):
        by_body = await post(server, "/v1/score/evaluation", model="words", messages=[TEXT])
        by_path = await post(server, "/compat/llamafactory/words", model="a", messages=[TEXT])
        assert by_body.json()["model"] == by_path.json()["model"] == "words"


@pytest.mark.parametrize("messages", [["Q? A."], [TEXT, "<|im_start|>user\nQ?"], [f"{PROMPT}nan"]])
async def test_llamafactory_error_has_no_scores(
    messages: list[str],
) -> None:
    async with recording_server() as (server, _):
        body = {"model": "model", "messages": messages}
        answer = await post(server, "/compat/llamafactory/plain", **body)
        assert f"messages[{len(messages) - 1}]" in error_of(answer, 422)
        assert "scores" not in answer.json()


@pytest.mark.parametrize("tail", ["", "/get_reward"])
async def test_align_anything_response_has_one_reward_per_response(tail: str) -> None:
    async with recording_server() as (server, words):
        path = f"/compat/align-anything/plain{tail}"
        given = {"prompts": ["Q?", "R?"], "responses": ["a b", "a"], "golden_responses": ["G", "H"]}
        assert (await post(server, path, **given)).json() == {"rewards": [2, 1]}
        assert words.heard == [("Q?", "a b"), ("R?", "a")]
        assert [sample.fields["reference"] for sample in words.samples] == ["G", "H"]
        assert (await post(server, path, prompts=[], responses=[])).json() == {"rewards": []}


async def test_align_anything_empty_prompt_is_refused_without_template() -> None:
    async with recording_server() as (server, words):
        path = "/compat/align-anything/plain"
        given = {"prompts": [""], "responses": ["user\nQ?\nassistant\na b c"]}
        assert "responses[0] cannot be split: its prompt" in error_of(
            await post(server, path, **given), 422
        )
        options = "?user=user%0A&assistant=assistant%0A"
        assert (await post(server, path + options, **given)).json() == {"rewards": [3]}
        assert words.heard == [("Q?", "a b c")]


@pytest.mark.parametrize("options", ["", "?template=llama-2"])
async def test_prompt_that_kept_its_template_is_split_for_align_anything(options: str) -> None:
    async with recording_server() as (server, words):
        path = f"/compat/align-anything/plain{options}"
        given = {"prompts": ["[INST] Q? [/INST]"], "responses": ["a b"]}
        assert (await post(server, path, **given)).json() == {"rewards": [2]}
        plain = {"prompts": ["Q? </s>"], "responses": ["a b </s>"]}
        await post(server, path, **plain)
        assert [(heard.prompt, heard.completion) for heard in words.samples] == [
            ((Message("user", "Q?"),), "a b"),
            ("Q? </s>", "a b </s>"),
        ]


@pytest.mark.parametrize(
    ("prompts", "message"), [([], "prompts has 0 items, responses has 1"), (["a"] * 2, "has 2")]
)
async def test_align_anything_unequal_lists_are_422(prompts: list[str], message: str) -> None:
    async with recording_server() as (server, _):
        given = {"prompts": prompts, "responses": ["a"]}
        answer = await post(server, "/compat/align-anything/plain", **given)
        assert message in error_of(answer, 422)


@pytest.mark.parametrize("route", POOLED)
@pytest.mark.parametrize("by_path", [False, True])
async def test_pooling_scores_are_raw(route: str, *, by_path: bool) -> None:
    server_name = "sglang" if route.startswith("/v1") else "vllm"
    path = f"/compat/{server_name}/plain{route}" if by_path else route
    async with recording_server() as (server, words):
        named = {"model": "/weights/of/another" if by_path else "plain"}
        answer = (await post(server, path, input=TEXT, use_activation=False, **named)).json()
        (one,) = answer["data"]
        assert (one["index"], one[POOLED[route]]) == (0, [3])
        assert (answer["object"], answer["model"]) == ("list", "plain")
        assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3, "completion_tokens": 0}
        several = (await post(server, path, input=[TEXT, PROMPT], **named)).json()["data"]
        assert [(one["index"], one[POOLED[route]]) for one in several] == [(0, [3]), (1, [0])]
        assert (await post(server, path, messages=MESSAGES, **named)).json()["data"] == [one]
        assert words.heard == [("Q?", "a b c")] * 2 + [("Q?", ""), ("Q?", "a b c")]


async def test_pooling_use_activation_applies_sigmoid() -> None:
    async with recording_server() as (server, _):
        answer = await post(server, "/classify", input=TEXT, use_activation=True)
        assert answer.json()["data"] == [
            {"index": 0, "label": "LABEL_0", "probs": [sigmoid(3)], "num_classes": 1}
        ]


async def test_classify_template_plain_scores_plain_text() -> None:
    async with recording_server() as (server, words):
        assert "input[0] cannot be split" in error_of(
            await post(server, "/classify", input="a"), 422
        )
        answer = await post(server, "/classify?template=plain", input="a b")
        assert answer.json()["data"][0]["probs"] == [2]
        assert words.heard == [("", "a b")]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "send either input or messages"),
        ({"input": TEXT, "messages": MESSAGES}, "send either input or messages"),
        ({"input": [[1, 2]]}, "Input should be a valid string"),
        ({"input": TEXT, "encoding_format": "bytes"}, "encoding_format: Input should be 'float'"),
        ({"messages": MESSAGES[:1]}, "messages[0] cannot be split"),
        ({"messages": MESSAGES[1:]}, "messages[0] cannot be split"),
        ({"messages": []}, "messages[0] cannot be split"),
    ],
)
async def test_pooling_invalid_body_is_422(given: dict[str, Any], message: str) -> None:
    async with recording_server() as (server, _):
        assert message in error_of(await post(server, "/pooling", **given), 422)


async def test_pooling_unknown_model_is_404() -> None:
    async with recording_server() as (server, _):
        answer = await post(server, "/classify", input=TEXT, model="/weights/of/another")
        assert error_of(answer, 404).startswith("not_found: no recipe or model")


@pytest.mark.parametrize("path", ["/v1/embeddings", "/compat/sglang/plain/v1/embeddings"])
async def test_embeddings_in_base64_are_little_endian_float32(path: str) -> None:
    async with recording_server() as (server, _):
        body = {"input": [TEXT, TEXT], "encoding_format": "base64", "use_activation": False}
        data = (await post(server, path, **body)).json()["data"]
    # 3.0 is 0x40400000.
    assert [one["embedding"] for one in data] == [base64.b64encode(b"\0\0@@").decode()] * 2


async def test_pooled_data_in_base64_are_little_endian_float32() -> None:
    async with recording_server() as (server, _):
        (one,) = (await post(server, "/pooling", input=TEXT, encoding_format="base64")).json()[
            "data"
        ]
    assert base64.b64decode(one["data"]) == b"\0\0@@"


def test_embedding_that_does_not_fit_a_float32_is_no_number() -> None:
    numbers = ScalarRewards("a", (), [ScalarReward(1e300, {})], 1)
    body = PoolingIn(input="a", encoding_format="base64")
    with pytest.raises(SampleFailed, match="does not fit in a float32"):
        as_embeddings(numbers, body)
