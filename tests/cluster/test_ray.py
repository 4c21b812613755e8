"""Models on a real Ray cluster; requires `alarm-service[ray]`: `pytest -m slow tests/cluster`."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from processes import recipe_of
from replica_processes import pids_of, pids_of_actors
from tiny import Checkpoint
from tolerance import computed

from alarm_models.recipe.loader import load_recipe
from alarm_service.api.app import create_app
from alarm_service.engine.recipe_manager import RecipeSources
from alarm_service.settings import Settings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(590),
    pytest.mark.filterwarnings("default"),  # Ray's own
]

PATIENCE_S = 120
PROMPT = "The quick brown fox jumps over the lazy dog. " * 8
COMPLETIONS = ["It does.", "It does not.", "Foxes sleep at noon.", "Who knows?"]


@pytest.fixture
def recipe(llama: Checkpoint, tmp_path: Path) -> Path:
    file = tmp_path / "tiny.toml"
    file.write_text(recipe_of(llama.folder))
    return file


@asynccontextmanager
async def serving(
    recipe: Path, load: Any = None, *, revision: str | None = None, **more: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """Serve the routes in this process with two replicas on the cluster, for one test.

    A reload reads the recipe's file again.
    """
    revision = revision or uuid4().hex
    from alarm_service.ray.model import RayModelLoader

    settings = Settings(
        **{"ray": True, "device": "cpu", "replicas": 2, "cpus_per_replica": 0.1, **more}
    )
    on_cluster = RayModelLoader(settings, revision=revision, load=load)
    loaded = load_recipe(str(recipe))
    sources = RecipeSources({loaded.name: str(recipe)}, (), None)
    app = create_app([loaded], settings, load=on_cluster, sources=sources)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=transport, base_url="http://localhost", timeout=PATIENCE_S
        ) as client,
    ):
        yield client
    while pids_of(f"alarm-{revision}-rm"):  # a model that nobody serves goes
        await asyncio.sleep(0.2)


async def score(client: httpx.AsyncClient, *samples: Mapping[str, str]) -> dict[str, Any]:
    answer = await client.post("/score", json={"samples": samples})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def sample(number: int) -> dict[str, str]:
    """Return a sample with one of four prompts and its own score."""
    return {"prompt": f"{number // 4} foxes? " * 9, "completion": f"{number} dogs, I am told."}


def alone(llama: Checkpoint, one: Mapping[str, str]) -> float:
    value: float = llama.plain_logits(
        f"Human: {one['prompt']} Assistant: {one['completion']}"
    ).item()
    return value


async def reason(client: httpx.AsyncClient, part: str) -> str:
    """Wait until the reason for not being ready contains a text; return it."""
    async with asyncio.timeout(PATIENCE_S):
        while part not in (told := (await client.get("/health/ready")).json()["reason"]):
            await asyncio.sleep(0.2)
    return str(told)


async def test_ray_scores_equal_those_of_the_model_alone(
    cluster: str, llama: Checkpoint, recipe: Path
) -> None:
    samples = [sample(number) for number in range(48)]
    async with serving(recipe) as client:
        answer = await score(client, *samples)
        models = (await client.get("/models")).json()["models"]
        broken = await score(client, {**samples[0], "token_offsets": [[0, 10_000]]}, samples[1])  # type: ignore[dict-item]
    wanted = [alone(llama, one) for one in samples]
    assert [one["score"] for one in answer["scores"]] == computed(wanted)
    assert models[0]["fingerprint"] == answer["fingerprint"]
    assert models[0]["device"] == "cpu"
    assert models[0]["read_token"] is not None
    assert any("the template has no turns" in note for note in models[0]["notes"])
    assert [one["error"] and one["error"]["code"] for one in broken["scores"]] == [
        "invalid_sample",
        None,
    ]


async def test_ray_group_shares_its_prompt_in_one_and_several_requests(
    cluster: str, llama: Checkpoint, recipe: Path
) -> None:
    group = [{"prompt": PROMPT, "completion": one} for one in COMPLETIONS]
    num_prompt = len(llama.tokenizer(f"Human: {PROMPT} Assistant:").input_ids)
    async with serving(recipe) as client:
        answers = [await score(client, one) for one in group]
        other = [{**one, "prompt": f"So: {PROMPT}"} for one in group]
        together = (await score(client, *other))["usage"]
    for answer in answers[1:]:
        usage = answer["usage"]
        assert usage["num_computed_tokens"] <= usage["num_tokens"] - num_prompt + 1
    assert together["num_computed_tokens"] <= together["num_tokens"] - 3 * (num_prompt - 1)


async def test_ray_killed_replica_fails_no_request(
    cluster: str, llama: Checkpoint, recipe: Path
) -> None:
    truth = {number: alone(llama, sample(number)) for number in range(64)}
    right = 0

    async def caller(client: httpx.AsyncClient, start: int, until: float) -> None:
        nonlocal right
        number = start
        while time.monotonic() < until:
            asked = [(number + step) % 64 for step in range(8)]
            answer = await score(client, *(sample(one) for one in asked))
            got = [one["score"] for one in answer["scores"]]
            assert got == computed([truth[one] for one in asked])
            right += len(got)
            number += 8

    async with serving(recipe, revision="killed") as client:
        await score(client, sample(0))
        pids = pids_of("alarm-killed-rm")
        assert len(pids) == 2
        until = time.monotonic() + 20
        calling = [asyncio.create_task(caller(client, 8 * one, until)) for one in range(6)]
        await asyncio.sleep(3)
        os.kill(pids[0], signal.SIGKILL)
        before = right
        await asyncio.gather(*calling)
        assert right > before
        while len(again := pids_of("alarm-killed-rm")) < 2:  # Serve puts another in its place
            await asyncio.sleep(0.5)
        assert set(again) != set(pids)


async def test_ray_disconnected_caller_is_removed_from_the_replicas(
    cluster: str, recipe: Path
) -> None:
    from ray import serve
    from sleeping import TOKENS_PER_S, sleepers

    words = "word " * TOKENS_PER_S  # a second each, so minutes on each of two replicas
    many = {"samples": [{"prompt": f"{one}", "completion": words} for one in range(400)]}
    async with serving(recipe, sleepers, revision="left") as client:
        await score(client, {"prompt": "?", "completion": "It is there."})
        answer = await client.post("/score", json=many, headers={"X-Request-Timeout-Ms": "4000"})
        assert answer.status_code == 504
        handle = serve.get_app_handle("alarm-left-rm")
        async with asyncio.timeout(100):
            while (await handle.record_autoscaling_stats.remote())["queued_tokens"]:
                await asyncio.sleep(0.1)  # for those that are on the device


async def test_ray_missing_checkpoint_is_reported(cluster: str, tmp_path: Path) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text(recipe_of(Path("/nowhere")))
    async with serving(file, replicas=1) as client:
        answer = await client.post("/score", json={"samples": [sample(0)]})
    assert answer.status_code == 503
    assert "'/nowhere' is not a folder" in answer.json()["error"]["message"]


async def test_ray_replicas_that_do_not_fit_are_reported_with_what_to_set(
    cluster: str, recipe: Path
) -> None:
    async with serving(recipe, cpus_per_replica=5) as client:
        told = await reason(client, "require")
    assert "2 replicas of 1 model require 5 CPUs each" in told
    assert "8 CPUs on 1 node has capacity for 1: set --replicas 1 or --cpus-per-replica 4" in told


async def test_ray_replicas_wait_for_used_resources_and_this_is_reported(
    cluster: str, recipe: Path
) -> None:
    import ray

    class Other:
        def is_there(self) -> bool:
            return True

    other = ray.remote(Other).options(num_cpus=7).remote()
    assert ray.get(other.is_there.remote())
    async with serving(recipe, cpus_per_replica=2) as client:
        try:
            told = await reason(client, "others use the cluster")
        finally:
            ray.kill(other)
        assert "2 replicas of 1 model require 2 CPUs each" in told
        await score(client, sample(0))  # once there is room


async def test_ray_sleeping_server_has_no_replicas_and_starts_no_process_per_wake(
    cluster: str, recipe: Path
) -> None:
    key = "a key of an administrator"
    revision = uuid4().hex
    async with serving(recipe, admin_key=(key,), revision=revision) as client:
        client.headers["authorization"] = f"Bearer {key}"
        await score(client, sample(0))
        owners = pids_of_actors("OwnerLiveness")  # of earlier tests too
        assert owners
        assert (await client.post("/admin/sleep")).status_code == 200
        assert not pids_of(f"alarm-{revision}-rm")
        assert (await client.post("/admin/wake")).status_code == 200
        await score(client, sample(0))
        assert sorted(pids_of_actors("OwnerLiveness")) == sorted(owners)


async def test_ray_lease_manager_that_restarts_gets_its_leases_again(
    cluster: str, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from alarm_service.ray import leases

    monkeypatch.setattr(leases, "_RENEWAL_S", 0.2)
    async with serving(recipe) as client:  # waits at its end until the model is deleted
        await score(client, sample(0))
        ray.kill(leases.lease_manager(), no_restart=False)
        await asyncio.sleep(5)
        await score(client, sample(0))


async def test_ray_queued_tokens_add_replicas(cluster: str, recipe: Path) -> None:
    from sleeping import TOKENS_PER_S, sleepers

    words = "word " * TOKENS_PER_S  # a second each
    many = {"samples": [{"prompt": f"{one}", "completion": words} for one in range(20)]}
    scaling = {"replicas": 1, "max_replicas": 2, "queued_tokens_per_replica": TOKENS_PER_S}
    async with serving(recipe, sleepers, revision="scaled", **scaling) as client:
        await score(client, {"prompt": "?", "completion": "It is there."})
        assert len(pids_of("alarm-scaled-rm")) == 1
        while len(pids_of("alarm-scaled-rm")) == 1:  # Ray thinks it over for a minute
            assert (await client.post("/score", json=many)).status_code == 200
        assert len(pids_of("alarm-scaled-rm")) == 2


async def test_ray_recipe_change_under_load_fails_no_request(
    cluster: str, llama: Checkpoint, recipe: Path
) -> None:
    key = {"Authorization": "Bearer operator"}
    one = sample(1)
    other = llama.plain_logits(f"User: {one['prompt']} Assistant: {one['completion']}").item()
    truths = [computed(alone(llama, one)), computed(other)]
    changed_text = recipe_of(llama.folder).replace("Human:", "User:")
    answers: list[dict[str, Any]] = []
    is_over = False

    async def caller(client: httpx.AsyncClient) -> None:
        while not is_over:
            answers.append(await score(client, one))

    async with serving(recipe, revision="changed", replicas=1, admin_key=("operator",)) as client:
        answers.append(await score(client, one))
        calling = [asyncio.create_task(caller(client)) for _ in range(4)]
        await asyncio.to_thread(recipe.write_text, changed_text)
        changed = await client.post("/admin/reload", json={}, headers=key)
        assert changed.status_code == 200, changed.text
        answers.append(await score(client, one))
        is_over = True
        await asyncio.gather(*calling)
    prints = [answers[0]["fingerprint"], answers[-1]["fingerprint"]]
    assert prints[0] != prints[1]
    for answer in answers:
        assert answer["scores"][0]["score"] == truths[prints.index(answer["fingerprint"])]
