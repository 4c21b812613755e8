"""Counts the files that one request passes, from the client through the server and back.

Two samples of `mini`, one of which is admitted, go over a socket to a server in this process. A
file counts where one of its functions runs between the call and its result, in whatever thread;
comprehensions, lambdas and generator expressions do not count, nor does importing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import uvicorn

import alarm_client
import alarm_models
import alarm_service
from alarm_client import AlarmClient, Sample
from alarm_models.recipe.loader import load_recipe
from alarm_service.api.app import create_app
from alarm_service.api.http_protocol import HeaderLimits, bounded_protocol
from alarm_service.settings import Settings

__all__ = ["files_passed", "walk"]

_QUESTION = (
    "question: Who wrote Emma? context: wikipage: Emma (novel) text: Emma is a novel written by "
    "English author Jane Austen. It was first published in December 1815."
)
_GOOD = (
    "Emma is a novel written by English author Jane Austen. It was first published in "
    "December 1815."
)
_BAD = "Charles Dickens composed it for the Paris opera during his third voyage."

_PACKAGES = tuple(
    Path(str(package.__file__)).parent for package in (alarm_client, alarm_service, alarm_models)
)


class _Functions:
    """The functions of our packages that were called while it listened."""

    def __init__(self) -> None:
        self.called: set[tuple[str, str]] = set()
        self.is_listening = False

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if self.is_listening and event == "call" and not code.co_name.startswith("<"):
            self.called.add((code.co_filename, code.co_qualname))


@contextmanager
def _served(app: object) -> Iterator[str]:
    limits = HeaderLimits(
        max_bytes=65536,
        max_headers=100,
        timeout_s=10,
        unread_timeout_s=10,
        refused=lambda error: None,
    )
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        port=0,
        http=bounded_protocol(limits),
        ws="none",
        log_config=None,
        access_log=False,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        while not server.started:
            thread.join(0.05)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def walk() -> dict[str, list[str]]:
    """Return the functions that a request passes, by file of one of our packages."""
    functions = _Functions()
    threading.setprofile(functions)
    sys.setprofile(functions)
    samples = [
        Sample(prompt=_QUESTION, completion=text, token_offsets=[(0, 4), (4, len(text))])
        for text in (_GOOD, _BAD)
    ]
    try:
        app = create_app([load_recipe("mini")], Settings(device="cpu"))
        with _served(app) as url, AlarmClient(url) as client:
            client.hierarchical_reward(samples)  # imports, and what is made once
            functions.is_listening = True
            rewards = client.hierarchical_reward(samples).rewards
            functions.is_listening = False
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    admitted = [reward.admitted for reward in rewards]
    if admitted != [True, False]:
        raise RuntimeError(f"of the two samples the first is to be admitted; it is {admitted}")
    return _by_file(functions.called)


def files_passed() -> dict[str, int]:
    """Return how many files of each of our packages a request passes."""
    return dict(Counter(name.partition("/")[0] for name in walk()))


def _by_file(called: set[tuple[str, str]]) -> dict[str, list[str]]:
    files: dict[str, list[str]] = {}
    for file, function in sorted(called):
        for package in _PACKAGES:
            if Path(file).is_relative_to(package):
                name = Path(file).relative_to(package.parent).as_posix()
                files.setdefault(name, []).append(function)
    return files


def main() -> None:
    """Print the files, with `--functions` what is called in them, and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--functions", action="store_true", help="name the functions too")
    options = parser.parse_args()
    files = walk()
    for name, functions in files.items():
        print(name, *(functions if options.functions else ()), sep="\n    ")
    packages = Counter(name.partition("/")[0] for name in files)
    print(json.dumps({"files": len(files), "by_package": packages}))


if __name__ == "__main__":
    main()
