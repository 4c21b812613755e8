"""Fireworks' Eval Protocol: a conversation in, a score with metrics out."""

from typing import Any

import pytest
from recording_server import error_of, post, recording_server

from alarm_models.types import Message

PATH = "/compat/eval-protocol/plain"
ASKED = {"role": "user", "content": "Q?"}
ANSWER = {"role": "assistant", "content": "a b c"}


@pytest.mark.parametrize("tail", ["", "/evaluate"])
async def test_eval_protocol_last_message_is_scored_with_its_metrics(tail: str) -> None:
    async with recording_server() as (server, words):
        body = {"messages": [ASKED, ANSWER], "ground_truth": "A", "kwargs": {"level": 3, "x": None}}
        answer = (await post(server, PATH + tail, **body)).json()
        assert (answer["score"], answer["is_score_valid"]) == (3, True)
        assert answer["metrics"]["holistic"] == {
            "is_score_valid": True,
            "score": 3,
            "reason": "holistic of plain",
        }
        assert words.heard == [("Q?", "a b c")]
        assert words.samples[0].fields == {"reference": "A", "level": "3"}


async def test_eval_protocol_completion_is_what_follows_the_original_messages() -> None:
    async with recording_server() as (server, words):
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        answered = [
            {"role": "assistant", "content": "a", "tool_calls": [call]},
            {"role": "tool", "content": "42", "tool_call_id": "c"},
            ANSWER,
        ]
        body = {"messages": [ASKED, *answered], "original_messages": [ASKED]}
        assert (await post(server, PATH, **body)).status_code == 200
        roles = [one.role for one in words.samples[0].completion if isinstance(one, Message)]
        assert roles == ["assistant", "tool", "assistant"]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"messages": [ANSWER, ASKED]}, "should end with a message of the assistant"),
        ({"messages": [ASKED], "original_messages": [ASKED]}, "should end with a message"),
        ({"messages": [ASKED, ANSWER], "original_messages": [ANSWER]}, "should be the first of"),
    ],
)
async def test_eval_protocol_conversation_without_an_answer_is_refused(
    body: dict[str, Any], told: str
) -> None:
    async with recording_server() as (server, _):
        assert told in error_of(await post(server, PATH, **body), 422)


async def test_eval_protocol_failed_rollout_has_no_score() -> None:
    async with recording_server() as (server, _):
        failed = {"role": "assistant", "content": "boom"}
        answer = await post(server, PATH, messages=[ASKED, failed])
        assert "model_failed" in error_of(answer, 422)
