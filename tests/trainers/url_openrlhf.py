"""Runs OpenRLHF's rollout with a stand-in engine against a given URL."""

import asyncio
import json
import sys
from types import SimpleNamespace
from typing import Any

from openrlhf.utils.agent import SingleTurnAgentExecutor
from policy import ANSWERS, QUESTION, policy_tokenizer


class Engine:
    """Returns the ids of a text and the end of a turn, like vLLM."""

    def __init__(self, ids: list[int]) -> None:
        self._ids = ids

    async def generate(self, *_: Any, **__: Any) -> Any:
        output = SimpleNamespace(token_ids=self._ids, finish_reason="stop", logprobs=None)
        return SimpleNamespace(outputs=[output])


async def main(url: str, num_rounds: str = "1") -> None:
    tokenizer = policy_tokenizer()
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], tokenize=False, add_generation_prompt=True
    )
    executor = SingleTurnAgentExecutor(url.split(","))
    sampling = SimpleNamespace(max_tokens=256, logprobs=None)
    rollouts = [
        executor.execute(
            prompt, "reference", sampling, 2048, tokenizer,
            Engine(tokenizer.encode(f"{answer}<|im_end|>", add_special_tokens=False)),
        )
        for answer in ANSWERS * int(num_rounds)
    ]  # fmt: skip
    found = await asyncio.gather(*rollouts)
    print(
        json.dumps(
            [{name: one[name] for name in ("reward", "scores", "extra_logs")} for one in found]
        )
    )


asyncio.run(main(*sys.argv[1:]))
