"""Runs ms-swift's reward computation with the packaged plugin, then two training steps."""

import json
import subprocess
import sys
from pathlib import Path

import torch
from policies import tokenizer
from swift.rewards import orms
from swift.rl_core.data import GRPOSample
from swift.rl_core.grpo_algorithm import compute_rewards_per_func
from swift.utils import import_external_file
from texts_of_policies import ANSWERS, PROMPT
from transformers import Qwen2Config, Qwen2ForCausalLM

from alarm_client.trainers.__main__ import FILES

import_external_file(str(FILES / "alarm_ms_swift.py"))
functions = [orms[name](args=None) for name in ("alarm", "alarm_factuality")]
samples = [
    GRPOSample(
        messages=[{"role": "user", "content": PROMPT}, {"role": "assistant", "content": answer}]
    )
    for answer in ANSWERS
]
tables = [
    compute_rewards_per_func(samples, functions, [None, None], torch.device("cpu"))
    for _ in range(2)  # a new event loop each time
]


def train() -> list[dict[str, float]]:
    """Run `swift rlhf --rlhf_type grpo` like a user; return its log."""
    tokens = tokenizer()
    tokens.save_pretrained("model")
    Qwen2ForCausalLM(
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
    ).save_pretrained("model")
    row = json.dumps({"messages": [{"role": "user", "content": PROMPT}]})
    Path("data.jsonl").write_text("\n".join([row] * 16))
    flags = f"""
        --external_plugins {FILES / "alarm_ms_swift.py"} --reward_funcs alarm alarm_factuality
        --reward_weights 1 0 --model model --model_type qwen2 --template chatml
        --dataset data.jsonl --tuner_type full --torch_dtype float32 --num_generations 4
        --per_device_train_batch_size 4 --max_completion_length 12 --max_steps 2
        --logging_steps 1 --save_strategy no --report_to none --use_vllm false
        --load_from_cache_file false --dataset_num_proc 1 --output_dir out
    """
    command = [sys.executable, "-m", "swift.cli.rlhf", "--rlhf_type", "grpo", *flags.split()]
    subprocess.run(command, check=True)
    (log,) = Path("out").rglob("logging.jsonl")
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    return [entry for entry in entries if "reward" in entry]


Path(sys.argv[1]).write_text(
    json.dumps({"rewards": tables[0].tolist(), "again": tables[1].tolist(), "history": train()})
)
