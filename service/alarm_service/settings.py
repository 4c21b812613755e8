"""Every option of the server, once: a flag of `alarm serve` and an ALARM_* variable alike."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from alarm_models.errors import quoted

__all__ = ["Settings", "SettingsError", "require_key"]

#: Several values in one variable are separated by semicolons or newlines.
_SEPARATOR = re.compile(r"[;\n]+")

_DEVICES = re.compile(r"auto|(cpu|cuda(:\d+)?)(,(cpu|cuda(:\d+)?))*")

#: A name or an address, in brackets or not; or all.
_HOST = re.compile(r"\*|[\w.-]+|\[?[0-9a-fA-F:.]+(%\w+)?\]?")


def _is_http(address: str) -> bool:
    try:
        parts = urlsplit(address)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none, brackets that do not close
        return False


class SettingsError(ValueError):
    """Options that do not go together, or that name what cannot be used; says what to do."""


def require_key(key: str, where: str) -> str:
    """Return a key without white space around it; raise `SettingsError` where none could be sent.

    The message names ``where`` the key is from, and never the key.
    """
    key = key.strip()
    for at, character in enumerate(key):
        if not character.isprintable():
            raise SettingsError(
                f"{where}: the key has U+{ord(character):04X} as its character {at + 1} of "
                f"{len(key)}, which no HTTP header can hold: give the key alone"
            )
    return key


class Settings(BaseSettings):
    """The server's options; a flag wins over its variable."""

    model_config = SettingsConfigDict(
        env_prefix="ALARM_", frozen=True, extra="forbid", hide_input_in_errors=True
    )

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
        description="auto, cpu or cuda:N; several, with commas between, have a replica each",
    )
    ray: bool = Field(
        default=False, description="put each model on a Ray cluster, in replicas of its own"
    )
    ray_address: str | None = Field(
        default=None, description="the cluster to join, else one of this machine is started"
    )
    replicas: int = Field(default=1, ge=1, description="replicas that each model has on Ray")
    max_replicas: int | None = Field(
        default=None, ge=1, description="replicas that each may have on Ray as tokens wait"
    )
    queued_tokens_per_replica: int = Field(
        default=100_000, ge=1, description="tokens in a replica from which on Ray starts another"
    )
    gpus_per_replica: float | None = Field(
        default=None,
        ge=0,
        description="a replica's GPUs on Ray, else one where the cluster has any",
    )
    cpus_per_replica: float = Field(default=1, ge=0, description="a replica's cores on Ray")
    deterministic: bool = Field(
        default=False,
        description="the same sample has the same bits whatever else waits: each runs alone",
    )
    api_key: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(), description="a key that callers may bring; may be given again"
    )
    api_key_file: Path | None = Field(
        default=None, description="a file of keys, one a line; `#` begins a comment"
    )
    admin_key: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(), description="a key for the routes of /admin; may be given again"
    )
    admin_key_file: Path | None = Field(
        default=None, description="a file of such keys; without any /admin is closed"
    )
    recipe_dir: Path | None = Field(
        default=None, description="a folder of recipes that /admin may load by their names"
    )
    published: str | None = Field(
        default=None,
        description="the address that outsiders reach, where it is not --host (a container's)",
    )
    insecure: bool = Field(
        default=False, description="let other machines in although there is no key"
    )
    allowed_host: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="a host name that requests may be sent to where there is no key, besides "
        "localhost and --host; * allows any; may be given again",
    )
    max_requests_per_minute: int | None = Field(
        default=None, ge=1, description="requests that each key may send"
    )
    max_tokens_per_minute: int | None = Field(
        default=None, ge=1, description="tokens that each key may send, 4 bytes of a body each"
    )
    tls_certificate: Path | None = Field(
        default=None, description="a PEM file of the certificate's chain: serve https"
    )
    tls_key: Path | None = Field(default=None, description="a PEM file of the certificate's key")
    max_samples: int = Field(default=1024, ge=1, description="samples a request may have")
    max_sample_chars: int = Field(
        default=4_000_000,
        ge=1,
        description="characters that one sample's texts may have: a million tokens of English",
    )
    max_body_bytes: int = Field(default=64 << 20, ge=1024, description="bytes a body may have")
    body_timeout_s: float = Field(
        default=60, gt=0, description="how long a body may take to arrive, in seconds"
    )
    max_header_bytes: int = Field(
        default=64 << 10, ge=1024, description="bytes that a request's URL and headers may have"
    )
    max_headers: int = Field(default=100, ge=1, description="headers that a request may have")
    header_timeout_s: float = Field(
        default=20, gt=0, description="how long headers may take to arrive, in seconds"
    )
    max_queued_tokens: int = Field(
        default=1_000_000, ge=1, description="tokens in the queue before callers get a 429"
    )
    max_queue_s: float = Field(
        default=60,
        ge=0,
        description="seconds of work in the queue, as measured, before callers get a 429, where "
        "--max-queued-tokens are more; 0 leaves it to those",
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
    forward_timeout_s: float = Field(
        default=300,
        ge=0,
        description="how long one forward pass may take before its sample fails and, on a GPU, "
        "the device is given up; 0 is for ever",
    )
    drain_s: int = Field(
        default=120, ge=0, description="how long running requests may take to finish at the end"
    )
    traces: str | None = Field(
        default=None, description="the OTLP/HTTP address that takes OpenTelemetry traces"
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_texts: bool = Field(default=False, description="write prompts and completions to the log")

    @field_validator("device")
    @classmethod
    def _are_devices(cls, value: str) -> str:
        if _DEVICES.fullmatch(value) is None:
            raise ValueError(
                f"{quoted(value)} is no device: give auto, cpu, cuda or cuda:N, or several with "
                "commas between, such as cuda:0,cuda:1"
            )
        return value

    @field_validator("traces")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        if value and not _is_http(value):
            raise ValueError(
                f"{quoted(value)} is no address: give the collector's URL, such as "
                "http://localhost:4318/v1/traces"
            )
        return value or None

    @field_validator("allowed_host")
    @classmethod
    def _are_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if _HOST.fullmatch(host.strip()) is None:
                raise ValueError(
                    f"{quoted(host)} is no host name: give it without scheme, port and spaces, "
                    "such as rewards.example.org, or * for any"
                )
        return hosts

    @field_validator("recipe", "set", "api_key", "admin_key", "allowed_host", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(part for part in _SEPARATOR.split(value) if part.strip())

    @field_validator("api_key", "admin_key", mode="before")
    @classmethod
    def _require_a_key(cls, value: object) -> object:
        # Whoever sets this wants a key: an empty one must not open the door to all.
        parts = (value,) if isinstance(value, str) else value
        if isinstance(parts, list | tuple) and not all(str(part).strip(" ;\n") for part in parts):
            raise ValueError("the key is empty: leave the option out, or give one")
        return value

    @field_validator("api_key", "admin_key")
    @classmethod
    def _are_usable(cls, keys: tuple[SecretStr, ...], info: ValidationInfo) -> object:
        name = f"--{info.field_name}".replace("_", "-")
        where = f"{name} or ALARM_{str(info.field_name).upper()}"
        return tuple(SecretStr(require_key(key.get_secret_value(), where)) for key in keys)

    @field_validator("api_key_file", "admin_key_file", "recipe_dir", "published", mode="before")
    @classmethod
    def _unset_where_empty(cls, value: object) -> object:
        return None if value == "" else value
