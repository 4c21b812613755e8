"""Runs OpenRLHF's SingleTurnAgentExecutor with a stand-in engine and the packaged file."""

import asyncio
import json
import sys
from pathlib import Path
from types import SimpleNamespace

from openrlhf.utils.agent import SingleTurnAgentExecutor
from policies import tokenizer
from texts_of_policies import ANSWERS, PROMPT

from alarm_client.trainers.__main__ import FILES

TOKENS = tokenizer()


class Engine:
    """Returns given ids like an inference engine."""

    def __init__(self, answer: str) -> None:
        self.ids = [*TOKENS(answer).input_ids, TOKENS.eos_token_id]

    async def generate(self, prompt_ids: list[int], params: object, **_: object) -> object:
        output = SimpleNamespace(token_ids=self.ids, finish_reason="stop", logprobs=None)
        return SimpleNamespace(outputs=[output])


async def main() -> list[dict[str, object]]:
    url = str(FILES / "alarm_openrlhf.py")
    executor = SingleTurnAgentExecutor(url)
    params = SimpleNamespace(max_tokens=64, logprobs=None)
    templated = TOKENS.apply_chat_template(
        [{"role": "user", "content": PROMPT}], tokenize=False, add_generation_prompt=True
    )
    outputs = await asyncio.gather(
        *(
            executor.execute(templated, ANSWERS[0], params, 4096, TOKENS, Engine(answer))
            for answer in ANSWERS
        )
    )
    return [
        {
            "prompt": templated,
            "reward": float(output["reward"]),
            "score": float(output["scores"]),
            "extra_logs": {name: float(value) for name, value in output["extra_logs"].items()},
        }
        for output in outputs
    ]


Path(sys.argv[1]).write_text(json.dumps(asyncio.run(main())))
