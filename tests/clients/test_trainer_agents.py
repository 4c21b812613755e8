"""Turns of agents in the shapes of verl 0.9.1, SkyRL a956457, slime 624b824 and TRL 1.16."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch

from alarm_client.chat.templates import TEMPLATES
from alarm_client.token_offsets import PolicyTokens
from alarm_client.trainers import skyrl, slime, trl, verifiers
from alarm_client.trainers._dense import token_sample
from alarm_client.trainers._inputs import plain_samples
from alarm_client.trainers._turns import mask_by_template, turns_of
from alarm_client.trainers.verl import AlarmRewardManager, compute_score
from alarm_client.types import Sample

CHAT = [{"role": "user", "content": "Who?"}]
TOOL = {"type": "function", "function": {"name": "find"}}
PIECES = [
    (1, "<tool_call>find</tool_call><|im_end|>"),
    (0, "\n<|im_start|>user\n<tool_response>\nShe\n</tool_response><|im_end|>\n"),
    (0, "<|im_start|>assistant\n"),
    (1, "It was she.<|im_end|>"),
]
TURNS = [
    {"role": "assistant", "content": "<tool_call>find</tool_call>"},
    {"role": "tool", "content": "She"},
    {"role": "assistant", "content": "It was she."},
]


def policy_tokenizer():
    tokenizer = tiny.tokenizer(bos=False, eos=False)
    tokenizer.backend_tokenizer.pre_tokenizer.add_prefix_space = False
    tokenizer.eos_token = "<|im_end|>"
    return tokenizer


TOKENS = policy_tokenizer()


def encoded(pieces):
    """The ids of a response and its mask."""
    rows = [(is_own, TOKENS(text).input_ids) for is_own, text in pieces]
    return [one for _, ids in rows for one in ids], [own for own, ids in rows for _ in ids]


IDS, MASK = encoded(PIECES)
OPENING = TOKENS.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"]


def test_mask_by_template_is_that_of_trainers():
    assert mask_by_template(IDS, TOKENS, TEMPLATES["chatml"]) == MASK
    assert mask_by_template(encoded(PIECES[:1])[0], TOKENS, TEMPLATES["chatml"]) is None
    assert mask_by_template(IDS, TOKENS, None) is None


@pytest.mark.parametrize(
    ("template", "pieces"),
    [
        (
            "mistral",
            [
                (1, '[TOOL_CALLS] [{"name": "find"}]</s>'),
                (0, "[TOOL_RESULTS] She[/TOOL_RESULTS][TOOL_RESULTS] Her[/TOOL_RESULTS]"),
                (1, "It was she.</s>"),
            ],
        ),
        (
            "deepseek",
            [
                (1, "<｜tool▁call▁begin｜>find<｜tool▁call▁end｜><｜end▁of▁sentence｜>"),
                (0, "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>She<｜tool▁output▁end｜>\n"),
                (0, "<｜tool▁output▁begin｜>Her<｜tool▁output▁end｜><｜tool▁outputs▁end｜>"),
                (1, "It was she.<｜end▁of▁sentence｜>"),
            ],
        ),
        (
            "deepseek",  # V3.1 has no tokens around several results
            [
                (1, "<｜tool▁call▁begin｜>find<｜tool▁call▁end｜><｜end▁of▁sentence｜>"),
                (0, "<｜tool▁output▁begin｜>She<｜tool▁output▁end｜>"),
                (0, "<｜tool▁output▁begin｜>Her<｜tool▁output▁end｜>"),
                (1, "It was she.<｜end▁of▁sentence｜>"),
            ],
        ),
        (
            "gemma-4",
            [
                (1, "<|tool_call>call:find{}<tool_call|>"),
                (0, "<|tool_response>She<tool_response|><|tool_response>Her<tool_response|>"),
                (1, "It was she.<turn|>"),
            ],
        ),
    ],
)
def test_results_within_the_assistants_turn_are_not_the_policys(template, pieces):
    tokenizer = policy_tokenizer()
    markers = set(re.findall(r"<[^<>]+>|\[/?\w+\]", "".join(text for _, text in pieces)))
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(markers)})
    rows = [(own, tokenizer(text).input_ids) for own, text in pieces]
    ids, mask = [one for _, row in rows for one in row], [own for own, row in rows for _ in row]
    assert mask_by_template(ids, tokenizer, TEMPLATES[template]) == mask
    turns = turns_of(ids, mask, PolicyTokens(tokenizer), tokenizer, TEMPLATES[template])
    assert [one["role"] for one in turns.messages] == ["assistant", "tool", "tool", "assistant"]
    assert [one["content"] for one in turns.messages[1:]] == ["She", "Her", "It was she."]


@pytest.mark.parametrize("num_masked", [1, 2, 3])
def test_turns_of_a_resumed_rollout_are_those_of_the_whole_one(num_masked):
    mask = [0] * len(encoded(PIECES[:num_masked])[0])
    mask += MASK[len(mask) :]
    policy, template = PolicyTokens(TOKENS), TEMPLATES["chatml"]
    turns = turns_of(IDS, mask, policy, TOKENS, template)
    assert turns.messages == TURNS
    whole = turns_of(IDS, MASK, policy, TOKENS, template)
    assert turns.offsets == whole.offsets[-sum(mask) :]


def test_mask_by_template_keeps_headers_that_the_policy_writes():
    own = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|message|>Yes.<|end|>"
    result = "<|start|>functions.find to=assistant<|message|>She<|end|><|start|>assistant"
    ids, mask = encoded([(1, own), (0, result), (1, "<|message|>It was she.")])
    assert mask_by_template(ids, TOKENS, TEMPLATES["harmony"]) == mask


def harmony(text):
    """A response of gpt-oss whose markers are tokens of their own, and the ids of its prompt."""
    tokenizer = policy_tokenizer()
    markers = re.findall(r"<\|\w+\|>", HARMONY_CALL + HARMONY_ANSWER)
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(set(markers))})
    opening = tokenizer("<|start|>user<|message|>Who?<|end|><|start|>assistant").input_ids
    return tokenizer, tokenizer(text).input_ids, opening


HARMONY_CALL = "<|channel|>commentary to=functions.find<|message|>{}<|call|>"
HARMONY_ANSWER = (
    "<|channel|>analysis<|message|>Jane?<|end|><|start|>assistant<|channel|>final<|message|>"
    "It was she.<|return|>"
)


@pytest.mark.parametrize("has_prompt_ids", [True, False])
def test_token_sample_of_gpt_oss_is_the_answer_without_thoughts(has_prompt_ids):
    tokenizer, ids, opening = harmony(HARMONY_ANSWER)
    sample = token_sample(CHAT, ids, tokenizer, prompt_ids=opening if has_prompt_ids else None)
    assert sample.completion == "It was she."
    assert len(sample.token_offsets) == len(ids)
    answer = ids.index(tokenizer("final").input_ids[-1]) + 2
    assert set(sample.token_offsets[:answer]) == {(0, 0)}
    assert sample.token_offsets[answer][0] == 0
    assert sample.token_offsets[-2:] == [(10, 11), (11, 11)]
    (text,) = plain_samples([Sample(prompt=CHAT, completion=HARMONY_ANSWER)], None, "any")
    assert text.completion == sample.completion


@pytest.mark.parametrize(
    ("response", "completion"),
    [
        ("<|channel|>analysis<|message|>Jane?", "Jane?"),
        ("<|channel|>final<|message|>", ""),
        ("It was she.<|return|>", "It was she."),
        ("It was <|end|><|start|>assistant", "It was "),
        ("<|channel|>analysis<|message|>Jane?<|end|><|start|>assistant<|channel|>final", ""),
        ("<|channel|>analysis", ""),
    ],
)
def test_token_sample_of_gpt_oss_that_was_cut_off(response, completion):
    tokenizer, ids, opening = harmony(response)
    sample = token_sample(CHAT, ids, tokenizer, prompt_ids=opening)
    assert sample.completion == completion
    assert len(sample.token_offsets) == len(ids)
    assert all(0 <= start <= end <= len(completion) for start, end in sample.token_offsets)


def test_token_sample_of_gpt_oss_has_the_roles_and_the_thoughts_of_texts():
    told = "<|channel|>final<|message|>She.<|end|><|start|>functions.find to=assistant<|channel|>"
    told += "commentary<|message|>42<|end|>"
    tokenizer, ids, opening = harmony(told)
    (text,) = plain_samples([Sample(prompt=CHAT, completion=told)], None, "any")
    assert token_sample(CHAT, ids, tokenizer, prompt_ids=opening).completion == text.completion
    thinking = [*opening, *tokenizer("<|channel|>analysis<|message|>").input_ids]
    rest = "Jane?<|end|><|start|>assistant<|channel|>final<|message|>She."
    ids = tokenizer(rest).input_ids
    assert token_sample(CHAT, ids, tokenizer, prompt_ids=thinking).completion == "She."


def test_token_sample_with_an_id_of_a_label_that_was_left_out_names_it():
    with pytest.raises(ValueError, match=r"token_ids\[0\] must be a token id, got -100"):
        token_sample(CHAT, [-100, 3], TOKENS)


def test_turns_of_gpt_oss_with_tools_have_no_headers():
    result = "<|start|>functions.find to=assistant<|channel|>commentary<|message|>She<|end|>"
    result += "<|start|>assistant"
    tokenizer, call, opening = harmony(HARMONY_CALL)
    inserted, answer = tokenizer(result).input_ids, tokenizer(HARMONY_ANSWER).input_ids
    mask = [1] * len(call) + [0] * len(inserted) + [1] * len(answer)
    ids = [*call, *inserted, *answer]
    sample = token_sample(CHAT, ids, tokenizer, mask, prompt_ids=opening)
    assert sample.completion == [
        {"role": "assistant", "content": "{}"},
        {"role": "tool", "content": "She"},
        {"role": "assistant", "content": "It was she."},
    ]
    assert len(sample.token_offsets) == sum(mask)
    assert sample.token_offsets[-2:] == [(19, 20), (20, 20)]


def test_turns_of_a_thought_that_the_template_begins_has_its_tag():
    header = "<|im_start|>assistant\n<think>\n"
    ids, mask = encoded([*PIECES[:2], (0, header), (1, "Hm.</think>She.<|im_end|>")])
    turns = turns_of(ids, mask, PolicyTokens(TOKENS), TOKENS)
    text = "<think>\nHm.</think>She."
    assert turns.messages == [*TURNS[:2], {"role": "assistant", "content": text}]
    start = sum(len(turn["content"]) + 2 for turn in TURNS[:2])
    assert turns.offsets[sum(encoded(PIECES[:1])[1])][0] == start + len("<think>\n")
    assert turns.offsets[-1] == (start + len(text), start + len(text))


def test_turns_of_a_masked_end_of_a_reply_belong_to_it():
    ids, mask = encoded([(1, "It was"), (0, " she.<|im_end|>" + PIECES[1][1]), *PIECES[2:]])
    turns = turns_of(ids, mask, PolicyTokens(TOKENS), TOKENS, TEMPLATES["chatml"])
    assert turns.messages == [{"role": "assistant", "content": "It was she."}, *TURNS[1:]]


def test_token_sample_starts_with_what_its_prompt_began():
    ids = TOKENS("Hm.</think>She.<|im_end|>").input_ids
    opening = [*OPENING, *TOKENS("<think>\n").input_ids]
    sample = token_sample(CHAT, ids, TOKENS, prompt_ids=opening)
    assert sample.completion == "<think>\nHm.</think>She."
    assert sample.token_offsets[0][0] == len("<think>\n")


def find(title: str) -> str:
    """
    Finds an author.

    Args:
        title: of a novel
    """
    return title


class Library:
    """An environment of TRL."""

    def reset(self, **row):
        """Start."""

    def find(self, title: str) -> str:
        """
        Finds an author.

        Args:
            title: of a novel
        """
        return title


def test_trl_tools_are_functions_and_methods_of_environments(rewards):
    reward = trl.AlarmReward(tools=[find])
    completions = [[TURNS[2]], [TURNS[2]]]
    reward([CHAT] * 2, completions)
    reward([CHAT] * 2, completions, environments=[Library(), Library()])
    alone, together = rewards.bodies[0]["samples"][0], rewards.bodies[1]["samples"][0]
    names = [tool["function"]["name"] for tool in together["tools"]]
    assert [tool["function"]["name"] for tool in alone["tools"]] == ["find"]
    assert names == ["find", "find"]


class Item:
    """An item of verl's DataProto, and the batch of it alone."""

    def __init__(self, **values):
        self.batch = {
            "prompts": torch.tensor(OPENING),
            "responses": torch.tensor(IDS),
            "attention_mask": torch.ones(len(OPENING) + len(IDS), dtype=torch.int64),
        }
        self.non_tensor_batch = {"raw_prompt": np.array(CHAT, dtype=object), **values}

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self


