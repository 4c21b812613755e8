"""Settings of the trainer modules, from arguments and `ALARM_` environment variables."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, cast

from alarm_client.trainers._inputs import template_of
from alarm_client.trainers._messages import tools_of
from alarm_client.types import Aspects, Overrides

OnFailure: TypeAlias = Literal["raise", "none", "group_mean"] | float

LOG = logging.getLogger("alarm_client.trainers")

# Default of a recipe's group_timeout_s: seconds that the server holds a sample with a group_size
# until the rest of its group has arrived.
_HOLD_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class TrainerDefaults:
    """A trainer's constraints, and its defaults for settings.

    `timeout`: seconds for one call, below the trainer's own limit. `takes_none`: whether the
    trainer skips a sample whose reward is None. `whole_groups`: how to make a call contain all
    completions of a prompt, None if each call is for one sample. `same_keys`: whether all samples
    must log the same names.
    `references`: dataset columns for the field `reference`; the first that is present is used.
    `group_column`: the column that identifies a prompt, if the trainer has one.
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
    """The source of the rewards, what is sent with each sample, and the failure policy.

    `recipe`: a recipe of the server, the default one unless named; `overrides`: changes to it.
    `url`: one server or several, as a list or separated by commas.
    `model`: a model of the server, whose raw scores are the rewards, in place of a recipe.
    `aspects`: "all" computes every aspect for the logs, "admitted" only those that the reward
    requires. `aspect_names`: the names to log, fixed before the first response. `fields`: field of
    the server -> column of the dataset, None for the trainer's usual column. `group`: the column
    that identifies prompts, None for the prompt itself. `group_size`: how many samples a
    prompt has, or the column with that number: if set, the server waits for them all, which may
    come in several calls. `tools`: the column with the tools of the policy, "tools" if None; or
    the tools themselves, as a list of JSON schemas or functions, or its JSON.
    `max_completion_tokens`: the policy's limit, for trainers that pass token ids and not whether a
    completion was cut off. `template`: the policy's chat template, for trainers that send it: a
    name, "plain" for none, or JSON of the texts before and after turns; None detects it.
    `reply_start`: the text that the policy's chat template writes at the start of each reply, such
    as `<think>`, for trainers that pass replies without it.
    `timeout`: seconds per call, retries included; `connect_timeout`: seconds until a first
    response. `on_failure`: "raise", "none", "group_mean" or the reward of a failed sample.
    """

    defaults: TrainerDefaults
    url: str | None = field(repr=False)  # may contain a password
    api_key: str | None = field(repr=False)
    recipe: str | None
    model: str | None
    overrides: Overrides | None = field(hash=False)
    aspects: Aspects
    aspect_names: tuple[str, ...]
    fields: Mapping[str, str] | None = field(hash=False)
    group: str | None
    group_size: int | str | None
    tools: str | None
    max_completion_tokens: int | None
    timeout: float
    connect_timeout: float
    on_failure: OnFailure
    template: str | None = None
    reply_start: str | None = None

    @property
    def trainer(self) -> str:
        """The trainer's name, for messages."""
        return self.defaults.trainer


# Time for a server that starts together with the trainer to open its port.
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
            f"{defaults.trainer}: unknown setting {sorted(unknown)}; settings: {sorted(NAMES)}"
        )
    values = {name: _value(name, given) for name in NAMES}

    def read(name: str, reader: Callable[[Any], Any], fallback: Any) -> Any:
        return _read(name, values[name], reader, fallback)

    settings = Settings(
        defaults=defaults,
        url=_urls(values["url"], defaults.trainer),
        api_key=values["api_key"],
        recipe=read("recipe", _text, None),
        model=read("model", _text, None),
        overrides=read("overrides", _overrides, None),
        aspects=read("aspects", _aspects, defaults.aspects),
        aspect_names=read("aspect_names", _names, ()),
        fields=read("fields", _fields, None),
        group=read("group", _text, None),
        group_size=read("group_size", _count_or_column, None),
        tools=read("tools", _tools, None),
        max_completion_tokens=read("max_completion_tokens", _count, None),
        timeout=read("timeout", _seconds, defaults.timeout),
        connect_timeout=read("connect_timeout", _seconds, CONNECT_TIMEOUT),
        on_failure=read("on_failure", _policy, defaults.on_failure),
        template=read("template", _template, None),
        reply_start=read("reply_start", _reply_start, None),
    )
    _check(settings)
    return settings


