"""What a failed sample becomes: the mean of its group, an error, or what the user chose."""

import asyncio
import socket
from types import SimpleNamespace

import client_tokenizers
import pytest
from reward_server import RewardServer
from test_trainer_hooks import slime_sample
from test_trainer_trl import swift_call
from test_trainer_verl import rollouts

from alarm_client.errors import (
    AlarmConnectionError,
    AlarmError,
    InvalidRequest,
    SampleFailed,
    ServerFailed,
    TooLarge,
)
from alarm_client.trainers import ms_swift, openrlhf, skyrl, slime, trl, trlx, verifiers, verl
from alarm_client.trainers._components import summands
from alarm_client.trainers._failures import InvalidCalls, failed_call, scalars, with_group_means
from alarm_client.trainers._settings import TrainerDefaults
from alarm_client.types import AspectReward, Holistic, Reward, SampleError

ONE = TrainerDefaults("one", timeout=9.0)
TOKENIZER = client_tokenizers.byte_level()


def rewarded(value: float) -> Reward:
    aspects = {"depth": AspectReward(value / 2, None, None)}
    return Reward(None, value, None, Holistic(value, value), True, aspects, False, None)


def failed(code: str = "too_long", message: str = "over the limit") -> Reward:
    return Reward(None, None, None, None, None, {}, False, SampleError(code, message))


def test_a_group_mean_is_over_the_rewards_that_a_group_has() -> None:
    values = [5.0, None, 7.0, 6.0, -1.0, None, None, None]
    groups = ["a"] * 4 + ["b", "b", "c", "c"]
    assert with_group_means(values, groups) == [5, 6, 7, 6, -1, -1, None, None]


def test_groups_need_not_stand_together() -> None:
    rewards = [rewarded(5), failed(), failed(), rewarded(-3), rewarded(7)]
    groups = ["a", "b", "a", "b", "a"]
    assert scalars(rewards, "group_mean", groups=groups) == [5, -3, 6, -3, 7]


def test_a_part_takes_the_mean_of_the_same_part() -> None:
    rewards = [rewarded(4), failed(), rewarded(8)]
    assert scalars(rewards, "group_mean", "depth") == [2, 3, 4]
    assert scalars(rewards, "group_mean", "holistic") == [4, 6, 8]


def test_a_part_that_nobody_has_is_none_for_all() -> None:
    nothing = Reward(None, 1.0, None, None, False, {"depth": None}, False, None)
    assert scalars([nothing, nothing], "group_mean", "depth") == [None, None]


def test_a_group_in_which_all_failed_is_an_error() -> None:
    rewards = [rewarded(5), rewarded(6), failed(), failed()]
    with pytest.raises(
        SampleFailed, match=r"all 2 samples of a prompt in this call failed.*over the limit"
    ):
        scalars(rewards, "group_mean", groups=["a", "a", "b", "b"])


def test_a_group_of_one_says_what_makes_it_larger() -> None:
    rewards = [rewarded(5), failed()]
    with pytest.raises(SampleFailed, match="local batch contain whole groups"):
        scalars(rewards, "group_mean", groups=["a", "b"])


def trl_call(reward: trl.AlarmReward, *groups: list[str]) -> list[float | None]:
    completions = [text for group in groups for text in group]
    prompts = [f"Q{index}" for index, group in enumerate(groups) for _ in group]
    return reward(prompts=prompts, completions=completions, completion_ids=[])


def test_trl_takes_the_mean_of_the_prompt(rewards: RewardServer) -> None:
    rewards.bad = {"x"}
    assert trl_call(trl.AlarmReward(), ["1", "333", "x"], ["x", "22"]) == [1, 3, 2, 2, 2]
    assert trl_call(trl.AlarmReward(part="fluency"), ["1", "333", "x"]) == [0.5, 1.5, 1]


def test_trls_prompts_are_told_apart_by_a_column_where_one_is_named(rewards: RewardServer) -> None:
    rewards.bad = {"x"}
    reward = trl.AlarmReward(group="task")
    found = reward(prompts=["Q"] * 4, completions=["1", "x", "333", "x"], task=["a", "a", "b", "b"])
    assert found == [1, 1, 3, 3]
    assert [sample["group"] for sample in rewards.samples] == ["a", "a", "b", "b"]


def test_trl_ends_where_a_call_fails(rewards: RewardServer) -> None:
    rewards.status = 500
    with pytest.raises(ServerFailed):
        trl_call(trl.AlarmReward(), ["1", "22"])


def test_ms_swift_refuses_a_none_that_it_would_take_as_0() -> None:
    with pytest.raises(
        ValueError, match="ms_swift: on_failure 'none' requires a trainer that skips"
    ):
        ms_swift.orm("alarm", on_failure="none")(args=None)


