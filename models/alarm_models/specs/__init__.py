"""What a recipe says of a model: one frozen spec a kind, one file a family."""

from typing import Annotated

from pydantic import Field

from alarm_models.specs.base import Spec
from alarm_models.specs.neural import (
    GenerativeSpec,
    MultiObjectiveSpec,
    NeuralSpec,
    SegmentsSpec,
    SequenceSpec,
    StepsSpec,
)
from alarm_models.specs.remote import RemoteSpec
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
    "GenerativeSpec",
    "GrammarSpec",
    "LanguageSpec",
    "LengthSpec",
    "ModelSpec",
    "MultiObjectiveSpec",
    "NeuralSpec",
    "PythonSpec",
    "ReadabilitySpec",
    "RegexSpec",
    "RemoteSpec",
    "RepetitionSpec",
    "SegmentsSpec",
    "SequenceSpec",
    "SimilaritySpec",
    "Spec",
    "StepsSpec",
]

ModelSpec = Annotated[
    SequenceSpec
    | SegmentsSpec
    | StepsSpec
    | MultiObjectiveSpec
    | GenerativeSpec
    | RemoteSpec
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
