"""Checks against a reference and rules of groups, rewarded through a server by every module.

Each trainer's call is made as its source makes it, with the dataset's columns where it puts them.
"""

import asyncio
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import client_tokenizers
import httpx
import numpy as np
import pytest
import torch
from processes import alarm_serve
from reward_server import RewardServer
from test_trainer_hooks import EnvironmentReturn, Trace, slime_sample
from test_trainer_verl import DataProto
from tolerance import computed, printed

from alarm_client.client import AlarmClient
from alarm_client.errors import SampleFailed
from alarm_client.trainers import (
    alarm_trl,
    areal,
    easyr1,
    fine_grained_rlhf,
    miles,
    ms_swift,
    nemo_rl,
    open_instruct,
    openrlhf,
    rllm,
    skyrl,
    slime,
    torchforge,
    trl,
    trlx,
    verifiers,
    verl,
)

# The holistic score is 1 where the answer is the reference, or where Paris is in it.
RULE = '[holistic]\nmodel = "m"\n[hierarchy]\nrule = "holistic_only"\n'
RECIPES = {
    "exact": f'[models.m]\nkind = "exact-match"\n{RULE}',
    "paris": f'[models.m]\nkind = "regex"\npattern = "Paris"\n{RULE}',
    "parts": """
[models.words]
kind = "length"
[models.polite]
kind = "regex"
pattern = "please"
[holistic]
model = "words"
weight = 5
mean = 2
[aspects.polite]
model = "polite"
weight = 2
[hierarchy]
rule = "hierarchical"
threshold = 0.5
""",
}
PROMPT = "Capital of France?"
CHAT = [{"role": "user", "content": PROMPT}]
ANSWERS = ["Paris", "Rome"]
REFERENCES = ["Paris", "Paris"]
TOKENIZER = client_tokenizers.byte_level()
IDS = [[*TOKENIZER(answer).input_ids, TOKENIZER.eos_token_id] for answer in ANSWERS]

Call = Callable[[], Sequence[float | None]]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("recipes")
    flags = []
    for name, recipe in RECIPES.items():
        (folder / f"{name}.toml").write_text(recipe)
        flags += ["--recipe", str(folder / f"{name}.toml")]
    with alarm_serve(flags[1], *flags[2:]) as process:
        with AlarmClient(process.url) as client:
            client.wait_ready(60)
        yield process.url


@pytest.fixture
def trainer_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainers' own types that a hook makes its answer of."""
    members: dict[str, dict[str, Any]] = {
        "nemo_rl.environments.interfaces": {"EnvironmentReturn": EnvironmentReturn},
        "skyrl_gym.envs.base_text_env": {"BaseTextEnvStepOutput": dict},
        "rllm.eval.types": {"EvalOutput": SimpleNamespace, "Signal": lambda *given: given},
        "rllm.rewards.reward_types": {"RewardOutput": SimpleNamespace},
        "open_instruct.ground_truth_utils": {
            "VerificationResult": SimpleNamespace,
            "VerifierFunction": type("VerifierFunction", (), {"__init__": lambda *_, **__: None}),
        },
    }
    parents = {name.rpartition(".")[0] for name in members}
    parents |= {name.partition(".")[0] for name in members}
    open_instruct._verifier.cache_clear()
    for name in (*parents, *members):
        module = ModuleType(name)
        vars(module).update(members.get(name, {}))
        monkeypatch.setitem(sys.modules, name, module)


def messages() -> list[list[dict[str, str]]]:
    return [[*CHAT, {"role": "assistant", "content": answer}] for answer in ANSWERS]


def call_trl() -> Any:
    return trl.AlarmReward()(**of_trl())


def call_trl_awaited() -> Any:
    return asyncio.run(trl.async_reward()(**of_trl()))


def of_trl() -> dict[str, Any]:
    return {
        "prompts": [CHAT] * 2,
        "completions": [turns[-1:] for turns in messages()],
        "completion_ids": IDS,
        "ground_truth": REFERENCES,
        "trainer_state": SimpleNamespace(global_step=1),
        "log_extra": lambda column, values: None,
        "log_metric": lambda name, value: None,
    }


