"""Runs SkyRL's generator with our entry points, and its trainer's placement of rewards."""

import asyncio
import json
import sys
from pathlib import Path
from types import SimpleNamespace

from policies import tokenizer
from skyrl.train.config import SkyRLTrainConfig
from skyrl.train.generators.base import BatchMetadata, TrajectoryID
from skyrl.train.trainer import RayPPOTrainer
from skyrl_gym.envs import deregister
from texts_of_policies import ANSWERS, PROMPT

from alarm_client.trainers.skyrl import register
from alarm_client.trainers.skyrl_main import experiment

TOKENS = tokenizer()
CHAT = [{"role": "user", "content": PROMPT}]
CONFIG = SkyRLTrainConfig.from_cli_overrides(
    ["environment.env_class=alarm", "generator.batched=false", "generator.max_turns=1"]
)


class Engine:
    """Returns given ids like inference engines."""

    async def generate(self, given: dict, **_: object) -> dict[str, object]:
        answers = [
            ANSWERS[int(str(session).rpartition("_")[2])] for session in given["session_ids"]
        ]
        ids = [[*TOKENS(answer).input_ids, TOKENS.eos_token_id] for answer in answers]
        texts = [f"{answer}{TOKENS.eos_token}" for answer in answers]
        return {"responses": texts, "response_ids": ids, "stop_reasons": ["stop"] * len(ids)}

    async def finish_session(self, session: object) -> None:
        """Do nothing: no state is kept for a session."""


def rollout(is_dense: bool) -> dict[str, object]:
    register("alarm", is_judged=not is_dense)
    kind = experiment(is_dense)
    generator = kind.get_generator(SimpleNamespace(), CONFIG, TOKENS, Engine())
    batch = {
        "prompts": [CHAT] * 2,
        "env_classes": ["alarm"] * 2,
        "env_extras": [{}, {}],
        "sampling_params": None,
        "trajectory_ids": [TrajectoryID("u", index) for index in range(2)],
        "batch_metadata": BatchMetadata(0, "train"),
    }
    output = asyncio.run(generator.generate(batch))
    trainer = SimpleNamespace(cfg=CONFIG, all_metrics={})
    placed, _ = RayPPOTrainer.postprocess_generator_output(trainer, output, ["u", "u"])
    deregister("alarm")
    return {
        "rewards": placed["rewards"],
        "lengths": [len(ids) for ids in placed["response_ids"]],
        "mean": trainer.all_metrics["reward/avg_raw_reward"],
    }


Path(sys.argv[1]).write_text(json.dumps({"scalar": rollout(False), "dense": rollout(True)}))
