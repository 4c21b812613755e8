"""A chat endpoint over HTTP whose answers a test scripts."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from tcp import over_tcp

from alarm_models.recipe.specs import EndpointSpec
from alarm_models.reward_models.judge_endpoint.client import JudgeEndpoint


@dataclass(frozen=True)
class Say:
    """One choice of an answer."""

    text: str | None
    finish_reason: str = "stop"
    refusal: str | None = None
    logprobs: Any = None


@dataclass(frozen=True)
class Refuse:
    """An answer with another status."""

    status: int
    text: str = "no"


#: What the judge does with a request: answer with choices, refuse, wait first, or anything else.
Script = Callable[[dict[str, Any]], "list[Say] | Refuse | float | JSONResponse"]


@dataclass
class ScriptedJudge:
    """The requests that a judge received, and its script; it counts 10 tokens in and 5 a choice.

    A script that returns seconds makes the judge wait that long and then answer "late".
    """

    script: Script
    bodies: list[dict[str, Any]] = field(default_factory=list)
    num_running: int = 0
    most_running: int = 0

    @property
    def last_messages(self) -> list[str]:
        """The last message of each request."""
        return [body["messages"][-1]["content"] for body in self.bodies]

    async def complete(self, body: dict[str, Any]) -> Any:
        """Answer one request."""
        self.bodies.append(body)
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        try:
            return await self._answer(body)
        finally:
            self.num_running -= 1

    async def _answer(self, body: dict[str, Any]) -> Any:
        made = self.script(body)
        if isinstance(made, float):
            await asyncio.sleep(made)
            made = [Say("late")]
        if isinstance(made, JSONResponse):
            return made
        if isinstance(made, Refuse):
            return JSONResponse({"error": made.text}, made.status)
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": one.text, "refusal": one.refusal},
                "finish_reason": one.finish_reason,
                "logprobs": one.logprobs,
            }
            for index, one in enumerate(made)
        ]
        usage = {"prompt_tokens": 10, "completion_tokens": 5 * len(choices)}
        return {"choices": choices, "usage": usage}


def says(text: str, **more: Any) -> Script:
    """Return the script of a judge that always says the same."""
    return lambda body: [Say(text, **more)] * body.get("n", 1)


def says_json(**values: Any) -> Script:
    """Return the script of a judge that always answers with the same JSON object."""
    return says(json.dumps(values))


class JudgeServer:
    """A server whose judge each test replaces: starting one takes longer than most tests."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.judge = ScriptedJudge(says(""))


#: The server that `judge_server` runs.
_RUNNING: list[JudgeServer] = []


@contextmanager
def judge_server() -> Iterator[None]:
    """Run the server for `served`; a module's fixture does."""
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def complete(body: dict[str, Any]) -> Any:
        return await _RUNNING[-1].judge.complete(body)

    @app.get("/v1/models")
    async def models() -> Any:
        return {"data": [{"id": "judge", "root": "/weights/judge"}]}

    with over_tcp(app) as port:
        _RUNNING.append(JudgeServer(port))
        try:
            yield
        finally:
            _RUNNING.pop()


@contextmanager
def served(script: Script) -> Iterator[tuple[ScriptedJudge, dict[str, Any]]]:
    """Serve a judge with the running server; yield it and the keys of its `endpoint` table."""
    server = _RUNNING[-1]
    server.judge = judge = ScriptedJudge(script)
    yield judge, {"url": f"http://127.0.0.1:{server.port}/v1", "model": "judge", "max_retries": 0}


@asynccontextmanager
async def endpoint(
    script: Script, **more: Any
) -> AsyncIterator[tuple[JudgeEndpoint, ScriptedJudge]]:
    """Serve a judge and open an endpoint for it."""
    with served(script) as (judge, keys):
        client = JudgeEndpoint(EndpointSpec.model_validate(keys | more))
        await client.open()
        try:
            yield client, judge
        finally:
            await client.close()


def asked_criteria(body: dict[str, Any]) -> dict[str, str]:
    """Return the criteria of a rubric's question by their keys."""
    text = body["messages"][-1]["content"]
    return dict(re.findall(r"^(c\d+): (.*)$", text, re.MULTILINE))


def shown_answer(body: dict[str, Any]) -> str:
    """Return the completion that a rubric's question shows."""
    text = body["messages"][-1]["content"]
    found = re.search(r"^\[(\w+) answer\]\n(.*)\n\[\1 end of answer\]$", text, re.M | re.S)
    assert found is not None
    return found[2]


def rubric_answer(body: dict[str, Any], judge: Callable[[str, str], Any]) -> str:
    """Return a rubric judge's JSON; ``judge`` says of an answer and a criterion: met, or more."""
    answer: dict[str, Any] = {"id": answer_id(body)}
    for key, criterion in asked_criteria(body).items():
        found = judge(shown_answer(body), criterion)
        answer[key] = found if isinstance(found, dict) else {"reason": "So.", "met": found}
    return json.dumps(answer)


def answer_id(body: dict[str, Any]) -> str:
    """Return the id that a rubric's question asks to repeat."""
    (found,) = re.findall(r'Its key "id" is "(\w+)"', body["messages"][-1]["content"])
    return str(found)
