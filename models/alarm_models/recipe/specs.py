"""Model specs of recipes: one frozen pydantic model per kind. Imports no torch.

A kind is a subclass of `Spec` here and the module it names, which registers its loader
(`alarm_models.reward_models.registry`). The union of specs, the error about an unknown kind and
the table in docs/kinds.md come from `KINDS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Union
from urllib.parse import urlsplit

import regex
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SecretStr,
    StringConstraints,
    field_validator,
    model_validator,
)

from alarm_models.combination.token_alignment import Placement
from alarm_models.preprocessing.find_thoughts import DEFAULT_TAGS, Tags
from alarm_models.preprocessing.shown_sample import Thinking, ViewRules
from alarm_models.preprocessing.truncation import Truncation
from alarm_models.recipe.criteria import (
    CriterionSpec,
    is_published_form,
    read_rubric,
    require_recipe_keys,
)
from alarm_models.types import Dtype

__all__ = [
    "ANY_NUMBER",
    "CRITERIA",
    "KINDS",
    "MARK",
    "BudgetSpec",
    "CheckSpec",
    "ClassifierSpec",
    "CometSpec",
    "CompareSpec",
    "EndpointSpec",
    "ExactMatchSpec",
    "GenerativeSpec",
    "GrammarSpec",
    "JudgeMessage",
    "JudgeSpec",
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
    "RubricSpec",
    "SegmentsSpec",
    "SequenceSpec",
    "SimilaritySpec",
    "Spec",
    "StepsSpec",
    "TextSpec",
    "TurnsSpec",
    "require_address",
    "usable_key",
]

#: The spec of each kind, by the name that a recipe gives it.
KINDS: dict[str, type[Spec]] = {}


class _Added:
    """Marks a key added later, which is part of fingerprints only if it is set."""


class Spec(BaseModel):
    """One model, as a recipe describes it.

    A subclass with a field ``kind`` is a kind; its docstring's first line describes it in the docs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    thinking: Annotated[Thinking, _Added] = Field(
        default="strip",
        description="`strip` shows the model the answer without thoughts, `only` the thoughts, "
        "`keep` both",
    )
    think_tags: Annotated[Tags, _Added] = Field(
        default=DEFAULT_TAGS,
        min_length=1,
        description="pairs of opening and closing tags of thoughts",
    )
    system: Annotated[Literal["keep", "drop"], _Added] = Field(
        default="keep", description="whether the model is shown system messages"
    )
    unsupported_content: Annotated[Literal["error", "omit"], _Added] = Field(
        default="error",
        description="what to do with content parts that are not text, such as images: fail the "
        "sample, or omit the parts",
    )

    #: The module that registers how the kind is loaded; imported when a model of it is.
    module: ClassVar[str]

    #: Where a model's rewards are placed unless it judges turns, or an aspect sets `placement`.
    placement: ClassVar[Placement] = Placement.SEGMENT_ENDS

    #: Whether its segments have scores and are never positive or negative.
    grades_segments: ClassVar[bool] = False

    #: Whether it judges the messages of a completion that the policy wrote, and no others.
    policy_only: ClassVar[bool] = False

    #: Whether spec and files determine its scores; otherwise a reload always loads it again.
    is_reproducible: ClassVar[bool] = True

    #: Keys that may name a folder; ``./`` and ``../`` in them are relative to the recipe file.
    folders: ClassVar[tuple[str, ...]] = ()

    #: Whether it scores whole completions, as a holistic model must, rather than only segments.
    judges_wholes: ClassVar[bool] = True

    #: Whether its score is a rate of errors, which falls as its rewards rise.
    scores_errors: ClassVar[bool] = False

    #: Whether it can score the prefixes of a completion too, as `dense` requires.
    scores_prefixes: ClassVar[bool] = False

    @property
    def has_weights(self) -> bool:
        """Whether a checkpoint is loaded for it, which runs on a device."""
        return False

    @property
    def warms_up(self) -> bool:
        """Whether it scores a sample before it is served; judges that may cost money do not."""
        return True

    @property
    def must_score_warm_up(self) -> bool:
        """Whether loading fails if the model gives no score for the warm-up sample."""
        return True

    @property
    def output_names(self) -> frozenset[str] | None:
        """The names of its outputs; None if the recipe does not determine them."""
        return None

    if TYPE_CHECKING:

        @property
        def kind(self) -> str:
            """The kind's name; a field of each kind, whose position is part of fingerprints."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Register a kind."""
        if "kind" not in cls.__annotations__:
            return
        kind = cls.model_fields["kind"].default
        if kind in KINDS:
            raise TypeError(f"{cls.__name__} and {KINDS[kind].__name__} are both kind {kind!r}")
        KINDS[kind] = cls

    def constants(self, exclude: frozenset[str]) -> str:
        """Return the keys that fingerprints digest, as JSON.

        A key that was added later is omitted at its default, so that recipes that do not use it
        keep their fingerprints.
        """
        unused = {
            name
            for name, field in type(self).model_fields.items()
            if _Added in field.metadata
            and getattr(self, name) == field.get_default(call_default_factory=True)
        }
        return self.model_dump_json(exclude={*exclude, *unused})

    @field_validator("think_tags")
    @classmethod
    def _tags_differ(cls, tags: Tags) -> Tags:
        texts = [tag for pair in tags for tag in pair]
        if not all(texts) or len({*texts}) < len(texts):
            raise ValueError(
                f"{[list(pair) for pair in tags]} has an empty or repeated tag: write pairs of "
                "different texts"
            )
        return tags

    @property
    def reads_text(self) -> bool:
        """Whether it reads texts rather than messages, so that tools and tool calls are omitted."""
        return True

    @property
    def view_rules(self) -> ViewRules:
        """What the model is shown of samples."""
        return ViewRules(
            self.thinking,
            self.think_tags,
            keeps_system=self.system == "keep",
            omits_unsupported=self.unsupported_content == "omit",
            is_text=self.reads_text,
            policy_only=self.policy_only,
        )

    @property
    def templates(self) -> tuple[str, ...]:
        """The templates that may name fields of a sample."""
        return ()

    @property
    def has_score(self) -> bool:
        """Whether it gives one score; a model with several outputs may give only those."""
        return True


def require_address(url: str) -> str:
    """Return the URL of a server; raise `ValueError` if no request can be sent to it."""
    if not url.isprintable() or any(character.isspace() for character in url):
        raise ValueError("the URL has a space or a character that is not printable")
    parts = urlsplit(url)
    if not parts.hostname or parts.port == 0:
        raise ValueError("the URL has no valid host and port")
    if parts.query or parts.fragment:
        raise ValueError("the URL has a query or a fragment: remove it")
    return url


def usable_key(key: str) -> str:
    """Return an API key without surrounding whitespace, which files and shells may add.

    Raises `ValueError`, whose message never contains the key.
    """
    key = key.strip()
    if not key:
        raise ValueError("the key is empty: give a key, or leave it out")
    for at, character in enumerate(key):
        if not " " <= character <= "~":
            what = "a line break" if character in "\r\n" else f"U+{ord(character):04X}"
            raise ValueError(
                f"the key has {what} at character {at + 1} of {len(key)}, which an HTTP header "
                "cannot contain: give only the key"
            )
    return key


def require_pattern(pattern: str) -> None:
    """Raise `ValueError` unless a regular expression compiles."""
    try:
        regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"is not a valid regular expression: {error}") from error
    except RecursionError:
        raise ValueError("is nested too deeply for a regular expression") from None


#: Types of keys that were added later; see `Spec.constants`.
_Text = Annotated[str | None, _Added]
_Flag = Annotated[bool, _Added]

#: Maximum length of a folder, hub id or tensor name.
MAX_NAME_CHARS = 1000
_Name = Annotated[
    Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME_CHARS)] | None, _Added
]


