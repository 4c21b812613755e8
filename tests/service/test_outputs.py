"""A model with several outputs behind the server: each can be an aspect."""

from pathlib import Path
from typing import Any

import httpx
import pytest
import tiny
from tiny import Checkpoint
from tolerance import computed

from alarm_models.recipe.schema import Recipe
from alarm_service.api.app import create_app
from alarm_service.settings import Settings

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny.sequence_classifier("roberta", tmp_path_factory.mktemp("several"), labels=3)


def recipe(folder: Path, style: str = "style") -> Recipe:
    model = {
        "kind": "multi-objective",
        "checkpoint": str(folder),
        "template": "{prompt} {completion}",
        "objectives": ["help", "truth", "style"],
    }
    return Recipe.model_validate(
        {
            "name": "several",
            "models": {"rm": model},
            "holistic": {"model": "rm", "output": "help"},
            "hierarchy": {"rule": "weighted_sum"},
            "aspects": {
                "truth": {"model": "rm", "output": "truth", "shaping": "none", "weight": 2.0},
                "style": {"model": "rm", "output": style, "shaping": "none", "weight": 0.5},
            },
        }
    )


async def test_outputs_can_be_aspects_and_score_returns_all(checkpoint: Checkpoint) -> None:
    app = create_app([recipe(checkpoint.folder)], Settings(device="cpu"))
    given = {"samples": [{"prompt": "Who?", "completion": "You."}]}
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client,
    ):
        score: dict[str, Any] = (await client.post("/score", json=given)).json()["scores"][0]
        reward = (await client.post("/hierarchical_reward", json=given)).json()["rewards"][0]
    helpful, truth, style = checkpoint.plain_logits("Who? You.").tolist()
    assert score["score"] is None
    assert score["outputs"] == computed({"help": helpful, "truth": truth, "style": style})
    assert reward["holistic"]["score"] == computed(helpful)
    assert reward["reward"] == computed(helpful + 2 * truth + 0.5 * style)


async def test_unknown_output_is_refused_at_loading(
    checkpoint: Checkpoint,
) -> None:
    app = create_app([recipe(checkpoint.folder, style="wit")], Settings(device="cpu"))
    engine = app.state.engine
    async with app.router.lifespan_context(app):
        await engine.life._settled.wait()
    assert "several: aspects.style.output is 'wit'" in engine.life.reason
