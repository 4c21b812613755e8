"""Runs AReaL's RLVR workflow with a stand-in engine: ours, and AReaL's with our function."""

import asyncio
import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

from policies import tokenizer
from texts_of_policies import ANSWERS, PROMPT

TOKENS = tokenizer()


def load() -> tuple[type, type, type, Callable[[str], type]]:
    """Import the workflow without its package, which imports the libraries of every engine."""
    for name in ("areal", "areal.infra", "areal.engine", "areal.engine.fsdp_utils"):
        package = ModuleType(name)
        package.__path__ = list(find_spec(name).submodule_search_locations or ())
        sys.modules[name] = package
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, package)
    from areal.infra import workflow_context

    sys.modules["areal"].workflow_context = workflow_context
    from areal.api import ModelResponse
    from areal.api.cli_args import GenerationHyperparameters
    from areal.utils.dynamic_import import import_from_string
    from areal.workflow.rlvr import RLVRWorkflow

    return RLVRWorkflow, GenerationHyperparameters, ModelResponse, import_from_string


RLVRWorkflow, GenerationHyperparameters, ModelResponse, import_from_string = load()


class Engine:
    """Returns given ids like an inference engine."""

    def __init__(self, answer: str) -> None:
        self.ids = [*TOKENS(answer).input_ids, TOKENS.eos_token_id]

    async def agenerate(self, request: SimpleNamespace) -> object:
        size = len(self.ids)
        return ModelResponse(
            input_tokens=request.input_ids,
            output_tokens=self.ids,
            output_logprobs=[0.0] * size,
            output_versions=[0] * size,
            stop_reason="stop",
        )


async def rewards(workflow: RLVRWorkflow) -> list[list[float]]:
    row = {"messages": [{"role": "user", "content": PROMPT}], "answer": "Jane Austen"}
    episodes = [workflow.arun_episode(Engine(answer), row) for answer in ANSWERS]
    return [episode["rewards"].tolist() for episode in await asyncio.gather(*episodes)]


async def main() -> dict[str, list[list[float]]]:
    given = {"gconfig": GenerationHyperparameters(), "tokenizer": TOKENS}
    ours = import_from_string("alarm_client.trainers.areal.AlarmWorkflow")
    function = "alarm_client.trainers.areal.reward_fn"
    return {
        "workflow": await rewards(ours(**given)),
        "reward_fn": await rewards(RLVRWorkflow(reward_fn=function, **given)),
    }


if __name__ == "__main__":  # AReaL's worker processes may import this again
    Path(sys.argv[1]).write_text(json.dumps(asyncio.run(main())))
