"""The trainers' routes, each with the recipe or model in its path."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import Response

from alarm_service.api.compat import (
    align_anything,
    easyr1,
    eval_protocol,
    llamafactory,
    nemo_gym,
    openrlhf,
    slime,
)
from alarm_service.api.compat.align_anything import AlignAnythingIn, AlignAnythingOut
from alarm_service.api.compat.common import CallOf, CompatCall, Name, Options, TextOptions
from alarm_service.api.compat.easyr1 import EasyR1Batch, EasyR1Options, EasyR1Out
from alarm_service.api.compat.eval_protocol import EvaluationIn, EvaluationOut
from alarm_service.api.compat.llamafactory import ScoreEvaluationIn, ScoreEvaluationOut
from alarm_service.api.compat.nemo_gym import NemoGymIn, NemoGymOptions, NemoGymOut
from alarm_service.api.compat.openrlhf import OpenRLHFIn, OpenRLHFOptions, OpenRLHFOut
from alarm_service.api.compat.slime import SlimeIn, SlimeOptions, SlimeOut
from alarm_service.api.deps import WORK_ERRORS
from alarm_service.api.off_loop_bodies import OffLoopRoute, off_loop
from alarm_service.errors import SampleFailed

__all__ = ["router"]

router = APIRouter(route_class=OffLoopRoute, tags=["trainers"])

#: Logs are omitted rather than null: OpenRLHF 0.8 reads them if the key is there.
_OPENRLHF: dict[str, Any] = {"responses": WORK_ERRORS, "response_model_exclude_none": True}


@router.post("/get_reward", **_OPENRLHF)
async def get_reward(
    body: OpenRLHFIn, options: Annotated[OpenRLHFOptions, Query()], call: CallOf
) -> OpenRLHFOut:
    """Reward OpenRLHF's queries by the default recipe."""
    return await _openrlhf(None, body, options, call)


@router.post("/compat/openrlhf/{name:path}", **_OPENRLHF)
@router.post("/compat/openrlhf/{name:path}/get_reward", **_OPENRLHF)
async def openrlhf_route(
    name: Name, body: OpenRLHFIn, options: Annotated[OpenRLHFOptions, Query()], call: CallOf
) -> OpenRLHFOut:
    """Reward OpenRLHF's queries: `--reward.remote_url` is this URL."""
    return await _openrlhf(name, body, options, call)


@router.post("/compat/slime/{name:path}", responses=WORK_ERRORS)
@router.post("/compat/miles/{name:path}", responses=WORK_ERRORS)
async def slime_route(
    name: Name, body: SlimeIn, options: Annotated[SlimeOptions, Query()], call: CallOf
) -> SlimeOut:
    """Reward a sample of slime or miles: `--rm-type remote_rm --rm-url` is this URL."""
    prepare = partial(slime.samples_of, body, options.chat_template)
    (number,) = (await call.numbers(name, prepare, "response")).numbers
    return slime.answer(number, options)


@router.post("/v1/score/evaluation", responses=WORK_ERRORS)
async def score_evaluation(
    body: ScoreEvaluationIn, options: Options, call: CallOf
) -> ScoreEvaluationOut:
    """Score LLaMA-Factory's texts by the recipe or model that the body names."""
    return await _llamafactory(llamafactory.named(body), body, options, call)


@router.post("/compat/llamafactory/{name:path}", responses=WORK_ERRORS)
async def llamafactory_route(
    name: Name, body: ScoreEvaluationIn, options: Options, call: CallOf
) -> ScoreEvaluationOut:
    """Score LLaMA-Factory's texts: `reward_model` is this URL, `reward_model_type: api`."""
    return await _llamafactory(name, body, options, call)


@router.post("/compat/align-anything/{name:path}", responses=WORK_ERRORS)
@router.post("/compat/align-anything/{name:path}/get_reward", responses=WORK_ERRORS)
async def align_anything_route(
    name: Name, body: AlignAnythingIn, options: Options, call: CallOf
) -> AlignAnythingOut:
    """Reward align-anything's responses: `remote_rm_url` is this URL."""
    prepare = partial(align_anything.samples_of, body, options.chat_template)
    return AlignAnythingOut(rewards=(await call.numbers(name, prepare, "responses")).values)


@router.post("/compat/easyr1/{name:path}", responses=WORK_ERRORS)
async def easyr1_route(
    name: Name, body: EasyR1Batch, options: Annotated[EasyR1Options, Query()], call: CallOf
) -> list[EasyR1Out]:
    """Reward EasyR1's `reward_inputs`, as a batch reward function of its would."""
    prepare = partial(easyr1.samples_of, body, options.chat_template, options)
    return easyr1.answer((await call.numbers(name, prepare, "reward_inputs")).numbers)


@router.post(
    "/compat/nemo-gym/{name:path}/verify", responses=WORK_ERRORS, response_model=NemoGymOut
)
async def nemo_gym_route(
    name: Name, body: NemoGymIn, options: Annotated[NemoGymOptions, Query()], call: CallOf
) -> Response:
    """Reward a rollout of NeMo Gym, as the `/verify` of a resources server does."""
    prepare = partial(nemo_gym.samples_of, body, options)
    sent = await call.request.body()
    write: Callable[[], Response]
    try:
        (number,) = (await call.numbers(name, prepare, "response")).numbers
        write = partial(nemo_gym.answer, sent, number, options)
    except SampleFailed as failure:
        if not options.mask:
            raise
        write = partial(nemo_gym.masked_answer, sent, failure)
    return await off_loop(call.request, write)


@router.post("/compat/eval-protocol/{name:path}", responses=WORK_ERRORS)
@router.post("/compat/eval-protocol/{name:path}/evaluate", responses=WORK_ERRORS)
async def eval_protocol_route(name: Name, body: EvaluationIn, call: CallOf) -> EvaluationOut:
    """Reward a conversation of Fireworks' Eval Protocol, as a remote reward function does."""
    rewards = await call.numbers(name, partial(eval_protocol.samples_of, body), "messages")
    return eval_protocol.answer(rewards.source, rewards.numbers[0])


async def _openrlhf(
    name: str | None, body: OpenRLHFIn, options: OpenRLHFOptions, call: CompatCall
) -> OpenRLHFOut:
    prepare = partial(openrlhf.samples_of, body, options.chat_template)
    return openrlhf.answer(await call.numbers(name, prepare, "query"), options)


async def _llamafactory(
    name: str | None, body: ScoreEvaluationIn, options: TextOptions, call: CompatCall
) -> ScoreEvaluationOut:
    prepare = partial(llamafactory.samples_of, body, options.chat_template)
    numbers = await call.numbers(name, prepare, "messages")
    return llamafactory.answer(numbers.source, numbers.values)