def require_part(settings: Settings, part: str) -> None:
    """Raise ValueError if a part of the rewards would not be computed for every sample."""
    if part == "reward":
        return
    if settings.model:
        raise ValueError(
            f"{settings.trainer}: part {part!r} is a part of a recipe's reward, and model "
            f"{settings.model!r} has none: set recipe in place of model"
        )
    if part != "holistic" and settings.aspects == "admitted":
        raise ValueError(
            f"{settings.trainer}: with aspects 'admitted' only samples past the threshold have the "
            f"part {part!r}: set aspects (or ALARM_ASPECTS) to 'all'"
        )


def _check(settings: Settings) -> None:
    defaults, where, policy = settings.defaults, settings.trainer, settings.on_failure
    if settings.recipe and settings.model:
        raise ValueError(f"{where}: set recipe or model, not both")
    if settings.overrides and settings.model:
        raise ValueError(f"{where}: overrides apply to a recipe and cannot be used with model")
    if settings.group_size is not None and settings.timeout <= _HOLD_SECONDS:
        LOG.warning(
            "%s: a call waits at most %g s (timeout), and the server holds samples with a "
            "group_size for up to the recipe's group_timeout_s (%g s unless set): set it "
            "below the timeout",
            where,
            settings.timeout,
            _HOLD_SECONDS,
        )
    sees_groups = defaults.whole_groups is not None
    takes = "'raise', 'group_mean' or a number" if sees_groups else "'raise' or a number"
    if policy == "none" and not defaults.takes_none:
        raise ValueError(
            f"{where}: on_failure 'none' requires a trainer that skips samples; this one "
            f"counts None as 0 or fails on it. Use {takes}"
        )
    if policy == "group_mean" and not sees_groups:
        raise ValueError(
            f"{where}: on_failure 'group_mean' requires calls with all completions of a "
            f"prompt; this trainer sends one sample at a time. Use {takes}"
        )
    needs_names = defaults.same_keys and isinstance(policy, float)
    if needs_names and not (settings.aspect_names or settings.model):
        raise ValueError(
            f"{where} requires the same keys for every sample, so on_failure {policy} "
            f"requires aspect_names (or ALARM_ASPECT_NAMES), such as factuality,relevance"
        )


def _value(name: str, given: Mapping[str, Any]) -> Any:
    value = given.get(name)
    return (os.environ.get(f"ALARM_{name.upper()}") or None) if value is None else value


def _read(name: str, value: Any, read: Callable[[Any], Any], fallback: Any) -> Any:
    try:
        return fallback if value is None else read(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} (or ALARM_{name.upper()}): {error}; got {value!r}") from None


def _urls(value: Any, trainer: str) -> str | None:
    """URLs separated by commas; the message contains no value, as URLs may have passwords."""
    if value is None or isinstance(value, str):
        return value
    is_list = isinstance(value, Sequence) and all(isinstance(one, str) for one in value)
    if not is_list or not value:
        raise ValueError(f"{trainer}: url (or ALARM_URL): must be a URL, or a list of URLs")
    return ",".join(value)


def _aspects(value: Any) -> Aspects:
    if value not in ("admitted", "all"):
        raise ValueError("must be 'admitted' or 'all'")
    return value  # type: ignore[no-any-return]  # one of two literals


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("must be a string")
    return value


def _reply_start(value: Any) -> str:
    """A text in which the two characters `\\n`, as in a variable, are a line break."""
    return _text(value).replace("\\n", "\n")


def _count(value: Any) -> int:
    number = _number(value)
    if not number.is_integer() or number < 1:
        raise ValueError("must be an integer of 1 or more")
    return int(number)


def _count_or_column(value: Any) -> int | str:
    """A number, or the name of a column."""
    return _count(value) if math.isfinite(_number(value)) else _text(value)


def _tools(value: Any) -> str:
    """The name of a column, or a list of tools as JSON."""
    if isinstance(value, str) and not value.lstrip().startswith("["):
        return value
    return json.dumps(_plain(tools_of(value) or []))


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
    """Converts wrappers of configuration libraries to plain JSON types."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(inner) for inner in value]
    return value


def _template(value: Any) -> str:
    if not isinstance(value, (str, Mapping)):
        raise TypeError("must be a name, or an object of the texts before and after turns")
    name = value if isinstance(value, str) else json.dumps(_plain(value), sort_keys=True)
    template_of(name)
    return name


def _seconds(value: Any) -> float:
    seconds = _number(value)
    if not 0 < seconds < math.inf:
        raise ValueError("must be more than 0 seconds")
    return seconds


def _policy(value: Any) -> OnFailure:
    if value in ("raise", "none", "group_mean"):
        return value  # type: ignore[no-any-return]  # one of three literals
    number = _number(value)
    if not math.isfinite(number):
        raise ValueError("must be 'raise', 'none', 'group_mean' or a finite number")
    return number


def _number(value: Any) -> float:
    """A number, or a string of one; NaN for anything else, including booleans."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.nan
