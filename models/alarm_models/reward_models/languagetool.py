"""Grammar checks by a LanguageTool server over HTTP (`POST /v2/check`)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import httpx

from alarm_models.errors import SampleError, UnreachableError
from alarm_models.recipe.specs import GrammarSpec
from alarm_models.reward_models.grammar import GrammarError
from alarm_models.reward_models.remote.connections import (
    NoAnswer,
    ask,
    excerpt,
    open_client,
    parsed,
    without_password,
)
from alarm_models.reward_models.remote.http import UNEXPECTED_FORMAT, format_problem, json_excerpt
from alarm_models.sample_json import writable
from alarm_models.types import Span

__all__ = ["LanguageTool"]

#: Number of retries after a refused or lost connection.
_RETRIES = 2


class LanguageTool:
    """Checks texts in any language that the server supports."""

    def __init__(self, spec: GrammarSpec) -> None:
        self._base = f"{(spec.url or '').rstrip('/').removesuffix('/v2')}/v2"
        self._constants = {"language": spec.language}
        if spec.ignored_rules:
            self._constants["disabledRules"] = ",".join(spec.ignored_rules)
        self._shown = without_password(self._base)
        self._timeout_s = spec.timeout_s
        self._client = open_client(
            self._base,
            limits=httpx.Limits(max_connections=spec.concurrency),
            retries=_RETRIES,
        )

    def check_reachable(self) -> None:
        """Raise `UnreachableError` unless the server responds."""
        try:
            answer = self._asked("GET", "languages")
        except NoAnswer as error:
            raise UnreachableError(f"the LanguageTool server at {self._shown} {error}") from error
        if not answer.is_success:
            raise UnreachableError(
                f"the LanguageTool server at {self._shown} returned status {answer.status_code}"
            )

    def find(self, text: str) -> Sequence[GrammarError]:
        """Return the errors of a text with their rules; raise `SampleError` (``model_failed``)."""
        try:
            answer = self._asked("POST", "check", data={"text": text, **self._constants})
            if answer.status_code != httpx.codes.OK:
                raise _failed(f"returned status {answer.status_code}: {excerpt(answer.text)}")
            found = parsed(answer)
        except NoAnswer as error:
            if error.is_of_no_use:
                raise _failed(f"returned an invalid response: it {error}") from error
            raise _failed(f"at {self._shown}/check {error}") from error
        try:
            if (found.get("warnings") or {}).get("incompleteResults"):
                raise _failed("did not check the whole text within its own time limit")
            return _errors(found["matches"], text)
        except UNEXPECTED_FORMAT as error:
            what = f"{format_problem(error)}: {json_excerpt(found)}"
            raise _failed(f"returned an invalid response: it {what}") from error

    def _asked(self, method: str, path: str, **request: Any) -> httpx.Response:
        return ask(
            self._client, method, f"{self._base}/{path}", timeout_s=self._timeout_s, **request
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _errors(matches: Sequence[dict[str, Any]], text: str) -> list[GrammarError]:
    """Return the matches with spans in code points; LanguageTool counts UTF-16 units, as Java."""
    units = range(len(text) + 1)
    starts = units if text.isascii() else list(accumulate(map(_num_units, text), initial=0))
    return [_error(match, starts) for match in matches]


def _num_units(character: str) -> int:
    return 1 + (ord(character) > 0xFFFF)


def _error(match: dict[str, Any], starts: Sequence[int]) -> GrammarError:
    start, length = match["offset"], match["length"]
    if not all(type(one) is int and one >= 0 for one in (start, length)):
        raise TypeError("offset and length must be integers")
    # Within a character of two units: the character before the place counts.
    places = [bisect_right(starts, at) - 1 for at in (start, start + length)]
    return Span(*places), writable(match["rule"]["id"])


def _failed(what: str) -> SampleError:
    return SampleError("model_failed", f"the LanguageTool server {what}"[:500])
