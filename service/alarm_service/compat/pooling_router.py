"""The routes of vLLM and SGLang for reward models, by the body's model or by the path."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter

from alarm_service.compat.call import Call, CallOf, Name, Options
from alarm_service.compat.pooling import (
    ClassifyOut,
    EmbeddingsOut,
    PoolingIn,
    PoolingOut,
    as_classes,
    as_embeddings,
    as_pooled,
    samples_of,
)
from alarm_service.compat.rewarding import Numbers
from alarm_service.compat.shapes import TextOptions
from alarm_service.web.dependencies import WORK_ERRORS
from alarm_service.web.large import OffLoopRoute

__all__ = ["router"]

router = APIRouter(route_class=OffLoopRoute, tags=["vLLM and SGLang"])


@router.post("/classify", responses=WORK_ERRORS)
@router.post("/v1/classify", responses=WORK_ERRORS)
async def classify(body: PoolingIn, options: Options, call: CallOf) -> ClassifyOut:
    """Score as vLLM's `/classify` and SGLang's `/v1/classify` do, with raw logits."""
    return as_classes(await _numbers(body.model, body, options, call), body)


@router.post("/compat/vllm/{name:path}/classify", responses=WORK_ERRORS)
@router.post("/compat/sglang/{name:path}/v1/classify", responses=WORK_ERRORS)
async def classify_by_path(
    name: Name, body: PoolingIn, options: Options, call: CallOf
) -> ClassifyOut:
    """Score as `/classify` does, whatever model the body names."""
    return as_classes(await _numbers(name, body, options, call), body)


@router.post("/pooling", responses=WORK_ERRORS)
async def pooling(body: PoolingIn, options: Options, call: CallOf) -> PoolingOut:
    """Score as vLLM's `/pooling` does, with raw logits."""
    return as_pooled(await _numbers(body.model, body, options, call), body)


@router.post("/compat/vllm/{name:path}/pooling", responses=WORK_ERRORS)
async def pooling_by_path(
    name: Name, body: PoolingIn, options: Options, call: CallOf
) -> PoolingOut:
    """Score as `/pooling` does, whatever model the body names."""
    return as_pooled(await _numbers(name, body, options, call), body)


@router.post("/v1/embeddings", responses=WORK_ERRORS)
async def embeddings(body: PoolingIn, options: Options, call: CallOf) -> EmbeddingsOut:
    """Score as SGLang's `/v1/embeddings` does for a reward model: one raw number a text."""
    return as_embeddings(await _numbers(body.model, body, options, call), body)


@router.post("/compat/sglang/{name:path}/v1/embeddings", responses=WORK_ERRORS)
async def embeddings_by_path(
    name: Name, body: PoolingIn, options: Options, call: CallOf
) -> EmbeddingsOut:
    """Score as `/v1/embeddings` does, whatever model the body names."""
    return as_embeddings(await _numbers(name, body, options, call), body)


async def _numbers(name: str | None, body: PoolingIn, options: TextOptions, call: Call) -> Numbers:
    prepare = partial(samples_of, body, options.chat_template)
    return await call.numbers(name, prepare, "messages" if body.input is None else "input")
