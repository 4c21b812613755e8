"""Measures on held-out questions how the models agree with people and rank wrong answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from sklearn.metrics import roc_auc_score

from alarm_models.modeling.inputs import ModelInput
from alarm_models.reward_models.base import RewardModel
from alarm_models.types import Sample, Score
from data import Question, is_error
from features import ASPECTS
from wrong_answers import (
    HELD_OUT_KINDS,
    KINDS,
    SUBTLE,
    Passages,
    changed_words,
    short_answers,
    supported_prompt,
    true_denial,
    words_of,
    wrong_answers,
)

__all__ = ["FORMS", "Measure", "holistic_scores", "measure", "rankings", "scores_of"]

#: Right answers of which wrong ones are made: the correction of a sampled answer by people, their
#: own answer, and short answers with all passages or only the supporting sentences; of the latter
#: two, also those where the passages have each word that the wrong answer changes.
FORMS = ("corrected", "own", "own, in the passages", "short", "short, in the passages")

#: Prompt and completion.
_Text = tuple[str, str]

_RESAMPLES = 2000

#: Wrong answers of a kind that are made from each right answer, where they differ.
_DRAWS = 5


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
        "holistic: corrected over original": _corrections(models["preference"], questions),
        "holistic: true over false denials": _with_interval(
            _denials(models["preference"], questions), _share
        ),
        "holistic: without full stop over subtly wrong": _with_interval(
            _without_stops(models["preference"], questions), _share
        ),
        "holistic: r of length, sampled answers": _with_interval(
            [list(zip(*rows, strict=True)) for rows in zip(holistic, lengths, strict=True)],
            _correlation,
        ),
        "holistic: r of length, people's answers": _with_interval(
            _human_lengths(models["preference"], questions), _correlation
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


def rankings(
    model: RewardModel, questions: Sequence[Question]
) -> Mapping[str, Mapping[str, Measure]]:
    """Return how often a right answer scores higher than a wrong one, by kind and form.

    Wrong answers are made from the questions' own passages and answers. Ties count one half.
    """
    pairs = [
        (kind, form, index, right, wrong)
        for index, question in enumerate(questions)
        for kind, form, right, wrong in _wrong_pairs(question, questions[index - 1])
    ]
    texts = list(dict.fromkeys(text for *_, right, wrong in pairs for text in (right, wrong)))
    values = (score.value for score in scores_of(model, [Sample(*one) for one in texts]))
    score_of = dict(zip(texts, values, strict=True))
    wins: dict[tuple[str, str], list[list[float]]] = defaultdict(lambda: [[] for _ in questions])
    for kind, form, index, right, wrong in pairs:
        wins[kind, form][index].append(_win(score_of[right], score_of[wrong]))
    return {
        kind: {
            form: _with_interval([row for row in wins[kind, form] if row], _share)
            for form in FORMS
            if (kind, form) in wins
        }
        for kind in (*KINDS, *HELD_OUT_KINDS)
    }


def _wrong_pairs(question: Question, other: Question) -> list[tuple[str, str, _Text, _Text]]:
    """Return kind and form of each wrong answer, and prompt and text of the right and wrong one."""
    choose, own = Random(question.text), Passages(question)
    human, corrected = question.references
    right = [("corrected", question.prompt, corrected), ("own", question.prompt, human)]
    for index, text in enumerate(short_answers(question, own)):
        prompt = question.prompt if index % 2 else supported_prompt(own, f"{human} {text}", choose)
        right.append(("short", prompt, text))
    found = []
    kinds = (*KINDS, *HELD_OUT_KINDS)
    for form, prompt, text in right:
        made = [wrong_answers(text, own, other, choose, kinds) for _ in range(_DRAWS)]
        different = dict.fromkeys(one for draw in made for one in draw.items())
        for kind, wrong in different if text.strip() else ():
            found.append((kind, form, (prompt, text), (prompt, wrong)))
            in_passages = f"{form}, in the passages"
            if in_passages in FORMS and changed_words(text, wrong) <= words_of(prompt):
                found.append((kind, in_passages, (prompt, text), (prompt, wrong)))
    return found


def _denials(model: RewardModel, questions: Sequence[Question]) -> list[list[float]]:
    """Return by question how often a right answer with a true denial beats one that is negated."""
    pairs = []
    for index, question in enumerate(questions):
        choose, own, other = Random(question.text), Passages(question), questions[index - 1]
        for text in question.references:
            right = true_denial(text, own, other, choose)
            wrong = wrong_answers(text, own, other, choose, ["negated"]).get("negated")
            if right is not None and wrong is not None:
                pairs.append(
                    (index, Sample(question.prompt, right), Sample(question.prompt, wrong))
                )
    return _wins_of_pairs(model, pairs, len(questions))


def _without_stops(model: RewardModel, questions: Sequence[Question]) -> list[list[float]]:
    """Return by question how often short right answers without full stop beat wrong ones with it.

    The wrong ones are of the kinds that a few words tell.
    """
    pairs = [
        (index, Sample(prompt, text.rstrip(".")), Sample(*wrong))
        for index, question in enumerate(questions)
        for kind, form, (prompt, text), wrong in _wrong_pairs(question, questions[index - 1])
        if form == "short" and kind in SUBTLE and text.endswith(".") and wrong[1].endswith(".")
    ]
    return _wins_of_pairs(model, pairs, len(questions))


def _wins_of_pairs(
    model: RewardModel, pairs: Sequence[tuple[int, Sample, Sample]], number: int
) -> list[list[float]]:
    """Return by question how the first of two samples does against the second."""
    values = [
        score.value for score in scores_of(model, [one for _, *both in pairs for one in both])
    ]
    wins: list[list[float]] = [[] for _ in range(number)]
    for (index, *_), right, wrong in zip(pairs, values[::2], values[1::2], strict=True):
        wins[index].append(_win(right, wrong))
    return [row for row in wins if row]


def _corrections(model: RewardModel, questions: Sequence[Question]) -> Measure:
    """Return how often people's correction scores higher than the answer that they corrected."""
    changed = [
        one
        for one in questions
        if one.references[1].strip() and one.references[1].strip() != one.answers[0].strip()
    ]
    samples = [
        Sample(one.prompt, text) for one in changed for text in (one.references[1], one.answers[0])
    ]
    values = [score.value for score in scores_of(model, samples)]
    return _with_interval(
        [[_win(*pair)] for pair in zip(values[::2], values[1::2], strict=True)], _share
    )


