"""The heads of transformers' classifiers, taken off so that they read single states."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from transformers import PreTrainedModel

from alarm_models.errors import CheckpointError

__all__ = [
    "Head",
    "Pooling",
    "chosen",
    "mlp",
    "sequence_head",
    "token_head",
    "vocabulary_head",
]


#: Decoders whose logits are their linear head's, capped where the configuration says so.
_PLAIN_VOCABULARY = {"llama", "mistral", "qwen2", "qwen3", "gemma2"}


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

    @property
    def module(self) -> torch.nn.Module:
        """The module that a head is that was read from tensors, to be put on its device."""
        if not isinstance(self.apply, torch.nn.Module):
            raise TypeError("this head belongs to its model")
        return self.apply

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


def mlp(tensors: Mapping[str, torch.Tensor], name: str) -> Head:
    """Build a head of the tensors under its name.

    ``weight [outputs, hidden]`` with or without ``bias`` is a linear head; ``0.weight``,
    ``2.weight`` and so on are linear layers with a ReLU between (Qwen2.5-Math-PRM, INF-ORM).
    """
    prefixes = sorted(
        (key.removesuffix("weight") for key in tensors if key.endswith("weight")),
        key=lambda prefix: int(prefix.rstrip(".") or 0) if prefix.rstrip(".").isdigit() else 0,
    )
    if not prefixes or any(prefix and not prefix[:-1].isdigit() for prefix in prefixes):
        raise CheckpointError(
            f"the checkpoint holds no tensor {name}.weight, and no layers {name}.0.weight, ...; "
            "is `head` right?"
        )
    layers: list[torch.nn.Module] = []
    for prefix in prefixes:
        weight, bias = tensors[f"{prefix}weight"], tensors.get(f"{prefix}bias")
        if weight.ndim != 2:
            raise CheckpointError(
                f"{name}.{prefix}weight has shape {list(weight.shape)}, not two dimensions"
            )
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        linear.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
        layers += [torch.nn.ReLU()] if layers else []
        layers.append(linear)
    return Head(torch.nn.Sequential(*layers), int(weight.shape[0]), None)


def vocabulary_head(model: PreTrainedModel, token_ids: Sequence[int]) -> Head | None:
    """Take off a causal model's head for some tokens; None where we do not know how it reads."""
    causal: Any = model
    config = causal.config.get_text_config()
    linear = causal.get_output_embeddings()
    if config.model_type not in _PLAIN_VOCABULARY or not isinstance(linear, torch.nn.Linear):
        return None
    cap = getattr(config, "final_logit_softcapping", None)

    def apply(states: torch.Tensor) -> torch.Tensor:
        logits = linear(states)
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        return chosen(logits, token_ids)

    return Head(apply, len(token_ids) + 1, Pooling.LAST)


def chosen(logits: torch.Tensor, token_ids: Sequence[int]) -> torch.Tensor:
    """Return some tokens' logits and, last, the log of the sum over all: ``[rows, tokens + 1]``."""
    logits = logits.float()
    return torch.cat([logits[:, list(token_ids)], logits.logsumexp(-1, keepdim=True)], -1)
