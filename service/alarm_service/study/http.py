"""Asking a server with patience: what is busy or falters is asked again, what refuses is told."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Any

import httpx

from alarm_models.remote.retries import delay_s, is_worth_retrying
from alarm_service.study.errors import StudyError

__all__ = ["Refused", "post_json"]

_MAX_ATTEMPTS = 6


class Refused(StudyError):
    """The server will not do what it was asked, however often; ``status`` is its answer's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


async def post_json(client: httpx.AsyncClient, url: str, body: object) -> Any:
    """Post JSON and return the answer's; raise `Refused`, or `StudyError` where none comes."""
    for attempt in range(_MAX_ATTEMPTS):
        headers: Mapping[str, str] = {}
        try:
            answer = await client.post(url, json=body)
        except httpx.TransportError as error:
            fault = f"{url} cannot be reached: {error or type(error).__name__}"
        else:
            if answer.is_success:
                return _decoded(answer, url)
            fault = f"{url} answers {answer.status_code}: {answer.text[:500]}"
            if not is_worth_retrying(answer.status_code):
                raise Refused(fault, answer.status_code)
            headers = answer.headers
        if attempt + 1 < _MAX_ATTEMPTS:
            await asyncio.sleep(delay_s(attempt, headers, random.random()))
    raise StudyError(f"{fault} (asked {_MAX_ATTEMPTS} times)")


def _decoded(answer: httpx.Response, url: str) -> Any:
    try:
        return answer.json()
    except ValueError as error:
        raise StudyError(f"{url} answers {answer.text[:200]!r}, which is no JSON") from error
