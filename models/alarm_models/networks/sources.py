"""Networks from checkpoints: what is loaded, and how its head is taken off."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    LongformerModel,
    PreTrainedModel,
)

from alarm_models.errors import CheckpointError
from alarm_models.networks.checkpoint import read_tensors
from alarm_models.networks.construction import CONSTRUCTION
from alarm_models.networks.gating import gated_head
from alarm_models.networks.heads import (
    Head,
    chosen,
    mlp,
    sequence_head,
    token_head,
    vocabulary_head,
)
from alarm_models.networks.network import HeadedNetwork, Network, WholeNetwork
from alarm_models.networks.probing import Backbone, fastest_exact

__all__ = [
    "Base",
    "Source",
    "base_with_gate",
    "base_with_head",
    "load_base",
    "sequence_classifier",
    "token_classifier",
    "token_scorer",
]


_init_context: Any = PreTrainedModel.get_init_context


def _alone(cls: type[PreTrainedModel], *arguments: Any, **named: Any) -> list[Any]:
    """Return what transformers constructs a model within, and that no pass runs meanwhile."""
    return [CONSTRUCTION.alone(), *_init_context.__func__(cls, *arguments, **named)]


# Reading the weights takes minutes and disturbs nobody; this is the moment that does.
PreTrainedModel.get_init_context = classmethod(_alone)  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a network comes from and how it is to run.

    ``max_remembered_bytes`` bounds what a causal model keeps of prompts for the batches after.
    """

    folder: Path
    dtype: torch.dtype
    device: torch.device
    trust_remote_code: bool = False
    max_remembered_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Base:
    """A transformer without its head, which several heads may share."""

    model: PreTrainedModel
    backbone: Backbone


def sequence_classifier(source: Source) -> Network:
    """Load a sequence classifier.

    Where its head can be taken off, ours reads the states that the head reads, so that padding
    never moves it and packing is possible.
    """
    model = _load(AutoModelForSequenceClassification, source)
    return _with_head(model, sequence_head(model), source, has_global=True)


def token_classifier(source: Source) -> Network:
    """Load a token classifier: one row of logits a token."""
    model = _load(AutoModelForTokenClassification, source)
    return _with_head(model, token_head(model), source)


def load_base(source: Source) -> Base:
    """Load a base model, which several heads may share."""
    model = _load(AutoModel, source)
    return Base(model, _fastest(model, source))


def base_with_head(base: Base, source: Source, name: str) -> Network:
    """Put the head of that name on a base model: linear as openbmb/UltraRM-13b's, or layers."""
    head = mlp(read_tensors(source.folder, name), name)
    _onto_device(head.module.to(source.dtype), source.device)
    return HeadedNetwork(base.model, base.backbone, head)


def base_with_gate(base: Base, source: Source, name: str) -> Network:
    """Put a regression layer of that name on a base model, and the gate beside it: ArmoRM's form.

    The outputs are three times the objectives; see `alarm_models.networks.gating`.
    """
    head = gated_head(source.folder, name, base.model.config)
    _onto_device(head.module.to(source.dtype), source.device)
    return HeadedNetwork(base.model, base.backbone, head)


def token_scorer(source: Source, token_ids: tuple[int, ...]) -> Network:
    """Load a causal model that scores tokens as the next one.

    The outputs are the logits of ``token_ids``, then the log of the sum over the vocabulary.
    """
    model: Any = _load(AutoModelForCausalLM, source)
    head = vocabulary_head(model, token_ids)
    if head is None:
        return WholeNetwork(model, select=lambda logits: chosen(logits, token_ids))
    return HeadedNetwork(model.base_model, _fastest(model.base_model, source), head)


def _with_head(
    model: PreTrainedModel, head: Head | None, source: Source, *, has_global: bool = False
) -> Network:
    if head is None:
        return WholeNetwork(model)
    base: Any = model.base_model
    has_global = has_global and isinstance(base, LongformerModel)
    return HeadedNetwork(base, _fastest(base, source, has_global=has_global), head)


def _fastest(model: PreTrainedModel, source: Source, *, has_global: bool = False) -> Backbone:
    return fastest_exact(
        model, has_global=has_global, max_remembered_bytes=source.max_remembered_bytes
    )


def _load(loader: Any, source: Source) -> PreTrainedModel:
    try:
        model, report = loader.from_pretrained(
            str(source.folder),
            dtype=source.dtype,
            trust_remote_code=source.trust_remote_code,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{source.folder} cannot be loaded: {error}") from error
    # A tensor that the files lack would be random: never serve it. Poolers we do not read may lack.
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise CheckpointError(
            f"{source.folder} lacks {len(missing)} tensors of {type(model).__name__} "
            f"({', '.join(missing[:3])}, ...): they would be random. Is the kind or `head` right?"
        )
    loaded: PreTrainedModel = _onto_device(model, source.device).eval()
    return loaded


def _onto_device(module: Any, device: torch.device) -> Any:
    """Move a module to its device, in memory of its own.

    On a CPU tensors may lie in the checkpoint's mapped file, and would change with it where it is
    overwritten in place.
    """
    module.to(device)
    if device.type == "cpu":
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = tensor.data.clone()
    return module
