"""A rollout of verifiers' bash harness with a tool server, against a stand-in endpoint."""

import asyncio
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import verifiers.v1 as vf
from task_of_verifiers import Config, Data, Novel
from texts_of_tools import ANSWER, CALL, QUESTION, RESULT, THOUGHTS
from verifiers.v1.agent import make_agent
from verifiers.v1.clients import EvalClientConfig
from verifiers.v1.configs.task import RewardFunctionConfig
from verifiers.v1.runtimes import SubprocessConfig


class Endpoint(BaseHTTPRequestHandler):
    """Chat completions of a policy that calls the tool that it is offered, and then answers."""

    def do_POST(self) -> None:
        """Answer by what was said already."""
        given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        is_second = given["messages"][-1]["role"] == "tool"
        if is_second:
            message = {"content": ANSWER}
        else:
            names = [tool["function"]["name"] for tool in given["tools"]]
            name = next(name for name in names if name.endswith(CALL["name"]))
            called = {"name": name, "arguments": json.dumps(CALL["arguments"])}
            calls = [{"index": 0, "id": "c1", "type": "function", "function": called}]
            message = {"content": None, "tool_calls": calls}
        message |= {"role": "assistant", "reasoning_content": THOUGHTS[is_second]}
        choice = {"index": 0, "finish_reason": "stop" if is_second else "tool_calls"}
        kind, key = "chat.completion", "message"
        if given.get("stream"):
            kind, key = "chat.completion.chunk", "delta"
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        body = {"id": "x", "object": kind, "created": 0, "model": given["model"]}
        body |= {"choices": [{**choice, key: message}], "usage": usage}
        self.answer(json.dumps(body), is_stream=bool(given.get("stream")))

    def answer(self, body: str, *, is_stream: bool) -> None:
        """Send a body, or an event with it."""
        sent = (f"data: {body}\n\ndata: [DONE]\n\n" if is_stream else body).encode()
        self.send_response(200)
        kind = "text/event-stream" if is_stream else "application/json"
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


async def main(url: str) -> dict[str, object]:
    config = Config(
        rewards={"alarm": RewardFunctionConfig(fn="alarm_client.trainers.verifiers.reward")}
    )
    task = Novel(Data(idx=0, prompt=QUESTION, system_prompt="Be brief.", answer=RESULT), config)
    agent = make_agent(
        vf.AgentConfig(
            runtime=SubprocessConfig(),
            model="policy",
            client=EvalClientConfig(base_url=url, api_key_var="ALARM_URL"),
        )
    )
    trace = await agent.run(task)
    return {
        "reward": trace.reward,
        "metrics": trace.metrics,
        "errors": [str(error) for error in trace.errors],
        "messages": [message.model_dump() for message in trace.messages],
        "stop": trace.stop_condition,
    }


if __name__ == "__main__":
    os.environ["PYTHONPATH"] += f"{os.pathsep}{Path(__file__).parent}"  # the tool server's too
    endpoint = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    Thread(target=endpoint.serve_forever, daemon=True).start()
    found = asyncio.run(main(f"http://127.0.0.1:{endpoint.server_port}/v1"))
    Path(sys.argv[1]).write_text(json.dumps(found))
