"""What a recipe says of a model: one frozen pydantic spec per kind. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import regex
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SecretStr,
    field_validator,
    model_validator,
)

from alarm_models.api_keys import usable_key
from alarm_models.combination.token_alignment import Placement
from alarm_models.preprocessing.truncation import Truncation

__all__ = [
    "ANY_NUMBER",
    "CheckSpec",
    "ClassifierSpec",
    "ExactMatchSpec",
    "GenerativeSpec",
    "GrammarSpec",
    "JudgeMessage",
    "LanguageSpec",
    "LengthSpec",
    "ModelSpec",
    "MultiObjectiveSpec",
    "NeuralSpec",
    "Normalization",
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
    "TextSpec",
    "TurnsSpec",
    "require_address",
]


class _Added:
    """Marks a key that came after the first fingerprints, which digest it only where it is set."""


class Spec(BaseModel):
    """One model, as a recipe describes it; a subclass a kind."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def constants(self, exclude: frozenset[str]) -> str:
        """Return the keys that fingerprints digest, as JSON.

        A key that was added later is left out at its default, so that it changes no fingerprint of
        a recipe that does not use it.
        """
        unused = {
            name
            for name, field in type(self).model_fields.items()
            if _Added in field.metadata
            and getattr(self, name) == field.get_default(call_default_factory=True)
        }
        return self.model_dump_json(exclude={*exclude, *unused})

    @property
    def templates(self) -> tuple[str, ...]:
        """The texts that name fields of a sample."""
        return ()

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


Dtype = Literal["auto", "float32", "bfloat16", "float16"]

#: A later key of a few types; see `Spec.constants`.
_Text = Annotated[str | None, _Added]
_Flag = Annotated[bool, _Added]


class NeuralSpec(Spec):
    """What every model with weights has."""

    checkpoint: str = Field(min_length=1, description="a folder or a hub id")
    truncation: Truncation = Truncation.PROMPT
    max_tokens: int | None = Field(default=None, ge=8, description="else the checkpoint's own")
    dtype: Dtype = Field(default="auto", description="float32 on a CPU, bfloat16 on a GPU")
    head: str | None = Field(default=None, description="a linear head on the base model, by name")
    mark_copied: bool = Field(
        default=False, description="token type 1 for words copied from the prompt"
    )
    trust_remote_code: bool = False
    revision: _Text = Field(default=None, description="a hub id's branch, tag or commit")
    tokenizer: _Text = Field(
        default=None, min_length=1, description="a folder or a hub id, else the checkpoint's own"
    )
    adapter: _Text = Field(
        default=None, min_length=1, description="a LoRA of PEFT: a folder or a hub id"
    )
    prefix: _Text = Field(
        default=None, min_length=1, description="what the names of the base's tensors begin with"
    )

    @property
    def templates(self) -> tuple[str, ...]:
        """The texts that name fields of a sample; not the tokenizer's own template."""
        texts = (getattr(self, key, None) for key in ("template", "ask"))
        return tuple(text for text in texts if text is not None and text != "chat")


#: What `template_arguments` may not name: the sample decides it, or the server.
_OWN_ARGUMENTS = frozenset(
    {
        "messages", "conversation", "tools", "add_generation_prompt", "continue_final_message",
        "chat_template", "tokenize", "sanitize_control_tokens", "padding", "truncation",
        "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask",
        "tokenizer_kwargs",
    }
)  # fmt: skip


