"""A group computes its shared prompt once, as usage shows, except on deterministic servers."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from processes import recipe_of
from tiny import Checkpoint
from tolerance import computed

from alarm_models.recipe.loader import load_recipe
from alarm_service.api.app import create_app
from alarm_service.settings import Settings

pytestmark = pytest.mark.numeric

PROMPT = "The quick brown fox jumps over the lazy dog. " * 8
COMPLETIONS = ["It does.", "It does not.", "Foxes sleep at noon.", "Who knows?"]
GROUP = [{"prompt": PROMPT, "completion": one} for one in COMPLETIONS]


@asynccontextmanager
async def serving(
    llama: Checkpoint, folder: Path, **settings: Any
) -> AsyncIterator[httpx.AsyncClient]:
    file = folder / "tiny.toml"
    file.write_text(recipe_of(llama.folder))
    app = create_app([load_recipe(str(file))], Settings(**{"device": "cpu", **settings}))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client,
    ):
        yield client


async def score(
    client: httpx.AsyncClient, *samples: dict[str, str], key: str = ""
) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    answer = await client.post("/score", json={"samples": samples}, headers=headers)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def alone(llama: Checkpoint) -> list[float]:
    texts = [f"Human: {PROMPT} Assistant: {one}" for one in COMPLETIONS]
    return [llama.plain_logits(text).item() for text in texts]


def prompt_and_whole(llama: Checkpoint) -> tuple[int, list[int]]:
    prompt = len(llama.tokenizer(f"Human: {PROMPT} Assistant:").input_ids)
    texts = [f"Human: {PROMPT} Assistant: {one}" for one in COMPLETIONS]
    return prompt, [len(llama.tokenizer(text).input_ids) for text in texts]


async def test_prefix_sharing_group_scores_as_alone_and_computes_prompt_once(
    llama: Checkpoint, tmp_path: Path
) -> None:
    async with serving(llama, tmp_path) as client:
        answer = await score(client, *GROUP)
    assert [one["score"] for one in answer["scores"]] == computed(alone(llama))
    prompt, whole = prompt_and_whole(llama)
    assert answer["usage"]["num_tokens"] == sum(whole)
    own = sum(whole) - prompt * len(GROUP)
    assert answer["usage"]["num_computed_tokens"] <= prompt + own + len(COMPLETIONS)


async def test_prefix_sharing_group_with_thoughts_computes_what_answers_alone_do(
    llama: Checkpoint, tmp_path: Path
) -> None:
    thoughts = ["<think>Hm.</think>\n\n", "A prefilled thought.</think> ", "", "<think></think>"]
    thinking = [
        {**sample, "completion": thought + sample["completion"]}
        for sample, thought in zip(GROUP, thoughts, strict=True)
    ]
    async with serving(llama, tmp_path) as client:
        answer = await score(client, *thinking)
    async with serving(llama, tmp_path) as client:
        plain = await score(client, *GROUP)
    assert [one["score"] for one in answer["scores"]] == computed(alone(llama))
    assert answer["usage"] == plain["usage"]
    omitted = [one["omitted"] for one in answer["scores"]]
    assert omitted == [["thinking"], ["thinking"], [], []]


async def test_prefix_cache_is_shared_by_consecutive_requests(
    llama: Checkpoint, tmp_path: Path
) -> None:
    async with serving(llama, tmp_path) as client:
        answers = [await score(client, sample) for sample in GROUP]
    scores = [answer["scores"][0]["score"] for answer in answers]
    assert scores == computed(alone(llama))
    prompt, whole = prompt_and_whole(llama)
    num_run = [answer["usage"]["num_computed_tokens"] for answer in answers]
    assert num_run[0] == whole[0]
    assert all(one <= total - prompt + 1 for one, total in zip(num_run[1:], whole[1:], strict=True))


async def test_prefix_cache_of_0_bytes_computes_each_prompt_again(
    llama: Checkpoint, tmp_path: Path
) -> None:
    async with serving(llama, tmp_path, max_remembered_bytes=0) as client:
        answers = [await score(client, sample) for sample in GROUP]
    _, whole = prompt_and_whole(llama)
    assert [answer["usage"]["num_computed_tokens"] for answer in answers] == whole


async def test_prefix_cache_is_not_shared_between_keys(llama: Checkpoint, tmp_path: Path) -> None:
    _, whole = prompt_and_whole(llama)
    async with serving(llama, tmp_path, api_key="one;other") as client:
        first = [await score(client, sample, key="one") for sample in GROUP[:2]]
        guessed = await score(client, GROUP[0], key="other")
        together = await asyncio.gather(
            *(score(client, GROUP[2], key=key) for key in ("one", "other", "one", "other"))
        )
    assert first[1]["usage"]["num_computed_tokens"] < whole[1]  # its own are shared
    assert guessed["usage"]["num_computed_tokens"] == whole[0]
    assert [one["scores"][0]["score"] for one in (*first, guessed)] == computed(
        [*alone(llama)[:2], alone(llama)[0]]
    )
    by_other = [together[index]["usage"]["num_computed_tokens"] for index in (1, 3)]
    # The prompt is known from the guess, so that each, or the first of a batch, adds what is new.
    new = whole[2] - prompt_and_whole(llama)[0]
    assert all(one <= new + 1 for one in by_other)
    assert max(by_other) > 0


async def test_prefix_cache_is_shared_with_a_single_key(llama: Checkpoint, tmp_path: Path) -> None:
    async with serving(llama, tmp_path, api_key="one") as client:
        answers = [await score(client, sample, key="one") for sample in GROUP[:2]]
    _, whole = prompt_and_whole(llama)
    assert answers[1]["usage"]["num_computed_tokens"] < whole[1]


@pytest.fixture
def torch_as_it_was() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("torch_as_it_was")
async def test_deterministic_server_gives_the_same_bits_in_any_batch(
    llama: Checkpoint, tmp_path: Path
) -> None:
    others = [{"prompt": PROMPT[n:], "completion": one} for n, one in enumerate(COMPLETIONS * 3)]
    async with serving(llama, tmp_path, deterministic=True) as client:
        by_itself = [(await score(client, sample))["scores"][0]["score"] for sample in GROUP]
        together, *_ = await asyncio.gather(
            score(client, *GROUP), *(score(client, other, GROUP[0]) for other in others)
        )
        models = (await client.get("/models")).json()["models"]
    assert [one["score"] for one in together["scores"]] == by_itself
    assert by_itself == computed(alone(llama))
    assert [model["deterministic"] for model in models] == [True]


async def test_each_device_has_a_replica_of_the_model(llama: Checkpoint, tmp_path: Path) -> None:
    async with serving(llama, tmp_path, device="cpu,cpu") as client:
        answers = await asyncio.gather(*(score(client, sample) for sample in GROUP * 4))
        models = (await client.get("/models")).json()["models"]
    scores = [answer["scores"][0]["score"] for answer in answers]
    assert scores == computed(alone(llama) * 4)
    assert [model["device"] for model in models] == ["cpu,cpu"]
