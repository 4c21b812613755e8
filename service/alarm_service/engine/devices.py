"""The device pool: loading models onto devices, warm-up, and measured batch sizes."""

from __future__ import annotations

import asyncio
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
from alarm_models.process_tuning import collect_frozen, trim_malloc
from alarm_models.reward_models.base import HostModel, Model, RewardModel
from alarm_models.reward_models.registry import CheckpointState, Loader
from alarm_models.types import Dtype, Sample, Score, Span
from alarm_service.engine.lifecycle import Lifecycle
from alarm_service.engine.model_set import LoadedModel, ServedModel, compares_samples
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
    "warm_up_group",
    "warm_up_sample",
]


def choose_devices(names: str) -> list[torch.device]:
    """Return the devices of comma-separated names; each gets a replica of every model.

    ``auto`` is the GPU if there is one.
    """
    if names == "auto":
        return [torch.device("cuda" if torch.cuda.is_available() else "cpu")]
    return [torch.device(name.strip()) for name in names.split(",")]


def load_models(
    wanted: Mapping[str, ServedModel],
    device: torch.device,
    *,
    max_remembered_bytes: int,
    dtype: Dtype = "auto",
) -> Mapping[str, Model]:
    """Load models by their keys; raise `CheckpointError` or `RecipeError`.

    ``dtype`` is that of models whose recipe says ``auto``.
    """
    num = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= num:
        raise CheckpointError(
            f"--device: there is no {device}; torch finds {num} GPU{'s' * (num != 1)}"
        )
    loader = Loader(device, max_remembered_bytes=max_remembered_bytes, dtype=dtype)
    return {key: _loaded(loader, served) for key, served in wanted.items()}


def _loaded(loader: Loader, served: ServedModel) -> Model:
    try:
        return loader.load(served.spec, served.fields)
    except (CheckpointError, RecipeError) as error:
        raise type(error)(f"models.{served.name}: {error}") from error


def unchanged_on_disk(
    models: Sequence[LoadedModel], device: torch.device, *, dtype: Dtype = "auto"
) -> list[LoadedModel]:
    """Return the models that reloading would not change; raise `CheckpointError`."""
    disk = CheckpointState(device, dtype=dtype)
    return [
        loaded
        for loaded in models
        if disk.matches(loaded.served.spec, loaded.served.fields, loaded.fingerprint)
    ]


def release_unused_memory() -> None:
    """Release the memory of models that are no longer referenced."""
    collect_frozen()  # networks have reference cycles
    trim_malloc()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def require_determinism() -> None:
    """Make torch raise an error instead of using a nondeterministic kernel."""
    # cuBLAS reads this when it starts; without it torch refuses matrix products.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


_T = TypeVar("_T")

_THREAD = "load"

_PROMPT = "question: Is it warm? context: It is."
_COMPLETION = "It is. Yes, it is warm in here now."


async def in_daemon_thread(call: Callable[[], _T]) -> _T:
    """Run a function on a daemon thread.

    Shutdown does not wait for it, since a download can take hours.
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
    """Return a sample with all optional fields, since a user's function may read any of them.

    Its `fields` are those in the model's templates.
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
    """Return a shorter sample, for models with a token limit below the usual warm-up sample."""
    sample = warm_up_sample(served)
    fields = dict.fromkeys(sample.fields, "?")
    return replace(sample, prompt="?", completion=".", fields=fields, token_offsets=(Span(0, 1),))


def warm_up_group(served: ServedModel, sample: Sample) -> list[Sample]:
    """Return the samples to score for a warm-up: two of a group if the model compares samples."""
    if compares_samples(served.spec):
        return [sample, replace(sample, completion=f"{sample.completion_text}.")]
    return [sample]


def require_named_outputs(named: Mapping[str, str], score: Score) -> None:
    """Raise `RecipeError` unless a score has the outputs that recipes use; ``named`` is by key."""
    for key, name in named.items():
        if name not in {*(score.outputs or {}), *score.skipped}:
            known = ", ".join(score.outputs or ()) or "none"
            raise RecipeError(f"{key} is {name!r}; the model's outputs are: {known}")


#: The smallest and the largest batch measured, in tokens.
_FIRST, _LAST = 1024, 1 << 16

#: The smallest budget, unless the device has less memory: a group with a long prompt fits.
MIN_BATCH_TOKENS = 8192

#: The budget of a model that generates text, whose batches take seconds: the keys and values of so
#: many tokens take about 4 GB in a model of 8B parameters.
_GENERATING_BATCH_TOKENS = 32768

#: Factor by which a larger batch must be faster per token.
_GAIN = 1.05

#: Maximum duration of a batch: its requests wait for all of it.
_LONGEST_S = 0.5


def measure_batch_tokens(model: RewardModel, sample: Sample) -> int:
    """Return the tokens of the largest batch that fits the device and is faster per token.

    ``sample`` is accepted by the model; longer variants of it are used.
    """
    features = _work(model, sample)
    if not features:
        return MIN_BATCH_TOKENS
    if features[0].max_generated:
        return _GENERATING_BATCH_TOKENS

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
    """Double the tokens of a batch while it fits, is faster per token and is short enough.

    ``seconds`` runs a batch of that many tokens and returns its duration; it may raise
    `torch.OutOfMemoryError`.
    """
    best, best_rate = _FIRST, 0.0
    num_tokens = _FIRST
    while num_tokens <= most:
        try:
            took = seconds(num_tokens)
        except torch.OutOfMemoryError:
            # Half of the last size that fitted, since real samples vary more.
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
    """Prepare different samples of about 200 tokens, enough for the largest batch."""
    samples = [
        replace(sample, completion=f"{number} is the number here. " * 25)
        for number in range(_LAST // 200)
    ]
    return [one for one in model.prepare(samples) if isinstance(one, ModelInput)]


#: Loads models, by their keys, onto a device.
ModelLoader = Callable[[Mapping[str, ServedModel], torch.device], Mapping[str, Model]]


class DevicePool:
    """The device workers; queued samples run on any free device."""

    def __init__(
        self,
        devices: Sequence[torch.device],
        queue: RequestQueue,
        metrics: Metrics,
        life: Lifecycle,
        tracer: Tracer,
        *,
        forward_timeout_s: float,
        is_deterministic: bool = False,
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
                is_deterministic=is_deterministic,
                on_lost=self._has_others,
            )
            for index, device in enumerate(devices)
        ]

    @property
    def num_given_up(self) -> int:
        """Number of abandoned forward passes that are still running."""
        return sum(thread.num_given_up() for thread in self._threads)

    def is_running(self) -> bool:
        """Whether a device thread is running; Python must not be finalized meanwhile.

        A forward pass cannot be interrupted, so the process then exits with `os._exit`.
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
        """Load models onto each device; host models are loaded once.

        Each model is appended to ``made`` once it is loaded: if a later one fails to load, the
        caller must close these. ``is_measured`` runs batches on a GPU to find each model's
        budget of tokens; a CPU is compute-bound long before the default budget.
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
        """Wait for the threads to finish after their queue is closed."""
        for thread in self._threads:
            thread.join(timeout_s)

    def _has_others(self) -> bool:
        return not all(thread.is_lost for thread in self._threads)


def _budget(model: Model, served: ServedModel) -> int | None:
    if isinstance(model, HostModel):
        return None
    return measure_batch_tokens(model, warm_up_sample(served))
