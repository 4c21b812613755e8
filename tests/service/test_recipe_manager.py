"""Recipes and models change while requests use them."""

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import torch
from served import Server, samples, until, until_set
from standin import PATIENCE_S, Words, recipe

from alarm_models.errors import CheckpointError, SampleError
from alarm_models.reward_models.base import HostModel
from alarm_models.types import Sample, Score
from alarm_service.api.app import create_app
from alarm_service.engine.model_set import LoadedModel, ServedModel
from alarm_service.engine.recipe_manager import RecipeManager
from alarm_service.errors import ChangeRefused, NotFound, ServiceError
from alarm_service.settings import Settings


class Pages(HostModel):
    """Scores every sample with its edition; "hold" waits for `release`."""

    def __init__(self, edition: int) -> None:
        super().__init__(f"pages-{edition}")
        self.edition = edition
        self.told: list[str] = []
        self.held = asyncio.Event()
        self.release = asyncio.Event()

    async def open(self) -> None:
        self.told.append("opened")

    async def score(self, samples: Sequence[Sample]) -> list[Any]:
        if any(sample.completion == "hold" for sample in samples):
            self.held.set()
            await asyncio.wait_for(self.release.wait(), PATIENCE_S)
        return [Score(float(self.edition), None, 0, False) for _ in samples]

    async def close(self) -> None:
        self.told.append("closed")


@dataclass
class Press:
    """Loads a new edition of every requested model, unless switched off."""

    made: list[Any] = field(default_factory=list)
    may_load: threading.Event = field(default_factory=threading.Event)
    loading: threading.Event = field(default_factory=threading.Event)
    changed: bool = True
    failure: Exception | None = None
    kind: Any = Pages

    def load(self, wanted: Mapping[str, ServedModel], _: torch.device) -> dict[str, Any]:
        self.loading.set()
        assert self.may_load.wait(PATIENCE_S)
        made = {key: self.kind(edition) for edition, key in enumerate(wanted, len(self.made) + 1)}
        self.made += made.values()
        if self.failure is not None:
            raise self.failure
        return made

    def unchanged(self, models: Sequence[LoadedModel], _: torch.device) -> Sequence[LoadedModel]:
        return [] if self.changed else models


class Edition(Words):
    """`Words` with distinguishable instances."""

    def __init__(self, edition: int) -> None:
        super().__init__()
        self.fingerprint = f"words-{edition}"


PAPER = recipe("paper")
#: A second recipe, whose model is another.
LETTER = recipe(
    "letter",
    models={"words": {"kind": "sequence", "checkpoint": "c/d", "template": "{completion}"}},
)


@asynccontextmanager
async def printing(press: Press, *recipes: Any) -> AsyncIterator[tuple[Server, RecipeManager]]:
    app = create_app(
        recipes or [PAPER], Settings(device="cpu"), load=press.load, unchanged=press.unchanged
    )
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        yield Server(app, client, Words(), {}), app.state.recipe_manager


@pytest.fixture
def press() -> Press:
    press = Press()
    press.may_load.set()
    return press


async def fingerprint_of(server: Server, model: str | None = None) -> str:
    answer = await server.client.post("/score", json={"model": model, "samples": samples("a")})
    found: str = answer.json()["fingerprint"]
    return found


async def test_change_running_request_keeps_its_models(press: Press) -> None:
    async with printing(press) as (server, manager):
        await server.engine.life.until_ready()
        (old,) = press.made
        begun = asyncio.create_task(server.score("hold"))
        await old.held.wait()
        change = await manager.reload()
        assert (change.loaded, change.kept, change.gone) == (("words",), (), ("words",))
        after = (await server.score("a")).json()
        assert (after["scores"][0]["score"], after["fingerprint"]) == (2, "pages-2")
        assert old.told == ["opened"]
        old.release.set()
        before = (await begun).json()
        assert (before["scores"][0]["score"], before["fingerprint"]) == (1, "pages-1")
        await until(lambda: old.told == ["opened", "closed"])
    assert [one.told for one in press.made] == [["opened", "closed"]] * 2


