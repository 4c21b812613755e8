"""Every option of the server: a flag of `alarm serve` and an ALARM_* environment variable."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from alarm_models.errors import quoted
from alarm_models.types import Dtype

__all__ = ["Settings", "SettingsError", "flag_of", "require_key", "with_models"]

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
    """Options that conflict or name something unusable; the message says what to do."""


def flag_of(name: str) -> str:
    """Return the command-line flag of a setting: `--max-samples` of `max_samples`."""
    return f"--{name.replace('_', '-')}"


def require_key(key: str, where: str) -> str:
    """Return a stripped key; raise `SettingsError` if a client cannot send it in a header.

    The message names ``where`` the key comes from and never contains the key.
    """
    key = key.strip()
    for at, character in enumerate(key):
        if not character.isprintable() or character == " ":
            raise SettingsError(
                f"{where}: the key has U+{ord(character):04X} as its character {at + 1} of "
                f"{len(key)}, which an API key cannot contain: give the key alone"
            )
    return key


class Settings(BaseSettings):
    """The server's options; a flag takes precedence over its variable."""

    model_config = SettingsConfigDict(
        env_prefix="ALARM_", frozen=True, extra="forbid", hide_input_in_errors=True
    )

    recipe: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("mini",), description="built-in recipe or TOML file"
    )
    model: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="a checkpoint's folder or hub id; its recipe is derived from its files",
    )
    template: str | None = Field(
        default=None, description="chat template for `model` checkpoints whose files have none"
    )
    set: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="KEY=VALUE overrides a recipe key by its dotted name"
    )
    host: str = Field(default="127.0.0.1", description="address that the server listens on")
    port: int = Field(
        default=8000,
        ge=0,
        le=65535,
        description="port that the server listens on; 0 picks a free one",
    )
    device: str = Field(
        default="auto",
        description="auto, cpu or cuda:N; a comma-separated list runs a replica on each",
    )
    ray: bool = Field(
        default=False, description="run each model on a Ray cluster, with its own replicas"
    )
    ray_address: str | None = Field(
        default=None, description="Ray cluster to join; if unset, a local one is started"
    )
    replicas: int = Field(default=1, ge=1, description="Ray replicas per model")
    max_replicas: int | None = Field(
        default=None,
        ge=1,
        description="maximum Ray replicas per model; enables autoscaling by queued tokens",
    )
    queued_tokens_per_replica: int = Field(
        default=100_000,
        ge=1,
        description="queued tokens per Ray replica above which another is started",
    )
    gpus_per_replica: float | None = Field(
        default=None,
        ge=0,
        description="GPUs per Ray replica; if unset, 1 if the cluster has GPUs, else 0",
    )
    cpus_per_replica: float = Field(default=1, ge=0, description="CPU cores per Ray replica")
    dtype: Dtype = Field(
        default="auto",
        description="dtype of the models whose recipe does not set one: auto (float32 on a CPU, "
        "bfloat16 on a GPU), float32, bfloat16 or float16",
    )
    deterministic: bool = Field(
        default=False,
        description="bit-identical scores regardless of other requests: each sample runs alone",
    )
    api_key: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(),
        description="API key that callers must use (with --url: the key to send)",
    )
    api_key_file: Path | None = Field(
        default=None, description="file of API keys, one per line; `#` starts a comment"
    )
    admin_key: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(), description="key for the /admin routes"
    )
    admin_key_file: Path | None = Field(
        default=None,
        description="file of admin keys; without an admin key the /admin routes are disabled",
    )
    recipe_dir: Path | None = Field(
        default=None, description="folder of recipes that the /admin routes can load by name"
    )
    published: str | None = Field(
        default=None,
        description="address at which other machines reach the server, if it is not --host (as "
        "in a container)",
    )
    insecure: bool = Field(default=False, description="listen beyond loopback without an API key")
    allowed_host: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Host header to accept when no API key is set, in addition to localhost and "
        "--host; * accepts any",
    )
    max_requests_per_minute: int | None = Field(
        default=None, ge=1, description="maximum requests per minute per API key"
    )
    max_tokens_per_minute: int | None = Field(
        default=None,
        ge=1,
        description="maximum tokens per minute per API key; 4 body bytes count as one token",
    )
    tls_certificate: Path | None = Field(
        default=None, description="PEM file of the certificate chain; enables HTTPS"
    )
    tls_key: Path | None = Field(
        default=None, description="PEM file of the certificate's private key"
    )
    max_samples: int = Field(
        default=1024, ge=1, description="maximum number of samples per request"
    )
    max_sample_chars: int = Field(
        default=4_000_000,
        ge=1,
        description="maximum number of characters of a sample, fields included (4 million are "
        "about a million tokens of English)",
    )
    max_body_bytes: int = Field(
        default=64 << 20, ge=1024, description="maximum size of a request body in bytes"
    )
    body_timeout_s: float = Field(
        default=60, gt=0, description="seconds within which a request body must arrive"
    )
    max_header_bytes: int = Field(
        default=64 << 10,
        ge=1024,
        description="maximum size of a request's URL and headers in bytes",
    )
    max_headers: int = Field(default=100, ge=1, description="maximum number of headers per request")
    header_timeout_s: float = Field(
        default=20, gt=0, description="seconds within which a request's headers must arrive"
    )
    max_queued_tokens: int = Field(
        default=1_000_000, ge=1, description="queue capacity in tokens; further requests get 429"
    )
    max_queue_s: float = Field(
        default=60,
        ge=0,
        description="queue capacity in seconds of work at the measured throughput, never more "
        "than --max-queued-tokens; 0 disables this limit",
    )
    max_group_bytes: int = Field(
        default=256 << 20,
        ge=0,
        description="memory in bytes for samples that wait for the rest of their group, and for "
        "answers kept for their retries; further ones get 429",
    )
    max_batch_tokens: int | None = Field(
        default=None,
        ge=1,
        description="maximum tokens per forward pass; if unset, measured at startup",
    )
    max_remembered_bytes: int = Field(
        default=1 << 30,
        ge=0,
        description="size of the prefix cache (keys and values of prompts) in bytes, per causal "
        "model and device",
    )
    timeout_s: float = Field(
        default=600, gt=0, description="deadline in seconds for requests that do not set one"
    )
    forward_timeout_s: float = Field(
        default=300,
        ge=0,
        description="seconds after which a forward pass is abandoned: its sample fails and, on a "
        "GPU, the device is no longer used; 0 disables the limit",
    )
    drain_s: int = Field(
        default=120,
        ge=0,
        description="seconds that running requests are given to finish at shutdown",
    )
    traces: str | None = Field(
        default=None, description="OTLP/HTTP endpoint to which OpenTelemetry traces are exported"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="debug, info, warning or error"
    )
    no_page: bool = Field(
        default=False, description="do not serve the page that shows rewards at /"
    )
    log_texts: bool = Field(default=False, description="log prompts and completions")
    capture: Path | None = Field(
        default=None,
        description="folder to which samples are written with their rewards, for alarm replay",
    )
    capture_max_bytes: int = Field(
        default=1 << 30,
        ge=1 << 20,
        description="maximum size of the captured files in bytes; the oldest is removed",
    )
    capture_share: float = Field(
        default=1,
        gt=0,
        le=1,
        description="share of requests to capture, or of groups that come in several requests",
    )
    capture_hash_texts: bool = Field(
        default=False,
        description="capture SHA-256 hashes instead of texts; such a capture cannot be replayed",
    )

    @field_validator("device")
    @classmethod
    def _are_devices(cls, value: str) -> str:
        if _DEVICES.fullmatch(value) is None:
            raise ValueError(
                f"{quoted(value)} is not a device: give auto, cpu, cuda or cuda:N, or several "
                "separated by commas, such as cuda:0,cuda:1"
            )
        return value

    @field_validator("traces")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        if value and not _is_http(value):
            raise ValueError(
                f"{quoted(value)} is not a URL: give the collector's URL, such as "
                "http://localhost:4318/v1/traces"
            )
        return value or None

    @field_validator("allowed_host")
    @classmethod
    def _are_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if _HOST.fullmatch(host.strip()) is None:
                raise ValueError(
                    f"{quoted(host)} is not a host name: give it without scheme, port and spaces, "
                    "such as rewards.example.org, or * for any"
                )
        return hosts

    @field_validator(
        "recipe", "model", "set", "api_key", "admin_key", "allowed_host", mode="before"
    )
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(part for part in _SEPARATOR.split(value) if part.strip())

    @field_validator("api_key", "admin_key", mode="before")
    @classmethod
    def _require_a_key(cls, value: object) -> object:
        # A key was intended: an empty one must not disable authentication.
        parts = (value,) if isinstance(value, str) else value
        if isinstance(parts, list | tuple) and not all(str(part).strip(" ;\n") for part in parts):
            raise ValueError("the key is empty: give a key, or leave the option out")
        return value

    @field_validator("api_key", "admin_key")
    @classmethod
    def _are_usable(cls, keys: tuple[SecretStr, ...], info: ValidationInfo) -> object:
        where = f"{flag_of(str(info.field_name))} or ALARM_{str(info.field_name).upper()}"
        return tuple(SecretStr(require_key(key.get_secret_value(), where)) for key in keys)

    @field_validator(
        "api_key_file", "admin_key_file", "recipe_dir", "published", "capture", mode="before"
    )
    @classmethod
    def _unset_where_empty(cls, value: object) -> object:
        return None if value == "" else value


def with_models(settings: Settings) -> Settings:
    """Return settings with a recipe for each `model`, and the default recipe only if named.

    Raises `SettingsError` for a `template` without a `model`.
    """
    if not settings.model:
        if settings.template is not None:
            raise SettingsError(
                "--template applies to --model: add --model, or set the key with --set"
            )
        return settings
    named = settings.recipe if "recipe" in settings.model_fields_set else ()
    made = tuple(f"checkpoint:{one}" for one in settings.model)
    values = settings.set
    if settings.template is not None:
        # As a TOML string, so that a template that looks like a number stays a string.
        values = (*values, f"models.rm.template={json.dumps(settings.template)}")
    return settings.model_copy(
        update={"recipe": (*made, *named), "set": values, "model": (), "template": None}
    )
