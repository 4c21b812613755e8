"""A process reward model behind the server: steps on the wire, and on the policy's tokens."""

from pathlib import Path

import httpx
import pytest
import tiny
import torch
from tolerance import computed

from alarm_models.recipe.schema import Recipe
from alarm_service.api.app import create_app
from alarm_service.settings import Settings

pytestmark = pytest.mark.numeric

COMPLETION = "One and one.\n\nIs two."
SAMPLE = {
    "prompt": "What is 1 + 1?",
    "completion": COMPLETION,
    "token_offsets": [[0, 12], [12, 14], [14, 21], [21, 21]],
}


async def test_steps_rewards_are_placed_on_each_last_token(tmp_path: Path) -> None:
    tiny.base_with(tmp_path, {"score.weight": 0.1 * torch.randn(2, 32)})
    table = {
        "name": "steps",
        "models": {"prm": {"kind": "steps", "checkpoint": str(tmp_path), "head": "score"}},
        "holistic": {"model": "prm", "weight": 0.0},
        "hierarchy": {"rule": "weighted_sum"},
        "aspects": {"steps": {"model": "prm", "shaping": "none", "mean": 0.5, "scale": 2.0}},
    }
    app = create_app([Recipe.model_validate(table)], Settings(device="cpu"))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client,
    ):
        scored = (await client.post("/score", json={"samples": [SAMPLE]})).json()["scores"][0]
        own = SAMPLE | {"segments": {"steps": [[0, 21]]}}
        answer = await client.post("/hierarchical_reward", json={"samples": [SAMPLE, own]})
    first, second = [segment["score"] for segment in scored["segments"]]
    assert 0 < first < 1
    assert scored["score"] == min(first, second)  # `min` is the reduction unless told otherwise
    assert [COMPLETION[one["start"] : one["end"]] for one in scored["segments"]] == [
        "One and one.",
        "Is two.",
    ]
    found, whole = answer.json()["rewards"]
    assert found["token_rewards"] == computed([2 * first - 1, 0, 2 * second - 1, 0])
    assert found["holistic"]["score"] == computed(scored["score"])
    assert len(whole["aspects"]["steps"]["segments"]) == 1
