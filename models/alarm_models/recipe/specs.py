"""What a recipe says of a model: one frozen pydantic spec per kind. Imports no torch.

A kind is a subclass of `Spec` here and the module that it names, which registers how it is loaded
(`alarm_models.reward_models.registry`). The union of specs, the error about an unknown kind and
the table in docs/kinds.md come from `KINDS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Union
from urllib.parse import urlsplit

import regex
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from alarm_models.combination.token_alignment import Placement
from alarm_models.preprocessing.truncation import Truncation

__all__ = [
    "ANY_NUMBER",
    "KINDS",
    "CheckSpec",
    "ExactMatchSpec",
    "GenerativeSpec",
    "GrammarSpec",
    "LanguageSpec",
    "LengthSpec",
    "ModelSpec",
    "MultiObjectiveSpec",
    "NeuralSpec",
    "PythonSpec",
    "ReadabilitySpec",
    "RegexSpec",
    "RemoteSpec",
    "RepetitionSpec",
    "SegmentsSpec",
    "SequenceSpec",
    "SimilaritySpec",
    "Spec",
    "StepsSpec",
    "kinds_table",
    "require_address",
    "usable_key",
]

#: The spec of each kind, by the name that a recipe gives it.
KINDS: dict[str, type[Spec]] = {}


class Spec(BaseModel):
    """One model, as a recipe describes it.

    A subclass with a field ``kind`` is a kind; its docstring's first line describes it in the docs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: The module that registers how the kind is loaded; imported when a model of it is.
    module: ClassVar[str]

    #: Whether spec and files decide its scores: otherwise only loading it again can tell.
    is_reproducible: ClassVar[bool] = True

    #: Its keys that may name a folder; a recipe's ``./`` and ``../`` there are beside its file.
    folders: ClassVar[tuple[str, ...]] = ()

    #: Whether a model that has no score for the made-up sample of the warm-up is not served.
    must_score_warm_up: ClassVar[bool] = True

    #: Whether it judges whole completions, as a holistic model must, rather than segments alone.
    judges_wholes: ClassVar[bool] = True

    if TYPE_CHECKING:

        @property
        def kind(self) -> str:
            """The kind's name; a field of each kind, whose place among them fingerprints hold."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Register a kind."""
        if "kind" not in cls.__annotations__:
            return
        kind = cls.model_fields["kind"].default
        if kind in KINDS:
            raise TypeError(f"{cls.__name__} and {KINDS[kind].__name__} are both kind {kind!r}")
        KINDS[kind] = cls

    @property
    def templates(self) -> tuple[str, ...]:
        """The texts that name fields of a sample."""
        return ()

    @property
    def has_score(self) -> bool:
        """Whether it gives one score; a model of several numbers may give those alone."""
        return True

    @property
    def placement(self) -> Placement:
        """Where its rewards land unless an aspect says otherwise."""
        return Placement.SEGMENT_ENDS


def require_address(url: str) -> str:
    """Return a URL of a server; raise `ValueError` where no request could be sent to it."""
    if not url.isprintable() or any(character.isspace() for character in url):
        raise ValueError("the URL has a space or a character that is not printable")
    parts = urlsplit(url)
    if not parts.hostname or parts.port == 0:
        raise ValueError("the URL names no host and port that can be asked")
    if parts.query or parts.fragment:
        raise ValueError("the URL has a query or a fragment, which would not be sent")
    return url


