"""Heads of `mini` that are logistic regressions on the states of the encoder as it is.

The holistic head is one before fine-tuning, so that the encoder starts from what people prefer; the
heads of the aspects are fitted after it, when what correlates with lengths has been taken out of
the holistic head. All inputs are prepared as the server does.
Regularization is chosen by cross-validation over the questions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import roc_auc_score

from alarm_models.modeling.inputs import ModelInput
from alarm_models.modeling.padded import pad_batch
from alarm_models.reward_models.base import RewardModel
from alarm_models.types import Sample
from checkpoint import MiniModel
from data import Question
from features import ASPECTS, Example, prepared

__all__ = ["Fit", "decorrelate_lengths", "learn_aspects", "learn_preferences"]

_NUM_FOLDS = 5

#: Values and label of each row, by question.
Rows = list[tuple[np.ndarray, list[int]]]


@dataclass(frozen=True, slots=True)
class Fit:
    """A head's inverse regularization strength, and the figure it was chosen by."""

    strength: float
    figure: float


@dataclass(frozen=True, slots=True)
class _Task:
    """How a head is fitted: its strengths, the figure they are chosen by, whether it has a bias."""

    strengths: tuple[float, ...]
    figure: Callable[[list[int], np.ndarray], float]
    has_bias: bool


def _accuracy(labels: list[int], scores: np.ndarray) -> float:
    return float(np.mean((scores > 0) == np.array(labels)))


_PREFERENCES = _Task((0.001, 0.003, 0.01, 0.03), _accuracy, has_bias=False)
_SEGMENTS = _Task((0.001, 0.003, 0.01, 0.03, 0.1), roc_auc_score, has_bias=True)


def learn_preferences(model: MiniModel, rewards: RewardModel, questions: Sequence[Question]) -> Fit:
    """Fit the holistic head to people's preferences (Bradley and Terry 1952), and store it."""
    inputs = [
        prepared(rewards, [Sample(one.prompt, answer) for answer in one.answers])
        for one in questions
    ]
    states = _states(model, [one for answers in inputs for one in answers])
    rows: Rows = []
    for answers, question in zip(inputs, questions, strict=True):
        whole = [states[id(one)][0] for one in answers]
        ups = [whole[pair.better] - whole[pair.worse] for pair in question.pairs]
        if ups:
            both = np.array([*ups, *(-up for up in ups)])
            rows.append((both, [1] * len(ups) + [0] * len(ups)))
    return _fit(model, "holistic_head", rows, _PREFERENCES)


def learn_aspects(model: MiniModel, data: Sequence[Example]) -> dict[str, Fit]:
    """Fit the aspects' heads to people's marks, store them, and return the fits."""
    states = _states(model, [one for example in data for one, _ in example.aspects.values()])
    fits = {}
    for aspect in ASPECTS:
        marked = [example.aspects[aspect] for example in data if aspect in example.aspects]
        rows = [(states[id(features)], labels) for features, labels in marked]
        fits[aspect] = _fit(model, f"{aspect}_head", rows, _SEGMENTS)
    return fits


def decorrelate_lengths(
    model: MiniModel, rewards: RewardModel, questions: Sequence[Question]
) -> None:
    """Change the holistic head so that its scores do not depend on the lengths of answers.

    Subtract a linear regression of lengths on the states, as often as makes the correlations of
    scores and lengths, one over sampled and one over people's answers, sum to 0.
    """
    groups = [
        [Sample(one.prompt, text) for one in questions for text in texts(one) if text.strip()]
        for texts in (lambda one: one.answers, lambda one: one.references)
    ]
    inputs = [prepared(rewards, samples) for samples in groups]
    states = _states(model, [one for group in inputs for one in group])
    values = [np.concatenate([states[id(one)] for one in group]) for group in inputs]
    lengths = [np.array([len(one.completion_text) for one in samples]) for samples in groups]
    regression = RidgeCV(np.logspace(-3, 3, 7)).fit(np.concatenate(values), np.concatenate(lengths))
    weight = model.heads["holistic_head"].weight
    own = regressed = 0.0
    for rows, counts in zip(values, lengths, strict=True):
        scores = rows @ weight[0].detach().numpy()
        scale = scores.std() * counts.std()
        own += np.cov(scores, counts)[0, 1] / scale
        regressed += np.cov(rows @ regression.coef_, counts)[0, 1] / scale
    with torch.no_grad():
        weight[0] -= torch.tensor(own / regressed * regression.coef_, dtype=weight.dtype)


@torch.inference_mode()
def _states(model: MiniModel, features: Sequence[ModelInput]) -> dict[int, np.ndarray]:
    """Return the mean state of each read, ``[reads, hidden]``, by the features' id."""
    ordered = sorted(features, key=lambda one: one.num_tokens)
    states: dict[int, np.ndarray] = {}
    for at in range(0, len(ordered), 32):
        batch = ordered[at : at + 32]
        hidden = model.encoder(**pad_batch(batch, model.encoder)).last_hidden_state
        for row, one in enumerate(batch):
            means = [hidden[row, span.start : span.end].mean(0) for span in one.read_positions]
            states[id(one)] = torch.stack(means).numpy()
    return states


def _fit(model: MiniModel, head: str, rows: Rows, task: _Task) -> Fit:
    fits = [Fit(strength, _validated(rows, strength, task)) for strength in task.strengths]
    best = max(fits, key=lambda fit: fit.figure)
    regression = _regression(rows, best.strength, task)
    weight = torch.tensor(regression.coef_[0], dtype=torch.float32)
    with torch.no_grad():
        linear = model.heads[head]
        linear.weight.zero_()
        linear.bias.zero_()
        linear.weight[-1] = weight
        linear.bias[-1] = float(regression.intercept_[0]) if task.has_bias else 0.0
    return best


def _validated(rows: Rows, strength: float, task: _Task) -> float:
    """Return the figure in cross-validation."""
    figures = []
    for fold in range(_NUM_FOLDS):
        known = [row for index, row in enumerate(rows) if index % _NUM_FOLDS != fold]
        kept = rows[fold::_NUM_FOLDS]
        regression = _regression(known, strength, task)
        labels = [label for _, own in kept for label in own]
        values = np.concatenate([values for values, _ in kept])
        figures.append(task.figure(labels, regression.decision_function(values)))
    return float(np.mean(figures))


def _regression(rows: Rows, strength: float, task: _Task) -> LogisticRegression:
    labels = [label for _, own in rows for label in own]
    regression = LogisticRegression(C=strength, fit_intercept=task.has_bias, max_iter=1000)
    return regression.fit(np.concatenate([values for values, _ in rows]), labels)
