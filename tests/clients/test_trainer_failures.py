"""The failure policy: group mean, error, None or a number."""

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


def test_group_mean_ignores_failed_samples() -> None:
    values = [5.0, None, 7.0, 6.0, -1.0, None, None, None]
    groups = ["a"] * 4 + ["b", "b", "c", "c"]
    assert with_group_means(values, groups) == [5, 6, 7, 6, -1, -1, None, None]


def test_group_mean_with_interleaved_groups_is_per_group() -> None:
    rewards = [rewarded(5), failed(), failed(), rewarded(-3), rewarded(7)]
    groups = ["a", "b", "a", "b", "a"]
    assert scalars(rewards, "group_mean", groups=groups) == [5, -3, 6, -3, 7]


def test_group_mean_of_a_part_uses_that_part() -> None:
    rewards = [rewarded(4), failed(), rewarded(8)]
    assert scalars(rewards, "group_mean", "depth") == [2, 3, 4]
    assert scalars(rewards, "group_mean", "holistic") == [4, 6, 8]


def test_group_mean_of_a_part_without_values_is_none() -> None:
    nothing = Reward(None, 1.0, None, None, False, {"depth": None}, False, None)
    assert scalars([nothing, nothing], "group_mean", "depth") == [None, None]


def test_group_mean_of_failed_group_raises() -> None:
    rewards = [rewarded(5), rewarded(6), failed(), failed()]
    with pytest.raises(
        SampleFailed, match=r"all 2 samples of a prompt in this call failed.*over the limit"
    ):
        scalars(rewards, "group_mean", groups=["a", "a", "b", "b"])


def test_group_mean_of_single_sample_error_says_how_to_fix() -> None:
    rewards = [rewarded(5), failed()]
    with pytest.raises(SampleFailed, match="local batch contain whole groups"):
        scalars(rewards, "group_mean", groups=["a", "b"])


def trl_call(reward: trl.AlarmReward, *groups: list[str]) -> list[float | None]:
    completions = [text for group in groups for text in group]
    prompts = [f"Q{index}" for index, group in enumerate(groups) for _ in group]
    return reward(prompts=prompts, completions=completions, completion_ids=[])


def test_trl_failed_sample_gets_mean_of_its_prompt(rewards: RewardServer) -> None:
    rewards.bad = {"x"}
    assert trl_call(trl.AlarmReward(), ["1", "333", "x"], ["x", "22"]) == [1, 3, 2, 2, 2]
    assert trl_call(trl.AlarmReward(part="fluency"), ["1", "333", "x"]) == [0.5, 1.5, 1]


def test_trl_group_setting_groups_by_column(rewards: RewardServer) -> None:
    rewards.bad = {"x"}
    reward = trl.AlarmReward(group="task")
    found = reward(prompts=["Q"] * 4, completions=["1", "x", "333", "x"], task=["a", "a", "b", "b"])
    assert found == [1, 1, 3, 3]
    assert [sample["group"] for sample in rewards.samples] == ["a", "a", "b", "b"]


def test_trl_failed_call_raises(rewards: RewardServer) -> None:
    rewards.status = 500
    with pytest.raises(ServerFailed):
        trl_call(trl.AlarmReward(), ["1", "22"])


def test_ms_swift_on_failure_none_is_refused() -> None:
    with pytest.raises(
        ValueError, match="ms_swift: on_failure 'none' requires a trainer that skips"
    ):
        ms_swift.orm("alarm", on_failure="none")(args=None)


def test_ms_swift_groups_ignore_added_turns(rewards: RewardServer) -> None:
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


def test_ms_swift_prompt_ids_separate_equal_questions(rewards: RewardServer) -> None:
    swift_call(ms_swift.AlarmORM(args=None), ["a", "b"], prompt_id=["prompt_0", "prompt_1"])
    groups = {sample["group"] for sample in rewards.samples}
    assert len(groups) == 2


@pytest.mark.parametrize("version", ["0.18.2", "1.5.0", "1.6.0", "1.16.0", "2.0.0.dev0"])
def test_trl_on_failure_none_with_old_version_is_refused(monkeypatch, sources, version) -> None:
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


def test_slime_failed_sample_gets_group_mean(rewards: RewardServer, monkeypatch) -> None:
    rewards.bad = {"x"}
    samples = slime_group(monkeypatch)
    assert asyncio.run(slime.custom_rm(SLIME, samples)) == [3, 3]
    assert rewards.samples[0]["group"] == 4


