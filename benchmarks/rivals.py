"""The implementations to compare: each rival runs in its own process, and all run in turn."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from children import free_port, function_in_child, server
from load import Post, client
from ours import deterministic, in_process, over_http
from peers import infinity, vllm
from plain import make_runner
from timing import add_rounds, in_turns, report
from work import Sample, Task, Way, Work

__all__ = ["RIVALS", "Batches", "add_options", "compare", "padding_server", "transformers"]

#: Yields variants by name, ready to run.
Rival = Callable[[Task], AbstractContextManager[Mapping[str, Way]]]

#: Batch size (None: all samples at once), and whether samples are first sorted by length.
Batches = tuple[int | None, bool]

_ONE_BY_ONE = "transformers, one by one"


def transformers(ways: Mapping[str, Batches]) -> Rival:
    """Return transformers as a rival, with these batch forms."""
    forms = {"one by one": (1, False), **ways}

    @contextmanager
    def rival(task: Task) -> Iterator[dict[str, Way]]:
        with function_in_child(make_runner, task) as run:

            def way(size: int | None, by_length: bool) -> Way:
                return Way(lambda samples: run(samples, size, by_length))

            yield {f"transformers, {name}": way(*form) for name, form in forms.items()}

    return rival


@contextmanager
def padding_server(task: Task) -> Iterator[dict[str, Way]]:
    """Yield the variants over the padding server."""
    port = str(free_port())
    script = Path(__file__).with_name("padding_server.py")
    flags = {
        "--folder": task.folder,
        "--kind": task.kind,
        "--dtype": task.dtype,
        "--device": task.device,
        "--port": port,
    }
    command = [sys.executable, str(script), *(str(part) for pair in flags.items() for part in pair)]
    log = task.folder / "padding_server.log"
    with server(command, f"http://127.0.0.1:{port}/ready", log) as url, client() as post:
        yield {
            "padding server, one request": Way(
                lambda samples: _rewards(post, url, task, [samples])
            ),
            "padding server, a request a sample": Way(
                lambda samples: _rewards(post, url, task, [[sample] for sample in samples]), 1
            ),
        }


def _rewards(post: Post, url: str, task: Task, requests: Sequence[Sequence[Sample]]) -> list[float]:
    bodies = [
        {
            "query": [task.text(sample) for sample in samples],
            "num_segments": [len(sample.segments) for sample in samples],
        }
        for samples in requests
    ]
    answers = post(f"{url}/get_reward", bodies)
    return [number for answer in answers for row in answer["rewards"] for number in row]


RIVALS: Mapping[str, Rival] = {
    "in-process": in_process,
    "http": over_http,
    "deterministic": deterministic,
    "transformers": transformers({"padded as sent": (None, False)}),
    "padding-server": padding_server,
    "vllm": vllm,
    "infinity": infinity,
}


def add_options(
    parser: argparse.ArgumentParser,
    rivals: Sequence[str],
    rounds: int,
    known: Mapping[str, Rival] = RIVALS,
) -> None:
    """Add the common options; ``rivals`` are the default among those ``known``."""
    parser.add_argument("--rivals", nargs="+", choices=known, default=rivals)
    add_rounds(parser, rounds)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu", help="cpu or cuda:0")


def compare(task: Task, rivals: Sequence[Rival], works: Mapping[str, Work]) -> None:
    """Run rivals in turn on each round; report ratios to the first rival's first variant.

    Differences are from transformers one by one in float32, in the last round.
    """
    with ExitStack() as stack:
        ways: dict[str, Way] = {}
        for rival in rivals:
            ways |= stack.enter_context(rival(task))
        plain = transformers({})(replace(task, dtype="float32"))
        one_by_one = stack.enter_context(plain)[_ONE_BY_ONE]
        for title, work in works.items():
            timed = in_turns(ways, work)
            last = max(work)
            references = [{last: one_by_one.score(twin)} for twin in work[last]]
            title = f"{title}, {task.dtype}, {task.device}"
            report(title, timed, next(iter(ways)), references)
