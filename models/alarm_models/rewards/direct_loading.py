"""From the spec of a model without a device to the model; libraries load with the first use."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import version

from alarm_models.crew import Check, Crew
from alarm_models.errors import RecipeError
from alarm_models.rewards.direct import CheckModel, DirectModel, fingerprint_of
from alarm_models.rewards.grammar import Grammar
from alarm_models.rewards.length import length
from alarm_models.rewards.repetition import Repetition
from alarm_models.specs import (
    CheckSpec,
    ExactMatchSpec,
    GrammarSpec,
    LanguageSpec,
    LengthSpec,
    PythonSpec,
    ReadabilitySpec,
    RegexSpec,
    RepetitionSpec,
    SimilaritySpec,
)
from alarm_models.texts.template import FieldPattern

__all__ = ["load_direct"]

#: A model's threads; what they call mostly releases the interpreter.
_NUM_THREADS = min(4, os.cpu_count() or 1)


def load_direct(spec: CheckSpec, fields: Mapping[str, FieldPattern]) -> DirectModel:
    """Make the model of a spec; raise `RecipeError`, also where a library is not installed."""
    try:
        return _made(spec, fields)
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"kind {getattr(spec, 'kind', '')!r} needs the package {error.name!r}: "
            "pip install 'alarm-models[text]'"
        ) from error


def _made(spec: CheckSpec, fields: Mapping[str, FieldPattern]) -> DirectModel:
    match spec:
        case PythonSpec():
            from alarm_models.rewards.python import PythonModel

            return PythonModel(spec)
        case GrammarSpec(engine="languagetool"):
            from alarm_models.rewards.languagetool import LanguageTool

            server = LanguageTool(spec)
            crew = Crew(spec.concurrency, on_close=server.close)
            return CheckModel(
                Grammar(server), crew, spec.timeout_s, fingerprint_of(spec), server.greet
            )
        case _:
            check, *libraries = _check(spec, fields)
            versions = [f"{library} {version(library)}" for library in libraries]
            fingerprint = fingerprint_of(spec, *versions, *_patterns(spec, fields))
            return CheckModel(check, Crew(_NUM_THREADS), spec.timeout_s, fingerprint)


def _check(spec: CheckSpec, fields: Mapping[str, FieldPattern]) -> tuple[Check] | tuple[Check, str]:
    """Return a kind's check, and the library whose version decides its scores."""
    match spec:
        case LengthSpec():
            return (length,)
        case RepetitionSpec():
            return (Repetition(spec),)
        case GrammarSpec():
            from alarm_models.rewards.harper import Harper

            return Grammar(Harper(spec)), "harper-py"
        case ReadabilitySpec():
            from alarm_models.rewards.readability import Readability

            return Readability(), "pyphen"
        case LanguageSpec():
            from alarm_models.rewards.language import LanguageConfidence

            return LanguageConfidence(spec), "lingua-language-detector"
        case RegexSpec():
            from alarm_models.rewards.pattern import FormatMatch

            return FormatMatch(spec), "regex"
        case ExactMatchSpec():
            from alarm_models.rewards.pattern import ExactMatch

            return ExactMatch(spec, fields), "regex"
        case SimilaritySpec():
            from alarm_models.rewards.similarity import Similarity

            return Similarity(spec, fields), "sacrebleu"
    raise RecipeError(f"no model is made of {spec!r}")


def _patterns(spec: CheckSpec, fields: Mapping[str, FieldPattern]) -> list[tuple[str, str]]:
    """Return the patterns that may find what the spec's templates name."""
    return sorted((name, field.pattern) for name, field in fields.items()) if spec.templates else []
