"""From specs to models: loading, fingerprints, and what is unchanged on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from alarm_models.errors import CheckpointError, RecipeError
from alarm_models.modeling import checkpoint
from alarm_models.modeling import loader as sources
from alarm_models.modeling.adapters import CONFIG as ADAPTER_CONFIG
from alarm_models.modeling.loader import BaseModel, CheckpointSource
from alarm_models.modeling.network import Network
from alarm_models.preprocessing.chat_templates import FIXED_DATE, asks_date, has_dated_template
from alarm_models.preprocessing.templates import FieldPattern
from alarm_models.preprocessing.tokenizer import Tokenizer
from alarm_models.recipe.specs import (
    CheckSpec,
    ExactMatchSpec,
    GenerativeSpec,
    GrammarSpec,
    LanguageSpec,
    LengthSpec,
    ModelSpec,
    MultiObjectiveSpec,
    NeuralSpec,
    Normalization,
    PythonSpec,
    ReadabilitySpec,
    RegexSpec,
    RemoteSpec,
    RepetitionSpec,
    SegmentsSpec,
    SequenceSpec,
    SimilaritySpec,
    StepsSpec,
    TextSpec,
)
from alarm_models.reward_models.base import (
    CheckModel,
    HostModel,
    LoadedCheckpoint,
    Model,
    fingerprint_of,
)
from alarm_models.reward_models.generative import GenerativeModel, scored_tokens
from alarm_models.reward_models.grammar import Grammar
from alarm_models.reward_models.multi_objective import MultiObjectiveModel
from alarm_models.reward_models.normalization import configured_normalization
from alarm_models.reward_models.remote.model import RemoteModel
from alarm_models.reward_models.segments import SegmentsModel
from alarm_models.reward_models.sequence import SequenceModel
from alarm_models.reward_models.steps import StepsModel
from alarm_models.reward_models.text_checks import Repetition, length
from alarm_models.reward_models.thread_pool import Check, CheckThreadPool

__all__ = ["CheckpointState", "Loader", "load_host_model"]

#: What a tokenizer's folder holds.
_TOKENIZER_CONFIG = "tokenizer_config.json"

#: Keys whose files are digested, or that are told apart from the constants.
_DIGESTED_OTHERWISE = frozenset(
    {"checkpoint", "dtype", "trust_remote_code", "revision", "tokenizer", "adapter"}
)

#: A model's threads; what they call mostly releases the interpreter.
_NUM_THREADS = min(4, os.cpu_count() or 1)


def load_host_model(spec: CheckSpec, fields: Mapping[str, FieldPattern]) -> HostModel:
    """Make the model of a spec; raise `RecipeError`, also where a library is not installed."""
    try:
        return _build(spec, fields)
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"kind {getattr(spec, 'kind', '')!r} needs the package {error.name!r}: "
            "pip install 'alarm-models[text]'"
        ) from error


def _build(spec: CheckSpec, fields: Mapping[str, FieldPattern]) -> HostModel:
    match spec:
        case PythonSpec():
            from alarm_models.reward_models.python_function import PythonModel

            return PythonModel(spec)
        case GrammarSpec(engine="languagetool"):
            from alarm_models.reward_models.languagetool import LanguageTool

            server = LanguageTool(spec)
            crew = CheckThreadPool(spec.concurrency, on_close=server.close)
            return CheckModel(
                Grammar(server), crew, spec.timeout_s, fingerprint_of(spec), server.check_reachable
            )
        case _:
            check, *libraries = _check(spec, fields)
            versions = [f"{library} {version(library)}" for library in libraries]
            fingerprint = fingerprint_of(spec, *versions, *_patterns(spec, fields))
            return CheckModel(check, CheckThreadPool(_NUM_THREADS), spec.timeout_s, fingerprint)


def _check(spec: CheckSpec, fields: Mapping[str, FieldPattern]) -> tuple[Check] | tuple[Check, str]:
    """Return a kind's check, and the library whose version decides its scores."""
    match spec:
        case LengthSpec():
            return (length,)
        case RepetitionSpec():
            return (Repetition(spec),)
        case GrammarSpec():
            from alarm_models.reward_models.harper import Harper

            return Grammar(Harper(spec)), "harper-py"
        case ReadabilitySpec():
            from alarm_models.reward_models.readability import Readability

            return Readability(), "pyphen"
        case LanguageSpec():
            from alarm_models.reward_models.language import LanguageConfidence

            return LanguageConfidence(spec), "lingua-language-detector"
        case RegexSpec():
            from alarm_models.reward_models.text_checks import FormatMatch

            return FormatMatch(spec), "regex"
        case ExactMatchSpec():
            from alarm_models.reward_models.text_checks import ExactMatch

            return ExactMatch(spec, fields), "regex"
        case SimilaritySpec():
            from alarm_models.reward_models.similarity import Similarity

            return Similarity(spec, fields), "sacrebleu"
    raise RecipeError(f"no model is made of {spec!r}")


def _patterns(spec: CheckSpec, fields: Mapping[str, FieldPattern]) -> list[tuple[str, str]]:
    """Return the patterns that may find what the spec's templates name."""
    return sorted((name, field.pattern) for name, field in fields.items()) if spec.templates else []


