"""Chat templates that use more than the messages: the date, or random text.

A score must not change by the clock while its fingerprint stays. `strftime_now` (Llama 3.1 and
later, Granite) is answered with one fixed date; a template that draws random text is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers.utils import chat_template_utils

from alarm_models.errors import CheckpointError, RecipeError

__all__ = [
    "FIXED_DATE",
    "ChatFormat",
    "asks_date",
    "draws_randomly",
    "fix_date",
    "has_dated_template",
    "require_jinja",
]

#: The date that Llama 3.1's and 3.2's own templates fall back to where there is no clock.
FIXED_DATE = datetime(2024, 7, 26, tzinfo=UTC)

_DATE = re.compile(r"\bstrftime_now\b")

#: Jinja's filter and its global, the two that give other text each time.
_RANDOM = re.compile(r"\|\s{0,9}random\b|\blipsum\b")

_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """What a recipe says of a chat: a template in place of the tokenizer's own, its arguments."""

    template: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


def require_jinja(template: str) -> None:
    """Raise `RecipeError`, with the line, unless a recipe's own template can be compiled."""
    compile_template: Any = getattr(chat_template_utils, "_compile_jinja_template", None)
    if compile_template is None:
        return  # the first sample will tell
    try:
        compile_template(template)
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        raise RecipeError(
            f"chat_template is no Jinja{f', line {line}' if line else ''}: {error}"
        ) from error


def fix_date(template: str) -> None:
    """Have a template's next rendering by transformers use the fixed date.

    transformers gives templates nothing but plain data, and keeps the functions that they call with
    the compiled template. It caches those, so this is to be said before each rendering. Raises
    `CheckpointError` where a version of transformers keeps them elsewhere.
    """
    compile_template: Any = getattr(chat_template_utils, "_compile_jinja_template", None)
    if compile_template is None:
        raise CheckpointError(
            "the chat template asks for the date, which this version of transformers does not let "
            "us fix; give a text in `template`"
        )
    compiled = compile_template(template)
    compiled.globals["strftime_now"] = FIXED_DATE.strftime


def asks_date(template: str) -> bool:
    """Say whether a template, or the file that it is in, uses the date."""
    return _DATE.search(template) is not None


def draws_randomly(template: str) -> bool:
    """Say whether a template renders random text."""
    return _RANDOM.search(template) is not None


def has_dated_template(folder: Path) -> bool:
    """Say whether a checkpoint's chat template uses the date, without loading it."""
    files = [folder / name for name in _TEMPLATE_FILES]
    return any(asks_date(file.read_text("utf-8")) for file in files if file.is_file())