class TurnsSpec(BaseModel):
    """What is written for each message of a conversation, by its role; ``{}`` is its text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    user: str
    assistant: str
    system: str | None = Field(default=None, description="else a system message is refused")
    tool: str | None = Field(default=None, description="else a tool's message is refused")
    start: str = Field(default="", description="stands before the first")
    separator: str = Field(default="", description="stands between two")
    generation: str = Field(default="", description="begins the next turn, where a kind wants one")

    @model_validator(mode="after")
    def _each_has_one_place(self) -> TurnsSpec:
        for role in ("user", "assistant", "system", "tool"):
            text = getattr(self, role)
            if text is not None and text.count("{}") != 1:
                raise ValueError(
                    f"turns.{role} is {text!r}: write {{}} once, where the message's text goes"
                )
        return self


class TextSpec(NeuralSpec):
    """What kinds have that read prompt and completion as one text."""

    special_tokens: Annotated[bool | None, _Added] = Field(
        default=None,
        description="whether the tokenizer puts its own around; else for a text, not for a chat",
    )
    strip: Annotated[bool | str, _Added] = Field(
        default=False,
        description="what goes from the text's end: white space, or this text where it is there",
    )
    suffix: Annotated[str, _Added] = Field(
        default="", description="put at the text's end, unless that ends so; never truncated"
    )
    template_arguments: Annotated[Mapping[str, JsonValue], _Added] = Field(
        default_factory=dict, description="given to the chat template"
    )
    chat_template: _Text = Field(
        default=None,
        min_length=1,
        description="Jinja, or a file that ends in .jinja: in place of the tokenizer's own",
    )
    turns: Annotated[TurnsSpec | None, _Added] = Field(
        default=None, description="texts by role, in place of the tokenizer's chat template"
    )

    @field_validator("template_arguments")
    @classmethod
    def _are_the_recipes_to_give(cls, arguments: Mapping[str, JsonValue]) -> Mapping[str, Any]:
        own = sorted(_OWN_ARGUMENTS & set(arguments))
        if own:
            raise ValueError(f"names {own}, which are not the recipe's to give: leave them out")
        return arguments

    @model_validator(mode="after")
    def _one_way_to_a_text(self) -> TextSpec:
        is_chat = getattr(self, "template", "chat") == "chat"
        if self.chat_template is not None and self.turns is not None:
            raise ValueError("turns and chat_template both write the chat: leave one out")
        for key in ("chat_template", "template_arguments"):
            if getattr(self, key) and not is_chat:
                raise ValueError(f"{key} is for a chat: leave `template` out")
        if self.template_arguments and self.turns is not None:
            raise ValueError("template_arguments is for a chat template: turns take none")
        return self


class Normalization(BaseModel):
    """What a published class does to a raw score: ``(score - mean) / std``."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    mean: float = 0.0
    std: float = Field(default=1.0, gt=0)


class ClassifierSpec(TextSpec):
    """What kinds have that read a whole sample, as one text or as two."""

    pair: _Flag = Field(
        default=False,
        description="prompt and completion as two texts, joined as the tokenizer joins a pair",
    )

    @model_validator(mode="after")
    def _pair_has_two_texts(self) -> ClassifierSpec:
        if not self.pair:
            return self
        for key, default in (("template", "chat"), ("suffix", ""), ("strip", False)):
            if getattr(self, key) != default:
                raise ValueError(f"pair reads prompt and completion as they are: leave {key} out")
        for key in ("chat_template", "template_arguments", "mark_copied", "gate_at"):
            if getattr(self, key, None):
                raise ValueError(f"pair goes without {key}: leave one out")
        return self


class SequenceSpec(ClassifierSpec):
    """One score for a whole completion."""

    kind: Literal["sequence"] = "sequence"
    normalization: Annotated[Normalization | Literal["none"] | None, _Added] = Field(
        default=None, description="else what the checkpoint's configuration says"
    )
    template: str = Field(default="chat", description='a text, or "chat": the tokenizer\'s own')
    pooling: Literal["first", "last", "mean"] = Field(
        default="last", description="the tokens that a named head reads"
    )
    activation: Literal["none", "sigmoid"] = "none"


class SegmentsSpec(NeuralSpec):
    """A judgement of each segment, read at the separator before it."""

    kind: Literal["segments"] = "segments"
    template: str = Field(description="what stands before the segments")
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