def test_ms_swifts_turns_do_not_hide_a_prompt(rewards: RewardServer) -> None:
    rewards.bad = {"x"}
    orm = ms_swift.AlarmORM(args=None)
    question, hint = {"role": "user", "content": "Q"}, {"role": "user", "content": "Again"}
    long = [question, {"role": "assistant", "content": "?"}, hint]
    answers = ["x", "333"]
    messages = [
        [*start, {"role": "assistant", "content": answer}]
        for start, answer in zip(([question], long), answers, strict=True)
    ]
    found = asyncio.run(orm(answers, messages=messages, prompt_id=["prompt_0"] * 2))
    assert found == [3, 3]


def test_ms_swifts_prompt_ids_tell_equal_questions_apart(rewards: RewardServer) -> None:
    swift_call(ms_swift.AlarmORM(args=None), ["a", "b"], prompt_id=["prompt_0", "prompt_1"])
    groups = {sample["group"] for sample in rewards.samples}
    assert len(groups) == 2


@pytest.mark.parametrize("version", ["0.18.2", "1.5.0", "1.6.0", "1.16.0", "2.0.0.dev0"])
def test_none_is_refused_where_trl_takes_it_as_0(monkeypatch, sources, version) -> None:
    monkeypatch.setattr(trl, "version", lambda name: version)
    if version in ("0.18.2", "1.5.0"):
        with pytest.raises(ValueError, match=f"reward of 0 in TRL {version}"):
            trl.AlarmReward(on_failure="none")
    else:
        assert trl.AlarmReward(on_failure="none").source.settings.on_failure == "none"


SLIME = SimpleNamespace(reward_key=None)


def slime_group(monkeypatch) -> list:
    monkeypatch.setenv("ALARM_ON_FAILURE", "group_mean")
    ids = TOKENIZER("abc").input_ids
    tokens = {"tokens": ids, "response_length": len(ids), "group_index": 4}
    return [slime_sample("abc", **tokens), slime_sample("x", **tokens)]


def test_slimes_group_takes_its_mean(rewards: RewardServer, monkeypatch) -> None:
    rewards.bad = {"x"}
    samples = slime_group(monkeypatch)
    assert asyncio.run(slime.custom_rm(SLIME, samples)) == [3, 3]
    assert rewards.samples[0]["group"] == 4


def test_slimes_token_rewards_put_the_mean_on_the_last_token(
    rewards: RewardServer, monkeypatch
) -> None:
    monkeypatch.setattr(slime, "_tokenizer", lambda checkpoint: TOKENIZER)
    samples = slime_group(monkeypatch)
    samples[1].tokens = TOKENIZER("xyz").input_ids
    samples[1].response_length = len(samples[1].tokens)
    rewards.bad = {"xyz"}
    args = SimpleNamespace(reward_key=None, hf_checkpoint="")
    assert asyncio.run(slime.dense_rm(args, samples)) == [3, 3]
    row = samples[1].metadata[slime.TOKEN_REWARDS]
    assert row == [0.0] * (samples[1].response_length - 1) + [3.0]


def test_slime_without_group_rm_refuses_a_mean_of_one(rewards: RewardServer, monkeypatch) -> None:
    (sample, _) = slime_group(monkeypatch)
    with pytest.raises(ValueError, match=r"slime: on_failure 'group_mean' .*\(--group-rm\)"):
        asyncio.run(slime.custom_rm(SLIME, sample))


def test_trlx_and_a_rubrics_group_take_means(rewards: RewardServer, monkeypatch) -> None:
    monkeypatch.setenv("ALARM_ON_FAILURE", "group_mean")
    rewards.bad = {"x"}
    answers = ["1", "x", "333"]
    assert trlx.reward_fn(answers, ["Q"] * 3, answers) == [1, 2, 3]
    assert asyncio.run(verifiers.group_reward(["Q"] * 3, answers)) == [1, 2, 3]


@pytest.mark.parametrize("hook", [openrlhf.reward_func, verl.compute_score_blocking])
def test_a_trainer_of_single_samples_refuses_group_means(sources, monkeypatch, hook) -> None:
    monkeypatch.setenv("ALARM_ON_FAILURE", "group_mean")
    with pytest.raises(ValueError, match="sends one sample at a time"):
        hook([], [], [])


def test_a_call_in_which_all_are_invalid_is_raised_whatever_the_policy(
    rewards: RewardServer,
) -> None:
    message = "the model's template names {reference}: send it in the sample's `fields`"
    rewards.errors = {"a": ("invalid_sample", message), "b": ("invalid_sample", message)}
    for policy in ("none", "group_mean", -1, "raise"):
        with pytest.raises(SampleFailed, match=r"every sample .*\{reference\}.*ALARM_FIELDS"):
            trl_call(trl.AlarmReward(on_failure=policy), ["a", "b"])
    assert trl_call(trl.AlarmReward(on_failure=-1), ["a", "good"]) == [-1, 4]


