"""The service under test: `alarm serve` over HTTP, and its engine in-process."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from children import free_port, function_in_child, server
from load import Post, client
from work import LABELS, Sample, Task, Way

from alarm_models.process_tuning import limit_openmp_spin

__all__ = [
    "alarm_serve",
    "deterministic",
    "in_process",
    "on_the_wire",
    "over_http",
    "score_over_http",
    "ways_over_http",
    "write_recipe",
]


#: The command `alarm` of this Python, also where its packages are installed in another folder.
_ALARM = (sys.executable, "-c", "from alarm_service.cli.main import main; raise SystemExit(main())")


def write_recipe(task: Task) -> Path:
    """Write a recipe with one model beside its checkpoint."""
    template = task.template if task.kind == "sequence" else f"{task.template.strip()} "
    more = ""
    if task.kind == "segments":
        more = f'positive_label = "{LABELS[-1]}"\nnegative_label = "{LABELS[0]}"\n'
        more += f'separator = "{task.separator}"\n'
    if task.trust_remote_code:
        more += "trust_remote_code = true\n"
    # A holistic model must score whole completions, so a token head gets a weightless one beside
    # it.
    holistic = "measured" if task.kind == "sequence" else "length"
    length = "" if task.kind == "sequence" else '[models.length]\nkind = "length"\n'
    path = task.folder / "recipe.toml"
    path.write_text(
        f'[models.measured]\nkind = "{task.kind}"\ncheckpoint = "{task.folder}"\n'
        f'dtype = "{task.dtype}"\ntemplate = "{template}"\n{more}{length}'
        f'[holistic]\nmodel = "{holistic}"\n[hierarchy]\nrule = "holistic_only"\n'
    )
    return path


@contextmanager
def alarm_serve(recipe: str, device: str, log: Path, *flags: str) -> Iterator[str]:
    """Run `alarm serve` on a free port; yield its base URL once it is ready."""
    port = str(free_port())
    command = [*_ALARM, "serve", "--recipe", recipe, "--port", port, "--device", device, *flags]
    with server(command, f"http://127.0.0.1:{port}/health/ready", log) as url:
        yield url


@contextmanager
def over_http(
    task: Task, name: str = "alarm", flags: Sequence[str] = ()
) -> Iterator[dict[str, Way]]:
    """Yield the variants over HTTP: one request for all samples, and one per sample."""
    log = task.folder / f"{name}.log"
    recipe = str(write_recipe(task))
    with alarm_serve(recipe, task.device, log, *flags) as url, client() as post:
        yield ways_over_http(post, url, name)


def deterministic(task: Task) -> AbstractContextManager[dict[str, Way]]:
    """Yield the same variants with `--deterministic`."""
    return over_http(task, "alarm --deterministic", ["--deterministic"])


def ways_over_http(post: Post, url: str, name: str = "alarm") -> dict[str, Way]:
    """Return the variants of a running server: one request for all samples, and one per sample."""
    return {
        f"{name}, one request": Way(lambda samples: score_over_http(post, url, [samples])),
        f"{name}, a request a sample": Way(
            lambda samples: score_over_http(post, url, [[sample] for sample in samples]), 1
        ),
    }


def on_the_wire(sample: Sample) -> dict[str, Any]:
    """Return a sample as JSON for a request."""
    body: dict[str, Any] = {"prompt": sample.prompt, "completion": sample.completion}
    if sample.segments:
        body["segments"] = {"sentences": [list(span) for span in sample.segments]}
    return body


def score_over_http(post: Post, url: str, requests: Sequence[Sequence[Sample]]) -> list[float]:
    """Send requests to `/score`, all at once; return their numbers, concatenated."""
    bodies = [
        {"model": "measured", "samples": [on_the_wire(sample) for sample in samples]}
        for samples in requests
    ]
    answers = post(f"{url}/score", bodies)
    return [number for answer in answers for score in answer["scores"] for number in _read(score)]


def _read(score: Mapping[str, Any]) -> list[float]:
    if score["error"] is not None:
        raise RuntimeError(f"alarm refuses a sample: {score['error']}")
    if score["segments"] is None:
        return [score["score"]]
    return [segment["score"] for segment in score["segments"]]


@contextmanager
def in_process(task: Task) -> Iterator[dict[str, Way]]:
    """Yield the variant without HTTP: the engine in a child process."""
    write_recipe(task)
    with ExitStack() as stack:
        with patch.dict(os.environ):
            limit_openmp_spin()  # as in the command line, and for this variant only
            way = stack.enter_context(function_in_child(make_engine, task))
        yield {"alarm, in-process": Way(way)}


def make_engine(task: Task) -> Callable[[Sequence[Sample]], list[float]]:
    """Start an engine of the service; return a function that scores with it."""
    # In the child, because importing the service changes process-wide settings.
    from alarm_models import types as nouns
    from alarm_models.process_tuning import disable_malloc_trim
    from alarm_models.recipe.loader import load_recipe
    from alarm_service.api.app import create_engine
    from alarm_service.observability.logging import set_up_logs
    from alarm_service.settings import Settings

    set_up_logs("warning")
    disable_malloc_trim()  # as `alarm serve` and `alarm score` do
    runner = asyncio.Runner()
    recipe = load_recipe(str(task.folder / "recipe.toml"))

    async def started() -> Any:
        engine = create_engine([recipe], Settings(device=task.device))
        await engine.start()
        await engine.life.until_ready()
        return engine

    engine = runner.run(started())

    def way(samples: Sequence[Sample]) -> list[float]:
        given = [
            nouns.Sample(
                one.prompt,
                one.completion,
                segments={"sentences": tuple(nouns.Span(*span) for span in one.segments)}
                if one.segments
                else {},
            )
            for one in samples
        ]
        scores = runner.run(engine.score("measured", given))
        return [number for outcome in scores.outcomes for number in _numbers(outcome)]

    return way


def _numbers(outcome: Any) -> list[float]:
    if isinstance(outcome, Exception):
        raise outcome
    if outcome.segments is None:
        return [outcome.value]
    return [segment.score for segment in outcome.segments]
