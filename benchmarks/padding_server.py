"""A simple reward server with padded batches, like OpenRLHF's ``serve_rm``.

It handles one request at a time, as one padded batch, and blocks its event loop meanwhile.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from plain import Plain
from work import Task


def create_app(task: Task) -> FastAPI:
    """Create the application: ``POST /get_reward`` takes texts and returns the numbers of each."""
    plain = Plain(task)
    app = FastAPI()

    @app.get("/ready")
    async def ready() -> None:
        """Answer 200 once the model is loaded."""

    @app.post("/get_reward")
    async def get_reward(request: Request) -> dict[str, Any]:
        """Score the texts of ``query``; ``num_segments`` is the number of separators to read."""
        body = await request.json()
        rows = plain.numbers(plain.encode(body["query"]), body["num_segments"])
        return {"rewards": rows, "scores": rows, "extra_logs": {}}

    return app


def main() -> None:
    """Serve until a signal arrives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--kind", choices=["sequence", "segments"], required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    task = Task(options.folder, options.kind, dtype=options.dtype, device=options.device)
    uvicorn.run(create_app(task), host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