async def test_verl_agent_loop_without_a_mask_is_split_by_the_template(rewards):
    manager = AlarmRewardManager(tokenizer=TOKENS, group_size=2, tools=[TOOL])
    await manager.run_single(Item(__num_turns__=4, uid="u"))
    (sent,) = rewards.samples
    assert sent["completion"] == TURNS
    assert len(sent["token_offsets"]) == sum(MASK)
    assert (sent["tools"], sent["group"], sent["group_size"]) == ([TOOL], "u", 2)


async def test_verl_agent_loop_in_an_unknown_template_is_warned_of(rewards, caplog):
    item = Item(__num_turns__=4)
    item.batch["prompts"] = torch.tensor(TOKENS("Who?").input_ids)
    size = len(item.batch["prompts"]) + len(IDS)
    item.batch["attention_mask"] = torch.ones(size, dtype=torch.int64)
    for _ in range(2):
        await AlarmRewardManager(tokenizer=TOKENS).run_single(item)
    assert caplog.text.count("neither a response_mask nor a known chat template") == 1


async def test_verl_manager_reads_the_tools_of_the_agent_loop(rewards, monkeypatch):
    loaded = [SimpleNamespace(tool_schema=SimpleNamespace(model_dump=lambda **_: TOOL))]
    module = SimpleNamespace(load_function_tools_from_path=lambda path: loaded)
    monkeypatch.setitem(__import__("sys").modules, "verl.tools.function_tool", module)
    turns = {"multi_turn": {"function_tool_path": "tools.py"}}
    config = {"actor_rollout_ref": {"rollout": turns}}
    manager = AlarmRewardManager(config, TOKENS)
    for info in ({}, {"tool_selection": ["other"]}):
        await manager.run_single(Item(extra_info=info))
    assert [sent.get("tools") for sent in rewards.samples] == [[TOOL], None]


