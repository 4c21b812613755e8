"""One PPO rollout and optimizer step of trlx.train, with scalar and with token rewards."""

import json
import sys
from pathlib import Path

import trlx
from policies import tokenizer
from texts_of_policies import ANSWERS, PROMPT
from transformers import GPT2Config, GPT2LMHeadModel
from trlx.data.default_configs import default_ppo_config

from alarm_client.trainers.trlx import dense_reward_fn, reward_fn

TOKENS = tokenizer()
TOKENS.save_pretrained("policy")
GPT2LMHeadModel(
    GPT2Config(
        vocab_size=len(TOKENS),
        n_positions=512,
        n_embd=32,
        n_layer=2,
        n_head=2,
        tie_word_embeddings=False,
    )
).save_pretrained("policy", safe_serialization=False)  # trlx reads no safetensors
CONFIG = default_ppo_config().evolve(
    train={
        "seq_length": 300,
        "batch_size": 2,
        "epochs": 1,
        "total_steps": 1,
        "eval_interval": 1000,
        "checkpoint_interval": 1000,
        "save_best": False,
        "tracker": None,
        "checkpoint_dir": "run",
    },
    model={"model_path": "policy", "num_layers_unfrozen": -1},
    tokenizer={"tokenizer_path": "policy"},
    method={
        "num_rollouts": 2,
        "chunk_size": 2,
        "ppo_epochs": 1,
        "init_kl_coef": 0.0,
        "scale_reward": None,
        "cliprange_reward": 1000.0,
        "gen_kwargs": {"max_new_tokens": 12, "do_sample": True},
    },
)


def rollout(function: object) -> dict[str, object]:
    """Train one step, then roll out once more; what was asked, and the rewards that are stored."""
    calls: list[dict[str, object]] = []

    def noted(**given: object) -> object:
        calls.append({name: given[name] for name in ("prompts", "outputs")})
        return function(**given)  # type: ignore[operator]  # one of ours

    # trlx takes the prompt out of each row.
    rows = [{"prompt": PROMPT, "original_output": ANSWERS[0]} for _ in range(3)]
    trainer = trlx.train(reward_fn=noted, prompts=rows[:2], eval_prompts=rows[2:], config=CONFIG)
    trainer.store.clear_history()
    trainer.make_experience(2)
    return {**calls[-1], "stored": [one.rewards.tolist() for one in trainer.store.history]}


written = {"scalar": rollout(reward_fn), "dense": rollout(dense_reward_fn)}
Path(sys.argv[1]).write_text(json.dumps(written))
