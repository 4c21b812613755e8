"""Routes that show what models read: `/render` and `/token_offsets`. Nothing is scored."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from alarm_models.errors import SampleError
from alarm_service.api.deps import (
    WORK_ERRORS,
    SettingsOf,
    TimeoutMs,
    run_until_disconnect,
    timeout_s,
)
from alarm_service.api.off_loop_bodies import OffLoopRoute, off_loop
from alarm_service.engine.rendering import ModelRendering, Offsets, Renderer
from alarm_service.errors import TooLarge
from alarm_service.schemas import (
    FewUnknown,
    ListOf,
    SampleErrorOut,
    SampleIn,
    ScoreRequest,
    Text,
    sample_in,
)

__all__ = ["router"]

router = APIRouter(route_class=OffLoopRoute)

#: Samples of one `/render`: a response has the text of each token for each model.
_MAX_RENDERED = 8


class RenderRequest(FewUnknown):
    """Samples to show as the models of a recipe read them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    recipe: Text | None = Field(
        default=None, description="recipe to use; default: the server's first"
    )
    samples: Annotated[ListOf[SampleIn], Field(description=f"at most {_MAX_RENDERED}")]


class _Out(BaseModel):
    model_config = ConfigDict(frozen=True)


class TextOut(_Out):
    """A text that a model reads; `tokens` joined are the whole text, before truncation."""

    tokens: list[str] = Field(description="what each token id is decoded to")
    completion: list[int] | None = Field(
        description="[start, end) of the completion in `tokens`; null if it is unknown"
    )
    dropped: list[list[int]] = Field(description="[start, end) in `tokens` of what was truncated")


class ModelRenderingOut(_Out):
    """What one model reads of a sample, or the error that its score would have."""

    model: str = Field(description="its name in the recipe")
    kind: str | None
    texts: list[TextOut] = Field(
        description="empty for models without a tokenizer, and where nothing is to be read"
    )
    num_tokens: int = Field(description="as in `/score`, without generated tokens")
    truncated: bool
    omitted: list[str] = Field(description="what the model is not shown, as in `/score`")
    left_out: list[list[int]] = Field(
        description="[start, end) of the completion that the model is not shown, such as thoughts"
    )
    error: SampleErrorOut | None


class SampleRenderingOut(_Out):
    """What each model of the recipe reads of one sample."""

    id: str | int | None = Field(default=None, description="as in the request")
    models: list[ModelRenderingOut]


class RenderResponse(_Out):
    """One rendering per sample, in request order."""

    recipe: str
    renderings: list[SampleRenderingOut]


class OffsetsOut(_Out):
    """The tokens of one completion, as [start, end) in code points."""

    id: str | int | None = Field(default=None, description="as in the request")
    token_offsets: list[list[int]] | None
    error: SampleErrorOut | None


class OffsetsResponse(_Out):
    """One list of offsets per sample, in request order."""

    model: str
    completions: list[OffsetsOut]


async def _renderer(request: Request) -> Renderer:
    renderer: Renderer = request.app.state.renderer
    return renderer


_RendererOf = Annotated[Renderer, Depends(_renderer)]


@router.post("/render", responses=WORK_ERRORS)
async def render(
    body: RenderRequest,
    request: Request,
    renderer: _RendererOf,
    settings: SettingsOf,
    timeout_ms: TimeoutMs = None,
) -> RenderResponse:
    """Show what each model of a recipe reads of samples, token by token, truncation included."""
    _require_at_most(_MAX_RENDERED, body.samples)
    samples = await off_loop(request, lambda: [sample_in(one) for one in body.samples])
    work = renderer.render(body.recipe, samples)
    rendering = await run_until_disconnect(request, work, timeout_s(timeout_ms, settings))
    return RenderResponse(
        recipe=rendering.recipe.name,
        renderings=[
            SampleRenderingOut(id=sample.id, models=[_model_out(*one) for one in models.items()])
            for sample, models in zip(body.samples, rendering.samples, strict=True)
        ],
    )


@router.post("/token_offsets", responses=WORK_ERRORS)
async def token_offsets(
    body: ScoreRequest,
    request: Request,
    renderer: _RendererOf,
    settings: SettingsOf,
    timeout_ms: TimeoutMs = None,
) -> OffsetsResponse:
    """Split completions by a model's tokenizer, for callers without the policy's."""
    _require_at_most(settings.max_samples, body.samples)
    samples = await off_loop(request, lambda: [sample_in(one) for one in body.samples])
    work = renderer.token_offsets(body.model, samples)
    model, found = await run_until_disconnect(request, work, timeout_s(timeout_ms, settings))
    rows = zip(body.samples, found, strict=True)
    return OffsetsResponse(model=model, completions=[_offsets_out(*row) for row in rows])


def _require_at_most(limit: int, samples: list[SampleIn]) -> None:
    if len(samples) > limit:
        raise TooLarge(
            f"samples has {len(samples)} items, a request may have {limit}: send them in several "
            "requests"
        )


def _model_out(name: str, rendering: ModelRendering | SampleError) -> ModelRenderingOut:
    if isinstance(rendering, SampleError):
        return ModelRenderingOut(
            model=name,
            kind=None,
            texts=[],
            num_tokens=0,
            truncated=False,
            omitted=[],
            left_out=[],
            error=_error(rendering),
        )
    return ModelRenderingOut(
        model=name,
        kind=rendering.kind,
        texts=[
            TextOut(
                tokens=list(text.tokens),
                completion=None if text.completion is None else list(text.completion),
                dropped=[list(span) for span in text.dropped],
            )
            for text in rendering.texts
        ],
        num_tokens=rendering.num_tokens,
        truncated=rendering.truncated,
        omitted=list(rendering.omitted),
        left_out=[list(span) for span in rendering.left_out],
        error=None,
    )


def _offsets_out(sample: SampleIn, offsets: Offsets) -> OffsetsOut:
    if isinstance(offsets, SampleError):
        return OffsetsOut(id=sample.id, token_offsets=None, error=_error(offsets))
    return OffsetsOut(id=sample.id, token_offsets=[list(span) for span in offsets], error=None)


def _error(error: SampleError) -> SampleErrorOut:
    return SampleErrorOut.model_validate({"code": error.code, "message": error.message})
