from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from served import app_of, samples, serving
from standin import FIGURE_1, Letters

from alarm_models.errors import SampleError
from alarm_models.reward_models.base import HostModel
from alarm_models.types import Sample, Score


async def test_score_is_raw_and_has_the_sample_id() -> None:
    async with serving() as server:
        (sample,) = samples("a b c")
        answer = await server.client.post("/score", json={"samples": [sample | {"id": "x"}]})
        assert answer.json() == {
            "model": "words",
            "fingerprint": "words",
            "scores": [
                {
                    "id": "x",
                    "score": 3,
                    "segments": None,
                    "num_tokens": 3,
                    "truncated": False,
                    "omitted": [],
                    "error": None,
                }
            ],
            "usage": {"num_tokens": 3, "num_computed_tokens": 3},
        }


@pytest.mark.parametrize("given", ["x", "", 7, 0, -(10**30), None, "🙂"])
@pytest.mark.parametrize("route", ["/score", "/hierarchical_reward"])
async def test_score_id_is_echoed_unchanged(given: Any, route: str) -> None:
    async with serving() as server:
        (good,), (bad,) = samples("a"), samples("boom")
        body = {"samples": [good | {"id": given}, bad | {"id": given}]}
        answer = (await server.client.post(route, json=body)).json()
        for one in answer.get("scores") or answer["rewards"]:
            assert one["id"] == given
            assert type(one["id"]) is type(given)


async def test_score_model_is_selected_by_name() -> None:
    async with serving(FIGURE_1) as server:
        answer = await server.client.post(
            "/score", json={"model": "a", "samples": samples("A a A!"[:5], "none")}
        )
        judged, unjudged = answer.json()["scores"]
        assert judged["score"] == 2 / 3
        assert judged["segments"] == [
            {"start": 0, "end": 1, "label": "good", "score": 1},
            {"start": 2, "end": 3, "label": "bad", "score": -1},
            {"start": 4, "end": 5, "label": "good", "score": 1},
        ]
        assert unjudged["segments"] == []
        assert unjudged["score"] is None
        assert unjudged["error"] is None


async def test_score_accepts_messages_as_completion() -> None:
    sample = {
        "prompt": [{"role": "user", "content": "?"}],
        "completion": [{"role": "assistant", "content": "a b c"}],
    }
    async with serving() as server:
        answer = await server.client.post("/score", json={"samples": [sample]})
        assert answer.json()["scores"][0]["score"] == 3


async def test_score_of_no_samples_is_empty() -> None:
    async with serving() as server:
        answer = (await server.score()).json()
        assert answer["scores"] == []
        assert answer["usage"] == {"num_tokens": 0, "num_computed_tokens": 0}


async def test_models_route_lists_models_and_recipes() -> None:
    async with serving(FIGURE_1, max_samples=7) as server:
        await server.engine.life.until_ready()
        listed = (await server.client.get("/models")).json()
        assert [model["name"] for model in listed["models"]] == ["words", "a", "b", "c"]
        assert listed["models"][1] == {
            "name": "a",
            "recipe": "figure-1",
            "kind": "segments",
            "checkpoint": "letters/a",
            "fingerprint": "letters-a",
            "device": "cpu",
            "deterministic": False,
            "limits": {"max_tokens": 512},
            "read_token": None,
            "notes": [],
            "execution": None,
        }
        (one,) = listed["recipes"]
        assert one["fingerprint"] == (await server.reward("a")).json()["fingerprint"]
        assert one["aspects"] == {"a": "a", "b": "b", "c": "c"}
        assert listed["limits"]["max_samples"] == 7


async def test_metrics_count_requests_samples_and_errors() -> None:
    async with serving() as server:
        await server.score("a", "boom")
        await server.reward("a b c")
        await server.client.get("/nowhere")
        text = (await server.client.get("/metrics")).text
        for line in (
            'alarm_requests_total{route="/score",status="200"} 1.0',
            'alarm_requests_total{route="other",status="404"} 1.0',
            'alarm_sample_errors_total{code="model_failed"} 1.0',
            'alarm_admitted_samples_total{admitted="true",recipe="plain"} 1.0',
            "alarm_queued_tokens 0.0",
            "alarm_waiting_samples 0.0",
        ):
            assert line in text


class Faulty(HostModel):
    """Raises what no model should raise, once it has been warmed up."""

    num_calls = 0

    async def score(self, samples: Sequence[Sample]) -> list[Score | SampleError]:
        self.num_calls += 1
        if self.num_calls > 1:
            raise ZeroDivisionError("a defect")
        return [Score(0.0, None, 0, False) for _ in samples]


async def test_score_of_a_host_model_that_raises_fails_its_samples() -> None:
    models = {letter: Letters(letter) for letter in "abc"}
    app = app_of([FIGURE_1], models | {"words": Faulty("words")})
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        await app.state.engine.life.until_ready()
        answer = await client.post("/score", json={"samples": samples("a b", "c")})
        assert answer.status_code == 200
        errors = [one["error"] for one in answer.json()["scores"]]
        assert [one["code"] for one in errors] == ["model_failed"] * 2
        assert "a defect" in errors[0]["message"]
