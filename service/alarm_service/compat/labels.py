"""The labels of trainers' paths in metrics and logs: as many as there are routes."""

from __future__ import annotations

__all__ = ["label_of"]

_PLAIN = ("/get_reward", "/v1/score/evaluation", "/classify", "/v1/classify", "/pooling",
          "/v1/embeddings")  # fmt: skip
_BY_NAME = ("openrlhf", "slime", "miles", "llamafactory", "align-anything", "easyr1", "nemo-gym",
            "vllm", "sglang")  # fmt: skip


def label_of(path: str) -> str | None:
    """Return a path's label, in which every recipe and model is ``{name}``; None for others'."""
    if path in _PLAIN:
        return path
    trainer = path.removeprefix("/compat/").partition("/")[0]
    is_known = path.startswith("/compat/") and trainer in _BY_NAME
    return f"/compat/{trainer}/{{name}}" if is_known else None
