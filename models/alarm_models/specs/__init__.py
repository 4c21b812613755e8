"""What a recipe says of a model: one frozen spec a kind, one file a family."""

from typing import Annotated

from pydantic import Field

from alarm_models.specs.base import Spec
from alarm_models.specs.neural import NeuralSpec, SegmentsSpec, SequenceSpec
from alarm_models.specs.text import LengthSpec

__all__ = ["LengthSpec", "ModelSpec", "NeuralSpec", "SegmentsSpec", "SequenceSpec", "Spec"]

ModelSpec = Annotated[SequenceSpec | SegmentsSpec | LengthSpec, Field(discriminator="kind")]
