"""What all that a recipe says of models has in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from alarm_models.alignment import Placement

__all__ = ["Spec"]


class Spec(BaseModel):
    """One model, as a recipe describes it; a subclass a kind."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def templates(self) -> tuple[str, ...]:
        """The texts that name fields of a sample."""
        return ()

    @property
    def placement(self) -> Placement:
        """Where its rewards land unless an aspect says otherwise."""
        return Placement.SEGMENT_ENDS
