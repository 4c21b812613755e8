"""A Ray Serve ingress with several replicas, changed under load."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from processes import recipe_of
from tiny import Checkpoint, sequence_classifier
from tolerance import computed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(590),
    pytest.mark.filterwarnings("default"),
]

SAMPLE = {"prompt": "The fox?", "completion": "The dog."}
TEXT = "Human: The fox? Assistant: The dog."


def deploy(checkpoint: Checkpoint, folder: Path) -> None:
    """Deploy the application like a RayService, with the current recipe."""
    from ray import serve

    from alarm_service.ray.ingress import build

    file = folder / "tiny.toml"
    file.write_text(recipe_of(checkpoint.folder))
    options: dict[str, Any] = {
        "recipe": [str(file)],
        "device": "cpu",
        "cpus_per_replica": 0.1,
        "published": "127.0.0.1",
    }
    serve.run(build(options), name="alarm", route_prefix="/")


def models() -> list[str]:
    """Return the applications of models."""
    from ray import serve

    return [name for name in serve.status().applications if name.startswith("alarm-")]


def remove() -> None:
    from ray import serve

    serve.delete("alarm")


async def test_ingress_recipe_change_fails_no_request(
    cluster: str, llama: Checkpoint, tmp_path: Path
) -> None:
    other = sequence_classifier("llama", tmp_path / "other", seed=1)
    old, new = (one.plain_logits(TEXT).item() for one in (llama, other))
    assert abs(old - new) > 0.1
    await asyncio.to_thread(deploy, llama, tmp_path)
    got: list[tuple[str, float]] = []
    done = asyncio.Event()

    async def ask(client: httpx.AsyncClient) -> None:
        answer = await client.post("/score", json={"samples": [SAMPLE]})
        assert answer.status_code == 200, answer.text
        got.append((answer.json()["fingerprint"], answer.json()["scores"][0]["score"]))

    async def caller(client: httpx.AsyncClient) -> None:
        while not done.is_set():
            await ask(client)
            await asyncio.sleep(0.05)  # cores are for those that start, too

    async with httpx.AsyncClient(base_url=cluster, timeout=60) as client:
        assert (await client.get("/health/ready")).json()["status"] == "ready"
        callers = [asyncio.create_task(caller(client)) for _ in range(3)]
        await asyncio.to_thread(deploy, other, tmp_path)
        while abs(got[-1][1] - new) > 1e-3:
            await asyncio.sleep(0.2)
        await asyncio.sleep(1)
        done.set()
        await asyncio.gather(*callers)
    assert got[0][1] == computed(old)
    assert got[-1][1] == computed(new)
    # A fingerprint and its scores go together, whichever of the two answered.
    assert {(one, round(value, 3)) for one, value in got} == {
        (got[0][0], round(old, 3)),
        (got[-1][0], round(new, 3)),
    }
    while len(await asyncio.to_thread(models)) > 1:  # the old model goes
        await asyncio.sleep(0.5)
    await asyncio.to_thread(remove)
    while await asyncio.to_thread(models):  # and with the last ingress the new one
        await asyncio.sleep(0.5)
