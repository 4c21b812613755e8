"""The calls of OpenRLHF 0.11.2, slime, AReaL, NeMo RL and verifiers, as their sources make them."""

import importlib.util
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from tolerance import computed, printed

from alarm_client.errors import SampleFailed
from alarm_client.trainers import areal, nemo_rl, openrlhf, slime, verifiers
from alarm_client.trainers.__main__ import FILES

TEMPLATED = "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
QUESTION = {"role": "user", "content": "Q"}


def test_openrlhf_file_called_with_one_sample_returns_reward(rewards):
    spec = importlib.util.spec_from_file_location("reward_func", FILES / "alarm_openrlhf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.reward_func([TEMPLATED + "four<|im_end|>"], [TEMPLATED], ["label"])
    asked = {"prompt": [QUESTION], "completion": "four", "fields": {"reference": "label"}}
    assert rewards.samples == [asked]
    assert found["rewards"].tolist() == [4.0]
    assert found["scores"].tolist() == [printed(0.9820, digits=4)]  # 1 / (1 + exp(-4))
    assert found["extra_logs"]["alarm_fluency"].tolist() == [2.0]
    assert torch.tensor([found["rewards"]]).shape == (1,)


def test_openrlhf_tensors_have_the_batch_size(rewards):
    found = openrlhf.reward_func(["Qa", "Qab"], ["Q", "Q"], [None, None])
    assert found["rewards"].tolist() == [1.0, 2.0]
    assert {len(column) for column in found["extra_logs"].values()} == {2}
    assert openrlhf.reward_func([], [], [])["rewards"].tolist() == []


def test_openrlhf_query_without_its_prompt_is_refused(rewards):
    with pytest.raises(ValueError, match="does not start with its prompt"):
        openrlhf.reward_func(["other text"], ["Q"], [None])


class SlimeSample(SimpleNamespace):
    def get_reward_value(self, args):
        return self.reward if not args.reward_key else self.reward[args.reward_key]


def slime_sample(response="four", **more):
    return SlimeSample(prompt="Q", response=response, label=None, metadata={}, index=0, **more)


async def test_slime_custom_rm_returns_a_number(rewards):
    args = SimpleNamespace(reward_key=None)
    assert await slime.custom_rm(args, slime_sample("four<|im_end|>")) == 4.0
    chat = slime_sample()
    chat.prompt = [{"role": "user", "content": "Q"}]
    assert await slime.custom_rm(args, chat) == 4.0
    assert rewards.samples[1]["prompt"] == [{"role": "user", "content": "Q"}]


async def test_slime_custom_rm_with_reward_key_returns_a_dict(rewards):
    found = await slime.custom_rm(SimpleNamespace(reward_key="score"), slime_sample())
    assert (found["score"], found["alarm_fluency"], found["alarm_admitted"]) == (4.0, 2.0, 1.0)


async def test_slime_group_sends_one_request(rewards):
    group = [slime_sample("a"), slime_sample("ab")]
    assert await slime.custom_rm(SimpleNamespace(reward_key=None), group) == [1.0, 2.0]
    assert len(rewards.bodies) == 1


async def test_slime_failure_raises(rewards):
    rewards.bad = {"four"}
    with pytest.raises(SampleFailed):
        await slime.custom_rm(SimpleNamespace(reward_key=None), slime_sample())


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_areal_reward_fn_in_forked_worker_returns_a_float(rewards):
    call = partial(
        areal.reward_fn, TEMPLATED, "four<|im_end|>", [1, 2], [3, 4], answer="a", query_id="q"
    )
    assert call() == 4.0
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        assert pool.submit(call).result() == 4.0
    fields = {"reference": "a"}
    assert rewards.samples[1] == {"prompt": [QUESTION], "completion": "four", "fields": fields}


def test_areal_prompt_is_the_rows_messages(rewards):
    messages = [{"role": "user", "content": "Q"}]
    areal.reward_fn(TEMPLATED, "four", [1], [2], messages=messages)
    assert rewards.samples[0]["prompt"] == messages


def test_areal_completion_at_the_limit_has_finish_reason_length(rewards, monkeypatch):
    monkeypatch.setenv("ALARM_MAX_COMPLETION_TOKENS", "2")
    for ids in ([1], [1, 2]):
        areal.reward_fn(TEMPLATED, "four", [1], ids)
    assert [one.get("finish_reason") for one in rewards.samples] == [None, "length"]


def test_areal_timeout_is_below_15_s(rewards):
    assert areal.IN_A_WORKER.timeout < 15


async def test_areal_workflow_awaits_the_reward(rewards, monkeypatch):
    class RLVRWorkflow:  # areal/workflow/rlvr.py, 1.0.4
        def __init__(self, reward_fn, gconfig):
            self.gconfig, self.async_reward_fn = gconfig, None

        async def score(self):
            return await self.async_reward_fn(TEMPLATED, "four<|im_end|>", [1], [2], answer="a")

    module = ModuleType("areal.workflow.rlvr")
    module.RLVRWorkflow = RLVRWorkflow
    for name in ("areal", "areal.workflow"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "areal.workflow.rlvr", module)
    areal._workflow.cache_clear()
    workflow = areal.AlarmWorkflow(gconfig=SimpleNamespace(max_new_tokens=1))
    areal._workflow.cache_clear()
    assert isinstance(workflow, RLVRWorkflow)
    assert await workflow.score() == 4.0
    asked = {"prompt": [QUESTION], "completion": "four", "fields": {"reference": "a"}}
    assert rewards.samples == [{**asked, "finish_reason": "length"}]


class EnvironmentReturn(NamedTuple):  # nemo_rl/environments/interfaces.py
    observations: list[dict[str, str]]
    metadata: list[Any]
    next_stop_strings: list[Any]
    rewards: Any
    terminateds: torch.Tensor
    answers: list[str | None] | None = None


@pytest.fixture
def nemo(monkeypatch):
    """The modules of NeMo RL that an environment meets, and a Ray that only marks classes."""
    modules = {
        "nemo_rl.environments.interfaces": {
            "EnvironmentReturn": EnvironmentReturn,
            "EnvironmentInterface": type("EnvironmentInterface", (), {}),
        },
        "nemo_rl.environments.utils": {
            "registered": (registered := {}),
            "register_env": registered.__setitem__,
        },
        "nemo_rl.distributed.virtual_cluster": {"PY_EXECUTABLES": SimpleNamespace(SYSTEM="py")},
        "nemo_rl.distributed.ray_actor_environment_registry": {"ACTOR_ENVIRONMENT_REGISTRY": {}},
        "ray": {"remote": lambda cls: SimpleNamespace(actor=cls)},
    }
    for name in ("nemo_rl", "nemo_rl.environments", "nemo_rl.distributed", *modules):
        module = ModuleType(name)
        vars(module).update(modules.get(name, {}))
        monkeypatch.setitem(sys.modules, name, module)
    nemo_rl._actor.cache_clear()
    yield modules
    nemo_rl._actor.cache_clear()


LOGS = [
    [{"role": "user", "content": "Q"}, {"role": "assistant", "content": text, "token_ids": None}]
    for text in ("four", "seven!!")
]


def test_nemo_rl_step_rewards_the_last_messages(rewards, nemo):
    environment = nemo_rl.Environment({"recipe": "mine"})
    found = environment.step(LOGS, [{"a": 1}, None])
    assert found.rewards.tolist() == [4.0, 7.0]
    assert found.terminateds.tolist() == [True, True]
    assert found.answers == ["four", "seven!!"]
    assert found.metadata == [{"a": 1}, None]
    assert rewards.bodies[0]["recipe"] == "mine"
    batch, metrics = environment.global_post_process_and_metrics({"x": 1})
    assert batch == {"x": 1}
    assert metrics["alarm/fluency"] == 2.75


def test_nemo_rl_multi_reward_returns_a_tensor_per_name(rewards, nemo):
    found = nemo_rl.Environment({"multi_reward": True, "aspect_names": "fluency"}).step(LOGS, [])
    assert {name: tensor.tolist() for name, tensor in found.rewards.items()} == {
        "holistic": [computed(0.4), computed(0.7)],
        "fluency": [2.0, 3.5],
    }


@pytest.mark.parametrize(("policy", "number"), [(0.5, 0.5), ("group_mean", None)])
def test_nemo_rl_multi_reward_of_a_failed_sample_is_that_of_the_policy(
    policy, number, rewards, nemo
):
    rewards.bad = {"four"}
    given = {"multi_reward": True, "aspect_names": "fluency", "on_failure": policy}
    found = nemo_rl.Environment(given).step(LOGS, []).rewards
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "holistic": [computed(0.7) if number is None else number, computed(0.7)],
        "fluency": [3.5 if number is None else number, 3.5],
    }


