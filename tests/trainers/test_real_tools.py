"""Rollouts with a tool in the trainers' own code: what reaches the server, and where rewards land.

The environments are those of `test_real_trainers.py`. verifiers runs its chat program with `uv`,
which must be on the PATH. A stand-in gives the texts of the policy except in TRL, which trains one
that has learned them.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
from processes import alarm_serve
from texts_of_tools import ANSWER, AT_ONCE, RESULT, THOUGHTS, TOOL, TURNS
from tolerance import logged
from venvs import run_in

from alarm_client.client import AlarmClient

HERE = Path(__file__).parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
RECIPE = """
[models.rm]
kind = "sequence"
checkpoint = "./rm"
thinking = "keep"
chat_template = "./qwen3.jinja"
[models.turns]
kind = "python"
function = "recorder:turns"
path = "./"
workers = 1
[holistic]
model = "rm"
[hierarchy]
rule = "weighted_sum"
[aspects.turns]
model = "turns"
positive = 1.0
negative = 0.0
"""


@dataclass(frozen=True)
class Server:
    """A server and the file of the samples that it was sent."""

    url: str
    file: Path

    def samples(self) -> list[dict[str, Any]]:
        """Those of a run with a completion of messages first."""
        found = [json.loads(line) for line in self.file.read_text().splitlines()]
        return sorted(found, key=lambda one: isinstance(one["completion"], str))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    tiny.sequence_classifier("qwen3", tmp_path / "rm")
    shutil.copy(HERE / "recorder.py", tmp_path)
    shutil.copy(HERE.parent / "chat_templates" / "qwen3.jinja", tmp_path)
    (tmp_path / "tools.toml").write_text(RECIPE)
    with alarm_serve(tmp_path / "tools.toml") as process, AlarmClient(process.url) as client:
        client.wait_ready(timeout=120)
        file = tmp_path / "seen.jsonl"
        file.write_text("")  # loading calls the function too
        yield Server(process.url, file)


def told(sample: dict[str, Any]) -> list[tuple[str, str]]:
    """The roles and contents of a completion."""
    return [(one["role"], one["content"]) for one in sample["completion"]]


BY_MASK = [("assistant", TURNS[0]), ("tool", RESULT), ("assistant", TURNS[1])]


def require_placed(rewards: list[float], mask: list[int]) -> None:
    """Each turn has its reward within its own last two tokens, and masked ones have none."""
    ends = [
        index
        for index, is_own in enumerate(mask)
        if is_own and (index + 1 == len(mask) or not mask[index + 1])
    ]
    placed = [index for index, reward in enumerate(rewards) if reward]
    assert placed
    assert all(mask[index] for index in placed)
    assert all(any(index in (end - 1, end) for index in placed) for end in ends)


def test_trl_tool_loop_sends_calls_results_and_thoughts(server: Server, tmp_path) -> None:
    found = run_in("trl", "run_trl_tools.py", server.url, tmp_path)
    assert found["rewards"]["blocking"] == logged(found["rewards"]["awaited"])
    calling = [one for one in found["seen"] if len(one["completion"]) > 1]
    assert calling
    sent = [one for one in server.samples() if not isinstance(one["completion"], str)]
    expected = {
        (part["role"], part.get("content") or "", part.get("reasoning_content") or "")
        for one in calling
        for part in one["completion"]
    }
    received = {
        (part["role"], part["content"], part["reasoning"])
        for one in sent
        for part in one["completion"]
    }
    assert expected <= received
    assert any(part["tool_calls"] for one in sent for part in one["completion"])
    assert all(one["tools"][0]["function"]["name"] == "find_author" for one in server.samples())
    assert len({one["group"] for one in server.samples()}) == 1


def test_verl_agent_loop_sends_turns_tools_and_groups(server: Server, tmp_path) -> None:
    found = run_in("verl", "run_verl_tools.py", server.url, tmp_path)
    calling, *_ = server.samples()
    assert told(calling) == BY_MASK
    assert (calling["group"], calling["group_size"]) == ("u", 2)
    assert calling["tools"][0]["function"]["name"] == "find_author"
    assert calling["num_offsets"] == sum(found["masks"][0])
    assert all(sum(map(bool, row)) == 1 for row in found["ours"])


def test_skyrl_generator_places_rewards_on_the_policys_turns(server: Server, tmp_path) -> None:
    found = run_in("skyrl_train", "run_skyrl_tools.py", server.url, tmp_path)
    calling = server.samples()[:2]
    assert [told(one) for one in calling] == [BY_MASK] * 2
    assert [one["finish_reason"] for one in calling] == ["length", "stop"]
    assert calling[0]["tools"] == [TOOL]
    for rewards, mask in zip(found["whole"]["rewards"], found["whole"]["masks"], strict=True):
        require_placed(rewards, mask)
    assert found["cut"]["rewards"][0] == logged(found["whole"]["rewards"][0])


def test_slime_rollout_sends_turns_by_the_loss_mask(server: Server, tmp_path) -> None:
    found = run_in("slime", "run_slime_tools.py", server.url, tmp_path)
    samples = server.samples()
    assert [told(one) for one in samples[:4]] == [BY_MASK] * 4
    assert {one["completion"] for one in samples[4:]} == {AT_ONCE}
    assert {one["finish_reason"] for one in samples[4:]} == {"length"}
    assert sorted(one["group_size"] or 0 for one in samples) == [0, 0, 0, 0, 2, 2, 2, 2]
    for way in ("messages", "templated", "raw", "first_returns"):
        assert found[way] == logged(found["group"])
    for rewards, mask in zip(found["dense"], found["masks"], strict=True):
        require_placed(rewards, mask)


def test_verifiers_rollout_with_a_tool_server_is_scored_whole(server: Server, tmp_path) -> None:
    found = run_in("verifiers", "run_verifiers_tools.py", server.url, tmp_path)
    assert not found["errors"]
    (sent,) = server.samples()
    first, result, last = sent["completion"]
    assert [one["reasoning"] for one in (first, last)] == THOUGHTS
    assert first["tool_calls"]
    assert RESULT in result["content"]
    assert last["content"] == ANSWER
    assert any(tool["function"]["name"].endswith("find_author") for tool in sent["tools"])
    assert found["metrics"]["alarm/reward"] == logged(found["reward"])