def usable_key(key: str) -> str:
    """Return a key that is sent to a server, without the white space that files and shells leave.

    Raises `ValueError`, which says what is wrong and never what the key is.
    """
    key = key.strip()
    if not key:
        raise ValueError("the key is empty: leave it out, or give one")
    for at, character in enumerate(key):
        if not " " <= character <= "~":
            what = "a line break" if character in "\r\n" else f"U+{ord(character):04X}"
            raise ValueError(
                f"the key has {what} as its character {at + 1} of {len(key)}, which no HTTP header "
                "can hold: give the key alone"
            )
    return key


Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class NeuralSpec(Spec):
    """What every model with weights has."""

    folders = ("checkpoint",)
    checkpoint: str = Field(min_length=1, description="a folder or a hub id")
    truncation: Truncation = Truncation.PROMPT
    max_tokens: int | None = Field(default=None, ge=8, description="else the checkpoint's own")
    dtype: Dtype = Field(default="auto", description="float32 on a CPU, bfloat16 on a GPU")
    head: str | None = Field(default=None, description="a linear head on the base model, by name")
    mark_copied: bool = Field(
        default=False, description="token type 1 for words copied from the prompt"
    )
    trust_remote_code: bool = False

    @property
    def templates(self) -> tuple[str, ...]:
        """The texts that name fields of a sample; not the tokenizer's own template."""
        texts = (getattr(self, key, None) for key in ("template", "ask"))
        return tuple(text for text in texts if text is not None and text != "chat")


class SequenceSpec(NeuralSpec):
    """One score for a whole completion: a one-logit classifier, or a named head."""

    module = "alarm_models.reward_models.sequence"
    kind: Literal["sequence"] = "sequence"
    template: str = Field(default="chat", description='a text, or "chat": the tokenizer\'s own')
    pooling: Literal["first", "last", "mean"] = Field(
        default="last", description="the tokens that a named head reads"
    )
    activation: Literal["none", "sigmoid"] = "none"


class SegmentsSpec(NeuralSpec):
    """A judgement of each segment, read at the separator before it; the share that is positive."""

    module = "alarm_models.reward_models.segments"
    judges_wholes = False
    kind: Literal["segments"] = "segments"
    template: str = Field(description="the text before the segments")
    segmenter: Literal["sentences", "subsentences"] = "sentences"
    separator: str | None = Field(default=None, description="else the tokenizer's own")
    pooling: Literal["separator", "mean"] = Field(
        default="separator", description="the separator alone, or with the segment's tokens"
    )
    positive_label: str
    negative_label: str
    labels: tuple[str, ...] | None = Field(
        default=None, description="label names by position, where the checkpoint names none"
    )

    @model_validator(mode="after")
    def _labels_hold_both(self) -> SegmentsSpec:
        for label in (self.positive_label, self.negative_label):
            if self.labels is not None and label not in self.labels:
                raise ValueError(f"labels {list(self.labels)} lack {label!r}")
        return self


class StepsSpec(NeuralSpec):
    """The probability that each step of a solution is right, read at the token after it."""

    module = "alarm_models.reward_models.steps"
    kind: Literal["steps"] = "steps"
    template: str = Field(default="chat", description='a text, or "chat": the tokenizer\'s own')
    step_token: str = Field(default="<extra_0>", description="put after each step, and read there")
    segmenter: Literal["steps", "sentences"] = "steps"
    labels: tuple[str, str] | None = Field(
        default=None, description="label names by position, where the checkpoint names none"
    )
    positive_label: str | None = Field(default=None, description="else the second label")
    reduction: Literal["min", "mean", "product", "last"] = Field(
        default="min", description="what makes one score of the steps' probabilities"
    )


class MultiObjectiveSpec(NeuralSpec):
    """Several named numbers for a whole completion, each of use as an aspect."""

    module = "alarm_models.reward_models.multi_objective"
    kind: Literal["multi-objective"] = "multi-objective"
    template: str = Field(default="chat", description='a text, or "chat": the tokenizer\'s own')
    pooling: Literal["first", "last", "mean"] = Field(
        default="last", description="the tokens that a named head reads"
    )
    objectives: tuple[str, ...] | None = Field(
        default=None, description="the outputs' names by position, else the checkpoint's labels"
    )
    activation: Literal["none", "sigmoid", "softmax"] = "none"
    weights: Mapping[str, float] = Field(
        default_factory=dict, description="objective -> its weight in the score"
    )
    gate_at: str | None = Field(
        default=None,
        description="ArmoRM's form: the text that ends a prompt, at whose first token gate reads",
    )

    @property
    def has_score(self) -> bool:
        """Whether its numbers are weighed."""
        return bool(self.weights or self.gate_at)

    @model_validator(mode="after")
    def _one_way_to_a_score(self) -> MultiObjectiveSpec:
        if self.gate_at is None:
            return self
        if self.head is None:
            raise ValueError('gate_at wants `head`, the regression layer ("regression_layer")')
        if self.weights:
            raise ValueError("weights are the gate's where gate_at is given: leave one out")
        return self


