"""The registry of kinds, the model loader, and fingerprints.

The module of a kind registers one function or class here:

- `neural_kind` for a model with weights: its class, and the function that loads its network;
- `check_kind` for a check that runs on threads, with the library whose version affects scores;
- `host_kind` for any other model that needs no device.

A spec names its kind's module, which is imported with the first model of the kind, so that optional
libraries are imported at first use.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from alarm_models.errors import CheckpointError, RecipeError
from alarm_models.modeling import checkpoint, loader
from alarm_models.modeling.compatibility import require_raw_scores
from alarm_models.modeling.inspection import inspect_folder, read_config
from alarm_models.modeling.linear_kernels import has_bfloat16
from alarm_models.modeling.loader import BaseModel, CheckpointSource
from alarm_models.modeling.lora import CONFIG as ADAPTER_CONFIG
from alarm_models.modeling.network import Network
from alarm_models.preprocessing.chat_templates import FIXED_DATE, asks_date, has_dated_template
from alarm_models.preprocessing.templates import FieldPattern
from alarm_models.preprocessing.tokenizer import Tokenizer
from alarm_models.recipe.specs import (
    CheckSpec,
    ModelSpec,
    NeuralSpec,
    Normalization,
    SequenceSpec,
    Spec,
    TextSpec,
)
from alarm_models.reward_models.base import (
    CheckModel,
    HostModel,
    LoadedCheckpoint,
    Model,
    NeuralRewardModel,
    fingerprint_of,
)
from alarm_models.reward_models.normalization import configured_normalization
from alarm_models.reward_models.reading import (
    probe_tokens,
    read_token,
    reading_notes,
    require_reward_token,
    template_notes,
)
from alarm_models.reward_models.thread_pool import Check, CheckThreadPool
from alarm_models.types import Dtype

__all__ = [
    "CheckpointFiles",
    "CheckpointState",
    "Loader",
    "check_kind",
    "check_model",
    "head_or",
    "host_kind",
    "load_host_model",
    "neural_kind",
]

_logger = logging.getLogger(__name__)
#: Files of a tokenizer.
_TOKENIZER_CONFIG = "tokenizer_config.json"

#: Keys that are not digested as constants: their files are digested, or they change no score.
_DIGESTED_OTHERWISE = frozenset(
    {
        "checkpoint", "dtype", "trust_remote_code", "revision", "tokenizer", "adapter", "note",
        "chats",
    }
)  # fmt: skip

#: Threads per check; checks mostly release the GIL.
_NUM_THREADS = min(4, os.cpu_count() or 1)


class CheckpointFiles(Protocol):
    """The files of a network; shared checkpoints are loaded once."""

    @property
    def source(self) -> CheckpointSource:
        """The folder, the device and the dtype."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer."""

    def base(self) -> BaseModel:
        """Load the model without its head, or return it if another model has loaded it."""

    def classifier(self, load: Callable[[CheckpointSource], Network]) -> Network:
        """Load the checkpoint's own classifier, or return it where another model loaded it."""


_NeuralSpec = TypeVar("_NeuralSpec", bound=NeuralSpec)
_CheckSpec = TypeVar("_CheckSpec", bound=CheckSpec)
_Spec = TypeVar("_Spec", bound=Spec)

_Fields = Mapping[str, FieldPattern]

#: Creates a model from its spec, its checkpoint, the field patterns and its fingerprint.
_BuildNeural = Callable[[_NeuralSpec, LoadedCheckpoint, _Fields, str], NeuralRewardModel]

#: Loads a kind's network.
_LoadNetwork = Callable[[_NeuralSpec, CheckpointFiles], Network]

#: Creates a model from its spec and the patterns that find fields in prompts.
_LoadHost = Callable[[_Spec, _Fields], HostModel]


@dataclass(frozen=True, slots=True)
class _NeuralKind:
    build: _BuildNeural[Any]
    load_network: _LoadNetwork[Any]


_NEURAL_KINDS: dict[type[Spec], _NeuralKind] = {}
_HOST_KINDS: dict[type[Spec], _LoadHost[Any]] = {}

_Build = TypeVar("_Build", bound=Callable[..., object])


