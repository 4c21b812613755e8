"""Runs one step of GRPOTrainer and RLOOTrainer on a group with a failed sample."""

import json
import sys
from pathlib import Path

import trl
from datasets import Dataset
from policies import tokenizer
from texts_of_policies import PROMPT
from transformers import Qwen2Config, Qwen2ForCausalLM, set_seed

from alarm_client.trainers.trl import AlarmReward


def constant(completions: list[object], **_: object) -> list[float]:
    """A second reward, as most runs have: of the format, or the length."""
    return [1.0] * len(completions)


def advantages(name: str, functions: list[object]) -> list[float]:
    """Train one step on one group of four; what the trainer gave each."""
    set_seed(0)
    tokens = tokenizer()
    # Under TRL before 1.0 a tokenizer's own inputs go to the policy as they are.
    tokens.model_input_names = ["input_ids", "attention_mask"]
    policy = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokens),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            pad_token_id=tokens.pad_token_id,
            eos_token_id=tokens.eos_token_id,
        )
    )
    config = getattr(trl, f"{name}Config")(
        output_dir="run",
        max_steps=1,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=12,
        beta=0.0,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
    )
    trainer = getattr(trl, f"{name}Trainer")(
        model=policy,
        processing_class=tokens,
        reward_funcs=functions,
        train_dataset=Dataset.from_list([{"prompt": PROMPT}] * 4),
        args=config,
    )
    found: list[float] = []
    score = trainer._generate_and_score_completions

    def noted(inputs: object) -> object:
        scored = score(inputs)
        found.extend(scored["advantages"].tolist())
        return scored

    trainer._generate_and_score_completions = noted
    trainer.train()
    return found


NAMES = [name for name in ("GRPO", "RLOO") if name == "GRPO" or trl.__version__ >= "0.24"]
try:
    none = AlarmReward(on_failure="none") and "taken"
except ValueError as error:
    none = str(error)
Path(sys.argv[1]).write_text(
    json.dumps(
        {
            "version": trl.__version__,
            "none": none,
            "advantages": {
                f"{name} {len(functions)}": advantages(name, functions)
                for name in NAMES
                for functions in ([AlarmReward()], [AlarmReward(), constant])
            },
        }
    )
)
