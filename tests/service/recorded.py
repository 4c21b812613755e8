"""Recorded lines that are easy to check by hand, for `alarm view` and the report of a replay."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CONSTANTS = {
    "rule": "hierarchical",
    "threshold": 0.5,
    "holistic_weight": 2.0,
    "weights": {"a": 3.0},
}


def reward(z: float, aspect: float | None = None, **changed: Any) -> dict[str, Any]:
    """Return twice z, and past 0.5 also three times an aspect."""
    is_admitted = z >= 0.5
    segments = [{"start": 0, "end": 2, "label": "good", "score": aspect}]
    shaped = None if aspect is None else {
        "reward": aspect, "token_rewards": None, "segments": segments,
    }  # fmt: skip
    return {
        "id": None,
        "reward": 2 * z + 3 * (aspect or 0) * is_admitted,
        "token_rewards": None,
        "holistic": {"score": 10 * z, "normalized": z},
        "admitted": is_admitted,
        "aspects": {"a": shaped},
        "truncated": False,
        "omitted": [],
        "error": None,
        **changed,
    }


def failure(code: str) -> dict[str, Any]:
    error = {"code": code, "message": "why"}
    return reward(0) | {"reward": None, "holistic": None, "admitted": None, "error": error}


def captured(
    request: str, sample: Mapping[str, Any], rewarded: Mapping[str, Any], **changed: Any
) -> dict[str, Any]:
    return {
        "request": request, "sample": sample, "reward": rewarded, "recipe": "r",
        "fingerprint": "f", "overrides": {}, "constants": CONSTANTS, **changed,
    }  # fmt: skip


def sample(prompt: str, completion: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, **more}


def write_lines(file: Path, lines: Sequence[object]) -> Path:
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return file


#: Two groups of two, then a failure and a score of `/score`.
CAPTURE = [
    captured("1", sample("One?", "AB first"), reward(1, 0.5)),
    captured("1", sample("One?", "AB second"), reward(0.25)),
    captured("2", sample("Two?", "ÉTÉ third", group="g"), reward(-1)),
    captured("2", sample("Two? again", "fourth </script><b>", group="g"), reward(-1)),
    captured("3", sample("Three?", "fifth"), failure("too_long"), recipe="other"),
    {"request": "4", "sample": sample("?", "!"), "score": {"score": 1}, "model": "m"},
]
