"""open-instruct's verifier `alarm`: `python -m alarm_client.trainers.open_instruct SCRIPT ...`."""

from __future__ import annotations

import re
import runpy
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from alarm_client.trainers._columns import with_rows
from alarm_client.trainers._failures import numbers
from alarm_client.trainers._inputs import without_end_tokens
from alarm_client.trainers._settings import Settings, TrainerDefaults
from alarm_client.trainers._source import get_reward_source
from alarm_client.types import Reward, Sample, Text

__all__ = ["DEFAULTS", "main", "messages_of_query", "register"]

# open-instruct awaits the rewards of a prompt's samples together, without a time limit.
DEFAULTS = TrainerDefaults(
    "open_instruct", timeout=600.0, aspects="admitted", references=("label",)
)
HABITS = DEFAULTS  # former name, kept as an alias

_TURN = re.compile(r"^(system|developer|user|assistant|tool|environment): ", re.MULTILINE)


def register() -> None:
    """Register `alarm` as a verifier of open-instruct; call it before verifiers are created."""
    _verifier()


def main() -> None:
    """Run a script with its arguments after registering `alarm`."""
    if len(sys.argv) < 2:
        sys.exit("usage: python -m alarm_client.trainers.open_instruct SCRIPT [ARGUMENT]...")
    del sys.argv[0]
    sys.path.insert(0, str(Path.cwd()))  # open-instruct's folder, if it is not installed
    register()
    runpy.run_path(sys.argv[0], run_name="__main__")


def messages_of_query(query: str) -> Text:
    """The messages that open-instruct joined into a query, as lines of `role: content`.

    A line within a message that starts with a role is read as a message. A query that does not
    start with a role is returned as a string.
    """
    found = list(_TURN.finditer(query))
    if not found or found[0].start() > 0:
        return query
    ends = [match.start() - 1 for match in found[1:]] + [len(query)]
    return [
        {"role": match[1], "content": query[match.end() : end]}
        for match, end in zip(found, ends, strict=True)
    ]


def _samples(prediction: str, label: Any, query: str | None, settings: Settings) -> list[Sample]:
    if query is None:
        raise ValueError("open_instruct: the call has no query, so the prompt is unknown")
    sample = Sample(prompt=messages_of_query(query), completion=without_end_tokens(prediction))
    return with_rows([sample], [{"label": label}], settings)


@lru_cache(maxsize=1)
def _verifier() -> type[Any]:
    from open_instruct.ground_truth_utils import VerificationResult, VerifierFunction

    class AlarmVerifier(VerifierFunction):  # type: ignore[misc]  # open-instruct is not installed for type checking
        """The reward of one prediction; selected by `dataset: alarm` in a row."""

        def __init__(self, verifier_config: Any = None) -> None:
            super().__init__("alarm", weight=1.0, verifier_config=verifier_config)

        def __call__(
            self,
            tokenized_prediction: list[int],
            prediction: str,
            label: Any,
            query: str | None = None,
            rollout_state: dict[str, Any] | None = None,
        ) -> Any:
            source = get_reward_source(DEFAULTS)
            return _result(source.rewards(_samples(prediction, label, query, source.settings)))

        async def async_call(
            self,
            tokenized_prediction: list[int],
            prediction: str,
            label: Any,
            query: str | None = None,
            rollout_state: dict[str, Any] | None = None,
        ) -> Any:
            source = get_reward_source(DEFAULTS)
            return _result(
                await source.arewards(_samples(prediction, label, query, source.settings))
            )

    def _result(rewards: list[Reward]) -> Any:
        (value,) = numbers(rewards, get_reward_source(DEFAULTS).settings.on_failure)
        return VerificationResult(score=value)

    AlarmVerifier.__qualname__ = "AlarmVerifier"  # found by workers through __getattr__
    return AlarmVerifier


def __getattr__(name: str) -> Any:
    # The class that open-instruct's workers look up by name; open_instruct is imported only then.
    if name == "AlarmVerifier":
        return _verifier()
    raise AttributeError(f"module {__name__} has no {name}")


if __name__ == "__main__":
    # By the module name under which workers unpickle the class.
    from alarm_client.trainers import open_instruct

    open_instruct.main()
