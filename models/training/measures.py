"""Measures how well the recipe's models agree with people on held-out questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score

from alarm_models.modeling.inputs import ModelInput
from alarm_models.reward_models.base import RewardModel
from alarm_models.types import Sample, Score
from data import Question, is_error
from features import ASPECTS

__all__ = ["Measure", "holistic_scores", "measure", "scores_of"]

_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure with its 95% bootstrap interval over questions."""

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        """Format as 0.650 [0.600, 0.700]."""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def scores_of(model: RewardModel, samples: Sequence[Sample]) -> list[Score]:
    """Score samples like the server, in batches of sixteen."""
    scores: list[Score] = []
    for start in range(0, len(samples), 16):
        prepared = model.prepare(samples[start : start + 16])
        features = [one for one in prepared if isinstance(one, ModelInput)]
        outputs = iter(model.forward(features) if features else ())
        for one in prepared:
            if isinstance(one, Exception):
                raise one
            scores.append(one if isinstance(one, Score) else model.read(one, next(outputs)))
    return scores


def holistic_scores(model: RewardModel, questions: Sequence[Question]) -> np.ndarray:
    """Return the score of every answer, ``[questions, 4]``."""
    samples = [Sample(one.prompt, answer) for one in questions for answer in one.answers]
    values = [score.value for score in scores_of(model, samples)]
    return np.array(values, dtype=float).reshape(len(questions), -1)


def measure(models: dict[str, RewardModel], questions: Sequence[Question]) -> dict[str, Measure]:
    """Measure every model of the recipe, and the lengths of answers and segments as a baseline."""
    holistic = holistic_scores(models["preference"], questions)
    lengths = np.array([[len(answer) for answer in one.answers] for one in questions], dtype=float)
    found = {
        "holistic": _with_interval(
            [_wins(row, one) for row, one in zip(holistic, questions, strict=True)], _share
        ),
        "holistic: length": _with_interval(
            [_wins(row, one) for row, one in zip(lengths, questions, strict=True)], _share
        ),
    }
    first = [Sample(one.prompt, one.answers[0]) for one in questions]
    for aspect, name in ASPECTS.items():
        rows, baseline = [], []
        for score, question in zip(scores_of(models[name], first), questions, strict=True):
            segments = [one for one in score.segments or () if one.score is not None]
            labels = [int(not is_error(one.span, question.errors, aspect)) for one in segments]
            rows.append((labels, [one.score for one in segments]))
            baseline.append((labels, [one.span.end - one.span.start for one in segments]))
        found[aspect] = _with_interval(rows, _auc)
        found[f"{aspect}: length"] = _with_interval(baseline, _auc)
    return found


def _wins(scores: np.ndarray, question: Question) -> list[float]:
    return [
        float(scores[pair.better] > scores[pair.worse])
        + 0.5 * float(scores[pair.better] == scores[pair.worse])
        for pair in question.pairs
    ]


def _share(rows: Sequence[list[float]]) -> float:
    return float(np.mean([win for row in rows for win in row]))


def _auc(rows: Sequence[tuple[list[int], list[float]]]) -> float:
    labels = [label for row, _ in rows for label in row]
    scores = [score for _, row in rows for score in row]
    return float(roc_auc_score(labels, scores)) if len(set(labels)) == 2 else float("nan")


def _with_interval(rows: Sequence, figure: Callable[[Sequence], float]) -> Measure:
    choose = np.random.default_rng(0)
    draws = [
        figure([rows[index] for index in choose.integers(len(rows), size=len(rows))])
        for _ in range(_RESAMPLES)
    ]
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    count = sum(len(row) if isinstance(row, list) else len(row[0]) for row in rows)
    return Measure(figure(rows), float(low), float(high), count)
