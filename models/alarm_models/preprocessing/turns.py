"""Renders conversations with a recipe's `turns`: one text per role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alarm_models.errors import SampleError
from alarm_models.preprocessing.templates import Rendered
from alarm_models.types import Message, Span

__all__ = ["Turns"]


@dataclass(frozen=True, slots=True)
class Turns:
    """Texts by role, each with ``{}`` in place of the message's content.

    ``start`` precedes the first message, ``separator`` is between messages, ``generation`` starts
    the next turn.
    """

    by_role: Mapping[str, str]
    start: str = ""
    separator: str = ""
    generation: str = ""

    def render(
        self, messages: Sequence[Message], num_prompt: int, *, add_generation_prompt: bool = False
    ) -> Rendered:
        """Render messages, the first ``num_prompt`` of which are the prompt.

        The spans of prompt and completion reach from the content of their first message to the end
        of that of their last. Raises `SampleError` (``invalid_sample``) for a role without a text.
        """
        text = self.start
        spans: list[Span] = []
        for index, message in enumerate(messages):
            turn = self.by_role.get(message.role)
            if turn is None:
                raise SampleError(
                    "invalid_sample",
                    f"the model's turns have no text for the role {message.role!r}; they have "
                    f"{', '.join(self.by_role)}",
                )
            before, after = turn.split("{}")
            text += (self.separator if index else "") + before
            spans.append(Span(len(text), len(text) + len(message.text)))
            text += message.text + after
        if add_generation_prompt:
            text += (self.separator if messages else "") + self.generation
        prompt, completion = spans[:num_prompt], spans[num_prompt:]
        return Rendered(text, _whole(prompt), _whole(completion))


def _whole(spans: Sequence[Span]) -> Span:
    return Span(spans[0].start, spans[-1].end) if spans else Span(0, 0)