def neural_kind(
    spec: type[_NeuralSpec], *, load_network: _LoadNetwork[_NeuralSpec]
) -> Callable[[_Build], _Build]:
    """Register a model with weights: the decorated class is called as `_BuildNeural`."""

    def register(build: _Build) -> _Build:
        _NEURAL_KINDS[spec] = _NeuralKind(build, load_network)  # type: ignore[arg-type]
        return build

    return register


def host_kind(spec: type[_Spec]) -> Callable[[_LoadHost[_Spec]], _LoadHost[_Spec]]:
    """Register a function that creates a host model from its spec and the field patterns."""

    def register(load: _LoadHost[_Spec]) -> _LoadHost[_Spec]:
        _HOST_KINDS[spec] = load
        return load

    return register


def check_kind(
    spec: type[_CheckSpec], *, library: str | None = None
) -> Callable[[Callable[[_CheckSpec, _Fields], Check]], Callable[[_CheckSpec, _Fields], Check]]:
    """Register a function that creates a check from its spec and the field patterns.

    ``library`` is the package whose version affects scores and is part of the fingerprint.
    """

    def register(
        make: Callable[[_CheckSpec, _Fields], Check],
    ) -> Callable[[_CheckSpec, _Fields], Check]:
        def load(spec: _CheckSpec, fields: _Fields) -> HostModel:
            return check_model(spec, fields, make(spec, fields), library=library)

        _HOST_KINDS[spec] = load
        return make

    return register


def check_model(
    spec: CheckSpec, fields: _Fields, check: Check, *, library: str | None = None
) -> CheckModel:
    """Create the model of a check, which runs on threads."""
    versions = [] if library is None else [f"{library} {version(library)}"]
    # The patterns of the fields that the spec's templates use.
    patterns = sorted((name, field.pattern) for name, field in fields.items())
    fingerprint = fingerprint_of(spec, *versions, *(patterns if spec.templates else []))
    pool = CheckThreadPool(_NUM_THREADS)
    return CheckModel(check, pool, spec.timeout_s, fingerprint, spec.view_rules)


def head_or(classifier: Callable[[CheckpointSource], Network]) -> _LoadNetwork[NeuralSpec]:
    """Return a function that loads a named head on the base model, else a classifier."""

    def load_network(spec: NeuralSpec, files: CheckpointFiles) -> Network:
        if spec.head is None:
            return files.classifier(classifier)
        return loader.base_with_head(files.base(), files.source, spec.head)

    return load_network


def load_host_model(spec: Spec, fields: _Fields) -> HostModel:
    """Create the model of a spec; raise `RecipeError`, also if a library is not installed."""
    try:
        import_module(spec.module)
        return _HOST_KINDS[type(spec)](spec, fields)
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"kind {spec.kind!r} needs the package {error.name!r}: pip install 'alarm-models[text]'"
        ) from error


@dataclass(frozen=True, slots=True)
class _Files:
    source: CheckpointSource
    tokenizer: Tokenizer
    bases: dict[CheckpointSource, BaseModel]
    classifiers: dict[tuple[CheckpointSource, Callable[[CheckpointSource], Network]], Network]

    def base(self) -> BaseModel:
        if self.source not in self.bases:
            self.bases[self.source] = loader.load_base(self.source)
        return self.bases[self.source]

    def classifier(self, load: Callable[[CheckpointSource], Network]) -> Network:
        if (self.source, load) not in self.classifiers:
            self.classifiers[self.source, load] = load(self.source)
        return self.classifiers[self.source, load]


@dataclass(frozen=True, slots=True)
class _Folders:
    """The folders of a model: weights, adapter, tokenizer (the adapter's, if it has one)."""

    checkpoint: Path
    adapter: Path | None
    tokenizer: Path

    def digested(self) -> list[tuple[Path, bool]]:
        """Return the folders whose files determine scores, and whether weights are included."""
        folders = [(self.checkpoint, True)]
        folders += [] if self.adapter is None else [(self.adapter, True)]
        if self.tokenizer not in (self.checkpoint, self.adapter):
            folders.append((self.tokenizer, False))
        return folders


