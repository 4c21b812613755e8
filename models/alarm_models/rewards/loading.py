"""From a model's spec to the model on its device."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch

from alarm_models.errors import CheckpointError
from alarm_models.networks import checkpoint, sources
from alarm_models.networks.network import Network
from alarm_models.networks.sources import Base, Source
from alarm_models.rewards.base import Weights
from alarm_models.rewards.direct import Model
from alarm_models.rewards.direct_loading import load_direct
from alarm_models.rewards.generative import GenerativeModel, scored_tokens
from alarm_models.rewards.objectives import MultiObjectiveModel
from alarm_models.rewards.remote import RemoteModel
from alarm_models.rewards.segments import SegmentsModel
from alarm_models.rewards.sequence import SequenceModel
from alarm_models.rewards.steps import StepsModel
from alarm_models.specs import (
    CheckSpec,
    GenerativeSpec,
    ModelSpec,
    MultiObjectiveSpec,
    NeuralSpec,
    PythonSpec,
    RemoteSpec,
    SegmentsSpec,
    SequenceSpec,
    StepsSpec,
)
from alarm_models.texts.chat_templates import FIXED_DATE, has_dated_template
from alarm_models.texts.template import FieldPattern
from alarm_models.texts.tokenizing import Tokenizer

__all__ = ["Disk", "Loader"]


class Loader:
    """Loads models onto one device; models on one checkpoint share its tokenizer and its base.

    ``max_remembered_bytes`` bounds what each causal model keeps of prompts for later batches.
    """

    def __init__(self, device: torch.device, *, max_remembered_bytes: int = 0) -> None:
        self._device = device
        self._max_remembered_bytes = max_remembered_bytes
        self._bases: dict[Source, Base] = {}
        self._tokenizers: dict[Path, Tokenizer] = {}
        self._digests: dict[Path, str] = {}
        self._stamps: dict[Path, object] = {}

    def load(self, spec: ModelSpec, fields: Mapping[str, FieldPattern]) -> Model:
        """Load a model; ``fields`` finds what callers leave out of a sample's fields.

        Raises `CheckpointError` or `RecipeError`.
        """
        if isinstance(spec, CheckSpec):
            return load_direct(spec, fields)
        if isinstance(spec, RemoteSpec):
            return RemoteModel(spec, fields)
        weights = self._weights(spec)
        folder = checkpoint.locate(spec.checkpoint)
        fingerprint = _fingerprint(spec, folder, weights.digest, weights.network.dtype, fields)
        match spec:
            case SequenceSpec():
                return SequenceModel(spec, weights, fields, fingerprint)
            case SegmentsSpec():
                return SegmentsModel(spec, weights, fields, fingerprint)
            case StepsSpec():
                return StepsModel(spec, weights, fields, fingerprint)
            case MultiObjectiveSpec():
                return MultiObjectiveModel(spec, weights, fields, fingerprint)
            case GenerativeSpec():
                return GenerativeModel(spec, weights, fields, fingerprint)

    def _weights(self, spec: NeuralSpec) -> Weights:
        folder = checkpoint.locate(spec.checkpoint)
        source = Source(
            folder,
            _dtype(spec, self._device),
            self._device,
            spec.trust_remote_code,
            self._max_remembered_bytes,
        )
        if folder not in self._digests:
            self._stamps[folder] = checkpoint.stamps(folder)
            self._digests[folder] = checkpoint.digest(folder)
            self._tokenizers[folder] = Tokenizer(folder, trust_remote_code=spec.trust_remote_code)
        labels = tuple(checkpoint.label_names(folder)) if spec.head is None else ()
        network = self._network(spec, source)
        if checkpoint.stamps(folder) != self._stamps[folder]:
            # Its digest would be of one state and its weights of another.
            raise CheckpointError(f"{folder} changed while it was loaded: load it again")
        return Weights(network, self._tokenizers[folder], self._digests[folder], labels)

    def _network(self, spec: NeuralSpec, source: Source) -> Network:
        match spec:
            case GenerativeSpec():
                tokens = scored_tokens(spec, self._tokenizers[source.folder])
                return sources.token_scorer(source, tokens)
            case MultiObjectiveSpec(head=str(head), gate_at=str()):
                return sources.base_with_gate(self._base(source), source, head)
            case NeuralSpec(head=str(head)):
                return sources.base_with_head(self._base(source), source, head)
            case SegmentsSpec() | StepsSpec():
                return sources.token_classifier(source)
            case _:
                return sources.sequence_classifier(source)

    def _base(self, source: Source) -> Base:
        if source not in self._bases:
            self._bases[source] = sources.load_base(source)
        return self._bases[source]


def _dtype(spec: NeuralSpec, device: torch.device) -> torch.dtype:
    if spec.dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    dtype = getattr(torch, spec.dtype)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"torch has no dtype {spec.dtype!r}")
    return dtype


class Disk:
    """Tells, without loading, whether models would still be what they are; reads a folder once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._digests: dict[Path, str] = {}

    def has(self, spec: ModelSpec, fields: Mapping[str, FieldPattern], fingerprint: str) -> bool:
        """Say whether a model loaded now would have that fingerprint; raise `CheckpointError`.

        A function's module and another server may have changed unseen: of those only loading tells.
        """
        if not isinstance(spec, NeuralSpec):
            return not isinstance(spec, PythonSpec | RemoteSpec)
        folder = checkpoint.locate(spec.checkpoint)
        if folder not in self._digests:
            self._digests[folder] = checkpoint.digest(folder)
        dtype = _dtype(spec, self._device)
        return fingerprint == _fingerprint(spec, folder, self._digests[folder], dtype, fields)


def _fingerprint(
    spec: NeuralSpec,
    folder: Path,
    digest: str,
    dtype: torch.dtype,
    fields: Mapping[str, FieldPattern],
) -> str:
    """Digest all that decides a score: the same fingerprint means the same scores."""
    constants = spec.model_dump_json(exclude={"checkpoint", "dtype", "trust_remote_code"})
    patterns = sorted((name, field.pattern) for name, field in fields.items())
    parts = f"{digest}|{dtype}|{constants}|{patterns}"
    if getattr(spec, "template", None) == "chat" and has_dated_template(folder):
        parts += f"|{FIXED_DATE:%Y-%m-%d}"
    if spec.trust_remote_code:
        parts += f"|{checkpoint.code_digest(folder)}"
    return hashlib.sha256(parts.encode()).hexdigest()[:16]
