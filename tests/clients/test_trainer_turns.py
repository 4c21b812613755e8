"""Completions of several turns: messages of trainers, and token rewards under masks."""

import functools
import json
import math
from datetime import date
from types import SimpleNamespace

import client_tokenizers
import numpy as np
import pytest

from alarm_client._payloads import group_order, reorder_scores, score_payload
from alarm_client.message_offsets import message_offsets
from alarm_client.token_offsets import PolicyTokens
from alarm_client.trainers import slime, trl, verifiers
from alarm_client.trainers._dense import token_rewards, token_sample
from alarm_client.trainers._inputs import completion_of, prompt_of, split_messages
from alarm_client.trainers._messages import completion_text
from alarm_client.trainers._turns import on_all_tokens, turns_of
from alarm_client.types import Reward, Sample, Score, ScoreResult, Usage
from alarm_models.types import Message as ServerMessage
from alarm_models.types import Sample as ServerSample
from alarm_service.schemas import ScoreRequest, sample_in

TOKENIZERS = {
    name: getattr(client_tokenizers, name)()
    for name in ("byte_level", "byte_fallback", "unigram", "wordpiece")
}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
TURNS = [
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "name": "add", "content": "3"},
    {"role": "assistant", "content": "It is three.", "reasoning_content": "3, then."},
]


DEEP = functools.reduce(lambda inner, _: {"a": inner}, range(150), 5)


def test_completion_of_turns_keeps_calls_results_and_thoughts():
    assert completion_of(TURNS) == TURNS
    assert completion_of(TURNS[2:]) == TURNS[2:]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"content": [{"type": "text", "text": "a"}, {"text": "b"}]}, "ab"),
        (
            {"content": [{"type": "image", "image": object()}, {"type": "text", "text": "a"}]},
            [{"type": "image"}, {"type": "text", "text": "a"}],
        ),
        (
            {"content": [{"image": object()}, "a"]},
            [{"type": "image"}, {"type": "text", "text": "a"}],
        ),
        ({"content": None, "tool_calls": None, "name": None}, ""),
    ],
)
def test_prompt_of_keeps_the_kinds_of_parts_that_are_not_text(message, expected):
    assert prompt_of([{"role": "user", **message}]) == [{"role": "user", "content": expected}]


def test_prompt_of_part_without_type_or_text_is_refused():
    with pytest.raises(TypeError, match="a content part must have a type or a text"):
        prompt_of([{"role": "user", "content": [{"data": 1}]}])


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ([{"title": "Emma", "year": 1815}], '[{"title": "Emma", "year": 1815}]'),
        ([{"type": "novel", "text": "Emma"}], '[{"type": "novel", "text": "Emma"}]'),
        (["Emma", "Persuasion"], '["Emma", "Persuasion"]'),
        ({"score": math.nan}, '{"score": NaN}'),
        (np.array([1, 2]), "[1, 2]"),
        ({"day": date(1815, 12, 23)}, '{"day": "1815-12-23"}'),
        (5, "5"),
        ([], ""),
        ([{"type": "text", "text": "Emma"}], "Emma"),
        ([{"text": "Emma"}], "Emma"),
        (({"type": "text", "text": one} for one in ("Em", "ma")), "Emma"),
        (
            [{"type": "text", "text": "Seen:"}, {"type": "input_image", "image_url": "data:..."}],
            [{"type": "text", "text": "Seen:"}, {"type": "input_image"}],
        ),
        ([{"type": "document", "source": "data:..."}], [{"type": "document"}]),
    ],
)
def test_result_of_a_tool_that_is_no_content_is_its_json(result, text):
    call = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    found = completion_of([call, {"role": "tool", "content": result}])
    assert found == [call, {"role": "tool", "content": text}]


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        ({"a": 1}, {"a": 1}),
        ('{"a": 1', '{"a": 1'),
        (["Emma"], '["Emma"]'),
        (5, "5"),
        ({"a": math.nan}, '{"a": NaN}'),
        ({"a": np.int64(5)}, {"a": 5}),
        (DEEP, json.dumps(DEEP)),
    ],
)
def test_arguments_of_a_call_that_are_no_object_are_their_json(arguments, sent):
    call = {"function": {"name": "find", "arguments": arguments}}
    (found,) = completion_of([{"role": "assistant", "content": "", "tool_calls": [call]}])
    assert found["tool_calls"][0]["function"] == {"name": "find", "arguments": sent}
    sample = Sample(prompt="?", completion=[found])
    assert score_payload([sample], None).body


