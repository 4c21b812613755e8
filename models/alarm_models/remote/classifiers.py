"""Servers of classifiers: vLLM, SGLang and text-embeddings-inference, all asked for raw logits.

Each of them would squash a score if it were not told otherwise: vLLM and TEI by a sigmoid, SGLang's
``/v1/classify`` by a softmax over one logit, which is 1 whatever the logit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alarm_models.errors import SampleError
from alarm_models.remote.numbers import named_score
from alarm_models.sample import Sample, Score
from alarm_models.specs import RemoteSpec
from alarm_models.texts.template import FieldPattern, TextTemplate, conversation

__all__ = ["SglangApi", "TeiApi", "VllmApi"]


class _Classifier:
    """What the three share: a text a sample, and a list of numbers a text."""

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
        """Return a request of texts, or of one conversation."""
        common = self._named | {"use_activation": False}
        if self._spec.template != "chat":
            return common | {"input": self._texts(samples)}
        turns = conversation(samples[0])
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        return common | {"messages": messages}

    def with_activation(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Ask for what vLLM gives by default."""
        return {**body, "use_activation": True}

    def read(self, answer: Any, num_samples: int) -> list[Score | SampleError]:
        """Read ``probs``, which without activation are logits."""
        rows = {_index(row): row for row in answer["data"]}
        if len(rows) != len(answer["data"]) or sorted(rows) != list(range(num_samples)):
            raise ValueError(f"{num_samples} texts were sent, the answer's indices are others")
        return [named_score(rows[at]["probs"], None, self._spec) for at in range(num_samples)]

    def identity(self, answer: Any) -> str:
        """Return the model's name and where its weights come from."""
        return str([[row["id"], row.get("root")] for row in answer["data"]])


class SglangApi(_Classifier):
    """SGLang's own ``/classify``, whose ``embedding`` is a reward model's logits."""

    path = "/classify"
    identity_path = "/get_model_info"

    def body(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Return a request of texts."""
        return self._named | {"text": self._texts(samples)}

    def with_activation(self, body: Mapping[str, Any]) -> None:
        """This route never activates."""

    def read(self, answer: Any, num_samples: int) -> list[Score | SampleError]:
        """Read one row a text, in order."""
        return [named_score(row["embedding"], None, self._spec) for row in answer]

    def identity(self, answer: Any) -> str:
        """Return where the weights come from."""
        return str(answer["model_path"])


class TeiApi(_Classifier):
    """text-embeddings-inference's ``/predict``.

    Each text is a list of one: two texts in one list would be a pair. Scores come by label, the
    highest first, so they are read by name.
    """

    path = "/predict"
    identity_path = "/info"

    def body(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Return a request of texts, none of which may be cut in silence."""
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
