"""Many callers at once, over TCP: each gets its own scores."""

import asyncio
import gc
from pathlib import Path

import httpx
import pytest
import tiny
import torch
from processes import recipe_of
from served import app_of, samples
from standin import Words, recipe
from tcp import over_tcp
from tiny import Checkpoint
from tolerance import assert_computed

from alarm_models.recipe.loader import load_recipe
from alarm_service.api.app import create_app
from alarm_service.settings import Settings

NUM_CALLERS = 200
WORDS = " ".join(tiny.TEXT).split()


def completion(caller: int) -> str:
    """Return a text that is a caller's own, of 1 to 40 words."""
    return " ".join(WORDS[(caller * 7 + word) % len(WORDS)] for word in range(1 + caller % 40))


async def test_load_of_200_callers_returns_each_its_scores(
    llama: Checkpoint, tmp_path: Path
) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text(recipe_of(llama.folder))
    app = create_app([load_recipe(str(file))], Settings(device="cpu"))
    with over_tcp(app) as port:
        limits = httpx.Limits(max_connections=NUM_CALLERS)
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=120) as client:

            async def ask(caller: int) -> float:
                sample = {"prompt": "The fox?", "completion": completion(caller)}
                answer = await client.post("/hierarchical_reward", json={"samples": [sample]})
                reward: float = answer.json()["rewards"][0]["reward"]
                return reward

            rewards = await asyncio.gather(*map(ask, range(NUM_CALLERS)))
    alone = [
        llama.plain_logits(f"Human: The fox? Assistant: {completion(caller)}").item()
        for caller in range(NUM_CALLERS)
    ]
    assert_computed(torch.tensor(rewards), torch.tensor(alone))


@pytest.mark.slow
async def test_load_of_10000_requests_does_not_grow_memory() -> None:
    with over_tcp(app_of([recipe()], {"words": Words()}, log_level="error")) as port:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:

            async def ask(num_requests: int) -> None:
                for start in range(0, num_requests, 50):
                    texts = ["word " * (1 + at % 50) for at in range(start, start + 50)]
                    bodies = [{"samples": samples(text, "boom")} for text in texts]
                    await asyncio.gather(*(client.post("/score", json=body) for body in bodies))
                gc.collect()

            await ask(2_000)
            warm = _resident_mib()
            await ask(10_000)
            assert _resident_mib() - warm < 30


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20