async def test_reward_and_fingerprint_are_of_one_model_set(press: Press) -> None:
    async with printing(press) as (server, manager):
        await server.engine.life.until_ready()
        first = (await server.reward("a")).json()
        begun = asyncio.create_task(server.reward("hold"))
        await press.made[0].held.wait()
        await manager.reload()
        second = (await server.reward("a")).json()
        press.made[0].release.set()
        late = (await begun).json()
        assert [one["rewards"][0]["reward"] for one in (first, late, second)] == [1, 1, 2]
        assert first["fingerprint"] == late["fingerprint"] != second["fingerprint"]


async def test_cancelled_request_releases_the_old_models(press: Press) -> None:
    async with printing(press) as (server, manager):
        await server.engine.life.until_ready()
        (old,) = press.made
        begun = asyncio.create_task(server.score("hold"))
        await old.held.wait()
        await manager.reload()
        begun.cancel()
        await until(lambda: old.told == ["opened", "closed"])


async def test_engine_close_closes_every_model_set_once(press: Press) -> None:
    async with printing(press) as (server, manager):
        await server.engine.life.until_ready()
        (old,) = press.made
        begun = asyncio.create_task(server.score("hold"))
        await old.held.wait()
        await manager.reload()
        await server.engine.close()
        assert [one.told for one in press.made] == [["opened", "closed"]] * 2
        old.release.set()
        await begun
        await asyncio.sleep(0)
        assert old.told == ["opened", "closed"]


async def test_reload_keeps_unchanged_models(press: Press) -> None:
    press.changed = False
    async with printing(press) as (server, manager):
        await server.engine.life.until_ready()
        change = await manager.reload()
        assert (change.loaded, change.kept, change.gone) == ((), ("words",), ())
        assert len(press.made) == 1
        assert press.made[0].told == ["opened"]
        metrics = (await server.client.get("/metrics")).text
        assert 'alarm_recipe_changes_total{change="reload",outcome="unchanged"} 1.0' in metrics


async def test_reload_of_one_recipe_does_not_check_others(press: Press) -> None:
    async with printing(press, PAPER, LETTER) as (server, manager):
        await server.engine.life.until_ready()
        change = await manager.reload("letter")
        assert (change.loaded, change.kept) == (("letter/words",), ("words",))
        assert await fingerprint_of(server, "paper/words") == "pages-1"
        assert await fingerprint_of(server, "letter/words") == "pages-3"


async def test_change_renamed_model_keeps_its_weights(press: Press) -> None:
    async with printing(press, PAPER, LETTER) as (server, manager):
        await server.engine.life.until_ready()
        assert await fingerprint_of(server, "letter/words") == "pages-2"
        await manager.unload("paper")
        assert await fingerprint_of(server, "words") == "pages-2"
        assert await fingerprint_of(server) == "pages-2"
        assert [one["name"] for one in (await listed(server))["recipes"]] == ["letter"]
        await until(lambda: press.made[0].told == ["opened", "closed"])
        assert press.made[1].told == ["opened"]


async def listed(server: Server) -> Any:
    return (await server.client.get("/models")).json()


async def test_unload_last_recipe_is_refused(press: Press) -> None:
    async with printing(press) as (_, manager):
        with pytest.raises(ChangeRefused, match="'paper' is the last recipe: load another first"):
            await manager.unload("paper")
        with pytest.raises(NotFound, match="no recipe 'letter'; there are paper"):
            await manager.unload("letter")


async def test_load_that_fails_changes_nothing(press: Press) -> None:
    async with printing(press) as (server, manager):
        await server.engine.life.until_ready()
        press.failure = CheckpointError("no weights")
        with pytest.raises(ChangeRefused, match="no weights"):
            await manager.reload()
        press.failure = RuntimeError("out of memory")
        with pytest.raises(ChangeRefused, match="the models cannot be loaded: RuntimeError"):
            await manager.reload()
        assert await fingerprint_of(server) == "pages-1"
        assert press.made[0].told == ["opened"]
        assert (await server.client.get("/health/ready")).status_code == 200
        metrics = (await server.client.get("/metrics")).text
        assert 'alarm_recipe_changes_total{change="reload",outcome="refused"} 2.0' in metrics