class StepsSpec(TextSpec):
    """The probability that each step of a solution is right, read at the token after it."""

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
    positive: Annotated[str | int | None, _Added] = Field(
        default=None, description="of a causal model: the token, as text or id, for a right step"
    )
    negative: Annotated[str | int | None, _Added] = Field(
        default=None, description="of a causal model: the token for a wrong step"
    )
    step_template: Annotated[str, _Added] = Field(
        default="{step}", description="what a step is written as, with its {number} from 1"
    )
    step_separator: Annotated[str, _Added] = Field(
        default="", description="stands between a step's token and the next step"
    )
    step_answer: _Text = Field(
        default=None,
        min_length=1,
        description="each step is a user's message that is answered so; read where that begins",
    )
    tokenization: Annotated[Literal["whole", "parts"], _Added] = Field(
        default="whole",
        description="whether the text is tokenised at once, or each step and step token alone",
    )

    @model_validator(mode="after")
    def _reads_one_way(self) -> StepsSpec:
        if (self.positive is None) != (self.negative is None):
            raise ValueError(
                "positive and negative are the two tokens of a causal model: give both"
            )
        if self.positive is not None and self.head is not None:
            raise ValueError("a step is read by `head` or by two tokens: leave one out")
        if self.step_template.count("{step}") != 1:
            raise ValueError(f"step_template is {self.step_template!r}: write {{step}} once")
        if self.step_answer is not None:
            if self.template != "chat":
                raise ValueError("step_answer is a turn of a chat: leave `template` out")
            if self.tokenization == "parts" or self.step_separator:
                raise ValueError("step_answer goes without tokenization and step_separator")
        return self

    @property
    def read_token(self) -> str:
        """The token at which, or before which, a step is read."""
        return self.step_token if self.step_answer is None else self.step_answer


class MultiObjectiveSpec(ClassifierSpec):
    """Several named numbers for a whole completion, each of use as an aspect."""

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

    @model_validator(mode="after")
    def _one_way_to_a_score(self) -> MultiObjectiveSpec:
        if self.gate_at is None:
            return self
        if self.head is None:
            raise ValueError('gate_at wants `head`, the regression layer ("regression_layer")')
        if self.weights:
            raise ValueError("weights are the gate's where gate_at is given: leave one out")
        return self


