"""What loading a model needs: a thread that nobody waits for, and a first sample to run."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import TypeVar

from alarm_models.errors import RecipeError
from alarm_models.sample import Sample, Score, Span
from alarm_models.texts.template import TextTemplate
from alarm_service.catalog import ServedModel

__all__ = [
    "in_daemon_thread",
    "require_named_outputs",
    "shortest_warm_up_sample",
    "warm_up_sample",
]

_T = TypeVar("_T")

_THREAD = "load"

_PROMPT = "question: Is it warm? context: It is."
_COMPLETION = "It is. Yes, it is warm in here now."


async def in_daemon_thread(call: Callable[[], _T]) -> _T:
    """Run a plain function on a thread that ends with the process.

    A download can take hours; a server that is told to stop does not wait for it.
    """
    future: Future[_T] = Future()

    def run() -> None:
        future.set_running_or_notify_cancel()
        try:
            result = call()
        except BaseException as error:  # whatever ended the thread is the caller's to hear
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name=_THREAD, daemon=True).start()
    return await asyncio.wrap_future(future)


def warm_up_sample(served: ServedModel) -> Sample:
    """Return a sample with all that a caller may send: a user's function may read any of it.

    Its fields are those that the model's templates name.
    """
    words = [Span(*word.span()) for word in re.finditer(r"\S+", _COMPLETION)]
    end_of_text = Span(len(_COMPLETION), len(_COMPLETION))
    names = (name for text in served.spec.templates for name in TextTemplate(text).names)
    return Sample(
        _PROMPT,
        _COMPLETION,
        fields=dict.fromkeys(names, "Is it warm?"),
        token_offsets=(*words, end_of_text),
        id="warm-up",
        group="warm-up",
    )


def shortest_warm_up_sample(served: ServedModel) -> Sample:
    """Return a sample that fits where the other is over a small limit of the recipe's."""
    sample = warm_up_sample(served)
    fields = dict.fromkeys(sample.fields, "?")
    return replace(sample, prompt="?", completion=".", fields=fields, token_offsets=(Span(0, 1),))


def require_named_outputs(named: Mapping[str, str], score: Score) -> None:
    """Raise `RecipeError` unless a score has the outputs that recipes name; ``named`` is by key."""
    for key, name in named.items():
        if name not in (score.outputs or {}):
            there = ", ".join(score.outputs or ()) or "none"
            raise RecipeError(f"{key} is {name!r}; the model's outputs are: {there}")
