"""What a recipe says of models that are rules: no weights, no device."""

from __future__ import annotations

from typing import Literal

from alarm_models.specs.base import Spec

__all__ = ["LengthSpec"]


class LengthSpec(Spec):
    """The number of the completion's tokens, or of its words without token offsets."""

    kind: Literal["length"] = "length"
