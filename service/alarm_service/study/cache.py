"""Answers that were paid for, kept in a file of lines as they come, so that none is asked twice."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import TracebackType
from typing import TextIO

from pydantic import BaseModel, ConfigDict, ValidationError

__all__ = ["Answer", "AnswerCache", "key_of"]


class Answer(BaseModel):
    """A judge's words, and the tokens that they cost where the server told."""

    model_config = ConfigDict(frozen=True)

    key: str
    text: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


def key_of(url: str, body: object) -> str:
    """Digest all that decides an answer: whom is asked, and what."""
    return hashlib.sha256(json.dumps([url, body], sort_keys=True).encode()).hexdigest()[:32]


class AnswerCache:
    """A file of answers, one a line; a line that a killed run left torn is asked again."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._answers: dict[str, Answer] = {}
        self._target: TextIO | None = None
        if file.exists():
            for line in file.read_bytes().splitlines():
                try:
                    answer = Answer.model_validate_json(line)
                except ValidationError:
                    continue
                self._answers[answer.key] = answer

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def get(self, key: str) -> Answer | None:
        """Return the answer to a request, where there is one."""
        return self._answers.get(key)

    def add(self, answer: Answer) -> None:
        """Keep an answer, on disk before this returns."""
        if self._target is None:
            raise ValueError("an answer is added while the cache is entered")
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
