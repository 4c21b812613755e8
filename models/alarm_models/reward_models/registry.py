"""From specs to models: loading, fingerprints, and what is unchanged on disk."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch

from alarm_models.errors import CheckpointError, RecipeError
from alarm_models.modeling import checkpoint
from alarm_models.modeling import loader as sources
from alarm_models.modeling.loader import BaseModel, CheckpointSource
from alarm_models.modeling.network import Network
from alarm_models.preprocessing.chat_templates import FIXED_DATE, has_dated_template
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
    PythonSpec,
    ReadabilitySpec,
    RegexSpec,
    RemoteSpec,
    RepetitionSpec,
    SegmentsSpec,
    SequenceSpec,
    SimilaritySpec,
    StepsSpec,
)
from alarm_models.reward_models.base import (
    CheckModel,
    HostModel,
    LoadedCheckpoint,
    Model,
    NeuralRewardModel,
    fingerprint_of,
)
from alarm_models.reward_models.generative import GenerativeModel, scored_tokens
from alarm_models.reward_models.grammar import Grammar
from alarm_models.reward_models.multi_objective import MultiObjectiveModel
from alarm_models.reward_models.reading import read_token, reading_notes
from alarm_models.reward_models.remote.model import RemoteModel
from alarm_models.reward_models.segments import SegmentsModel
from alarm_models.reward_models.sequence import SequenceModel
from alarm_models.reward_models.steps import StepsModel
from alarm_models.reward_models.text_checks import Repetition, length
from alarm_models.reward_models.thread_pool import Check, CheckThreadPool

__all__ = ["CheckpointState", "Loader", "load_host_model"]

_logger = logging.getLogger(__name__)

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


class Loader:
    """Loads models onto one device; models on one checkpoint share its tokenizer and its base.

    ``max_remembered_bytes`` bounds what each causal model keeps of prompts for later batches.
    """

    def __init__(self, device: torch.device, *, max_remembered_bytes: int = 0) -> None:
        self._device = device
        self._max_remembered_bytes = max_remembered_bytes
        self._bases: dict[CheckpointSource, BaseModel] = {}
        self._tokenizers: dict[Path, Tokenizer] = {}
        self._digests: dict[Path, str] = {}
        self._stamps: dict[Path, object] = {}

    def load(self, spec: ModelSpec, fields: Mapping[str, FieldPattern]) -> Model:
        """Load a model; ``fields`` finds what callers leave out of a sample's fields.

        Raises `CheckpointError` or `RecipeError`.
        """
        if isinstance(spec, CheckSpec):
            return load_host_model(spec, fields)
        if isinstance(spec, RemoteSpec):
            return RemoteModel(spec, fields)
        weights = self._weights(spec)
        folder = checkpoint.locate(spec.checkpoint)
        fingerprint = _fingerprint(spec, folder, weights.digest, weights.network.dtype, fields)
        model = self._model(spec, weights, fields, fingerprint)
        model.read_token = read_token(model, spec, weights.tokenizer)
        model.notes = reading_notes(spec, folder)
        _tell(spec, model)
        return model

    def _model(
        self,
        spec: NeuralSpec,
        weights: LoadedCheckpoint,
        fields: Mapping[str, FieldPattern],
        fingerprint: str,
    ) -> NeuralRewardModel:
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
        raise RecipeError(f"no model is made of {spec!r}")

    def _weights(self, spec: NeuralSpec) -> LoadedCheckpoint:
        folder = checkpoint.locate(spec.checkpoint)
        source = CheckpointSource(
            folder,
            _dtype(spec, self._device),
            self._device,
            spec.trust_remote_code,
            self._max_remembered_bytes,
            is_normalized="normalization" in type(spec).model_fields,
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
        return LoadedCheckpoint(network, self._tokenizers[folder], self._digests[folder], labels)

    def _network(self, spec: NeuralSpec, source: CheckpointSource) -> Network:
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

    def _base(self, source: CheckpointSource) -> BaseModel:
        if source not in self._bases:
            self._bases[source] = sources.load_base(source)
        return self._bases[source]


def _tell(spec: NeuralSpec, model: NeuralRewardModel) -> None:
    """Log what a model's score is read at, and where it may differ from its card's."""
    if model.read_token is not None:
        _logger.info("%s: the score is read at the token %r", spec.checkpoint, model.read_token)
    for note in model.notes:
        _logger.warning("%s: %s", spec.checkpoint, note)


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
        self._digests: dict[Path, str] = {}

    def matches(
        self, spec: ModelSpec, fields: Mapping[str, FieldPattern], fingerprint: str
    ) -> bool:
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