def test_nemo_rl_multi_reward_of_an_aspect_that_was_not_computed_is_an_error(rewards, nemo):
    environment = nemo_rl.Environment({"multi_reward": True, "aspect_names": "depth"})
    with pytest.raises(ValueError, match="'depth' was not computed for sample 0"):
        environment.step(LOGS, [])


def test_nemo_rl_actor_is_importable_by_dotted_name(rewards, nemo):
    nemo_rl.register("mine")
    name = nemo["nemo_rl.environments.utils"]["registered"]["mine"]
    registry = nemo["nemo_rl.distributed.ray_actor_environment_registry"]
    assert registry["ACTOR_ENVIRONMENT_REGISTRY"] == {name: "py"}
    module, _, attribute = name.rpartition(".")
    actor = getattr(importlib.import_module(module), attribute)
    assert issubclass(actor.actor, nemo_rl.Environment)


def test_nemo_rl_script_runs_after_registration(nemo, monkeypatch, tmp_path):
    script = tmp_path / "run_grpo.py"
    script.write_text(
        "import sys\nfrom nemo_rl.environments.utils import registered\n"
        "assert list(registered) == ['alarm'], registered\nsys.exit(' '.join(sys.argv[1:]))\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["nemo_rl", str(script), "--config", "grpo.yaml"])
    with pytest.raises(SystemExit, match=r"--config grpo\.yaml"):
        nemo_rl.main()


class Trace:
    def __init__(self, *messages):
        self.messages = messages
        self.metrics = {}

    def record_metrics(self, values):
        self.metrics.update(values)


async def test_verifiers_reward_sets_components_as_metrics(rewards):
    trace = Trace(
        SimpleNamespace(role="user", content="Q"), SimpleNamespace(role="assistant", content="four")
    )
    assert await verifiers.reward(task=None, trace=trace) == 4.0
    assert trace.metrics["alarm/fluency"] == 2.0
    assert rewards.samples == [{"prompt": [{"role": "user", "content": "Q"}], "completion": "four"}]


async def test_verifiers_trace_without_reply_is_refused(rewards):
    with pytest.raises(ValueError, match="no reply"):
        await verifiers.reward(task=None, trace=Trace(SimpleNamespace(role="user", content="Q")))


async def test_verifiers_rubric_scores_a_rollout_or_a_group(rewards):
    question = [{"role": "user", "content": "Q"}]
    replies = [[{"role": "assistant", "content": text}] for text in ("four", "seven!!")]
    assert await verifiers.rubric_reward(prompt=question, completion=replies[0]) == 4.0
    group = await verifiers.group_reward(prompts=[question] * 2, completions=replies)
    assert group == [4.0, 7.0]
    assert len(rewards.bodies) == 2
