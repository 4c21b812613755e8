"""Text formats of trainers, padding of token rewards, and the command line."""

import asyncio
import re
from types import SimpleNamespace

import pytest

from alarm_client.trainers import easyr1, ms_swift, openrlhf, slime, trl, trlx, verifiers
from alarm_client.trainers.__main__ import main
from alarm_client.trainers._inputs import (
    completion_of,
    prompt_of,
    split_messages,
    without_end_tokens,
)
from alarm_client.trainers._padding import (
    at_last_token,
    left_aligned,
    right_aligned,
    starting_at,
)
from alarm_client.trainers._padding_check import check_padding, padding

HI = {"role": "user", "content": "Hi"}
ROWS = [[1.0, 2.0, 3.0], [4.0]]


@pytest.mark.parametrize(
    "value",
    [
        "yes",
        {"role": "assistant", "content": "yes"},
        {"message": {"role": "assistant", "content": "yes"}},
        [HI, {"role": "assistant", "content": "yes"}],
        [{"role": "assistant", "content": [{"type": "text", "text": "ye"}, {"text": "s"}]}],
        [SimpleNamespace(role="assistant", content="yes")],
    ],
)
def test_completion_of_accepts_trainer_formats(value):
    if isinstance(value, list) and isinstance(value[0], SimpleNamespace):
        value = split_messages(value)[1]
    assert completion_of(value) == "yes"


def test_completion_of_tool_call_is_empty():
    assert completion_of([{"role": "assistant", "content": None}]) == ""


def test_prompt_of_accepts_string_and_messages():
    assert prompt_of("Hi") == "Hi"
    assert prompt_of([{**HI, "token_ids": [1]}]) == [HI]


def test_without_end_tokens_strips_only_the_end():
    assert without_end_tokens("a</s>b<|im_end|>\n<|endoftext|>") == "a</s>b"
    assert without_end_tokens("a line\n") == "a line\n"


def test_padding_places_rewards_on_the_given_side():
    assert left_aligned(ROWS) == [[1, 2, 3], [4, 0, 0]]
    assert right_aligned(ROWS, 4) == [[0, 1, 2, 3], [0, 0, 0, 4]]
    assert starting_at(ROWS, [1, 2], 4) == [[0, 1, 2, 3], [0, 0, 4, 0]]
    assert at_last_token(5.0, 3) == [0, 0, 5]


def test_padding_of_rewards_over_width_is_refused():
    with pytest.raises(ValueError, match="sample 0: 3 token rewards from column 2"):
        starting_at(ROWS, [2, 0], 4)


def test_padding_check_on_different_sides_loses_rewards():
    found = check_padding(padding("left", "right"), [3, 5])
    assert [one.survives for one in found] == [False, True]
    assert [one.survives for one in check_padding(padding("right", "right"), [3, 5])] == [
        True,
        True,
    ]
    assert [one.survives for one in check_padding(padding("left", "left"), [3, 5])] == [True, True]


def test_padding_check_moved_reward_does_not_survive():
    def shifted(rows):
        moved = [[*row[1:], 0.0] for row in rows]
        return moved, [[1.0] * len(row) for row in rows]

    (found,) = check_padding(shifted, [3])
    assert (found.column, found.last_column, found.survives) == (1, 2, False)


def test_check_command_reports_unplaced_and_placed(capsys):
    assert main(["check", "alarm_trl", "--lengths", "3,5"]) == 0
    unplaced, placed = capsys.readouterr().out.split("placed by this client:")
    assert "3 tokens: the last reward is LOST" in unplaced
    assert "LOST" not in placed
    assert "3 tokens: the last reward survives" in placed


def pads_badly(rows):
    return right_aligned(rows), left_aligned([[1.0] * len(row) for row in rows])


def test_check_command_runs_custom_padding(capsys):
    assert main(["check", "test_trainer_shapes:pads_badly", "--lengths", "2,3"]) == 1
    assert "2 tokens: the last reward is LOST" in capsys.readouterr().out


def test_check_command_pads_as_skyrl(capsys):
    assert main(["check", "skyrl", "--lengths", "3,5"]) == 0
    found = capsys.readouterr().out
    assert "rewards on the left, responses on the left" in found
    assert "LOST" not in found


def test_check_command_for_slime_pads_nothing(capsys):
    assert main(["check", "slime", "--lengths", "3,5"]) == 0
    assert "3 tokens: the last reward survives" in capsys.readouterr().out
    rewards, masks = padding("none", "none")(ROWS)
    assert rewards == ROWS
    assert masks == [[1, 1, 1], [1]]


def test_check_command_without_token_rewards_is_refused(capsys):
    assert main(["check", "areal"]) == 1
    assert "'areal' is not one of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no_such_module:pad"], "must be an importable module:function.*No module named"),
        (["os:no_such_pad"], "must be an importable module:function.*no attribute"),
        (["slime", "--lengths", "a,b"], "--lengths must be numbers of tokens"),
        (["slime", "--lengths", ""], "--lengths must be numbers of tokens"),
        (["slime", "--lengths", "0,3"], "--lengths must be numbers of tokens"),
    ],
)
def test_check_command_with_invalid_argument_is_refused(capsys, arguments, said):
    assert main(["check", *arguments]) == 1
    assert re.search(said, capsys.readouterr().err)


def test_shipped_files_do_not_shadow_trainer_modules(capsys):
    # ms-swift puts a plugin's folder first on sys.path: it must hold no trl.py or verl.py.
    for trainer in ("ms_swift", "openrlhf", "verl"):
        assert main(["path", trainer]) == 0
        path = capsys.readouterr().out.strip()
        assert path.endswith(f"files/alarm_{trainer}.py")


def test_trainers_command_without_arguments_lists_settings(capsys):
    assert main([]) == 0
    assert "alarm_client.trainers.slime.custom_rm" in capsys.readouterr().out


@pytest.mark.parametrize("nothing", [None, float("nan"), 3, b"a"])
def test_input_of_wrong_type_is_refused_with_its_sample(nothing):
    chat = [HI, {"role": "assistant", "content": "yes"}]
    slime_of = [SimpleNamespace(prompt="Q", response=one) for one in ("a", nothing)]
    calls = {
        "trl": lambda: trl.AlarmReward()(["Q", nothing], ["a", "b"]),
        "ms_swift": lambda: asyncio.run(
            ms_swift.AlarmORM()(["yes", "yes"], messages=[chat, nothing])
        ),
        "openrlhf": lambda: openrlhf.reward_func(["Q a", nothing], ["Q", "Q"]),
        "trlx": lambda: trlx.reward_fn(["Q a", "Q b"], ["Q", "Q"], ["a", nothing]),
        "slime": lambda: asyncio.run(slime.custom_rm(None, slime_of)),
        "verifiers": lambda: asyncio.run(
            verifiers.group_reward([[HI], nothing], [chat[1:], chat[1:]])
        ),
        "easyr1": lambda: easyr1.compute_score(
            [{"response": one, "ground_truth": {"prompt": "Q"}} for one in ("a", nothing)]
        ),
    }
    for trainer, call in calls.items():
        with pytest.raises(TypeError, match=f"{trainer}: sample 1: a .* must be .*, got a"):
            call()


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="trl: the call has 2 prompts and 1 completions"):
        trl.AlarmReward()(["Q", "Q"], ["a"])