def test_slime_dense_failed_sample_has_group_mean_on_last_token(
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


def test_slime_group_mean_without_group_rm_is_refused(rewards: RewardServer, monkeypatch) -> None:
    (sample, _) = slime_group(monkeypatch)
    with pytest.raises(ValueError, match=r"slime: on_failure 'group_mean' .*\(--group-rm\)"):
        asyncio.run(slime.custom_rm(SLIME, sample))


def test_trlx_and_rubric_group_failed_samples_get_group_mean(
    rewards: RewardServer, monkeypatch
) -> None:
    monkeypatch.setenv("ALARM_ON_FAILURE", "group_mean")
    rewards.bad = {"x"}
    answers = ["1", "x", "333"]
    assert trlx.reward_fn(answers, ["Q"] * 3, answers) == [1, 2, 3]
    assert asyncio.run(verifiers.group_reward(["Q"] * 3, answers)) == [1, 2, 3]


@pytest.mark.parametrize("hook", [openrlhf.reward_func, verl.compute_score_blocking])
def test_group_mean_with_single_sample_trainer_is_refused(sources, monkeypatch, hook) -> None:
    monkeypatch.setenv("ALARM_ON_FAILURE", "group_mean")
    with pytest.raises(ValueError, match="sends one sample at a time"):
        hook([], [], [])


def test_call_with_only_invalid_samples_raises_under_any_policy(
    rewards: RewardServer,
) -> None:
    message = "the model's template names {reference}: send it in the sample's `fields`"
    rewards.errors = {"a": ("invalid_sample", message), "b": ("invalid_sample", message)}
    for policy in ("none", "group_mean", -1, "raise"):
        with pytest.raises(SampleFailed, match=r"every sample .*\{reference\}.*ALARM_FIELDS"):
            trl_call(trl.AlarmReward(on_failure=policy), ["a", "b"])
    assert trl_call(trl.AlarmReward(on_failure=-1), ["a", "good"]) == [-1, 4]


def test_invalid_sample_after_a_reward_does_not_raise() -> None:
    calls = InvalidCalls(ONE)
    calls.checked([rewarded(1)])
    (found,) = calls.checked([failed("invalid_sample")])
    assert found.error is not None
    for _ in range(14):
        calls.checked([failed("invalid_sample")])
    with pytest.raises(SampleFailed, match="every sample of 16 calls in a row is invalid"):
        calls.checked([failed("invalid_sample")])


def test_invalid_sample_before_first_reward_raises() -> None:
    with pytest.raises(SampleFailed, match="over the limit"):
        InvalidCalls(ONE).checked([failed("invalid_sample")])
    assert InvalidCalls(ONE).checked([failed("too_long")])[0].reward is None


def test_group_rule_with_single_sample_trainer_error_says_so() -> None:
    message = "rule `gdpo` requires groups: send `group` with each sample"
    with pytest.raises(SampleFailed, match="one sends one sample at a time"):
        InvalidCalls(ONE).checked([failed("invalid_sample", message)])


@pytest.mark.parametrize("error", [InvalidRequest, TooLarge])
def test_invalid_request_raises_under_any_policy(error: type[AlarmError]) -> None:
    with pytest.raises(error):
        failed_call(error("no", status=422), 2, 0.0)


def test_server_never_answered_raises_under_any_policy(sources) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    for policy in ("none", -1.0):
        reward = trl.AlarmReward(url=url, on_failure=policy, connect_timeout=0.2)
        with pytest.raises(AlarmConnectionError, match=url):
            trl_call(reward, ["a"])


def test_server_failing_later_follows_the_policy(rewards: RewardServer) -> None:
    reward = trl.AlarmReward(on_failure=-1.0, timeout=1, connect_timeout=0.2)
    assert trl_call(reward, ["a"]) == [1]
    rewards.shutdown()
    rewards.server_close()
    reward.source.close()  # so that the next call cannot go on with its connection
    assert trl_call(reward, ["a"]) == [-1]


def test_summands_add_up_to_the_reward() -> None:
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
def test_invalid_request_raises_in_hooks(rewards: RewardServer, status: int, policy) -> None:
    reward = trl.AlarmReward(on_failure=policy)
    assert trl_call(reward, ["a"]) == [1]
    rewards.status = status
    with pytest.raises(AlarmError, match=f"answered {status}"):
        trl_call(reward, ["a"])


def test_verl_group_mean_requires_a_batch(rewards: RewardServer) -> None:
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


def test_skyrl_generator_failed_sample_gets_mean_of_its_prompt(rewards: RewardServer) -> None:
    rewards.bad = {"The café"}
    generator = skyrl.AlarmGenerator(Generator(), TOKENIZER, on_failure="group_mean")
    output = asyncio.run(generator.generate({"prompts": ["Q"] * 3}))
    assert [sum(row) for row in output["rewards"]] == [3, 2.5, 2]


def test_group_mean_of_equal_rewards_keeps_them(rewards: RewardServer) -> None:
    rewards.bad = {"x"}
    assert trl_call(trl.AlarmReward(), ["a", "b", "x", "c"]) == [1, 1, 1, 1]
