"""Chat templates: compiled once, deterministic, and bounded in time and memory.

A score must not change with the clock while its fingerprint stays the same. `strftime_now` (Llama
3.1 and later, Granite) returns a fixed date; templates with random text are refused. Templates come
with checkpoints and are not trusted: `template_limits` bounds what they make.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateSyntaxError
from transformers.utils import chat_template_utils

from alarm_models.errors import CheckpointError, RecipeError, SampleError
from alarm_models.preprocessing.template_limits import (
    bounded_environment,
    compile_bounded,
    render_bounded,
)
from alarm_models.time_limit import TimeLimitExceeded, time_limit

__all__ = [
    "FIXED_DATE",
    "ChatFormat",
    "asks_date",
    "draws_randomly",
    "has_dated_template",
    "render_chat_template",
    "require_jinja",
]

#: The fallback date of the templates of Llama 3.1 and 3.2.
FIXED_DATE = datetime(2024, 7, 26, tzinfo=UTC)

#: Time limit of a chat template for one conversation, in seconds.
_TIMEOUT_S = 10.0

#: Templates that are kept compiled, and the longest message of an error.
_MAX_COMPILED = 64
_MAX_SAID = 200

_DATE = re.compile(r"\bstrftime_now\b")

#: Jinja's nondeterministic filter and global.
_RANDOM = re.compile(r"\|\s{0,9}random\b|\blipsum\b")

_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """The chat format of a recipe: a template in place of the tokenizer's, and its arguments."""

    template: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


def require_jinja(template: str, checkpoint: str | None = None) -> None:
    """Raise unless a chat template can be compiled, with the line, and is not random.

    Raises `RecipeError` for a recipe's own template, `CheckpointError` for a checkpoint's.
    """
    if draws_randomly(template):
        said = (
            "renders random text (`random` or `lipsum`), so scores would not be reproducible; give "
            "a text in `template`"
        )
        if checkpoint is None:
            raise RecipeError(f"chat_template {said}")
        raise CheckpointError(f"{checkpoint}: the chat template {said}")
    try:
        with time_limit(_TIMEOUT_S):
            _compiled(template)
    except CheckpointError:
        raise
    except Exception as error:  # the parsers of Jinja and of Python may raise anything
        line = error.lineno if isinstance(error, TemplateSyntaxError) else None
        said = f"is not valid Jinja{f', line {line}' if line else ''}: {_said(error)}"
        if checkpoint is None:
            raise RecipeError(f"chat_template {said}") from error
        raise CheckpointError(
            f"{checkpoint}: its chat template {said}; give one in `chat_template`, or a text in "
            "`template`"
        ) from error


def render_chat_template(
    tokenizer: Any, template: str, messages: Sequence[Mapping[str, Any]], /, **arguments: Any
) -> str:
    """Render messages as a tokenizer's `apply_chat_template` does, within limits.

    Raises `SampleError` (``invalid_sample``) if the template refuses the messages, takes too long
    or makes too much of them.
    """
    if not template:
        raise SampleError("invalid_sample", "there is no chat template")
    try:
        with time_limit(_TIMEOUT_S):
            compiled = _compiled(template)
            text: str = tokenizer.apply_chat_template(
                messages, tokenize=False, chat_template=compiled.stand_in(), **arguments
            )
    except TimeLimitExceeded as error:
        raise SampleError(
            "invalid_sample",
            f"the chat template took longer than {_TIMEOUT_S:g} s over these messages",
        ) from error
    except Exception as error:  # the checkpoint's template may raise anything
        raise SampleError(
            "invalid_sample", f"the chat template refuses these messages: {_said(error)}"
        ) from error
    return text


class _Compiled:
    """A bounded template, and the stand-in for it that is given to transformers.

    transformers prepares the variables of a template, in ways that change between its versions, and
    calls its `render`. The stand-in's `render` is that of the bounded template. Nothing of the
    template itself is compiled or run elsewhere.
    """

    def __init__(self, text: str) -> None:
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        self._stand_in = f"{{{{ raise_exception('no bounded template {digest}') }}}}"
        environment = _compile_with_transformers(self._stand_in).environment
        self._template = compile_bounded(
            bounded_environment(environment, FIXED_DATE.strftime), text
        )

    def stand_in(self) -> str:
        """Return the text of the stand-in, ready to be rendered.

        transformers keeps a limited number of compiled templates, so this is called for each
        rendering.
        """
        stand_in: Any = _compile_with_transformers(self._stand_in)
        stand_in.render = self._render
        return self._stand_in

    def _render(self, **variables: Any) -> str:
        return render_bounded(self._template, variables)


@lru_cache(_MAX_COMPILED)
def _compiled(text: str) -> _Compiled:
    return _Compiled(text)


def _compile_with_transformers(text: str) -> Template:
    compile_template: Callable[[str], Template] | None = getattr(
        chat_template_utils, "_compile_jinja_template", None
    )
    if compile_template is None:
        raise CheckpointError(
            "chat templates cannot be bounded with this version of transformers; install version "
            "5, or give a text in `template`"
        )
    return compile_template(text)


def _said(error: Exception) -> str:
    """Return what an error says, in one short line."""
    if isinstance(error, RecursionError | MemoryError):
        return "it is too long or nested too deeply"
    # Python's parser refuses some of the code that Jinja writes; its lines are not the template's.
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    said = " ".join(text[: 4 * _MAX_SAID].split()) or type(error).__name__
    return said if len(said) <= _MAX_SAID else f"{said[:_MAX_SAID]}..."


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