class NeuralSpec(Spec):
    """Keys of all kinds with weights."""

    folders = ("checkpoint", "tokenizer", "adapter")
    checkpoint: str = Field(min_length=1, max_length=MAX_NAME_CHARS, description="folder or hub id")
    truncation: Truncation = Field(
        default=Truncation.PROMPT,
        description="what to do with a text over the limit: `prompt` cuts the start of the prompt, "
        "`right` the end of the text, `error` fails the sample",
    )
    max_tokens: int | None = Field(default=None, ge=8, description="default: the checkpoint's")
    dtype: Dtype = Field(
        default="auto", description="`auto` is float32 on a CPU, bfloat16 on a GPU"
    )
    head: str | None = Field(
        default=None, description="tensor name of a linear head for the base model"
    )
    mark_copied: bool | Literal["support"] = Field(
        default=False,
        description="set token type 1 for words copied from the prompt; `support` sets types 0 to "
        "108 by how much the prompt supports each word",
    )
    trust_remote_code: bool = Field(
        default=False, description="whether to run code from the checkpoint"
    )
    revision: _Name = Field(default=None, description="branch, tag or commit of a hub id")
    tokenizer: _Name = Field(
        default=None, description="folder or hub id; default: the checkpoint's"
    )
    adapter: _Name = Field(default=None, description="folder or hub id of a PEFT LoRA adapter")
    prefix: _Name = Field(default=None, description="prefix of the base's tensor names")
    note: _Text = Field(
        default=None, min_length=1, description="remark on its scores, shown in `notes` of /models"
    )

    @property
    def has_weights(self) -> bool:
        """True: the checkpoint."""
        return True

    @property
    def templates(self) -> tuple[str, ...]:
        """The templates that may name fields of a sample, except the tokenizer's chat template."""
        texts = (getattr(self, key, None) for key in ("template", "ask"))
        return tuple(text for text in texts if text is not None and text != "chat")


#: Arguments that `template_arguments` may not set, as the sample or the server sets them.
_OWN_ARGUMENTS = frozenset(
    {
        "self", "messages", "conversation", "conversations", "tools", "add_generation_prompt",
        "continue_final_message",
        "chat_template", "tokenize", "sanitize_control_tokens", "padding", "truncation",
        "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask",
        "tokenizer_kwargs",
    }
)  # fmt: skip


class TurnsSpec(BaseModel):
    """Texts of the messages of a conversation by role; ``{}`` is replaced by the content."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    user: str
    assistant: str
    system: str | None = Field(default=None, description="default: system messages are refused")
    tool: str | None = Field(default=None, description="default: tool messages are refused")
    start: str = Field(default="", description="text before the first message")
    separator: str = Field(default="", description="text between messages")
    generation: str = Field(default="", description="start of the next turn, if a kind requires it")

    @model_validator(mode="after")
    def _each_has_one_place(self) -> TurnsSpec:
        for role in ("user", "assistant", "system", "tool"):
            text = getattr(self, role)
            if text is not None and text.count("{}") != 1:
                raise ValueError(
                    f"turns.{role} is {text!r}: write {{}} once, in place of the message's text"
                )
        return self


class TextSpec(NeuralSpec):
    """Keys of kinds that read prompt and completion as one text."""

    special_tokens: Annotated[bool | None, _Added] = Field(
        default=None,
        description="add the tokenizer's special tokens; default: for a text, not for a chat",
    )
    strip: Annotated[bool | str, _Added] = Field(
        default=False,
        description="remove whitespace, or this text, from the end of the text",
    )
    suffix: Annotated[str, _Added] = Field(
        default="", description="appended unless the text already ends with it; never truncated"
    )
    template_arguments: Annotated[Mapping[str, JsonValue], _Added] = Field(
        default_factory=dict, description="variables for the chat template"
    )
    chat_template_kwargs: Annotated[Mapping[str, JsonValue], _Added] = Field(
        default_factory=dict, description="vLLM's name for template_arguments"
    )
    chat_template: _Text = Field(
        default=None,
        min_length=1,
        description="Jinja text or a .jinja file, instead of the tokenizer's chat template",
    )
    turns: Annotated[TurnsSpec | None, _Added] = Field(
        default=None, description="texts by role, instead of the tokenizer's chat template"
    )
    chats: Annotated[Literal["join", "refuse"], _Added] = Field(
        default="join",
        description="samples of several messages with a template and no `turns`: join the messages "
        "without their roles, or refuse the sample; `serve --model` sets `refuse`",
    )

    @field_validator("template_arguments", "chat_template_kwargs")
    @classmethod
    def _are_the_recipes_to_give(cls, arguments: Mapping[str, JsonValue]) -> Mapping[str, Any]:
        own = sorted(_OWN_ARGUMENTS & set(arguments))
        if own:
            raise ValueError(f"sets {own}, which the server sets itself: remove them")
        return arguments

    @model_validator(mode="after")
    def _one_way_to_a_text(self) -> TextSpec:
        is_chat = getattr(self, "template", "chat") == "chat"
        if self.chat_template is not None and self.turns is not None:
            raise ValueError("turns and chat_template exclude each other: remove one")
        for key in ("chat_template", "template_arguments", "chat_template_kwargs"):
            if getattr(self, key) and not is_chat:
                raise ValueError(f"{key} requires the chat template: remove `template`")
            if getattr(self, key) and key != "chat_template" and self.turns is not None:
                raise ValueError(f"{key} has no effect with turns: remove one")
        twice = sorted({*self.template_arguments} & {*self.chat_template_kwargs})
        if twice:
            raise ValueError(f"template_arguments and chat_template_kwargs both set {twice}")
        return self

    @property
    def asks(self) -> bool:
        """Whether its text is a question to the model, which may not write the completion."""
        return False

    @property
    def chat_arguments(self) -> dict[str, JsonValue]:
        """The variables for the chat template."""
        return {**self.template_arguments, **self.chat_template_kwargs}

    @property
    def reads_text(self) -> bool:
        """Whether the model reads text that is not rendered by a chat template."""
        return getattr(self, "template", "chat") != "chat" or self.turns is not None


class Normalization(BaseModel):
    """Normalization of raw scores as in published classes: ``(score - mean) / std``."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    mean: float = 0.0
    std: float = Field(default=1.0, gt=0)


class ClassifierSpec(TextSpec):
    """Keys of kinds that read a whole sample, as one text or as a pair."""

    pair: _Flag = Field(
        default=False,
        description="prompt and completion as a text pair, joined by the tokenizer",
    )

    @model_validator(mode="after")
    def _pair_has_two_texts(self) -> ClassifierSpec:
        if not self.pair:
            return self
        for key, default in (("template", "chat"), ("suffix", ""), ("strip", False)):
            if getattr(self, key) != default:
                raise ValueError(f"pair reads prompt and completion unchanged: remove {key}")
        others = ("template_arguments", "chat_template_kwargs", "mark_copied", "gate_at")
        for key in ("chat_template", *others):
            if getattr(self, key, None):
                raise ValueError(f"pair and {key} exclude each other: remove one")
        return self

    @property
    def reads_text(self) -> bool:
        """Whether the model reads text that is not rendered by a chat template."""
        return self.pair or super().reads_text


class SequenceSpec(ClassifierSpec):
    """One score for a whole completion: a one-logit classifier, or a named head."""

    module = "alarm_models.reward_models.sequence"
    scores_prefixes = True
    kind: Literal["sequence"] = "sequence"
    normalization: Annotated[Normalization | Literal["none"] | None, _Added] = Field(
        default=None, description="default: as in the checkpoint's configuration"
    )
    template: str = Field(
        default="chat", description='template text, or "chat" for the tokenizer\'s chat template'
    )
    pooling: Literal["first", "last", "mean"] = Field(
        default="last", description="tokens that a named head reads"
    )
    activation: Literal["none", "sigmoid"] = Field(
        default="none", description="applied to the logit"
    )


