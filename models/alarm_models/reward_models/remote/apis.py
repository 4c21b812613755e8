"""Requests and responses of remote APIs: vLLM, SGLang, TEI, alarm servers, LLM judges."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from alarm_models.errors import SampleError
from alarm_models.preprocessing.templates import (
    FieldPattern,
    TextTemplate,
    conversation,
    num_prompt_messages,
)
from alarm_models.preprocessing.untrusted_text import neutralized_sample
from alarm_models.recipe.specs import ANY_NUMBER, KINDS, JudgeMessage, RemoteSpec
from alarm_models.reward_models.judge_answers import (
    AnswerReader,
    JudgeAnswer,
    is_ended,
    is_refusal,
)
from alarm_models.reward_models.remote.connections import excerpt
from alarm_models.sample_json import (
    message_to_json,
    number,
    sample_to_json,
    score_from_json,
    whole_number,
)
from alarm_models.types import Sample, Score

__all__ = [
    "AlarmApi",
    "Api",
    "JudgeApi",
    "SglangApi",
    "TeiApi",
    "VllmApi",
    "VllmScoringApi",
    "api_of",
    "named_score",
    "number",
    "plain_score",
]


def plain_score(value: float) -> Score | SampleError:
    """Return the score of one number."""
    if not math.isfinite(value):
        return SampleError("non_finite", "the remote model gave a number that is not finite")
    return Score(value, None, 0, False)


def named_score(
    numbers: Sequence[object], names: Sequence[str] | None, spec: RemoteSpec
) -> Score | SampleError:
    """Return the score of one number, or of several named outputs.

    Several numbers become outputs; the score is their sum by the recipe's ``weights``. Raises
    `TypeError` for anything that is not a number.
    """
    if not isinstance(numbers, list | tuple):
        raise TypeError(f"numbers were expected, not a {type(numbers).__name__}")
    if len(numbers) == 1 and spec.labels is None:
        return plain_score(number(numbers[0]))
    names = spec.labels or names
    if names is None or len(names) != len(numbers):
        return SampleError(
            "model_failed",
            f"the remote model returned {len(numbers)} numbers: name them in order in `labels`",
        )
    outputs = {name: number(one) for name, one in zip(names, numbers, strict=True)}
    if not all(map(math.isfinite, outputs.values())):
        return SampleError("non_finite", "the remote model gave a number that is not finite")
    return Score(_weighed(outputs, spec.weights), None, 0, False, outputs=outputs)


def _weighed(outputs: Mapping[str, float], weights: Mapping[str, float]) -> float | None:
    if not weights:
        return next(iter(outputs.values())) if len(outputs) == 1 else None
    return sum(weight * outputs[name] for name, weight in weights.items())


#: Error codes of samples that are passed on unchanged.
_CODES = frozenset(
    {"too_long", "non_finite", "invalid_sample", "model_failed", "unsupported_content"}
)

_NOT_FINITE = SampleError("non_finite", "the remote model gave a number that is not finite")


class AlarmApi:
    """The ``/score`` route of another alarm server; a changed fingerprint is an error."""

    path = "/score"
    identity_path = "/models"

    def __init__(self, spec: RemoteSpec) -> None:
        self.max_samples = spec.batch_size
        self._spec = spec
        self._is_graded = False

    def body(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Return a request with unchanged samples."""
        named = {} if self._spec.model is None else {"model": self._spec.model}
        return named | {"samples": [sample_to_json(sample) for sample in samples]}

    def with_activation(self, body: Mapping[str, Any]) -> None:
        """None: the other server's recipe sets the activation."""

    def read(self, answer: Any, num_samples: int) -> list[Score | SampleError]:
        """Read one score or error per sample."""
        return [self._outcome(row) for row in answer["scores"]]

    def identity(self, answer: Any) -> str:
        """Return the model's fingerprint, and store whether its kind grades segments."""
        name = self._spec.model
        if name is None:
            # The default is the first recipe's holistic model.
            first = answer["recipes"][0]
            name = first["holistic"]
        row = next(row for row in answer["models"] if row["name"] == name)
        if row["fingerprint"] is None:
            raise ValueError(f"the model {name!r} is still loading on that server")
        spec = KINDS.get(row["kind"])
        self._is_graded = spec is not None and spec.grades_segments
        if not isinstance(row["fingerprint"], str):
            raise TypeError("the fingerprint must be a string")
        return row["fingerprint"]

    def stated_identity(self, answer: Any) -> str:
        """Return the model's fingerprint, which each response names."""
        return str(answer["fingerprint"])

    def _outcome(self, row: Any) -> Score | SampleError:
        if row["error"] is not None:
            code, message = str(row["error"]["code"]), excerpt(row["error"]["message"])
            if code in _CODES:
                return SampleError(code, message)
            return SampleError("model_failed", f"{excerpt(code)}: {message}")
        score = score_from_json(row, is_graded=self._is_graded)
        return score if _is_finite(score) else _NOT_FINITE


