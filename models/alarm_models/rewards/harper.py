"""harper, the grammar checker in this process: offline, English."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from harper import Dialect, Linter

from alarm_models.errors import RecipeError
from alarm_models.rewards.grammar import GrammarError
from alarm_models.sample import Span
from alarm_models.specs import GrammarSpec

__all__ = ["Harper"]

_DIALECTS: Mapping[str, Dialect] = {
    "en-US": Dialect.AMERICAN,
    "en-GB": Dialect.BRITISH,
    "en-AU": Dialect.AUSTRALIAN,
    "en-CA": Dialect.CANADIAN,
    "en-IN": Dialect.INDIAN,
}


class Harper:
    """Checks English texts with one linter a thread; all share one dictionary (130 MB)."""

    def __init__(self, spec: GrammarSpec) -> None:
        if spec.language not in _DIALECTS:
            raise RecipeError(
                f"language is {spec.language!r}; harper knows {', '.join(_DIALECTS)} "
                '(engine = "languagetool" knows more)'
            )
        self._spec = spec
        self._own = threading.local()
        unknown = sorted(set(spec.ignored_rules) - set(self._linter().get_default_lint_config()))
        if unknown:
            raise RecipeError(f"ignored_rules has {unknown}, which harper does not know")

    def find(self, text: str) -> Sequence[GrammarError]:
        """Return the errors of a text with their rules."""
        linter, markup = self._linter(), self._spec.markup
        # Naming the rules takes three times as long; most sentences have no error to name.
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
