"""The recipe table `overlong`, against numbers by hand and TRL's formula."""

from typing import Any

import pytest
from pydantic import ValidationError

from alarm_models.combination.overlong import OverlongSpec, soft_overlong_punishment
from alarm_models.errors import SampleError
from alarm_models.types import Reward, Sample, Span

RAMP = OverlongSpec(action="ramp", max_length=10, cache=4, weight=2.0)


def trl(num_tokens: int, max_length: int, cache: int) -> float:
    """Return what TRL's `get_soft_overlong_punishment` gives, in its words."""
    if num_tokens <= max_length - cache:
        return 0.0
    if max_length - cache < num_tokens <= max_length:
        return (max_length - cache - num_tokens) / cache
    return -1.0


def sample(num_tokens: int | None, finish_reason: str | None = None) -> Sample:
    offsets = None if num_tokens is None else (Span(0, 1),) * num_tokens
    return Sample("?", "a", token_offsets=offsets, finish_reason=finish_reason)


def reward(*tokens: float, is_scalar: bool = False) -> Reward:
    return Reward(sum(tokens), None if is_scalar else tokens, 0.0, 0.0, True, {}, False)


@pytest.mark.parametrize(("max_length", "cache"), [(20, 5), (16, 16), (7, 1), (4096, 512)])
def test_ramp_is_trls_formula(max_length: int, cache: int) -> None:
    for num_tokens in [0, 1, max_length - cache, max_length - 1, max_length, 2 * max_length]:
        wanted = trl(num_tokens, max_length, cache)
        assert soft_overlong_punishment(num_tokens, max_length, cache) == wanted


@pytest.mark.parametrize(("num_tokens", "wanted"), [(6, 1.0), (7, 0.5), (9, -0.5), (10, -1.0)])
def test_ramp_is_added_on_the_last_token(num_tokens: int, wanted: float) -> None:
    found = RAMP.applied_to(reward(1.0, *[0.0] * (num_tokens - 1)), sample(num_tokens))
    assert found.reward == wanted
    assert found.token_rewards == (1.0, *[0.0] * (num_tokens - 2), wanted - 1.0)


def test_ramp_without_token_offsets_is_an_error() -> None:
    fault = RAMP.fault(sample(None))
    assert fault is not None
    assert fault.code == "invalid_sample"


@pytest.mark.parametrize("is_scalar", [True, False])
def test_penalty_of_a_truncated_sample(is_scalar: bool) -> None:
    spec = OverlongSpec(action="penalty", penalty=-0.25)
    given = reward(1.0, 2.0, is_scalar=is_scalar)
    assert spec.applied_to(given, sample(2, "length")).reward == 2.75
    assert spec.applied_to(given, sample(2, "stop")) == given
    assert spec.applied_to(given, sample(2)) == given


def test_penalty_on_no_token_is_none() -> None:
    spec = OverlongSpec(action="penalty")
    assert spec.applied_to(reward(), sample(0, "length")).reward == 0


def test_skip_gives_no_reward() -> None:
    spec = OverlongSpec(action="skip")
    assert isinstance(spec.fault(sample(1, "length")), SampleError)
    assert spec.fault(sample(1, "stop")) is None


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"action": "ramp", "max_length": 4}, "requires cache"),
        ({"action": "ramp", "max_length": 4, "cache": 5}, "cache must be at most max_length"),
        ({"action": "skip", "penalty": -1.0}, "does not use penalty"),
        ({"action": "drop"}, "'penalty', 'skip' or 'ramp'"),
    ],
)
def test_table_that_contradicts_itself_is_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        OverlongSpec.model_validate(table)