class GenerativeSpec(NeuralSpec):
    """A causal model's next token: its logit, its log probability, or the margin of yes over no."""

    module = "alarm_models.reward_models.generative"
    kind: Literal["generative"] = "generative"
    template: str = Field(default="chat", description='a text, or "chat": the tokenizer\'s own')
    ask: str | None = Field(
        default=None, description="a text that is put to the chat template as a user's message"
    )
    generation_prompt: bool = Field(
        default=False, description="let the next turn begin after the conversation"
    )
    positive: str | int = Field(description="a token, as text or id")
    negative: str | int | None = Field(default=None, description="score positive against this")
    measure: Literal["logit", "logprob"] = "logit"
    activation: Literal["none", "sigmoid"] = "none"

    @model_validator(mode="after")
    def _asks_in_a_chat(self) -> GenerativeSpec:
        if self.ask is not None and self.template != "chat":
            raise ValueError("ask is put to the chat template: leave `template` out")
        return self


#: A judge's `pattern` where the recipe names none: the rating is read as people write ratings.
#: (As a pattern it would find a number, but not the 10 of "8/10".)
ANY_NUMBER = r"(?<![\d./])(?<!/ )-?\d+(?:\.\d+)?"


class RemoteSpec(Spec):
    """The score of another server, over HTTP: vLLM, SGLang, TEI, alarm, a chat model as judge."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    module = "alarm_models.reward_models.remote.model"
    is_reproducible = False
    kind: Literal["remote"] = "remote"
    api: Literal["vllm", "sglang", "tei", "alarm", "chat"]
    url: str = Field(pattern=r"^https?://[^\s/]+", description="where the server is")
    model: str | None = Field(default=None, description="the model's name there")
    api_key: SecretStr | None = Field(default=None, description="sent as a bearer token")
    template: str | None = Field(
        default=None, description='a text; "chat" lets vLLM apply its tokenizer\'s own'
    )
    rubric: str | None = Field(default=None, description="`chat`: what the judge is asked")
    pattern: str = Field(
        default=ANY_NUMBER,
        description="`chat`: finds the number in the judge's answer; its last match counts. "
        "Without it the answer must give exactly one rating, such as `7`, `Score: 7` or `7/10`",
    )
    lowest: float | None = Field(default=None, description="`chat`: less is no answer")
    highest: float | None = Field(default=None, description="`chat`: more is no answer")
    parameters: Mapping[str, bool | int | float | str] = Field(
        default_factory=lambda: {"temperature": 0, "max_tokens": 512},
        description="`chat`: sent with each request",
    )
    labels: tuple[str, ...] | None = Field(
        default=None, description="the names of several numbers by position"
    )
    weights: Mapping[str, float] = Field(
        default_factory=dict, description="label -> its weight in the score"
    )
    timeout_s: float = Field(default=60, gt=0, description="of one attempt, to its last byte")
    max_answer_bytes: int = Field(default=16 << 20, ge=1024, description="an answer may have")
    max_retries: int = Field(default=4, ge=0)
    max_concurrent: int = Field(default=16, ge=1, description="requests in flight at once")
    batch_size: int = Field(default=32, ge=1, description="samples a request may have")

    @property
    def templates(self) -> tuple[str, ...]:
        """The texts that name fields of a sample."""
        texts = (self.template, self.rubric)
        return tuple(text for text in texts if text is not None and text != "chat")

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        return require_address(url)

    @field_validator("api_key")
    @classmethod
    def _fits_a_header(cls, key: SecretStr | None) -> SecretStr | None:
        return None if key is None else SecretStr(usable_key(key.get_secret_value()))

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            regex.compile(pattern)
        except regex.error as error:
            raise ValueError(f"is no regular expression: {error}") from error
        return pattern

    @model_validator(mode="after")
    def _has_what_its_api_takes(self) -> RemoteSpec:
        wanted = {"chat": ("rubric", "model"), "alarm": ()}.get(self.api, ("template",))
        lacking = [name for name in wanted if getattr(self, name) is None]
        if lacking:
            raise ValueError(f"api `{self.api}` wants {' and '.join(lacking)}")
        for name in ("template", "rubric"):
            if getattr(self, name) is not None and name not in wanted:
                raise ValueError(f"api `{self.api}` takes no {name}")
        if self.template == "chat" and self.api != "vllm":
            raise ValueError(f"api `{self.api}` applies no chat template: write one in `template`")
        return self


class CheckSpec(Spec):
    """What every check of a text has."""

    timeout_s: float = Field(default=10, gt=0, description="one sample's time")


class LengthSpec(CheckSpec):
    """The number of the completion's tokens, or of its words without token offsets."""

    module = "alarm_models.reward_models.text_checks"
    kind: Literal["length"] = "length"