def _locate(spec: NeuralSpec) -> _Folders:
    """Find a model's folders; raise `CheckpointError`."""
    folder = checkpoint.locate(spec.checkpoint, spec.revision, with_code=spec.trust_remote_code)
    adapter = None
    if spec.adapter is not None:
        adapter = checkpoint.locate(spec.adapter, holds=ADAPTER_CONFIG, key="adapter")
    tokenizer = adapter if adapter and (adapter / _TOKENIZER_CONFIG).is_file() else folder
    if spec.tokenizer is not None:
        tokenizer = checkpoint.locate(
            spec.tokenizer,
            holds=None,
            with_code=spec.trust_remote_code,
            with_weights=False,
            key="tokenizer",
        )
    return _Folders(folder, adapter, tokenizer)


class _Digests:
    """Digests of folders, each computed once."""

    def __init__(self) -> None:
        self._by_folder: dict[tuple[Path, bool], str] = {}
        self._stamps: dict[tuple[Path, bool], object] = {}

    def of(self, folders: _Folders) -> str:
        """Return the digest of all of a model's files; raise `CheckpointError`."""
        for folder, has_weights in folders.digested():
            if (folder, has_weights) not in self._by_folder:
                self._stamps[folder, has_weights] = checkpoint.stamps(
                    folder, with_weights=has_weights
                )
                self._by_folder[folder, has_weights] = checkpoint.digest(
                    folder, with_weights=has_weights
                )
        return "+".join(self._by_folder[one] for one in folders.digested())

    def require_unchanged(self, folders: _Folders) -> None:
        """Raise `CheckpointError` if a file was written since its digest was computed."""
        for folder, has_weights in folders.digested():
            stamps = checkpoint.stamps(folder, with_weights=has_weights)
            if stamps != self._stamps[folder, has_weights]:
                # Digest and weights would be of different versions.
                raise CheckpointError(f"{folder} changed while it was loaded: load it again")


class Loader:
    """Loads models onto one device; models on one checkpoint share its tokenizer and its weights.

    ``max_remembered_bytes`` bounds the prefix cache of each causal model; ``dtype`` is that of
    models whose spec says ``auto``.
    """

    def __init__(
        self, device: torch.device, *, max_remembered_bytes: int = 0, dtype: Dtype = "auto"
    ) -> None:
        self._device = device
        self._dtype = dtype
        self._prefix_cache_bytes = max_remembered_bytes
        self._bases: dict[CheckpointSource, BaseModel] = {}
        self._classifiers: dict[
            tuple[CheckpointSource, Callable[[CheckpointSource], Network]], Network
        ] = {}
        self._tokenizers: dict[Path, Tokenizer] = {}
        self._digests = _Digests()

    def load(self, spec: ModelSpec, fields: _Fields) -> Model:
        """Load a model; ``fields`` are patterns that find missing fields in the prompt.

        Raises `CheckpointError` or `RecipeError`.
        """
        if not isinstance(spec, NeuralSpec) or not spec.has_weights:
            return load_host_model(spec, fields)
        import_module(spec.module)
        kind = _NEURAL_KINDS[type(spec)]
        folders = _locate(spec)
        weights = self._weights(spec, folders, kind.load_network)
        fingerprint = _fingerprint(spec, folders, weights.digest, weights.network.dtype, fields)
        model = kind.build(spec, weights, fields, fingerprint)
        require_reward_token(model, spec, weights.tokenizer, folders.checkpoint)
        model.read_token = read_token(model, spec, weights.tokenizer)
        dtype = str(weights.network.dtype).removeprefix("torch.")
        model.notes = reading_notes(
            spec, folders.checkpoint, weights.tokenizer, model.read_token, dtype
        )
        model.notes += template_notes(spec, weights.tokenizer)
        model.probe = probe_tokens(model, spec)
        _tell(spec, model)
        return model

    def _weights(
        self, spec: NeuralSpec, folders: _Folders, load_network: _LoadNetwork[Any]
    ) -> LoadedCheckpoint:
        read_config(folders.checkpoint)  # else the tokenizer would be named for what it says
        source = CheckpointSource(
            folders.checkpoint,
            _dtype(spec, self._device, self._dtype),
            self._device,
            spec.trust_remote_code,
            self._prefix_cache_bytes,
            spec.prefix,
            folders.adapter,
        )
        if source.dtype is torch.bfloat16 and self._device.type == "cpu" and not has_bfloat16():
            _logger.warning(
                "%s: this processor has no bfloat16 instructions; float32 is faster and more exact",
                spec.checkpoint,
            )
        digest = self._digests.of(folders)
        if folders.tokenizer not in self._tokenizers:
            self._tokenizers[folders.tokenizer] = Tokenizer(
                folders.tokenizer, trust_remote_code=spec.trust_remote_code
            )
        tokenizer = self._tokenizers[folders.tokenizer]
        labels = tuple(checkpoint.label_names(folders.checkpoint)) if spec.head is None else ()
        network = load_network(spec, _Files(source, tokenizer, self._bases, self._classifiers))
        self._digests.require_unchanged(folders)
        return LoadedCheckpoint(
            network, tokenizer, digest, labels, _normalization(spec, folders.checkpoint)
        )


