"""A LanguageTool server, the grammar checker over HTTP: `POST /v2/check`, as published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx

from alarm_models.errors import SampleError, UnreachableError
from alarm_models.rewards.grammar import GrammarError
from alarm_models.sample import Span
from alarm_models.specs import GrammarSpec

__all__ = ["LanguageTool"]

#: Connections that are refused or lost are tried again as often.
_RETRIES = 2


class LanguageTool:
    """Checks texts in any language that the server knows."""

    def __init__(self, spec: GrammarSpec) -> None:
        self._base = f"{(spec.url or '').rstrip('/')}/v2"
        self._constants = {"language": spec.language}
        if spec.ignored_rules:
            self._constants["disabledRules"] = ",".join(spec.ignored_rules)
        self._client = httpx.Client(
            timeout=spec.timeout_s,
            limits=httpx.Limits(max_connections=spec.concurrency),
            transport=httpx.HTTPTransport(retries=_RETRIES),
        )

    def greet(self) -> None:
        """Return once the server answers; raise `UnreachableError` where it does not."""
        try:
            self._client.get(f"{self._base}/languages").raise_for_status()
        except httpx.HTTPError as error:
            raise UnreachableError(
                f"the LanguageTool server cannot be asked at {self._base}: {error!r}"
            ) from error

    def find(self, text: str) -> Sequence[GrammarError]:
        """Return the errors of a text with their rules; raise `SampleError` (``model_failed``)."""
        url = f"{self._base}/check"
        try:
            answer = self._client.post(url, data={"text": text, **self._constants})
        except httpx.HTTPError as error:
            raise _failed(f"cannot be asked at {url}: {error!r}") from error
        if answer.status_code != httpx.codes.OK:
            raise _failed(f"answered {answer.status_code}: {answer.text[:200]}")
        try:
            return [_error(match, text) for match in answer.json()["matches"]]
        except (ValueError, KeyError, TypeError) as error:
            raise _failed(f"gave an answer that is none of its API's: {error!r}") from error

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _error(match: dict[str, Any], text: str) -> GrammarError:
    start, length = int(match["offset"]), int(match["length"])
    return _code_points(text, start, start + length), str(match["rule"]["id"])


def _code_points(text: str, start: int, end: int) -> Span:
    """Return a span in code points; LanguageTool counts as Java does, in UTF-16 units."""
    units = text.encode("utf-16-le")

    def place(at: int) -> int:
        return len(units[: 2 * at].decode("utf-16-le", errors="ignore"))

    return Span(place(start), place(end))


def _failed(what: str) -> SampleError:
    return SampleError("model_failed", f"the LanguageTool server {what}"[:500])
