"""The trainers' own code, in their own environments, against a running server.

Each trainer wants its own transformers, so each has its own folder under `$ALARM_TRAINER_VENVS`:

    cd "$ALARM_TRAINER_VENVS"
    uv venv trl && uv pip install -p trl torch==2.13.0 trl==1.16.0 datasets==5.2.0 httpx
    uv venv trl_0.24 && uv pip install -p trl_0.24 torch trl==0.24.0 transformers==4.56.2 \
        accelerate==1.10.1 datasets==3.6.0 httpx  # for what a failed sample becomes
    uv venv trl_0.18 && uv pip install -p trl_0.18 torch trl==0.18.2 transformers==4.52.4 \
        accelerate==1.7.0 datasets==3.6.0 httpx
    ln -s swift trl_0.29
    uv venv verl && uv pip install -p verl torch==2.13.0 verl==0.9.1 cachetools uvicorn fastapi \
        httpx
    uv venv swift && uv pip install -p swift torch==2.13.0 ms-swift==4.6.0 trl==0.29.1 msgspec httpx
    uv venv openrlhf && uv pip install -p openrlhf --no-deps openrlhf==0.11.2
    uv pip install -p openrlhf torch==2.13.0 transformers==5.15.0 pylatexenc sympy aiohttp httpx
    uv venv skyrl -p 3.12 && uv pip install -p skyrl --no-deps skyrl-gym==0.4.0
    uv pip install -p skyrl omegaconf requests numpy pandas func_timeout httpx
    uv venv skyrl_train -p 3.12 && uv pip install -p skyrl_train --no-deps \
        skyrl==0.3.0 skyrl-gym==0.4.0
    uv pip install -p skyrl_train torch==2.13.0 transformers==5.15.0 httpx ray omegaconf loguru \
        numpy pandas func_timeout requests datasets peft hydra-core aiohttp jaxtyping torchdata
    uv venv verifiers && uv pip install -p verifiers verifiers==0.4.0 httpx
    uv venv areal && uv pip install -p areal --no-deps areal==1.0.4
    uv pip install -p areal torch==2.13.0 transformers==5.15.0 httpx aiohttp aiofiles hydra-core \
        tenacity flask torchdata lark uvloop pillow pandas colorlog ray numba orjson

These have no release that installs on a CPU: clone each at the commit that is named and let a .pth
file of the environment lead to the clone.

    EasyR1 b44b311         easyr1: torch==2.13.0 transformers tensordict ray pandas codetiming httpx
    miles 31f1ca9          miles: torch==2.13.0 transformers aiohttp ray sympy pylatexenc pillow \
                           httpx
    slime 624b824          slime: as miles
    NeMo RL 7ea279a        nemo_rl: torch==2.13.0 transformers==5.10.4 ray hydra-core omegaconf \
                           pillow datasets torchdata tensordict sympy wandb mlflow swanlab \
                           prometheus_client tensorboard pyzmq pynvml uvicorn fastapi httpx
    trlx 3340c2f           trlx: torch==2.13.0 transformers==4.46.3 accelerate==0.34.2 \
                           peft==0.9.0 datasets==2.21.0 'numpy<2' 'pyarrow<19' deepspeed cattrs \
                           einops tabulate torchtyping wandb rich ray sentencepiece setuptools httpx
    rllm 9beb6e0           rllm: pydantic httpx
    open-instruct e6c3044  open_instruct: torch==2.13.0 transformers datasets ray wandb beaker-py \
                           litellm nltk langdetect immutabledict absl-py httpx
    Gym 07d6b0d            nemo_gym: ray openai fastapi aiohttp omegaconf hydra-core orjson \
                           itsdangerous yappi pydot httpx

Then `python -m pytest -m slow tests/trainers`. Trainers without an environment are skipped.

Each runs twice: against a healthy server, and against one that refuses the first call because its
queue is full, is killed with SIGKILL at its first response, and is restarted.
"""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from processes import Process, alarm_serve
from texts_of_policies import ANSWERS, PROMPT
from tolerance import logged, printed
from troubled import Server, troubled
from venvs import run_in

