"""The device pool: loading models onto devices, warm-up, and measured batch sizes."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TypeVar

import torch
from opentelemetry.trace import Tracer

from alarm_models.errors import CheckpointError, RecipeError
from alarm_models.modeling.inputs import ModelInput
from alarm_models.preprocessing.templates import TextTemplate
from alarm_models.reward_models.base import HostModel, Model, RewardModel
from alarm_models.reward_models.registry import CheckpointState, Loader
from alarm_models.types import Sample, Score, Span
from alarm_service.engine.lifecycle import Lifecycle
from alarm_service.engine.model_set import LoadedModel, ServedModel
from alarm_service.engine.scheduler import RequestQueue
from alarm_service.engine.worker import DeviceWorker
from alarm_service.observability.metrics import Metrics

__all__ = [
    "MIN_BATCH_TOKENS",
    "DevicePool",
    "ModelLoader",
    "choose_devices",
    "in_daemon_thread",
    "load_models",
    "measure_batch_tokens",
    "release_unused_memory",
    "require_determinism",
    "require_named_outputs",
    "search_batch_tokens",
    "shortest_warm_up_sample",
    "unchanged_on_disk",
    "warm_up_sample",
]


def choose_devices(names: str) -> list[torch.device]:
    """Return the devices of these names, separated by commas; each has a replica of every model.

    ``auto`` is the GPU where there is one.
    """
    if names == "auto":
        return [torch.device("cuda" if torch.cuda.is_available() else "cpu")]
    return [torch.device(name.strip()) for name in names.split(",")]


def load_models(
    wanted: Mapping[str, ServedModel], device: torch.device, *, max_remembered_bytes: int
) -> Mapping[str, Model]:
    """Load models by their keys; raise `CheckpointError` or `RecipeError`."""
    num = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= num:
        raise CheckpointError(
            f"device: there is no {device}; torch finds {num} GPU{'s' * (num != 1)}"
        )
    loader = Loader(device, max_remembered_bytes=max_remembered_bytes)
    return {key: loader.load(served.spec, served.fields) for key, served in wanted.items()}


def unchanged_on_disk(models: Sequence[LoadedModel], device: torch.device) -> list[LoadedModel]:
    """Return the models that loading again would not change; raise `CheckpointError`."""
    disk = CheckpointState(device)
    return [
        loaded
        for loaded in models
        if disk.matches(loaded.served.spec, loaded.served.fields, loaded.fingerprint)
    ]


def release_unused_memory() -> None:
    """Release the memory of models that are not referenced any more."""
    gc.collect()  # networks have reference cycles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def require_determinism() -> None:
    """Make torch raise instead of using a nondeterministic kernel."""
    # cuBLAS reads it as it starts; without it torch refuses its matrix products.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


_T = TypeVar("_T")

_THREAD = "load"

_PROMPT = "question: Is it warm? context: It is."
_COMPLETION = "It is. Yes, it is warm in here now."


async def in_daemon_thread(call: Callable[[], _T]) -> _T:
    """Run a plain function on a thread that ends with the process.

    A download can take hours; shutdown does not wait for it.
    """
    future: Future[_T] = Future()

    def run() -> None:
        future.set_running_or_notify_cancel()
        try:
            result = call()
        except BaseException as error:  # raised where it is awaited
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name=_THREAD, daemon=True).start()
    return await asyncio.wrap_future(future)


def warm_up_sample(served: ServedModel) -> Sample:
    """Return a sample with all optional parts of a request: a user's function may read any of it.

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
    """Return a sample for models whose token limit the usual warm-up sample exceeds."""
    sample = warm_up_sample(served)
    fields = dict.fromkeys(sample.fields, "?")
    return replace(sample, prompt="?", completion=".", fields=fields, token_offsets=(Span(0, 1),))


def require_named_outputs(named: Mapping[str, str], score: Score) -> None:
    """Raise `RecipeError` unless a score has the outputs that recipes name; ``named`` is by key."""
    for key, name in named.items():
        if name not in (score.outputs or {}):
            known = ", ".join(score.outputs or ()) or "none"
            raise RecipeError(f"{key} is {name!r}; the model's outputs are: {known}")


#: The smallest and the largest batch measured, in tokens.
_FIRST, _LAST = 1024, 1 << 16

#: No budget is smaller unless the device is: a group with a long prompt should fit.
MIN_BATCH_TOKENS = 8192

#: By which factor a larger batch must be faster per token.
_GAIN = 1.05

#: Requests wait for their whole batch: larger ones than this are not tried.
_LONGEST_S = 0.5


