"""What a recipe says of models that are rules: no weights, no device."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from alarm_models.alignment import Placement
from alarm_models.specs.base import Spec, require_address

__all__ = [
    "CheckSpec",
    "ExactMatchSpec",
    "GrammarSpec",
    "LanguageSpec",
    "LengthSpec",
    "PythonSpec",
    "ReadabilitySpec",
    "RegexSpec",
    "RepetitionSpec",
    "SimilaritySpec",
]


class CheckSpec(Spec):
    """What every rule has."""

    timeout_s: float = Field(default=10, gt=0, description="one sample's time")


class LengthSpec(CheckSpec):
    """The number of the completion's tokens, or of its words without token offsets."""

    kind: Literal["length"] = "length"


class GrammarSpec(CheckSpec):
    """Errors as spans with rule names; every token earns something."""

    kind: Literal["grammar"] = "grammar"
    engine: Literal["harper", "languagetool"] = Field(
        default="harper", description="in this process, or a LanguageTool server"
    )
    url: str | None = Field(
        default=None, pattern=r"^https?://", description="where the LanguageTool server listens"
    )
    language: str = Field(default="en-US", description="harper knows English alone")
    markup: Literal["plaintext", "markdown"] = Field(default="plaintext", description="harper's")
    ignored_rules: tuple[str, ...] = ()
    concurrency: int = Field(default=8, ge=1, description="texts at a LanguageTool server at once")

    @property
    def placement(self) -> Placement:
        """Every token earns something."""
        return Placement.TOKENS

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str | None) -> str | None:
        return None if url is None else require_address(url)

    @model_validator(mode="after")
    def _languagetool_has_url(self) -> GrammarSpec:
        if (self.engine == "languagetool") != (self.url is not None):
            raise ValueError('`url` is where the server of engine = "languagetool" listens')
        return self


class ReadabilitySpec(CheckSpec):
    """The Flesch-Kincaid grade of an English completion."""

    kind: Literal["readability"] = "readability"


class LanguageSpec(CheckSpec):
    """The confidence in [0, 1] that a completion is in a language, among the recipe's."""

    kind: Literal["language"] = "language"
    target: str = Field(default="en", description="an ISO 639-1 code")
    languages: tuple[str, ...] = Field(min_length=2, description="the codes that it may be")

    @model_validator(mode="after")
    def _languages_hold_target(self) -> LanguageSpec:
        if self.target not in self.languages:
            raise ValueError(f"languages {list(self.languages)} lack the target {self.target!r}")
        return self


class RegexSpec(CheckSpec):
    """Whether a completion has a form: 1 or 0."""

    kind: Literal["regex"] = "regex"
    pattern: str
    match: Literal["somewhere", "whole"] = "somewhere"


class RepetitionSpec(CheckSpec):
    """The share of a completion's n-grams that it said before."""

    kind: Literal["repetition"] = "repetition"
    ngram: int = Field(default=4, ge=1, description="words")


class SimilaritySpec(CheckSpec):
    """How like a reference a completion is, in [0, 100]."""

    kind: Literal["similarity"] = "similarity"
    metric: Literal["chrf", "chrf++", "bleu"] = "chrf"
    reference: str = Field(default="{reference}", description="names the field it is in")

    @property
    def templates(self) -> tuple[str, ...]:
        """The reference."""
        return (self.reference,)


class ExactMatchSpec(CheckSpec):
    """Whether a completion's answer is the reference: 1 or 0."""

    kind: Literal["exact-match"] = "exact-match"
    reference: str = Field(default="{reference}", description="names the field it is in")
    answer: str | None = Field(
        default=None, description="a pattern whose last match has the answer as its first group"
    )
    ignore_case: bool = False

    @property
    def templates(self) -> tuple[str, ...]:
        """The reference."""
        return (self.reference,)


class PythonSpec(CheckSpec):
    """A user's function, run in processes of its own."""

    kind: Literal["python"] = "python"
    function: str = Field(pattern=r"^[\w.]+:\w+$", description="module:name")
    path: str = Field(default=".", description="the folder that the module is imported from")
    workers: int = Field(default=2, ge=1, description="processes")
    concurrency: int = Field(default=16, ge=1, description="calls at once of an async function")
    environment: tuple[str, ...] = Field(
        default=(), description="variables that it is given although they hold secrets"
    )