async def test_verl_function_reads_the_conversation_of_the_agent_loop(rewards, caplog):
    extra = {"raw_prompt": np.array(CHAT, dtype=object), "num_turns": np.int32(4)}
    await compute_score("d", "It was she.", "She", extra)
    assert rewards.samples[0]["prompt"] == CHAT
    assert "use AlarmRewardManager" in caplog.text


class Generator:
    """A generator of SkyRL that leaves what was cut off out of the loss."""

    async def generate(self, given):
        return {
            "response_ids": [IDS],
            "prompt_token_ids": [OPENING],
            "loss_masks": [[0] * len(IDS)],
            "stop_reasons": ["length"],
        }


async def test_skyrl_response_that_is_masked_whole_keeps_its_turns(rewards):
    output = await skyrl.AlarmGenerator(Generator(), TOKENS).generate({"prompts": [CHAT]})
    (sent,) = rewards.samples
    assert (sent["completion"], sent["finish_reason"]) == (TURNS, "length")
    assert not any(
        one for one, is_own in zip(output["rewards"][0], MASK, strict=True) if not is_own
    )


def sample_of_slime(**given):
    return SimpleNamespace(
        **{
            "prompt": CHAT,
            "response": "".join(text for _, text in PIECES),
            "tokens": [*OPENING, *IDS],
            "response_length": len(IDS),
            "loss_mask": MASK,
            "label": None,
            "group_index": 0,
            "metadata": {"tools": [TOOL]},
            **given,
        }
    )