def call_ms_swift() -> Any:
    row = {"prompt_id": ["prompt_0"] * 2, "request_id": ["a", "b"], "trainer_state": None}
    orm = ms_swift.AlarmORM(args=None)
    return asyncio.run(orm(ANSWERS, messages=messages(), solution=REFERENCES, **row))


def of_verl(answer: str) -> dict[str, Any]:
    return {
        "data_source": "capitals",
        "solution_str": answer,
        "ground_truth": "Paris",
        "extra_info": {"prompt": PROMPT, "index": 0},
    }


def call_verl() -> Any:
    return [asyncio.run(verl.compute_score(**of_verl(answer)))["score"] for answer in ANSWERS]


def call_verl_blocking() -> Any:
    return [verl.compute_score_blocking(**of_verl(answer))["score"] for answer in ANSWERS]


def verl_batch() -> DataProto:
    width = max(map(len, IDS))
    raw = np.empty(2, dtype=object)
    raw[:] = [CHAT, CHAT]
    return DataProto(
        {
            "prompts": torch.zeros(2, 1, dtype=torch.int64),
            "responses": torch.tensor([row + [0] * (width - len(row)) for row in IDS]),
            "attention_mask": torch.tensor(
                [[1] * (1 + len(row)) + [0] * (width - len(row)) for row in IDS]
            ),
        },
        {
            "raw_prompt": raw,
            "reward_model": np.array([{"ground_truth": "Paris", "style": "rule"}] * 2),
            "extra_info": np.array([{"index": 0}] * 2),
            "uid": np.array(["u", "u"]),
        },
    )


def call_verl_manager() -> Any:
    manager, data = verl.AlarmRewardManager(tokenizer=TOKENIZER), verl_batch()
    rows = [asyncio.run(manager.run_single(data[index : index + 1])) for index in range(2)]
    return [row["reward_score"] for row in rows]


def call_verl_manager_with_a_batch() -> Any:
    return verl.AlarmRewardManager(tokenizer=TOKENIZER)(verl_batch()).sum(dim=1).tolist()


def call_openrlhf() -> Any:
    found = [openrlhf.reward_func([PROMPT + one], [PROMPT], ["Paris"]) for one in ANSWERS]
    return [one["rewards"].item() for one in found]


ARGS = SimpleNamespace(reward_key=None)


def slime_samples() -> list[Any]:
    samples = [
        slime_sample(answer, tokens=[5, *ids], response_length=len(ids), group_index=3)
        for answer, ids in zip(ANSWERS, IDS, strict=True)
    ]
    for one in samples:
        one.prompt, one.label = PROMPT, "Paris"
    return samples


def call_slime() -> Any:
    return [asyncio.run(slime.custom_rm(ARGS, sample)) for sample in slime_samples()]


def call_slime_with_a_group() -> Any:
    return asyncio.run(slime.custom_rm(ARGS, slime_samples()))


