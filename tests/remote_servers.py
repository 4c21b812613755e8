"""Small servers with the APIs of other reward servers, including their pitfalls.

The logit of a text is its number of letters minus 10, so that it can be counted by hand. Each
server refuses the text "boom" in its own way. `Calls` records requests.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from tcp import over_tcp

from alarm_models.recipe.specs import RemoteSpec
from alarm_models.reward_models.base import Outcome
from alarm_models.reward_models.remote.model import RemoteModel
from alarm_models.types import Sample, Score


@dataclass
class Calls:
    """The requests a server received, and how it should behave."""

    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    #: How many requests are answered 503 before any is served.
    num_refused: int = 0
    num_running: int = 0
    most_running: int = 0
    #: Takes no notice of being asked for raw scores, as old versions do.
    is_old: bool = False
    #: Where the weights of vLLM's model come from.
    root: str = "/weights/rm"


def logit(text: str) -> float:
    return float(sum(map(str.isalpha, text)) - 10)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def app_of(calls: Calls) -> FastAPI:
    """Create an app whose middleware records, refuses and counts requests."""
    app = FastAPI()

    @app.middleware("http")
    async def record(request: Request, call_next: Any) -> Any:
        if request.method == "POST":
            calls.bodies.append(await request.json())
            calls.keys.append(request.headers.get("Authorization"))
            if calls.num_refused > 0:
                calls.num_refused -= 1
                return JSONResponse({"error": "busy"}, 503, {"Retry-After": "0"})
        calls.num_running += 1
        calls.most_running = max(calls.most_running, calls.num_running)
        try:
            return await call_next(request)
        finally:
            calls.num_running -= 1

    return app


def vllm(calls: Calls) -> FastAPI:
    """vLLM: a sigmoid by default, one error for the whole request, rows in any order."""
    app = app_of(calls)

    @app.post("/classify")
    async def classify(body: dict[str, Any]) -> Any:
        if "messages" in body:
            texts = ["".join(message["content"] for message in body["messages"])]
        else:
            texts = body["input"]
        if any("boom" in text for text in texts):
            return JSONResponse({"error": {"message": "too long", "code": 400}}, 400)
        is_raw = body.get("use_activation") is False and not calls.is_old
        squash = (lambda value: value) if is_raw else sigmoid
        rows = [
            {"index": index, "label": "LABEL_0", "probs": [squash(logit(text))], "num_classes": 1}
            for index, text in enumerate(texts)
        ]
        return {"object": "list", "model": "rm", "data": rows[::-1]}

    @app.get("/v1/models")
    async def models() -> Any:
        return {"data": [{"id": "rm", "root": calls.root, "created": id(object())}]}

    return app


def vllm_scoring(calls: Calls) -> FastAPI:
    """vLLM with a causal model: the probability of the first of two tokens, texts cut at 15."""
    app = app_of(calls)

    @app.post("/generative_scoring")
    async def score(body: dict[str, Any]) -> Any:
        text = body["query"][:15]
        rows = [{"index": 0, "object": "score", "score": sigmoid(logit(text))}]
        return {"object": "list", "data": rows, "usage": {"prompt_tokens": len(text)}}

    @app.get("/v1/models")
    async def models() -> Any:
        return {"data": [{"id": "lm", "root": "/weights/lm", "max_model_len": 16}]}

    return app


def sglang(calls: Calls) -> FastAPI:
    """SGLang's own route: logits as an embedding; no route names its model."""
    app = app_of(calls)

    @app.post("/classify")
    async def classify(body: dict[str, Any]) -> Any:
        if any("boom" in text for text in body["text"]):
            return JSONResponse({"error": "lost"}, 500)
        await asyncio.sleep(0.02)
        return [{"embedding": [logit(text)], "meta_info": {}} for text in body["text"]]

    return app


def tei(calls: Calls) -> FastAPI:
    """TEI: two labels, the highest first; a list of two texts is a pair; batches are limited."""
    app = app_of(calls)

    @app.post("/predict")
    async def predict(body: dict[str, Any]) -> Any:
        inputs = body["inputs"]
        if len(inputs) > 4:
            return JSONResponse({"error": "batch size > 4", "error_type": "Validation"}, 422)
        if any("boom" in "".join(texts) for texts in inputs):
            return JSONResponse({"error": "NaN", "error_type": "Backend"}, 424)
        squash = (lambda value: value) if body.get("raw_scores") else sigmoid
        answers = []
        for texts in inputs:
            value = logit(" AND ".join(texts))
            named = {"bad": squash(-value), "ok": squash(value)}
            rows = [{"label": name, "score": score} for name, score in named.items()]
            answers.append(sorted(rows, key=lambda row: -row["score"]))
        return answers

    @app.get("/info")
    async def info() -> Any:
        return {"model_id": "some/model", "model_sha": "abc", "model_dtype": "float16"}

    return app


def judge(calls: Calls) -> FastAPI:
    """A chat model that answers with the text after "say:" in its last message.

    A bar separates several answers.
    """
    app = app_of(calls)

    @app.post("/v1/chat/completions")
    async def complete(body: dict[str, Any]) -> Any:
        *_, text = body["messages"][-1]["content"].partition("say:")
        if text == "sleep":
            await asyncio.sleep(1)
        return {
            "choices": [
                {
                    "message": {"role": "assistant", "content": one},
                    "finish_reason": "length" if one.endswith("...") else "stop",
                }
                for one in (text.split("|") if body.get("n", 1) > 1 else [text])
            ]
        }

    @app.get("/v1/models")
    async def models() -> Any:
        return {"data": [{"id": "judge"}, {"id": "other"}]}

    return app


@asynccontextmanager
async def opened(
    make: Callable[[Calls], FastAPI], calls: Calls | None = None, **more: Any
) -> AsyncIterator[tuple[RemoteModel, Calls]]:
    """Serve an API and open a model for it; `calls` is empty."""
    calls = calls or Calls()
    with over_tcp(make(calls)) as port:
        base = {"api": make.__name__, "url": f"http://127.0.0.1:{port}", "max_retries": 1}
        model = RemoteModel(RemoteSpec.model_validate(base | more), {})
        try:
            await model.open()
            calls.bodies.clear()
            yield model, calls
        finally:
            await model.close()


def completions(*texts: str) -> list[Sample]:
    return [Sample("p", completion) for completion in texts]


def values(outcomes: list[Outcome]) -> list[float | str | None]:
    return [one.value if isinstance(one, Score) else one.code for one in outcomes]
