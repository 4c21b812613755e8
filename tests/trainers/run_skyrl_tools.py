"""SkyRL's generator on an environment with a tool, in our AlarmGenerator."""

import asyncio
import json
import sys
from pathlib import Path
from types import SimpleNamespace

from policies import tool_tokenizer
from skyrl.train.config import SkyRLTrainConfig
from skyrl.train.generators.base import BatchMetadata, TrajectoryID
from skyrl.train.trainer import RayPPOTrainer
from skyrl_gym.envs import register
from skyrl_gym.envs.base_text_env import BaseTextEnv, BaseTextEnvStepOutput
from texts_of_tools import AT_ONCE, CHAT, RESULT, TOOL, TURNS

from alarm_client.trainers.skyrl_main import experiment

TOKENS = tool_tokenizer()


class Library(BaseTextEnv):
    """An environment that answers a call of its tool, and ends at any other action."""

    def __init__(self, env_config: object = None, extras: object = None) -> None:
        super().__init__()

    def step(self, action: str) -> BaseTextEnvStepOutput:
        """Answer."""
        is_call = "<tool_call>" in action
        seen = [{"role": "tool", "content": RESULT}] if is_call else []
        return BaseTextEnvStepOutput(observations=seen, reward=0.0, done=not is_call, metadata={})


class Engine:
    """Returns given ids like inference engines: the first trajectory calls the tool."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self.turns = {"u_0": list(TURNS), "u_1": [AT_ONCE]}

    async def generate(self, given: dict, **_: object) -> dict[str, object]:
        texts = [self.turns[str(session)].pop(0) for session in given["session_ids"]]
        ids = [[*TOKENS(text).input_ids, TOKENS.eos_token_id] for text in texts]
        ended = [f"{text}{TOKENS.eos_token}" for text in texts]
        return {"responses": ended, "response_ids": ids, "stop_reasons": [self.reason] * len(ids)}

    async def finish_session(self, session: object) -> None:
        """Do nothing: no state is kept for a session."""


def rollout(reason: str, *overrides: str) -> dict[str, object]:
    given = ["environment.env_class=library", "generator.batched=false", "generator.max_turns=3"]
    config = SkyRLTrainConfig.from_cli_overrides([*given, *overrides])
    kind = experiment(is_dense=True)
    generator = kind.get_generator(SimpleNamespace(), config, TOKENS, Engine(reason))
    output = asyncio.run(
        generator.generate(
            {
                "prompts": [CHAT] * 2,
                "env_classes": ["library"] * 2,
                "env_extras": [{"tools": [TOOL]}, {"tools": [TOOL]}],
                "sampling_params": None,
                "trajectory_ids": [TrajectoryID("u", index) for index in range(2)],
                "batch_metadata": BatchMetadata(0, "train"),
            }
        )
    )
    trainer = SimpleNamespace(cfg=config, all_metrics={})
    placed, _ = RayPPOTrainer.postprocess_generator_output(trainer, output, ["u", "u"])
    return {
        "rewards": placed["rewards"],
        "masks": placed["loss_masks"],
        "responses": [TOKENS.decode(ids) for ids in placed["response_ids"]],
    }


if __name__ == "__main__":
    register(id="library", entry_point="run_skyrl_tools:Library")
    cut = rollout("length", "generator.apply_overlong_filtering=true")
    Path(sys.argv[1]).write_text(json.dumps({"whole": rollout("stop"), "cut": cut}))
