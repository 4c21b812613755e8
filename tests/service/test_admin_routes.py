import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import samples, until_set
from standin import PATIENCE_S

from alarm_models.recipe.loader import load_recipes
from alarm_models.recipe.schema import Recipe
from alarm_service.api.app import create_app
from alarm_service.api_keys import read_admin_keys
from alarm_service.engine.recipe_manager import RecipeSources
from alarm_service.settings import Settings, SettingsError

ADMIN = {"Authorization": "Bearer open"}
CALLER = {"Authorization": "Bearer sesame"}
PATHS = ("load", "unload", "reload")


def form(pattern: str, name: str = "") -> str:
    """Return a recipe that gives 1 to completions of a form, and 0 to others."""
    return f"""
{name}
[models.form]
kind = "regex"
pattern = '{pattern}'
[holistic]
model = "form"
[hierarchy]
rule = "holistic_only"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "digits.toml").write_text(form("[0-9]"))
    (tmp_path / "letters.toml").write_text(form("[a-z]"))
    return tmp_path


@asynccontextmanager
async def serving(folder: Path, *names: str, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Serve recipes of a folder, of models that need no weights."""
    files = {name: str(folder / f"{name}.toml") for name in names or ("digits",)}
    given = Settings(**{"device": "cpu", "admin_key": ("open",), "recipe_dir": folder, **settings})
    recipes = load_recipes(files.values(), given.set)
    app = create_app(recipes, given, sources=RecipeSources(files, given.set, given.recipe_dir))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=transport, base_url="http://localhost", headers=ADMIN
        ) as client,
    ):
        await app.state.engine.life.until_ready()
        yield client


async def scores(client: httpx.AsyncClient, recipe: str, *completions: str) -> list[float]:
    body = {"recipe": recipe, "samples": samples(*completions)}
    answer = await client.post("/hierarchical_reward", json=body)
    return [one["reward"] for one in answer.json()["rewards"]]


async def ask(client: httpx.AsyncClient, change: str, recipe: str | None = None) -> httpx.Response:
    return await client.post(f"/admin/{change}", json={} if recipe is None else {"recipe": recipe})


async def test_admin_reload_scores_waiting_members_of_a_group_again(folder: Path) -> None:
    file = folder / "digits.toml"
    file.write_text(form("[0-9]").replace("holistic_only", "mo_grpo"))

    async def send(client: httpx.AsyncClient, *ids: str) -> list[float]:
        member = {"prompt": "?", "group": "x", "group_size": 3}
        sent = [{**member, "id": one, "completion": one} for one in ids]
        answer = await client.post("/hierarchical_reward", json={"samples": sent})
        return [one["reward"] for one in answer.json()["rewards"]]

    async with serving(folder) as client:
        waits = [asyncio.create_task(send(client, *ids)) for ids in (("1",), ("a",))]
        while (  # noqa: ASYNC110 - a metric tells nobody
            "alarm_waiting_members 2.0" not in (await client.get("/metrics")).text
        ):
            await asyncio.sleep(0.01)
        file.write_text(form("[a-z]").replace("holistic_only", "mo_grpo"))
        assert (await ask(client, "reload", "digits")).status_code == 200
        last = await send(client, "b")
        rewards = [reward for wait in waits for reward in await wait] + last
        whole = [{"prompt": "?", "group": "y", "completion": one} for one in ("1", "a", "b")]
        answer = await client.post("/hierarchical_reward", json={"samples": whole})
        assert rewards == [one["reward"] for one in answer.json()["rewards"]]
        assert rewards[0] < rewards[1] == rewards[2]


async def test_admin_load_and_unload_by_name(folder: Path) -> None:
    async with serving(folder) as client:
        loaded = (await ask(client, "load", "letters")).json()
        assert [one["name"] for one in loaded["recipes"]] == ["digits", "letters"]
        assert (loaded["loaded"], loaded["kept"]) == (["letters/form"], ["form"])
        assert await scores(client, "letters", "a", "1") == [1, 0]
        assert await scores(client, "digits", "a", "1") == [0, 1]
        unloaded = (await ask(client, "unload", "digits")).json()
        assert (unloaded["gone"], unloaded["kept"]) == (["form"], ["form"])
        listed = (await client.get("/models")).json()
        assert [one["name"] for one in listed["recipes"]] == ["letters"]
        gone = await client.post(
            "/hierarchical_reward", json={"recipe": "digits", "samples": samples("a")}
        )
        assert gone.status_code == 404


