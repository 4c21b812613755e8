"""`alarm judge`: requests to an LLM judge, their cache, and its verdicts."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from alarm_models.reward_models.judge_answers import RatingError, answer_part, is_ended
from alarm_models.reward_models.remote.connections import excerpt
from alarm_models.sample_json import writable
from alarm_service.evaluation.dataset import Material
from alarm_service.evaluation.errors import StudyError
from alarm_service.evaluation.scoring import Peer, Refused

__all__ = [
    "CRITERIA",
    "Answer",
    "AnswerCache",
    "Choice",
    "Cost",
    "Duel",
    "Judge",
    "JudgeRequest",
    "ask_all",
    "cost_of",
    "duels_of",
    "key_of",
    "messages_for",
    "outcome_of",
    "read_choice",
]


class Answer(BaseModel):
    """A judge's answer, and its token counts if the server reported them."""

    model_config = ConfigDict(frozen=True)

    key: str
    text: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


def key_of(url: str, body: object) -> str:
    """Return the cache key of a request: a digest of the endpoint and the body."""
    return hashlib.sha256(json.dumps([url, body], sort_keys=True).encode()).hexdigest()[:32]


#: The start of every line of a cache.
_ANSWER_START = b'{"key":"'


def _may_be_incomplete(line: bytes) -> bool:
    return line.startswith(_ANSWER_START[: len(line)])


class AnswerCache:
    """A file of answers, one per line; incomplete lines of killed runs are ignored.

    Raises `StudyError` for any other file, so that answers are never appended to it.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._answers: dict[str, Answer] = {}
        self._target: TextIO | None = None
        if file.exists():
            lines = [line for line in file.read_bytes().splitlines() if line.strip()]
            for number, line in enumerate(lines, 1):
                try:
                    answer = Answer.model_validate_json(line)
                except ValidationError as error:
                    if not _may_be_incomplete(line):
                        raise StudyError(
                            f"{file}, line {number} is not a judge's answer: --cache must be a new "
                            "file or the cache of an earlier run; this file was not changed"
                        ) from error
                    continue
                self._answers[answer.key] = answer

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def get(self, key: str) -> Answer | None:
        """Return the cached answer to a request, or None."""
        return self._answers.get(key)

    def add(self, answer: Answer) -> None:
        """Store an answer; it is on disk when this returns."""
        if self._target is None:
            raise ValueError("answers can be added only while the cache is open")
        self._answers[answer.key] = answer
        self._target.write(answer.model_dump_json(exclude_none=True) + "\n")
        self._target.flush()

    def __enter__(self) -> AnswerCache:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._target = self._file.open("a+", encoding="utf-8")
        if self._is_torn():
            self._target.write("\n")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._target is not None:
            self._target.close()
            self._target = None

    def _is_torn(self) -> bool:
        content = self._file.read_bytes()
        return bool(content) and not content.endswith(b"\n")


class Choice(StrEnum):
    """A judge's verdict on two answers, A and B."""

    A = "A"
    B = "B"
    TIE = "tie"


CRITERIA = (
    "Which answer helps the asker more? Weigh whether it is true, whether it answers what was "
    "asked, and whether anything important is missing. Do not favour an answer for its length or "
    "for standing first."
)

_SYSTEM = (
    "You compare two answers to one prompt. Say in a sentence or two what tells them apart, then "
    "end with a line that is exactly `Verdict: A`, `Verdict: B` or `Verdict: tie`."
)

#: "Verdict: A", "**Verdict:** [[B]]", "verdict - tie"; not the article of "a verdict: a close one".
_VERDICT = re.compile(
    r"verdict\b\W{1,8}(?:(?:is|answer|response|assistant)\b\W{1,4}){0,3}"
    r"(?:(?P<tie>(?:a )?tie\b)|(?P<letter>[ab])(?!\w))(?=(?P<behind>[^\n]{0,200}))",
    re.IGNORECASE,
)
#: What may follow the letter of a verdict on its line.
_BEHIND = re.compile(
    r"\W*$|[\s*_`\"')\]}]*(?:[(.,;:–—-]|(?:is|wins|was|because|since|as it|for|by)\b)",
    re.IGNORECASE,
)
#: If both letters are named, neither is the verdict.
_BOTH = re.compile(r"^\W{0,4}(?:and|or|[/|&=,])\W{0,4}[ab]\b", re.IGNORECASE)


def messages_for(prompt: str, first: str, second: str, criteria: str) -> list[dict[str, str]]:
    """Return the chat messages that request a choice between ``first`` as A and ``second`` as B."""
    question = (
        f"{criteria}\n\n<prompt>\n{prompt}\n</prompt>\n\n<answer_A>\n{first}\n</answer_A>\n\n"
        f"<answer_B>\n{second}\n</answer_B>"
    )
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": question}]


def read_choice(text: str) -> Choice | None:
    """Parse the last verdict in an answer; None if there is none, or it names both."""
    try:
        answer = answer_part(text)
    except RatingError:
        return None
    choices = [_choice(found) for found in _VERDICT.finditer(answer)]
    return choices[-1] if choices else None


def _choice(found: re.Match[str]) -> Choice | None:
    if found["tie"]:
        return Choice.TIE
    if _BOTH.match(found["behind"]) or not _BEHIND.match(found["behind"]):
        return None
    return Choice(found["letter"].upper())


def outcome_of(forward: Choice | None, backward: Choice | None) -> float:
    """Return 1 if the first wins, -1 if the second wins, 0 for a tie, NaN if a verdict is missing.

    ``forward`` is the verdict with the first as A, ``backward`` with the second as A. Only a
    verdict confirmed in both orders is a win; a verdict that follows the order is a tie.
    """
    if forward is None or backward is None:
        return math.nan
    if (forward, backward) == (Choice.A, Choice.B):
        return 1.0
    return -1.0 if (forward, backward) == (Choice.B, Choice.A) else 0.0


