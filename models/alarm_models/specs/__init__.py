"""What a recipe says of a model: one frozen spec a kind, one file a family."""

from typing import Annotated

from pydantic import Field

from alarm_models.specs.base import Spec
from alarm_models.specs.neural import NeuralSpec, SegmentsSpec, SequenceSpec
from alarm_models.specs.text import (
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

__all__ = [
    "CheckSpec",
    "ExactMatchSpec",
    "GrammarSpec",
    "LanguageSpec",
    "LengthSpec",
    "ModelSpec",
    "NeuralSpec",
    "PythonSpec",
    "ReadabilitySpec",
    "RegexSpec",
    "RepetitionSpec",
    "SegmentsSpec",
    "SequenceSpec",
    "SimilaritySpec",
    "Spec",
]

ModelSpec = Annotated[
    SequenceSpec
    | SegmentsSpec
    | LengthSpec
    | GrammarSpec
    | ReadabilitySpec
    | LanguageSpec
    | RegexSpec
    | RepetitionSpec
    | SimilaritySpec
    | ExactMatchSpec
    | PythonSpec,
    Field(discriminator="kind"),
]
