"""Lines with rewards: those of `alarm score` and of captures, read alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from alarm_models.errors import AlarmModelsError
from alarm_service.captures.lines import is_captured, sample_of
from alarm_service.errors import format_validation_errors
from alarm_service.schemas import MessageIn, RewardOut, message_in

__all__ = ["RewardLine", "ViewError", "details_of", "length_of", "reward_line", "text_of"]

#: Keys of a line of `alarm score`.
_REWARD_KEYS = ("reward", "holistic", "aspects")

#: Keys of a sample that are shown, besides its texts.
_SHOWN_KEYS = ("id", "group", "finish_reason", "token_offsets")

_MESSAGES = TypeAdapter(list[MessageIn])


class ViewError(AlarmModelsError):
    """Files of rewards cannot be shown; the message names the file and says what to do."""


@dataclass(frozen=True, slots=True)
class RewardLine:
    """A reward with what its line says about it; what the line does not say is empty or None."""

    reward: Mapping[str, Any]
    sample: Mapping[str, Any]
    request: str | None = None
    recipe: str | None = None
    fingerprint: str | None = None
    overrides: Mapping[str, Any] | None = None
    constants: Mapping[str, Any] | None = None
    time: float | None = None

    @property
    def is_redacted(self) -> bool:
        """Whether the line has hashes instead of texts."""
        return "completion_sha256" in self.sample


def reward_line(value: object) -> RewardLine | None:
    """Read a line's JSON value; None for a score of `/score`, which is no reward.

    Raises `ValueError` that says what the line lacks.
    """
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    if is_captured(value) and isinstance(value.get("score"), dict):
        return None
    if isinstance(value.get("reward"), dict):
        sample = value.get("sample")
        return RewardLine(
            _required(value["reward"]),
            sample if isinstance(sample, dict) else {},
            _text_in(value, "request"),
            _text_in(value, "recipe"),
            _text_in(value, "fingerprint"),
            _object_in(value, "overrides"),
            _object_in(value, "constants"),
            _number_in(value, "time"),
        )
    sample = value.get("sample")
    return RewardLine(_required(value), sample if isinstance(sample, dict) else value)


def _required(reward: Mapping[str, Any]) -> Mapping[str, Any]:
    missing = [key for key in _REWARD_KEYS if key not in reward]
    if missing:
        raise ValueError(
            f"it has no {' and no '.join(f'`{key}`' for key in missing)}, so it is neither a "
            "line of alarm score nor of a capture"
        )
    number = reward["reward"]
    if number is not None and (isinstance(number, bool) or not isinstance(number, int | float)):
        raise ValueError("its `reward` is not a number")
    return reward


def _text_in(value: Mapping[str, Any], key: str) -> str | None:
    found = value.get(key)
    return found if isinstance(found, str) else None


def _number_in(value: Mapping[str, Any], key: str) -> float | None:
    found = value.get(key)
    return None if isinstance(found, bool) or not isinstance(found, int | float) else found


def _object_in(value: Mapping[str, Any], key: str) -> Mapping[str, Any] | None:
    found = value.get(key)
    return found if isinstance(found, dict) else None


def text_of(content: object) -> str | None:
    """Return a prompt or completion as the text that spans count in; None where there is none."""
    if isinstance(content, str):
        return content
    messages = _messages(content)
    return None if messages is None else "\n\n".join(text for _, text in messages)


def length_of(sample: Mapping[str, Any], completion: str | None) -> int | None:
    """Return the length of a completion in characters, which a redacted line has too."""
    if completion is not None:
        return len(completion)
    found = sample.get("num_completion_chars")
    return found if isinstance(found, int) else None


def _messages(content: object) -> list[tuple[str, str]] | None:
    """Return role and text of each message; None where the content is no list of messages."""
    if not isinstance(content, list):
        return None
    try:
        messages = [message_in(one) for one in _MESSAGES.validate_python(content)]
    except ValidationError:
        return None
    return [(message.role, message.text) for message in messages]


def details_of(line: RewardLine) -> dict[str, Any]:
    """Return what the page shows of one sample; raise `ValueError` for an unusable reward."""
    try:
        reward = RewardOut.model_validate(dict(line.reward))
    except ValidationError as error:
        faults = format_validation_errors(error.errors(), whole="the reward")
        raise ValueError(faults) from error
    if reward.error is None and (reward.reward is None or reward.holistic is None):
        raise ValueError("it has neither a reward nor an error")
    sample = line.sample
    prompt = sample.get("prompt")
    messages = _messages(prompt)
    if isinstance(prompt, str):
        messages = [("", prompt)]
    return {
        "reward": reward.model_dump(mode="json"),
        "prompt": messages,
        "completion": text_of(sample.get("completion")),
        "is_redacted": line.is_redacted,
        "sample": {key: sample[key] for key in _SHOWN_KEYS if sample.get(key) is not None},
        "request": line.request,
        "constants": None if line.constants is None else dict(line.constants),
    }


def sample_line(value: object) -> Mapping[str, Any]:
    """Return the sample of a line of the input of `alarm score`; empty for an unusable one."""
    if not isinstance(value, dict):
        return {}
    if is_captured(value) and not value.get("redacted"):
        found = sample_of(value)
        return found if isinstance(found, dict) else {}
    sample = value.get("sample")
    return sample if isinstance(sample, dict) else value
