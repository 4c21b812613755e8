"""Stand-in reward models whose scores are easy to check by hand.

`Words` scores a completion by its number of words; some words make it misbehave. `Letters` scores
every occurrence of a letter, positive in upper case.
"""

import re
import threading
from collections.abc import Sequence
from typing import Any

import torch

from alarm_models.errors import SampleError
from alarm_models.modeling.inputs import BatchLayout, ForwardOutput, ModelInput
from alarm_models.recipe.schema import Recipe
from alarm_models.reward_models.base import Prepared, require_finite
from alarm_models.types import Sample, Score, SegmentScore, Span

PATIENCE_S = 60

#: What these words of a completion do: raise, score NaN, wait for `release`, end the thread.
BOOM, NAN, HOLD, DIE, POISON = range(-5, 0)
_SPECIAL = {"boom": BOOM, "nan": NAN, "hold": HOLD, "die": DIE, "poison": POISON}


def output_of(batch: Sequence[ModelInput], rows: Sequence[torch.Tensor]) -> ForwardOutput:
    """Return a forward pass's output where every token was computed."""
    return ForwardOutput(rows, [one.num_tokens for one in batch])


class Words:
    """Scores a completion by its number of words.

    In `prepare`, "long" is too long and "choke" raises; in `forward`, "boom" raises, "nan" is no
    number, "hold" sets `held` and waits for `release`, "die" ends the device's thread and "poison"
    breaks the device; more than ``max_samples`` are out of memory.
    """

    fingerprint = "words"
    limit: int | None = 512
    cost = BatchLayout.PADDED

    def __init__(self, max_samples: int = 1000) -> None:
        self.batches: list[int] = []
        self.held = threading.Event()
        self.release = threading.Event()
        self._max_samples = max_samples

    def prepare(self, samples: Sequence[Sample]) -> list[Prepared]:
        return [self._prepare(sample.completion_text.split()) for sample in samples]

    def forward(self, batch: Sequence[ModelInput]) -> ForwardOutput:
        self.batches.append(len(batch))
        words = {word for features in batch for word in features.ids}
        if HOLD in words:
            self.held.set()
            if not self.release.wait(PATIENCE_S):
                raise TimeoutError
        if DIE in words:
            raise SystemExit("the end")
        if POISON in words:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        if BOOM in words:
            raise ValueError("boom")
        if len(batch) > self._max_samples:
            raise torch.OutOfMemoryError("too much")
        return output_of(batch, [torch.tensor([[self._score(one)]]) for one in batch])

    def read(self, features: ModelInput, outputs: torch.Tensor) -> Score:
        value = outputs.item()
        require_finite([value])
        return Score(value, None, features.num_tokens, features.truncated)

    def _prepare(self, words: Sequence[str]) -> Prepared:
        if "choke" in words:
            raise ValueError("choked")
        if "long" in words:
            return SampleError("too_long", "the sample has too many tokens")
        return ModelInput(tuple(_SPECIAL.get(word, 1) for word in words), (), False)

    def _score(self, features: ModelInput) -> float:
        return float("nan") if NAN in features.ids else float(len(features.ids))


class Letters:
    """Scores every occurrence of a letter: positive in upper case; "!" raises in `forward`."""

    limit: int | None = 512
    cost = BatchLayout.PADDED

    def __init__(self, letter: str) -> None:
        self.fingerprint = f"letters-{letter}"
        self.batches: list[int] = []
        self._letter = letter

    def prepare(self, samples: Sequence[Sample]) -> list[Prepared]:
        return [self._prepare(sample.completion_text) for sample in samples]

    def forward(self, batch: Sequence[ModelInput]) -> ForwardOutput:
        self.batches.append(len(batch))
        if any(0 in features.ids for features in batch):
            raise ValueError("!")
        return output_of(batch, [torch.tensor([[float(one)] for one in it.ids]) for it in batch])

    def read(self, features: ModelInput, outputs: torch.Tensor) -> Score:
        margins = outputs[:, 0].tolist()
        segments = tuple(
            SegmentScore(span, "good" if margin > 0 else "bad", margin, margin > 0)
            for span, margin in zip(features.segments, margins, strict=True)
        )
        share = sum(margin > 0 for margin in margins) / len(margins)
        return Score(share, segments, features.num_tokens, features.truncated)

    def _prepare(self, text: str) -> Prepared:
        found = list(re.finditer(f"[{self._letter}{self._letter.upper()}!]", text))
        if not found:
            return Score(None, (), 0, False)
        ids = tuple(
            0 if one.group() == "!" else 1 if one.group().isupper() else -1 for one in found
        )
        return ModelInput(ids, (), False, tuple(Span(*one.span()) for one in found))


def recipe(name: str = "plain", **tables: Any) -> Recipe:
    """Create a recipe with `Words`, and optionally more tables."""
    models = {"words": {"kind": "sequence", "checkpoint": "a/b", "template": "{completion}"}}
    table = {"name": name, "models": models, "holistic": {"model": "words"}}
    return Recipe.model_validate(table | tables)


#: The paper's Figure 1, its second aspect as two: one model has two values.
FIGURE_1 = recipe(
    "figure-1",
    models={"words": {"kind": "sequence", "checkpoint": "a/b", "template": "{completion}"}}
    | {
        letter: {
            "kind": "segments",
            "checkpoint": f"letters/{letter}",
            "template": "{prompt}",
            "positive_label": "good",
            "negative_label": "bad",
        }
        for letter in "abc"
    },
    hierarchy={"rule": "hierarchical", "threshold": 5},
    aspects={
        "a": {"model": "a", "shaping": "none", "positive": 1, "negative": 0},
        "b": {"model": "b", "positive": 1, "negative": -1},
        "c": {"model": "c", "positive": 0, "negative": -2},
    },
)