class SegmentsSpec(NeuralSpec):
    """One score per segment, read at the separator before it."""

    module = "alarm_models.reward_models.segments"
    judges_wholes = False
    policy_only = True
    kind: Literal["segments"] = "segments"
    template: str = Field(description="template text before the segments")
    segmenter: Literal["sentences", "subsentences", "words", "turns"] = Field(
        default="sentences", description="the segments that get a score each"
    )
    separator: str | None = Field(default=None, description="default: the tokenizer's")
    pooling: Literal["separator", "mean"] = Field(
        default="separator",
        description="read only the separator, or the mean over it and the segment's tokens",
    )
    positive_label: str = Field(description="label whose logit counts for a segment")
    negative_label: str = Field(description="label whose logit counts against a segment")
    labels: tuple[str, ...] | None = Field(
        default=None, description="label names by position, if the checkpoint has none"
    )

    @field_validator("template")
    @classmethod
    def _is_no_chat(cls, template: str) -> str:
        if template == "chat":
            raise ValueError(
                "kind `segments` reads no chat template: write the text before the segments, such "
                'as "question: {prompt} answer: "'
            )
        return template

    @model_validator(mode="after")
    def _labels_hold_both(self) -> SegmentsSpec:
        for label in (self.positive_label, self.negative_label):
            if self.labels is not None and label not in self.labels:
                raise ValueError(f"labels {list(self.labels)} do not include {label!r}")
        return self


class StepsSpec(TextSpec):
    """The probability that each step of a solution is right, read at the step token after it."""

    module = "alarm_models.reward_models.steps"
    grades_segments = True
    policy_only = True
    kind: Literal["steps"] = "steps"
    template: str = Field(
        default="chat", description='template text, or "chat" for the tokenizer\'s chat template'
    )
    step_token: str = Field(
        default="<extra_0>", description="token after each step, at which the step is read"
    )
    segmenter: Literal["steps", "sentences", "turns"] = Field(
        default="steps", description="the segments that get a score each"
    )
    labels: tuple[str, str] | None = Field(
        default=None, description="label names by position, if the checkpoint has none"
    )
    positive_label: str | None = Field(default=None, description="default: the second label")
    reduction: Literal["min", "mean", "product", "last"] = Field(
        default="min", description="reduction of the steps' probabilities to one score"
    )
    positive: Annotated[str | int | None, _Added] = Field(
        default=None, description="causal models: token for a correct step, as text or id"
    )
    negative: Annotated[str | int | None, _Added] = Field(
        default=None, description="causal models: token for a wrong step"
    )
    step_template: Annotated[str, _Added] = Field(
        default="{step}", description="text of a step; {number} counts from 1"
    )
    step_separator: Annotated[str, _Added] = Field(
        default="", description="text between a step token and the next step"
    )
    step_answer: _Text = Field(
        default=None,
        min_length=1,
        description="each step is a user message with this answer; read before the answer",
    )
    tokenization: Annotated[Literal["whole", "parts"], _Added] = Field(
        default="whole",
        description="tokenize the whole text, or each step and step token separately",
    )

    @model_validator(mode="after")
    def _reads_one_way(self) -> StepsSpec:
        if (self.positive is None) != (self.negative is None):
            raise ValueError("positive and negative require each other: set both")
        if self.positive is not None and self.head is not None:
            raise ValueError("`head` and positive/negative exclude each other: remove one")
        if self.step_template.count("{step}") != 1:
            raise ValueError(f"step_template is {self.step_template!r}: write {{step}} once")
        if self.step_answer is not None:
            if self.template != "chat":
                raise ValueError("step_answer requires the chat template: remove `template`")
            if self.tokenization == "parts" or self.step_separator:
                raise ValueError(
                    "step_answer excludes tokenization and step_separator: remove them"
                )
        return self

    @property
    def read_token(self) -> str:
        """The token at which (or, for answers, before which) a step is read."""
        return self.step_token if self.step_answer is None else self.step_answer


class MultiObjectiveSpec(ClassifierSpec):
    """Several named outputs for a whole completion, each usable as an aspect."""

    module = "alarm_models.reward_models.multi_objective"
    scores_prefixes = True
    kind: Literal["multi-objective"] = "multi-objective"
    template: str = Field(
        default="chat", description='template text, or "chat" for the tokenizer\'s chat template'
    )
    pooling: Literal["first", "last", "mean"] = Field(
        default="last", description="tokens that a named head reads"
    )
    objectives: tuple[str, ...] | None = Field(
        default=None, description="output names by position; default: the checkpoint's labels"
    )
    activation: Literal["none", "sigmoid", "softmax"] = Field(
        default="none", description="applied to the outputs"
    )
    weights: Mapping[str, float] = Field(
        default_factory=dict, description="objective -> weight in the score"
    )
    gate_at: str | None = Field(
        default=None,
        description="ArmoRM, QRM: text at the end of a prompt; the gate reads its first token",
    )
    gate: _Text = Field(
        default=None,
        min_length=1,
        description="URM: tensor name of the network that weighs the first of each two outputs",
    )

    @property
    def has_score(self) -> bool:
        """Whether its outputs are weighted to a score."""
        return bool(self.weights or self.gate_at or self.gate)

    @model_validator(mode="after")
    def _one_way_to_a_score(self) -> MultiObjectiveSpec:
        if self.gate is not None:
            if self.head is None:
                raise ValueError('gate requires `head`, whose outputs it weighs ("score")')
            if self.weights or self.gate_at or self.activation != "none":
                raise ValueError("gate excludes weights, gate_at and activation: remove them")
        if self.gate_at is None:
            return self
        if self.head is None:
            raise ValueError('gate_at requires `head`, the regression layer ("regression_layer")')
        if self.weights:
            raise ValueError("gate_at computes the weights: remove `weights` or `gate_at`")
        return self


class Severities(BaseModel):
    """Scores of error spans by severity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    minor: float = -1.0
    major: float = -5.0
    critical: float = -10.0


class CometSpec(NeuralSpec):
    """A translation's score and error spans from one forward pass: xCOMET and CometKiwi."""

    module = "alarm_models.reward_models.comet"
    policy_only = True
    grades_segments = True
    kind: Literal["comet"] = "comet"
    source: str = Field(default="{source}", description="template of the text to translate")
    reference: str | None = Field(
        default=None,
        description="template of a reference translation; if unset, no reference is read",
    )
    severities: Severities = Field(
        default=Severities(), description="scores of error spans; default: those of MQM"
    )

    @property
    def templates(self) -> tuple[str, ...]:
        """The templates that may name fields of a sample."""
        return (self.source, *([] if self.reference is None else [self.reference]))

    @model_validator(mode="after")
    def _has_its_own_head(self) -> CometSpec:
        for key in ("head", "mark_copied", "prefix", "adapter"):
            if getattr(self, key):
                raise ValueError(f"kind comet uses its own head and encoder: remove {key}")
        if self.truncation is not Truncation.PROMPT:
            raise ValueError("kind comet truncates each text at its end: remove truncation")
        return self


class GenerativeSpec(TextSpec):
    """The score of a causal model's next token, or of yes versus no."""

    module = "alarm_models.reward_models.generative"
    kind: Literal["generative"] = "generative"
    template: str = Field(
        default="chat", description='template text, or "chat" for the tokenizer\'s chat template'
    )
    ask: str | None = Field(
        default=None, description="text rendered with the chat template as a user message"
    )
    generation_prompt: bool | None = Field(
        default=None, description="start the next turn after the text; default: only after `ask`"
    )
    positive: str | int = Field(description="token whose score is read, as text or id")
    negative: str | int | None = Field(default=None, description="token to compare `positive` with")
    measure: Literal["logit", "logprob"] = Field(
        default="logit", description="what of the token is the score"
    )
    activation: Literal["none", "sigmoid"] = Field(
        default="none", description="applied to the score"
    )

    @model_validator(mode="after")
    def _asks_in_a_chat(self) -> GenerativeSpec:
        if self.ask is not None and self.template != "chat":
            raise ValueError("ask uses the chat template: remove `template`")
        return self

    @property
    def reads_text(self) -> bool:
        """Whether the model reads text without a chat template, as with `ask`."""
        return self.ask is not None or super().reads_text

    @property
    def asks(self) -> bool:
        """Whether `ask` is rendered rather than the sample."""
        return self.ask is not None

    @property
    def begins_turn(self) -> bool:
        """Whether the next turn is started after the text."""
        return self.ask is not None if self.generation_prompt is None else self.generation_prompt

    def constants(self, exclude: frozenset[str]) -> str:
        """Return the keys that fingerprints digest, as JSON; see `Spec.constants`.

        Earlier fingerprints contain `generation_prompt = false` if the recipe does not set it.
        """
        named = self.model_copy(update={"generation_prompt": self.generation_prompt is True})
        constants = super(GenerativeSpec, named).constants(exclude)
        is_asked_without = self.ask is not None and self.generation_prompt is False
        return f"{constants}|without the next turn" if is_asked_without else constants


