"""What a recipe says of a model that lives elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import regex
from pydantic import ConfigDict, Field, SecretStr, field_validator, model_validator

from alarm_models.keys import usable_key
from alarm_models.specs.base import Spec, require_address

__all__ = ["ANY_NUMBER", "RemoteSpec"]

#: A judge's `pattern` where the recipe names none: the rating is read as people write ratings.
#: (As a pattern it would find a number, but not the 10 of "8/10".)
ANY_NUMBER = r"(?<![\d./])(?<!/ )-?\d+(?:\.\d+)?"


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
    max_concurrent: int = Field(default=16, ge=1, description="requests under way at once")
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
