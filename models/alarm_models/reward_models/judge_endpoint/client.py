"""JudgeEndpoint: asks a judge behind a chat endpoint, within a budget, and stores its answers."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from alarm_models.cancellation import gather_or_cancel
from alarm_models.errors import CheckpointError, SampleError, UnreachableError
from alarm_models.recipe.specs import EndpointSpec
from alarm_models.reward_models.judge_answers import is_ended, is_refusal
from alarm_models.reward_models.judge_endpoint.budget import Expense, RequestBudget
from alarm_models.reward_models.judge_endpoint.cache import AnswerCache, request_key
from alarm_models.reward_models.remote.connections import without_password
from alarm_models.reward_models.remote.http import (
    UNAVAILABLE,
    UNEXPECTED_FORMAT,
    RemoteClient,
    RequestFailed,
    endpoint_failure,
    format_problem,
    json_excerpt,
)
from alarm_models.types import EndpointFailure, JudgeTotals, JudgeUsage

__all__ = [
    "JudgeEndpoint",
    "JudgeReply",
    "JudgeResult",
    "Question",
    "TokenLogprob",
]

_PATH = "/v1/chat/completions"
_IDENTITY_PATH = "/v1/models"

#: Statuses by which servers refuse `response_format`.
_REFUSED = frozenset({400, 404, 415, 422, 501})

#: Characters of a token, for estimates before the server has counted; few, so as not to overspend.
_CHARS_PER_TOKEN = 3

#: Output tokens that are reserved if the recipe sets no limit.
_DEFAULT_OUTPUT_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Question:
    """Messages to a judge and the form of its answers.

    ``schema`` is the JSON schema of an answer, ``schema_name`` its name in the request.
    ``num_votes`` is the number of answers; ``top_logprobs`` requests the log probabilities of each
    token of an answer and of that many alternatives.
    """

    messages: Sequence[Mapping[str, str]]
    schema: Mapping[str, Any] | None = None
    schema_name: str = "verdict"
    num_votes: int = 1
    top_logprobs: int = 0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token that the judge wrote, its log probability, and those of its alternatives."""

    token: str
    logprob: float
    alternatives: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class JudgeReply:
    """One answer of a judge.

    ``refusal`` is the text by which the endpoint says that the model refused. ``tokens`` is empty
    unless log probabilities were requested and given.
    """

    text: str
    finish_reason: str | None = None
    refusal: str | None = None
    tokens: tuple[TokenLogprob, ...] = ()

    @property
    def is_cut(self) -> bool:
        """Whether a limit or a fault ended the answer."""
        return not is_ended(self.finish_reason) and not self.is_refused

    @property
    def is_worth_storing(self) -> bool:
        """Whether the judge ended an answer that is not empty and no refusal."""
        is_whole = self.refusal is None and is_ended(self.finish_reason)
        return is_whole and bool(self.text.strip())

    @property
    def is_refused(self) -> bool:
        """Whether the model or a filter of the endpoint refused to answer."""
        return self.refusal is not None or is_refusal(self.finish_reason)


@dataclass(frozen=True, slots=True)
class JudgeResult:
    """The answers to one question, as many as votes, and what they used."""

    replies: tuple[JudgeReply, ...]
    usage: JudgeUsage
    #: Of stored answers, see `JudgeEndpoint.forget`.
    key: str = ""


class _Limits:
    """The concurrency and the budget of a URL, shared by all its clients in one event loop."""

    def __init__(self, spec: EndpointSpec) -> None:
        self.places = asyncio.Semaphore(spec.max_concurrent)
        self.budget = RequestBudget(spec.budget)


_SHARED_LIMITS: WeakValueDictionary[tuple[int, str], _Limits] = WeakValueDictionary()
_SHARED_LIMITS_LOCK = threading.Lock()


def _limits_of(spec: EndpointSpec, base: str) -> _Limits:
    """Return the limits that clients of a URL with the same constants share."""
    constants = spec.model_dump_json(include={"max_concurrent", "budget"})
    key = (id(asyncio.get_running_loop()), f"{base}|{constants}")
    with _SHARED_LIMITS_LOCK:
        limits = _SHARED_LIMITS.get(key)
        if limits is None:
            limits = _SHARED_LIMITS[key] = _Limits(spec)
        return limits