#: The default of a judge's `pattern`, which selects the rating parser instead of a pattern.
#: (Used as a pattern it would match a number, but not the 10 of "8/10".)
ANY_NUMBER = r"(?<![\d./])(?<!/ )-?\d+(?:\.\d+)?"


def _require_different_answers(number: int, temperature: object, key: str) -> None:
    if number > 1 and temperature == 0:
        raise ValueError(
            f"{number} answers at temperature 0 are all the same: set a higher one in {key}"
        )


class JudgeMessage(BaseModel):
    """One message to a judge; its content is a template."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: str = Field(min_length=1)
    content: str


#: A message to a judge: a template, or the sample's own messages.
JudgeTurn = JudgeMessage | Literal["{prompt}", "{completion}"]


def require_completion(turns: tuple[JudgeTurn, ...] | None) -> tuple[JudgeTurn, ...] | None:
    """Return a judge's messages; raise `ValueError` if none shows the completion."""
    shown = (turn.content if isinstance(turn, JudgeMessage) else turn for turn in turns or ())
    if turns is not None and not any("{completion}" in text for text in shown):
        raise ValueError("does not contain the completion: add {completion}")
    return turns


def require_names(values: Mapping[str, float]) -> Mapping[str, float]:
    """Return the scores of a judge's verdicts; raise `ValueError` for one without a name."""
    if any(not name.strip() for name in values):
        raise ValueError("has a verdict with an empty name: write the judge's answer as its name")
    return values


