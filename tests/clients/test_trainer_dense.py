"""Token rewards of trlx, SkyRL, slime, FineGrainedRLHF and ALaRM's TRL fork."""

import sys
from types import ModuleType, SimpleNamespace

import client_tokenizers
import pytest
import torch
from test_trainer_hooks import slime_sample
from tolerance import computed

from alarm_client.errors import SampleFailed
from alarm_client.trainers import alarm_trl, skyrl, slime, trlx
from alarm_client.trainers.fine_grained_rlhf import make_reward

TOKENIZER = client_tokenizers.byte_level()
END = TOKENIZER.eos_token_id
TEXTS = ["The", "The café's owner"]
IDS = [[*TOKENIZER(text).input_ids, END] for text in TEXTS]
LENGTHS = [len(row) for row in IDS]


def laid(text, length):
    """One on each token, and on the last what is left of the text's length."""
    return [1.0] * (length - 1) + [float(len(text) - (length - 1))]


ROWS = [laid(text, length) for text, length in zip(TEXTS, LENGTHS, strict=True)]


def trlx_call(function, **more):
    """As AcceleratePPOTrainer.make_experience: outputs end with the end token's text."""
    outputs = [text + "</s>" for text in TEXTS]
    return function(samples=outputs, prompts=["Q", "Q"], outputs=outputs, **more)


def test_trlx_reward_fn_returns_scalars(rewards):
    assert trlx_call(trlx.reward_fn, tokenizer=TOKENIZER, topic=["a", "b"]) == [3.0, 16.0]


@pytest.mark.parametrize("name", ["tokenizer", "model_tok"])
def test_trlx_dense_reward_fn_returns_one_reward_per_token(rewards, name):
    found = trlx_call(trlx.dense_reward_fn, **{name: TOKENIZER})
    assert [len(row) for row in found] == [
        len(TOKENIZER(text + "</s>").input_ids) for text in TEXTS
    ]
    assert found == ROWS


def test_trlx_dense_reward_fn_without_tokenizer_is_refused(rewards):
    with pytest.raises(ValueError, match="require the tokenizer"):
        trlx_call(trlx.dense_reward_fn)


def test_dense_failed_sample_has_failure_value_on_last_token(rewards, monkeypatch):
    rewards.bad = {"The"}
    with pytest.raises(SampleFailed):
        trlx_call(trlx.dense_reward_fn, tokenizer=TOKENIZER)
    monkeypatch.setenv("ALARM_ON_FAILURE", "-2")
    found = trlx_call(trlx.dense_reward_fn, tokenizer=TOKENIZER)
    assert found == [[0.0] * (LENGTHS[0] - 1) + [-2.0], ROWS[1]]


class Generator:
    async def generate(self, input_batch):
        return {"response_ids": IDS, "rewards": [0.0, 0.0], "loss_masks": "kept"}


async def test_skyrl_generator_rewards_match_response_lengths(rewards):
    generator = skyrl.AlarmGenerator(Generator(), TOKENIZER, recipe="mine")
    question = [{"role": "user", "content": "Q"}]
    output = await generator.generate({"prompts": [question, question], "env_classes": []})
    assert output["rewards"] == ROWS
    assert isinstance(output["rewards"][0], list)  # by which SkyRL tells them from scalars
    assert output["loss_masks"] == "kept"
    assert rewards.samples[0]["prompt"] == question


async def test_skyrl_generator_with_step_wise_outputs_is_refused(rewards):
    with pytest.raises(ValueError, match="1 prompts and 2 responses"):
        await skyrl.AlarmGenerator(Generator(), TOKENIZER).generate({"prompts": ["Q"]})


@pytest.fixture
def skyrl_environment(monkeypatch):
    """What SkyRL-Gym makes by a name after `register`, called with its arguments."""
    registered = {}
    gym = {
        "skyrl_gym": {},
        "skyrl_gym.envs": {
            "register": lambda id, entry_point, kwargs: registered.update(
                {id: (entry_point, kwargs)}
            )
        },
        "skyrl_gym.envs.base_text_env": {
            "BaseTextEnv": type("BaseTextEnv", (), {}),
            "BaseTextEnvStepOutput": dict,
        },
    }
    for name, members in gym.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)

    def make(**given):
        skyrl.register(**given)
        entry_point, kwargs = registered["alarm"]
        module, _, attribute = entry_point.partition(":")
        return getattr(sys.modules[module], attribute)(env_config={}, extras={}, **kwargs)

    skyrl._environment.cache_clear()
    yield make
    skyrl._environment.cache_clear()


def test_skyrl_environment_scores_one_turn(rewards, skyrl_environment):
    environment = skyrl_environment()
    prompt, info = environment.init([{"role": "user", "content": "Q"}])
    output = environment.step("four<|im_end|>")
    assert (output["reward"], output["done"], output["observations"]) == (4.0, True, [])
    assert output["metadata"]["alarm_fluency"] == environment.get_metrics()["alarm_fluency"] == 2.0
    assert (prompt, info) == ([{"role": "user", "content": "Q"}], {})


