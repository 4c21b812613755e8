"""slime's rollout of a group with a custom generation that calls a tool, and its token rewards."""

import asyncio
import copy
import json
import sys
from argparse import Namespace
from pathlib import Path

import torch
from policies import tool_tokenizer
from slime.rollout.sglang_rollout import generate_and_rm_group
from slime.utils.data import Dataset
from slime.utils.misc import load_function
from slime.utils.types import Sample
from texts_of_tools import AT_ONCE, CHAT, RESULT, TOOL, TURNS

MODULE = "alarm_client.trainers.slime"
TOKENS = tool_tokenizer()
BETWEEN = (
    f"\n<|im_start|>user\n<tool_response>\n{RESULT}\n</tool_response><|im_end|>\n"
    "<|im_start|>assistant\n"
)


async def generate(args: Namespace, sample: Sample, sampling_params: dict) -> Sample:
    """A custom generation: the first sample of a group calls the tool."""
    chat = {"add_generation_prompt": True, "tools": [TOOL], "tokenize": False}
    prompt = sample.prompt
    text = prompt if isinstance(prompt, str) else TOKENS.apply_chat_template(prompt, **chat)
    sample.tokens = TOKENS(text).input_ids
    pieces = [TURNS[0], BETWEEN, TURNS[1]] if sample.index == 0 else [AT_ONCE]
    for index, piece in enumerate(pieces):
        is_own = index % 2 == 0
        ids = TOKENS(f"{piece}<|im_end|>" if is_own else piece).input_ids
        sample.append_response_tokens(
            args,
            tokens=ids,
            log_probs=[-1.0] * len(ids) if is_own else None,
            trainable=is_own,
            text=TOKENS.decode(ids),
        )
    sample.status = Sample.Status.TRUNCATED if sample.index else Sample.Status.COMPLETED
    return sample


def arguments(function: str, is_group: bool) -> Namespace:
    return Namespace(
        hf_checkpoint="policy",
        custom_rm_path=f"{MODULE}.{function}",
        custom_generate_function_path="run_slime_tools.generate",
        group_rm=is_group,
        n_samples_per_prompt=2,
        reward_key=None,
        rm_type=None,
        partial_rollout=False,
        mask_offpolicy_in_partial_rollout=False,
        sglang_server_concurrency=2,
        rollout_num_engines=1,
        sglang_dp_size=None,
        rollout_temperature=1.0,
        rollout_top_p=1.0,
        rollout_top_k=-1,
        rollout_max_response_len=200,
        rollout_stop=None,
        rollout_stop_token_ids=None,
        rollout_skip_special_tokens=False,
        kl_coef=0.0,
        gamma=1.0,
        lambd=1.0,
    )


def rolled_out(function: str, is_group: bool, is_templated: bool) -> list[Sample]:
    """A group of two, from a row of slime's dataset."""
    dataset = Dataset(
        "rows.jsonl",
        TOKENS,
        None,
        None,
        prompt_key="messages",
        label_key="label",
        tool_key="tools",
        apply_chat_template=is_templated,
    )
    group = [copy.deepcopy(dataset[0]) for _ in range(2)]
    for index, one in enumerate(group):
        one.group_index, one.index = 0, index
    given = arguments(function, is_group)
    return asyncio.run(generate_and_rm_group(given, group, {}))


def main() -> dict[str, object]:
    TOKENS.save_pretrained("policy")
    row = {"messages": CHAT, "label": RESULT, "tools": [TOOL]}
    Path("rows.jsonl").write_text(json.dumps(row) + "\n")
    found = {
        name: [one.reward for one in rolled_out("custom_rm", is_group, is_templated)]
        for name, is_group, is_templated in (
            ("messages", False, False),
            ("templated", False, True),
            ("group", True, False),
        )
    }
    group = rolled_out("dense_rm", True, False)
    given = arguments("dense_rm", True)
    raw, rows = load_function(f"{MODULE}.post_process_rewards")(given, group)
    rollout = {"rewards": rows, "kl": [torch.zeros_like(row) for row in rows]}
    load_function(f"{MODULE}.token_level_advantages")(given, rollout)
    return {
        **found,
        "raw": raw,
        "dense": [row.tolist() for row in rows],
        "masks": [one.loss_mask for one in group],
        "first_returns": [float(row[0]) for row in rollout["returns"]],
    }


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(main()))