def _is_finite(score: Score) -> bool:
    numbers = [score.value, *(score.outputs or {}).values()]
    numbers += [one.score for one in score.segments or ()]
    numbers += [one.score for some in (score.output_segments or {}).values() for one in some]
    return all(one is None or math.isfinite(one) for one in numbers)


class _Anonymous:
    """Base of the APIs whose responses do not say which weights gave the scores."""

    def stated_identity(self, answer: Any) -> None:
        """None: no response states it."""


class _Classifier(_Anonymous):
    """Base of three APIs: one text per sample, and a list of numbers per text."""

    def __init__(self, spec: RemoteSpec, fields: Mapping[str, FieldPattern]) -> None:
        self.max_samples = spec.batch_size
        self._spec = spec
        self._template = TextTemplate(spec.template or "", fields=fields)
        self._named: dict[str, Any] = {} if spec.model is None else {"model": spec.model}

    def _texts(self, samples: Sequence[Sample]) -> list[str]:
        return [self._template.render(sample).text for sample in samples]


class VllmApi(_Classifier):
    """vLLM's ``/classify``: texts, or a conversation to which it applies its chat template."""

    path = "/classify"
    identity_path = "/v1/models"

    def __init__(self, spec: RemoteSpec, fields: Mapping[str, FieldPattern]) -> None:
        super().__init__(spec, fields)
        if spec.template == "chat":
            self.max_samples = 1

    def body(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Return a request with texts, or with one conversation."""
        common = self._named | {"use_activation": False}
        if self._spec.template != "chat":
            return common | {"input": self._texts(samples)}
        (sample,) = samples
        more: dict[str, Any] = {"tools": list(sample.tools)} if sample.tools else {}
        if self._spec.chat_template_kwargs:
            more["chat_template_kwargs"] = dict(self._spec.chat_template_kwargs)
        return common | {"messages": list(map(message_to_json, conversation(sample)))} | more

    def with_activation(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Ask for what vLLM gives by default."""
        return {**body, "use_activation": True}

    def read(self, answer: Any, num_samples: int) -> list[Score | SampleError]:
        """Read ``probs``, which are logits without activation."""
        rows = {_index(row): row for row in answer["data"]}
        if len(rows) != len(answer["data"]) or sorted(rows) != list(range(num_samples)):
            raise ValueError(f"{num_samples} texts were sent, but the response has other indices")
        return [named_score(rows[at]["probs"], None, self._spec) for at in range(num_samples)]

    def identity(self, answer: Any) -> str:
        """Return the model's name and where its weights come from."""
        return str([[row["id"], row.get("root")] for row in answer["data"]])


class VllmScoringApi(_Classifier):
    """vLLM's ``/generative_scoring``: the probability of a token that would come next.

    One text per request: vLLM cuts a text that is too long without saying so, and reports only the
    number of tokens of a whole request.
    """

    path = "/generative_scoring"
    identity_path = "/v1/models"

    def __init__(self, spec: RemoteSpec, fields: Mapping[str, FieldPattern]) -> None:
        super().__init__(spec, fields)
        self.max_samples = 1
        self._max_tokens: int | None = None

    def body(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Return a request with one text as the query, and nothing after it."""
        (text,) = self._texts(samples)
        return self._named | {
            "query": text,
            "items": [""],
            "label_token_ids": list(self._spec.label_token_ids),
            "add_special_tokens": self._spec.special_tokens,
        }

    def with_activation(self, body: Mapping[str, Any]) -> None:
        """None: a probability has no activation."""

    def read(self, answer: Any, num_samples: int) -> list[Score | SampleError]:
        """Read the probability of the first token; a text that may have been cut is an error."""
        (row,) = answer["data"]
        num_tokens = whole_number(answer["usage"]["prompt_tokens"])
        if self._max_tokens is not None and num_tokens >= self._max_tokens - 1:
            return [
                SampleError(
                    "too_long",
                    f"the text has {self._max_tokens - 1} tokens or more, to which vLLM cuts it: "
                    "start vLLM with a longer --max-model-len, or shorten the text",
                )
            ]
        return [plain_score(number(row["score"]))]

    def identity(self, answer: Any) -> str:
        """Return the model's name and where its weights come from."""
        rows = answer["data"]
        named = [row for row in rows if self._spec.model in (None, row["id"])]
        lengths = [row["max_model_len"] for row in named if row.get("max_model_len") is not None]
        self._max_tokens = min(map(whole_number, lengths), default=None)
        return str([[row["id"], row.get("root")] for row in named])


class SglangApi(_Classifier):
    """SGLang's own ``/classify``, whose ``embedding`` is a reward model's logits."""

    path = "/classify"
    identity_path = "/get_model_info"

    def body(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Return a request with texts."""
        return self._named | {"text": self._texts(samples)}

    def with_activation(self, body: Mapping[str, Any]) -> None:
        """None: this route applies no activation."""

    def read(self, answer: Any, num_samples: int) -> list[Score | SampleError]:
        """Read one row per text, in order."""
        return [named_score(row["embedding"], None, self._spec) for row in answer]

    def identity(self, answer: Any) -> str:
        """Return where the weights come from."""
        return str(answer["model_path"])


class TeiApi(_Classifier):
    """text-embeddings-inference's ``/predict``.

    Each text is sent as a list of one: two texts in one list would be a pair. Scores are sorted by
    value, so they are matched by label.
    """

    path = "/predict"
    identity_path = "/info"

    def body(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Return a request with texts, without truncation."""
        inputs = [[text] for text in self._texts(samples)]
        return {"inputs": inputs, "raw_scores": True, "truncate": False}

    def with_activation(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Ask for what TEI gives by default."""
        return {**body, "raw_scores": False}

    def read(self, answer: Any, num_samples: int) -> list[Score | SampleError]:
        """Read the scores of each text by their labels."""
        return [self._score(rows) for rows in answer]

    def identity(self, answer: Any) -> str:
        """Return the model, the revision of its weights and their type."""
        return str([answer["model_id"], answer.get("model_sha"), answer.get("model_dtype")])

    def _score(self, rows: Sequence[Mapping[str, Any]]) -> Score | SampleError:
        by_label = {row["label"]: row["score"] for row in rows}
        if len(by_label) != len(rows):
            raise ValueError("a label has two scores")
        names = self._spec.labels or sorted(by_label)
        return named_score([by_label[name] for name in names], names, self._spec)


def _index(row: Mapping[str, Any]) -> int:
    index = row["index"]
    if isinstance(index, bool) or not isinstance(index, int):
        raise TypeError(f"an index was expected, not a {type(index).__name__}")
    return index


class JudgeApi(_Anonymous):
    """An OpenAI-compatible ``/v1/chat/completions``; `AnswerReader` reads the score."""

    path = "/v1/chat/completions"
    identity_path = "/v1/models"
    max_samples = 1

    def __init__(self, spec: RemoteSpec, fields: Mapping[str, FieldPattern]) -> None:
        self._spec = spec
        turns = spec.messages or (JudgeMessage(role="user", content=spec.rubric or ""),)
        self._turns = [
            turn
            if isinstance(turn, str)
            else (turn.role, TextTemplate(turn.content, fields=fields))
            for turn in turns
        ]
        self._answers = AnswerReader(spec, "parameters.max_tokens")

    def body(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Return the recipe's messages with the sample's texts, without control tokens."""
        (given,) = samples
        sample = neutralized_sample(given)
        messages: list[dict[str, Any]] = []
        for turn in self._turns:
            if isinstance(turn, str):
                messages += _own_messages(sample, turn)
            else:
                role, template = turn
                messages.append({"role": role, "content": template.render(sample).text})
        votes = {} if self._spec.n == 1 else {"n": self._spec.n}
        parameters = dict(self._spec.parameters)
        return parameters | votes | {"model": self._spec.model, "messages": messages}

    def with_activation(self, body: Mapping[str, Any]) -> None:
        """None: ratings have no activation."""

    def read(self, answer: Any, num_samples: int) -> list[Score | SampleError]:
        """Return the rating of the judge; of several answers, more than half must be readable.

        The score is the mean of those.
        """
        choices = answer["choices"]
        num_votes = self._spec.num_votes
        if len(choices) != num_votes:
            what = f"came {len(choices)} times, {num_votes} were asked for"
            return [SampleError("model_failed", f"the judge's answer {what}")]
        try:
            return [plain_score(self._answers.score(list(map(_answer, choices))))]
        except SampleError as error:
            return [error.with_traceback(None)]

    def identity(self, answer: Any) -> str:
        """Return the model's name and root, if the server lists it."""
        rows = [row for row in answer["data"] if row["id"] == self._spec.model]
        served = str([[row["id"], row.get("root")] for row in rows])
        return (
            served
            if self._spec.pattern != ANY_NUMBER
            else f"{served}, ratings as people write them"
        )


def _answer(choice: Any) -> JudgeAnswer:
    reason, message = choice.get("finish_reason"), choice["message"]
    refusal = message.get("refusal")
    text = message["content"] or refusal or ""
    return JudgeAnswer(text, not is_ended(reason), bool(refusal) or is_refusal(reason))


def _own_messages(sample: Sample, part: str) -> list[dict[str, Any]]:
    """Return the messages of a sample's prompt or completion."""
    messages, num_prompt = conversation(sample), num_prompt_messages(sample)
    own = messages[:num_prompt] if part == "{prompt}" else messages[num_prompt:]
    return list(map(message_to_json, own))


class Api(Protocol):
    """Requests and responses of one API."""

    path: str
    #: The route that describes the served model.
    identity_path: str
    #: Maximum number of samples per request.
    max_samples: int

    def body(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Return the request for samples; raise `SampleError` for one that cannot be sent."""

    def with_activation(self, body: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the request for activated scores; None if the API has no such option."""

    def read(self, answer: Any, num_samples: int) -> list[Score | SampleError]:
        """Read one result per sample, in order.

        Raises `LookupError`, `TypeError` or `ValueError` for a response of another format.
        """

    def identity(self, answer: Any) -> str:
        """Return what determines the scores, from the server's description; raises as `read`."""

    def stated_identity(self, answer: Any) -> str | None:
        """Return the identity that a response with scores states; None if it states none."""


def api_of(spec: RemoteSpec, fields: Mapping[str, FieldPattern]) -> Api:
    """Return the API that a recipe names."""
    match spec.api:
        case "vllm":
            return VllmApi(spec, fields)
        case "vllm-scoring":
            return VllmScoringApi(spec, fields)
        case "sglang":
            return SglangApi(spec, fields)
        case "tei":
            return TeiApi(spec, fields)
        case "alarm":
            return AlarmApi(spec)
        case "chat":
            return JudgeApi(spec, fields)