async def test_admin_reload_rereads_file_and_keeps_unchanged_models(folder: Path) -> None:
    async with serving(folder, "digits", "letters") as client:
        before = (await client.get("/admin/recipes")).json()
        (folder / "digits.toml").write_text(form("[0-4]"))
        after = (await ask(client, "reload")).json()
        assert (after["loaded"], after["kept"]) == (["form"], ["letters/form"])
        assert await scores(client, "digits", "4", "5") == [1, 0]
        first, second = (
            [one["models"]["form"] for one in answer["recipes"]] for answer in (before, after)
        )
        assert first[0]["fingerprint"] != second[0]["fingerprint"]
        assert first[0]["loaded_at"] < second[0]["loaded_at"]
        assert first[1] == second[1]


async def test_admin_reload_applies_set_options_again(folder: Path) -> None:
    settings = ("holistic.weight=3", "models.form.pattern=[ab]")
    async with serving(folder, set=settings) as client:
        assert await scores(client, "digits", "a", "1") == [3, 0]
        (folder / "digits.toml").write_text(form("[0-4]"))
        await ask(client, "reload", "digits")
        assert await scores(client, "digits", "a", "1") == [3, 0]
        renamed = form("[0-4]").replace("models.form", "models.shape").replace('"form', '"shape')
        (folder / "digits.toml").write_text(renamed)
        error = await refused(client, "reload", "digits")
        assert error.startswith("--set models.form.pattern=[ab]: ")
        assert error.endswith("no longer has this table")


async def refused(
    client: httpx.AsyncClient, change: str, recipe: str | None = None, status: int = 409
) -> str:
    answer = await ask(client, change, recipe)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["code"] == {409: "refused", 404: "not_found", 422: "invalid"}[status]
    message: str = error["message"]
    return message


async def test_admin_reload_invalid_recipe_is_409_and_keeps_the_old_one(folder: Path) -> None:
    async with serving(folder) as client:
        for text, why in (
            ("[models", "is not valid TOML"),
            (form("[0-9"), "pattern"),
            (form("[0-9]", 'name = "numbers"'), "callers know it as 'digits'"),
        ):
            (folder / "digits.toml").write_text(text)
            assert why in await refused(client, "reload")
            assert await scores(client, "digits", "a", "1") == [0, 1]
            assert (await client.get("/health/ready")).status_code == 200


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = " + "[" * 5000, "nested too deeply"),
        ("#" * (2 << 20), "more than 1048576 bytes"),
        (form("[a-z]") + "k" * 100_000 + " = 1", "Extra inputs"),
        ('parity = "a\\u0000b"\n' + form("[a-z]"), "cannot be read"),
    ],
    ids=["deep", "large", "long key", "null byte"],
)
async def test_admin_load_hostile_recipe_is_409_in_a_sentence(
    text: str, said: str, folder: Path
) -> None:
    (folder / "letters.toml").write_text(text)
    async with serving(folder) as client:
        answer = await ask(client, "load", "letters")
        assert answer.status_code == 409
        assert said in answer.json()["error"]["message"]
        assert len(answer.content) < 2000
        assert await scores(client, "digits", "1", "a") == [1, 0]


async def test_admin_load_served_recipe_is_409(folder: Path) -> None:
    (folder / "same.toml").write_text(form("x", 'name = "digits"'))
    async with serving(folder) as client:
        for name in ("digits", "same"):
            assert "'digits' is served already" in await refused(client, "load", name)
        # Nor does the refused file become the one that is read again.
        await ask(client, "reload", "digits")
        assert await scores(client, "digits", "x", "1") == [0, 1]


async def test_admin_unload_last_recipe_is_409(folder: Path) -> None:
    async with serving(folder) as client:
        assert "'digits' is the last recipe" in await refused(client, "unload", "digits")


@pytest.mark.parametrize(
    "name",
    ["../secret", "/etc/passwd", "digits.toml", "..", ".", "", "sub/hidden", "./letters", "\x00"],
)
async def test_admin_load_path_is_404(folder: Path, name: str) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "hidden.toml").write_text(form("x"))
    (folder.parent / "secret.toml").write_text(form("x"))
    async with serving(folder) as client:
        message = await refused(client, "load", name, status=404)
        assert "digits, letters" in message
        assert "root" not in message
        for change in ("unload", "reload"):
            await refused(client, change, name, status=404)


async def test_admin_load_built_in_recipe_and_ambiguous_name_is_409(
    folder: Path,
) -> None:
    (folder / "translation.toml").write_text(form("x"))
    async with serving(folder) as client:
        available = (await client.get("/admin/recipes")).json()["available"]
        assert {"mini", "long-form-qa", "digits", "letters"} <= set(available)
        assert "is built in and in" in await refused(client, "load", "translation")


