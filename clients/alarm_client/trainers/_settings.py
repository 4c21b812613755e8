"""Settings of the trainer modules, from arguments and `ALARM_` environment variables."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, cast

from alarm_client.trainers._inputs import template_of
from alarm_client.types import Aspects, Overrides

OnFailure: TypeAlias = Literal["raise", "none", "group_mean"] | float


@dataclass(frozen=True, slots=True)
class TrainerDefaults:
    """A trainer's constraints, and its defaults for what the user does not set.

    `timeout`: seconds for one call, below the trainer's own limit. `takes_none`: whether the
    trainer skips a sample whose reward is None. `whole_groups`: what makes a call hold all the
    completions of a prompt, None where each call is for one sample. `same_keys`: whether each
    sample must log the same names as the others.
    `references`: the dataset columns that may hold the field `reference`, the first that is there
    counts. `group_column`: the column that names a prompt, where the trainer has one.
    """

    trainer: str
    timeout: float
    on_failure: OnFailure = "raise"
    takes_none: bool = False
    whole_groups: str | None = None
    same_keys: bool = False
    aspects: Aspects = "all"
    references: tuple[str, ...] = ()
    group_column: str | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """Where rewards come from, what is sent with each sample, and the failure policy.

    `recipe`: a recipe of the server, its default one unless named; `overrides`: what to change
    of it. `model`: a model of the server, whose raw scores are the rewards, in place of a
    recipe. `aspects`: "all" computes every aspect so that it can be logged, "admitted" what the
    reward needs. `aspect_names`: the names to log, known before the first answer. `fields`: the
    server's field -> the dataset's column, None for the trainer's usual one. `group`: the
    column that tells prompts apart, None for the prompt itself. `template`: the policy's chat
    template, where trainers send it: a name, "plain" for none, or JSON of what stands before
    turns and ends them; detected where it is None. `timeout`: seconds of one call, retries
    included; `connect_timeout`: seconds in which the first answer must come. `on_failure`:
    "raise", "none", "group_mean" or the reward of a failed sample.
    """

    defaults: TrainerDefaults
    url: str | None = field(repr=False)  # may hold a password
    api_key: str | None = field(repr=False)
    recipe: str | None
    model: str | None
    overrides: Overrides | None = field(hash=False)
    aspects: Aspects
    aspect_names: tuple[str, ...]
    fields: Mapping[str, str] | None = field(hash=False)
    group: str | None
    timeout: float
    connect_timeout: float
    on_failure: OnFailure
    template: str | None = None

    @property
    def trainer(self) -> str:
        """The trainer's name, for messages."""
        return self.defaults.trainer


# A server started together with the trainer opens its port within this time.
CONNECT_TIMEOUT = 120.0

NAMES = frozenset({one.name for one in dataclasses.fields(Settings)} - {"defaults"})


def read_settings(defaults: TrainerDefaults, given: Mapping[str, Any] | None = None) -> Settings:
    """The settings in `given`, else from `ALARM_<NAME>`, else the trainer's defaults.

    ValueError names the invalid one; `NAMES` lists them all.
    """
    given = given or {}
    unknown = set(given) - NAMES
    if unknown:
        raise ValueError(
            f"{defaults.trainer}: no such setting {sorted(unknown)}; there are {sorted(NAMES)}"
        )
    values = {name: _value(name, given) for name in NAMES}

    def read(name: str, reader: Callable[[Any], Any], fallback: Any) -> Any:
        return _read(name, values[name], reader, fallback)

    settings = Settings(
        defaults=defaults,
        url=values["url"],
        api_key=values["api_key"],
        recipe=read("recipe", _text, None),
        model=read("model", _text, None),
        overrides=read("overrides", _overrides, None),
        aspects=read("aspects", _aspects, defaults.aspects),
        aspect_names=read("aspect_names", _names, ()),
        fields=read("fields", _fields, None),
        group=read("group", _text, None),
        timeout=read("timeout", _seconds, defaults.timeout),
        connect_timeout=read("connect_timeout", _seconds, CONNECT_TIMEOUT),
        on_failure=read("on_failure", _policy, defaults.on_failure),
        template=read("template", _template, None),
    )
    _check(settings)
    return settings