class GrammarSpec(CheckSpec):
    """Grammar errors as spans with rule names, and their number a token."""

    module = "alarm_models.reward_models.grammar"
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
        """Every token gets a reward."""
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

    module = "alarm_models.reward_models.readability"
    kind: Literal["readability"] = "readability"


class LanguageSpec(CheckSpec):
    """The confidence in [0, 1] that a completion is in a language, among the recipe's."""

    module = "alarm_models.reward_models.language"
    kind: Literal["language"] = "language"
    target: str = Field(default="en", description="an ISO 639-1 code")
    languages: tuple[str, ...] = Field(min_length=2, description="the codes that it may be")

    @model_validator(mode="after")
    def _languages_hold_target(self) -> LanguageSpec:
        if self.target not in self.languages:
            raise ValueError(f"languages {list(self.languages)} lack the target {self.target!r}")
        return self


class RegexSpec(CheckSpec):
    """Whether a pattern matches a completion: 1 or 0."""

    module = "alarm_models.reward_models.text_checks"
    kind: Literal["regex"] = "regex"
    pattern: str
    match: Literal["somewhere", "whole"] = "somewhere"


class RepetitionSpec(CheckSpec):
    """The share of a completion's n-grams that occur earlier in it."""

    module = "alarm_models.reward_models.text_checks"
    kind: Literal["repetition"] = "repetition"
    ngram: int = Field(default=4, ge=1, description="words")


class SimilaritySpec(CheckSpec):
    """Similarity to a reference (chrF, chrF++, BLEU), in [0, 100]."""

    module = "alarm_models.reward_models.similarity"
    kind: Literal["similarity"] = "similarity"
    metric: Literal["chrf", "chrf++", "bleu"] = "chrf"
    reference: str = Field(default="{reference}", description="names the field it is in")

    @property
    def templates(self) -> tuple[str, ...]:
        """The reference."""
        return (self.reference,)


class ExactMatchSpec(CheckSpec):
    """Whether a completion's answer is the reference: 1 or 0."""

    module = "alarm_models.reward_models.text_checks"
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
    """What a user's function returns, run in processes of its own."""

    module = "alarm_models.reward_models.python_function"
    is_reproducible = False
    must_score_warm_up = False  # what it reads of a sample's fields only its author knows
    folders = ("path",)
    kind: Literal["python"] = "python"
    function: str = Field(pattern=r"^[\w.]+:\w+$", description="module:name")
    path: str = Field(default=".", description="the folder that the module is imported from")
    workers: int = Field(default=2, ge=1, description="processes")
    concurrency: int = Field(default=16, ge=1, description="calls at once of an async function")
    environment: tuple[str, ...] = Field(
        default=(), description="variables that it is given although they hold secrets"
    )


def kinds_table() -> str:
    """Return the table of kinds in docs/kinds.md, in Markdown."""
    first_lines = {kind: (spec.__doc__ or "").splitlines()[0] for kind, spec in KINDS.items()}
    rows = [f"| `{kind}` | {line} |" for kind, line in first_lines.items()]
    return "\n".join(["| kind | what it gives |", "|---|---|", *rows])


if TYPE_CHECKING:
    ModelSpec = Spec
else:
    ModelSpec = Annotated[Union[tuple(KINDS.values())], Field(discriminator="kind")]  # noqa: UP007