def test_arguments_nested_too_deep_for_json_are_named():
    deep = functools.reduce(lambda inner, _: [inner], range(100_000), 5)
    call = {"function": {"name": "find", "arguments": deep}}
    (found,) = completion_of([{"role": "assistant", "content": "", "tool_calls": [call]}])
    assert found["tool_calls"][0]["function"]["arguments"] == "<list>"


def test_message_of_thinking_and_calls_as_json_are_read():
    call = '{"id": "c1", "name": "add", "arguments": "{}"}'
    found = completion_of([{"role": "assistant", "thinking": "Hm.", "tool_calls": [call]}])
    assert found == [
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "Hm.",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
            ],
        }
    ]


def test_split_messages_completion_begins_at_the_first_call():
    few_shot = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    question = {"role": "user", "content": "1 + 2?"}
    assert split_messages([*few_shot, question, *TURNS]) == ([*few_shot, question], TURNS)
    assert split_messages([*few_shot, question, *few_shot[1:]]) == ([*few_shot, question], "Hello")


def test_completion_text_is_the_text_that_the_server_counts_in():
    server = [
        ServerMessage(one["role"], one["content"] or "", reasoning=one.get("reasoning_content", ""))
        for one in TURNS
    ]
    sample = ServerSample(prompt="", completion=tuple(server))
    assert completion_text(TURNS) == sample.completion_text == "\n\n3\n\n3, then.\n\nIt is three."


@pytest.mark.parametrize("name", TOKENIZERS)
def test_turns_of_a_mask_locate_the_policy_tokens_only(name):
    tokenizer = TOKENIZERS[name]
    end = tokenizer.eos_token_id
    pieces = [(1, "then she left"), (0, "the owner"), (1, "is it done")]
    rows = [
        (is_own, tokenizer(text, add_special_tokens=False).input_ids) for is_own, text in pieces
    ]
    rows[-1][1].append(end)
    ids = [one for _, row in rows for one in row]
    mask = [is_own for is_own, row in rows for _ in row]
    tokens = PolicyTokens(tokenizer)
    turns = turns_of(ids, mask, tokens, tokenizer)
    text = completion_text(turns.messages)
    assert [one["role"] for one in turns.messages] == ["assistant", "tool", "assistant"]
    assert len(turns.offsets) == sum(mask)
    first, last = (tokens.locate(rows[index][1])[0] for index in (0, 2))
    assert text[: len(first)] == first
    assert text.endswith(last)
    assert turns.offsets[-1] == (len(text), len(text))  # the end of the turn
    own = [text[start:stop] for start, stop in turns.offsets]
    located = [*_texts(tokens, rows[0][1]), *_texts(tokens, rows[2][1])]
    assert own == located


