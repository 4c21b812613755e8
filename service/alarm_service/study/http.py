"""Asking a server with patience: what is busy or falters is asked again, what refuses is told."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import httpx

from alarm_service.study.errors import StudyError

__all__ = ["RETRIED", "Refused", "delay_s", "post_json"]

#: Answers that another attempt may better.
RETRIED = frozenset({408, 409, 429, 500, 502, 503, 504})

_MAX_ATTEMPTS = 6
_LONGEST_S = 30.0


class Refused(StudyError):
    """The server will not do what it was asked, however often; ``status`` is its answer's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def delay_s(attempt: int, retry_after: str | None, jitter: float) -> float:
    """Return how long to wait before the next attempt: as told, else doubling from half a second.

    ``attempt`` counts from 0; ``jitter`` lies in [0, 1).
    """
    try:
        told = float(retry_after) if retry_after is not None else None
    except ValueError:  # a date, which we need not be that exact about
        told = None
    grown = min(_LONGEST_S, 0.5 * 2.0**attempt) * (0.5 + 0.5 * jitter)
    return grown if told is None else min(_LONGEST_S, max(told, 0.0)) + 0.1 * grown


async def post_json(client: httpx.AsyncClient, url: str, body: object) -> Any:
    """Post JSON and return the answer's; raise `Refused`, or `StudyError` where none comes."""
    for attempt in range(_MAX_ATTEMPTS):
        retry_after = None
        try:
            answer = await client.post(url, json=body)
        except httpx.TransportError as error:
            fault = f"{url} cannot be reached: {error or type(error).__name__}"
        else:
            if answer.is_success:
                return _decoded(answer, url)
            fault = f"{url} answers {answer.status_code}: {answer.text[:500]}"
            if answer.status_code not in RETRIED:
                raise Refused(fault, answer.status_code)
            retry_after = answer.headers.get("retry-after")
        if attempt + 1 < _MAX_ATTEMPTS:
            await asyncio.sleep(delay_s(attempt, retry_after, random.random()))
    raise StudyError(f"{fault} (asked {_MAX_ATTEMPTS} times)")


def _decoded(answer: httpx.Response, url: str) -> Any:
    try:
        return answer.json()
    except ValueError as error:
        raise StudyError(f"{url} answers {answer.text[:200]!r}, which is no JSON") from error
