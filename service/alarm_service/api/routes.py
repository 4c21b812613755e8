"""The scoring routes: `/score` and `/hierarchical_reward`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import structlog
from fastapi import APIRouter, Request, Response

from alarm_models.combination.rewards import AspectRule
from alarm_models.errors import SampleError
from alarm_models.types import Reward, Sample
from alarm_service.api.auth import caller_of
from alarm_service.api.deps import (
    WORK_ERRORS,
    TimeoutMs,
    engine_of,
    run_until_disconnect,
    settings_of,
    timeout_s,
)
from alarm_service.api.off_loop_bodies import OffLoopRoute, is_large, large_response, off_loop
from alarm_service.engine.hierarchical import reward_samples
from alarm_service.errors import TooLarge
from alarm_service.schemas import (
    RewardOut,
    RewardRequest,
    RewardResponse,
    SampleIn,
    ScoreRequest,
    ScoreResponse,
    reward_out,
    sample_in,
    score_out,
    usage_out,
    with_aspect_values,
)
from alarm_service.settings import Settings

__all__ = ["router"]

_log = structlog.get_logger()

router = APIRouter(route_class=OffLoopRoute)


@router.post("/score", responses=WORK_ERRORS, response_model=ScoreResponse)
async def score(
    body: ScoreRequest, request: Request, timeout_ms: TimeoutMs = None
) -> ScoreResponse | Response:
    """Score samples with one model: raw logits, unless its recipe sets an activation."""
    settings = settings_of(request)
    _check_samples(body.samples, settings)
    samples = await off_loop(request, lambda: [sample_in(sample) for sample in body.samples])
    work = engine_of(request).score(body.model, samples, caller_of(request.scope))
    scores = await run_until_disconnect(request, work, timeout_s(timeout_ms, settings))
    rows = [partial(score_out, *pair) for pair in zip(body.samples, scores.outcomes, strict=True)]
    response = ScoreResponse(
        model=scores.model,
        fingerprint=scores.fingerprint,
        scores=[] if is_large(request) else [row() for row in rows],
        usage=usage_out(scores.num_tokens, scores.num_computed_tokens, scores.judge_usage),
    )
    return (
        await large_response(request, response, "scores", rows) if is_large(request) else response
    )


@router.post("/hierarchical_reward", responses=WORK_ERRORS, response_model=RewardResponse)
async def hierarchical_reward(
    body: RewardRequest, request: Request, timeout_ms: TimeoutMs = None
) -> RewardResponse | Response:
    """Reward samples by a recipe: holistic first, aspects for those past the threshold."""
    settings = settings_of(request)
    _check_samples(body.samples, settings)
    samples = await off_loop(request, lambda: [sample_in(sample) for sample in body.samples])
    work = reward_samples(
        engine_of(request),
        body.recipe,
        samples,
        body.overrides,
        body.aspects,
        caller_of(request.scope),
    )
    rewards = await run_until_disconnect(request, work, timeout_s(timeout_ms, settings))
    names = list(rewards.recipe.aspects)
    rows: list[Callable[[], RewardOut]] = [
        partial(reward_out, sample, reward, names)
        for sample, reward in zip(body.samples, rewards.rewards, strict=True)
    ]
    if body.aspect_values:
        shaping = body.overrides.shaping
        rules = {name: rewards.recipe.aspect_rule(name, shaping) for name in names}
        rows = [
            partial(_with_values, row, sample, reward, rules)
            for row, sample, reward in zip(rows, samples, rewards.rewards, strict=True)
        ]
    response = RewardResponse(
        recipe=rewards.recipe.name,
        fingerprint=rewards.fingerprint,
        rewards=[] if is_large(request) else [row() for row in rows],
        usage=usage_out(rewards.num_tokens, rewards.num_computed_tokens, rewards.judge_usage),
    )
    return (
        await large_response(request, response, "rewards", rows) if is_large(request) else response
    )


def _with_values(
    row: Callable[[], RewardOut],
    sample: Sample,
    reward: Reward | SampleError,
    rules: Mapping[str, AspectRule],
) -> RewardOut:
    return with_aspect_values(row(), sample, reward, rules)


def _check_samples(samples: list[SampleIn], settings: Settings) -> None:
    if len(samples) > settings.max_samples:
        raise TooLarge(
            f"samples has {len(samples)} items, a request may have {settings.max_samples}: "
            "send them in several requests"
        )
    if settings.log_texts:
        for sample in samples:
            _log.info("sample", **sample.model_dump(include={"id", "prompt", "completion"}))