def _tell(spec: NeuralSpec, model: NeuralRewardModel) -> None:
    """Log the token at which a score is read, and differences from the model's card."""
    if model.read_token is not None:
        _logger.info("%s: the score is read at the token %r", spec.checkpoint, model.read_token)
    for note in model.notes:
        _logger.warning("%s: %s", spec.checkpoint, note)


def _dtype(spec: NeuralSpec, device: torch.device, default: Dtype) -> torch.dtype:
    name = default if spec.dtype == "auto" else spec.dtype
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"torch has no dtype {name!r}")
    return dtype


class CheckpointState:
    """Detects without loading whether models are unchanged on disk; reads each folder once."""

    def __init__(self, device: torch.device, *, dtype: Dtype = "auto") -> None:
        self._device = device
        self._dtype = dtype
        self._digests = _Digests()

    def matches(
        self, spec: ModelSpec, fields: Mapping[str, FieldPattern], fingerprint: str
    ) -> bool:
        """Return whether a model loaded now would have that fingerprint; raise `CheckpointError`.

        False for Python functions and remote servers, which must be loaded again to detect changes.
        """
        if not isinstance(spec, NeuralSpec):
            return spec.is_reproducible
        if not spec.has_weights:
            return False  # a judge behind an endpoint
        folders = _locate(spec)
        dtype = _dtype(spec, self._device, self._dtype)
        return fingerprint == _fingerprint(spec, folders, self._digests.of(folders), dtype, fields)


def _fingerprint(
    spec: NeuralSpec,
    folders: _Folders,
    digest: str,
    dtype: torch.dtype,
    fields: Mapping[str, FieldPattern],
) -> str:
    """Digest everything that determines scores: equal fingerprints mean equal scores."""
    constants = spec.constants(_DIGESTED_OTHERWISE)
    patterns = sorted((name, field.pattern) for name, field in fields.items())
    parts = f"{digest}|{dtype}|{constants}|{patterns}"
    if _is_dated(spec, folders.tokenizer):
        parts += f"|{FIXED_DATE:%Y-%m-%d}"
    if spec.trust_remote_code:
        parts += f"|{checkpoint.code_digest(folders.checkpoint)}"
    if (normalization := _normalization(spec, folders.checkpoint)) is not None:
        parts += f"|{normalization.model_dump_json()}"
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


def _normalization(spec: NeuralSpec, folder: Path) -> Normalization | None:
    """Return the score normalization of the recipe, else that of the checkpoint."""
    if not isinstance(spec, SequenceSpec):
        require_raw_scores(inspect_folder(folder))
        return None
    if spec.normalization == "none":
        return None
    return spec.normalization or configured_normalization(folder)


def _is_dated(spec: NeuralSpec, tokenizer: Path) -> bool:
    """Return whether a model's texts contain the fixed date."""
    if getattr(spec, "template", None) != "chat":
        return False
    if isinstance(spec, TextSpec):
        if spec.turns is not None:
            return False
        if spec.chat_template is not None:
            return asks_date(spec.chat_template)
    return has_dated_template(tokenizer)
