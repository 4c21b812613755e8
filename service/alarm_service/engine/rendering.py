"""Renderer: what models read of samples, and where their tokenizers split completions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from alarm_models.errors import SampleError
from alarm_models.preprocessing.read_text import ReadSample
from alarm_models.recipe.schema import Recipe
from alarm_models.reward_models.base import HostModel, NeuralRewardModel
from alarm_models.types import Sample, Span, num_characters
from alarm_service.engine.engine import RewardEngine
from alarm_service.engine.model_set import LoadedModel
from alarm_service.engine.pipeline import CancellableThreadPool, validate_samples
from alarm_service.errors import Invalid, Overloaded

__all__ = ["ModelRendering", "Offsets", "Renderer", "Rendering", "TextOfTokens"]

#: Requests that run or wait; each waits for those before it.
_MAX_REQUESTS = 8
_RETRY_AFTER_S = 1

#: Characters of a sample: each token of it is decoded.
_MAX_CHARS = 1 << 18


@dataclass(frozen=True, slots=True)
class TextOfTokens:
    """A text that a model reads, as the texts of its tokens; the spans count tokens."""

    tokens: Sequence[str]
    completion: Span | None
    dropped: Sequence[Span]


@dataclass(frozen=True, slots=True)
class ModelRendering:
    """What one model reads of one sample; ``left_out`` are parts of the completion as sent."""

    model: str
    kind: str
    texts: Sequence[TextOfTokens]
    num_tokens: int
    truncated: bool
    omitted: Sequence[str]
    left_out: Sequence[Span]


@dataclass(frozen=True, slots=True)
class Rendering:
    """What the models of a recipe read of samples, by sample and model."""

    recipe: Recipe
    samples: Sequence[Mapping[str, ModelRendering | SampleError]]


#: The tokens of a completion, or why there are none.
Offsets = Sequence[Span] | SampleError


class Renderer:
    """Renders samples in a thread of its own, so that scoring does not wait for it."""

    def __init__(self, engine: RewardEngine) -> None:
        self._engine = engine
        self._thread = CancellableThreadPool(1, "render", engine.life)
        self._num_requests = 0

    async def render(self, recipe: str | None, samples: Sequence[Sample]) -> Rendering:
        """Return what the models of a recipe read of samples; nothing is scored.

        Raises `NotFound`, `Overloaded`, `Draining`, `Sleeping` or `Broken`.
        """
        wanted = self._engine.catalog.recipe(recipe)
        with self._place():
            async with self._engine.in_use() as model_set:
                models = model_set.models_of(wanted)
                rendered = await self._thread.run(partial(_renderings, models, samples))
        return Rendering(wanted, rendered)

    async def token_offsets(
        self, model: str | None, samples: Sequence[Sample]
    ) -> tuple[str, Sequence[Offsets]]:
        """Return a model's name, and its tokens of each completion.

        Raises as `render`, and `Invalid` if the model has no tokenizer here.
        """
        self._engine.catalog.model(model)
        with self._place():
            async with self._engine.in_use() as model_set:
                loaded = model_set.model(model)
                one = loaded.model
                if not isinstance(one, NeuralRewardModel):
                    raise Invalid(
                        f"model {loaded.name!r} has no tokenizer: name a model with weights"
                    )
                found = await self._thread.run(partial(_offsets, one, samples))
        return loaded.name, found

    def close(self) -> None:
        """Render nothing more."""
        self._thread.close()

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._num_requests >= _MAX_REQUESTS:
            raise Overloaded(
                f"{_MAX_REQUESTS} requests are being rendered: retry later",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._num_requests += 1
        try:
            yield
        finally:
            self._num_requests -= 1


def _fault(sample: Sample) -> SampleError | None:
    """Say why a sample is not rendered; None if it is."""
    count = num_characters(sample)
    if count > _MAX_CHARS:
        return SampleError(
            "too_long",
            f"the sample has {count} characters, and at most {_MAX_CHARS} are rendered; it can "
            "still be scored",
        )
    (fault,) = validate_samples([sample])
    return fault


def _renderings(
    models: Mapping[str, LoadedModel], samples: Sequence[Sample]
) -> list[dict[str, ModelRendering | SampleError]]:
    return [
        {name: _rendering(name, loaded, sample) for name, loaded in models.items()}
        for sample in samples
    ]


def _rendering(name: str, loaded: LoadedModel, sample: Sample) -> ModelRendering | SampleError:
    fault = _fault(sample)
    if fault is not None:
        return fault
    model = loaded.model
    read: ReadSample | SampleError = ReadSample(())
    if isinstance(model, NeuralRewardModel | HostModel):
        read = model.read_sample(sample)
    if isinstance(read, SampleError):
        return read
    texts = [
        TextOfTokens(model.token_texts(text.ids), text.completion, text.dropped)
        for text in read.texts
        if isinstance(model, NeuralRewardModel)
    ]
    return ModelRendering(
        name,
        loaded.served.spec.kind,
        texts,
        read.num_tokens,
        read.truncated,
        read.omitted,
        read.left_out(len(sample.completion_text)),
    )


def _offsets(model: NeuralRewardModel, samples: Sequence[Sample]) -> list[Offsets]:
    return [_offsets_of(model, sample) for sample in samples]


def _offsets_of(model: NeuralRewardModel, sample: Sample) -> Offsets:
    try:
        return _fault(sample) or model.token_offsets(sample.completion_text)
    except SampleError as error:
        return error.with_traceback(None)
