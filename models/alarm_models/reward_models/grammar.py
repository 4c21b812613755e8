"""Kind `grammar`: errors as spans labeled with their rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from alarm_models.preprocessing.templates import FieldPattern
from alarm_models.recipe.specs import GrammarSpec
from alarm_models.reward_models.base import CheckModel, HostModel, fingerprint_of
from alarm_models.reward_models.registry import check_model, host_kind
from alarm_models.reward_models.text_checks import num_policy_tokens
from alarm_models.reward_models.thread_pool import CheckThreadPool
from alarm_models.types import Sample, Score, SegmentScore, Span

__all__ = ["Checker", "Grammar", "GrammarError"]

#: The rule name of an error that the caller sends.
_CALLERS = "error"

#: An error: its span and its rule.
GrammarError = tuple[Span, str]


class Checker(Protocol):
    """Finds errors; thread-safe."""

    def find(self, text: str) -> Sequence[GrammarError]:
        """Return a text's errors, spans in code points."""


class Grammar:
    """Finds errors with a checker, unless the caller sends them as ``segments.errors``.

    The score is the paper's error rate: errors per policy token (words without token offsets),
    None without tokens. Lower is better.
    """

    def __init__(self, checker: Checker) -> None:
        self._checker = checker

    def __call__(self, sample: Sample) -> Score:
        """Return the errors as negative segments, labeled with their rules."""
        text = sample.completion_text
        given = sample.segments.get("errors")
        if given is None:
            errors = sorted(self._checker.find(text))
        else:
            errors = [(Span(start, min(end, len(text))), _CALLERS) for start, end in given]
        num_tokens = num_policy_tokens(sample)
        rate = len(errors) / num_tokens if num_tokens else None
        segments = tuple(SegmentScore(span, rule, None, False) for span, rule in errors)
        return Score(rate, segments, 0, False)


@host_kind(GrammarSpec)
def _load(spec: GrammarSpec, fields: Mapping[str, FieldPattern]) -> HostModel:
    if spec.engine == "languagetool":
        from alarm_models.reward_models.languagetool import LanguageTool

        server = LanguageTool(spec)
        pool = CheckThreadPool(spec.concurrency, on_close=server.close)
        return CheckModel(
            Grammar(server),
            pool,
            spec.timeout_s,
            fingerprint_of(spec),
            spec.view_rules,
            server.check_reachable,
        )
    from alarm_models.reward_models.harper import Harper

    return check_model(spec, fields, Grammar(Harper(spec)), library="harper-py")