async def test_admin_invalid_body_is_422(folder: Path) -> None:
    async with serving(folder) as client:
        assert "recipe" in await refused(client, "load", status=422)
        for body in ({"recipe": 1}, {"recipe": "digits", "path": "/"}, {"file": "x"}):
            assert (await client.post("/admin/load", json=body)).status_code == 422


async def test_admin_route_requires_admin_key(folder: Path) -> None:
    async with serving(folder, api_key=("sesame",)) as client:
        for headers in ({"Authorization": ""}, CALLER, {"Authorization": "Bearer wrong"}):
            answers = [await client.get("/admin/recipes", headers=headers)]
            answers += [
                await client.post(f"/admin/{path}", json={"recipe": "letters"}, headers=headers)
                for path in PATHS
            ]
            for answer in answers:
                assert answer.status_code == 401
                assert "an admin key" in answer.json()["error"]["message"]
        assert (await client.get("/admin/recipes")).status_code == 200
        assert (await client.get("/models")).status_code == 401
        assert (await client.get("/models", headers=CALLER)).status_code == 200


async def test_admin_route_without_configured_key_is_403(folder: Path) -> None:
    async with serving(folder, admin_key=(), api_key=("sesame",)) as client:
        for headers in (ADMIN, CALLER):
            answer = await client.get("/admin/recipes", headers=headers)
            assert answer.status_code == 403
            assert answer.json()["error"]["code"] == "forbidden"
            assert "--admin-key-file" in answer.json()["error"]["message"]
        for path in PATHS:
            answer = await client.post(f"/admin/{path}", json={"recipe": "letters"})
            assert answer.status_code == 403


@pytest.mark.parametrize(
    "path", ["/admin/../admin/recipes", "//admin/recipes", "/health/../admin/recipes", "/admin"]
)
async def test_admin_key_cannot_be_bypassed_by_path(folder: Path, path: str) -> None:
    async with serving(folder, api_key=("sesame",)) as client:
        answer = await client.get(path, headers=CALLER)
        assert answer.status_code in (401, 404)


async def test_admin_route_has_no_rate_limit(folder: Path) -> None:
    async with serving(folder, max_requests_per_minute=1) as client:
        answers = [await client.get("/models") for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 429]
        assert (await client.get("/admin/recipes")).status_code == 200


async def test_admin_concurrent_changes_are_serialized(folder: Path) -> None:
    async with serving(folder) as client:
        for change, status in (("load", 409), ("unload", 404)):
            answers = await asyncio.gather(*(ask(client, change, "letters") for _ in range(4)))
            statuses = sorted(answer.status_code for answer in answers)
            assert statuses == [200, status, status, status]


def test_admin_key_equal_to_caller_key_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("open\nother\n")
    assert len(read_admin_keys(Settings(admin_key_file=file, api_key=("sesame",)))) == 2
    with pytest.raises(SettingsError, match="both an admin key and a caller's"):
        read_admin_keys(Settings(admin_key_file=file, api_key=("other",)))
    with pytest.raises(SettingsError, match=r"--admin-key-file .* cannot be read"):
        read_admin_keys(Settings(admin_key_file=tmp_path / "nowhere"))


def test_recipe_dir_that_is_not_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--recipe-dir .* is not a folder"):
        RecipeSources({}, (), tmp_path / "nowhere")


async def test_admin_unknown_name_while_others_change_is_404_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, release = threading.Event(), threading.Event()
    read = RecipeSources.read

    def held_read(sources: RecipeSources, source: str) -> Recipe:
        held.set()
        assert release.wait(PATIENCE_S)
        return read(sources, source)

    monkeypatch.setattr(RecipeSources, "read", held_read)
    async with serving(folder) as client:
        loading = asyncio.create_task(ask(client, "load", "letters"))
        await until_set(held)
        behind = [asyncio.create_task(ask(client, "reload")) for _ in range(3)]
        for path in PATHS:
            assert (await ask(client, path, "nobody")).status_code == 404
        # What is being loaded is no unknown name: it waits its turn.
        unloading = asyncio.create_task(ask(client, "unload", "letters"))
        release.set()
        answers = [await loading, *await asyncio.gather(*behind), await unloading]
        assert [answer.status_code for answer in answers] == [200] * 5
        assert (await ask(client, "unload", "letters")).status_code == 404