@pytest.fixture
def args(monkeypatch):
    monkeypatch.setattr(slime, "_tokenizer", lambda checkpoint: TOKENS)
    return SimpleNamespace(
        reward_key=None, n_samples_per_prompt=2, group_rm=False, hf_checkpoint="policy"
    )


async def test_slime_custom_rm_sends_turns_by_the_loss_mask(rewards, args):
    await slime.custom_rm(args, sample_of_slime())
    await slime.custom_rm(args, sample_of_slime(response=""))
    for sent in rewards.samples:
        assert sent["completion"] == TURNS
        assert sent["tools"] == [TOOL]
        assert "token_offsets" not in sent


async def test_slime_tools_in_a_templated_prompt_are_sent_once(rewards, args):
    prompt = '<|im_start|>system\n{"name": "find"}<|im_end|>\n' + TOKENS.decode(OPENING)
    await slime.custom_rm(args, sample_of_slime(prompt=prompt))
    (sent,) = rewards.samples
    assert "tools" not in sent
    assert sent["prompt"] == [{"role": "system", "content": '{"name": "find"}'}, *CHAT]


async def test_slime_list_without_group_rm_is_one_rollout(rewards, args):
    await slime.custom_rm(args, [sample_of_slime(), sample_of_slime()])
    args.group_rm = True
    await slime.custom_rm(args, [sample_of_slime(), sample_of_slime()])
    assert [sent.get("group") for sent in rewards.samples] == [None, None, 0, 0]
    assert not any("group_size" in sent for sent in rewards.samples)


async def test_verifiers_scores_the_branch_of_the_root_agent(rewards):
    def branch(text, **given):
        reply = {"role": "assistant", "content": text}
        nodes = [(CHAT[0], False), (reply, True)]
        found = [SimpleNamespace(message=message, sampled=own) for message, own in nodes]
        return SimpleNamespace(nodes=found, tools=[], **given)

    for root in ("It was she.", None):
        trace = SimpleNamespace(
            branches=[branch("It was she."), branch("Sub."), branch("Lost.", trainable=False)],
            root_reply=root,
            record_metrics=lambda metrics: None,
        )
        await verifiers.reward(task=None, trace=trace)
    assert [sent["completion"] for sent in rewards.samples] == ["It was she.", "Sub."]
