"""A stand-in server that follows the contract; the score is the length of the completion."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

import httpx

Json = Mapping[str, object]


class StandIn:
    """Answers requests by the contract, unless `script` holds responses to give first."""

    def __init__(
        self,
        script: Sequence[httpx.Response | Exception] = (),
        max_samples: int = 1024,
        change: Callable[[dict], object] = lambda answer: None,
        rule: str = "hierarchical",
    ) -> None:
        self.script = list(script)
        self.max_samples = max_samples
        self.change = change
        self.rule = rule
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if self.script:
            scripted = self.script.pop(0)
            if isinstance(scripted, Exception):
                raise scripted
            return scripted
        path = request.url.path
        if path == "/health/ready":
            return httpx.Response(200, json={"status": "ready"})
        if path == "/models":
            return httpx.Response(200, json=self._catalogue())
        return self._answer(path, json.loads(request.content))

    @property
    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self)

    @property
    def paths(self) -> list[str]:
        return [request.url.path for request in self.requests]

    def _catalogue(self) -> dict:
        limits = {"max_samples": self.max_samples, "max_body_bytes": 1 << 26}
        recipes = [{"name": "mini", "rule": self.rule}]
        return {"models": [], "recipes": recipes, "limits": limits}

    def _answer(self, path: str, body: dict) -> httpx.Response:
        samples = body["samples"]
        if len(samples) > self.max_samples:
            return refusal(413, "too_large", "too many samples")
        if path == "/score":
            answer = {"model": body.get("model", "rm"), "scores": list(map(score_row, samples))}
        else:
            answer = {
                "recipe": body.get("recipe", "mini"),
                "rewards": list(map(reward_row, samples)),
            }
        answer |= {
            "fingerprint": "f",
            "usage": {"num_tokens": 2 * len(samples), "num_computed_tokens": len(samples)},
        }
        self.change(answer)
        return httpx.Response(200, content=json.dumps(answer))


def score_row(sample: Json) -> dict[str, object]:
    return {
        "id": sample.get("id"),
        "score": float(len(sample["completion"])),
        "segments": None,
        "num_tokens": 2,
        "truncated": False,
        "error": None,
    }


def reward_row(sample: Json) -> dict[str, object]:
    length = float(len(sample["completion"]))
    offsets = sample.get("token_offsets")
    return {
        "id": sample.get("id"),
        "reward": length,
        "token_rewards": None if offsets is None else [0.0] * (len(offsets) - 1) + [length],
        "holistic": {"score": length, "normalized": length},
        "admitted": True,
        "aspects": {"grammar": None},
        "truncated": False,
        "error": None,
    }


def refusal(status: int, code: str, message: str, **headers: str) -> httpx.Response:
    error = {"code": code, "message": message, "retryable": status in {429, 503, 504}}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, json={"error": error}, headers=named)