class GenerativeSpec(TextSpec):
    """How likely a causal model finds one token, or yes against no, as the next."""

    kind: Literal["generative"] = "generative"
    template: str = Field(default="chat", description='a text, or "chat": the tokenizer\'s own')
    ask: str | None = Field(
        default=None, description="a text that is put to the chat template as a user's message"
    )
    generation_prompt: bool | None = Field(
        default=None, description="let the next turn begin after the text; else after `ask` alone"
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

    @property
    def begins_turn(self) -> bool:
        """Whether the next turn begins after the text."""
        return self.ask is not None if self.generation_prompt is None else self.generation_prompt

    def constants(self, exclude: frozenset[str]) -> str:
        """Return the keys that fingerprints digest, as JSON; see `Spec.constants`.

        The first fingerprints held `generation_prompt = false` for a recipe that names none.
        """
        named = self.model_copy(update={"generation_prompt": self.generation_prompt is True})
        constants = super(GenerativeSpec, named).constants(exclude)
        is_asked_without = self.ask is not None and self.generation_prompt is False
        return f"{constants}|without the next turn" if is_asked_without else constants


#: A judge's `pattern` where the recipe names none: the rating is read as people write ratings.
#: (As a pattern it would find a number, but not the 10 of "8/10".)
ANY_NUMBER = r"(?<![\d./])(?<!/ )-?\d+(?:\.\d+)?"


class JudgeMessage(BaseModel):
    """One message that a judge is sent; its content is a template."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: str = Field(min_length=1)
    content: str


#: What a judge is sent: a message, or the sample's own messages.
JudgeTurn = JudgeMessage | Literal["{prompt}", "{completion}"]


class RemoteSpec(Spec):
    """A model behind another server's HTTP API."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    kind: Literal["remote"] = "remote"
    api: Literal["vllm", "sglang", "tei", "alarm", "chat"]
    url: str = Field(pattern=r"^https?://[^\s/]+", description="where the server is")
    model: str | None = Field(default=None, description="the model's name there")
    api_key: SecretStr | None = Field(default=None, description="sent as a bearer token")
    template: str | None = Field(
        default=None, description='a text; "chat" lets vLLM apply its tokenizer\'s own'
    )
    rubric: str | None = Field(default=None, description="`chat`: what the judge is asked")
    messages: Annotated[tuple[JudgeTurn, ...] | None, _Added] = Field(
        default=None,
        description="`chat`: in place of `rubric`, messages of any role; the texts `{prompt}` and "
        "`{completion}` stand for the sample's own messages",
    )
    values: Annotated[Mapping[str, float], _Added] = Field(
        default_factory=dict, description="`chat`: what the judge's verdict is worth, by its name"
    )
    n: Annotated[int, _Added] = Field(
        default=1, ge=1, le=128, description="`chat`: answers to ask for, of which the mean counts"
    )
    pattern: str = Field(
        default=ANY_NUMBER,
        description="`chat`: finds the number in the judge's answer; its last match counts. "
        "Without it the answer must give exactly one rating, such as `7`, `Score: 7` or `7/10`",
    )
    lowest: float | None = Field(default=None, description="`chat`: less is no answer")
    highest: float | None = Field(default=None, description="`chat`: more is no answer")
    parameters: Mapping[str, JsonValue] = Field(
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
    max_concurrent: int = Field(default=16, ge=1, description="requests under way at once")
    batch_size: int = Field(default=32, ge=1, description="samples a request may have")

    @property
    def templates(self) -> tuple[str, ...]:
        """The texts that name fields of a sample."""
        turns = (turn for turn in self.messages or () if isinstance(turn, JudgeMessage))
        texts = (self.template, self.rubric, *(turn.content for turn in turns))
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

    @field_validator("parameters")
    @classmethod
    def _are_the_recipes_to_give(cls, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        own = sorted({"model", "messages", "stream"} & set(parameters))
        if own:
            raise ValueError(f"names {own}, which are not parameters' to give: leave them out")
        return parameters

    @property
    def num_votes(self) -> int:
        """How many answers a judge is asked for."""
        named = self.parameters.get("n", 1)
        return named if isinstance(named, int) and self.n == 1 else self.n

    @model_validator(mode="after")
    def _votes_may_differ(self) -> RemoteSpec:
        if self.api != "chat":
            return self
        named = self.parameters.get("n", 1)
        if isinstance(named, bool) or not isinstance(named, int) or named < 1:
            raise ValueError(f"parameters.n is {named!r}: give a number of answers, best in `n`")
        if self.n > 1 and "n" in self.parameters:
            raise ValueError("n and parameters.n both count answers: leave one out")
        if self.num_votes > 1 and self.parameters.get("temperature") == 0:
            raise ValueError(
                f"{self.num_votes} answers of temperature 0 are all the same: name a higher one in "
                "parameters.temperature"
            )
        return self

    @model_validator(mode="after")
    def _has_what_its_api_takes(self) -> RemoteSpec:
        asked = "rubric" if self.messages is None else "messages"
        wanted = {"chat": (asked, "model"), "alarm": ()}.get(self.api, ("template",))
        lacking = [name for name in wanted if getattr(self, name) is None]
        if lacking:
            raise ValueError(f"api `{self.api}` wants {' and '.join(lacking)}")
        if self.rubric is not None and self.messages is not None:
            raise ValueError("rubric and messages both ask the judge: leave one out")
        for name in ("template", "rubric", "messages"):
            if getattr(self, name) is not None and name not in wanted:
                raise ValueError(f"api `{self.api}` takes no {name}")
        if self.api != "chat" and (self.values or self.n > 1):
            raise ValueError(f"api `{self.api}` takes no {'values' if self.values else 'n'}")
        if self.template == "chat" and self.api != "vllm":
            raise ValueError(f"api `{self.api}` applies no chat template: write one in `template`")
        return self


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


ModelSpec = Annotated[
    SequenceSpec
    | SegmentsSpec
    | StepsSpec
    | MultiObjectiveSpec
    | GenerativeSpec
    | RemoteSpec
    | LengthSpec
    | GrammarSpec
    | ReadabilitySpec
    | LanguageSpec
    | RegexSpec
    | RepetitionSpec
    | SimilaritySpec
    | ExactMatchSpec
    | PythonSpec,
    Field(discriminator="kind"),
]
