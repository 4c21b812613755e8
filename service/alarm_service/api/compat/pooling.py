"""vLLM's and SGLang's pooling routes: classify, pooling, embeddings."""

from __future__ import annotations

import base64
import struct
import time
import uuid
from functools import partial
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from alarm_models.combination.all_rules import sigmoid
from alarm_models.types import Message, Sample
from alarm_service.api.compat.common import (
    CallOf,
    ChatMessageIn,
    CompatCall,
    Name,
    Options,
    ScalarRewards,
    TextOptions,
    TrainerBody,
    messages_of,
    split_each,
)
from alarm_service.api.compat.conversation import SplitError, Texts, split_text
from alarm_service.api.compat.templates import ChatTemplate
from alarm_service.api.deps import WORK_ERRORS
from alarm_service.api.off_loop_bodies import OffLoopRoute
from alarm_service.errors import SampleFailed
from alarm_service.schemas import JsonObjectIn, ListOf, Text

__all__ = [
    "ClassifyOut",
    "EmbeddingsOut",
    "PoolingIn",
    "PoolingOut",
    "as_classes",
    "as_embeddings",
    "as_pooled",
    "router",
    "samples_of",
]

_FLOAT32 = struct.Struct("<f")

_EXAMPLE: dict[str, Any] = {
    "model": "mini",
    "input": "<|im_start|>user\nWho wrote Emma?<|im_end|>\n<|im_start|>assistant\n"
    "Jane Austen wrote it.<|im_end|>",
    "use_activation": False,
}


class PoolingIn(TrainerBody):
    """A text or several, each a conversation in a chat template; or one conversation's messages."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    model: Text | None = Field(default=None, description="a recipe or model; not read with a path")
    input: Text | ListOf[Text] | None = None
    messages: ListOf[ChatMessageIn] | None = None
    tools: ListOf[JsonObjectIn] | None = Field(
        default=None, description="tools that the policy could call; read with `messages`"
    )
    use_activation: bool | None = Field(
        default=None, description="true applies a sigmoid to scores; else they are raw"
    )
    encoding_format: Literal["float", "base64"] | None = Field(
        default=None,
        description="`base64` gives an embedding or pooled data as float32 numbers, little-endian, "
        "in base64, which OpenAI's client requests",
    )

    @model_validator(mode="after")
    def _has_one_input(self) -> PoolingIn:
        if (self.input is None) == (self.messages is None):
            raise PydanticCustomError("one_input", "send either input or messages")
        return self


class PoolingUsageOut(BaseModel):
    """Tokens as if each text were scored alone."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


class ClassOut(BaseModel):
    """One text's score, as the logit of one class."""

    index: int
    label: str = "LABEL_0"
    probs: list[float]
    num_classes: int = 1


class PooledOut(BaseModel):
    """One text's score, as what the model pooled."""

    index: int
    object: Literal["pooling"] = "pooling"
    data: list[float] | str


class EmbeddingOut(BaseModel):
    """One text's score, as an embedding of one number."""

    index: int
    object: Literal["embedding"] = "embedding"
    embedding: list[float] | str


class _ListOut(BaseModel):
    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    usage: PoolingUsageOut


class ClassifyOut(_ListOut):
    """The answer of `/classify`."""

    data: list[ClassOut]


class PoolingOut(_ListOut):
    """The answer of `/pooling`."""

    data: list[PooledOut]


class EmbeddingsOut(_ListOut):
    """The answer of `/v1/embeddings`."""

    data: list[EmbeddingOut]


def samples_of(body: PoolingIn, template: ChatTemplate | None) -> list[Sample]:
    """Split texts or messages into samples; raise `Invalid` where one cannot be split."""
    if body.messages is not None:
        messages = body.messages
        (one,) = split_each([messages], lambda _: _of_messages(messages), "messages")
        return [Sample(one.prompt, one.completion, tools=tuple(body.tools or ()))]
    inputs = [body.input] if isinstance(body.input, str) else body.input or []
    texts = split_each(inputs, lambda index: split_text(inputs[index], template), "input")
    return [Sample(one.prompt, one.completion) for one in texts]


def as_classes(numbers: ScalarRewards, body: PoolingIn) -> ClassifyOut:
    """Return the response of vLLM and SGLang for one class."""
    data = [ClassOut(index=at, probs=[one]) for at, one in enumerate(_scores(numbers, body))]
    return ClassifyOut(**_common(numbers, "classify"), data=data)


def as_pooled(numbers: ScalarRewards, body: PoolingIn) -> PoolingOut:
    """Return the response of vLLM's pooling."""
    data = [PooledOut(index=at, data=one) for at, one in enumerate(_encoded(numbers, body))]
    return PoolingOut(**_common(numbers, "pool"), data=data)


def as_embeddings(numbers: ScalarRewards, body: PoolingIn) -> EmbeddingsOut:
    """Return the response of SGLang for a reward model."""
    data = [EmbeddingOut(index=at, embedding=one) for at, one in enumerate(_encoded(numbers, body))]
    return EmbeddingsOut(**_common(numbers, "embd"), data=data)


def _of_messages(messages: list[ChatMessageIn]) -> Texts:
    *prompt, last = messages_of(messages) or (None,)
    if last is None or last.role != "assistant" or not prompt:
        raise SplitError("it is not a prompt and then an assistant's message")
    is_plain = last == Message(last.role, last.content)
    turns = tuple(one for one in prompt if one is not None)
    return Texts(turns, last.content if is_plain else (last,))


def _scores(numbers: ScalarRewards, body: PoolingIn) -> list[float]:
    scores = numbers.values
    return [sigmoid(score) for score in scores] if body.use_activation else scores


def _encoded(numbers: ScalarRewards, body: PoolingIn) -> list[list[float] | str]:
    scores = _scores(numbers, body)
    if body.encoding_format != "base64":
        return [[score] for score in scores]
    try:
        return [base64.b64encode(_FLOAT32.pack(score)).decode() for score in scores]
    except OverflowError:
        message = "a score does not fit in a float32: ask for `encoding_format` float"
        raise SampleFailed("non_finite", message) from None


def _common(numbers: ScalarRewards, kind: str) -> dict[str, Any]:
    return {
        "id": f"{kind}-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": numbers.source,
        "usage": PoolingUsageOut(prompt_tokens=numbers.num_tokens, total_tokens=numbers.num_tokens),
    }


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
    """Score as SGLang's `/v1/embeddings` does for a reward model: one raw number per text."""
    return as_embeddings(await _numbers(body.model, body, options, call), body)


@router.post("/compat/sglang/{name:path}/v1/embeddings", responses=WORK_ERRORS)
async def embeddings_by_path(
    name: Name, body: PoolingIn, options: Options, call: CallOf
) -> EmbeddingsOut:
    """Score as `/v1/embeddings` does, whatever model the body names."""
    return as_embeddings(await _numbers(name, body, options, call), body)


async def _numbers(
    name: str | None, body: PoolingIn, options: TextOptions, call: CompatCall
) -> ScalarRewards:
    prepare = partial(samples_of, body, options.chat_template)
    return await call.numbers(name, prepare, "messages" if body.input is None else "input")
