"""The inputs and outputs of every variant: a task, samples, numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["LABELS", "Sample", "Task", "Twins", "Way", "Work"]

#: Labels of the token classifiers here; a segment's margin is the last minus the first.
LABELS = ("ERR", "O")


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt with one completion; ``segments`` are spans of the completion, in characters."""

    prompt: str
    completion: str
    segments: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Task:
    """A checkpoint, and how samples are presented to it.

    Kind ``sequence`` gives one number per sample, ``segments`` one margin per segment, read at the
    separator before it. ``trust_remote_code`` runs the class in the checkpoint's folder.
    """

    folder: Path
    kind: Literal["sequence", "segments"]
    template: str = "{prompt} {completion}"
    separator: str = "[SEP]"
    dtype: str = "float32"
    device: str = "cpu"
    trust_remote_code: bool = False

    def text(self, sample: Sample) -> str:
        """Return the text that the model reads, including separators."""
        if self.kind == "sequence":
            return self.template.format(prompt=sample.prompt, completion=sample.completion)
        parts = [self.template.format(prompt=sample.prompt).strip()]
        for start, end in sample.segments:
            parts += [self.separator, sample.completion[start:end]]
        return " ".join(parts)


#: Two lists of samples with the same lengths and without a common prefix.
Twins = tuple[Sequence[Sample], Sequence[Sample]]

#: The twins of each round; rounds below 0 are the warm-up.
Work = Mapping[int, Twins]


@dataclass(frozen=True, slots=True)
class Way:
    """One implementation to time; ``score`` returns the numbers of samples, concatenated.

    A server with a prefix cache must see each prompt only once, so the second of its two variants
    scores the round's second ``twin``.
    """

    score: Callable[[Sequence[Sample]], list[float]]
    twin: int = 0
