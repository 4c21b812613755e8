"""The heads of `mini`: logistic regressions on the states of a frozen encoder.

About 300 questions are enough for heads with 384 weights; fine-tuning the whole encoder on them
made it worse in our runs. Regularization is chosen by cross-validation over the questions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from alarm_models.modeling.padded import pad_batch
from checkpoint import MiniModel
from features import ASPECTS, Example

__all__ = ["Fit", "learn"]

_STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1)
_NUM_FOLDS = 5

#: States and label of each read, by question.
Rows = list[tuple[np.ndarray, list[int]]]


@dataclass(frozen=True, slots=True)
class Fit:
    """A head's inverse regularization strength, and the figure it was chosen by."""

    strength: float
    figure: float


def learn(model: MiniModel, data: Sequence[Example]) -> dict[str, Fit]:
    """Fit every head, store it in the model, and return the fits."""
    states = _states(model, data)
    fits = {"preference": _fit(model, "holistic_head", _pairs(data, states), _accuracy)}
    for aspect in ASPECTS:
        rows = [
            (states[id(one.aspects[aspect])], one.labels[aspect])
            for one in data
            if aspect in one.aspects
        ]
        fits[aspect] = _fit(model, f"{aspect}_head", rows, roc_auc_score)
    return fits


@torch.inference_mode()
def _states(model: MiniModel, data: Sequence[Example]) -> dict[int, np.ndarray]:
    """Return the mean state of each read, ``[reads, hidden]``, by the features' id."""
    features = [one for example in data for one in (*example.answers, *example.aspects.values())]
    features.sort(key=lambda one: one.num_tokens)
    states: dict[int, np.ndarray] = {}
    for at in range(0, len(features), 32):
        batch = features[at : at + 32]
        hidden = model.encoder(**pad_batch(batch, model.encoder)).last_hidden_state
        for row, one in enumerate(batch):
            means = [hidden[row, span.start : span.end].mean(0) for span in one.read_positions]
            states[id(one)] = torch.stack(means).numpy()
    return states


def _pairs(data: Sequence[Example], states: dict[int, np.ndarray]) -> Rows:
    """Return the difference of states of each pair in both orders (Bradley and Terry 1952)."""
    rows: Rows = []
    for example in data:
        whole = [states[id(answer)][0] for answer in example.answers]
        ups = [whole[pair.better] - whole[pair.worse] for pair in example.pairs]
        if ups:
            rows.append((np.array([*ups, *(-up for up in ups)]), [1] * len(ups) + [0] * len(ups)))
    return rows


def _fit(
    model: MiniModel,
    head: str,
    rows: Rows,
    figure: Callable[[list[int], np.ndarray], float],
) -> Fit:
    has_bias = head != "holistic_head"
    fits = [Fit(strength, _validated(rows, strength, figure, has_bias)) for strength in _STRENGTHS]
    best = max(fits, key=lambda fit: fit.figure)
    regression = _regression(rows, best.strength, has_bias)
    weight = torch.tensor(regression.coef_[0], dtype=torch.float32)
    with torch.no_grad():
        linear = model.heads[head]
        linear.weight.zero_()
        linear.bias.zero_()
        linear.weight[-1] = weight
        linear.bias[-1] = float(regression.intercept_[0]) if has_bias else 0.0
    return best


def _validated(
    rows: Rows,
    strength: float,
    figure: Callable[[list[int], np.ndarray], float],
    has_bias: bool,
) -> float:
    figures = []
    for fold in range(_NUM_FOLDS):
        known = [row for index, row in enumerate(rows) if index % _NUM_FOLDS != fold]
        kept = rows[fold::_NUM_FOLDS]
        regression = _regression(known, strength, has_bias)
        labels = [label for _, own in kept for label in own]
        figures.append(
            figure(labels, regression.decision_function(np.concatenate([x for x, _ in kept])))
        )
    return float(np.mean(figures))


def _regression(rows: Rows, strength: float, has_bias: bool) -> LogisticRegression:
    labels = [label for _, own in rows for label in own]
    regression = LogisticRegression(C=strength, fit_intercept=has_bias, max_iter=3000)
    return regression.fit(np.concatenate([states for states, _ in rows]), labels)


def _accuracy(labels: list[int], scores: np.ndarray) -> float:
    return float(np.mean((scores > 0) == np.array(labels)))
