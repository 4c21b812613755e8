"""`alarm judge`: pairs of completions before a judge behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from alarm_models.remote.client import excerpt
from alarm_service.study.cache import Answer, AnswerCache, key_of
from alarm_service.study.errors import StudyError
from alarm_service.study.http import Peer, Refused
from alarm_service.study.material import Material
from alarm_service.study.verdicts import messages_for

__all__ = ["Ask", "Cost", "Duel", "Judge", "ask_all", "cost_of", "duels_of"]

#: What a judge answers to one request that it cannot take, while it takes others.
_OF_ONE_REQUEST = frozenset({400, 413, 422})

#: English text, roughly; what a run really cost is in the result.
_CHARACTERS_A_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Judge:
    """Who is asked, and how: ``body`` is what a request has beside its messages."""

    endpoint: str
    api_key: str | None
    criteria: str
    body: Mapping[str, Any]
    concurrency: int
    timeout_s: float

    @property
    def url(self) -> str:
        """Where chats are completed."""
        return f"{self.endpoint.rstrip('/')}/chat/completions"


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: its body, and the key of its answer."""

    key: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Duel:
    """Two completions of one prompt, by index, asked about in both orders.

    Two texts that are the same are a tie that nobody is asked about: no ``asks``.
    """

    first: int
    second: int
    asks: tuple[Ask, Ask] | None


@dataclass(frozen=True, slots=True)
class Cost:
    """What is left to ask: requests and about how many tokens; money where prices are known."""

    num_asks: int
    num_cached: int
    num_same: int
    prompt_tokens: int
    max_answer_tokens: int | None
    money: float | None


def duels_of(material: Material, pairs: Iterable[tuple[int, int]], judge: Judge) -> list[Duel]:
    """Make the requests for pairs of completions."""
    return [_duel(material, first, second, judge) for first, second in pairs]


def cost_of(
    duels: Sequence[Duel], cache: AnswerCache, judge: Judge, prices: tuple[float, float] | None
) -> Cost:
    """Count what is not in the cache; ``prices`` are of a million prompt and answer tokens."""
    asks = {ask.key: ask for duel in duels for ask in duel.asks or ()}
    left = [ask for ask in asks.values() if ask.key not in cache]
    characters = sum(len(one["content"]) for ask in left for one in ask.body["messages"])
    prompt_tokens = characters // _CHARACTERS_A_TOKEN
    most = judge.body.get("max_tokens", judge.body.get("max_completion_tokens"))
    answer_tokens = None if most is None else len(left) * int(most)
    money = None
    if prices is not None and answer_tokens is not None:
        money = (prompt_tokens * prices[0] + answer_tokens * prices[1]) / 1e6
    return Cost(
        num_asks=len(left),
        num_cached=len(asks) - len(left),
        num_same=sum(duel.asks is None for duel in duels),
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
    """Ask what is not in the cache, so many at a time, and keep each answer as it comes.

    Returns what was refused, one sentence each. Raises `StudyError` where the judge cannot be had
    at all; what was answered until then stays in the cache.
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
        for ask in left:
            try:
                answer = await peer.post(judge.url, ask.body)
            except Refused as error:
                if error.status not in _OF_ONE_REQUEST:
                    raise
                refused.append(str(error))
            else:
                cache.add(_answer(ask.key, answer))
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


def _left(duels: Sequence[Duel], cache: AnswerCache) -> Iterator[Ask]:
    """Yield each request once; the workers share the iterator."""
    seen: set[str] = set()
    for duel in duels:
        for ask in duel.asks or ():
            if ask.key not in seen and ask.key not in cache:
                seen.add(ask.key)
                yield ask


def _duel(material: Material, first: int, second: int, judge: Judge) -> Duel:
    one, other = material.samples[first], material.samples[second]
    texts = one.completion_text, other.completion_text
    if texts[0].strip() == texts[1].strip():
        return Duel(first, second, None)
    forward, backward = (
        _ask(messages_for(one.prompt_text, *pair, judge.criteria), judge)
        for pair in (texts, texts[::-1])
    )
    return Duel(first, second, (forward, backward))


def _ask(messages: list[dict[str, str]], judge: Judge) -> Ask:
    body = {**judge.body, "messages": messages}
    return Ask(key_of(judge.url, body), body)


def _answer(key: str, answer: Any) -> Answer:
    try:
        text = answer["choices"][0]["message"]["content"]
        usage = answer.get("usage") or {}
        return Answer(
            key=key,
            text=text or "",
            prompt_tokens=usage.get("prompt_tokens"),
            completion_tokens=usage.get("completion_tokens"),
        )
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise StudyError(
            "the judge does not answer as chat completions do (a text in "
            f"choices[0].message.content): {excerpt(answer)}"
        ) from error
