"""verl's agent loop with a tool, and its reward worker with our manager, without Ray."""

import asyncio
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import verl
from hydra import compose, initialize_config_dir
from policies import tool_tokenizer
from tensordict import TensorDict
from texts_of_tools import AT_ONCE, CHAT, TURNS
from transformers import Qwen3Config
from verl import DataProto
from verl.experimental.agent_loop.agent_loop import AgentLoopWorker
from verl.experimental.reward_loop.reward_loop import RewardLoopWorker
from verl.workers.rollout.replica import TokenOutput

TOKENS = tool_tokenizer()
FUNCTION = """
from verl.tools.function_tool import function_tool
from texts_of_tools import find_author as found


@function_tool
def find_author(title: str) -> str:
    \"\"\"Finds the author of a novel.

    Args:
        title: its title
    \"\"\"
    return found(title)
"""


class Engine:
    """Returns given ids like an inference engine: the first rollout calls the tool."""

    def __init__(self) -> None:
        self.turns: dict[str, list[str]] = {}

    async def generate(self, request_id: str, **_: object) -> TokenOutput:
        texts = [list(TURNS), [AT_ONCE]]
        turns = self.turns.setdefault(request_id, texts[len(self.turns) % 2])
        ids = [*TOKENS(turns.pop(0)).input_ids, TOKENS.eos_token_id]
        return TokenOutput(token_ids=ids, stop_reason="completed")


def config(*overrides: str) -> object:
    """verl's own configuration with what a user sets."""
    folder = str(Path(verl.__file__).parent / "trainer" / "config")
    given = [
        f"actor_rollout_ref.model.path={os.getcwd()}",
        "actor_rollout_ref.rollout.name=vllm",
        "actor_rollout_ref.rollout.n=2",
        "actor_rollout_ref.rollout.multi_turn.format=hermes",
        f"actor_rollout_ref.rollout.multi_turn.function_tool_path={os.getcwd()}/function.py",
        "actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent",
        "data.max_prompt_length=256",
        "data.max_response_length=160",
        "reward.num_workers=1",
        *overrides,
    ]
    with initialize_config_dir(folder, version_base=None):
        return compose("ppo_trainer", overrides=given)


def prompts() -> DataProto:
    """Two rollouts of one prompt, as the trainer repeats it for its agent loop."""
    raw = np.empty(2, dtype=object)
    raw[:] = [CHAT, CHAT]
    return DataProto(
        TensorDict({"dummy": torch.zeros(2, 1)}, batch_size=2),
        {
            "raw_prompt": raw,
            "uid": np.array(["u", "u"], dtype=object),
            "data_source": np.array(["d", "d"], dtype=object),
            "reward_model": np.array([{"ground_truth": "Jane Austen"}] * 2, dtype=object),
            "extra_info": np.array([{"index": 0} for _ in range(2)], dtype=object),
        },
        {"validate": False},
    )


def rolled_out(*overrides: str) -> DataProto:
    """The batch of verl's agent loop, scored by its reward worker in this process."""
    given = config(*overrides)
    scored = SimpleNamespace(remote=RewardLoopWorker(given).compute_score)
    handles = [SimpleNamespace(compute_score=scored)]
    worker = AgentLoopWorker(given, Engine(), reward_loop_worker_handles=handles)
    return asyncio.get_event_loop().run_until_complete(worker.generate_sequences(prompts()))


TOKENS.save_pretrained(os.getcwd())
Qwen3Config(vocab_size=len(TOKENS), architectures=["Qwen3ForCausalLM"]).save_pretrained(os.getcwd())
Path("function.py").write_text(FUNCTION)
asyncio.set_event_loop(asyncio.new_event_loop())
ours = rolled_out(
    "reward.reward_manager.name=AlarmRewardManager",
    "reward.reward_manager.source=importlib",
    "reward.reward_manager.module.path=pkg://alarm_client.trainers.verl",
    "+reward.reward_kwargs.group_size=2",
)
naive = rolled_out(
    "reward.custom_reward_function.path=pkg://alarm_client.trainers.verl",
    "reward.custom_reward_function.name=compute_score",
)
Path(sys.argv[1]).write_text(
    json.dumps(
        {
            "ours": ours.batch["rm_scores"].tolist(),
            "naive": naive.batch["rm_scores"].sum(dim=1).tolist(),
            "responses": [
                TOKENS.decode(row[mask.bool()])
                for row, mask in zip(
                    ours.batch["responses"], ours.batch["attention_mask"][:, 256:], strict=True
                )
            ],
            "masks": ours.batch["response_mask"].tolist(),
        }
    )
)
