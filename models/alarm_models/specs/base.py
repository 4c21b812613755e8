"""What all that a recipe says of models has in common."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict

from alarm_models.alignment import Placement

__all__ = ["Spec", "require_address"]


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


def require_address(url: str) -> str:
    """Return a URL of a server; raise `ValueError` where no request could be sent to it."""
    if not url.isprintable() or any(character.isspace() for character in url):
        raise ValueError("the URL has a space or a character that is not printable")
    parts = urlsplit(url)
    if not parts.hostname or parts.port == 0:
        raise ValueError("the URL names no host and port that can be asked")
    if parts.query or parts.fragment:
        raise ValueError("the URL has a query or a fragment, which would not be sent")
    return url
