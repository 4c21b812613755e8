"""Grammar checks of English texts by harper, in this process and offline."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping, Sequence

from harper import Dialect, Linter

from alarm_models.cancellation import check_cancelled
from alarm_models.errors import RecipeError
from alarm_models.recipe.specs import GrammarSpec
from alarm_models.reward_models.grammar import GrammarError
from alarm_models.types import Span

__all__ = ["Harper"]

_DIALECTS: Mapping[str, Dialect] = {
    "en-US": Dialect.AMERICAN,
    "en-GB": Dialect.BRITISH,
    "en-AU": Dialect.AUSTRALIAN,
    "en-CA": Dialect.CANADIAN,
    "en-IN": Dialect.INDIAN,
}

#: harper takes cubic time in runs without whitespace, and quadratic time in sentences and in lines
#: of only marks and digits. Such texts are checked in parts.
_PART = 2000
_MAX_RUN = 500
_FEWEST_LETTERS = 0.4

_SENTENCE_END = re.compile(r"[.!?\n]")
_LETTERS = re.compile(r"[^\W\d_]+")


class Harper:
    """Checks English texts with one linter per thread; all share one dictionary (130 MB)."""

    def __init__(self, spec: GrammarSpec) -> None:
        if spec.language not in _DIALECTS:
            raise RecipeError(
                f"language is {spec.language!r}; harper supports {', '.join(_DIALECTS)} "
                '(engine = "languagetool" supports more)'
            )
        self._spec = spec
        self._own = threading.local()
        unknown = sorted(set(spec.ignored_rules) - set(self._linter().get_default_lint_config()))
        if unknown:
            raise RecipeError(
                f"ignored_rules has {unknown}, which are not rules of harper: remove them"
            )

    def find(self, text: str) -> Sequence[GrammarError]:
        """Return the errors of a text with their rules."""
        return [
            (Span(span.start + start, span.end + start), rule)
            for start, part in _parts(text)
            for span, rule in self._errors(part)
        ]

    def _errors(self, text: str) -> list[GrammarError]:
        linter, markup = self._linter(), self._spec.markup
        # Naming the rules takes three times as long, and most sentences have no error.
        if not linter.lint(text, language=markup):
            return []
        return [
            (Span(lint.span.start, lint.span.end), rule)
            for rule, lints in linter.organized_lints(text, language=markup).items()
            for lint in lints
        ]

    def _linter(self) -> Linter:
        linter: Linter | None = getattr(self._own, "linter", None)
        if linter is None:
            linter = Linter(_DIALECTS[self._spec.language])
            ignored = dict.fromkeys(self._spec.ignored_rules, False)
            linter.set_lint_config({**linter.get_lint_config(), **ignored})
            self._own.linter = linter
        return linter


def _parts(text: str) -> Iterator[tuple[int, str]]:
    """Yield the text with its start; in parts if it is not prose."""
    if _is_prose(text):
        yield 0, text
        return
    at = 0
    while at < len(text):
        check_cancelled()
        end = at + _PART
        if end < len(text):
            # Split between words if possible, else anywhere.
            blank = max(text.rfind(" ", at + 1, end), text.rfind("\n", at + 1, end))
            end = blank + 1 if blank >= at + _PART // 2 else end
        yield at, text[at:end]
        at = end


def _is_prose(text: str) -> bool:
    """Return whether all blocks of the text consist of words; true for a short text."""
    if len(text) <= _PART:
        return True
    if max(map(len, text.split()), default=0) > _MAX_RUN:
        return False
    if max(map(len, _SENTENCE_END.split(text))) > _PART:
        return False
    blocks = (text[at : at + _PART] for at in range(0, len(text), _PART))
    # The last block may be short.
    return all(
        sum(map(len, _LETTERS.findall(block))) >= _FEWEST_LETTERS * len(block)
        for block in blocks
        if len(block) == _PART
    )