class Torn(Pages):
    """Cannot be opened."""

    async def open(self) -> None:
        await super().open()
        raise CheckpointError("torn")


class Blank(Pages):
    """Has no score for anything."""

    async def score(self, samples: Sequence[Sample]) -> list[Any]:
        return [SampleError("model_failed", "blank")] * len(samples)


@pytest.mark.parametrize(
    ("kind", "why"), [(Torn, "torn"), (Blank, "model 'words' cannot score: blank")]
)
async def test_load_failed_warm_up_closes_the_models(
    press: Press, kind: type[Pages], why: str
) -> None:
    async with printing(press) as (server, manager):
        await server.engine.life.until_ready()
        press.kind = kind
        with pytest.raises(ChangeRefused, match=why):
            await manager.reload()
        assert [one.told for one in press.made] == [["opened"], ["opened", "closed"]]
        assert await fingerprint_of(server) == "pages-1"


async def begun_reload(server: Server, manager: RecipeManager, press: Press) -> asyncio.Task[Any]:
    """Start a reload, which continues once loading is allowed."""
    await server.engine.life.until_ready()
    press.may_load.clear()
    press.loading.clear()
    reloading = asyncio.create_task(manager.reload())
    await until_set(press.loading)
    return reloading


async def test_server_scores_while_models_load(press: Press) -> None:
    async with printing(press) as (server, manager):
        reloading = await begun_reload(server, manager, press)
        assert (await server.client.get("/health/ready")).status_code == 200
        assert await fingerprint_of(server) == "pages-1"
        press.may_load.set()
        await reloading
        assert (await listed(server))["models"][0]["fingerprint"] == "pages-2"
        (recipe_info,) = (
            line
            for line in (await server.client.get("/metrics")).text.splitlines()
            if line.startswith("alarm_recipe_info")
        )
        assert (await listed(server))["recipes"][0]["fingerprint"] in recipe_info


async def test_changes_are_serialized(press: Press) -> None:
    async with printing(press) as (server, manager):
        await server.engine.life.until_ready()
        both = await asyncio.gather(manager.reload(), manager.reload())
        assert [change.gone for change in both] == [("words",)] * 2
        assert await fingerprint_of(server) == "pages-3"


async def test_shutdown_does_not_wait_for_reload(press: Press) -> None:
    async with printing(press) as (server, manager):
        reloading = await begun_reload(server, manager, press)
        server.engine.life.drain()
        with pytest.raises(ServiceError, match="the server is stopping"):
            await reloading
    press.may_load.set()


async def test_model_memory_is_freed_after_its_last_request(press: Press) -> None:
    press.kind = Edition
    async with printing(press) as (server, manager):
        assert await fingerprint_of(server) == "words-1"
        old = weakref.ref(press.made[0])
        press.made.clear()
        press.made.append(None)
        await manager.reload()
        assert await fingerprint_of(server) == "words-2"
        gc.collect()
        await until(lambda: old() is None)


async def test_queue_keeps_samples_of_two_model_sets_apart(press: Press) -> None:
    press.kind = Edition
    async with printing(press) as (server, manager):
        await server.engine.life.until_ready()
        (old,) = press.made
        first = asyncio.create_task(server.score("hold"))
        await until_set(old.held)
        waiting = asyncio.create_task(server.score("a b"))
        await server.until_waiting(1)
        # The new model's first run waits for the device too: it has the queue's other place.
        reloading = asyncio.create_task(manager.reload())
        await server.until_waiting(2)
        old.release.set()
        await reloading
        answers = [(await one).json() for one in (first, waiting)]
        assert [one["fingerprint"] for one in answers] == ["words-1"] * 2
        assert [one["scores"][0]["score"] for one in answers] == [1, 2]
        assert await fingerprint_of(server) == "words-2"
