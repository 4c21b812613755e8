"""NeMo RL's own reward step: our environment made by its name as a Ray actor, asked by rollouts."""

import json
import sys
from pathlib import Path

import ray
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.environments.utils import create_env
from nemo_rl.experience.rollouts import calculate_rewards
from texts_of_policies import ANSWERS, PROMPT

from alarm_client.trainers.nemo_rl import register

register()
ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR")


def step(config: dict[str, object]) -> dict[str, object]:
    """The rewards of one batch, as a rollout asks for them."""
    batch = BatchedDataDict(
        {
            "message_log": [
                [
                    {"role": "user", "content": PROMPT},
                    {"role": "assistant", "content": answer},
                ]
                for answer in ANSWERS
            ],
            "task_name": ["alarm"] * len(ANSWERS),
            "extra_env_info": [{"ground_truth": ANSWERS[0]}] * len(ANSWERS),
        }
    )
    found = calculate_rewards(batch, {"alarm": create_env("alarm", config)})
    rewards = found.rewards
    named = rewards if isinstance(rewards, dict) else {"reward": rewards}
    return {
        "rewards": {name: values.tolist() for name, values in named.items()},
        "terminateds": found.terminateds.tolist(),
    }


written = {"scalar": step({}), "multi": step({"multi_reward": True})}
Path(sys.argv[1]).write_text(json.dumps(written))