def test_one_invalid_sample_among_calls_of_one_is_the_samples_own() -> None:
    calls = InvalidCalls(ONE)
    calls.checked([rewarded(1)])
    (found,) = calls.checked([failed("invalid_sample")])
    assert found.error is not None
    for _ in range(14):
        calls.checked([failed("invalid_sample")])
    with pytest.raises(SampleFailed, match="every sample of 16 calls in a row is invalid"):
        calls.checked([failed("invalid_sample")])


def test_before_the_first_reward_one_invalid_sample_is_raised() -> None:
    with pytest.raises(SampleFailed, match="over the limit"):
        InvalidCalls(ONE).checked([failed("invalid_sample")])
    assert InvalidCalls(ONE).checked([failed("too_long")])[0].reward is None


def test_a_rule_of_groups_is_no_rule_for_calls_of_one() -> None:
    message = "rule `gdpo` wants to know which samples share a prompt: send each one's `group`"
    with pytest.raises(SampleFailed, match="one sends one sample at a time"):
        InvalidCalls(ONE).checked([failed("invalid_sample", message)])


@pytest.mark.parametrize("error", [InvalidRequest, TooLarge])
def test_no_policy_hides_a_request_that_cannot_pass(error: type[AlarmError]) -> None:
    with pytest.raises(error):
        failed_call(error("no", status=422), 2, 0.0)


def test_a_server_that_never_answered_is_raised_whatever_the_policy(sources) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    for policy in ("none", -1.0):
        reward = trl.AlarmReward(url=url, on_failure=policy, connect_timeout=0.2)
        with pytest.raises(AlarmConnectionError, match=url):
            trl_call(reward, ["a"])


def test_a_server_that_has_answered_may_fail_as_the_policy_says(rewards: RewardServer) -> None:
    reward = trl.AlarmReward(on_failure=-1.0, timeout=1, connect_timeout=0.2)
    assert trl_call(reward, ["a"]) == [1]
    rewards.shutdown()
    rewards.server_close()
    reward.source.close()  # so that the next call cannot go on with its connection
    assert trl_call(reward, ["a"]) == [-1]


def test_what_a_reward_is_made_of_adds_up_by_the_rule() -> None:
    aspects = {"depth": AspectReward(2.0, None, None), "wit": None}
    reward = Reward(None, 7.0, None, Holistic(9.0, 1.0), True, aspects, False, None)
    hierarchy = {
        "rule": "hierarchical",
        "holistic_weight": 5.0,
        "weights": {"depth": 1.0, "wit": 3},
    }
    assert summands(reward, hierarchy) == {"holistic": 5, "depth": 2, "wit": 0}
    below = Reward(None, 5.0, None, Holistic(9.0, 1.0), False, aspects, False, None)
    assert summands(below, hierarchy) == {"holistic": 5, "depth": 0, "wit": 0}
    assert summands(below, {**hierarchy, "rule": "minimum"})["holistic"] == 1
    assert summands(failed(), hierarchy) == {}


@pytest.mark.parametrize("status", [400, 413, 422])
@pytest.mark.parametrize("policy", ["none", 0.0])
def test_a_refused_request_ends_the_run(rewards: RewardServer, status: int, policy) -> None:
    reward = trl.AlarmReward(on_failure=policy)
    assert trl_call(reward, ["a"]) == [1]
    rewards.status = status
    with pytest.raises(AlarmError, match=f"answered {status}"):
        trl_call(reward, ["a"])


def test_verls_manager_takes_means_of_a_batch_and_not_of_one(rewards: RewardServer) -> None:
    rewards.bad = {"The café"}
    manager = verl.AlarmRewardManager(tokenizer=TOKENIZER, on_failure="group_mean")
    data, lengths = rollouts("The", "The café")
    tensor = manager(data)
    assert tensor.sum(dim=1).tolist() == [3, 3]
    assert tensor[1, lengths[1] - 1] == 3
    with pytest.raises(ValueError, match="called with the batch"):
        asyncio.run(manager.run_single(data[:1]))


class Generator:
    async def generate(self, input_batch: object) -> dict[str, object]:
        ids = [TOKENIZER(text).input_ids for text in ("The", "The café", "Th")]
        return {"response_ids": ids, "rewards": [0.0] * 3}


def test_skyrls_generator_takes_means_of_a_prompt(rewards: RewardServer) -> None:
    rewards.bad = {"The café"}
    generator = skyrl.AlarmGenerator(Generator(), TOKENIZER, on_failure="group_mean")
    output = asyncio.run(generator.generate({"prompts": ["Q"] * 3}))
    assert [sum(row) for row in output["rewards"]] == [3, 2.5, 2]


def test_a_failure_with_equal_neighbours_changes_no_group(rewards: RewardServer) -> None:
    rewards.bad = {"x"}
    assert trl_call(trl.AlarmReward(), ["a", "b", "x", "c"]) == [1, 1, 1, 1]
