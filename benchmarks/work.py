"""What every way is given, and gives: a task, samples, numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["LABELS", "Sample", "Task", "Twins", "Way", "Work"]

#: Of the token classifiers that are made here; a segment's margin is the last less the first.
LABELS = ("ERR", "O")


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt with one completion; ``segments`` are spans of the completion, in characters."""

    prompt: str
    completion: str
    segments: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Task:
    """A checkpoint, and how it reads samples.

    Kind ``sequence`` gives one number a sample, ``segments`` one margin a segment, read at the
    separator before it.
    """

    folder: Path
    kind: Literal["sequence", "segments"]
    template: str = "{prompt} {completion}"
    separator: str = "[SEP]"
    dtype: str = "float32"
    device: str = "cpu"

    def text(self, sample: Sample) -> str:
        """Return the text that the model reads, separators written out."""
        if self.kind == "sequence":
            return self.template.format(prompt=sample.prompt, completion=sample.completion)
        parts = [self.template.format(prompt=sample.prompt).strip()]
        for start, end in sample.segments:
            parts += [self.separator, sample.completion[start:end]]
        return " ".join(parts)


#: Two lists of samples of the same lengths, without a beginning in common.
Twins = tuple[Sequence[Sample], Sequence[Sample]]

#: The twins of each round; round -1 is for warming up.
Work = Mapping[int, Twins]


@dataclass(frozen=True, slots=True)
class Way:
    """One way to score samples; ``score`` returns their numbers, one after the other.

    A server that remembers prompts is given each prompt once: of its two ways, the second scores
    the round's second ``twin``.
    """

    score: Callable[[Sequence[Sample]], list[float]]
    twin: int = 0