def _texts(tokens, ids):
    text, spans = tokens.locate(ids)
    return [text[start:end] for start, end in spans]


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback"])
def test_message_offsets_locate_thoughts_contents_and_results(name):
    tokenizer = TOKENIZERS[name]
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "the owner"},
        {"role": "assistant", "reasoning_content": "it isn't", "content": "then she left"},
    ]
    written = "add(1)tool\nthe owner\nassistant it isn't ; then she left."
    ids = [*tokenizer(written, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    tokens = PolicyTokens(tokenizer)
    offsets = message_offsets(ids, messages, tokens)
    text = completion_text(messages)
    starts = [start for start, _ in offsets]
    assert starts == sorted(starts)
    assert offsets[-1] == (len(text), len(text))
    covered = "".join(text[index] for index in sorted({i for s, e in offsets for i in range(s, e)}))
    assert covered == "the ownerit isn'tthen she left"
    assert offsets[0] == (0, 0)


@pytest.mark.parametrize(
    ("result", "answer"),
    [("5", "5"), ("5", "s"), ("5\n</tool_response>\n<tool_response>\n5", "5")],
)
def test_message_offsets_of_texts_that_occur_before_are_in_their_own_turn(result, answer):
    tokenizer = client_tokenizers.byte_level()
    marks = ["<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    written = (
        '<tool_call>\n{"name": "users", "arguments": {"a": 5}}\n</tool_call><|im_end|>\n'
        f"<|im_start|>user\n<tool_response>\n{result}\n</tool_response><|im_end|>\n"
        f"<|im_start|>assistant\n{answer}<|im_end|>"
    )
    results = result.split("\n</tool_response>\n<tool_response>\n")
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        *[{"role": "tool", "content": one} for one in results],
        {"role": "assistant", "content": answer},
    ]
    ids = tokenizer(written, add_special_tokens=False).input_ids
    policy = PolicyTokens(tokenizer)
    text, places = policy.locate(ids)
    offsets = message_offsets(ids, messages, policy)
    found = [place for place, span in zip(places, offsets, strict=True) if span[0] < span[1]]
    response = text.index("<tool_response>\n") + len("<tool_response>\n")
    last = text.rindex(answer)
    assert {found[0][0], found[-1][1]} == {response, last + len(answer)}
    covered = [text[start:end] for start, end in found]
    assert "".join(covered) == "".join([*results, answer])


def test_message_offsets_of_an_empty_completion_are_empty():
    tokenizer = TOKENIZERS["byte_level"]
    messages = [{"role": "assistant", "content": None}, {"role": "tool", "content": ""}]
    assert message_offsets([], messages, PolicyTokens(tokenizer)) == []


def test_message_offsets_of_another_text_are_refused():
    tokenizer = TOKENIZERS["byte_level"]
    ids = tokenizer("then she left").input_ids
    with pytest.raises(ValueError, match="message 0 is not in the decoded completion"):
        message_offsets(ids, [{"role": "assistant", "content": "naïve"}], PolicyTokens(tokenizer))


@pytest.mark.parametrize("mask", [[1, 1, 1], [0, 0, 0]])
def test_turns_of_a_mask_of_one_kind_is_none(mask):
    tokenizer = TOKENIZERS["byte_level"]
    assert turns_of([5, 6, 7], mask, PolicyTokens(tokenizer), tokenizer) is None


def test_turns_of_leading_masked_tokens_are_the_policys():
    tokenizer = TOKENIZERS["byte_level"]
    ids = tokenizer("then she left").input_ids
    mask = [0, *[1] * (len(ids) - 1)]
    turns = turns_of(ids, mask, PolicyTokens(tokenizer), tokenizer)
    assert turns.messages == [{"role": "assistant", "content": "then she left"}]
    assert len(turns.offsets) == len(ids) - 1


def test_rewards_are_placed_on_unmasked_tokens_only():
    assert on_all_tokens([1.0, 2.0, 3.0], [1, 0, 0, 1, 1, 0]) == [1.0, 0, 0, 2.0, 3.0, 0]
    with pytest.raises(ValueError, match="3 token rewards for 2 unmasked tokens"):
        on_all_tokens([1.0, 2.0, 3.0], [1, 0, 1])
    failed = Reward(None, None, None, None, None, {}, False, None)
    assert token_rewards([failed], [3], -2.0, masks=[[1, 1, 0]]) == [[0.0, -2.0, 0.0]]


def test_token_sample_with_a_mask_has_messages():
    tokenizer = TOKENIZERS["byte_level"]
    ids = tokenizer("abc").input_ids
    sample = token_sample("Q", ids, tokenizer, [1] * len(ids), "length")
    assert (sample.completion, sample.finish_reason) == ("abc", "length")


def test_trl_sends_turns_tools_and_the_length_limit(rewards):
    tool = {"type": "function", "function": {"name": "add"}}
    prompt = [{"role": "user", "content": "1 + 2?"}]
    reward = trl.AlarmReward(max_completion_tokens=4, group_size=2)
    state = SimpleNamespace(global_step=7)
    reward(
        [prompt, prompt],
        [TURNS, [{"role": "assistant", "content": "3"}]],
        completion_ids=[[1] * 4, [1]],
        tools=[[tool], [tool]],
        trainer_state=state,
    )
    first, second = rewards.samples
    assert (first["completion"], second["completion"]) == (TURNS, "3")
    assert first["tools"] == [tool]
    assert (first["finish_reason"], second.get("finish_reason")) == ("length", None)
    assert first["group"] == second["group"]
    assert first["group"].endswith("-7")
    assert first["group_size"] == 2
    assert first["id"] != second["id"]


def test_start_of_a_reply_is_put_before_replies_without_it(rewards):
    prompt = [{"role": "user", "content": "Q"}]
    completions = [
        [{"role": "assistant", "content": "Hm, cut off"}],
        [{"role": "assistant", "content": "Hm.\n</think>\n\nYes."}],
        [{"role": "assistant", "content": "<think>\nHm.\n</think>\n\nYes."}],
        [{"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}],
        [{"role": "assistant", "content": ""}],
        [
            {"role": "assistant", "content": "One", "tool_calls": [CALL]},
            {"role": "tool", "content": "3"},
            {"role": "assistant", "content": "Two"},
        ],
    ]
    trl.AlarmReward(reply_start="<think>\n")([prompt] * 6, completions)
    *texts, thought, empty, turns = [sample["completion"] for sample in rewards.samples]
    assert texts == [
        "<think>\nHm, cut off",
        "<think>\nHm.\n</think>\n\nYes.",
        "<think>\nHm.\n</think>\n\nYes.",
    ]
    assert thought == completions[3]
    assert empty == ""
    contents = [turn["content"] for turn in turns]
    assert contents == ["<think>\nOne", "3", "<think>\nTwo"]


async def test_slime_sample_of_a_group_brings_its_size(rewards):
    args = SimpleNamespace(reward_key=None, n_samples_per_prompt=8)
    sample = SimpleNamespace(
        prompt="Q", response="yes", label=None, group_index=3, metadata={}, status="truncated"
    )
    await slime.custom_rm(args, sample)
    (sent,) = rewards.samples
    assert sent["group_size"] == 8
    assert isinstance(sent["group"], str)
    assert sent["finish_reason"] == "length"


async def test_verifiers_trace_is_scored_from_its_first_sampled_reply(rewards):
    messages = [{"role": "user", "content": "1 + 2?"}, *TURNS]
    nodes = [SimpleNamespace(message=one, sampled=one["role"] == "assistant") for one in messages]
    trace = SimpleNamespace(
        branches=[SimpleNamespace(nodes=nodes, tools=[])],
        is_truncated=True,
        record_metrics=lambda metrics: None,
    )
    await verifiers.reward(task=None, trace=trace)
    (sent,) = rewards.samples
    assert (sent["prompt"], sent["completion"]) == (messages[:1], TURNS)
    assert sent["finish_reason"] == "length"


def test_messages_of_trainers_fit_the_servers_schema():
    image = {"role": "user", "content": [{"type": "image", "image": object()}, "a"]}
    sample = Sample(
        prompt=prompt_of([image]),
        completion=completion_of(TURNS),
        fields={"rubric": [{"points": 1}]},
        group="g",
        group_size=2,
        tools=[CALL],
        finish_reason="length",
    )
    body = json.loads(score_payload([sample], None).body)
    (read,) = ScoreRequest.model_validate(body).samples
    assert sample_in(read).completion_text == completion_text(TURNS)
    assert sample_in(read).prompt[0].other_parts == ("image",)


def test_interleaved_samples_of_a_group_are_sent_together():
    groups = ["a", None, "b", "a", "b"]
    order = group_order(groups)
    assert [groups[index] for index in order] == ["a", "a", None, "b", "b"]
    scores = tuple(Score(index, 1.0, None, 1, False, None) for index in order)
    restored = reorder_scores(ScoreResult("m", "f", scores, Usage(1, 1)), order)
    assert [score.id for score in restored.scores] == [0, 1, 2, 3, 4]
