"""A group of one prompt costs its prompt once, and usage says so."""

from pathlib import Path

import httpx
import pytest
from processes import recipe_of
from tiny import Checkpoint

from alarm_models.recipe_files import load_recipe
from alarm_service.app import create_app
from alarm_service.settings import Settings

PROMPT = "The quick brown fox jumps over the lazy dog. " * 8
COMPLETIONS = ["It does.", "It does not.", "Foxes sleep at noon.", "Who knows?"]


async def test_a_group_is_scored_as_alone_and_computes_its_prompt_once(
    llama: Checkpoint, tmp_path: Path
) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text(recipe_of(llama.folder))
    app = create_app([load_recipe(str(file))], Settings(device="cpu"))
    group = [{"prompt": PROMPT, "completion": one} for one in COMPLETIONS]
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://alarm", timeout=60) as client,
    ):
        answer = (await client.post("/score", json={"samples": group})).json()
    texts = [f"Human: {PROMPT} Assistant: {one}" for one in COMPLETIONS]
    alone = [llama.plain_logits(text).item() for text in texts]
    assert [one["score"] for one in answer["scores"]] == pytest.approx(alone, abs=1e-5)
    ids = [llama.tokenizer(text).input_ids for text in texts]
    assert answer["usage"]["num_tokens"] == sum(map(len, ids))
    prompt = len(llama.tokenizer(f"Human: {PROMPT} Assistant:").input_ids)
    own = sum(len(one) - prompt for one in ids)
    assert answer["usage"]["num_computed_tokens"] <= prompt + own + len(COMPLETIONS)