def test_skyrl_environment_with_dense_generator_sends_no_request(rewards, skyrl_environment):
    environment = skyrl_environment(is_judged=False)
    environment.init([{"role": "user", "content": "Q"}])
    output = environment.step("four<|im_end|>")
    assert (output["reward"], output["done"]) == (0.0, True)
    assert rewards.bodies == []


@pytest.fixture
def slime_samples(tmp_path):
    """What slime's rollout hands over, after `dense_rm` is asked through its checkpoint."""
    TOKENIZER.save_pretrained(tmp_path)
    args = SimpleNamespace(reward_key=None, hf_checkpoint=str(tmp_path), kl_coef=0.5, gamma=0.5)
    samples = [
        slime_sample(text, tokens=[5, 6, *row], response_length=len(row))
        for text, row in zip(TEXTS, IDS, strict=True)
    ]
    return args, samples


async def test_slime_hooks_pass_token_rewards_to_advantages(rewards, slime_samples):
    args, samples = slime_samples
    for sample in samples:
        sample.reward = await slime.dense_rm(args, sample)
    raw, dense = slime.post_process_rewards(args, samples)
    assert raw == [3.0, 16.0]
    assert [row.tolist() for row in dense] == ROWS
    # slime logs lists of tensors by torch.cat and anything else by sum(): tensors pass.
    assert torch.cat(dense).sum() == 19.0

    kl = [torch.ones(length) for length in LENGTHS]
    data = {"rewards": dense, "kl": kl, "values": None}
    slime.token_level_advantages(args, data)
    expected, following = [], 0.0
    for reward in reversed(ROWS[0]):
        following = reward - 0.5 + 0.5 * following
        expected.append(following)
    assert data["returns"][0].tolist() == computed(expected[::-1])
    assert torch.equal(data["advantages"][1], data["returns"][1])


async def test_slime_advantages_with_a_critic_use_slimes_gae(rewards, slime_samples, monkeypatch):
    args, _ = slime_samples
    args.lambd = 0.9
    given = {}

    def get_advantages_and_returns_batch(totals, responses, values, rewards_, gamma, lambd):
        given.update(rewards=rewards_, gamma=gamma, lambd=lambd)
        return ["advantages"], ["returns"]

    module = ModuleType("slime.utils.ppo_utils")
    module.get_advantages_and_returns_batch = get_advantages_and_returns_batch
    for name in ("slime", "slime.utils"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "slime.utils.ppo_utils", module)
    dense = [torch.tensor(row) for row in ROWS]
    data = {
        "rewards": dense,
        "kl": [torch.zeros(length) for length in LENGTHS],
        "values": [torch.zeros(length) for length in LENGTHS],
        "total_lengths": [length + 2 for length in LENGTHS],
        "response_lengths": LENGTHS,
    }
    slime.token_level_advantages(args, data)
    assert [row.tolist() for row in given["rewards"]] == ROWS
    assert (data["advantages"], data["returns"]) == (["advantages"], ["returns"])


async def test_slime_advantages_with_a_critic_work_without_slime(slime_samples, monkeypatch):
    args, _ = slime_samples
    args.gamma, args.lambd, args.kl_coef = 0.5, 0.5, 1.0
    for name in [name for name in sys.modules if name.partition(".")[0] == "slime"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "slime", None)  # to import it is an error
    data = {
        "rewards": [torch.tensor([1.0, 0.0, 4.0]), torch.tensor([])],
        "kl": [torch.tensor([0.0, 1.0, 0.0]), torch.tensor([])],
        "values": [torch.tensor([2.0, 4.0, 2.0]), torch.tensor([])],
    }
    slime.token_level_advantages(args, data)
    # deltas 1 + 2 - 2 = 1, 0 - 1 + 1 - 4 = -4, 4 - 2 = 2; then a quarter of what follows is added
    assert [row.tolist() for row in data["advantages"]] == [[0.125, -3.5, 2.0], []]
    assert [row.tolist() for row in data["returns"]] == [[2.125, 0.5, 4.0], []]


def test_slime_without_dense_rm_hook_error_names_it(slime_samples):
    args, samples = slime_samples
    with pytest.raises(ValueError, match=r"is --custom-rm-path .*slime\.dense_rm"):
        slime.post_process_rewards(args, samples)


def test_slime_token_rewards_with_context_parallelism_are_refused(slime_samples):
    args, _ = slime_samples
    data = {"rewards": [torch.ones(4)], "kl": [torch.zeros(2)]}
    with pytest.raises(ValueError, match="require --context-parallel-size 1"):
        slime.token_level_advantages(args, data)