@dataclass(frozen=True, slots=True)
class _Folders:
    """Where a model's files are: weights, adapter, tokenizer (the adapter's, where it has one)."""

    checkpoint: Path
    adapter: Path | None
    tokenizer: Path

    def digested(self) -> list[tuple[Path, bool]]:
        """Return the folders whose files decide the scores, and whether weights are among them."""
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
        adapter = checkpoint.locate(spec.adapter, holds=ADAPTER_CONFIG)
    tokenizer = adapter if adapter and (adapter / _TOKENIZER_CONFIG).is_file() else folder
    if spec.tokenizer is not None:
        tokenizer = checkpoint.locate(
            spec.tokenizer, holds=None, with_code=spec.trust_remote_code, with_weights=False
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
        """Raise `CheckpointError` where a file was written since its digest was computed."""
        for folder, has_weights in folders.digested():
            stamps = checkpoint.stamps(folder, with_weights=has_weights)
            if stamps != self._stamps[folder, has_weights]:
                # Its digest would be of one state and its weights of another.
                raise CheckpointError(f"{folder} changed while it was loaded: load it again")


class Loader:
    """Loads models onto one device; models on one checkpoint share its tokenizer and its base.

    ``max_remembered_bytes`` bounds what each causal model keeps of prompts for later batches.
    """

    def __init__(self, device: torch.device, *, max_remembered_bytes: int = 0) -> None:
        self._device = device
        self._max_remembered_bytes = max_remembered_bytes
        self._bases: dict[CheckpointSource, BaseModel] = {}
        self._tokenizers: dict[Path, Tokenizer] = {}
        self._digests = _Digests()

    def load(self, spec: ModelSpec, fields: Mapping[str, FieldPattern]) -> Model:
        """Load a model; ``fields`` finds what callers leave out of a sample's fields.

        Raises `CheckpointError` or `RecipeError`.
        """
        if isinstance(spec, CheckSpec):
            return load_host_model(spec, fields)
        if isinstance(spec, RemoteSpec):
            return RemoteModel(spec, fields)
        folders = _locate(spec)
        weights = self._weights(spec, folders)
        fingerprint = _fingerprint(spec, folders, weights.digest, weights.network.dtype, fields)
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

    def _weights(self, spec: NeuralSpec, folders: _Folders) -> LoadedCheckpoint:
        source = CheckpointSource(
            folders.checkpoint,
            _dtype(spec, self._device),
            self._device,
            spec.trust_remote_code,
            self._max_remembered_bytes,
            spec.prefix,
            folders.adapter,
        )
        digest = self._digests.of(folders)
        if folders.tokenizer not in self._tokenizers:
            self._tokenizers[folders.tokenizer] = Tokenizer(
                folders.tokenizer, trust_remote_code=spec.trust_remote_code
            )
        tokenizer = self._tokenizers[folders.tokenizer]
        labels = tuple(checkpoint.label_names(folders.checkpoint)) if spec.head is None else ()
        network = self._network(spec, source, tokenizer)
        self._digests.require_unchanged(folders)
        return LoadedCheckpoint(
            network, tokenizer, digest, labels, _normalization(spec, folders.checkpoint)
        )

    def _network(self, spec: NeuralSpec, source: CheckpointSource, tokenizer: Tokenizer) -> Network:
        match spec:
            case GenerativeSpec() | StepsSpec(positive=int() | str()):
                return sources.token_scorer(source, scored_tokens(spec, tokenizer))
            case MultiObjectiveSpec(head=str(head), gate_at=str()):
                return sources.base_with_gate(self._base(source), source, head)
            case NeuralSpec(head=str(head)):
                return sources.base_with_head(self._base(source), source, head)
            case SegmentsSpec() | StepsSpec():
                return sources.token_classifier(source)
            case _:
                return sources.sequence_classifier(source)

    def _base(self, source: CheckpointSource) -> BaseModel:
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


class CheckpointState:
    """Tells, without loading, whether models would still be what they are; reads a folder once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._digests = _Digests()

    def matches(
        self, spec: ModelSpec, fields: Mapping[str, FieldPattern], fingerprint: str
    ) -> bool:
        """Say whether a model loaded now would have that fingerprint; raise `CheckpointError`.

        A function's module and another server may have changed unseen: of those only loading tells.
        """
        if not isinstance(spec, NeuralSpec):
            return not isinstance(spec, PythonSpec | RemoteSpec)
        folders = _locate(spec)
        dtype = _dtype(spec, self._device)
        return fingerprint == _fingerprint(spec, folders, self._digests.of(folders), dtype, fields)


def _fingerprint(
    spec: NeuralSpec,
    folders: _Folders,
    digest: str,
    dtype: torch.dtype,
    fields: Mapping[str, FieldPattern],
) -> str:
    """Digest all that decides a score: the same fingerprint means the same scores."""
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
    """Return what a raw score goes through: the recipe's word, else the checkpoint's."""
    if not isinstance(spec, SequenceSpec) or spec.normalization == "none":
        return None
    return spec.normalization or configured_normalization(folder)


def _is_dated(spec: NeuralSpec, tokenizer: Path) -> bool:
    """Say whether the fixed date is in a model's texts."""
    if getattr(spec, "template", None) != "chat":
        return False
    if isinstance(spec, TextSpec):
        if spec.turns is not None:
            return False
        if spec.chat_template is not None:
            return asks_date(spec.chat_template)
    return has_dated_template(tokenizer)
