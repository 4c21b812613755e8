"""A stand-in server over real sockets that follows the contract, with simple rewards."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from alarm_client.trainers._messages import completion_text


class RewardServer(ThreadingHTTPServer):
    """The reward is the completion's length; on tokens, 1 on each but the last, which has the rest.

    `aspects` are "fluency" (half the length) and "depth" (never computed). `bad` completions get an
    error, those among `errors` their own code and message; `status` other than 200 refuses
    everything.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.bodies: list[dict[str, Any]] = []
        self.bad: set[str] = set()
        self.errors: dict[str, tuple[str, str]] = {}
        self.status = 200

    @property
    def samples(self) -> list[dict[str, Any]]:
        """Every sample that was sent, in order."""
        return [sample for body in self.bodies for sample in body["samples"]]

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self.bodies.append(body)
        if path == "/score":
            rows = {"model": body.get("model", "rm"), "scores": list(map(_score, body["samples"]))}
        else:
            rows = {"recipe": "r", "rewards": [self.reward(one) for one in body["samples"]]}
        return {"fingerprint": "f", "usage": {}, **rows}

    def reward(self, sample: dict[str, Any]) -> dict[str, Any]:
        errors = dict.fromkeys(self.bad, ("too_long", "over the limit")) | self.errors
        text = _text(sample)
        if text in errors:
            error = dict(zip(("code", "message"), errors[text], strict=True))
            return _row(sample, reward=None, holistic=None, admitted=None, aspects={}, error=error)
        length = float(len(text))
        return _row(
            sample,
            reward=length,
            token_rewards=_laid(length, sample.get("token_offsets")),
            holistic={"score": length, "normalized": length / 10},
            admitted=True,
            aspects={
                "fluency": {"reward": length / 2, "token_rewards": None, "segments": None},
                "depth": None,
            },
        )


@contextmanager
def reward_server() -> Iterator[RewardServer]:
    server = RewardServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: RewardServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        error = {"code": "no", "message": "not now", "retryable": False}
        answer = (
            self.server.answer(self.path, body) if self.server.status == 200 else {"error": error}
        )
        self._send(self.server.status, answer)

    def do_GET(self) -> None:
        self._send(200, {"status": "ready"})

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


def _laid(length: float, offsets: list[list[int]] | None) -> list[float] | None:
    if not offsets:
        return None if offsets is None else []
    return [1.0] * (len(offsets) - 1) + [length - (len(offsets) - 1)]


def _score(sample: dict[str, Any]) -> dict[str, Any]:
    return {"id": None, "score": float(len(_text(sample))), "num_tokens": 1, "error": None}


def _row(sample: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {"id": sample.get("id"), "token_rewards": None, "error": None, **values}


def _text(sample):
    completion = sample["completion"]
    return completion if isinstance(completion, str) else completion_text(completion)
