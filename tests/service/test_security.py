"""What a caller cannot do: name files or modules, run code, or read what it did not send."""

import pickle
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from processes import recipe_of
from served import samples, serving
from standin import FIGURE_1
from tiny import Checkpoint
from tolerance import computed

from alarm_models.recipe.loader import load_recipe
from alarm_service.api.app import create_app
from alarm_service.settings import Settings

#: What would open a file, import a module or run code somewhere, were it taken for more than text.
TRICKS = [
    "/etc/passwd",
    "../../etc/passwd",
    "file:///etc/passwd",
    "mini.toml",
    "./mini",
    "os.system",
    "alarm_models.recipe.schema:Recipe",
    "{prompt.__class__}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{% include '/etc/passwd' %}",
    "__import__('os').system('id')",
    "!!python/object/apply:os.system [id]",
    "$(id)",
    "\0",
]


@pytest.mark.parametrize("trick", TRICKS)
async def test_recipe_name_is_never_used_as_path(trick: str) -> None:
    async with serving(FIGURE_1) as server:
        body: dict[str, Any] = {"samples": samples("A b")}
        for path, field in (("/score", "model"), ("/hierarchical_reward", "recipe")):
            answer = await server.client.post(path, json={field: trick, **body})
            assert answer.status_code == 404
            assert answer.json()["error"]["message"].startswith(f"no {field} {trick!r}; there are ")


@pytest.mark.parametrize(
    "extra",
    [
        {"checkpoint": "/etc"},
        {"template": "{prompt}"},
        {"trust_remote_code": True},
        {"overrides": {"checkpoint": "/etc"}},
        {"overrides": {"shaping": "os.system"}},
        {"overrides": {"rule": "alarm_models.combination.all_rules"}},
        {"overrides": {"weights": {"/etc/passwd": 1}}},
    ],
)
async def test_overrides_cannot_change_models(extra: dict[str, Any]) -> None:
    async with serving(FIGURE_1) as server:
        answer = await server.client.post(
            "/hierarchical_reward", json={"samples": samples("A b"), **extra}
        )
        assert answer.status_code == 422


async def test_texts_are_never_interpreted(llama: Checkpoint, tmp_path: Path) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text(recipe_of(llama.folder))
    app = create_app([load_recipe(str(file))], Settings(device="cpu"))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client,
    ):
        body = {"samples": [{"prompt": "The fox?", "completion": trick} for trick in TRICKS]}
        answer = await client.post("/score", json=body)
    for trick, score in zip(TRICKS, answer.json()["scores"], strict=True):
        plain = llama.plain_logits(f"Human: The fox? Assistant: {trick}").item()
        assert score["score"] == computed(plain)


@pytest.mark.parametrize("content_type", ["application/octet-stream", "application/x-pickle"])
async def test_pickled_body_is_refused(content_type: str, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    async with serving() as server:
        answer = await server.client.post(
            "/score", content=pickle.dumps(_Touch(proof)), headers={"Content-Type": content_type}
        )
        assert answer.status_code in (400, 422)
    assert not proof.exists()


class _Touch:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self._path), "w"))


async def test_pickled_checkpoint_is_refused_and_runs_nothing(
    llama: Checkpoint, tmp_path: Path
) -> None:
    folder, proof = tmp_path / "evil", tmp_path / "proof"
    folder.mkdir()
    for file in llama.folder.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    torch.save({"model.embed_tokens.weight": _Touch(proof)}, folder / "pytorch_model.bin")
    file = tmp_path / "evil.toml"
    file.write_text(recipe_of(folder))
    app = create_app([load_recipe(str(file))], Settings(device="cpu"))
    async with app.router.lifespan_context(app):
        with pytest.raises(Exception, match="broken"):
            await app.state.engine.life.until_ready()
    assert not proof.exists()


def test_built_in_recipes_trust_no_remote_code() -> None:
    for name in ("mini", "long-form-qa"):
        models = load_recipe(name).models.values()
        assert not any(getattr(model, "trust_remote_code", False) for model in models)
