"""One call of a replica: cancelled where its caller is, tried again where its replica fails."""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import Any

import structlog
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from alarm_service.errors import Broken
from alarm_service.ray.replica import Answer
from alarm_service.scheduling.caller import INTERNAL, Caller

__all__ = ["call", "until_answered"]

_log = structlog.get_logger()

#: Times that a call is made, and the seconds before the second of them; each next is twice that.
_MAX_CALLS = 6
_PAUSE_S = 0.1


async def call(method: Any, *arguments: Any, **told: Any) -> Any:
    """Await a handle's method; cancel it on the replica too where this is cancelled."""
    # In a context of its own: inside a Serve ingress all calls of a request would share an id.
    response = Context().run(method.remote, *arguments, **told)
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise


async def until_answered(
    method: Any,
    samples: Any,
    *,
    fingerprint: str,
    slot: int,
    num_tokens: int,
    caller: Caller = INTERNAL,
) -> Answer:
    """Have a chunk scored, by another replica where the first one dies or cannot.

    A score depends on nothing but its sample, so that scoring twice is no harm. Raises `Broken`
    where none of several calls came through.
    """
    reason = ""
    for number in range(_MAX_CALLS):
        if number:
            await asyncio.sleep(_PAUSE_S * 2 ** (number - 1))
        told = {"slot": slot, "num_tokens": num_tokens, "num_passed": number, "caller": caller}
        try:
            answer: Answer = await call(method, samples, **told)
        except (RayError, RayServeException) as error:
            reason = str(error).strip().rpartition("\n")[2] or type(error).__name__
        else:
            if answer.fingerprint == fingerprint and len(answer.outcomes) == len(samples):
                return answer
            reason = f"a replica has loaded {answer.fingerprint}, the others {fingerprint}"
        _log.warning("replica failed", reason=reason[:500], calls=number + 1)
    raise Broken(f"no replica answered: {reason}"[:500], retry_after_s=5)