class JudgeEndpoint:
    """Asks one model of an OpenAI-compatible server; `open` it in the event loop that asks.

    ``observe`` is called with each failure.
    """

    observe: Callable[[EndpointFailure], None] | None = None

    def __init__(self, spec: EndpointSpec) -> None:
        self._totals = JudgeTotals()
        self._spec = spec
        self._base = spec.url.rstrip("/").removesuffix("/v1")
        self._address = without_password(spec.url)
        self._identity = ""
        self._client: RemoteClient | None = None
        self._limits: _Limits | None = None
        self._cache: AnswerCache | None = None
        self._has_schemas = spec.structured != "none"

    @property
    def identity(self) -> str:
        """The address and the model, as the server described it when it was opened."""
        url = urlsplit(self._base)
        return f"{url.scheme}://{url.hostname}:{url.port}{url.path}|{self._identity}"

    @property
    def totals(self) -> JudgeTotals:
        """What the judge was asked since the endpoint was made."""
        return self._totals

    @property
    def has_schemas(self) -> bool:
        """Whether answers are requested in the form of a schema."""
        return self._has_schemas

    async def open(self) -> None:
        """Ask which model the server serves, and open the cache.

        Raises `CheckpointError`; `UnreachableError` if the server is temporarily unavailable.
        """
        self._limits = _limits_of(self._spec, self._base)
        self._client = RemoteClient(self._spec.url, self._spec, self._limits.places)
        try:
            self._identity = await self._served_model(self._client)
            if self._spec.cache is not None:
                self._cache = await asyncio.to_thread(
                    AnswerCache, self._spec.cache, self._spec.max_cache_bytes
                )
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close the connections and the cache."""
        if self._client is not None:
            await self._client.close()
            self._client = None
        self._limits = None
        if self._cache is not None:
            self._cache.close()
            self._cache = None

    async def ask(self, question: Question) -> JudgeResult:
        """Return a judge's answers, stored ones if the same question was answered before.

        Raises `SampleError`: ``model_failed`` if there is no answer, ``budget_exceeded`` if the
        budget of a minute does not allow it. A truncated or refused answer is a `JudgeReply`.
        """
        body = self._body(question, with_schema=self._has_schemas)
        # The same whether or not the server turns out to refuse schemas.
        whole = self._body(question, with_schema=self._spec.structured != "none")
        key = request_key(self._base, self._identity, whole)
        if self._cache is not None:
            stored = await self._cache.get(key)
            if stored is not None:
                with suppress(*UNEXPECTED_FORMAT):  # written by another version, or damaged
                    replies = _replies_of_json(stored, question.num_votes)
                    usage = JudgeUsage(num_cached=1)
                    self._count(usage=usage)
                    return JudgeResult(replies, usage, key)
        try:
            result = await self._votes(body, question)
        except SampleError as error:
            is_over_budget = error.code == "budget_exceeded"
            self._count(failed=1, over_budget=int(is_over_budget))
            reason = error.code if is_over_budget else "unknown_format"
            self._report(EndpointFailure(self._address, reason, error.summary))
            raise
        except RequestFailed as failed:
            self._count(failed=1)
            self._report(endpoint_failure(self._address, failed))
            raise SampleError("model_failed", str(failed)) from failed
        if self._cache is not None and all(one.is_worth_storing for one in result.replies):
            await self._cache.put(key, [asdict(reply) for reply in result.replies])
        return replace(result, key=key)

    async def forget(self, result: JudgeResult) -> None:
        """Remove stored answers of which one cannot be read, so that the judge is asked again."""
        if self._cache is not None:
            await self._cache.remove(result.key)

    def report_unread(self, reply: JudgeReply, error: SampleError) -> None:
        """Count an answer that cannot be read, and report it to ``observe``."""
        self._count(unread=1)
        reason = "refused" if reply.is_refused else "cut_off" if reply.is_cut else "unreadable"
        self._report(EndpointFailure(self._address, reason, error.summary))

    def _report(self, failure: EndpointFailure) -> None:
        if self.observe is not None:
            self.observe(failure)

    async def _served_model(self, client: RemoteClient) -> str:
        answer = None
        try:
            answer = await client.request("GET", _IDENTITY_PATH)
            rows = [row for row in answer["data"] if row["id"] == self._spec.model]
            return str([[row["id"], row.get("root")] for row in rows])
        except RequestFailed as failed:
            if failed.status in (404, 405):
                return ""  # not every server has the route
            is_away = failed.status is None or failed.status in UNAVAILABLE
            raise (UnreachableError if is_away else CheckpointError)(str(failed)) from failed
        except UNEXPECTED_FORMAT as error:
            raise CheckpointError(
                f"the judge at {urlsplit(self._base).hostname} is no OpenAI-compatible server: its "
                f"list of models {format_problem(error)}: "
                f"{json_excerpt(answer, self._spec.api_key)}"
            ) from error

    def _body(self, question: Question, *, with_schema: bool) -> dict[str, Any]:
        body: dict[str, Any] = dict(self._spec.parameters)
        body |= {"model": self._spec.model, "messages": list(map(dict, question.messages))}
        if question.num_votes > 1:
            body["n"] = question.num_votes
        if question.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": question.top_logprobs}
        if question.schema is not None and with_schema:
            schema = {"name": question.schema_name, "schema": question.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    async def _votes(self, body: dict[str, Any], question: Question) -> JudgeResult:
        """Request the votes; servers that ignore `n` are asked for the missing ones singly."""
        result = await self._first_answer(body)
        missing = question.num_votes - len(result.replies)
        if missing > 0:
            single = {key: value for key, value in body.items() if key != "n"}
            others = await gather_or_cancel(*(self._first_answer(single) for _ in range(missing)))
            replies = (*result.replies, *(reply for one in others for reply in one.replies))
            usage = sum((one.usage for one in others), result.usage)
            result = JudgeResult(replies, usage)
        if len(result.replies) != question.num_votes:
            raise SampleError(
                "model_failed",
                f"{question.num_votes} answers of the judge were requested, "
                f"{len(result.replies)} came",
            )
        return result

    async def _first_answer(self, body: dict[str, Any]) -> JudgeResult:
        """Return the first answer to a request, which is repeated if it takes too long."""
        first = asyncio.ensure_future(self._request(body))
        tasks = {first}
        try:
            if self._spec.hedge_after_s is not None:
                await asyncio.wait(tasks, timeout=self._spec.hedge_after_s)
                if not first.done():
                    self._count(hedged=1)
                    tasks.add(asyncio.ensure_future(self._request(body)))
            return await _first_success(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _request(self, body: dict[str, Any]) -> JudgeResult:
        try:
            return await self._answer(body)
        except RequestFailed as failed:
            is_optional = self._spec.structured == "auto" and "response_format" in body
            if not is_optional or failed.status not in _REFUSED:
                raise
            plain = {key: value for key, value in body.items() if key != "response_format"}
            result = await self._answer(plain)
            self._has_schemas = False
            return result

    async def _answer(self, body: dict[str, Any]) -> JudgeResult:
        if self._client is None or self._limits is None:
            raise RuntimeError("the endpoint was not opened")
        budget = self._limits.budget
        estimate = self._estimate(body)
        settled: list[Callable[[Expense], None]] = []

        def release(failed: RequestFailed) -> None:
            """Take a refused request, which uses no tokens, out of the budget."""
            if failed.status is not None and failed.status >= 400 and settled:
                settled[-1](Expense())

        async def admit(failed: RequestFailed | None) -> None:
            if failed is not None:
                release(failed)
            settled.append(await budget.enter(estimate))
            self._count(usage=JudgeUsage(num_requests=1))

        try:
            answer = await self._client.request("POST", _PATH, body, admit)
        except RequestFailed as failed:
            release(failed)
            raise
        try:
            usage = self._usage(answer, estimate)
            self._count(usage=usage)
            settled[-1](Expense(usage.num_input_tokens + usage.num_output_tokens, usage.cost))
            replies = tuple(map(_reply, answer["choices"]))
        except UNEXPECTED_FORMAT as error:
            raise SampleError(
                "model_failed",
                f"the judge's response {format_problem(error)}",
                json_excerpt(answer, self._spec.api_key),
            ) from error
        return JudgeResult(replies, usage + JudgeUsage(num_requests=len(settled)))

    def _estimate(self, body: Mapping[str, Any]) -> Expense:
        num_chars = sum(len(message["content"]) for message in body["messages"])
        num_input = math.ceil(num_chars / _CHARS_PER_TOKEN)
        limits = (body.get(key) for key in ("max_completion_tokens", "max_tokens"))
        limit = next((one for one in limits if isinstance(one, int)), _DEFAULT_OUTPUT_TOKENS)
        num_output = limit * int(body.get("n", 1))
        return Expense(num_input + num_output, self._cost(num_input, num_output))

    def _usage(self, answer: Any, estimate: Expense) -> JudgeUsage:
        """Return what the server counted; the estimate where it counts nothing."""
        counted = answer.get("usage")
        counted = counted if isinstance(counted, Mapping) else {}
        num_input = _count(counted.get("prompt_tokens"))
        num_output = _count(counted.get("completion_tokens"))
        if not num_input and not num_output:
            num_input = _count(counted.get("total_tokens"))
        if not num_input and not num_output:
            return JudgeUsage(num_input_tokens=estimate.tokens, cost=estimate.cost)
        return JudgeUsage(
            num_input_tokens=num_input,
            num_output_tokens=num_output,
            cost=self._cost(num_input, num_output),
        )

    def _count(
        self,
        usage: JudgeUsage | None = None,
        *,
        failed: int = 0,
        unread: int = 0,
        hedged: int = 0,
        over_budget: int = 0,
    ) -> None:
        """Add to the totals; only the event loop does."""
        totals = self._totals
        self._totals = JudgeTotals(
            totals.usage if usage is None else totals.usage + usage,
            totals.num_failed + failed,
            totals.num_unread + unread,
            totals.num_hedged + hedged,
            totals.num_over_budget + over_budget,
        )

    def _cost(self, num_input: int, num_output: int) -> float:
        spec = self._spec
        return (num_input * spec.input_price + num_output * spec.output_price) / 1e6


async def _first_success(tasks: set[asyncio.Task[JudgeResult]]) -> JudgeResult:
    """Return the result of the first task that succeeds; raise what the last one raises."""
    pending = set(tasks)
    while True:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        succeeded = [task for task in done if task.exception() is None]
        if succeeded or not pending:
            return (succeeded or list(done))[0].result()


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _reply(choice: Any) -> JudgeReply:
    message = choice["message"]
    text, refusal = message.get("content"), message.get("refusal")
    if not isinstance(text, str | None) or not isinstance(refusal, str | None):
        raise TypeError("message.content must be a text")
    finish_reason = choice.get("finish_reason")
    logprobs = (choice.get("logprobs") or {}).get("content") or ()
    return JudgeReply(
        text or "",
        None if finish_reason is None else str(finish_reason),
        refusal or None,
        tuple(map(_token, logprobs)),
    )


def _token(row: Any) -> TokenLogprob:
    alternatives = tuple((str(one["token"]), float(one["logprob"])) for one in row["top_logprobs"])
    return TokenLogprob(str(row["token"]), float(row["logprob"]), alternatives)


def _replies_of_json(stored: Any, num_votes: int) -> tuple[JudgeReply, ...]:
    replies = tuple(map(_reply_of_json, stored))
    if len(replies) != num_votes:
        raise ValueError("as many answers as votes were expected")
    for one in replies:
        if not isinstance(one.text, str) or not isinstance(one.refusal, str | None):
            raise TypeError("a text was expected")
    return replies


def _reply_of_json(stored: Any) -> JudgeReply:
    tokens = tuple(
        TokenLogprob(
            one["token"],
            one["logprob"],
            tuple((token, logprob) for token, logprob in one["alternatives"]),
        )
        for one in stored["tokens"]
    )
    return JudgeReply(stored["text"], stored["finish_reason"], stored["refusal"], tokens)