def call_slime_dense_with_a_group(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(slime, "_tokenizer", lambda checkpoint: TOKENIZER)
    args, samples = SimpleNamespace(reward_key=None, hf_checkpoint=""), slime_samples()
    asyncio.run(slime.dense_rm(args, samples))
    return [sum(sample.metadata[slime.TOKEN_REWARDS]) for sample in samples]


def call_areal() -> Any:
    return [areal.reward_fn(PROMPT, one, [1], [2], answer="Paris", query_id="q") for one in ANSWERS]


def call_areal_awaited() -> Any:
    return [asyncio.run(areal.areward(PROMPT, one, [1], [2], answer="Paris")) for one in ANSWERS]


def call_nemo_rl() -> Any:
    metadata = [{"ground_truth": "Paris"}] * 2
    return nemo_rl.Environment({}).step(messages(), metadata).rewards.tolist()


def call_verifiers() -> Any:
    task = SimpleNamespace(data=SimpleNamespace(prompt=PROMPT, answer="Paris", idx=0))
    return [asyncio.run(verifiers.reward(task, Trace(*turns))) for turns in messages()]


def call_verifiers_rubric() -> Any:
    return [
        asyncio.run(verifiers.rubric_reward(CHAT, turns[-1:], answer="Paris", info={}))
        for turns in messages()
    ]


def call_verifiers_group() -> Any:
    completions = [turns[-1:] for turns in messages()]
    return asyncio.run(verifiers.group_reward([CHAT] * 2, completions, answers=REFERENCES))


def call_trlx() -> Any:
    return trlx.reward_fn(ANSWERS, [PROMPT] * 2, ANSWERS, original_output=REFERENCES)


def call_trlx_dense() -> Any:
    rows = trlx.dense_reward_fn(
        ANSWERS, [PROMPT] * 2, ANSWERS, tokenizer=TOKENIZER, original_output=REFERENCES
    )
    return [sum(row) for row in rows]


EXTRAS = {"reward_spec": {"method": "rule", "ground_truth": "Paris"}, "data_source": "capitals"}


def call_skyrl() -> Any:
    found = []
    for answer in ANSWERS:
        environment = skyrl.Environment(env_config={}, extras=EXTRAS)
        environment.init(CHAT)
        found.append(environment.step(answer)["reward"])
    return found


class Generator:
    async def generate(self, input_batch: Any) -> dict[str, Any]:
        return {"response_ids": IDS, "rewards": [0.0, 0.0]}


def call_skyrl_generator() -> Any:
    batch = {"prompts": [CHAT] * 2, "env_classes": ["alarm"] * 2, "env_extras": [EXTRAS] * 2}
    output = asyncio.run(skyrl.AlarmGenerator(Generator(), TOKENIZER).generate(batch))
    return [sum(row) for row in output["rewards"]]


def call_alarm_trl() -> Any:
    responses = [torch.tensor([0, *row]) for row in IDS]
    columns = {"reference": REFERENCES}
    scores = alarm_trl.token_scores([PROMPT] * 2, responses, TOKENIZER, columns=columns)
    return [score.sum().item() for score in scores]


def call_fine_grained_rlhf() -> Any:
    width = max(map(len, IDS))
    reward = fine_grained_rlhf.TokenRewards(TOKENIZER, kl_coef=0.3)
    found = reward.get_reward(
        prompts_input_ids=torch.zeros(2, 1),
        prompts_attention_mask=torch.ones(2, 1),
        generated_input_ids=torch.tensor([row + [0] * (width - len(row)) for row in IDS]),
        generated_attention_mask=torch.tensor(
            [[1] * len(row) + [0] * (width - len(row)) for row in IDS]
        ),
        generated_texts=ANSWERS,
        metadata=[{"prompt": PROMPT, "reference": "Paris"}] * 2,
    )
    return [sum(row) for row in found["rewards/raw"]]


def call_easyr1() -> Any:
    truth = [{"prompt": PROMPT, "answer": reference} for reference in REFERENCES]
    inputs = [
        {"response": answer, "response_length": 2, "ground_truth": one}
        for answer, one in zip(ANSWERS, [truth[0], json.dumps(truth[1])], strict=True)
    ]
    return [one["overall"] for one in easyr1.compute_score(inputs)]


def of_miles() -> list[Any]:
    given = zip(ANSWERS, REFERENCES, strict=True)
    shared = {"prompt": CHAT, "metadata": {}, "group_index": 3}
    return [SimpleNamespace(response=text, label=label, **shared) for text, label in given]


def call_miles_with_a_batch() -> Any:
    return asyncio.run(miles.custom_rm(SimpleNamespace(reward_key=None), of_miles()))


def call_miles() -> Any:
    args = SimpleNamespace(reward_key=None)
    return [asyncio.run(miles.custom_rm(args, sample)) for sample in of_miles()]


def call_rllm() -> Any:
    task = SimpleNamespace(instruction=PROMPT, metadata={"answer": "Paris"})
    found = []
    for turns in messages():
        step = SimpleNamespace(chat_completions=turns, output=None, model_response="")
        trajectory = SimpleNamespace(steps=[step], output=None)
        episode = SimpleNamespace(trajectories=[trajectory], artifacts={})
        found.append(rllm.AlarmEvaluator().evaluate(task, episode).reward)
    return found


def call_rllm_workflow() -> Any:
    task = {"question": PROMPT, "ground_truth": "Paris"}
    return [rllm.AlarmReward()(task, answer).reward for answer in ANSWERS]


def call_open_instruct() -> Any:
    given = zip(ANSWERS, REFERENCES, strict=True)
    verifier = open_instruct.AlarmVerifier()
    return [verifier([1], text, label, f"user: {PROMPT}").score for text, label in given]


def call_torchforge() -> Any:
    reward = torchforge.AlarmReward()
    return [reward(PROMPT, text, target) for text, target in zip(ANSWERS, REFERENCES, strict=True)]


BY_BATCH: list[Call] = [
    call_easyr1,
    call_miles_with_a_batch,
    call_trl,
    call_trl_awaited,
    call_ms_swift,
    call_verl_manager_with_a_batch,
    call_slime_with_a_group,
    call_nemo_rl,
    call_verifiers_group,
    call_trlx,
    call_trlx_dense,
    call_skyrl_generator,
]
BY_SAMPLE: list[Call] = [
    call_miles,
    call_rllm,
    call_rllm_workflow,
    call_open_instruct,
    call_torchforge,
    call_verl,
    call_verl_blocking,
    call_verl_manager,
    call_openrlhf,
    call_slime,
    call_areal,
    call_areal_awaited,
    call_verifiers,
    call_verifiers_rubric,
    call_skyrl,
]
WITHOUT_GROUPS: list[Call] = [call_alarm_trl, call_fine_grained_rlhf]


def named(call: Call) -> str:
    return call.__name__.removeprefix("call_")


@pytest.fixture
def asked(
    url: str, sources: None, trainer_modules: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Sets what a trainer's environment says of the server, its recipe and its rule."""

    def ask(recipe: str, rule: str = "holistic_only", **settings: str) -> None:
        monkeypatch.setenv("ALARM_URL", url)
        monkeypatch.setenv("ALARM_RECIPE", recipe)
        monkeypatch.setenv("ALARM_OVERRIDES", json.dumps({"rule": rule}))
        for name, value in settings.items():
            monkeypatch.setenv(f"ALARM_{name.upper()}", value)

    return ask


@pytest.mark.parametrize("call", [*BY_BATCH, *BY_SAMPLE, *WITHOUT_GROUPS], ids=named)
def test_exact_match_reads_reference_from_trainers_column(
    asked: Callable[..., None], call: Call
) -> None:
    asked("exact")
    assert call() == [1.0, 0.0]


@pytest.mark.parametrize("call", [*BY_BATCH, *BY_SAMPLE, *WITHOUT_GROUPS], ids=named)
def test_par_reads_reference_from_trainers_column(asked: Callable[..., None], call: Call) -> None:
    asked("paris", "par")
    # s(1 - 1) and s(0 - 1)
    assert call() == [printed(0.5, digits=4), printed(0.2689, digits=4)]


@pytest.mark.parametrize("call", BY_BATCH, ids=named)
def test_gdpo_groups_samples_by_prompt(asked: Callable[..., None], call: Call) -> None:
    asked("paris", "gdpo")
    # Mean 0 and deviation 1 of two: half the square root of two either way.
    assert call() == [printed(0.7071, digits=3), printed(-0.7071, digits=3)]


def test_slime_dense_samples_have_their_group(
    asked: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked("paris", "gdpo")
    found = call_slime_dense_with_a_group(monkeypatch)
    assert found == [printed(0.7071, digits=3), printed(-0.7071, digits=3)]


@pytest.mark.parametrize("call", BY_SAMPLE, ids=named)
def test_gdpo_with_one_sample_per_call_is_refused_with_reason(
    asked: Callable[..., None], call: Call
) -> None:
    asked("paris", "gdpo")
    with pytest.raises(
        SampleFailed, match=r"sends one sample at a time|must contain all completions"
    ):
        call()


def test_group_is_the_trainers_own_id_where_it_passes_one(
    rewards: RewardServer, trainer_modules: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    trajectories = [SimpleNamespace(instance_id=uid, repetition_id=0) for uid in "ab"]
    batch = {"prompts": [CHAT] * 2, "trajectory_ids": trajectories}
    asyncio.run(skyrl.AlarmGenerator(Generator(), TOKENIZER).generate(batch))
    turns = [one[-1:] for one in messages()]
    states = [{"example_id": 7}, {"example_id": 8}]
    asyncio.run(verifiers.group_reward([CHAT] * 2, turns, states=states))
    assert [one["group"] for one in rewards.samples] == ["a", "b", 7, 8]
    monkeypatch.setenv("ALARM_GROUP_SIZE", "2")
    data = SimpleNamespace(prompt=PROMPT, idx=7)
    for trace in messages():
        asyncio.run(verifiers.reward(SimpleNamespace(data=data), Trace(*trace)))
    asyncio.run(verifiers.rubric_reward(CHAT, turns[0], state={"example_id": 8}))
    first, second, other = (one["group"] for one in rewards.samples[4:])
    assert first == second != other


@pytest.mark.parametrize("call", [*BY_BATCH, *BY_SAMPLE], ids=named)
def test_missing_reference_error_names_the_setting(asked: Callable[..., None], call: Call) -> None:
    asked("exact", on_failure="raise", fields="context=no_such_column")
    with pytest.raises(ValueError, match=r"fields.context .*'no_such_column'.*; it has \["):
        call()


def test_missing_reference_without_column_says_what_to_set(asked: Callable[..., None]) -> None:
    asked("exact")
    with pytest.raises(SampleFailed, match=r"\{reference\}.*ALARM_FIELDS=reference=COLUMN"):
        trl.AlarmReward()(prompts=["Q"] * 2, completions=["a", "b"], gold=["a", "b"])
    reward = trl.AlarmReward(fields={"reference": "gold"})
    assert reward(prompts=["Q"] * 2, completions=["a", "b"], gold=["a", "c"]) == [1.0, 0.0]


def test_openrlhf_file_returns_the_same_as_its_url(
    asked: Callable[..., None], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked("parts")
    monkeypatch.delenv("ALARM_OVERRIDES")
    answers = ["please do so", "no"]  # z = 1 and -1
    query = {"query": [f"Q: {one}" for one in answers], "prompts": ["Q: "] * 2, "labels": ["", ""]}
    by_url = httpx.post(f"{url}/compat/openrlhf/parts", json=query).json()
    by_file = openrlhf.reward_func(query["query"], query["prompts"], query["labels"])
    assert by_file["rewards"].tolist() == computed(by_url["rewards"])
    assert by_file["scores"].tolist() == computed(by_url["scores"])
    for name in ("holistic", "polite", "admitted"):
        logged = by_file["extra_logs"][f"alarm_{name}"].tolist()
        assert logged == computed(by_url["extra_logs"][name])
    assert by_file["rewards"].tolist() == printed([6.4621, -5], digits=4)  # 5 + 2 * 0.73106
    assert by_file["extra_logs"]["alarm_polite"].tolist() == printed([1.4621, 0], digits=4)
    assert by_file["scores"].tolist() == printed([0.9984, 0.0067], digits=4)


def test_openrlhf_logs_follow_overrides(
    asked: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked("parts", "weighted_sum")
    found = openrlhf.reward_func(["Q: no"], ["Q: "], None)
    # 5 * -1 + 2 * s(0)
    assert found["rewards"].tolist() == [-4]
    assert found["extra_logs"]["alarm_polite"].tolist() == [1]
    weights = {"rule": "weighted_sum", "holistic_weight": 1, "weights": {"polite": 4}}
    monkeypatch.setenv("ALARM_OVERRIDES", json.dumps(weights))
    found = openrlhf.reward_func(["Q: no"], ["Q: "], None)
    assert found["rewards"].tolist() == [1]
    assert found["extra_logs"]["alarm_holistic"].tolist() == [-1]
    assert found["extra_logs"]["alarm_polite"].tolist() == [2]
