"""The decisions about groups, in random orders of events."""

import random

import pytest

from alarm_models.errors import SampleError
from alarm_models.types import Sample
from alarm_service.engine.group_state import (
    REMEMBERED_S,
    AttemptState,
    GroupState,
    Identity,
    NoRoom,
)

SIZE = 4


def identity(number: int, text: str = "a") -> Identity:
    return Identity.of(Sample("?", f"{text} {number}", id=str(number)), SIZE)


def fill(assembly: GroupState) -> None:
    for name in range(100, 200):
        assembly.arrive(name, str(name), identity(0), 1.0, 0.0)


@pytest.mark.parametrize("seed", range(20))
def test_members_in_any_order_with_leavers_and_repeats_are_complete_once(seed: int) -> None:
    rng = random.Random(seed)
    assembly = GroupState(1 << 20)
    waiting = {}
    for now in range(1000):
        number = rng.randrange(SIZE)
        if number in waiting and rng.random() < 0.4:
            assembly.leave(*waiting.pop(number), was_answered=False)
        elif number not in waiting:
            found = assembly.arrive("x", "x", identity(number), 1e6, float(now))
            assert not isinstance(found, SampleError)
            attempt, member = waiting[number] = found
            member.outcome = member.outcome or object()
            assert attempt.num_there == len(waiting)
            if attempt.is_ready:
                break
    assert len(waiting) == SIZE
    assert {one.identity.id for one in attempt.scored()} == {str(at) for at in range(SIZE)}
    assembly.end(attempt, AttemptState.COMPLETE, 1000.0)
    again = assembly.arrive("x", "x", identity(0), 1.0, 1000.0)
    assert again == waiting[0]


def test_complete_group_is_forgotten_after_a_while() -> None:
    assembly = GroupState(1 << 20)
    for number in range(SIZE):
        found = assembly.arrive("x", "x", identity(number), 1.0, 0.0)
        assert not isinstance(found, SampleError)
        attempt, member = found
        member.outcome = object()
    assembly.end(attempt, AttemptState.COMPLETE, 0.0)
    later = assembly.arrive("x", "x", identity(0), 1.0, REMEMBERED_S + 1)
    assert not isinstance(later, SampleError)
    assert later[0] is not attempt


def test_other_samples_wait_until_all_were_answered() -> None:
    assembly = GroupState(1 << 20)
    places = [assembly.arrive("x", "x", identity(at), 1.0, 0.0) for at in range(SIZE)]
    found = [place for place in places if not isinstance(place, SampleError)]
    for _, member in found:
        member.outcome = object()
    assembly.end(found[0][0], AttemptState.COMPLETE, 0.0)
    for attempt, member in found[1:]:
        assembly.leave(attempt, member, was_answered=True)
    refused = assembly.arrive("x", "x", identity(0, "b"), 1.0, 1.0)
    assert isinstance(refused, SampleError)
    assert refused.code == "group_conflict"
    assembly.leave(*found[0], was_answered=True)
    assert not isinstance(assembly.arrive("x", "x", identity(0, "b"), 1.0, 1.0), SampleError)


def test_remembered_groups_make_room_and_open_ones_do_not() -> None:
    one = identity(0).num_bytes
    assembly = GroupState(4 * one + 8192)
    for name in range(100):
        found = assembly.arrive(name, str(name), identity(0), 1.0, 0.0)
        assert not isinstance(found, SampleError)
        assembly.leave(*found, was_answered=True)
        assembly.end(found[0], AttemptState.INCOMPLETE, 0.0)
    with pytest.raises(NoRoom):
        fill(assembly)
