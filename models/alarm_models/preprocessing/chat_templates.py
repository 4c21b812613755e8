"""Makes chat templates deterministic: a fixed date, no random text.

A score must not change with the clock while its fingerprint stays the same. `strftime_now` (Llama
3.1 and later, Granite) returns a fixed date; templates with random text are refused.
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

#: The fallback date of the templates of Llama 3.1 and 3.2.
FIXED_DATE = datetime(2024, 7, 26, tzinfo=UTC)

_DATE = re.compile(r"\bstrftime_now\b")

#: Jinja's nondeterministic filter and global.
_RANDOM = re.compile(r"\|\s{0,9}random\b|\blipsum\b")

_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """The chat format of a recipe: a template in place of the tokenizer's, and its arguments."""

    template: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


def require_jinja(template: str) -> None:
    """Raise `RecipeError`, with the line, unless a recipe's own template can be compiled."""
    compile_template: Any = getattr(chat_template_utils, "_compile_jinja_template", None)
    if compile_template is None:
        return  # checked with the first sample
    try:
        compile_template(template)
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        raise RecipeError(
            f"chat_template is no Jinja{f', line {line}' if line else ''}: {error}"
        ) from error


def fix_date(template: str) -> None:
    """Make the next rendering of a template by transformers use the fixed date.

    transformers stores the functions that templates call in the compiled template, which it caches,
    so this must be called before each rendering. Raises `CheckpointError` if the installed version
    of transformers stores them elsewhere.
    """
    compile_template: Any = getattr(chat_template_utils, "_compile_jinja_template", None)
    if compile_template is None:
        raise CheckpointError(
            "the chat template uses the date, which cannot be fixed with this version of "
            "transformers; give a text in `template`"
        )
    compiled = compile_template(template)
    compiled.globals["strftime_now"] = FIXED_DATE.strftime


def asks_date(template: str) -> bool:
    """Return whether a template, or a file that contains it, uses the date."""
    return _DATE.search(template) is not None


def draws_randomly(template: str) -> bool:
    """Return whether a template renders random text."""
    return _RANDOM.search(template) is not None


def has_dated_template(folder: Path) -> bool:
    """Return whether a checkpoint's chat template uses the date, without loading it."""
    files = [folder / name for name in _TEMPLATE_FILES]
    return any(asks_date(file.read_text("utf-8")) for file in files if file.is_file())
