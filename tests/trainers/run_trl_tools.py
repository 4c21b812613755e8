"""Trains with TRL's tool-calling loop a policy that calls a tool, and then answers."""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from policies import tool_tokenizer
from texts_of_tools import AT_ONCE, CHAT, RESULT, TURNS, find_author
from transformers import Qwen2Config, Qwen2ForCausalLM, set_seed
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import qwen3_chat_template

from alarm_client.trainers.trl import AlarmReward, async_reward

set_seed(0)
TOKENS = tool_tokenizer(qwen3_chat_template)
SEEN = []


def overfitted() -> Qwen2ForCausalLM:
    """A policy that has learned both ways to answer by heart."""
    config = Qwen2Config(
        vocab_size=len(TOKENS),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=TOKENS.pad_token_id,
        eos_token_id=TOKENS.eos_token_id,
    )
    policy = Qwen2ForCausalLM(config)
    head = TOKENS.apply_chat_template(
        CHAT, tools=[find_author], add_generation_prompt=True, tokenize=False
    )
    result = (
        f"<|im_end|>\n<|im_start|>user\n<tool_response>\n{RESULT}\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    texts = [f"{head}{TURNS[0]}{result}{TURNS[1]}<|im_end|>", f"{head}{AT_ONCE}<|im_end|>"]
    rows = [TOKENS(text, return_tensors="pt").input_ids for text in texts]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    for _ in range(250):
        calling, at_once = (policy(input_ids=row, labels=row).loss for row in rows)
        loss = 3 * calling + at_once  # it is to call more often than not
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return policy


def seen(prompts: list, completions: list, **columns: object) -> list[float]:
    """A reward of 0 that notes what TRL passes."""
    ids = columns["completion_ids"]
    SEEN.extend(
        {"prompt": prompt, "completion": completion, "num_tokens": len(row)}
        for prompt, completion, row in zip(prompts, completions, ids, strict=True)
    )
    return [0.0] * len(prompts)


trainer = GRPOTrainer(
    model=overfitted(),
    processing_class=TOKENS,
    reward_funcs=[
        AlarmReward("blocking", tools=[find_author], max_completion_tokens=200),
        async_reward("awaited", tools=[find_author], max_completion_tokens=200),
        seen,
    ],
    tools=[find_author],
    train_dataset=Dataset.from_list([{"prompt": CHAT}] * 8),
    args=GRPOConfig(
        output_dir="run",
        max_steps=2,
        learning_rate=1e-6,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=200,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
    ),
)
trainer.train()
Path(sys.argv[1]).write_text(
    json.dumps(
        {
            "history": [entry for entry in trainer.state.log_history if "reward" in entry],
            "seen": SEEN,
            "rewards": {name: list(v)[-4:] for name, v in trainer._logs["rewards"].items()},
        }
    )
)
