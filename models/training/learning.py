"""The heads of `mini`'s aspects: logistic regressions on the states of the fine-tuned encoder.

They see people's error marks and wrong answers made from right ones, prepared as the server does.
Regularization is chosen by cross-validation over the questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from alarm_models.modeling.padded import pad_batch
from checkpoint import MiniModel
from features import ASPECTS, Example

__all__ = ["Fit", "learn"]

_STRENGTHS = (0.003, 0.03, 0.3)
_NUM_FOLDS = 5

#: States and label of each read, by question.
Rows = list[tuple[np.ndarray, list[int]]]


@dataclass(frozen=True, slots=True)
class Fit:
    """A head's inverse regularization strength, and the figure it was chosen by."""

    strength: float
    figure: float


def learn(model: MiniModel, data: Sequence[Example]) -> dict[str, Fit]:
    """Fit the aspects' heads, store them in the model, and return the fits."""
    states = _states(model, data)
    fits = {}
    for aspect in ASPECTS:
        rows = [
            (
                np.concatenate([states[id(one)] for one, _ in marked]),
                [label for _, labels in marked for label in labels],
            )
            for marked in (example.aspects[aspect] for example in data)
            if marked
        ]
        fits[aspect] = _fit(model, f"{aspect}_head", rows)
    return fits


@torch.inference_mode()
def _states(model: MiniModel, data: Sequence[Example]) -> dict[int, np.ndarray]:
    """Return the mean state of each read, ``[reads, hidden]``, by the features' id."""
    features = [one for example in data for marked in example.aspects.values() for one, _ in marked]
    features.sort(key=lambda one: one.num_tokens)
    states: dict[int, np.ndarray] = {}
    for at in range(0, len(features), 32):
        batch = features[at : at + 32]
        hidden = model.encoder(**pad_batch(batch, model.encoder)).last_hidden_state
        for row, one in enumerate(batch):
            means = [hidden[row, span.start : span.end].mean(0) for span in one.read_positions]
            states[id(one)] = torch.stack(means).numpy()
    return states


def _fit(model: MiniModel, head: str, rows: Rows) -> Fit:
    fits = [Fit(strength, _validated(rows, strength)) for strength in _STRENGTHS]
    best = max(fits, key=lambda fit: fit.figure)
    regression = _regression(rows, best.strength)
    weight = torch.tensor(regression.coef_[0], dtype=torch.float32)
    with torch.no_grad():
        linear = model.heads[head]
        linear.weight.zero_()
        linear.bias.zero_()
        linear.weight[-1] = weight
        linear.bias[-1] = float(regression.intercept_[0])
    return best


def _validated(rows: Rows, strength: float) -> float:
    """Return the area under the ROC curve in cross-validation."""
    figures = []
    for fold in range(_NUM_FOLDS):
        known = [row for index, row in enumerate(rows) if index % _NUM_FOLDS != fold]
        kept = rows[fold::_NUM_FOLDS]
        regression = _regression(known, strength)
        labels = [label for _, own in kept for label in own]
        figures.append(
            roc_auc_score(
                labels, regression.decision_function(np.concatenate([x for x, _ in kept]))
            )
        )
    return float(np.mean(figures))


def _regression(rows: Rows, strength: float) -> LogisticRegression:
    labels = [label for _, own in rows for label in own]
    regression = LogisticRegression(C=strength, max_iter=1000)
    return regression.fit(np.concatenate([states for states, _ in rows]), labels)