class JudgeSpec(TextSpec):
    """The rating that a causal model writes as text: a generative judge in this server."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    module = "alarm_models.reward_models.judge"
    kind: Literal["judge"] = "judge"
    rubric: str | None = Field(
        default=None, description="template of the question, sent as one user message"
    )
    messages: tuple[JudgeTurn, ...] | None = Field(
        default=None,
        description="in place of `rubric`, messages of any role; `{prompt}` and `{completion}` "
        "insert the sample's own messages",
    )
    template: str = Field(
        default="chat", description="in place of both, a text that no chat template renders"
    )
    defaults: Mapping[str, str] = Field(
        default_factory=dict, description="texts of fields that a sample does not send"
    )
    prompt_turns: TurnsSpec | None = Field(
        default=None, description="texts by role, for a `{prompt}` of several messages"
    )
    values: Mapping[str, float] = Field(
        default_factory=dict, description="score of each verdict, by its name"
    )
    pattern: str = Field(
        default=ANY_NUMBER,
        description="pattern of the rating in the answer; the last match counts. By default the "
        "answer must have exactly one rating, such as `7`, `Score: 7` or `7/10`",
    )
    lowest: float | None = Field(default=None, description="lowest valid rating")
    highest: float | None = Field(default=None, description="highest valid rating")
    max_new_tokens: int = Field(
        default=512, ge=1, le=65536, description="maximum tokens of an answer"
    )
    n: int = Field(
        default=1, ge=1, le=128, strict=True, description="answers; the score is their mean"
    )
    temperature: float = Field(
        default=0, ge=0, le=10, description="0 takes the most likely token at each step"
    )
    seed: int = Field(default=0, description="seed of the answers at a temperature above 0")

    @property
    def must_score_warm_up(self) -> bool:
        """False: its answer to the sample may have no rating."""
        return False

    @property
    def templates(self) -> tuple[str, ...]:
        """The templates that may name fields of a sample."""
        turns = (turn for turn in self.messages or () if isinstance(turn, JudgeMessage))
        texts = (self.rubric, *(turn.content for turn in turns), self.template)
        return tuple(text for text in texts if text is not None and text != "chat")

    @property
    def asks(self) -> bool:
        """Whether the chat template renders a question; it does unless `template` is a text."""
        return True

    @property
    def reads_text(self) -> bool:
        """Whether it is shown no messages of the sample."""
        return not any(isinstance(turn, str) for turn in self.messages or ())

    @field_validator("messages")
    @classmethod
    def _show_the_completion(cls, turns: tuple[JudgeTurn, ...] | None) -> Any:
        return require_completion(turns)

    @field_validator("values")
    @classmethod
    def _have_names(cls, values: Mapping[str, float]) -> Mapping[str, float]:
        return require_names(values)

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        require_pattern(pattern)
        return pattern

    @model_validator(mode="after")
    def _asks_one_way(self) -> JudgeSpec:
        given = [key for key in ("rubric", "messages") if getattr(self, key) is not None]
        given += ["template"] if self.template != "chat" else []
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(
                f"kind judge requires exactly one of rubric, messages and template, not {found}: "
                'write `rubric = "Rate the answer from 1 to 10. ... {prompt} ... {completion}"`'
            )
        if self.rubric is not None and "{completion" not in self.rubric:
            raise ValueError("rubric does not contain the completion: add {completion}")
        for key in ("head", "mark_copied"):
            if getattr(self, key):
                raise ValueError(f"kind judge reads what the model writes: leave {key} out")
        return self

    @model_validator(mode="after")
    def _votes_may_differ(self) -> JudgeSpec:
        _require_different_answers(self.n, self.temperature, "temperature")
        return self


class RemoteSpec(Spec):
    """The score of a remote server: vLLM, SGLang, TEI, alarm, or a chat model as judge."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    module = "alarm_models.reward_models.remote.model"
    is_reproducible = False
    kind: Literal["remote"] = "remote"
    api: Literal["vllm", "vllm-scoring", "sglang", "tei", "alarm", "chat"] = Field(
        description="the server's protocol; `chat` asks a chat model to judge"
    )
    url: str | tuple[str, ...] = Field(
        description="URL of the server, or a list of URLs of servers with the same model"
    )
    model: str | None = Field(default=None, description="name of the model on that server")
    api_key: SecretStr | None = Field(default=None, description="sent as a bearer token")
    template: str | None = Field(
        default=None, description='template text; "chat" lets vLLM apply its chat template'
    )
    rubric: str | None = Field(
        default=None, description="`chat`: template of the question to the judge"
    )
    messages: Annotated[tuple[JudgeTurn, ...] | None, _Added] = Field(
        default=None,
        description="`chat`: messages of any role, instead of `rubric`; `{prompt}` and "
        "`{completion}` insert the sample's own messages",
    )
    values: Annotated[Mapping[str, float], _Added] = Field(
        default_factory=dict, description="`chat`: score of each verdict of the judge, by its name"
    )
    n: Annotated[int, _Added] = Field(
        default=1,
        ge=1,
        le=128,
        strict=True,
        description="`chat`: number of answers; the score is their mean",
    )
    pattern: str = Field(
        default=ANY_NUMBER,
        description="`chat`: pattern of the rating in the judge's answer; the last match counts. "
        "By default the answer must have exactly one rating, such as `7`, `Score: 7` or `7/10`",
    )
    lowest: float | None = Field(default=None, description="`chat`: lowest valid rating")
    highest: float | None = Field(default=None, description="`chat`: highest valid rating")
    chat_template_kwargs: Annotated[Mapping[str, JsonValue], _Added] = Field(
        default_factory=dict, description="`vllm`: variables for its chat template"
    )
    parameters: Mapping[str, JsonValue] = Field(
        default_factory=lambda: {"temperature": 0, "max_tokens": 512},
        description="`chat`: request parameters",
    )
    label_token_ids: Annotated[tuple[int, ...], _Added] = Field(
        default=(),
        description="`vllm-scoring`: ids of the tokens that are compared; the score is the "
        "probability of the first among them",
    )
    special_tokens: Annotated[bool, _Added] = Field(
        default=True, description="`vllm-scoring`: whether vLLM adds special tokens to the text"
    )
    labels: tuple[str, ...] | None = Field(default=None, description="output names by position")
    weights: Mapping[str, float] = Field(
        default_factory=dict, description="label -> weight in the score"
    )
    timeout_s: float = Field(
        default=60, gt=0, description="timeout of one attempt, including its whole response"
    )
    max_answer_bytes: int = Field(
        default=16 << 20, ge=1024, description="maximum size of a response"
    )
    max_retries: int = Field(default=4, ge=0, description="retries of a request")
    max_concurrent: int = Field(
        default=16, ge=1, description="maximum concurrent requests to each server"
    )
    batch_size: int = Field(default=32, ge=1, description="maximum samples per request")
    warm_up: Annotated[bool, _Added] = Field(
        default=False,
        description="`chat`: ask the judge one question before the recipe is served, which may "
        "cost money; by default only `GET /v1/models` is sent",
    )

    @property
    def warms_up(self) -> bool:
        """Whether it scores a sample before it is served; a judge must be told to."""
        return self.api != "chat" or self.warm_up

    @property
    def output_names(self) -> frozenset[str] | None:
        """Empty for a judge, which gives one rating; None for others."""
        return frozenset() if self.api == "chat" else None

    @property
    def urls(self) -> tuple[str, ...]:
        """The URLs of all servers."""
        return (self.url,) if isinstance(self.url, str) else self.url

    @property
    def templates(self) -> tuple[str, ...]:
        """The templates that may name fields of a sample."""
        turns = (turn for turn in self.messages or () if isinstance(turn, JudgeMessage))
        texts = (self.template, self.rubric, *(turn.content for turn in turns))
        return tuple(text for text in texts if text is not None and text != "chat")

    @property
    def reads_text(self) -> bool:
        """Whether the other server gets texts rather than messages."""
        if self.api == "chat":
            return not any(isinstance(turn, str) for turn in self.messages or ())
        return self.template != "chat"

    @model_validator(mode="after")
    def _shows_what_it_may(self) -> RemoteSpec:
        for key in ("thinking", "think_tags", "system", "unsupported_content"):
            if self.api == "alarm" and key in self.model_fields_set:
                raise ValueError(
                    f"{key} must be set in the recipe of the remote server: remove it here"
                )
        if self.chat_template_kwargs and (self.api, self.template) != ("vllm", "chat"):
            raise ValueError('chat_template_kwargs requires api `vllm` and `template = "chat"`')
        return self

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str | tuple[str, ...]) -> str | tuple[str, ...]:
        urls = [url] if isinstance(url, str) else url
        if not urls:
            raise ValueError("the list of URLs is empty: give at least one")
        if len({one.rstrip("/") for one in urls}) < len(urls):
            raise ValueError("a URL is twice in the list: remove one")
        for one in urls:
            if not one.startswith(("http://", "https://")):
                raise ValueError("a URL of a server must begin with http:// or https://")
            require_address(one)
        return url

    @field_validator("api_key")
    @classmethod
    def _fits_a_header(cls, key: SecretStr | None) -> SecretStr | None:
        return None if key is None else SecretStr(usable_key(key.get_secret_value()))

    @field_validator("messages")
    @classmethod
    def _show_the_completion(cls, turns: tuple[JudgeTurn, ...] | None) -> Any:
        return require_completion(turns)

    @field_validator("values")
    @classmethod
    def _have_names(cls, values: Mapping[str, float]) -> Mapping[str, float]:
        return require_names(values)

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        require_pattern(pattern)
        return pattern

    @field_validator("parameters")
    @classmethod
    def _are_the_recipes_to_give(cls, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        own = sorted({"model", "messages", "stream"} & set(parameters))
        if own:
            raise ValueError(f"sets {own}, which the server sets itself: remove them")
        return parameters

    @property
    def num_votes(self) -> int:
        """The number of answers requested from a judge."""
        named = self.parameters.get("n", 1)
        return named if isinstance(named, int) and self.n == 1 else self.n

    @model_validator(mode="after")
    def _votes_may_differ(self) -> RemoteSpec:
        if self.api != "chat":
            return self
        named = self.parameters.get("n", 1)
        if isinstance(named, bool) or not isinstance(named, int) or named < 1:
            raise ValueError(f"parameters.n is {named!r}: set the number of answers in `n`")
        if self.n > 1 and "n" in self.parameters:
            raise ValueError("n and parameters.n both set the number of answers: remove one")
        temperature = self.parameters.get("temperature")
        _require_different_answers(self.num_votes, temperature, "parameters.temperature")
        return self

    @model_validator(mode="after")
    def _has_what_its_api_takes(self) -> RemoteSpec:
        asked = "rubric" if self.messages is None else "messages"
        wanted = {"chat": (asked, "model"), "alarm": ()}.get(self.api, ("template",))
        lacking = [name for name in wanted if getattr(self, name) is None]
        if lacking:
            raise ValueError(f"api `{self.api}` requires {' and '.join(lacking)}")
        if self.rubric is not None and self.messages is not None:
            raise ValueError("rubric and messages exclude each other: remove one")
        for name in ("template", "rubric", "messages"):
            if getattr(self, name) is not None and name not in wanted:
                raise ValueError(f"api `{self.api}` does not use {name}: remove it")
        for name, default in (("values", {}), ("n", 1), ("warm_up", False)):
            if self.api != "chat" and getattr(self, name) != default:
                raise ValueError(f"api `{self.api}` does not use {name}: remove it")
        if self.api == "vllm-scoring" and len(self.label_token_ids) < 2:
            raise ValueError("api `vllm-scoring` requires label_token_ids of at least two tokens")
        for name in ("label_token_ids", "special_tokens"):
            if self.api != "vllm-scoring" and name in self.model_fields_set:
                raise ValueError(f"api `{self.api}` does not use {name}: remove it")
        if self.template == "chat" and self.api != "vllm":
            raise ValueError(
                f"api `{self.api}` does not apply a chat template: set `template` to a template "
                "text"
            )
        return self


class BudgetSpec(BaseModel):
    """What a judge's endpoint may use in any 60 seconds; a key that is left out sets no limit."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    requests: int | None = Field(default=None, ge=1, description="requests, retries included")
    tokens: int | None = Field(default=None, ge=1, description="input and output tokens")
    cost: float | None = Field(default=None, gt=0, description="money, by the endpoint's prices")
    excess: Literal["wait", "fail"] = Field(
        default="wait",
        description="`wait` until the budget allows the request, or `fail` its sample at once",
    )
    max_wait_s: float = Field(
        default=120, gt=0, le=86400, description="`wait`: the longest wait; then the sample fails"
    )


class EndpointSpec(BaseModel):
    """An OpenAI-compatible chat endpoint that judges, its limits and its prices."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    url: str = Field(pattern=r"^https?://[^\s/]+", description="URL of the server")
    model: str = Field(min_length=1, description="name of the model on that server")
    api_key: SecretStr | None = Field(default=None, description="sent as a bearer token")
    parameters: Mapping[str, JsonValue] = Field(
        default_factory=lambda: {"temperature": 0, "max_tokens": 1024},
        description="request parameters",
    )
    structured: Literal["auto", "json_schema", "none"] = Field(
        default="auto",
        description="whether answers must fit a JSON schema (`response_format`); `auto` stops "
        "asking for it once the server refuses it",
    )
    timeout_s: float = Field(
        default=60, gt=0, description="timeout of one attempt, including its whole response"
    )
    max_answer_bytes: int = Field(
        default=16 << 20, ge=1024, description="maximum size of a response"
    )
    max_retries: int = Field(default=4, ge=0, description="retries of a request")
    max_concurrent: int = Field(
        default=16, ge=1, description="maximum concurrent requests of all models to this URL"
    )
    hedge_after_s: float | None = Field(
        default=None,
        gt=0,
        description="seconds without an answer after which the request is sent a second time; the "
        "first answer counts. Default: never",
    )
    cache: str | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_NAME_CHARS,
        description="folder of stored answers, which identical requests get. Default: none",
    )
    max_cache_bytes: int = Field(
        default=1 << 30, ge=1 << 16, description="maximum size of the stored answers"
    )
    budget: BudgetSpec = Field(default=BudgetSpec(), description="what a minute may use")
    warm_up: bool = Field(
        default=False,
        description="ask one question before the recipe is served, which may cost money; by "
        "default only `GET /v1/models` is sent",
    )
    input_price: float = Field(default=0, ge=0, description="money per million input tokens")
    output_price: float = Field(default=0, ge=0, description="money per million output tokens")

    @property
    def api(self) -> str:
        """What error messages call the server."""
        return "judge"

    def scoring_constants(self) -> str:
        """Return the keys that affect scores, as JSON."""
        return self.model_dump_json(include={"model", "parameters", "structured"})

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        return require_address(url)

    @field_validator("api_key")
    @classmethod
    def _fits_a_header(cls, key: SecretStr | None) -> SecretStr | None:
        return None if key is None else SecretStr(usable_key(key.get_secret_value()))

    @field_validator("parameters")
    @classmethod
    def _are_the_recipes_to_give(cls, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        reserved = {"model", "messages", "stream", "n", "logprobs", "top_logprobs"}
        own = sorted({*reserved, "response_format"} & set(parameters))
        if own:
            raise ValueError(f"sets {own}, which the server sets itself: remove them")
        return parameters

    @model_validator(mode="after")
    def _has_prices_for_its_budget(self) -> EndpointSpec:
        if self.budget.cost is not None and not (self.input_price or self.output_price):
            raise ValueError(
                "budget.cost requires input_price and output_price, the money per million tokens"
            )
        return self


#: Names of a question's parts that the server fills in.
CRITERIA, MARK = "criteria", "mark"


class RubricSpec(TextSpec):
    """The weighted share of criteria that a judge finds met, each with its own verdict."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    module = "alarm_models.reward_models.rubric.model"
    grades_segments = True
    kind: Literal["rubric"] = "rubric"
    checkpoint: str = Field(
        default="", max_length=MAX_NAME_CHARS, description="a causal model that judges: yes or no"
    )
    endpoint: EndpointSpec | None = Field(
        default=None, description="in place of `checkpoint`, a chat endpoint that judges"
    )
    criteria: Mapping[str, CriterionSpec] = Field(
        default_factory=dict,
        description="criteria by name, for every sample; or a rubric in a published form, or the "
        "`.json` or `.toml` file that has it",
    )
    criteria_field: str = Field(
        default="rubric", pattern=r"^\w+$", description="field with a sample's further criteria"
    )
    pitfalls: Annotated[Literal["faults", "avoided"], _Added] = Field(
        default="faults",
        description="how criteria of negative weight are worded: `faults` say what goes wrong, "
        "`avoided` that it does not, and then their weights count as positive",
    )
    question: str | None = Field(
        default=None,
        description="template of the question; contains `{completion}`, `{criteria}` and `{mark}`",
    )
    measure: Literal["verdict", "probability"] = Field(
        default="verdict",
        description="`verdict` is 1 or 0, or the share of votes; `probability` is that of yes, "
        "from the logits or log probabilities of the verdict",
    )
    n: int = Field(
        default=1, ge=1, le=128, strict=True, description="`endpoint`: votes for each criterion"
    )
    criteria_per_call: int = Field(
        default=1, ge=1, le=64, description="`endpoint`: maximum number of criteria per question"
    )
    quotes: bool = Field(
        default=False,
        description="`endpoint`: the judge quotes what it judges; these parts of the completion "
        "are the criterion's segments",
    )
    on_failure: Literal["fail", "skip"] = Field(
        default="fail",
        description="a criterion without a readable verdict: `fail` the sample, or `skip` the "
        "criterion and its weight",
    )
    dropout: float = Field(
        default=0,
        ge=0,
        lt=1,
        description="probability with which a criterion is left out, equally for a whole group",
    )
    step_field: str = Field(
        default="step",
        pattern=r"^\w+$",
        description="`dropout`: field with the training step; other steps leave out others",
    )
    seed: int = Field(default=0, description="`dropout`: seed of what is left out")
    positive: str | int = Field(default="Yes", description="`checkpoint`: token of met")
    negative: str | int = Field(default="No", description="`checkpoint`: token of not met")

    @property
    def has_weights(self) -> bool:
        """Whether it judges with a checkpoint rather than an endpoint."""
        return self.endpoint is None

    @property
    def warms_up(self) -> bool:
        """Whether it scores a sample before it is served; an endpoint must be told to."""
        return self.endpoint is None or self.endpoint.warm_up

    @property
    def must_score_warm_up(self) -> bool:
        """False: a judge's answer to the sample may be unreadable."""
        return False

    @property
    def output_names(self) -> frozenset[str] | None:
        """The names of the criteria; None if they come with each sample."""
        return frozenset(self.criteria) or None

    @property
    def templates(self) -> tuple[str, ...]:
        """The templates that may name fields of a sample."""
        own = () if self.criteria else (f"{{{self.criteria_field}}}",)
        return (*(() if self.question is None else (self.question,)), *own)

    @property
    def asks(self) -> bool:
        """True: the chat template renders a question."""
        return True

    @property
    def reads_text(self) -> bool:
        """True: the question shows prompt and completion as texts."""
        return True

    @field_validator("criteria", mode="before")
    @classmethod
    def _reads_published_forms(cls, criteria: Any) -> Any:
        if isinstance(criteria, str):
            raise ValueError("criteria must be a table, a list, or a file ending in .json or .toml")
        if not is_published_form(criteria):
            if isinstance(criteria, Mapping):
                require_recipe_keys(criteria)
            return criteria
        found = read_rubric(criteria, "criteria")
        if not found:
            raise ValueError("criteria is empty: write at least one, or leave it out")
        return {one.name: one.spec for one in found}

    @field_validator("question")
    @classmethod
    def _shows_all_parts(cls, question: str | None) -> str | None:
        lacking = [
            f"{{{name}}}"
            for name in ("completion", CRITERIA, MARK)
            if question is not None and f"{{{name}}}" not in question
        ]
        if lacking:
            raise ValueError(
                f"question does not contain {' and '.join(lacking)}: write the completion between "
                "two lines with {mark}, which no completion can contain"
            )
        return question

    @model_validator(mode="after")
    def _has_one_judge(self) -> RubricSpec:
        _require_one_judge(self)
        of_weights = {*TextSpec.model_fields, "positive", "negative"} - {*Spec.model_fields}
        _refuse_keys_of_other_judge(self, of_weights, {"n", "criteria_per_call", "quotes"})
        for key in ("head", "mark_copied"):
            if getattr(self, key):
                raise ValueError(f"kind rubric reads the next token: leave {key} out")
        return self

    @model_validator(mode="after")
    def _votes_may_differ(self) -> RubricSpec:
        if self.endpoint is not None:
            temperature = self.endpoint.parameters.get("temperature")
            _require_different_answers(self.n, temperature, "endpoint.parameters.temperature")
        return self

    @model_validator(mode="after")
    def _criteria_require_others(self) -> RubricSpec:
        for name, criterion in self.criteria.items():
            if not name.strip():
                raise ValueError("criteria has one with an empty name")
            unknown = sorted({*criterion.requires} - {*self.criteria})
            if unknown or name in criterion.requires:
                raise ValueError(
                    f"criteria.{name}.requires names {unknown or name!r}: use names of other "
                    f"criteria, of {sorted(self.criteria)}"
                )
        try:
            graph = {name: one.requires for name, one in self.criteria.items()}
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            cycle = " -> ".join(reversed(error.args[1]))
            raise ValueError(
                f"criteria.*.requires have a cycle, {cycle}: remove one of these"
            ) from error
        if self.criteria and not any(one.signed_weight for one in self.criteria.values()):
            raise ValueError("every criterion has weight 0: give one another weight")
        return self


def _require_one_judge(spec: RubricSpec | CompareSpec) -> None:
    if (spec.endpoint is None) == (not spec.checkpoint):
        found = "both" if spec.checkpoint else "neither"
        raise ValueError(
            f"kind {spec.kind} requires either a checkpoint or an endpoint, not {found}: write "
            "`checkpoint`, or `endpoint = { url = ..., model = ... }`"
        )


def _refuse_keys_of_other_judge(
    spec: RubricSpec | CompareSpec, of_checkpoints: set[str], of_endpoints: set[str]
) -> None:
    has_endpoint = spec.endpoint is not None
    unused = sorted(spec.model_fields_set & (of_checkpoints if has_endpoint else of_endpoints))
    if unused:
        judge = "an endpoint" if has_endpoint else "a checkpoint"
        them = "it" if len(unused) == 1 else "them"
        raise ValueError(f"{', '.join(unused)} cannot be used with {judge}: remove {them}")


#: The default verdict tokens of a judge, for the answers in order.
_LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


class CompareSpec(TextSpec):
    """How often a judge prefers the completion to others of its group, or to a reference."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    module = "alarm_models.reward_models.compare.model"
    kind: Literal["compare"] = "compare"
    checkpoint: str = Field(
        default="",
        max_length=MAX_NAME_CHARS,
        description="in place of `endpoint`, a model that compares in this process",
    )
    endpoint: EndpointSpec | None = Field(default=None, description="the chat endpoint that judges")
    method: Literal["all", "circular", "sort", "list", "reference"] = Field(
        default="all",
        description="`all`: every pair of a group; `circular`: each with the next; `sort`: as many "
        "as a merge sort needs; `list`: the whole group in one question; `reference`: each with "
        "its field `reference`",
    )
    estimate: Literal["win_rate", "bradley_terry"] = Field(
        default="win_rate",
        description="what the score of compared pairs is: the mean share of wins, or the strength "
        "in the Bradley-Terry model",
    )
    prior: float = Field(
        default=1,
        gt=0,
        description="`bradley_terry`: number of ties with an average completion that are added, so "
        "that strengths are finite",
    )
    both_orders: bool = Field(
        default=True, description="ask again with the completions in the opposite order"
    )
    n: int = Field(
        default=1,
        ge=1,
        le=128,
        strict=True,
        description="`endpoint`: answers to each question",
    )
    question: str = Field(
        default="Which answer serves the request better?",
        min_length=1,
        description="template of the question that follows the answers; may insert `{fields}`",
    )
    format: Literal["json", "genrm", "verdict", "pairrm", "logit"] = Field(
        default="json",
        description="`endpoint`: `json`, or `genrm` for the roles `response_1` and `response_2` "
        "and the ranking from 1 to 6 of NVIDIA's GenRM. `checkpoint`: `verdict` (its default), the "
        "probability of the token `A` against `B` in a causal model; `pairrm`, llm-blender's "
        "PairRM; `logit`, a classifier of one logit, whose sigmoid is the share of the first",
    )
    on_failure: Literal["fail", "skip"] = Field(
        default="fail",
        description="a comparison without a readable answer: `fail` its samples, or `skip` it",
    )
    ask: _Text = Field(
        default=None,
        min_length=1,
        description="`verdict`, `logit`: the whole question with `{prompt}`, `{completion}` and "
        "`{other}`, rendered with the chat template as a user message",
    )
    template: Annotated[str, _Added] = Field(
        default="chat",
        min_length=1,
        description="`verdict`, `logit`: in place of `ask`, a text that no chat template renders",
    )
    verdicts: Annotated[tuple[str | int, ...], _Added] = Field(
        default=(),
        description="`verdict`: tokens of the answers in order, as texts or ids; default: A, B, "
        "and for `list` all letters",
    )
    generation_prompt: Annotated[bool, _Added] = Field(
        default=True, description="`verdict`: start the next turn after the question"
    )

    @property
    def has_weights(self) -> bool:
        """Whether it compares with a checkpoint rather than an endpoint."""
        return self.endpoint is None

    @property
    def warms_up(self) -> bool:
        """Whether it scores samples before it is served; an endpoint must be told to."""
        return self.endpoint is None or self.endpoint.warm_up

    @property
    def must_score_warm_up(self) -> bool:
        """Whether a checkpoint compares; a judge's answer may be unreadable."""
        return self.has_weights

    @property
    def compares_samples(self) -> bool:
        """Whether completions are compared with each other rather than with a reference."""
        return self.method != "reference"

    @property
    def output_names(self) -> frozenset[str] | None:
        """Empty: a completion has one score and no outputs."""
        return frozenset()

    @property
    def templates(self) -> tuple[str, ...]:
        """The templates that may name fields of a sample."""
        own = (self.ask, None if self.template == "chat" else self.template)
        reference = "{reference}" if self.method == "reference" else None
        return tuple(text for text in (self.question, *own, reference) if text is not None)

    @property
    def asks(self) -> bool:
        """True: the chat template renders a question."""
        return True

    @property
    def reads_text(self) -> bool:
        """True: the question shows prompt and completions as texts."""
        return True

    @property
    def verdict_tokens(self) -> tuple[str | int, ...]:
        """The tokens of the answers in order, as texts or ids."""
        return self.verdicts or _LETTERS[: None if self.method == "list" else 2]

    def constants(self, exclude: frozenset[str]) -> str:
        """Return the keys that fingerprints digest, as JSON; see `Spec.constants`.

        Earlier fingerprints of endpoints contain no keys of checkpoints.
        """
        of_weights = frozenset(TextSpec.model_fields) - frozenset(Spec.model_fields)
        return super().constants(exclude if self.has_weights else exclude | of_weights)

    @model_validator(mode="before")
    @classmethod
    def _checkpoints_read_verdicts(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("checkpoint") and "format" not in values:
            return {**values, "format": "verdict"}
        return values

    @model_validator(mode="after")
    def _has_one_judge(self) -> CompareSpec:
        _require_one_judge(self)
        formats = ("json", "genrm") if self.endpoint is not None else ("verdict", "pairrm", "logit")
        if self.format not in formats:
            judge = "a checkpoint" if self.endpoint is None else "an endpoint"
            able = " or ".join(f"`{one}`" for one in formats)
            raise ValueError(f"format `{self.format}` cannot be used with {judge}: use {able}")
        of_weights = {*TextSpec.model_fields} - {*Spec.model_fields}
        of_weights |= {"ask", "template", "verdicts", "generation_prompt"}
        _refuse_keys_of_other_judge(self, of_weights, {"n"})
        return self

    @model_validator(mode="after")
    def _fit_together(self) -> CompareSpec:
        is_paired = self.method not in ("list", "reference")
        if self.estimate == "bradley_terry" and not is_paired:
            raise ValueError(
                f"estimate `bradley_terry` requires pairs of a group, which method `{self.method}` "
                "does not compare: use `win_rate` with it, or method `all`, `circular` or `sort`"
            )
        if "prior" in self.model_fields_set and self.estimate != "bradley_terry":
            raise ValueError("prior has no effect without estimate `bradley_terry`: remove it")
        if self.method == "list" and self.format not in ("json", "verdict"):
            raise ValueError(
                f"format `{self.format}` compares two answers: use another method than `list`"
            )
        has_own_question = self.format in ("genrm", "pairrm", "logit")
        if has_own_question and "question" in self.model_fields_set:
            raise ValueError(f"format `{self.format}` does not use question: remove it")
        if self.endpoint is not None:
            temperature = self.endpoint.parameters.get("temperature")
            _require_different_answers(self.n, temperature, "endpoint.parameters.temperature")
        return self

    @model_validator(mode="after")
    def _keys_fit_the_checkpoint(self) -> CompareSpec:
        if not self.has_weights:
            return self
        own = {"ask": self.ask, "template": None if self.template == "chat" else self.template}
        texts = {key: text for key, text in own.items() if text is not None}
        if len(texts) > 1:
            raise ValueError("ask and template both set the question: remove one")
        for key, text in texts.items():
            lacking = [one for one in ("{completion}", "{other}") if one not in text]
            if lacking:
                raise ValueError(f"{key} does not contain {' and '.join(lacking)}, the two answers")
            if self.method == "list":
                raise ValueError(f"{key} shows two answers: remove it, or use another method")
            if "question" in self.model_fields_set:
                raise ValueError(f"{key} is the whole question: remove `question`")
        if self.format == "logit" and not texts:
            raise ValueError("format `logit` requires `template` or `ask`, the text of a pair")
        for key in ("head", "mark_copied"):
            if getattr(self, key):
                raise ValueError(f"kind compare uses the checkpoint's own head: leave {key} out")
        refused = {"verdicts", "generation_prompt"} if self.format != "verdict" else set()
        if self.format == "pairrm":
            refused |= {*TextSpec.model_fields} - {*NeuralSpec.model_fields} - {"chats"}
            refused |= {"ask", "template", "truncation", "prefix", "adapter"}
        unused = sorted(self.model_fields_set & refused)
        if unused:
            raise ValueError(f"format `{self.format}` does not use {', '.join(unused)}: remove it")
        return self

    @model_validator(mode="after")
    def _verdicts_name_answers(self) -> CompareSpec:
        if not self.verdicts:
            return self
        wanted = "at least two" if self.method == "list" else "two"
        if len(self.verdicts) < 2 or (self.method != "list" and len(self.verdicts) > 2):
            raise ValueError(f"verdicts must have {wanted} tokens, not {len(self.verdicts)}")
        if len({*self.verdicts}) < len(self.verdicts):
            raise ValueError("verdicts repeats a token: give each answer a different one")
        is_shown = self.ask is None and self.template == "chat"
        if is_shown and any(isinstance(one, int) for one in self.verdicts):
            raise ValueError(
                "verdicts has token ids, which the built-in question cannot show: give texts, or "
                "write `ask` or `template`"
            )
        return self


class CheckSpec(Spec):
    """Keys of every check."""

    policy_only = True

    timeout_s: float = Field(default=10, gt=0, description="time limit per sample")


class LengthSpec(CheckSpec):
    """Length of the completion in tokens, or in words without token offsets."""

    module = "alarm_models.reward_models.text_checks"
    kind: Literal["length"] = "length"


class GrammarSpec(CheckSpec):
    """Grammar errors as spans with rule names; every token gets a reward."""

    module = "alarm_models.reward_models.grammar"
    placement = Placement.TOKENS
    scores_errors = True
    kind: Literal["grammar"] = "grammar"
    engine: Literal["harper", "languagetool"] = Field(
        default="harper", description="harper runs in this process; languagetool is a server"
    )
    url: str | None = Field(
        default=None, pattern=r"^https?://", description="URL of the LanguageTool server"
    )
    language: str = Field(default="en-US", description="harper supports only English")
    markup: Literal["plaintext", "markdown"] = Field(
        default="plaintext", description="only for harper"
    )
    ignored_rules: tuple[str, ...] = Field(default=(), description="names of rules to leave out")
    concurrency: int = Field(
        default=8, ge=1, description="maximum concurrent requests to a LanguageTool server"
    )

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str | None) -> str | None:
        return None if url is None else require_address(url)

    @model_validator(mode="after")
    def _languagetool_has_url(self) -> GrammarSpec:
        if (self.engine == "languagetool") != (self.url is not None):
            raise ValueError(
                'engine = "languagetool" requires `url`, and other engines do not use it'
            )
        return self


class ReadabilitySpec(CheckSpec):
    """The Flesch-Kincaid grade of an English completion."""

    module = "alarm_models.reward_models.readability"
    kind: Literal["readability"] = "readability"


class LanguageSpec(CheckSpec):
    """The probability that a completion is in the target language, among `languages`."""

    module = "alarm_models.reward_models.language"
    kind: Literal["language"] = "language"
    target: str = Field(default="en", description="ISO 639-1 code")
    languages: tuple[str, ...] = Field(
        min_length=2, description="ISO 639-1 codes to choose from, including the target"
    )

    @model_validator(mode="after")
    def _languages_hold_target(self) -> LanguageSpec:
        if self.target not in self.languages:
            raise ValueError(
                f"languages {list(self.languages)} do not include the target {self.target!r}: add "
                "it"
            )
        return self


class RegexSpec(CheckSpec):
    """1 if the completion matches a pattern, else 0."""

    module = "alarm_models.reward_models.text_checks"
    kind: Literal["regex"] = "regex"
    pattern: str = Field(description="regular expression")
    match: Literal["somewhere", "whole"] = Field(
        default="somewhere", description="what of the completion must match"
    )

    @property
    def view_rules(self) -> ViewRules:
        """What the pattern is matched with, including thoughts if it names one of their tags."""
        rules = super().view_rules
        return replace(rules, thinking="keep") if self._names_tag else rules

    @property
    def _names_tag(self) -> bool:
        plain = self.pattern.replace("\\", "")
        return any(tag in plain for pair in self.think_tags for tag in pair)

    @model_validator(mode="after")
    def _sees_the_tags_it_names(self) -> RegexSpec:
        if self._names_tag and "thinking" in self.model_fields_set and self.thinking != "keep":
            raise ValueError(
                f"pattern names a thought's tag, but thinking = {self.thinking!r} leaves thoughts "
                "out: remove one"
            )
        return self


class RepetitionSpec(CheckSpec):
    """The share of a completion's n-grams that repeat an earlier one."""

    module = "alarm_models.reward_models.text_checks"
    kind: Literal["repetition"] = "repetition"
    ngram: int = Field(default=4, ge=1, description="words per n-gram")


class SimilaritySpec(CheckSpec):
    """Similarity of the completion to a reference, in [0, 100]."""

    module = "alarm_models.reward_models.similarity"
    kind: Literal["similarity"] = "similarity"
    metric: Literal["chrf", "chrf++", "bleu"] = Field(
        default="chrf", description="metric of sacrebleu"
    )
    reference: str = Field(default="{reference}", description="template of the reference")

    @property
    def templates(self) -> tuple[str, ...]:
        """The reference."""
        return (self.reference,)


class ExactMatchSpec(CheckSpec):
    """1 if the completion's answer equals the reference, else 0."""

    module = "alarm_models.reward_models.text_checks"
    kind: Literal["exact-match"] = "exact-match"
    reference: str = Field(default="{reference}", description="template of the reference")
    answer: str | None = Field(
        default=None, description="pattern; the first group of its last match is the answer"
    )
    ignore_case: bool = Field(default=False, description="whether case does not count")

    @property
    def templates(self) -> tuple[str, ...]:
        """The reference."""
        return (self.reference,)


class PythonSpec(CheckSpec):
    """A user's Python function, run in its own processes."""

    module = "alarm_models.reward_models.python_function"
    policy_only = False  # a function may read the messages
    thinking: Annotated[Thinking, _Added] = Field(
        default="keep", description="as for other kinds; functions get thoughts by default"
    )
    is_reproducible = False
    folders = ("path",)
    kind: Literal["python"] = "python"
    function: str = Field(pattern=r"^[\w.]+:\w+$", description="module:name")
    path: str = Field(default=".", description="folder to import the module from")
    workers: int = Field(default=2, ge=1, description="number of processes")
    concurrency: int = Field(
        default=16, ge=1, description="maximum concurrent calls per process of an async function"
    )
    environment: tuple[str, ...] = Field(
        default=(),
        description="environment variables to pass even if their names look like secrets",
    )

    @property
    def must_score_warm_up(self) -> bool:
        """False: the fields that it reads are not known."""
        return False

    @property
    def reads_text(self) -> bool:
        """False: functions get messages."""
        return False


if TYPE_CHECKING:
    ModelSpec = Spec
else:
    ModelSpec = Annotated[Union[tuple(KINDS.values())], Field(discriminator="kind")]  # noqa: UP007
