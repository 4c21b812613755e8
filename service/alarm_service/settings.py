"""Every option of the server, once: a flag of `alarm serve` and an ALARM_* variable alike."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

__all__ = ["Settings"]

#: Several values in one variable are separated by semicolons or newlines.
_SEPARATOR = re.compile(r"[;\n]+")


class Settings(BaseSettings):
    """The server's options; a flag wins over its variable."""

    model_config = SettingsConfigDict(env_prefix="ALARM_", frozen=True, extra="forbid")

    recipe: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("mini",), description="a built-in recipe or a TOML file; may be given again"
    )
    set: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="KEY=VALUE sets a recipe key by its dotted name; may be given again"
    )
    host: str = Field(default="127.0.0.1", description="the address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="the port; 0 takes a free one")
    device: str = Field(
        default="auto",
        pattern=r"^(auto|(cpu|cuda(:\d+)?)(,(cpu|cuda(:\d+)?))*)$",
        description="auto, cpu or cuda:N; several, with commas between, have a replica each",
    )
    deterministic: bool = Field(
        default=False,
        description="the same sample has the same bits whatever else waits: each runs alone",
    )
    api_key: SecretStr | None = Field(default=None, description="the key that callers must bring")
    max_samples: int = Field(default=1024, ge=1, description="samples a request may have")
    max_body_bytes: int = Field(default=64 << 20, ge=1024, description="bytes a body may have")
    max_queued_tokens: int = Field(
        default=1_000_000, ge=1, description="tokens in the house before callers get a 429"
    )
    max_batch_tokens: int | None = Field(
        default=None, ge=1, description="tokens of one forward pass, else measured at the start"
    )
    max_remembered_bytes: int = Field(
        default=1 << 30,
        ge=0,
        description="bytes of keys and values that a causal model keeps of prompts for later "
        "batches, a model and device",
    )
    timeout_s: float = Field(
        default=600, gt=0, description="the deadline of a request that brings none"
    )
    drain_s: int = Field(
        default=120, ge=0, description="how long running requests may take to finish at the end"
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_texts: bool = Field(default=False, description="write prompts and completions to the log")

    @field_validator("recipe", "set", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(part for part in _SEPARATOR.split(value) if part.strip())