@pytest.fixture
def fine_grained(monkeypatch):
    """The reward of FineGrainedRLHF's PPOTrainer, over its own base class, and a call of it."""
    module = ModuleType("fgrlhf.reward")
    module.BasicReward = type("BasicReward", (), {"kl_penalize_reward": lambda self, results: None})
    monkeypatch.setitem(sys.modules, "fgrlhf", ModuleType("fgrlhf"))
    monkeypatch.setitem(sys.modules, "fgrlhf.reward", module)
    width = max(LENGTHS)
    call = {
        "prompts_input_ids": torch.tensor([[0, *TOKENIZER("Hi").input_ids[:2]]] * 2),
        "prompts_attention_mask": torch.tensor([[0, 1, 1]] * 2),
        "generated_input_ids": torch.tensor([row + [0] * (width - len(row)) for row in IDS]),
        "generated_attention_mask": torch.tensor([[1] * n + [0] * (width - n) for n in LENGTHS]),
        "generated_texts": TEXTS,
    }
    return make_reward(TOKENIZER, kl_coef=0.3), call


def test_fine_grained_rlhf_rewards_match_mask_lengths(rewards, fine_grained):
    reward, call = fine_grained
    assert reward.get_reward(**call, metadata=[{"prompt": "Q"}] * 2) == {"rewards/raw": ROWS}
    assert rewards.samples[0]["prompt"] == "Q"
    reward.get_reward(**call, metadata=[{}, {}])
    assert rewards.samples[2]["prompt"] == TOKENIZER.decode(TOKENIZER("Hi").input_ids[:2])
    assert reward.kl_coef == 0.3
    reward.kl_penalize_reward({})  # of its own base class


def test_fine_grained_rlhf_eval_metrics_are_rewards(rewards, fine_grained):
    reward, call = fine_grained
    found = reward.eval_metrics(**call, metadata=[{"prompt": "Q"}] * 2)
    assert found["eval/rewards"] == [3.0, 16.0]
    assert found["eval/alarm_fluency"] == [1.5, 8.0]
    names = list(found)
    rows = [[0, "in", "out", *(found[name][index] for name in names)] for index in range(2)]
    table = SimpleNamespace(columns=["step", "inputs", "outputs", *names], data=rows)
    assert reward.aggregate_metrics(table, names)["eval/rewards"] == 9.5


START = 0  # the decoder's start token, as T5 has it
RESPONSES = [torch.tensor([START, *row]) for row in IDS]


class PPOTrainer:
    """The arithmetic of the fork's padding, mask and rewards, for an encoder-decoder policy."""

    model = None
    current_device = "cpu"

    def prepare_model_inputs(self, queries, responses):
        width = max(map(len, responses))
        mask = [[1] * len(row) + [0] * (width - len(row)) for row in responses]
        return {"decoder_attention_mask": torch.tensor(mask)}

    def batched_forward_pass(self, model, queries, responses, inputs):
        attention = inputs["decoder_attention_mask"]
        masks = torch.zeros_like(attention)
        masks[:, :-1] = attention[:, 1:]
        for row, length in enumerate(attention.sum(dim=1).tolist()):
            masks[row, :1] = 0
            masks[row, length - 1 :] = 0
        logprobs = torch.zeros(attention.shape[0], attention.shape[1] - 1)
        return logprobs, None, logprobs, masks[:, :-1]

    def compute_rewards(self, scores, logprobs, ref_logprobs, masks):
        width = logprobs.shape[1]
        rows = [torch.cat((torch.zeros(width - len(score)), score)) for score in scores]
        return torch.stack(rows), torch.zeros_like(logprobs)


def test_alarm_trl_scores_omit_the_start_token(rewards):
    scores = alarm_trl.token_scores(["Q", "Q"], RESPONSES, TOKENIZER)
    assert [score.tolist() for score in scores] == ROWS
    assert all(score.dim() == 1 for score in scores)


def test_alarm_trl_too_short_weight_penalizes_short_responses(rewards):
    responses = [torch.tensor([START, END]), RESPONSES[1]]
    scores = alarm_trl.token_scores(["Q", "Q"], responses, TOKENIZER, too_short_weight=5.0)
    assert [score.tolist() for score in scores] == [[-50.0], ROWS[1]]
    assert alarm_trl.token_scores(["Q"], responses[:1], TOKENIZER)[0].tolist() == [0.0]


def test_alarm_trl_placed_scores_have_batch_width():
    scores = [torch.tensor(row) for row in ROWS]
    placed = alarm_trl.place(scores)
    assert [len(row) for row in placed] == [max(LENGTHS)] * 2
    assert placed[0].tolist() == ROWS[0] + [0.0] * (LENGTHS[1] - LENGTHS[0])
    assert len(alarm_trl.place(scores, width=40)[0]) == 40


def test_alarm_trl_unplaced_scores_lose_last_rewards():
    found = alarm_trl.check_trainer(PPOTrainer(), RESPONSES, RESPONSES)
    assert [one.survives for one in found["as they are"]] == [False, True]
    assert [one.survives for one in found["placed"]] == [True, True]