#: Statuses that refuse a single request, not the judge as a whole.
_OF_ONE_REQUEST = frozenset({400, 413, 422})

#: Approximate for English; the result has the actual cost.
_CHARACTERS_A_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Judge:
    """The judge's endpoint and options; ``body`` has request parameters besides messages."""

    endpoint: str
    api_key: str | None
    criteria: str
    body: Mapping[str, Any]
    concurrency: int
    timeout_s: float

    @property
    def url(self) -> str:
        """The URL of chat completions."""
        return f"{self.endpoint.rstrip('/')}/chat/completions"


@dataclass(frozen=True, slots=True)
class JudgeRequest:
    """One request: its body, and the cache key of its answer."""

    key: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Duel:
    """Two completions of a prompt, by index, to be judged in both orders.

    Equal texts are a tie without requests: ``requests`` is None.
    """

    first: int
    second: int
    requests: tuple[JudgeRequest, JudgeRequest] | None


@dataclass(frozen=True, slots=True)
class Cost:
    """The remaining cost: requests, approximate tokens, and money if prices are known."""

    num_asks: int
    num_cached: int
    num_same: int
    prompt_tokens: int
    max_answer_tokens: int | None
    money: float | None


def duels_of(material: Material, pairs: Iterable[tuple[int, int]], judge: Judge) -> list[Duel]:
    """Build the requests for pairs of completions."""
    return [_duel(material, first, second, judge) for first, second in pairs]


def cost_of(
    duels: Sequence[Duel], cache: AnswerCache, judge: Judge, prices: tuple[float, float] | None
) -> Cost:
    """Estimate the cost of uncached requests; ``prices`` are per million prompt, answer tokens."""
    requests = {request.key: request for duel in duels for request in duel.requests or ()}
    left = [request for request in requests.values() if request.key not in cache]
    characters = sum(len(one["content"]) for request in left for one in request.body["messages"])
    prompt_tokens = characters // _CHARACTERS_A_TOKEN
    most = judge.body.get("max_tokens", judge.body.get("max_completion_tokens"))
    answer_tokens = None if most is None else len(left) * int(most)
    money = None
    if prices is not None and answer_tokens is not None:
        money = (prompt_tokens * prices[0] + answer_tokens * prices[1]) / 1e6
    return Cost(
        num_asks=len(left),
        num_cached=len(requests) - len(left),
        num_same=sum(duel.requests is None for duel in duels),
        prompt_tokens=prompt_tokens,
        max_answer_tokens=answer_tokens,
        money=money,
    )


async def ask_all(
    duels: Sequence[Duel],
    cache: AnswerCache,
    judge: Judge,
    answered: Callable[[], None],
    transport: httpx.AsyncBaseTransport | None = None,
) -> list[str]:
    """Send the requests that are not cached, with bounded concurrency, and cache each answer.

    Refusals and answers that the judge did not end are not cached; they are returned, one sentence
    each. Raises `StudyError` if the judge is unavailable; answers received before that stay in the
    cache.
    """
    left = _left(duels, cache)
    refused: list[str] = []
    peer = Peer(
        judge.endpoint,
        judge.api_key,
        timeout_s=judge.timeout_s,
        num_connections=judge.concurrency,
        transport=transport,
    )

    async def work() -> None:
        for request in left:
            try:
                answer = await peer.post(judge.url, request.body)
            except Refused as error:
                if error.status not in _OF_ONE_REQUEST:
                    raise
                refused.append(str(error))
            else:
                found = _answer(request.key, answer)
                if found.text:
                    cache.add(found)
                else:
                    refused.append("the judge refused, or its answer was cut off")
            answered()

    try:
        async with asyncio.TaskGroup() as workers:
            for _ in range(judge.concurrency):
                workers.create_task(work())
    except* StudyError as group:
        raise group.exceptions[0] from None
    finally:
        await peer.close()
    return refused


def _left(duels: Sequence[Duel], cache: AnswerCache) -> Iterator[JudgeRequest]:
    """Yield each request once; workers share the iterator."""
    seen: set[str] = set()
    for duel in duels:
        for request in duel.requests or ():
            if request.key not in seen and request.key not in cache:
                seen.add(request.key)
                yield request


def _duel(material: Material, first: int, second: int, judge: Judge) -> Duel:
    one, other = material.samples[first], material.samples[second]
    texts = one.completion_text, other.completion_text
    if texts[0].strip() == texts[1].strip():
        return Duel(first, second, None)
    forward, backward = (
        _request(messages_for(one.prompt_text, *pair, judge.criteria), judge)
        for pair in (texts, texts[::-1])
    )
    return Duel(first, second, (forward, backward))


def _request(messages: list[dict[str, str]], judge: Judge) -> JudgeRequest:
    body = {**judge.body, "messages": messages}
    return JudgeRequest(key_of(judge.url, body), body)


def _answer(key: str, answer: Any) -> Answer:
    """Return an answer; without a text if the judge did not end it or refused."""
    try:
        choice = answer["choices"][0]
        message = choice["message"]
        is_whole = is_ended(choice.get("finish_reason")) and not message.get("refusal")
        text = message["content"] if is_whole else None
        usage = answer.get("usage") or {}
        return Answer(
            key=key,
            text=writable(text) if isinstance(text, str) else text or "",
            prompt_tokens=usage.get("prompt_tokens"),
            completion_tokens=usage.get("completion_tokens"),
        )
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise StudyError(
            "the judge's response is not a valid chat completion (expected a text in "
            f"choices[0].message.content): {excerpt(answer)}"
        ) from error