def measure_batch_tokens(model: RewardModel, sample: Sample) -> int:
    """Return the tokens of the largest batch that fits the device and is still faster per token.

    ``sample`` is one that the model accepts; it is made longer and different each time.
    """
    features = _work(model, sample)
    if not features:
        return MIN_BATCH_TOKENS

    def seconds(num_tokens: int) -> float:
        batch: list[ModelInput] = []
        left = num_tokens
        for one in features:
            if left > 0:
                batch.append(one)
                left -= one.num_tokens
        started = time.perf_counter()
        model.forward(batch)
        return time.perf_counter() - started

    most = min(_LAST, sum(one.num_tokens for one in features))
    return search_batch_tokens(seconds, most)


def search_batch_tokens(seconds: Callable[[int], float], most: int) -> int:
    """Double the tokens of a batch while it fits, gets faster per token and is short enough.

    ``seconds`` runs a batch of that many tokens and returns its duration; it may raise
    `torch.OutOfMemoryError`.
    """
    best, best_rate = _FIRST, 0.0
    num_tokens = _FIRST
    while num_tokens <= most:
        try:
            took = seconds(num_tokens)
        except torch.OutOfMemoryError:
            # Half of the last size that fitted, for samples that differ more than these.
            return max(num_tokens // 4, _FIRST)
        rate = num_tokens / took
        if rate < best_rate * _GAIN:
            break
        best, best_rate = num_tokens, rate
        if took > _LONGEST_S:
            break
        num_tokens *= 2
    return max(best, MIN_BATCH_TOKENS)


def _work(model: RewardModel, sample: Sample) -> Sequence[ModelInput]:
    """Prepare different samples of some 200 tokens, as many as the largest batch needs."""
    samples = [
        replace(sample, completion=f"{number} is the number here. " * 25)
        for number in range(_LAST // 200)
    ]
    return [one for one in model.prepare(samples) if isinstance(one, ModelInput)]


#: Loads models, by their keys, onto a device.
ModelLoader = Callable[[Mapping[str, ServedModel], torch.device], Mapping[str, Model]]


class DevicePool:
    """The device workers; queued samples run on whichever device is free."""

    def __init__(
        self,
        devices: Sequence[torch.device],
        queue: RequestQueue,
        metrics: Metrics,
        life: Lifecycle,
        tracer: Tracer,
        *,
        forward_timeout_s: float,
    ) -> None:
        self.devices = devices
        self._threads = [
            DeviceWorker(
                index,
                queue,
                metrics,
                life,
                tracer,
                forward_timeout_s=forward_timeout_s,
                is_cpu=device.type == "cpu",
                on_lost=self._has_others,
            )
            for index, device in enumerate(devices)
        ]

    @property
    def num_given_up(self) -> int:
        """The number of abandoned forward passes that still run."""
        return sum(thread.num_given_up() for thread in self._threads)

    def is_running(self) -> bool:
        """Whether a device's thread runs; Python must not be finalized while one does.

        A forward pass cannot be interrupted: a process that stops meanwhile uses `os._exit`.
        """
        return any(thread.is_running() for thread in self._threads)

    def load_replicas(
        self,
        load: ModelLoader,
        wanted: Mapping[str, ServedModel],
        made: list[Model],
        *,
        is_measured: bool,
    ) -> dict[str, LoadedModel]:
        """Load models onto each device; those that need none are loaded once.

        Each model is appended to ``made`` once it is loaded: if a later one fails to load, the
        caller must close these. ``is_measured`` runs batches on a GPU to find each model's
        budget of tokens; on a CPU, arithmetic bounds a batch long before the default
        budget.
        """
        replicas: dict[str, list[Model]] = {key: [] for key in wanted}
        remaining = wanted
        for device in self.devices:
            models = load(remaining, device) if remaining else {}
            made += models.values()
            for key, model in models.items():
                replicas[key].append(model)
            remaining = {
                key: wanted[key]
                for key, model in models.items()
                if not isinstance(model, HostModel)
            }
        is_measured = is_measured and self.devices[0].type == "cuda"
        return {
            key: LoadedModel(
                served,
                tuple(replicas[key]),
                _budget(replicas[key][0], served) if is_measured else None,
                time.time(),
            )
            for key, served in wanted.items()
        }

    def start(self) -> None:
        """Start taking batches."""
        for thread in self._threads:
            thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait for the threads to end once their queue is closed."""
        for thread in self._threads:
            thread.join(timeout_s)

    def _has_others(self) -> bool:
        return not all(thread.is_lost for thread in self._threads)


def _budget(model: Model, served: ServedModel) -> int | None:
    if isinstance(model, HostModel):
        return None
    return measure_batch_tokens(model, warm_up_sample(served))