def _check(settings: Settings) -> None:
    defaults, where, policy = settings.defaults, settings.trainer, settings.on_failure
    if settings.recipe and settings.model:
        raise ValueError(f"{where}: set recipe or model, not both")
    if settings.overrides and settings.model:
        raise ValueError(f"{where}: overrides change a recipe; with model there is none to change")
    sees_groups = defaults.whole_groups is not None
    takes = "'raise', 'group_mean' or a number" if sees_groups else "'raise' or a number"
    if policy == "none" and not defaults.takes_none:
        raise ValueError(
            f"{where}: on_failure 'none' needs a trainer that skips samples, and this one "
            f"counts a null as 0 or fails on it; it takes {takes}"
        )
    if policy == "group_mean" and not sees_groups:
        raise ValueError(
            f"{where}: on_failure 'group_mean' needs calls that hold all the completions of a "
            f"prompt, and this trainer asks for one sample at a time; it takes {takes}"
        )
    needs_names = defaults.same_keys and isinstance(policy, float)
    if needs_names and not (settings.aspect_names or settings.model):
        raise ValueError(
            f"{where} wants the same keys from every sample, so on_failure {policy} "
            f"needs aspect_names (or ALARM_ASPECT_NAMES), such as factuality,relevance"
        )


def _value(name: str, given: Mapping[str, Any]) -> Any:
    value = given.get(name)
    return (os.environ.get(f"ALARM_{name.upper()}") or None) if value is None else value


def _read(name: str, value: Any, read: Callable[[Any], Any], fallback: Any) -> Any:
    try:
        return fallback if value is None else read(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} (or ALARM_{name.upper()}): {error}; got {value!r}") from None


def _aspects(value: Any) -> Aspects:
    if value not in ("admitted", "all"):
        raise ValueError("must be 'admitted' or 'all'")
    return value  # type: ignore[no-any-return]  # one of two literals


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("must be a text")
    return value


def _names(value: Any) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else value
    is_many = isinstance(names, Sequence) and all(isinstance(name, str) for name in names)
    if not is_many or isinstance(names, bytes):
        raise TypeError("must be names, such as factuality,relevance")
    return tuple(name.strip() for name in names if name.strip())


def _fields(value: Any) -> dict[str, str]:
    """A mapping, its JSON, or `field=column,...`."""
    if isinstance(value, str) and not value.lstrip().startswith("{"):
        pairs = [pair.partition("=") for pair in value.split(",") if pair.strip()]
        value = {name.strip(): column.strip() for name, _, column in pairs}
    found = _object(value)
    if not all(isinstance(column, str) and name and column for name, column in found.items()):
        raise ValueError(
            "must name a dataset column for each field, such as reference=ground_truth"
        )
    return found


def _overrides(value: Any) -> Overrides:
    """A mapping or its JSON; the server validates the contents."""
    return cast(Overrides, _object(value))


def _object(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f"is not JSON ({error})") from None
    if not isinstance(value, Mapping):
        raise ValueError("must be an object")
    return {str(name): _plain(inner) for name, inner in value.items()}


def _plain(value: Any) -> Any:
    """The wrappers of configuration libraries as plain JSON types."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(inner) for inner in value]
    return value


def _template(value: Any) -> str:
    if not isinstance(value, (str, Mapping)):
        raise TypeError("must be a name, or an object of what stands before turns and ends them")
    name = value if isinstance(value, str) else json.dumps(_plain(value), sort_keys=True)
    template_of(name)
    return name


def _seconds(value: Any) -> float:
    seconds = _number(value)
    if not 0 < seconds < math.inf:
        raise ValueError("must be seconds over 0")
    return seconds


def _policy(value: Any) -> OnFailure:
    if value in ("raise", "none", "group_mean"):
        return value  # type: ignore[no-any-return]  # one of three literals
    number = _number(value)
    if not math.isfinite(number):
        raise ValueError("must be 'raise', 'none', 'group_mean' or a finite number")
    return number


def _number(value: Any) -> float:
    """A number or its text; NaN for anything else, including booleans."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.nan
