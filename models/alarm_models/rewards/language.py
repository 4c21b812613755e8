"""Kind `language`: how sure it is that a completion is in the language it should be in."""

from __future__ import annotations

from lingua import Language, LanguageDetectorBuilder

from alarm_models.errors import RecipeError
from alarm_models.sample import Sample, Score
from alarm_models.specs import LanguageSpec

__all__ = ["LanguageConfidence"]


class LanguageConfidence:
    """Asks lingua, which knows no languages but the recipe's (as ALaRM's code).

    The score is a probability among these languages; a text without letters has 0.
    """

    def __init__(self, spec: LanguageSpec) -> None:
        known = {language.iso_code_639_1.name.lower(): language for language in Language.all()}
        unknown = sorted(set(spec.languages) - set(known))
        if unknown:
            raise RecipeError(f"languages has {unknown}; lingua knows {', '.join(sorted(known))}")
        self._target = known[spec.target]
        languages = [known[code] for code in spec.languages]
        self._detector = (
            LanguageDetectorBuilder.from_languages(*languages)
            .with_preloaded_language_models()
            .build()
        )

    def __call__(self, sample: Sample) -> Score:
        """Return the target's confidence in [0, 1]."""
        text = sample.completion_text
        return Score(self._detector.compute_language_confidence(text, self._target), None, 0, False)