def _human_lengths(
    model: RewardModel, questions: Sequence[Question]
) -> list[list[tuple[float, int]]]:
    """Return score and length of people's own and corrected answers, by question."""
    texts = [[text for text in one.references if text.strip()] for one in questions]
    samples = [
        Sample(one.prompt, text) for one, own in zip(questions, texts, strict=True) for text in own
    ]
    values = iter(scores_of(model, samples))
    return [[(float(next(values).value or 0.0), len(text)) for text in own] for own in texts]


def _win(right: float | None, wrong: float | None) -> float:
    if right is None or wrong is None:
        raise ValueError("a sample has no score")
    return float(right > wrong) + 0.5 * float(right == wrong)


def _wins(scores: np.ndarray, question: Question) -> list[float]:
    return [
        float(scores[pair.better] > scores[pair.worse])
        + 0.5 * float(scores[pair.better] == scores[pair.worse])
        for pair in question.pairs
    ]


def _share(rows: Sequence[list[float]]) -> float:
    return float(np.mean([win for row in rows for win in row]))


def _correlation(rows: Sequence[Sequence[tuple[float, float]]]) -> float:
    scores, lengths = zip(*(one for row in rows for one in row), strict=True)
    return float(np.corrcoef(scores, lengths)[0, 1])


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
