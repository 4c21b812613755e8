"""Kind `language`: the probability that a completion is in the target language."""

from __future__ import annotations

import re
from collections.abc import Mapping

from lingua import Language, LanguageDetectorBuilder

from alarm_models.errors import RecipeError
from alarm_models.preprocessing.templates import FieldPattern
from alarm_models.recipe.specs import LanguageSpec
from alarm_models.reward_models.registry import check_kind
from alarm_models.reward_models.thread_pool import Check
from alarm_models.types import Sample, Score

__all__ = ["LanguageConfidence"]

#: lingua takes quadratic time per word and holds the GIL. Longer runs without whitespace are not
#: words and are split into parts of this length.
_MAX_WORD = 4000

_RUN = re.compile(r"\S+")


class LanguageConfidence:
    """Scores with lingua, restricted to the recipe's languages (as in ALaRM's code).

    The score is a probability among these languages, 0 for a text without letters.
    """

    def __init__(self, spec: LanguageSpec) -> None:
        known = {language.iso_code_639_1.name.lower(): language for language in Language.all()}
        unknown = sorted(set(spec.languages) - set(known))
        if unknown:
            raise RecipeError(
                f"languages has {unknown}; lingua supports {', '.join(sorted(known))}"
            )
        self._target = known[spec.target]
        languages = [known[code] for code in spec.languages]
        self._detector = (
            LanguageDetectorBuilder.from_languages(*languages)
            .with_preloaded_language_models()
            .build()
        )

    def __call__(self, sample: Sample) -> Score:
        """Return the target's confidence in [0, 1]."""
        text = _with_breaks(sample.completion_text)
        return Score(self._detector.compute_language_confidence(text, self._target), None, 0, False)


@check_kind(LanguageSpec, library="lingua-language-detector")
def _language(spec: LanguageSpec, _fields: Mapping[str, FieldPattern]) -> Check:
    return LanguageConfidence(spec)


def _with_breaks(text: str) -> str:
    """Insert spaces into runs without whitespace that are longer than a word."""
    if max(map(len, text.split()), default=0) <= _MAX_WORD:
        return text
    return _RUN.sub(lambda run: " ".join(_parts(run.group())), text)


def _parts(run: str) -> list[str]:
    return [run[at : at + _MAX_WORD] for at in range(0, len(run), _MAX_WORD)]