from alarm_client.client import AlarmClient
from alarm_client.contrib.relay import Relay
from alarm_client.types import Reward, Sample

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # each starts a trainer
CHAT = [{"role": "user", "content": PROMPT}]


@pytest.fixture(scope="module")
def steady() -> Iterator[Process]:
    with alarm_serve("mini") as process:
        with AlarmClient(process.url) as client:
            client.wait_ready(timeout=120)
        yield process


@pytest.fixture(params=["steady", "troubled"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    if request.param == "steady":
        yield request.getfixturevalue("steady")
        return
    with troubled() as process:
        yield process
        assert 429 in process.statuses
        assert process.num_starts == 2


def asked_directly(server: Server, prompts: list, completions: list) -> tuple[Reward, ...]:
    with AlarmClient(server.url) as client:
        samples = [
            Sample(prompt=prompt, completion=completion)
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        return client.hierarchical_reward(samples, aspects="all").rewards


def near(rewards: tuple[Reward, ...]) -> object:
    return logged([reward.reward for reward in rewards])


def test_trl_trains_with_blocking_and_async_rewards(server: Server, tmp_path) -> None:
    found = run_in("trl", "run_trl.py", server.url, tmp_path)
    completions = [each[-1]["content"] for each in found["completions"]]
    expected = near(asked_directly(server, found["prompts"], completions))
    assert found["rewards"] == {"blocking": expected, "awaited": expected}
    assert len(found["history"]) == 3
    for entry in found["history"]:
        assert entry["blocking/failed"] == entry["awaited/failed"] == 0.0
        assert entry["rewards/blocking/mean"] == logged(entry["rewards/awaited/mean"])
        for part in ("holistic", "admitted", "failed", "factuality", "relevance"):
            assert math.isfinite(entry[f"blocking/{part}"])


@pytest.mark.parametrize("policy", ["group_mean", "none", "0"])
def test_trl_without_a_server_stops_under_every_failure_policy(tmp_path, policy) -> None:
    dead = "http://127.0.0.1:9"
    given = {"ALARM_CONNECT_TIMEOUT": "1", "ALARM_ON_FAILURE": policy}
    with pytest.raises(AssertionError, match="no ALaRM server has answered there"):
        run_in("trl", "run_trl.py", dead, tmp_path, **given)


def test_verl_managers_place_rewards_on_the_right_tokens(server: Server, tmp_path) -> None:
    found = run_in("verl", "run_verl.py", server.url, tmp_path)
    texts = near(asked_directly(server, [PROMPT] * 2, ANSWERS))
    chats = near(asked_directly(server, [CHAT] * 2, ANSWERS))
    assert found["naive"] == texts
    assert found["together"] == logged(found["naive"] * 16)
    if isinstance(server, Process):  # the other takes one request at a time
        assert found["samples_a_batch"] > 2
    assert found["legacy_naive"] == texts
    assert found["ours"] == chats
    assert found["naive_extra"]["alarm_failed"] == 0.0
    for name in ("dense", "legacy_ours", "by_ray"):
        assert [sum(row) for row in found[name]] == chats
        for row, length in zip(found[name], found["lengths"], strict=True):
            assert row[length - 1] != 0.0
            assert not any(row[length:])
    assert all(
        not any(row[: length - 1])
        for row, length in zip(found["by_ray"], found["lengths"], strict=True)
    )
    assert any(
        any(row[: length - 1]) for row, length in zip(found["dense"], found["lengths"], strict=True)
    )
    assert {"alarm_factuality", "alarm_relevance", "alarm_holistic"} < set(found["by_ray_keys"])


def test_ms_swift_loads_the_plugin_by_path_and_trains(server: Server, tmp_path) -> None:
    names = {"ALARM_ASPECT_NAMES": "factuality,relevance"}
    found = run_in("swift", "run_swift.py", server.url, tmp_path, **names)
    rewards = asked_directly(server, [CHAT] * 2, ANSWERS)
    assert [row[0] for row in found["rewards"]] == near(rewards)
    factuality = [reward.aspects["factuality"].reward for reward in rewards]
    assert [row[1] for row in found["rewards"]] == logged(factuality)
    assert [row[0] for row in found["again"]] == near(rewards)
    assert len(found["history"]) == 2
    for entry in found["history"]:
        assert entry["reward"] == logged(entry["rewards/alarm/mean"])
        assert 0.0 < entry["rewards/alarm_factuality/mean"] < 10.0


def test_openrlhf_loads_the_file_and_uses_its_rewards(server: Server, tmp_path) -> None:
    found = run_in("openrlhf", "run_openrlhf.py", server.url, tmp_path)
    rewards = asked_directly(server, [found[0]["prompt"]] * 2, ANSWERS)
    assert [output["reward"] for output in found] == near(rewards)
    for output, reward in zip(found, rewards, strict=True):
        assert output["score"] == logged(1 / (1 + math.exp(-reward.reward)))
        logs = output["extra_logs"]
        parts = [logs[f"alarm_{name}"] for name in ("holistic", "factuality", "relevance")]
        assert sum(parts) == logged(reward.reward)


def test_verifiers_task_is_scored_by_the_configured_reward(server: Server, tmp_path) -> None:
    found = run_in("verifiers", "run_verifiers.py", server.url, tmp_path)
    rewards = asked_directly(server, [CHAT] * 2, ANSWERS)
    assert [trace["reward"] for trace in found] == near(rewards)
    assert found[0]["metrics"]["alarm/admitted"] == float(rewards[0].admitted)


def test_skyrl_gym_environment_is_created_by_name(server: Server, tmp_path) -> None:
    found = run_in("skyrl", "run_skyrl.py", server.url, tmp_path)
    rewards = asked_directly(server, [CHAT] * 2, ANSWERS)
    assert [episode["reward"] for episode in found] == near(rewards)
    assert all(episode["done"] for episode in found)
    assert found[1]["metrics"]["alarm_admitted"] == float(rewards[1].admitted)


def test_areal_workflow_gets_rewards_of_its_episodes(server: Server, tmp_path) -> None:
    found = run_in("areal", "run_areal.py", server.url, tmp_path)
    rewards = asked_directly(server, [CHAT] * 2, ANSWERS)
    for way in ("workflow", "reward_fn"):
        assert [reward for (reward,) in found[way]] == near(rewards)


def test_skyrl_trainer_places_sample_and_token_rewards(server: Server, tmp_path) -> None:
    found = run_in("skyrl_train", "run_skyrl_generator.py", server.url, tmp_path)
    rewards = asked_directly(server, [CHAT] * 2, ANSWERS)
    for way in ("scalar", "dense"):
        rows = found[way]["rewards"]
        assert [sum(row) for row in rows] == near(rewards)
        assert [len(row) for row in rows] == found[way]["lengths"]
        assert all(row[-1] != 0.0 for row in rows)
    assert not any(any(row[:-1]) for row in found["scalar"]["rewards"])
    assert any(any(row[:-1]) for row in found["dense"]["rewards"])


def test_easyr1_manager_puts_rewards_on_the_last_tokens(server: Server, tmp_path) -> None:
    found = run_in("easyr1", "run_easyr1.py", server.url, tmp_path)
    rewards = asked_directly(server, [PROMPT] * 2, ANSWERS)
    for way in ("plain", "with_ends"):
        assert found[way]["rewards"] == near(rewards)
        assert found[way]["sums"] == near(rewards)
    z = [reward.holistic.normalized for reward in rewards]
    assert found["plain"]["metrics"]["alarm_holistic"] == logged(z)


def test_miles_uses_the_function_by_dotted_name_and_the_url(steady, tmp_path) -> None:
    found = run_in("miles", "run_miles.py", steady.url, tmp_path)
    rewards = asked_directly(steady, [CHAT] * 2, ANSWERS)
    for way in ("single", "batch", "keyed", "url"):
        assert found[way] == near(rewards)


def test_slime_dispatch_and_loss_receive_the_rewards(server: Server, tmp_path) -> None:
    found = run_in("slime", "run_slime.py", server.url, tmp_path)
    rewards = asked_directly(server, [CHAT] * 2, ANSWERS)
    for way in ("url", "single", "group", "keyed"):
        assert found[way] == near(rewards)
    dense = found["dense"]
    for way in ("raw", "sums", "first_returns"):
        assert dense[way] == near(rewards)
    assert dense["lengths"] == dense["response_lengths"]


def test_nemo_rl_rollout_calls_the_environment_created_by_name(steady, tmp_path) -> None:
    found = run_in("nemo_rl", "run_nemo_rl.py", steady.url, tmp_path)
    rewards = asked_directly(steady, [CHAT] * 2, ANSWERS)
    assert found["scalar"]["rewards"] == {"reward": near(rewards)}
    z = [reward.holistic.normalized for reward in rewards]
    assert found["multi"]["rewards"]["holistic"] == logged(z)
    for name in ("factuality", "relevance"):
        parts = [reward.aspects[name].reward for reward in rewards]
        assert found["multi"]["rewards"][name] == logged(parts)
    assert found["scalar"]["terminateds"] == [True, True]


def test_trlx_stores_rewards_with_rollouts(server: Server, tmp_path) -> None:
    found = run_in("trlx", "run_trlx.py", server.url, tmp_path)
    for way in ("scalar", "dense"):
        given = found[way]
        outputs = [output.replace("<|im_end|>", "") for output in given["outputs"]]
        rewards = asked_directly(server, given["prompts"], outputs)
        assert [sum(row) for row in given["stored"]] == near(rewards)
    assert all(not any(row[:-1]) for row in found["scalar"]["stored"])


def test_miles_behind_a_relay_survives_a_killed_server(steady, tmp_path) -> None:
    with (
        troubled() as ill,
        Relay(ill.url, "127.0.0.1", 0) as relay,
        ThreadPoolExecutor(1) as thread,
    ):
        thread.submit(relay.serve_forever)
        url = f"http://127.0.0.1:{relay.server_port}"
        found = run_in("miles", "run_miles.py", url, tmp_path)
        relay.shutdown()
        assert ill.num_starts == 2
    assert found["url"] == near(asked_directly(steady, [CHAT] * 2, ANSWERS))


def test_rllm_loads_the_evaluator_and_uses_its_output(server: Server, tmp_path) -> None:
    found = run_in("rllm", "run_rllm.py", server.url, tmp_path)
    rewards = asked_directly(server, [CHAT] * 2, ANSWERS)
    assert found["evaluator"] == near(rewards)
    assert found["workflow"] == near(rewards)
    assert found["captured"] == logged(rewards[0].reward)
    assert found["signals"]["alarm_admitted"] == float(rewards[0].admitted)


def test_open_instruct_builds_and_calls_the_verifier(server: Server, tmp_path) -> None:
    found = run_in("open_instruct", "run_open_instruct.py", server.url, tmp_path)
    rewards = asked_directly(server, [CHAT] * 2, ANSWERS)
    assert found["scores"] == near(rewards)
    assert found["mean"] == logged(sum(found["scores"]) / 2)


def test_nemo_gym_agent_reads_the_reward_of_its_resources_server(steady, tmp_path) -> None:
    found = run_in("nemo_gym", "run_nemo_gym.py", steady.url, tmp_path)
    rewards = asked_directly(steady, [CHAT] * 2, ANSWERS)
    assert [one["reward"] for one in found] == near(rewards)
    for one in found:
        assert sum(one["reward_components"].values()) == logged(one["reward"])
        assert one["expected_answer"] == "Austen"


# What an answer says is its score; what says none fails. A policy of random weights says none, so
# the scores of a group are then taken in turns.
ANSWERED = """
from itertools import cycle

turns = cycle([5, None, 7, 6])


def reward(sample):
    text = sample.completion_text
    return float(text) if text.lstrip("-").isdigit() else turned(text)


def turned(text):
    score = None if text == "fail" else next(turns)
    if score is None:
        raise ValueError("no score")
    return float(score)
"""


@pytest.fixture
def failing(tmp_path) -> Iterator[Process]:
    """Serve a recipe that fails one sample of a group of four."""
    (tmp_path / "answered.py").write_text(ANSWERED)
    recipe = tmp_path / "answered.toml"
    recipe.write_text(
        '[models.m]\nkind = "python"\nfunction = "answered:reward"\npath = "./"\nworkers = 1\n'
        '[holistic]\nmodel = "m"\n[hierarchy]\nrule = "holistic_only"\n'
    )
    with alarm_serve(recipe) as process, AlarmClient(process.url) as client:
        client.wait_ready(timeout=120)
        yield process


@pytest.fixture
def exact(tmp_path) -> Iterator[Process]:
    """Serve a recipe whose reward is 1 if the answer equals the sample's reference."""
    recipe = tmp_path / "exact.toml"
    recipe.write_text(
        '[models.m]\nkind = "exact-match"\n[holistic]\nmodel = "m"\n'
        '[hierarchy]\nrule = "holistic_only"\n'
    )
    with alarm_serve(recipe) as process, AlarmClient(process.url) as client:
        client.wait_ready(timeout=120)
        yield process


@pytest.mark.parametrize("trainer", ["openrlhf", "verifiers"])
def test_trainer_answer_column_is_sent_as_reference(exact: Process, tmp_path, trainer) -> None:
    found = run_in(trainer, f"run_{trainer}.py", exact.url, tmp_path)
    assert [one["reward"] for one in found] == [1.0, 0.0]


def test_trl_dataset_column_is_sent_as_reference(exact: Process, tmp_path) -> None:
    found = run_in("trl", "run_trl.py", exact.url, tmp_path)
    # Random weights never say it; without a reference the first call would have ended the run.
    assert found["rewards"] == {"blocking": [0.0] * 4, "awaited": [0.0] * 4}
    assert {entry["blocking/failed"] for entry in found["history"]} == {0.0}


def test_verl_ground_truth_is_sent_as_reference(exact: Process, tmp_path) -> None:
    found = run_in("verl", "run_verl.py", exact.url, tmp_path)
    for name in ("naive", "ours", "legacy_naive"):
        assert found[name] == [1.0, 0.0]
    assert [sum(row) for row in found["by_ray"]] == [1.0, 0.0]


@pytest.mark.parametrize("venv", ["trl", "trl_0.29", "trl_0.24", "trl_0.18"])
def test_trl_failed_sample_has_zero_advantage(failing: Process, tmp_path, venv) -> None:
    found = run_in(venv, "run_trl_failures.py", failing.url, tmp_path)
    assert found["advantages"]
    for name, advantages in found["advantages"].items():
        # 5, 7, 6 and their mean 6: over the deviation .8165, or against the others' mean.
        most = 4 / 3 if name.startswith("RLOO") else 1.2247
        expected = printed([-most, 0, 0, most])
        assert sorted(advantages) == expected, name
    is_old = int(found["version"].split(".")[0]) < 1
    assert found["none"] == "taken" or (is_old and "reward of 0 in TRL" in found["none"])
    assert is_old == (found["none"] != "taken")


def test_ms_swift_failed_sample_has_zero_advantage(failing: Process, tmp_path) -> None:
    found = run_in("swift", "run_swift_failures.py", failing.url, tmp_path)
    assert [row[0] for row in found["rewards"]] == [5, 6, 7, 6, -5, -6, -7, -6]
    expected = [-1.2247, 0, 1.2247, 0, 1.2247, 0, -1.2247, 0]
    assert found["advantages"] == printed(expected)
