"""Runs three steps of GRPOTrainer with a blocking and an async reward."""

import json
import sys
from pathlib import Path

from datasets import Dataset
from policies import tokenizer
from texts_of_policies import ANSWERS, PROMPT
from transformers import Qwen2Config, Qwen2ForCausalLM, set_seed
from trl import GRPOConfig, GRPOTrainer

from alarm_client.trainers.trl import AlarmReward, async_reward

set_seed(0)
policy_tokens = tokenizer()
policy = Qwen2ForCausalLM(
    Qwen2Config(
        vocab_size=len(policy_tokens),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=policy_tokens.pad_token_id,
        eos_token_id=policy_tokens.eos_token_id,
    )
)
trainer = GRPOTrainer(
    model=policy,
    processing_class=policy_tokens,
    reward_funcs=[AlarmReward("blocking"), async_reward("awaited")],
    train_dataset=Dataset.from_list(
        [{"prompt": [{"role": "user", "content": PROMPT}], "solution": ANSWERS[0]}] * 8
    ),
    args=GRPOConfig(
        output_dir="run",
        max_steps=3,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=12,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
    ),
)
trainer.train()
last = {name: list(values) for name, values in trainer._logs.items() if name != "rewards"}
Path(sys.argv[1]).write_text(
    json.dumps(
        {
            "history": [entry for entry in trainer.state.log_history if "reward" in entry],
            "prompts": last["prompt"][-4:],
            "completions": last["completion"][-4:],
            "rewards": {name: list(v)[-4:] for name, v in trainer._logs["rewards"].items()},
        }
    )
)
