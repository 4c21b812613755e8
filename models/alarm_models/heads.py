"""The heads of transformers' classifiers, taken off so that they read single states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from transformers import PreTrainedModel

__all__ = ["Head", "Pooling", "sequence_head", "token_head"]


class Pooling(StrEnum):
    """Which tokens' states a whole-sequence score is read from."""

    FIRST = "first"
    LAST = "last"
    #: transformers' decoders: the last token that is not the configured padding.
    LAST_NOT_PADDING = "last_not_padding"
    MEAN = "mean"
    #: The model pools by itself.
    OWN = "own"


@dataclass(frozen=True, slots=True)
class Head:
    """What turns states ``[rows, hidden]`` into outputs ``[rows, num_outputs]``."""

    apply: Callable[[torch.Tensor], torch.Tensor]
    num_outputs: int
    pooling: Pooling | None

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Apply the head."""
        return self.apply(states)


def sequence_head(model: PreTrainedModel) -> Head | None:
    """Take off a sequence classifier's head; None where we do not know how it reads."""
    classifier: Any = model
    labels = int(classifier.config.num_labels)
    match model.config.model_type:
        case _ if isinstance(getattr(model, "score", None), torch.nn.Linear):
            return Head(classifier.score, labels, Pooling.LAST_NOT_PADDING)
        case "roberta" | "xlm-roberta" | "camembert" | "longformer":
            # These heads take the first of a sample's states themselves.
            return Head(lambda rows: classifier.classifier(rows[:, None]), labels, Pooling.FIRST)
        case "bert":
            pool = classifier.base_model.pooler
            return Head(
                lambda rows: classifier.classifier(pool(rows[:, None])), labels, Pooling.FIRST
            )
        case "modernbert":
            pooling = {"cls": Pooling.FIRST, "mean": Pooling.MEAN}[model.config.classifier_pooling]
            return Head(lambda rows: classifier.classifier(classifier.head(rows)), labels, pooling)
        case _:
            return None


def token_head(model: PreTrainedModel) -> Head | None:
    """Take off a token classifier's head; None where we do not know how it reads."""
    classifier: Any = model
    labels = int(classifier.config.num_labels)
    match model.config.model_type:
        case _ if isinstance(getattr(model, "score", None), torch.nn.Linear):
            return Head(classifier.score, labels, None)
        case "bert" | "roberta" | "xlm-roberta" | "camembert" | "longformer":
            return Head(classifier.classifier, labels, None)
        case "modernbert":
            return Head(lambda rows: classifier.classifier(classifier.head(rows)), labels, None)
        case _:
            return None
