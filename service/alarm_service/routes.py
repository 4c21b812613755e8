"""The two routes that work: validate at the door, hand to the engine, answer."""

from __future__ import annotations

from typing import Annotated

import structlog
from fastapi import APIRouter, Header, Request
from pydantic.json_schema import SkipJsonSchema

from alarm_service.answers import RewardResponse, ScoreResponse, UsageOut
from alarm_service.caller import while_wanted
from alarm_service.dependencies import EngineOf, SettingsOf, documented
from alarm_service.errors import TooLarge
from alarm_service.schemas import RewardRequest, SampleIn, ScoreRequest
from alarm_service.settings import Settings
from alarm_service.story import reward_samples
from alarm_service.wire import reward_out, sample_in, score_out

__all__ = ["router"]

_log = structlog.get_logger()

router = APIRouter()

_WORK = documented(
    (400, "the body is no JSON"),
    (401, "no key, or a wrong one"),
    (404, "no such model or recipe"),
    (413, "the body or the number of samples is over the limit"),
    (422, "the request does not fit the schema"),
    (429, "the queue is full; `Retry-After` says when to come again"),
    (503, "the server is broken or stopping"),
    (504, "the deadline passed"),
)


TimeoutMs = Annotated[
    int | SkipJsonSchema[None],
    Header(alias="X-Request-Timeout-Ms", ge=1, le=1 << 40, description="the caller's deadline"),
]


@router.post("/score", responses=_WORK)
async def score(
    body: ScoreRequest,
    request: Request,
    engine: EngineOf,
    settings: SettingsOf,
    timeout_ms: TimeoutMs = None,
) -> ScoreResponse:
    """Score samples with one model: raw logits unless its recipe names an activation."""
    _check_samples(body.samples, settings)
    served = engine.catalog.model(body.model)
    samples = [sample_in(sample) for sample in body.samples]
    work = engine.score(served, samples)
    scores = await while_wanted(request, work, _timeout_s(timeout_ms, settings))
    return ScoreResponse(
        model=served.key,
        fingerprint=engine.models[served.key].fingerprint,
        scores=[score_out(*pair) for pair in zip(body.samples, scores.outcomes, strict=True)],
        usage=UsageOut(
            num_tokens=scores.num_tokens, num_computed_tokens=scores.num_computed_tokens
        ),
    )


@router.post("/hierarchical_reward", responses=_WORK)
async def hierarchical_reward(
    body: RewardRequest,
    request: Request,
    engine: EngineOf,
    settings: SettingsOf,
    timeout_ms: TimeoutMs = None,
) -> RewardResponse:
    """Reward samples by a recipe: holistic first, aspects for those past the threshold."""
    _check_samples(body.samples, settings)
    recipe = engine.catalog.recipe(body.recipe)
    samples = [sample_in(sample) for sample in body.samples]
    work = reward_samples(engine, recipe, samples, body.overrides, body.aspects)
    rewards = await while_wanted(request, work, _timeout_s(timeout_ms, settings))
    names = list(recipe.aspects)
    return RewardResponse(
        recipe=recipe.name,
        fingerprint=recipe.fingerprint(engine.fingerprints(recipe), body.overrides),
        rewards=[
            reward_out(sample, reward, names)
            for sample, reward in zip(body.samples, rewards.rewards, strict=True)
        ],
        usage=UsageOut(
            num_tokens=rewards.num_tokens, num_computed_tokens=rewards.num_computed_tokens
        ),
    )


def _check_samples(samples: list[SampleIn], settings: Settings) -> None:
    if len(samples) > settings.max_samples:
        raise TooLarge(
            f"samples has {len(samples)} items, a request may have {settings.max_samples}: "
            "send them in several requests"
        )
    if settings.log_texts:
        for sample in samples:
            _log.info("sample", **sample.model_dump(include={"id", "prompt", "completion"}))


def _timeout_s(timeout_ms: int | None, settings: Settings) -> float:
    return settings.timeout_s if timeout_ms is None else timeout_ms / 1000
