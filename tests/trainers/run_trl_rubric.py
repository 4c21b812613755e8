"""Trains a small policy by GRPO on the rewards of a server; writes what it said at each step."""

import json
import os
import sys
from pathlib import Path

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import GRPOConfig, GRPOTrainer

from alarm_client.trainers.trl import AlarmReward

NUM_STEPS, NUM_SAMPLES = 60, 32

set_seed(0)
words = ["<pad>", "<unk>", "<end>", "answer", *json.loads(os.environ["WORDS"])]
inner = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
inner.pre_tokenizer = pre_tokenizers.Whitespace()
policy_tokens = PreTrainedTokenizerFast(
    tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", eos_token="<end>"
)
policy = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=len(policy_tokens),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        pad_token_id=policy_tokens.pad_token_id,
        eos_token_id=policy_tokens.eos_token_id,
    )
)
said: list[str] = []


def record(completions: list[str], **_: object) -> list[float]:
    """Keep the completions; the reward has no weight."""
    said.extend(completions)
    return [0.0] * len(completions)


trainer = GRPOTrainer(
    model=policy,
    processing_class=policy_tokens,
    reward_funcs=[AlarmReward("alarm"), record],
    train_dataset=Dataset.from_list([{"prompt": "answer"}] * NUM_SAMPLES),
    args=GRPOConfig(
        output_dir="run",
        max_steps=NUM_STEPS,
        per_device_train_batch_size=NUM_SAMPLES,
        num_generations=8,
        max_completion_length=6,
        learning_rate=5e-3,
        lr_scheduler_type="constant",
        reward_weights=[1.0, 0.0],
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
    ),
)
trainer.train()
history = [entry for entry in trainer.state.log_history if "reward" in entry]
Path(sys.argv[1]).write_text(
    json.dumps(
        {
            "steps": [said[at : at + NUM_SAMPLES] for at in range(0, len(said), NUM_SAMPLES)],
            "rewards": [entry["rewards/alarm/mean"] for entry in history],
            "failed": [entry["alarm/failed"] for entry in history],
        }
    )
)
