"""What a user may say about rewards in a trainer: by argument, else by environment."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias

from alarm_client.trainers.texts import template_of
from alarm_client.types import Aspects

OnFailure: TypeAlias = Literal["raise", "none"] | float


@dataclass(frozen=True, slots=True)
class Habits:
    """What a trainer's hook allows, and what suits it where the user says nothing.

    `timeout`: seconds for one call, under the trainer's own limit. `takes_none`: whether the
    trainer skips a sample whose reward is None. `same_keys`: whether each sample must log the same
    names as the others.
    """

    trainer: str
    timeout: float
    on_failure: OnFailure = "raise"
    takes_none: bool = False
    same_keys: bool = False
    aspects: Aspects = "all"


@dataclass(frozen=True, slots=True)
class Settings:
    """Where rewards come from and what a failure becomes.

    `recipe`: a recipe of the server, its default one unless named. `model`: a model of the server,
    whose raw scores are the rewards, in place of a recipe. `aspects`: "all" computes every aspect
    so that it can be logged, "admitted" what the reward needs. `aspect_names`: the names to log,
    known before the first answer. `template`: the policy's chat template, where trainers send it:
    a name, "plain" for none, or JSON of what stands before turns and ends them; detected where it
    is None. `on_failure`: "raise", "none" or the reward of a failed sample.
    """

    trainer: str
    url: str | None = field(repr=False)  # may hold a password
    api_key: str | None = field(repr=False)
    recipe: str | None
    model: str | None
    aspects: Aspects
    aspect_names: tuple[str, ...]
    timeout: float
    on_failure: OnFailure
    template: str | None = None


def read_settings(habits: Habits, given: Mapping[str, Any] | None = None) -> Settings:
    """The settings that `given` names, else `ALARM_<NAME>`, else what suits the trainer.

    Names: url, api_key, recipe, model, aspects, aspect_names, timeout, on_failure, template.
    ValueError names the one that is wrong.
    """
    given = given or {}
    unknown = set(given) - NAMES
    if unknown:
        raise ValueError(
            f"{habits.trainer}: no such setting {sorted(unknown)}; there are {sorted(NAMES)}"
        )
    values = {name: _value(name, given) for name in NAMES}
    settings = Settings(
        trainer=habits.trainer,
        url=values["url"],
        api_key=values["api_key"],
        recipe=values["recipe"],
        model=values["model"],
        aspects=_read("aspects", values["aspects"], _aspects, habits.aspects),
        aspect_names=_read("aspect_names", values["aspect_names"], _names, ()),
        timeout=_read("timeout", values["timeout"], _seconds, habits.timeout),
        on_failure=_read("on_failure", values["on_failure"], _policy, habits.on_failure),
        template=_read("template", values["template"], _template, None),
    )
    _check(settings, habits)
    return settings


NAMES = frozenset({one.name for one in fields(Settings)} - {"trainer"})


def _check(settings: Settings, habits: Habits) -> None:
    where = habits.trainer
    if settings.recipe and settings.model:
        raise ValueError(f"{where}: set recipe or model, not both")
    if settings.on_failure == "none" and not habits.takes_none:
        raise ValueError(
            f"{where}: on_failure 'none' needs a trainer that skips samples; "
            f"this one takes 'raise' or a number"
        )
    is_value = isinstance(settings.on_failure, float)
    if habits.same_keys and is_value and not (settings.aspect_names or settings.model):
        raise ValueError(
            f"{where} wants the same keys from every sample, so on_failure {settings.on_failure} "
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


def _names(value: Any) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else value
    return tuple(name.strip() for name in names if name.strip())


def _template(value: Any) -> str:
    name = value if isinstance(value, str) else json.dumps(dict(value), sort_keys=True)
    template_of(name)
    return name


def _seconds(value: Any) -> float:
    seconds = float(value)
    if not 0 < seconds < math.inf:
        raise ValueError("must be seconds over 0")
    return seconds


def _policy(value: Any) -> OnFailure:
    if value in ("raise", "none"):
        return value  # type: ignore[no-any-return]  # one of two literals
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError("must be 'raise', 'none' or a finite number")
    return number
